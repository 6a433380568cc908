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

/// Defines a stage: a function that the object file has by this name.
macro_rules! stage {
    ($name:ident, $symbol:expr, ($($ctx:ident: $context:ty)?), |$scratch:ident| $step:expr) => {
        #[unsafe(export_name = $symbol)]
        #[inline(never)]
        extern "C" fn $name($($ctx: *mut $context)?) -> u32 {
            // Instead of a context that a stage does not look at the compiler would pass anything.
            // SAFETY: the context is the one the kernel passed in.
            $( let _ = unsafe { $ctx.cast::<u32>().read_volatile() }; )?
            match scratch() {
                Some($scratch) => ($step) as u32,
                None => Step::Pass as u32,
            }
        }
    };
}

/// Defines stages that do not look at the packet, and so are the same everywhere.
macro_rules! blind_stages {
    ($($stage:ident),+) => {
        $( stage!($stage, stringify!($stage), (), |scratch| {
            pipeline::$stage(&KernelTables, scratch)
        }); )+
    };
}

blind_stages!(judge, record, lose, open_frame, record_frame);

/// Expires the flow whose key is in the scratch.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn expire_flow() -> u32 {
    if let Some(scratch) = scratch() {
        expiry::expire_one(&KernelTables, scratch);
    }
    0
}

/// Defines the stages of a hook of socket buffers, whose IP header begins at `$network`.
macro_rules! skb_hook {
    ($hook:ident, $network:expr, $direction:expr; $($stage:ident),+; $($none:ident),*) => {
        pub mod $hook {
            use super::*;

            $( stage!(
                $stage,
                concat!(stringify!($hook), "_", stringify!($stage)),
                (ctx: __sk_buff),
                |scratch| {
                    let mut packet = Skb::<{ $network }>::new(TcContext::new(ctx));
                    pipeline::$stage(&mut packet, &KernelTables, scratch, $direction)
                }
            ); )+

            /// A packet at this hook.
            pub struct Crossing(pub *mut __sk_buff);

            impl Stages for Crossing {
                $(
                    #[inline(always)]
                    fn $stage(&mut self) -> Step {
                        Step::of($stage(self.0))
                    }
                )+
                $(
                    #[inline(always)]
                    fn $none(&mut self) -> Step {
                        Step::Pass
                    }
                )*

                #[inline(always)]
                fn judge(&mut self) -> Step {
                    Step::of(judge())
                }

                #[inline(always)]
                fn record(&mut self) -> Step {
                    Step::of(record())
                }

                #[inline(always)]
                fn lose(&mut self) -> Step {
                    Step::of(lose())
                }
            }
        }
    };
}

skb_hook!(
    pod_egress, ETHERNET, Direction::FromPod;
    read, check, open, choose, send, quote, relay, answer;
);
skb_hook!(
    pod_ingress, ETHERNET, Direction::ToPod;
    read, open, choose, send, quote, relay, answer;
    check
);
skb_hook!(
    node_ingress, ETHERNET, Direction::FromWire;
    read, open, choose, send, quote, relay, answer;
    check
);
skb_hook!(
    node_egress, ETHERNET, Direction::ToWire;
    read, open, choose, send, quote, relay, answer;
    check
);
skb_hook!(
    node_ingress_l3, 0, Direction::FromWire;
    read, open, choose, send, quote, relay, answer;
    check
);
skb_hook!(
    node_egress_l3, 0, Direction::ToWire;
    read, open, choose, send, quote, relay, answer;
    check
);

/// The stages of the XDP hook.
pub mod node_xdp {
    use super::*;

    /// Defines stages that look at the frame.
    macro_rules! frame_stages {
        ($($stage:ident),+) => {
            $( stage!($stage, stringify!($stage), (ctx: xdp_md), |scratch| {
                let mut frame = Frame::new(XdpContext::new(ctx));
                pipeline::$stage(&mut frame, &KernelTables, scratch)
            }); )+
        };
    }

    frame_stages!(read_frame, choose_frame, send_frame);

    /// A frame at this hook.
    pub struct Crossing(pub *mut xdp_md);

    /// What is not for frames is for the socket buffer's program to do.
    impl Stages for Crossing {
        #[inline(always)]
        fn read(&mut self) -> Step {
            Step::of(read_frame(self.0))
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
            Step::of(choose_frame(self.0))
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
            Step::of(send_frame(self.0))
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
            Step::of(lose())
        }
    }
}
