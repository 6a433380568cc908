//! A socket buffer as a packet: reads and most writes go straight to its memory, checksums through
//! the kernel's helpers, which know what the hardware has computed or will compute.
#![expect(unsafe_code, reason = "packet memory is reached through raw pointers")]

use aya_ebpf::{
    bindings::{
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::bpf_skb_change_tail,
    programs::TcContext,
};
use lb_common::{
    address::Address,
    checksum::Difference,
    packet::{Packet, Scope},
};

/// Headers are read from the first bytes only; they are made contiguous once, where they are not.
const LINEAR: usize = 256;

pub struct Skb {
    context: TcContext,
}

impl Skb {
    #[inline(always)]
    pub fn new(context: TcContext) -> Self {
        let linear = context.data_end() - context.data();
        if linear < LINEAR && linear < context.len() as usize {
            // Where memory is short the packet stays as it is, and what cannot be read is passed.
            let _ = context.pull_data(context.len().min(LINEAR as u32));
        }
        Self { context }
    }

    #[inline(always)]
    pub const fn context(&self) -> &TcContext {
        &self.context
    }

    /// Where `N` bytes at `offset` stand, if they do.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        // Of "start < end", which one byte comes down to, the verifier concludes nothing.
        const { assert!(N > 1) };
        // A bound that the verifier can see before it sees the pointer.
        if offset > MAX_OFFSET {
            return None;
        }
        let start = self.context.data() + offset;
        if start + N > self.context.data_end() {
            return None;
        }
        Some(start as *mut [u8; N])
    }
}

/// No header stands further in; lists of flow keys may.
const MAX_OFFSET: usize = 4095;

// UNALIGNED: IP headers stand at no multiple of four, yet they are read and written by the word. The
// machine that eBPF describes does that at any packet address; Rust on it has no other way that
// does not come down to single bytes.
impl Packet for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let place = self.at::<N>(offset)?;
        let mut bytes = [0; N];
        if N.is_multiple_of(4) {
            for (word, bytes) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
                // SAFETY: `at` has compared both ends with the packet's; see `UNALIGNED`.
                *bytes = unsafe { *place.cast::<u32>().add(word) }.to_ne_bytes();
            }
        } else {
            // SAFETY: as above.
            bytes = unsafe { *place };
        }
        Some(bytes)
    }

    #[inline(always)]
    fn load_v6_address(&self, offset: usize) -> Option<Address> {
        let place = self.at::<16>(offset)?;
        // SAFETY: `at` has compared both ends with the packet's; see `UNALIGNED`.
        Some(unsafe { *place.cast::<Address>() })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        let place = self.at::<N>(offset)?;
        if N.is_multiple_of(4) {
            for (word, bytes) in bytes.as_chunks().0.iter().enumerate() {
                // SAFETY: `at` has compared both ends with the packet's; see `UNALIGNED`.
                unsafe { *place.cast::<u32>().add(word) = u32::from_ne_bytes(*bytes) };
            }
        } else {
            // SAFETY: as above.
            unsafe { *place = *bytes };
        }
        Some(())
    }

    #[inline(always)]
    fn store_v6_address(&mut self, offset: usize, address: &Address) -> Option<()> {
        self.context
            .store(offset, address, u64::from(BPF_F_RECOMPUTE_CSUM))
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
}
