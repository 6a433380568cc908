//! Following flows: finding, opening, promoting and forgetting them.
//!
//! Entries are made and removed on several CPUs at once, without a lock:
//! - two CPUs open one flow: the reply's entry is inserted first, then the opener's, neither over
//!   another; who loses takes its own reply entry back and goes the winner's way;
//! - a reply entry is already another flow's: [`Recorded::Taken`], and the caller tries another
//!   backend or port, unless that flow is over and the caller has inserted its key among the
//!   half-open ones, which one CPU alone can;
//! - a flow is promoted while another CPU looks for it, or whether its reply key is taken: promotion
//!   inserts into `FLOWS` before it removes from `HALF_OPEN`, and whoever has not found it in
//!   `HALF_OPEN` looks into `FLOWS` after that;
//! - a flow is recycled while it expires: [`crate::expiry`] looks again before it removes;
//! - the memory of an entry is recycled while it is read: [`FlowKey::check`].

use crate::{
    flow::{Direction, FlowKey, Tuple},
    headers::{ACK, FIN, Kind, RST, SYN, shakes_hands},
    reason::Reason,
    scratch::Scratch,
    service::{FrontendKey, NO_BACKEND},
    tables::{FlowTable, NotInserted, Note, Tables},
};

/// How often a flow's entries are refreshed, in nanoseconds.
const REFRESH: u64 = 1_000_000_000;

/// Copies the flow of `scratch.key`, one look-up where it is two-way; returns where it is kept.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, scratch: &mut Scratch) -> Option<FlowTable> {
    let Scratch { key, flow, .. } = scratch;
    let check = key.check();
    // The last look finds what was promoted between the first two.
    [FlowTable::Flows, FlowTable::HalfOpen, FlowTable::Flows]
        .into_iter()
        .find(|table| {
            tables.look(*table, key, |found| *flow = *found).is_some() && flow.check == check
        })
}

/// Whether a packet begins a new flow in the place of the one it was found to belong to: the old
/// one is over, or its backend is gone, or a service has appeared where none was.
#[inline(always)]
pub fn starts_afresh<T: Tables>(tables: &T, scratch: &Scratch, table: FlowTable) -> bool {
    let Scratch {
        key,
        flow,
        headers,
        now,
        ..
    } = scratch;
    if !headers.opens() {
        return false;
    }
    if flow.over(table, key.protocol, *now) {
        return true;
    }
    if flow.opener == 0 {
        return false;
    }
    if flow.backend != NO_BACKEND {
        return tables.generation(flow.backend) != flow.generation;
    }
    flow.answered == 0
        && headers.kind == Kind::Transport
        && key.direction == Direction::FromPod as u8
        && tables
            .frontend(&FrontendKey::whole_address(key.tuple.destination))
            .is_some()
}

/// Follows the flow's state. An error is the reason to drop the packet.
#[inline(always)]
pub fn advance<T: Tables>(
    tables: &T,
    scratch: &mut Scratch,
    table: FlowTable,
) -> Result<(), Reason> {
    let Scratch {
        flow, headers, now, ..
    } = scratch;
    let closes =
        headers.flags & FIN != 0 && flow.fin == 0 || headers.flags & RST != 0 && flow.reset == 0;
    let quiet = now.saturating_sub(flow.last_seen) < REFRESH;
    if table == FlowTable::Flows && quiet && !closes {
        return Ok(());
    }
    advance_unsettled(tables, scratch, table)
}

#[inline(never)]
fn advance_unsettled<T: Tables>(
    tables: &T,
    scratch: &mut Scratch,
    table: FlowTable,
) -> Result<(), Reason> {
    let (flags, now) = (scratch.headers.flags, scratch.now);
    scratch.reflect();
    let lasts = now.saturating_sub(scratch.flow.last_seen) >= REFRESH;
    if lasts {
        refresh(tables, scratch, table);
    }
    let both = |note| {
        tables.note(table, &scratch.key, note);
        tables.note(table, &scratch.twin_key, note);
    };
    if flags & RST != 0 {
        both(Note::Reset);
        return Ok(());
    }
    if flags & FIN != 0 {
        tables.note(table, &scratch.key, Note::Fin);
        tables.note(table, &scratch.twin_key, Note::TwinFin);
    }
    if table == FlowTable::Flows {
        return Ok(());
    }
    let flow = &scratch.flow;
    let opener = flow.opener == 1;
    // A handshake is complete when the opener has seen the answer. Where there is none, a question
    // and its answer may be all there is: what goes on after them is two-way.
    let goes_on = if shakes_hands(scratch.key.protocol) {
        opener && flags & (SYN | ACK) == ACK
    } else {
        opener || lasts
    };
    if flow.answered == 1 && goes_on {
        let promoted = promote(tables, scratch);
        // What has no connections goes on without an entry that lasts.
        return if shakes_hands(scratch.key.protocol) {
            promoted
        } else {
            Ok(())
        };
    }
    if !opener && flow.answered == 0 {
        both(Note::Answered);
    }
    Ok(())
}

/// Notes for both entries that policy allows the flow as of this epoch.
#[inline(always)]
pub fn allow<T: Tables>(tables: &T, scratch: &mut Scratch, epoch: u32) {
    scratch.flow.epoch = epoch;
    scratch.reflect();
    tables.note(scratch.table, &scratch.key, Note::Judged(epoch));
    tables.note(scratch.table, &scratch.twin_key, Note::Judged(epoch));
}

