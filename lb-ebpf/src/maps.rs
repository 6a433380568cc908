//! The maps, and the tables that the packet path reads through them.
#![expect(
    unsafe_code,
    reason = "values are copied out of kernel memory, and a function that the verifier knows is named by symbol"
)]

use core::ops::Deref;

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_fib_lookup},
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf, lpm_trie::Key,
    },
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, generated::bpf_ktime_get_coarse_ns},
    macros::btf_map,
};
use lb_common::{
    address::Address,
    affinity::{self, Rank},
    budget,
    endpoint::{
        Bucket, Device, DeviceKey, Endpoint, EndpointKey, INTERFACE_BUCKETS, MAX_DEVICES,
        MAX_ENDPOINTS, MAX_SLOTS, NO_SLOT,
    },
    enforce::Standing,
    event::{EVENT_BYTES, Event, MAX_TALLIES, TallyKey},
    flow::{Flow, FlowKey, MAX_FLOWS, MAX_HALF_OPEN},
    fragment::{FragmentKey, MAX_FRAGMENTS, Ports},
    policy::{
        Guard, MAX_IDENTITIES, MAX_PEERS, MAX_POD_SOURCES, MAX_RULES, NO_IDENTITY, PeerKey, Rule,
        RuleKey, SourceKey,
    },
    reason::Reason,
    scratch::Scratch,
    service::{
        Affinity, AffinityKey, Backend, Cidr, Extent, Frontend, FrontendKey, MAX_AFFINITIES,
        MAX_BACKEND_IDS, MAX_BACKENDS, MAX_CIDRS, MAX_FRONTENDS, MAX_SERVICES, MAX_SOURCE_RANGES,
        RangeKey, Target,
    },
    socket::{MAX_SOCKETS, Settings, Socket, SocketKey, Sockets},
    tables::{FlowTable, NotInserted, Note, Rules, Tables},
};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// What clients dial, and the service behind it.
#[btf_map]
static FRONTENDS: HashMap<FrontendKey, Frontend, MAX_FRONTENDS, ON_DEMAND> = HashMap::new();

/// Where each service's extent begins.
#[btf_map]
static SERVICES: Array<Extent, MAX_SERVICES, MAPPED> = Array::new();

/// The rows of all extents.
#[btf_map]
static BACKENDS: Array<Backend, MAX_BACKENDS, MAPPED> = Array::new();

/// The generation of each backend id; odd while the backend lives.
#[btf_map]
static LIVE: Array<u32, MAX_BACKEND_IDS, MAPPED> = Array::new();

/// The slot of each pod interface.
#[btf_map]
static INTERFACES: Array<Bucket, INTERFACE_BUCKETS> = Array::new();

/// How each local pod is reached.
#[btf_map]
static ENDPOINTS: HashMap<EndpointKey, Endpoint, MAX_ENDPOINTS, ON_DEMAND> = HashMap::new();

/// The interfaces that lead out of the node.
#[btf_map]
static DEVICES: HashMap<DeviceKey, Device, MAX_DEVICES, ON_DEMAND> = HashMap::new();

/// The sources that load balancer IPs serve.
#[btf_map]
static SOURCE_RANGES: LpmTrie<RangeKey, u8, MAX_SOURCE_RANGES> = LpmTrie::new();

/// The networks of the services' own addresses.
#[btf_map]
static CIDRS: Array<Cidr, MAX_CIDRS> = Array::new();

/// Where each client of a service with session affinity went last.
#[btf_map]
static AFFINITY: LruHashMap<AffinityKey, Affinity, MAX_AFFINITIES> = LruHashMap::new();

/// The ports of fragmented packets.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, Ports, MAX_FRAGMENTS> = LruHashMap::new();

/// Two-way flows.
#[btf_map]
static FLOWS: HashMap<FlowKey, Flow, MAX_FLOWS, ON_DEMAND> = HashMap::new();

/// Flows that are not two-way yet; the least recently used make room.
#[btf_map]
static HALF_OPEN: LruHashMap<FlowKey, Flow, MAX_HALF_OPEN> = LruHashMap::new();

/// 1 where the kernel tells the time of its last tick (5.11), without reading a clock.
#[unsafe(no_mangle)]
static HAS_COARSE_CLOCK: Global<u8> = Global::new(0);

