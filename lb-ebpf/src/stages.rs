//! The stages of the packet path, each a function that the verifier looks at by itself: it follows
//! no path from one into another, and each has the stack of its caller and its own only.
//!
//! They take the context alone, and leave each other the rest in the scratch. Each hook has its own,
//! so that none holds what only other directions do: all stages of a program share what the verifier
//! has patience for.
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

/// Defines a stage: a function of the context alone, called by this name in the object file.
macro_rules! stage {
    ($name:ident, $symbol:expr, $context:ty, |$ctx:ident, $scratch:ident| $step:expr) => {
        #[unsafe(export_name = $symbol)]
        #[inline(never)]
        extern "C" fn $name($ctx: *mut $context) -> u32 {
            match scratch() {
                Some($scratch) => ($step) as u32,
                None => Step::Pass as u32,
            }
        }
    };
}

/// Defines the stages of a hook of socket buffers, whose IP header begins at `$network`.
macro_rules! skb_hook {
    ($hook:ident, $network:expr, $direction:expr) => {
        pub mod $hook {
            use super::*;

            skb_stage!(read, $hook, $network, $direction);
            skb_stage!(open, $hook, $network, $direction);
            skb_stage!(send, $hook, $network, $direction);
            skb_stage!(error, $hook, $network, $direction);
            skb_stage!(answer, $hook, $network, $direction);

            /// A packet at this hook.
            pub struct Crossing(pub *mut __sk_buff);

            impl Stages for Crossing {
                #[inline(always)]
                fn read(&mut self) -> Step {
                    Step::of(read(self.0))
                }

                #[inline(always)]
                fn open(&mut self) -> Step {
                    Step::of(open(self.0))
                }

                #[inline(always)]
                fn send(&mut self) -> Step {
                    Step::of(send(self.0))
                }

                #[inline(always)]
                fn error(&mut self) -> Step {
                    Step::of(error(self.0))
                }

                #[inline(always)]
                fn answer(&mut self) -> Step {
                    Step::of(answer(self.0))
                }
            }
        }
    };
}

/// Defines a stage of a hook of socket buffers.
macro_rules! skb_stage {
    ($stage:ident, $hook:ident, $network:expr, $direction:expr) => {
        stage!(
            $stage,
            concat!(stringify!($hook), "_", stringify!($stage)),
            __sk_buff,
            |ctx, scratch| pipeline::$stage(
                &mut Skb::<{ $network }>::new(TcContext::new(ctx)),
                &KernelTables,
                scratch,
                $direction,
            )
        );
    };
}

skb_hook!(pod_egress, ETHERNET, Direction::FromPod);
skb_hook!(pod_ingress, ETHERNET, Direction::ToPod);
skb_hook!(node_ingress, ETHERNET, Direction::FromWire);
skb_hook!(node_egress, ETHERNET, Direction::ToWire);
skb_hook!(node_ingress_l3, 0, Direction::FromWire);
skb_hook!(node_egress_l3, 0, Direction::ToWire);

/// The stages of the XDP hook.
pub mod node_xdp {
    use super::*;

    stage!(read, "node_xdp_read", xdp_md, |ctx, scratch| {
        pipeline::read_frame(&mut frame(ctx), &KernelTables, scratch)
    });
    stage!(open, "node_xdp_open", xdp_md, |ctx, scratch| {
        pipeline::open_frame(&mut frame(ctx), &KernelTables, scratch)
    });
    stage!(send, "node_xdp_send", xdp_md, |ctx, scratch| {
        pipeline::send_frame(&mut frame(ctx), &KernelTables, scratch)
    });

    #[inline(always)]
    fn frame(ctx: *mut xdp_md) -> Frame {
        Frame::new(XdpContext::new(ctx))
    }

    /// A frame at this hook.
    pub struct Crossing(pub *mut xdp_md);

    impl Stages for Crossing {
        #[inline(always)]
        fn read(&mut self) -> Step {
            Step::of(read(self.0))
        }

        #[inline(always)]
        fn open(&mut self) -> Step {
            Step::of(open(self.0))
        }

        #[inline(always)]
        fn send(&mut self) -> Step {
            Step::of(send(self.0))
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
}
