//! Packets as they are on the wire, made and judged by code that is not ours.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpHeaders, NetHeaders, PacketBuilder, PacketBuilderStep, PacketHeaders, TcpHeader,
    TransportHeader,
};

use crate::headers::{ACK, FIN, RST, SYN};

pub fn mac(interface: u32) -> [u8; 6] {
    [2, 0, 0, 0, 0, interface as u8]
}

/// The gateway that a pod sends to: not the MAC address of any pod.
pub const GATEWAY: [u8; 6] = [2, 0xaa, 0, 0, 0, 1];

fn ip(from: IpAddr, to: IpAddr) -> PacketBuilderStep<IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(mac(super::CLIENT), GATEWAY);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    }
}

pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    tcp_with(from, to, flags, b"")
}

pub fn tcp_with(from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(from.port(), to.port(), 1_000_000, 512);
    header.syn = flags & SYN != 0;
    header.ack = flags & ACK != 0;
    header.fin = flags & FIN != 0;
    header.rst = flags & RST != 0;
    let mut bytes = Vec::new();
    ip(from.ip(), to.ip())
        .tcp_header(header)
        .write(&mut bytes, payload)
        .expect("a packet");
    bytes
}

pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(from.ip(), to.ip())
        .udp(from.port(), to.port())
        .write(&mut bytes, payload)
        .expect("a packet");
    bytes
}

/// An ICMP error of this type and code that quotes the start of a packet.
pub fn error(from: IpAddr, to: IpAddr, kind: [u8; 2], quoted: &[u8]) -> Vec<u8> {
    let [icmp_type, code] = kind;
    let builder = ip(from, to);
    // Too-big errors carry an MTU of 1280, others nothing.
    let rest = if matches!(kind, [3, 4] | [2, 0]) {
        [0, 0, 5, 0]
    } else {
        [0; 4]
    };
    let quoted = &quoted[14..];
    let quoted = &quoted[..quoted.len().min(128)];
    let mut bytes = Vec::new();
    match from {
        IpAddr::V4(_) => builder
            .icmpv4_raw(icmp_type, code, rest)
            .write(&mut bytes, quoted),
        IpAddr::V6(_) => builder
            .icmpv6_raw(icmp_type, code, rest)
            .write(&mut bytes, quoted),
    }
    .expect("a packet");
    bytes
}

/// What a packet says, for tests that read well.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

pub fn seen(from: SocketAddr, to: SocketAddr) -> Seen {
    Seen { from, to }
}

/// Source and destination of a TCP or UDP packet.
pub fn read(bytes: &[u8]) -> Seen {
    let packet = PacketHeaders::from_ethernet_slice(bytes).expect("a packet");
    let (from, to) = match packet.transport.expect("a transport header") {
        TransportHeader::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
        TransportHeader::Udp(udp) => (udp.source_port, udp.destination_port),
        other => panic!("no ports: {other:?}"),
    };
    let (source, destination) = addresses(bytes);
    Seen {
        from: SocketAddr::new(source, from),
        to: SocketAddr::new(destination, to),
    }
}

/// Source and destination address of a packet.
pub fn addresses(bytes: &[u8]) -> (IpAddr, IpAddr) {
    let packet = PacketHeaders::from_ethernet_slice(bytes).expect("a packet");
    match packet.net.expect("an IP header") {
        NetHeaders::Ipv4(ip, _) => (ip.source.into(), ip.destination.into()),
        NetHeaders::Ipv6(ip, _) => (ip.source.into(), ip.destination.into()),
        NetHeaders::Arp(_) => panic!("ARP"),
    }
}

/// The packet that an ICMP error quotes, as a frame, and the error's source and destination.
pub fn quoted(bytes: &[u8]) -> (IpAddr, IpAddr, Vec<u8>) {
    let packet = PacketHeaders::from_ethernet_slice(bytes).expect("a packet");
    let ethertype = [bytes[12], bytes[13]];
    let mut frame = [&[0; 12][..], &ethertype, packet.payload.slice()].concat();
    frame.resize(frame.len().max(54), 0);
    let (source, destination) = addresses(bytes);
    (source, destination, frame)
}

