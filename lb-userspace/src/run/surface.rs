//! What the agent tells others about itself: health, metrics, events.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::{
    events::{Events, Notice},
    health::{self, Progress},
    listen::{Attempt, BindAddress, Owed, keep_serving},
    metrics::{self, Changes, Metrics, Snapshot},
    status::Problem,
    world::{Change, Event},
};

/// What others may ask, and where.
pub struct Config {
    pub healthz: BindAddress,
    pub metrics: BindAddress,
    /// Whether to give up where one of these addresses cannot be had.
    pub hard_fail: bool,
    /// What `/configz` shows.
    pub settings: Value,
    pub events: Events,
}

/// The servers and what they say.
pub struct Surface {
    hard_fail: bool,
    progress: watch::Sender<Progress>,
    metrics: Metrics,
    /// Why a server does not listen.
    silent: BTreeMap<Owed, String>,
    events: Events,
}

impl Surface {
    /// Starts the servers; the attempts to do so come out of the receiver.
    pub fn start(config: Config) -> (Self, mpsc::Receiver<Attempt>) {
        let Config {
            healthz,
            metrics: metrics_address,
            hard_fail,
            settings,
            events,
        } = config;
        let metrics = Metrics::new();
        let (progress, seen) = watch::channel(Progress::new(Instant::now()));
        let (report, attempts) = mpsc::channel(4);
        if let Some(address) = healthz.0 {
            let router = health::router(seen, metrics.clone());
            keep_serving(Owed::Health, address, router, report.clone());
        }
        if let Some(address) = metrics_address.0 {
            let router = metrics::router(metrics.clone(), settings);
            keep_serving(Owed::Metrics, address, router, report);
        }
        events.send(Notice::Starting);
        let surface = Self {
            hard_fail,
            progress,
            metrics,
            silent: BTreeMap::new(),
            events,
        };
        (surface, attempts)
    }

    /// A server listens or does not; an error where that is not to be lived with.
    pub fn attempted(&mut self, attempt: Attempt) -> Result<()> {
        let Attempt {
            server,
            address,
            outcome,
        } = attempt;
        let Err(why) = outcome else {
            info!("{} on {address}", server.name());
            self.silent.remove(&server);
            return Ok(());
        };
        if self.hard_fail {
            self.events.send(match server {
                Owed::Health => Notice::NoHealthServer(why.clone()),
                Owed::Metrics => Notice::NoMetricsServer(why.clone()),
            });
            bail!("{}: {why}", server.name());
        }
        if self.silent.insert(server, why.clone()).as_ref() != Some(&why) {
            warn!("{}: {why}, trying again", server.name());
        }
        Ok(())
    }

    /// Counts what a source says, before it is taken in.
    pub fn count(&mut self, changes: &[Change]) {
        let mut count = Changes::default();
        for change in changes {
            match change {
                Change::Service(event) => count.services += u32::from(names_object(event)),
                Change::EndpointSlice(event) => count.slices += u32::from(names_object(event)),
                _ => {}
            }
        }
        if count != Changes::default() {
            self.metrics.queued(count, Timestamp::now());
        }
    }

    /// Something waits to be written.
    pub fn queue(&self) {
        self.progress
            .send_modify(|progress| progress.queue(Instant::now()));
    }

    /// Everything is written, which took `elapsed`.
    pub fn synced(&mut self, elapsed: Duration) {
        let now = Timestamp::now();
        self.progress.send_modify(|progress| progress.update(now));
        self.metrics.synced(elapsed, [], now);
    }

    /// A sign of life.
    pub fn live(&self) {
        self.progress
            .send_modify(|progress| progress.live(Instant::now()));
    }

    /// Replaces what the metrics say of the node's state.
    pub fn publish(&self, snapshot: Snapshot) {
        self.metrics.publish(snapshot);
    }

    /// What others cannot ask though they should.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        self.silent.iter().map(|(server, why)| Problem {
            kind: "server".to_owned(),
            object: server.name().to_owned(),
            problem: why.clone(),
        })
    }

    /// Returns when the last events are sent, or a while later.
    pub async fn finish(self) {
        self.events.finish().await;
    }
}

impl Owed {
    fn name(self) -> &'static str {
        match self {
            Self::Health => "the health server",
            Self::Metrics => "the metrics server",
        }
    }
}

fn names_object<R>(event: &Event<R>) -> bool {
    match event {
        Event::InitApply(..) | Event::Apply(..) | Event::Delete(_) => true,
        Event::Init | Event::InitDone => false,
    }
}
