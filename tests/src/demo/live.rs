//! What the demo does until it is interrupted.

use std::{collections::BTreeSet, thread, time::Duration};

use super::{
    cluster::{Cluster, Offer},
    show::percent,
    tally::{Outcome, Recent},
};
use crate::sandbox::{Family, Pod};

/// Between the connections to one address.
const PAUSE: Duration = Duration::from_millis(50);
/// One of four pods is missed in 80 connections by chance less than once in 10^9 times.
const WINDOW: usize = 80;
/// Connections between two looks at what the agents complain about.
const ROUNDS_PER_LOOK: usize = 20;

/// Keeps connecting and says so when connections go elsewhere, or when an agent finds something
/// wrong with the manifests.
pub fn watch(cluster: &Cluster) -> ! {
    println!(
        "\nConnecting on, about 20 times a second to each service. Ctrl-C removes the sandbox."
    );
    let client = cluster.sandbox.pod("client-0");
    let mut watched = [&cluster.web, &cluster.dns, &cluster.retired].map(Watched::new);
    let mut problems = BTreeSet::new();
    loop {
        for _ in 0..ROUNDS_PER_LOOK {
            for watched in &mut watched {
                watched.connect(client);
            }
            thread::sleep(PAUSE);
        }
        problems = report_problems(cluster, &problems);
    }
}

struct Watched<'a> {
    offer: &'a Offer,
    recent: Recent,
    family: Family,
}

impl<'a> Watched<'a> {
    fn new(offer: &'a Offer) -> Self {
        let shown = match &offer.pods[..] {
            [] => vec![Outcome::Failed("connection refused".to_owned())],
            pods => pods.iter().cloned().map(Outcome::Answered).collect(),
        };
        Self {
            offer,
            recent: Recent::new(WINDOW, shown),
            family: Family::V4,
        }
    }

    fn connect(&mut self, client: &Pod) {
        let outcome = client
            .ask(self.offer.protocol, self.offer.frontend(self.family))
            .into();
        self.family = match self.family {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        };
        if let Some(shares) = self.recent.note(outcome) {
            let shares: Vec<String> = shares
                .iter()
                .map(|(outcome, share)| format!("{outcome} {}", percent(*share)))
                .collect();
            println!("  {} now: {}", self.offer.service.key(), shares.join(", "));
        }
    }
}

/// Prints the problems that are new or gone, and gives those that there are.
fn report_problems(cluster: &Cluster, known: &BTreeSet<String>) -> BTreeSet<String> {
    let statuses = cluster
        .sandbox
        .nodes()
        .iter()
        .filter_map(|node| node.status().ok());
    let problems: BTreeSet<String> = statuses
        .flat_map(|status| status.problems)
        .map(|problem| format!("{} {}: {}", problem.kind, problem.object, problem.problem))
        .collect();
    for problem in problems.difference(known) {
        println!("  lb status: {problem}");
    }
    for problem in known.difference(&problems) {
        println!("  solved: {problem}");
    }
    problems
}
