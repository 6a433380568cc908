//! What the two halves agree on: the layout of every table, and the packet path that reads them.
//!
//! The packet path is written once, generic over [`packet::Packet`] and [`tables::Tables`], and runs
//! in plain tests on byte slices and in the kernel on socket buffers. Nothing here allocates,
//! panics, logs, or knows Kubernetes.
//!
//! Addresses are sixteen bytes in network order, IPv4 as `::ffff:a.b.c.d`. Ports, lengths and
//! numbers are in host order, as a person types them.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod address;
pub mod affinity;
pub mod balance;
pub mod budget;
pub mod checksum;
pub mod conntrack;
pub mod crc32c;
pub mod endpoint;
pub mod enforce;
pub mod event;
pub mod expiry;
pub mod flow;
pub mod fragment;
pub mod guard;
pub mod headers;
pub mod icmp;
#[cfg(any(test, feature = "user"))]
pub mod memory;
pub mod nat;
pub mod packet;
pub mod pipeline;
#[cfg(feature = "user")]
mod pod;
pub mod policy;
pub mod reason;
pub mod scratch;
pub mod service;
pub mod socket;
pub mod tables;
#[cfg(test)]
mod tests;

/// Version of the table layouts: the name of the directory that the tables are pinned under.
///
/// Any change to the size, the fields or the meaning of a table's keys or values changes it.
pub const LAYOUT_VERSION: u32 = 4;
