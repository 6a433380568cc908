//! What an earlier agent left in the tables, and whose it is.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::service::{ANY_SOURCE, Extent, FrontendKey, NO_SERVICE, Target, is_live};

use super::{Allocations, RangeEntry, ServiceTables, Sets, Sizes, Space, index};
use crate::compile::Port;

/// Entries of the tables that nobody has claimed yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub services: BTreeSet<u32>,
    pub frontends: BTreeSet<FrontendKey>,
    /// Living backends that are in no extent.
    pub ids: BTreeSet<u32>,
    /// Rows that are in no extent.
    pub rows: BTreeSet<u32>,
    /// Source ranges that are in no set of ours.
    pub ranges: BTreeSet<RangeEntry>,
}

impl Allocations {
    /// Starts from what the tables hold. What of it belongs to which service is found out by the
    /// first plan, which must be given every service: whatever it does not claim goes. What belongs
    /// to the node stays until a plan is given the node.
    pub fn restore(tables: ServiceTables, sizes: Sizes) -> Self {
        let (addresses, frontends): (BTreeMap<_, _>, BTreeMap<_, _>) = tables
            .frontends
            .clone()
            .into_iter()
            .partition(is_node_address);
        let mut all = Self {
            services: BTreeMap::new(),
            owners: BTreeMap::new(),
            addresses,
            found: Found {
                frontends: frontends.into_keys().collect(),
                rows: tables.rows.keys().copied().collect(),
                ranges: tables.ranges.clone(),
                ..Found::default()
            },
            sizes,
            indices: Space::new(1, sizes.services),
            rows: Space::new(1, sizes.rows),
            ids: Space::new(1, sizes.ids),
            sets: Sets::new(1 + sizes.ranges as u32),
            tables,
        };
        all.restore_ids();
        all.restore_sets();
        all.tables.services.remove(&NO_SERVICE);
        for (service, extent) in all.tables.services.clone() {
            all.found.services.insert(service);
            all.indices.reserve(service, 1);
            if !all.restore_extent(service, extent.first) {
                let broken = Extent { first: 0, ..extent };
                all.tables.services.insert(service, broken);
            }
        }
        all
    }

    fn restore_ids(&mut self) {
        for (id, generation) in &self.tables.live {
            if is_live(*generation) && self.ids.reserve(*id, 1) {
                self.found.ids.insert(*id);
            }
        }
    }

    fn restore_sets(&mut self) {
        let ids: BTreeSet<u32> = self
            .found
            .ranges
            .iter()
            .map(|entry| entry.key.set)
            .collect();
        for id in ids.into_iter().filter(|id| *id != ANY_SOURCE) {
            let ranges = self.tables.source_ranges(id);
            if !ranges.is_empty() && self.sets.restore(id, ranges.clone()) {
                for range in ranges {
                    self.found.ranges.remove(&RangeEntry::new(id, range));
                }
            }
        }
    }

    /// Takes over the extent of a service; false where it is broken or not the service's own.
    fn restore_extent(&mut self, service: u32, first: u32) -> bool {
        let Some((header, rows)) = self.tables.extent(service) else {
            return false;
        };
        let set = header.ranges;
        let ids: BTreeSet<u32> = rows.iter().map(|row| row.id).collect();
        let own = ids.len() == rows.len()
            && ids.is_subset(&self.found.ids)
            && (set == ANY_SOURCE || self.sets.contains(set));
        if !own || !self.rows.reserve(first, 1 + rows.len() as u32) {
            return false;
        }
        for id in ids {
            self.found.ids.remove(&id);
        }
        for row in first..=first + rows.len() as u32 {
            self.found.rows.remove(&row);
        }
        self.sets.join(set);
        true
    }

    /// The service that the tables held for this port when we started.
    pub(super) fn claim(&mut self, port: &Port) -> Option<u32> {
        let (found, tables) = (&mut self.found.services, &self.tables.frontends);
        let frontends = port.frontends.iter();
        let mut known = frontends.filter_map(|(key, _)| index(*tables.get(key)?));
        known.find(|index| found.remove(index))
    }
}

fn is_node_address((key, target): &(FrontendKey, Target)) -> bool {
    matches!(target, Target::NodeAddress { .. }) && *key == FrontendKey::whole_address(key.address)
}
