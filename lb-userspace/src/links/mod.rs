//! The node's interfaces: which of them lead to pods, which lead out of the node, and which addresses
//! are behind and on them.
//!
//! [`watch`] reports every interface, what routes lead through it, and every change. [`Links`] holds
//! that and says what each is. [`Reader`] reads what the other end of a veth carries, and [`Claims`]
//! decides which of these addresses are believed. `Links` and `Claims` are pure.

mod claims;
mod devices;
mod messages;
mod peer;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use glob::Pattern;

pub use self::{
    claims::{Claims, Holder, Reading},
    devices::{Leads, NoDevice},
    messages::Reach,
    peer::Reader,
    watch::watch,
};
use crate::node_view::{NodePortAddresses, NodeView};

/// An interface of the node, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    pub name: String,
    pub kind: Kind,
    /// What it is a port of.
    pub port: Option<Port>,
    pub framing: Framing,
    /// The largest IP packet that it carries, in bytes.
    pub mtu: u32,
    /// Whether both it and its peer are up.
    pub up: bool,
    /// The other end of a veth, where that is in another network namespace.
    pub peer: Option<Peer>,
    /// Its own addresses, in the kernel's order.
    pub addresses: Vec<OwnAddress>,
}

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Loopback,
    /// One end of a veth pair.
    Veth,
    Bridge,
    /// What its packets leave by is another interface, inside packets to another machine.
    Tunnel,
    /// Nothing is behind it.
    Dummy,
    Other,
}

/// What an interface is a port of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Interface index of the bridge or bond.
    pub controller: u32,
    pub bridge: bool,
}

/// What comes before the IP header of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Ethernet,
    /// Nothing.
    Bare,
    /// Something that we do not know.
    Unknown,
}

/// The end of a veth that is in another network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Interface index, in its own namespace.
    pub index: u32,
    /// The id by which our namespace knows that one (`ip netns list-id`).
    pub namespace: i32,
}

/// An address of the node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    pub address: IpAddr,
    /// Whether it may be seen on other networks than the interface's own.
    pub global: bool,
    /// Whether it is a second one of its network (IPv4), or temporary (IPv6).
    pub secondary: bool,
    /// Whether it is neither deprecated nor still, or in vain, being checked for duplicates.
    pub preferred: bool,
}

/// What [`watch`] reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// An interface that is new, or not as it was last reported.
    Seen(Link),
    /// The interface with this index is no longer in our namespace.
    Gone(u32),
    /// The farthest that routes lead through each interface, by its index.
    Routes(BTreeMap<u32, Reach>),
    /// All that there is has been reported. Comes once.
    Listed,
}

/// Why an interface leads to no pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    NotVeth,
    NotVethOrBridgePort,
    NoMatch,
    SameNamespace,
    NodeAddress(IpAddr),
    DefaultRoute,
    Uplink,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVeth => f.write_str("not a veth"),
            Self::NotVethOrBridgePort => f.write_str("neither a veth nor a bridge port"),
            Self::NoMatch => f.write_str("does not match --pod-interface"),
            Self::SameNamespace => f.write_str("peer is in this namespace"),
            Self::NodeAddress(address) => write!(f, "carries the node's address {address}"),
            Self::DefaultRoute => f.write_str("carries the default route"),
            Self::Uplink => f.write_str("matches --uplink-interface"),
        }
    }
}

/// What an interface is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It leads to a pod.
    Pod,
    /// It leads out of the node, and why we think so.
    Device(Leads),
    /// Neither, and why.
    Left(Left, NoDevice),
}

/// How interfaces are told, where the command line says.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    /// Names of those that lead to pods. None: every veth whose peer is in another namespace does,
    /// unless it is an uplink: that of a node that is itself a container.
    pub pods: Vec<Pattern>,
    /// Names of those that lead out of the node. None: routes and addresses tell.
    pub uplinks: Vec<Pattern>,
}

/// All interfaces of the node, and what each is.
#[derive(Debug, Default)]
pub struct Links {
    patterns: Patterns,
    nodeport_addresses: Vec<NodePortAddresses>,
    node_addresses: Vec<IpAddr>,
    links: BTreeMap<u32, Link>,
    reach: BTreeMap<u32, Reach>,
    view: NodeView,
    listed: bool,
}

