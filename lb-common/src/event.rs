//! What happens at pods' interfaces that somebody may want to know: what is dropped and why, and
//! what policy says of a flow that opens.

use crate::{
    address::UNSPECIFIED,
    enforce::{self, Ruling},
    flow::Tuple,
    policy::Rule,
    scratch::Scratch,
    tables::Tables,
};

/// Events that wait for a reader, in bytes.
pub const EVENT_BYTES: usize = 256 * 1024;
/// What happens at endpoints, counted: the least recently counted make room.
pub const MAX_TALLIES: usize = 65_536;

/// The outcome of an event that is no [`crate::reason::Reason`] to drop: policy lets a new flow through.
pub const ALLOWED: u16 = 0xffff;

/// Something that happened at a pod's interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_MONOTONIC in nanoseconds.
    pub time: u64,
    /// The packet; where policy was asked, the flow as its opener sends it, between the pod and its
    /// peer, none of whom sees a service. Ports as in [`Tuple`].
    pub tuple: Tuple,
    /// Endpoint slot.
    pub slot: u32,
    /// The numbers of the rules that say so, and that would say if audited policies were in force:
    /// [`Rule`].
    pub rule: u32,
    pub audited_rule: u32,
    /// A [`crate::reason::Reason`], or [`ALLOWED`].
    pub outcome: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`crate::flow::Direction`]: where the packet crossed the pod's interface, or where policy was asked, in
    /// which direction the flow was opened.
    pub direction: u8,
    /// 1 where it could pass if audited policies were in force.
    pub audited_allow: u8,
    pub _pad: [u8; 3],
}

impl Event {
    /// The event of nothing.
    pub const NONE: Self = Self {
        time: 0,
        tuple: Tuple::NONE,
        slot: 0,
        rule: 0,
        audited_rule: 0,
        outcome: 0,
        protocol: 0,
        direction: 0,
        audited_allow: 0,
        _pad: [0; 3],
    };

    /// The event whose bytes stand in memory so.
    pub fn from_bytes(bytes: &[u8; size_of::<Self>()]) -> Self {
        let address = |at: usize| {
            let mut address = UNSPECIFIED;
            address.bytes.copy_from_slice(&bytes[at..at + 16]);
            address
        };
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let [a, b, c, d, e, f, g, h, ..] = *bytes;
        Self {
            time: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            tuple: Tuple {
                source: address(8),
                destination: address(24),
                source_port: half(40),
                destination_port: half(42),
            },
            slot: word(44),
            rule: word(48),
            audited_rule: word(52),
            outcome: half(56),
            protocol: bytes[58],
            direction: bytes[59],
            audited_allow: bytes[60],
            _pad: [0; 3],
        }
    }
}

/// Key of `TALLIES`: what is counted at an endpoint. The value is how often it happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TallyKey {
    /// Endpoint slot.
    pub slot: u32,
    /// As in [`Event`].
    pub outcome: u16,
    pub direction: u8,
    /// 1 where audited policies, were they in force, would decide otherwise.
    pub audited_differs: u8,
}

const _: () = assert!(size_of::<Event>() == 64);
const _: () = assert!(size_of::<TallyKey>() == 8);

/// Tells what policy says of the flow of `scratch`.
#[inline(always)]
pub fn ruled<T: Tables>(tables: &T, scratch: &mut Scratch) {
    enforce::name_flow(scratch);
    let Scratch { ruling, event, .. } = scratch;
    event.direction = ruling.direction() as u8;
    event.outcome = if ruling.rule.allow == 1 {
        ALLOWED
    } else {
        ruling.reason() as u16
    };
    tell(tables, scratch);
}

/// Tells that a packet is dropped at a pod's interface for `scratch.reason`.
#[inline(always)]
pub fn dropped<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let Scratch {
        key,
        ruling,
        event,
        reason,
        ..
    } = scratch;
    if *reason == ruling.reason() as u32 {
        return ruled(tables, scratch);
    }
    ruling.rule = Rule::DENY;
    event.tuple = key.tuple;
    event.direction = key.direction;
    event.outcome = *reason as u16;
    tell(tables, scratch);
}

/// Counts what `scratch.event` says, and tells it unless too much is being told.
#[inline(always)]
fn tell<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let Scratch {
        key,
        ruling: Ruling { rule, .. },
        event,
        now,
        ..
    } = scratch;
    event.time = *now;
    event.slot = key.owner;
    event.rule = rule.rule;
    event.audited_rule = rule.audited_rule;
    event.protocol = key.protocol;
    event.audited_allow = rule.audited_allow;
    tables.tally(&TallyKey {
        slot: event.slot,
        outcome: event.outcome,
        direction: event.direction,
        audited_differs: u8::from(rule.allow != rule.audited_allow),
    });
    if !tables.may_report(*now) || !tables.report(event) {
        tables.count_lost_event();
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;
    use crate::address::map_v4;

    #[test]
    fn an_event_survives_the_ring() {
        let event = Event {
            time: 0x0102_0304_0506_0708,
            tuple: Tuple {
                source: map_v4([10, 0, 0, 1]),
                destination: map_v4([10, 0, 0, 2]),
                source_port: 40_000,
                destination_port: 80,
            },
            slot: 5,
            rule: 6,
            audited_rule: 7,
            outcome: 8,
            protocol: 6,
            direction: 2,
            audited_allow: 1,
            _pad: [0; 3],
        };
        let mut bytes = [0; size_of::<Event>()];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let tuple = offset_of!(Event, tuple);
        put(offset_of!(Event, time), &event.time.to_ne_bytes());
        put(tuple + offset_of!(Tuple, source), &event.tuple.source.bytes);
        put(
            tuple + offset_of!(Tuple, destination),
            &event.tuple.destination.bytes,
        );
        put(
            tuple + offset_of!(Tuple, source_port),
            &40_000_u16.to_ne_bytes(),
        );
        put(
            tuple + offset_of!(Tuple, destination_port),
            &80_u16.to_ne_bytes(),
        );
        put(offset_of!(Event, slot), &5_u32.to_ne_bytes());
        put(offset_of!(Event, rule), &6_u32.to_ne_bytes());
        put(offset_of!(Event, audited_rule), &7_u32.to_ne_bytes());
        put(offset_of!(Event, outcome), &8_u16.to_ne_bytes());
        put(offset_of!(Event, protocol), &[6]);
        put(offset_of!(Event, direction), &[2]);
        put(offset_of!(Event, audited_allow), &[1]);
        assert_eq!(Event::from_bytes(&bytes), event);
    }
}
