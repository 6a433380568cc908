//! The ways across an interface: a pod's, and those that lead out of the node.
//!
//! A packet goes through a few stages, which leave each other what they found in the [`Scratch`]. In
//! the kernel each stage is a function that is verified by itself: together they would be more than
//! the verifier follows, and deeper than the stack.

pub use self::{
    find::{check, quote, read},
    frame::{choose_frame, open_frame, read_frame, record_frame, send_frame},
    inline::{Inline, InlineFrame},
    open::{choose, judge, open, record},
    send::{answer, lose, relay, send},
};
use crate::{balance, packet::Verdict, reason::Reason, scratch::Scratch};

mod find;
mod frame;
mod inline;
mod open;
mod send;

/// What comes next.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the packet passes.
    Pass = 0,
    /// [`lose`]: the packet is dropped, for `scratch.reason`.
    Drop = 1,
    /// [`open`].
    Open = 2,
    /// [`send`].
    Send = 3,
    /// [`quote`].
    Quote = 4,
    /// [`answer`], with `scratch.answer` and for `scratch.reason`.
    Answer = 5,
    /// The packet goes out of the interface `scratch.interface`, as [`Verdict::Redirect`] says.
    Redirect = 6,
    /// As [`Verdict::Neighbour`] says.
    Neighbour = 7,
    /// As [`Verdict::Enter`] says.
    Enter = 8,
    /// [`read`], once more.
    Read = 9,
    /// [`check`].
    Check = 10,
    /// [`choose`].
    Choose = 11,
    /// [`judge`].
    Judge = 12,
    /// [`record`].
    Record = 13,
    /// [`relay`].
    Relay = 14,
}

impl Step {
    /// The step with this number; any other number passes the packet.
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        match number {
            1 => Self::Drop,
            2 => Self::Open,
            3 => Self::Send,
            4 => Self::Quote,
            5 => Self::Answer,
            6 => Self::Redirect,
            7 => Self::Neighbour,
            8 => Self::Enter,
            9 => Self::Read,
            10 => Self::Check,
            11 => Self::Choose,
            12 => Self::Judge,
            13 => Self::Record,
            14 => Self::Relay,
            _ => Self::Pass,
        }
    }
}

/// The stages that a packet goes through at a hook.
pub trait Stages {
    fn read(&mut self) -> Step;
    fn check(&mut self) -> Step;
    fn open(&mut self) -> Step;
    fn choose(&mut self) -> Step;
    fn judge(&mut self) -> Step;
    fn record(&mut self) -> Step;
    fn send(&mut self) -> Step;
    fn quote(&mut self) -> Step;
    fn relay(&mut self) -> Step;
    fn answer(&mut self) -> Step;
    fn lose(&mut self) -> Step;
}

/// Takes a packet through its stages; what the last step means is in the scratch.
#[inline(always)]
pub fn cross(stages: &mut impl Stages) -> Step {
    let mut step = stages.read();
    if step == Step::Read {
        step = stages.read();
    }
    if step == Step::Check {
        step = stages.check();
    }
    if step == Step::Open {
        step = stages.open();
    } else if step == Step::Quote {
        step = stages.quote();
    }
    for _ in 0..balance::MOST_CHOICES {
        if step == Step::Choose {
            step = stages.choose();
        }
        if step == Step::Judge {
            step = stages.judge();
        }
        if step == Step::Record {
            step = stages.record();
        }
        if step != Step::Choose {
            break;
        }
    }
    if step == Step::Send {
        step = stages.send();
    } else if step == Step::Relay {
        step = stages.relay();
    }
    if step == Step::Answer {
        step = stages.answer();
    }
    if step == Step::Drop {
        step = stages.lose();
    }
    step
}

/// What becomes of a packet whose last step is this one.
#[inline(always)]
pub fn verdict(scratch: &Scratch, step: Step) -> Verdict {
    match step {
        Step::Redirect => Verdict::Redirect(scratch.interface),
        Step::Neighbour => Verdict::Neighbour(scratch.interface),
        Step::Enter => Verdict::Enter(scratch.interface),
        Step::Drop => Verdict::Drop(Reason::of(scratch.reason)),
        _ => Verdict::Pass,
    }
}
