//! Which backends serve a service port.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{address::from_ip, service::FrontendKey};

use super::{BackendKey, Backends, Desired, Port, PortName};
use crate::world::{Endpoint, Family, ObjectKey, Service, ServicePort, World};

/// What the tables should say about one service; nothing where there is no such service.
pub fn service(world: &World, key: &ObjectKey) -> Desired {
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
            desired
                .ports
                .entry(name)
                .or_insert_with_key(|name| Port {
                    frontends: Vec::new(),
                    backends: backends(world, name),
                })
                .frontends
                .push(frontend);
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

/// Ready endpoints are chosen; where there are none, those that terminate but still serve. Whatever
/// else serves keeps the flows it has (`CategorizeEndpoints` of kube-proxy, cluster list).
fn backends(world: &World, name: &PortName) -> Backends {
    let endpoints = endpoints(world, name);
    let last_resort = !endpoints.values().any(|endpoint| endpoint.ready);
    let chosen = |e: &Endpoint| e.ready || last_resort && e.serving && e.terminating;
    let mut backends = Backends::default();
    for (key, endpoint) in endpoints {
        if chosen(endpoint) {
            backends.chosen.push(key);
        } else if endpoint.serving {
            backends.draining.push(key);
        }
    }
    backends
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
