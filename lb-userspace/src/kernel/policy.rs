//! The tables of policies, and the guards of pods.
//!
//! Whoever writes here changes first what flows were judged by, and then the epochs of the endpoints
//! concerned: the next packet of each of their flows is judged again.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use anyhow::{Context as _, Result};
use aya::maps::{
    HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, lpm_trie::Key,
};
use lb_common::{
    address::Address,
    enforce,
    event::{ALLOWED, TallyKey},
    flow::Direction,
    policy::{Guard, NO_IDENTITY, PeerKey, Rule, RuleKey, SourceKey},
    reason::Reason,
    tables::Rules,
};

use super::{
    Pins,
    mapped::Mapped,
    tables::{Tables, absent_is_fine, mapped, open},
};

pub(super) struct PolicyTables {
    guards: Mapped<Guard>,
    identities: LpmTrie<MapData, Address, u32>,
    peers: HashMap<MapData, PeerKey, u32>,
    rules: LpmTrie<MapData, RuleKey, Rule>,
    sources: LpmTrie<MapData, SourceKey, u8>,
    tallies: PerCpuHashMap<MapData, TallyKey, u64>,
    lost_events: PerCpuArray<MapData, u64>,
}

impl PolicyTables {
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            guards: mapped(pins, "GUARDS")?,
            identities: Map::LpmTrie(open(pins, "IDENTITIES")?).try_into()?,
            peers: Map::HashMap(open(pins, "PEERS")?).try_into()?,
            rules: Map::LpmTrie(open(pins, "RULES")?).try_into()?,
            sources: Map::LpmTrie(open(pins, "POD_SOURCES")?).try_into()?,
            tallies: Map::PerCpuLruHashMap(open(pins, "TALLIES")?).try_into()?,
            lost_events: Map::PerCpuArray(open(pins, "LOST_EVENTS")?).try_into()?,
        })
    }
}

/// What a pod may say that it is: all of its [`Guard`] but what policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// As in [`Guard`].
    pub v4: Address,
    pub v6: Address,
    pub mac: [u8; 6],
}

impl Binding {
    /// The binding of a guard; `None` where it has none.
    pub fn of(guard: &Guard) -> Option<Self> {
        let Guard {
            v4, v6, mac, bound, ..
        } = *guard;
        (bound == 1).then_some(Self { v4, v6, mac })
    }
}

impl Tables {
    /// The guards of all slots that have one.
    pub fn guards(&self) -> BTreeMap<u32, Guard> {
        let guards = self.policy.guards.iter();
        guards.filter(|(_, guard)| *guard != Guard::NONE).collect()
    }

    pub fn guard(&self, slot: u32) -> Result<Guard> {
        self.policy.guards.get(slot).context("read GUARDS")
    }

    /// Binds the pod of a slot to its addresses, or frees it. What policy says of it stays.
    pub fn bind(&mut self, slot: u32, binding: Option<Binding>) -> Result<()> {
        let guard = self.guard(slot)?;
        let Binding { v4, v6, mac } = binding.unwrap_or(Binding {
            v4: Guard::NONE.v4,
            v6: Guard::NONE.v6,
            mac: Guard::NONE.mac,
        });
        // The word that says that a pod is bound is stored last.
        let bound = Guard {
            v4,
            v6,
            mac,
            bound: u8::from(binding.is_some()),
            ..guard
        };
        self.set_guard(slot, bound)
    }

    /// Says whether the pod of a slot may send from what `POD_SOURCES` has for it.
    pub fn set_more_sources(&mut self, slot: u32, more: bool) -> Result<()> {
        let guard = self.guard(slot)?;
        let more_sources = u8::from(more);
        self.set_guard(
            slot,
            Guard {
                more_sources,
                ..guard
            },
        )
    }

    /// What pods may send from besides their own addresses, by prefix length and key; the length
    /// counts [`SourceKey::SLOT_BITS`].
    pub fn sources(&self) -> Result<BTreeSet<(u32, SourceKey)>> {
        let entries = lpm_entries(&self.policy.sources).context("read POD_SOURCES")?;
        Ok(entries.into_keys().collect())
    }

    pub fn put_source(&mut self, prefix: u32, key: SourceKey) -> Result<()> {
        let written = self.policy.sources.insert(&Key::new(prefix, key), 1, 0);
        written.context("write POD_SOURCES")
    }

    pub fn remove_source(&mut self, prefix: u32, key: SourceKey) -> Result<()> {
        let removed = self.policy.sources.remove(&Key::new(prefix, key));
        absent_is_fine(removed).context("write POD_SOURCES")
    }

    /// Gives the endpoint of a slot these rule sets, and has its flows judged by them.
    pub fn set_rule_sets(&mut self, slot: u32, ingress: u32, egress: u32) -> Result<()> {
        let guard = self.guard(slot)?;
        // The word with the rule sets is stored before the one with the epoch.
        let ruled = Guard {
            ingress,
            egress,
            epoch: next(guard.epoch),
            ..guard
        };
        self.set_guard(slot, ruled)
    }

    /// Forgets everything about the pod of a slot.
    pub fn clear_guard(&mut self, slot: u32) -> Result<()> {
        self.clear_tallies(slot)?;
        let epoch = next(self.guard(slot)?.epoch);
        self.set_guard(
            slot,
            Guard {
                epoch,
                ..Guard::NONE
            },
        )
    }

    fn set_guard(&mut self, slot: u32, guard: Guard) -> Result<()> {
        self.policy.guards.set(slot, guard).context("write GUARDS")
    }

