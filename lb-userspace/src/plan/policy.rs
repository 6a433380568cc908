//! Which writes, in which order, make the tables of policies say what is desired.
//!
//! At every step a packet is judged as it was before or as it will be. Nothing leads to new classes
//! and rule sets while they are written, and both old and new rule sets know new identities before an
//! address has one. So identities may change first: the rule sets in force tell by the new ones what
//! they told by the old, or what is true by now. Then endpoints get their rule sets, which lets their
//! flows be judged again, since all that these refer to is there. What nothing leads to any more is
//! removed when no program can still be on its way there.

use lb_common::policy::{PeerKey, Rule};

use crate::{
    compile::{
        Range,
        policy::{Changes, RuleEntry, RuleSets},
    },
    world::ObjectKey,
};

/// One write to one table, or the wait between writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Inserts or replaces an entry of `RULES`.
    Rule { entry: RuleEntry, rule: Rule },
    /// Inserts or replaces an entry of `PEERS`.
    Peer { key: PeerKey, class: u32 },
    /// Inserts or replaces an entry of `IDENTITIES`.
    Identity { range: Range, identity: u32 },
    /// Removes an entry of `IDENTITIES`, if it is there.
    NoIdentity { range: Range },
    /// Stores the rule sets of a local pod in its entry of `GUARDS`, where it has one, and counts one
    /// more change there.
    Endpoint { pod: ObjectKey, sets: RuleSets },
    /// The pod is gone, or no pod of this node any more.
    NoEndpoint { pod: ObjectKey },
    /// Waits until no program holds anything that it read before.
    Barrier,
    /// Removes an entry of `PEERS`, if it is there.
    NoPeer { key: PeerKey },
    /// Removes an entry of `RULES`, if it is there.
    NoRule { entry: RuleEntry },
}

/// The writes for all that has changed.
pub fn plan(changes: &Changes) -> Vec<Op> {
    let Changes {
        rules,
        peers,
        identities,
        endpoints,
        gone_peers,
        gone_rules,
    } = changes;
    let rules = rules.iter().map(|(entry, rule)| Op::Rule {
        entry: *entry,
        rule: *rule,
    });
    let peers = peers.iter().map(|(key, class)| Op::Peer {
        key: *key,
        class: *class,
    });
    let identities = identities.iter().map(|(range, identity)| match identity {
        Some(identity) => Op::Identity {
            range: *range,
            identity: *identity,
        },
        None => Op::NoIdentity { range: *range },
    });
    let settled = endpoints.iter().map(|(pod, sets)| match sets {
        Some(sets) => Op::Endpoint {
            pod: pod.clone(),
            sets: *sets,
        },
        None => Op::NoEndpoint { pod: pod.clone() },
    });
    let gone = !gone_peers.is_empty() || !gone_rules.is_empty();
    let no_peers = gone_peers.iter().map(|key| Op::NoPeer { key: *key });
    let no_rules = gone_rules.iter().map(|entry| Op::NoRule { entry: *entry });
    rules
        .chain(peers)
        .chain(identities)
        .chain(settled)
        .chain(gone.then_some(Op::Barrier))
        .chain(no_peers)
        .chain(no_rules)
        .collect()
}
