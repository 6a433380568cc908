//! Reading headers: one shape for both address families.

use crate::{
    address::{Address, map_v4, unmap_v4},
    checksum::{Difference, Sum},
    flow::Tuple,
    packet::Packet,
};

/// IANA protocol numbers.
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// IPv6 extension headers that are walked to find the transport header; a packet with more of them
/// is nothing that a service can be found for.
pub const MAX_EXTENSIONS: usize = 6;

/// ICMPv6 types (RFC 4861, 4).
pub const ROUTER_SOLICITATION: u8 = 133;
pub const ROUTER_ADVERTISEMENT: u8 = 134;
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
pub const REDIRECT: u8 = 137;

/// What an IP header says beside its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// IANA protocol number of what follows the header and its extensions.
    pub protocol: u8,
    pub part: Part,
    /// What the fragments of one packet have in common; 0 where it is whole.
    pub identification: u32,
    /// Offset of what follows.
    pub payload: usize,
    /// Offset of where the packet ends by its own account.
    pub end: usize,
}

/// How much of a packet there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The beginning, with the transport header.
    First,
    /// Without the transport header.
    Later,
}

impl Part {
    /// `offset` is where the fragment belongs, in whatever unit; `more`: others come after it.
    #[inline(always)]
    const fn of(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

/// An address family: where it differs from the other. All else is written once.
pub trait Family {
    const ETHERTYPE: [u8; 2];
    /// Its protocol for errors.
    const ICMP: u8;
    /// ICMP type and code of "port unreachable".
    const PORT_UNREACHABLE: [u8; 2];
    /// ICMP type and code of "time exceeded in transit".
    const TIME_EXCEEDED: [u8; 2];
    /// ICMP type and code of "fragmentation needed", or "packet too big".
    const TOO_BIG: [u8; 2];
    /// Length of the IP header without options or extensions.
    const HEADER: usize;
    /// Whether ICMP checksums cover the IP addresses (RFC 4443, 2.3).
    const ICMP_COVERS_ADDRESSES: bool;

    /// Reads the IP header at `offset`, the addresses into `tuple`; `None` where it is cut short or
    /// not of this family.
    fn parse<P: Packet>(packet: &P, offset: usize, tuple: &mut Tuple) -> Option<Ip>;

    /// What an ICMP type is to us.
    fn message(icmp_type: u8) -> Message;

    /// How often the packet may still be forwarded.
    fn hop_limit<P: Packet>(packet: &P) -> Option<u8>;

    /// Takes one off the packet's hop limit.
    fn count_hop<P: Packet>(packet: &mut P) -> Option<()>;

    /// Changes the addresses of the IP header at `offset`. Returns what that changed for checksums
    /// that cover the addresses, and for checksums that cover the whole header.
    fn rewrite<P: Packet>(
        packet: &mut P,
        offset: usize,
        from: (&Address, &Address),
        to: (&Address, &Address),
    ) -> Option<Rewritten>;

    /// Puts the IP header of an ICMP packet in front of the one that is there, from the
    /// destination of `answered` to its source; `payload` bytes in all will follow it, of which
    /// the packet has all but the ICMP header's eight.
    fn prepend_error<P: Packet>(packet: &mut P, answered: &Tuple, payload: usize) -> Option<()>;
}

/// What an ICMP message is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// It quotes a packet.
    Error,
    /// It asks something, by an identifier.
    Request,
    /// It answers.
    Reply,
    /// It keeps a link going, and is from that link if it has this hop limit.
    Link {
        hop_limit: u8,
    },
    Other,
}

/// What changed addresses mean to checksums elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// For a checksum that covers the addresses.
    pub addresses: Difference,
    /// For a checksum that covers the whole IP header, its own checksum included.
    pub header: Difference,
}

#[derive(Clone, Copy, Debug)]
pub struct V4;

