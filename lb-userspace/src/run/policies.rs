//! The policies in force: compiled, written to the tables, and given to the pods' slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::{Context as _, Result};
use lb_common::{
    address::from_ip,
    policy::{CLOSED, Guard, OPEN},
};
use tracing::{debug, warn};

use crate::{
    compile::{
        Range,
        policy::{
            Changes, LastNumbers, Policies as Compiled, RuleEntry, RuleSets, Sizes,
            Tables as Desired,
        },
    },
    explain::{Packet, Verdict},
    kernel::Tables,
    plan::policy::{Op, plan},
    policies::{Policy, described},
    status::PolicyCounts,
    tallies::Tallies,
    world::{ObjectKey, PolicyDirty, PolicyName, World, policy::Direction},
};

/// The slots in use, each with the pod that its interface leads to where that is known.
pub type Places = BTreeMap<u32, Option<ObjectKey>>;

/// What policies are written to.
pub trait PolicyTables {
    /// What the tables say, and the highest numbers in them.
    fn read(&self) -> Result<(Desired, LastNumbers)>;
    /// Does a write that is not about a pod.
    fn write(&mut self, op: &Op) -> Result<()>;
    fn set_rule_sets(&mut self, slot: u32, ingress: u32, egress: u32) -> Result<()>;
    fn guard(&self, slot: u32) -> Result<Guard>;
}

impl PolicyTables for Tables {
    fn read(&self) -> Result<(Desired, LastNumbers)> {
        read(self)
    }

    fn write(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Rule { entry, rule } => self.put_rule(entry.bits, entry.key, *rule),
            Op::Peer { key, class } => self.put_peer(*key, *class),
            Op::Identity { range, identity } => {
                self.put_identity(range.bits.into(), range.address, *identity)
            }
            Op::NoIdentity { range } => self.remove_identity(range.bits.into(), range.address),
            Op::Endpoint { .. } | Op::NoEndpoint { .. } => Ok(()),
            Op::Barrier => self.wait(),
            Op::NoPeer { key } => self.remove_peer(key),
            Op::NoRule { entry } => self.remove_rule(entry.bits, entry.key),
        }
    }

    fn set_rule_sets(&mut self, slot: u32, ingress: u32, egress: u32) -> Result<()> {
        Self::set_rule_sets(self, slot, ingress, egress)
    }

    fn guard(&self, slot: u32) -> Result<Guard> {
        Self::guard(self, slot)
    }
}

/// The compiled policies, and what the tables have of them.
pub struct Policies {
    /// How much fits.
    sizes: Sizes,
    /// `None` until everything has been listed, and after a failure to write.
    compiled: Option<Compiled>,
    dirty: PolicyDirty,
    /// Whether policies may be in force that are not compiled: those of an earlier agent, or those
    /// that could not be written to their end.
    inherited: bool,
    /// The rule sets of each slot; those that a slot has of an earlier agent are not known.
    given: BTreeMap<u32, RuleSets>,
}

impl Policies {
    /// Starts from what an earlier agent left.
    pub fn restore(tables: &impl PolicyTables, sizes: Sizes) -> Result<Self> {
        let (actual, _) = tables.read()?;
        Ok(Self {
            sizes,
            compiled: None,
            dirty: PolicyDirty::default(),
            inherited: !actual.rules.is_empty(),
            given: BTreeMap::new(),
        })
    }

    /// Marks objects to be compiled afresh.
    pub fn mark(&mut self, dirty: PolicyDirty) {
        self.dirty.merge(dirty);
    }

    /// Whether something may be out of date.
    pub fn pending(&self) -> bool {
        let forgets = |compiled: &Compiled| compiled.pending();
        !self.dirty.is_empty() || self.compiled.as_ref().is_none_or(forgets)
    }

    /// Makes the tables and the guards say what the world says.
    ///
    /// On an error everything is compiled and compared with the tables again.
    pub fn program(
        &mut self,
        world: &World,
        places: &Places,
        tables: &mut impl PolicyTables,
    ) -> Result<()> {
        let start = Instant::now();
        let dirty = std::mem::take(&mut self.dirty);
        let changes = match &mut self.compiled {
            Some(compiled) => compiled.update(world, &dirty),
            none => {
                let (actual, last) = tables.read()?;
                let compiled = none.insert(Compiled::new(self.sizes, last));
                compiled.update(world, &dirty);
                Changes::between(&actual, compiled.tables())
            }
        };
        let ops = plan(&changes);
        for op in &ops {
            if let Err(error) = self.apply(op, places, tables) {
                self.forget();
                return Err(error).with_context(|| format!("apply {op:?}"));
            }
        }
        debug!(writes = ops.len(), elapsed = ?start.elapsed(), "programmed policies");
        self.guard(places, tables)
    }