/// What the programs of processes must know of the node.
#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

/// What sockets dialled, and where they went.
#[btf_map]
static SOCKETS: LruHashMap<SocketKey, Socket, MAX_SOCKETS> = LruHashMap::new();

/// What each pod may say it is, and what policy says of it, by endpoint slot.
#[btf_map]
static GUARDS: Array<Guard, { MAX_SLOTS as usize }, MAPPED> = Array::new();

/// Which of the peers that policies tell apart an address is.
#[btf_map]
static IDENTITIES: LpmTrie<Address, u32, MAX_IDENTITIES> = LpmTrie::new();

/// The class of rules that a rule set has for a peer.
#[btf_map]
static PEERS: HashMap<PeerKey, u32, MAX_PEERS, ON_DEMAND> = HashMap::new();

/// What classes of rules say of protocols and ports.
#[btf_map]
static RULES: LpmTrie<RuleKey, Rule, MAX_RULES> = LpmTrie::new();

/// What pods may send from besides their own addresses.
#[btf_map]
static POD_SOURCES: LpmTrie<SourceKey, u8, MAX_POD_SOURCES> = LpmTrie::new();

/// What happens at pods' interfaces.
#[btf_map]
static EVENTS: RingBuf<Event, EVENT_BYTES> = RingBuf::new();

/// Events that nobody was told of.
#[btf_map]
static LOST_EVENTS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// When the budget of events will be full again.
#[btf_map]
static REPORTS: Array<u64, 1> = Array::new();

/// What happened at each endpoint, counted.
#[btf_map]
static TALLIES: LruPerCpuHashMap<TallyKey, u64, MAX_TALLIES> = LruPerCpuHashMap::new();

/// Packets by reason.
#[btf_map]
static COUNTERS: PerCpuArray<u64, { Reason::ALL.len() }> = PerCpuArray::new();

/// When the budget of refusals will be full again.
#[btf_map]
static REFUSALS: Array<u64, 1> = Array::new();

/// Room to work in.
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// A question about routes.
#[btf_map]
static QUERY: PerCpuArray<[u64; 8], 1> = PerCpuArray::new();

/// This CPU's question about routes.
#[inline(always)]
pub fn query() -> Option<&'static mut bpf_fib_lookup> {
    const { assert!(size_of::<bpf_fib_lookup>() == 64) };
    // SAFETY: nobody else has this CPU's value, as for `scratch`; it is large enough, aligned, and
    // any bytes are a value.
    QUERY
        .get_ptr_mut(0)
        .map(|query| unsafe { &mut *query.cast() })
}

/// This CPU's room to work in. No program of ours runs while another one of ours does on the same
/// CPU: XDP and tc hooks run with bottom halves disabled, and a redirect happens after its program.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: nobody else has this CPU's value, as said above.
    SCRATCH
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })
}

/// The tables of the kernel.
pub struct KernelTables;

impl Rules for KernelTables {
    #[inline(always)]
    fn identity(&self, address: &Address) -> u32 {
        let bits = 8 * size_of::<Address>() as u32;
        IDENTITIES
            .get(&Key::new(bits, *address))
            .copied()
            .unwrap_or(NO_IDENTITY)
    }

