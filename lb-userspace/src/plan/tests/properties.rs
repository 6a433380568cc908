//! Whatever happens, in whatever order.

use proptest::{prelude::*, sample::Index};

use super::*;

/// Of the addresses that change hands, those that are ClusterIPs. Two of them are the node's too.
const CLUSTER_IPS: u8 = 4;
/// Those after them that are a load balancer's. What comes then is external IPs.
const LOAD_BALANCERS: u8 = 2;
const ADDRESSES: usize = 8;

/// What the tables should say.
#[derive(Clone, Debug)]
struct State {
    services: All,
    node: DesiredNode,
}

/// A state, in which order its services change, and how many of them at once. The node changes with
/// the first.
#[derive(Clone, Debug)]
struct Step {
    state: State,
    order: Vec<ObjectKey>,
    size: usize,
}

impl Step {
    fn play(&self, allocations: &mut Allocations, kernel: &mut Kernel) {
        let Self { state, order, size } = self;
        let mut node = Some(&state.node);
        for batch in order.chunks(*size) {
            let batch = batch.iter();
            let batch = batch.map(|key| (key.clone(), state.services[key].clone()));
            program_with(allocations, kernel, &batch.collect(), node.take());
        }
    }
}

impl State {
    fn program(&self, allocations: &mut Allocations, kernel: &mut Kernel) -> Plan {
        program_with(allocations, kernel, &self.services, Some(&self.node))
    }
}

fn check(kernel: &Kernel, state: &State) -> Result<(), TestCaseError> {
    let wanted = wanted_with(&state.services, &state.node);
    prop_assert_eq!(resolved(&kernel.tables), wanted);
    prop_assert_eq!(&networks(&kernel.tables), &state.node.cidrs);
    Ok(())
}

/// Some of seven backends, by group.
fn any_backends() -> impl Strategy<Value = Backends> {
    let groups = prop::collection::vec(0u8..6, 7);
    (groups, any::<bool>()).prop_map(|(groups, any)| {
        let of = |wanted| {
            let numbered = (1u8..).zip(&groups).filter(|(_, group)| **group == wanted);
            numbered.map(|(number, _)| backend(number)).collect()
        };
        Backends {
            only_local: of(0),
            both: of(1),
            only_cluster: of(2),
            draining: of(3),
            any,
        }
    })
}

fn any_choice() -> impl Strategy<Value = Choice> {
    let affinity = prop_oneof![3 => Just(0), 1 => Just(60), 1 => Just(10_800)];
    let ranges = prop_oneof![
        2 => Just(Ranges::new()),
        1 => prop::collection::btree_set((1u8..4).prop_map(network), 1..3),
    ];
    (any::<(bool, bool)>(), affinity, ranges, any_backends()).prop_map(
        |((internal_local, external_local), affinity, ranges, backends)| Choice {
            internal_local,
            external_local,
            affinity,
            ranges,
            backends,
        },
    )
}

fn kind(address: u8) -> FrontendKind {
    if address <= CLUSTER_IPS {
        FrontendKind::Internal
    } else if address <= CLUSTER_IPS + LOAD_BALANCERS {
        FrontendKind::LoadBalancer
    } else {
        FrontendKind::External
    }
}

/// A service that has these addresses, and perhaps a NodePort for each of its ports.
fn external(service: u8, own: &[u8], node_ports: bool, ports: BTreeMap<u16, Choice>) -> Desired {
    let frontends = |port: u16| {
        let addresses = own.iter().map(move |n| (frontend(*n, port), kind(*n)));
        let key = FrontendKey::node_port(true, 30_000 + port, Protocol::Tcp.number());
        let node_port = node_ports.then_some((key, FrontendKind::External));
        addresses.chain(node_port).collect::<Vec<_>>()
    };
    let ports = ports.into_iter().map(|(port, choice)| {
        let frontends = frontends(port);
        (name(service, port), Port { frontends, choice })
    });
    let cluster_ips = own.iter().filter(|n| kind(**n) == FrontendKind::Internal);
    Desired {
        addresses: cluster_ips.map(|n| cluster_ip(*n)).collect(),
        ports: ports
            .filter(|(_, port)| !port.frontends.is_empty())
            .collect(),
    }
}

fn any_node() -> impl Strategy<Value = DesiredNode> {
    let addresses = prop::collection::btree_map(3u8..9, any::<bool>(), 0..4);
    let cidrs = prop::collection::btree_set(1u8..5, 0..3);
    (addresses, cidrs).prop_map(|(addresses, cidrs)| {
        let addresses = addresses.into_iter();
        DesiredNode {
            addresses: addresses.map(|(n, ports)| (cluster_ip(n), ports)).collect(),
            cidrs: cidrs.into_iter().map(|n| network(n).cidr()).collect(),
        }
    })
}

