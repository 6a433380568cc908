//! Which writes, in which order, make the tables say what is desired.
//!
//! Pure and deterministic. At every step a packet finds each service as it was or as it will be:
//! a changed service gets a new extent, whose backends are born first; one store moves the service
//! to it; frontends appear after their service and vanish before it; and nothing is used again
//! until a [`Op::Barrier`] has waited for the programs that may still read it.

mod space;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_common::{
    address::UNSPECIFIED,
    service::{
        Backend, Extent, FrontendKey, MAX_BACKEND_IDS, MAX_BACKENDS, MAX_FRONTENDS, MAX_SERVICES,
        NO_SERVICE, is_live,
    },
};

pub use self::{
    space::Space,
    tables::{Op, ServiceTables},
};
use crate::{
    compile::{BackendKey, Backends, Desired, Port, PortName},
    world::ObjectKey,
};

/// How much each table holds, its entry 0 included.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub frontends: usize,
    pub services: u32,
    pub rows: u32,
    pub ids: u32,
}

impl Sizes {
    /// The sizes of the kernel's tables.
    pub const KERNEL: Self = Self {
        frontends: MAX_FRONTENDS,
        services: MAX_SERVICES as u32,
        rows: MAX_BACKENDS as u32,
        ids: MAX_BACKEND_IDS as u32,
    };
}

/// A table that has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Frontends,
    Services,
    Backends,
    Live,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frontends => "FRONTENDS",
            Self::Services => "SERVICES",
            Self::Backends => "BACKENDS",
            Self::Live => "LIVE",
        })
    }
}

/// Something that a table has no room for. What the tables said of it before stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    pub service: ObjectKey,
    /// The port; `None` for the service's addresses.
    pub port: Option<PortName>,
    pub full: Full,
}

/// The outcome of planning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be applied in this order, all of them; else start anew from what the tables then hold.
    pub ops: Vec<Op>,
    pub no_room: Vec<NoRoom>,
    /// Whether some service port has come, gone, or got another service index.
    pub renamed: bool,
}

/// What the tables hold, for whom, and what of them is free.
#[derive(Clone, Debug)]
pub struct Allocations {
    tables: ServiceTables,
    /// What each service has.
    services: BTreeMap<ObjectKey, Owned>,
    /// Who wants each frontend.
    owners: BTreeMap<FrontendKey, ObjectKey>,
    /// What was found in the tables, until the first plan.
    found: Found,
    sizes: Sizes,
    indices: Space,
    rows: Space,
    ids: Space,
}

/// What one service has.
#[derive(Clone, Debug, Default)]
struct Owned {
    /// Service index of each port.
    ports: BTreeMap<PortName, u32>,
    frontends: BTreeSet<FrontendKey>,
}

/// Entries of the tables that nobody has claimed yet.
#[derive(Clone, Debug, Default)]
struct Found {
    services: BTreeSet<u32>,
    frontends: BTreeSet<FrontendKey>,
    /// Living backends that are in no extent.
    ids: BTreeSet<u32>,
    /// Rows that are in no extent.
    rows: BTreeSet<u32>,
}

/// One plan in the making: its writes by phase, and what it leaves behind.
#[derive(Default)]
struct Draft {
    births: Vec<Op>,
    rows: Vec<Op>,
    flips: Vec<Op>,
    puts: Vec<Op>,
    no_room: Vec<NoRoom>,
    renamed: bool,
    /// Frontends that some service no longer wants.
    left: BTreeSet<FrontendKey>,
    /// Services that nobody wants.
    gone: BTreeSet<u32>,
    /// Ids of backends that no longer are one.
    dead: BTreeSet<u32>,
    /// First row and length of extents out of force.
    extents: Vec<(u32, u32)>,
}

