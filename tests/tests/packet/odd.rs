//! Packets out of the ordinary.

use etherparse::{Ipv4Header, NetHeaders, PacketHeaders};
use lb_common::{
    flow::Direction,
    headers::{ACK, SYN, TCP, UDP},
    memory::Frame,
    reason::Reason,
};

use crate::{
    CLIENT, Cast, Story,
    kernel::Action,
    pair::Pair,
    wire::{addresses, error, read, seen, tcp, tcp_with, udp, with_extensions, with_options},
};

pub const STORIES: &[Story] = &[
    ("payloads of odd lengths", lengths),
    ("Ethernet padding", padding),
    ("a checksum that comes out as zero", zero_checksum),
    ("packets cut at every length", truncated),
    ("fragments to a service", fragments),
    ("fragments to nobody of ours", foreign_fragments),
    ("VLAN and ARP", not_ip),
];

pub const V4: &[Story] = &[
    ("UDP without a checksum", no_checksum),
    ("IP options", options),
];

pub const V6: &[Story] = &[
    ("extension headers", extensions),
    (
        "a refusal behind extension headers",
        refused_behind_extensions,
    ),
    (
        "more extension headers than are walked",
        too_many_extensions,
    ),
    ("an error behind extension headers", error_behind_extensions),
];

const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

fn lengths(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    for length in (0..70).chain([1399, 1400, 1401, 1471]) {
        let payload: Vec<u8> = (0..length).map(|byte: u16| byte as u8 ^ 0xa5).collect();
        let sent = pair.from(CLIENT, &udp(cast.client, cast.service, &payload));
        assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
        assert!(sent.bytes.ends_with(&payload));
        let reply = pair.to(CLIENT, &udp(cast.one, cast.client, &payload));
        assert_eq!(read(&reply.bytes), seen(cast.service, cast.client));
    }
}

fn padding(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    let mut query = udp(cast.client, cast.service, b"?");
    query.extend([0xee; 15]);
    let sent = pair.from(CLIENT, &query);
    assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
    assert_eq!(sent.bytes.len(), query.len());
}

/// UDP writes a checksum of 0 as 0xffff (RFC 768).
fn zero_checksum(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    let checksum = if cast.one.is_ipv4() { 40 } else { 60 };
    let blank = udp(cast.client, cast.one, &[0; 2]);
    let payload = &blank[checksum..checksum + 2];
    let sent = pair.from(CLIENT, &udp(cast.client, cast.service, payload));
    assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
    assert_eq!(sent.bytes[checksum..checksum + 2], [0xff; 2]);
}

fn truncated(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    pair.service(cast.other, UDP, &[]);
    let sent = pair.from(CLIENT, &tcp(cast.client, cast.service, SYN));
    let header = if cast.one.is_ipv4() { 20 } else { 40 };
    let complaint = [if cast.one.is_ipv4() { 11 } else { 3 }, 0];
    let mut packets = vec![
        (Direction::FromPod, tcp(cast.client, cast.service, ACK)),
        (Direction::FromPod, udp(cast.client, cast.other, b"refused")),
        (Direction::ToPod, tcp(cast.one, cast.client, SYN | ACK)),
        (
            Direction::ToPod,
            error(cast.two.ip(), cast.client.ip(), complaint, &sent.bytes),
        ),
    ];
    if cast.client.is_ipv6() {
        let segment = tcp(cast.client, cast.service, ACK);
        let chain = [HOP_BY_HOP, DESTINATION, FRAGMENT];
        packets.push((Direction::FromPod, with_extensions(&segment, &chain)));
    }
    for (direction, bytes) in packets {
        // Over less than an IP header the kernel runs no program.
        for length in 14 + header..=bytes.len() {
            pair.cross(direction, frame(&bytes[..length]));
        }
    }
    pair.compare_tables();
}

fn frame(bytes: &[u8]) -> Frame {
    Frame {
        bytes: bytes.to_vec(),
        interface: CLIENT,
        ..Frame::default()
    }
}

