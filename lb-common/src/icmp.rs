//! ICMP errors: those that quote a translated flow are translated with it, and those that answer a
//! packet are made here.

use crate::{
    checksum::{Difference, Sum},
    conntrack,
    flow::{FlowKey, Tuple},
    headers::{Family, Message, Part, TCP, has_ports, ports, query_ports},
    nat::{Change, rewrite_ports},
    packet::{ETHERNET, Packet, Scope},
    scratch::Scratch,
    tables::{FlowTable, Tables},
};

/// Length of an ICMP error's own header, in both families.
const HEADER: usize = 8;
/// Offset of the checksum in it.
const CHECKSUM: usize = 2;

/// No ICMP header that was read stands further in.
const MAX_TRANSPORT: usize = 4095;

const PLAIN: Scope = Scope {
    pseudo_header: false,
    zero_means_none: false,
};

/// Where the headers of a quoted packet stand: offsets in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Quoted {
    ip: usize,
    transport: usize,
}

impl Quoted {
    /// Of no packet.
    pub const NOTHING: Self = Self {
        ip: 0,
        transport: 0,
    };
}

/// Finds the flow that an ICMP error belongs to, one of this endpoint whose replies go the error's
/// way, and leaves it in `scratch`: the key is that of a reply, which is to say that of the quoted
/// packet reversed. The error's own addresses move to `scratch.outer`. Returns where the flow is kept.
#[inline(always)]
pub fn quoted<F: Family, P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
) -> Option<FlowTable> {
    scratch.outer = scratch.key.tuple;
    // Nothing further in has been read, which the verifier does not know here.
    let ip = (scratch.headers.transport() & MAX_TRANSPORT) + HEADER;
    let inner = F::parse(packet, ip, &mut scratch.key.tuple)?;
    if inner.part == Part::Later {
        return None;
    }
    let quoted = quoted_ports::<F, P>(packet, inner.protocol, inner.payload)?;
    let Tuple {
        source,
        destination,
        source_port,
        destination_port,
    } = &mut scratch.key.tuple;
    (*destination_port, *source_port) = quoted;
    core::mem::swap(source, destination);
    scratch.key.protocol = inner.protocol;
    scratch.quoted = Quoted {
        ip,
        transport: inner.payload,
    };
    conntrack::find(tables, scratch)
}

/// The ports of the quoted packet whose transport header stands at `offset`, or what stands for them.
#[inline(always)]
fn quoted_ports<F: Family, P: Packet>(
    packet: &P,
    protocol: u8,
    offset: usize,
) -> Option<(u16, u16)> {
    if has_ports(protocol) {
        return ports(packet, offset);
    }
    if protocol != F::ICMP {
        return Some((0, 0));
    }
    let [icmp_type, _code] = packet.load(offset)?;
    match F::message(icmp_type) {
        message @ (Message::Request | Message::Reply) => query_ports(packet, offset, message),
        // No error is about an error (RFC 1122, 3.2.2; RFC 4443, 2.4).
        Message::Error => None,
        Message::Link { .. } | Message::Other => Some((0, 0)),
    }
}

