//! What pods may send from besides their own addresses, written for the slots that they have.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use lb_common::policy::{MAX_POD_SOURCES, SourceKey};

use super::pods::Pods;
use crate::{
    compile::{
        Range,
        sources::{Sources as Compiled, Unlisted, sources},
    },
    kernel::Tables,
    plan::sources::{Op, SlotSources, plan},
    world::{ObjectKey, PolicyDirty, World},
};

/// The further sources of pods.
pub struct Sources {
    /// What the operator allows.
    limits: Vec<IpNet>,
    unlisted: Unlisted,
    /// `None` where something that it depends on may have changed.
    compiled: Option<Compiled>,
    /// What the table says.
    written: SlotSources,
    /// Slots with sources by an earlier agent whose pod is not known again yet: these stay.
    inherited: BTreeSet<u32>,
}

impl Sources {
    /// Starts from what an earlier agent left.
    pub fn restore(limits: Vec<IpNet>, tables: &mut Tables) -> Result<Self> {
        let written = read(tables)?;
        Ok(Self {
            limits,
            unlisted: Unlisted::default(),
            compiled: None,
            inherited: written.keys().copied().collect(),
            written,
        })
    }

    /// Has all compiled afresh where these changes could matter.
    pub fn mark(&mut self, services: bool, dirty: &PolicyDirty) {
        if services || !dirty.pods.is_empty() || !dirty.nodes.is_empty() {
            self.compiled = None;
        }
    }

    /// Lets pods send from what they may, and from nothing else.
    pub fn settle(
        &mut self,
        world: &World,
        unlisted: Unlisted,
        pods: &Pods,
        tables: &mut Tables,
    ) -> Result<()> {
        if self.unlisted != unlisted {
            self.unlisted = unlisted;
            self.compiled = None;
        }
        let compiled = self
            .compiled
            .get_or_insert_with(|| sources(world, &self.unlisted, &self.limits, MAX_POD_SOURCES));
        let mut desired = SlotSources::new();
        for (slot, pod) in pods.slots_and_pods() {
            let Some(pod) = pod else {
                if self.inherited.contains(&slot) {
                    desired.extend(self.written.get(&slot).map(|it| (slot, it.clone())));
                }
                continue;
            };
            self.inherited.remove(&slot);
            let allowed = compiled.allowed.get(pod);
            desired.extend(allowed.map(|networks| {
                let ranges = networks.iter().copied().map(Range::from);
                (slot, ranges.collect())
            }));
        }
        self.inherited.retain(|slot| desired.contains_key(slot));
        let ops = plan(&self.written, &desired);
        // Whatever of it fails is found by reading.
        let applied = ops.iter().try_for_each(|op| apply(op, tables));
        self.written = match applied {
            Ok(()) => desired,
            Err(_) => read(tables)?,
        };
        applied
    }

    /// Reads the table again, so that what differs from what was written is written again.
    pub fn audit(&mut self, tables: &mut Tables) -> Result<()> {
        self.written = read(tables)?;
        Ok(())
    }

    /// How many entries the table has.
    pub fn count(&self) -> usize {
        self.written.values().map(BTreeSet::len).sum()
    }

    /// What pods ask for and do not get.
    pub fn refused(&self) -> impl Iterator<Item = &(ObjectKey, String)> {
        self.compiled.iter().flat_map(|compiled| &compiled.refused)
    }
}

fn apply(op: &Op, tables: &mut Tables) -> Result<()> {
    match *op {
        Op::Source { slot, range } => {
            let (prefix, key) = entry(slot, range);
            tables.put_source(prefix, key)
        }
        Op::More { slot, more } => tables.set_more_sources(slot, more),
        Op::NoSource { slot, range } => {
            let (prefix, key) = entry(slot, range);
            tables.remove_source(prefix, key)
        }
    }
}

fn entry(slot: u32, Range { address, bits }: Range) -> (u32, SourceKey) {
    (
        SourceKey::SLOT_BITS + u32::from(bits),
        SourceKey { slot, address },
    )
}

/// What the table says. What no guard refers to is removed: it would count with the next source that
/// the slot gets.
fn read(tables: &mut Tables) -> Result<SlotSources> {
    let mut sources = SlotSources::new();
    for (prefix, key) in tables.sources()? {
        let SourceKey { slot, address } = key;
        if tables.guard(slot)?.more_sources == 0 {
            tables.remove_source(prefix, key)?;
            continue;
        }
        let bits = prefix - SourceKey::SLOT_BITS;
        let bits = bits.try_into().context("a prefix of POD_SOURCES")?;
        let ranges = sources.entry(slot).or_default();
        ranges.insert(Range { address, bits });
    }
    Ok(sources)
}
