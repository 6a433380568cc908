//! What the tables of policies should say, and in what that has changed.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    address::Address,
    policy::{
        CLOSED, MAX_IDENTITIES, MAX_PEERS, MAX_RULES, NO_IDENTITY, OPEN, PeerKey, Rule, RuleKey,
    },
    tables::Rules,
};

use crate::{
    compile::Range,
    world::{ObjectKey, policy::Direction},
};

/// How much each table holds.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub identities: usize,
    pub peers: usize,
    pub rules: usize,
}

impl Sizes {
    /// The sizes of the kernel's tables.
    pub const KERNEL: Self = Self {
        identities: MAX_IDENTITIES,
        peers: MAX_PEERS,
        rules: MAX_RULES,
    };
    /// Room for the pods of all nodes at once, whose policies no node's tables hold together.
    pub const BOUNDLESS: Self = Self {
        identities: usize::MAX,
        peers: usize::MAX,
        rules: usize::MAX,
    };
}

/// Key of an entry of `RULES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleEntry {
    pub key: RuleKey,
    /// How many leading bits of the key count.
    pub bits: u32,
}

impl RuleEntry {
    /// The first and the last port that it speaks of, in host order.
    pub fn ports(&self) -> (u16, u16) {
        let first = u16::from_be_bytes(self.key.port);
        let length = self.bits.saturating_sub(RuleKey::PROTOCOL_BITS);
        let others = u16::MAX.checked_shr(length).unwrap_or(0);
        (first, first | others)
    }
}

/// The rule sets of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleSets {
    pub ingress: u32,
    pub egress: u32,
}

impl RuleSets {
    /// Those of a pod that no policy isolates.
    pub const OPEN: Self = Self {
        ingress: OPEN,
        egress: OPEN,
    };
    /// Those of a pod of which it is not known what may pass.
    pub const CLOSED: Self = Self {
        ingress: CLOSED,
        egress: CLOSED,
    };

    /// The one for a direction.
    pub const fn of(&self, direction: Direction) -> u32 {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// What the tables should say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub identities: BTreeMap<Range, u32>,
    pub peers: BTreeMap<PeerKey, u32>,
    pub rules: BTreeMap<RuleEntry, Rule>,
    /// Every local pod with a network of its own, whether or not it has an interface yet.
    pub endpoints: BTreeMap<ObjectKey, RuleSets>,
}

impl Tables {
    /// The class of rules that a rule set has for an identity; that of [`OPEN`] is itself.
    pub fn class(&self, rule_set: u32, identity: u32) -> u32 {
        let class = self.peers.get(&PeerKey { rule_set, identity });
        class.copied().unwrap_or(rule_set)
    }

    /// What a class says of a destination port in host order, 0 where the protocol has none.
    pub fn rule_of(&self, class: u32, protocol: u8, port: u16) -> Option<Rule> {
        if class == OPEN {
            return Some(Rule::ALLOW);
        }
        let of_ports = (0..=16).rev().map(|length| {
            let mask = u16::MAX.checked_shl(16 - length).unwrap_or(0);
            let key = RuleKey::new(class, protocol, port & mask);
            (key, RuleKey::PROTOCOL_BITS + length)
        });
        let everything = (RuleKey::new(class, 0, 0), RuleKey::CLASS_BITS);
        let mut keys = of_ports.chain([everything]);
        keys.find_map(|(key, bits)| self.rules.get(&RuleEntry { key, bits }).copied())
    }

    /// The entries of a class.
    pub fn entries_of(&self, class: u32) -> impl Iterator<Item = &RuleEntry> {
        let first = RuleEntry {
            key: RuleKey::new(class, 0, 0),
            bits: 0,
        };
        let entries = self.rules.range(first..).map(|(entry, _)| entry);
        entries.take_while(move |entry| entry.key.class == class)
    }

    /// The identity of those addresses of a network that no smaller network has.
    pub fn identity(&self, network: Range) -> u32 {
        let Range { address, bits } = network;
        let found = (0..=bits).rev().find_map(|bits| {
            let mask = Range { address, bits }.cidr().mask;
            let address = address.masked(&mask);
            self.identities.get(&Range { address, bits }).copied()
        });
        found.unwrap_or(NO_IDENTITY)
    }
}

impl Rules for Tables {
    fn identity(&self, address: &Address) -> u32 {
        let (address, bits) = (*address, 128);
        Self::identity(self, Range { address, bits })
    }

    fn class(&self, key: &PeerKey) -> Option<u32> {
        self.peers.get(key).copied()
    }

