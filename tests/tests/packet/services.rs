//! Connections to services.

use std::net::SocketAddr;

use lb_common::{
    address::{HAIRPIN_V4, HAIRPIN_V6, to_ip},
    headers::{ACK, FIN, RST, SYN, TCP, UDP},
    packet::{MARK_DELIVER, MARK_FROM_POD},
    tables::FlowTable,
};

use crate::{
    CLIENT, Cast, SERVER, Story,
    kernel::Action,
    pair::Pair,
    wire::{mac, read, seen, tcp, tcp_with, udp},
};

pub const STORIES: &[Story] = &[
    ("a SYN goes to a backend", syn),
    ("a SYN-ACK is undone", syn_ack),
    ("an ACK promotes the flow", handshake),
    ("a UDP query and its reply", datagrams),
    ("each of many backends", many_backends),
    ("a hairpin there and back", hairpin),
    ("a local backend is redirected to", local_backend),
    ("a segment without a flow passes", stray_segment),
    ("a SYN on a closed flow chooses again", closed),
    ("a SYN on a reset flow chooses again", reset),
    ("a datagram leaves a dead backend", dead_backend),
    ("a SYN leaves a dead backend", dead_backend_tcp),
    ("two services collide on one backend", collision),
    (
        "two services collide on one of two backends",
        collision_with_a_way_out,
    ),
];

fn syn(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    let sent = pair.from(CLIENT, &tcp(cast.client, cast.service, SYN));
    assert_eq!((sent.action, sent.mark), (Action::Pass, 0));
    assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
    assert_eq!(pair.flows(FlowTable::HalfOpen).len(), 2);
}

fn syn_ack(pair: &mut Pair, cast: &Cast) {
    syn(pair, cast);
    let reply = pair.to(CLIENT, &tcp(cast.one, cast.client, SYN | ACK));
    assert_eq!(reply.action, Action::Pass);
    assert_eq!(read(&reply.bytes), seen(cast.service, cast.client));
}

fn handshake(pair: &mut Pair, cast: &Cast) {
    syn_ack(pair, cast);
    assert!(pair.flows(FlowTable::Flows).is_empty());
    pair.from(CLIENT, &tcp(cast.client, cast.service, ACK));
    assert_eq!(pair.flows(FlowTable::Flows).len(), 2);
    assert!(pair.flows(FlowTable::HalfOpen).is_empty());

    let sent = pair.from(
        CLIENT,
        &tcp_with(cast.client, cast.service, ACK, b"request"),
    );
    assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
    let reply = pair.to(CLIENT, &tcp_with(cast.one, cast.client, ACK, b"response"));
    assert_eq!(read(&reply.bytes), seen(cast.service, cast.client));
}

fn datagrams(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    for _ in 0..2 {
        let sent = pair.from(CLIENT, &udp(cast.client, cast.service, b"query"));
        assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
        let reply = pair.to(CLIENT, &udp(cast.one, cast.client, b"answer"));
        assert_eq!(read(&reply.bytes), seen(cast.service, cast.client));
    }
    assert_eq!(pair.flows(FlowTable::Flows).len(), 2);
}

fn many_backends(pair: &mut Pair, cast: &Cast) {
    let backend = |n: u16| SocketAddr::new(cast.one.ip(), 9000 + n);
    let backends: Vec<_> = (0..7).map(backend).collect();
    pair.service(cast.service, TCP, &backends);
    for port in 40_000..40_040 {
        let client = SocketAddr::new(cast.client.ip(), port);
        let sent = pair.from(CLIENT, &tcp(client, cast.service, SYN));
        assert!(backends.contains(&read(&sent.bytes).to));
    }
}

fn hairpin(pair: &mut Pair, cast: &Cast) {
    let server = SocketAddr::new(cast.client.ip(), 8080);
    let reserved = if server.is_ipv4() {
        HAIRPIN_V4
    } else {
        HAIRPIN_V6
    };
    let reserved = SocketAddr::new(to_ip(&reserved), cast.client.port());
    pair.pod(cast.client, CLIENT);
    pair.service(cast.service, TCP, &[server]);

    let sent = pair.from(CLIENT, &tcp(cast.client, cast.service, SYN));
    assert_eq!((sent.action, sent.mark), (Action::Redirect, MARK_DELIVER));
    assert_eq!(read(&sent.bytes), seen(reserved, server));
    assert_eq!(sent.bytes[..6], mac(CLIENT));
    assert_eq!(pair.follow(CLIENT, CLIENT, &sent).bytes, sent.bytes);

    let reply = pair.from(CLIENT, &tcp(server, reserved, SYN | ACK));
    assert_eq!((reply.action, reply.mark), (Action::Redirect, MARK_DELIVER));
    assert_eq!(read(&reply.bytes), seen(cast.service, cast.client));
    assert_eq!(pair.follow(CLIENT, CLIENT, &reply).bytes, reply.bytes);
}

