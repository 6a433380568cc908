//! Room to work in.

use crate::{
    address::UNSPECIFIED,
    balance::Choice,
    enforce::{Ruling, Standing},
    event::Event,
    flow::{Flow, FlowKey, Tuple},
    fragment::{FragmentKey, Ports},
    headers::Headers,
    icmp::{Answer, Quoted},
    packet::Hop,
    pipeline::Step,
    reason::Reason,
    service::{AffinityKey, Backend, NO_SERVICE},
    tables::{FlowTable, Tables},
};

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
    /// Source and destination of an ICMP error itself, or of a reply to be.
    pub outer: Tuple,
    /// What a fragment is found by.
    pub fragment: FragmentKey,
    /// The header of the extent that a backend is chosen from, and the backend.
    pub header: Backend,
    pub backend: Backend,
    pub session: AffinityKey,
    pub choice: Choice,
    /// Of the endpoint whose interface the packet crosses.
    pub standing: Standing,
    pub ruling: Ruling,
    pub event: Event,
    /// When the packet came: CLOCK_MONOTONIC in nanoseconds.
    pub now: u64,
    pub headers: Headers,
    pub answer: Answer,
    /// What an ICMP error quotes.
    pub quoted: Quoted,
    pub hop: Hop,
    /// Where `flow` was found.
    pub table: FlowTable,
    /// Whether `flow` is one that the packet opens.
    pub opening: bool,
    /// Index of the interface that the packet leaves by.
    pub interface: u32,
    /// A [`Reason`].
    pub reason: u32,
    /// 1 where the packet is IPv6.
    pub v6: u32,
}

impl Scratch {
    pub const fn new() -> Self {
        Self {
            key: FlowKey::NONE,
            flow: Flow::NONE,
            twin_key: FlowKey::NONE,
            twin: Flow::NONE,
            outer: Tuple::NONE,
            fragment: FragmentKey::NONE,
            header: Backend::FREE,
            backend: Backend::FREE,
            session: AffinityKey {
                client: UNSPECIFIED,
                service: NO_SERVICE,
            },
            choice: Choice::NONE,
            standing: Standing::NONE,
            ruling: Ruling::NONE,
            event: Event::NONE,
            now: 0,
            headers: Headers::NONE,
            answer: Answer::NONE,
            quoted: Quoted::NOTHING,
            hop: Hop::NOWHERE,
            table: FlowTable::Flows,
            opening: false,
            interface: 0,
            reason: 0,
            v6: 0,
        }
    }

    /// Whether the packet goes the way that its flow was opened.
    #[inline(always)]
    pub const fn is_opener(&self) -> bool {
        self.opening || self.flow.opener == 1
    }

    /// The packet is dropped.
    #[inline(always)]
    pub fn drop_for(&mut self, reason: Reason) -> Step {
        self.reason = reason as u32;
        Step::Drop
    }

    /// The packet is answered.
    #[inline(always)]
    pub fn answer_with(&mut self, reason: Reason, answer: Answer) -> Step {
        self.reason = reason as u32;
        self.answer = answer;
        Step::Answer
    }

    /// Remembers the ports of a first fragment.
    #[inline(always)]
    pub fn remember_fragment<T: Tables>(&mut self, tables: &T) {
        self.name_fragment();
        let Self { key, fragment, .. } = self;
        let ports = Ports {
            source: key.tuple.source_port,
            destination: key.tuple.destination_port,
        };
        tables.set_fragment(fragment, &ports);
    }

    /// Gives a later fragment the ports of its first; `None` where that was not seen.
    #[inline(always)]
    pub fn recall_fragment<T: Tables>(&mut self, tables: &T) -> Option<()> {
        self.name_fragment();
        let ports = tables.fragment(&self.fragment)?;
        self.key.tuple.source_port = ports.source;
        self.key.tuple.destination_port = ports.destination;
        Some(())
    }

    #[inline(always)]
    fn name_fragment(&mut self) {
        let Self {
            key,
            fragment,
            headers,
            ..
        } = self;
        fragment.source = key.tuple.source;
        fragment.destination = key.tuple.destination;
        fragment.identification = headers.identification;
        fragment.owner = key.owner;
        fragment.protocol = key.protocol;
        fragment.direction = key.direction;
    }

    /// Fills in the twin of `flow`.
    #[inline(always)]
    pub fn reflect(&mut self) {
        let Self {
            key,
            flow,
            twin_key,
            twin,
            ..
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