/// Who has which address, who has the NodePorts, and which ports each of three services has.
fn any_state() -> impl Strategy<Value = State> {
    let owners = prop::collection::vec(0u8..4, ADDRESSES);
    let ports = prop::collection::btree_map(80u16..83, any_choice(), 0..3);
    let ports = prop::collection::vec(ports, 3);
    (owners, 0u8..4, ports, any_node()).prop_map(|(owners, node_ports, ports, node)| {
        let services = (1u8..).zip(ports).map(|(service, ports)| {
            let own = (1u8..).zip(&owners).filter(|(_, owner)| **owner == service);
            let own: Vec<_> = own.map(|(address, _)| address).collect();
            let desired = external(service, &own, node_ports == service, ports);
            (object(service), desired)
        });
        State {
            services: services.collect(),
            node,
        }
    })
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    let order = Just(vec![object(1), object(2), object(3)]).prop_shuffle();
    let step = (any_state(), order, 1usize..4);
    let step = step.prop_map(|(state, order, size)| Step { state, order, size });
    prop::collection::vec(step, 1..6)
}

proptest! {
    #[test]
    fn any_way_to_a_state_ends_where_a_fresh_start_ends(steps in any_steps()) {
        let (mut allocations, mut kernel) = start(ROOMY);
        for step in &steps {
            step.play(&mut allocations, &mut kernel);
            let (mut fresh, mut fresh_kernel) = start(ROOMY);
            step.state.program(&mut fresh, &mut fresh_kernel);
            prop_assert_eq!(resolved(&kernel.tables), resolved(&fresh_kernel.tables));
            check(&kernel, &step.state)?;
        }
    }

    #[test]
    fn a_crash_at_any_write_is_a_restart(
        steps in any_steps(),
        last in any_state(),
        next in any_state(),
        point in any::<Index>(),
    ) {
        let (mut allocations, mut kernel) = start(ROOMY);
        for step in &steps {
            step.play(&mut allocations, &mut kernel);
        }
        let plan = allocations.plan(&last.services, Some(&last.node));
        kernel.apply(&plan, point.index(plan.ops.len() + 1));

        let (mut restarted, mut kernel) = restart(&kernel, ROOMY);
        next.program(&mut restarted, &mut kernel);
        check(&kernel, &next)?;
        let (mut again, _) = restart(&kernel, ROOMY);
        prop_assert_eq!(again.plan(&next.services, Some(&next.node)).ops, []);
    }

    #[test]
    fn a_restart_keeps_the_nodes_rows_until_it_knows_the_node(
        first in any_state(),
        next in any_state(),
    ) {
        let (mut allocations, mut kernel) = start(ROOMY);
        first.program(&mut allocations, &mut kernel);
        let (mut restarted, mut kernel) = restart(&kernel, ROOMY);
        program(&mut restarted, &mut kernel, &next.services);
        let shadowed = wanted(&first.services);
        let found = resolved(&kernel.tables);
        for (key, meaning) in wanted_with(&next.services, &first.node) {
            // Where a ClusterIP stood, the node's address below it is not known after a restart.
            if !matches!(meaning, Meaning::Address(_)) || !shadowed.contains_key(&key) {
                prop_assert_eq!(found.get(&key), Some(&meaning));
            }
        }
        prop_assert_eq!(&networks(&kernel.tables), &first.node.cidrs);
        next.program(&mut restarted, &mut kernel);
        check(&kernel, &next)?;
    }

    #[test]
    fn want_of_room_breaks_nothing(
        steps in any_steps(),
        (frontends, services, rows) in (2usize..20, 2u32..6, 3u32..40),
        (ids, ranges, cidrs) in (2u32..16, 0usize..4, 1u32..4),
    ) {
        let sizes = Sizes { frontends, services, rows, ids, ranges, cidrs };
        let (mut allocations, mut kernel) = start(sizes);
        for Step { state, .. } in &steps {
            let before = resolved(&kernel.tables);
            let plan = state.program(&mut allocations, &mut kernel);
            let now = resolved(&kernel.tables);
            prop_assert!(now.len() <= frontends);
            prop_assert!(kernel.tables.ranges.len() <= ranges);
            prop_assert!(kernel.tables.cidrs.keys().all(|place| *place < cidrs));
            let lacks = |item: &Item| plan.no_room.iter().any(|no_room| no_room.item == *item);
            for desired in state.services.values() {
                for (name, Port { frontends, choice }) in &desired.ports {
                    for (key, kind) in frontends {
                        if !lacks(&Item::Port(name.clone())) {
                            let wanted = Meaning::Service(*kind, choice.clone());
                            prop_assert_eq!(now.get(key), Some(&wanted));
                        } else if let Some(now) = now.get(key) {
                            prop_assert!(*now != Meaning::Broken);
                            prop_assert!(before.contains_key(key));
                        }
                    }
                }
            }
            if !lacks(&Item::ServiceCidrs) {
                prop_assert_eq!(&networks(&kernel.tables), &state.node.cidrs);
            }
        }
    }
}