#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    const ETHERTYPE: [u8; 2] = [0x08, 0x00];
    const ICMP: u8 = ICMP;
    const PORT_UNREACHABLE: [u8; 2] = [3, 3];
    const TIME_EXCEEDED: [u8; 2] = [11, 0];
    const TOO_BIG: [u8; 2] = [3, 4];
    const HEADER: usize = 20;
    const ICMP_COVERS_ADDRESSES: bool = false;

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, offset: usize, tuple: &mut Tuple) -> Option<Ip> {
        let [version_and_words, _tos, length_high, length_low] = packet.load(offset)?;
        let words = usize::from(version_and_words & 0x0f);
        if version_and_words >> 4 != 4 || words < 5 {
            return None;
        }
        let [id_high, id_low, high, low] = packet.load(offset + 4)?;
        let [_ttl, protocol, ..]: [u8; 4] = packet.load(offset + 8)?;
        tuple.source = map_v4(packet.load(offset + 12)?);
        tuple.destination = map_v4(packet.load(offset + 16)?);
        Some(Ip {
            protocol,
            // RFC 791, 3.1.
            part: Part::of(u16::from_be_bytes([high, low]) & 0x1fff, high & 0x20 != 0),
            identification: u32::from(u16::from_be_bytes([id_high, id_low])),
            payload: offset + words * 4,
            end: offset + usize::from(u16::from_be_bytes([length_high, length_low])),
        })
    }

    #[inline(always)]
    fn message(icmp_type: u8) -> Message {
        match icmp_type {
            // Destination unreachable, time exceeded, parameter problem (RFC 792).
            3 | 11 | 12 => Message::Error,
            // Echo, timestamp, information (RFC 792), address mask (RFC 950).
            8 | 13 | 15 | 17 => Message::Request,
            0 | 14 | 16 | 18 => Message::Reply,
            _ => Message::Other,
        }
    }

    #[inline(always)]
    fn hop_limit<P: Packet>(packet: &P) -> Option<u8> {
        let [limit, _protocol] = packet.load(P::NETWORK + 8)?;
        Some(limit)
    }

    #[inline(always)]
    fn count_hop<P: Packet>(packet: &mut P) -> Option<()> {
        let [limit, protocol] = packet.load(P::NETWORK + 8)?;
        let counted = [limit.wrapping_sub(1), protocol];
        let change = Difference::NONE.and(&[limit, protocol], &counted);
        let checksum = change.apply(packet.load(P::NETWORK + 10)?);
        packet.store(P::NETWORK + 8, &counted)?;
        packet.store(P::NETWORK + 10, &checksum)
    }

    #[inline(always)]
    fn rewrite<P: Packet>(
        packet: &mut P,
        offset: usize,
        from: (&Address, &Address),
        to: (&Address, &Address),
    ) -> Option<Rewritten> {
        let mut change = Difference::NONE;
        if from.0 != to.0 {
            change = change.and(&unmap_v4(from.0), &unmap_v4(to.0));
            packet.store(offset + 12, &unmap_v4(to.0))?;
        }
        if from.1 != to.1 {
            change = change.and(&unmap_v4(from.1), &unmap_v4(to.1));
            packet.store(offset + 16, &unmap_v4(to.1))?;
        }
        let checksum = change.apply(packet.load(offset + 10)?);
        packet.store(offset + 10, &checksum)?;
        Some(Rewritten {
            addresses: change,
            header: Difference::NONE,
        })
    }

    #[inline(always)]
    fn prepend_error<P: Packet>(packet: &mut P, answered: &Tuple, payload: usize) -> Option<()> {
        packet.make_room::<{ Self::HEADER + 8 }>()?;
        let [length_high, length_low] = ((Self::HEADER + payload) as u16).to_be_bytes();
        let [a, b, c, d] = unmap_v4(&answered.destination);
        let [e, f, g, h] = unmap_v4(&answered.source);
        let mut header = [
            0x45,
            0,
            length_high,
            length_low,
            0,
            0,
            0,
            0,
            HOP_LIMIT,
            ICMP,
            0,
            0, //
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
        ];
        let [high, low] = Sum::default().with(&header).finish();
        header[10] = high;
        header[11] = low;
        packet.store(P::NETWORK, &header)
    }
}

