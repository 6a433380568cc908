use super::*;

#[test]
fn a_service_appears_changes_and_goes() {
    let (mut allocations, mut kernel) = start(ROOMY);
    let first = one(1, desired(1, &[1], &[(80, choice(&[1, 2], &[]))]));
    let first_plan = program(&mut allocations, &mut kernel, &first);
    assert!(first_plan.renamed);
    assert_eq!(resolved(&kernel.tables), wanted(&first));
    let ids: BTreeMap<_, _> = allocations.backends(1);

    let second = one(1, desired(1, &[1], &[(80, choice(&[2, 3], &[1]))]));
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
        &one(1, desired(1, &[1], &[(80, choice(&[1], &[]))])),
    );
    let plan = program(
        &mut allocations,
        &mut kernel,
        &BTreeMap::from([
            (object(1), Desired::default()),
            (object(2), desired(2, &[2], &[(80, choice(&[2], &[]))])),
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
            Op::SourceRange { .. } => "range",
            Op::NoSourceRange { .. } => "free range",
            Op::Cidr { cidr, .. } if *cidr == Cidr::FREE => "free network",
            Op::Cidr { .. } => "network",
            Op::Barrier => "barrier",
        })
        .collect();
    assert_eq!(
        phases,
        [
            "birth",
            "row",
            "row",
            "remove",
            "remove",
            "flip",
            "put",
            "put",
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
        desired(1, &[1], &[(80, choice(&[1], &[2])), (81, choice(&[], &[]))]),
    );
    program(&mut allocations, &mut kernel, &all);
    assert_eq!(allocations.plan(&all, None), Plan::default());
    assert_eq!(allocations.plan(&BTreeMap::new(), None), Plan::default());
}

#[test]
fn an_id_used_again_has_another_generation() {
    let (mut allocations, mut kernel) = start(Sizes { ids: 2, ..ROOMY });
    let mut generations = BTreeSet::new();
    for number in [1, 2, 1] {
        let all = one(1, desired(1, &[1], &[(80, choice(&[number], &[]))]));
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
    let ports = [(80, choice(&[1], &[]))];
    program(
        &mut allocations,
        &mut kernel,
        &one(1, desired(1, &[1], &ports)),
    );
    let moved = BTreeMap::from([
        (object(1), Desired::default()),
        (object(2), desired(2, &[1], &[(80, choice(&[2], &[]))])),
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
        (Sizes { ranges: 1, ..ROOMY }, Full::SourceRanges),
    ] {
        let (mut allocations, mut kernel) = start(sizes);
        let old = one(1, desired(1, &[1], &[(80, choice(&[1, 2], &[]))]));
        assert_eq!(program(&mut allocations, &mut kernel, &old).no_room, []);

        let port = (81, only_from(&[1, 2], choice(&[3, 4, 5], &[])));
        let more = one(
            1,
            desired(1, &[1], &[(80, choice(&[1, 2], &[])), port.clone()]),
        );
        let plan = program(&mut allocations, &mut kernel, &more);
        let item = Item::Port(name(1, 81));
        assert_eq!(plan.no_room, [NoRoom { item, full }]);
        assert_eq!(resolved(&kernel.tables), wanted(&old));
    }
}

#[test]
fn a_service_that_cannot_change_keeps_its_frontends_and_gets_its_turn() {
    let (mut allocations, mut kernel) = start(Sizes { rows: 7, ..ROOMY });
    let old = one(1, desired(1, &[1], &[(80, choice(&[1, 2], &[]))]));
    let other = one(2, desired(2, &[2], &[(80, choice(&[1], &[]))]));
    program(&mut allocations, &mut kernel, &old);
    program(&mut allocations, &mut kernel, &other);
    let new = one(1, desired(1, &[1], &[(80, choice(&[3, 4], &[]))]));
    let plan = program(&mut allocations, &mut kernel, &new);
    assert_eq!(plan.no_room.len(), 1);
    assert_eq!(
        resolved(&kernel.tables)[&frontend(1, 80)],
        Meaning::Service(FrontendKind::Internal, choice(&[1, 2], &[]))
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
    let all = one(1, desired(1, &[1], &[(80, choice(&[1], &[]))]));
    let plan = program(&mut allocations, &mut kernel, &all);
    let (item, full) = (Item::Addresses(object(1)), Full::Frontends);
    assert_eq!(plan.no_room, [NoRoom { item, full }]);
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
                &[(80, choice(&[1, 2], &[3])), (81, choice(&[], &[]))],
            ),
        ),
        (object(2), desired(2, &[3], &[(80, choice(&[1], &[]))])),
    ]);
    program(&mut allocations, &mut kernel, &all);
    let (mut restarted, _) = restart(&kernel, ROOMY);
    assert_eq!(restarted.plan(&all, None).ops, []);
    assert_eq!(restarted.names(), allocations.names());
    check_room(&restarted);
}

#[test]
fn a_restart_forgets_what_is_gone_only_when_planning() {
    let (mut allocations, mut kernel) = start(ROOMY);
    let both = BTreeMap::from([
        (object(1), desired(1, &[1], &[(80, choice(&[1], &[]))])),
        (object(2), desired(2, &[2], &[(80, choice(&[2], &[]))])),
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
        (object(1), desired(1, &[1], &[(80, choice(&[1, 2], &[]))])),
        (
            object(2),
            desired(2, &[2], &[(80, only_from(&[1, 2], choice(&[3], &[])))]),
        ),
        (object(3), desired(3, &[3], &[(80, choice(&[4], &[]))])),
    ]);
    program(&mut allocations, &mut kernel, &all);
    let extents = kernel.tables.services.clone();
    let header = kernel.tables.rows[&extents[&1].first];
    let set = kernel.tables.rows[&extents[&2].first].ranges;
    let entry = RangeEntry::new(set, network(1));
    let to = |index| Target::Service {
        index,
        kind: FrontendKind::Internal,
    };
    let nowhere = Backend {
        ranges: 4_000_000_000,
        ..header
    };
    let local = Backend { local: 9, ..header };
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
            row: extents[&1].first,
            backend: nowhere,
        },
        Op::Row {
            row: extents[&1].first,
            backend: local,
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
            target: to(2),
        },
        Op::Frontend {
            key: frontend(9, 80),
            target: to(17),
        },
        Op::Frontend {
            key: FrontendKey::whole_address(cluster_ip(1)),
            target: Target::NodeAddress { ports: true },
        },
        Op::NoSourceRange { entry },
        Op::SourceRange {
            entry: RangeEntry::new(set, network(9)),
        },
        Op::SourceRange {
            entry: RangeEntry::new(7, network(1)),
        },
        Op::SourceRange {
            entry: RangeEntry::new(4_000_000_000, network(1)),
        },
        Op::SourceRange {
            entry: RangeEntry { prefix: 3, ..entry },
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
        mended
            .plan(&all, None)
            .ops
            .iter()
            .for_each(|op| tables.apply(op));
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
