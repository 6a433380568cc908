//! The tables as the packet path sees them: one method per look-up.

use core::ops::Deref;

use crate::{
    address::Address,
    affinity::Rank,
    endpoint::{Device, Endpoint},
    enforce::Standing,
    event::{Event, TallyKey},
    flow::{Flow, FlowKey},
    fragment::{FragmentKey, Ports},
    policy::{Guard, PeerKey, Rule, RuleKey, SourceKey},
    reason::Reason,
    service::{Affinity, AffinityKey, Backend, Cidr, Extent, FrontendKey, RangeKey, Target},
};

/// Where a flow is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowTable {
    /// Two-way flows.
    Flows,
    /// Flows that nobody has answered, or whose TCP handshake is not complete.
    HalfOpen,
}

/// The parts of a flow's entry that change while it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A packet passed, at this time.
    Seen(u64),
    /// The other side has answered.
    Answered,
    /// This way, or the twin's, is closed.
    Fin,
    TwinFin,
    Reset,
    /// Policy has allowed it as of this [`Flow::epoch`].
    Judged(u32),
}

/// Why a flow could not be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInserted {
    Exists,
    Full,
}

/// What policy is judged by: all that [`crate::enforce::rule`] looks up, wherever it runs.
pub trait Rules {
    /// The identity of an address, or [`crate::policy::NO_IDENTITY`].
    fn identity(&self, address: &Address) -> u32;
    /// The class of rules that a rule set has for an identity, if it has one.
    fn class(&self, key: &PeerKey) -> Option<u32>;
    fn rule(&self, key: &RuleKey) -> Option<Rule>;
}

pub trait Tables: Rules {
    /// The endpoint slot of a pod's interface, or [`crate::endpoint::NO_SLOT`].
    fn slot(&self, interface: u32) -> u32;
    /// What a frontend leads to.
    fn frontend(&self, key: &FrontendKey) -> Option<Target>;
    fn extent(&self, service: u32) -> Option<Extent>;
    fn backend(&self, row: u32) -> Option<Backend>;
    /// `LIVE[id]`; 0 where there is no such id.
    fn generation(&self, id: u32) -> u32;
    fn endpoint(&self, address: &Address) -> Option<Endpoint>;
    /// An interface that leads out of the node.
    fn device(&self, interface: u32) -> Option<Device>;
    /// Whether the source range set of the key holds its address.
    fn in_range(&self, key: &RangeKey) -> bool;
    /// `CIDRS[place]`.
    fn cidr(&self, place: u32) -> Option<Cidr>;
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity);
    /// [`crate::affinity::search`], as a function of its own: the verifier would follow it once for each way
    /// that leads to it.
    fn row(&self, wanted: Rank, rows: (u32, u32)) -> Option<u32>;
    /// The ports of a fragmented packet.
    fn fragment(&self, key: &FragmentKey) -> Option<Ports>;
    fn set_fragment(&self, key: &FragmentKey, ports: &Ports);

    /// What holds for an endpoint. Its epoch is read before anything else of it.
    fn standing(&self, slot: u32) -> Standing;
    /// The guard of an endpoint, where it is: `None` where there is no such slot.
    fn guard(&self, slot: u32) -> Option<impl Deref<Target = Guard>>;
    /// Whether an endpoint may send from an address besides its own.
    fn is_source(&self, key: &SourceKey) -> bool;

    /// Looks at a flow where it stands.
    fn look<R>(&self, table: FlowTable, key: &FlowKey, at: impl FnOnce(&Flow) -> R) -> Option<R>;
    /// Inserts a flow that must not be there yet.
    fn insert(&self, table: FlowTable, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted>;
    /// Notes something in place; false where the flow is gone.
    fn note(&self, table: FlowTable, key: &FlowKey, note: Note) -> bool;
    fn remove(&self, table: FlowTable, key: &FlowKey);

    /// Takes one refusal out of the node's budget at time `now`.
    fn may_refuse(&self, now: u64) -> bool;
    fn count(&self, reason: Reason);
    /// Takes one event out of the node's budget at time `now`.
    fn may_report(&self, now: u64) -> bool;
    /// Tells of an event; false where nobody listens fast enough.
    fn report(&self, event: &Event) -> bool;
    /// Counts an event that nobody is told of.
    fn count_lost_event(&self);
    /// Counts something that happened at an endpoint.
    fn tally(&self, key: &TallyKey);
    /// CLOCK_MONOTONIC in nanoseconds, to the kernel's tick: a few milliseconds.
    fn now(&self) -> u64;
    fn random(&self) -> u32;
}