impl Family for V6 {
    const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
    const ICMP: u8 = ICMPV6;
    const PORT_UNREACHABLE: [u8; 2] = [1, 4];
    const TIME_EXCEEDED: [u8; 2] = [3, 0];
    const TOO_BIG: [u8; 2] = [2, 0];
    const HEADER: usize = 40;
    const ICMP_COVERS_ADDRESSES: bool = true;

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, offset: usize, tuple: &mut Tuple) -> Option<Ip> {
        let [version, ..]: [u8; 4] = packet.load(offset)?;
        if version >> 4 != 6 {
            return None;
        }
        let [high, low, protocol, _hop_limit] = packet.load(offset + 4)?;
        tuple.source = packet.load_v6_address(offset + 8)?;
        tuple.destination = packet.load_v6_address(offset + 24)?;
        let mut ip = Ip {
            protocol,
            part: Part::Whole,
            identification: 0,
            payload: offset + 40,
            end: offset + 40 + usize::from(u16::from_be_bytes([high, low])),
        };
        for _ in 0..MAX_EXTENSIONS {
            if !is_extension(ip.protocol) {
                break;
            }
            let [next, length, high, low] = packet.load(ip.payload)?;
            ip.payload += match ip.protocol {
                FRAGMENT => {
                    // An atomic one is whole (RFC 6946).
                    ip.part = Part::of(u16::from_be_bytes([high, low]) >> 3, low & 1 != 0);
                    if ip.part != Part::Whole {
                        ip.identification = u32::from_be_bytes(packet.load(ip.payload + 4)?);
                    }
                    8
                }
                // Units of four bytes, the first two not counted (RFC 4302, 2.2).
                AUTHENTICATION => 8 + 4 * usize::from(length),
                // Units of eight bytes, the first not counted (RFC 8200, 4).
                _ => 8 + 8 * usize::from(length),
            };
            ip.protocol = next;
            if ip.part == Part::Later {
                // What follows is the middle of anything.
                break;
            }
        }
        Some(ip)
    }

    #[inline(always)]
    fn message(icmp_type: u8) -> Message {
        match icmp_type {
            // RFC 4443, 2.1: errors have the high bit clear; 1 to 4 are defined.
            1..=4 => Message::Error,
            // Echo (RFC 4443, 4).
            128 => Message::Request,
            129 => Message::Reply,
            // Who crosses a router loses it, and is not believed (RFC 4861, 6.1 and 7.1).
            ROUTER_SOLICITATION..=REDIRECT => Message::Link { hop_limit: 255 },
            // Multicast listeners (RFC 2710, 3; RFC 3810, 5).
            130..=132 | 143 => Message::Link { hop_limit: 1 },
            _ => Message::Other,
        }
    }

    #[inline(always)]
    fn hop_limit<P: Packet>(packet: &P) -> Option<u8> {
        let [_protocol, limit] = packet.load(P::NETWORK + 6)?;
        Some(limit)
    }

    #[inline(always)]
    fn count_hop<P: Packet>(packet: &mut P) -> Option<()> {
        let [protocol, limit] = packet.load(P::NETWORK + 6)?;
        packet.store_summed(P::NETWORK + 6, &[protocol, limit.wrapping_sub(1)])
    }

    #[inline(always)]
    fn rewrite<P: Packet>(
        packet: &mut P,
        offset: usize,
        from: (&Address, &Address),
        to: (&Address, &Address),
    ) -> Option<Rewritten> {
        let mut change = Difference::NONE;
        if from.0 != to.0 {
            change = change.and(&from.0.bytes, &to.0.bytes);
            packet.store_summed(offset + 8, &to.0.bytes)?;
        }
        if from.1 != to.1 {
            change = change.and(&from.1.bytes, &to.1.bytes);
            packet.store_summed(offset + 24, &to.1.bytes)?;
        }
        Some(Rewritten {
            addresses: change,
            header: change,
        })
    }

    #[inline(always)]
    fn prepend_error<P: Packet>(packet: &mut P, answered: &Tuple, payload: usize) -> Option<()> {
        packet.make_room::<{ Self::HEADER + 8 }>()?;
        let [length_high, length_low] = (payload as u16).to_be_bytes();
        packet.store(
            P::NETWORK,
            &[0x60, 0, 0, 0, length_high, length_low, ICMPV6, HOP_LIMIT],
        )?;
        packet.store_summed(P::NETWORK + 8, &answered.destination.bytes)?;
        packet.store_summed(P::NETWORK + 24, &answered.source.bytes)
    }
}

