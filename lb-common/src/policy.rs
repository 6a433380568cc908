//! Policy: who may talk to whom, as the packet path reads it.
//!
//! `IDENTITIES[address]` says which of the peers that policies tell apart an address is, and
//! `PEERS[rule set, identity]` the class of rules that a rule set has for that peer; a rule set has
//! one more class, with its own number, for all others. `RULES[class, protocol, port]` is the verdict,
//! by the longest prefix. Precedence is settled when rule sets are compiled: whatever the packet path
//! finds is final. A rule set never changes once an endpoint has it.
//!
//! Policy is judged when a flow opens, after translation, and again on the flow's next packet when an
//! epoch says that something it depends on may have changed.

use crate::address::{Address, UNSPECIFIED};

/// Prefixes with an identity that fit: each pod address is one.
pub const MAX_IDENTITIES: usize = 524_288;
/// Pairs of a rule set and an identity that it has rules for that fit.
pub const MAX_PEERS: usize = 1_048_576;
/// Rules that fit; a range of ports takes up to 30.
pub const MAX_RULES: usize = 1_048_576;
/// Prefixes that pods may send from besides their own addresses that fit.
pub const MAX_POD_SOURCES: usize = 16_384;

/// The identity of an address that no policy tells apart from others.
pub const NO_IDENTITY: u32 = 0;
/// The rule set of an endpoint that no policy isolates: everything may pass.
pub const OPEN: u32 = 0;
/// The rule set of an endpoint that nothing may pass, because what may is not known.
pub const CLOSED: u32 = u32::MAX;
/// The number of the rule that there is none.
pub const NO_RULE: u32 = 0;

/// Key of `PEERS`: whether a rule set has rules of its own for an identity. The value is the class of
/// rules; an absent one is [`PeerKey::rule_set`], the class for everybody else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerKey {
    pub rule_set: u32,
    pub identity: u32,
}

/// Key of `RULES`, a longest-prefix table. Prefixes of [`RuleKey::CLASS_BITS`] speak of every
/// protocol, those of [`RuleKey::PROTOCOL_BITS`] of every port of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleKey {
    pub class: u32,
    /// IANA protocol number.
    pub protocol: u8,
    /// Network order, so that a prefix is a range of ports. The destination's port; 0 where the
    /// protocol has none.
    pub port: [u8; 2],
    _pad: u8,
}

impl RuleKey {
    pub const CLASS_BITS: u32 = 32;
    pub const PROTOCOL_BITS: u32 = 40;
    pub const PORT_BITS: u32 = 56;

    /// `port` is in host order.
    #[inline(always)]
    pub const fn new(class: u32, protocol: u8, port: u16) -> Self {
        Self {
            class,
            protocol,
            port: port.to_be_bytes(),
            _pad: 0,
        }
    }
}

/// Value of `RULES`. Where there is none, nothing passes, by [`NO_RULE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The number of the rule that says so; its name is the agent's to tell.
    pub rule: u32,
    /// The number of the rule that would say so if audited policies were in force.
    pub audited_rule: u32,
    /// 1 where the packet may pass.
    pub allow: u8,
    /// 1 where it could pass if audited policies were in force.
    pub audited_allow: u8,
    pub _pad: [u8; 2],
}

impl Rule {
    /// What [`OPEN`] says of everything.
    pub const ALLOW: Self = Self::by_nobody(1);
    /// What [`CLOSED`] says of everything, and a rule set of what no rule of it speaks of.
    pub const DENY: Self = Self::by_nobody(0);

    const fn by_nobody(allow: u8) -> Self {
        Self {
            rule: NO_RULE,
            audited_rule: NO_RULE,
            allow,
            audited_allow: allow,
            _pad: [0; 2],
        }
    }
}

/// Value of `GUARDS`, by endpoint slot: what a pod may say it is, and what holds for its flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The addresses of the pod, by family; the unspecified address where it has none.
    pub v4: Address,
    pub v6: Address,
    /// The rule set for what the pod receives.
    pub ingress: u32,
    /// The rule set for what the pod sends.
    pub egress: u32,
    /// Counts the changes of this endpoint's rule sets, and of what they refer to.
    pub epoch: u32,
    /// The MAC address of the pod.
    pub mac: [u8; 6],
    /// 1 where the pod may only send from its own addresses.
    pub bound: u8,
    /// 1 where `POD_SOURCES` may allow it more.
    pub more_sources: u8,
}

impl Guard {
    /// The guard of a pod of which nothing is known: it may do as it likes.
    pub const NONE: Self = Self {
        v4: UNSPECIFIED,
        v6: UNSPECIFIED,
        ingress: OPEN,
        egress: OPEN,
        epoch: 0,
        mac: [0; 6],
        bound: 0,
        more_sources: 0,
    };
}

/// Key of `POD_SOURCES`, a longest-prefix table: what a pod may send from besides its own addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceKey {
    /// Endpoint slot.
    pub slot: u32,
    pub address: Address,
}

impl SourceKey {
    /// Bits of the key that come before the address, for prefix lengths.
    pub const SLOT_BITS: u32 = 32;
}

const _: () = assert!(size_of::<PeerKey>() == 8);
const _: () = assert!(size_of::<RuleKey>() == 8);
const _: () = assert!(size_of::<Rule>() == 12);
const _: () = assert!(size_of::<Guard>() == 52);
const _: () = assert!(size_of::<SourceKey>() == 20);
