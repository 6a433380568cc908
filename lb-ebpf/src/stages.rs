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
    ($name:ident, $stage:path) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(ctx: *mut xdp_md) -> u32 {
            let Some(scratch) = scratch() else {
                return Step::Pass as u32;
            };
            let mut frame = Frame::new(XdpContext::new(ctx));
            $stage(&mut frame, &KernelTables, scratch) as u32
        }
    };
}

skb_stage!(read_ethernet, ETHERNET, pipeline::read);
skb_stage!(open_ethernet, ETHERNET, pipeline::open);
skb_stage!(send_ethernet, ETHERNET, pipeline::send);
skb_stage!(error_ethernet, ETHERNET, pipeline::error);
skb_stage!(answer_ethernet, ETHERNET, pipeline::answer);

skb_stage!(read_ip, 0, pipeline::read);
skb_stage!(open_ip, 0, pipeline::open);
skb_stage!(send_ip, 0, pipeline::send);
skb_stage!(error_ip, 0, pipeline::error);
skb_stage!(answer_ip, 0, pipeline::answer);

xdp_stage!(read_frame, pipeline::read_frame);
xdp_stage!(open_frame, pipeline::open_frame);
xdp_stage!(send_frame, pipeline::send_frame);

/// A socket buffer with an Ethernet header.
pub struct Ethernet {
    pub context: *mut __sk_buff,
    pub direction: Direction,
}

impl Stages for Ethernet {
    #[inline(always)]
    fn read(&mut self) -> Step {
        Step::of(read_ethernet(self.context, self.direction as u32))
    }

    #[inline(always)]
    fn open(&mut self) -> Step {
        Step::of(open_ethernet(self.context, self.direction as u32))
    }

    #[inline(always)]
    fn send(&mut self) -> Step {
        Step::of(send_ethernet(self.context, self.direction as u32))
    }

    #[inline(always)]
    fn error(&mut self) -> Step {
        Step::of(error_ethernet(self.context, self.direction as u32))
    }

    #[inline(always)]
    fn answer(&mut self) -> Step {
        Step::of(answer_ethernet(self.context, self.direction as u32))
    }
}

/// A socket buffer that begins with its IP header.
pub struct Ip {
    pub context: *mut __sk_buff,
    pub direction: Direction,
}

impl Stages for Ip {
    #[inline(always)]
    fn read(&mut self) -> Step {
        Step::of(read_ip(self.context, self.direction as u32))
    }

    #[inline(always)]
    fn open(&mut self) -> Step {
        Step::of(open_ip(self.context, self.direction as u32))
    }

    #[inline(always)]
    fn send(&mut self) -> Step {
        Step::of(send_ip(self.context, self.direction as u32))
    }

    #[inline(always)]
    fn error(&mut self) -> Step {
        Step::of(error_ip(self.context, self.direction as u32))
    }

    #[inline(always)]
    fn answer(&mut self) -> Step {
        Step::of(answer_ip(self.context, self.direction as u32))
    }
}

/// A frame at the XDP hook.
pub struct Xdp {
    pub context: *mut xdp_md,
}

impl Stages for Xdp {
    #[inline(always)]
    fn read(&mut self) -> Step {
        Step::of(read_frame(self.context))
    }

    #[inline(always)]
    fn open(&mut self) -> Step {
        Step::of(open_frame(self.context))
    }

    #[inline(always)]
    fn send(&mut self) -> Step {
        Step::of(send_frame(self.context))
    }

    /// Errors and answers are for the socket buffer's program.
    #[inline(always)]
    fn error(&mut self) -> Step {
        Step::Pass
    }

    #[inline(always)]
    fn answer(&mut self) -> Step {
        Step::Pass
    }
}
