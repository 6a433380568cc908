//! The ways across an interface: a pod's, and those that lead out of the node.
//!
//! A packet goes through a few stages, which leave each other what they found in the [`Scratch`]. In
//! the kernel each stage is a function that is verified by itself: together they would be more than
//! the verifier follows, and deeper than the stack.

use crate::{
    balance::{self, Choice, Client, Opened, Peer, Side},
    checksum::Sum,
    conntrack,
    endpoint::{NO_SLOT, WIRE},
    enforce::{self, Standing},
    event,
    flow::{Direction, Flow, Judging, Tuple, Way},
    guard,
    headers::{Family, Headers, Kind, Part, SCTP, V4, V6},
    icmp::{self, Answer},
    nat,
    packet::{
        Hop, MARK_DELIVER, MARK_FROM_HOST, MARK_FROM_POD, MARK_FROM_WIRE, Packet, Route, Verdict,
    },
    reason::Reason,
    scratch::Scratch,
    service::{FrontendKey, Target},
    tables::Tables,
};

/// What comes next.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the packet passes.
    Pass = 0,
    /// [`lose`]: the packet is dropped, for `scratch.reason`.
    Drop = 1,
    /// [`open`].
    Open = 2,
    /// [`send`].
    Send = 3,
    /// [`quote`].
    Quote = 4,
    /// [`answer`], with `scratch.answer` and for `scratch.reason`.
    Answer = 5,
    /// The packet goes out of the interface `scratch.interface`, as [`Verdict::Redirect`] says.
    Redirect = 6,
    /// As [`Verdict::Neighbour`] says.
    Neighbour = 7,
    /// As [`Verdict::Enter`] says.
    Enter = 8,
    /// [`read`], once more.
    Read = 9,
    /// [`check`].
    Check = 10,
    /// [`choose`].
    Choose = 11,
    /// [`judge`].
    Judge = 12,
    /// [`record`].
    Record = 13,
    /// [`relay`].
    Relay = 14,
}

impl Step {
    /// The step with this number; any other number passes the packet.
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        match number {
            1 => Self::Drop,
            2 => Self::Open,
            3 => Self::Send,
            4 => Self::Quote,
            5 => Self::Answer,
            6 => Self::Redirect,
            7 => Self::Neighbour,
            8 => Self::Enter,
            9 => Self::Read,
            10 => Self::Check,
            11 => Self::Choose,
            12 => Self::Judge,
            13 => Self::Record,
            14 => Self::Relay,
            _ => Self::Pass,
        }
    }
}

/// The stages that a packet goes through at a hook.
pub trait Stages {
    fn read(&mut self) -> Step;
    fn check(&mut self) -> Step;
    fn open(&mut self) -> Step;
    fn choose(&mut self) -> Step;
    fn judge(&mut self) -> Step;
    fn record(&mut self) -> Step;
    fn send(&mut self) -> Step;
    fn quote(&mut self) -> Step;
    fn relay(&mut self) -> Step;
    fn answer(&mut self) -> Step;
    fn lose(&mut self) -> Step;
}

/// Takes a packet through its stages; what the last step means is in the scratch.
#[inline(always)]
pub fn cross(stages: &mut impl Stages) -> Step {
    let mut step = stages.read();
    if step == Step::Read {
        step = stages.read();
    }
    if step == Step::Check {
        step = stages.check();
    }
    if step == Step::Open {
        step = stages.open();
    } else if step == Step::Quote {
        step = stages.quote();
    }
    for _ in 0..balance::MOST_CHOICES {
        if step == Step::Choose {
            step = stages.choose();
        }
        if step == Step::Judge {
            step = stages.judge();
        }
        if step == Step::Record {
            step = stages.record();
        }
        if step != Step::Choose {
            break;
        }
    }
    if step == Step::Send {
        step = stages.send();
    } else if step == Step::Relay {
        step = stages.relay();
    }
    if step == Step::Answer {
        step = stages.answer();
    }
    if step == Step::Drop {
        step = stages.lose();
    }
    step
}

