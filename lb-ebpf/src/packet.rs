//! A socket buffer as a packet: reads and most writes go straight to its memory, checksums through
//! the kernel's helpers, which know what the hardware has computed or will compute.
#![expect(unsafe_code, reason = "packet memory is reached through raw pointers")]

use aya_ebpf::{
    bindings::{
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{bpf_skb_change_head, bpf_skb_change_tail},
    programs::TcContext,
};
use lb_common::{
    address::Address,
    checksum::{Difference, Field},
    flow::Tuple,
    packet::{ETHERNET, Hop, Packet, Route, Scope},
};

use crate::{checksum, lookup};

/// Headers are read from the first bytes only.
const LINEAR: usize = 256;

/// A socket buffer whose IP header stands at `NETWORK`.
pub struct Skb<const NETWORK: usize> {
    context: TcContext,
}

impl<const NETWORK: usize> Skb<NETWORK> {
    #[inline(always)]
    pub const fn new(context: TcContext) -> Self {
        Self { context }
    }

    /// Where `N` bytes at `offset` stand, if they do.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        at(self.context.data(), self.context.data_end(), offset)
    }
}

/// Where `N` bytes at `offset` of a packet stand, if they do.
#[inline(always)]
pub fn at<const N: usize>(data: usize, data_end: usize, offset: usize) -> Option<*mut [u8; N]> {
    // Of "start < end", which one byte comes down to, the verifier concludes nothing.
    const { assert!(N > 1) };
    // A bound that the verifier can see before it sees the pointer.
    if offset > MAX_OFFSET {
        return None;
    }
    let start = data + offset;
    if start + N > data_end {
        return None;
    }
    Some(start as *mut [u8; N])
}

/// Copies bytes out of a packet.
///
/// # Safety
///
/// `place` is what [`at`] returned, and the packet has not changed its place since.
//
// IP headers stand at no multiple of four, yet they are read and written by the word. The machine
// that eBPF describes does that at any packet address; Rust on it has no other way that does not
// come down to single bytes.
#[inline(always)]
pub unsafe fn read<const N: usize>(place: *mut [u8; N]) -> [u8; N] {
    let mut bytes = [0; N];
    if N.is_multiple_of(4) {
        for (word, bytes) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
            // SAFETY: `at` has compared both ends with the packet's.
            *bytes = unsafe { *place.cast::<u32>().add(word) }.to_ne_bytes();
        }
    } else {
        // SAFETY: as above.
        bytes = unsafe { *place };
    }
    bytes
}

/// Copies bytes into a packet.
///
/// # Safety
///
/// As for [`read`].
#[inline(always)]
pub unsafe fn write<const N: usize>(place: *mut [u8; N], bytes: &[u8; N]) {
    if N.is_multiple_of(4) {
        for (word, bytes) in bytes.as_chunks().0.iter().enumerate() {
            // SAFETY: `at` has compared both ends with the packet's.
            unsafe { *place.cast::<u32>().add(word) = u32::from_ne_bytes(*bytes) };
        }
    } else {
        // SAFETY: as above.
        unsafe { *place = *bytes };
    }
}

/// No header stands further in; lists of flow keys may.
const MAX_OFFSET: usize = 4095;

impl<const NETWORK: usize> Packet for Skb<NETWORK> {
    const NETWORK: usize = NETWORK;

    #[inline(always)]
    fn ethertype(&self) -> Option<[u8; 2]> {
        // SAFETY: the context is the one the kernel passed in.
        let protocol = unsafe { (*self.context.skb.skb).protocol };
        Some((protocol as u16).to_ne_bytes())
    }

    #[inline(always)]
    fn gather(&mut self) -> bool {
        let linear = self.context.data_end() - self.context.data();
        linear < LINEAR
            && linear < self.context.len() as usize
            && self
                .context
                .pull_data(self.context.len().min(LINEAR as u32))
                .is_ok()
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
        self.context
            .store(offset, bytes, u64::from(BPF_F_RECOMPUTE_CSUM))
            .ok()
    }

