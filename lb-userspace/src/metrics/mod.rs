//! What the agent measures, for Prometheus: under kube-proxy's names where the meaning is the same
//! (its `metrics.go`), and as `lb_*` otherwise. `docs/metrics.md` lists all.

mod process;
mod server;
mod snapshot;
mod triggers;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use jiff::Timestamp;
use prometheus_client::{
    encoding::text,
    metrics::{
        counter::Counter,
        family::Family as Labelled,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets, linear_buckets},
        info::Info,
    },
    registry::Registry,
};
use tokio::sync::watch;

use self::{process::Process, snapshot::Snapshots};
pub use self::{
    server::router,
    snapshot::{Snapshot, without_local},
    triggers::Triggers,
};
use crate::world::Family;

/// One label with its value.
type Label = [(&'static str, String); 1];
type Histograms = Labelled<Label, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, AtomicU64>;

/// All that is measured. Clones share it.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    snapshot: watch::Sender<Snapshot>,
    syncs: Histograms,
    lags: Histograms,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    last_synced: Labelled<Label, Seconds>,
    last_queued: Labelled<Label, Seconds>,
    healthz: Labelled<Label, Counter>,
    livez: Labelled<Label, Counter>,
}

/// Changes that one batch brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub services: u32,
    pub slices: u32,
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let (snapshot, taken) = watch::channel(Snapshot::default());
        let mut metrics = Self {
            registry: Arc::default(),
            snapshot,
            syncs: Histograms::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 15))
            }),
            lags: Histograms::new_with_constructor(|| Histogram::new(lag_buckets())),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            last_synced: Labelled::default(),
            last_queued: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
        };
        let mut registry = Registry::default();
        metrics.register_kube_proxys(registry.sub_registry_with_prefix("kubeproxy"));
        let build = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("layout", lb_common::LAYOUT_VERSION.to_string()),
        ];
        registry.register(
            "lb_build",
            "Version of the agent, and of the layout of its tables",
            Info::new(build),
        );
        registry.register_collector(Box::new(Snapshots::new(taken)));
        registry.register_collector(Box::new(Process));
        metrics.registry = Arc::new(registry);
        metrics
    }

    fn register_kube_proxys(&self, registry: &mut Registry) {
        let Self {
            registry: _,
            snapshot: _,
            syncs,
            lags,
            endpoint_changes,
            endpoint_changes_pending,
            service_changes,
            service_changes_pending,
            last_synced,
            last_queued,
            healthz,
            livez,
        } = self;
        registry.register(
            "sync_proxy_rules_duration_seconds",
            "Time to compile what changed and write it to the tables; both families are written at once",
            syncs.clone(),
        );
        registry.register(
            "network_programming_duration_seconds",
            "From the change of a pod or service, as its EndpointSlice says, until the tables say it too",
            lags.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of EndpointSlices that were seen",
            endpoint_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of EndpointSlices that the tables do not say yet",
            endpoint_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services that were seen",
            service_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of Services that the tables do not say yet",
            service_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the tables last said all that was known, as Unix time",
            last_synced.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a change last began to wait for its writing, as Unix time",
            last_queued.clone(),
        );
        registry.register("proxy_healthz", "Answers of /healthz", healthz.clone());
        registry.register("proxy_livez", "Answers of /livez", livez.clone());
    }

    /// Changes were taken in, and wait to be written.
    pub fn queued(&self, changes: Changes, now: Timestamp) {
        let Changes { services, slices } = changes;
        self.service_changes.inc_by(services.into());
        self.service_changes_pending.inc_by(services.into());
        self.endpoint_changes.inc_by(slices.into());
        self.endpoint_changes_pending.inc_by(slices.into());
        for family in FAMILIES {
            let queued = self.last_queued.get_or_create(&of_family(family));
            queued.set(unix(now));
        }
    }

    /// Everything that waited was written, which took `elapsed`; `lags` are the times since what the
    /// changes were about happened.
    pub fn synced(
        &self,
        elapsed: Duration,
        lags: impl IntoIterator<Item = (Family, Duration)>,
        now: Timestamp,
    ) {
        self.service_changes_pending.set(0);
        self.endpoint_changes_pending.set(0);
        for family in FAMILIES {
            let label = of_family(family);
            self.syncs
                .get_or_create(&label)
                .observe(elapsed.as_secs_f64());
            self.last_synced.get_or_create(&label).set(unix(now));
        }
        for (family, lag) in lags {
            let lags = self.lags.get_or_create(&of_family(family));
            lags.observe(lag.as_secs_f64());
        }
    }

    pub fn answered_healthz(&self, code: u16) {
        self.healthz
            .get_or_create(&[("code", code.to_string())])
            .inc();
    }

    pub fn answered_livez(&self, code: u16) {
        self.livez
            .get_or_create(&[("code", code.to_string())])
            .inc();
    }

    /// Replaces what was looked up rather than counted.
    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshot.send_replace(snapshot);
    }

    /// The OpenMetrics text.
    ///
    /// # Errors
    ///
    /// When a metric cannot be written.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

const FAMILIES: [Family; 2] = [Family::IPv4, Family::IPv6];

fn of_family(family: Family) -> Label {
    [("ip_family", family.to_string())]
}

fn unix(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

/// From a quarter of a second to five minutes.
fn lag_buckets() -> impl Iterator<Item = f64> {
    linear_buckets(0.25, 0.25, 2)
        .chain(linear_buckets(1.0, 1.0, 59))
        .chain(linear_buckets(60.0, 5.0, 12))
        .chain(linear_buckets(120.0, 30.0, 7))
}

#[cfg(test)]
mod tests;
