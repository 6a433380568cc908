//! Entry points: context in, action out.
#![expect(
    unsafe_code,
    reason = "the kernel calls these by symbol and reads the licence section"
)]

use aya_ebpf::{
    bindings::{
        BPF_F_INGRESS, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    },
    helpers::{bpf_redirect, bpf_redirect_neigh},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use aya_log_ebpf::debug;
use lb_common::{
    expiry,
    packet::{ETHERNET, Packet as _, Verdict},
    pipeline::{Stages, cross, verdict},
};

use crate::{
    maps::scratch,
    packet::Skb,
    stages::{self, expire_flow},
};

/// tc ingress of a pod's host-side interface: what the pod sends.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    let packet = stages::pod_egress::Crossing(ctx.skb.skb);
    act(&ctx, run(packet))
}

/// tc egress of a pod's host-side interface: what the pod receives.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    let packet = stages::pod_ingress::Crossing(ctx.skb.skb);
    act(&ctx, run(packet))
}

/// tc ingress of an uplink or a tunnel: what reaches the node.
#[classifier]
pub fn node_ingress(ctx: TcContext) -> i32 {
    let packet = stages::node_ingress::Crossing(ctx.skb.skb);
    act(&ctx, run(packet))
}

/// tc egress of an uplink or a tunnel: what leaves the node.
#[classifier]
pub fn node_egress(ctx: TcContext) -> i32 {
    let packet = stages::node_egress::Crossing(ctx.skb.skb);
    act(&ctx, run(packet))
}

/// [`node_ingress`] where packets have no Ethernet header.
#[classifier]
pub fn node_ingress_l3(ctx: TcContext) -> i32 {
    let packet = stages::node_ingress_l3::Crossing(ctx.skb.skb);
    act(&ctx, run(packet))
}

/// [`node_egress`] where packets have no Ethernet header.
#[classifier]
pub fn node_egress_l3(ctx: TcContext) -> i32 {
    let packet = stages::node_egress_l3::Crossing(ctx.skb.skb);
    act(&ctx, run(packet))
}

/// XDP hook of an uplink: what reaches the node, and leaves it again at once.
#[xdp]
pub fn node_xdp(ctx: XdpContext) -> u32 {
    match run(stages::node_xdp::Crossing(ctx.ctx)) {
        Verdict::Redirect(out) if out == ctx.ingress_ifindex() as u32 => XDP_TX,
        // SAFETY: a helper call without pointers.
        Verdict::Redirect(out) => unsafe { bpf_redirect(out, 0) as u32 },
        Verdict::Pass | Verdict::Neighbour(_) | Verdict::Enter(_) => XDP_PASS,
        Verdict::Drop(_) => XDP_DROP,
    }
}

/// Never attached: userspace runs it over a list of flow keys.
#[classifier]
pub fn expire(ctx: TcContext) -> i32 {
    let mut list = Skb::<ETHERNET>::new(ctx);
    list.gather();
    for place in 0..expiry::BATCH {
        if !scratch().is_some_and(|scratch| expiry::read(&list, scratch, place)) {
            break;
        }
        expire_flow();
    }
    TC_ACT_OK
}

/// Takes a packet through its stages.
#[inline(always)]
fn run(mut stages: impl Stages) -> Verdict {
    let step = cross(&mut stages);
    match scratch() {
        Some(scratch) => verdict(scratch, step),
        None => Verdict::Pass,
    }
}

#[inline(always)]
fn act(ctx: &TcContext, verdict: Verdict) -> i32 {
    match verdict {
        // Other programs on the interface have their say.
        Verdict::Pass => TC_ACT_UNSPEC,
        // SAFETY: a helper call without pointers.
        Verdict::Redirect(interface) => unsafe { bpf_redirect(interface, 0) as i32 },
        // SAFETY: as above.
        Verdict::Enter(interface) => unsafe {
            bpf_redirect(interface, u64::from(BPF_F_INGRESS)) as i32
        },
        // SAFETY: without parameters the kernel looks for the neighbour itself.
        Verdict::Neighbour(interface) => unsafe {
            bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32
        },
        Verdict::Drop(reason) => {
            debug!(ctx, "dropped for reason {}", reason as u32);
            TC_ACT_SHOT
        }
    }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
