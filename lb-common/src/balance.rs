//! Opening a flow: finding the service behind its destination, and a backend for it.

use crate::{
    address::{Address, HAIRPIN_V4, HAIRPIN_V6, LOOPBACK_V6, UNSPECIFIED, is_v4, unmap_v4},
    affinity::{self, Rows},
    conntrack::{Claim, Recorded, record},
    endpoint::WIRE,
    flow::{Direction, Flow, Judging, Tuple, Way},
    headers::{ACK, FIN, RST, SYN, TCP},
    packet::{Packet, Route},
    reason::Reason,
    scratch::Scratch,
    service::{
        ANY_SOURCE, Backend, FrontendKey, FrontendKind, MAX_CIDRS, NO_BACKEND, NO_SERVICE,
        RangeKey, Target, Window,
    },
    tables::{FlowTable, Tables},
};

/// How many backends, and then how many client ports, are tried for a reply key that is free: where
/// half of all ports are in use, one flow in 30,000 finds none.
const BACKENDS_TRIED: u32 = 3;
const PORTS_TRIED: u32 = 12;
/// From which attempt on the key of a connection that both ends have closed is free enough.
const PATIENCE: u32 = 8;
/// How often something is chosen at most, and once more that nothing is left.
pub const MOST_CHOICES: u32 = BACKENDS_TRIED + PORTS_TRIED + 1;

/// The ports that forwarded flows get on the node's own addresses: below the usual NodePorts and the
/// ports that Linux gives its own connections, above those of system services (RFC 6335, 6).
pub const FORWARDED_PORTS: core::ops::Range<u16> = 1024..30_000;

/// The other end of a flow, and how packets get there.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub way: Way,
    /// Index of the interface that [`Self::way`] speaks of.
    pub interface: u32,
    pub mac: [u8; 6],
}

impl Peer {
    /// Whoever the kernel's routes lead to.
    pub const ROUTED: Self = Self {
        way: Way::Stack,
        interface: 0,
        mac: [0; 6],
    };
}

/// Where somebody is who opens a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In a pod of this node, that the hook belongs to.
    Pod,
    /// On another machine.
    Outside,
    /// A process of this node.
    Host,
}

/// Who opens a flow.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub side: Side,
    /// How packets get back to the pod.
    own: Peer,
}

impl Client {
    pub const OUTSIDE: Self = Self {
        side: Side::Outside,
        own: Peer::ROUTED,
    };
    pub const HOST: Self = Self {
        side: Side::Host,
        own: Peer::ROUTED,
    };

    /// The pod that `own` leads to.
    pub const fn pod(own: Peer) -> Self {
        Self {
            side: Side::Pod,
            own,
        }
    }
}

/// What came of opening a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is to be recorded: `scratch.flow`, of which all is decided.
    Decided,
    /// One of `scratch.choice` is to be chosen: [`choose`].
    Choose,
    /// Nothing to remember and nothing to change.
    Untracked,
    Refused(Reason),
    Dropped(Reason),
}

/// What there is to choose from for a flow that opens.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Row of the header of the service's extent.
    first: u32,
    list: Window,
    /// The place in the list that was tried first.
    start: u32,
    /// How often something has been chosen that could not be had.
    attempt: u32,
    subject: Subject,
    /// Whether the client keeps its backend, and had one.
    affine: bool,
    recalled: bool,
}

/// What is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Nothing: there is one way to go.
    Nothing,
    /// A port of the node.
    Port,
    /// A backend.
    Backend,
}

impl Choice {
    /// Nothing to choose.
    pub const NONE: Self = Self {
        first: 0,
        list: Window { first: 0, count: 0 },
        start: 0,
        attempt: 0,
        subject: Subject::Nothing,
        affine: false,
        recalled: false,
    };

    /// Which reply keys will do by now.
    #[inline(always)]
    const fn claim(&self) -> Claim {
        match self.subject {
            Subject::Port | Subject::Backend if self.attempt < PATIENCE => Claim::Unused,
            _ => Claim::Closed,
        }
    }

