//! Which backends a client may have: policies, source ranges and session affinity.

use std::{cell::Cell, net::SocketAddr};

use super::{CLIENT, Node, SECOND, socket, wire};
use crate::{
    address::{UNSPECIFIED, from_ip},
    flow::Direction,
    headers::UDP,
    memory::Frame,
    packet::Verdict,
    pipeline::Inline,
    reason::Reason,
    scratch::Scratch,
    service::{Backend, Cidr, FrontendKey, FrontendKind, RangeKey, Target},
};

const UPLINK: u32 = 2;

/// A service with two backends that only the local list has, one that both have and two that only
/// the cluster list has, and with a frontend of each kind.
struct World {
    node: Node,
    index: u32,
    /// Clients so far: each has a port of its own.
    clients: Cell<u16>,
}

const CLUSTER_IP: &str = "10.96.0.10:80";
const EXTERNAL: &str = "203.0.113.1:80";
const BALANCER: &str = "203.0.113.2:80";
const BACKENDS: [&str; 5] = [
    "10.244.0.6:80",
    "10.244.0.7:80",
    "10.244.0.8:80",
    "10.244.1.1:80",
    "10.244.1.2:80",
];

impl World {
    fn new(change: impl FnOnce(&mut Backend)) -> Self {
        let mut node = Node::new();
        let index = node.service(socket(CLUSTER_IP), UDP, &BACKENDS.map(socket));
        for (frontend, kind) in [
            (EXTERNAL, FrontendKind::External),
            (BALANCER, FrontendKind::LoadBalancer),
        ] {
            let frontend = socket(frontend);
            let key = FrontendKey::new(from_ip(frontend.ip()), frontend.port(), UDP);
            let target = Target::Service { index, kind };
            node.tables.frontends.insert(key, target);
        }
        let first = node.tables.services[&index].first;
        let header = node.tables.backends.get_mut(&first).expect("a header");
        (header.local, header.only_local) = (3, 2);
        change(header);
        for backend in BACKENDS {
            node.pod(socket(backend), super::SERVER);
        }
        Self {
            node,
            index,
            clients: Cell::new(0),
        }
    }

    /// Where datagrams from many clients go, or what becomes of them otherwise.
    fn reached(&self, direction: Direction, to: &str) -> Result<Vec<String>, Verdict> {
        let mut reached = std::collections::BTreeSet::new();
        for n in 0..32u32 {
            self.node.tables.random.replace([n << 27].into());
            let client = self.clients.replace(self.clients.get() + 1);
            let from = SocketAddr::new([198, 51, 100, 9].into(), 20_000 + client);
            reached.insert(self.send(direction, from, socket(to))?);
        }
        Ok(reached.into_iter().collect())
    }

    /// Where one datagram goes.
    fn send(
        &self,
        direction: Direction,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<String, Verdict> {
        let interface = match direction {
            Direction::FromPod => CLIENT,
            _ => UPLINK,
        };
        let mut frame = Frame {
            bytes: wire::udp(from, to, b"?"),
            interface,
            ..Frame::default()
        };
        let across = Inline {
            packet: &mut frame,
            tables: &self.node.tables,
            scratch: &mut Scratch::new(),
            direction,
        };
        match across.cross() {
            Verdict::Redirect(super::SERVER) => Ok(wire::read(&frame.bytes).to.to_string()),
            other => Err(other),
        }
    }
}

fn local() -> Vec<String> {
    BACKENDS[..3].iter().map(ToString::to_string).collect()
}

fn cluster() -> Vec<String> {
    BACKENDS[2..].iter().map(ToString::to_string).collect()
}

#[test]
fn each_policy_holds_for_its_own_frontends_and_clients() {
    use Direction::{FromPod, FromWire, ToWire};
    for (internal, external) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let world = World::new(|header| {
            (header.internal_local, header.external_local) = (internal, external);
        });
        let list = |local_only| if local_only == 1 { local() } else { cluster() };
        for direction in [FromPod, FromWire, ToWire] {
            let reached = world.reached(direction, CLUSTER_IP);
            assert_eq!(reached, Ok(list(internal)), "{direction:?}");
        }
        for frontend in [EXTERNAL, BALANCER] {
            assert_eq!(world.reached(FromWire, frontend), Ok(list(external)));
            // From this node, the external policy is none (kube-proxy's short-circuit).
            for direction in [FromPod, ToWire] {
                assert_eq!(world.reached(direction, frontend), Ok(cluster()));
            }
        }
    }
}

#[test]
fn without_local_endpoints_a_local_policy_drops_and_without_any_it_refuses() {
    for (any, expected) in [
        (1, Verdict::Drop(Reason::NoLocalEndpoints)),
        (0, Verdict::Redirect(CLIENT)),
    ] {
        let world = World::new(|header| {
            (header.count, header.local, header.only_local) = (0, 0, 0);
            (header.internal_local, header.any) = (1, any);
        });
        assert_eq!(world.reached(Direction::FromPod, CLUSTER_IP), Err(expected));
    }
}

