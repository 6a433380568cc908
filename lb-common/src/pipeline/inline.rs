//! Stages as plain calls.

use super::{
    Stages, Step, answer, check, choose, choose_frame, cross, judge, lose, open, open_frame, quote,
    read, read_frame, record, record_frame, relay, send, send_frame, verdict,
};
use crate::{
    flow::Direction,
    packet::{Packet, Verdict},
    scratch::Scratch,
    tables::Tables,
};

/// A packet, its tables and its scratch, whose stages are plain calls.
pub struct Inline<'a, P, T> {
    pub packet: &'a mut P,
    pub tables: &'a T,
    pub scratch: &'a mut Scratch,
    pub direction: Direction,
}

impl<P: Packet, T: Tables> Inline<'_, P, T> {
    /// Takes the packet across.
    pub fn cross(mut self) -> Verdict {
        let step = cross(&mut self);
        verdict(self.scratch, step)
    }
}

/// Makes each stage a plain call: of functions that look at the packet, and of those that do not.
macro_rules! inline_stages {
    ($($stage:ident),+; $($blind:ident),+) => {
        impl<P: Packet, T: Tables> Stages for Inline<'_, P, T> {
            $(
                fn $stage(&mut self) -> Step {
                    $stage(self.packet, self.tables, self.scratch, self.direction)
                }
            )+
            $(
                fn $blind(&mut self) -> Step {
                    $blind(self.tables, self.scratch)
                }
            )+
        }
    };
}

inline_stages!(
    read, check, open, choose, send, quote, relay, answer;
    judge, record, lose
);

/// As [`Inline`], at the XDP hook.
pub struct InlineFrame<'a, P, T> {
    pub packet: &'a mut P,
    pub tables: &'a T,
    pub scratch: &'a mut Scratch,
}

impl<P: Packet, T: Tables> InlineFrame<'_, P, T> {
    /// Takes the packet across.
    pub fn cross(mut self) -> Verdict {
        let step = cross(&mut self);
        verdict(self.scratch, step)
    }
}

/// As [`inline_stages`], for the stages that there are at the XDP hook.
macro_rules! inline_frame_stages {
    ($($stage:ident: $call:ident),+; $($blind:ident: $blind_call:ident),+; $($none:ident),+) => {
        impl<P: Packet, T: Tables> Stages for InlineFrame<'_, P, T> {
            $(
                fn $stage(&mut self) -> Step {
                    $call(self.packet, self.tables, self.scratch)
                }
            )+
            $(
                fn $blind(&mut self) -> Step {
                    $blind_call(self.tables, self.scratch)
                }
            )+
            $(
                fn $none(&mut self) -> Step {
                    Step::Pass
                }
            )+
        }
    };
}

inline_frame_stages!(
    read: read_frame, choose: choose_frame, send: send_frame;
    open: open_frame, record: record_frame, lose: lose;
    check, judge, quote, relay, answer
);
