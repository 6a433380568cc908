//! Decisions for sockets.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{Node, SECOND, casts};
use crate::{
    address::{from_ip, to_ip},
    headers::{TCP, UDP},
    memory::MemoryTables,
    reason::Reason,
    service::{AffinityKey, Backend, FrontendKey, FrontendKind, RangeKey, Target},
    socket::{self, Caller, Peer, Settings},
};

/// Network namespace of a pod.
const POD: Option<u64> = Some(4026);
const SET: u32 = 5;

fn caller(cookie: u64, protocol: u8) -> Caller {
    Caller {
        cookie,
        protocol,
        namespace: None,
    }
}

fn peer(at: SocketAddr) -> Peer {
    Peer {
        address: from_ip(at.ip()),
        port: at.port(),
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Leave,
    Reach(Peer),
    Refuse(Reason),
}

type Call = fn(&MemoryTables, &Caller, &mut Peer) -> Result<(), Reason>;

fn decide(call: Call, tables: &MemoryTables, caller: &Caller, to: &Peer) -> Decision {
    let mut peer = *to;
    match call(tables, caller, &mut peer) {
        Ok(()) if peer == *to => Decision::Leave,
        Ok(()) => Decision::Reach(peer),
        Err(reason) => Decision::Refuse(reason),
    }
}

fn connect(tables: &MemoryTables, caller: &Caller, to: &Peer) -> Decision {
    decide(socket::connect, tables, caller, to)
}

fn send(tables: &MemoryTables, caller: &Caller, to: &Peer) -> Decision {
    decide(socket::send, tables, caller, to)
}

/// What the process dialled, as it is told; `None` where that is `to` itself.
fn dialled(tables: &MemoryTables, caller: &Caller, to: &Peer) -> Option<Peer> {
    let mut peer = *to;
    socket::report(tables, caller, &mut peer);
    (peer != *to).then_some(peer)
}

fn reach(decision: Decision) -> SocketAddr {
    match decision {
        Decision::Reach(Peer { address, port }) => SocketAddr::new(to_ip(&address), port),
        other => panic!("{other:?}"),
    }
}

/// A node with primary addresses.
fn node() -> Node {
    let mut node = Node::new();
    node.tables.settings = Settings {
        v4: primary(true),
        v6: primary(false),
        ..Settings::NONE
    };
    node
}

fn primary(v4: bool) -> crate::address::Address {
    let text = if v4 { "172.18.0.2" } else { "fd00:172:18::2" };
    from_ip(text.parse().expect("an address"))
}

/// Changes the header of a service's extent.
fn set(node: &mut Node, service: u32, change: impl FnOnce(&mut Backend)) {
    let first = node.tables.services[&service].first;
    change(node.tables.backends.get_mut(&first).expect("a header"));
}

/// Makes another address and port a frontend of a service.
fn add(node: &mut Node, at: SocketAddr, kind: FrontendKind, index: u32) {
    let key = FrontendKey::new(from_ip(at.ip()), at.port(), TCP);
    let target = Target::Service { index, kind };
    node.tables.frontends.insert(key, target);
}

#[test]
fn a_socket_reaches_a_backend_and_is_told_what_it_dialled() {
    for cast in casts() {
        for protocol in [TCP, UDP] {
            let mut node = node();
            node.service(cast.service, protocol, &[cast.one]);
            let caller = caller(1, protocol);
            for call in [connect, send] {
                let decision = call(&node.tables, &caller, &peer(cast.service));
                assert_eq!(reach(decision), cast.one);
                let found = dialled(&node.tables, &caller, &peer(cast.one));
                assert_eq!(found, Some(peer(cast.service)));
            }
            let other = Caller {
                cookie: 2,
                ..caller
            };
            assert_eq!(dialled(&node.tables, &other, &peer(cast.one)), None);
            assert_eq!(dialled(&node.tables, &caller, &peer(cast.two)), None);
        }
    }
}

#[test]
fn whoever_is_no_service_keeps_his_address() {
    for cast in casts() {
        let mut node = node();
        node.service(cast.service, TCP, &[cast.one]);
        for at in [cast.one, cast.client] {
            let decision = connect(&node.tables, &caller(1, TCP), &peer(at));
            assert_eq!(decision, Decision::Leave);
        }
        // Port 0 only asks for a route.
        let route = SocketAddr::new(cast.service.ip(), 0);
        let decision = connect(&node.tables, &caller(1, UDP), &peer(route));
        assert_eq!(decision, Decision::Leave);
        assert!(node.tables.sockets.borrow().is_empty());
    }
}

#[test]
fn no_endpoints_and_undefined_ports_are_refused() {
    for cast in casts() {
        let mut node = node();
        node.service(cast.service, TCP, &[]);
        let undefined = SocketAddr::new(cast.service.ip(), 81);
        for (at, reason) in [
            (cast.service, Reason::NoEndpoints),
            (undefined, Reason::UndefinedPort),
        ] {
            for call in [connect, send] {
                let decision = call(&node.tables, &caller(1, TCP), &peer(at));
                assert_eq!(decision, Decision::Refuse(reason), "{at}");
            }
        }
    }
}

#[test]
fn connections_choose_afresh_and_datagrams_of_a_socket_stay() {
    for cast in casts() {
        let mut node = node();
        let service = node.service(cast.service, UDP, &[cast.one, cast.two]);
        node.tables.random.replace([0, u32::MAX].into());
        let caller = caller(1, UDP);
        let to = peer(cast.service);
        let connected = || reach(connect(&node.tables, &caller, &to));
        let both = BTreeSet::from([connected(), connected()]);
        assert_eq!(both, BTreeSet::from([cast.one, cast.two]));
        let first = reach(send(&node.tables, &caller, &to));
        for _ in 0..3 {
            assert_eq!(reach(send(&node.tables, &caller, &to)), first);
        }
        // A change of the service is no death of the backend.
        node.point(service, &[cast.client]);
        assert_eq!(reach(send(&node.tables, &caller, &to)), first);
        node.kill_all();
        node.point(service, &[cast.client]);
        assert_eq!(reach(send(&node.tables, &caller, &to)), cast.client);
    }
}

#[test]
fn a_node_port_is_served_where_the_node_says_so() {
    for cast in casts() {
        let mut node = node();
        let index = node.service(cast.service, TCP, &[cast.one]);
        let v4 = cast.service.is_ipv4();
        let kind = FrontendKind::External;
        let target = Target::Service { index, kind };
        let key = FrontendKey::node_port(v4, 30080, TCP);
        node.tables.frontends.insert(key, target);
        let own = SocketAddr::new(to_ip(&primary(v4)), 30080);
        let whole = FrontendKey::whole_address(primary(v4));
        for (ports, expected) in [(true, Some(cast.one)), (false, None)] {
            let address = Target::NodeAddress { ports };
            node.tables.frontends.insert(whole, address);
            let decision = connect(&node.tables, &caller(1, TCP), &peer(own));
            let expected =
                expected.map_or(Decision::Leave, |backend| Decision::Reach(peer(backend)));
            assert_eq!(decision, expected);
        }
        let closed = SocketAddr::new(own.ip(), 30081);
        node.tables
            .frontends
            .insert(whole, Target::NodeAddress { ports: true });
        let decision = connect(&node.tables, &caller(1, TCP), &peer(closed));
        assert_eq!(
            decision,
            Decision::Leave,
            "what listens there is the node's affair"
        );
    }
}

#[test]
fn the_internal_policy_holds_and_the_external_one_is_for_others() {
    for cast in casts() {
        let external = SocketAddr::new(cast.client.ip(), 80);
        let mut node = node();
        let index = node.service(cast.service, TCP, &[cast.one, cast.two]);
        add(&mut node, external, FrontendKind::External, index);
        // One local endpoint, then none.
        for (local, internal) in [(1, Decision::Reach(peer(cast.one))), (0, Decision::Leave)] {
            set(&mut node, index, |header| {
                header.local = local;
                (header.internal_local, header.external_local) = (1, 1);
            });
            node.tables.random.replace([u32::MAX].into());
            let decision = |at| connect(&node.tables, &caller(1, TCP), &peer(at));
            assert_eq!(decision(cast.service), internal);
            assert_eq!(reach(decision(external)), cast.two);
        }
        set(&mut node, index, |header| {
            (header.count, header.any) = (0, 0);
        });
        let decision = connect(&node.tables, &caller(1, TCP), &peer(cast.service));
        assert_eq!(decision, Decision::Refuse(Reason::NoEndpoints));
    }
}

#[test]
fn source_ranges_are_asked_for_the_nodes_own_address() {
    for cast in casts() {
        let vip = SocketAddr::new(cast.client.ip(), 80);
        let mut node = node();
        let index = node.service(cast.service, TCP, &[cast.one]);
        add(&mut node, vip, FrontendKind::LoadBalancer, index);
        set(&mut node, index, |header| header.ranges = SET);
        let host = caller(1, TCP);
        let pod = Caller {
            namespace: POD,
            ..host
        };
        let decision = |caller| connect(&node.tables, caller, &peer(vip));
        assert_eq!(decision(&host), Decision::Leave, "dropped where it leaves");
        let range = RangeKey {
            set: SET,
            address: primary(vip.is_ipv4()),
        };
        node.tables.ranges.insert((128, range));
        let decision = |caller| connect(&node.tables, caller, &peer(vip));
        assert_eq!(reach(decision(&host)), cast.one);
        assert_eq!(
            decision(&pod),
            Decision::Leave,
            "its interface knows its address"
        );
        let decision = connect(&node.tables, &pod, &peer(cast.service));
        assert_eq!(reach(decision), cast.one);
    }
}

#[test]
fn affinity_is_by_the_nodes_own_address_and_by_pod() {
    for cast in casts() {
        let mut node = node();
        let index = node.service(cast.service, TCP, &[cast.one, cast.two]);
        set(&mut node, index, |header| {
            header.affinity = 10;
            (header.local, header.only_local) = (0, 0);
        });
        node.tables.random.replace([0, u32::MAX].into());
        let to = peer(cast.service);
        let host = |cookie| reach(connect(&node.tables, &caller(cookie, TCP), &to));
        let first = host(1);
        for cookie in 2..6 {
            assert_eq!(host(cookie), first);
            node.pass_time(9 * SECOND);
        }
        let key = AffinityKey {
            client: primary(cast.service.is_ipv4()),
            service: index,
        };
        let shared = node.tables.affinities.borrow()[&key];
        assert_eq!(
            shared.address,
            from_ip(first.ip()),
            "as packets know the node"
        );

        let pod = |cookie, namespace| {
            let caller = Caller {
                namespace: Some(namespace),
                ..caller(cookie, TCP)
            };
            reach(connect(&node.tables, &caller, &to))
        };
        let (one, other) = (pod(10, 1), pod(11, 2));
        assert_ne!(one, other, "each pod has its own");
        assert_eq!((pod(12, 1), pod(13, 2)), (one, other));
        node.pass_time(11 * SECOND);
        let chosen = BTreeSet::from([host(20), pod(21, 1), pod(22, 2)]);
        assert_eq!(chosen.len(), 2, "after the time all choose afresh");
    }
}

#[test]
fn an_entry_of_another_socket_is_not_taken_for_ones_own() {
    let [cast, _] = casts();
    let mut node = node();
    node.service(cast.service, UDP, &[cast.one]);
    let caller = caller(1, UDP);
    reach(send(&node.tables, &caller, &peer(cast.service)));
    for entry in node.tables.sockets.borrow_mut().values_mut() {
        entry.check ^= 1;
    }
    assert_eq!(dialled(&node.tables, &caller, &peer(cast.one)), None);
    let decision = send(&node.tables, &caller, &peer(cast.service));
    assert_eq!(reach(decision), cast.one, "chosen afresh");
    let found = dialled(&node.tables, &caller, &peer(cast.one));
    assert_eq!(found, Some(peer(cast.service)));
}
