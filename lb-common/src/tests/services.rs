//! Reaching services: what the client and the backend see.

use std::net::SocketAddr;

use super::{CLIENT, Cast, Node, SECOND, SERVER, casts, wire};
use crate::{
    address::{HAIRPIN_V4, HAIRPIN_V6, to_ip},
    balance::pick,
    budget,
    headers::{ACK, RST, SYN, TCP, UDP},
    packet::{MARK_DELIVER, MARK_FROM_POD, Verdict},
    reason::Reason,
};

/// A connection to a remote backend: both ways through the kernel's routes.
#[test]
fn a_remote_backend_is_reached_and_answers_as_the_service() {
    for Cast {
        client,
        service,
        one,
        ..
    } in casts()
    {
        let mut node = Node::new();
        node.service(service, TCP, &[one]);
        let (verdict, sent) = node.from(CLIENT, &wire::tcp(client, service, SYN));
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(wire::read(&sent.bytes), wire::seen(client, one));
        let (verdict, answer) = node.to(CLIENT, &wire::tcp(one, client, SYN | ACK));
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(wire::read(&answer.bytes), wire::seen(service, client));
        let (_, sent) = node.from(CLIENT, &wire::tcp(client, service, ACK));
        assert_eq!(wire::read(&sent.bytes), wire::seen(client, one));
    }
}

/// A backend on the same node: straight to its interface, and straight back.
#[test]
fn a_local_backend_is_reached_by_redirect_both_ways() {
    for Cast {
        client,
        service,
        one,
        ..
    } in casts()
    {
        let mut node = Node::new();
        node.pod(client, CLIENT);
        node.pod(one, SERVER);
        node.service(service, UDP, &[one]);
        let (verdict, sent) = node.from(CLIENT, &wire::udp(client, service, b"?"));
        assert_eq!(
            (verdict, sent.mark),
            (Verdict::Redirect(SERVER), MARK_FROM_POD)
        );
        assert_eq!(sent.bytes[..6], wire::mac(SERVER));
        let (verdict, _) = node.redirected_to(SERVER, &sent.bytes);
        assert_eq!(verdict, Verdict::Pass);
        let (verdict, answer) = node.from(SERVER, &wire::udp(one, client, b"!"));
        assert_eq!(
            (verdict, answer.mark),
            (Verdict::Redirect(CLIENT), MARK_FROM_POD)
        );
        assert_eq!(answer.bytes[..6], wire::mac(CLIENT));
        let (verdict, answer) = node.redirected_to(CLIENT, &answer.bytes);
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(wire::read(&answer.bytes), wire::seen(service, client));
    }
}

/// What came through the stack is answered through the stack.
#[test]
fn a_flow_that_was_not_redirected_is_not_answered_by_redirect() {
    for Cast { client, one, .. } in casts() {
        let node = Node::new();
        node.to(SERVER, &wire::tcp(client, one, SYN));
        let (verdict, answer) = node.from(SERVER, &wire::tcp(one, client, SYN | ACK));
        assert_eq!((verdict, answer.mark), (Verdict::Pass, 0));
    }
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    for Cast {
        client, service, ..
    } in casts()
    {
        let mut node = Node::new();
        let own = with_port(client, 8080);
        node.service(service, TCP, &[own]);
        let (verdict, sent) = node.from(CLIENT, &wire::tcp(client, service, SYN));
        assert_eq!(
            (verdict, sent.mark),
            (Verdict::Redirect(CLIENT), MARK_DELIVER)
        );
        assert_eq!(sent.bytes[..6], wire::mac(CLIENT));
        let reserved = to_ip(if client.is_ipv4() {
            &HAIRPIN_V4
        } else {
            &HAIRPIN_V6
        });
        let seen_by_server = SocketAddr::new(reserved, client.port());
        assert_eq!(wire::read(&sent.bytes), wire::seen(seen_by_server, own));
        let delivered = Node::cross(
            &node.tables,
            CLIENT,
            crate::flow::Direction::ToPod,
            &sent.bytes,
            sent.mark,
        );
        assert_eq!(delivered, (Verdict::Pass, sent.clone()));
        let (verdict, answer) = node.from(CLIENT, &wire::tcp(own, seen_by_server, SYN | ACK));
        assert_eq!(
            (verdict, answer.mark),
            (Verdict::Redirect(CLIENT), MARK_DELIVER)
        );
        assert_eq!(wire::read(&answer.bytes), wire::seen(service, client));
    }
}

