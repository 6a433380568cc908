//! ICMP errors about translated flows.

use std::net::{IpAddr, SocketAddr};

use lb_common::headers::{ACK, SYN, TCP, UDP};

use crate::{
    CLIENT, Cast, SERVER, Story,
    kernel::{Action, Outcome},
    pair::Pair,
    wire::{error, quoted, read, seen, tcp, tcp_with, udp},
};

pub const STORIES: &[Story] = &[
    ("a router says too big", too_big),
    ("a router says time exceeded", time_exceeded),
    ("a backend says port unreachable", unreachable),
    ("a client says port unreachable", client_says_unreachable),
    ("a local backend says port unreachable", local_unreachable),
    ("an error about nobody's flow passes", nobodys),
    ("errors cut short", cut_short),
];

#[derive(Clone, Copy)]
enum Kind {
    TooBig,
    TimeExceeded,
    PortUnreachable,
}

impl Kind {
    fn of(self, address: IpAddr) -> [u8; 2] {
        match (self, address.is_ipv4()) {
            (Self::TooBig, true) => [3, 4],
            (Self::TooBig, false) => [2, 0],
            (Self::TimeExceeded, true) => [11, 0],
            (Self::TimeExceeded, false) => [3, 0],
            (Self::PortUnreachable, true) => [3, 3],
            (Self::PortUnreachable, false) => [1, 4],
        }
    }
}

/// What the client must see: an error about its own packet to the service.
fn as_the_client_sees_it(received: &Outcome, from: IpAddr, cast: &Cast) {
    assert_eq!(received.action, Action::Pass);
    let (source, destination, packet) = quoted(&received.bytes);
    assert_eq!((source, destination), (from, cast.client.ip()));
    assert_eq!(read(&packet), seen(cast.client, cast.service));
}

fn from_router(pair: &mut Pair, cast: &Cast, kind: Kind) {
    let router = cast.two.ip();
    pair.service(cast.service, TCP, &[cast.one]);
    let sent = pair.from(CLIENT, &tcp_with(cast.client, cast.service, SYN, &[1; 40]));
    let complaint = error(router, cast.client.ip(), kind.of(router), &sent.bytes);
    as_the_client_sees_it(&pair.to(CLIENT, &complaint), router, cast);
}

fn too_big(pair: &mut Pair, cast: &Cast) {
    from_router(pair, cast, Kind::TooBig);
}

fn time_exceeded(pair: &mut Pair, cast: &Cast) {
    from_router(pair, cast, Kind::TimeExceeded);
}

fn unreachable(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    let sent = pair.from(CLIENT, &udp(cast.client, cast.service, b"query"));
    let kind = Kind::PortUnreachable.of(cast.one.ip());
    let complaint = error(cast.one.ip(), cast.client.ip(), kind, &sent.bytes);
    let received = pair.to(CLIENT, &complaint);
    as_the_client_sees_it(&received, cast.service.ip(), cast);
}

fn client_says_unreachable(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    pair.from(CLIENT, &udp(cast.client, cast.service, b"query"));
    let reply = pair.to(CLIENT, &udp(cast.one, cast.client, b"late answer"));
    let kind = Kind::PortUnreachable.of(cast.one.ip());
    let complaint = error(cast.client.ip(), cast.service.ip(), kind, &reply.bytes);
    let sent = pair.from(CLIENT, &complaint);
    assert_eq!(sent.action, Action::Pass);
    let (source, destination, packet) = quoted(&sent.bytes);
    assert_eq!((source, destination), (cast.client.ip(), cast.one.ip()));
    assert_eq!(read(&packet), seen(cast.one, cast.client));
}

fn local_unreachable(pair: &mut Pair, cast: &Cast) {
    pair.pod(cast.client, CLIENT);
    pair.pod(cast.one, SERVER);
    pair.service(cast.service, UDP, &[cast.one]);
    let sent = pair.from(CLIENT, &udp(cast.client, cast.service, b"query"));
    pair.follow(CLIENT, SERVER, &sent);
    let kind = Kind::PortUnreachable.of(cast.one.ip());
    let complaint = error(cast.one.ip(), cast.client.ip(), kind, &sent.bytes);
    let redirected = pair.from(SERVER, &complaint);
    let received = pair.follow(SERVER, CLIENT, &redirected);
    as_the_client_sees_it(&received, cast.service.ip(), cast);
}

fn nobodys(pair: &mut Pair, cast: &Cast) {
    let other = SocketAddr::new(cast.client.ip(), 1);
    for kind in [Kind::TooBig, Kind::TimeExceeded, Kind::PortUnreachable] {
        let quoted = tcp(other, cast.one, ACK);
        let complaint = error(cast.two.ip(), other.ip(), kind.of(other.ip()), &quoted);
        let received = pair.to(CLIENT, &complaint);
        assert_eq!((received.action, received.bytes), (Action::Pass, complaint));
    }
}

/// Routers may quote as little as the IP header and eight bytes (RFC 792), and less is garbage.
fn cut_short(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    let sent = pair.from(CLIENT, &tcp(cast.client, cast.service, SYN));
    let router = cast.two.ip();
    let kind = Kind::TimeExceeded.of(router);
    for length in 14..sent.bytes.len() {
        let complaint = error(router, cast.client.ip(), kind, &sent.bytes[..length]);
        pair.to(CLIENT, &complaint);
    }
}
