//! The stages at the XDP hook of an uplink.

use super::{
    Step,
    find::parse,
    open::{begin, choose, proceed, record},
    send::{deliver, way_out},
};
use crate::{
    balance::{self, Side},
    checksum::Sum,
    conntrack,
    endpoint::WIRE,
    enforce::Standing,
    flow::{Direction, Way},
    headers::{Family, Kind, Part, SCTP, V4, V6},
    nat,
    packet::{Hop, Packet},
    reason::Reason,
    scratch::Scratch,
    tables::Tables,
};

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