    #[inline(always)]
    fn class(&self, key: &PeerKey) -> Option<u32> {
        // SAFETY: copied at once.
        unsafe { PEERS.get(key) }.copied()
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<Rule> {
        RULES.get(&Key::new(RuleKey::PORT_BITS, *key)).copied()
    }
}

impl Tables for KernelTables {
    #[inline(always)]
    fn slot(&self, interface: u32) -> u32 {
        match INTERFACES.get(Bucket::of(interface)) {
            Some(bucket) => bucket.slot(interface),
            None => NO_SLOT,
        }
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Target> {
        let value = FRONTENDS.get_ptr(key)?.cast::<u64>();
        // SAFETY: the map's value is eight aligned bytes; one load cannot mix two of them.
        let value = unsafe { value.read_volatile() };
        // SAFETY: `Frontend` is two `u32`, for which any bits are a value.
        let frontend: Frontend = unsafe { core::mem::transmute(value) };
        (frontend.check == key.check()).then_some(Target::unpack(frontend.target))
    }

    #[inline(always)]
    fn extent(&self, service: u32) -> Option<Extent> {
        let value = SERVICES.get_ptr(service)?.cast::<u64>();
        // SAFETY: as above.
        let value = unsafe { value.read_volatile() };
        // SAFETY: `Extent` is two `u32`, for which any bits are a value.
        Some(unsafe { core::mem::transmute::<u64, Extent>(value) })
    }

    #[inline(always)]
    fn backend(&self, row: u32) -> Option<Backend> {
        BACKENDS.get(row).copied()
    }

    #[inline(always)]
    fn generation(&self, id: u32) -> u32 {
        // SAFETY: the map's value is an aligned `u32` that userspace stores in one go.
        LIVE.get_ptr(id)
            .map_or(0, |value| unsafe { value.read_volatile() })
    }

    #[inline(always)]
    fn endpoint(&self, address: &Address) -> Option<Endpoint> {
        // SAFETY: copied at once.
        unsafe { ENDPOINTS.get(EndpointKey { address: *address }) }.copied()
    }

    #[inline(always)]
    fn device(&self, index: u32) -> Option<Device> {
        // SAFETY: copied at once.
        unsafe { DEVICES.get(DeviceKey { index }) }.copied()
    }

    #[inline(always)]
    fn in_range(&self, key: &RangeKey) -> bool {
        let bits = 8 * size_of::<RangeKey>() as u32;
        SOURCE_RANGES.get(&Key::new(bits, *key)).is_some()
    }

    #[inline(always)]
    fn cidr(&self, place: u32) -> Option<Cidr> {
        CIDRS.get(place).copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: copied at once.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        // Where there is no room, the next connection chooses afresh.
        let _ = AFFINITY.insert(key, affinity, 0);
    }

    #[inline(always)]
    fn row(&self, (high, low, port): Rank, (first, end): (u32, u32)) -> Option<u32> {
        match find_row(high, low, u32::from(port), first, end) {
            0 => None,
            row => Some(row),
        }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Ports> {
        // SAFETY: copied at once.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, ports: &Ports) {
        // Where there is no room, the rest of the packet is lost, as fragments are.
        let _ = FRAGMENTS.insert(key, ports, 0);
    }

    #[inline(always)]
    fn standing(&self, slot: u32) -> Standing {
        let Some(guard) = GUARDS.get_ptr(slot) else {
            return Standing::CLOSED;
        };
        // SAFETY: each is read in one go, and in this order: userspace stores the rule sets before
        // the epoch.
        unsafe {
            let epoch = (&raw const (*guard).epoch).read_volatile();
            Standing {
                ingress: (&raw const (*guard).ingress).read_volatile(),
                egress: (&raw const (*guard).egress).read_volatile(),
                epoch,
                bound: (&raw const (*guard).bound).read_volatile() == 1,
            }
        }
    }

    #[inline(always)]
    fn guard(&self, slot: u32) -> Option<impl Deref<Target = Guard>> {
        GUARDS.get(slot)
    }

    #[inline(always)]
    fn is_source(&self, key: &SourceKey) -> bool {
        let bits = 8 * size_of::<SourceKey>() as u32;
        POD_SOURCES.get(&Key::new(bits, *key)).is_some()
    }

    #[inline(always)]
    fn look<R>(&self, table: FlowTable, key: &FlowKey, at: impl FnOnce(&Flow) -> R) -> Option<R> {
        // SAFETY: the memory stays mapped while the program runs; whether it still is this key's
        // flow is for the caller to check.
        unsafe {
            match table {
                FlowTable::Flows => FLOWS.get(key),
                FlowTable::HalfOpen => HALF_OPEN.get(key),
            }
        }
        .map(at)
    }

    #[inline(always)]
    fn insert(&self, table: FlowTable, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted> {
        const EEXIST: i32 = -17;
        let flags = u64::from(BPF_NOEXIST);
        match table {
            FlowTable::Flows => FLOWS.insert(key, flow, flags),
            FlowTable::HalfOpen => HALF_OPEN.insert(key, flow, flags),
        }
        .map_err(|error| {
            if error == EEXIST {
                NotInserted::Exists
            } else {
                NotInserted::Full
            }
        })
    }

    #[inline(always)]
    fn note(&self, table: FlowTable, key: &FlowKey, note: Note) -> bool {
        let flow = match table {
            FlowTable::Flows => FLOWS.get_ptr_mut(key),
            FlowTable::HalfOpen => HALF_OPEN.get_ptr_mut(key),
        };
        let Some(flow) = flow else {
            return false;
        };
        // SAFETY: each field is stored in one go, and nobody relies on two of them together.
        unsafe {
            match note {
                Note::Seen(now) => (&raw mut (*flow).last_seen).write_volatile(now),
                Note::Answered => (&raw mut (*flow).answered).write_volatile(1),
                Note::Fin => (&raw mut (*flow).fin).write_volatile(1),
                Note::TwinFin => (&raw mut (*flow).twin_fin).write_volatile(1),
                Note::Reset => (&raw mut (*flow).reset).write_volatile(1),
                Note::Judged(epoch) => (&raw mut (*flow).epoch).write_volatile(epoch),
            }
        }
        true
    }

    #[inline(always)]
    fn remove(&self, table: FlowTable, key: &FlowKey) {
        // Another CPU may have been faster; gone is gone.
        let _ = match table {
            FlowTable::Flows => FLOWS.remove(key),
            FlowTable::HalfOpen => HALF_OPEN.remove(key),
        };
    }

    #[inline(always)]
    fn may_refuse(&self, now: u64) -> bool {
        REFUSALS.get_ptr_mut(0).is_some_and(|debt| take(debt, now))
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own counter.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn may_report(&self, now: u64) -> bool {
        REPORTS.get_ptr_mut(0).is_some_and(|debt| take(debt, now))
    }

    #[inline(always)]
    fn report(&self, event: &Event) -> bool {
        match EVENTS.reserve(0) {
            Some(mut entry) => {
                entry.write(*event);
                entry.submit(0);
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn count_lost_event(&self) {
        if let Some(counter) = LOST_EVENTS.get_ptr_mut(0) {
            // SAFETY: this CPU's own counter.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn tally(&self, key: &TallyKey) {
        match TALLIES.get_ptr_mut(key) {
            // SAFETY: this CPU's own counter.
            Some(counter) => unsafe { *counter += 1 },
            None => {
                // Where there is no room, it is not counted.
                let _ = TALLIES.insert(key, 1, 0);
            }
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: helper calls without arguments.
        unsafe {
            if HAS_COARSE_CLOCK.load() == 1 {
                bpf_ktime_get_coarse_ns()
            } else {
                bpf_ktime_get_ns()
            }
        }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper call without arguments.
        unsafe { bpf_get_prandom_u32() }
    }
}

/// Takes a token out of a budget.
#[inline(always)]
fn take(debt: *mut u64, now: u64) -> bool {
    // SAFETY: one aligned `u64` of a map; two CPUs at once may both take the same token.
    match budget::take(unsafe { debt.read_volatile() }, now) {
        Some(next) => {
            // SAFETY: as above.
            unsafe { debt.write_volatile(next) };
            true
        }
        None => false,
    }
}

impl Sockets for KernelTables {
    #[inline(always)]
    fn settings(&self) -> Settings {
        SETTINGS.get(0).copied().unwrap_or(Settings::NONE)
    }

    #[inline(always)]
    fn socket(&self, key: &SocketKey) -> Option<Socket> {
        // SAFETY: copied at once; whether it still is this key's is for the caller to check.
        unsafe { SOCKETS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &SocketKey, socket: &Socket) {
        // Where it cannot be, a process is told the backend's address.
        let _ = SOCKETS.insert(key, socket, 0);
    }
}

/// Tells the agent which network namespace it has asked from.
pub fn set_namespace(cookie: u64) {
    if let Some(settings) = SETTINGS.get_ptr_mut(0) {
        // SAFETY: one aligned `u64` of a map.
        unsafe { (&raw mut (*settings).namespace).write_volatile(cookie) };
    }
}

/// [`Tables::row`], looked at by itself; 0 where there is none, as row 0 is nobody's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_row(high: u64, low: u64, port: u32, first: u32, end: u32) -> u32 {
    affinity::search(&KernelTables, (high, low, port as u16), (first, end)).unwrap_or(0)
}