/// What becomes of a packet whose last step is this one.
#[inline(always)]
pub fn verdict(scratch: &Scratch, step: Step) -> Verdict {
    match step {
        Step::Redirect => Verdict::Redirect(scratch.interface),
        Step::Neighbour => Verdict::Neighbour(scratch.interface),
        Step::Enter => Verdict::Enter(scratch.interface),
        Step::Drop => Verdict::Drop(Reason::of(scratch.reason)),
        _ => Verdict::Pass,
    }
}

/// Finds whose packet it is and what flow it belongs to.
#[inline(always)]
pub fn read<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    if direction != Direction::FromPod && packet.mark() == MARK_DELIVER {
        return Step::Pass;
    }
    scratch.key.direction = direction as u8;
    match direction {
        Direction::FromPod | Direction::ToPod => {
            let slot = tables.slot(packet.interface());
            if slot == NO_SLOT {
                return Step::Pass;
            }
            scratch.key.owner = slot;
            scratch.standing = tables.standing(slot);
        }
        Direction::FromWire | Direction::ToWire => {
            scratch.key.owner = WIRE;
            scratch.standing = Standing::NONE;
        }
    }
    scratch.opening = false;
    scratch.now = tables.now();
    if parse(packet, scratch).is_some() {
        return if direction == Direction::FromPod && scratch.standing.bound {
            Step::Check
        } else {
            find(packet, tables, scratch, direction)
        };
    }
    if packet.gather() {
        return Step::Read;
    }
    unreadable(packet, scratch, direction)
}

/// A packet whose headers cannot be read is for the kernel to drop, unless it could be something
/// that the pod may not send or receive.
#[inline(always)]
fn unreadable<P: Packet>(packet: &P, scratch: &mut Scratch, direction: Direction) -> Step {
    let sends_bound = direction == Direction::FromPod && scratch.standing.bound;
    let arp = packet.ethertype() == Some(guard::ARP);
    if arp && sends_bound {
        return Step::Check;
    }
    if !arp && (sends_bound || scratch.standing.isolates(direction)) {
        (scratch.key.tuple, scratch.key.protocol) = (Tuple::NONE, 0);
        return scratch.drop_for(Reason::Unreadable);
    }
    Step::Pass
}

/// Reads the packet's headers into the scratch.
#[inline(always)]
fn parse<P: Packet>(packet: &P, scratch: &mut Scratch) -> Option<()> {
    let tuple = &mut scratch.key.tuple;
    scratch.headers = match packet.ethertype() {
        Some(V4::ETHERTYPE) => {
            scratch.v6 = 0;
            Headers::parse::<V4, P>(packet, P::NETWORK, tuple)
        }
        Some(V6::ETHERTYPE) => {
            scratch.v6 = 1;
            Headers::parse::<V6, P>(packet, P::NETWORK, tuple)
        }
        _ => None,
    }?;
    scratch.key.protocol = scratch.headers.protocol;
    Some(())
}

/// Looks whether a pod that is bound to its addresses may send the packet, and then what flow it
/// belongs to.
#[inline(always)]
pub fn check<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    let arp = packet.ethertype() == Some(guard::ARP);
    if arp {
        (scratch.key.tuple, scratch.key.protocol) = (Tuple::NONE, 0);
    }
    match guard::objection(packet, tables, scratch) {
        Some(reason) => scratch.drop_for(reason),
        None if arp => Step::Pass,
        None => find(packet, tables, scratch, direction),
    }
}

/// Finds what flow the packet belongs to.
#[inline(always)]
fn find<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    match scratch.headers.kind {
        Kind::Transport => tracked(packet, tables, scratch, direction),
        Kind::Fragment => fragment(packet, tables, scratch, direction),
        Kind::Error => Step::Quote,
        // What services do not know is followed where policy must know what answers what.
        Kind::Query | Kind::Other if scratch.standing.is_isolated() => {
            tracked(packet, tables, scratch, direction)
        }
        Kind::Link if scratch.standing.isolates(direction) => {
            if direction == Direction::FromPod && guard::is_rogue(scratch) {
                return scratch.drop_for(Reason::RogueServer);
            }
            Step::Pass
        }
        Kind::Query | Kind::Other | Kind::Link => {
            unknown(packet, tables, scratch, direction, Reason::OutOfState)
        }
    }
}

