//! Crafted packets. The rows are those of `reference/network-policy.md`, section 6.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::{
    CLIENT, Cast, SECOND, SERVER, casts,
    fence::{
        CLIENT_EGRESS, CLIENT_INGRESS, CLIENT_SLOT, DENIED_EGRESS, DENIED_INGRESS, Fence,
        OUT_OF_STATE, SERVER_INGRESS, SERVER_SLOT, What, with_port,
    },
    frames, sctp, socket, wire,
};
use crate::{
    headers::{ACK, FIN, RST, SCTP, SYN, TCP, UDP},
    packet::Verdict,
    policy::{CLOSED, OPEN},
    reason::Reason,
};

const FORGED: Verdict = Verdict::Drop(Reason::ForgedSource);
const FORGED_NEIGHBOUR: Verdict = Verdict::Drop(Reason::ForgedNeighbour);
const ROGUE: Verdict = Verdict::Drop(Reason::RogueServer);
const UNREADABLE: Verdict = Verdict::Drop(Reason::Unreadable);
const FRAGMENT: Verdict = Verdict::Drop(Reason::Fragment);
const UNRELATED: Verdict = Verdict::Drop(Reason::UnrelatedError);

const STRANGER: [u8; 6] = [2, 9, 9, 9, 9, 9];

fn fences() -> [Fence; 2] {
    casts().map(Fence::new)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

#[test]
fn row_01_pods_send_from_their_own_addresses_only() {
    for mut fence in fences() {
        let Cast {
            client,
            service,
            one,
            ..
        } = fence.cast;
        let node = ip(if client.is_ipv4() {
            "192.0.2.1"
        } else {
            "2001:db8::1"
        });
        fence.own(node);
        fence.node.service(service, TCP, &[one]);
        fence.bind_client();
        let mut strangers = vec![node, one.ip(), service.ip()];
        strangers.extend(if client.is_ipv4() {
            [
                "127.0.0.1",
                "169.254.1.1",
                "0.0.0.0",
                "224.0.0.1",
                "192.0.0.8",
            ]
            .map(ip)
        } else {
            ["::1", "fe80::1", "::", "ff02::1", "100:0:0:1::8"].map(ip)
        });
        for stranger in strangers {
            let from = SocketAddr::new(stranger, 40_000);
            for packet in [
                wire::tcp(from, one, SYN),
                wire::udp(from, one, b"?"),
                frames::echo(stranger, one.ip(), 7, false),
                frames::other(stranger, one.ip(), 47, b"tunnelled"),
            ] {
                assert_eq!(fence.sends(&packet), FORGED, "{stranger}");
            }
        }
        assert!(
            fence.node.tables.half_open.borrow().is_empty(),
            "before any look-up"
        );
        assert_eq!(fence.sends(&wire::tcp(client, one, SYN)), Verdict::Pass);
    }
}

#[test]
fn row_01_more_sources_are_allowed_by_name() {
    for mut fence in fences() {
        let Cast {
            client, one, two, ..
        } = fence.cast;
        fence.bind_client();
        let prefix = if client.is_ipv4() { 128 - 8 } else { 128 - 16 };
        let from = |address: IpAddr| wire::udp(SocketAddr::new(address, 1), one, b"?");
        assert_eq!(fence.sends(&from(two.ip())), FORGED);
        fence.allow_source(two.ip(), prefix);
        assert_eq!(fence.sends(&from(two.ip())), Verdict::Pass);
        let outside = ip(if client.is_ipv4() {
            "10.244.2.8"
        } else {
            "fd00:244:2::8"
        });
        assert_eq!(fence.sends(&from(outside)), FORGED);
        // For this pod alone.
        fence.bind(SERVER_SLOT, SERVER, one.ip());
        let mut bytes = from(two.ip());
        bytes[6..12].copy_from_slice(&wire::mac(SERVER));
        assert_eq!(fence.node.from(SERVER, &bytes).0, FORGED);
    }
}

/// A forged packet of a flow that is allowed is forged all the same.
#[test]
fn row_01_flows_are_not_ridden_by_others() {
    for fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.sends(&wire::udp(one, client, b"?"));
        fence.bind_client();
        assert_eq!(fence.sends(&wire::udp(one, client, b"?")), FORGED);
    }
}

