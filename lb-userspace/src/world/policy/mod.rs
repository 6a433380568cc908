//! Policies of both kinds, as one kind of row.

pub mod cluster_network_policy;
pub mod network_policy;

use std::fmt;

use ipnet::IpNet;

use super::{Kind, ObjectKey, Protocol, Selector};

/// The name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyName {
    /// [`Kind::NetworkPolicy`] or [`Kind::ClusterNetworkPolicy`].
    pub kind: Kind,
    pub key: ObjectKey,
}

/// `NetworkPolicy default/web`.
impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key } = self;
        write!(f, "{kind} {key}")
    }
}

/// Where a policy stands among the others: all of one tier are asked before those of the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    Admin,
    /// That of all NetworkPolicies.
    #[default]
    NetworkPolicy,
    Baseline,
}

/// As the API writes it.
impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Seen from the pod that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// A NetworkPolicy or a ClusterNetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub tier: Tier,
    /// The lower is asked first, within the Admin and the Baseline tier; 0 in the other.
    pub priority: u16,
    /// It only says what it would do.
    pub audited: bool,
    /// The pods that it is about.
    pub subject: PodMatch,
    pub ingress: Side,
    pub egress: Side,
}

impl Policy {
    pub fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// What a policy says about one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Side {
    /// Whether nothing passes that no rule accepts.
    pub isolates: bool,
    pub rules: Vec<Rule>,
}

impl Side {
    /// Whether it says nothing at all.
    pub fn is_silent(&self) -> bool {
        !self.isolates && self.rules.is_empty()
    }
}

/// One rule; its place among the rules of its side is its index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub action: Action,
    pub peers: Peers,
    pub ports: Ports,
}

impl Rule {
    /// A rule that has its place among the others and matches nothing.
    fn nothing() -> Self {
        Self {
            action: Action::Accept,
            peers: Peers::Of(Vec::new()),
            ports: Ports::Any,
        }
    }

    fn deny_all() -> Self {
        Self {
            action: Action::Deny,
            peers: Peers::Any,
            ports: Ports::Any,
        }
    }
}

/// For a person to read.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            action,
            peers,
            ports,
        } = self;
        let listed = |items: Vec<String>| match items.is_empty() {
            true => "none".to_owned(),
            false => items.join(", "),
        };
        let peers = match peers {
            Peers::Any => "any peer".to_owned(),
            Peers::Of(peers) => listed(peers.iter().map(ToString::to_string).collect()),
        };
        let ports = match ports {
            Ports::Any => "any port".to_owned(),
            Ports::Of(ports) => {
                let ports = listed(ports.iter().map(ToString::to_string).collect());
                format!("ports {ports}")
            }
        };
        write!(f, "{action} {peers}; {ports}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Accept,
    Deny,
    /// Leaves the tier.
    Pass,
}

/// As the API writes it.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peers {
    Any,
    /// Any of these.
    Of(Vec<Peer>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Pods(PodMatch),
    /// The addresses of a network, those of pods among them, but for those in other networks.
    Network {
        cidr: IpNet,
        except: Vec<IpNet>,
    },
    /// All addresses of the Nodes that are selected, but those that are pods'.
    Nodes(Selector),
}

/// For a person to read.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(PodMatch { namespaces, pods }) => {
                match pods.is_all() {
                    true => f.write_str("pods")?,
                    false => write!(f, "pods with {pods}")?,
                }
                match namespaces {
                    NamespaceMatch::Named(name) => write!(f, " of {name}"),
                    NamespaceMatch::Labelled(labels) if labels.is_all() => {
                        f.write_str(" of all namespaces")
                    }
                    NamespaceMatch::Labelled(labels) => {
                        write!(f, " of namespaces with {labels}")
                    }
                }
            }
            Self::Network { cidr, except } if except.is_empty() => cidr.fmt(f),
            Self::Network { cidr, except } => {
                let except: Vec<_> = except.iter().map(ToString::to_string).collect();
                write!(f, "{cidr} but for {}", except.join(" and "))
            }
            Self::Nodes(labels) if labels.is_all() => f.write_str("all nodes"),
            Self::Nodes(labels) => write!(f, "nodes with {labels}"),
        }
    }
}

/// Pods with a network of their own: those on the host's are their node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodMatch {
    pub namespaces: NamespaceMatch,
    pub pods: Selector,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamespaceMatch {
    Named(String),
    Labelled(Selector),
}

/// All namespaces.
impl Default for NamespaceMatch {
    fn default() -> Self {
        Self::Labelled(Selector::default())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ports {
    /// Any port of any protocol, and protocols without ports.
    Any,
    /// Any of these.
    Of(Vec<PortMatch>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortMatch {
    /// Destination ports, the first and the last among them.
    Numbers {
        protocol: Protocol,
        first: u16,
        last: u16,
    },
    /// The ports that the destination pod calls so.
    Named {
        name: String,
        /// `None`: of any protocol.
        protocol: Option<Protocol>,
    },
}

/// `80-90/TCP`, `dns/UDP`.
impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers {
                protocol,
                first: 0,
                last: u16::MAX,
            } => protocol.fmt(f),
            Self::Numbers {
                protocol,
                first,
                last,
            } if first == last => write!(f, "{first}/{protocol}"),
            Self::Numbers {
                protocol,
                first,
                last,
            } => write!(f, "{first}-{last}/{protocol}"),
            Self::Named {
                name,
                protocol: Some(protocol),
            } => write!(f, "{name}/{protocol}"),
            Self::Named { name, .. } => f.write_str(name),
        }
    }
}