    #[inline(always)]
    fn fix_transport(&mut self, offset: usize, change: Difference, scope: Scope) -> Option<()> {
        let mut flags = 0;
        if scope.pseudo_header {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if scope.zero_means_none {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        self.context
            .l4_csum_replace(offset, 0, u64::from(change.sum()), flags)
            .ok()
    }

    /// What the helper did to the field shows what it is, so that ports need no second call.
    #[inline(always)]
    fn fix_translated(
        &mut self,
        offset: usize,
        addresses: Difference,
        ports: Difference,
        zero_means_none: bool,
    ) -> Option<()> {
        let scope = |pseudo_header| Scope {
            pseudo_header,
            zero_means_none,
        };
        let before = self.load(offset)?;
        if addresses != Difference::NONE {
            self.fix_transport(offset, addresses, scope(true))?;
        }
        if ports == Difference::NONE {
            return Some(());
        }
        let after = self.load(offset)?;
        match addresses.shows(before, after) {
            Field::Complete => {
                let field = ports.apply(after);
                let none = zero_means_none && field == [0; 2];
                self.store(offset, if none { &[0xff; 2] } else { &field })
            }
            Field::Begun => Some(()),
            Field::Unclear => self.fix_transport(offset, ports, scope(false)),
        }
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) -> Option<()> {
        if length >= self.context.len() as usize {
            return Some(());
        }
        // SAFETY: the context is the one the kernel passed in.
        let failed = unsafe { bpf_skb_change_tail(self.context.skb.skb, length as u32, 0) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn make_room<const N: usize>(&mut self) -> Option<()> {
        self.context.adjust_room(N as i32, BPF_ADJ_ROOM_MAC, 0).ok()
    }

    #[inline(always)]
    fn corrected_crc(&self, field: [u8; 4], old: [u8; 4], new: [u8; 4], length: u32) -> [u8; 4] {
        checksum::corrected(field, old, new, length)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.context.len()
    }

    #[inline(always)]
    fn is_several(&self) -> bool {
        // SAFETY: the context is the one the kernel passed in.
        unsafe { (*self.context.skb.skb).gso_size != 0 }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context is the one the kernel passed in.
        unsafe { (*self.context.skb.skb).ifindex }
    }

    #[inline(always)]
    fn arrived_by(&self) -> u32 {
        // SAFETY: the context is the one the kernel passed in.
        unsafe { (*self.context.skb.skb).ingress_ifindex }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: the context is the one the kernel passed in.
        unsafe { (*self.context.skb.skb).mark }
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        self.context.set_mark(mark);
    }

    #[inline(always)]
    fn hint(&self) -> u32 {
        // SAFETY: the context is the one the kernel passed in.
        unsafe { (*self.context.skb.skb).priority }
    }

    #[inline(always)]
    fn set_hint(&mut self, hint: u32) {
        // SAFETY: the context is the one the kernel passed in.
        unsafe { (*self.context.skb.skb).priority = hint };
    }

    #[inline(always)]
    fn route(&mut self, to: &Tuple, protocol: u8, length: u32) -> Route {
        lookup::route(&self.context, self.interface(), to, protocol, length)
    }

    #[inline(always)]
    fn address_to(&mut self, hop: &Hop) -> Option<()> {
        if NETWORK == 0 {
            let ethertype = self.ethertype()?;
            // SAFETY: the context is the one the kernel passed in.
            let failed = unsafe { bpf_skb_change_head(self.context.skb.skb, ETHERNET as u32, 0) };
            if failed != 0 {
                return None;
            }
            self.store(ETHERNET - 2, &ethertype)?;
        }
        self.store(0, &hop.destination)?;
        self.store(6, &hop.source)
    }

    #[inline(always)]
    fn awaited(&mut self, tuple: &Tuple, protocol: u8) -> bool {
        lookup::awaited(&self.context, tuple, protocol)
    }
}
