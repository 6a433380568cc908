//! What policy lets pods send and receive, and who they may say they are.

use std::net::IpAddr;

use fastrand::Rng;
use lb_common::{
    address::{UNSPECIFIED, from_ip},
    flow::Direction,
    headers::{ACK, SYN, TCP},
    memory::Frame,
    policy::{CLOSED, Guard, OPEN, PeerKey, Rule, RuleKey, SourceKey},
    reason::Reason,
};

use crate::{
    CLIENT, Cast, SERVER, Story,
    frames::{arp, echo, fragment, icmp, link_local, neighbour, other},
    kernel::Action,
    pair::Pair,
    wire::{error, mac, tcp, udp},
};

pub const STORIES: &[Story] = &[
    ("a closed pod neither sends nor receives", closed),
    ("a rule set lets through what it says", rules),
    ("a service is judged by its backend", behind_a_service),
    ("a pod that reaches itself is judged as itself", itself),
    ("a change has flows judged again", changed),
    ("pings and tunnels of isolated pods are followed", followed),
    ("a bound pod sends as itself", bound),
    ("two thousand broken packets of an isolated pod", broken),
];

const RULE_SET: u32 = 7;
const CLASS: u32 = 70;
const GRE: u8 = 47;

fn guard(ingress: u32, egress: u32, epoch: u32) -> Guard {
    Guard {
        ingress,
        egress,
        epoch,
        ..Guard::NONE
    }
}

/// Has the rule set allow TCP to ports 8080 to 8087 of a peer, and everything of its neighbour.
fn allow(pair: &mut Pair, cast: &Cast) {
    let allow = Rule {
        rule: 3,
        audited_rule: 4,
        audited_allow: 0,
        ..Rule::ALLOW
    };
    pair.identity(128, cast.one.ip(), 1);
    pair.identity(112, cast.one.ip(), 2);
    for (identity, class) in [(1, CLASS), (2, CLASS + 1)] {
        let key = PeerKey {
            rule_set: RULE_SET,
            identity,
        };
        pair.peer(key, class);
    }
    let range = RuleKey::new(CLASS, TCP, 8080);
    pair.rule(RuleKey::PROTOCOL_BITS + 13, range, allow);
    pair.rule(RuleKey::CLASS_BITS, RuleKey::new(CLASS + 1, 0, 0), allow);
}

fn with_port(mut socket: std::net::SocketAddr, port: u16) -> std::net::SocketAddr {
    socket.set_port(port);
    socket
}

fn closed(pair: &mut Pair, cast: &Cast) {
    pair.guard(1, guard(CLOSED, CLOSED, 1));
    for (direction, packet) in [
        (Direction::FromPod, tcp(cast.client, cast.one, SYN)),
        (Direction::FromPod, tcp(cast.client, cast.one, ACK)),
        (Direction::FromPod, udp(cast.client, cast.one, b"?")),
        (
            Direction::FromPod,
            echo(cast.client.ip(), cast.one.ip(), 1, false),
        ),
        (Direction::ToPod, tcp(cast.one, cast.client, SYN)),
        (
            Direction::ToPod,
            other(cast.one.ip(), cast.client.ip(), GRE, b"?"),
        ),
        (
            Direction::ToPod,
            fragment(&udp(cast.one, cast.client, b"?"), 9, 3, true),
        ),
    ] {
        let dropped = match direction {
            Direction::FromPod => pair.from(CLIENT, &packet),
            _ => pair.to(CLIENT, &packet),
        };
        assert_eq!(dropped.action, Action::Drop);
    }
    assert_eq!(pair.counted(Reason::EgressDenied), 3);
    assert_eq!(pair.counted(Reason::IngressDenied), 2);
}

fn rules(pair: &mut Pair, cast: &Cast) {
    pair.guard(1, guard(OPEN, RULE_SET, 1));
    allow(pair, cast);
    for (port, action) in [
        (8079, Action::Drop),
        (8080, Action::Pass),
        (8087, Action::Pass),
        (8088, Action::Drop),
    ] {
        let to = with_port(cast.one, port);
        assert_eq!(pair.from(CLIENT, &tcp(cast.client, to, SYN)).action, action);
        let datagram = udp(cast.client, to, b"?");
        assert_eq!(pair.from(CLIENT, &datagram).action, Action::Drop);
        let to = with_port(cast.two, port);
        let datagram = udp(cast.client, to, b"?");
        assert_eq!(pair.from(CLIENT, &datagram).action, Action::Pass);
    }
}