#[inline(always)]
fn tracked<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    if scratch.headers.part == Part::First {
        scratch.remember_fragment(tables);
    }
    let found = conntrack::find(tables, scratch);
    if let Some(table) = found
        && !conntrack::starts_afresh(tables, scratch, table)
    {
        scratch.table = table;
        let asks = scratch.headers.opens();
        return if scratch.headers.kind == Kind::Query && asks != (scratch.flow.opener == 1) {
            // Both sides ask by one identifier: what answers one is nothing that the other may ask.
            unknown(packet, tables, scratch, direction, Reason::OutOfState)
        } else if enforce::is_stale(tables, scratch) {
            Step::Judge
        } else {
            advance(tables, scratch)
        };
    }
    // A connection older than us lives on in the kernel's own tracking.
    if !scratch.headers.opens() {
        if found.is_none() && balance::may_adopt(tables, scratch) {
            return Step::Open;
        }
        return unknown(packet, tables, scratch, direction, Reason::OutOfState);
    }
    if let Some(table) = found {
        conntrack::forget(tables, scratch, table);
    }
    Step::Open
}

/// Follows the state of the flow that was found.
#[inline(always)]
fn advance<T: Tables>(tables: &T, scratch: &mut Scratch) -> Step {
    match conntrack::advance(tables, scratch, scratch.table) {
        Ok(()) => Step::Send,
        Err(reason) => scratch.drop_for(reason),
    }
}

/// A fragment without ports goes the way of the first of its packet.
#[inline(always)]
fn fragment<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    if scratch.recall_fragment(tables).is_none() {
        let address = FrontendKey::whole_address(scratch.key.tuple.destination);
        let outward = matches!(direction, Direction::FromPod | Direction::FromWire);
        return if outward && tables.frontend(&address) == Some(Target::Undefined) {
            scratch.drop_for(Reason::Fragment)
        } else {
            unknown(packet, tables, scratch, direction, Reason::Fragment)
        };
    }
    match conntrack::find(tables, scratch) {
        Some(table) => {
            scratch.table = table;
            if enforce::is_stale(tables, scratch) {
                Step::Judge
            } else {
                Step::Send
            }
        }
        None => unknown(packet, tables, scratch, direction, Reason::Fragment),
    }
}

/// A packet that none of our flows knows. Where policy restricts what a pod sends or receives it is
/// dropped for `reason`: nothing shows that somebody may send it. Of those from outside the kernel
/// drops the ones that claim to be from this node where they are IPv4.
#[inline(always)]
fn unknown<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
    reason: Reason,
) -> Step {
    if scratch.standing.isolates(direction) {
        return if direction == Direction::ToPod && is_from_node(packet, tables, scratch) {
            Step::Pass
        } else {
            scratch.drop_for(reason)
        };
    }
    if direction == Direction::FromWire
        && scratch.v6 == 1
        && balance::is_own(tables, &scratch.key.tuple.source)
    {
        return scratch.drop_for(Reason::SpoofedSource);
    }
    Step::Pass
}

/// Whether a packet that reaches a pod was made by this node itself, whose processes policy never
/// keeps from its pods (NetworkPolicySpec, `ingress`). Whatever the node forwards for others, under
/// whichever address, came in by some interface.
#[inline(always)]
fn is_from_node<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &Scratch) -> bool {
    packet.mark() == MARK_FROM_HOST
        || packet.arrived_by() == 0 && balance::is_own(tables, &scratch.key.tuple.source)
}

/// The packet opens a flow, of which nothing is decided.
#[inline(always)]
fn begin(scratch: &mut Scratch) {
    scratch.opening = true;
    scratch.choice = Choice::NONE;
    (scratch.flow.epochs, scratch.flow.judging) = (0, Judging::Opener as u8);
}

