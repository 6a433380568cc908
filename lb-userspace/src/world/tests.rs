//! The world after any history is the world of the last list, and nothing changes unannounced.

use proptest::prelude::*;

use super::*;

/// All objects of all kinds at one time.
#[derive(Clone, Debug, Default)]
struct State {
    services: BTreeMap<ObjectKey, Row<Service>>,
    slices: BTreeMap<ObjectKey, Row<EndpointSlice>>,
    nodes: BTreeMap<ObjectKey, Row<Node>>,
    pods: BTreeMap<ObjectKey, Row<Pod>>,
    service_cidrs: BTreeMap<ObjectKey, Row<ServiceCidr>>,
    namespaces: BTreeMap<ObjectKey, Row<Namespace>>,
    network_policies: BTreeMap<ObjectKey, Row<Policy>>,
    cluster_network_policies: BTreeMap<ObjectKey, Row<Policy>>,
}

/// How a source tells that one state has become another.
#[derive(Clone, Copy, Debug)]
enum Expander {
    /// Lists of everything.
    Relist,
    /// What differs, one object at a time, in any order.
    Deltas,
    /// The same, each object told three times.
    RepeatedDeltas,
    /// Every object deleted and made again.
    Recreated,
    /// A list of the state before that breaks off, then a whole one.
    BrokenList,
    /// A delta in the middle of a list that was made after it.
    DeltasWhileListing,
}

impl Expander {
    fn expand(self, before: &State, after: &State, order: &[u8]) -> Vec<Change> {
        macro_rules! every_kind {
            ($events:expr) => {
                [
                    shuffled(
                        $events(&before.services, &after.services),
                        order,
                        Change::Service,
                    ),
                    shuffled(
                        $events(&before.slices, &after.slices),
                        order,
                        Change::EndpointSlice,
                    ),
                    shuffled($events(&before.nodes, &after.nodes), order, Change::Node),
                    shuffled($events(&before.pods, &after.pods), order, Change::Pod),
                    shuffled(
                        $events(&before.service_cidrs, &after.service_cidrs),
                        order,
                        Change::ServiceCidr,
                    ),
                    shuffled(
                        $events(&before.namespaces, &after.namespaces),
                        order,
                        Change::Namespace,
                    ),
                    shuffled(
                        $events(&before.network_policies, &after.network_policies),
                        order,
                        Change::NetworkPolicy,
                    ),
                    shuffled(
                        $events(
                            &before.cluster_network_policies,
                            &after.cluster_network_policies,
                        ),
                        order,
                        Change::ClusterNetworkPolicy,
                    ),
                ]
                .concat()
            };
        }
        match self {
            Self::Relist => every_kind!(relist),
            Self::Deltas => every_kind!(deltas),
            Self::RepeatedDeltas => every_kind!(repeated_deltas),
            Self::Recreated => every_kind!(recreated),
            Self::BrokenList => every_kind!(broken_list),
            Self::DeltasWhileListing => every_kind!(deltas_while_listing),
        }
    }
}

type Rows<R> = BTreeMap<ObjectKey, Row<R>>;
/// Runs of events; the order inside of a run is free.
type Runs<R> = Vec<Vec<Event<R>>>;

fn shuffled<R>(runs: Runs<R>, order: &[u8], change: fn(Event<R>) -> Change) -> Vec<Change> {
    let mut order = order.iter().cycle();
    let mut changes = Vec::new();
    for run in runs {
        let mut run: Vec<_> = run.into_iter().map(|event| (order.next(), event)).collect();
        run.sort_by_key(|(position, _)| *position);
        changes.extend(run.into_iter().map(|(_, event)| change(event)));
    }
    changes
}

fn items<R: Clone>(rows: &Rows<R>) -> Vec<Event<R>> {
    rows.iter()
        .map(|(key, row)| Event::InitApply(key.clone(), row.clone()))
        .collect()
}

fn relist<R: Clone>(_: &Rows<R>, after: &Rows<R>) -> Runs<R> {
    vec![vec![Event::Init], items(after), vec![Event::InitDone]]
}

