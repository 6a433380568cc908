//! Networks in table form.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use lb_common::{
    address::{Address, from_ip, is_v4, to_ip},
    service::Cidr,
};

/// Leading bits that an IPv4 address has more in table form.
const MAPPED: u8 = 96;

/// Networks, each once.
pub type Ranges = BTreeSet<Range>;

/// A network in table form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The first address.
    pub address: Address,
    /// How many leading bits of the sixteen bytes count; 96 more than an IPv4 prefix says.
    pub bits: u8,
}

impl Range {
    /// One address.
    pub fn host(address: IpAddr) -> Self {
        Self {
            address: from_ip(address),
            bits: 128,
        }
    }

    pub fn cidr(self) -> Cidr {
        let Self { address, bits } = self;
        let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
        Cidr {
            network: address,
            mask: Address {
                bytes: mask.to_be_bytes(),
            },
        }
    }

    /// The network that a table entry stands for; `None` where it is none.
    pub fn network(&self) -> Option<IpNet> {
        let Self { address, bits } = *self;
        let prefix = if is_v4(&address) {
            bits.checked_sub(MAPPED)?
        } else {
            bits
        };
        IpNet::new(to_ip(&address), prefix).ok()
    }
}

impl From<IpNet> for Range {
    fn from(network: IpNet) -> Self {
        let prefix = network.prefix_len();
        Self {
            address: from_ip(network.network()),
            bits: match network {
                IpNet::V4(_) => MAPPED + prefix,
                IpNet::V6(_) => prefix,
            },
        }
    }
}

impl From<Cidr> for Range {
    fn from(Cidr { network, mask }: Cidr) -> Self {
        let ones = u128::from_be_bytes(mask.bytes).leading_ones();
        Self {
            address: network,
            bits: ones as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_survive_the_table_form() {
        for text in [
            "10.96.0.0/12",
            "0.0.0.0/0",
            "192.0.2.1/32",
            "fd00::/108",
            "::/0",
            "fd00::1/128",
        ] {
            let network: IpNet = text.parse().expect("a network");
            let range = Range::from(network);
            assert_eq!(range.network(), Some(network));
            assert_eq!(Range::from(range.cidr()), range);
            assert!(range.cidr().contains(&range.address) || text == "::/0");
        }
    }

    #[test]
    fn a_network_begins_at_its_first_address() {
        let network: IpNet = "10.1.2.3/8".parse().expect("a network");
        let range = Range::from(network);
        assert_eq!(range.address, from_ip([10, 0, 0, 0].into()));
        let inside = |text: &str| {
            range
                .cidr()
                .contains(&from_ip(text.parse().expect("an IP")))
        };
        assert!(inside("10.255.0.1"));
        assert!(!inside("11.0.0.1"));
        assert!(!inside("::a00:1"));
    }
}
