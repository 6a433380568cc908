//! What the agent tells others about itself: health, metrics, events.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::{
    events::{Events, Notice},
    health::{self, Check, Checks, Progress, local_endpoints},
    kube_proxy::{self, Found},
    listen::{Attempt, BindAddress, Owed, keep_serving},
    metrics::{self, Changes, Metrics, Snapshot, Triggers},
    node_view::NodeView,
    policies::closed_text,
    status::Problem,
    world::{Change, Event, Kind, ObjectKey, PolicyName, World},
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
    /// Whether to remove what kube-proxy left, once services are served without it.
    pub cleanup_kube_proxy: bool,
}

/// The servers and what they say.
pub struct Surface {
    hard_fail: bool,
    progress: watch::Sender<Progress>,
    metrics: Metrics,
    triggers: Triggers,
    checks: Checks,
    /// The servers that services ask for, as of the last writing.
    wanted: BTreeMap<ObjectKey, Check>,
    /// Services that changed since.
    unwritten: BTreeSet<ObjectKey>,
    /// Why a server does not listen.
    silent: BTreeMap<Owed, String>,
    events: Events,
    /// Pods whose policies do not fit, which has been told.
    closed: BTreeSet<ObjectKey>,
    /// Whether the tables have ever said all that was known.
    programmed: watch::Sender<bool>,
    kube_proxy: watch::Receiver<Found>,
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
            cleanup_kube_proxy,
        } = config;
        let metrics = Metrics::new();
        let (progress, seen) = watch::channel(Progress::new(Instant::now()));
        let (report, attempts) = mpsc::channel(4);
        if let Some(address) = healthz.0 {
            let router = health::router(seen.clone(), metrics.clone());
            keep_serving(Owed::Health, address, router, report.clone());
        }
        if let Some(address) = metrics_address.0 {
            let router = metrics::router(metrics.clone(), settings);
            keep_serving(Owed::Metrics, address, router, report);
        }
        events.send(Notice::Starting);
        let programmed = watch::Sender::new(false);
        let cleans = cleanup_kube_proxy.then(|| programmed.subscribe());
        let surface = Self {
            hard_fail,
            progress,
            metrics,
            triggers: Triggers::new(Timestamp::now()),
            checks: Checks::new(seen),
            wanted: BTreeMap::new(),
            unwritten: BTreeSet::new(),
            silent: BTreeMap::new(),
            events,
            closed: BTreeSet::new(),
            programmed,
            kube_proxy: kube_proxy::watch(cleans),
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

    /// Changes of these services are taken in, and wait to be written.
    pub fn mark(&mut self, services: &BTreeSet<ObjectKey>) {
        self.unwritten.extend(services.iter().cloned());
    }

    /// Something waits to be written.
    pub fn queue(&self) {
        self.progress
            .send_modify(|progress| progress.queue(Instant::now()));
    }

    /// Health checks are served where NodePorts are.
    pub fn set_node(&mut self, view: &NodeView) {
        let everywhere = view.nodeports_on == view.addresses;
        let addresses = (!everywhere).then(|| view.nodeports_on.clone());
        self.checks.set_addresses(addresses);
    }

    /// Everything is written, which took `elapsed`.
    pub async fn synced(&mut self, world: &World, node: &str, elapsed: Duration) {
        let now = Timestamp::now();
        self.progress.send_modify(|progress| progress.update(now));
        self.programmed
            .send_if_modified(|programmed| !std::mem::replace(programmed, true));
        let written = std::mem::take(&mut self.unwritten);
        let lags = self.triggers.take(world, &written, now);
        self.metrics.synced(elapsed, lags, now);
        for service in written {
            match check(world, &service, node) {
                Some(check) => drop(self.wanted.insert(service, check)),
                None => drop(self.wanted.remove(&service)),
            }
        }
        self.sync_checks().await;
    }

    /// Runs the servers that services ask for, and tries those again that failed.
    pub async fn sync_checks(&mut self) {
        for (service, failed) in self.checks.sync(&self.wanted).await {
            let why = failed.to_string();
            warn!(%service, "{why}");
            self.events.send(Notice::NoHealthCheck { service, why });
        }
    }

    /// Tells of pods whose policies do not fit, once each time that they begin not to.
    pub fn tell_closed(&mut self, closed: BTreeMap<ObjectKey, Vec<PolicyName>>) {
        let told = std::mem::take(&mut self.closed);
        for (pod, policies) in closed {
            if !told.contains(&pod) {
                let why = closed_text(&policies);
                error!(%pod, "{why}");
                self.events.send(Notice::Closed {
                    pod: pod.clone(),
                    policies,
                });
            }
            self.closed.insert(pod);
        }
    }

    /// A sign of life, and whether the Node is eligible for load balancers, once it is known.
    pub fn live(&self, eligible: Option<bool>) {
        self.progress.send_modify(|progress| {
            progress.live(Instant::now());
            if let Some(eligible) = eligible {
                progress.set_eligible(eligible);
            }
        });
    }

    /// Replaces what the metrics say of the node's state.
    pub fn publish(&self, snapshot: Snapshot) {
        self.metrics.publish(snapshot);
    }

    /// What others cannot ask though they should, and what kube-proxy does beside us.
    pub fn problems(&self) -> Vec<Problem> {
        let silent = self.silent.iter().map(|(server, why)| Problem {
            kind: "server".to_owned(),
            object: server.name().to_owned(),
            problem: why.clone(),
        });
        let checks = self.checks.failed().iter();
        let checks = checks.map(|(service, failed)| Problem {
            kind: Kind::Service.to_string(),
            object: service.to_string(),
            problem: failed.to_string(),
        });
        let kube_proxy = self.kube_proxy.borrow();
        silent.chain(checks).chain(kube_proxy.problems()).collect()
    }

    /// Returns when the last events are sent, or a while later.
    pub async fn finish(self) {
        self.events.finish().await;
    }
}

