//! Entry points: context in, action out.
#![expect(
    unsafe_code,
    reason = "the kernel calls these by symbol and reads the licence section"
)]

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_redirect,
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use lb_common::{
    expiry,
    packet::Verdict,
    pipeline::{from_pod, to_pod},
    scratch::Scratch,
};

use crate::{
    maps::{KernelTables, scratch},
    packet::Skb,
};

/// tc ingress of a pod's host-side interface: what the pod sends.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    run(ctx, from_pod)
}

/// tc egress of a pod's host-side interface: what the pod receives.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    run(ctx, to_pod)
}

/// Never attached: userspace runs it over a list of flow keys.
#[classifier]
pub fn expire(ctx: TcContext) -> i32 {
    if let Some(scratch) = scratch() {
        expiry::expire(&Skb::new(ctx), &KernelTables, scratch);
    }
    TC_ACT_OK
}

#[inline(always)]
fn run(ctx: TcContext, path: fn(&mut Skb, &KernelTables, &mut Scratch) -> Verdict) -> i32 {
    let Some(scratch) = scratch() else {
        return TC_ACT_UNSPEC;
    };
    let mut packet = Skb::new(ctx);
    let verdict = path(&mut packet, &KernelTables, scratch);
    act(packet.context(), verdict)
}

#[inline(always)]
fn act(ctx: &TcContext, verdict: Verdict) -> i32 {
    match verdict {
        // Other programs on the interface have their say.
        Verdict::Pass => TC_ACT_UNSPEC,
        // SAFETY: a helper call without pointers.
        Verdict::Redirect(interface) => unsafe { bpf_redirect(interface, 0) as i32 },
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
