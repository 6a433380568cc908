//! Where this node stands in the cluster.

use std::net::IpAddr;

use crate::world::{Family, World};

/// What the choice of backends depends on besides the service: this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Name of its Node object.
    pub node: String,
    pub zone: Option<String>,
    /// Its first address of each family.
    pub primary: Vec<IpAddr>,
}

impl Local {
    /// What the Node object of this name says.
    pub fn of(world: &World, node: &str) -> Self {
        let row = world.node(node);
        let addresses = row.map(|row| &row.addresses[..]).unwrap_or_default();
        let first = |family| addresses.iter().find(|ip| Family::of(**ip) == family);
        let primary = [Family::IPv4, Family::IPv6].into_iter().filter_map(first);
        Self {
            node: node.to_owned(),
            zone: row.and_then(|row| row.zone.clone()),
            primary: primary.copied().collect(),
        }
    }
}
