//! Finds flows whose time is over. A thread reads the tables; only the `expire` program, which sees a
//! flow as it then is, removes one.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{
    TestRun as _,
    maps::{HashMap, MapData},
    programs::{SchedClassifier, TestRunOptions},
};
use lb_common::{
    endpoint::WIRE,
    expiry::BATCH,
    flow::{Flow, FlowKey, MAX_FLOWS, MAX_HALF_OPEN},
    packet::ETHERNET,
    tables::FlowTable,
};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::{
    Pins,
    tables::{Flows, absent_is_fine},
};

/// Between one pass over all flows and the next.
const PAUSE: Duration = Duration::from_secs(10);
/// The reader rests for as long as it reads.
const SLICE: Duration = Duration::from_millis(5);

/// What the reader of the flow tables reports.
#[derive(Debug)]
pub enum Swept {
    /// Flows that looked expired; at most [`BATCH`].
    Expired(Vec<FlowKey>),
    /// A pass is over.
    Pass(FlowCounts),
}

/// How many flows there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    pub two_way: usize,
    pub half_open: usize,
}

/// Starts the thread that reads the flow tables, until nobody receives its reports.
///
/// Flows of a slot that is not in `slots` are removed: no program can meet them any more. Those of
/// the devices that lead out of the node, which have no slot, stay.
pub fn sweep(
    pins: &Pins,
    slots: watch::Receiver<BTreeSet<u32>>,
    reports: mpsc::Sender<Swept>,
) -> Result<()> {
    let mut sweeper = Sweeper {
        flows: Flows::open(pins)?,
        slots,
        slice: Instant::now(),
    };
    let run = move || {
        while !reports.is_closed() {
            match sweeper.pass() {
                Ok((expired, counts)) => {
                    let batches = expired
                        .chunks(BATCH)
                        .map(|keys| Swept::Expired(keys.to_vec()));
                    for report in batches.chain([Swept::Pass(counts)]) {
                        if reports.blocking_send(report).is_err() {
                            return;
                        }
                    }
                }
                Err(error) => warn!("cannot read the flow tables: {error:#}"),
            }
            thread::sleep(PAUSE);
        }
    };
    thread::Builder::new()
        .name("sweep".to_owned())
        .spawn(run)
        .context("start a thread")?;
    Ok(())
}

/// The owners of some flow: slots, and [`WIRE`].
pub fn owners(pins: &Pins) -> Result<BTreeSet<u32>> {
    let Flows { two_way, half_open } = Flows::open(pins)?;
    let keys = two_way.keys().chain(half_open.keys());
    // A read that fails met a change; that flow is then of a slot in use.
    Ok(keys.filter_map(|key| Some(key.ok()?.owner)).collect())
}

struct Sweeper {
    flows: Flows,
    slots: watch::Receiver<BTreeSet<u32>>,
    /// When the current slice of reading began.
    slice: Instant,
}

impl Sweeper {
    /// Reads all flows once. A reader whose key is removed starts again: we remove later, and end a
    /// pass that others make too long.
    fn pass(&mut self) -> Result<(Vec<FlowKey>, FlowCounts)> {
        let mut counts = FlowCounts::default();
        let (mut expired, mut orphans) = (Vec::new(), Vec::new());
        for entry in self.flows.two_way.iter().take(2 * MAX_FLOWS) {
            let (key, flow): (FlowKey, Flow) = entry.context("read FLOWS")?;
            counts.two_way += 1;
            if !self.is_met(key.owner) {
                orphans.push(key);
            } else if flow.expired(FlowTable::Flows, key.protocol, now()?) {
                expired.push(key);
            }
            rest(&mut self.slice);
        }
        let mut half_open_orphans = Vec::new();
        for key in self.flows.half_open.keys().take(2 * MAX_HALF_OPEN) {
            let key = key.context("read HALF_OPEN")?;
            counts.half_open += 1;
            if !self.is_met(key.owner) {
                half_open_orphans.push(key);
            }
            rest(&mut self.slice);
        }
        self.remove(orphans, |flows| &mut flows.two_way)?;
        self.remove(half_open_orphans, |flows| &mut flows.half_open)?;
        Ok((expired, counts))
    }

    /// Whether programs can meet the flows of this owner.
    fn is_met(&self, owner: u32) -> bool {
        owner == WIRE || self.slots.borrow().contains(&owner)
    }

    fn remove(
        &mut self,
        keys: Vec<FlowKey>,
        table: fn(&mut Flows) -> &mut HashMap<MapData, FlowKey, Flow>,
    ) -> Result<()> {
        for key in keys {
            // A slot is in use before its interface has flows.
            if !self.is_met(key.owner) {
                absent_is_fine(table(&mut self.flows).remove(&key)).context("remove a flow")?;
            }
        }
        Ok(())
    }
}

fn rest(slice: &mut Instant) {
    if slice.elapsed() > SLICE {
        thread::sleep(SLICE);
        *slice = Instant::now();
    }
}

/// What the programs read as the time.
fn now() -> Result<u64> {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(time.as_nanos() as u64)
}

/// Runs the program over keys of flows, so that it removes those that are expired by then.
pub(super) fn expire(program: &SchedClassifier, keys: &[FlowKey]) -> Result<()> {
    for keys in keys.chunks(BATCH) {
        let mut packet = vec![0; ETHERNET];
        packet.extend(keys.iter().flat_map(|key| key.to_bytes()));
        let options = TestRunOptions {
            data_in: Some(&packet),
            ..TestRunOptions::default()
        };
        program
            .test_run(options)
            .context("run the program that expires flows")?;
    }
    Ok(())
}
