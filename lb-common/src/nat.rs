//! Giving a packet the addresses and ports of another tuple.

use crate::{
    checksum::Difference,
    flow::Tuple,
    headers::{Family, Headers, Kind, SCTP, UDP},
    packet::Packet,
};

/// Rewrites the addresses and ports of a packet; every checksum stays valid. What is no first
/// fragment has no ports. After `None` the packet is in pieces and must not go on.
#[inline(always)]
pub fn translate<F: Family, P: Packet>(
    packet: &mut P,
    headers: &Headers,
    from: &Tuple,
    to: &Tuple,
) -> Option<()> {
    let rewritten = F::rewrite(
        packet,
        P::NETWORK,
        (&from.source, &from.destination),
        (&to.source, &to.destination),
    )?;
    if headers.kind == Kind::Fragment {
        return Some(());
    }
    if headers.protocol == SCTP {
        return rewrite_sctp(packet, headers, from, to);
    }
    let ports = rewrite_ports(
        packet,
        headers.transport(),
        Change {
            from: from.source_port,
            to: to.source_port,
        },
        Change {
            from: from.destination_port,
            to: to.destination_port,
        },
    )?;
    let zero_means_none = headers.protocol == UDP;
    packet.fix_translated(
        headers.checksum(),
        rewritten.addresses,
        ports,
        zero_means_none,
    )
}

/// Changes the ports of an SCTP packet, whose checksum covers no addresses.
#[inline(never)]
fn rewrite_sctp<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    from: &Tuple,
    to: &Tuple,
) -> Option<()> {
    let (old, new) = (both_ports(from), both_ports(to));
    if old == new {
        return Some(());
    }
    let length = headers.transport_length();
    let field = packet.load(headers.checksum())?;
    packet.store_summed(headers.transport(), &new)?;
    let field = packet.corrected_crc(field, old, new, length);
    packet.store_summed(headers.checksum(), &field)
}

/// Source and destination port as they are on the wire.
#[inline(always)]
const fn both_ports(tuple: &Tuple) -> [u8; 4] {
    let [a, b] = tuple.source_port.to_be_bytes();
    let [c, d] = tuple.destination_port.to_be_bytes();
    [a, b, c, d]
}

/// A number and what becomes of it.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub from: u16,
    pub to: u16,
}

/// Changes the ports of the transport header at `offset`; returns what that changed.
#[inline(always)]
pub fn rewrite_ports<P: Packet>(
    packet: &mut P,
    offset: usize,
    source: Change,
    destination: Change,
) -> Option<Difference> {
    let mut change = Difference::NONE;
    for (offset, port) in [(offset, source), (offset + 2, destination)] {
        if port.from != port.to {
            change = change.and(&port.from.to_be_bytes(), &port.to.to_be_bytes());
            packet.store(offset, &port.to.to_be_bytes())?;
        }
    }
    Some(change)
}