    /// Goes on to what is tried next; an error says why nothing is left.
    #[inline(always)]
    fn next(&mut self, way: u8) -> Result<(), Reason> {
        self.attempt += 1;
        let (most, over) = match self.subject {
            Subject::Backend if way != Way::Forward as u8 => {
                (BACKENDS_TRIED + PORTS_TRIED, Reason::FlowCollision)
            }
            Subject::Backend => (BACKENDS_TRIED + PORTS_TRIED, Reason::PortsExhausted),
            Subject::Port | Subject::Nothing => (1 + PORTS_TRIED, Reason::PortsExhausted),
        };
        if self.attempt < most {
            Ok(())
        } else {
            Err(over)
        }
    }
}

/// What a destination leads to; `None` where it is none of ours.
#[inline(never)]
pub fn target<T: Tables>(tables: &T, address: &Address, port: u16, protocol: u8) -> Option<Target> {
    let exact = tables.frontend(&FrontendKey::new(*address, port, protocol));
    if exact.is_some() {
        return exact;
    }
    let whole = tables.frontend(&FrontendKey::whole_address(*address))?;
    if whole == (Target::NodeAddress { ports: true })
        && let Some(service) =
            tables.frontend(&FrontendKey::node_port(is_v4(address), port, protocol))
    {
        return Some(service);
    }
    Some(whole)
}

/// Whether the address is one of this node's.
#[inline(never)]
pub fn is_own<T: Tables>(tables: &T, address: &Address) -> bool {
    matches!(
        tables.frontend(&FrontendKey::whole_address(*address)),
        Some(Target::NodeAddress { .. })
    )
}

/// Whether a packet from outside cannot come from this source: it is this node, one of its pods, or
/// nobody on any wire (RFC 1122, 3.2.1.3; RFC 4291, 2.5 and 2.7). What passes the stack it would
/// drop itself.
#[inline(never)]
fn is_lie<T: Tables>(tables: &T, source: &Address) -> bool {
    let [first, ..] = source.bytes;
    let [v4, ..] = unmap_v4(source);
    let nobody = if is_v4(source) {
        v4 == 0 || v4 == 127 || v4 >= 224
    } else {
        *source == UNSPECIFIED || *source == LOOPBACK_V6 || first == 0xff
    };
    nobody || tables.endpoint(source).is_some() || is_own(tables, source)
}

/// The list that new connections to a frontend choose from; `inside`: they come from this node. An
/// error is the reason why there is none: to drop where other nodes have endpoints
/// ([`Reason::NoLocalEndpoints`]), else to refuse (`CategorizeEndpoints` and the no-endpoint
/// chains of kube-proxy).
#[inline(always)]
pub fn list(header: &Backend, kind: FrontendKind, inside: bool) -> Result<Window, Reason> {
    let only_local = match kind {
        FrontendKind::Internal => header.internal_local == 1,
        FrontendKind::External | FrontendKind::LoadBalancer => {
            header.external_local == 1 && !inside
        }
    };
    let list = if only_local {
        header.local_list()
    } else {
        header.cluster_list()
    };
    if list.count > 0 {
        Ok(list)
    } else if only_local && header.any == 1 {
        Err(Reason::NoLocalEndpoints)
    } else {
        Err(Reason::NoEndpoints)
    }
}

/// Whether a frontend serves clients with this address (`loadBalancerSourceRanges`).
#[inline(never)]
pub fn admits<T: Tables>(
    tables: &T,
    header: &Backend,
    kind: FrontendKind,
    client: &Address,
) -> bool {
    kind != FrontendKind::LoadBalancer
        || header.ranges == ANY_SOURCE
        || tables.in_range(&RangeKey {
            set: header.ranges,
            address: *client,
        })
}

/// Opens the flow of a packet from somebody on this `side`.
#[inline(always)]
pub fn open<T: Tables>(tables: &T, scratch: &mut Scratch, side: Side) -> Opened {
    let Tuple {
        destination,
        destination_port,
        ..
    } = &scratch.key.tuple;
    match target(tables, destination, *destination_port, scratch.key.protocol) {
        Some(target) if !matches!(target, Target::NodeAddress { .. }) => {
            if side == Side::Outside && is_lie(tables, &scratch.key.tuple.source) {
                return Opened::Dropped(Reason::SpoofedSource);
            }
            match target {
                Target::Service { index, kind } => to_service(tables, scratch, side, index, kind),
                _ => Opened::Refused(Reason::UndefinedPort),
            }
        }
        None if is_unallocated(tables, destination) => Opened::Dropped(Reason::UnallocatedAddress),
        _ => plain(tables, scratch, side),
    }
}

