//! Packets of protocols that services do not know, and what keeps links going.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};

use super::{CLIENT, wire};

fn ip(from: IpAddr, to: IpAddr, hop_limit: u8) -> PacketBuilderStep<IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(wire::mac(CLIENT), wire::GATEWAY);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), hop_limit),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), hop_limit),
        _ => panic!("two families"),
    }
}

/// A packet of a protocol that we know nothing of.
pub fn other(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(from, to, 64)
        .write(&mut bytes, IpNumber(protocol), payload)
        .expect("a packet");
    bytes
}

/// A ping, or with `reply` the answer to one.
pub fn echo(from: IpAddr, to: IpAddr, identifier: u16, reply: bool) -> Vec<u8> {
    let builder = ip(from, to, 64);
    let mut bytes = Vec::new();
    match (from.is_ipv4(), reply) {
        (true, false) => builder
            .icmpv4_echo_request(identifier, 1)
            .write(&mut bytes, b"?"),
        (true, true) => builder
            .icmpv4_echo_reply(identifier, 1)
            .write(&mut bytes, b"?"),
        (false, false) => builder
            .icmpv6_echo_request(identifier, 1)
            .write(&mut bytes, b"?"),
        (false, true) => builder
            .icmpv6_echo_reply(identifier, 1)
            .write(&mut bytes, b"?"),
    }
    .expect("a packet");
    bytes
}

/// An ICMP message of any type, with what follows its checksum.
pub fn icmp(from: IpAddr, to: IpAddr, hop_limit: u8, icmp_type: u8, body: &[u8]) -> Vec<u8> {
    let builder = ip(from, to, hop_limit);
    let (rest, payload) = body.split_first_chunk().expect("four bytes");
    let mut bytes = Vec::new();
    if from.is_ipv4() {
        builder
            .icmpv4_raw(icmp_type, 0, *rest)
            .write(&mut bytes, payload)
    } else {
        builder
            .icmpv6_raw(icmp_type, 0, *rest)
            .write(&mut bytes, payload)
    }
    .expect("a packet");
    bytes
}

/// A message of neighbour discovery about a target, with an option that names a MAC address.
pub fn neighbour(
    icmp_type: u8,
    from: Ipv6Addr,
    target: Ipv6Addr,
    option: Option<(u8, [u8; 6])>,
) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(target.octets());
    if let Some((kind, mac)) = option {
        body.extend([kind, 1]);
        body.extend(mac);
    }
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    icmp(from.into(), all_nodes.into(), 255, icmp_type, &body)
}

/// An ARP packet, a question where `operation` is 1, an answer where it is 2.
pub fn arp(
    ethernet: [u8; 6],
    operation: u8,
    sender: ([u8; 6], [u8; 4]),
    target: [u8; 4],
) -> Vec<u8> {
    let (mac, address) = sender;
    [
        &[0xff; 6][..],
        &ethernet,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation],
        &mac,
        &address,
        &[0; 6],
        &target,
    ]
    .concat()
}

/// The link-local address that follows from a MAC address.
pub fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(a ^ 2, b),
        word(c, 0xff),
        word(0xfe, d),
        word(e, f),
    )
}

/// A fragment of an IP packet: from `offset`, in units of eight bytes, with more to follow or not.
pub fn fragment(bytes: &[u8], identification: u16, offset: u16, more: bool) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if bytes[12] == 0x86 {
        let field = (offset << 3 | u16::from(more)).to_be_bytes();
        let [high, low] = identification.to_be_bytes();
        let header = [bytes[20], 0, field[0], field[1], 0, 0, high, low];
        out.splice(54..54, header);
        out[20] = 44;
        let length = (out.len() - 54) as u16;
        out[18..20].copy_from_slice(&length.to_be_bytes());
        return out;
    }
    out[18..20].copy_from_slice(&identification.to_be_bytes());
    out[20..22].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
    let (header, _) = etherparse::Ipv4Header::from_slice(&out[14..]).expect("an IPv4 header");
    out[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    out
}