impl Links {
    pub fn new(patterns: Patterns, nodeport_addresses: Vec<NodePortAddresses>) -> Self {
        Self {
            patterns,
            nodeport_addresses,
            ..Self::default()
        }
    }

    pub fn apply(&mut self, change: LinkChange) {
        match change {
            LinkChange::Seen(link) => {
                let before = self.links.get(&link.index).map(|link| &link.addresses);
                let same = before.is_some_and(|before| *before == link.addresses);
                self.links.insert(link.index, link);
                if !same {
                    self.review();
                }
            }
            LinkChange::Gone(index) => {
                self.links.remove(&index);
                self.review();
            }
            LinkChange::Routes(reach) => self.reach = reach,
            LinkChange::Listed => self.listed = true,
        }
    }

    /// The addresses that the Node object lists, the primary one of each family first.
    pub fn set_node_addresses(&mut self, addresses: &[IpAddr]) {
        addresses.clone_into(&mut self.node_addresses);
        self.review();
    }

    fn review(&mut self) {
        let local = self.links.values().flat_map(|link| &link.addresses);
        let local: BTreeSet<_> = local.map(|own| own.address).collect();
        self.view = NodeView::new(&local, &self.node_addresses, &self.nodeport_addresses);
    }

    /// The node's addresses, and where it serves NodePorts.
    pub fn view(&self) -> &NodeView {
        &self.view
    }

    /// Whether all interfaces are known.
    pub fn listed(&self) -> bool {
        self.listed
    }

    pub fn get(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The interfaces that lead to pods, by index.
    pub fn pods(&self) -> impl Iterator<Item = &Link> {
        self.links
            .values()
            .filter(|link| self.judge_pod(link).is_ok())
    }

    /// The interfaces that lead out of the node, by index, and why we think so.
    pub fn devices(&self) -> impl Iterator<Item = (&Link, Leads)> {
        self.links
            .values()
            .filter_map(|link| Some((link, self.judge_device(link).ok()?)))
    }

    /// Every interface with what it is.
    pub fn judged(&self) -> impl Iterator<Item = (&Link, Judgement)> {
        self.links.values().map(|link| {
            let judgement = match (self.judge_pod(link), self.judge_device(link)) {
                (Ok(()), _) => Judgement::Pod,
                (Err(_), Ok(leads)) => Judgement::Device(leads),
                (Err(left), Err(no_device)) => Judgement::Left(left, no_device),
            };
            (link, judgement)
        })
    }

    fn judge_pod(&self, link: &Link) -> Result<(), Left> {
        if self.patterns.pods.is_empty() {
            return self.judge_unnamed(link);
        }
        if !matches(&self.patterns.pods, link) {
            return Err(Left::NoMatch);
        }
        match link {
            Link {
                port: Some(Port { bridge: true, .. }),
                ..
            }
            | Link { peer: Some(_), .. } => Ok(()),
            Link {
                kind: Kind::Veth, ..
            } => Err(Left::SameNamespace),
            Link { .. } => Err(Left::NotVethOrBridgePort),
        }
    }

    fn judge_unnamed(&self, link: &Link) -> Result<(), Left> {
        if link.kind != Kind::Veth {
            return Err(Left::NotVeth);
        }
        if link.peer.is_none() {
            return Err(Left::SameNamespace);
        }
        if let Some(address) = self.node_address(link) {
            return Err(Left::NodeAddress(address));
        }
        if self.reach.get(&link.index) == Some(&Reach::Everywhere) {
            return Err(Left::DefaultRoute);
        }
        if matches(&self.patterns.uplinks, link) {
            return Err(Left::Uplink);
        }
        Ok(())
    }

    /// An address of the node that the interface carries.
    fn node_address(&self, link: &Link) -> Option<IpAddr> {
        let mut addresses = link.addresses.iter().map(|own| own.address);
        addresses.find(|address| self.node_addresses.contains(address))
    }
}

fn matches(patterns: &[Pattern], link: &Link) -> bool {
    patterns.iter().any(|pattern| pattern.matches(&link.name))
}

#[cfg(test)]
mod tests;