#[test]
fn source_ranges_are_asked_for_load_balancer_ips_alone() {
    let mut world = World::new(|header| header.ranges = 5);
    let range = |set, text: &str| RangeKey {
        set,
        address: from_ip(text.parse().expect("an address")),
    };
    let dropped = Err(Verdict::Drop(Reason::SourceRange));
    assert_eq!(world.reached(Direction::FromWire, BALANCER), dropped);
    assert_eq!(world.reached(Direction::FromPod, BALANCER), dropped);
    assert_eq!(world.reached(Direction::FromWire, EXTERNAL), Ok(cluster()));
    assert_eq!(world.reached(Direction::FromPod, CLUSTER_IP), Ok(cluster()));
    // 96 bits lead to the IPv4 address.
    world
        .node
        .tables
        .ranges
        .insert((96 + 24, range(6, "198.51.100.0")));
    assert_eq!(
        world.reached(Direction::FromWire, BALANCER),
        dropped,
        "another set"
    );
    world
        .node
        .tables
        .ranges
        .insert((96 + 24, range(5, "198.51.100.0")));
    assert_eq!(world.reached(Direction::FromWire, BALANCER), Ok(cluster()));
}

#[test]
fn an_address_that_no_service_has_is_dropped_within_the_services_own() {
    let mut world = World::new(|_| {});
    world.node.tables.cidrs = vec![
        Cidr {
            network: from_ip([10, 96, 0, 0].into()),
            mask: crate::address::Address {
                bytes: [
                    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 240, 0, 0,
                ],
            },
        },
        Cidr {
            network: UNSPECIFIED,
            mask: UNSPECIFIED,
        },
    ];
    let send = |to: &str| {
        let from = socket("10.244.0.5:40000");
        world.send(Direction::FromPod, from, socket(to))
    };
    assert_eq!(
        send("10.96.3.3:80"),
        Err(Verdict::Drop(Reason::UnallocatedAddress))
    );
    assert_eq!(send("10.112.0.1:80"), Err(Verdict::Pass));
    assert_eq!(
        send("10.96.0.10:81"),
        Err(Verdict::Redirect(CLIENT)),
        "a port of a known one"
    );
}

#[test]
fn a_client_keeps_its_backend_whichever_frontend_it_dials() {
    let world = World::new(|header| header.affinity = 60);
    let client = |port| SocketAddr::new([198, 51, 100, 9].into(), port);
    let dial = |port, to: &str, direction| world.send(direction, client(port), socket(to));
    world.node.tables.random.replace([0].into());
    let first = dial(1, CLUSTER_IP, Direction::FromWire).expect("a backend");
    world.node.tables.random.replace([u32::MAX].into());
    for (n, to) in [CLUSTER_IP, EXTERNAL, BALANCER].into_iter().enumerate() {
        world.node.pass_time(40 * SECOND);
        let port = 10 + n as u16;
        assert_eq!(
            dial(port, to, Direction::FromWire).as_ref(),
            Ok(&first),
            "{to}"
        );
    }
    let other = SocketAddr::new([198, 51, 100, 10].into(), 1);
    let others = world.send(Direction::FromWire, other, socket(CLUSTER_IP));
    assert_ne!(others.as_ref(), Ok(&first), "another client");
    world.node.pass_time(61 * SECOND);
    assert_ne!(
        dial(30, CLUSTER_IP, Direction::FromWire).as_ref(),
        Ok(&first),
        "too late"
    );
}

#[test]
fn affinity_ends_where_the_backend_is_not_on_the_list() {
    let world = World::new(|header| (header.affinity, header.external_local) = (60, 1));
    let client = |port| SocketAddr::new([198, 51, 100, 9].into(), port);
    world.node.tables.random.replace([u32::MAX].into());
    let dial = |port, to: &str| world.send(Direction::FromWire, client(port), socket(to));
    let far = dial(1, CLUSTER_IP).expect("a backend");
    assert_eq!(far, BACKENDS[4]);
    let near = dial(2, EXTERNAL).expect("a backend");
    assert_eq!(near, BACKENDS[2]);
    assert_eq!(dial(3, CLUSTER_IP), Ok(near), "which is on both");
}

#[test]
fn every_backend_of_a_list_is_found_again() {
    for local_only in [0, 1] {
        let mut world =
            World::new(|header| (header.affinity, header.internal_local) = (60, local_only));
        let list = if local_only == 1 { local() } else { cluster() };
        for (n, backend) in list.iter().enumerate() {
            let from = SocketAddr::new([198, 51, 100, 20 + n as u8].into(), 1);
            let random = (((n as u64) << 32) / list.len() as u64 + 1) as u32;
            world.node.tables.random.replace([random].into());
            let dial = |world: &World, port| {
                let from = SocketAddr::new(from.ip(), port);
                world.send(Direction::FromPod, from, socket(CLUSTER_IP))
            };
            assert_eq!(dial(&world, 1).as_ref(), Ok(backend));
            world
                .node
                .tables
                .random
                .replace([random.wrapping_add(1 << 31)].into());
            assert_eq!(dial(&world, 2).as_ref(), Ok(backend));
        }
        let header = world.node.tables.services[&world.index].first;
        let header = world
            .node
            .tables
            .backends
            .get_mut(&header)
            .expect("a header");
        header.affinity = 0;
        assert_eq!(
            world.reached(Direction::FromPod, CLUSTER_IP),
            Ok(list),
            "switched off"
        );
    }
}