#[test]
fn row_02_only_the_own_mac_address_sends() {
    for fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.bind_client();
        let mut bytes = wire::udp(client, one, b"?");
        bytes[6..12].copy_from_slice(&STRANGER);
        assert_eq!(fence.sends(&bytes), FORGED);
    }
}

#[test]
fn row_02_arp_speaks_of_nobody_else() {
    let [cast, _] = casts();
    let IpAddr::V4(own) = cast.client.ip() else {
        panic!("IPv4")
    };
    let own = own.octets();
    let (mac, other) = (wire::mac(CLIENT), [10, 244, 0, 1]);
    let fence = Fence::new(cast);
    let forged = frames::arp(mac, 2, (mac, other), other);
    assert_eq!(fence.sends(&forged), Verdict::Pass, "nobody is bound");
    fence.bind_client();
    for (packet, verdict) in [
        (frames::arp(mac, 1, (mac, own), other), Verdict::Pass),
        (frames::arp(mac, 2, (mac, own), other), Verdict::Pass),
        (frames::arp(mac, 1, (mac, [0; 4]), own), Verdict::Pass),
        (frames::arp(mac, 1, (mac, own), own), Verdict::Pass),
        (forged, FORGED_NEIGHBOUR),
        (frames::arp(mac, 1, (mac, other), other), FORGED_NEIGHBOUR),
        (
            frames::arp(mac, 2, (STRANGER, own), other),
            FORGED_NEIGHBOUR,
        ),
        (frames::arp(STRANGER, 2, (mac, own), other), FORGED),
    ] {
        assert_eq!(fence.sends(&packet), verdict, "{packet:x?}");
    }
    let mut odd = frames::arp(mac, 1, (mac, own), other);
    odd[15] = 6;
    assert_eq!(fence.sends(&odd), FORGED_NEIGHBOUR, "no Ethernet");
    odd.truncate(20);
    assert_eq!(fence.sends(&odd), FORGED_NEIGHBOUR, "cut short");
    assert_eq!(
        fence.receives(&frames::arp(STRANGER, 2, (STRANGER, other), own)),
        Verdict::Pass
    );
}

#[test]
fn row_02_neighbour_discovery_speaks_of_nobody_else() {
    let [_, cast] = casts();
    let IpAddr::V6(own) = cast.client.ip() else {
        panic!("IPv6")
    };
    let (mac, other, nobody) = (wire::mac(CLIENT), v6("fd00:244::1"), v6("::"));
    let link = frames::link_local(mac);
    let fence = Fence::new(cast);
    fence.bind_client();
    let (asks, tells, solicits) = (135, 136, 133);
    for (packet, verdict) in [
        (
            frames::neighbour(asks, own, other, Some((1, mac))),
            Verdict::Pass,
        ),
        (frames::neighbour(asks, link, other, None), Verdict::Pass),
        (frames::neighbour(asks, nobody, own, None), Verdict::Pass),
        (frames::neighbour(asks, nobody, link, None), Verdict::Pass),
        (
            frames::neighbour(tells, own, own, Some((2, mac))),
            Verdict::Pass,
        ),
        (
            frames::neighbour(tells, link, link, Some((2, mac))),
            Verdict::Pass,
        ),
        (
            frames::neighbour(asks, own, other, Some((1, STRANGER))),
            FORGED_NEIGHBOUR,
        ),
        (
            frames::neighbour(asks, nobody, other, None),
            FORGED_NEIGHBOUR,
        ),
        (
            frames::neighbour(tells, own, other, Some((2, mac))),
            FORGED_NEIGHBOUR,
        ),
        (
            frames::neighbour(tells, own, own, Some((2, STRANGER))),
            FORGED_NEIGHBOUR,
        ),
        (
            frames::neighbour(tells, own, v6("fe80::1"), None),
            FORGED_NEIGHBOUR,
        ),
        (frames::neighbour(tells, other, own, None), FORGED),
        (frames::neighbour(asks, v6("fe80::1"), other, None), FORGED),
        (
            frames::icmp(link.into(), ip("ff02::2"), 255, solicits, &[0; 4]),
            Verdict::Pass,
        ),
        (
            frames::icmp(nobody.into(), ip("ff02::16"), 1, 143, &[0; 4]),
            Verdict::Pass,
        ),
    ] {
        assert_eq!(fence.sends(&packet), verdict, "{packet:x?}");
    }
    // An option that says it has no length, and one too many.
    let mut endless = frames::neighbour(asks, own, other, Some((1, mac)));
    endless[14 + 40 + 24 + 1] = 0;
    assert_eq!(fence.sends(&endless), FORGED_NEIGHBOUR);
    let mut body = vec![0; 4];
    body.extend(other.octets());
    for kind in [14, 14, 14, 14, 1] {
        body.extend([kind, 1, 9, 9, 9, 9, 9, 9]);
    }
    let many = frames::icmp(own.into(), other.into(), 255, asks, &body);
    assert_eq!(fence.sends(&many), FORGED_NEIGHBOUR);
}

