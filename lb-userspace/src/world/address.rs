//! Addresses as objects write them.

use std::net::{IpAddr, Ipv4Addr};

use super::Family;

/// Reads an address that traffic may be sent to. The error is a sentence for people.
pub fn parse(text: &str) -> Result<IpAddr, String> {
    let address = parse_sloppy(text).ok_or_else(|| format!("`{text}` is not an IP address"))?;
    match danger(address) {
        Some(danger) => Err(format!("`{text}` is {danger}: refused")),
        None => Ok(address),
    }
}

/// [`parse`] where the object says which family it is to be.
pub fn parse_family(text: &str, family: Family) -> Result<IpAddr, String> {
    let address = parse(text)?;
    if Family::of(address) == family {
        Ok(address)
    } else {
        Err(format!("`{text}` is not an {family} address"))
    }
}

/// The address that `text` stands for; IPv4 may have leading zeros, which do not make it octal
/// (`ParseIPSloppy` of k8s.io/utils/net), and a v4-mapped address is the IPv4 address.
pub fn parse_sloppy(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    match parts.next() {
        Some(_) => None,
        None => Some(Ipv4Addr::from(octets).into()),
    }
}

/// Why no service may lead to the address: whoever may write Services or EndpointSlices would
/// reach what listens for this node alone (`ValidateEndpointIP` of Kubernetes).
fn danger(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if link_local {
        Some("a link-local address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address == Ipv4Addr::BROADCAST {
        Some("the broadcast address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.00.09", Some("10.0.0.9")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("fd00:0::1", Some("fd00::1")),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.256", None),
            ("10.0.0.", None),
            ("10..0.1", None),
            ("+1.2.3.4", None),
            ("10.0.0.1/32", None),
            ("fd00::1%eth0", None),
            (" 10.0.0.1", None),
            ("example.org", None),
            ("", None),
        ] {
            let address = parse_sloppy(text).map(|address| address.to_string());
            assert_eq!(address.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn addresses_of_the_node_itself_are_refused() {
        for (text, reason) in [
            ("0.0.0.0", "the unspecified address"),
            ("::", "the unspecified address"),
            ("127.1.2.3", "a loopback address"),
            ("::1", "a loopback address"),
            ("::ffff:127.0.0.1", "a loopback address"),
            ("169.254.169.254", "a link-local address"),
            ("fe80::1", "a link-local address"),
            ("224.0.0.1", "a multicast address"),
            ("ff02::1", "a multicast address"),
            ("255.255.255.255", "the broadcast address"),
        ] {
            assert_eq!(parse(text), Err(format!("`{text}` is {reason}: refused")));
        }
    }

    #[test]
    fn the_family_is_the_one_that_the_object_says() {
        assert!(parse_family("10.0.0.1", Family::IPv4).is_ok());
        assert!(parse_family("fd00::1", Family::IPv6).is_ok());
        assert_eq!(
            parse_family("fd00::1", Family::IPv4),
            Err("`fd00::1` is not an IPv4 address".into())
        );
        assert_eq!(
            parse_family("::ffff:10.0.0.1", Family::IPv6),
            Err("`::ffff:10.0.0.1` is not an IPv6 address".into())
        );
    }
}