/// Opens a flow for the packet.
#[inline(always)]
pub fn open<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    begin(scratch);
    let opened = match direction {
        Direction::FromPod | Direction::ToPod if !scratch.headers.opens() => {
            balance::adopt(scratch, direction)
        }
        Direction::ToPod => {
            if is_from_node(packet, tables, scratch) {
                scratch.flow.judging = Judging::Nobody as u8;
            }
            let peer = came_from(packet);
            balance::direct(scratch, Direction::FromPod, peer)
        }
        // Services know no other protocols.
        Direction::FromPod if scratch.headers.kind != Kind::Transport => {
            balance::direct(scratch, Direction::ToPod, Peer::ROUTED)
        }
        Direction::FromPod => balance::open(tables, scratch, Side::Pod),
        Direction::FromWire => balance::open(tables, scratch, Side::Outside),
        // What the node forwards for others is none of its own.
        Direction::ToWire if packet.arrived_by() != 0 => {
            balance::from_forwarded_port(tables, scratch)
        }
        Direction::ToWire => balance::open(tables, scratch, Side::Host),
    };
    match opened {
        Opened::Untracked => unknown(packet, tables, scratch, direction, Reason::OutOfState),
        opened => proceed(scratch, opened),
    }
}

/// Chooses where the flow goes that the packet opens.
#[inline(always)]
pub fn choose<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    let client = match direction {
        Direction::FromPod | Direction::ToPod => Client::pod(Peer {
            way: Way::Pod,
            interface: packet.interface(),
            mac: packet.load(6).unwrap_or_default(),
        }),
        Direction::FromWire => Client::OUTSIDE,
        Direction::ToWire => Client::HOST,
    };
    let opened = balance::choose(packet, tables, scratch, client);
    proceed(scratch, opened)
}

/// What comes after a step of opening a flow.
#[inline(always)]
fn proceed(scratch: &mut Scratch, opened: Opened) -> Step {
    match opened {
        Opened::Decided if enforce::concerns(scratch) => Step::Judge,
        Opened::Decided => Step::Record,
        Opened::Choose => Step::Choose,
        // Policy has allowed it, if it was asked.
        Opened::Untracked => Step::Pass,
        Opened::Dropped(reason) => scratch.drop_for(reason),
        Opened::Refused(reason) => {
            let refusal = match scratch.v6 {
                0 => Answer::port_unreachable::<V4>(),
                _ => Answer::port_unreachable::<V6>(),
            };
            scratch.answer_with(reason, refusal)
        }
    }
}

/// Asks policy about the flow of the packet, which opens or was allowed a while ago.
#[inline(always)]
pub fn judge<T: Tables>(tables: &T, scratch: &mut Scratch) -> Step {
    let epochs = enforce::judge(tables, scratch);
    if scratch.ruling.rule.allow == 0 {
        let reason = scratch.ruling.reason();
        return scratch.drop_for(reason);
    }
    if scratch.opening {
        scratch.flow.epochs = epochs;
        event::ruled(tables, scratch);
        return Step::Record;
    }
    conntrack::allow(tables, scratch, epochs);
    match scratch.headers.kind {
        Kind::Error => Step::Relay,
        Kind::Fragment => Step::Send,
        _ => advance(tables, scratch),
    }
}

/// Records the flow that the packet opens.
#[inline(always)]
pub fn record<T: Tables>(tables: &T, scratch: &mut Scratch) -> Step {
    match balance::settle(tables, scratch) {
        None => Step::Send,
        Some(opened) => proceed(scratch, opened),
    }
}

/// How a packet came to a pod is how its replies go: straight back, or through the stack.
#[inline(always)]
fn came_from<P: Packet>(packet: &mut P) -> Peer {
    match packet.mark() {
        MARK_FROM_POD => Peer {
            way: Way::Pod,
            interface: packet.arrived_by(),
            mac: packet.load(6).unwrap_or_default(),
        },
        MARK_FROM_WIRE => Peer {
            way: Way::Neighbour,
            interface: packet.arrived_by(),
            mac: [0; 6],
        },
        MARK_FROM_HOST => {
            let interface = packet.hint();
            packet.set_hint(0);
            Peer {
                way: Way::Host,
                interface,
                mac: [0; 6],
            }
        }
        _ => Peer::ROUTED,
    }
}

