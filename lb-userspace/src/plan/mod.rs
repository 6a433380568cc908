//! Which writes, in which order, make the tables say what is desired.
//!
//! Pure and deterministic. At every step a packet finds each service as it was or as it will be:
//! a changed service gets a new extent, whose backends are born and whose source ranges are written
//! first; frontends vanish before their service changes, one store moves it, and they appear after
//! that; and nothing is used again until a [`Op::Barrier`] has waited for the programs that may
//! still read it.

mod extent;
mod node;
pub mod policy;
mod restore;
mod sets;
pub mod sources;
mod space;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_common::service::{
    Backend, Extent, FrontendKey, MAX_BACKEND_IDS, MAX_BACKENDS, MAX_CIDRS, MAX_FRONTENDS,
    MAX_SERVICES, MAX_SOURCE_RANGES, Target,
};

use self::{restore::Found, sets::Sets};
pub use self::{
    space::Space,
    tables::{Op, RangeEntry, ServiceTables, index},
};
use crate::{
    compile::{Desired, DesiredNode, PortName},
    world::ObjectKey,
};

/// How much each table holds, its entry 0 included.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub frontends: usize,
    pub services: u32,
    pub rows: u32,
    pub ids: u32,
    pub ranges: usize,
    pub cidrs: u32,
}

impl Sizes {
    /// The sizes of the kernel's tables.
    pub const KERNEL: Self = Self {
        frontends: MAX_FRONTENDS,
        services: MAX_SERVICES as u32,
        rows: MAX_BACKENDS as u32,
        ids: MAX_BACKEND_IDS as u32,
        ranges: MAX_SOURCE_RANGES,
        cidrs: MAX_CIDRS as u32,
    };
}

/// A table that has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Frontends,
    Services,
    Backends,
    Live,
    SourceRanges,
    Cidrs,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frontends => "FRONTENDS",
            Self::Services => "SERVICES",
            Self::Backends => "BACKENDS",
            Self::Live => "LIVE",
            Self::SourceRanges => "SOURCE_RANGES",
            Self::Cidrs => "CIDRS",
        })
    }
}

/// What a table may have no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Port(PortName),
    /// The ClusterIPs of a service.
    Addresses(ObjectKey),
    /// The addresses of this node.
    NodeAddresses,
    ServiceCidrs,
}

impl Item {
    /// The service that it belongs to; `None` where it is the node's.
    pub fn service(&self) -> Option<&ObjectKey> {
        match self {
            Self::Port(name) => Some(&name.service),
            Self::Addresses(service) => Some(service),
            Self::NodeAddresses | Self::ServiceCidrs => None,
        }
    }
}

/// `default/web:http/TCP/IPv4`, or in words.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(name) => write!(f, "{name}"),
            Self::Addresses(service) => write!(f, "the ClusterIPs of {service}"),
            Self::NodeAddresses => f.write_str("this node's addresses"),
            Self::ServiceCidrs => f.write_str("the ServiceCIDRs"),
        }
    }
}

/// Something that a table has no room for. What the tables said of it before stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    pub item: Item,
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
    /// Which service wants each frontend.
    owners: BTreeMap<FrontendKey, ObjectKey>,
    /// The rows of this node's addresses, which stand wherever no service has the address.
    addresses: BTreeMap<FrontendKey, Target>,
    /// What was found in the tables, until the first plan.
    found: Found,
    sizes: Sizes,
    indices: Space,
    rows: Space,
    ids: Space,
    sets: Sets,
}

/// What one service has.
#[derive(Clone, Debug, Default)]
struct Owned {
    /// Service index of each port.
    ports: BTreeMap<PortName, u32>,
    frontends: BTreeSet<FrontendKey>,
}

/// One plan in the making: its writes by phase, and what it leaves behind.
#[derive(Default)]
struct Draft {
    births: Vec<Op>,
    ranges: Vec<Op>,
    rows: Vec<Op>,
    flips: Vec<Op>,
    puts: Vec<Op>,
    /// Networks that come, and those that go.
    cidrs: (Vec<Op>, Vec<Op>),
    no_room: Vec<NoRoom>,
    renamed: bool,
    /// Frontends that some service, or this node, no longer wants.
    left: BTreeSet<FrontendKey>,
    /// Services that nobody wants.
    gone: BTreeSet<u32>,
    /// Ids of backends that no longer are one.
    dead: BTreeSet<u32>,
    /// First row and length of extents out of force.
    extents: Vec<(u32, u32)>,
}

impl Draft {
    fn no_room(&mut self, item: Item, full: Full) {
        self.no_room.push(NoRoom { item, full });
    }
}

impl Allocations {
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

    /// Plans for these services, and for the node if it is given; a service without ports and
    /// addresses goes.
    pub fn plan(
        &mut self,
        desired: &BTreeMap<ObjectKey, Desired>,
        node: Option<&DesiredNode>,
    ) -> Plan {
        let mut draft = Draft::default();
        for (key, desired) in desired {
            self.plan_service(key, desired, &mut draft);
        }
        if let Some(node) = node {
            self.plan_node(node, &mut draft);
        }
        let Found {
            services,
            frontends,
            ids,
            ..
        } = &mut self.found;
        draft.left.append(frontends);
        draft.gone.append(services);
        draft.dead.append(ids);
        self.finish(draft)
    }