fn local_backend(pair: &mut Pair, cast: &Cast) {
    pair.pod(cast.client, CLIENT);
    pair.pod(cast.one, SERVER);
    pair.service(cast.service, TCP, &[cast.one]);

    let sent = pair.from(CLIENT, &tcp(cast.client, cast.service, SYN));
    assert_eq!((sent.action, sent.mark), (Action::Redirect, MARK_FROM_POD));
    assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
    assert_eq!(sent.bytes[..6], mac(SERVER));
    let received = pair.follow(CLIENT, SERVER, &sent);
    assert_eq!(
        (received.action, &received.bytes),
        (Action::Pass, &sent.bytes)
    );
    let opened: Vec<_> = pair
        .flows(FlowTable::HalfOpen)
        .into_iter()
        .filter(|(key, flow)| key.owner == 2 && flow.interface == CLIENT)
        .collect();
    assert_eq!(opened.len(), 2, "its replies go straight back");

    let reply = pair.from(SERVER, &tcp(cast.one, cast.client, SYN | ACK));
    assert_eq!(
        (reply.action, reply.mark),
        (Action::Redirect, MARK_FROM_POD)
    );
    assert_eq!(reply.bytes[..6], mac(CLIENT));
    let undone = pair.follow(SERVER, CLIENT, &reply);
    assert_eq!(undone.action, Action::Pass);
    assert_eq!(read(&undone.bytes), seen(cast.service, cast.client));

    let sent = pair.from(CLIENT, &tcp(cast.client, cast.service, ACK));
    pair.follow(CLIENT, SERVER, &sent);
    assert_eq!(pair.flows(FlowTable::Flows).len(), 4);
}

fn stray_segment(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    for flags in [ACK, SYN | ACK, FIN | ACK, RST] {
        let segment = tcp(cast.client, cast.service, flags);
        let sent = pair.from(CLIENT, &segment);
        assert_eq!((sent.action, sent.bytes), (Action::Pass, segment));
    }
    assert!(pair.flows(FlowTable::HalfOpen).is_empty());
}

/// The backend that a new SYN of the client goes to, after its service has got other backends.
fn chosen_again(pair: &mut Pair, cast: &Cast) -> SocketAddr {
    pair.service(cast.service, TCP, &[cast.two]);
    let sent = pair.from(CLIENT, &tcp(cast.client, cast.service, SYN));
    read(&sent.bytes).to
}

fn closed(pair: &mut Pair, cast: &Cast) {
    handshake(pair, cast);
    pair.from(CLIENT, &tcp(cast.client, cast.service, FIN | ACK));
    pair.to(CLIENT, &tcp(cast.one, cast.client, FIN | ACK));
    let last = pair.from(CLIENT, &tcp(cast.client, cast.service, ACK));
    assert_eq!(read(&last.bytes).to, cast.one);
    assert_eq!(chosen_again(pair, cast), cast.two);
    assert!(pair.flows(FlowTable::Flows).is_empty());
}

fn reset(pair: &mut Pair, cast: &Cast) {
    syn(pair, cast);
    let reply = pair.to(CLIENT, &tcp(cast.one, cast.client, RST | ACK));
    assert_eq!(read(&reply.bytes), seen(cast.service, cast.client));
    assert_eq!(chosen_again(pair, cast), cast.two);
}

fn dead_backend(pair: &mut Pair, cast: &Cast) {
    datagrams(pair, cast);
    pair.replace_backends();
    pair.service(cast.service, UDP, &[cast.two]);
    let sent = pair.from(CLIENT, &udp(cast.client, cast.service, b"query"));
    assert_eq!(read(&sent.bytes), seen(cast.client, cast.two));
    let reply = pair.to(CLIENT, &udp(cast.two, cast.client, b"answer"));
    assert_eq!(read(&reply.bytes), seen(cast.service, cast.client));
}

fn dead_backend_tcp(pair: &mut Pair, cast: &Cast) {
    syn(pair, cast);
    assert_eq!(chosen_again(pair, cast), cast.one, "it still lives");
    pair.replace_backends();
    assert_eq!(chosen_again(pair, cast), cast.two);
}

fn collision(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    pair.service(cast.other, TCP, &[cast.one]);
    pair.from(CLIENT, &tcp(cast.client, cast.service, SYN));
    let sent = pair.from(CLIENT, &tcp(cast.client, cast.other, SYN));
    let rewritten = read(&sent.bytes);
    assert_eq!(rewritten.to, cast.one);
    assert_ne!(rewritten.from, cast.client);

    let reply = pair.to(CLIENT, &tcp(cast.one, rewritten.from, SYN | ACK));
    assert_eq!(read(&reply.bytes), seen(cast.other, cast.client));
    let reply = pair.to(CLIENT, &tcp(cast.one, cast.client, SYN | ACK));
    assert_eq!(read(&reply.bytes), seen(cast.service, cast.client));
}

fn collision_with_a_way_out(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    pair.service(cast.other, TCP, &[cast.one, cast.two]);
    pair.from(CLIENT, &tcp(cast.client, cast.service, SYN));
    let sent = pair.from(CLIENT, &tcp(cast.client, cast.other, SYN));
    assert_eq!(read(&sent.bytes), seen(cast.client, cast.two));
}