fn with_port(mut socket: SocketAddr, port: u16) -> SocketAddr {
    socket.set_port(port);
    socket
}

#[test]
fn a_service_without_endpoints_is_refused() {
    for Cast {
        client, service, ..
    } in casts()
    {
        for protocol in [TCP, UDP] {
            let mut node = Node::new();
            node.service(service, protocol, &[]);
            let sent = match protocol {
                TCP => wire::tcp(client, service, SYN),
                _ => wire::udp(client, service, b"a question of some length"),
            };
            let (verdict, refusal) = node.from(CLIENT, &sent);
            assert_eq!(
                (verdict, refusal.mark),
                (Verdict::Redirect(CLIENT), MARK_DELIVER)
            );
            assert_eq!(refusal.bytes[..6], wire::mac(CLIENT));
            let (from, to, quoted) = wire::quoted(&refusal.bytes);
            assert_eq!((from, to), (service.ip(), client.ip()));
            let kind = if client.is_ipv4() { [3, 3] } else { [1, 4] };
            let icmp = if client.is_ipv4() { 34 } else { 54 };
            assert_eq!(refusal.bytes[icmp..icmp + 2], kind);
            assert_eq!(quoted[14..42], sent[14..42]);
            assert_eq!(node.tables.counters.borrow()[&Reason::NoEndpoints], 1);
        }
    }
}

#[test]
fn an_undefined_port_of_a_service_is_refused() {
    for Cast {
        client,
        service,
        one,
        ..
    } in casts()
    {
        let mut node = Node::new();
        node.service(service, TCP, &[one]);
        let other_port = with_port(service, 81);
        let (verdict, _) = node.from(CLIENT, &wire::tcp(client, other_port, SYN));
        assert_eq!(verdict, Verdict::Redirect(CLIENT));
        let (verdict, _) = node.from(CLIENT, &wire::udp(client, service, b"?"));
        assert_eq!(verdict, Verdict::Redirect(CLIENT));
        assert_eq!(node.tables.counters.borrow()[&Reason::UndefinedPort], 2);
    }
}

#[test]
fn refusals_are_limited() {
    let [
        Cast {
            mut client,
            service,
            ..
        },
        _,
    ] = casts();
    let mut node = Node::new();
    node.service(service, TCP, &[]);
    for port in 0..2 * budget::RATE as u16 {
        client.set_port(1024 + port);
        node.from(CLIENT, &wire::tcp(client, service, SYN));
    }
    let counters = node.tables.counters.borrow();
    assert_eq!(counters[&Reason::NoEndpoints], budget::RATE);
    assert_eq!(counters[&Reason::RefusalLimit], budget::RATE);
}

#[test]
fn what_is_no_service_passes_untouched() {
    for Cast { client, one, .. } in casts() {
        let node = Node::new();
        let mut arp = vec![0; 60];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        for bytes in [
            wire::tcp(client, one, SYN),
            wire::tcp(client, one, RST),
            wire::udp(client, one, b""),
            arp,
        ] {
            let (verdict, sent) = node.from(CLIENT, &bytes);
            assert_eq!((verdict, sent.bytes), (Verdict::Pass, bytes));
        }
    }
}

#[test]
fn an_interface_that_is_not_ours_passes_untouched() {
    let [
        Cast {
            client,
            service,
            one,
            ..
        },
        _,
    ] = casts();
    let mut node = Node::new();
    node.service(service, TCP, &[one]);
    let bytes = wire::tcp(client, service, SYN);
    let (verdict, sent) = node.from(1234, &bytes);
    assert_eq!((verdict, sent.bytes), (Verdict::Pass, bytes));
}

