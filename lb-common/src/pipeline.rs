//! The two ways across a pod's interface.

use crate::{
    balance::{self, Opened, Peer},
    conntrack,
    endpoint::NO_SLOT,
    flow::{Direction, Flow},
    headers::{Family, Headers, Kind, V4, V6},
    icmp, nat,
    packet::{ETHERNET, MARK_DELIVER, MARK_REDIRECTED, Packet, Verdict},
    reason::Reason,
    scratch::Scratch,
    service::FrontendKey,
    tables::Tables,
};

/// A packet that a pod sends, at tc ingress of its host-side interface.
#[inline(always)]
pub fn from_pod<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
) -> Verdict {
    cross(packet, tables, scratch, Direction::FromPod)
}

/// A packet on its way to a pod, at tc egress of its host-side interface.
#[inline(always)]
pub fn to_pod<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Verdict {
    if packet.mark() == MARK_DELIVER {
        return Verdict::Pass;
    }
    cross(packet, tables, scratch, Direction::ToPod)
}

#[inline(always)]
fn cross<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Verdict {
    let owner = tables.slot(packet.interface());
    if owner == NO_SLOT {
        return Verdict::Pass;
    }
    scratch.key.owner = owner;
    scratch.key.direction = direction as u8;
    let verdict = match packet.load(ETHERNET - 2) {
        Some(V4::ETHERTYPE) => judge::<V4, P, T>(packet, tables, scratch, direction),
        Some(V6::ETHERTYPE) => judge::<V6, P, T>(packet, tables, scratch, direction),
        _ => Verdict::Pass,
    };
    if let Verdict::Drop(reason) = verdict {
        tables.count(reason);
    }
    verdict
}

#[inline(never)]
fn judge<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Verdict {
    // A packet that cannot be read is for the kernel to drop.
    let Some(headers) = Headers::parse::<F, P>(packet, ETHERNET, &mut scratch.key.tuple) else {
        return Verdict::Pass;
    };
    scratch.key.protocol = headers.protocol;
    match headers.kind {
        Kind::Transport => transport::<F, P, T>(packet, tables, scratch, &headers, direction),
        Kind::Error => error::<F, P, T>(packet, tables, scratch, &headers, direction),
        Kind::Fragment if direction == Direction::FromPod => {
            match tables.frontend(&FrontendKey::whole_address(scratch.key.tuple.destination)) {
                Some(_) => Verdict::Drop(Reason::Fragment),
                None => Verdict::Pass,
            }
        }
        Kind::Fragment | Kind::Other => Verdict::Pass,
    }
}

#[inline(always)]
fn transport<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    headers: &Headers,
    direction: Direction,
) -> Verdict {
    let now = tables.now();
    let found = conntrack::find(tables, scratch);
    if let Some(table) = found
        && !conntrack::starts_afresh(tables, scratch, headers, table, now)
    {
        return match conntrack::advance(tables, scratch, headers, table, now) {
            Ok(()) => send::<F, P>(packet, scratch, headers, direction),
            Err(reason) => Verdict::Drop(reason),
        };
    }
    // A connection older than us lives on in the kernel's own tracking.
    if !headers.opens() {
        return Verdict::Pass;
    }
    if let Some(table) = found {
        conntrack::forget(tables, scratch, table);
    }
    match open(packet, tables, scratch, direction, now) {
        Opened::Yes => send::<F, P>(packet, scratch, headers, direction),
        Opened::Untracked => Verdict::Pass,
        Opened::Dropped(reason) => Verdict::Drop(reason),
        Opened::Refused(_) if !tables.may_refuse(now) => Verdict::Drop(Reason::RefusalLimit),
        Opened::Refused(reason) => {
            tables.count(reason);
            icmp::refuse::<F, P>(packet, &scratch.key.tuple, headers)
        }
    }
}

#[inline(always)]
fn open<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
    now: u64,
) -> Opened {
    let mac = packet.load(6).unwrap_or_default();
    match direction {
        Direction::FromPod | Direction::FromWire | Direction::ToWire => balance::open(
            tables,
            scratch,
            Peer {
                interface: packet.interface(),
                mac,
            },
            now,
        ),
        Direction::ToPod => {
            // How the flow came is how its replies go: straight back, or through the stack.
            let peer = if packet.mark() == MARK_REDIRECTED {
                Peer {
                    interface: packet.arrived_by(),
                    mac,
                }
            } else {
                Peer::ROUTED
            };
            balance::direct(tables, scratch, Direction::FromPod, peer, now)
        }
    }
}

/// Sends a packet the way its flow goes.
#[inline(always)]
fn send<F: Family, P: Packet>(
    packet: &mut P,
    scratch: &Scratch,
    headers: &Headers,
    direction: Direction,
) -> Verdict {
    let (from, to) = (&scratch.key.tuple, &scratch.flow.to);
    if from != to && nat::translate::<F, P>(packet, headers, from, to).is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    deliver(packet, &scratch.flow, direction)
}

/// An ICMP error goes the way of the flow that it quotes.
#[inline(always)]
fn error<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    headers: &Headers,
    direction: Direction,
) -> Verdict {
    let Some(quoted) = icmp::quoted::<F, P, T>(packet, tables, scratch, headers) else {
        return Verdict::Pass;
    };
    if scratch.flow.to != scratch.key.tuple
        && icmp::translate::<F, P>(packet, scratch, headers, &quoted).is_none()
    {
        return Verdict::Drop(Reason::Malformed);
    }
    deliver(packet, &scratch.flow, direction)
}

#[inline(always)]
fn deliver<P: Packet>(packet: &mut P, flow: &Flow, direction: Direction) -> Verdict {
    if direction == Direction::ToPod || flow.interface == 0 {
        return Verdict::Pass;
    }
    if packet.store(0, &flow.mac).is_none() {
        return Verdict::Drop(Reason::Malformed);
    }
    let back = flow.interface == packet.interface();
    packet.set_mark(if back { MARK_DELIVER } else { MARK_REDIRECTED });
    Verdict::Redirect(flow.interface)
}