/// Sends the packet the way its flow goes.
#[inline(always)]
pub fn send<P: Packet, T: Tables>(
    packet: &mut P,
    _tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    match scratch.v6 {
        0 => send_by::<V4, P>(packet, scratch, direction),
        _ => send_by::<V6, P>(packet, scratch, direction),
    }
}

#[inline(always)]
fn send_by<F: Family, P: Packet>(
    packet: &mut P,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    if let Some(stop) = way_out::<F, P>(packet, scratch, direction) {
        return stop;
    }
    let Scratch {
        key, flow, headers, ..
    } = scratch;
    if key.tuple != flow.to
        && nat::translate::<F, P>(packet, headers, &key.tuple, &flow.to).is_none()
    {
        return scratch.drop_for(Reason::Malformed);
    }
    deliver::<F, P>(packet, scratch, direction)
}

/// Looks whether the packet may go the way of its flow, before anything of it is changed, and where
/// that leads if the kernel's routes decide it: `scratch.hop`. Returns what happens instead.
#[inline(always)]
fn way_out<F: Family, P: Packet>(
    packet: &mut P,
    scratch: &mut Scratch,
    direction: Direction,
) -> Option<Step> {
    let Scratch {
        key, flow, headers, ..
    } = scratch;
    let (from, to) = (&key.tuple, &flow.to);
    if headers.protocol == SCTP
        && headers.part != Part::Whole
        && (from.source_port != to.source_port || from.destination_port != to.destination_port)
    {
        return Some(scratch.drop_for(Reason::FragmentedSctp));
    }
    if !flow.acts(direction) {
        return None;
    }
    let length = if packet.is_several() {
        0
    } else {
        packet.length() - P::NETWORK as u32
    };
    if crosses(flow, direction) && F::hop_limit(packet).is_none_or(|limit| limit <= 1) {
        return Some(scratch.answer_with(Reason::HopLimit, Answer::time_exceeded::<F>()));
    }
    if flow.way == Way::Pod as u8 {
        let mtu = u32::from(flow.mtu);
        return (mtu != 0 && length > mtu)
            .then(|| scratch.answer_with(Reason::TooBig, Answer::too_big::<F>(mtu)));
    }
    if enters(flow, direction) {
        return None;
    }
    match packet.route(to, headers.protocol, length) {
        Route::Out(hop) => {
            scratch.hop = hop;
            None
        }
        Route::TooBig(mtu) => Some(scratch.answer_with(Reason::TooBig, Answer::too_big::<F>(mtu))),
        Route::Local | Route::None => Some(scratch.drop_for(Reason::NoRoute)),
    }
}

/// Finds the flow that an ICMP error is about. At a pod that policy isolates it must be one that goes
/// the other way, and the error must go to who sent what it quotes.
#[inline(always)]
pub fn quote<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    packet.gather();
    let found = match scratch.v6 {
        0 => icmp::quoted::<V4, P, T>(packet, tables, scratch),
        _ => icmp::quoted::<V6, P, T>(packet, tables, scratch),
    };
    let isolated = scratch.standing.isolates(direction);
    match found {
        Some(table) if !isolated || scratch.outer.destination == scratch.key.tuple.destination => {
            scratch.table = table;
            if enforce::is_stale(tables, scratch) {
                Step::Judge
            } else {
                Step::Relay
            }
        }
        _ => {
            scratch.key.tuple = scratch.outer;
            scratch.key.protocol = scratch.headers.protocol;
            unknown(packet, tables, scratch, direction, Reason::UnrelatedError)
        }
    }
}

/// Sends an ICMP error the way of the flow that it quotes.
#[inline(always)]
pub fn relay<P: Packet, T: Tables>(
    packet: &mut P,
    _tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    match scratch.v6 {
        0 => relay_by::<V4, P>(packet, scratch, direction),
        _ => relay_by::<V6, P>(packet, scratch, direction),
    }
}

