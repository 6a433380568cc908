//! From events to tables: whatever way the world comes about, the tables end up saying the same.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    node_view::{NodePortAddresses, NodeView},
    plan::{Allocations, ServiceTables, Sizes},
    render,
    world::{
        self, Change, Dirty, Endpoint, EndpointSlice, Event, Hints, Row, Service, ServicePort,
        SlicePort, World,
    },
};

#[test]
fn port_names_can_be_read_back() {
    for text in [
        "default/web:http/TCP/IPv4",
        "kube-system/dns/UDP/IPv6",
        "default/web/SCTP/IPv4",
    ] {
        let name: PortName = text.parse().expect("a port name");
        assert_eq!(name.to_string(), text);
    }
    for text in [
        "",
        "default/web",
        "default/web/QUIC/IPv4",
        "a/b/TCP/IPv5",
        "a/b/c/TCP/IPv4",
    ] {
        assert_eq!(text.parse::<PortName>(), Err(NotPortName), "{text}");
    }
}

/// Whose tables they are.
const NODE: &str = "node-0";

/// What becomes of one object.
#[derive(Clone, Debug)]
enum Edit<R> {
    Write(u8, R),
    Delete(u8),
    /// All objects are listed again.
    Relist,
    /// The last event comes twice.
    Repeat,
}

/// Nodes have no namespace.
fn key(prefix: &str, number: u8) -> ObjectKey {
    let namespace = if prefix == "node" { "" } else { "default" };
    ObjectKey::new(namespace, format!("{prefix}-{number}"))
}

fn row<R>(value: &R) -> Row<R>
where
    R: Clone,
{
    Row {
        value: Some(value.clone()),
        version: "1".to_owned(),
        problems: Vec::new(),
    }
}

/// The events that tell of the edits, and the objects that there are in the end.
fn events<R: Clone>(prefix: &str, edits: &[Edit<R>]) -> (VecDeque<Event<R>>, BTreeMap<u8, R>) {
    let mut objects = BTreeMap::new();
    let mut events = list(prefix, &objects);
    for edit in edits {
        match edit {
            Edit::Write(number, object) => {
                objects.insert(*number, object.clone());
                events.push_back(Event::Apply(key(prefix, *number), row(object)));
            }
            Edit::Delete(number) => {
                objects.remove(number);
                events.push_back(Event::Delete(key(prefix, *number)));
            }
            Edit::Relist => events.extend(list(prefix, &objects)),
            Edit::Repeat => match events.back() {
                Some(event @ (Event::Apply(..) | Event::Delete(_))) => {
                    events.push_back(event.clone())
                }
                Some(Event::Init | Event::InitApply(..) | Event::InitDone) | None => {}
            },
        }
    }
    (events, objects)
}

fn list<R: Clone>(prefix: &str, objects: &BTreeMap<u8, R>) -> VecDeque<Event<R>> {
    let objects = objects.iter();
    let applied =
        objects.map(|(number, object)| Event::InitApply(key(prefix, *number), row(object)));
    [Event::Init]
        .into_iter()
        .chain(applied)
        .chain([Event::InitDone])
        .collect()
}

/// World, plan and tables of a node.
struct Agent {
    world: World,
    local: Local,
    allocations: Allocations,
    tables: ServiceTables,
    dirty: BTreeSet<ObjectKey>,
}

impl Agent {
    fn new() -> Self {
        let tables = ServiceTables::default();
        let allocations = Allocations::restore(tables.clone(), Sizes::KERNEL);
        Self {
            world: World::default(),
            local: Local::default(),
            allocations,
            tables,
            dirty: BTreeSet::new(),
        }
    }

    fn apply(&mut self, change: Change) {
        let Dirty { services, .. } = self.world.apply(change);
        self.dirty.extend(services);
    }

    fn program(&mut self) {
        let local = Local::of(&self.world, NODE);
        if self.local != local {
            let all = self.world.services().map(|(key, _)| key.clone());
            self.dirty.extend(all);
            self.local = local;
        }
        let dirty = std::mem::take(&mut self.dirty).into_iter();
        let desired = dirty
            .map(|key| (key.clone(), service(&self.world, &self.local, &key)))
            .collect();
        let node = self.world.node(NODE);
        let listed = node.map(|node| &node.addresses[..]).unwrap_or_default();
        let all = listed.iter().copied().collect();
        let view = NodeView::new(&all, listed, &[NodePortAddresses::Primary]);
        let node = super::node(&self.world, &view);
        self.allocations
            .plan(&desired, Some(&node))
            .ops
            .iter()
            .for_each(|op| self.tables.apply(op));
    }

    fn resolved(&self) -> String {
        render::resolved(&self.tables, &self.allocations.names())
    }
}

fn any_edits<R: Clone + fmt::Debug>(
    object: impl Strategy<Value = R> + 'static,
) -> impl Strategy<Value = Vec<Edit<R>>> {
    let edit = prop_oneof![
        6 => (0u8..4, object).prop_map(|(number, object)| Edit::Write(number, object)),
        2 => (0u8..4).prop_map(Edit::Delete),
        1 => Just(Edit::Relist),
        1 => Just(Edit::Repeat),
    ];
    prop::collection::vec(edit, 0..12)
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]
}

fn some_of<T: Clone + fmt::Debug + 'static>(all: Vec<T>) -> impl Strategy<Value = Vec<T>> {
    let most = all.len();
    prop_oneof![
        2 => Just(Vec::new()),
        1 => prop::sample::subsequence(all, 0..=most),
    ]
}

