//! What each table must look like for this version to read and write it.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, MapType, lpm_trie::Key};
use lb_common::{
    address::Address,
    endpoint::{
        Bucket, Device, DeviceKey, Endpoint, EndpointKey, INTERFACE_BUCKETS, MAX_DEVICES,
        MAX_ENDPOINTS, MAX_SLOTS,
    },
    event::{EVENT_BYTES, MAX_TALLIES, TallyKey},
    flow::{Flow, FlowKey, MAX_FLOWS, MAX_HALF_OPEN},
    fragment::{FragmentKey, MAX_FRAGMENTS, Ports},
    policy::{
        Guard, MAX_IDENTITIES, MAX_PEERS, MAX_POD_SOURCES, MAX_RULES, PeerKey, Rule, RuleKey,
        SourceKey,
    },
    reason::Reason,
    service::{
        Affinity, AffinityKey, Backend, Cidr, Extent, Frontend, FrontendKey, MAX_AFFINITIES,
        MAX_BACKEND_IDS, MAX_BACKENDS, MAX_CIDRS, MAX_FRONTENDS, MAX_SERVICES, MAX_SOURCE_RANGES,
        RangeKey,
    },
    socket::{MAX_SOCKETS, Settings, Socket, SocketKey},
};

use super::Pins;

/// The kernel's own description of a table.
#[derive(Debug, PartialEq)]
pub struct Layout {
    pub name: &'static str,
    kind: MapType,
    key_size: usize,
    value_size: usize,
    entries: usize,
    flags: u32,
}

const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;

/// Every table that outlives the agent.
pub const TABLES: [Layout; 26] = [
    table::<FrontendKey, Frontend>("FRONTENDS", MapType::Hash, MAX_FRONTENDS, NO_PREALLOC),
    table::<u32, Extent>("SERVICES", MapType::Array, MAX_SERVICES, MMAPABLE),
    table::<u32, Backend>("BACKENDS", MapType::Array, MAX_BACKENDS, MMAPABLE),
    table::<u32, u32>("LIVE", MapType::Array, MAX_BACKEND_IDS, MMAPABLE),
    table::<u32, Bucket>("INTERFACES", MapType::Array, INTERFACE_BUCKETS, 0),
    table::<EndpointKey, Endpoint>("ENDPOINTS", MapType::Hash, MAX_ENDPOINTS, NO_PREALLOC),
    table::<DeviceKey, Device>("DEVICES", MapType::Hash, MAX_DEVICES, NO_PREALLOC),
    table::<Key<RangeKey>, u8>(
        "SOURCE_RANGES",
        MapType::LpmTrie,
        MAX_SOURCE_RANGES,
        NO_PREALLOC,
    ),
    table::<u32, Cidr>("CIDRS", MapType::Array, MAX_CIDRS, 0),
    table::<AffinityKey, Affinity>("AFFINITY", MapType::LruHash, MAX_AFFINITIES, 0),
    table::<FragmentKey, Ports>("FRAGMENTS", MapType::LruHash, MAX_FRAGMENTS, 0),
    table::<FlowKey, Flow>("FLOWS", MapType::Hash, MAX_FLOWS, NO_PREALLOC),
    table::<FlowKey, Flow>("HALF_OPEN", MapType::LruHash, MAX_HALF_OPEN, 0),
    table::<u32, Settings>("SETTINGS", MapType::Array, 1, 0),
    table::<SocketKey, Socket>("SOCKETS", MapType::LruHash, MAX_SOCKETS, 0),
    table::<u32, Guard>("GUARDS", MapType::Array, MAX_SLOTS as usize, MMAPABLE),
    table::<Key<Address>, u32>("IDENTITIES", MapType::LpmTrie, MAX_IDENTITIES, NO_PREALLOC),
    table::<PeerKey, u32>("PEERS", MapType::Hash, MAX_PEERS, NO_PREALLOC),
    table::<Key<RuleKey>, Rule>("RULES", MapType::LpmTrie, MAX_RULES, NO_PREALLOC),
    table::<Key<SourceKey>, u8>(
        "POD_SOURCES",
        MapType::LpmTrie,
        MAX_POD_SOURCES,
        NO_PREALLOC,
    ),
    // A ring has no keys and no values of one size, and is as long as its bytes.
    table::<(), ()>("EVENTS", MapType::RingBuf, EVENT_BYTES, 0),
    table::<u32, u64>("LOST_EVENTS", MapType::PerCpuArray, 1, 0),
    table::<u32, u64>("REPORTS", MapType::Array, 1, 0),
    table::<TallyKey, u64>("TALLIES", MapType::LruPerCpuHash, MAX_TALLIES, 0),
    table::<u32, u64>("COUNTERS", MapType::PerCpuArray, Reason::ALL.len(), 0),
    table::<u32, u64>("REFUSALS", MapType::Array, 1, 0),
];

const fn table<K, V>(name: &'static str, kind: MapType, entries: usize, flags: u32) -> Layout {
    Layout {
        name,
        kind,
        key_size: size_of::<K>(),
        value_size: size_of::<V>(),
        entries,
        flags,
    }
}

impl Layout {
    /// Opens the pinned table; an error where it is another one than this version makes.
    pub fn open(&self, pins: &Pins) -> Result<MapData> {
        let path = pins.table(self.name);
        let map = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        let info = map
            .info()
            .with_context(|| format!("look at {}", path.display()))?;
        let found = Self {
            name: self.name,
            kind: info.map_type()?,
            key_size: info.key_size() as usize,
            value_size: info.value_size() as usize,
            entries: info.max_entries() as usize,
            flags: info.map_flags(),
        };
        ensure!(
            *self == found,
            "{} is not this version's: {found:?} instead of {self:?}; `lb cleanup` removes it",
            path.display(),
        );
        Ok(map)
    }
}