#[inline(always)]
fn relay_by<F: Family, P: Packet>(
    packet: &mut P,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    match way_out::<F, P>(packet, scratch, direction) {
        None => {}
        // No error is answered (RFC 1122, 3.2.2).
        Some(_) => return Step::Drop,
    }
    if scratch.flow.to != scratch.key.tuple && icmp::translate::<F, P>(packet, scratch).is_none() {
        return scratch.drop_for(Reason::Malformed);
    }
    deliver::<F, P>(packet, scratch, direction)
}

#[inline(always)]
fn deliver<F: Family, P: Packet>(
    packet: &mut P,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    let flow = &scratch.flow;
    if !flow.acts(direction) {
        return Step::Pass;
    }
    if crosses(flow, direction) && F::count_hop(packet).is_none() {
        return scratch.drop_for(Reason::Malformed);
    }
    let delivered = if flow.way == Way::Pod as u8 {
        to_local_pod(packet, scratch, direction)
    } else if enters(flow, direction) {
        Some(to_the_node(packet, scratch, direction))
    } else {
        to_next_hop(packet, scratch, direction)
    };
    delivered.unwrap_or_else(|| scratch.drop_for(Reason::Malformed))
}

/// Whether the node is a router to the packet: it goes on between what is outside and a pod, or from
/// outside to outside.
#[inline(always)]
fn crosses(flow: &Flow, direction: Direction) -> bool {
    flow.way == Way::Forward as u8
        || flow.way == Way::Pod as u8 && direction == Direction::FromWire
        || flow.way == Way::Neighbour as u8 && direction == Direction::FromPod
}

/// Whether a packet goes on into an interface, to the node itself.
#[inline(always)]
fn enters(flow: &Flow, direction: Direction) -> bool {
    flow.way == Way::Host as u8
        || flow.way == Way::Neighbour as u8 && direction == Direction::FromWire
}

/// Has a packet enter by the interface where the node waits for it: a strict reverse-path filter
/// looks for it there.
#[inline(always)]
fn to_the_node<P: Packet>(packet: &mut P, scratch: &mut Scratch, direction: Direction) -> Step {
    scratch.interface = scratch.flow.interface;
    if direction == Direction::FromWire {
        if scratch.interface == packet.interface() {
            return Step::Pass;
        }
        packet.set_mark(MARK_DELIVER);
    }
    Step::Enter
}

/// Sends a packet out of a local pod's interface.
#[inline(always)]
fn to_local_pod<P: Packet>(
    packet: &mut P,
    scratch: &mut Scratch,
    direction: Direction,
) -> Option<Step> {
    let flow = &scratch.flow;
    scratch.interface = flow.interface;
    if P::NETWORK == 0 {
        packet.address_to(&Hop {
            destination: flow.mac,
            ..Hop::NOWHERE
        })?;
    } else {
        packet.store(0, &flow.mac)?;
    }
    let mark = match direction {
        Direction::FromWire => MARK_FROM_WIRE,
        Direction::ToWire => {
            packet.set_hint(packet.interface());
            MARK_FROM_HOST
        }
        _ if flow.interface == packet.interface() => MARK_DELIVER,
        _ => MARK_FROM_POD,
    };
    packet.set_mark(mark);
    Some(Step::Redirect)
}

/// Sends a packet on to `scratch.hop`.
#[inline(always)]
fn to_next_hop<P: Packet>(
    packet: &mut P,
    scratch: &mut Scratch,
    direction: Direction,
) -> Option<Step> {
    // A reply of a pod is yet to be translated where it leaves.
    if direction != Direction::FromPod {
        packet.set_mark(MARK_DELIVER);
    }
    let hop = &scratch.hop;
    scratch.interface = hop.interface;
    if hop.resolved || P::NETWORK == 0 {
        packet.address_to(hop)?;
    }
    Some(if hop.resolved {
        Step::Redirect
    } else {
        Step::Neighbour
    })
}

