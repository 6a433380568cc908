//! Whether the agent keeps up with what the sources say, as load balancers and the kubelet ask it:
//! the rules and shapes of kube-proxy's `proxy_health.go` and `service_health.go`.

mod checks;
mod server;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;

pub use self::{
    checks::{Check, Checks, local_endpoints},
    server::router,
};
use crate::world::Family;

/// Longest time that a change may wait for its writing: twice kube-proxy's `syncPeriod` of 30 s.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What `lastUpdated` says before the first update, as Go prints a time that was never set.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// How far the agent is. Both families are written in one go, so that what holds of one holds of the
/// other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// When the tables last said all that the sources had said; none while starting.
    updated: Option<Timestamp>,
    /// Since when the oldest change waits that the tables do not say yet.
    pending: Option<Instant>,
    /// The last sign of life of the task that takes changes in: while it hangs, changes wait that it
    /// has not seen.
    alive: Instant,
    /// Whether load balancers may send to this node; true until its Node says otherwise.
    eligible: bool,
}

impl Progress {
    pub fn new(now: Instant) -> Self {
        Self {
            updated: None,
            pending: None,
            alive: now,
            eligible: true,
        }
    }

    /// A change waits to be written.
    pub fn queue(&mut self, now: Instant) {
        self.pending.get_or_insert(now);
    }

    /// Everything is written.
    pub fn update(&mut self, now: Timestamp) {
        self.pending = None;
        self.updated = Some(now);
    }

    /// The task that takes changes in is alive.
    pub fn live(&mut self, now: Instant) {
        self.alive = now;
    }

    /// Whether load balancers may send to this node.
    pub fn set_eligible(&mut self, eligible: bool) {
        self.eligible = eligible;
    }

    /// Whether the agent keeps up, whatever the state of the Node. It does while it is starting.
    pub fn keeps_up(&self, now: Instant) -> bool {
        let patient = |since: Instant| now.saturating_duration_since(since) < PATIENCE;
        self.updated.is_none() || (self.pending.is_none_or(patient) && patient(self.alive))
    }

    /// The answer to a question that takes the Node into account, or does not.
    pub fn report(&self, of_node: bool, now: Instant, time: Timestamp) -> Report {
        let keeps_up = self.keeps_up(now);
        let healthy = keeps_up && (self.eligible || !of_node);
        let updated = self
            .updated
            .map_or_else(|| NEVER.to_owned(), |time| time.to_string());
        let family = FamilyReport {
            last_updated: updated.clone(),
            healthy: keeps_up,
        };
        let families = [Family::IPv4, Family::IPv6];
        Report {
            // kube-proxy keeps the promise of older versions: recent where healthy.
            last_updated: if healthy { time.to_string() } else { updated },
            current_time: time.to_string(),
            node_eligible: of_node.then_some(self.eligible),
            healthy,
            status: match self.updated {
                Some(_) => families
                    .map(|name| (name.to_string(), family.clone()))
                    .into(),
                None => BTreeMap::new(),
            },
        }
    }
}

/// The body of `/healthz` and `/livez`. Times are in the form of RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<String, FamilyReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: String,
    healthy: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const UPDATED: Timestamp = Timestamp::constant(1_700_000_000, 0);
    const ASKED: Timestamp = Timestamp::constant(1_700_000_100, 500_000_000);

    fn json_of(report: &Report) -> Value {
        serde_json::to_value(report).expect("JSON")
    }

    /// Everything written at `start`.
    fn updated(start: Instant) -> Progress {
        let mut progress = Progress::new(start);
        progress.queue(start);
        progress.update(UPDATED);
        progress
    }

    #[test]
    fn it_is_healthy_while_it_starts_however_long_that_takes() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        progress.queue(start);
        let late = start + 10 * PATIENCE;
        assert!(progress.keeps_up(late));
        assert_eq!(
            json_of(&progress.report(true, late, ASKED)),
            json!({
                "lastUpdated": "2023-11-14T22:15:00.5Z",
                "currentTime": "2023-11-14T22:15:00.5Z",
                "nodeEligible": true,
                "healthy": true,
            })
        );
    }

    #[test]
    fn a_change_may_wait_for_less_than_sixty_seconds() {
        let start = Instant::now();
        let mut progress = updated(start);
        progress.queue(start);
        // Later changes do not make it younger.
        progress.queue(start + PATIENCE / 2);
        let moment = start + PATIENCE;
        progress.live(moment);
        assert!(progress.keeps_up(moment - Duration::from_millis(1)));
        assert!(!progress.keeps_up(moment));
        progress.update(UPDATED);
        assert!(progress.keeps_up(moment));
    }

    #[test]
    fn a_task_that_hangs_is_not_healthy() {
        let start = Instant::now();
        let mut progress = updated(start);
        assert!(!progress.keeps_up(start + PATIENCE));
        progress.live(start + PATIENCE);
        assert!(progress.keeps_up(start + PATIENCE));
    }

    #[test]
    fn only_healthz_asks_whether_the_node_is_eligible() {
        let start = Instant::now();
        let mut progress = updated(start);
        progress.set_eligible(false);
        let status = json!({"lastUpdated": "2023-11-14T22:13:20Z", "healthy": true});
        assert_eq!(
            json_of(&progress.report(true, start, ASKED)),
            json!({
                "lastUpdated": "2023-11-14T22:13:20Z",
                "currentTime": "2023-11-14T22:15:00.5Z",
                "nodeEligible": false,
                "healthy": false,
                "status": {"IPv4": status, "IPv6": status},
            })
        );
        assert_eq!(
            json_of(&progress.report(false, start, ASKED)),
            json!({
                "lastUpdated": "2023-11-14T22:15:00.5Z",
                "currentTime": "2023-11-14T22:15:00.5Z",
                "healthy": true,
                "status": {"IPv4": status, "IPv6": status},
            })
        );
    }

    #[test]
    fn what_is_late_says_when_it_last_was_not() {
        let start = Instant::now();
        let mut progress = updated(start);
        progress.queue(start);
        let report = json_of(&progress.report(true, start + PATIENCE, ASKED));
        assert_eq!(report["lastUpdated"], "2023-11-14T22:13:20Z");
        assert_eq!(report["healthy"], false);
        assert_eq!(report["nodeEligible"], true);
        assert_eq!(report["status"]["IPv6"]["healthy"], false);
    }

    #[test]
    fn a_node_that_never_was_eligible_shows_a_time_that_never_was() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        progress.set_eligible(false);
        let report = json_of(&progress.report(true, start, ASKED));
        assert_eq!(report["lastUpdated"], NEVER);
    }
}
