//! The tables that the agent fills from the world, held in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use lb_common::{
    address::{Address, UNSPECIFIED},
    service::{ANY_SOURCE, Backend, Cidr, Extent, FrontendKey, RangeKey, Target, is_live},
};

use crate::compile::{BackendKey, Backends, Choice, Range, Ranges};

/// One write to one table, or the wait between writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Stores `LIVE[id]`: a birth where odd, a death where even.
    Live { id: u32, generation: u32 },
    /// Stores a row of `BACKENDS` that no extent in force holds.
    Row { row: u32, backend: Backend },
    /// Stores `SERVICES[service]`: all its frontends move at once.
    Service { service: u32, extent: Extent },
    /// Inserts or replaces a frontend.
    Frontend { key: FrontendKey, target: Target },
    /// Removes a frontend, if it is there.
    NoFrontend { key: FrontendKey },
    /// Inserts into `SOURCE_RANGES`, into a set that no header in force names.
    SourceRange { entry: RangeEntry },
    /// Removes from `SOURCE_RANGES`, if it is there.
    NoSourceRange { entry: RangeEntry },
    /// Stores `CIDRS[place]`: a network where the place was free, or frees it.
    Cidr { place: u32, cidr: Cidr },
    /// Waits until no program holds anything that it read before.
    Barrier,
}

/// An entry of `SOURCE_RANGES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeEntry {
    pub key: RangeKey,
    /// How many leading bits of the key count, those of the set's id among them.
    pub prefix: u32,
}

impl RangeEntry {
    pub fn new(set: u32, range: Range) -> Self {
        let Range { address, bits } = range;
        Self {
            key: RangeKey { set, address },
            prefix: RangeKey::SET_BITS + u32::from(bits),
        }
    }

    /// The range that the entry stands for in its set; `None` where it is in no single set.
    pub fn range(&self) -> Option<Range> {
        let bits = self.prefix.checked_sub(RangeKey::SET_BITS)?;
        Some(Range {
            address: self.key.address,
            bits: u8::try_from(bits).ok()?,
        })
    }

    /// Everything that an entry of the set can be.
    fn all_of(set: u32) -> RangeInclusive<Self> {
        let entry = |address, prefix| Self {
            key: RangeKey { set, address },
            prefix,
        };
        let last = Address { bytes: [0xff; 16] };
        entry(UNSPECIFIED, 0)..=entry(last, u32::MAX)
    }
}

/// What the tables hold that the agent fills from the world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTables {
    /// `FRONTENDS`.
    pub frontends: BTreeMap<FrontendKey, Target>,
    /// `SERVICES` that exist.
    pub services: BTreeMap<u32, Extent>,
    /// Rows of `BACKENDS` that are not free.
    pub rows: BTreeMap<u32, Backend>,
    /// Generations in `LIVE` that are not 0.
    pub live: BTreeMap<u32, u32>,
    /// `SOURCE_RANGES`.
    pub ranges: BTreeSet<RangeEntry>,
    /// Places of `CIDRS` that are not free.
    pub cidrs: BTreeMap<u32, Cidr>,
}

impl ServiceTables {
    /// Does to these tables what the kernel's writer does to the kernel's.
    pub fn apply(&mut self, op: &Op) {
        match *op {
            Op::Live { id, generation } => store(&mut self.live, id, generation, 0),
            Op::Row { row, backend } => store(&mut self.rows, row, backend, Backend::FREE),
            Op::Service { service, extent } if extent.first == 0 => {
                self.services.remove(&service);
            }
            Op::Service { service, extent } => {
                self.services.insert(service, extent);
            }
            Op::Frontend { key, target } => {
                self.frontends.insert(key, target);
            }
            Op::NoFrontend { key } => {
                self.frontends.remove(&key);
            }
            Op::SourceRange { entry } => {
                self.ranges.insert(entry);
            }
            Op::NoSourceRange { entry } => {
                self.ranges.remove(&entry);
            }
            Op::Cidr { place, cidr } => store(&mut self.cidrs, place, cidr, Cidr::FREE),
            Op::Barrier => {}
        }
    }

