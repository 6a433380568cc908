//! Entry points of the cgroup hooks: what processes connect to, send to, hear from and ask about.
#![expect(
    unsafe_code,
    reason = "the kernel calls these by symbol, and the call's address is reached through a raw pointer"
)]

use core::{array, mem, ptr::null_mut};

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, generated::bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use lb_common::{
    address::{Address, map_v4, unmap_v4},
    headers::{TCP, UDP},
    reason::Reason,
    socket::{Caller, Peer, Sockets as _, connect, report, send},
    tables::Tables as _,
};

use crate::maps::{KernelTables, set_namespace};

/// Whether a call can be made to fail with an error of our choice: 1 where the kernel has
/// `bpf_set_retval` for these hooks (6.1). Else the address stays, and the packets are refused.
#[unsafe(no_mangle)]
static REFUSES: Global<u8> = Global::new(0);

/// What the kernel goes on with, or returns the error of [`bpf_set_retval`].
const GO_ON: i32 = 1;
const FAIL: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// Which processes a hook serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Those that the settings say.
    Settings,
    /// All: it hangs on the group of one pod.
    Pod,
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    call::<V4>(&ctx, Scope::Settings, connect)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    call::<V6>(&ctx, Scope::Settings, connect)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    call::<V4>(&ctx, Scope::Settings, send)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    call::<V6>(&ctx, Scope::Settings, send)
}

#[cgroup_sock_addr(connect4)]
pub fn connect4_pod(ctx: SockAddrContext) -> i32 {
    call::<V4>(&ctx, Scope::Pod, connect)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6_pod(ctx: SockAddrContext) -> i32 {
    call::<V6>(&ctx, Scope::Pod, connect)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4_pod(ctx: SockAddrContext) -> i32 {
    call::<V4>(&ctx, Scope::Pod, send)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6_pod(ctx: SockAddrContext) -> i32 {
    call::<V6>(&ctx, Scope::Pod, send)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    tell::<V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    tell::<V6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    tell::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    tell::<V6>(&ctx)
}

/// A call that names whom to talk to.
#[inline(always)]
fn call<F: Family>(
    ctx: &SockAddrContext,
    scope: Scope,
    decide: fn(&KernelTables, &Caller, &mut Peer) -> Result<(), Reason>,
) -> i32 {
    let Some(mut caller) = caller(ctx) else {
        return GO_ON;
    };
    if !place(ctx, &mut caller) && scope == Scope::Settings {
        return GO_ON;
    }
    let mut peer = peer::<F>(ctx);
    match decide(&KernelTables, &caller, &mut peer) {
        Ok(()) => set_peer::<F>(ctx, &peer),
        Err(reason) if REFUSES.load() == 1 => {
            KernelTables.count(reason);
            // SAFETY: a helper call without pointers.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            return FAIL;
        }
        Err(_) => {}
    }
    GO_ON
}

/// A call that is told whom it talks to.
#[inline(always)]
fn tell<F: Family>(ctx: &SockAddrContext) -> i32 {
    if let Some(caller) = caller(ctx) {
        let mut peer = peer::<F>(ctx);
        report(&KernelTables, &caller, &mut peer);
        set_peer::<F>(ctx, &peer);
    }
    GO_ON
}

/// Who calls, taken to be in the node's own network namespace; `None` where services do not serve the
/// protocol.
#[inline(always)]
fn caller(ctx: &SockAddrContext) -> Option<Caller> {
    // SAFETY: the context is the one the kernel passed in.
    let protocol = unsafe { (&raw const (*ctx.sock_addr).protocol).read_volatile() } as u8;
    if protocol != TCP && protocol != UDP {
        return None;
    }
    Some(Caller {
        // SAFETY: as above.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        protocol,
        namespace: None,
    })
}

/// Finds out which namespace the caller is in; says whether the settings have it served.
#[inline(always)]
fn place(ctx: &SockAddrContext, caller: &mut Caller) -> bool {
    let settings = KernelTables.settings();
    // SAFETY: the context is the one the kernel passed in.
    let own = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if caller.cookie == settings.asking {
        set_namespace(own);
    }
    let node = match settings.namespace {
        // SAFETY: without a context it is the namespace that the kernel began with.
        0 => unsafe { bpf_get_netns_cookie(null_mut()) },
        node => node,
    };
    if own == node {
        return true;
    }
    caller.namespace = Some(own);
    settings.everywhere == 1
}

#[inline(always)]
fn peer<F: Family>(ctx: &SockAddrContext) -> Peer {
    // SAFETY: the context is the one the kernel passed in; the port's two bytes come first.
    let port = unsafe { (&raw const (*ctx.sock_addr).user_port).read_volatile() };
    Peer {
        address: F::load(ctx.sock_addr),
        port: u16::from_be(port as u16),
    }
}

#[inline(always)]
fn set_peer<F: Family>(ctx: &SockAddrContext, peer: &Peer) {
    F::store(ctx.sock_addr, &peer.address);
    // SAFETY: as above.
    unsafe { (&raw mut (*ctx.sock_addr).user_port).write_volatile(peer.port.to_be().into()) };
}

/// Where the address of a call stands. Each word is read and written alone, as the verifier has it.
trait Family {
    fn load(call: *const bpf_sock_addr) -> Address;
    fn store(call: *mut bpf_sock_addr, address: &Address);
}

struct V4;

impl Family for V4 {
    #[inline(always)]
    fn load(call: *const bpf_sock_addr) -> Address {
        // SAFETY: the context is the one the kernel passed in.
        map_v4(unsafe { (&raw const (*call).user_ip4).read_volatile() }.to_ne_bytes())
    }

    #[inline(always)]
    fn store(call: *mut bpf_sock_addr, address: &Address) {
        let word = u32::from_ne_bytes(unmap_v4(address));
        // SAFETY: as above.
        unsafe { (&raw mut (*call).user_ip4).write_volatile(word) };
    }
}

struct V6;

impl Family for V6 {
    #[inline(always)]
    fn load(call: *const bpf_sock_addr) -> Address {
        // SAFETY: the context is the one the kernel passed in; an address has four words.
        let words: [u32; 4] = array::from_fn(|index| unsafe {
            let word = (&raw const (*call).user_ip6).cast::<u32>().add(index);
            word.read_volatile()
        });
        // SAFETY: both are sixteen bytes, of which any are a value. Byte by byte, the compiler keeps
        // each on the stack.
        unsafe { mem::transmute::<[u32; 4], Address>(words) }
    }

    #[inline(always)]
    fn store(call: *mut bpf_sock_addr, address: &Address) {
        // SAFETY: as above.
        let words = unsafe { mem::transmute::<Address, [u32; 4]>(*address) };
        for (index, word) in words.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                (&raw mut (*call).user_ip6)
                    .cast::<u32>()
                    .add(index)
                    .write_volatile(word);
            }
        }
    }
}
