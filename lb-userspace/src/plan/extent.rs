//! The extents of services: what is written where when a service changes.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    address::UNSPECIFIED,
    service::{ANY_SOURCE, Backend, Extent, FrontendKey, Target},
};

use super::{Allocations, Draft, Full, Op, RangeEntry, index, record};
use crate::compile::{BackendKey, Choice, Port, Ranges};

impl Allocations {
    /// Sees to it that the port has a service whose extent says what is desired.
    pub(super) fn plan_port(
        &mut self,
        index: Option<u32>,
        port: &Port,
        draft: &mut Draft,
    ) -> Result<u32, Full> {
        if !self.room_for(port.frontends.iter().map(|(key, _)| key)) {
            return Err(Full::Frontends);
        }
        if let Some(index) = index.filter(|index| self.says(*index, port)) {
            return Ok(index);
        }
        let Choice {
            ranges, backends, ..
        } = &port.choice;
        let before = index.map(|index| self.backends(index)).unwrap_or_default();
        let births = backends
            .all()
            .filter(|key| !before.contains_key(key))
            .count();
        if births > self.ids.free() as usize {
            return Err(Full::Live);
        }
        if !self.room_for_set(ranges) {
            return Err(Full::SourceRanges);
        }
        let length = 1 + backends.all().count() as u32;
        let first = self.rows.take(length).ok_or(Full::Backends)?;
        let Some(service) = index.or_else(|| self.indices.take(1)) else {
            self.rows.give(first, length);
            return Err(Full::Services);
        };
        self.write_extent(service, first, port, before, draft);
        Ok(service)
    }

    /// Writes a new extent and moves the service to it.
    fn write_extent(
        &mut self,
        service: u32,
        first: u32,
        port: &Port,
        mut before: BTreeMap<BackendKey, Backend>,
        draft: &mut Draft,
    ) {
        let set = self.set_of(&port.choice.ranges, draft);
        self.sets.join(set);
        self.leave_set(service);
        draft.extents.extend(self.extent(service));
        let mut rows = vec![header(service, port, set)];
        for key in port.choice.backends.all() {
            rows.push(before.remove(key).unwrap_or_else(|| self.bear(*key, draft)));
        }
        draft.dead.extend(before.values().map(|row| row.id));
        for (row, backend) in (first..).zip(rows) {
            self.found.rows.remove(&row);
            record(&mut self.tables, &mut draft.rows, Op::Row { row, backend });
        }
        let in_force = self.tables.services.get(&service);
        let revision = in_force.map_or(0, |extent| extent.revision).wrapping_add(1);
        let extent = Extent { first, revision };
        record(
            &mut self.tables,
            &mut draft.flips,
            Op::Service { service, extent },
        );
    }

    /// A backend with an id of its own, which no flow has met with this generation.
    fn bear(&mut self, key: BackendKey, draft: &mut Draft) -> Backend {
        let id = self.ids.take(1).expect("there was room for all births");
        let generation = self.tables.generation(id).wrapping_add(1) | 1;
        record(
            &mut self.tables,
            &mut draft.births,
            Op::Live { id, generation },
        );
        Backend::new(key.address, key.port, id, generation)
    }

    fn room_for_set(&self, ranges: &Ranges) -> bool {
        self.sets.find(ranges).is_some()
            || self.tables.ranges.len() + ranges.len() <= self.sizes.ranges
    }

    /// The set that holds these ranges, written if it is not there.
    fn set_of(&mut self, ranges: &Ranges, draft: &mut Draft) -> u32 {
        if ranges.is_empty() {
            return ANY_SOURCE;
        }
        if let Some(set) = self.sets.find(ranges) {
            return set;
        }
        let set = self.sets.create(ranges.clone());
        let set = set.expect("there are as many ids as entries");
        for &range in ranges {
            let entry = RangeEntry::new(set, range);
            self.found.ranges.remove(&entry);
            record(
                &mut self.tables,
                &mut draft.ranges,
                Op::SourceRange { entry },
            );
        }
        set
    }

    /// The header in force no longer names its set.
    pub(super) fn leave_set(&mut self, service: u32) {
        if let Some((header, _)) = self.tables.extent(service) {
            self.sets.leave(header.ranges);
        }
    }

    /// Whether the extent in force says what is desired.
    fn says(&self, service: u32, port: &Port) -> bool {
        let Some((written, _)) = self.tables.extent(service) else {
            return false;
        };
        *written == header(service, port, written.ranges)
            && self.tables.resolve(service).as_ref() == Some(&port.choice)
    }

    /// The rows of the extent in force.
    pub(super) fn backends(&self, service: u32) -> BTreeMap<BackendKey, Backend> {
        let rows = self.tables.extent(service).map(|(_, rows)| rows);
        rows.unwrap_or_default()
            .into_iter()
            .map(|row| (BackendKey::from(&row), row))
            .collect()
    }

    /// First row and length of the extent in force.
    pub(super) fn extent(&self, service: u32) -> Option<(u32, u32)> {
        let (_, rows) = self.tables.extent(service)?;
        let first = self.tables.services.get(&service)?.first;
        Some((first, 1 + rows.len() as u32))
    }

    /// Those of the frontends that the tables lead to this service, as they are.
    pub(super) fn leading_to<'a>(
        &self,
        service: u32,
        frontends: impl Iterator<Item = &'a FrontendKey>,
    ) -> BTreeMap<FrontendKey, Target> {
        let frontends: BTreeSet<_> = frontends.copied().collect();
        let found = frontends
            .into_iter()
            .filter_map(|key| Some((key, *self.tables.frontends.get(&key)?)));
        found
            .filter(|(_, target)| index(*target) == Some(service))
            .collect()
    }
}

/// The header of the extent that says what is desired.
fn header(service: u32, port: &Port, set: u32) -> Backend {
    let Choice {
        internal_local,
        external_local,
        affinity,
        ranges: _,
        backends,
    } = &port.choice;
    let unspecified = FrontendKey::whole_address(UNSPECIFIED);
    let frontend = port.frontends.first().map_or(&unspecified, |(key, _)| key);
    Backend {
        count: backends.chosen().count() as u32,
        local: backends.local_list().count() as u32,
        only_local: backends.only_local.len() as u32,
        draining: backends.draining.len() as u32,
        affinity: *affinity,
        ranges: set,
        internal_local: u8::from(*internal_local),
        external_local: u8::from(*external_local),
        any: u8::from(backends.any),
        ..Backend::header(frontend, service)
    }
}