/// Rewrites an error and the packet it quotes as if neither had ever been translated otherwise.
///
/// The quoted transport checksum is left alone: it need not even be quoted, and nobody checks it.
/// After `None` the packet is in pieces and must not go on.
#[inline(always)]
pub fn translate<F: Family, P: Packet>(packet: &mut P, scratch: &Scratch) -> Option<()> {
    let Scratch {
        headers, quoted, ..
    } = scratch;
    // A reply of the flow would turn from `from` into `to`; the quoted packet is such a reply's
    // opposite.
    let (from, to) = (&scratch.key.tuple, &scratch.flow.to);
    let checksum = headers.transport() + CHECKSUM;
    let inner = F::rewrite(
        packet,
        quoted.ip,
        (&from.destination, &from.source),
        (&to.destination, &to.source),
    )?;
    packet.fix_transport(checksum, inner.header, PLAIN)?;
    let source_port = Change {
        from: from.destination_port,
        to: to.destination_port,
    };
    let destination_port = Change {
        from: from.source_port,
        to: to.source_port,
    };
    let ports = rewrite_ports(packet, quoted.transport, source_port, destination_port)?;
    packet.fix_transport(checksum, ports, PLAIN)?;

    // Whoever sent the error, a router on the way keeps its address; the two ends get theirs back.
    let outer = &scratch.outer;
    let source = if outer.source == from.source {
        &to.source
    } else {
        &outer.source
    };
    let destination = if outer.destination == from.destination {
        &to.destination
    } else {
        &outer.destination
    };
    let outer = F::rewrite(
        packet,
        P::NETWORK,
        (&outer.source, &outer.destination),
        (source, destination),
    )?;
    if F::ICMP_COVERS_ADDRESSES && outer.addresses != Difference::NONE {
        packet.fix_transport(
            checksum,
            outer.addresses,
            Scope {
                pseudo_header: true,
                ..PLAIN
            },
        )?;
    }
    Some(())
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Type and code.
    kind: [u8; 2],
    /// The length that would fit, in bytes; 0 where that is not the matter.
    mtu: u32,
}

impl Answer {
    /// No answer.
    pub const NONE: Self = Self {
        kind: [0; 2],
        mtu: 0,
    };

    #[inline(always)]
    pub const fn port_unreachable<F: Family>() -> Self {
        Self {
            kind: F::PORT_UNREACHABLE,
            mtu: 0,
        }
    }

    #[inline(always)]
    pub const fn time_exceeded<F: Family>() -> Self {
        Self {
            kind: F::TIME_EXCEEDED,
            mtu: 0,
        }
    }

    #[inline(always)]
    pub const fn too_big<F: Family>(mtu: u32) -> Self {
        Self {
            kind: F::TOO_BIG,
            mtu,
        }
    }
}

/// Turns a packet into the error `scratch.answer` that answers it, from the address it was sent to. After `None` the
/// packet is in pieces and must not go on.
#[inline(always)]
pub fn answer<F: Family, P: Packet>(packet: &mut P, scratch: &Scratch) -> Option<()> {
    let Scratch {
        key: FlowKey { tuple, .. },
        headers,
        answer,
        ..
    } = scratch;
    // The whole TCP header: kernels look for its sequence number, and a segment whose checksum the
    // hardware is to complete cannot be cut before that field.
    let quoted = headers.transport() - P::NETWORK + if headers.protocol == TCP { 20 } else { 8 };
    if quoted > MAX_QUOTED {
        return None;
    }
    packet.truncate(P::NETWORK + quoted)?;
    if P::NETWORK == ETHERNET {
        let [a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12] = packet.load(0)?;
        packet.store(0, &[g, h, i, j, k, l, a, b, c, d, e, f])?;
    }
    F::prepend_error(packet, tuple, quoted + HEADER)?;

    let icmp = P::NETWORK + F::HEADER;
    let [kind, code] = answer.kind;
    let [e, f, g, h] = answer.mtu.to_be_bytes();
    packet.store(icmp, &[kind, code, 0, 0, e, f, g, h])?;
    let mut sum = Sum::default();
    if F::ICMP_COVERS_ADDRESSES {
        let length = ((HEADER + quoted) as u32).to_be_bytes();
        sum = sum
            .with(&tuple.source.bytes)
            .with(&tuple.destination.bytes)
            .with(&length)
            .with(&[0, 0, 0, F::ICMP]);
    }
    for word in 0..(HEADER + MAX_QUOTED) / 4 {
        if word * 4 >= HEADER + quoted {
            break;
        }
        let bytes: [u8; 4] = packet.load(icmp + word * 4)?;
        sum = sum.with(&bytes);
    }
    packet.store(icmp + CHECKSUM, &sum.finish())
}

/// The longest IP and transport header that an answer quotes: more extension headers than fit are
/// not answered.
const MAX_QUOTED: usize = 40 + 64 + 20;