/// Panics unless every checksum of the packet holds; packets without one hold.
pub fn check(bytes: &[u8]) {
    let Ok(packet) = PacketHeaders::from_ethernet_slice(bytes) else {
        return;
    };
    let payload = packet.payload.slice();
    match (&packet.net, &packet.transport) {
        (Some(NetHeaders::Ipv4(ip, _)), transport) => {
            assert_eq!(
                ip.header_checksum,
                ip.calc_header_checksum(),
                "IPv4 header checksum"
            );
            if ip.is_fragmenting_payload() {
                return;
            }
            match transport {
                Some(TransportHeader::Tcp(tcp)) => {
                    assert_eq!(Ok(tcp.checksum), tcp.calc_checksum_ipv4(ip, payload), "TCP");
                }
                Some(TransportHeader::Udp(udp)) if udp.checksum != 0 => {
                    assert_eq!(Ok(udp.checksum), udp.calc_checksum_ipv4(ip, payload), "UDP");
                }
                Some(TransportHeader::Icmpv4(icmp)) => {
                    assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(payload), "ICMP");
                }
                _ => {}
            }
        }
        (Some(NetHeaders::Ipv6(ip, _)), transport) => match transport {
            Some(TransportHeader::Tcp(tcp)) => {
                assert_eq!(Ok(tcp.checksum), tcp.calc_checksum_ipv6(ip, payload), "TCP");
            }
            Some(TransportHeader::Udp(udp)) => {
                assert_eq!(Ok(udp.checksum), udp.calc_checksum_ipv6(ip, payload), "UDP");
            }
            Some(TransportHeader::Icmpv6(icmp)) => {
                let sum = icmp
                    .icmp_type
                    .calc_checksum(ip.source, ip.destination, payload);
                assert_eq!(Ok(icmp.checksum), sum, "ICMPv6");
            }
            _ => {}
        },
        _ => {}
    }
}

/// An IPv4 header with options in place of the first packet's, its payload kept.
pub fn with_options(bytes: &[u8], words: usize) -> Vec<u8> {
    let mut out = bytes[..34].to_vec();
    out.extend([1].repeat(words * 4));
    out.extend(&bytes[34..]);
    out[14] = 0x45 + words as u8;
    let length = (out.len() - 14) as u16;
    out[16..18].copy_from_slice(&length.to_be_bytes());
    out[24..26].fill(0);
    let packet = etherparse::Ipv4Header::from_slice(&out[14..])
        .expect("an IPv4 header")
        .0;
    let sum = packet.calc_header_checksum();
    out[24..26].copy_from_slice(&sum.to_be_bytes());
    out
}

/// An IPv6 packet with extension headers of these protocol numbers before its payload, each of
/// eight bytes but for the first, which has sixteen.
pub fn with_extensions(bytes: &[u8], extensions: &[u8]) -> Vec<u8> {
    let payload_protocol = bytes[20];
    let mut out = bytes[..54].to_vec();
    for (place, extension) in extensions.iter().enumerate() {
        let next = extensions
            .get(place + 1)
            .copied()
            .unwrap_or(payload_protocol);
        match *extension {
            // An atomic fragment.
            44 => out.extend([next, 0, 0, 0, 0, 0, 0, 1]),
            _ if place == 0 => {
                out.extend([next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            }
            _ => out.extend([next, 0, 1, 4, 0, 0, 0, 0]),
        }
    }
    out.extend(&bytes[54..]);
    out[20] = extensions.first().copied().unwrap_or(payload_protocol);
    let length = (out.len() - 54) as u16;
    out[18..20].copy_from_slice(&length.to_be_bytes());
    out
}
