use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    address::{Address, map_v4},
    service::{FrontendKey, NO_SERVICE, is_live},
};
use proptest::prelude::*;

use super::*;
use crate::{
    compile::Backends,
    world::{Family, Protocol},
};

type All = BTreeMap<ObjectKey, Desired>;

const ROOMY: Sizes = Sizes {
    frontends: 100,
    services: 30,
    rows: 300,
    ids: 100,
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

fn backends(chosen: &[u8], draining: &[u8]) -> Backends {
    let keys = |numbers: &[u8]| numbers.iter().map(|number| backend(*number)).collect();
    Backends {
        chosen: keys(chosen),
        draining: keys(draining),
    }
}

fn frontend(address: u8, port: u16) -> FrontendKey {
    FrontendKey::new(cluster_ip(address), port, Protocol::Tcp.number())
}

fn desired(service: u8, addresses: &[u8], ports: &[(u16, Backends)]) -> Desired {
    let ports = ports.iter().map(|(port, backends)| {
        let name = PortName {
            service: object(service),
            port: format!("p{port}"),
            protocol: Protocol::Tcp,
            family: Family::IPv4,
        };
        let frontends = addresses
            .iter()
            .map(|address| frontend(*address, *port))
            .collect();
        (
            name,
            Port {
                frontends,
                backends: backends.clone(),
            },
        )
    });
    let ports = if addresses.is_empty() {
        BTreeMap::new()
    } else {
        ports.collect()
    };
    Desired {
        addresses: addresses
            .iter()
            .map(|address| cluster_ip(*address))
            .collect(),
        ports,
    }
}

fn one(service: u8, desired: Desired) -> All {
    BTreeMap::from([(object(service), desired)])
}

/// What each frontend leads to, by what it is.
fn resolved(tables: &ServiceTables) -> BTreeMap<FrontendKey, Option<Backends>> {
    let resolve = |service| {
        (service != NO_SERVICE)
            .then(|| tables.resolve(service))
            .flatten()
    };
    tables
        .frontends
        .iter()
        .map(|(key, service)| (*key, resolve(*service)))
        .collect()
}

fn wanted(all: &All) -> BTreeMap<FrontendKey, Option<Backends>> {
    let mut wanted = BTreeMap::new();
    for desired in all.values() {
        wanted.extend(
            desired
                .addresses
                .iter()
                .map(|a| (FrontendKey::whole_address(*a), None)),
        );
        for port in desired.ports.values() {
            wanted.extend(
                port.frontends
                    .iter()
                    .map(|key| (*key, Some(port.backends.clone()))),
            );
        }
    }
    wanted
}

/// The kernel's tables, and a packet at every moment that may still hold what it read since the
/// last barrier.
#[derive(Clone, Default)]
struct Kernel {
    tables: ServiceTables,
    held_services: BTreeSet<u32>,
    held_rows: BTreeMap<u32, Backend>,
}

impl Kernel {
    fn hold(&mut self) {
        let services = self
            .tables
            .frontends
            .values()
            .filter(|service| **service != NO_SERVICE);
        self.held_services.extend(services);
        for service in &self.held_services {
            // The backends of a service that goes die before it does.
            let Some((rows, _)) = self.tables.extent(*service) else {
                continue;
            };
            let first = self.tables.services[service].first;
            self.held_rows.insert(first, self.tables.rows[&first]);
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
            match op {
                Op::Row { row, .. } => {
                    assert!(
                        !self.held_rows.contains_key(row),
                        "{op:?} while a packet reads it"
                    );
                }
                Op::Live { id, generation } if is_live(*generation) => {
                    let mut backends = self.held_rows.values().filter(|row| row.generation != 0);
                    assert!(
                        !backends.any(|row| row.id == *id),
                        "{op:?} while a packet holds it"
                    );
                }
                Op::Barrier => {
                    self.held_services.clear();
                    self.held_rows.clear();
                }
                Op::Live { .. }
                | Op::Service { .. }
                | Op::Frontend { .. }
                | Op::NoFrontend { .. } => {}
            }
            self.tables.apply(op);
            self.look(op, &before, &after);
            self.hold();
        }
    }

    fn look(&self, op: &Op, before: &ServiceTables, after: &ServiceTables) {
        for (key, service) in &before.frontends {
            let now = self.tables.frontends.get(key);
            let then = after.frontends.get(key);
            assert!(now == Some(service) || now == then, "{key:?} after {op:?}");
        }
        for (key, service) in &self.tables.frontends {
            let known = [before, after].map(|tables| tables.frontends.get(key));
            assert!(known.contains(&Some(service)), "{key:?} after {op:?}");
        }
        for service in self
            .tables
            .frontends
            .values()
            .filter(|service| **service != NO_SERVICE)
        {
            let now = self.tables.resolve(*service);
            assert!(now.is_some(), "service {service} is not whole after {op:?}");
            assert!(
                now == before.resolve(*service) || now == after.resolve(*service),
                "service {service} is neither as it was nor as it will be after {op:?}",
            );
        }
        for service in &self.held_services {
            let extent = self.tables.services.get(service);
            assert!(
                extent.is_some(),
                "service {service} is free while a packet holds it"
            );
            let known = [before, after].map(|tables| tables.services.get(service));
            assert!(known.contains(&extent), "service {service} after {op:?}");
        }
    }
}

/// Plans and applies, checking every step.
fn program(allocations: &mut Allocations, kernel: &mut Kernel, all: &All) -> Plan {
    let plan = allocations.plan(all);
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
        ..
    } = allocations;
    let mut room = Space::new(1, sizes.rows);
    let mut names = Space::new(1, sizes.ids);
    let mut services = Space::new(1, sizes.services);
    for (service, extent) in &tables.services {
        assert!(services.reserve(*service, 1));
        let (backends, _) = tables.extent(*service).expect("every extent is whole");
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
    }
    assert_eq!((rows, ids, indices), (&room, &names, &services));
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

#[test]
fn a_service_appears_changes_and_goes() {
    let (mut allocations, mut kernel) = start(ROOMY);
    let first = one(1, desired(1, &[1], &[(80, backends(&[1, 2], &[]))]));
    let first_plan = program(&mut allocations, &mut kernel, &first);
    assert!(first_plan.renamed);
    assert_eq!(resolved(&kernel.tables), wanted(&first));
    let ids: BTreeMap<_, _> = allocations.backends(1);

    let second = one(1, desired(1, &[1], &[(80, backends(&[2, 3], &[1]))]));
    let second_plan = program(&mut allocations, &mut kernel, &second);
    assert_eq!(resolved(&kernel.tables), wanted(&second));
    assert_eq!(kernel.tables.services[&1].revision, 2);
    assert!(!second_plan.renamed);
    for (key, row) in ids {
        assert_eq!(
            allocations.backends(1)[&key],
            row,
            "a backend that stays keeps its id"
        );
    }

    program(&mut allocations, &mut kernel, &one(1, Desired::default()));
    assert_eq!(
        kernel.tables,
        ServiceTables {
            live: kernel.tables.live.clone(),
            ..ServiceTables::default()
        }
    );
    assert!(
        kernel
            .tables
            .live
            .values()
            .all(|generation| !is_live(*generation))
    );
}

#[test]
fn writes_come_in_the_order_that_packets_need() {
    let (mut allocations, mut kernel) = start(ROOMY);
    program(
        &mut allocations,
        &mut kernel,
        &one(1, desired(1, &[1], &[(80, backends(&[1], &[]))])),
    );
    let plan = program(
        &mut allocations,
        &mut kernel,
        &BTreeMap::from([
            (object(1), Desired::default()),
            (object(2), desired(2, &[2], &[(80, backends(&[2], &[]))])),
        ]),
    );
    let phases: Vec<_> = plan
        .ops
        .iter()
        .map(|op| match op {
            Op::Live { generation, .. } if is_live(*generation) => "birth",
            Op::Live { .. } => "death",
            Op::Row { backend, .. } if *backend == Backend::FREE => "free row",
            Op::Row { .. } => "row",
            Op::Service { extent, .. } if extent.first == 0 => "free service",
            Op::Service { .. } => "flip",
            Op::Frontend { .. } => "put",
            Op::NoFrontend { .. } => "remove",
            Op::Barrier => "barrier",
        })
        .collect();
    assert_eq!(
        phases,
        [
            "birth",
            "row",
            "row",
            "flip",
            "put",
            "put",
            "remove",
            "remove",
            "death",
            "barrier",
            "free service",
            "free row",
            "free row",
        ]
    );
}

#[test]
fn what_is_as_desired_is_left_alone() {
    let (mut allocations, mut kernel) = start(ROOMY);
    let all = one(
        1,
        desired(
            1,
            &[1],
            &[(80, backends(&[1], &[2])), (81, backends(&[], &[]))],
        ),
    );
    program(&mut allocations, &mut kernel, &all);
    assert_eq!(allocations.plan(&all), Plan::default());
    assert_eq!(allocations.plan(&BTreeMap::new()), Plan::default());
}

#[test]
fn an_id_used_again_has_another_generation() {
    let (mut allocations, mut kernel) = start(Sizes { ids: 2, ..ROOMY });
    let mut generations = BTreeSet::new();
    for number in [1, 2, 1] {
        let all = one(1, desired(1, &[1], &[(80, backends(&[number], &[]))]));
        program(&mut allocations, &mut kernel, &one(1, Desired::default()));
        program(&mut allocations, &mut kernel, &all);
        let row = allocations.backends(1)[&backend(number)];
        assert_eq!(row.id, 1);
        assert!(generations.insert(row.generation));
    }
}

#[test]
fn a_cluster_ip_that_changes_hands_is_never_missing() {
    let (mut allocations, mut kernel) = start(ROOMY);
    let ports = [(80, backends(&[1], &[]))];
    program(
        &mut allocations,
        &mut kernel,
        &one(1, desired(1, &[1], &ports)),
    );
    let moved = BTreeMap::from([
        (object(1), Desired::default()),
        (object(2), desired(2, &[1], &[(80, backends(&[2], &[]))])),
    ]);
    let plan = program(&mut allocations, &mut kernel, &moved);
    assert!(
        !plan
            .ops
            .iter()
            .any(|op| matches!(op, Op::NoFrontend { .. }))
    );
    assert_eq!(resolved(&kernel.tables), wanted(&moved));
}

#[test]
fn what_does_not_fit_leaves_what_was_there() {
    for (sizes, full) in [
        (Sizes { rows: 5, ..ROOMY }, Full::Backends),
        (Sizes { ids: 3, ..ROOMY }, Full::Live),
        (
            Sizes {
                services: 2,
                ..ROOMY
            },
            Full::Services,
        ),
        (
            Sizes {
                frontends: 2,
                ..ROOMY
            },
            Full::Frontends,
        ),
    ] {
        let (mut allocations, mut kernel) = start(sizes);
        let old = one(1, desired(1, &[1], &[(80, backends(&[1, 2], &[]))]));
        assert_eq!(program(&mut allocations, &mut kernel, &old).no_room, []);

        let port = (81, backends(&[3, 4, 5], &[]));
        let more = one(
            1,
            desired(1, &[1], &[(80, backends(&[1, 2], &[])), port.clone()]),
        );
        let plan = program(&mut allocations, &mut kernel, &more);
        let port = more[&object(1)].ports.keys().last().cloned();
        assert_eq!(
            plan.no_room,
            [NoRoom {
                service: object(1),
                port,
                full
            }]
        );
        assert_eq!(resolved(&kernel.tables), wanted(&old));
    }
}

#[test]
fn a_service_that_cannot_change_keeps_its_frontends_and_gets_its_turn() {
    let (mut allocations, mut kernel) = start(Sizes { rows: 7, ..ROOMY });
    let old = one(1, desired(1, &[1], &[(80, backends(&[1, 2], &[]))]));
    let other = one(2, desired(2, &[2], &[(80, backends(&[1], &[]))]));
    program(&mut allocations, &mut kernel, &old);
    program(&mut allocations, &mut kernel, &other);
    let new = one(1, desired(1, &[1], &[(80, backends(&[3, 4], &[]))]));
    let plan = program(&mut allocations, &mut kernel, &new);
    assert_eq!(plan.no_room.len(), 1);
    assert_eq!(
        resolved(&kernel.tables)[&frontend(1, 80)],
        Some(backends(&[1, 2], &[]))
    );

    program(&mut allocations, &mut kernel, &one(2, Desired::default()));
    assert_eq!(program(&mut allocations, &mut kernel, &new).no_room, []);
    assert_eq!(resolved(&kernel.tables), wanted(&new));
}

#[test]
fn addresses_that_do_not_fit_are_named() {
    let (mut allocations, mut kernel) = start(Sizes {
        frontends: 1,
        ..ROOMY
    });
    let all = one(1, desired(1, &[1], &[(80, backends(&[1], &[]))]));
    let plan = program(&mut allocations, &mut kernel, &all);
    assert_eq!(
        plan.no_room,
        [NoRoom {
            service: object(1),
            port: None,
            full: Full::Frontends
        }]
    );
}

#[test]
fn a_restart_finds_everything_again() {
    let (mut allocations, mut kernel) = start(ROOMY);
    let all = BTreeMap::from([
        (
            object(1),
            desired(
                1,
                &[1, 2],
                &[(80, backends(&[1, 2], &[3])), (81, backends(&[], &[]))],
            ),
        ),
        (object(2), desired(2, &[3], &[(80, backends(&[1], &[]))])),
    ]);
    program(&mut allocations, &mut kernel, &all);
    let (mut restarted, _) = restart(&kernel, ROOMY);
    assert_eq!(restarted.plan(&all).ops, []);
    assert_eq!(restarted.names(), allocations.names());
    check_room(&restarted);
}

#[test]
fn a_restart_forgets_what_is_gone_only_when_planning() {
    let (mut allocations, mut kernel) = start(ROOMY);
    let both = BTreeMap::from([
        (object(1), desired(1, &[1], &[(80, backends(&[1], &[]))])),
        (object(2), desired(2, &[2], &[(80, backends(&[2], &[]))])),
    ]);
    program(&mut allocations, &mut kernel, &both);
    let (mut restarted, mut kernel) = restart(&kernel, ROOMY);
    assert_eq!(resolved(restarted.tables()), wanted(&both));
    let left = one(2, both[&object(2)].clone());
    program(&mut restarted, &mut kernel, &left);
    assert_eq!(resolved(&kernel.tables), wanted(&left));
}

#[test]
fn broken_tables_are_mended() {
    let (mut allocations, mut kernel) = start(ROOMY);
    let all = BTreeMap::from([
        (object(1), desired(1, &[1], &[(80, backends(&[1, 2], &[]))])),
        (object(2), desired(2, &[2], &[(80, backends(&[3], &[]))])),
        (object(3), desired(3, &[3], &[(80, backends(&[4], &[]))])),
    ]);
    program(&mut allocations, &mut kernel, &all);
    let extents = kernel.tables.services.clone();
    let header = kernel.tables.rows[&extents[&1].first];
    let endless = Backend {
        count: u32::MAX,
        ..Backend::header(&frontend(1, 80), 1)
    };
    for damage in [
        Op::Row {
            row: extents[&1].first,
            backend: endless,
        },
        Op::Row {
            row: extents[&1].first + 1,
            backend: Backend::FREE,
        },
        Op::Live {
            id: 1,
            generation: 8,
        },
        Op::Service {
            service: 1,
            extent: Extent {
                first: ROOMY.rows + 7,
                revision: 1,
            },
        },
        Op::Service {
            service: 1,
            extent: extents[&2],
        },
        Op::Service {
            service: 9,
            extent: extents[&2],
        },
        Op::Service {
            service: 1,
            extent: Extent::default(),
        },
        Op::NoFrontend {
            key: frontend(1, 80),
        },
        Op::Frontend {
            key: frontend(1, 80),
            service: 2,
        },
        Op::Frontend {
            key: frontend(9, 80),
            service: 17,
        },
        Op::Row {
            row: 200,
            backend: header,
        },
        Op::Live {
            id: 77,
            generation: 3,
        },
    ] {
        let mut tables = kernel.tables.clone();
        tables.apply(&damage);
        let mut mended = Allocations::restore(tables.clone(), ROOMY);
        mended.plan(&all).ops.iter().for_each(|op| tables.apply(op));
        assert_eq!(resolved(&tables), wanted(&all), "{damage:?}");
        assert_eq!(&tables, mended.tables(), "{damage:?}");
        check_room(&mended);

        let mut tables = kernel.tables.clone();
        tables.apply(&damage);
        kernel
            .tables
            .repair(&tables)
            .iter()
            .for_each(|op| tables.apply(op));
        assert_eq!(tables, kernel.tables, "{damage:?}");
    }
}

fn any_backends() -> impl Strategy<Value = Backends> {
    let numbers = || prop::collection::btree_set(1u8..8, 0..4);
    (numbers(), numbers()).prop_map(|(chosen, draining)| {
        let draining: Vec<_> = draining.difference(&chosen).copied().collect();
        backends(&Vec::from_iter(chosen), &draining)
    })
}

/// Who has which of four addresses, and which ports each of three services has.
fn any_state() -> impl Strategy<Value = All> {
    let owners = prop::collection::vec(0u8..4, 4);
    let ports = prop::collection::btree_map(80u16..83, any_backends(), 0..3);
    (owners, prop::collection::vec(ports, 3)).prop_map(|(owners, ports)| {
        let services = (1u8..).zip(ports).map(|(service, ports)| {
            let own = (1u8..).zip(&owners).filter(|(_, owner)| **owner == service);
            let addresses: Vec<_> = own.map(|(address, _)| address).collect();
            (
                object(service),
                desired(service, &addresses, &Vec::from_iter(ports)),
            )
        });
        services.collect()
    })
}

/// A state, whether each service's change comes in a batch of its own, and in which order.
fn any_states() -> impl Strategy<Value = Vec<(All, Vec<ObjectKey>, usize)>> {
    let order = Just(vec![object(1), object(2), object(3)]).prop_shuffle();
    prop::collection::vec((any_state(), order, 1usize..4), 1..6)
}

fn play(
    allocations: &mut Allocations,
    kernel: &mut Kernel,
    (state, order, size): &(All, Vec<ObjectKey>, usize),
) {
    for batch in order.chunks(*size) {
        let batch = batch
            .iter()
            .map(|key| (key.clone(), state[key].clone()))
            .collect();
        program(allocations, kernel, &batch);
    }
}

proptest! {
    #[test]
    fn any_way_to_a_state_ends_where_a_fresh_start_ends(states in any_states()) {
        let (mut allocations, mut kernel) = start(ROOMY);
        for step in &states {
            play(&mut allocations, &mut kernel, step);
            let (mut fresh, mut fresh_kernel) = start(ROOMY);
            program(&mut fresh, &mut fresh_kernel, &step.0);
            prop_assert_eq!(resolved(&kernel.tables), resolved(&fresh_kernel.tables));
            prop_assert_eq!(resolved(&kernel.tables), wanted(&step.0));
        }
    }

    #[test]
    fn a_crash_at_any_write_is_a_restart(
        states in any_states(),
        last in any_state(),
        next in any_state(),
        point in any::<prop::sample::Index>(),
    ) {
        let (mut allocations, mut kernel) = start(ROOMY);
        for step in &states {
            play(&mut allocations, &mut kernel, step);
        }
        let plan = allocations.plan(&last);
        kernel.apply(&plan, point.index(plan.ops.len() + 1));

        let (mut restarted, mut kernel) = restart(&kernel, ROOMY);
        program(&mut restarted, &mut kernel, &next);
        prop_assert_eq!(resolved(&kernel.tables), wanted(&next));
        let (mut again, _) = restart(&kernel, ROOMY);
        prop_assert_eq!(again.plan(&next).ops, []);
    }

    #[test]
    fn want_of_room_breaks_nothing(
        states in any_states(),
        frontends in 2usize..12, services in 2u32..6, rows in 3u32..30, ids in 2u32..12,
    ) {
        let sizes = Sizes { frontends, services, rows, ids };
        let (mut allocations, mut kernel) = start(sizes);
        for (state, _, _) in &states {
            let before = resolved(&kernel.tables);
            let plan = program(&mut allocations, &mut kernel, state);
            let now = resolved(&kernel.tables);
            prop_assert!(now.len() <= frontends);
            let no_room: BTreeSet<_> = plan.no_room.iter().filter_map(|n| n.port.clone()).collect();
            for desired in state.values() {
                for (name, port) in &desired.ports {
                    for key in &port.frontends {
                        if !no_room.contains(name) {
                            prop_assert_eq!(now.get(key), Some(&Some(port.backends.clone())));
                        } else if let Some(now) = now.get(key) {
                            prop_assert!(now.is_some());
                            prop_assert!(before.contains_key(key));
                        }
                    }
                }
            }
        }
    }
}
