//! What a packet is: whose, and of which flow.

use super::Step;
use crate::{
    balance, conntrack,
    endpoint::{NO_SLOT, WIRE},
    enforce::{self, Standing},
    flow::{Direction, Tuple},
    guard,
    headers::{Family, Headers, Kind, Part, V4, V6},
    icmp,
    packet::{MARK_DELIVER, MARK_FROM_HOST, Packet},
    reason::Reason,
    scratch::Scratch,
    service::{FrontendKey, Target},
    tables::Tables,
};

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
pub(super) fn parse<P: Packet>(packet: &P, scratch: &mut Scratch) -> Option<()> {
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
        } else if enforce::is_stale(scratch) {
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
pub(super) fn advance<T: Tables>(tables: &T, scratch: &mut Scratch) -> Step {
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
            if enforce::is_stale(scratch) {
                Step::Judge
            } else {
                Step::Send
            }
        }
        None => unknown(packet, tables, scratch, direction, Reason::Fragment),
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
            if enforce::is_stale(scratch) {
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

/// A packet that none of our flows knows. Where policy restricts what a pod sends or receives it is
/// dropped for `reason`: nothing shows that somebody may send it. Of those from outside the kernel
/// drops the ones that claim to be from this node where they are IPv4.
#[inline(always)]
pub(super) fn unknown<P: Packet, T: Tables>(
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
pub(super) fn is_from_node<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &Scratch,
) -> bool {
    packet.mark() == MARK_FROM_HOST
        || packet.arrived_by() == 0 && balance::is_own(tables, &scratch.key.tuple.source)
}
