//! A frame in a driver's memory as a packet: there is nothing but the bytes, and checksums are
//! arithmetic.
#![expect(unsafe_code, reason = "packet memory is reached through raw pointers")]

use aya_ebpf::programs::XdpContext;
use lb_common::{
    address::Address,
    checksum::Difference,
    flow::Tuple,
    packet::{ETHERNET, Hop, Packet, Route, Scope},
};

use crate::{
    checksum, lookup,
    packet::{at, read, write},
};

pub struct Frame {
    context: XdpContext,
}

impl Frame {
    #[inline(always)]
    pub const fn new(context: XdpContext) -> Self {
        Self { context }
    }

    /// Where `N` bytes at `offset` stand, if they do.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        // Read anew each time: from a comparison with one reading the compiler concludes what the
        // verifier does not for another.
        // SAFETY: the context is the one the kernel passed in, and the offset is our own.
        let (data, data_end, offset) = unsafe {
            (
                (&raw const (*self.context.ctx).data).read_volatile(),
                (&raw const (*self.context.ctx).data_end).read_volatile(),
                (&raw const offset).read_volatile(),
            )
        };
        at(data as usize, data_end as usize, offset)
    }
}

impl Packet for Frame {
    const NETWORK: usize = ETHERNET;

    #[inline(always)]
    fn ethertype(&self) -> Option<[u8; 2]> {
        self.load(ETHERNET - 2)
    }

    #[inline(always)]
    fn gather(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let place = self.at::<N>(offset)?;
        // SAFETY: the packet has not changed its place.
        Some(unsafe { read(place) })
    }

    #[inline(always)]
    fn load_v6_address(&self, offset: usize) -> Option<Address> {
        let place = self.at::<16>(offset)?;
        // SAFETY: the packet has not changed its place; alignment is no matter, as in `read`.
        Some(unsafe { *place.cast::<Address>() })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        let place = self.at::<N>(offset)?;
        // SAFETY: the packet has not changed its place.
        unsafe { write(place, bytes) };
        Some(())
    }

    #[inline(always)]
    fn store_summed<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        self.store(offset, bytes)
    }

    #[inline(always)]
    fn fix_transport(&mut self, offset: usize, change: Difference, scope: Scope) -> Option<()> {
        let field: [u8; 2] = self.load(offset)?;
        if scope.zero_means_none && field == [0; 2] {
            return Some(());
        }
        match change.apply(field) {
            [0, 0] if scope.zero_means_none => self.store(offset, &[0xff; 2]),
            field => self.store(offset, &field),
        }
    }

    /// Answers are for the socket buffer's program to make.
    #[inline(always)]
    fn truncate(&mut self, _length: usize) -> Option<()> {
        None
    }

    /// As [`Self::truncate`].
    #[inline(always)]
    fn make_room<const N: usize>(&mut self) -> Option<()> {
        None
    }

    #[inline(always)]
    fn corrected_crc(&self, field: [u8; 4], old: [u8; 4], new: [u8; 4], length: u32) -> [u8; 4] {
        checksum::corrected(field, old, new, length)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        (self.context.data_end() - self.context.data()) as u32
    }

    #[inline(always)]
    fn is_several(&self) -> bool {
        false
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn arrived_by(&self) -> u32 {
        self.interface()
    }

    /// Frames have neither marks nor hints.
    #[inline(always)]
    fn mark(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn set_mark(&mut self, _mark: u32) {}

    #[inline(always)]
    fn hint(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn set_hint(&mut self, _hint: u32) {}

    #[inline(always)]
    fn route(&mut self, to: &Tuple, protocol: u8, length: u32) -> Route {
        lookup::route(&self.context, self.interface(), to, protocol, length)
    }

    #[inline(always)]
    fn address_to(&mut self, hop: &Hop) -> Option<()> {
        self.store(0, &hop.destination)?;
        self.store(6, &hop.source)
    }

    #[inline(always)]
    fn awaited(&mut self, tuple: &Tuple, protocol: u8) -> bool {
        lookup::awaited(&self.context, tuple, protocol)
    }
}
