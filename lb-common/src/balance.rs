//! Opening a flow from a pod: finding the service behind its destination, and a backend for it.

use crate::{
    address::{HAIRPIN_V4, HAIRPIN_V6, is_v4},
    conntrack::{Recorded, record},
    flow::{Direction, Way},
    reason::Reason,
    scratch::Scratch,
    service::{Backend, FrontendKey, NO_BACKEND, Target},
    tables::Tables,
};

/// How many backends, and then how many client ports, are tried for a reply key that is free.
const BACKENDS_TRIED: u32 = 3;
const PORTS_TRIED: u32 = 4;

/// A local pod at the other end of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Index of its host-side interface; 0 where there is none to send straight to.
    pub interface: u32,
    pub mac: [u8; 6],
}

impl Peer {
    /// Whoever the kernel's routes lead to.
    pub const ROUTED: Self = Self {
        interface: 0,
        mac: [0; 6],
    };

    #[inline(always)]
    const fn way(&self) -> Way {
        if self.interface == 0 {
            Way::Stack
        } else {
            Way::Pod
        }
    }
}

/// What came of opening a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is `scratch.flow`.
    Yes,
    /// Nothing to remember and nothing to change.
    Untracked,
    Refused(Reason),
    Dropped(Reason),
}

/// Opens the flow of a packet from the pod `client`.
#[inline(always)]
pub fn open<T: Tables>(tables: &T, scratch: &mut Scratch, client: Peer, now: u64) -> Opened {
    let tuple = &scratch.key.tuple;
    let frontend = FrontendKey::new(
        tuple.destination,
        tuple.destination_port,
        scratch.key.protocol,
    );
    let address = FrontendKey::whole_address(tuple.destination);
    match tables.frontend(&frontend) {
        Some(Target::Service { index, .. }) => to_service(tables, scratch, client, index, now),
        Some(_) => Opened::Refused(Reason::UndefinedPort),
        None if tables.frontend(&address).is_some() => Opened::Refused(Reason::UndefinedPort),
        None => direct(tables, scratch, Direction::ToPod, Peer::ROUTED, now),
    }
}

/// Opens a flow that no service translates, whose replies are met at `twin`.
#[inline(always)]
pub fn direct<T: Tables>(
    tables: &T,
    scratch: &mut Scratch,
    twin: Direction,
    peer: Peer,
    now: u64,
) -> Opened {
    let Scratch { key, flow, .. } = scratch;
    flow.to = key.tuple;
    flow.twin = twin as u8;
    (flow.backend, flow.generation) = (NO_BACKEND, 0);
    (flow.interface, flow.mac) = (peer.interface, peer.mac);
    flow.way = peer.way() as u8;
    match record(tables, scratch, now) {
        Recorded::Yes => Opened::Yes,
        // It needs no translation, so it can do without an entry.
        Recorded::Taken | Recorded::Full => Opened::Untracked,
    }
}

#[inline(never)]
fn to_service<T: Tables>(
    tables: &T,
    scratch: &mut Scratch,
    client: Peer,
    service: u32,
    now: u64,
) -> Opened {
    let first = tables.extent(service).map_or(0, |extent| extent.first);
    let count = match tables.backend(first) {
        Some(header) if first != 0 => header.count,
        _ => 0,
    };
    if count == 0 {
        return Opened::Refused(Reason::NoEndpoints);
    }
    let first_choice = pick(tables.random(), count);
    for attempt in 0..BACKENDS_TRIED + PORTS_TRIED {
        let choice = (first_choice + attempt) % count;
        let Some(backend) = tables.backend(first + 1 + choice) else {
            return Opened::Refused(Reason::NoEndpoints);
        };
        let port = if attempt < BACKENDS_TRIED {
            scratch.key.tuple.source_port
        } else {
            ephemeral(tables.random())
        };
        choose(tables, scratch, client, &backend, port);
        match record(tables, scratch, now) {
            Recorded::Yes => return Opened::Yes,
            Recorded::Taken => {}
            Recorded::Full => return Opened::Dropped(Reason::FlowTableFull),
        }
    }
    Opened::Dropped(Reason::FlowCollision)
}

/// Makes the flow one to a backend: out of a local pod's interface, back out of the client's own,
/// or along the kernel's routes.
#[inline(always)]
fn choose<T: Tables>(
    tables: &T,
    scratch: &mut Scratch,
    client: Peer,
    backend: &Backend,
    source_port: u16,
) {
    let Scratch { key, flow, .. } = scratch;
    (flow.backend, flow.generation) = (backend.id, backend.generation);
    flow.to.destination = backend.address;
    flow.to.destination_port = backend.port;
    flow.to.source_port = source_port;
    if backend.address == key.tuple.source {
        flow.to.source = if is_v4(&backend.address) {
            HAIRPIN_V4
        } else {
            HAIRPIN_V6
        };
        flow.twin = Direction::FromPod as u8;
        (flow.interface, flow.mac) = (client.interface, client.mac);
        flow.way = Way::Pod as u8;
        return;
    }
    flow.to.source = key.tuple.source;
    flow.twin = Direction::ToPod as u8;
    (flow.interface, flow.mac) = match tables.endpoint(&backend.address) {
        Some(endpoint) => (endpoint.interface, endpoint.mac),
        None => (Peer::ROUTED.interface, Peer::ROUTED.mac),
    };
    flow.way = if flow.interface == 0 {
        Way::Stack
    } else {
        Way::Pod
    } as u8;
}

/// A number below `count`, each as likely as the next to one part in 2^32 / `count`.
#[inline(always)]
pub const fn pick(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

/// A port that no system service has (RFC 6335, 6: above the system ports).
#[inline(always)]
const fn ephemeral(random: u32) -> u16 {
    1024 + pick(random, 65_536 - 1024) as u16
}
