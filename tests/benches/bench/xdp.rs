//! A frame at XDP's hook: one that passes up, and one that leaves the node again.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use lb_common::{
    endpoint::WIRE,
    flow::{Direction, Flow, FlowKey, Way},
    headers::TCP,
};

use crate::{
    measure::{Contender, Table, Unit, contest},
    programs::{EMPTY_XDP, Programs, enter_namespace, now},
    tc::{BACKEND, NEIGHBOUR, OWN, STRANGER, tcp, tuple},
};

/// Who dials, and what: neither is an address of the node.
const OUTSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), 40000);
const PUBLIC: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 200), 80);

const ROUNDS: usize = 200;
/// Whom the backend sees.
const TRANSLATED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 8), 2000);

/// Each run takes one off the hop limit of the packet, which is 255 at first.
const REPEAT: u32 = 250;

pub fn run() -> Result<Vec<Table>> {
    enter_namespace(OWN.into(), NEIGHBOUR.into())?;
    let empty = Programs::empty()?;
    let mut ours = Programs::ours(&["node_xdp"])?;
    let there = tuple(OUTSIDE, PUBLIC);
    let back = tuple(TRANSLATED, BACKEND);
    for (from, to) in [(there, back), (back, there)] {
        let key = FlowKey::new(from, WIRE, TCP, Direction::FromWire);
        let flow = Flow {
            last_seen: now()?,
            to,
            check: key.check(),
            way: Way::Forward as u8,
            twin: Direction::FromWire as u8,
            opener: 1,
            answered: 1,
            ..Flow::NONE
        };
        ours.put("FLOWS", &key, &flow)?;
    }
    let known = tcp(OUTSIDE, PUBLIC, false);
    let stranger = tcp(OUTSIDE, STRANGER, false);
    Ok(vec![contest(
        "XDP: a frame that is translated and sent on by the kernel's routes, against a program \
         that does nothing",
        Unit::Nanoseconds,
        ROUNDS,
        vec![
            Contender::new("an empty program", || empty.run(EMPTY_XDP, &known, REPEAT)),
            Contender::new("node_xdp, not ours", || {
                ours.run("node_xdp", &stranger, REPEAT)
            }),
            Contender::new("node_xdp, sent on", || ours.run("node_xdp", &known, REPEAT)),
        ],
    )?])
}