fn deltas<R: Clone + PartialEq>(before: &Rows<R>, after: &Rows<R>) -> Runs<R> {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let changed = after
        .iter()
        .filter(|(key, row)| before.get(*key) != Some(row));
    vec![
        gone.map(|key| Event::Delete(key.clone()))
            .chain(changed.map(|(key, row)| Event::Apply(key.clone(), row.clone())))
            .collect(),
    ]
}

fn repeated_deltas<R: Clone + PartialEq>(before: &Rows<R>, after: &Rows<R>) -> Runs<R> {
    vec![deltas(before, after).concat(); 3]
}

fn recreated<R: Clone>(before: &Rows<R>, after: &Rows<R>) -> Runs<R> {
    let all = before
        .keys()
        .map(|key| Event::Delete(key.clone()))
        .collect();
    let new = after
        .iter()
        .map(|(key, row)| Event::Apply(key.clone(), row.clone()));
    vec![all, new.collect()]
}

fn broken_list<R: Clone>(before: &Rows<R>, after: &Rows<R>) -> Runs<R> {
    let mut runs = vec![vec![Event::Init], items(before)];
    runs.extend(relist(before, after));
    runs
}

fn deltas_while_listing<R: Clone + PartialEq>(before: &Rows<R>, after: &Rows<R>) -> Runs<R> {
    let mut runs = vec![vec![Event::Init]];
    runs.extend(deltas(before, after));
    runs.extend([items(after), vec![Event::InitDone]]);
    runs
}

fn key(prefix: &'static str, most: u8) -> impl Strategy<Value = ObjectKey> {
    (0..most).prop_map(move |n| ObjectKey::new("default", format!("{prefix}{n}")))
}

fn rows<R: fmt::Debug + Clone + 'static>(
    prefix: &'static str,
    value: impl Strategy<Value = R> + 'static,
) -> impl Strategy<Value = Rows<R>> {
    let row = (
        prop::option::weighted(0.9, value),
        any::<u8>(),
        prop::option::weighted(0.1, Just("broken".to_owned())),
    );
    let row = row.prop_map(|(value, version, problem)| Row {
        value,
        version: version.to_string(),
        problems: problem.into_iter().collect(),
    });
    prop::collection::btree_map(key(prefix, 4), row, 0..5)
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "fd00::1"])
        .prop_map(|text| text.parse().expect("an address"))
}

fn addresses(most: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    prop::collection::btree_set(address(), 0..=most).prop_map(|set| set.into_iter().collect())
}

fn service() -> impl Strategy<Value = Service> {
    let port = (80u16..82, prop::option::of(30080u16..30082));
    let ports = prop::collection::vec(port, 0..3);
    (addresses(2), addresses(1), addresses(1), ports).prop_map(
        |(cluster_ips, external_ips, load_balancer_ips, ports)| Service {
            cluster_ips,
            external_ips,
            load_balancer_ips,
            ports: ports
                .into_iter()
                .map(|(port, node_port)| ServicePort {
                    name: port.to_string(),
                    protocol: Protocol::Tcp,
                    port,
                    node_port,
                })
                .collect(),
            ..Service::default()
        },
    )
}

