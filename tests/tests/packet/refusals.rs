//! Packets that are answered instead of delivered.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};
use lb_common::{
    headers::{SYN, TCP, UDP},
    packet::MARK_DELIVER,
    reason::Reason,
};

use crate::{
    CLIENT, Cast, Story,
    kernel::{Action, Outcome},
    pair::Pair,
    wire::{GATEWAY, mac, tcp, tcp_with, udp},
};

pub const STORIES: &[Story] = &[
    ("no endpoints refuse a SYN", no_endpoints_tcp),
    ("no endpoints refuse a datagram", no_endpoints_udp),
    ("an undefined port is refused", undefined_port),
    ("another protocol's port is refused", other_protocol),
    ("refusals have a limit", limit),
];

fn no_endpoints_tcp(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[]);
    let syn = tcp_with(cast.client, cast.service, SYN, b"early data");
    let answer = pair.from(CLIENT, &syn);
    refused(&answer, cast, &syn, 20);
    assert_eq!(pair.counted(Reason::NoEndpoints), 1);
    assert_eq!(pair.follow(CLIENT, CLIENT, &answer).bytes, answer.bytes);
}

fn no_endpoints_udp(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[]);
    for length in [0, 1, 7, 1200] {
        let query = udp(cast.client, cast.service, &vec![7; length]);
        let answer = pair.from(CLIENT, &query);
        refused(&answer, cast, &query, 8);
    }
    assert_eq!(pair.counted(Reason::NoEndpoints), 4);
}

fn undefined_port(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    let syn = tcp(cast.client, SocketAddr::new(cast.service.ip(), 81), SYN);
    let answer = pair.from(CLIENT, &syn);
    refused(&answer, cast, &syn, 20);
    assert_eq!(pair.counted(Reason::UndefinedPort), 1);
}

fn other_protocol(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    let query = udp(cast.client, cast.service, b"query");
    let answer = pair.from(CLIENT, &query);
    refused(&answer, cast, &query, 8);
    assert_eq!(pair.counted(Reason::UndefinedPort), 1);
}

fn limit(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[]);
    pair.spend_refusals();
    let syn = tcp(cast.client, cast.service, SYN);
    assert_eq!(pair.from(CLIENT, &syn).action, Action::Drop);
    assert_eq!(pair.counted(Reason::RefusalLimit), 1);
    assert_eq!(pair.counted(Reason::NoEndpoints), 0);
}

/// The answer is, to the byte, a port-unreachable from the service that quotes `packet` up to
/// `transport` bytes of its transport header.
fn refused(answer: &Outcome, cast: &Cast, packet: &[u8], transport: usize) {
    assert_eq!(
        (answer.action, answer.mark),
        (Action::Redirect, MARK_DELIVER)
    );
    let ethernet = PacketBuilder::ethernet2(GATEWAY, mac(CLIENT));
    let mut expected = Vec::new();
    match (cast.service.ip(), cast.client.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = Ipv4Header::new(0, 64, IpNumber::ICMP, from.octets(), to.octets())
                .expect("a header");
            header.dont_fragment = false;
            header.fragment_offset = IpFragOffset::ZERO;
            ethernet
                .ip(IpHeaders::Ipv4(header, Default::default()))
                .icmpv4_raw(3, 3, [0; 4])
                .write(&mut expected, &packet[14..34 + transport])
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            ethernet
                .ip(IpHeaders::Ipv6(header, Default::default()))
                .icmpv6_raw(1, 4, [0; 4])
                .write(&mut expected, &packet[14..54 + transport])
        }
        _ => panic!("two families"),
    }
    .expect("a packet");
    assert_eq!(answer.bytes, expected);
}
