//! Packets at the interfaces that lead out of the node.

use std::net::{IpAddr, SocketAddr};

use super::{CLIENT, Node, SERVER, sctp, socket, wire};
use crate::{
    address::{UNSPECIFIED, from_ip},
    balance::FORWARDED_PORTS,
    crc32c,
    endpoint::{Device, DeviceKey},
    flow::{Direction, Tuple},
    headers::{ACK, FIN, RST, SCTP, SYN, TCP, UDP},
    memory::Frame,
    packet::{Hop, MARK_DELIVER, MARK_FROM_HOST, MARK_FROM_WIRE, Verdict},
    pipeline::{Inline, InlineFrame},
    reason::Reason,
    scratch::Scratch,
    service::{FrontendKey, FrontendKind, Target},
};

/// Interface of the uplink, and of a tunnel to other nodes.
const UPLINK: u32 = 2;
const TUNNEL: u32 = 3;

/// The story in one family: who is where.
struct Map {
    /// On another machine, outside of the cluster.
    outside: SocketAddr,
    /// A NodePort of this node.
    node_port: SocketAddr,
    /// This node on its uplink, and on the tunnel.
    uplink: IpAddr,
    tunnel: IpAddr,
    cluster_ip: SocketAddr,
    local: SocketAddr,
    remote: SocketAddr,
}

fn maps() -> [Map; 2] {
    let ip = |text: &str| text.parse().expect("an address");
    [
        Map {
            outside: socket("198.51.100.9:40000"),
            node_port: socket("192.0.2.1:30080"),
            uplink: ip("192.0.2.1"),
            tunnel: ip("10.244.0.0"),
            cluster_ip: socket("10.96.0.10:80"),
            local: socket("10.244.0.6:8080"),
            remote: socket("10.244.1.7:8080"),
        },
        Map {
            outside: socket("[2001:db8:9::9]:40000"),
            node_port: socket("[2001:db8::1]:30080"),
            uplink: ip("2001:db8::1"),
            tunnel: ip("fd00:244::"),
            cluster_ip: socket("[fd00:96::10]:80"),
            local: socket("[fd00:244::6]:8080"),
            remote: socket("[fd00:244:1::7]:8080"),
        },
    ]
}

/// What a packet with these ends is looked up by.
fn tuple(from: SocketAddr, to: SocketAddr) -> Tuple {
    Tuple {
        source: from_ip(from.ip()),
        destination: from_ip(to.ip()),
        source_port: from.port(),
        destination_port: to.port(),
    }
}

/// How often the packet may still be forwarded.
fn hop_limit(bytes: &[u8]) -> u8 {
    bytes[if bytes[12] == 0x86 { 21 } else { 22 }]
}

