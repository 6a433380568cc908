//! The tables of policies, and the guards of pods.
//!
//! Whoever writes here changes first what flows were judged by, and then an epoch: the next packet of
//! each flow concerned is judged again.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use lb_common::{
    address::Address,
    policy::{CLOSED, Guard, NO_IDENTITY, OPEN, PeerKey, Rule, RuleKey},
};

use super::{
    Pins,
    mapped::Mapped,
    tables::{Tables, absent_is_fine, mapped, open},
};

pub(super) struct PolicyTables {
    guards: Mapped<Guard>,
    peer_epochs: Mapped<u32>,
    identities: LpmTrie<MapData, Address, u32>,
    peers: HashMap<MapData, PeerKey, u32>,
    rules: LpmTrie<MapData, RuleKey, Rule>,
}

impl PolicyTables {
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            guards: mapped(pins, "GUARDS")?,
            peer_epochs: mapped(pins, "PEER_EPOCHS")?,
            identities: Map::LpmTrie(open(pins, "IDENTITIES")?).try_into()?,
            peers: Map::HashMap(open(pins, "PEERS")?).try_into()?,
            rules: Map::LpmTrie(open(pins, "RULES")?).try_into()?,
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

    /// Has the flows of an endpoint judged again: something that its rule sets refer to has changed.
    pub fn bump_endpoint(&mut self, slot: u32) -> Result<()> {
        let guard = self.guard(slot)?;
        let epoch = next(guard.epoch);
        self.set_guard(slot, Guard { epoch, ..guard })
    }

    /// Forgets everything about the pod of a slot.
    pub fn clear_guard(&mut self, slot: u32) -> Result<()> {
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

    /// Has the flows to and from the addresses with this [`lb_common::policy::peer_epoch`] judged
    /// again, at every endpoint.
    pub fn bump_peers(&mut self, place: u32) -> Result<()> {
        let epochs = &self.policy.peer_epochs;
        let epoch = epochs.get(place).context("read PEER_EPOCHS")?;
        epochs.set(place, next(epoch)).context("write PEER_EPOCHS")
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

    /// What a rule set says of a flow from or to a peer, as the packet path would find it. The port is
    /// the destination's.
    pub fn judge(&self, rule_set: u32, peer: &Address, protocol: u8, port: u16) -> Result<Rule> {
        match rule_set {
            OPEN => return Ok(Rule::ALLOW),
            CLOSED => return Ok(Rule::DENY),
            _ => {}
        }
        let PolicyTables {
            identities,
            peers,
            rules,
            ..
        } = &self.policy;
        let identity =
            found(identities.get(&Key::new(128, *peer), 0)).context("read IDENTITIES")?;
        let identity = identity.unwrap_or(NO_IDENTITY);
        let class = found(peers.get(&PeerKey { rule_set, identity }, 0)).context("read PEERS")?;
        let key = RuleKey::new(class.unwrap_or(rule_set), protocol, port);
        let rule = found(rules.get(&Key::new(RuleKey::PORT_BITS, key), 0)).context("read RULES")?;
        Ok(rule.unwrap_or(Rule::DENY))
    }
}

/// What a look-up found, if there was something.
fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
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