/// Hop limit of the packets we make (RFC 1700).
const HOP_LIMIT: u8 = 64;

const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// Whether an IPv6 header says by this number that an extension header follows, and not the
/// payload: hop-by-hop, routing, fragment, authentication, destination options, mobility, HIP,
/// shim6 (RFC 7045, 4).
#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        0 | 43 | FRAGMENT | AUTHENTICATION | 60 | 135 | 139 | 140
    )
}

/// Whether the protocol's header begins with two ports that services know.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}

/// Whether flows of the protocol begin with a handshake, so that it shows who opens one.
#[inline(always)]
pub const fn shakes_hands(protocol: u8) -> bool {
    matches!(protocol, TCP | SCTP)
}

/// Source and destination port of the transport header at `offset`.
#[inline(always)]
pub fn ports<P: Packet>(packet: &P, offset: usize) -> Option<(u16, u16)> {
    let [a, b, c, d] = packet.load(offset)?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// What a packet is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment, a UDP datagram or an SCTP packet, or the part of one that has its ports.
    Transport,
    /// A part of one that has no ports.
    Fragment,
    /// An ICMP error that quotes a packet.
    Error,
    /// An ICMP message that asks or answers.
    Query,
    /// An ICMPv6 message that keeps the link going: neighbour discovery, multicast listeners.
    Link,
    /// Any other protocol.
    Other,
}

/// A parsed packet, beside its tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    pub kind: Kind,
    pub protocol: u8,
    /// Whether it is whole.
    pub part: Part,
    /// TCP's flags, or what an SCTP packet's first chunk, or an ICMP query, means in their terms; 0
    /// in UDP.
    pub flags: u8,
    /// 0 where it is no ICMP message.
    pub icmp_type: u8,
    /// What the fragments of one packet have in common; 0 where it is whole.
    pub identification: u32,
    /// Offset of the transport header.
    transport: u16,
    /// Offset of where the packet ends by its own account.
    pub end: u32,
}

impl Headers {
    /// The headers of nothing.
    pub const NONE: Self = Self {
        kind: Kind::Other,
        protocol: 0,
        part: Part::Whole,
        flags: 0,
        icmp_type: 0,
        identification: 0,
        transport: 0,
        end: 0,
    };

    /// Reads the headers of a packet whose IP header stands at `offset`, and its addresses and
    /// ports into `tuple`. In an ICMP query the side that asks has its identifier for a port; all
    /// other ports of what is not [`Kind::Transport`] are 0.
    #[inline(always)]
    pub fn parse<F: Family, P: Packet>(
        packet: &P,
        offset: usize,
        tuple: &mut Tuple,
    ) -> Option<Self> {
        let ip = F::parse(packet, offset, tuple)?;
        (tuple.source_port, tuple.destination_port) = (0, 0);
        let mut headers = Self {
            kind: Kind::Other,
            protocol: ip.protocol,
            part: ip.part,
            flags: 0,
            icmp_type: 0,
            identification: ip.identification,
            transport: ip.payload as u16,
            end: ip.end as u32,
        };
        if ip.part == Part::Later {
            headers.kind = Kind::Fragment;
        } else if has_ports(ip.protocol) {
            headers.kind = Kind::Transport;
            // What a first fragment leaves to the next is not there to be judged (RFC 3128).
            if ip.part == Part::First && ip.end < ip.payload + shortest_header(ip.protocol) {
                return None;
            }
            (tuple.source_port, tuple.destination_port) = ports(packet, ip.payload)?;
            headers.flags = flags(packet, ip.protocol, ip.payload)?;
        } else if ip.protocol == F::ICMP {
            headers.read_message::<F, P>(packet, tuple)?;
        }
        Some(headers)
    }