fn parsed<T: FromStr<Err: fmt::Debug>>(texts: &[&str]) -> Vec<T> {
    let texts = texts.iter();
    texts
        .map(|text| text.parse().expect("it can be parsed"))
        .collect()
}

/// Two services may well want the same address, port and NodePort.
fn any_service() -> impl Strategy<Value = Service> {
    let port = ("[ab]", prop::option::weighted(0.3, 30_000u16..30_002));
    let ports = prop::collection::btree_map((any_protocol(), 80u16..82), port, 0..3);
    let external = (
        some_of(parsed(&["192.0.2.1", "10.96.0.1", "fd00:2::1"])),
        some_of(parsed(&["192.0.2.2", "192.0.2.3", "fd00:2::2"])),
        some_of(parsed(&["203.0.113.0/24", "192.168.0.0/16", "fd00:9::/64"])),
    );
    let policies = (any::<bool>(), any::<bool>(), prop::option::of(Just(60)));
    (0u8..3, prop::option::of(0u8..3), ports, external, policies).prop_map(
        |(v4, v6, ports, external, policies)| {
            let v6 = v6.map(|v6| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(v6)]));
            let mut names = BTreeSet::new();
            let mut node_ports = BTreeSet::new();
            let ports = ports.into_iter();
            let ports = ports.map(|((protocol, port), (name, node_port))| ServicePort {
                name,
                protocol,
                port,
                node_port: node_port.filter(|number| node_ports.insert((*number, protocol))),
            });
            Service {
                cluster_ips: [Some(IpAddr::from([10, 96, 0, v4])), v6]
                    .into_iter()
                    .flatten()
                    .collect(),
                external_ips: external.0,
                load_balancer_ips: external.1,
                source_ranges: external.2,
                ports: ports
                    .filter(|port| names.insert((port.name.clone(), port.protocol)))
                    .collect(),
                internal_local: policies.0,
                external_local: policies.1,
                affinity: policies.2,
                health_check_node_port: None,
            }
        },
    )
}

fn any_node() -> impl Strategy<Value = world::Node> {
    let zone = prop::option::of(prop_oneof![Just("a"), Just("b")]);
    let addresses = some_of(parsed(&["192.168.0.1", "10.96.0.1", "fd00:192::1"]));
    (zone, addresses).prop_map(|(zone, addresses)| world::Node {
        addresses,
        zone: zone.map(str::to_owned),
        ..world::Node::default()
    })
}

fn any_endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let state = any::<(bool, bool, bool)>();
    let node = prop::option::of(prop_oneof![Just(NODE), Just("node-1")]);
    let zones = some_of(vec!["a".to_owned(), "b".to_owned()]);
    let nodes = some_of(vec![NODE.to_owned(), "node-1".to_owned()]);
    (1u8..6, state, node, zones, nodes).prop_map(
        move |(number, (ready, serving, terminating), node, zones, nodes)| Endpoint {
            address: match family {
                Family::IPv4 => IpAddr::from([10, 0, 0, number]),
                Family::IPv6 => IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, u16::from(number)]),
            },
            ready,
            serving,
            terminating,
            node: node.map(str::to_owned),
            hints: Hints { zones, nodes },
        },
    )
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let family = prop_oneof![Just(Family::IPv4), Just(Family::IPv6)];
    let ports = prop::collection::vec(("[ab]", any_protocol(), 8080u16..8082), 0..3);
    (0u8..4, family, ports).prop_flat_map(|(service, family, ports)| {
        let ports = ports.into_iter().map(|(name, protocol, port)| SlicePort {
            name,
            protocol,
            port,
        });
        let ports: Vec<_> = ports.collect();
        prop::collection::vec(any_endpoint(family), 0..5).prop_map(move |endpoints| EndpointSlice {
            service: key("service", service),
            family,
            endpoints,
            ports: ports.clone(),
            trigger: None,
        })
    })
}

proptest! {
    #[test]
    fn any_way_to_a_world_ends_where_its_list_does(
        services in any_edits(any_service()),
        slices in any_edits(any_slice()),
        nodes in any_edits(any_node()),
        order in prop::collection::vec(any::<(Index, bool)>(), 1..80),
    ) {
        let (service_events, services) = events("service", &services);
        let (slice_events, slices) = events("slice", &slices);
        let (node_events, nodes) = events("node", &nodes);
        // Each kind's events keep their order; how the kinds mix, and what comes at once, varies.
        let mut left: Vec<VecDeque<Change>> = vec![
            service_events.into_iter().map(Change::Service).collect(),
            slice_events.into_iter().map(Change::EndpointSlice).collect(),
            node_events.into_iter().map(Change::Node).collect(),
        ];
        let mut agent = Agent::new();
        let mut order = order.into_iter().cycle();
        while !left.is_empty() {
            let (which, program) = order.next().expect("it never ends");
            let which = which.index(left.len());
            match left[which].pop_front() {
                Some(change) => agent.apply(change),
                None => drop(left.remove(which)),
            }
            if program {
                agent.program();
            }
        }
        agent.program();

        let mut fresh = Agent::new();
        let slices = list("slice", &slices).into_iter().map(Change::EndpointSlice);
        let services = list("service", &services).into_iter().map(Change::Service);
        let nodes = list("node", &nodes).into_iter().map(Change::Node);
        slices.chain(services).chain(nodes).for_each(|change| fresh.apply(change));
        fresh.program();
        prop_assert_eq!(agent.resolved(), fresh.resolved());
    }
}
