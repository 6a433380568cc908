//! The four tables of services, held in memory.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::service::{Backend, Extent, FrontendKey, is_live};

use crate::compile::{BackendKey, Backends};

/// One write to one table, or the wait between writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Stores `LIVE[id]`: a birth where odd, a death where even.
    Live { id: u32, generation: u32 },
    /// Stores a row of `BACKENDS` that no extent in force holds.
    Row { row: u32, backend: Backend },
    /// Stores `SERVICES[service]`: all its frontends move at once.
    Service { service: u32, extent: Extent },
    /// Inserts or replaces a frontend.
    Frontend { key: FrontendKey, service: u32 },
    /// Removes a frontend, if it is there.
    NoFrontend { key: FrontendKey },
    /// Waits until no program holds anything that it read before.
    Barrier,
}

/// What the tables of services hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTables {
    /// `FRONTENDS`: the service index of each key.
    pub frontends: BTreeMap<FrontendKey, u32>,
    /// `SERVICES` that exist.
    pub services: BTreeMap<u32, Extent>,
    /// Rows of `BACKENDS` that are not free.
    pub rows: BTreeMap<u32, Backend>,
    /// Generations in `LIVE` that are not 0.
    pub live: BTreeMap<u32, u32>,
}

impl ServiceTables {
    /// Does to these tables what the kernel's writer does to the kernel's.
    pub fn apply(&mut self, op: &Op) {
        match *op {
            Op::Live { id, generation } => store(&mut self.live, id, generation, 0),
            Op::Row { row, backend } => store(&mut self.rows, row, backend, Backend::FREE),
            Op::Service { service, extent } if extent.first == 0 => {
                self.services.remove(&service);
            }
            Op::Service { service, extent } => {
                self.services.insert(service, extent);
            }
            Op::Frontend { key, service } => {
                self.frontends.insert(key, service);
            }
            Op::NoFrontend { key } => {
                self.frontends.remove(&key);
            }
            Op::Barrier => {}
        }
    }

    /// The rows of the service's extent behind its header, and how many of them may be chosen;
    /// `None` where the service does not exist or its extent is not whole.
    pub fn extent(&self, service: u32) -> Option<(Vec<Backend>, usize)> {
        let first = self.services.get(&service)?.first;
        let header = self.rows.get(&first)?;
        let end = first
            .checked_add(header.count)?
            .checked_add(header.draining)?;
        let rows: Vec<_> = self
            .rows
            .range(first..=end)
            .skip(1)
            .map(|(_, row)| *row)
            .collect();
        let whole = rows.len() == (end - first) as usize
            && rows
                .iter()
                .all(|row| is_live(row.generation) && self.generation(row.id) == row.generation);
        whole.then_some((rows, header.count as usize))
    }

    /// What new flows to the service choose from, and what its old ones may keep.
    pub fn resolve(&self, service: u32) -> Option<Backends> {
        let (rows, count) = self.extent(service)?;
        let mut keys = rows.iter().map(|row| BackendKey {
            address: row.address,
            port: row.port,
        });
        let chosen = keys.by_ref().take(count).collect();
        Some(Backends {
            chosen,
            draining: keys.collect(),
        })
    }

    /// `LIVE[id]`.
    pub fn generation(&self, id: u32) -> u32 {
        self.live.get(&id).copied().unwrap_or_default()
    }

    /// What makes `actual` equal to these tables, referents first.
    pub fn repair(&self, actual: &Self) -> Vec<Op> {
        let live = differing(&self.live, &actual.live).map(|(id, generation)| Op::Live {
            id,
            generation: generation.unwrap_or(0),
        });
        let rows = differing(&self.rows, &actual.rows).map(|(row, backend)| Op::Row {
            row,
            backend: backend.unwrap_or(Backend::FREE),
        });
        let services =
            differing(&self.services, &actual.services).map(|(service, extent)| Op::Service {
                service,
                extent: extent.unwrap_or_default(),
            });
        let frontends =
            differing(&self.frontends, &actual.frontends).map(|(key, service)| match service {
                Some(service) => Op::Frontend { key, service },
                None => Op::NoFrontend { key },
            });
        live.chain(rows).chain(services).chain(frontends).collect()
    }
}

fn store<V: PartialEq>(table: &mut BTreeMap<u32, V>, index: u32, value: V, absent: V) {
    if value == absent {
        table.remove(&index);
    } else {
        table.insert(index, value);
    }
}

/// The keys whose values differ, with the value they should have.
fn differing<'a, K: Ord + Copy, V: PartialEq + Copy>(
    wanted: &'a BTreeMap<K, V>,
    actual: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (K, Option<V>)> + use<'a, K, V> {
    let keys: BTreeSet<K> = wanted.keys().chain(actual.keys()).copied().collect();
    keys.into_iter()
        .filter(|key| wanted.get(key) != actual.get(key))
        .map(|key| (key, wanted.get(&key).copied()))
}
