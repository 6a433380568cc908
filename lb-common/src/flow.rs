//! Flows: what was decided for a connection, remembered per owner and direction.

use crate::{
    address::{Address, UNSPECIFIED},
    headers::{SCTP, shakes_hands},
    packet::Packet,
    tables::FlowTable,
};

/// Two-way flows that fit; a connection takes two entries per pod interface it crosses.
pub const MAX_FLOWS: usize = 524_288;
/// Unanswered flows that fit; the least recently used make room.
pub const MAX_HALF_OPEN: usize = 131_072;

/// Which way a packet crosses an interface: that of a pod, or one that leads out of the node.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    FromPod = 1,
    ToPod = 2,
    FromWire = 3,
    ToWire = 4,
}

impl Direction {
    /// The direction with this number; any other number is the first.
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        match number {
            2 => Self::ToPod,
            3 => Self::FromWire,
            4 => Self::ToWire,
            _ => Self::FromPod,
        }
    }
}

/// How the packets of a flow go on.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Along the kernel's routes, through its stack.
    Stack = 0,
    /// Out of the interface of a local pod, to its MAC address.
    Pod = 1,
    /// Out of an interface, to whoever its neighbours and routes say.
    Neighbour = 2,
    /// Out of the node again, as a router sends it.
    Forward = 3,
    /// Into an interface, to a process of the node itself.
    Host = 4,
}

/// What policy has to say of a flow.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judging {
    /// Whether its opener may open it.
    Opener = 0,
    /// Nothing: it is one of the node's own processes that opened it.
    Nobody = 1,
    /// Whether either side may open it: it is older than us, and nobody saw which did.
    Either = 2,
}

/// Source and destination of a packet, or where a protocol has no ports, what stands for them: see
/// [`crate::headers::Headers::parse`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    pub source: Address,
    pub destination: Address,
    /// Host order.
    pub source_port: u16,
    /// Host order.
    pub destination_port: u16,
}

impl Tuple {
    /// The tuple of nothing.
    pub const NONE: Self = Self {
        source: UNSPECIFIED,
        destination: UNSPECIFIED,
        source_port: 0,
        destination_port: 0,
    };

    /// Becomes the tuple of the packets that go the other way than `other`'s.
    #[inline(always)]
    pub fn reverse(&mut self, other: &Self) {
        self.source = other.destination;
        self.destination = other.source;
        self.source_port = other.destination_port;
        self.destination_port = other.source_port;
    }

    /// Whether the packets of the two go opposite ways between the same ends.
    #[inline(always)]
    pub fn opposes(&self, other: &Self) -> bool {
        self.source == other.destination
            && self.destination == other.source
            && self.source_port == other.destination_port
            && self.destination_port == other.source_port
    }
}

/// Key of `FLOWS` and `HALF_OPEN`: a packet as it arrives at a hook, and whose hook it is.
///
/// The owner keeps the entries of two pods apart: what one may send says nothing of what the other
/// receives, and a pod that takes over an address does not take over its flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    pub tuple: Tuple,
    /// Endpoint slot, or [`crate::endpoint::WIRE`].
    pub owner: u32,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`Direction`].
    pub direction: u8,
    _pad: [u8; 2],
}

impl FlowKey {
    /// The key of nothing.
    pub const NONE: Self = Self {
        tuple: Tuple::NONE,
        owner: 0,
        protocol: 0,
        direction: 0,
        _pad: [0; 2],
    };

    #[inline(always)]
    pub const fn new(tuple: Tuple, owner: u32, protocol: u8, direction: Direction) -> Self {
        Self {
            tuple,
            owner,
            protocol,
            direction: direction as u8,
            _pad: [0; 2],
        }
    }

    pub const SIZE: usize = size_of::<Self>();

    /// Takes over the key whose bytes stand at `offset` of a packet; `None` past the end.
    #[inline(always)]
    pub fn read<P: Packet>(&mut self, packet: &P, offset: usize) -> Option<()> {
        let Self {
            tuple,
            owner,
            protocol,
            direction,
            _pad: _,
        } = self;
        tuple.source = packet.load_v6_address(offset)?;
        tuple.destination = packet.load_v6_address(offset + 16)?;
        let [a, b, c, d] = packet.load(offset + 32)?;
        tuple.source_port = u16::from_ne_bytes([a, b]);
        tuple.destination_port = u16::from_ne_bytes([c, d]);
        *owner = u32::from_ne_bytes(packet.load(offset + 36)?);
        [*protocol, *direction, _, _] = packet.load(offset + 40)?;
        Some(())
    }

    /// The bytes of the key as they stand in memory.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let Self {
            tuple,
            owner,
            protocol,
            direction,
            _pad: _,
        } = self;
        let mut bytes = [0; Self::SIZE];
        bytes[..16].copy_from_slice(&tuple.source.bytes);
        bytes[16..32].copy_from_slice(&tuple.destination.bytes);
        bytes[32..34].copy_from_slice(&tuple.source_port.to_ne_bytes());
        bytes[34..36].copy_from_slice(&tuple.destination_port.to_ne_bytes());
        bytes[36..40].copy_from_slice(&owner.to_ne_bytes());
        bytes[40] = *protocol;
        bytes[41] = *direction;
        bytes
    }

    /// A cheap digest of what tells flows of one table apart most: the kernel recycles an entry's
    /// memory at once, so a value read without a lock may by then be another flow's.
    #[inline(always)]
    pub const fn check(&self) -> u32 {
        let ports = (self.tuple.source_port as u32) << 16 | self.tuple.destination_port as u32;
        ports ^ self.owner.rotate_left(16) ^ (self.direction as u32) << 8 ^ self.protocol as u32
    }
}

