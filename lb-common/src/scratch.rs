//! Room to work in.

use crate::flow::{Flow, FlowKey, Tuple};

/// What the packet path works on, beside its stack of 512 bytes: one per CPU in the kernel.
///
/// Nothing in it outlives a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// The flow key of the packet, or of the packet that it quotes.
    pub key: FlowKey,
    /// The flow of `key`.
    pub flow: Flow,
    /// Its twin.
    pub twin_key: FlowKey,
    pub twin: Flow,
    /// Source and destination of an ICMP error itself.
    pub outer: Tuple,
}

impl Scratch {
    pub const fn new() -> Self {
        Self {
            key: FlowKey::NONE,
            flow: Flow::NONE,
            twin_key: FlowKey::NONE,
            twin: Flow::NONE,
            outer: Tuple::NONE,
        }
    }

    /// Fills in the twin of `flow`.
    #[inline(always)]
    pub fn reflect(&mut self) {
        let Self {
            key,
            flow,
            twin_key,
            twin,
            outer: _,
        } = self;
        twin_key.tuple.reverse(&flow.to);
        twin_key.owner = key.owner;
        twin_key.protocol = key.protocol;
        twin_key.direction = flow.twin;
        *twin = *flow;
        twin.to.reverse(&key.tuple);
        twin.check = twin_key.check();
        twin.twin = key.direction;
        twin.opener = 1 - flow.opener;
        twin.fin = flow.twin_fin;
        twin.twin_fin = flow.fin;
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