/// Whether an address that no service has is nobody else's either.
#[inline(never)]
fn is_unallocated<T: Tables>(tables: &T, address: &Address) -> bool {
    for place in 0..MAX_CIDRS as u32 {
        match tables.cidr(place) {
            Some(cidr) if cidr.mask == UNSPECIFIED => return false,
            Some(cidr) if cidr.contains(address) => return true,
            _ => {}
        }
    }
    false
}

/// Opens a flow to something that is no service.
#[inline(always)]
fn plain<T: Tables>(tables: &T, scratch: &mut Scratch, side: Side) -> Opened {
    match side {
        Side::Pod => movable(scratch, Direction::ToPod),
        Side::Outside if is_mistakable(tables, scratch, Direction::ToWire) => {
            movable(scratch, Direction::ToWire)
        }
        Side::Outside => Opened::Untracked,
        Side::Host if is_mistakable(tables, scratch, Direction::FromWire) => {
            movable(scratch, Direction::FromWire)
        }
        Side::Host => from_forwarded_port(tables, scratch),
    }
}

/// Whether what answers the packet, met at `twin`, would be taken for the answer of a flow through a
/// service: its client has used one port for the service and for the backend itself. Wires see too
/// much to follow all that is not for a service.
#[inline(never)]
fn is_mistakable<T: Tables>(tables: &T, scratch: &mut Scratch, twin: Direction) -> bool {
    let Scratch { key, twin_key, .. } = scratch;
    twin_key.tuple.reverse(&key.tuple);
    (twin_key.owner, twin_key.protocol) = (key.owner, key.protocol);
    twin_key.direction = twin as u8;
    [FlowTable::Flows, FlowTable::HalfOpen]
        .into_iter()
        .any(|table| tables.look(table, twin_key, |_| ()).is_some())
}

/// Follows a flow that leaves by a port that flows we forward may have.
#[inline(always)]
pub fn from_forwarded_port<T: Tables>(tables: &T, scratch: &mut Scratch) -> Opened {
    let tuple = &scratch.key.tuple;
    if !FORWARDED_PORTS.contains(&tuple.source_port) || !is_own(tables, &tuple.source) {
        return Opened::Untracked;
    }
    movable(scratch, Direction::FromWire)
}

/// As [`direct`], but from another port where the key of the replies is another flow's.
#[inline(always)]
fn movable(scratch: &mut Scratch, twin: Direction) -> Opened {
    scratch.choice = Choice {
        subject: Subject::Port,
        ..Choice::NONE
    };
    direct(scratch, twin, Peer::ROUTED)
}

/// Has a flow go as no service translates it; its replies are met at `twin`.
#[inline(always)]
pub fn direct(scratch: &mut Scratch, twin: Direction, peer: Peer) -> Opened {
    let Scratch { key, flow, .. } = scratch;
    flow.to = key.tuple;
    flow.twin = twin as u8;
    (flow.backend, flow.generation, flow.service) = (NO_BACKEND, 0, NO_SERVICE);
    follow(flow, peer, 0);
    Opened::Decided
}

/// Whether a segment without a flow is of a connection that may be followed from here on, so that it
/// outlives the day on which policy isolates its pod. Not where policy does already: there nobody
/// opens anything but by a handshake. Nor through services, whose connections others translate.
#[inline(always)]
pub fn may_adopt<T: Tables>(tables: &T, scratch: &Scratch) -> bool {
    let Scratch {
        key,
        headers,
        standing,
        ..
    } = scratch;
    if key.owner == WIRE
        || standing.is_isolated()
        || key.protocol != TCP
        || headers.flags & (SYN | ACK | FIN | RST) != ACK
    {
        return false;
    }
    let Tuple {
        source,
        destination,
        source_port,
        destination_port,
    } = &key.tuple;
    let (peer, port) = if key.direction == Direction::FromPod as u8 {
        (destination, *destination_port)
    } else {
        (source, *source_port)
    };
    matches!(
        target(tables, peer, port, key.protocol),
        None | Some(Target::NodeAddress { .. })
    )
}

/// Follows a connection that is older than us: it goes on as it went, and policy may allow it by
/// either side's having opened it.
#[inline(always)]
pub fn adopt(scratch: &mut Scratch, direction: Direction) -> Opened {
    scratch.flow.judging = Judging::Either as u8;
    let twin = match direction {
        Direction::FromPod => Direction::ToPod,
        _ => Direction::FromPod,
    };
    direct(scratch, twin, Peer::ROUTED)
}

