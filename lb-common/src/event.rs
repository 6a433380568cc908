//! What happens at pods' interfaces that somebody may want to know: what is dropped and why, and
//! what policy says of a flow that opens.

use crate::{
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