/// A connection begun before us lives on in the kernel's own tracking.
#[test]
fn a_connection_older_than_us_passes_untouched() {
    let [
        Cast {
            client,
            service,
            one,
            ..
        },
        _,
    ] = casts();
    let mut node = Node::new();
    node.service(service, TCP, &[one]);
    let bytes = wire::tcp(client, service, ACK);
    let (verdict, sent) = node.from(CLIENT, &bytes);
    assert_eq!((verdict, sent.bytes), (Verdict::Pass, bytes));
    assert!(node.tables.half_open.borrow().is_empty());
}

/// The packet as a fragment: `field` is flags and offset, as in the header.
fn part_of(packet: &[u8], field: u16) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    bytes[20..22].copy_from_slice(&field.to_be_bytes());
    let header = etherparse::Ipv4Header::from_slice(&bytes[14..])
        .expect("a header")
        .0;
    bytes[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    bytes
}

#[test]
fn fragments_follow_the_first_of_their_packet() {
    let [
        Cast {
            client,
            service,
            one,
            ..
        },
        _,
    ] = casts();
    let mut node = Node::new();
    node.service(service, UDP, &[one]);
    let later = part_of(&wire::udp(client, service, b"part"), 0x0001);
    let lost = node.from(CLIENT, &later).0;
    assert_eq!(
        lost,
        Verdict::Drop(Reason::Fragment),
        "no first one was seen"
    );

    let first = part_of(&wire::udp(client, service, b"part"), 0x2000);
    let (verdict, sent) = node.from(CLIENT, &first);
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(wire::addresses(&sent.bytes), (client.ip(), one.ip()));
    assert_eq!(sent.bytes[36..38], one.port().to_be_bytes());
    let (verdict, sent) = node.from(CLIENT, &later);
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(wire::addresses(&sent.bytes), (client.ip(), one.ip()));
    assert_eq!(
        sent.bytes[34..],
        later[34..],
        "what follows the IP header is no header"
    );

    let foreign = part_of(&wire::udp(client, one, b"part"), 0x0001);
    let (verdict, sent) = node.from(CLIENT, &foreign);
    assert_eq!((verdict, sent.bytes), (Verdict::Pass, foreign));
    assert_eq!(node.tables.counters.borrow()[&Reason::Fragment], 1);
}

/// Flips are atomic for a flow: it keeps what it was given.
#[test]
fn a_flow_keeps_its_backend_through_an_update() {
    for Cast {
        client,
        service,
        one,
        two,
    } in casts()
    {
        let mut node = Node::new();
        let index = node.service(service, UDP, &[one]);
        node.from(CLIENT, &wire::udp(client, service, b"?"));
        node.point(index, &[two]);
        let (_, sent) = node.from(CLIENT, &wire::udp(client, service, b"?"));
        assert_eq!(wire::read(&sent.bytes), wire::seen(client, one));
        let other = with_port(client, 40001);
        let (_, sent) = node.from(CLIENT, &wire::udp(other, service, b"?"));
        assert_eq!(wire::read(&sent.bytes), wire::seen(other, two));
    }
}

#[test]
fn datagrams_and_connections_leave_a_dead_backend() {
    for Cast {
        client,
        service,
        one,
        two,
    } in casts()
    {
        for protocol in [TCP, UDP] {
            let mut node = Node::new();
            let index = node.service(service, protocol, &[one]);
            let packet = || match protocol {
                TCP => wire::tcp(client, service, SYN),
                _ => wire::udp(client, service, b"?"),
            };
            let answer = match protocol {
                TCP => wire::tcp(one, client, SYN | ACK),
                _ => wire::udp(one, client, b"!"),
            };
            node.from(CLIENT, &packet());
            node.to(CLIENT, &answer);
            node.kill_all();
            node.point(index, &[two]);
            let (_, sent) = node.from(CLIENT, &packet());
            assert_eq!(wire::read(&sent.bytes), wire::seen(client, two));
        }
    }
}