/// Answers a packet that does not go on, if the node has not answered too many.
#[inline(always)]
pub fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Step {
    if !tables.may_refuse(scratch.now) {
        return scratch.drop_for(Reason::RefusalLimit);
    }
    tables.count(Reason::of(scratch.reason));
    packet.gather();
    let answered = match scratch.v6 {
        0 => icmp::answer::<V4, P>(packet, scratch),
        _ => icmp::answer::<V6, P>(packet, scratch),
    };
    if answered.is_none() {
        return scratch.drop_for(Reason::Malformed);
    }
    packet.set_mark(MARK_DELIVER);
    scratch.interface = packet.interface();
    if direction == Direction::ToWire {
        Step::Enter
    } else {
        Step::Redirect
    }
}

/// Counts a packet that is dropped, and tells of it where it crosses a pod's interface.
#[inline(always)]
pub fn lose<T: Tables>(tables: &T, scratch: &mut Scratch) -> Step {
    tables.count(Reason::of(scratch.reason));
    if scratch.key.owner != WIRE {
        event::dropped(tables, scratch);
    }
    Step::Drop
}

/// As [`read`], at the XDP hook of an uplink: only flows that leave the node again are opened or
/// sent. All else passes up untouched, and tc's hook finds the flow that was opened for it.
#[inline(always)]
pub fn read_frame<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Step {
    scratch.key.direction = Direction::FromWire as u8;
    scratch.key.owner = WIRE;
    scratch.standing = Standing::NONE;
    scratch.opening = false;
    if parse(packet, scratch).is_none() {
        return Step::Pass;
    }
    let headers = &scratch.headers;
    if headers.kind != Kind::Transport || headers.part != Part::Whole {
        return Step::Pass;
    }
    scratch.now = tables.now();
    find_frame(tables, scratch)
}

#[inline(always)]
fn find_frame<T: Tables>(tables: &T, scratch: &mut Scratch) -> Step {
    let found = conntrack::find(tables, scratch);
    match found {
        Some(table) if !conntrack::starts_afresh(tables, scratch, table) => {
            if scratch.flow.way == Way::Forward as u8
                && conntrack::advance(tables, scratch, table).is_ok()
            {
                Step::Send
            } else {
                Step::Pass
            }
        }
        _ if !scratch.headers.opens() => Step::Pass,
        _ => {
            if let Some(table) = found {
                conntrack::forget(tables, scratch, table);
            }
            Step::Open
        }
    }
}

/// As [`open`], for [`read_frame`].
#[inline(always)]
pub fn open_frame<T: Tables>(tables: &T, scratch: &mut Scratch) -> Step {
    begin(scratch);
    let opened = balance::open(tables, scratch, Side::Outside);
    up(proceed(scratch, opened))
}

/// As [`choose`], for [`read_frame`].
#[inline(always)]
pub fn choose_frame<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
) -> Step {
    up(choose(packet, tables, scratch, Direction::FromWire))
}

/// As [`record`], for [`read_frame`].
#[inline(always)]
pub fn record_frame<T: Tables>(tables: &T, scratch: &mut Scratch) -> Step {
    match record(tables, scratch) {
        Step::Send if scratch.flow.way != Way::Forward as u8 => Step::Pass,
        step => up(step),
    }
}

/// Leaves to tc's hook what does not open a flow.
#[inline(always)]
fn up(step: Step) -> Step {
    match step {
        Step::Drop | Step::Answer => Step::Pass,
        step => step,
    }
}

/// As [`send`], for [`read_frame`].
#[inline(always)]
pub fn send_frame<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Step {
    match scratch.v6 {
        0 => send_frame_by::<V4, P, T>(packet, tables, scratch),
        _ => send_frame_by::<V6, P, T>(packet, tables, scratch),
    }
}