#[test]
fn row_03_pods_are_no_routers_and_no_dhcp_servers() {
    for fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        let rogues = if client.is_ipv4() {
            let dhcp = wire::udp(with_port(client, 67), with_port(one, 68), b"yours");
            let message = |icmp_type| frames::icmp(client.ip(), one.ip(), 64, icmp_type, &[0; 8]);
            vec![dhcp, message(5), message(9)]
        } else {
            let dhcp = wire::udp(with_port(client, 547), with_port(one, 546), b"yours");
            let link = frames::link_local(wire::mac(CLIENT)).into();
            let message = |icmp_type| frames::icmp(link, one.ip(), 255, icmp_type, &[0; 40]);
            vec![dhcp, message(134), message(137)]
        };
        fence.bind_client();
        for rogue in &rogues {
            assert_eq!(fence.sends(rogue), ROGUE);
        }
        // Their clients are none.
        let question = wire::udp(with_port(client, 68), with_port(one, 67), b"?");
        assert_eq!(fence.sends(&question), Verdict::Pass);
    }
    let [_, cast] = casts();
    let fence = Fence::new(cast);
    fence.isolate(CLIENT_SLOT, OPEN, CLOSED);
    let link = frames::link_local(wire::mac(CLIENT));
    assert_eq!(
        fence.sends(&frames::neighbour(134, link, link, None)),
        ROGUE
    );
}

#[test]
fn row_04_fragments_go_the_way_of_their_first_and_no_other() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.isolate_client();
        fence.allow(CLIENT_EGRESS, one.ip(), What::Port(UDP, one.port()));
        let whole = wire::udp(client, one, &[7; 64]);
        let later = |id| {
            let rest = frames::other(client.ip(), one.ip(), UDP, &[7; 32]);
            frames::fragment(&rest, id, 5, false)
        };
        assert_eq!(fence.sends(&later(1)), FRAGMENT, "before its first");
        let forbidden = wire::udp(client, with_port(one, 9), &[7; 64]);
        assert_eq!(
            fence.sends(&frames::fragment(&forbidden, 2, 0, true)),
            DENIED_EGRESS
        );
        assert_eq!(
            fence.sends(&later(2)),
            FRAGMENT,
            "after one that was denied"
        );
        assert_eq!(
            fence.sends(&frames::fragment(&whole, 3, 0, true)),
            Verdict::Pass
        );
        assert_eq!(fence.sends(&later(3)), Verdict::Pass);
        assert_eq!(fence.sends(&later(4)), FRAGMENT, "of another packet");
        fence.forbid(CLIENT_EGRESS, one.ip());
        assert_eq!(fence.sends(&later(3)), DENIED_EGRESS);
    }
}

/// What a first fragment leaves to the next could say anything (RFC 1858, RFC 3128).
#[test]
fn row_04_first_fragments_without_a_whole_header_are_unreadable() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        let syn = wire::tcp(client, one, SYN);
        let transport = if client.is_ipv4() { 34 } else { 54 };
        let rest = &syn[transport..];
        for length in [8, 16] {
            let mut tiny = frames::other(client.ip(), one.ip(), TCP, &rest[..length]);
            tiny = frames::fragment(&tiny, 1, 0, true);
            // Padding of the frame is not the packet.
            tiny.extend(&rest[length..]);
            assert_eq!(fence.sends(&tiny), UNREADABLE, "{length}");
        }
        let overlap = frames::other(client.ip(), one.ip(), TCP, &rest[8..]);
        assert_eq!(
            fence.sends(&frames::fragment(&overlap, 1, 1, false)),
            FRAGMENT
        );
    }
}

