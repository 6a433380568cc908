//! The maps, and the tables that the packet path reads through them.
#![expect(
    unsafe_code,
    reason = "values are copied out of kernel memory, and a function that the verifier knows is named by symbol"
)]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_fib_lookup},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::btf_map,
};
use lb_common::{
    address::Address,
    affinity::{self, Rank},
    endpoint::{
        Bucket, Device, DeviceKey, Endpoint, EndpointKey, INTERFACE_BUCKETS, MAX_DEVICES,
        MAX_ENDPOINTS, NO_SLOT,
    },
    flow::{Flow, FlowKey, MAX_FLOWS, MAX_HALF_OPEN},
    fragment::{FragmentKey, MAX_FRAGMENTS, Ports},
    reason::Reason,
    refusal,
    scratch::Scratch,
    service::{
        Affinity, AffinityKey, Backend, Cidr, Extent, Frontend, FrontendKey, MAX_AFFINITIES,
        MAX_BACKEND_IDS, MAX_BACKENDS, MAX_CIDRS, MAX_FRONTENDS, MAX_SERVICES, MAX_SOURCE_RANGES,
        RangeKey, Target,
    },
    socket::{MAX_SOCKETS, Settings, Socket, SocketKey, Sockets},
    tables::{FlowTable, NotInserted, Note, Tables},
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

/// What the programs of processes must know of the node.
#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

/// What sockets dialled, and where they went.
#[btf_map]
static SOCKETS: LruHashMap<SocketKey, Socket, MAX_SOCKETS> = LruHashMap::new();

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
        let Some(debt) = REFUSALS.get_ptr_mut(0) else {
            return false;
        };
        // SAFETY: one aligned `u64`; two CPUs at once may both take the same token.
        match refusal::take(unsafe { debt.read_volatile() }, now) {
            Some(next) => {
                // SAFETY: as above.
                unsafe { debt.write_volatile(next) };
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own counter.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper call without arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper call without arguments.
        unsafe { bpf_get_prandom_u32() }
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

/// [`Tables::row`], looked at by itself; 0 where there is none, as row 0 is nobody's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_row(high: u64, low: u64, port: u32, first: u32, end: u32) -> u32 {
    affinity::search(&KernelTables, (high, low, port as u16), (first, end)).unwrap_or(0)
}
