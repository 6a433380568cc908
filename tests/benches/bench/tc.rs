//! A packet at tc's hooks: of a flow that is known, and of one that is not yet.

use std::{
    cell::Cell,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

use anyhow::Result;
use etherparse::PacketBuilder;
use lb_common::{
    address::from_ip,
    endpoint::WIRE,
    flow::{Direction, Flow, FlowKey, Tuple},
    headers::TCP,
    memory::MemoryTables,
    service::{Backend, Extent, Frontend, FrontendKey, FrontendKind, Target},
};

use crate::{
    measure::{Contender, Table, Unit, contest},
    programs::{EMPTY_TC, INTERFACE, Programs, enter_namespace, now},
};

pub const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, 5), 40000);
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10), 80);
pub const BACKEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 244, 1, 7), 8080);
/// Of a packet that is none of ours.
pub const STRANGER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 443);

/// The slot of the pod behind the interface.
pub const SLOT: u32 = 1;
pub const ROUNDS: usize = 40;
pub const REPEAT: u32 = 20_000;
/// New flows in a sample, each a system call.
const FLOWS: u16 = 500;

pub fn run() -> Result<Vec<Table>> {
    enter_namespace(OWN.into(), NEIGHBOUR.into())?;
    let empty = Programs::empty()?;
    let mut ours = Programs::ours(&["pod_egress", "node_ingress"])?;
    pod(&mut ours)?;
    circle(&mut ours, SLOT, Direction::FromPod)?;
    circle(&mut ours, WIRE, Direction::FromWire)?;
    service(&mut ours)?;

    let known = tcp(CLIENT, SERVICE, false);
    let stranger = tcp(CLIENT, STRANGER, false);
    let established = contest(
        "tc: a packet of an established flow, translated, against a program that does nothing",
        Unit::Nanoseconds,
        ROUNDS,
        vec![
            Contender::new("an empty program", || empty.run(EMPTY_TC, &known, REPEAT)),
            Contender::new("pod_egress, not ours", || {
                ours.run("pod_egress", &stranger, REPEAT)
            }),
            Contender::new("pod_egress", || ours.run("pod_egress", &known, REPEAT)),
            Contender::new("node_ingress, not ours", || {
                ours.run("node_ingress", &stranger, REPEAT)
            }),
            Contender::new("node_ingress", || ours.run("node_ingress", &known, REPEAT)),
        ],
    )?;

    let ports = Cell::new(1024);
    let new = contest(
        "tc: the first packet of a flow, each by a system call, whose clock is in every line",
        Unit::Nanoseconds,
        ROUNDS,
        vec![
            Contender::new("an empty program", || {
                first(&ports, SERVICE, |packet| empty.run(EMPTY_TC, packet, 1))
            }),
            Contender::new("pod_egress, a flow of no service", || {
                first(&ports, STRANGER, |packet| ours.run("pod_egress", packet, 1))
            }),
            Contender::new("pod_egress, a flow to a service", || {
                first(&ports, SERVICE, |packet| ours.run("pod_egress", packet, 1))
            }),
        ],
    )?;
    Ok(vec![established, new])
}

/// A pod behind the interface.
pub fn pod(programs: &mut Programs) -> Result<()> {
    let rows = MemoryTables {
        slots: [(INTERFACE, SLOT)].into(),
        ..MemoryTables::default()
    };
    for (index, bucket) in rows.buckets() {
        programs.set("INTERFACES", index, &bucket)?;
    }
    Ok(())
}

/// The mean of what `run` says of first packets to an address, each from a port of its own.
pub fn first(
    port: &Cell<u16>,
    to: SocketAddrV4,
    run: impl Fn(&[u8]) -> Result<f64>,
) -> Result<f64> {
    let mut sum = 0.;
    for _ in 0..FLOWS {
        port.set(port.get().checked_add(1).unwrap_or(1024));
        let from = SocketAddrV4::new(*CLIENT.ip(), port.get());
        sum += run(&tcp(from, to, true))?;
    }
    Ok(sum / f64::from(FLOWS))
}

/// As of when the flows were allowed: the first change of the pod's policies, none of their peers.
pub const EPOCH: u32 = 1;

/// Two flows, each of which turns packets into the other's: so a packet can cross a hook any number
/// of times and is translated each time.
pub fn circle(programs: &mut Programs, owner: u32, direction: Direction) -> Result<()> {
    let there = tuple(CLIENT, SERVICE);
    let back = tuple(CLIENT, BACKEND);
    for (from, to) in [(there, back), (back, there)] {
        let key = FlowKey::new(from, owner, TCP, direction);
        let flow = Flow {
            last_seen: now()?,
            to,
            check: key.check(),
            twin: direction as u8,
            opener: 1,
            answered: 1,
            epoch: EPOCH,
            ..Flow::NONE
        };
        programs.put("FLOWS", &key, &flow)?;
    }
    Ok(())
}

/// A service with one backend on another node.
fn service(programs: &mut Programs) -> Result<()> {
    let key = FrontendKey::new(from_ip((*SERVICE.ip()).into()), SERVICE.port(), TCP);
    let header = Backend {
        count: 1,
        any: 1,
        ..Backend::header(&key, 1)
    };
    programs.set("BACKENDS", 1, &header)?;
    let backend = from_ip((*BACKEND.ip()).into());
    programs.set("BACKENDS", 2, &Backend::new(backend, BACKEND.port(), 2, 1))?;
    programs.set("LIVE", 2, &1u32)?;
    let extent = Extent {
        first: 1,
        revision: 1,
    };
    programs.set("SERVICES", 1, &extent)?;
    let target = Target::Service {
        index: 1,
        kind: FrontendKind::Internal,
    };
    let frontend = Frontend {
        target: target.pack(),
        check: key.check(),
    };
    programs.put("FRONTENDS", &key, &frontend)
}

pub fn tuple(from: SocketAddrV4, to: SocketAddrV4) -> Tuple {
    let [from, to] = [from, to].map(SocketAddr::V4);
    Tuple {
        source: from_ip(from.ip()),
        destination: from_ip(to.ip()),
        source_port: from.port(),
        destination_port: to.port(),
    }
}

/// A segment that opens a connection, or one of an open connection.
pub fn tcp(from: SocketAddrV4, to: SocketAddrV4, opens: bool) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(from.ip().octets(), to.ip().octets(), u8::MAX)
        .tcp(from.port(), to.port(), 1, 512);
    let builder = if opens { builder.syn() } else { builder.ack(1) };
    let mut packet = Vec::new();
    builder.write(&mut packet, b"").expect("a packet");
    packet
}