fn state() -> impl Strategy<Value = State> {
    let slice = (key("service", 4), address(), any::<bool>());
    let slice = slice.prop_map(|(service, address, ready)| EndpointSlice {
        service,
        family: Family::of(address),
        endpoints: vec![Endpoint {
            address,
            ready,
            serving: true,
            terminating: false,
            node: None,
            hints: Hints::default(),
        }],
        ports: Vec::new(),
        trigger: None,
    });
    let node = (
        addresses(1),
        prop::option::of("[ab]"),
        any::<bool>(),
        any::<bool>(),
    );
    let node = node.prop_map(|(addresses, zone, eligible, own)| Node {
        all_addresses: addresses.iter().copied().collect(),
        addresses,
        zone,
        eligible,
        own,
        ..Node::default()
    });
    let pod = (addresses(1), any::<bool>()).prop_map(|(ips, local)| Pod {
        ips,
        local: local.then(LocalPod::default),
        ..Pod::default()
    });
    let namespace = any::<bool>().prop_map(|audited| Namespace {
        audited,
        ..Namespace::default()
    });
    let policy = || {
        (0..2u16).prop_map(|priority| Policy {
            priority,
            ..Policy::default()
        })
    };
    let service_cidr = addresses(1).prop_map(|addresses| ServiceCidr {
        cidrs: addresses.into_iter().map(IpNet::from).collect(),
    });
    (
        rows("service", service()),
        rows("slice", slice),
        rows("node", node),
        rows("pod", pod),
        rows("cidr", service_cidr),
        rows("namespace", namespace),
        rows("policy", policy()),
        rows("policy", policy()),
    )
        .prop_map(
            |(
                services,
                slices,
                nodes,
                pods,
                service_cidrs,
                namespaces,
                network_policies,
                cluster_network_policies,
            )| State {
                services,
                slices,
                nodes,
                pods,
                service_cidrs,
                namespaces,
                network_policies,
                cluster_network_policies,
            },
        )
}

fn expander() -> impl Strategy<Value = Expander> {
    prop::sample::select(vec![
        Expander::Relist,
        Expander::Deltas,
        Expander::RepeatedDeltas,
        Expander::Recreated,
        Expander::BrokenList,
        Expander::DeltasWhileListing,
    ])
}

/// A state after another, and how it is told.
fn history() -> impl Strategy<Value = Vec<(State, Expander, Vec<u8>)>> {
    let step = (
        state(),
        expander(),
        prop::collection::vec(any::<u8>(), 1..24),
    );
    prop::collection::vec(step, 1..6)
}

fn listed(state: &State) -> World {
    let mut world = World::default();
    for change in Expander::Relist.expand(&State::default(), state, &[0]) {
        world.apply(change);
    }
    world
}

/// All that compiling a service depends on.
fn view(world: &World, key: &ObjectKey) -> impl PartialEq + fmt::Debug + use<> {
    let service = world.service(key).cloned();
    let mut owners = Vec::new();
    if let Some(service) = &service {
        let own = service.cluster_ips.iter();
        owners.extend(own.map(|&address| world.owner_of(address).cloned()));
        for port in &service.ports {
            let outer = service
                .external_ips
                .iter()
                .chain(&service.load_balancer_ips);
            let outer =
                outer.map(|&address| world.owner_of_external(address, port.port, port.protocol));
            owners.extend(outer.map(Option::<&_>::cloned));
            let node_port = port.node_port;
            let node_port = node_port.map(|node_port| {
                let owner = world.owner_of_node_port(node_port, port.protocol);
                owner.cloned()
            });
            owners.extend(node_port);
        }
    }
    let slices: Vec<_> = world
        .slices_of(key)
        .map(|(key, slice)| (key.clone(), slice.clone()))
        .collect();
    let places: Vec<_> = world
        .nodes
        .values()
        .filter(|(_, node)| node.own)
        .map(|(key, node)| (key.clone(), node.zone.clone(), node.addresses.clone()))
        .collect();
    (service.map(|service| (service, places)), owners, slices)
}

/// Whether only versions differ.
fn same<R: PartialEq>(one: &Table<R>, other: &Table<R>) -> bool {
    fn content<R: PartialEq>(
        table: &Table<R>,
    ) -> impl Iterator<Item = (&ObjectKey, &Option<R>, &[String])> {
        table
            .rows()
            .map(|(key, row)| (key, &row.value, row.problems.as_slice()))
    }
    content(one).eq(content(other))
}