/// The packet with another hop limit.
fn with_hop_limit(bytes: &[u8], limit: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes[12] == 0x86 {
        bytes[21] = limit;
    } else {
        bytes[22] = limit;
        let (header, _) = etherparse::Ipv4Header::from_slice(&bytes[14..]).expect("a header");
        bytes[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    }
    bytes
}

/// A node between its uplink and a tunnel to other nodes, with a pod on [`SERVER`].
struct Gateway {
    node: Node,
    routes: Vec<(IpAddr, u32)>,
    mtu: u32,
    awaited: Vec<(SocketAddr, SocketAddr)>,
}

impl Gateway {
    fn new(map: &Map) -> Self {
        let mut node = Node::new();
        let v4 = map.uplink.is_ipv4();
        for (index, source) in [(UPLINK, map.uplink), (TUNNEL, map.tunnel)] {
            let source = from_ip(source);
            let device = Device {
                v4: if v4 { source } else { UNSPECIFIED },
                v6: if v4 { UNSPECIFIED } else { source },
                mtu: 1500,
                ethernet: 1,
                xdp: u8::from(index == UPLINK),
            };
            node.tables.devices.insert(DeviceKey { index }, device);
            node.tables.frontends.insert(
                FrontendKey::whole_address(source),
                Target::NodeAddress {
                    ports: index == UPLINK,
                },
            );
        }
        node.pod(map.local, SERVER);
        Self {
            node,
            routes: vec![(map.outside.ip(), UPLINK), (map.remote.ip(), TUNNEL)],
            mtu: 1500,
            awaited: Vec::new(),
        }
    }

    /// Programs a service with a ClusterIP and a NodePort.
    fn serve(&mut self, map: &Map, protocol: u8, backends: &[SocketAddr]) -> u32 {
        let index = self.node.service(map.cluster_ip, protocol, backends);
        let key = FrontendKey::node_port(map.uplink.is_ipv4(), map.node_port.port(), protocol);
        let kind = FrontendKind::External;
        let target = Target::Service { index, kind };
        self.node.tables.frontends.insert(key, target);
        index
    }

    fn frame(&self, interface: u32, bytes: &[u8]) -> Frame {
        let hop = |out: u32| Hop {
            interface: out,
            resolved: true,
            source: wire::mac(out as u8 as u32),
            destination: [2, 0, 0, 0, 1, out as u8],
        };
        let routes = self.routes.iter();
        let awaited = self.awaited.iter();
        Frame {
            bytes: bytes.to_vec(),
            interface,
            routes: routes
                .map(|(to, out)| (from_ip(*to), (hop(*out), self.mtu)))
                .collect(),
            awaited: awaited.map(|(from, to)| tuple(*from, *to)).collect(),
            ..Frame::default()
        }
    }

    fn cross(&self, direction: Direction, mut frame: Frame) -> (Verdict, Frame) {
        let across = Inline {
            packet: &mut frame,
            tables: &self.node.tables,
            scratch: &mut Scratch::new(),
            direction,
        };
        let verdict = across.cross();
        if !matches!(verdict, Verdict::Drop(_)) {
            wire::check(&frame.bytes);
        }
        (verdict, frame)
    }

    fn enters(&self, interface: u32, bytes: &[u8]) -> (Verdict, Frame) {
        self.cross(Direction::FromWire, self.frame(interface, bytes))
    }

    fn leaves(&self, interface: u32, bytes: &[u8]) -> (Verdict, Frame) {
        self.cross(Direction::ToWire, self.frame(interface, bytes))
    }

    fn counted(&self, reason: Reason) -> u64 {
        let counters = self.node.tables.counters.borrow();
        counters.get(&reason).copied().unwrap_or(0)
    }
}

/// A local backend sees the client's own address, and its reply goes straight back.
#[test]
fn a_local_backend_sees_the_client_and_answers_by_the_uplink() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, TCP, &[map.local]);
        let (verdict, sent) = gateway.enters(UPLINK, &wire::tcp(map.outside, map.node_port, SYN));
        assert_eq!(verdict, Verdict::Redirect(SERVER));
        assert_eq!(sent.mark, MARK_FROM_WIRE);
        assert_eq!(wire::read(&sent.bytes), wire::seen(map.outside, map.local));

        let arriving = Frame {
            arrived_by: UPLINK,
            mark: MARK_FROM_WIRE,
            ..gateway.frame(SERVER, &sent.bytes)
        };
        assert_eq!(gateway.cross(Direction::ToPod, arriving).0, Verdict::Pass);
        let reply = wire::tcp(map.local, map.outside, SYN | ACK);
        let (verdict, sent) = gateway.cross(Direction::FromPod, gateway.frame(SERVER, &reply));
        assert_eq!(verdict, Verdict::Redirect(UPLINK));
        assert_eq!(sent.mark, 0, "it is yet to be translated");
        let (verdict, sent) = gateway.leaves(UPLINK, &sent.bytes);
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(
            wire::read(&sent.bytes),
            wire::seen(map.node_port, map.outside)
        );
    }
}