    fn plan_service(&mut self, key: &ObjectKey, desired: &Desired, draft: &mut Draft) {
        let before = self.services.remove(key).unwrap_or_default();
        let mut after = Owned::default();
        for (name, port) in &desired.ports {
            let index = before.ports.get(name).copied().or_else(|| self.claim(port));
            let own = port.frontends.iter().map(|(key, _)| key);
            let (index, frontends) = match self.plan_port(index, port, draft) {
                Ok(index) => {
                    let target = |kind| Target::Service { index, kind };
                    let frontends = port.frontends.iter();
                    let frontends = frontends.map(|(key, kind)| (*key, target(*kind)));
                    (index, frontends.collect())
                }
                Err(full) => {
                    draft.no_room(Item::Port(name.clone()), full);
                    let Some(index) = index else { continue };
                    (
                        index,
                        self.leading_to(index, before.frontends.iter().chain(own)),
                    )
                }
            };
            self.put(key, &frontends, draft);
            after.ports.insert(name.clone(), index);
            after.frontends.extend(frontends.keys());
        }
        let whole = desired.addresses.iter();
        let whole = whole.map(|address| FrontendKey::whole_address(*address));
        let whole: BTreeMap<_, _> = whole.map(|key| (key, Target::Undefined)).collect();
        if self.room_for(whole.keys()) {
            self.put(key, &whole, draft);
            after.frontends.extend(whole.keys());
        } else {
            draft.no_room(Item::Addresses(key.clone()), Full::Frontends);
        }
        self.leave(key, before, &after, draft);
        if !after.ports.is_empty() || !after.frontends.is_empty() {
            self.services.insert(key.clone(), after);
        }
    }

    fn put(
        &mut self,
        owner: &ObjectKey,
        frontends: &BTreeMap<FrontendKey, Target>,
        draft: &mut Draft,
    ) {
        for (&key, &target) in frontends {
            self.owners.insert(key, owner.clone());
            self.write_frontend(key, target, &mut draft.puts);
        }
    }

    fn write_frontend(&mut self, key: FrontendKey, target: Target, ops: &mut Vec<Op>) {
        if self.tables.frontends.get(&key) != Some(&target) {
            record(&mut self.tables, ops, Op::Frontend { key, target });
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

    fn room_for<'a>(&self, keys: impl Iterator<Item = &'a FrontendKey>) -> bool {
        let new = keys
            .filter(|key| !self.tables.frontends.contains_key(key))
            .count();
        self.tables.frontends.len() + new <= self.sizes.frontends
    }

    /// Orders the writes, and frees what no program can reach once they are done.
    fn finish(&mut self, mut draft: Draft) -> Plan {
        let removals = self.remove_frontends(&draft.left);
        for service in &draft.gone {
            let rows = self.backends(*service).into_values();
            draft.dead.extend(rows.map(|row| row.id));
            draft.extents.extend(self.extent(*service));
            self.leave_set(*service);
        }
        let deaths = self.kill(&draft.dead);
        let (networks, no_networks) = draft.cidrs;
        let mut ops = [
            no_networks,
            draft.births,
            draft.ranges,
            draft.rows,
            removals,
            draft.flips,
            draft.puts,
            networks,
            deaths,
        ]
        .concat();
        if !ops.is_empty() || !draft.gone.is_empty() {
            ops.push(Op::Barrier);
        }
        self.free(draft.gone, &draft.extents, &mut ops);
        for id in draft.dead {
            self.ids.give(id, 1);
        }
        Plan {
            ops,
            no_room: draft.no_room,
            renamed: draft.renamed,
        }
    }

    /// Removes the frontends that nobody wants; what is an address of this node becomes that again.
    fn remove_frontends(&mut self, left: &BTreeSet<FrontendKey>) -> Vec<Op> {
        let mut ops = Vec::new();
        for &key in left {
            if self.owners.contains_key(&key) || !self.tables.frontends.contains_key(&key) {
                continue;
            }
            match self.addresses.get(&key) {
                Some(&target) => self.write_frontend(key, target, &mut ops),
                None => record(&mut self.tables, &mut ops, Op::NoFrontend { key }),
            }
        }
        ops
    }

    fn kill(&mut self, ids: &BTreeSet<u32>) -> Vec<Op> {
        let mut ops = Vec::new();
        for &id in ids {
            let generation = self.tables.generation(id).wrapping_add(1);
            record(&mut self.tables, &mut ops, Op::Live { id, generation });
        }
        ops
    }

    /// Frees services, extents and source ranges that were in force until the barrier.
    fn free(&mut self, services: BTreeSet<u32>, extents: &[(u32, u32)], ops: &mut Vec<Op>) {
        for service in services {
            let extent = Extent::default();
            record(&mut self.tables, ops, Op::Service { service, extent });
            self.indices.give(service, 1);
        }
        let stray = std::mem::take(&mut self.found.rows);
        let rows = extents
            .iter()
            .flat_map(|(first, length)| *first..first + length);
        for row in rows.chain(stray) {
            let backend = Backend::FREE;
            record(&mut self.tables, ops, Op::Row { row, backend });
        }
        for (first, length) in extents {
            self.rows.give(*first, *length);
        }
        let stray = std::mem::take(&mut self.found.ranges);
        let swept = self.sets.sweep().into_iter();
        let swept = swept.flat_map(|(set, ranges)| {
            ranges
                .into_iter()
                .map(move |range| RangeEntry::new(set, range))
        });
        for entry in swept.chain(stray) {
            record(&mut self.tables, ops, Op::NoSourceRange { entry });
        }
    }
}

/// Plans a write, as done.
fn record(tables: &mut ServiceTables, ops: &mut Vec<Op>, op: Op) {
    tables.apply(&op);
    ops.push(op);
}

#[cfg(test)]
mod tests;
