//! The stages of the packet path, each a function that the verifier looks at by itself: it follows
//! no path from one into another, and each has the stack of its caller and its own only.
//!
//! They take the context and numbers, which is all that such functions may take on every supported
//! kernel; the rest is in the scratch.
#![expect(
    unsafe_code,
    reason = "functions that the verifier knows are named by symbol"
)]

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    expiry,
    flow::Direction,
    packet::ETHERNET,
    pipeline::{self, Stages, Step},
};

use crate::{
    frame::Frame,
    maps::{KernelTables, scratch},
    packet::Skb,
};

/// Defines a stage for socket buffers.
macro_rules! skb_stage {
    ($name:ident, $network:expr, $stage:path) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(ctx: *mut __sk_buff, direction: u32) -> u32 {
            let Some(scratch) = scratch() else {
                return Step::Pass as u32;
            };
            let mut packet = Skb::<{ $network }>::new(TcContext::new(ctx));
            $stage(
                &mut packet,
                &KernelTables,
                scratch,
                Direction::of(direction),
            ) as u32
        }
    };
}

/// Defines a stage for frames.
macro_rules! xdp_stage {
    ($name:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(ctx: *mut xdp_md) -> u32 {
            let Some(scratch) = scratch() else {
                return Step::Pass as u32;
            };
            let mut frame = Frame::new(XdpContext::new(ctx));
            pipeline::$name(&mut frame, &KernelTables, scratch) as u32
        }
    };
}

/// Defines a stage that does not look at the packet: of a context that it does not use the compiler
/// would pass anything.
macro_rules! blind_stage {
    ($name:ident, $stage:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name() -> u32 {
            let Some(scratch) = scratch() else {
                return Step::Pass as u32;
            };
            pipeline::$stage(&KernelTables, scratch) as u32
        }
    };
}

blind_stage!(judge_flow, judge);
blind_stage!(record_flow, record);
blind_stage!(lose_packet, lose);
blind_stage!(open_frame, open_frame);
blind_stage!(record_frame, record_frame);

/// Expires the flow whose key is in the scratch.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn expire_flow() -> u32 {
    if let Some(scratch) = scratch() {
        expiry::expire_one(&KernelTables, scratch);
    }
    0
}

/// Defines the stages of a kind of socket buffer.
macro_rules! skb_stages {
    ($(#[$doc:meta])* $kind:ident, $network:expr; $($stage:ident: $name:ident),+) => {
        $( skb_stage!($name, $network, pipeline::$stage); )+

        $(#[$doc])*
        pub struct $kind {
            pub context: *mut __sk_buff,
            pub direction: Direction,
        }

        impl Stages for $kind {
            $(
                #[inline(always)]
                fn $stage(&mut self) -> Step {
                    Step::of($name(self.context, self.direction as u32))
                }
            )+

            #[inline(always)]
            fn judge(&mut self) -> Step {
                Step::of(judge_flow())
            }

            #[inline(always)]
            fn record(&mut self) -> Step {
                Step::of(record_flow())
            }

            #[inline(always)]
            fn lose(&mut self) -> Step {
                Step::of(lose_packet())
            }
        }
    };
}

skb_stages!(
    /// A socket buffer with an Ethernet header.
    Ethernet, ETHERNET;
    read: read_ethernet,
    check: check_ethernet,
    open: open_ethernet,
    choose: choose_ethernet,
    send: send_ethernet,
    quote: quote_ethernet,
    relay: relay_ethernet,
    answer: answer_ethernet
);

skb_stages!(
    /// A socket buffer that begins with its IP header.
    Ip, 0;
    read: read_ip,
    check: check_ip,
    open: open_ip,
    choose: choose_ip,
    send: send_ip,
    quote: quote_ip,
    relay: relay_ip,
    answer: answer_ip
);

/// A frame at the XDP hook.
pub struct Xdp {
    pub context: *mut xdp_md,
}

xdp_stage!(read_frame);
xdp_stage!(choose_frame);
xdp_stage!(send_frame);

/// What is not for frames is for the socket buffer's program to do.
impl Stages for Xdp {
    #[inline(always)]
    fn read(&mut self) -> Step {
        Step::of(read_frame(self.context))
    }

    #[inline(always)]
    fn check(&mut self) -> Step {
        Step::Pass
    }

    #[inline(always)]
    fn open(&mut self) -> Step {
        Step::of(open_frame())
    }

    #[inline(always)]
    fn choose(&mut self) -> Step {
        Step::of(choose_frame(self.context))
    }

    #[inline(always)]
    fn judge(&mut self) -> Step {
        Step::Pass
    }

    #[inline(always)]
    fn record(&mut self) -> Step {
        Step::of(record_frame())
    }

    #[inline(always)]
    fn send(&mut self) -> Step {
        Step::of(send_frame(self.context))
    }

    #[inline(always)]
    fn quote(&mut self) -> Step {
        Step::Pass
    }

    #[inline(always)]
    fn relay(&mut self) -> Step {
        Step::Pass
    }

    #[inline(always)]
    fn answer(&mut self) -> Step {
        Step::Pass
    }

    #[inline(always)]
    fn lose(&mut self) -> Step {
        Step::of(lose_packet())
    }
}
