//! What the tables should say about a service: what clients dial, and where new flows go.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    address::from_ip,
    service::{FrontendKey, FrontendKind},
};

use super::{
    BackendKey, Backends, Choice, Desired, Local, Port, PortName, Ranges,
    categorize::{Candidate, Place, Policies, categorize},
};
use crate::world::{Endpoint, Family, ObjectKey, Service, ServicePort, World};

/// What the tables should say about one service; nothing where there is no such service.
pub fn service(world: &World, local: &Local, key: &ObjectKey) -> Desired {
    let mut desired = Desired::default();
    let Some(service) = world.service(key) else {
        return desired;
    };
    for &address in own_addresses(world, key, service) {
        desired.addresses.insert(from_ip(address));
        let family = Family::of(address);
        for port in &service.ports {
            let ServicePort {
                name,
                protocol,
                port: number,
                ..
            } = port;
            let frontend = FrontendKey::new(from_ip(address), *number, protocol.number());
            let name = PortName {
                service: key.clone(),
                port: name.clone(),
                protocol: *protocol,
                family,
            };
            let choice = Choice {
                internal_local: false,
                external_local: false,
                affinity: 0,
                ranges: Ranges::new(),
                backends: backends(world, local, &name),
            };
            desired
                .ports
                .entry(name)
                .or_insert_with(|| Port {
                    frontends: Vec::new(),
                    choice,
                })
                .frontends
                .push((frontend, FrontendKind::Internal));
        }
    }
    desired
}

/// The ClusterIPs that no other service has a better claim to.
fn own_addresses<'a>(
    world: &'a World,
    key: &'a ObjectKey,
    service: &'a Service,
) -> impl Iterator<Item = &'a IpAddr> {
    service
        .cluster_ips
        .iter()
        .filter(move |address| world.owner_of(**address) == Some(key))
}

fn backends(world: &World, local: &Local, name: &PortName) -> Backends {
    let place = Place {
        node: &local.node,
        zone: local.zone.as_deref(),
    };
    let endpoints = endpoints(world, name);
    let endpoints = endpoints.into_iter().map(|(key, endpoint)| {
        let candidate = Candidate {
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.node.as_deref() == Some(&local.node),
            nodes: &[],
            zones: &[],
        };
        (key, candidate)
    });
    categorize(&endpoints.collect(), Policies::default(), place)
}

/// The endpoints of a service port, from all slices whose port has its name and protocol.
///
/// An address and port that several endpoints claim is one endpoint: the one that is in the best
/// state, since an address is used again while its last pod still terminates.
fn endpoints<'a>(world: &'a World, name: &PortName) -> BTreeMap<BackendKey, &'a Endpoint> {
    let mut endpoints: BTreeMap<_, &Endpoint> = BTreeMap::new();
    let slices = world.slices_of(&name.service).map(|(_, slice)| slice);
    for slice in slices.filter(|slice| slice.family == name.family) {
        let ports = slice.ports.iter();
        let ports = ports.filter(|port| port.name == name.port && port.protocol == name.protocol);
        for port in ports {
            for endpoint in &slice.endpoints {
                let key = BackendKey {
                    address: from_ip(endpoint.address),
                    port: port.port,
                };
                let best = endpoints.entry(key).or_insert(endpoint);
                *best = std::cmp::max_by_key(endpoint, *best, |endpoint| state(endpoint));
            }
        }
    }
    endpoints
}

/// Orders endpoints from the worst state to the best.
fn state(endpoint: &Endpoint) -> (bool, bool, bool) {
    (!endpoint.terminating, endpoint.ready, endpoint.serving)
}
