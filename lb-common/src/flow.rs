//! Flows: what was decided for a connection, remembered per pod interface and direction.

use crate::address::Address;

/// Two-way flows that fit; a connection takes two entries per pod interface it crosses.
pub const MAX_FLOWS: usize = 524_288;
/// Unanswered flows that fit; the least recently used make room.
pub const MAX_HALF_OPEN: usize = 131_072;

/// Which way a packet crosses a pod's interface.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    FromPod = 1,
    ToPod = 2,
}

/// Source and destination of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    pub source: Address,
    pub destination: Address,
    /// Host order.
    pub source_port: u16,
    /// Host order.
    pub destination_port: u16,
}

impl Tuple {
    /// The tuple of the packets that go the other way.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// Key of `FLOWS` and `HALF_OPEN`: a packet as it arrives at a hook, and whose hook it is.
///
/// The owner keeps the entries of two pods apart: what one may send says nothing of what the other
/// receives, and a pod that takes over an address does not take over its flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    pub tuple: Tuple,
    /// Endpoint slot.
    pub owner: u32,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`Direction`].
    pub direction: u8,
    _pad: [u8; 2],
}

impl FlowKey {
    #[inline(always)]
    pub const fn new(tuple: Tuple, owner: u32, protocol: u8, direction: Direction) -> Self {
        Self { tuple, owner, protocol, direction: direction as u8, _pad: [0; 2] }
    }
}

/// Value of `FLOWS` and `HALF_OPEN`: what becomes of the packet.
///
/// A flow has two entries, twins, one for each way. Each can make the other anew: a twin's key is
/// the reversed [`Flow::to`], and its `to` the reversed key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// When a packet last passed, to the second: nanoseconds since boot.
    pub last_seen: u64,
    /// The tuple that the packet leaves with.
    pub to: Tuple,
    /// Interface of the local pod at the other end, which packets from the pod are sent straight
    /// to; 0 leaves them to the kernel's routes.
    pub interface: u32,
    /// Stable id of the chosen backend.
    pub backend: u32,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// MAC address of the local pod at the other end.
    pub mac: [u8; 6],
    /// A [`Direction`]: where the twin is met.
    pub twin: u8,
    /// 1 on the entry of the side that opened the flow.
    pub opener: u8,
    /// 1 once this way has seen a FIN.
    pub fin: u8,
    /// 1 once the twin's way has.
    pub twin_fin: u8,
    /// 1 once either way has seen a RST.
    pub reset: u8,
    _pad: u8,
}

const _: () = assert!(size_of::<Tuple>() == 36);
const _: () = assert!(size_of::<FlowKey>() == 44);
const _: () = assert!(size_of::<Flow>() == 72);
