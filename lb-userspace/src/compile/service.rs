//! What the tables should say about a service: what clients dial, and how a backend is chosen.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    address::from_ip,
    service::{FrontendKey, FrontendKind},
};

use super::{Choice, Desired, Local, Policies, Port, PortName, Range, Ranges, endpoints};
use crate::world::{Family, ObjectKey, Service, ServicePort, World};

/// What the tables should say about one service; nothing where there is no such service.
///
/// A service is served in the families that it has a ClusterIP of. What it claims and another
/// service has is left out.
pub fn service(world: &World, local: &Local, key: &ObjectKey) -> Desired {
    let Some(service) = world.service(key) else {
        return Desired::default();
    };
    let own = |ip: &&IpAddr| world.owner_of(**ip) == Some(key);
    let addresses = service.cluster_ips.iter().filter(own);
    let mut ports = BTreeMap::new();
    for family in service.cluster_ips.iter().map(|ip| Family::of(*ip)) {
        for port in &service.ports {
            let claims = PortClaims {
                world,
                key,
                service,
                port,
                family,
            };
            let frontends = claims.frontends();
            if frontends.is_empty() {
                continue;
            }
            let name = claims.name();
            let choice = claims.choice(local, &name);
            ports.insert(name, Port { frontends, choice });
        }
    }
    Desired {
        addresses: addresses.map(|ip| from_ip(*ip)).collect(),
        ports,
    }
}

/// A port of a service in one family.
struct PortClaims<'a> {
    world: &'a World,
    key: &'a ObjectKey,
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
}

impl PortClaims<'_> {
    fn name(&self) -> PortName {
        PortName {
            service: self.key.clone(),
            port: self.port.name.clone(),
            protocol: self.port.protocol,
            family: self.family,
        }
    }

    /// What clients dial that is the service's own, the ClusterIP first.
    fn frontends(&self) -> Vec<(FrontendKey, FrontendKind)> {
        let Self { world, key, .. } = *self;
        let ServicePort {
            protocol,
            port,
            node_port,
            ..
        } = *self.port;
        let Service {
            cluster_ips,
            load_balancer_ips,
            external_ips,
            ..
        } = self.service;
        let internal = self.of_family(cluster_ips);
        let internal = internal
            .filter(|ip| world.owner_of(*ip) == Some(key))
            .map(|ip| (ip, FrontendKind::Internal));
        let vips = self.of_family(load_balancer_ips);
        let vips = vips.map(|ip| (ip, FrontendKind::LoadBalancer));
        let external = self.of_family(external_ips);
        let external = external.map(|ip| (ip, FrontendKind::External));
        let outside = vips
            .chain(external)
            .filter(|(ip, _)| world.owner_of_external(*ip, port, protocol) == Some(key));
        let dialled = internal
            .chain(outside)
            .map(|(ip, kind)| (FrontendKey::new(from_ip(ip), port, protocol.number()), kind));
        let node_port = node_port
            .filter(|number| world.owner_of_node_port(*number, protocol) == Some(key))
            .map(|number| {
                let v4 = self.family == Family::IPv4;
                let key = FrontendKey::node_port(v4, number, protocol.number());
                (key, FrontendKind::External)
            });
        dialled.chain(node_port).collect()
    }

    /// `UsesClusterEndpoints` and its like in kube-proxy's `serviceport.go`.
    fn policies(&self) -> Policies {
        let Service {
            load_balancer_ips,
            external_ips,
            internal_local,
            external_local,
            ..
        } = self.service;
        let external = self.port.node_port.is_some()
            || self.of_family(load_balancer_ips).next().is_some()
            || self.of_family(external_ips).next().is_some();
        Policies {
            internal_local: *internal_local,
            external_local: *external_local && external,
            external,
        }
    }

    fn choice(&self, local: &Local, name: &PortName) -> Choice {
        let policies = self.policies();
        Choice {
            internal_local: policies.internal_local,
            external_local: policies.external_local,
            affinity: self.service.affinity.unwrap_or(0),
            ranges: self.ranges(local),
            backends: endpoints::backends(self.world, local, name, policies),
        }
    }

    /// Who may dial the load balancer's IPs. Ranges of the other family do not count: a family that
    /// has none serves any source.
    ///
    /// Where the ranges hold the node itself, its own connections to a VIP that it carries come from
    /// that VIP: then the VIPs are let in too (`allowFromNode` of kube-proxy's `proxier.go`).
    fn ranges(&self, local: &Local) -> Ranges {
        let Service {
            load_balancer_ips,
            source_ranges,
            ..
        } = self.service;
        if self.of_family(load_balancer_ips).next().is_none() {
            return Ranges::new();
        }
        let own = source_ranges
            .iter()
            .filter(|range| Family::of(range.addr()) == self.family);
        let mut ranges: Ranges = own.clone().map(|range| Range::from(*range)).collect();
        let mut own = own;
        if own.any(|range| local.primary.iter().any(|ip| range.contains(ip))) {
            ranges.extend(self.of_family(load_balancer_ips).map(Range::host));
        }
        ranges
    }

    fn of_family<'a>(&self, addresses: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + use<'a> {
        let family = self.family;
        let own = addresses
            .iter()
            .filter(move |ip| Family::of(**ip) == family);
        own.copied()
    }
}