fn behind_a_service(pair: &mut Pair, cast: &Cast) {
    pair.pod(cast.one, SERVER);
    pair.service(cast.service, TCP, &[cast.one]);
    pair.guard(1, guard(OPEN, RULE_SET, 1));
    let syn = tcp(cast.client, cast.service, SYN);
    assert_eq!(pair.from(CLIENT, &syn).action, Action::Drop);
    allow(pair, cast);
    let sent = pair.from(CLIENT, &syn);
    assert_eq!(sent.action, Action::Redirect);
    pair.guard(2, guard(CLOSED, OPEN, 1));
    assert_eq!(pair.follow(CLIENT, SERVER, &sent).action, Action::Drop);
    pair.guard(2, Guard::NONE);
    assert_eq!(pair.follow(CLIENT, SERVER, &sent).action, Action::Pass);
}

fn itself(pair: &mut Pair, cast: &Cast) {
    let own = with_port(cast.client, 8080);
    pair.service(cast.service, TCP, &[own]);
    allow(pair, &Cast { one: own, ..*cast });
    let syn = tcp(cast.client, cast.service, SYN);
    pair.guard(1, guard(CLOSED, RULE_SET, 1));
    assert_eq!(pair.from(CLIENT, &syn).action, Action::Drop);
    pair.guard(1, guard(RULE_SET, RULE_SET, 2));
    assert_eq!(pair.from(CLIENT, &syn).action, Action::Redirect);
}

fn changed(pair: &mut Pair, cast: &Cast) {
    pair.guard(1, guard(CLOSED, RULE_SET, 1));
    allow(pair, cast);
    let (out, back) = (
        tcp(cast.client, cast.one, ACK),
        tcp(cast.one, cast.client, ACK),
    );
    pair.from(CLIENT, &tcp(cast.client, cast.one, SYN));
    pair.to(CLIENT, &tcp(cast.one, cast.client, SYN | ACK));
    pair.from(CLIENT, &out);
    pair.bump(1);
    assert_eq!(pair.to(CLIENT, &back).action, Action::Pass);
    pair.guard(1, guard(CLOSED, CLOSED, 3));
    assert_eq!(pair.to(CLIENT, &back).action, Action::Drop);
    assert_eq!(pair.from(CLIENT, &out).action, Action::Drop);
    pair.guard(1, guard(CLOSED, RULE_SET, 4));
    assert_eq!(pair.from(CLIENT, &out).action, Action::Pass);
}

fn followed(pair: &mut Pair, cast: &Cast) {
    let (client, two) = (cast.client.ip(), cast.two.ip());
    pair.guard(1, guard(CLOSED, RULE_SET, 1));
    allow(pair, cast);
    let pong = echo(two, client, 5, true);
    assert_eq!(pair.to(CLIENT, &pong).action, Action::Drop);
    let ping = echo(client, two, 5, false);
    assert_eq!(pair.from(CLIENT, &ping).action, Action::Pass);
    assert_eq!(pair.to(CLIENT, &pong).action, Action::Pass);
    let ping_back = echo(two, client, 5, false);
    assert_eq!(pair.to(CLIENT, &ping_back).action, Action::Drop);
    let kind = if client.is_ipv4() { [3, 1] } else { [1, 3] };
    let unreachable = error(cast.one.ip(), client, kind, &ping);
    assert_eq!(pair.to(CLIENT, &unreachable).action, Action::Pass);
    let out = other(client, two, GRE, b"tunnelled");
    let back = other(two, client, GRE, b"tunnelled");
    assert_eq!(pair.to(CLIENT, &back).action, Action::Drop);
    assert_eq!(pair.from(CLIENT, &out).action, Action::Pass);
    assert_eq!(pair.to(CLIENT, &back).action, Action::Pass);
}

/// The guard of the client, bound to its address.
fn bound_guard(cast: &Cast) -> Guard {
    let own = from_ip(cast.client.ip());
    let (v4, v6) = if cast.client.is_ipv4() {
        (own, UNSPECIFIED)
    } else {
        (UNSPECIFIED, own)
    };
    Guard {
        v4,
        v6,
        mac: mac(CLIENT),
        bound: 1,
        ..guard(OPEN, OPEN, 1)
    }
}