#[inline(always)]
fn send_frame_by<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
) -> Step {
    if way_out::<F, P>(packet, scratch, Direction::FromWire).is_some()
        || !scratch.hop.resolved
        || !can_send(packet, tables, &scratch.hop)
        || is_unfinished(packet, scratch)
    {
        return Step::Pass;
    }
    let Scratch {
        key, flow, headers, ..
    } = scratch;
    if nat::translate::<F, P>(packet, headers, &key.tuple, &flow.to).is_none() {
        return scratch.drop_for(Reason::Malformed);
    }
    deliver::<F, P>(packet, scratch, Direction::FromWire)
}

/// Whether an XDP program can send out of the hop's interface.
#[inline(always)]
fn can_send<P: Packet, T: Tables>(packet: &P, tables: &T, hop: &Hop) -> bool {
    hop.interface == packet.interface()
        || tables
            .device(hop.interface)
            .is_some_and(|device| device.xdp == 1)
}

/// Whether the transport checksum is one that a device was to complete, which the sum of the
/// pseudo-header alone tells; XDP cannot have that done (virtual Ethernet links carry such packets).
#[inline(always)]
fn is_unfinished<P: Packet>(packet: &P, scratch: &Scratch) -> bool {
    let Scratch { key, headers, .. } = scratch;
    let Some(field) = packet.load(headers.checksum()) else {
        return true;
    };
    if headers.protocol == SCTP {
        return field == [0; 2];
    }
    let length = headers.transport_length() as u16;
    let [high, low] = Sum::default()
        .with(&key.tuple.source.bytes)
        .with(&key.tuple.destination.bytes)
        .with(&length.to_be_bytes())
        .with(&[0, headers.protocol])
        .finish();
    field == [!high, !low]
}

/// A packet, its tables and its scratch, whose stages are plain calls.
pub struct Inline<'a, P, T> {
    pub packet: &'a mut P,
    pub tables: &'a T,
    pub scratch: &'a mut Scratch,
    pub direction: Direction,
}

impl<P: Packet, T: Tables> Inline<'_, P, T> {
    /// Takes the packet across.
    pub fn cross(mut self) -> Verdict {
        let step = cross(&mut self);
        verdict(self.scratch, step)
    }
}

/// Makes each stage a plain call: of functions that look at the packet, and of those that do not.
macro_rules! inline_stages {
    ($($stage:ident),+; $($blind:ident),+) => {
        impl<P: Packet, T: Tables> Stages for Inline<'_, P, T> {
            $(
                fn $stage(&mut self) -> Step {
                    $stage(self.packet, self.tables, self.scratch, self.direction)
                }
            )+
            $(
                fn $blind(&mut self) -> Step {
                    $blind(self.tables, self.scratch)
                }
            )+
        }
    };
}

inline_stages!(
    read, check, open, choose, send, quote, relay, answer;
    judge, record, lose
);

/// As [`Inline`], at the XDP hook.
pub struct InlineFrame<'a, P, T> {
    pub packet: &'a mut P,
    pub tables: &'a T,
    pub scratch: &'a mut Scratch,
}

impl<P: Packet, T: Tables> InlineFrame<'_, P, T> {
    /// Takes the packet across.
    pub fn cross(mut self) -> Verdict {
        let step = cross(&mut self);
        verdict(self.scratch, step)
    }
}

/// As [`inline_stages`], for the stages that there are at the XDP hook.
macro_rules! inline_frame_stages {
    ($($stage:ident: $call:ident),+; $($blind:ident: $blind_call:ident),+; $($none:ident),+) => {
        impl<P: Packet, T: Tables> Stages for InlineFrame<'_, P, T> {
            $(
                fn $stage(&mut self) -> Step {
                    $call(self.packet, self.tables, self.scratch)
                }
            )+
            $(
                fn $blind(&mut self) -> Step {
                    $blind_call(self.tables, self.scratch)
                }
            )+
            $(
                fn $none(&mut self) -> Step {
                    Step::Pass
                }
            )+
        }
    };
}

inline_frame_stages!(
    read: read_frame, choose: choose_frame, send: send_frame;
    open: open_frame, record: record_frame, lose: lose;
    check, judge, quote, relay, answer
);