/// Notes that a packet has passed, for both entries; a twin that is gone is made again.
#[inline(always)]
fn refresh<T: Tables>(tables: &T, scratch: &mut Scratch, table: FlowTable) {
    let now = scratch.now;
    tables.note(table, &scratch.key, Note::Seen(now));
    if !tables.note(table, &scratch.twin_key, Note::Seen(now)) {
        scratch.twin.last_seen = now;
        // Where there is no room, the next second tries again.
        let _ = tables.insert(table, &scratch.twin_key, &scratch.twin);
    }
}

/// Moves a flow among the two-way ones.
#[inline(always)]
fn promote<T: Tables>(tables: &T, scratch: &mut Scratch) -> Result<(), Reason> {
    let Scratch {
        key,
        flow,
        twin_key,
        twin,
        now,
        ..
    } = scratch;
    (flow.answered, flow.last_seen) = (1, *now);
    (twin.answered, twin.last_seen) = (1, *now);
    if tables.insert(FlowTable::Flows, twin_key, twin) == Err(NotInserted::Full) {
        return Err(Reason::FlowTableFull);
    }
    if tables.insert(FlowTable::Flows, key, flow) == Err(NotInserted::Full) {
        tables.remove(FlowTable::Flows, twin_key);
        return Err(Reason::FlowTableFull);
    }
    tables.remove(FlowTable::HalfOpen, key);
    tables.remove(FlowTable::HalfOpen, twin_key);
    Ok(())
}

/// Removes both entries of the flow.
#[inline(never)]
pub fn forget<T: Tables>(tables: &T, scratch: &mut Scratch, table: FlowTable) {
    scratch.reflect();
    tables.remove(table, &scratch.key);
    remove_twin(tables, table, &scratch.twin_key, &scratch.key.tuple);
}

/// What came of recording a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// The flow goes the way `scratch.flow` says: as asked, or as the CPU that was faster decided.
    Yes,
    /// The reply's key belongs to another flow.
    Taken,
    /// No room.
    Full,
}

/// Whose reply key a new flow may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody's, or that of a flow that its ends have forgotten: it is silent for too long, or reset.
    Unused,
    /// That of a connection that both ends have closed, too. They remember it for a while (RFC 9293,
    /// 3.6.1), and a backend that does takes no other from the same port.
    Closed,
}

/// Records the new flow that the packet of `scratch.key` opens: `scratch.flow`, of which the
/// caller has decided where it goes.
#[inline(never)]
pub fn record<T: Tables>(tables: &T, scratch: &mut Scratch, claim: Claim) -> Recorded {
    let now = scratch.now;
    let flow = &mut scratch.flow;
    flow.last_seen = now;
    flow.check = scratch.key.check();
    flow.opener = 1;
    (flow.answered, flow.fin, flow.twin_fin, flow.reset) = (0, 0, 0, 0);
    scratch.reflect();
    let inserted = match tables.insert(FlowTable::HalfOpen, &scratch.twin_key, &scratch.twin) {
        Ok(()) => true,
        Err(NotInserted::Exists) => false,
        Err(NotInserted::Full) => return Recorded::Full,
    };
    if taken(tables, scratch, claim, inserted) {
        if inserted {
            tables.remove(FlowTable::HalfOpen, &scratch.twin_key);
        }
        return Recorded::Taken;
    }
    match tables.insert(FlowTable::HalfOpen, &scratch.key, &scratch.flow) {
        Ok(()) => Recorded::Yes,
        Err(NotInserted::Full) => Recorded::Full,
        Err(NotInserted::Exists) => {
            adopt(tables, scratch, inserted);
            Recorded::Yes
        }
    }
}

/// Goes the way of the flow that another CPU has recorded for the same key.
#[inline(always)]
fn adopt<T: Tables>(tables: &T, scratch: &mut Scratch, inserted: bool) {
    if find(tables, scratch).is_none() {
        // Evicted between two looks; this packet goes its own way, the next one opens anew.
        scratch.flow = scratch.twin;
        scratch.flow.to.reverse(&scratch.twin_key.tuple);
    }
    if inserted && !scratch.flow.to.opposes(&scratch.twin_key.tuple) {
        tables.remove(FlowTable::HalfOpen, &scratch.twin_key);
    }
}

/// Whether the reply's key belongs to another flow. One that the `claim` is to gives its key up: to the
/// caller, where it has `inserted` the key among the half-open flows, which keeps everybody else from
/// it, and otherwise to whoever asks next.
#[inline(always)]
fn taken<T: Tables>(tables: &T, scratch: &Scratch, claim: Claim, inserted: bool) -> bool {
    let Scratch {
        twin_key: key,
        twin,
        now,
        ..
    } = scratch;
    for table in [FlowTable::Flows, FlowTable::HalfOpen] {
        let mut opener = *key;
        let other = tables.look(table, key, |flow| {
            opener.tuple.reverse(&flow.to);
            opener.direction = flow.twin;
            (flow.to != twin.to).then(|| match claim {
                Claim::Unused => flow.reset == 1 || flow.expired(table, key.protocol, *now),
                Claim::Closed => flow.over(table, key.protocol, *now),
            })
        });
        match other.flatten() {
            None => {}
            Some(true) if table == FlowTable::HalfOpen || inserted => {
                tables.remove(table, key);
                // Its late packets would speak of the new flow.
                remove_twin(tables, table, &opener, &key.tuple);
                if table == FlowTable::HalfOpen {
                    return true;
                }
            }
            Some(_) => return true,
        }
    }
    false
}

/// Removes the entry of `key` if its packets leave as those that packets of `tuple` answer: another
/// flow may have the key by now.
#[inline(always)]
fn remove_twin<T: Tables>(tables: &T, table: FlowTable, key: &FlowKey, tuple: &Tuple) {
    if tables.look(table, key, |flow| flow.to.opposes(tuple)) == Some(true) {
        tables.remove(table, key);
    }
}
