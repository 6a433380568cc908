//! The packet path in memory: a packet of bytes and tables of maps, for tests and for asking what
//! would happen.

use core::{
    cell::{Cell, Ref, RefCell},
    ops::Deref,
};
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    address::Address,
    affinity::{self, Rank},
    budget,
    checksum::Difference,
    endpoint::{Bucket, Device, DeviceKey, Endpoint, EndpointKey, NO_SLOT},
    enforce::Standing,
    event::{Event, TallyKey},
    flow::{Flow, FlowKey, Tuple},
    fragment::{FragmentKey, Ports},
    headers::{Family, V4, V6},
    packet::{ETHERNET, Hop, Packet, Route, Scope},
    policy::{Guard, NO_IDENTITY, PeerKey, Rule, RuleKey, SourceKey},
    reason::Reason,
    service::{Affinity, AffinityKey, Backend, Cidr, Extent, FrontendKey, RangeKey, Target},
    socket::{Settings, Socket, SocketKey, Sockets},
    tables::{FlowTable, NotInserted, Note, Rules, Tables},
};

/// A packet of bytes, whose IP header stands at `NETWORK`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameAt<const NETWORK: usize> {
    pub bytes: Vec<u8>,
    pub interface: u32,
    pub arrived_by: u32,
    pub mark: u32,
    pub hint: u32,
    /// What the kernel's routes say, by destination: the next hop, and the length that fits.
    pub routes: BTreeMap<Address, (Hop, u32)>,
    /// What the node's sockets wait for.
    pub awaited: BTreeSet<Tuple>,
}

/// A packet with an Ethernet header.
pub type Frame = FrameAt<ETHERNET>;

impl<const NETWORK: usize> Packet for FrameAt<NETWORK> {
    const NETWORK: usize = NETWORK;

    fn ethertype(&self) -> Option<[u8; 2]> {
        if NETWORK == ETHERNET {
            return self.load(ETHERNET - 2);
        }
        match self.bytes.first()? >> 4 {
            4 => Some(V4::ETHERTYPE),
            6 => Some(V6::ETHERTYPE),
            _ => None,
        }
    }

