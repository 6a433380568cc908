//! Session affinity: a client keeps its backend, whichever of the service's frontends it dials.

use crate::{
    address::Address,
    service::{Affinity, AffinityKey, Backend, MAX_BACKENDS, Window},
    tables::Tables,
};

const SECOND: u64 = 1_000_000_000;

/// Looks that find any row of a group: it halves with each.
const LOOKS: u32 = MAX_BACKENDS.ilog2() + 1;

/// Where the backend that a client had is sought.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Row of the extent's header.
    first: u32,
    list: Window,
    /// Each of the three groups is in order of address and port; a list is two of them, of which the
    /// second begins here.
    middle: u32,
    /// Seconds for which a client keeps its backend.
    time: u32,
}

impl Rows {
    /// Those of a list of the extent whose header is `header`, at row `first`.
    #[inline(always)]
    pub fn new(first: u32, header: &Backend, list: Window) -> Self {
        Self {
            first,
            list,
            middle: if list.first == 0 {
                header.only_local.min(list.count)
            } else {
                header.local
            },
            time: header.affinity,
        }
    }
}

/// The row, counted as in [`Window`], of the backend that the client had, as long as its time is not
/// over and the backend is in the list.
#[inline(never)]
pub fn recall<T: Tables>(tables: &T, session: &AffinityKey, rows: &Rows, now: u64) -> Option<u32> {
    let had = tables.affinity(session)?;
    if now.saturating_sub(had.last_opened) > u64::from(rows.time) * SECOND {
        return None;
    }
    let Rows {
        first,
        list,
        middle,
        ..
    } = *rows;
    let end = list.first + list.count;
    let wanted = rank(&had.address, had.port);
    tables
        .search(first, (list.first, middle), wanted)
        .or_else(|| tables.search(first, (middle, end), wanted))
}

/// Notes where the client's new connection goes.
#[inline(never)]
pub fn remember<T: Tables>(
    tables: &T,
    session: &AffinityKey,
    address: &Address,
    port: u16,
    now: u64,
) {
    let affinity = Affinity::new(*address, port, now);
    tables.set_affinity(session, &affinity);
}

/// Finds a backend among rows that are in order: those from `low` to before `high`, counted as in
/// [`Window`] of the extent at row `first`.
#[inline(always)]
pub fn search<T: Tables>(
    tables: &T,
    first: u32,
    (mut low, mut high): (u32, u32),
    wanted: Rank,
) -> Option<u32> {
    for _ in 0..LOOKS {
        if low >= high {
            return None;
        }
        let middle = low + (high - low) / 2;
        let row = tables.backend(first + 1 + middle)?;
        let found = rank(&row.address, row.port);
        if found == wanted {
            return Some(middle);
        }
        if found < wanted {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    None
}

/// What rows are ordered by: address and port, in numbers that compare as they do.
pub type Rank = (u64, u64, u16);

#[inline(always)]
fn rank(address: &Address, port: u16) -> Rank {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.bytes;
    (
        u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        u64::from_be_bytes([i, j, k, l, m, n, o, p]),
        port,
    )
}