/// A remote backend sees the node, by the device that leads there, and the client sees the NodePort.
#[test]
fn a_remote_backend_is_reached_by_the_nodes_own_address() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, UDP, &[map.remote]);
        let (verdict, sent) = gateway.enters(UPLINK, &wire::udp(map.outside, map.node_port, b"?"));
        assert_eq!(
            (verdict, sent.mark),
            (Verdict::Redirect(TUNNEL), MARK_DELIVER)
        );
        let forwarded = wire::read(&sent.bytes);
        assert_eq!(
            (forwarded.from.ip(), forwarded.to),
            (map.tunnel, map.remote)
        );
        assert!(FORWARDED_PORTS.contains(&forwarded.from.port()));
        assert_eq!(hop_limit(&sent.bytes), 63);
        assert_eq!(sent.bytes[..6], [2, 0, 0, 0, 1, TUNNEL as u8]);

        let reply = wire::udp(map.remote, forwarded.from, b"!");
        let (verdict, sent) = gateway.enters(TUNNEL, &reply);
        assert_eq!(verdict, Verdict::Redirect(UPLINK));
        assert_eq!(
            wire::read(&sent.bytes),
            wire::seen(map.node_port, map.outside)
        );
        assert_eq!(hop_limit(&sent.bytes), 63);
    }
}

#[test]
fn what_goes_out_as_decided_is_not_looked_at_again() {
    let [map, _] = maps();
    let gateway = Gateway::new(&map);
    let frame = Frame {
        mark: MARK_DELIVER,
        ..gateway.frame(UPLINK, &wire::tcp(map.node_port, map.cluster_ip, SYN))
    };
    assert_eq!(gateway.cross(Direction::ToWire, frame).0, Verdict::Pass);
}

#[test]
fn a_packet_that_was_forwarded_too_often_is_answered() {
    for (number, map) in maps().into_iter().chain(maps()).enumerate() {
        let mut gateway = Gateway::new(&map);
        let backend = if number < 2 { map.local } else { map.remote };
        gateway.serve(&map, UDP, &[backend]);
        let packet = with_hop_limit(&wire::udp(map.outside, map.node_port, b""), 1);
        let (verdict, sent) = gateway.enters(UPLINK, &packet);
        assert_eq!(
            (verdict, sent.mark),
            (Verdict::Redirect(UPLINK), MARK_DELIVER)
        );
        let (from, to, quoted) = wire::quoted(&sent.bytes);
        assert_eq!((from, to), (map.node_port.ip(), map.outside.ip()));
        assert_eq!(
            wire::addresses(&quoted),
            (map.outside.ip(), map.node_port.ip()),
            "the packet as it came"
        );
        assert_eq!(gateway.counted(Reason::HopLimit), 1);
    }
}

#[test]
fn a_packet_that_does_not_fit_is_answered_with_what_would() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, UDP, &[map.remote]);
        gateway.mtu = 1400;
        let packet = wire::udp(map.outside, map.node_port, &[7; 1400]);
        let (verdict, sent) = gateway.enters(UPLINK, &packet);
        assert_eq!(verdict, Verdict::Redirect(UPLINK));
        let icmp = if map.uplink.is_ipv4() { 34 } else { 54 };
        assert_eq!(sent.bytes[icmp + 4..icmp + 8], 1400u32.to_be_bytes());
        assert_eq!(gateway.counted(Reason::TooBig), 1);

        gateway
            .node
            .tables
            .endpoints
            .values_mut()
            .for_each(|endpoint| endpoint.mtu = 1400);
        let index = gateway.serve(&map, UDP, &[map.local]);
        let other = SocketAddr::new(map.outside.ip(), 40001);
        let packet = wire::udp(other, map.node_port, &[7; 1400]);
        assert_eq!(gateway.enters(UPLINK, &packet).0, Verdict::Redirect(UPLINK));
        assert_eq!(
            gateway.counted(Reason::TooBig),
            2,
            "a pod's interface, service {index}"
        );
    }
}