    fn rule(&self, key: &RuleKey) -> Option<Rule> {
        let port = u16::from_be_bytes(key.port);
        self.rule_of(key.class, key.protocol, port)
    }
}

/// In what the tables have changed, by when that may be written.
///
/// What is new in `rules` and `peers` is for numbers that nothing leads to yet; also for those that
/// are about to go, so that at every step old rule sets know new identities. What is gone may be
/// removed when nothing leads there any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub rules: BTreeMap<RuleEntry, Rule>,
    pub peers: BTreeMap<PeerKey, u32>,
    pub identities: BTreeMap<Range, Option<u32>>,
    /// Also endpoints whose rule sets stay, where these tell some address from what it was.
    pub endpoints: BTreeMap<ObjectKey, Option<RuleSets>>,
    pub gone_peers: BTreeSet<PeerKey>,
    pub gone_rules: BTreeSet<RuleEntry>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What makes the tables of an earlier agent say what they should. Every flow is judged again:
    /// the numbers of one agent mean nothing to the next.
    pub fn between(actual: &Tables, wanted: &Tables) -> Self {
        let absent = |key: &Range| !wanted.identities.contains_key(key);
        let gone = actual.identities.keys().filter(|key| absent(key));
        Self {
            rules: missing(&actual.rules, &wanted.rules),
            peers: missing(&actual.peers, &wanted.peers),
            identities: missing(&actual.identities, &wanted.identities)
                .into_iter()
                .map(|(range, identity)| (range, Some(identity)))
                .chain(gone.map(|range| (*range, None)))
                .collect(),
            endpoints: wanted
                .endpoints
                .iter()
                .map(|(pod, sets)| (pod.clone(), Some(*sets)))
                .collect(),
            gone_peers: absent_keys(&actual.peers, &wanted.peers),
            gone_rules: absent_keys(&actual.rules, &wanted.rules),
        }
    }
}

fn missing<K: Ord + Copy, V: PartialEq + Copy>(
    actual: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    let missing = wanted
        .iter()
        .filter(|(key, value)| actual.get(key) != Some(value));
    missing.map(|(key, value)| (*key, *value)).collect()
}

fn absent_keys<K: Ord + Copy, V>(actual: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> BTreeSet<K> {
    let absent = actual.keys().filter(|key| !wanted.contains_key(key));
    absent.copied().collect()
}

/// The tables with a record of what was done to them.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    tables: Tables,
    changes: Changes,
}

impl Ledger {
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// How many entries of `RULES` there are until what is gone has been removed.
    pub fn rules(&self) -> usize {
        self.tables.rules.len() + self.changes.gone_rules.len()
    }

    /// How many entries of `PEERS` there are until what is gone has been removed.
    pub fn peers(&self) -> usize {
        self.tables.peers.len() + self.changes.gone_peers.len()
    }

    pub fn put_rule(&mut self, entry: RuleEntry, rule: Rule) {
        self.tables.rules.insert(entry, rule);
        self.changes.rules.insert(entry, rule);
    }

    pub fn remove_rule(&mut self, entry: RuleEntry) {
        self.tables.rules.remove(&entry);
        self.changes.gone_rules.insert(entry);
    }

    pub fn put_peer(&mut self, key: PeerKey, class: u32) {
        self.tables.peers.insert(key, class);
        self.changes.peers.insert(key, class);
    }

    pub fn remove_peer(&mut self, key: PeerKey) {
        self.tables.peers.remove(&key);
        self.changes.gone_peers.insert(key);
    }

    pub fn set_identity(&mut self, range: Range, identity: Option<u32>) {
        let was = match identity {
            Some(identity) => self.tables.identities.insert(range, identity),
            None => self.tables.identities.remove(&range),
        };
        if was != identity {
            self.changes.identities.insert(range, identity);
        }
    }

    pub fn set_endpoint(&mut self, pod: ObjectKey, sets: Option<RuleSets>) {
        let was = match sets {
            Some(sets) => self.tables.endpoints.insert(pod.clone(), sets),
            None => self.tables.endpoints.remove(&pod),
        };
        if was != sets {
            self.changes.endpoints.insert(pod, sets);
        }
    }

    /// The flows of an endpoint are to be judged again, by the same rule sets.
    pub fn judge_again(&mut self, pod: &ObjectKey) {
        if let Some(sets) = self.tables.endpoints.get(pod) {
            self.changes.endpoints.insert(pod.clone(), Some(*sets));
        }
    }
}