/// A client that keeps asking an address finds the service that appears there.
#[test]
fn a_service_that_appears_late_is_found() {
    for Cast {
        client,
        service,
        one,
        ..
    } in casts()
    {
        let mut node = Node::new();
        let (_, sent) = node.from(CLIENT, &wire::udp(client, service, b"?"));
        assert_eq!(wire::read(&sent.bytes), wire::seen(client, service));
        node.service(service, UDP, &[one]);
        node.pass_time(SECOND);
        let (_, sent) = node.from(CLIENT, &wire::udp(client, service, b"?"));
        assert_eq!(wire::read(&sent.bytes), wire::seen(client, one));
    }
}

/// Two services with one backend, dialled from one client port: the replies must differ.
#[test]
fn a_reply_that_would_be_ambiguous_gets_another_client_port() {
    for Cast {
        client,
        service,
        one,
        ..
    } in casts()
    {
        let mut node = Node::new();
        node.tables.random.borrow_mut().extend([0, 0, 0x8000_0000]);
        let other_service = with_port(service, 81);
        node.service(service, UDP, &[one]);
        node.service(other_service, UDP, &[one]);
        node.from(CLIENT, &wire::udp(client, service, b"?"));
        let (_, sent) = node.from(CLIENT, &wire::udp(client, other_service, b"?"));
        let seen = wire::read(&sent.bytes);
        assert_eq!((seen.from.ip(), seen.to), (client.ip(), one));
        assert_ne!(seen.from.port(), client.port());
        let (_, answer) = node.to(CLIENT, &wire::udp(one, seen.from, b"!"));
        assert_eq!(wire::read(&answer.bytes), wire::seen(other_service, client));
        let (_, answer) = node.to(CLIENT, &wire::udp(one, client, b"!"));
        assert_eq!(wire::read(&answer.bytes), wire::seen(service, client));
    }
}

#[test]
fn another_backend_is_taken_before_another_port() {
    for Cast {
        client,
        service,
        one,
        two,
    } in casts()
    {
        let mut node = Node::new();
        let other_service = with_port(service, 81);
        node.service(service, UDP, &[one]);
        node.service(other_service, UDP, &[one, two]);
        node.from(CLIENT, &wire::udp(client, service, b"?"));
        let (_, sent) = node.from(CLIENT, &wire::udp(client, other_service, b"?"));
        assert_eq!(wire::read(&sent.bytes), wire::seen(client, two));
    }
}

#[test]
fn a_flow_without_any_way_left_is_dropped_and_counted() {
    let [
        Cast {
            client,
            service,
            one,
            ..
        },
        _,
    ] = casts();
    let mut node = Node::new();
    // Every port that is tried is 1024, which the second flow has taken.
    let services = [80, 81, 82].map(|port| with_port(service, port));
    for service in services {
        node.service(service, UDP, &[one]);
    }
    let verdicts = services.map(|service| node.from(CLIENT, &wire::udp(client, service, b"")).0);
    assert_eq!(
        verdicts,
        [
            Verdict::Pass,
            Verdict::Pass,
            Verdict::Drop(Reason::FlowCollision)
        ]
    );
}

#[test]
fn every_backend_is_as_likely_as_the_next() {
    for count in [1u32, 2, 3, 7, 100, 65_537] {
        let step = u32::MAX / 100_000;
        let mut picked = vec![0u32; count as usize];
        for n in 0..100_000 {
            picked[pick(n * step, count) as usize] += 1;
        }
        let (least, most) = (picked.iter().min(), picked.iter().max());
        let expected = 100_000 / count;
        let slack = expected / 100 + 2;
        assert!(
            least >= Some(&expected.saturating_sub(slack)),
            "{count}: {least:?}"
        );
        assert!(most <= Some(&(expected + slack)), "{count}: {most:?}");
        assert!(pick(u32::MAX, count) == count - 1);
    }
}
