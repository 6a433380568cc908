//! Reading headers.

use proptest::prelude::*;

use super::{casts, wire};
use crate::{
    address::from_ip,
    flow::Tuple,
    headers::{Family, Headers, Kind, MAX_EXTENSIONS, Part, SYN, TCP, UDP, V4, V6},
    memory::Frame,
    packet::ETHERNET,
};

fn parse(bytes: &[u8]) -> Option<(Headers, Tuple)> {
    let frame = Frame {
        bytes: bytes.to_vec(),
        ..Frame::default()
    };
    let mut tuple = Tuple::NONE;
    let headers = match <[u8; 2]>::try_from(&bytes[12..14]).ok()? {
        V4::ETHERTYPE => Headers::parse::<V4, _>(&frame, ETHERNET, &mut tuple),
        V6::ETHERTYPE => Headers::parse::<V6, _>(&frame, ETHERNET, &mut tuple),
        _ => None,
    };
    headers.map(|headers| (headers, tuple))
}

#[test]
fn ports_and_flags_are_found() {
    for cast in casts() {
        let (headers, tuple) = parse(&wire::tcp(cast.client, cast.service, SYN)).expect("headers");
        assert_eq!(
            (headers.kind, headers.protocol, headers.flags),
            (Kind::Transport, TCP, SYN)
        );
        assert!(headers.opens());
        assert_eq!(tuple.source, from_ip(cast.client.ip()));
        assert_eq!(tuple.destination, from_ip(cast.service.ip()));
        assert_eq!((tuple.source_port, tuple.destination_port), (40000, 80));
        let (headers, _) = parse(&wire::udp(cast.client, cast.service, b"?")).expect("headers");
        assert_eq!((headers.kind, headers.protocol), (Kind::Transport, UDP));
    }
}

#[test]
fn options_are_skipped() {
    let [cast, _] = casts();
    for words in 0..=10 {
        let bytes = wire::with_options(&wire::udp(cast.client, cast.service, b"?"), words);
        let (headers, tuple) = parse(&bytes).expect("headers");
        assert_eq!(headers.transport(), ETHERNET + 20 + words * 4);
        assert_eq!(tuple.destination_port, 80, "{words} words of options");
    }
}

#[test]
fn extensions_are_walked_up_to_the_bound() {
    let [_, cast] = casts();
    let plain = wire::udp(cast.client, cast.service, b"?");
    for chain in [&[0][..], &[0, 43, 60], &[60, 44], &[0, 60, 43, 44, 135, 60]] {
        let (headers, tuple) = parse(&wire::with_extensions(&plain, chain)).expect("headers");
        assert_eq!(
            (headers.kind, tuple.destination_port),
            (Kind::Transport, 80),
            "{chain:?}"
        );
    }
    let (headers, _) =
        parse(&wire::with_extensions(&plain, &[60; MAX_EXTENSIONS + 1])).expect("headers");
    assert_eq!(headers.kind, Kind::Other);
}

#[test]
fn an_authentication_header_counts_in_words() {
    let [_, cast] = casts();
    let plain = wire::udp(cast.client, cast.service, b"?");
    let mut bytes = plain[..54].to_vec();
    bytes.extend([UDP, 4, 0, 0]);
    bytes.extend([0; 20]);
    bytes.extend(&plain[54..]);
    bytes[20] = 51;
    let (headers, tuple) = parse(&bytes).expect("headers");
    assert_eq!(
        (headers.transport(), tuple.destination_port),
        (ETHERNET + 40 + 24, 80)
    );
}

#[test]
fn fragments_are_recognised() {
    let [v4, v6] = casts();
    let mut bytes = wire::udp(v4.client, v4.service, b"?");
    for (flags, part) in [
        (0x2000u16, Part::First),
        (0x0001, Part::Later),
        (0x2001, Part::Later),
        (0x1fff, Part::Later),
        (0x4000, Part::Whole),
    ] {
        bytes[20..22].copy_from_slice(&flags.to_be_bytes());
        let (headers, _) = parse(&bytes).expect("headers");
        assert_eq!(headers.part, part, "{flags:#x}");
        assert_eq!(headers.kind == Kind::Fragment, part == Part::Later);
    }
    let plain = wire::with_extensions(&wire::udp(v6.client, v6.service, b"?"), &[44]);
    for (field, part) in [
        (0x0001u16, Part::First),
        (0x0008, Part::Later),
        (0xfff8, Part::Later),
        (0, Part::Whole),
    ] {
        let mut bytes = plain.clone();
        bytes[56..58].copy_from_slice(&field.to_be_bytes());
        let (headers, _) = parse(&bytes).expect("headers");
        assert_eq!(headers.part, part, "{field:#x}");
        assert_eq!(headers.kind == Kind::Fragment, part == Part::Later);
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 14..200), v6: bool) {
        bytes[12..14].copy_from_slice(if v6 { &V6::ETHERTYPE } else { &V4::ETHERTYPE });
        if let Some(first) = bytes.get_mut(14) {
            *first = *first & 0x0f | if v6 { 0x60 } else { 0x40 };
        }
        parse(&bytes);
    }

    #[test]
    fn a_cut_packet_has_headers_or_none(cut in 14usize..74, v6: bool) {
        let cast = &casts()[usize::from(v6)];
        let whole = wire::tcp(cast.client, cast.service, SYN);
        let cut = cut.min(whole.len());
        if let Some((headers, tuple)) = parse(&whole[..cut]) {
            prop_assert!(headers.transport() + 14 <= cut);
            prop_assert_eq!(tuple.destination_port, 80);
        }
    }
}