    /// Has everything compiled and compared with the tables again. Strangers are kept out meanwhile.
    fn forget(&mut self) {
        self.compiled = None;
        self.inherited = true;
    }

    fn apply(&mut self, op: &Op, places: &Places, tables: &mut impl PolicyTables) -> Result<()> {
        // Slots go with their interfaces, and are nobody's that is known until then.
        let Op::Endpoint { pod, sets } = op else {
            return tables.write(op);
        };
        let mut own = places
            .iter()
            .filter(|(_, holder)| holder.as_ref() == Some(pod));
        own.try_for_each(|(slot, _)| self.give(*slot, *sets, tables))
    }

    /// Gives every slot the rule sets of its pod, and those of a stranger to what is no known pod's.
    pub fn guard(&mut self, places: &Places, tables: &mut impl PolicyTables) -> Result<()> {
        let stranger = self.stranger(places);
        let Some(compiled) = &self.compiled else {
            return Ok(());
        };
        let endpoints = &compiled.tables().endpoints;
        let wanted: BTreeMap<u32, RuleSets> = places
            .iter()
            .map(|(slot, pod)| {
                let sets = pod.as_ref().and_then(|pod| endpoints.get(pod));
                (*slot, sets.copied().unwrap_or(stranger))
            })
            .collect();
        self.given.retain(|slot, _| wanted.contains_key(slot));
        for (slot, sets) in wanted {
            if self.given.get(&slot) != Some(&sets) {
                self.give(slot, sets, tables)?;
            }
        }
        Ok(())
    }

    fn give(&mut self, slot: u32, sets: RuleSets, tables: &mut impl PolicyTables) -> Result<()> {
        tables.set_rule_sets(slot, sets.ingress, sets.egress)?;
        self.given.insert(slot, sets);
        Ok(())
    }

    /// The rule sets of an interface of which it is not known whose it is: closed in the directions
    /// in which some pod is isolated whose interface is not known either.
    pub fn stranger(&self, places: &Places) -> RuleSets {
        let Some(compiled) = &self.compiled else {
            return match self.inherited {
                true => RuleSets::CLOSED,
                false => RuleSets::OPEN,
            };
        };
        let placed: BTreeSet<&ObjectKey> = places.values().flatten().collect();
        let endpoints = compiled.tables().endpoints.iter();
        let awaited: Vec<_> = endpoints.filter(|(pod, _)| !placed.contains(pod)).collect();
        let side = |direction| {
            let isolated = awaited.iter().any(|(_, sets)| sets.of(direction) != OPEN);
            if isolated { CLOSED } else { OPEN }
        };
        RuleSets {
            ingress: side(Direction::Ingress),
            egress: side(Direction::Egress),
        }
    }

    /// Reads the tables again, so that what differs from what was written is written again.
    pub fn audit(&mut self, tables: &impl PolicyTables) -> Result<()> {
        self.given.retain(|slot, sets| {
            let guard = tables.guard(*slot);
            guard.is_ok_and(|guard| (guard.ingress, guard.egress) == (sets.ingress, sets.egress))
        });
        let Some(compiled) = &self.compiled else {
            return Ok(());
        };
        let (mut actual, _) = tables.read()?;
        actual.endpoints = compiled.tables().endpoints.clone();
        let wanted = compiled.tables();
        if !compiled.pending() && actual != *wanted {
            warn!("somebody else changed the tables of policies: they are written again");
            self.forget();
        }
        Ok(())
    }