impl Allocations {
    /// Starts from what the tables hold. What of it belongs to whom is found out by the first plan,
    /// which must be given every service: whatever it does not claim goes.
    pub fn restore(tables: ServiceTables, sizes: Sizes) -> Self {
        let mut all = Self {
            services: BTreeMap::new(),
            owners: BTreeMap::new(),
            found: Found {
                services: BTreeSet::new(),
                frontends: tables.frontends.keys().copied().collect(),
                ids: BTreeSet::new(),
                rows: tables.rows.keys().copied().collect(),
            },
            sizes,
            indices: Space::new(1, sizes.services),
            rows: Space::new(1, sizes.rows),
            ids: Space::new(1, sizes.ids),
            tables,
        };
        for (id, _) in all
            .tables
            .live
            .iter()
            .filter(|(_, generation)| is_live(**generation))
        {
            if all.ids.reserve(*id, 1) {
                all.found.ids.insert(*id);
            }
        }
        all.tables.services.remove(&NO_SERVICE);
        for (service, extent) in all.tables.services.clone() {
            all.found.services.insert(service);
            all.indices.reserve(service, 1);
            if !all.restore_extent(service, extent.first) {
                all.tables
                    .services
                    .insert(service, Extent { first: 0, ..extent });
            }
        }
        all
    }

    /// Takes over the extent of a service; false where it is broken or not the service's own.
    fn restore_extent(&mut self, service: u32, first: u32) -> bool {
        let Some((rows, _)) = self.tables.extent(service) else {
            return false;
        };
        let ids: BTreeSet<u32> = rows.iter().map(|row| row.id).collect();
        let own = ids.len() == rows.len() && ids.is_subset(&self.found.ids);
        if !own || !self.rows.reserve(first, 1 + rows.len() as u32) {
            return false;
        }
        for id in ids {
            self.found.ids.remove(&id);
        }
        for row in first..=first + rows.len() as u32 {
            self.found.rows.remove(&row);
        }
        true
    }

    /// What the tables hold once all plans are applied.
    pub fn tables(&self) -> &ServiceTables {
        &self.tables
    }

    /// Every service port that is in the tables, by service index.
    pub fn names(&self) -> BTreeMap<u32, PortName> {
        self.services
            .values()
            .flat_map(|owned| &owned.ports)
            .map(|(name, index)| (*index, name.clone()))
            .collect()
    }

    /// Plans for these services; a service without ports and addresses goes.
    pub fn plan(&mut self, desired: &BTreeMap<ObjectKey, Desired>) -> Plan {
        let mut draft = Draft::default();
        for (key, desired) in desired {
            self.plan_service(key, desired, &mut draft);
        }
        draft.left.append(&mut self.found.frontends);
        draft.gone.append(&mut self.found.services);
        draft.dead.append(&mut self.found.ids);
        self.finish(draft)
    }

    fn plan_service(&mut self, key: &ObjectKey, desired: &Desired, draft: &mut Draft) {
        let before = self.services.remove(key).unwrap_or_default();
        let mut after = Owned::default();
        for (name, port) in &desired.ports {
            let index = before.ports.get(name).copied().or_else(|| self.claim(port));
            match self.plan_port(index, port, draft) {
                Ok(index) => {
                    self.plan_frontends(key, port.frontends.iter().copied(), index, draft);
                    after.ports.insert(name.clone(), index);
                    after.frontends.extend(&port.frontends);
                }
                Err(full) => {
                    let (service, port_name) = (key.clone(), Some(name.clone()));
                    draft.no_room.push(NoRoom {
                        service,
                        port: port_name,
                        full,
                    });
                    if let Some(index) = index {
                        let known = before.frontends.iter().chain(&port.frontends);
                        let kept = self.leading_to(index, known);
                        self.plan_frontends(key, kept.iter().copied(), index, draft);
                        after.ports.insert(name.clone(), index);
                        after.frontends.extend(kept);
                    }
                }
            }
        }
        let whole = desired
            .addresses
            .iter()
            .map(|address| FrontendKey::whole_address(*address));
        if self.room_for(whole.clone()) {
            self.plan_frontends(key, whole.clone(), NO_SERVICE, draft);
            after.frontends.extend(whole);
        } else {
            draft.no_room.push(NoRoom {
                service: key.clone(),
                port: None,
                full: Full::Frontends,
            });
        }
        self.leave(key, before, &after, draft);
        if !after.ports.is_empty() || !after.frontends.is_empty() {
            self.services.insert(key.clone(), after);
        }
    }