/// Finds what a client that dials a frontend of a service may choose from.
#[inline(never)]
fn to_service<T: Tables>(
    tables: &T,
    scratch: &mut Scratch,
    side: Side,
    index: u32,
    kind: FrontendKind,
) -> Opened {
    let first = tables.extent(index).map_or(0, |extent| extent.first);
    scratch.header = match tables.backend(first) {
        Some(header) if first != 0 => header,
        _ => return Opened::Refused(Reason::NoEndpoints),
    };
    if !admits(tables, &scratch.header, kind, &scratch.key.tuple.source) {
        return Opened::Dropped(Reason::SourceRange);
    }
    let list = match list(&scratch.header, kind, side != Side::Outside) {
        Ok(list) => list,
        Err(Reason::NoLocalEndpoints) => return Opened::Dropped(Reason::NoLocalEndpoints),
        Err(reason) => return Opened::Refused(reason),
    };
    let affine = scratch.header.affinity != 0;
    scratch.session.client = scratch.key.tuple.source;
    scratch.session.service = index;
    let recalled = if affine {
        let Scratch {
            session,
            header,
            now,
            ..
        } = &*scratch;
        affinity::recall(tables, session, &Rows::new(first, header, list), *now)
    } else {
        None
    };
    scratch.flow.service = index;
    scratch.choice = Choice {
        first,
        list,
        start: recalled.map_or_else(|| pick(tables.random(), list.count), |row| row - list.first),
        attempt: 0,
        subject: Subject::Backend,
        affine,
        recalled: recalled.is_some(),
    };
    Opened::Choose
}

/// Chooses where a flow goes that `client` opens, of what `scratch.choice` has.
#[inline(always)]
pub fn choose<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    client: Client,
) -> Opened {
    let Choice {
        first,
        list,
        start,
        attempt,
        subject,
        recalled,
        ..
    } = scratch.choice;
    if subject != Subject::Backend {
        scratch.flow.to.source_port = forwarded_port(tables.random());
        return Opened::Decided;
    }
    // Who has affinity gets another port rather than another backend.
    let (step, new_port) = if recalled {
        (0, attempt > 0)
    } else {
        (attempt, attempt >= BACKENDS_TRIED)
    };
    // The verifier does not know that a list to choose from has something in it.
    let row = first + 1 + list.first + (start + step) % list.count.max(1);
    scratch.backend = match tables.backend(row) {
        Some(backend) => backend,
        None => return Opened::Refused(Reason::NoEndpoints),
    };
    match go_to_backend(packet, tables, scratch, client, new_port) {
        Chosen::Yes => Opened::Decided,
        Chosen::Taken => again(scratch),
        Chosen::Unreachable => Opened::Dropped(Reason::NoRoute),
    }
}

/// Has something else chosen, if anything is left.
#[inline(always)]
fn again(scratch: &mut Scratch) -> Opened {
    match scratch.choice.next(scratch.flow.way) {
        Ok(()) => Opened::Choose,
        Err(reason) => Opened::Dropped(reason),
    }
}

/// Records the flow that was decided; `None` where it goes the way that `scratch.flow` now says.
#[inline(always)]
pub fn settle<T: Tables>(tables: &T, scratch: &mut Scratch) -> Option<Opened> {
    let Choice {
        subject, affine, ..
    } = scratch.choice;
    let claim = scratch.choice.claim();
    match (record(tables, scratch, claim), subject) {
        (Recorded::Yes, _) => {
            if affine {
                let Scratch {
                    session,
                    backend,
                    now,
                    ..
                } = &*scratch;
                affinity::remember(tables, session, &backend.address, backend.port, *now);
            }
            None
        }
        // It needs no translation, so it can do without an entry.
        (Recorded::Taken, Subject::Nothing)
        | (Recorded::Full, Subject::Nothing | Subject::Port) => Some(Opened::Untracked),
        (Recorded::Taken, Subject::Port | Subject::Backend) => Some(again(scratch)),
        (Recorded::Full, Subject::Backend) => Some(Opened::Dropped(Reason::FlowTableFull)),
    }
}

/// What came of choosing a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chosen {
    Yes,
    /// Somebody on this node has the port.
    Taken,
    Unreachable,
}