proptest! {
    #[test]
    fn every_history_ends_in_the_world_of_the_last_list(history in history()) {
        let mut world = listed(&State::default());
        let mut before = State::default();
        for (after, expander, order) in &history {
            for change in expander.expand(&before, after, order) {
                world.apply(change);
            }
            prop_assert_eq!(&world, &listed(after), "{:?}", expander);
            before = after.clone();
        }
    }

    #[test]
    fn nothing_changes_that_is_not_dirty(history in history()) {
        let keys: Vec<_> = (0..4).map(|n| ObjectKey::new("default", format!("service{n}"))).collect();
        let mut world = World::default();
        let mut before = State::default();
        for (after, expander, order) in &history {
            for change in expander.expand(&before, after, order) {
                let was = world.clone();
                let dirty = world.apply(change.clone());
                for key in &keys {
                    prop_assert!(
                        dirty.services.contains(key) || view(&was, key) == view(&world, key),
                        "{} after {:?}", key, change
                    );
                }
                let own = |world: &World| {
                    let own = world.nodes.values().filter(|(_, node)| node.own);
                    own.map(|(key, node)| (key.clone(), node.clone())).collect::<Vec<_>>()
                };
                prop_assert!(dirty.node || own(&was) == own(&world));
                let local = |world: &World| {
                    let local = world.local_pods();
                    local.map(|(key, pod, _)| (key.clone(), pod.clone())).collect::<Vec<_>>()
                };
                prop_assert!(dirty.pods || local(&was) == local(&world));
                prop_assert_eq!(&unnamed(&was, &dirty.policy), &unnamed(&world, &dirty.policy));
                prop_assert!(dirty.cidrs || same(&was.service_cidrs, &world.service_cidrs));
            }
            before = after.clone();
        }
    }

    #[test]
    fn telling_the_same_again_makes_nothing_dirty(state in state(), order in prop::collection::vec(any::<u8>(), 1..24)) {
        let mut world = listed(&state);
        for expander in [Expander::Relist, Expander::Deltas, Expander::BrokenList] {
            for change in expander.expand(&state, &state, &order) {
                prop_assert_eq!(world.apply(change), Dirty::default());
            }
        }
    }
}

/// What policies are compiled from, but for what is named as dirty.
fn unnamed(world: &World, dirty: &PolicyDirty) -> impl PartialEq + fmt::Debug + use<> {
    fn kept<'a, K: Clone, V: Clone + 'a>(
        rows: impl Iterator<Item = (K, &'a V)>,
        dirty: impl Fn(&K) -> bool,
    ) -> Vec<(K, V)> {
        let kept = rows.filter(|(key, _)| !dirty(key));
        kept.map(|(key, row)| (key, row.clone())).collect()
    }
    fn owned<'a, R>((key, row): (&ObjectKey, &'a R)) -> (ObjectKey, &'a R) {
        (key.clone(), row)
    }
    let nodes = world.nodes();
    let nodes: Vec<_> = nodes
        .filter(|(key, _)| !dirty.nodes.contains(&key.name))
        .map(|(key, node)| (key.clone(), node.labels.clone(), node.all_addresses.clone()))
        .collect();
    (
        kept(world.pods().map(owned), |key| dirty.pods.contains(key)),
        kept(world.namespaces().map(owned), |key| {
            dirty.namespaces.contains(&key.name)
        }),
        kept(world.policies(), |name| dirty.policies.contains(name)),
        nodes,
    )
}

fn service_with(address: &str) -> Row<Service> {
    Row {
        value: Some(Service {
            cluster_ips: vec![address.parse().expect("an address")],
            ..Service::default()
        }),
        version: "1".into(),
        problems: Vec::new(),
    }
}

fn services(names: &[&str]) -> BTreeSet<ObjectKey> {
    names
        .iter()
        .map(|name| ObjectKey::new("default", *name))
        .collect()
}