/// Value of `FLOWS` and `HALF_OPEN`: what becomes of the packet.
///
/// A flow has two entries, twins, one for each way. Each can make the other anew: a twin's key is
/// the reversed [`Flow::to`], and its `to` the reversed key. What is decided never changes in
/// place; only the marks of [`crate::tables::Note`] do.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// When a packet last passed either way, to the second: CLOCK_MONOTONIC in nanoseconds.
    pub last_seen: u64,
    /// The tuple that the packet leaves with.
    pub to: Tuple,
    /// The interface that [`Self::way`] speaks of; 0 where it speaks of none.
    pub interface: u32,
    /// Stable id of the chosen backend, or [`crate::service::NO_BACKEND`].
    pub backend: u32,
    /// The backend's generation when it was chosen.
    pub generation: u32,
    /// Index of the service that chose it, or [`crate::service::NO_SERVICE`].
    pub service: u32,
    /// [`FlowKey::check`] of the key.
    pub check: u32,
    /// What policy said holds while this is the endpoint's epoch; 0 where policy was not asked.
    pub epoch: u32,
    /// MAC address of the local pod behind the interface.
    pub mac: [u8; 6],
    /// The largest IP packet that fits through the interface, in bytes; 0 is not known.
    pub mtu: u16,
    /// A [`Direction`]: where the twin is met.
    pub twin: u8,
    /// A [`Way`], for the twins that [`Self::acts`] says it of.
    pub way: u8,
    /// 1 on the entry of the side that opened the flow.
    pub opener: u8,
    /// 1 once the other side has answered.
    pub answered: u8,
    /// 1 once this way has seen a FIN.
    pub fin: u8,
    /// 1 once the twin's way has.
    pub twin_fin: u8,
    /// 1 once either way has seen a RST.
    pub reset: u8,
    /// A [`Judging`].
    pub judging: u8,
    pub _pad: [u8; 4],
}

const _: () = assert!(size_of::<Tuple>() == 36);
const _: () = assert!(size_of::<FlowKey>() == 44);
const _: () = assert!(size_of::<Flow>() == 88);

impl Flow {
    /// The flow of nothing.
    pub const NONE: Self = Self {
        last_seen: 0,
        to: Tuple::NONE,
        interface: 0,
        backend: 0,
        generation: 0,
        service: 0,
        check: 0,
        epoch: 0,
        mac: [0; 6],
        mtu: 0,
        twin: 0,
        way: 0,
        opener: 0,
        answered: 0,
        fin: 0,
        twin_fin: 0,
        reset: 0,
        judging: 0,
        _pad: [0; 4],
    };

    /// Whether packets of this entry that cross an interface in `direction` go on as [`Self::way`]
    /// says, and not through the kernel's stack. The twins share what they say; it is meant for
    /// those that come from a pod, that open the flow at a wire, or that turn round both ways, and
    /// for the answers to the node itself, which enter by the device that the questions left by.
    #[inline(always)]
    pub fn acts(&self, direction: Direction) -> bool {
        const STACK: u8 = Way::Stack as u8;
        const NEIGHBOUR: u8 = Way::Neighbour as u8;
        const FORWARD: u8 = Way::Forward as u8;
        const HOST: u8 = Way::Host as u8;
        let opens = self.opener == 1;
        match (direction, self.way) {
            (_, STACK) | (Direction::ToPod, _) => false,
            (Direction::FromPod, _)
            | (Direction::FromWire, NEIGHBOUR | FORWARD)
            | (Direction::ToWire, HOST) => true,
            (Direction::FromWire | Direction::ToWire, _) => opens,
        }
    }

    /// What the flow has come to.
    #[inline(always)]
    pub fn state(&self, table: FlowTable, protocol: u8) -> State {
        match (table, protocol) {
            (FlowTable::HalfOpen, protocol) if !shakes_hands(protocol) => State::OneWay,
            (FlowTable::Flows, protocol) if !shakes_hands(protocol) => State::TwoWay,
            _ if self.reset == 1 || self.fin + self.twin_fin == 2 => State::Closing,
            (FlowTable::HalfOpen, _) => State::HalfOpen,
            (FlowTable::Flows, SCTP) => State::Associated,
            (FlowTable::Flows, _) => State::Established,
        }
    }

    /// Whether the flow is over: closed, or silent for longer than its state allows.
    #[inline(always)]
    pub fn over(&self, table: FlowTable, protocol: u8, now: u64) -> bool {
        self.state(table, protocol) == State::Closing || self.expired(table, protocol, now)
    }

    /// Whether nothing has passed for as long as the flow's state allows.
    #[inline(always)]
    pub fn expired(&self, table: FlowTable, protocol: u8, now: u64) -> bool {
        now.saturating_sub(self.last_seen) > self.state(table, protocol).timeout()
    }
}

/// What a flow has come to, which decides how long it may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// TCP or SCTP, the handshake not complete.
    HalfOpen,
    /// TCP.
    Established,
    /// SCTP, whose ends send heartbeats (RFC 9260, 8.3).
    Associated,
    /// TCP or SCTP, closed both ways or reset.
    Closing,
    /// UDP, or another protocol without connections: a question, and perhaps its answer.
    OneWay,
    /// The same, and it has gone on.
    TwoWay,
}

impl State {
    /// How long a flow in this state may be silent, in nanoseconds. The one table of timeouts.
    #[inline(always)]
    pub const fn timeout(self) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        match self {
            Self::HalfOpen => 60 * SECOND,
            Self::Established => 24 * 3600 * SECOND,
            Self::Associated => 210 * SECOND,
            Self::Closing => 120 * SECOND,
            Self::OneWay => 30 * SECOND,
            Self::TwoWay => 120 * SECOND,
        }
    }
}
