//! A packet as the packet path sees it, wherever it runs.

use crate::{address::Address, checksum::Difference, reason::Reason};

/// Length of the Ethernet header: where the IP header starts.
pub const ETHERNET: usize = 14;

/// Mark of a packet that `pod_egress` sent straight to a local pod's interface: its replies go
/// straight back. Marks do not leave the node: the kernel clears them between namespaces.
pub const MARK_REDIRECTED: u32 = 0x6c62_0001;
/// Mark of a packet for the pod that caused it, a hairpin or an answer of ours: deliver as it is.
pub const MARK_DELIVER: u32 = 0x6c62_0002;

/// A packet at a hook of a pod's interface. Offsets count from the Ethernet header.
///
/// Every method that can fail returns `None` and leaves the packet as it was.
pub trait Packet {
    /// Copies `N` bytes out; `None` past the end.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Copies an IPv6 address out; `None` past the end.
    fn load_v6_address(&self, offset: usize) -> Option<Address>;

    /// Overwrites `N` bytes whose change some checksum field of the packet makes good.
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;

    /// Overwrites an IPv6 address: no header checksum makes this good, so whatever sums the
    /// kernel keeps of the whole packet follow here.
    fn store_v6_address(&mut self, offset: usize, address: &Address) -> Option<()>;

    /// Corrects the transport checksum at `offset` for changed bytes.
    fn fix_transport(&mut self, offset: usize, change: Difference, scope: Scope) -> Option<()>;

    /// Makes the packet at most `length` bytes long.
    fn truncate(&mut self, length: usize) -> Option<()>;

    /// Makes room for `N` bytes between the Ethernet and the IP header.
    fn make_room<const N: usize>(&mut self) -> Option<()>;

    /// Index of the interface whose hook this is.
    fn interface(&self) -> u32;

    /// Index of the interface that the packet entered the node by; 0 where the node made it.
    fn arrived_by(&self) -> u32;

    fn mark(&self) -> u32;
    fn set_mark(&mut self, mark: u32);
}

/// What a transport checksum covers of the bytes that changed, which decides whether a checksum
/// that the hardware completes later must know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The bytes are addresses of the pseudo-header, not bytes behind the IP header.
    pub pseudo_header: bool,
    /// UDP: 0 means "no checksum" and stays, and a sum that comes out as 0 is written as 0xffff
    /// (RFC 768).
    pub zero_means_none: bool,
}

/// What becomes of a packet at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to whoever comes next, and then the kernel's routes.
    Pass,
    /// Out of the interface with this index.
    Redirect(u32),
    Drop(Reason),
}
