//! Plans, looked at write by write with the eyes of a packet.

mod cases;
mod properties;

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    address::{Address, map_v4},
    service::{Backend, Cidr, FrontendKey, FrontendKind, Target, is_live},
};

use super::*;
use crate::{
    compile::{BackendKey, Backends, Choice, DesiredNode, Port, Range, Ranges},
    world::{Family, Protocol},
};

type All = BTreeMap<ObjectKey, Desired>;

const ROOMY: Sizes = Sizes {
    frontends: 100,
    services: 30,
    rows: 300,
    ids: 100,
    ranges: 50,
    cidrs: 4,
};

fn object(number: u8) -> ObjectKey {
    ObjectKey::new("default", format!("service-{number}"))
}

fn cluster_ip(number: u8) -> Address {
    map_v4([10, 96, 0, number])
}

fn backend(number: u8) -> BackendKey {
    BackendKey {
        address: map_v4([10, 0, 0, number]),
        port: 8080,
    }
}

fn keys(numbers: &[u8]) -> Vec<BackendKey> {
    numbers.iter().map(|number| backend(*number)).collect()
}

fn network(number: u8) -> Range {
    Range {
        address: map_v4([192, 0, number, 0]),
        bits: 96 + 24,
    }
}

/// Of a service that knows no policies.
fn choice(chosen: &[u8], draining: &[u8]) -> Choice {
    Choice {
        backends: Backends {
            only_cluster: keys(chosen),
            draining: keys(draining),
            any: !chosen.is_empty(),
            ..Backends::default()
        },
        ..Choice::default()
    }
}

fn only_from(ranges: &[u8], choice: Choice) -> Choice {
    let ranges: Ranges = ranges.iter().map(|number| network(*number)).collect();
    Choice { ranges, ..choice }
}

fn frontend(address: u8, port: u16) -> FrontendKey {
    FrontendKey::new(cluster_ip(address), port, Protocol::Tcp.number())
}

fn name(service: u8, port: u16) -> PortName {
    PortName {
        service: object(service),
        port: format!("p{port}"),
        protocol: Protocol::Tcp,
        family: Family::IPv4,
    }
}

/// A service with ClusterIPs.
fn desired(service: u8, addresses: &[u8], ports: &[(u16, Choice)]) -> Desired {
    let ports = ports.iter().filter(|_| !addresses.is_empty());
    let ports = ports.map(|(port, choice)| {
        let frontends = addresses.iter();
        let frontends = frontends.map(|n| (frontend(*n, *port), FrontendKind::Internal));
        let frontends = frontends.collect();
        let choice = choice.clone();
        (name(service, *port), Port { frontends, choice })
    });
    Desired {
        addresses: addresses.iter().map(|n| cluster_ip(*n)).collect(),
        ports: ports.collect(),
    }
}

fn one(service: u8, desired: Desired) -> All {
    BTreeMap::from([(object(service), desired)])
}

/// What a packet to a frontend finds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    Address(Target),
    Service(FrontendKind, Choice),
    /// The service is not there, or its extent is not whole.
    Broken,
}

fn meaning(tables: &ServiceTables, target: Target) -> Meaning {
    match target {
        Target::Service { index, kind } => match tables.resolve(index) {
            Some(choice) => Meaning::Service(kind, choice),
            None => Meaning::Broken,
        },
        Target::Undefined | Target::NodeAddress { .. } => Meaning::Address(target),
    }
}

/// What each frontend leads to, by what it is.
fn resolved(tables: &ServiceTables) -> BTreeMap<FrontendKey, Meaning> {
    let frontends = tables.frontends.iter();
    frontends
        .map(|(key, target)| (*key, meaning(tables, *target)))
        .collect()
}

fn wanted(all: &All) -> BTreeMap<FrontendKey, Meaning> {
    let mut wanted = BTreeMap::new();
    for desired in all.values() {
        let addresses = desired.addresses.iter();
        let whole = addresses.map(|address| FrontendKey::whole_address(*address));
        wanted.extend(whole.map(|key| (key, Meaning::Address(Target::Undefined))));
        for Port { frontends, choice } in desired.ports.values() {
            let means = |kind: &FrontendKind| Meaning::Service(*kind, choice.clone());
            wanted.extend(frontends.iter().map(|(key, kind)| (*key, means(kind))));
        }
    }
    wanted
}

/// With the node's addresses, where no service has them.
fn wanted_with(all: &All, node: &DesiredNode) -> BTreeMap<FrontendKey, Meaning> {
    let mut wanted = wanted(all);
    for (address, ports) in &node.addresses {
        let target = Target::NodeAddress { ports: *ports };
        wanted
            .entry(FrontendKey::whole_address(*address))
            .or_insert(Meaning::Address(target));
    }
    wanted
}

fn networks(tables: &ServiceTables) -> BTreeSet<Cidr> {
    tables.cidrs.values().copied().collect()
}

/// The kernel's tables, and a packet at every moment that may still hold what it read since the
/// last barrier.
#[derive(Clone, Default)]
struct Kernel {
    tables: ServiceTables,
    held_services: BTreeSet<u32>,
    held_rows: BTreeMap<u32, Backend>,
    held_sets: BTreeSet<u32>,
    held_places: BTreeSet<u32>,
}

impl Kernel {
    fn hold(&mut self) {
        let services = self.tables.frontends.values();
        self.held_services
            .extend(services.filter_map(|target| index(*target)));
        self.held_places.extend(self.tables.cidrs.keys());
        for service in &self.held_services {
            // The backends of a service that goes die before it does.
            let Some((header, rows)) = self.tables.extent(*service) else {
                continue;
            };
            let first = self.tables.services[service].first;
            self.held_sets.insert(header.ranges);
            self.held_rows.insert(first, *header);
            self.held_rows.extend((first + 1..).zip(rows));
        }
    }

