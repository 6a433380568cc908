//! Fragments: only the first of a packet's carries the ports, and the others are found by what all
//! of them carry.

use crate::address::{Address, UNSPECIFIED};

/// Fragmented packets that are remembered; the least recently used make room.
pub const MAX_FRAGMENTS: usize = 16_384;

/// Key of `FRAGMENTS`: what the fragments of one packet have in common (RFC 791, 3.2; RFC 8200,
/// 4.5), and whose they are, so that no owner can speak for another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    /// The identification field; 16 bits in IPv4.
    pub identification: u32,
    /// Endpoint slot, or [`crate::endpoint::WIRE`].
    pub owner: u32,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`crate::flow::Direction`].
    pub direction: u8,
    pub _pad: [u8; 2],
}

impl FragmentKey {
    /// The key of nothing.
    pub const NONE: Self = Self {
        source: UNSPECIFIED,
        destination: UNSPECIFIED,
        identification: 0,
        owner: 0,
        protocol: 0,
        direction: 0,
        _pad: [0; 2],
    };
}

/// Value of `FRAGMENTS`: the ports in the first fragment. Host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
}

const _: () = assert!(size_of::<FragmentKey>() == 44);
const _: () = assert!(size_of::<Ports>() == 4);
