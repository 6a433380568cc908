//! Who has which address: a pure plan, so that manifests can be written before anything runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// As Kubernetes writes it: `IPv4` or `IPv6`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The prefix length of a single address.
    pub fn host_prefix(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// One address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Pair {
    /// The address of one family.
    pub fn get(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// The networks of just these addresses.
    pub fn networks(&self) -> [IpNet; 2] {
        self.each().map(IpNet::from)
    }

    /// Both addresses, IPv4 first.
    pub fn each(&self) -> [IpAddr; 2] {
        Family::BOTH.map(|family| self.get(family))
    }
}

/// The address of a ClusterIP by its number: `10.96.0.<number>` and `fd00:10:96::<number>`.
pub fn cluster_ip(number: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(10, 96, 0, number),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, decimal_as_hex(number)),
    }
}

/// The networks that all ClusterIPs are from.
pub fn service_networks() -> [IpNet; 2] {
    let Pair { v4, v6 } = cluster_ip(0);
    [
        IpNet::V4(Ipv4Net::new_assert(v4, 16)),
        IpNet::V6(Ipv6Net::new_assert(v6, 112)),
    ]
}

/// An address for load balancers and external IPs by its number: `203.0.113.<number>` and
/// `fd00:203:0:113::<number>`.
pub fn public_ip(number: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(203, 0, 113, number),
        v6: Ipv6Addr::new(0xfd00, 0x203, 0, 0x113, 0, 0, 0, decimal_as_hex(number)),
    }
}

/// The networks of all these.
pub fn public_networks() -> [IpNet; 2] {
    let Pair { v4, v6 } = public_ip(0);
    [
        IpNet::V4(Ipv4Net::new_assert(v4, 24)),
        IpNet::V6(Ipv6Net::new_assert(v6, 64)),
    ]
}

/// An address of a client outside of the cluster by its number: `198.51.100.<number>` and
/// `fd00:198:51:100::<number>`.
pub fn outside_client(number: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(198, 51, 100, number),
        v6: Ipv6Addr::new(0xfd00, 0x198, 0x51, 0x100, 0, 0, 0, decimal_as_hex(number)),
    }
}

/// The networks of all these.
pub(super) fn outside_networks() -> [IpNet; 2] {
    let Pair { v4, v6 } = outside_client(0);
    [
        IpNet::V4(Ipv4Net::new_assert(v4, 24)),
        IpNet::V6(Ipv6Net::new_assert(v6, 64)),
    ]
}

/// A node's own address; nodes are counted from 1.
pub(super) fn node(number: u8) -> Pair {
    uplink(number + 1)
}

/// The router that nodes send to what is outside.
pub(super) fn outside() -> Pair {
    uplink(1)
}

/// The networks that all nodes' uplinks are on.
pub(super) const UPLINK_PREFIX: [u8; 2] = [16, 64];

fn uplink(host: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(172, 18, 0, host),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, decimal_as_hex(host)),
    }
}

/// A second address of a node, which no Node object mentions.
pub(super) fn spare(number: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(172, 19, 0, number + 1),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x19, 0, 0, 0, 0, decimal_as_hex(number + 1)),
    }
}

/// The networks of a node's pods.
pub(super) fn pod_networks(node: u8) -> [IpNet; 2] {
    let Pair { v4, v6 } = pod(node, 0);
    [
        IpNet::V4(Ipv4Net::new_assert(v4, 24)),
        IpNet::V6(Ipv6Net::new_assert(v6, 64)),
    ]
}

/// The networks of all pods.
pub(super) fn cluster_networks() -> [IpNet; 2] {
    let Pair { v4, v6 } = pod(0, 0);
    [
        IpNet::V4(Ipv4Net::new_assert(v4, 16)),
        IpNet::V6(Ipv6Net::new_assert(v6, 48)),
    ]
}

/// The address of a node's tunnel device: in IPv4 the first of its pods' network, as flannel has it.
/// In IPv6 Linux takes that for the address of any router there (RFC 4291, 2.6.1) and sends it no ICMP
/// errors.
pub(super) fn overlay(node: u8) -> Pair {
    Pair {
        v4: pod(node, 0).v4,
        v6: pod(node, 254).v6,
    }
}

/// What a node's pods send everything to that is not on their own link.
pub(super) fn gateway(node: u8) -> Pair {
    pod(node, 1)
}

/// The address of a node's pod by its host number.
pub(super) fn pod(node: u8, host: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(10, 244, node, host),
        v6: Ipv6Addr::new(
            0xfd00,
            0x10,
            0x244,
            u16::from(node),
            0,
            0,
            0,
            decimal_as_hex(host),
        ),
    }
}

/// The group that reads like the decimal number: 10 becomes `0x10`, so that an IPv6 address ends as
/// its IPv4 sibling does.
fn decimal_as_hex(number: u8) -> u16 {
    let [hundreds, tens, ones] = [number / 100, number / 10 % 10, number % 10].map(u16::from);
    hundreds << 8 | tens << 4 | ones
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pair: Pair) -> String {
        format!("{} {}", pair.v4, pair.v6)
    }

    #[test]
    fn siblings_read_alike() {
        assert_eq!(text(cluster_ip(10)), "10.96.0.10 fd00:10:96::10");
        assert_eq!(text(pod(2, 123)), "10.244.2.123 fd00:10:244:2::123");
        assert_eq!(text(node(1)), "172.18.0.2 fd00:172:18::2");
        assert_eq!(text(gateway(3)), "10.244.3.1 fd00:10:244:3::1");
        assert_eq!(text(public_ip(7)), "203.0.113.7 fd00:203:0:113::7");
    }

    #[test]
    fn every_pod_is_in_the_networks_that_netfilter_knows() {
        for address in pod(3, 77).each() {
            assert!(
                pod_networks(3)
                    .iter()
                    .any(|network| network.contains(&address))
            );
            assert!(
                !pod_networks(2)
                    .iter()
                    .any(|network| network.contains(&address))
            );
            assert!(
                cluster_networks()
                    .iter()
                    .any(|network| network.contains(&address))
            );
        }
        for address in cluster_ip(1).each().into_iter().chain(node(1).each()) {
            assert!(
                !cluster_networks()
                    .iter()
                    .any(|network| network.contains(&address))
            );
        }
    }
}
