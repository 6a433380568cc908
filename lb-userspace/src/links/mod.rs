//! The node's interfaces: which of them lead to pods, and which addresses are behind those.
//!
//! [`watch`] reports every interface and every change of one. [`Links`] holds them and says which
//! are taken. [`Reader`] reads what the other end of a veth carries, and [`Claims`] decides which of
//! these addresses are believed. `Links` and `Claims` are pure.

mod claims;
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
    peer::Reader,
    watch::watch,
};

/// An interface of the node, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    pub name: String,
    /// Whether it is one end of a veth pair.
    pub veth: bool,
    /// Whether it is a port of a bridge.
    pub bridge_port: bool,
    /// Whether both it and its peer are up.
    pub up: bool,
    /// The other end of a veth, where that is in another network namespace.
    pub peer: Option<Peer>,
    /// Its own addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// The end of a veth that is in another network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Interface index, in its own namespace.
    pub index: u32,
    /// The id by which our namespace knows that one (`ip netns list-id`).
    pub namespace: i32,
}

/// What [`watch`] reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// An interface that is new, or not as it was last reported.
    Seen(Link),
    /// The interface with this index is no longer in our namespace.
    Gone(u32),
    /// All interfaces that there are have been reported. Comes once.
    Listed,
}

/// Why an interface is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    NotVeth,
    NotVethOrBridgePort,
    NoMatch,
    SameNamespace,
    NodeAddress(IpAddr),
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVeth => f.write_str("not a veth"),
            Self::NotVethOrBridgePort => f.write_str("neither a veth nor a bridge port"),
            Self::NoMatch => f.write_str("does not match --pod-interface"),
            Self::SameNamespace => f.write_str("peer is in this namespace"),
            Self::NodeAddress(address) => write!(f, "carries the node's address {address}"),
        }
    }
}

/// All interfaces of the node, and which of them are pods'.
#[derive(Debug, Default)]
pub struct Links {
    patterns: Vec<Pattern>,
    node_addresses: BTreeSet<IpAddr>,
    links: BTreeMap<u32, Link>,
    listed: bool,
}

impl Links {
    /// Without patterns, every veth whose peer is in another namespace is a pod's, unless it carries
    /// an address of the node: the uplink of a node that is itself a container.
    pub fn new(patterns: Vec<Pattern>) -> Self {
        Self {
            patterns,
            ..Self::default()
        }
    }

    pub fn apply(&mut self, change: LinkChange) {
        match change {
            LinkChange::Seen(link) => {
                self.links.insert(link.index, link);
            }
            LinkChange::Gone(index) => {
                self.links.remove(&index);
            }
            LinkChange::Listed => self.listed = true,
        }
    }

    /// The addresses that the Node object lists.
    pub fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.node_addresses = addresses;
    }

    /// Whether all interfaces are known.
    pub fn listed(&self) -> bool {
        self.listed
    }

    /// The interfaces that lead to pods, by index.
    pub fn taken(&self) -> impl Iterator<Item = &Link> {
        self.links.values().filter(|link| self.judge(link).is_ok())
    }

    /// Every interface with the reason why it is left alone, where it is.
    pub fn judged(&self) -> impl Iterator<Item = (&Link, Option<Left>)> {
        self.links
            .values()
            .map(|link| (link, self.judge(link).err()))
    }

    fn judge(&self, link: &Link) -> Result<(), Left> {
        if self.patterns.is_empty() {
            return self.judge_unnamed(link);
        }
        if !self
            .patterns
            .iter()
            .any(|pattern| pattern.matches(&link.name))
        {
            return Err(Left::NoMatch);
        }
        match link {
            Link {
                bridge_port: true, ..
            }
            | Link { peer: Some(_), .. } => Ok(()),
            Link { veth: true, .. } => Err(Left::SameNamespace),
            Link { .. } => Err(Left::NotVethOrBridgePort),
        }
    }

    fn judge_unnamed(&self, link: &Link) -> Result<(), Left> {
        if !link.veth {
            return Err(Left::NotVeth);
        }
        if link.peer.is_none() {
            return Err(Left::SameNamespace);
        }
        match link.addresses.intersection(&self.node_addresses).next() {
            Some(address) => Err(Left::NodeAddress(*address)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            veth: false,
            bridge_port: false,
            up: true,
            peer: None,
            addresses: BTreeSet::new(),
        }
    }

    fn pod_link(index: u32, name: &str) -> Link {
        Link {
            veth: true,
            peer: Some(Peer {
                index: 2,
                namespace: 0,
            }),
            ..link(index, name)
        }
    }

    fn left(links: &Links, index: u32) -> Option<String> {
        let (_, left) = links
            .judged()
            .find(|(link, _)| link.index == index)
            .expect("the link");
        left.map(|left| left.to_string())
    }

    fn node(patterns: &[&str]) -> Links {
        let mut links = Links::new(
            patterns
                .iter()
                .map(|p| Pattern::new(p).expect("a pattern"))
                .collect(),
        );
        for link in [
            link(1, "lo"),
            Link {
                addresses: ["192.0.2.7".parse().expect("an address")].into(),
                ..pod_link(2, "eth0")
            },
            pod_link(3, "veth1234"),
            pod_link(4, "cali0001"),
            Link {
                veth: true,
                ..link(5, "veth-local")
            },
            Link {
                bridge_port: true,
                ..link(6, "tap0")
            },
            link(7, "veth-not"),
        ] {
            links.apply(LinkChange::Seen(link));
        }
        links.set_node_addresses(["192.0.2.7".parse().expect("an address")].into());
        links
    }

    #[test]
    fn without_patterns_a_veth_into_another_namespace_is_taken() {
        let links = node(&[]);
        let taken: Vec<_> = links.taken().map(|link| link.name.as_str()).collect();
        assert_eq!(taken, ["veth1234", "cali0001"]);
        assert_eq!(left(&links, 1).as_deref(), Some("not a veth"));
        assert_eq!(
            left(&links, 2).as_deref(),
            Some("carries the node's address 192.0.2.7")
        );
        assert_eq!(left(&links, 3), None);
        assert_eq!(
            left(&links, 5).as_deref(),
            Some("peer is in this namespace")
        );
        assert_eq!(left(&links, 6).as_deref(), Some("not a veth"));
    }

    #[test]
    fn patterns_select_among_veths_and_bridge_ports() {
        let links = node(&["veth*", "tap?"]);
        let taken: Vec<_> = links.taken().map(|link| link.name.as_str()).collect();
        assert_eq!(taken, ["veth1234", "tap0"]);
        assert_eq!(
            left(&links, 4).as_deref(),
            Some("does not match --pod-interface")
        );
        assert_eq!(
            left(&links, 5).as_deref(),
            Some("peer is in this namespace")
        );
        assert_eq!(
            left(&links, 7).as_deref(),
            Some("neither a veth nor a bridge port")
        );
    }

    #[test]
    fn a_link_that_goes_or_changes_is_judged_anew() {
        let mut links = node(&[]);
        links.apply(LinkChange::Gone(3));
        links.apply(LinkChange::Seen(Link {
            peer: None,
            ..pod_link(4, "cali0001")
        }));
        assert_eq!(links.taken().count(), 0);
        assert!(!links.listed());
        links.apply(LinkChange::Listed);
        assert!(links.listed());
    }
}
