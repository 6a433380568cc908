//! Binding pods to their addresses: what a pod sends must come from its own MAC and IP addresses,
//! and it may announce no others, nor act as a router or a DHCP server (CVE-2020-10749).

use crate::{
    address::{Address, UNSPECIFIED, is_v4, map_v4},
    headers::{
        ICMP, ICMPV6, Kind, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, REDIRECT,
        ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION, UDP,
    },
    packet::{ETHERNET, Packet},
    policy::{Guard, SourceKey},
    reason::Reason,
    scratch::Scratch,
    tables::Tables,
};

/// The EtherType of ARP.
pub const ARP: [u8; 2] = [0x08, 0x06];

/// Options of a neighbour discovery message that are looked at; one with more is not believed.
const MAX_OPTIONS: usize = 4;
/// Options that carry a link-layer address: the sender's, and that of what it speaks of (RFC 4861,
/// 4.6.1).
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// Ports of DHCP servers and the clients that they answer (RFC 2131, 4.1; RFC 8415, 7.2).
const DHCP: (u16, u16) = (67, 68);
const DHCP_V6: (u16, u16) = (547, 546);

/// Why a packet that a bound pod sends is none that it may send. The headers of an IP packet are in
/// `scratch`.
#[inline(always)]
pub fn objection<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &Scratch,
) -> Option<Reason> {
    let slot = scratch.key.owner;
    let Some(guard) = tables.guard(slot) else {
        return Some(Reason::ForgedSource);
    };
    let pod = Pod {
        guard: &guard,
        tables,
        slot,
    };
    if packet.load(6) != Some(guard.mac) {
        return Some(Reason::ForgedSource);
    }
    if packet.ethertype() == Some(ARP) {
        packet.gather();
        return (!pod.may_announce_by_arp(packet)).then_some(Reason::ForgedNeighbour);
    }
    if is_rogue(scratch) {
        return Some(Reason::RogueServer);
    }
    if scratch.headers.kind == Kind::Link {
        return pod.link_objection(packet, scratch);
    }
    (!pod.has(&scratch.key.tuple.source)).then_some(Reason::ForgedSource)
}

/// Whether a packet is one that routers and DHCP servers send.
#[inline(always)]
pub fn is_rogue(scratch: &Scratch) -> bool {
    let Scratch { key, headers, .. } = scratch;
    let tuple = &key.tuple;
    match headers.protocol {
        ICMPV6 => matches!(headers.icmp_type, ROUTER_ADVERTISEMENT | REDIRECT),
        // Redirect, router advertisement (RFC 792; RFC 1256).
        ICMP => matches!(headers.icmp_type, 5 | 9),
        UDP => {
            let ports = (tuple.source_port, tuple.destination_port);
            ports == DHCP || ports == DHCP_V6
        }
        _ => false,
    }
}

/// A pod, and what it may say that it is.
struct Pod<'a, T> {
    guard: &'a Guard,
    tables: &'a T,
    slot: u32,
}

impl<T: Tables> Pod<'_, T> {
    /// Whether the pod may send from this address.
    #[inline(always)]
    fn has(&self, address: &Address) -> bool {
        let Guard {
            v4,
            v6,
            more_sources,
            ..
        } = self.guard;
        let own = if is_v4(address) { v4 } else { v6 };
        address == own && *address != UNSPECIFIED
            || *more_sources == 1
                && self.tables.is_source(&SourceKey {
                    slot: self.slot,
                    address: *address,
                })
    }

    /// Whether the pod has this address on the link: its own ones, and the one that follows from its
    /// MAC address (RFC 4291, 2.5.6; RFC 2464, 4).
    #[inline(always)]
    fn has_on_link(&self, address: &Address) -> bool {
        let [a, b, c, d, e, f] = self.guard.mac;
        let own = Address {
            bytes: [
                0xfe,
                0x80,
                0,
                0,
                0,
                0,
                0,
                0,
                a ^ 2,
                b,
                c,
                0xff,
                0xfe,
                d,
                e,
                f,
            ],
        };
        *address == own || self.has(address)
    }

    /// Whether an ARP packet is for IPv4 over Ethernet and speaks of the pod as its sender: by its
    /// own address, or by none, which asks whether somebody has one (RFC 826; RFC 5227, 2.1.1).
    #[inline(always)]
    fn may_announce_by_arp<P: Packet>(&self, packet: &P) -> bool {
        const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
        const NOBODY: Address = map_v4([0; 4]);
        let Some(sender) = packet.load(ETHERNET + 14).map(map_v4) else {
            return false;
        };
        packet.load(ETHERNET) == Some(ETHERNET_AND_IPV4)
            && packet.load(ETHERNET + 8) == Some(self.guard.mac)
            && (sender == NOBODY || self.has(&sender))
    }

    /// Why an ICMPv6 message to the link is none that the pod may send.
    #[inline(always)]
    fn link_objection<P: Packet>(&self, packet: &P, scratch: &Scratch) -> Option<Reason> {
        let Scratch { key, headers, .. } = scratch;
        let source = &key.tuple.source;
        if *source != UNSPECIFIED && !self.has_on_link(source) {
            return Some(Reason::ForgedSource);
        }
        let options = match headers.icmp_type {
            NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => {
                let target = packet.load_v6_address(headers.transport() + 8);
                // Who asks from no address asks for its own, to see whether somebody has it.
                let own = headers.icmp_type == NEIGHBOUR_ADVERTISEMENT || *source == UNSPECIFIED;
                if target.is_none_or(|target| own && !self.has_on_link(&target)) {
                    return Some(Reason::ForgedNeighbour);
                }
                24
            }
            ROUTER_SOLICITATION => 8,
            // Multicast listeners have none.
            _ => return None,
        };
        let options = headers.transport() + options;
        (!self.speaks_of_own_mac(packet, options, headers.end as usize))
            .then_some(Reason::ForgedNeighbour)
    }

    /// Whether the options from one offset to another name no link-layer address but the pod's own.
    #[inline(always)]
    fn speaks_of_own_mac<P: Packet>(&self, packet: &P, mut option: usize, end: usize) -> bool {
        for _ in 0..MAX_OPTIONS {
            if option >= end {
                return true;
            }
            // Units of eight bytes, this header counted (RFC 4861, 4.6).
            let Some([kind, length, a, b, c, d, e, f]) = packet.load(option) else {
                return false;
            };
            let link_layer = matches!(kind, SOURCE_LINK_LAYER | TARGET_LINK_LAYER);
            if length == 0 || link_layer && [a, b, c, d, e, f] != self.guard.mac {
                return false;
            }
            option += 8 * usize::from(length);
        }
        option >= end
    }
}