#[test]
fn row_05_options_hide_no_ports() {
    let [cast, _] = casts();
    let mut fence = Fence::new(cast);
    let Cast { client, one, .. } = fence.cast;
    fence.isolate_client();
    fence.allow(CLIENT_EGRESS, one.ip(), What::Port(UDP, one.port()));
    for words in 0..=10 {
        let allowed = wire::with_options(&wire::udp(client, one, b"?"), words);
        assert_eq!(fence.sends(&allowed), Verdict::Pass);
        let denied = wire::with_options(&wire::udp(client, with_port(one, 9), b"?"), words);
        assert_eq!(fence.sends(&denied), DENIED_EGRESS);
    }
    let mut short = wire::udp(client, one, b"?");
    short[14] = 0x44;
    assert_eq!(
        fence.sends(&short),
        UNREADABLE,
        "a header shorter than a header"
    );
}

#[test]
fn row_05_truncated_packets_are_unreadable() {
    for fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        let whole = wire::tcp(client, one, SYN);
        let end = if client.is_ipv4() { 34 } else { 54 } + 14;
        for cut in 15..end {
            let bound = Fence::new(Cast { ..fence.cast });
            assert_eq!(
                bound.sends(&whole[..cut]),
                Verdict::Pass,
                "for the kernel to drop"
            );
            bound.bind_client();
            assert_eq!(bound.sends(&whole[..cut]), UNREADABLE, "bound, {cut} bytes");
            let isolated = Fence::new(Cast { ..fence.cast });
            isolated.isolate_client();
            assert_eq!(
                isolated.sends(&whole[..cut]),
                UNREADABLE,
                "isolated, {cut} bytes"
            );
            assert_eq!(isolated.receives(&whole[..cut]), UNREADABLE);
        }
    }
}

#[test]
fn row_06_extension_headers_hide_no_ports() {
    let [_, cast] = casts();
    let mut fence = Fence::new(cast);
    let Cast { client, one, .. } = fence.cast;
    fence.isolate_client();
    fence.allow(CLIENT_EGRESS, one.ip(), What::Port(UDP, one.port()));
    let allowed = wire::udp(client, one, b"?");
    let denied = wire::udp(client, with_port(one, 9), b"?");
    for chain in [
        &[0][..],
        &[43],
        &[60, 43, 60],
        &[0, 44, 60],
        &[135],
        &[0, 60, 43, 44, 135, 60],
    ] {
        let packet = wire::with_extensions(&allowed, chain);
        assert_eq!(fence.sends(&packet), Verdict::Pass, "{chain:?}");
        let packet = wire::with_extensions(&denied, chain);
        assert_eq!(fence.sends(&packet), DENIED_EGRESS, "{chain:?}");
    }
    let endless = wire::with_extensions(&allowed, &[60; 9]);
    assert_eq!(
        fence.sends(&endless),
        DENIED_EGRESS,
        "more headers than are walked"
    );
    let encrypted = frames::other(client.ip(), one.ip(), 50, &[0; 32]);
    assert_eq!(fence.sends(&encrypted), DENIED_EGRESS);
}