/// What a load balancer may ask about a service.
fn check(world: &World, service: &ObjectKey, node: &str) -> Option<Check> {
    Some(Check {
        port: world.service(service)?.health_check_node_port?,
        local_endpoints: local_endpoints(world, service, node),
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{events::tests::apiserver, listen::BindAddress};

    #[tokio::test]
    async fn a_pod_whose_policies_do_not_fit_is_told_of_once_each_time() {
        let (client, mut sent) = apiserver(201);
        let (mut surface, _attempts) = Surface::start(Config {
            healthz: BindAddress(None),
            metrics: BindAddress(None),
            hard_fail: false,
            settings: Value::Null,
            events: Events::to(client, "node-a".to_owned()),
            cleanup_kube_proxy: false,
        });
        let policy = PolicyName {
            kind: Kind::NetworkPolicy,
            key: ObjectKey::new("shop", "large"),
        };
        let closed = |pods: &[&str]| {
            let pods = pods.iter();
            let pods = pods.map(|pod| (ObjectKey::new("shop", *pod), vec![policy.clone()]));
            pods.collect::<BTreeMap<_, _>>()
        };
        for pods in [&["a"][..], &["a", "b"], &["b"], &["a", "b"]] {
            surface.tell_closed(closed(pods));
        }
        surface.finish().await;
        let (mut told, mut repeated) = (Vec::new(), 0);
        while let Some((path, event)) = sent.recv().await {
            // What is told once more is counted by the event that is there.
            repeated += u32::from(path.contains("/namespaces/shop/events/a."));
            if !path.ends_with("/events") {
                continue;
            }
            if event["reason"] == "PolicyNotProgrammed" {
                assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
                assert_eq!(event["related"]["name"], "large");
                let note = event["note"].as_str().unwrap_or_default();
                assert!(note.contains("NetworkPolicy shop/large"), "{note}");
                told.push(event["regarding"]["name"].clone());
            }
        }
        assert_eq!(told, ["a", "b"]);
        assert_eq!(repeated, 1);
    }
}
