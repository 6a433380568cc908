//! The ways out of a hook.

use super::Step;
use crate::{
    endpoint::WIRE,
    event,
    flow::{Direction, Flow, Way},
    headers::{Family, Part, SCTP, V4, V6},
    icmp::{self, Answer},
    nat,
    packet::{Hop, MARK_DELIVER, MARK_FROM_HOST, MARK_FROM_POD, MARK_FROM_WIRE, Packet, Route},
    reason::Reason,
    scratch::Scratch,
    tables::Tables,
};

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
pub(super) fn way_out<F: Family, P: Packet>(
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
pub(super) fn deliver<F: Family, P: Packet>(
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