fn bound(pair: &mut Pair, cast: &Cast) {
    pair.guard(1, bound_guard(cast));
    let own = udp(cast.client, cast.one, b"?");
    let forged = udp(cast.two, cast.one, b"?");
    assert_eq!(pair.from(CLIENT, &own).action, Action::Pass);
    assert_eq!(pair.from(CLIENT, &forged).action, Action::Drop);
    let source = SourceKey {
        slot: 1,
        address: from_ip(cast.two.ip()),
    };
    pair.source(120, source);
    assert_eq!(pair.from(CLIENT, &forged).action, Action::Drop);
    pair.guard(
        1,
        Guard {
            more_sources: 1,
            ..bound_guard(cast)
        },
    );
    assert_eq!(pair.from(CLIENT, &forged).action, Action::Pass);
    match cast.client.ip() {
        IpAddr::V4(own) => {
            let (own, gateway) = (own.octets(), [10, 244, 0, 1]);
            let asks = arp(mac(CLIENT), 1, (mac(CLIENT), own), gateway);
            let lies = arp(mac(CLIENT), 2, (mac(CLIENT), gateway), gateway);
            assert_eq!(cross(pair, asks), Action::Pass);
            assert_eq!(cross(pair, lies), Action::Drop);
        }
        IpAddr::V6(own) => {
            let link = link_local(mac(CLIENT));
            let tells = neighbour(136, own, own, Some((2, mac(CLIENT))));
            let lies = neighbour(136, own, own, Some((2, mac(SERVER))));
            let routes = icmp(link.into(), cast.one.ip(), 255, 134, &[0; 12]);
            assert_eq!(cross(pair, tells), Action::Pass);
            assert_eq!(cross(pair, lies), Action::Drop);
            assert_eq!(cross(pair, routes), Action::Drop);
        }
    }
}

/// Runs a packet that checksums may not hold for.
fn cross(pair: &mut Pair, bytes: Vec<u8>) -> Action {
    let frame = Frame {
        bytes,
        interface: CLIENT,
        ..Frame::default()
    };
    pair.cross(Direction::FromPod, frame).action
}

fn broken(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    allow(pair, cast);
    let (client, one, two) = (cast.client, cast.one, cast.two);
    let link = link_local(mac(CLIENT));
    let packets = [
        tcp(client, cast.service, SYN),
        tcp(client, one, SYN),
        tcp(client, one, ACK),
        udp(client, two, b"?"),
        fragment(&udp(client, two, b"?"), 4, 0, true),
        fragment(&udp(client, two, b"?"), 4, 2, false),
        echo(client.ip(), two.ip(), 5, false),
        echo(client.ip(), two.ip(), 5, true),
        other(client.ip(), two.ip(), GRE, b"tunnelled"),
        neighbour(135, link, link, Some((1, mac(CLIENT)))),
        arp(
            mac(CLIENT),
            1,
            (mac(CLIENT), [10, 244, 0, 5]),
            [10, 244, 0, 1],
        ),
    ];
    let mut rng = Rng::with_seed(5);
    let mut seen = [0; 3];
    for round in 0..2000 {
        if round % 500 == 0 {
            let bound = bound_guard(cast);
            pair.guard(
                1,
                Guard {
                    ingress: RULE_SET,
                    egress: RULE_SET,
                    epoch: round,
                    bound: u8::from(round % 1000 == 0),
                    ..bound
                },
            );
        }
        if rng.u8(..64) == 0 {
            pair.bump(1);
        }
        let mut bytes = packets[rng.usize(..packets.len())].clone();
        for _ in 0..rng.u8(..3) {
            let place = rng.usize(12..bytes.len());
            bytes[place] = rng.u8(..);
        }
        let direction = if rng.u8(..4) == 0 {
            Direction::ToPod
        } else {
            Direction::FromPod
        };
        let frame = Frame {
            bytes,
            interface: CLIENT,
            ..Frame::default()
        };
        seen[pair.cross(direction, frame).action as usize] += 1;
        if round % 50 == 0 {
            pair.compare_tables();
        }
    }
    pair.compare_tables();
    assert!(seen[Action::Pass as usize] > 100, "{seen:?}");
    assert!(seen[Action::Drop as usize] > 100, "{seen:?}");
}
