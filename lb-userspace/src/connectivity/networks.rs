//! Addresses that are nobody's, as networks without the smaller ones that rules tell apart from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

/// The addresses of a network, but for those in other networks inside of it, and but for those of
/// pods and nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    pub cidr: IpNet,
    /// None in another, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        let Self { cidr, except } = self;
        cidr.contains(&address) && !except.iter().any(|except| except.contains(&address))
    }
}

/// `10.0.0.0/8 but for 10.1.0.0/16`.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cidr, except } = self;
        let everything = if cidr.addr().is_ipv4() {
            "IPv4"
        } else {
            "IPv6"
        };
        match cidr.prefix_len() {
            0 => write!(f, "all other {everything} addresses")?,
            _ => cidr.fmt(f)?,
        }
        if !except.is_empty() {
            let except: Vec<_> = except.iter().map(ToString::to_string).collect();
            write!(f, " but for {}", except.join(" and "))?;
        }
        Ok(())
    }
}

/// All addresses but those that are `taken`, divided at the edges of these networks.
pub fn divided(mut edges: BTreeSet<IpNet>, taken: &BTreeSet<IpAddr>) -> Vec<Network> {
    edges.extend([IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]);
    let hosts: BTreeSet<IpNet> = taken.iter().copied().map(IpNet::from).collect();
    edges.retain(|edge| !hosts.contains(edge));
    let all = nested(&(&edges | &hosts));
    edges.retain(|edge| {
        let inside = all.get(edge).cloned().unwrap_or_default();
        IpNet::aggregate(&inside) != [*edge]
    });
    let mut inside = nested(&edges);
    let networks = edges.iter().map(|cidr| Network {
        cidr: *cidr,
        except: inside.remove(cidr).unwrap_or_default(),
    });
    networks.collect()
}

/// The networks that are right inside of each.
fn nested(networks: &BTreeSet<IpNet>) -> BTreeMap<IpNet, Vec<IpNet>> {
    let mut inside: BTreeMap<IpNet, Vec<IpNet>> = BTreeMap::new();
    let mut around: Vec<IpNet> = Vec::new();
    // A network comes before those inside of it.
    for network in networks {
        while around.pop_if(|outer| !outer.contains(network)).is_some() {}
        if let Some(outer) = around.last() {
            inside.entry(*outer).or_default().push(*network);
        }
        around.push(*network);
    }
    inside
}

/// The same addresses by fewer networks: what one leaves out and another is, neither says.
pub fn merged(networks: Vec<Network>) -> Vec<Network> {
    let mut merged: BTreeMap<IpNet, BTreeSet<IpNet>> = networks
        .into_iter()
        .map(|network| (network.cidr, network.except.into_iter().collect()))
        .collect();
    let cidrs: Vec<IpNet> = merged.keys().copied().collect();
    for cidr in cidrs.into_iter().rev() {
        let outer = merged.iter().find(|(_, except)| except.contains(&cidr));
        let Some(outer) = outer.map(|(outer, _)| *outer) else {
            continue;
        };
        let own = merged.remove(&cidr).unwrap_or_default();
        if let Some(except) = merged.get_mut(&outer) {
            except.remove(&cidr);
            except.extend(own);
        }
    }
    let networks = merged.into_iter();
    networks
        .map(|(cidr, except)| Network {
            cidr,
            except: except.into_iter().collect(),
        })
        .collect()
}
