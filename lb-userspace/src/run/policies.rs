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

use super::pods::Pods;
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
    world::{ObjectKey, PolicyDirty, World, policy::Direction},
};

/// The compiled policies, and what the tables have of them.
#[derive(Default)]
pub struct Policies {
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
    pub fn restore(tables: &Tables) -> Result<Self> {
        Ok(Self {
            inherited: !tables.rules()?.is_empty(),
            ..Self::default()
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
    pub fn program(&mut self, world: &World, pods: &mut Pods, tables: &mut Tables) -> Result<()> {
        let start = Instant::now();
        let dirty = std::mem::take(&mut self.dirty);
        let changes = match &mut self.compiled {
            Some(compiled) => compiled.update(world, &dirty),
            none => {
                let (actual, last) = read(tables)?;
                let compiled = none.insert(Compiled::new(Sizes::KERNEL, last));
                compiled.update(world, &dirty);
                Changes::between(&actual, compiled.tables())
            }
        };
        let ops = plan(&changes);
        for op in &ops {
            if let Err(error) = self.apply(op, pods, tables) {
                self.forget();
                return Err(error).with_context(|| format!("apply {op:?}"));
            }
        }
        debug!(writes = ops.len(), elapsed = ?start.elapsed(), "programmed policies");
        self.guard(pods, tables)
    }

    /// Has everything compiled and compared with the tables again. Strangers are kept out meanwhile.
    fn forget(&mut self) {
        self.compiled = None;
        self.inherited = true;
    }

    fn apply(&mut self, op: &Op, pods: &Pods, tables: &mut Tables) -> Result<()> {
        match op {
            Op::Rule { entry, rule } => tables.put_rule(entry.bits, entry.key, *rule),
            Op::Peer { key, class } => tables.put_peer(*key, *class),
            Op::Identity { range, identity } => {
                tables.put_identity(range.bits.into(), range.address, *identity)
            }
            Op::NoIdentity { range } => tables.remove_identity(range.bits.into(), range.address),
            Op::Endpoint { pod, sets } => pods
                .slots_of(pod)
                .try_for_each(|slot| self.give(slot, *sets, tables)),
            // Its slots go with its interfaces, and are nobody's that is known until then.
            Op::NoEndpoint { .. } => Ok(()),
            Op::EndpointEpoch { pod } => {
                let mut slots = pods.slots_of(pod);
                slots.try_for_each(|slot| tables.bump_endpoint(slot))
            }
            Op::PeerEpoch { index } => tables.bump_peers(*index),
            Op::Barrier => tables.wait(),
            Op::NoPeer { key } => tables.remove_peer(key),
            Op::NoRule { entry } => tables.remove_rule(entry.bits, entry.key),
        }
    }

    /// Gives every slot the rule sets of its pod, and those of a stranger to what is no known pod's.
    pub fn guard(&mut self, pods: &mut Pods, tables: &mut Tables) -> Result<()> {
        let stranger = self.stranger(pods);
        pods.expect(stranger);
        let Some(compiled) = &self.compiled else {
            return Ok(());
        };
        let endpoints = &compiled.tables().endpoints;
        let wanted: BTreeMap<u32, RuleSets> = pods
            .slots_and_pods()
            .map(|(slot, pod)| {
                let sets = pod.and_then(|pod| endpoints.get(pod));
                (slot, sets.copied().unwrap_or(stranger))
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

    fn give(&mut self, slot: u32, sets: RuleSets, tables: &mut Tables) -> Result<()> {
        tables.set_rule_sets(slot, sets.ingress, sets.egress)?;
        self.given.insert(slot, sets);
        Ok(())
    }

    /// The rule sets of an interface of which it is not known whose it is: closed in the directions
    /// in which some pod is isolated whose interface is not known either.
    fn stranger(&self, pods: &Pods) -> RuleSets {
        let Some(compiled) = &self.compiled else {
            return match self.inherited {
                true => RuleSets::CLOSED,
                false => RuleSets::OPEN,
            };
        };
        let placed: BTreeSet<&ObjectKey> = pods.slots_and_pods().filter_map(|it| it.1).collect();
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
    pub fn audit(&mut self, tables: &mut Tables) -> Result<()> {
        self.given.retain(|slot, sets| {
            let guard = tables.guard(*slot);
            guard.is_ok_and(|guard| (guard.ingress, guard.egress) == (sets.ingress, sets.egress))
        });
        let Some(compiled) = &self.compiled else {
            return Ok(());
        };
        let (mut actual, _) = read(tables)?;
        actual.endpoints = compiled.tables().endpoints.clone();
        let wanted = compiled.tables();
        if !compiled.pending() && actual != *wanted {
            warn!("somebody else changed the tables of policies: they are written again");
            self.forget();
        }
        Ok(())
    }

    /// Whether a pod has the rule sets that it should have, wherever it is.
    pub fn hold(&self, pod: &ObjectKey, pods: &Pods) -> bool {
        let wanted = self.compiled.as_ref().and_then(|compiled| {
            let pending = !self.dirty.is_empty();
            compiled.tables().endpoints.get(pod).filter(|_| !pending)
        });
        wanted.is_some_and(|wanted| {
            let mut slots = pods.slots_of(pod).peekable();
            slots.peek().is_some() && slots.all(|slot| self.given.get(&slot) == Some(wanted))
        })
    }

    /// What the tables in the kernel say about a packet of a pod's; `None` where they know no such
    /// pod.
    pub fn verdict(
        &self,
        pod: &ObjectKey,
        direction: Direction,
        packet: Packet,
        pods: &Pods,
        tables: &Tables,
    ) -> Option<Verdict> {
        let Guard {
            ingress, egress, ..
        } = tables.guard(pods.slots_of(pod).next()?).ok()?;
        let rule_set = RuleSets { ingress, egress }.of(direction);
        let peer = from_ip(packet.peer(direction));
        let rule = tables.judge(rule_set, &peer, packet.protocol, packet.port);
        let compiled = self.compiled.as_ref()?;
        Some(Verdict::new(
            pod,
            direction,
            rule_set,
            Some(rule.ok()?),
            compiled,
        ))
    }

    /// What the number of a rule stands for.
    pub fn rule_name(&self, number: u32) -> Option<String> {
        let compiled = self.compiled.as_ref()?;
        compiled.rule_name(number).map(ToString::to_string)
    }

    /// The pods that nothing may pass because their rules do not fit.
    pub fn closed(&self) -> impl Iterator<Item = &ObjectKey> {
        self.compiled.iter().flat_map(Compiled::closed)
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
    let peers = desired.peers.iter();
    let classes = peers.flat_map(|(key, class)| [key.rule_set, *class]);
    let rules = desired.rules.values();
    let last = LastNumbers {
        identity: desired.identities.values().copied().max().unwrap_or(0),
        class: classes
            .chain(desired.rules.keys().map(|entry| entry.key.class))
            .max()
            .unwrap_or(0),
        rule: rules
            .flat_map(|rule| [rule.rule, rule.audited_rule])
            .max()
            .unwrap_or(0),
    };
    Ok((desired, last))
}
