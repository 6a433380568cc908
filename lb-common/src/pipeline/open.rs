//! What becomes of a flow: where it goes, and whether policy lets it.

use super::{
    Step,
    find::{advance, is_from_node, unknown},
};
use crate::{
    balance::{self, Choice, Client, Opened, Peer, Side},
    conntrack, enforce, event,
    flow::{Direction, Judging, Way},
    headers::{Kind, V4, V6},
    icmp::Answer,
    packet::{MARK_FROM_HOST, MARK_FROM_POD, MARK_FROM_WIRE, Packet},
    reason::Reason,
    scratch::Scratch,
    tables::Tables,
};

/// The packet opens a flow, of which nothing is decided.
#[inline(always)]
pub(super) fn begin(scratch: &mut Scratch) {
    scratch.opening = true;
    scratch.choice = Choice::NONE;
    (scratch.flow.epoch, scratch.flow.judging) = (0, Judging::Opener as u8);
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
pub(super) fn proceed(scratch: &mut Scratch, opened: Opened) -> Step {
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
    enforce::judge(tables, scratch);
    let epoch = scratch.standing.epoch;
    if scratch.ruling.rule.allow == 0 {
        let reason = scratch.ruling.reason();
        return scratch.drop_for(reason);
    }
    if scratch.opening {
        scratch.flow.epoch = epoch;
        event::ruled(tables, scratch);
        return Step::Record;
    }
    conntrack::allow(tables, scratch, epoch);
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