    fn gather(&mut self) -> bool {
        false
    }

    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..)?.first_chunk().copied()
    }

    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        *self.bytes.get_mut(offset..)?.first_chunk_mut()? = *bytes;
        Some(())
    }

    fn load_v6_address(&self, offset: usize) -> Option<Address> {
        self.load(offset).map(|bytes| Address { bytes })
    }

    fn store_summed<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        self.store(offset, bytes)
    }

    fn fix_transport(&mut self, offset: usize, change: Difference, scope: Scope) -> Option<()> {
        let field: [u8; 2] = self.load(offset)?;
        if scope.zero_means_none && field == [0; 2] {
            return Some(());
        }
        match change.apply(field) {
            [0, 0] if scope.zero_means_none => self.store(offset, &[0xff; 2]),
            field => self.store(offset, &field),
        }
    }

    fn truncate(&mut self, length: usize) -> Option<()> {
        self.bytes.truncate(length);
        Some(())
    }

    fn make_room<const N: usize>(&mut self) -> Option<()> {
        self.bytes.splice(NETWORK..NETWORK, [0; N]);
        Some(())
    }

    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn is_several(&self) -> bool {
        false
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn arrived_by(&self) -> u32 {
        self.arrived_by
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    fn hint(&self) -> u32 {
        self.hint
    }

    fn set_hint(&mut self, hint: u32) {
        self.hint = hint;
    }

    fn route(&mut self, to: &Tuple, _protocol: u8, length: u32) -> Route {
        match self.routes.get(&to.destination) {
            Some((_, mtu)) if length > *mtu => Route::TooBig(*mtu),
            Some((hop, _)) => Route::Out(*hop),
            None => Route::None,
        }
    }

    fn address_to(&mut self, hop: &Hop) -> Option<()> {
        if NETWORK == 0 {
            let ethertype = self.ethertype()?;
            self.bytes.splice(..0, [0; ETHERNET]);
            self.store(ETHERNET - 2, &ethertype)?;
        }
        self.store(0, &hop.destination)?;
        self.store(6, &hop.source)
    }

    fn awaited(&mut self, tuple: &Tuple, _protocol: u8) -> bool {
        self.awaited.contains(tuple)
    }
}

/// Tables of maps. The packet path changes flows, counters and the refusal budget through a shared
/// reference, as it does in the kernel.
#[derive(Clone, Debug, Default)]
pub struct MemoryTables {
    /// By interface index.
    pub slots: BTreeMap<u32, u32>,
    pub frontends: BTreeMap<FrontendKey, Target>,
    pub services: BTreeMap<u32, Extent>,
    pub backends: BTreeMap<u32, Backend>,
    pub live: BTreeMap<u32, u32>,
    pub endpoints: BTreeMap<EndpointKey, Endpoint>,
    pub devices: BTreeMap<DeviceKey, Device>,
    /// Prefix length of the address, and the key.
    pub ranges: BTreeSet<(u32, RangeKey)>,
    pub cidrs: Vec<Cidr>,
    pub affinities: RefCell<BTreeMap<AffinityKey, Affinity>>,
    pub fragments: RefCell<BTreeMap<FragmentKey, Ports>>,
    pub flows: RefCell<BTreeMap<FlowKey, Flow>>,
    pub half_open: RefCell<BTreeMap<FlowKey, Flow>>,
    pub settings: Settings,
    pub sockets: RefCell<BTreeMap<SocketKey, Socket>>,
    /// Two-way flows that fit; `None` is no limit.
    pub flow_limit: Option<usize>,
    /// By endpoint slot.
    pub guards: RefCell<BTreeMap<u32, Guard>>,
    /// Prefix length of the address, and the address.
    pub identities: RefCell<BTreeMap<(u32, Address), u32>>,
    pub peers: RefCell<BTreeMap<PeerKey, u32>>,
    /// Prefix length of the key, and the key.
    pub rules: RefCell<BTreeMap<(u32, RuleKey), Rule>>,
    /// Prefix length of the address, and the key.
    pub pod_sources: BTreeSet<(u32, SourceKey)>,
    pub events: RefCell<Vec<Event>>,
    /// Events that wait until no more fit; `None` is no limit.
    pub event_limit: Option<usize>,
    pub event_debt: Cell<u64>,
    pub lost_events: Cell<u64>,
    pub tallies: RefCell<BTreeMap<TallyKey, u64>>,
    pub counters: RefCell<BTreeMap<Reason, u64>>,
    pub refusal_debt: Cell<u64>,
    pub now: Cell<u64>,
    /// What [`Tables::random`] answers, over and over; 0 where empty.
    pub random: RefCell<std::collections::VecDeque<u32>>,
}

impl MemoryTables {
    /// The table of flows.
    pub fn table(&self, table: FlowTable) -> &RefCell<BTreeMap<FlowKey, Flow>> {
        match table {
            FlowTable::Flows => &self.flows,
            FlowTable::HalfOpen => &self.half_open,
        }
    }

    /// The interface buckets as the kernel has them.
    pub fn buckets(&self) -> BTreeMap<u32, Bucket> {
        let mut buckets: BTreeMap<u32, Bucket> = BTreeMap::new();
        for (&index, &slot) in &self.slots {
            let bucket = buckets.entry(Bucket::of(index)).or_default();
            if let Some(free) = bucket.interfaces.iter_mut().find(|place| place.index == 0) {
                free.index = index;
                free.slot = slot;
            }
        }
        buckets
    }
}

impl Rules for MemoryTables {
    fn identity(&self, address: &Address) -> u32 {
        let identities = self.identities.borrow();
        let holding = identities
            .iter()
            .filter(|((length, prefix), _)| within(*length, prefix, address));
        let longest = holding.max_by_key(|((length, _), _)| *length);
        longest.map_or(NO_IDENTITY, |(_, identity)| *identity)
    }

    fn class(&self, key: &PeerKey) -> Option<u32> {
        self.peers.borrow().get(key).copied()
    }

    fn rule(&self, key: &RuleKey) -> Option<Rule> {
        let bits = |key: &RuleKey| {
            let [high, low] = key.port;
            let [a, b, c, d] = key.class.to_be_bytes();
            u64::from_be_bytes([a, b, c, d, key.protocol, high, low, 0])
        };
        let rules = self.rules.borrow();
        let holding = rules.iter().filter(|((length, rule), _)| {
            let differ = bits(rule) ^ bits(key);
            differ.leading_zeros() >= *length
        });
        let longest = holding.max_by_key(|((length, _), _)| *length);
        longest.map(|(_, rule)| *rule)
    }
}

impl Tables for MemoryTables {
    fn slot(&self, interface: u32) -> u32 {
        self.slots.get(&interface).copied().unwrap_or(NO_SLOT)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Target> {
        self.frontends.get(key).copied()
    }

    fn extent(&self, service: u32) -> Option<Extent> {
        self.services.get(&service).copied()
    }

    fn backend(&self, row: u32) -> Option<Backend> {
        self.backends.get(&row).copied()
    }

    fn generation(&self, id: u32) -> u32 {
        self.live.get(&id).copied().unwrap_or(0)
    }

    fn endpoint(&self, address: &Address) -> Option<Endpoint> {
        self.endpoints
            .get(&EndpointKey { address: *address })
            .copied()
    }

    fn device(&self, index: u32) -> Option<Device> {
        self.devices.get(&DeviceKey { index }).copied()
    }

    fn in_range(&self, key: &RangeKey) -> bool {
        self.ranges.iter().any(|(length, range)| {
            range.set == key.set && within(*length, &range.address, &key.address)
        })
    }

    fn cidr(&self, place: u32) -> Option<Cidr> {
        Some(
            self.cidrs
                .get(place as usize)
                .copied()
                .unwrap_or(Cidr::FREE),
        )
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *affinity);
    }

    fn row(&self, wanted: Rank, rows: (u32, u32)) -> Option<u32> {
        affinity::search(self, wanted, rows)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Ports> {
        self.fragments.borrow().get(key).copied()
    }

    fn set_fragment(&self, key: &FragmentKey, ports: &Ports) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }

    fn standing(&self, slot: u32) -> Standing {
        let guard = self.guard(slot).map(|guard| *guard);
        let Guard {
            ingress,
            egress,
            epoch,
            bound,
            ..
        } = guard.unwrap_or(Guard::NONE);
        Standing {
            ingress,
            egress,
            epoch,
            bound: bound == 1,
        }
    }

    fn guard(&self, slot: u32) -> Option<impl Deref<Target = Guard>> {
        Ref::filter_map(self.guards.borrow(), |guards| guards.get(&slot)).ok()
    }

    fn is_source(&self, key: &SourceKey) -> bool {
        self.pod_sources.iter().any(|(length, source)| {
            source.slot == key.slot && within(*length, &source.address, &key.address)
        })
    }

    fn look<R>(&self, table: FlowTable, key: &FlowKey, at: impl FnOnce(&Flow) -> R) -> Option<R> {
        self.table(table).borrow().get(key).map(at)
    }

    fn insert(&self, table: FlowTable, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted> {
        let mut flows = self.table(table).borrow_mut();
        if flows.contains_key(key) {
            return Err(NotInserted::Exists);
        }
        if table == FlowTable::Flows && self.flow_limit.is_some_and(|limit| flows.len() >= limit) {
            return Err(NotInserted::Full);
        }
        flows.insert(*key, *flow);
        Ok(())
    }

    fn note(&self, table: FlowTable, key: &FlowKey, note: Note) -> bool {
        match self.table(table).borrow_mut().get_mut(key) {
            Some(flow) => {
                match note {
                    Note::Seen(now) => flow.last_seen = now,
                    Note::Answered => flow.answered = 1,
                    Note::Fin => flow.fin = 1,
                    Note::TwinFin => flow.twin_fin = 1,
                    Note::Reset => flow.reset = 1,
                    Note::Judged(epoch) => flow.epoch = epoch,
                }
                true
            }
            None => false,
        }
    }

    fn remove(&self, table: FlowTable, key: &FlowKey) {
        self.table(table).borrow_mut().remove(key);
    }

    fn may_refuse(&self, now: u64) -> bool {
        let debt = budget::take(self.refusal_debt.get(), now);
        debt.inspect(|debt| self.refusal_debt.set(*debt)).is_some()
    }

    fn count(&self, reason: Reason) {
        *self.counters.borrow_mut().entry(reason).or_default() += 1;
    }

    fn may_report(&self, now: u64) -> bool {
        let debt = budget::take(self.event_debt.get(), now);
        debt.inspect(|debt| self.event_debt.set(*debt)).is_some()
    }

    fn report(&self, event: &Event) -> bool {
        let mut events = self.events.borrow_mut();
        let room = self.event_limit.is_none_or(|limit| events.len() < limit);
        if room {
            events.push(*event);
        }
        room
    }

    fn count_lost_event(&self) {
        self.lost_events.set(self.lost_events.get() + 1);
    }

    fn tally(&self, key: &TallyKey) {
        *self.tallies.borrow_mut().entry(*key).or_default() += 1;
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn random(&self) -> u32 {
        let mut queue = self.random.borrow_mut();
        let next = queue.pop_front();
        next.inspect(|next| queue.push_back(*next)).unwrap_or(0)
    }
}

/// Whether the first `length` bits of the addresses are the same.
fn within(length: u32, prefix: &Address, address: &Address) -> bool {
    let bits = |address: &Address| u128::from_be_bytes(address.bytes);
    (bits(prefix) ^ bits(address)).leading_zeros() >= length
}

impl Sockets for MemoryTables {
    fn settings(&self) -> Settings {
        self.settings
    }

    fn socket(&self, key: &SocketKey) -> Option<Socket> {
        self.sockets.borrow().get(key).copied()
    }

    fn remember(&self, key: &SocketKey, socket: &Socket) {
        self.sockets.borrow_mut().insert(*key, *socket);
    }
}