    /// Those of the frontends that the tables lead to this service.
    fn leading_to<'a>(
        &self,
        service: u32,
        frontends: impl Iterator<Item = &'a FrontendKey>,
    ) -> BTreeSet<FrontendKey> {
        let leads = |key: &&FrontendKey| self.tables.frontends.get(key) == Some(&service);
        frontends.filter(leads).copied().collect()
    }

    /// The service that the tables held for this port when we started.
    fn claim(&mut self, port: &Port) -> Option<u32> {
        let index = *self.tables.frontends.get(port.frontends.first()?)?;
        self.found.services.remove(&index).then_some(index)
    }

    /// Sees to it that the port has a service whose extent says what is desired.
    fn plan_port(
        &mut self,
        index: Option<u32>,
        port: &Port,
        draft: &mut Draft,
    ) -> Result<u32, Full> {
        if !self.room_for(port.frontends.iter().copied()) {
            return Err(Full::Frontends);
        }
        if let Some(index) = index.filter(|index| self.says(*index, port)) {
            return Ok(index);
        }
        let before = index.map(|index| self.backends(index)).unwrap_or_default();
        let births = port
            .backends
            .all()
            .filter(|key| !before.contains_key(key))
            .count();
        if births > self.ids.free() as usize {
            return Err(Full::Live);
        }
        let length = 1 + port.backends.all().count() as u32;
        let first = self.rows.take(length).ok_or(Full::Backends)?;
        let Some(service) = index.or_else(|| self.indices.take(1)) else {
            self.rows.give(first, length);
            return Err(Full::Services);
        };
        draft.extents.extend(self.extent(service));
        self.write_extent(service, first, port, before, draft);
        Ok(service)
    }

    /// Writes a new extent and moves the service to it.
    fn write_extent(
        &mut self,
        service: u32,
        first: u32,
        port: &Port,
        mut before: BTreeMap<BackendKey, Backend>,
        draft: &mut Draft,
    ) {
        let mut rows = vec![header(service, port)];
        for key in port.backends.all() {
            rows.push(before.remove(key).unwrap_or_else(|| self.bear(*key, draft)));
        }
        draft.dead.extend(before.values().map(|row| row.id));
        for (row, backend) in (first..).zip(rows) {
            self.found.rows.remove(&row);
            record(&mut self.tables, &mut draft.rows, Op::Row { row, backend });
        }
        let revision = self
            .tables
            .services
            .get(&service)
            .map_or(0, |extent| extent.revision);
        let extent = Extent {
            first,
            revision: revision.wrapping_add(1),
        };
        record(
            &mut self.tables,
            &mut draft.flips,
            Op::Service { service, extent },
        );
    }

    /// A backend with an id of its own, which no flow has met with this generation.
    fn bear(&mut self, key: BackendKey, draft: &mut Draft) -> Backend {
        let id = self.ids.take(1).expect("there was room for all births");
        let generation = self.tables.generation(id).wrapping_add(1) | 1;
        record(
            &mut self.tables,
            &mut draft.births,
            Op::Live { id, generation },
        );
        Backend::new(key.address, key.port, id, generation)
    }

    fn plan_frontends(
        &mut self,
        owner: &ObjectKey,
        keys: impl Iterator<Item = FrontendKey>,
        service: u32,
        draft: &mut Draft,
    ) {
        for key in keys {
            self.owners.insert(key, owner.clone());
            if self.tables.frontends.get(&key) != Some(&service) {
                record(
                    &mut self.tables,
                    &mut draft.puts,
                    Op::Frontend { key, service },
                );
            }
        }
    }

    /// Leaves what a service had and no longer has.
    fn leave(&mut self, key: &ObjectKey, before: Owned, after: &Owned, draft: &mut Draft) {
        draft.renamed |= before.ports != after.ports;
        let ports = before
            .ports
            .into_iter()
            .filter(|(name, _)| !after.ports.contains_key(name));
        draft.gone.extend(ports.map(|(_, index)| index));
        for frontend in &before.frontends - &after.frontends {
            if self.owners.get(&frontend) == Some(key) {
                self.owners.remove(&frontend);
                draft.left.insert(frontend);
            }
        }
    }

    /// Orders the writes, and frees what no program can reach once they are done.
    fn finish(&mut self, draft: Draft) -> Plan {
        let Draft {
            births,
            rows,
            flips,
            puts,
            no_room,
            renamed,
            left,
            gone,
            mut dead,
            mut extents,
        } = draft;
        let mut ops = [births, rows, flips, puts].concat();
        for service in &gone {
            dead.extend(self.backends(*service).values().map(|row| row.id));
            extents.extend(self.extent(*service));
        }
        for key in left
            .into_iter()
            .filter(|key| !self.owners.contains_key(key))
        {
            record(&mut self.tables, &mut ops, Op::NoFrontend { key });
        }
        for id in &dead {
            let generation = self.tables.generation(*id).wrapping_add(1);
            record(
                &mut self.tables,
                &mut ops,
                Op::Live {
                    id: *id,
                    generation,
                },
            );
        }
        if !ops.is_empty() || !gone.is_empty() {
            ops.push(Op::Barrier);
        }
        for service in gone {
            let extent = Extent::default();
            record(&mut self.tables, &mut ops, Op::Service { service, extent });
            self.indices.give(service, 1);
        }
        let stray = std::mem::take(&mut self.found.rows);
        for row in extents
            .iter()
            .flat_map(|(first, length)| *first..first + length)
            .chain(stray)
        {
            record(
                &mut self.tables,
                &mut ops,
                Op::Row {
                    row,
                    backend: Backend::FREE,
                },
            );
        }
        for id in dead {
            self.ids.give(id, 1);
        }
        for (first, length) in extents {
            self.rows.give(first, length);
        }
        Plan {
            ops,
            no_room,
            renamed,
        }
    }

    fn room_for(&self, keys: impl Iterator<Item = FrontendKey>) -> bool {
        let new = keys
            .filter(|key| !self.tables.frontends.contains_key(key))
            .count();
        self.tables.frontends.len() + new <= self.sizes.frontends
    }

    /// Whether the extent in force says what is desired.
    fn says(&self, service: u32, port: &Port) -> bool {
        let in_force = self.tables.services.get(&service);
        let written = in_force.and_then(|extent| self.tables.rows.get(&extent.first));
        written == Some(&header(service, port))
            && self.tables.resolve(service).as_ref() == Some(&port.backends)
    }

    /// The rows of the extent in force.
    fn backends(&self, service: u32) -> BTreeMap<BackendKey, Backend> {
        let rows = self
            .tables
            .extent(service)
            .map(|(rows, _)| rows)
            .unwrap_or_default();
        rows.into_iter()
            .map(|row| {
                (
                    BackendKey {
                        address: row.address,
                        port: row.port,
                    },
                    row,
                )
            })
            .collect()
    }

    /// First row and length of the extent in force.
    fn extent(&self, service: u32) -> Option<(u32, u32)> {
        let (rows, _) = self.tables.extent(service)?;
        Some((
            self.tables.services.get(&service)?.first,
            1 + rows.len() as u32,
        ))
    }
}

/// The header of the extent that says what is desired.
fn header(service: u32, port: &Port) -> Backend {
    let unspecified = FrontendKey::whole_address(UNSPECIFIED);
    let Backends { chosen, draining } = &port.backends;
    Backend {
        count: chosen.len() as u32,
        draining: draining.len() as u32,
        any: u8::from(!chosen.is_empty()),
        ..Backend::header(port.frontends.first().unwrap_or(&unspecified), service)
    }
}

/// Plans a write, as done.
fn record(tables: &mut ServiceTables, ops: &mut Vec<Op>, op: Op) {
    tables.apply(&op);
    ops.push(op);
}

#[cfg(test)]
mod tests;
