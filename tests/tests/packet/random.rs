//! Garbage: whatever the bytes, the kernel does what the packet path does in memory.

use fastrand::Rng;
use lb_common::{
    flow::Direction,
    headers::{ACK, SYN, TCP, UDP},
    memory::Frame,
    packet::MARK_FROM_POD,
};

use crate::{
    CLIENT, Cast, SERVER, Story,
    pair::Pair,
    wire::{error, tcp, udp, with_extensions, with_options},
};

pub const STORIES: &[Story] = &[("two thousand broken packets", broken)];

/// The bytes that headers take: changes further on change nothing.
const HEADERS: usize = 120;
/// Over less than an IP header the kernel runs no program.
const SHORTEST: usize = 14 + 40;

fn broken(pair: &mut Pair, cast: &Cast) {
    pair.pod(cast.one, SERVER);
    pair.service(cast.service, TCP, &[cast.one]);
    pair.service(cast.service, UDP, &[cast.two]);
    pair.service(cast.other, UDP, &[]);
    let packets = good_packets(pair, cast);
    let mut rng = Rng::with_seed(3);
    let mut seen = [0; 3];
    for round in 0..2000 {
        let (direction, good) = &packets[rng.usize(..packets.len())];
        let mut frame = Frame {
            bytes: good.clone(),
            interface: CLIENT,
            mark: if rng.u8(..8) == 0 { MARK_FROM_POD } else { 0 },
            ..Frame::default()
        };
        damage(&mut frame.bytes, &mut rng);
        seen[pair.cross(*direction, frame).action as usize] += 1;
        if round % 50 == 0 {
            pair.compare_tables();
        }
    }
    pair.compare_tables();
    assert!(seen.iter().all(|times| *times > 20), "{seen:?}");
}

fn good_packets(pair: &mut Pair, cast: &Cast) -> Vec<(Direction, Vec<u8>)> {
    let syn = tcp(cast.client, cast.service, SYN);
    let sent = pair.from(CLIENT, &syn);
    let kinds: &[[u8; 2]] = if cast.client.is_ipv4() {
        &[[3, 4], [11, 0]]
    } else {
        &[[2, 0], [3, 0]]
    };
    let errors = kinds
        .iter()
        .map(|kind| error(cast.one.ip(), cast.client.ip(), *kind, &sent.bytes));
    let to_pod = [
        tcp(cast.one, cast.client, SYN | ACK),
        udp(cast.two, cast.client, b"answer"),
    ];
    let from_pod = [
        if cast.client.is_ipv4() {
            with_options(&syn, 3)
        } else {
            with_extensions(&syn, &[0, 60, 44])
        },
        syn,
        tcp(cast.client, cast.service, ACK),
        udp(cast.client, cast.service, b"query"),
        udp(cast.client, cast.other, b"refused"),
    ];
    let to_pod = to_pod.into_iter().chain(errors);
    from_pod
        .map(|packet| (Direction::FromPod, packet))
        .into_iter()
        .chain(to_pod.map(|packet| (Direction::ToPod, packet)))
        .collect()
}

fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
    if rng.u8(..4) == 0 {
        bytes.truncate(rng.usize(SHORTEST..=bytes.len().max(SHORTEST)));
    }
    if rng.u8(..8) == 0 {
        rng.fill(&mut bytes[14..]);
        return;
    }
    for _ in 0..rng.u8(..4) {
        let place = rng.usize(12..bytes.len().min(HEADERS));
        bytes[place] = rng.u8(..);
    }
}
