//! From events to tables: whatever way the world comes about, the tables end up saying the same.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    plan::{Allocations, ServiceTables, Sizes},
    render,
    world::{
        Change, Dirty, Endpoint, EndpointSlice, Event, Hints, Row, Service, ServicePort, SlicePort,
        World,
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

fn key(prefix: &str, number: u8) -> ObjectKey {
    ObjectKey::new("default", format!("{prefix}-{number}"))
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
struct Node {
    world: World,
    allocations: Allocations,
    tables: ServiceTables,
    dirty: BTreeSet<ObjectKey>,
}

impl Node {
    fn new() -> Self {
        let tables = ServiceTables::default();
        let allocations = Allocations::restore(tables.clone(), Sizes::KERNEL);
        Self {
            world: World::default(),
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
        let local = Local::of(&self.world, "node-a");
        let dirty = std::mem::take(&mut self.dirty).into_iter();
        let desired = dirty
            .map(|key| (key.clone(), service(&self.world, &local, &key)))
            .collect();
        self.allocations
            .plan(&desired, None)
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

fn any_service() -> impl Strategy<Value = Service> {
    let ports = prop::collection::btree_map((any_protocol(), 80u16..82), "[ab]", 0..3);
    (0u8..3, prop::option::of(0u8..3), ports).prop_map(|(v4, v6, ports)| {
        let v6 = v6.map(|v6| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(v6)]));
        let mut names = BTreeSet::new();
        let ports = ports
            .into_iter()
            .map(|((protocol, port), name)| ServicePort {
                name,
                protocol,
                port,
                node_port: None,
            });
        Service {
            cluster_ips: [Some(IpAddr::from([10, 96, 0, v4])), v6]
                .into_iter()
                .flatten()
                .collect(),
            ports: ports
                .filter(|port| names.insert((port.name.clone(), port.protocol)))
                .collect(),
            ..Service::default()
        }
    })
}

fn any_endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    (1u8..6, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        move |(number, ready, serving, terminating)| Endpoint {
            address: match family {
                Family::IPv4 => IpAddr::from([10, 0, 0, number]),
                Family::IPv6 => IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, u16::from(number)]),
            },
            ready,
            serving,
            terminating,
            node: None,
            hints: Hints::default(),
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
        order in prop::collection::vec(any::<(Index, bool)>(), 1..80),
    ) {
        let (mut service_events, services) = events("service", &services);
        let (mut slice_events, slices) = events("slice", &slices);
        let mut node = Node::new();
        let mut order = order.into_iter().cycle();
        while !service_events.is_empty() || !slice_events.is_empty() {
            // Each kind's events keep their order; how the kinds mix, and what comes at once, varies.
            let (which, program) = order.next().expect("it never ends");
            let left = service_events.len() + slice_events.len();
            let change = if which.index(left) < service_events.len() {
                service_events.pop_front().map(Change::Service)
            } else {
                slice_events.pop_front().map(Change::EndpointSlice)
            };
            node.apply(change.expect("an event is left"));
            if program {
                node.program();
            }
        }
        node.program();

        let mut fresh = Node::new();
        list("slice", &slices).into_iter().for_each(|event| fresh.apply(Change::EndpointSlice(event)));
        list("service", &services).into_iter().for_each(|event| fresh.apply(Change::Service(event)));
        fresh.program();
        prop_assert_eq!(node.resolved(), fresh.resolved());
    }
}