    /// Reads the beginning of an ICMP message.
    #[inline(always)]
    fn read_message<F: Family, P: Packet>(&mut self, packet: &P, tuple: &mut Tuple) -> Option<()> {
        let [icmp_type, _code] = packet.load(self.transport())?;
        self.icmp_type = icmp_type;
        match F::message(icmp_type) {
            Message::Error => self.kind = Kind::Error,
            message @ (Message::Request | Message::Reply) => {
                self.kind = Kind::Query;
                self.flags = if message == Message::Request {
                    SYN
                } else {
                    ACK
                };
                (tuple.source_port, tuple.destination_port) =
                    query_ports(packet, self.transport(), message)?;
            }
            Message::Link { hop_limit } => {
                if F::hop_limit(packet) == Some(hop_limit) {
                    self.kind = Kind::Link;
                }
            }
            Message::Other => {}
        }
        Some(())
    }

    /// Whether the packet may begin a flow: a SYN alone, an SCTP INIT, an ICMP request, or anything
    /// of a protocol that does not say.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        match self.kind {
            Kind::Other => true,
            Kind::Query => self.flags == SYN,
            _ => self.protocol == UDP || self.flags & (SYN | ACK | RST | FIN) == SYN,
        }
    }

    /// Offset of the transport header.
    #[inline(always)]
    pub const fn transport(&self) -> usize {
        self.transport as usize
    }

    /// Length of the transport header and what follows it, by the packet's own account.
    #[inline(always)]
    pub const fn transport_length(&self) -> u32 {
        self.end.wrapping_sub(self.transport as u32)
    }

    /// Offset of the transport header's checksum.
    #[inline(always)]
    pub const fn checksum(&self) -> usize {
        self.transport()
            + match self.protocol {
                TCP => 16,
                SCTP => 8,
                _ => 6,
            }
    }
}

/// What stands for the ports of an ICMP query at `offset`: the identifier is on the side that asks,
/// so that what answers one side's request is no request of the other's.
#[inline(always)]
pub fn query_ports<P: Packet>(packet: &P, offset: usize, message: Message) -> Option<(u16, u16)> {
    let identifier = u16::from_be_bytes(packet.load(offset + 4)?);
    Some(match message {
        Message::Reply => (0, identifier),
        _ => (identifier, 0),
    })
}

/// The least that a transport header has, in bytes.
#[inline(always)]
const fn shortest_header(protocol: u8) -> usize {
    match protocol {
        TCP => 20,
        SCTP => 16,
        _ => 8,
    }
}

/// The flags of the TCP header at `offset`, or what an SCTP packet's first chunk means in their
/// terms (RFC 9260, 3.2): INIT opens, INIT ACK answers, ABORT and the end of a shutdown close.
#[inline(always)]
fn flags<P: Packet>(packet: &P, protocol: u8, offset: usize) -> Option<u8> {
    match protocol {
        TCP => {
            let [_, flags] = packet.load(offset + 12)?;
            Some(flags)
        }
        SCTP => {
            let [chunk, _] = packet.load(offset + 12)?;
            Some(match chunk {
                1 => SYN,
                2 => SYN | ACK,
                6 | 14 => RST | ACK,
                _ => ACK,
            })
        }
        _ => Some(0),
    }
}
