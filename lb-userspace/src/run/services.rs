//! Services: what is dirty, what is programmed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::{Context as _, Result};
use tracing::{debug, warn};

use crate::{
    compile::{self, PortName},
    kernel::Tables,
    plan::{Allocations, NoRoom, Plan, ServiceTables, Sizes},
    world::{ObjectKey, World},
};

/// The services in the tables, and those whose entries may be out of date.
#[derive(Default)]
pub struct Services {
    /// What the tables hold; none until they have been read, or when a write has failed.
    allocations: Option<Allocations>,
    dirty: BTreeSet<ObjectKey>,
    no_room: Vec<NoRoom>,
    /// Entries that the audits found to differ from what was written.
    repaired: usize,
}

impl Services {
    /// Marks services to be compiled afresh.
    pub fn mark(&mut self, services: BTreeSet<ObjectKey>) {
        self.dirty.extend(services);
    }

    /// Whether something may be out of date.
    pub fn pending(&self) -> bool {
        self.allocations.is_none() || !self.dirty.is_empty()
    }

    /// Makes the tables say what the world says, and returns when every program sees it. Says whether
    /// the names of service indices changed.
    ///
    /// On an error the tables are read again, and everything is planned from what they hold.
    pub fn program(&mut self, world: &World, tables: &mut Tables) -> Result<bool> {
        let start = Instant::now();
        let mut keys = std::mem::take(&mut self.dirty);
        let allocations = match &mut self.allocations {
            Some(allocations) => allocations,
            none => {
                keys = world.services().map(|(key, _)| key.clone()).collect();
                none.insert(restore(tables)?)
            }
        };
        keys.extend(self.no_room.drain(..).map(|no_room| no_room.service));
        let desired = keys
            .iter()
            .map(|key| (key.clone(), compile::service(world, key)))
            .collect();
        let Plan {
            ops,
            no_room,
            renamed,
        } = allocations.plan(&desired);
        for NoRoom { service, full, .. } in &no_room {
            warn!(%service, "{full} is full: what the tables said of the service before stays");
        }
        self.no_room = no_room;
        for op in &ops {
            if let Err(error) = tables.apply(op) {
                self.allocations = None;
                return Err(error).with_context(|| format!("apply {op:?}"));
            }
        }
        debug!(services = keys.len(), writes = ops.len(), elapsed = ?start.elapsed(), "programmed");
        Ok(renamed)
    }

    /// Compares the tables with what was written, and writes again what differs.
    pub fn audit(&mut self, tables: &mut Tables) -> Result<()> {
        let Some(allocations) = &self.allocations else {
            return Ok(());
        };
        let repairs = allocations.tables().repair(&tables.services()?);
        for op in &repairs {
            warn!("somebody else changed the tables: {op:?} mends it");
            tables.apply(op)?;
        }
        self.repaired += repairs.len();
        Ok(())
    }

    /// What the tables hold, as far as that is known.
    pub fn tables(&self) -> Option<&ServiceTables> {
        self.allocations.as_ref().map(Allocations::tables)
    }

    /// The service port of each service index.
    pub fn names(&self) -> BTreeMap<u32, PortName> {
        self.allocations
            .as_ref()
            .map(Allocations::names)
            .unwrap_or_default()
    }

    /// What there is no room for.
    pub fn no_room(&self) -> &[NoRoom] {
        &self.no_room
    }

    /// Entries that the audits had to mend.
    pub fn repaired(&self) -> usize {
        self.repaired
    }

    /// Whether the tables say what the world says of this service.
    pub fn reflects(&self, service: &ObjectKey) -> bool {
        let fits = !self
            .no_room
            .iter()
            .any(|no_room| no_room.service == *service);
        self.allocations.is_some() && !self.dirty.contains(service) && fits
    }
}

/// Reads the tables, once no program can be using what an earlier agent freed.
fn restore(tables: &mut Tables) -> Result<Allocations> {
    tables.wait()?;
    Ok(Allocations::restore(
        tables.services().context("read the tables")?,
        Sizes::KERNEL,
    ))
}
