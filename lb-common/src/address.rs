//! Addresses as they stand in tables: sixteen bytes, network order, IPv4 mapped into IPv6.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address in network byte order; IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
///
/// Aligned, so that the kernel's code moves and compares words and not bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Eq, PartialOrd, Ord)]
pub struct Address {
    pub bytes: [u8; 16],
}

impl PartialEq for Address {
    /// Word by word: the derived comparison comes down to a call that compares bytes in a loop
    /// when it is compiled for the kernel.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let mut difference = 0;
        for (one, other) in self
            .bytes
            .as_chunks()
            .0
            .iter()
            .zip(other.bytes.as_chunks().0)
        {
            difference |= u32::from_ne_bytes(*one) ^ u32::from_ne_bytes(*other);
        }
        difference == 0
    }
}

impl Address {
    /// The bits of the address that are set in `mask`.
    #[inline(always)]
    #[must_use]
    pub fn masked(&self, mask: &Self) -> Self {
        let mut masked = *self;
        let words = masked.bytes.as_chunks_mut().0.iter_mut();
        for (word, mask) in words.zip(mask.bytes.as_chunks().0) {
            *word = (u32::from_ne_bytes(*word) & u32::from_ne_bytes(*mask)).to_ne_bytes();
        }
        masked
    }
}

/// The address of nothing, and any IPv6 address of this node.
pub const UNSPECIFIED: Address = Address { bytes: [0; 16] };

/// The IPv6 address of this machine to itself.
pub const LOOPBACK_V6: Address = Address {
    bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
};

/// Any IPv4 address of this node.
pub const ANY_V4: Address = map_v4([0; 4]);

/// The source that a pod sees when it reaches itself through a service, IPv4: the dummy address of
/// RFC 7600, which nothing else on a network uses.
pub const HAIRPIN_V4: Address = map_v4([192, 0, 0, 8]);

/// The same for IPv6, from the dummy prefix of RFC 9780.
pub const HAIRPIN_V6: Address = Address {
    bytes: [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8],
};

/// The sixteen bytes of an IPv4 address.
#[inline(always)]
pub const fn map_v4([a, b, c, d]: [u8; 4]) -> Address {
    Address {
        bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
    }
}

/// The last four bytes: the IPv4 address, where [`is_v4`] holds.
#[inline(always)]
pub const fn unmap_v4(address: &Address) -> [u8; 4] {
    let [.., a, b, c, d] = address.bytes;
    [a, b, c, d]
}

/// Whether the address is an IPv4 address.
#[inline(always)]
pub const fn is_v4(address: &Address) -> bool {
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = address.bytes;
    u32::from_ne_bytes([a, b, c, d]) | u32::from_ne_bytes([e, f, g, h]) == 0
        && u32::from_be_bytes([i, j, k, l]) == 0xffff
}

/// The table form of an address. A v4-mapped IPv6 address is the IPv4 address.
pub const fn from_ip(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => map_v4(v4.octets()),
        IpAddr::V6(v6) => Address { bytes: v6.octets() },
    }
}

/// The address that the table form stands for.
pub const fn to_ip(address: &Address) -> IpAddr {
    if is_v4(address) {
        let [a, b, c, d] = unmap_v4(address);
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(u128::from_be_bytes(address.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_table_form() {
        for text in [
            "10.96.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "fd00::1",
            "::",
            "100:0:0:1::8",
        ] {
            let ip: IpAddr = text.parse().expect("an address");
            assert_eq!(to_ip(&from_ip(ip)), ip);
        }
        assert_eq!(to_ip(&HAIRPIN_V4).to_string(), "192.0.0.8");
        assert_eq!(to_ip(&HAIRPIN_V6).to_string(), "100:0:0:1::8");
    }
}
