//! Who serves what several services claim.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use super::{ObjectKey, Protocol, Service};

/// What only one service can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// All ports of an address.
    ClusterIp(IpAddr),
    /// One port of an external IP or of a load balancer's VIP.
    External(IpAddr, u16, Protocol),
    NodePort(u16, Protocol),
}

/// The claims of all services. Of several services that claim the same, the one with the least key
/// has it; nobody has a part of what is a ClusterIP as an external address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(BTreeMap<Claim, BTreeSet<ObjectKey>>);

impl Claim {
    /// All that a service claims.
    fn all_of(service: &Service) -> BTreeSet<Self> {
        let own = service.cluster_ips.iter().copied().map(Self::ClusterIp);
        let outer = service
            .external_ips
            .iter()
            .chain(&service.load_balancer_ips);
        let outer = outer.flat_map(|&address| {
            let ports = service.ports.iter();
            ports.map(move |port| Self::External(address, port.port, port.protocol))
        });
        let node_ports = service.ports.iter();
        let node_ports =
            node_ports.filter_map(|port| Some(Self::NodePort(port.node_port?, port.protocol)));
        own.chain(outer).chain(node_ports).collect()
    }
}

impl Claims {
    /// Replaces the claims of one service, and adds to `disputed` the others whose own may be better
    /// or worse by it.
    pub fn replace(
        &mut self,
        key: &ObjectKey,
        was: Option<&Service>,
        is: Option<&Service>,
        disputed: &mut BTreeSet<ObjectKey>,
    ) {
        let was = was.map(Claim::all_of).unwrap_or_default();
        let is = is.map(Claim::all_of).unwrap_or_default();
        for claim in was.difference(&is) {
            if let Some(claimants) = self.0.get_mut(claim) {
                claimants.remove(key);
                if claimants.is_empty() {
                    self.0.remove(claim);
                }
            }
            disputed.extend(self.rivals(claim).cloned());
        }
        for claim in is.difference(&was) {
            disputed.extend(self.rivals(claim).cloned());
            self.0.entry(*claim).or_default().insert(key.clone());
        }
    }

    /// The service that has what is claimed.
    pub fn owner(&self, claim: Claim) -> Option<&ObjectKey> {
        match claim {
            Claim::External(address, ..) if self.0.contains_key(&Claim::ClusterIp(address)) => None,
            claim => self.0.get(&claim)?.first(),
        }
    }

    /// The claims in vain, with the reason.
    pub fn refused(&self) -> impl Iterator<Item = (&ObjectKey, String)> {
        self.0.iter().flat_map(move |(claim, claimants)| {
            let (first, reason) = match (self.owner(*claim), claim) {
                (Some(owner), _) => (1, format!("{claim} belongs to {owner}")),
                (None, Claim::External(address, ..)) => {
                    let owner = self.owner(Claim::ClusterIp(*address));
                    let owner = owner.map(ToString::to_string).unwrap_or_default();
                    (
                        0,
                        format!("{claim}: the address is the ClusterIP of {owner}"),
                    )
                }
                (None, _) => (0, String::new()),
            };
            claimants
                .iter()
                .skip(first)
                .map(move |key| (key, reason.clone()))
        })
    }

    /// Those who claim the same, or a part of it.
    fn rivals(&self, claim: &Claim) -> impl Iterator<Item = &ObjectKey> {
        let range = match *claim {
            Claim::ClusterIp(address) => {
                let first = Claim::External(address, 0, Protocol::Tcp);
                let last = Claim::External(address, u16::MAX, Protocol::Sctp);
                Some(first..=last)
            }
            Claim::External(..) | Claim::NodePort(..) => None,
        };
        let parts = range.into_iter().flat_map(|range| self.0.range(range));
        let parts = parts.flat_map(|(_, claimants)| claimants);
        self.0.get(claim).into_iter().flatten().chain(parts)
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterIp(address) => write!(f, "ClusterIP {address}"),
            Self::External(address, port, protocol) => {
                let socket = std::net::SocketAddr::new(*address, *port);
                write!(f, "external address {socket}/{protocol}")
            }
            Self::NodePort(port, protocol) => write!(f, "NodePort {port}/{protocol}"),
        }
    }
}