#[test]
fn row_07_errors_ride_on_live_flows_of_this_pod_only() {
    for (family, mut fence) in fences().into_iter().enumerate() {
        let Cast {
            client, one, two, ..
        } = fence.cast;
        let kind = [[3, 3], [1, 4]][family];
        fence.confine_client(one.ip());
        fence.allow(CLIENT_INGRESS, one.ip(), What::Everything);
        let sent = wire::udp(client, one, b"?");
        fence.sends(&sent);
        let error = |from: SocketAddr, to: SocketAddr, quoted: &[u8]| {
            wire::error(from.ip(), to.ip(), kind, quoted)
        };
        assert_eq!(fence.receives(&error(two, client, &sent)), Verdict::Pass);
        // A flow that is not, the wrong side of one that is, and errors about errors.
        let unknown = wire::udp(client, two, b"?");
        assert_eq!(fence.receives(&error(two, client, &unknown)), UNRELATED);
        assert_eq!(fence.sends(&error(client, one, &sent)), UNRELATED);
        let own = error(two, client, &sent);
        assert_eq!(fence.receives(&error(two, client, &own)), UNRELATED);
        // Cut short, so that no ports are left.
        let mut short = error(one, client, &sent);
        short.truncate(if family == 0 {
            14 + 20 + 8 + 20
        } else {
            14 + 40 + 8 + 40
        });
        assert_eq!(fence.receives(&short), UNRELATED);
        // Of another pod.
        fence.isolate(SERVER_SLOT, CLOSED, OPEN);
        assert_eq!(fence.serves(&error(two, client, &sent)), UNRELATED);
        // To somebody else than who sent what it quotes: a way out for data.
        fence.receives(&wire::udp(one, client, b"!"));
        let received = wire::udp(one, client, b"!");
        assert_eq!(fence.sends(&error(client, one, &received)), Verdict::Pass);
        assert_eq!(fence.sends(&error(client, two, &received)), UNRELATED);
        // Of a flow that is gone.
        fence.node.tables.half_open.borrow_mut().clear();
        assert_eq!(fence.receives(&error(two, client, &sent)), UNRELATED);
    }
}

/// A question opens the pod to the one it asked for as long as an answer may take, and no longer.
#[test]
fn an_answer_that_comes_too_late_is_judged() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        let (question, answer) = (wire::udp(client, one, b"?"), wire::udp(one, client, b"!"));
        assert_eq!(fence.sends(&question), Verdict::Pass);
        assert_eq!(fence.receives(&answer), Verdict::Pass);
        fence.node.pass_time(31 * SECOND);
        assert_eq!(fence.receives(&answer), DENIED_INGRESS);
        assert_eq!(fence.sends(&question), Verdict::Pass);
        assert_eq!(fence.receives(&answer), Verdict::Pass);
    }
}

/// GHSA-c66w-hq56-4q97: a ping rode on the entry that the other side's had made.
#[test]
fn row_08_a_ping_does_not_ride_on_the_other_sides() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        let ping =
            |from: SocketAddr, to: SocketAddr, id| frames::echo(from.ip(), to.ip(), id, false);
        let pong =
            |from: SocketAddr, to: SocketAddr, id| frames::echo(from.ip(), to.ip(), id, true);
        for id in [0, 1, 8, 128, 0xffff] {
            assert_eq!(fence.sends(&ping(client, one, id)), Verdict::Pass);
            assert_eq!(fence.receives(&pong(one, client, id)), Verdict::Pass);
            assert!(
                matches!(
                    fence.receives(&ping(one, client, id)),
                    DENIED_INGRESS | OUT_OF_STATE
                ),
                "a request by {id}"
            );
            assert_eq!(fence.receives(&pong(one, client, id ^ 0x40)), OUT_OF_STATE);
            assert_eq!(fence.sends(&pong(client, one, id ^ 0x40)), OUT_OF_STATE);
        }
    }
}

#[test]
fn row_09_unknown_protocols_are_denied_unless_everything_is_allowed() {
    for mut fence in fences() {
        let Cast {
            client, one, two, ..
        } = fence.cast;
        fence.isolate_client();
        for protocol in [TCP, UDP, SCTP] {
            fence.allow(CLIENT_EGRESS, one.ip(), What::Protocol(protocol));
        }
        fence.allow(CLIENT_EGRESS, two.ip(), What::Everything);
        // IPv4: protocol 0. UDP-Lite, DCCP, GRE, IPIP, ESP, experiments, the reserved one.
        let zero: &[u8] = if client.is_ipv4() { &[0] } else { &[] };
        for protocol in [&[136, 33, 47, 4, 41, 50, 253, 255][..], zero].concat() {
            let to = |to: SocketAddr| frames::other(client.ip(), to.ip(), protocol, &[0; 24]);
            assert_eq!(fence.sends(&to(one)), DENIED_EGRESS, "{protocol}");
            assert_eq!(fence.sends(&to(two)), Verdict::Pass, "{protocol}");
            // The protocol is part of the flow: what answers one is no answer to another.
            let back = frames::other(two.ip(), client.ip(), protocol ^ 0x80, &[0; 24]);
            assert_ne!(fence.receives(&back), Verdict::Pass, "{protocol}");
        }
        assert_eq!(fence.sends(&wire::tcp(client, one, SYN)), Verdict::Pass);
    }
}