#[test]
fn a_source_of_this_node_from_outside_is_a_lie() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, TCP, &[map.local, map.remote]);
        let loopback: [IpAddr; 2] = [[127, 0, 0, 9].into(), std::net::Ipv6Addr::LOCALHOST.into()];
        let loopback = loopback[usize::from(map.uplink.is_ipv6())];
        for source in [map.tunnel, map.local.ip(), loopback] {
            for to in [map.node_port, map.cluster_ip] {
                let packet = wire::tcp(SocketAddr::new(source, 40000), to, SYN);
                let (verdict, _) = gateway.enters(UPLINK, &packet);
                assert_eq!(verdict, Verdict::Drop(Reason::SpoofedSource), "{source}");
            }
        }
        let liar = SocketAddr::new(map.tunnel, 40000);
        let (verdict, _) = gateway.enters(UPLINK, &wire::udp(liar, map.local, b"?"));
        let expected = match map.uplink {
            IpAddr::V4(_) => Verdict::Pass,
            IpAddr::V6(_) => Verdict::Drop(Reason::SpoofedSource),
        };
        assert_eq!(verdict, expected, "the kernel drops IPv4 ones itself");
    }
}

#[test]
fn ports_that_somebody_waits_on_are_not_taken() {
    let [map, _] = maps();
    let mut gateway = Gateway::new(&map);
    gateway.serve(&map, TCP, &[map.remote]);
    let node = |port| SocketAddr::new(map.tunnel, port);
    gateway.awaited = FORWARDED_PORTS
        .map(|port| (map.remote, node(port)))
        .collect();
    let packet = wire::tcp(map.outside, map.node_port, SYN);
    let (verdict, _) = gateway.enters(UPLINK, &packet);
    assert_eq!(verdict, Verdict::Drop(Reason::PortsExhausted));
    gateway.awaited.retain(|(_, to)| to.port() != 1024);
    // The lowest port is what the first random number of zero picks.
    let (verdict, sent) = gateway.enters(UPLINK, &packet);
    assert_eq!(verdict, Verdict::Redirect(TUNNEL));
    assert_eq!(wire::read(&sent.bytes).from, node(1024));
}

/// A connection that the node forwarded from a port of its own, to the end.
struct Lent {
    map: Map,
    gateway: Gateway,
    /// The port that the lowest random number picks.
    port: SocketAddr,
}

impl Lent {
    fn established(map: Map) -> Self {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, TCP, &[map.remote]);
        let port = SocketAddr::new(map.tunnel, 1024);
        let mut lent = Self { map, gateway, port };
        let (old, port) = (lent.map.outside, lent.port);
        assert_eq!(lent.ask(old, SYN), (Verdict::Redirect(TUNNEL), port));
        assert_eq!(lent.answered(SYN | ACK), old);
        assert_eq!(lent.ask(old, ACK).0, Verdict::Redirect(TUNNEL));
        lent
    }

    fn closed(map: Map) -> Self {
        let mut lent = Self::established(map);
        lent.ask(lent.map.outside, FIN | ACK);
        assert_eq!(lent.answered(FIN | ACK), lent.map.outside);
        lent
    }

    /// The next client.
    fn next(&self) -> SocketAddr {
        let old = self.map.outside;
        SocketAddr::new(old.ip(), old.port() + 1)
    }

    fn ask(&mut self, client: SocketAddr, flags: u8) -> (Verdict, SocketAddr) {
        let packet = wire::tcp(client, self.map.node_port, flags);
        let (verdict, sent) = self.gateway.enters(UPLINK, &packet);
        (verdict, wire::read(&sent.bytes).from)
    }

    /// Who hears what the backend says to the port.
    fn answered(&mut self, flags: u8) -> SocketAddr {
        let answer = wire::tcp(self.map.remote, self.port, flags);
        wire::read(&self.gateway.enters(TUNNEL, &answer).1.bytes).to
    }
}

/// The backend may still remember the connection, and take no other from there.
#[test]
fn the_port_of_a_closed_connection_waits_while_others_are_free() {
    for map in maps() {
        let mut lent = Lent::closed(map);
        let numbers = [0; 7].into_iter().chain([u32::MAX]).collect();
        lent.gateway.node.tables.random.replace(numbers);
        let highest = SocketAddr::new(lent.port.ip(), 29_999);
        let forwarded = (Verdict::Redirect(TUNNEL), highest);
        assert_eq!(lent.ask(lent.next(), SYN), forwarded);
    }
}