/// Makes the flow one to `scratch.backend`.
#[inline(always)]
fn go_to_backend<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    client: Client,
    new_port: bool,
) -> Chosen {
    let Scratch {
        key, flow, backend, ..
    } = scratch;
    (flow.backend, flow.generation) = (backend.id, backend.generation);
    flow.to.source = key.tuple.source;
    flow.to.source_port = if new_port {
        ephemeral(tables.random())
    } else {
        key.tuple.source_port
    };
    flow.to.destination = backend.address;
    flow.to.destination_port = backend.port;
    if client.side == Side::Pod && backend.address == key.tuple.source {
        // A pod that reaches itself: out of its own interface again.
        flow.to.source = reserved(&backend.address);
        flow.twin = Direction::FromPod as u8;
        follow(flow, client.own, 0);
        return Chosen::Yes;
    }
    flow.twin = match client.side {
        Side::Pod => Direction::ToPod,
        Side::Outside => Direction::ToWire,
        Side::Host => Direction::FromWire,
    } as u8;
    if let Some(endpoint) = tables.endpoint(&backend.address) {
        let peer = Peer {
            way: Way::Pod,
            interface: endpoint.interface,
            mac: endpoint.mac,
        };
        follow(flow, peer, endpoint.mtu);
        return Chosen::Yes;
    }
    follow(flow, Peer::ROUTED, 0);
    match client.side {
        Side::Pod => Chosen::Yes,
        Side::Outside => forward(packet, tables, scratch),
        Side::Host => send_out(packet, tables, scratch),
    }
}

/// Has a flow from outside forwarded to a backend on another node, from an address and a port of
/// this one, so that the replies come back here.
#[inline(never)]
fn forward<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Chosen {
    let Scratch {
        key, flow, outer, ..
    } = scratch;
    let hop = match packet.route(&flow.to, key.protocol, 0) {
        Route::Out(hop) => hop,
        // A process of this node, on one of its addresses.
        Route::Local => return Chosen::Yes,
        Route::TooBig(_) | Route::None => return Chosen::Unreachable,
    };
    let source = match tables.device(hop.interface) {
        Some(device) => device.source(&flow.to.destination),
        // A pod of this node that is not known as one yet: the stack takes it there.
        None => return Chosen::Yes,
    };
    if source == UNSPECIFIED {
        return Chosen::Unreachable;
    }
    flow.to.source = source;
    flow.to.source_port = forwarded_port(tables.random());
    flow.twin = Direction::FromWire as u8;
    flow.way = Way::Forward as u8;
    outer.reverse(&flow.to);
    if packet.awaited(outer, key.protocol) {
        return Chosen::Taken;
    }
    Chosen::Yes
}

/// Has a flow of this node's own go out by the device that leads to the backend, or back in where
/// that is the node itself.
#[inline(never)]
fn send_out<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Chosen {
    let Scratch { key, flow, .. } = scratch;
    if is_own(tables, &flow.to.destination) {
        // The stack would not believe a packet from outside that comes from the node's address.
        flow.to.source = reserved(&flow.to.destination);
        flow.twin = Direction::ToWire as u8;
        flow.way = Way::Host as u8;
        flow.interface = packet.interface();
        return Chosen::Yes;
    }
    match packet.route(&flow.to, key.protocol, 0) {
        Route::Out(hop) => {
            if hop.interface != packet.interface() {
                flow.way = Way::Neighbour as u8;
                flow.interface = packet.interface();
            }
            Chosen::Yes
        }
        Route::Local | Route::TooBig(_) | Route::None => Chosen::Unreachable,
    }
}

/// Has the flow's packets go to `peer`, where packets of `mtu` bytes fit.
#[inline(always)]
const fn follow(flow: &mut Flow, peer: Peer, mtu: u16) {
    let Peer {
        way,
        interface,
        mac,
    } = peer;
    flow.way = way as u8;
    flow.interface = interface;
    flow.mac = mac;
    flow.mtu = mtu;
}

/// The source that somebody sees who reaches itself.
#[inline(always)]
const fn reserved(own: &Address) -> Address {
    if is_v4(own) { HAIRPIN_V4 } else { HAIRPIN_V6 }
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

/// One of [`FORWARDED_PORTS`].
#[inline(always)]
const fn forwarded_port(random: u32) -> u16 {
    let span = FORWARDED_PORTS.end - FORWARDED_PORTS.start;
    FORWARDED_PORTS.start + pick(random, span as u32) as u16
}