#[test]
fn row_09_other_ethertypes_pass_nobody_who_is_isolated_or_bound() {
    for ethertype in [
        [0x81, 0x00],
        [0x88, 0xa8],
        [0x88, 0x47],
        [0x88, 0x64],
        [0, 4],
    ] {
        let [cast, _] = casts();
        let fence = Fence::new(cast);
        let mut bytes = wire::udp(fence.cast.client, fence.cast.one, b"?");
        bytes[12..14].copy_from_slice(&ethertype);
        assert_eq!(fence.sends(&bytes), Verdict::Pass);
        fence.bind_client();
        assert_eq!(fence.sends(&bytes), UNREADABLE);
        assert_eq!(fence.receives(&bytes), Verdict::Pass);
        fence.isolate_client();
        assert_eq!(fence.receives(&bytes), UNREADABLE);
    }
}

#[test]
fn row_10_sctp_opens_by_init_alone() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.isolate_client();
        fence.allow(CLIENT_EGRESS, one.ip(), What::Port(TCP, one.port()));
        assert_eq!(fence.sends(&sctp::packet(client, one, 1)), DENIED_EGRESS);
        fence.allow(CLIENT_EGRESS, one.ip(), What::Port(SCTP, one.port()));
        // DATA, INIT ACK, ABORT, SHUTDOWN, COOKIE ECHO, ASCONF.
        for chunk in [0, 2, 6, 7, 10, 0xc1] {
            let packet = sctp::packet(client, one, chunk);
            assert_eq!(fence.sends(&packet), OUT_OF_STATE, "{chunk}");
            let packet = sctp::packet(one, client, chunk);
            assert_eq!(fence.receives(&packet), OUT_OF_STATE, "{chunk}");
        }
        assert_eq!(fence.sends(&sctp::packet(client, one, 1)), Verdict::Pass);
        assert_eq!(fence.receives(&sctp::packet(one, client, 2)), Verdict::Pass);
    }
}

#[test]
fn row_11_segments_out_of_state_open_nothing() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        fence.allow(CLIENT_INGRESS, one.ip(), What::Everything);
        for flags in [
            ACK,
            FIN,
            RST,
            SYN | ACK,
            FIN | ACK,
            RST | ACK,
            SYN | FIN,
            SYN | RST,
            0,
        ] {
            assert_eq!(
                fence.sends(&wire::tcp(client, one, flags)),
                OUT_OF_STATE,
                "{flags:#x}"
            );
            assert_eq!(fence.receives(&wire::tcp(one, client, flags)), OUT_OF_STATE);
        }
        assert!(fence.node.tables.half_open.borrow().is_empty());
    }
}

/// A SYN on a connection that is over is a new one, which policy judges.
#[test]
fn row_11_a_syn_on_a_closed_connection_is_judged() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        fence.sends(&wire::tcp(client, one, SYN));
        fence.receives(&wire::tcp(one, client, RST | ACK));
        // The other side opens on what is left of it.
        assert_eq!(fence.receives(&wire::tcp(one, client, SYN)), DENIED_INGRESS);
        fence.sends(&wire::tcp(client, one, SYN));
        fence.receives(&wire::tcp(one, client, RST | ACK));
        // Without an epoch the flow would still be believed.
        fence.node.tables.rules.borrow_mut().clear();
        assert_eq!(fence.sends(&wire::tcp(client, one, SYN)), DENIED_EGRESS);
    }
}

/// Who takes over an address, in another slot, takes over no flows.
#[test]
fn row_12_a_pod_inherits_no_flows() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        fence.sends(&wire::tcp(client, one, SYN));
        fence.receives(&wire::tcp(one, client, SYN | ACK));
        fence.sends(&wire::tcp(client, one, ACK));
        fence.node.tables.slots.insert(CLIENT, 3);
        fence.isolate(3, CLOSED, CLOSED);
        assert_eq!(fence.receives(&wire::tcp(one, client, ACK)), OUT_OF_STATE);
        assert_eq!(fence.sends(&wire::tcp(client, one, ACK)), OUT_OF_STATE);
    }
}

