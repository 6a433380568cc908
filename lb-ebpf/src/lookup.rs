//! What the kernel knows and we ask: its routes and neighbours, and its sockets.
#![expect(unsafe_code, reason = "the kernel's helpers take raw pointers")]

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Query,
        bpf_sock_tuple,
    },
    helpers::{bpf_fib_lookup, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use lb_common::{
    address::{Address, is_v4, unmap_v4},
    flow::Tuple,
    headers::{TCP, UDP},
    packet::{Hop, Route},
};

use crate::maps;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The length that every link carries (RFC 8200, 5): announced where the kernel does not say which
/// length would fit (before 5.12).
const SMALLEST_MTU: u32 = 1280;

/// Where the kernel's routes send a packet with these ends that comes in by `interface`.
#[inline(always)]
pub fn route<C: EbpfContext>(
    context: &C,
    interface: u32,
    to: &Tuple,
    protocol: u8,
    length: u32,
) -> Route {
    let Some(query) = maps::query() else {
        return Route::None;
    };
    query.l4_protocol = protocol;
    query.sport = to.source_port.to_be();
    query.dport = to.destination_port.to_be();
    query.__bindgen_anon_1.tot_len = length as u16;
    query.ifindex = interface;
    query.__bindgen_anon_2.flowinfo = 0;
    if is_v4(&to.destination) {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(unmap_v4(&to.source));
        query.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(unmap_v4(&to.destination));
    } else {
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = words(&to.source);
        query.__bindgen_anon_4.ipv6_dst = words(&to.destination);
    }
    query.__bindgen_anon_5.tbid = 0;
    // SAFETY: the context is the one the kernel passed in, the query is this CPU's own.
    let found = unsafe {
        bpf_fib_lookup(
            context.as_ptr(),
            &raw mut *query,
            size_of::<Query>() as i32,
            0,
        )
    };
    // SAFETY: plain integers.
    let mtu = u32::from(unsafe { query.__bindgen_anon_1.mtu_result });
    let resolved = match found as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => true,
        BPF_FIB_LKUP_RET_NO_NEIGH => false,
        // Told no length, the kernel measures the packet itself, once it knows the hop.
        BPF_FIB_LKUP_RET_FRAG_NEEDED if length == 0 => true,
        BPF_FIB_LKUP_RET_FRAG_NEEDED if mtu < length => return Route::TooBig(mtu),
        BPF_FIB_LKUP_RET_FRAG_NEEDED => return Route::TooBig(SMALLEST_MTU),
        BPF_FIB_LKUP_RET_NOT_FWDED => return Route::Local,
        _ => return Route::None,
    };
    Route::Out(Hop {
        interface: query.ifindex,
        resolved,
        source: query.smac,
        destination: query.dmac,
    })
}

/// Whether a socket of this network namespace waits for packets from source to destination.
#[inline(always)]
pub fn awaited<C: EbpfContext>(context: &C, tuple: &Tuple, protocol: u8) -> bool {
    if !matches!(protocol, TCP | UDP) {
        return false;
    }
    // SAFETY: all zero is a value of the union.
    let mut ends: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let ends_of = &mut ends.__bindgen_anon_1;
    let size = if is_v4(&tuple.source) {
        // SAFETY: plain integers.
        let ends = unsafe { &mut ends_of.ipv4 };
        ends.saddr = u32::from_ne_bytes(unmap_v4(&tuple.source));
        ends.daddr = u32::from_ne_bytes(unmap_v4(&tuple.destination));
        ends.sport = tuple.source_port.to_be();
        ends.dport = tuple.destination_port.to_be();
        size_of_val(ends)
    } else {
        // SAFETY: plain integers.
        let ends = unsafe { &mut ends_of.ipv6 };
        ends.saddr = words(&tuple.source);
        ends.daddr = words(&tuple.destination);
        ends.sport = tuple.source_port.to_be();
        ends.dport = tuple.destination_port.to_be();
        size_of_val(ends)
    };
    let (context, ends, size) = (context.as_ptr(), &raw mut ends, size as u32);
    let here = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: the context is the one the kernel passed in, the ends are ours, and a socket that is
    // found is given back at once.
    unsafe {
        let socket = if protocol == TCP {
            bpf_skc_lookup_tcp(context, ends, size, here, 0)
        } else {
            bpf_sk_lookup_udp(context, ends, size, here, 0)
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
        true
    }
}

#[inline(always)]
fn words(address: &Address) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(address.bytes.as_chunks().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}
