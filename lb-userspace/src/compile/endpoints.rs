//! The endpoints of a service port, of all its slices.

use std::collections::BTreeMap;

use lb_common::address::from_ip;

use super::{
    BackendKey, Backends, Local, Policies, PortName,
    categorize::{Candidate, Place, categorize},
};
use crate::world::{Endpoint, World};

/// Where new flows to a service port may go.
pub fn backends(world: &World, local: &Local, name: &PortName, policies: Policies) -> Backends {
    let place = Place {
        node: &local.node,
        zone: local.zone.as_deref(),
    };
    let endpoints = endpoints(world, name);
    let candidates = endpoints.into_iter().map(|(key, endpoint)| {
        let candidate = Candidate {
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.node.as_ref() == Some(&local.node),
            nodes: &endpoint.hints.nodes,
            zones: &endpoint.hints.zones,
        };
        (key, candidate)
    });
    categorize(&candidates.collect(), policies, place)
}

/// The endpoints of a service port, from all slices whose port has its name and protocol.
///
/// An address and port that several endpoints claim is one endpoint: the one that is in the best
/// state, since an address is used again while its last pod still terminates. Upstream, a later
/// entry counts unless it terminates (`addEndpoints` of `endpointslicecache.go`), and nothing says
/// which slice is later.
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