    /// Whether a pod has the rule sets that it should have, wherever it is.
    pub fn hold(&self, pod: &ObjectKey, places: &Places) -> bool {
        let wanted = self.compiled.as_ref().and_then(|compiled| {
            let pending = !self.dirty.is_empty();
            compiled.tables().endpoints.get(pod).filter(|_| !pending)
        });
        wanted.is_some_and(|wanted| {
            let slots = places
                .iter()
                .filter(|(_, holder)| holder.as_ref() == Some(pod));
            let mut slots = slots.map(|(slot, _)| slot).peekable();
            slots.peek().is_some() && slots.all(|slot| self.given.get(slot) == Some(wanted))
        })
    }

    /// What the tables in the kernel say about a packet of a pod's; `None` where they know no such
    /// pod.
    pub fn verdict(
        &self,
        pod: &ObjectKey,
        direction: Direction,
        packet: Packet,
        places: &Places,
        tables: &Tables,
    ) -> Option<Verdict> {
        let mut places = places.iter();
        let (slot, _) = places.find(|(_, holder)| holder.as_ref() == Some(pod))?;
        let Guard {
            ingress, egress, ..
        } = tables.guard(*slot).ok()?;
        let rule_set = RuleSets { ingress, egress }.of(direction);
        let peer = from_ip(packet.peer(direction));
        let rule = tables.judge(rule_set, &peer, packet.protocol, packet.port);
        let compiled = self.compiled.as_ref()?;
        Some(Verdict::new(pod, direction, rule_set, rule.ok()?, compiled))
    }

    /// What the numbers of rules stand for.
    pub fn rule_names(&self) -> BTreeMap<u32, String> {
        let names = self.compiled.iter().flat_map(Compiled::rule_names);
        names
            .map(|(number, name)| (number, name.to_string()))
            .collect()
    }

    /// All policies, with the pods of this node that they select; none are known before everything
    /// has been listed.
    pub fn described(&self, world: &World, tallies: &Tallies) -> Vec<Policy> {
        let hits = |pod: &ObjectKey| Some(tallies.hits(pod));
        let compiled = self.compiled.as_ref();
        compiled.map_or_else(Vec::new, |compiled| described(world, compiled, hits))
    }

    /// What the number of a rule stands for.
    pub fn rule_name(&self, number: u32) -> Option<String> {
        let compiled = self.compiled.as_ref()?;
        compiled.rule_name(number).map(ToString::to_string)
    }

    /// How many entries the tables have.
    pub fn counts(&self) -> PolicyCounts {
        let counts = self.compiled.as_ref().map(|compiled| {
            let tables = compiled.tables();
            PolicyCounts {
                identities: tables.identities.len(),
                peers: tables.peers.len(),
                rules: tables.rules.len(),
            }
        });
        counts.unwrap_or_default()
    }

    /// The pods that nothing may pass because their rules do not fit, with their policies.
    pub fn closed(&self, world: &World) -> BTreeMap<ObjectKey, Vec<PolicyName>> {
        let compiled = self.compiled.iter();
        let closed = compiled.flat_map(|compiled| {
            let pods = compiled.closed();
            pods.map(|pod| (pod.clone(), compiled.policies_for(world, pod)))
        });
        closed.collect()
    }
}

/// What the tables say, and the highest numbers in them.
fn read(tables: &Tables) -> Result<(Desired, LastNumbers)> {
    let identities = tables.identities()?.into_iter();
    let rules = tables.rules()?.into_iter();
    let desired = Desired {
        identities: identities
            .map(|((bits, address), identity)| {
                let bits = bits.try_into().context("a prefix of IDENTITIES")?;
                Ok((Range { address, bits }, identity))
            })
            .collect::<Result<_>>()?,
        peers: tables.peers()?,
        rules: rules
            .map(|((bits, key), rule)| (RuleEntry { key, bits }, rule))
            .collect(),
        endpoints: BTreeMap::new(),
    };
    let last = last_numbers(&desired);
    Ok((desired, last))
}

/// The highest numbers in the tables.
fn last_numbers(desired: &Desired) -> LastNumbers {
    let peers = desired.peers.iter();
    let classes = peers.flat_map(|(key, class)| [key.rule_set, *class]);
    let rules = desired.rules.values();
    LastNumbers {
        identity: desired.identities.values().copied().max().unwrap_or(0),
        class: classes
            .chain(desired.rules.keys().map(|entry| entry.key.class))
            .max()
            .unwrap_or(0),
        rule: rules
            .flat_map(|rule| [rule.rule, rule.audited_rule])
            .max()
            .unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