    /// The header of the service's extent and the rows behind it; `None` where the service does not
    /// exist or its extent is not whole.
    pub fn extent(&self, service: u32) -> Option<(&Backend, Vec<Backend>)> {
        let first = self.services.get(&service)?.first;
        let header = self.rows.get(&first)?;
        let end = first
            .checked_add(header.count)?
            .checked_add(header.draining)?;
        let rows: Vec<_> = self
            .rows
            .range(first..=end)
            .skip(1)
            .map(|(_, row)| *row)
            .collect();
        let Backend {
            only_local,
            local,
            count,
            ranges,
            ..
        } = *header;
        let whole = rows.len() == (end - first) as usize
            && rows
                .iter()
                .all(|row| is_live(row.generation) && self.generation(row.id) == row.generation)
            && only_local <= local
            && local <= count
            && (ranges == ANY_SOURCE || self.ranges.range(RangeEntry::all_of(ranges)).count() > 0);
        whole.then_some((header, rows))
    }

    /// How new flows to the service choose, and what its old ones may keep.
    pub fn resolve(&self, service: u32) -> Option<Choice> {
        let (header, rows) = self.extent(service)?;
        let keys = |rows: &[Backend]| rows.iter().map(BackendKey::from).collect();
        let [only_local, local, count] =
            [header.only_local, header.local, header.count].map(|end| end as usize);
        Some(Choice {
            internal_local: header.internal_local != 0,
            external_local: header.external_local != 0,
            affinity: header.affinity,
            ranges: self.source_ranges(header.ranges),
            backends: Backends {
                only_local: keys(&rows[..only_local]),
                both: keys(&rows[only_local..local]),
                only_cluster: keys(&rows[local..count]),
                draining: keys(&rows[count..]),
                any: header.any != 0,
            },
        })
    }

    /// The ranges of a set.
    pub fn source_ranges(&self, set: u32) -> Ranges {
        self.ranges
            .range(RangeEntry::all_of(set))
            .filter_map(RangeEntry::range)
            .collect()
    }

    /// `LIVE[id]`.
    pub fn generation(&self, id: u32) -> u32 {
        self.live.get(&id).copied().unwrap_or_default()
    }

    /// What makes `actual` equal to these tables, referents first.
    pub fn repair(&self, actual: &Self) -> Vec<Op> {
        let live = differing(&self.live, &actual.live).map(|(id, generation)| Op::Live {
            id,
            generation: generation.unwrap_or(0),
        });
        let missing = self.ranges.difference(&actual.ranges);
        let ranges = missing.map(|&entry| Op::SourceRange { entry });
        let rows = differing(&self.rows, &actual.rows).map(|(row, backend)| Op::Row {
            row,
            backend: backend.unwrap_or(Backend::FREE),
        });
        let services =
            differing(&self.services, &actual.services).map(|(service, extent)| Op::Service {
                service,
                extent: extent.unwrap_or_default(),
            });
        let frontends =
            differing(&self.frontends, &actual.frontends).map(|(key, target)| match target {
                Some(target) => Op::Frontend { key, target },
                None => Op::NoFrontend { key },
            });
        let cidrs = differing(&self.cidrs, &actual.cidrs).map(|(place, cidr)| Op::Cidr {
            place,
            cidr: cidr.unwrap_or(Cidr::FREE),
        });
        let strange = actual.ranges.difference(&self.ranges);
        let strange = strange.map(|&entry| Op::NoSourceRange { entry });
        live.chain(ranges)
            .chain(rows)
            .chain(services)
            .chain(frontends)
            .chain(cidrs)
            .chain(strange)
            .collect()
    }
}

/// The service that a frontend leads to.
pub fn index(target: Target) -> Option<u32> {
    match target {
        Target::Service { index, .. } => Some(index),
        Target::Undefined | Target::NodeAddress { .. } => None,
    }
}

fn store<V: PartialEq>(table: &mut BTreeMap<u32, V>, index: u32, value: V, absent: V) {
    if value == absent {
        table.remove(&index);
    } else {
        table.insert(index, value);
    }
}

/// The keys whose values differ, with the value they should have.
fn differing<'a, K: Ord + Copy, V: PartialEq + Copy>(
    wanted: &'a BTreeMap<K, V>,
    actual: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (K, Option<V>)> + use<'a, K, V> {
    let keys: BTreeSet<K> = wanted.keys().chain(actual.keys()).copied().collect();
    keys.into_iter()
        .filter(|key| wanted.get(key) != actual.get(key))
        .map(|key| (key, wanted.get(&key).copied()))
}
