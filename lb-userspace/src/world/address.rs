//! Addresses as objects write them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

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

/// The networks that can be read, each once, without the bits that a mask covers; the others are
/// problems. Spaces around them do not matter.
pub fn networks(
    texts: impl IntoIterator<Item = impl AsRef<str>>,
    problems: &mut Vec<String>,
) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for text in texts {
        let text = text.as_ref().trim();
        match parse_network(text) {
            Some(network) if networks.contains(&network) => {}
            Some(network) => networks.push(network),
            None => problems.push(format!("`{text}` is not a network")),
        }
    }
    networks
}

/// `ParseCIDRSloppy` of k8s.io/utils/net; a v4-mapped network is none.
pub fn parse_network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let digits = length.bytes().all(|byte| byte.is_ascii_digit());
    let address = parse_sloppy(address).filter(|ip| ip.is_ipv6() == address.contains(':'))?;
    let network = IpNet::new(address, length.parse().ok().filter(|_| digits)?).ok()?;
    Some(network.trunc())
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
    fn networks_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            (" 10.1.2.3/8\t", Some("10.0.0.0/8")),
            ("010.0.0.0/08", Some("10.0.0.0/8")),
            ("fd00::1/64", Some("fd00::/64")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("::/0", Some("::/0")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("10.0.0.0", None),
            ("10.0.0.0/8/8", None),
            ("::ffff:10.0.0.0/8", None),
            ("::ffff:10.0.0.0/104", None),
            ("", None),
        ] {
            let mut problems = Vec::new();
            let read = networks([text], &mut problems);
            let read: Vec<_> = read.iter().map(ToString::to_string).collect();
            assert_eq!(read, Vec::from_iter(expected), "{text:?}");
            assert_eq!(problems.is_empty(), expected.is_some(), "{text:?}");
        }
        let twice = networks(["10.0.0.0/8", "10.0.0.1/8"], &mut Vec::new());
        assert_eq!(twice.len(), 1);
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
