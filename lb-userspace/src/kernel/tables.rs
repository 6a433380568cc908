//! The pinned tables: writes one thing at a time, reads everything.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use aya::maps::{
    Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key as LpmKey,
};
use lb_common::{
    address::Address,
    endpoint::{Bucket, Device, DeviceKey, Endpoint, EndpointKey, INTERFACE_BUCKETS, Interface},
    flow::{Flow, FlowKey},
    reason::Reason,
    service::{
        Backend, Cidr, Extent, Frontend, FrontendKey, FrontendKind, MAX_CIDRS, RangeKey, Target,
    },
    socket::Settings,
};

use super::{Barrier, Pins, layout::TABLES, mapped::Mapped, policy::PolicyTables};
use crate::plan::{Op, RangeEntry, ServiceTables};

/// What a frontend that is not its key's own is read as: a service that is not there.
const NOT_ITS_OWN: Target = Target::Service {
    index: 0,
    kind: FrontendKind::Internal,
};

/// The tables of the node.
pub struct Tables {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    services: Mapped<Extent>,
    backends: Mapped<Backend>,
    live: Mapped<u32>,
    ranges: LpmTrie<MapData, RangeKey, u8>,
    cidrs: Array<MapData, Cidr>,
    interfaces: Array<MapData, Bucket>,
    endpoints: HashMap<MapData, EndpointKey, Endpoint>,
    devices: HashMap<MapData, DeviceKey, Device>,
    settings: Array<MapData, Settings>,
    counters: PerCpuArray<MapData, u64>,
    pub(super) policy: PolicyTables,
    /// Made when it is first needed: who only reads needs none.
    barrier: Option<Barrier>,
}