/// It may be had again at once where there is no other, and then is nothing of the old one's.
#[test]
fn the_port_of_a_closed_connection_goes_to_who_finds_no_other() {
    for map in maps() {
        let mut lent = Lent::closed(map);
        let forwarded = (Verdict::Redirect(TUNNEL), lent.port);
        let (old, new) = (lent.map.outside, lent.next());
        assert_eq!(lent.ask(new, SYN), forwarded);
        assert_eq!(lent.ask(old, RST).0, Verdict::Pass, "late");
        assert_eq!(lent.answered(SYN | ACK), new);
        assert_eq!(lent.ask(new, ACK), forwarded);
        let flows = lent.gateway.node.tables.flows.borrow();
        assert_eq!(flows.len(), 2);
        assert!(flows.values().all(|flow| flow.reset == 0));
    }
}

/// Nobody remembers a connection that was reset.
#[test]
fn the_port_of_a_connection_that_was_reset_is_free() {
    for map in maps() {
        let mut lent = Lent::established(map);
        lent.gateway
            .node
            .tables
            .random
            .replace([0, 0, u32::MAX].into());
        lent.ask(lent.map.outside, RST);
        let forwarded = (Verdict::Redirect(TUNNEL), lent.port);
        assert_eq!(lent.ask(lent.next(), SYN), forwarded);
    }
}

#[test]
fn a_connection_of_the_node_gives_way_to_a_forwarded_flow() {
    let [map, _] = maps();
    let mut gateway = Gateway::new(&map);
    gateway.serve(&map, TCP, &[map.remote]);
    gateway.enters(UPLINK, &wire::tcp(map.outside, map.node_port, SYN));
    gateway.node.tables.random.replace([0, u32::MAX].into());
    let own = SocketAddr::new(map.tunnel, 1024);
    let (verdict, sent) = gateway.leaves(TUNNEL, &wire::tcp(own, map.remote, SYN));
    assert_eq!(verdict, Verdict::Pass);
    let moved = wire::read(&sent.bytes).from;
    assert_ne!(moved, own);
    let reply = wire::tcp(map.remote, moved, SYN | ACK);
    let (verdict, sent) = gateway.enters(TUNNEL, &reply);
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(wire::read(&sent.bytes), wire::seen(map.remote, own));
}

/// One port of a client for a service and for its backend itself: what the backend says to the one is
/// not taken for what it says to the other.
#[test]
fn a_client_outside_that_knows_the_backend_too_hears_both() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, UDP, &[map.local]);
        gateway.enters(UPLINK, &wire::udp(map.outside, map.node_port, b"?"));
        for _ in 0..2 {
            let direct = wire::udp(map.outside, map.local, b"?");
            let (verdict, sent) = gateway.enters(UPLINK, &direct);
            assert_eq!(verdict, Verdict::Pass);
            let moved = wire::read(&sent.bytes).from;
            assert_eq!(moved.ip(), map.outside.ip());
            assert_ne!(moved, map.outside);
            for (to, from) in [(map.outside, map.node_port), (moved, map.local)] {
                let (_, sent) = gateway.leaves(UPLINK, &wire::udp(map.local, to, b"!"));
                assert_eq!(wire::read(&sent.bytes), wire::seen(from, map.outside));
            }
        }
    }
}

#[test]
fn a_process_of_the_node_that_knows_the_backend_too_hears_both() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, UDP, &[map.remote]);
        let own = SocketAddr::new(map.uplink, 50000);
        gateway.leaves(UPLINK, &wire::udp(own, map.cluster_ip, b"?"));
        let (_, sent) = gateway.leaves(TUNNEL, &wire::udp(own, map.remote, b"?"));
        let moved = wire::read(&sent.bytes).from;
        assert_ne!(moved, own);
        for (to, from) in [(own, map.cluster_ip), (moved, map.remote)] {
            let (_, sent) = gateway.enters(TUNNEL, &wire::udp(map.remote, to, b"!"));
            assert_eq!(wire::read(&sent.bytes), wire::seen(from, own));
        }
    }
}