#[test]
fn the_least_key_owns_a_cluster_ip_that_several_claim() {
    let mut world = World::default();
    let address = "10.0.0.1".parse().expect("an address");
    let [a, b] = ["a", "b"].map(|name| ObjectKey::new("default", name));

    let apply_b = Change::Service(Event::Apply(b.clone(), service_with("10.0.0.1")));
    assert_eq!(world.apply(apply_b).services, services(&["b"]));
    assert_eq!(world.owner_of(address), Some(&b));
    assert_eq!(world.problems().count(), 0);

    let apply_a = Change::Service(Event::Apply(a.clone(), service_with("10.0.0.1")));
    assert_eq!(world.apply(apply_a).services, services(&["a", "b"]));
    assert_eq!(world.owner_of(address), Some(&a));
    let problem = Problem {
        kind: Kind::Service,
        key: b.clone(),
        text: "ClusterIP 10.0.0.1 belongs to default/a".into(),
    };
    assert_eq!(world.problems().collect::<Vec<_>>(), [problem]);

    let delete_a = Change::Service(Event::Delete(a));
    assert_eq!(world.apply(delete_a).services, services(&["a", "b"]));
    assert_eq!(world.owner_of(address), Some(&b));
    assert_eq!(world.problems().count(), 0);
}

/// A world in which services claim things, told in this order.
fn claimed(services: Vec<(&str, Service)>) -> World {
    let mut world = World::default();
    for (name, service) in services {
        let row = Row {
            value: Some(service),
            version: "1".into(),
            problems: Vec::new(),
        };
        let key = ObjectKey::new("default", name);
        world.apply(Change::Service(Event::Apply(key, row)));
    }
    world
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn port(port: u16, node_port: u16) -> ServicePort {
    ServicePort {
        name: port.to_string(),
        protocol: Protocol::Tcp,
        port,
        node_port: Some(node_port),
    }
}

fn problems(world: &World) -> Vec<String> {
    let problems = world.problems();
    problems
        .map(|problem| format!("{}: {}", problem.key, problem.text))
        .collect()
}

#[test]
fn the_least_key_owns_an_external_port_and_a_node_port_that_several_claim() {
    let service = |cluster_ip, vip: bool, ports: &[ServicePort]| {
        let outer = vec![ip("2001:db8::1")];
        Service {
            cluster_ips: vec![ip(cluster_ip)],
            external_ips: if vip { Vec::new() } else { outer.clone() },
            load_balancer_ips: if vip { outer } else { Vec::new() },
            ports: ports.to_vec(),
            ..Service::default()
        }
    };
    let world = claimed(vec![
        (
            "b",
            service("fd00::2", true, &[port(80, 30080), port(82, 30082)]),
        ),
        (
            "a",
            service("fd00::1", false, &[port(80, 30080), port(81, 30081)]),
        ),
    ]);
    let [a, b] = ["a", "b"].map(|name| ObjectKey::new("default", name));
    let external = |port| world.owner_of_external(ip("2001:db8::1"), port, Protocol::Tcp);
    let node_port = |port| world.owner_of_node_port(port, Protocol::Tcp);
    assert_eq!(
        [80, 81, 82, 83].map(external),
        [Some(&a), Some(&a), Some(&b), None]
    );
    let node_ports = [30080, 30081, 30082, 30083].map(node_port);
    assert_eq!(node_ports, [Some(&a), Some(&a), Some(&b), None]);
    assert_eq!(world.owner_of_node_port(30080, Protocol::Udp), None);
    assert_eq!(
        problems(&world),
        [
            "default/b: external address [2001:db8::1]:80/TCP belongs to default/a",
            "default/b: NodePort 30080/TCP belongs to default/a",
        ]
    );
}

#[test]
fn a_cluster_ip_is_nobodys_external_address() {
    let service = |cluster_ip, external_ip| Service {
        cluster_ips: vec![ip(cluster_ip)],
        external_ips: vec![ip(external_ip)],
        ports: vec![port(80, 30080)],
        ..Service::default()
    };
    let mut world = claimed(vec![("a", service("10.0.0.1", "10.0.0.2"))]);
    let outer = |world: &World| {
        let owner = world.owner_of_external(ip("10.0.0.2"), 80, Protocol::Tcp);
        owner.cloned()
    };
    assert_eq!(outer(&world), Some(ObjectKey::new("default", "a")));

    let key = ObjectKey::new("default", "b");
    let apply = Change::Service(Event::Apply(key.clone(), service_with("10.0.0.2")));
    assert_eq!(world.apply(apply).services, services(&["a", "b"]));
    assert_eq!(outer(&world), None);
    let problem = "default/a: external address 10.0.0.2:80/TCP: \
                   the address is the ClusterIP of default/b";
    assert_eq!(problems(&world), [problem]);

    let delete = Change::Service(Event::Delete(key));
    assert_eq!(world.apply(delete).services, services(&["a", "b"]));
    assert_eq!(outer(&world), Some(ObjectKey::new("default", "a")));
    assert_eq!(problems(&world), Vec::<String>::new());
}

#[test]
fn a_node_that_moves_makes_every_service_dirty() {
    let mut world = claimed(vec![("a", Service::default()), ("b", Service::default())]);
    let mut apply = |zone: Option<&str>, addresses: &[IpAddr], eligible| {
        let node = Node {
            addresses: addresses.to_vec(),
            zone: zone.map(str::to_owned),
            eligible,
            own: true,
            ..Node::default()
        };
        let row = Row {
            value: Some(node),
            version: "1".into(),
            problems: Vec::new(),
        };
        let dirty = world.apply(Change::Node(Event::Apply(ObjectKey::new("", "n1"), row)));
        (dirty.services, dirty.node)
    };
    let dirty = |names: &[&str], node| (services(names), node);
    let address = [ip("10.0.0.1")];
    assert_eq!(apply(None, &address, true), dirty(&["a", "b"], true));
    assert_eq!(apply(Some("x"), &address, true), dirty(&["a", "b"], true));
    assert_eq!(apply(Some("x"), &address, false), dirty(&[], true));
    assert_eq!(apply(Some("x"), &address, false), dirty(&[], false));
    assert_eq!(apply(Some("x"), &[], false), dirty(&["a", "b"], true));
}

#[test]
fn a_slice_that_only_tells_its_time_anew_makes_nothing_dirty() {
    let slice = |seconds: Option<i64>, version: &str| {
        let slice = EndpointSlice {
            service: ObjectKey::new("default", "a"),
            family: Family::IPv4,
            endpoints: Vec::new(),
            ports: Vec::new(),
            trigger: seconds.map(|seconds| jiff::Timestamp::from_second(seconds).expect("a time")),
        };
        let row = Row {
            value: Some(slice),
            version: version.into(),
            problems: Vec::new(),
        };
        Change::EndpointSlice(Event::Apply(ObjectKey::new("default", "a-1"), row))
    };
    let mut world = World::default();
    assert_eq!(world.apply(slice(None, "1")).services, services(&["a"]));
    assert_eq!(world.apply(slice(Some(1), "2")), Dirty::default());
    assert_eq!(world.apply(slice(Some(2), "3")), Dirty::default());
}

#[test]
fn every_kind_is_awaited() {
    let mut world = World::default();
    assert_eq!(world.waiting_for(), Kind::ALL);
    world.apply(Change::Service(Event::Init));
    world.apply(Change::Service(Event::InitDone));
    world.apply(Change::Pod(Event::Init));
    assert_eq!(
        world.waiting_for(),
        [
            Kind::EndpointSlice,
            Kind::Node,
            Kind::Pod,
            Kind::ServiceCidr,
            Kind::Namespace,
            Kind::NetworkPolicy,
            Kind::ClusterNetworkPolicy,
        ]
    );
    for change in Expander::Relist.expand(&State::default(), &State::default(), &[0]) {
        assert!(!world.synced());
        world.apply(change);
    }
    assert!(world.synced());
    world.apply(Change::Pod(Event::Init));
    assert!(world.synced(), "what was listed once stays in force");
}

#[test]
fn a_source_takes_back_its_troubles() {
    let mut world = World::default();
    let trouble = |troubles| {
        Change::Trouble(SourceTrouble {
            subject: "web.yaml".into(),
            troubles,
        })
    };
    let broken = Trouble::error("line 3".into());
    assert!(world.apply(trouble(vec![broken.clone()])).is_empty());
    assert_eq!(
        world.troubles().collect::<Vec<_>>(),
        [("web.yaml", &broken)]
    );
    world.apply(trouble(Vec::new()));
    assert_eq!(world.troubles().count(), 0);
}
