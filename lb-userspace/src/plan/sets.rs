//! The sets of source ranges: which are written, and who uses them.

use std::collections::{BTreeMap, BTreeSet};

use super::Space;
use crate::compile::Ranges;

/// The sets of `SOURCE_RANGES`. A set never changes: other ranges are another set, so that a header
/// means the same as long as it is in force. Services with the same ranges share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sets {
    by_id: BTreeMap<u32, Set>,
    /// The set to join for these ranges.
    by_ranges: BTreeMap<Ranges, u32>,
    /// Sets that are written and that no header names.
    unused: BTreeSet<u32>,
    ids: Space,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    ranges: Ranges,
    /// Headers in force that name it.
    users: u32,
}

impl Sets {
    /// No sets; ids are below `end`.
    pub fn new(end: u32) -> Self {
        Self {
            by_id: BTreeMap::new(),
            by_ranges: BTreeMap::new(),
            unused: BTreeSet::new(),
            ids: Space::new(1, end),
        }
    }

    /// Takes over a set that was found; false where its id is none of ours.
    pub fn restore(&mut self, id: u32, ranges: Ranges) -> bool {
        if !self.ids.reserve(id, 1) {
            return false;
        }
        self.add(id, ranges);
        true
    }

    pub fn contains(&self, id: u32) -> bool {
        self.by_id.contains_key(&id)
    }

    /// The set that holds these ranges, if one is written.
    pub fn find(&self, ranges: &Ranges) -> Option<u32> {
        self.by_ranges.get(ranges).copied()
    }

    /// A new set, to be written; `None` where there is no id left.
    pub fn create(&mut self, ranges: Ranges) -> Option<u32> {
        let id = self.ids.take(1)?;
        self.add(id, ranges);
        Some(id)
    }

    fn add(&mut self, id: u32, ranges: Ranges) {
        self.by_ranges.entry(ranges.clone()).or_insert(id);
        self.by_id.insert(id, Set { ranges, users: 0 });
        self.unused.insert(id);
    }

    /// A header names the set.
    pub fn join(&mut self, id: u32) {
        if let Some(set) = self.by_id.get_mut(&id) {
            set.users += 1;
            self.unused.remove(&id);
        }
    }

    /// A header that named the set is no longer in force.
    pub fn leave(&mut self, id: u32) {
        if let Some(set) = self.by_id.get_mut(&id) {
            set.users -= 1;
            if set.users == 0 {
                self.unused.insert(id);
            }
        }
    }

    /// Forgets the sets that no header names: their ids are free.
    pub fn sweep(&mut self) -> Vec<(u32, Ranges)> {
        let unused = std::mem::take(&mut self.unused);
        let mut swept = Vec::new();
        for id in unused {
            let Some(Set { ranges, .. }) = self.by_id.remove(&id) else {
                continue;
            };
            if self.by_ranges.get(&ranges) == Some(&id) {
                self.by_ranges.remove(&ranges);
            }
            self.ids.give(id, 1);
            swept.push((id, ranges));
        }
        swept
    }
}