/// What nobody could mistake takes no entry.
#[test]
fn what_is_not_for_a_service_is_not_followed_at_wires() {
    for map in maps() {
        let gateway = Gateway::new(&map);
        gateway.enters(UPLINK, &wire::udp(map.outside, map.local, b"?"));
        gateway.leaves(UPLINK, &wire::udp(map.local, map.outside, b"!"));
        assert!(gateway.node.tables.half_open.borrow().is_empty());
    }
}

#[test]
fn a_process_of_the_node_reaches_a_local_pod_and_hears_the_service() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, TCP, &[map.local]);
        let own = SocketAddr::new(map.uplink, 50000);
        let (verdict, sent) = gateway.leaves(UPLINK, &wire::tcp(own, map.cluster_ip, SYN));
        assert_eq!(verdict, Verdict::Redirect(SERVER));
        assert_eq!((sent.mark, sent.hint), (MARK_FROM_HOST, UPLINK));
        let arriving = Frame {
            mark: sent.mark,
            hint: sent.hint,
            ..gateway.frame(SERVER, &sent.bytes)
        };
        let (verdict, arrived) = gateway.cross(Direction::ToPod, arriving);
        assert_eq!((verdict, arrived.hint), (Verdict::Pass, 0));
        let reply = wire::tcp(map.local, own, SYN | ACK);
        let (verdict, _) = gateway.cross(Direction::FromPod, gateway.frame(SERVER, &reply));
        assert_eq!(verdict, Verdict::Enter(UPLINK));
        let (verdict, sent) = gateway.enters(UPLINK, &reply);
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(wire::read(&sent.bytes), wire::seen(map.cluster_ip, own));
    }
}

#[test]
fn a_process_of_the_node_reaches_a_remote_pod_by_its_route() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, TCP, &[map.remote]);
        let own = SocketAddr::new(map.uplink, 50000);
        let (verdict, sent) = gateway.leaves(UPLINK, &wire::tcp(own, map.cluster_ip, SYN));
        assert_eq!(
            (verdict, sent.mark),
            (Verdict::Redirect(TUNNEL), MARK_DELIVER)
        );
        assert_eq!(wire::read(&sent.bytes), wire::seen(own, map.remote));
        let (verdict, sent) = gateway.enters(TUNNEL, &wire::tcp(map.remote, own, SYN | ACK));
        // A strict reverse-path filter looks for a ClusterIP where the default route is.
        assert_eq!((verdict, sent.mark), (Verdict::Enter(UPLINK), MARK_DELIVER));
        assert_eq!(wire::read(&sent.bytes), wire::seen(map.cluster_ip, own));
    }
}

#[test]
fn a_process_of_the_node_is_refused_where_it_hears_it() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, TCP, &[]);
        let own = SocketAddr::new(map.uplink, 50000);
        let (verdict, sent) = gateway.leaves(UPLINK, &wire::tcp(own, map.cluster_ip, SYN));
        assert_eq!((verdict, sent.mark), (Verdict::Enter(UPLINK), MARK_DELIVER));
        let (from, to, _) = wire::quoted(&sent.bytes);
        assert_eq!((from, to), (map.cluster_ip.ip(), own.ip()));
    }
}

#[test]
fn an_error_from_the_way_to_a_remote_backend_reaches_the_client() {
    for (map, kind) in maps().into_iter().zip([[3, 4], [2, 0]]) {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, TCP, &[map.remote]);
        let (_, sent) = gateway.enters(UPLINK, &wire::tcp(map.outside, map.node_port, SYN));
        let error = wire::error(map.remote.ip(), map.tunnel, kind, &sent.bytes);
        let (verdict, sent) = gateway.enters(TUNNEL, &error);
        assert_eq!(verdict, Verdict::Redirect(UPLINK));
        let (from, to, quoted) = wire::quoted(&sent.bytes);
        assert_eq!((from, to), (map.node_port.ip(), map.outside.ip()));
        assert_eq!(
            wire::addresses(&quoted),
            (map.outside.ip(), map.node_port.ip())
        );
    }
}