impl Tables {
    /// Opens the tables that are pinned.
    pub fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            frontends: Map::HashMap(open(pins, "FRONTENDS")?).try_into()?,
            services: mapped(pins, "SERVICES")?,
            backends: mapped(pins, "BACKENDS")?,
            live: mapped(pins, "LIVE")?,
            ranges: Map::LpmTrie(open(pins, "SOURCE_RANGES")?).try_into()?,
            cidrs: Map::Array(open(pins, "CIDRS")?).try_into()?,
            interfaces: Map::Array(open(pins, "INTERFACES")?).try_into()?,
            endpoints: Map::HashMap(open(pins, "ENDPOINTS")?).try_into()?,
            devices: Map::HashMap(open(pins, "DEVICES")?).try_into()?,
            settings: Map::Array(open(pins, "SETTINGS")?).try_into()?,
            counters: Map::PerCpuArray(open(pins, "COUNTERS")?).try_into()?,
            policy: PolicyTables::open(pins)?,
            barrier: None,
        })
    }

    /// Does one write, or waits.
    pub fn apply(&mut self, op: &Op) -> Result<()> {
        match *op {
            Op::Live { id, generation } => self.live.set(id, generation),
            Op::Row { row, backend } => self.backends.set(row, backend),
            Op::Service { service, extent } => self.services.set(service, extent),
            Op::Frontend { key, target } => {
                let frontend = Frontend {
                    target: target.pack(),
                    check: key.check(),
                };
                self.frontends
                    .insert(key, frontend, 0)
                    .context("write FRONTENDS")
            }
            Op::NoFrontend { key } => {
                absent_is_fine(self.frontends.remove(&key)).context("write FRONTENDS")
            }
            Op::SourceRange { entry } => {
                let written = self.ranges.insert(&lpm_key(entry), 1, 0);
                written.context("write SOURCE_RANGES")
            }
            Op::NoSourceRange { entry } => {
                let removed = self.ranges.remove(&lpm_key(entry));
                absent_is_fine(removed).context("write SOURCE_RANGES")
            }
            Op::Cidr { place, cidr } => self.cidrs.set(place, cidr, 0).context("write CIDRS"),
            Op::Barrier => self.wait(),
        }
    }

    /// Returns once no program holds anything that it read before.
    pub fn wait(&mut self) -> Result<()> {
        let barrier = match &mut self.barrier {
            Some(barrier) => barrier,
            none => none.insert(Barrier::new()?),
        };
        barrier.wait()
    }

    /// Reads the tables of services.
    pub fn services(&self) -> Result<ServiceTables> {
        let frontends = self.frontends.iter();
        let frontends = frontends.map(|entry| {
            let (key, frontend) = entry?;
            Ok((key, target(&key, frontend)))
        });
        let ranges = self.ranges.iter();
        let ranges = ranges.map(|entry| {
            let (key, _) = entry?;
            Ok(RangeEntry {
                key: key.data(),
                prefix: key.prefix_len(),
            })
        });
        Ok(ServiceTables {
            frontends: all(frontends).context("read FRONTENDS")?,
            ranges: all(ranges).context("read SOURCE_RANGES")?,
            cidrs: self.cidrs()?,
            services: self
                .services
                .iter()
                .filter(|(_, extent)| extent.first != 0)
                .collect(),
            rows: self
                .backends
                .iter()
                .filter(|(_, row)| *row != Backend::FREE)
                .collect(),
            live: self
                .live
                .iter()
                .filter(|(_, generation)| *generation != 0)
                .collect(),
        })
    }

    fn cidrs(&self) -> Result<BTreeMap<u32, Cidr>> {
        let mut cidrs = BTreeMap::new();
        for place in 0..MAX_CIDRS as u32 {
            let cidr = self.cidrs.get(&place, 0).context("read CIDRS")?;
            if cidr != Cidr::FREE {
                cidrs.insert(place, cidr);
            }
        }
        Ok(cidrs)
    }

    /// The slot of each pod interface, by interface index.
    pub fn interfaces(&self) -> Result<BTreeMap<u32, u32>> {
        let mut slots = BTreeMap::new();
        for bucket in 0..INTERFACE_BUCKETS as u32 {
            let bucket = self.interfaces.get(&bucket, 0).context("read INTERFACES")?;
            let taken = bucket
                .interfaces
                .iter()
                .filter(|interface| interface.index != 0);
            slots.extend(taken.map(|interface| (interface.index, interface.slot)));
        }
        Ok(slots)
    }

    /// Gives an interface its slot.
    pub fn put_interface(&mut self, index: u32, slot: u32) -> Result<()> {
        let mut bucket = self.bucket(index)?;
        let mut places = bucket.interfaces.iter_mut();
        let Some(place) = places.find(|place| place.index == index || place.index == 0) else {
            bail!("INTERFACES has no room for interface {index}");
        };
        *place = Interface { index, slot };
        self.set_bucket(index, bucket)
    }

    pub fn remove_interface(&mut self, index: u32) -> Result<()> {
        let mut bucket = self.bucket(index)?;
        for place in bucket
            .interfaces
            .iter_mut()
            .filter(|place| place.index == index)
        {
            *place = Interface::default();
        }
        self.set_bucket(index, bucket)
    }

    fn bucket(&self, index: u32) -> Result<Bucket> {
        self.interfaces
            .get(&Bucket::of(index), 0)
            .context("read INTERFACES")
    }

    fn set_bucket(&mut self, index: u32, bucket: Bucket) -> Result<()> {
        self.interfaces
            .set(Bucket::of(index), bucket, 0)
            .context("write INTERFACES")
    }

    /// How each local pod is reached.
    pub fn endpoints(&self) -> Result<BTreeMap<Address, Endpoint>> {
        self.endpoints
            .iter()
            .map(|entry| entry.map(|(key, endpoint)| (key.address, endpoint)))
            .collect::<Result<_, MapError>>()
            .context("read ENDPOINTS")
    }

    pub fn put_endpoint(&mut self, address: Address, endpoint: Endpoint) -> Result<()> {
        self.endpoints
            .insert(EndpointKey { address }, endpoint, 0)
            .context("write ENDPOINTS")
    }

    pub fn remove_endpoint(&mut self, address: Address) -> Result<()> {
        absent_is_fine(self.endpoints.remove(&EndpointKey { address })).context("write ENDPOINTS")
    }

    /// The interfaces that lead out of the node, by interface index.
    pub fn devices(&self) -> Result<BTreeMap<u32, Device>> {
        self.devices
            .iter()
            .map(|entry| entry.map(|(key, device)| (key.index, device)))
            .collect::<Result<_, MapError>>()
            .context("read DEVICES")
    }

    pub fn put_device(&mut self, index: u32, device: Device) -> Result<()> {
        self.devices
            .insert(DeviceKey { index }, device, 0)
            .context("write DEVICES")
    }

    pub fn remove_device(&mut self, index: u32) -> Result<()> {
        absent_is_fine(self.devices.remove(&DeviceKey { index })).context("write DEVICES")
    }

    /// What the programs of processes know of the node.
    pub fn settings(&self) -> Result<Settings> {
        self.settings.get(&0, 0).context("read SETTINGS")
    }

    pub fn set_settings(&mut self, settings: Settings) -> Result<()> {
        self.settings.set(0, settings, 0).context("write SETTINGS")
    }

    /// Packets by reason, of all CPUs.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let count = |reason: Reason| {
            let counts = self
                .counters
                .get(&(reason as u32), 0)
                .context("read COUNTERS")?;
            Ok((reason.name().to_owned(), counts.iter().sum()))
        };
        Reason::ALL.into_iter().map(count).collect()
    }
}

/// The flows of the node.
pub struct Flows {
    pub two_way: HashMap<MapData, FlowKey, Flow>,
    pub half_open: HashMap<MapData, FlowKey, Flow>,
}

impl Flows {
    pub fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            two_way: Map::HashMap(open(pins, "FLOWS")?).try_into()?,
            half_open: Map::LruHashMap(open(pins, "HALF_OPEN")?).try_into()?,
        })
    }
}

fn all<T, C: FromIterator<T>>(
    entries: impl Iterator<Item = Result<T, MapError>>,
) -> Result<C, MapError> {
    entries.collect()
}

/// What a frontend leads to, if the value is the key's own and one that we write.
fn target(key: &FrontendKey, frontend: Frontend) -> Target {
    let target = Target::unpack(frontend.target);
    if frontend.check == key.check() && target.pack() == frontend.target {
        target
    } else {
        NOT_ITS_OWN
    }
}

fn lpm_key(RangeEntry { key, prefix }: RangeEntry) -> LpmKey<RangeKey> {
    LpmKey::new(prefix, key)
}

/// Removing what is not there is no error.
pub(super) fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        result => result,
    }
}

pub(super) fn open(pins: &Pins, name: &str) -> Result<MapData> {
    let layout = TABLES.iter().find(|layout| layout.name == name);
    layout
        .with_context(|| format!("there is no table {name}"))?
        .open(pins)
}

pub(super) fn mapped<T: aya::Pod>(pins: &Pins, name: &str) -> Result<Mapped<T>> {
    Mapped::open(&open(pins, name)?).with_context(|| format!("map {name}"))
}
