//! Rewriting packets, and undoing it.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::{casts, wire};
use crate::{
    address::from_ip,
    flow::Tuple,
    headers::{ACK, Family, Headers, V4, V6},
    memory::Frame,
    nat,
    packet::ETHERNET,
};

fn tuple(from: SocketAddr, to: SocketAddr) -> Tuple {
    Tuple {
        source: from_ip(from.ip()),
        destination: from_ip(to.ip()),
        source_port: from.port(),
        destination_port: to.port(),
    }
}

fn translate(frame: &mut Frame, to: &Tuple) -> Tuple {
    fn in_family<F: Family>(frame: &mut Frame, to: &Tuple) -> Tuple {
        let mut from = Tuple::NONE;
        let headers = Headers::parse::<F, _>(frame, ETHERNET, &mut from).expect("headers");
        nat::translate::<F, _>(frame, &headers, &from, to).expect("room for every header");
        from
    }
    match [frame.bytes[12], frame.bytes[13]] {
        V4::ETHERTYPE => in_family::<V4>(frame, to),
        _ => in_family::<V6>(frame, to),
    }
}

fn sockets(v6: bool) -> impl Strategy<Value = SocketAddr> {
    (any::<[u8; 16]>(), any::<u16>()).prop_map(move |(bytes, port)| {
        let [a, b, c, d, ..] = bytes;
        let ip = if v6 {
            IpAddr::from(bytes)
        } else {
            IpAddr::from([a, b, c, d])
        };
        SocketAddr::new(ip, port)
    })
}

fn ends() -> impl Strategy<Value = [SocketAddr; 4]> {
    any::<bool>().prop_flat_map(|v6| [sockets(v6), sockets(v6), sockets(v6), sockets(v6)])
}

proptest! {
    #[test]
    fn undoing_a_translation_gives_the_packet_back(
        [from, to, new_from, new_to] in ends(),
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        is_tcp: bool,
    ) {
        let bytes = if is_tcp {
            wire::tcp_with(from, to, ACK, &payload)
        } else {
            wire::udp(from, to, &payload)
        };
        let mut frame = Frame { bytes: bytes.clone(), ..Frame::default() };
        let before = translate(&mut frame, &tuple(new_from, new_to));
        wire::check(&frame.bytes);
        prop_assert_eq!(wire::read(&frame.bytes), wire::seen(new_from, new_to));
        translate(&mut frame, &before);
        prop_assert_eq!(frame.bytes, bytes);
    }
}

#[test]
fn a_datagram_without_a_checksum_stays_without() {
    let [cast, _] = casts();
    let mut bytes = wire::udp(cast.client, cast.service, b"query");
    bytes[40..42].fill(0);
    let mut frame = Frame {
        bytes,
        ..Frame::default()
    };
    translate(&mut frame, &tuple(cast.client, cast.one));
    assert_eq!(frame.bytes[40..42], [0, 0]);
    assert_eq!(wire::read(&frame.bytes), wire::seen(cast.client, cast.one));
}

#[test]
fn a_checksum_that_comes_out_as_zero_is_written_as_ones() {
    for cast in casts() {
        let sum_at = if cast.client.is_ipv4() { 40 } else { 60 };
        // Some payload makes the sum after translation zero; RFC 768 writes 0xffff then.
        let ones = (0..=u16::MAX).any(|payload| {
            let bytes = wire::udp(cast.client, cast.service, &payload.to_be_bytes());
            let mut frame = Frame {
                bytes,
                ..Frame::default()
            };
            translate(&mut frame, &tuple(cast.client, cast.one));
            assert_ne!(frame.bytes[sum_at..sum_at + 2], [0, 0]);
            frame.bytes[sum_at..sum_at + 2] == [0xff, 0xff]
        });
        assert!(ones);
    }
}
