//! What the agent says of itself, of services and of policies.

use std::process;

use anyhow::Result;
use tracing::warn;

use super::Agent;
use crate::{
    explain::{Explanation, Question, explain},
    metrics::{Snapshot, without_local},
    names::Names,
    plan::{NoRoom, ServiceTables},
    policies::{Policy, closed_text},
    status::{self, Fill, Problem, Status},
    tallies::Tallies,
    world::{Kind, ObjectKey},
};

impl Agent {
    pub(super) fn names(&self) -> Names {
        let services = match self.services.tables() {
            Some(_) => self.services.names(),
            None => self.earlier_names.clone(),
        };
        let pods = self.interfaces.pods().slots_and_pods();
        Names {
            pid: process::id(),
            services,
            pods: pods
                .filter_map(|(slot, pod)| Some((slot, pod?.clone())))
                .collect(),
            rules: self.policies.rule_names(),
        }
    }

    /// The policies, with this node's pods that they select.
    pub(super) fn described_policies(&self) -> Vec<Policy> {
        let tallies = self.tallies();
        self.policies.described(&self.world, &tallies)
    }

    /// What is counted at the interfaces of this node's pods.
    fn tallies(&self) -> Tallies {
        let counts = or_log(self.tables.tallies());
        Tallies::of(counts, self.interfaces.pods().slots_and_pods())
    }

    /// What becomes of a connection, by what the tables say now.
    pub(super) fn explain(&self, question: &Question) -> Result<Explanation, String> {
        let packet = question.packet(&self.world)?;
        let places = self.interfaces.pods().places();
        Ok(explain(packet, &self.world, |pod, direction| {
            self.policies
                .verdict(pod, direction, packet, &places, &self.tables)
        }))
    }

    pub(super) fn status(&self) -> Status {
        let found;
        let tables = match self.services.tables() {
            Some(tables) => tables,
            None => {
                found = or_log(self.tables.services());
                &found
            }
        };
        let mut services = status::services(tables, &self.names().services);
        for service in &mut services {
            let (namespace, name) = service.service.split_once('/').unwrap_or_default();
            let key = ObjectKey::new(namespace, name);
            if self.services.reflects(&key) {
                service.versions = self.world.versions_of(&key);
            }
        }
        Status {
            agent: self.agent(),
            tables_at: self.pins.version(),
            interfaces: self.interfaces.status(self.programs.how().name()),
            services,
            problems: self.problems(),
            tables: self.fills(tables),
            counters: or_log(self.tables.counters()),
        }
    }

    /// How full the tables are.
    fn fills(&self, services: &ServiceTables) -> Vec<Fill> {
        let mut fills = status::fills(services, self.interfaces.endpoints(), Some(self.flows));
        let policies = self.policies.counts();
        fills.extend(status::policy_fills(policies, self.sources.count()));
        fills
    }

    /// What the metrics show.
    pub(super) fn snapshot(&self) -> Snapshot {
        let services = self.services.tables();
        Snapshot {
            packets: or_log(self.tables.counters()),
            tables: services
                .map(|tables| self.fills(tables))
                .unwrap_or_default(),
            interfaces: self.interfaces.status(self.programs.how().name()),
            problems: self.problems(),
            without_local: services.map(without_local).unwrap_or_default(),
            tallies: self.tallies(),
            lost_events: or_log(self.tables.lost_events()),
            closed_pods: self.policies.closed(&self.world).len(),
        }
    }

    fn agent(&self) -> status::Agent {
        let awaited = self.world.waiting_for();
        let (awaited, synced): (Vec<_>, Vec<_>) = Kind::ALL
            .into_iter()
            .partition(|kind| awaited.contains(kind));
        let texts = |kinds: Vec<Kind>| kinds.iter().map(ToString::to_string).collect();
        status::Agent::Running {
            pid: process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            node: self.node.clone(),
            source: self.source.clone(),
            synced: texts(synced),
            awaited: texts(awaited),
            cgroup_root: self.cgroup_root.clone(),
            socket_lb: self.sockets.scope().to_string(),
        }
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = status::problems(&self.world);
        for NoRoom { item, full } in self.services.no_room() {
            let (kind, object) = match item.service() {
                Some(service) => (Kind::Service, service.to_string()),
                None => (Kind::Node, self.node.clone()),
            };
            problems.push(Problem {
                kind: kind.to_string(),
                object,
                problem: format!("{full} has no room for {item}; what was there before stays"),
            });
        }
        for (object, problem) in self.sockets.problems() {
            problems.push(Problem {
                kind: "cgroup".to_owned(),
                object,
                problem,
            });
        }
        for (pod, policies) in self.policies.closed(&self.world) {
            problems.push(Problem {
                kind: Kind::Pod.to_string(),
                object: pod.to_string(),
                problem: closed_text(&policies),
            });
        }
        for (pod, problem) in self.sources.refused() {
            problems.push(Problem {
                kind: Kind::Pod.to_string(),
                object: pod.to_string(),
                problem: problem.clone(),
            });
        }
        if self.services.repaired() > 0 {
            problems.push(Problem {
                kind: "tables".to_owned(),
                object: self.pins.version().display().to_string(),
                problem: format!(
                    "somebody else changed {} entries, which were mended",
                    self.services.repaired()
                ),
            });
        }
        problems.extend(self.surface.problems());
        problems
    }
}

/// For answers that are worth giving without this part.
pub(super) fn or_log<T: Default>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| {
        warn!("{error:#}");
        T::default()
    })
}