/// First, middle and last fragment of a packet.
fn in_fragments(packet: &[u8]) -> [Vec<u8>; 3] {
    [(true, 0), (true, 3), (false, 9)].map(|(more, offset)| {
        let mut bytes = packet.to_vec();
        if bytes[12] == 0x86 {
            bytes = with_extensions(&bytes, &[DESTINATION, FRAGMENT]);
            let field = offset << 3 | u16::from(more);
            bytes[72..74].copy_from_slice(&field.to_be_bytes());
        } else {
            let field = offset | u16::from(more) << 13;
            bytes[20..22].copy_from_slice(&field.to_be_bytes());
            let (header, _) = Ipv4Header::from_slice(&bytes[14..]).expect("a header");
            bytes[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        }
        let packet = PacketHeaders::from_ethernet_slice(&bytes).expect("a packet");
        let fragment = match packet.net.expect("an IP header") {
            NetHeaders::Ipv4(ip, _) => ip.is_fragmenting_payload(),
            NetHeaders::Ipv6(_, extensions) => extensions.is_fragmenting_payload(),
            NetHeaders::Arp(_) => false,
        };
        assert!(fragment);
        bytes
    })
}

fn fragments(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    let [first, middle, last] = in_fragments(&udp(cast.client, cast.service, &[1; 64]));
    for late in [&middle, &last] {
        let sent = pair.cross(Direction::FromPod, frame(late));
        assert_eq!(sent.action, Action::Drop, "the first was not seen");
        let received = pair.cross(Direction::ToPod, frame(late));
        assert_eq!(received.action, Action::Pass);
    }
    assert_eq!(pair.counted(Reason::Fragment), 2);
    for fragment in [&first, &last, &middle] {
        let sent = pair.cross(Direction::FromPod, frame(fragment));
        assert_eq!(sent.action, Action::Pass);
        assert_eq!(addresses(&sent.bytes), (cast.client.ip(), cast.one.ip()));
    }
    assert_eq!(pair.counted(Reason::Fragment), 2);
    pair.compare_tables();
}

fn foreign_fragments(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    for fragment in in_fragments(&udp(cast.client, cast.one, &[1; 64])) {
        let sent = pair.cross(Direction::FromPod, frame(&fragment));
        assert_eq!((sent.action, sent.bytes), (Action::Pass, fragment));
    }
    pair.compare_tables();
}

fn not_ip(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    let syn = tcp(cast.client, cast.service, SYN);
    let tagged = [&syn[..12], &[0x81, 0, 0, 5], &syn[12..]].concat();
    let arp = [&syn[..12], &[0x08, 0x06], &[0; 46][..]].concat();
    for bytes in [tagged, arp] {
        for direction in [Direction::FromPod, Direction::ToPod] {
            let sent = pair.cross(direction, frame(&bytes));
            assert_eq!((sent.action, &sent.bytes), (Action::Pass, &bytes));
        }
    }
    pair.compare_tables();
}

fn no_checksum(pair: &mut Pair, cast: &Cast) {
    const CHECKSUM: usize = 14 + 20 + 6;
    pair.service(cast.service, UDP, &[cast.one]);
    let mut query = udp(cast.client, cast.service, b"query");
    query[CHECKSUM..CHECKSUM + 2].fill(0);
    let sent = pair.from(CLIENT, &query);
    assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
    assert_eq!(sent.bytes[CHECKSUM..CHECKSUM + 2], [0; 2]);
}

fn options(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    pair.service(cast.other, UDP, &[]);
    for words in 1..=10 {
        let syn = with_options(&tcp(cast.client, cast.service, SYN), words);
        let sent = pair.from(CLIENT, &syn);
        assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
        let query = with_options(&udp(cast.client, cast.other, b"query"), words);
        assert_eq!(pair.from(CLIENT, &query).action, Action::Redirect);
    }
}

fn extensions(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    pair.service(cast.service, UDP, &[cast.one]);
    for chain in [
        &[HOP_BY_HOP][..],
        &[DESTINATION],
        &[FRAGMENT],
        &[HOP_BY_HOP, DESTINATION],
        &[HOP_BY_HOP, DESTINATION, FRAGMENT],
    ] {
        let data = tcp_with(cast.client, cast.service, SYN, b"data");
        let sent = pair.from(CLIENT, &with_extensions(&data, chain));
        assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
        let query = udp(cast.client, cast.service, b"query");
        let sent = pair.from(CLIENT, &with_extensions(&query, chain));
        assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
        let answer = udp(cast.one, cast.client, b"answer");
        let reply = pair.to(CLIENT, &with_extensions(&answer, chain));
        assert_eq!(read(&reply.bytes), seen(cast.service, cast.client));
    }
}

fn refused_behind_extensions(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[]);
    let syn = tcp(cast.client, cast.service, SYN);
    let chain = [HOP_BY_HOP, DESTINATION, DESTINATION, FRAGMENT];
    let answer = pair.from(CLIENT, &with_extensions(&syn, &chain));
    assert_eq!(answer.action, Action::Redirect);
}

fn too_many_extensions(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    let syn = tcp(cast.client, cast.service, SYN);
    let six = with_extensions(&syn, &[DESTINATION; 6]);
    let sent = pair.cross(Direction::FromPod, frame(&six));
    assert_ne!(sent.bytes, six);
    let seven = with_extensions(&syn, &[DESTINATION; 7]);
    let sent = pair.cross(Direction::FromPod, frame(&seven));
    assert_eq!((sent.action, sent.bytes), (Action::Pass, seven));
    pair.compare_tables();
}

fn error_behind_extensions(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    let query = udp(cast.client, cast.service, b"query");
    let sent = pair.from(CLIENT, &with_extensions(&query, &[DESTINATION]));
    let complaint = error(cast.two.ip(), cast.client.ip(), [3, 0], &sent.bytes);
    let complaint = with_extensions(&complaint, &[HOP_BY_HOP]);
    let received = pair.to(CLIENT, &complaint);
    assert_ne!(received.bytes, complaint);
}
