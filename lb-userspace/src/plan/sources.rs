//! Which writes, in which order, let pods send from what they may.
//!
//! `POD_SOURCES` is read only where a slot's guard says so: what is allowed is there before the guard
//! says so, and the guard says no more so before the last of it is gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::compile::Range;

/// What the pod of each slot may send from; no slot has none.
pub type SlotSources = BTreeMap<u32, BTreeSet<Range>>;

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Inserts an entry of `POD_SOURCES`.
    Source { slot: u32, range: Range },
    /// Says in `GUARDS` whether there are any.
    More { slot: u32, more: bool },
    /// Removes an entry of `POD_SOURCES`, if it is there.
    NoSource { slot: u32, range: Range },
}

/// The writes for all that differs.
pub fn plan(actual: &SlotSources, desired: &SlotSources) -> Vec<Op> {
    let gained = missing(actual, desired);
    let gained = gained.map(|(slot, range)| Op::Source { slot, range });
    let more = |from: &SlotSources, to: &SlotSources, more| {
        let slots = to.keys().filter(|slot| !from.contains_key(slot)).copied();
        slots
            .map(|slot| Op::More { slot, more })
            .collect::<Vec<_>>()
    };
    let lost = missing(desired, actual);
    let lost = lost.map(|(slot, range)| Op::NoSource { slot, range });
    gained
        .chain(more(actual, desired, true))
        .chain(more(desired, actual, false))
        .chain(lost)
        .collect()
}

/// What `to` has and `from` has not.
fn missing<'a>(
    from: &'a SlotSources,
    to: &'a SlotSources,
) -> impl Iterator<Item = (u32, Range)> + 'a {
    let all = to.iter();
    let all = all.flat_map(|(slot, ranges)| ranges.iter().map(move |range| (*slot, *range)));
    all.filter(|(slot, range)| from.get(slot).is_none_or(|known| !known.contains(range)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(last: u8) -> Range {
        Range::host([10, 9, 0, last].into())
    }

    fn sources<const N: usize>(slots: [(u32, &[u8]); N]) -> SlotSources {
        let ranges = |last: &[u8]| last.iter().copied().map(range).collect();
        slots.map(|(slot, last)| (slot, ranges(last))).into()
    }

    #[test]
    fn the_first_source_is_written_before_it_counts_and_the_last_counts_no_more_before_it_goes() {
        let source = |slot, last| Op::Source {
            slot,
            range: range(last),
        };
        let no_source = |slot, last| Op::NoSource {
            slot,
            range: range(last),
        };
        let more = |slot, more| Op::More { slot, more };
        for (actual, desired, expected) in [
            (sources([]), sources([]), vec![]),
            (
                sources([]),
                sources([(3, &[1, 2])]),
                vec![source(3, 1), source(3, 2), more(3, true)],
            ),
            (
                sources([(3, &[1, 2])]),
                sources([(3, &[2, 4])]),
                vec![source(3, 4), no_source(3, 1)],
            ),
            (
                sources([(3, &[1])]),
                sources([(4, &[1])]),
                vec![source(4, 1), more(4, true), more(3, false), no_source(3, 1)],
            ),
        ] {
            assert_eq!(plan(&actual, &desired), expected);
        }
    }
}