    /// The identity of each prefix, by prefix length and address.
    pub fn identities(&self) -> Result<BTreeMap<(u32, Address), u32>> {
        lpm_entries(&self.policy.identities).context("read IDENTITIES")
    }

    pub fn put_identity(&mut self, prefix: u32, address: Address, identity: u32) -> Result<()> {
        let key = Key::new(prefix, address);
        let written = self.policy.identities.insert(&key, identity, 0);
        written.context("write IDENTITIES")
    }

    pub fn remove_identity(&mut self, prefix: u32, address: Address) -> Result<()> {
        let removed = self.policy.identities.remove(&Key::new(prefix, address));
        absent_is_fine(removed).context("write IDENTITIES")
    }

    /// The class of rules of each peer that a rule set has rules for.
    pub fn peers(&self) -> Result<BTreeMap<PeerKey, u32>> {
        let peers = self.policy.peers.iter();
        peers.collect::<Result<_, MapError>>().context("read PEERS")
    }

    pub fn put_peer(&mut self, key: PeerKey, class: u32) -> Result<()> {
        let written = self.policy.peers.insert(key, class, 0);
        written.context("write PEERS")
    }

    pub fn remove_peer(&mut self, key: &PeerKey) -> Result<()> {
        absent_is_fine(self.policy.peers.remove(key)).context("write PEERS")
    }

    /// The rules, by prefix length and key.
    pub fn rules(&self) -> Result<BTreeMap<(u32, RuleKey), Rule>> {
        lpm_entries(&self.policy.rules).context("read RULES")
    }

    pub fn put_rule(&mut self, prefix: u32, key: RuleKey, rule: Rule) -> Result<()> {
        let written = self.policy.rules.insert(&Key::new(prefix, key), rule, 0);
        written.context("write RULES")
    }

    pub fn remove_rule(&mut self, prefix: u32, key: RuleKey) -> Result<()> {
        absent_is_fine(self.policy.rules.remove(&Key::new(prefix, key))).context("write RULES")
    }

    /// What is counted at endpoints, of all CPUs.
    pub fn tallies(&self) -> Result<BTreeMap<TallyKey, u64>> {
        let tallies = self.policy.tallies.iter();
        let tallies = tallies.map(|tally| tally.map(|(key, counts)| (key, counts.iter().sum())));
        let read = tallies.collect::<Result<_, MapError>>();
        read.context("read TALLIES")
    }

    /// A slot's counts are those of one pod.
    fn clear_tallies(&mut self, slot: u32) -> Result<()> {
        let outcomes = Reason::ALL.into_iter().map(|reason| reason as u16);
        for outcome in outcomes.chain([ALLOWED]) {
            for direction in [Direction::FromPod, Direction::ToPod] {
                for audited_differs in [0, 1] {
                    let key = TallyKey {
                        slot,
                        outcome,
                        direction: direction as u8,
                        audited_differs,
                    };
                    let removed = self.policy.tallies.remove(&key);
                    absent_is_fine(removed).context("write TALLIES")?;
                }
            }
        }
        Ok(())
    }

    /// How many events nobody was told of, of all CPUs.
    pub fn lost_events(&self) -> Result<u64> {
        let lost = self.policy.lost_events.get(&0, 0);
        Ok(lost.context("read LOST_EVENTS")?.iter().sum())
    }

    /// What a rule set says of a flow from or to a peer, as the packet path finds it. The port is the
    /// destination's.
    pub fn judge(&self, rule_set: u32, peer: &Address, protocol: u8, port: u16) -> Result<Rule> {
        let reading = Reading {
            tables: &self.policy,
            failed: Cell::new(None),
        };
        let rule = enforce::rule(&reading, rule_set, peer, protocol, port);
        match reading.failed.into_inner() {
            Some(error) => Err(error).context("read the tables of policies"),
            None => Ok(rule),
        }
    }
}

/// The tables as the packet path looks things up in them; what fails is noted, and found absent.
struct Reading<'a> {
    tables: &'a PolicyTables,
    failed: Cell<Option<MapError>>,
}

impl Reading<'_> {
    fn found<T>(&self, result: Result<T, MapError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(MapError::KeyNotFound) => None,
            Err(error) => {
                self.failed.set(Some(error));
                None
            }
        }
    }
}

impl Rules for Reading<'_> {
    fn identity(&self, address: &Address) -> u32 {
        let identity = self.tables.identities.get(&Key::new(128, *address), 0);
        self.found(identity).unwrap_or(NO_IDENTITY)
    }

    fn class(&self, key: &PeerKey) -> Option<u32> {
        self.found(self.tables.peers.get(key, 0))
    }

    fn rule(&self, key: &RuleKey) -> Option<Rule> {
        let key = Key::new(RuleKey::PORT_BITS, *key);
        self.found(self.tables.rules.get(&key, 0))
    }
}

/// The epoch after this one; none is 0, which flows have that were never judged.
const fn next(epoch: u32) -> u32 {
    match epoch.wrapping_add(1) {
        0 => 1,
        next => next,
    }
}

fn lpm_entries<K: aya::Pod + Ord, V: aya::Pod>(
    table: &LpmTrie<MapData, K, V>,
) -> Result<BTreeMap<(u32, K), V>, MapError> {
    let entries = table.iter();
    entries
        .map(|entry| entry.map(|(key, value)| ((key.prefix_len(), key.data()), value)))
        .collect()
}
