//! Local pods: the interfaces our programs hang on, and the addresses behind them.

use crate::address::{Address, is_v4};

/// Local addresses that fit.
pub const MAX_ENDPOINTS: usize = 16_384;
/// Uplinks and tunnels that fit.
pub const MAX_DEVICES: usize = 1024;
/// Slots: the owners of flows. Slot 0 is [`NO_SLOT`].
pub const MAX_SLOTS: u32 = 65_536;
/// Interfaces are found by `ifindex % BUCKETS`, then by the index itself among a bucket's few.
pub const INTERFACE_BUCKETS: usize = 16_384;
pub const BUCKET_SIZE: usize = 4;

/// The slot of an interface that is not a pod's.
pub const NO_SLOT: u32 = 0;
/// The owner of the flows that cross the devices that lead out of the node: all of them together,
/// since a flow may come by one and go by another.
pub const WIRE: u32 = 0;

/// A pod's host-side interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Interface index; 0 in a free place.
    pub index: u32,
    /// The endpoint slot that owns the flows of this interface.
    pub slot: u32,
}

/// Value of `INTERFACES`: the interfaces whose index has one remainder.
///
/// An array, not a hash: the packet path pays nothing for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    pub interfaces: [Interface; BUCKET_SIZE],
}

impl Bucket {
    /// Where the bucket of an interface index stands.
    #[inline(always)]
    pub const fn of(index: u32) -> u32 {
        index % INTERFACE_BUCKETS as u32
    }

    /// The slot of the interface, or [`NO_SLOT`].
    #[inline(always)]
    pub fn slot(&self, index: u32) -> u32 {
        for interface in &self.interfaces {
            if interface.index == index {
                return interface.slot;
            }
        }
        NO_SLOT
    }
}

/// Key of `ENDPOINTS`: the address of a local pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointKey {
    pub address: Address,
}

/// Value of `ENDPOINTS`: how a packet reaches a local pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Index of the host-side interface.
    pub interface: u32,
    pub slot: u32,
    /// The pod's own MAC address, behind the interface.
    pub mac: [u8; 6],
    /// The largest IP packet that the interface carries, in bytes; 0 is not known.
    pub mtu: u16,
}

/// Key of `DEVICES`: an interface that leads out of the node, an uplink or a tunnel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceKey {
    /// Interface index.
    pub index: u32,
}

/// Value of `DEVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The node's own addresses there, by which it sends; [`crate::address::UNSPECIFIED`] where it
    /// has none of the family.
    pub v4: Address,
    pub v6: Address,
    /// The largest IP packet that the device carries, in bytes.
    pub mtu: u16,
    /// 1 where packets have an Ethernet header.
    pub ethernet: u8,
    /// 1 where XDP programs can send on it.
    pub xdp: u8,
}

impl Device {
    /// The node's own address there, of the family of `other`.
    #[inline(always)]
    pub fn source(&self, other: &Address) -> Address {
        if is_v4(other) { self.v4 } else { self.v6 }
    }
}

const _: () = assert!(size_of::<Bucket>() == 32);
const _: () = assert!(size_of::<EndpointKey>() == 16);
const _: () = assert!(size_of::<Endpoint>() == 16);
const _: () = assert!(size_of::<Device>() == 36);
