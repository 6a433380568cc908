//! The slots of pod interfaces: the owners of flows.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::endpoint::MAX_SLOTS;

use crate::plan::Space;

/// Which interface has which slot. A slot that was left is used again only when no flow is left that
/// it owns: whoever takes over a slot must not take over its flows.
#[derive(Debug)]
pub struct Slots {
    of: BTreeMap<u32, u32>,
    free: Space,
    /// Left since the last pass over all flows began.
    left: BTreeSet<u32>,
    /// Left before that.
    leaving: BTreeSet<u32>,
}

impl Slots {
    /// Starts with the slots of interfaces, and with those that only own flows.
    pub fn restore(interfaces: BTreeMap<u32, u32>, owners: &BTreeSet<u32>) -> Self {
        let mut free = Space::new(1, MAX_SLOTS);
        let mut of = interfaces;
        // Two interfaces with one slot cannot be; if they are, the second gets another one.
        of.retain(|_, slot| free.reserve(*slot, 1));
        let left = owners
            .iter()
            .copied()
            .filter(|slot| free.reserve(*slot, 1))
            .collect();
        Self {
            of,
            free,
            left,
            leaving: BTreeSet::new(),
        }
    }

    pub fn of(&self, interface: u32) -> Option<u32> {
        self.of.get(&interface).copied()
    }

    /// Every interface that has a slot.
    pub fn interfaces(&self) -> impl Iterator<Item = u32> {
        self.of.keys().copied()
    }

    /// The slots of all interfaces: nobody else's flows are of any use.
    pub fn in_use(&self) -> BTreeSet<u32> {
        self.of.values().copied().collect()
    }

    /// The interface's slot, or a new one; `None` where there are no more.
    pub fn take(&mut self, interface: u32) -> Option<u32> {
        let Self { of, free, .. } = self;
        if let Some(slot) = of.get(&interface) {
            return Some(*slot);
        }
        let slot = free.take(1)?;
        of.insert(interface, slot);
        Some(slot)
    }

    /// The interface is gone.
    pub fn leave(&mut self, interface: u32) {
        self.left.extend(self.of.remove(&interface));
    }

    /// A pass over all flows, which removed those of slots that are not in use, is over.
    pub fn swept(&mut self) {
        for slot in &self.leaving {
            self.free.give(*slot, 1);
        }
        self.leaving = std::mem::take(&mut self.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_keeps_its_slot() {
        let mut slots = Slots::restore(BTreeMap::from([(7, 3)]), &BTreeSet::new());
        assert_eq!(slots.take(7), Some(3));
        assert_eq!(slots.take(8), Some(1));
        assert_eq!(slots.take(8), Some(1));
        assert_eq!(slots.in_use(), BTreeSet::from([1, 3]));
    }

    #[test]
    fn a_slot_with_flows_is_not_used_again() {
        let mut slots = Slots::restore(BTreeMap::new(), &BTreeSet::from([1, 2]));
        assert_eq!(slots.take(7), Some(3));
        slots.leave(7);
        // The pass that is running may have missed flows made until now.
        slots.swept();
        assert_eq!(slots.take(8), Some(4));
        slots.swept();
        assert_eq!(slots.take(9), Some(1));
        assert_eq!(slots.take(10), Some(2));
        assert_eq!(slots.take(11), Some(3));
    }

    #[test]
    fn slots_run_out() {
        let mut slots = Slots::restore(BTreeMap::new(), &BTreeSet::new());
        for interface in 1..MAX_SLOTS {
            assert_eq!(slots.take(interface), Some(interface));
        }
        assert_eq!(slots.take(MAX_SLOTS), None);
    }
}