#[test]
fn row_14_full_tables_open_nothing() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        fence.node.tables.flow_limit = Some(0);
        fence.sends(&wire::tcp(client, one, SYN));
        fence.receives(&wire::tcp(one, client, SYN | ACK));
        let ack = wire::tcp(client, one, ACK);
        assert_eq!(fence.sends(&ack), Verdict::Drop(Reason::FlowTableFull));
        // Nor does what was forgotten.
        fence.node.tables.half_open.borrow_mut().clear();
        assert_eq!(fence.receives(&wire::tcp(one, client, ACK)), OUT_OF_STATE);
        // A rule set that is not there yet, a class without rules, an unknown endpoint.
        fence.isolate(CLIENT_SLOT, 999, 999);
        assert_eq!(fence.sends(&wire::tcp(client, one, SYN)), DENIED_EGRESS);
    }
}

/// Every path of a service ends at the backend's own policy.
#[test]
fn row_22_services_lead_nobody_past_policy() {
    for mut fence in fences() {
        let Cast {
            client,
            service,
            one,
            ..
        } = fence.cast;
        fence.node.pod(one, SERVER);
        fence.node.service(service, UDP, &[one]);
        fence.isolate_server();
        fence.allow(SERVER_INGRESS, service.ip(), What::Everything);
        let (_, sent) = fence.node.from(CLIENT, &wire::udp(client, service, b"?"));
        for mark in [
            crate::packet::MARK_FROM_POD,
            crate::packet::MARK_FROM_WIRE,
            0,
        ] {
            let (verdict, _) = super::Node::cross(
                &fence.node.tables,
                SERVER,
                crate::flow::Direction::ToPod,
                &sent.bytes,
                mark,
            );
            assert_eq!(verdict, DENIED_INGRESS, "{mark:#x}");
        }
    }
}

/// Old flows do not live longer for being denied.
#[test]
fn row_12_denied_packets_keep_no_flow_alive() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        fence.sends(&wire::udp(client, one, b"?"));
        let seen = |fence: &Fence| {
            let flows = fence.node.tables.half_open.borrow();
            flows.values().map(|flow| flow.last_seen).max()
        };
        let before = seen(&fence);
        fence.forbid(CLIENT_EGRESS, one.ip());
        fence.node.pass_time(2 * SECOND);
        assert_eq!(fence.sends(&wire::udp(client, one, b"?")), DENIED_EGRESS);
        assert_eq!(seen(&fence), before);
    }
}

proptest! {
    /// Whatever a pod that nothing is allowed sends, nothing gets out but what keeps its link going;
    /// and whatever a bound one sends is from its own address.
    #[test]
    fn nothing_leaves_a_closed_pod(
        mut bytes in proptest::collection::vec(any::<u8>(), 14..160),
        v6: bool,
        transport in prop_oneof![Just(None), any::<u8>().prop_map(Some)],
    ) {
        let [v4_cast, v6_cast] = casts();
        let fence = Fence::new(if v6 { v6_cast } else { v4_cast });
        fence.isolate(CLIENT_SLOT, CLOSED, CLOSED);
        bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
        if let Some(first) = bytes.get_mut(14) {
            *first = if v6 { 0x60 } else { 0x45 };
        }
        let place = if v6 { 20 } else { 23 };
        if let (Some(protocol), Some(byte)) = (transport, bytes.get_mut(place)) {
            *byte = protocol;
        }
        let verdict = fence.node.from(CLIENT, &bytes).0;
        prop_assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
    }

    #[test]
    fn only_ones_own_address_leaves_a_bound_pod(last: u8, port: u16, tcp: bool) {
        let [cast, _] = casts();
        let fence = Fence::new(cast);
        fence.bind_client();
        let from = socket(&format!("10.244.0.{last}:{port}"));
        let bytes = if tcp {
            wire::tcp(from, fence.cast.one, SYN)
        } else {
            wire::udp(from, fence.cast.one, b"?")
        };
        let own = from.ip() == fence.cast.client.ip();
        prop_assert!(!own || fence.sends(&bytes) != FORGED);
        prop_assert!(own || matches!(fence.sends(&bytes), Verdict::Drop(_)));
    }
}