/// XDP sends on what leaves the node again and leaves all else as it is, for tc to find its flow.
#[test]
fn xdp_sends_on_only_what_leaves_the_node_again() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.routes = vec![(map.outside.ip(), UPLINK), (map.remote.ip(), UPLINK)];
        gateway.serve(&map, TCP, &[map.local, map.remote]);
        for (random, expected) in [(0, Verdict::Pass), (u32::MAX, Verdict::Redirect(UPLINK))] {
            gateway.node.tables.random.replace([random].into());
            let from = SocketAddr::new(map.outside.ip(), 40000 + (random % 7) as u16);
            let packet = wire::tcp(from, map.node_port, SYN);
            let mut frame = gateway.frame(UPLINK, &packet);
            let across = InlineFrame {
                packet: &mut frame,
                tables: &gateway.node.tables,
                scratch: &mut Scratch::new(),
            };
            assert_eq!(across.cross(), expected);
            if expected == Verdict::Pass {
                assert_eq!(frame.bytes, packet);
                // Another throw of the dice would choose another backend.
                gateway.node.tables.random.replace([u32::MAX].into());
                let (verdict, _) = gateway.enters(UPLINK, &packet);
                assert_eq!(verdict, Verdict::Redirect(SERVER), "the flow was recorded");
            } else {
                wire::check(&frame.bytes);
                assert_eq!(wire::read(&frame.bytes).to, map.remote);
            }
        }
    }
}

#[test]
fn sctp_ports_are_rewritten_with_their_checksum() {
    for map in maps() {
        let mut gateway = Gateway::new(&map);
        gateway.serve(&map, SCTP, &[map.remote]);
        let packet = sctp::packet(map.outside, map.node_port, sctp::INIT);
        let (verdict, sent) = gateway.enters(UPLINK, &packet);
        assert_eq!(verdict, Verdict::Redirect(TUNNEL));
        let (ports, checksum, expected) = sctp::read(&sent.bytes);
        assert_eq!(ports.1, map.remote.port());
        assert_eq!(checksum, expected);
        let data = sctp::packet(map.outside, SocketAddr::new(map.uplink, 30081), sctp::DATA);
        let (verdict, sent) = gateway.enters(UPLINK, &data);
        assert_eq!(
            (verdict, sent.bytes),
            (Verdict::Pass, data),
            "only INIT opens"
        );
        let other = SocketAddr::new(map.outside.ip(), 40001);
        gateway.node.tables.random.replace([u32::MAX].into());
        let offloaded = sctp::without_checksum(&sctp::packet(other, map.node_port, sctp::INIT));
        let (_, sent) = gateway.enters(UPLINK, &offloaded);
        let (ports, checksum, _) = sctp::read(&sent.bytes);
        assert_eq!((ports.1, checksum), (map.remote.port(), [0; 4]));
    }
    assert_eq!(crc32c::corrected([0; 4], [1; 4], [2; 4], 20), [0; 4]);
}

#[test]
fn what_the_node_forwards_for_others_is_left_alone() {
    let [map, _] = maps();
    let mut gateway = Gateway::new(&map);
    gateway.serve(&map, TCP, &[map.remote]);
    let pod = socket("10.244.0.9:50000");
    let frame = Frame {
        arrived_by: CLIENT,
        ..gateway.frame(UPLINK, &wire::tcp(pod, map.cluster_ip, SYN))
    };
    let bytes = frame.bytes.clone();
    let (verdict, sent) = gateway.cross(Direction::ToWire, frame);
    assert_eq!((verdict, sent.bytes), (Verdict::Pass, bytes));
}
