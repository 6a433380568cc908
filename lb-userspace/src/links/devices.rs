//! Which interfaces lead out of the node: uplinks, and tunnels to other nodes.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use super::{Framing, Kind, Link, Links, Reach, matches};

/// Why an interface is held to lead out of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leads {
    Match,
    NodeAddress(IpAddr),
    DefaultRoute,
    /// A route through it leads to a network that is not its own.
    Route(IpNet),
    /// It carries an address that serves NodePorts.
    NodePorts(IpAddr),
}

impl fmt::Display for Leads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match => f.write_str("matches --uplink-interface"),
            Self::NodeAddress(address) => write!(f, "carries the node's address {address}"),
            Self::DefaultRoute => f.write_str("carries the default route"),
            Self::Route(network) => write!(f, "carries the route to {network}"),
            Self::NodePorts(address) => write!(f, "carries {address}, which serves NodePorts"),
        }
    }
}

/// Why an interface does not lead out of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDevice {
    Loopback,
    Dummy,
    Pod,
    Port,
    PodBridge,
    Framing,
    NoMatch,
    NoRoute,
}

impl fmt::Display for NoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "leads nowhere",
            Self::Dummy => "nothing is behind it",
            Self::Pod => "leads to a pod",
            Self::Port => "a port of a bridge or bond",
            Self::PodBridge => "a bridge of pods",
            Self::Framing => "its packets have a header that is neither Ethernet nor IP",
            Self::NoMatch => "does not match --uplink-interface",
            Self::NoRoute => "no route leads out through it",
        })
    }
}

impl Links {
    /// Whether an interface leads out of the node, and why or why not.
    pub(super) fn judge_device(&self, link: &Link) -> Result<Leads, NoDevice> {
        if self.judge_pod(link).is_ok() {
            return Err(NoDevice::Pod);
        }
        match link.kind {
            Kind::Loopback => return Err(NoDevice::Loopback),
            Kind::Dummy => return Err(NoDevice::Dummy),
            Kind::Bridge if self.has_pods(link) => return Err(NoDevice::PodBridge),
            Kind::Veth | Kind::Bridge | Kind::Tunnel | Kind::Other => {}
        }
        if link.port.is_some() {
            return Err(NoDevice::Port);
        }
        if link.framing == Framing::Unknown {
            return Err(NoDevice::Framing);
        }
        if !self.patterns.uplinks.is_empty() {
            let matches = matches(&self.patterns.uplinks, link);
            return matches.then_some(Leads::Match).ok_or(NoDevice::NoMatch);
        }
        self.leads(link).ok_or(NoDevice::NoRoute)
    }

    fn leads(&self, link: &Link) -> Option<Leads> {
        if let Some(address) = self.node_address(link) {
            return Some(Leads::NodeAddress(address));
        }
        match self.reach.get(&link.index) {
            Some(Reach::Everywhere) => return Some(Leads::DefaultRoute),
            Some(Reach::Gateway(network)) => return Some(Leads::Route(*network)),
            Some(Reach::Link(network)) if link.kind == Kind::Tunnel => {
                return Some(Leads::Route(*network));
            }
            Some(Reach::Link(_)) | None => {}
        }
        // An empty bridge waits for its pods, or for nobody.
        if link.kind == Kind::Bridge && self.ports(link).next().is_none() {
            return None;
        }
        let mut addresses = link.addresses.iter().map(|own| own.address);
        let serving = addresses.find(|address| self.view.nodeports_on.contains(address));
        serving.map(Leads::NodePorts)
    }

    fn has_pods(&self, bridge: &Link) -> bool {
        self.ports(bridge).any(|port| self.judge_pod(port).is_ok())
    }

    fn ports(&self, bridge: &Link) -> impl Iterator<Item = &Link> {
        let index = bridge.index;
        self.links
            .values()
            .filter(move |link| link.port.is_some_and(|port| port.controller == index))
    }

    /// The address of one family that packets to elsewhere leave the device with: one of its own
    /// that the Node object lists, else its first one that the kernel would choose, else, as the
    /// kernel does for a device without addresses, the node's.
    pub fn source(&self, device: &Link, v4: bool) -> Option<IpAddr> {
        let of_family = |address: &IpAddr| address.is_ipv4() == v4;
        let own = |address: &IpAddr| device.addresses.iter().any(|own| own.address == *address);
        let mut listed = self.node_addresses.iter().filter(|a| of_family(a));
        if let Some(address) = listed.clone().find(|address| own(address)) {
            return Some(*address);
        }
        let usable = || {
            let addresses = device.addresses.iter();
            addresses.filter(|own| own.global && of_family(&own.address))
        };
        let best = usable()
            .find(|own| own.preferred && !own.secondary)
            .or_else(|| usable().find(|own| own.preferred))
            .or_else(|| usable().next());
        match best {
            Some(own) => Some(own.address),
            None => listed
                .find(|address| self.view.addresses.contains(address))
                .copied(),
        }
    }
}