    /// Applies the first `count` writes of a plan, looking at the tables after each.
    fn apply(&mut self, plan: &Plan, count: usize) {
        let before = self.tables.clone();
        let mut after = self.tables.clone();
        plan.ops.iter().for_each(|op| after.apply(op));
        self.hold();
        for op in &plan.ops[..count] {
            self.check_held(op);
            self.tables.apply(op);
            self.look(op, &before, &after);
            self.hold();
        }
    }

    /// Nothing that a packet may hold is used for something else.
    fn check_held(&mut self, op: &Op) {
        let free = match op {
            Op::Row { row, .. } => !self.held_rows.contains_key(row),
            Op::Live { id, generation } if is_live(*generation) => {
                let mut backends = self.held_rows.values().filter(|row| row.generation != 0);
                !backends.any(|row| row.id == *id)
            }
            Op::SourceRange { entry } | Op::NoSourceRange { entry } => {
                !self.held_sets.contains(&entry.key.set)
            }
            Op::Cidr { place, cidr } => *cidr == Cidr::FREE || !self.held_places.contains(place),
            Op::Barrier => {
                *self = Self {
                    tables: std::mem::take(&mut self.tables),
                    ..Self::default()
                };
                true
            }
            Op::Live { .. } | Op::Service { .. } | Op::Frontend { .. } | Op::NoFrontend { .. } => {
                true
            }
        };
        assert!(free, "{op:?} while a packet holds it");
    }

    fn look(&self, op: &Op, before: &ServiceTables, after: &ServiceTables) {
        let known = [before, after];
        let keys = before.frontends.keys().chain(self.tables.frontends.keys());
        for key in keys {
            let now = self.tables.frontends.get(key);
            let known = known.map(|tables| tables.frontends.get(key));
            assert!(known.contains(&now), "{key:?} after {op:?}");
        }
        let services = self.tables.frontends.values();
        for service in services.filter_map(|target| index(*target)) {
            let now = self.tables.resolve(service);
            assert!(now.is_some(), "service {service} is not whole after {op:?}");
            assert!(
                known.map(|tables| tables.resolve(service)).contains(&now),
                "service {service} is neither as it was nor as it will be after {op:?}",
            );
        }
        self.look_at_parting(op, before, after);
        for service in &self.held_services {
            let extent = self.tables.services.get(service);
            assert!(
                extent.is_some(),
                "service {service} is free while a packet holds it"
            );
            let known = known.map(|tables| tables.services.get(service));
            assert!(known.contains(&extent), "service {service} after {op:?}");
        }
        let was_or_will_be = networks(before).union(&networks(after)).copied().collect();
        assert!(networks(&self.tables).is_subset(&was_or_will_be), "{op:?}");
    }

    /// A frontend that goes never sees what its service becomes without it: that may have no source
    /// ranges, or no local list.
    fn look_at_parting(&self, op: &Op, before: &ServiceTables, after: &ServiceTables) {
        for (key, target) in &self.tables.frontends {
            if !after.frontends.contains_key(key) {
                let now = meaning(&self.tables, *target);
                assert_eq!(now, meaning(before, *target), "{key:?} after {op:?}");
            }
        }
    }
}

/// Plans and applies, checking every step.
fn program(allocations: &mut Allocations, kernel: &mut Kernel, all: &All) -> Plan {
    program_with(allocations, kernel, all, None)
}

fn program_with(
    allocations: &mut Allocations,
    kernel: &mut Kernel,
    all: &All,
    node: Option<&DesiredNode>,
) -> Plan {
    let plan = allocations.plan(all, node);
    kernel.apply(&plan, plan.ops.len());
    assert_eq!(&kernel.tables, allocations.tables());
    check_room(allocations);
    plan
}

/// What is free and what is held make the whole of each table, with nothing held twice.
fn check_room(allocations: &Allocations) {
    let Allocations {
        tables,
        sizes,
        indices,
        rows,
        ids,
        sets,
        ..
    } = allocations;
    let mut room = Space::new(1, sizes.rows);
    let mut names = Space::new(1, sizes.ids);
    let mut services = Space::new(1, sizes.services);
    let mut used = Sets::new(1 + sizes.ranges as u32);
    for (service, extent) in &tables.services {
        assert!(services.reserve(*service, 1));
        let (header, backends) = tables.extent(*service).expect("every extent is whole");
        assert!(
            room.reserve(extent.first, 1 + backends.len() as u32),
            "extents overlap"
        );
        for backend in backends {
            assert!(
                names.reserve(backend.id, 1),
                "backend id {} is held twice",
                backend.id
            );
        }
        used.restore(header.ranges, tables.source_ranges(header.ranges));
        used.join(header.ranges);
    }
    assert_eq!((rows, ids, indices), (&room, &names, &services));
    assert_eq!(sets, &used);
    let held: BTreeSet<_> = tables.ranges.iter().map(|entry| entry.key.set).collect();
    assert!(
        held.into_iter().all(|set| used.contains(set)),
        "a set nobody uses"
    );
    assert_eq!(
        tables
            .live
            .values()
            .filter(|generation| is_live(**generation))
            .count() as u32,
        sizes.ids - 1 - ids.free()
    );
}

fn restart(kernel: &Kernel, sizes: Sizes) -> (Allocations, Kernel) {
    let tables = kernel.tables.clone();
    (
        Allocations::restore(tables.clone(), sizes),
        Kernel {
            tables,
            ..Kernel::default()
        },
    )
}

fn start(sizes: Sizes) -> (Allocations, Kernel) {
    restart(&Kernel::default(), sizes)
}
