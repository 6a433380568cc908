//! Numbered room in an array: which runs of it are free.

use std::collections::{BTreeMap, BTreeSet};

/// The free runs of an array. Takes the smallest run that suffices, and of several the lowest, so
/// that what it does depends on nothing but what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// Length of each free run by its start. Runs never touch.
    by_start: BTreeMap<u32, u32>,
    /// The same runs as (length, start).
    by_length: BTreeSet<(u32, u32)>,
    free: u32,
}

impl Space {
    /// All of `start..end` is free.
    pub fn new(start: u32, end: u32) -> Self {
        let mut space = Self {
            by_start: BTreeMap::new(),
            by_length: BTreeSet::new(),
            free: 0,
        };
        space.insert(start, end - start);
        space
    }

    /// How much is free in all.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Takes a run; `None` where no free one is long enough.
    pub fn take(&mut self, length: u32) -> Option<u32> {
        let (found, start) = *self.by_length.range((length, 0)..).next()?;
        self.remove(start, found);
        self.insert(start + length, found - length);
        Some(start)
    }

    /// Takes this very run; false where not all of it is free.
    pub fn reserve(&mut self, start: u32, length: u32) -> bool {
        let Some((&run, &found)) = self.by_start.range(..=start).next_back() else {
            return false;
        };
        let Some(end) = start.checked_add(length).filter(|end| *end <= run + found) else {
            return false;
        };
        self.remove(run, found);
        self.insert(run, start - run);
        self.insert(end, run + found - end);
        true
    }

    /// Gives a run back, all of which must be taken.
    pub fn give(&mut self, start: u32, length: u32) {
        let mut whole = (start, length);
        if let Some((&before, &found)) = self.by_start.range(..start).next_back() {
            debug_assert!(before + found <= start, "row {start} is free already");
            if before + found == start {
                self.remove(before, found);
                whole = (before, found + length);
            }
        }
        if let Some(&found) = self.by_start.get(&(start + length)) {
            self.remove(start + length, found);
            whole.1 += found;
        }
        self.insert(whole.0, whole.1);
    }

    fn insert(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.by_start.insert(start, length);
            self.by_length.insert((length, start));
            self.free += length;
        }
    }

    fn remove(&mut self, start: u32, length: u32) {
        self.by_start.remove(&start);
        self.by_length.remove(&(length, start));
        self.free -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_smallest_run_that_suffices_is_taken() {
        let mut space = Space::new(1, 20);
        assert_eq!(space.take(4), Some(1));
        assert_eq!(space.take(2), Some(5));
        assert_eq!(space.take(3), Some(7));
        space.give(1, 4);
        space.give(7, 3);
        assert_eq!(space.take(2), Some(1));
        assert_eq!(space.take(11), Some(7));
        assert_eq!(space.free(), 4);
        assert_eq!(space.take(3), None);
    }

    #[test]
    fn runs_that_meet_become_one() {
        let mut space = Space::new(0, 9);
        for start in [0, 3, 6] {
            assert_eq!(space.take(3), Some(start));
        }
        space.give(0, 3);
        space.give(6, 3);
        assert_eq!(space.take(4), None);
        space.give(3, 3);
        assert_eq!(space, Space::new(0, 9));
    }

    #[test]
    fn only_free_room_can_be_reserved() {
        let mut space = Space::new(1, 10);
        assert!(space.reserve(4, 3));
        assert!(!space.reserve(6, 1));
        assert!(!space.reserve(3, 2));
        assert!(!space.reserve(9, 2));
        assert!(!space.reserve(0, 1));
        assert!(!space.reserve(9, u32::MAX));
        assert!(space.reserve(7, 3));
        assert!(space.reserve(1, 3));
        assert_eq!(space.free(), 0);
    }

    proptest! {
        #[test]
        fn no_two_owners_and_nothing_lost(steps in prop::collection::vec((0u32..2, 1u32..6), 1..60)) {
            let mut space = Space::new(1, 32);
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (what, size) in steps {
                if what == 0 && !taken.is_empty() {
                    let (start, length) = taken.remove(size as usize % taken.len());
                    space.give(start, length);
                } else if let Some(start) = space.take(size) {
                    prop_assert!(start >= 1 && start + size <= 32);
                    for (other, length) in &taken {
                        prop_assert!(start + size <= *other || other + length <= start);
                    }
                    taken.push((start, size));
                }
                let sum: u32 = taken.iter().map(|(_, length)| length).sum();
                prop_assert_eq!(space.free(), 31 - sum);
            }
            for (start, length) in taken {
                space.give(start, length);
            }
            prop_assert_eq!(space, Space::new(1, 32));
        }
    }
}
