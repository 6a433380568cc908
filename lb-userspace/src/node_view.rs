//! The node's own addresses, and on which of them NodePorts are served. Pure.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

/// What services need to know of the node's own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Every address of the node's own network namespace, but for loopback ones that serve no
    /// NodePorts, and IPv6 link-local ones, which say nothing without their interface.
    pub addresses: BTreeSet<IpAddr>,
    /// Those that serve NodePorts.
    pub nodeports_on: BTreeSet<IpAddr>,
}

/// One item of `--nodeport-addresses`, as kube-proxy has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The first address of each family that the Node object lists.
    Primary,
    /// Every address.
    All,
    /// The loopback addresses.
    Localhost,
    /// The addresses in a network.
    Network(IpNet),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.trim() {
            "primary" => Self::Primary,
            "all" => Self::All,
            "localhost" => Self::Localhost,
            network => Self::Network(network.parse().map_err(|_| {
                "neither `primary`, `all`, `localhost` nor a network such as 10.0.0.0/8".to_owned()
            })?),
        })
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::All => f.write_str("all"),
            Self::Localhost => f.write_str("localhost"),
            Self::Network(network) => network.fmt(f),
        }
    }
}

impl NodeView {
    /// `local` are the addresses of all interfaces; `listed` those of the Node object, the primary
    /// one of each family first.
    ///
    /// A family that no item speaks of serves on all its addresses, and a network that holds
    /// everything swallows the others of its family. Loopback addresses serve only where an item
    /// means them alone; `all` does not.
    pub fn new(local: &BTreeSet<IpAddr>, listed: &[IpAddr], items: &[NodePortAddresses]) -> Self {
        let (v4, v6) = (
            Served::new(true, listed, items),
            Served::new(false, listed, items),
        );
        let serves = |address: &IpAddr| match address {
            IpAddr::V4(_) => v4.holds(*address),
            IpAddr::V6(_) => v6.holds(*address),
        };
        let usable = local
            .iter()
            .copied()
            .filter(|address| !is_link_local_v6(*address));
        let addresses: BTreeSet<_> = usable
            .filter(|address| !address.is_loopback() || serves(address))
            .collect();
        Self {
            nodeports_on: addresses.iter().copied().filter(serves).collect(),
            addresses,
        }
    }
}

/// Where one family's NodePorts are served.
enum Served {
    /// Everywhere but on loopback addresses outside of these networks.
    Everywhere(Vec<IpNet>),
    Only(Vec<IpNet>),
}

impl Served {
    fn new(v4: bool, listed: &[IpAddr], items: &[NodePortAddresses]) -> Self {
        let own = |network: &IpNet| network.addr().is_ipv4() == v4;
        let primary = listed.iter().find(|address| address.is_ipv4() == v4);
        let (everything, loopback) = if v4 {
            ("0.0.0.0/0", "127.0.0.0/8")
        } else {
            ("::/0", "::1/128")
        };
        let network = |text: &str| text.parse::<IpNet>().ok();
        // A keyword speaks of both families, whatever it stands for there.
        let mut spoken_of = false;
        let mut networks = Vec::new();
        for item in items {
            let means = match item {
                NodePortAddresses::Primary => primary.copied().map(IpNet::from),
                NodePortAddresses::All => network(everything),
                NodePortAddresses::Localhost => network(loopback),
                NodePortAddresses::Network(network) => {
                    if !own(network) {
                        continue;
                    }
                    Some(*network)
                }
            };
            spoken_of = true;
            networks.extend(means);
        }
        if !spoken_of || networks.iter().any(|network| network.prefix_len() == 0) {
            networks.retain(is_loopback);
            Self::Everywhere(networks)
        } else {
            Self::Only(networks)
        }
    }

    fn holds(&self, address: IpAddr) -> bool {
        let (networks, others) = match self {
            Self::Everywhere(networks) => (networks, true),
            Self::Only(networks) => (networks, false),
        };
        let mut holders = networks.iter().filter(|network| network.contains(&address));
        match address.is_loopback() {
            true => holders.any(is_loopback),
            false => others || holders.next().is_some(),
        }
    }
}

/// Whether a network holds loopback addresses alone.
fn is_loopback(network: &IpNet) -> bool {
    network.network().is_loopback() && network.broadcast().is_loopback()
}

fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: [&str; 9] = [
        "127.0.0.1",
        "172.18.0.2",
        "172.18.0.9",
        "10.244.1.1",
        "169.254.20.10",
        "::1",
        "fd00:172:18::2",
        "fd00:10:244:1::1",
        "fe80::1",
    ];

    fn ips<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<IpAddr> {
        let parse = |text: &str| text.parse().expect("an address");
        texts.into_iter().map(parse).collect()
    }

    /// Which of [`LOCAL`] serve NodePorts, blank separated.
    fn serving(items: &str, listed: &[&str]) -> String {
        let items: Vec<_> = items
            .split_whitespace()
            .map(|item| item.parse().expect("an item"))
            .collect();
        let listed = ips(listed.iter().copied());
        let view = NodeView::new(&ips(LOCAL).into_iter().collect(), &listed, &items);
        assert!(view.nodeports_on.is_subset(&view.addresses), "{view:?}");
        let texts: Vec<_> = view.nodeports_on.iter().map(ToString::to_string).collect();
        texts.join(" ")
    }

    #[test]
    fn nodeport_addresses_are_chosen_as_kube_proxy_does() {
        let all_v4 = "10.244.1.1 169.254.20.10 172.18.0.2 172.18.0.9";
        let all_v6 = "fd00:10:244:1::1 fd00:172:18::2";
        let all = format!("{all_v4} {all_v6}");
        for (items, expected) in [
            ("primary", "172.18.0.2 fd00:172:18::2".to_owned()),
            ("all", all.clone()),
            ("", all),
            // A family without an item serves on all its addresses.
            ("172.18.0.0/16", format!("172.18.0.2 172.18.0.9 {all_v6}")),
            ("fd00:172:18::/48", format!("{all_v4} fd00:172:18::2")),
            ("192.0.2.0/24", all_v6.to_owned()),
            // What holds everything swallows the others of its family.
            ("172.18.0.9/32 0.0.0.0/0", format!("{all_v4} {all_v6}")),
            ("172.18.0.9/32 ::/0", format!("172.18.0.9 {all_v6}")),
            // A network is one, whatever else its text says.
            (
                "172.18.0.77/16 ::/0",
                format!("172.18.0.2 172.18.0.9 {all_v6}"),
            ),
            (
                "primary 10.0.0.0/8",
                "10.244.1.1 172.18.0.2 fd00:172:18::2".to_owned(),
            ),
            // Loopback addresses serve where they are named.
            ("localhost", "127.0.0.1 ::1".to_owned()),
            ("127.0.0.0/8 ::1/128", "127.0.0.1 ::1".to_owned()),
            (
                "primary localhost",
                "127.0.0.1 172.18.0.2 ::1 fd00:172:18::2".to_owned(),
            ),
            (
                "all localhost",
                format!("10.244.1.1 127.0.0.1 169.254.20.10 172.18.0.2 172.18.0.9 ::1 {all_v6}"),
            ),
            ("64.0.0.0/2 ::/0", all_v6.to_owned()),
        ] {
            let listed = ["172.18.0.2", "fd00:172:18::2", "172.18.0.9"];
            assert_eq!(serving(items, &listed), expected, "{items}");
        }
    }

    #[test]
    fn a_family_of_which_the_node_lists_no_address_has_no_primary_one() {
        assert_eq!(serving("primary", &["172.18.0.2"]), "172.18.0.2");
        assert_eq!(serving("primary", &[]), "");
        assert_eq!(serving("primary", &["192.0.2.1"]), "", "not one of ours");
    }

    #[test]
    fn the_node_has_all_its_addresses_but_loopback_and_link_local_ones() {
        let view = |items: &[NodePortAddresses]| {
            NodeView::new(&ips(LOCAL).into_iter().collect(), &[], items)
        };
        let mut expected: BTreeSet<_> = ips(LOCAL).into_iter().collect();
        for address in ips(["127.0.0.1", "::1", "fe80::1"]) {
            expected.remove(&address);
        }
        assert_eq!(view(&[NodePortAddresses::All]).addresses, expected);
        expected.extend(ips(["127.0.0.1", "::1"]));
        assert_eq!(view(&[NodePortAddresses::Localhost]).addresses, expected);
    }

    #[test]
    fn an_item_is_a_keyword_or_a_network() {
        for text in ["primary", "all", "localhost", "10.0.0.0/8", "fd00::/8"] {
            let item: NodePortAddresses = text.parse().expect("an item");
            assert_eq!(item.to_string(), text);
        }
        for text in ["", "any", "10.0.0.1", "10.0.0.0/33"] {
            text.parse::<NodePortAddresses>().expect_err(text);
        }
    }
}
