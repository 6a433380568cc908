//! What the tables say about this node as a whole: its own addresses, and the networks of services.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    address::{Address, from_ip},
    service::Cidr,
};

use super::Range;
use crate::{node_view::NodeView, world::World};

/// What the tables should say about this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredNode {
    /// The node's addresses, and whether NodePorts are served there. One that is a ClusterIP too
    /// (`kube-ipvs0` carries all of them) stays a ClusterIP.
    pub addresses: BTreeMap<Address, bool>,
    /// The networks whose addresses are all services': new flows to those that are none are dropped.
    pub cidrs: BTreeSet<Cidr>,
}

/// What the tables should say about this node.
pub fn node(world: &World, view: &NodeView) -> DesiredNode {
    let NodeView {
        addresses,
        nodeports_on,
    } = view;
    let addresses = addresses.iter();
    let addresses = addresses.map(|ip| (from_ip(*ip), nodeports_on.contains(ip)));
    let cidrs = world.service_cidrs().into_iter();
    DesiredNode {
        addresses: addresses.collect(),
        cidrs: cidrs.map(|cidr| Range::from(cidr).cidr()).collect(),
    }
}
