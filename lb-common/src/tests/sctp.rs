//! SCTP packets, whose checksum a crate computes that is not ours.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, PacketBuilder};

use super::wire;

/// Types of chunks (RFC 9260, 3.2).
pub const DATA: u8 = 0;
pub const INIT: u8 = 1;

/// An SCTP packet with one chunk of 20 bytes.
pub fn packet(from: SocketAddr, to: SocketAddr, chunk: u8) -> Vec<u8> {
    let mut packet = [
        &from.port().to_be_bytes()[..],
        &to.port().to_be_bytes(),
        &[0; 8],
        &[chunk, 0, 0, 20],
        &[7; 16],
    ]
    .concat();
    let checksum = crc32c::crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    let ethernet = PacketBuilder::ethernet2(wire::mac(super::CLIENT), wire::GATEWAY);
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    };
    let mut bytes = Vec::new();
    ip.write(&mut bytes, IpNumber::SCTP, &packet)
        .expect("a packet");
    bytes
}

/// The SCTP packet as a device gets it that is to compute the checksum.
pub fn without_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let start = bytes.len() - 32;
    bytes[start + 8..start + 12].fill(0);
    bytes
}

/// Ports and checksum of what [`packet`] makes, and what the checksum should be.
pub fn read(bytes: &[u8]) -> ((u16, u16), [u8; 4], [u8; 4]) {
    let mut packet = bytes[bytes.len() - 32..].to_vec();
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let ports = (port(0), port(2));
    let checksum = [packet[8], packet[9], packet[10], packet[11]];
    packet[8..12].fill(0);
    (ports, checksum, crc32c::crc32c(&packet).to_le_bytes())
}
