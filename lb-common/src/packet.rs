//! A packet as the packet path sees it, wherever it runs.

use crate::{address::Address, checksum::Difference, crc32c, flow::Tuple, reason::Reason};

/// Length of the Ethernet header: where the IP header starts on most interfaces.
pub const ETHERNET: usize = 14;

/// Mark of a packet that went straight to a local pod's interface from another pod's: its replies
/// go straight back. Marks do not leave the node: the kernel clears them between namespaces.
pub const MARK_FROM_POD: u32 = 0x6c62_0001;
/// Mark of a packet of which all is decided, a hairpin, an answer of ours or one that we forward:
/// deliver it as it is.
pub const MARK_DELIVER: u32 = 0x6c62_0002;
/// Mark of a packet that went straight to a local pod's interface from outside of the node.
pub const MARK_FROM_WIRE: u32 = 0x6c62_0003;
/// Mark of a packet that went straight to a local pod's interface from a process of the node. The
/// interface that it was to leave by is in its hint.
pub const MARK_FROM_HOST: u32 = 0x6c62_0004;

/// A packet at a hook of an interface. Offsets count from where the packet begins at this hook: with
/// its Ethernet header, or where the interface has none, with its IP header.
///
/// Every method that can fail returns `None` and leaves the packet as it was.
pub trait Packet {
    /// Offset of the IP header: the length of the link-layer header.
    const NETWORK: usize;

    /// The EtherType of what follows the link-layer header, in network order.
    fn ethertype(&self) -> Option<[u8; 2]>;

    /// Makes headers readable that are scattered in memory; false where nothing has changed.
    fn gather(&mut self) -> bool;

    /// Copies `N` bytes out; `None` past the end.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Copies an IPv6 address out; `None` past the end.
    fn load_v6_address(&self, offset: usize) -> Option<Address>;

    /// Overwrites `N` bytes whose change some Internet checksum of the packet makes good.
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;

    /// Overwrites `N` bytes whose change no Internet checksum makes good, so that whatever sums the
    /// kernel keeps of the whole packet follow here.
    fn store_summed<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;

    /// Corrects the transport checksum at `offset` for changed bytes.
    fn fix_transport(&mut self, offset: usize, change: Difference, scope: Scope) -> Option<()>;

    /// Corrects the transport checksum at `offset` for addresses, which are in its pseudo-header, and for
    /// ports. In UDP, where `zero_means_none`, a field of zero stays what it is.
    #[inline(always)]
    fn fix_translated(
        &mut self,
        offset: usize,
        addresses: Difference,
        ports: Difference,
        zero_means_none: bool,
    ) -> Option<()> {
        for (change, pseudo_header) in [(addresses, true), (ports, false)] {
            if change != Difference::NONE {
                let scope = Scope {
                    pseudo_header,
                    zero_means_none,
                };
                self.fix_transport(offset, change, scope)?;
            }
        }
        Some(())
    }

    /// As [`crc32c::corrected`], which is long: it may be wanted in one place.
    #[inline(always)]
    fn corrected_crc(&self, field: [u8; 4], old: [u8; 4], new: [u8; 4], length: u32) -> [u8; 4] {
        crc32c::corrected(field, old, new, length)
    }

    /// Makes the packet at most `length` bytes long.
    fn truncate(&mut self, length: usize) -> Option<()>;

    /// Makes room for `N` bytes between the link-layer and the IP header.
    fn make_room<const N: usize>(&mut self) -> Option<()>;

    /// Length of the packet in bytes.
    fn length(&self) -> u32;

    /// Whether the packet stands for several that are cut from it later, each of which fits.
    fn is_several(&self) -> bool;

    /// Index of the interface whose hook this is.
    fn interface(&self) -> u32;

    /// Index of the interface that the packet entered the node by; 0 where the node made it.
    fn arrived_by(&self) -> u32;

    fn mark(&self) -> u32;
    fn set_mark(&mut self, mark: u32);

    /// A number that goes with the packet to the next hook on this node.
    fn hint(&self) -> u32;
    fn set_hint(&mut self, hint: u32);

    /// Where the kernel's routes send a packet with these ends. `length` is that of the IP packet;
    /// 0 where it fits anywhere.
    fn route(&mut self, to: &Tuple, protocol: u8, length: u32) -> Route;

    /// Puts the link-layer header on the packet by which it reaches the next hop.
    fn address_to(&mut self, hop: &Hop) -> Option<()>;

    /// Whether a socket of the node waits for a packet with these ends.
    fn awaited(&mut self, tuple: &Tuple, protocol: u8) -> bool;
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

/// What the kernel's routes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// On to another machine, or a pod of this node.
    Out(Hop),
    /// The packet is longer than the way allows, which is this many bytes.
    TooBig(u32),
    /// To the node itself.
    Local,
    /// Nowhere.
    None,
}

/// The next hop of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Index of the interface that leads there.
    pub interface: u32,
    /// Whether the MAC addresses are known.
    pub resolved: bool,
    pub source: [u8; 6],
    pub destination: [u8; 6],
}

impl Hop {
    /// The hop of a packet that routes do not decide about.
    pub const NOWHERE: Self = Self {
        interface: 0,
        resolved: false,
        source: [0; 6],
        destination: [0; 6],
    };
}

/// What becomes of a packet at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to whoever comes next, and then the kernel's routes.
    Pass,
    /// Out of the interface with this index, as it is.
    Redirect(u32),
    /// Out of the interface with this index, to the neighbour that the kernel finds.
    Neighbour(u32),
    /// Into the interface with this index, as if it had arrived there.
    Enter(u32),
    Drop(Reason),
}
