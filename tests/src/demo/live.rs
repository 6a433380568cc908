//! What the demo does until it is interrupted.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::mpsc::{self, Receiver, Sender},
    time::{Duration, Instant},
};

use super::{
    cluster::{Cluster, Offer},
    show::in_words,
    tally::{Outcome, Recent},
};
use crate::sandbox::{Conversation, Failure, Family, Protocol};

/// Between the connections to one address.
const PAUSE: Duration = Duration::from_millis(50);
/// One of four pods is missed in 60 connections by chance less than once in a million times.
const WINDOW: usize = 60;
/// Between two looks at what the agents complain about.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps connecting and says so when connections go elsewhere, or when an agent finds something
/// wrong with the manifests.
pub fn watch(cluster: &Cluster) -> ! {
    println!(
        "\nConnecting on, 20 times a second to each ClusterIP. What changes is shown here. Ctrl-C \
         removes the sandbox."
    );
    let mut watched: Vec<Watched> = [&cluster.web, &cluster.dns, &cluster.retired]
        .into_iter()
        .flat_map(|offer| Family::BOTH.map(|family| Watched::new(offer, family)))
        .collect();
    let targets = watched
        .iter()
        .map(|watched| (watched.offer.protocol, watched.to))
        .collect();
    let heard = keep_connecting(cluster, targets);
    let mut problems = BTreeSet::new();
    let mut next_look = Instant::now();
    loop {
        let patience = next_look.saturating_duration_since(Instant::now());
        if let Ok((i, outcome)) = heard.recv_timeout(patience) {
            watched[i].note(outcome);
        }
        if Instant::now() >= next_look {
            problems = report_problems(cluster, &problems);
            next_look = Instant::now() + LOOK;
        }
    }
}

/// Opens connections from `client-0` at a steady pace; gives what came of each, with the place of
/// its target in the list.
fn keep_connecting(
    cluster: &Cluster,
    targets: Vec<(Protocol, SocketAddr)>,
) -> Receiver<(usize, Outcome)> {
    let (outcomes, heard) = mpsc::channel();
    cluster.sandbox.pod("client-0").spawn(async move {
        loop {
            for (i, (protocol, to)) in targets.iter().enumerate() {
                tokio::spawn(connect(*protocol, *to, i, outcomes.clone()));
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    heard
}

async fn connect(protocol: Protocol, to: SocketAddr, i: usize, outcomes: Sender<(usize, Outcome)>) {
    let work = async { Conversation::open(protocol, to).await?.ask().await };
    let result: Result<_, Failure> = work.await;
    // Fails only where nobody listens any more.
    let _ = outcomes.send((i, result.into()));
}

/// One address that connections go to.
struct Watched<'a> {
    offer: &'a Offer,
    to: SocketAddr,
    recent: Recent,
}

impl<'a> Watched<'a> {
    fn new(offer: &'a Offer, family: Family) -> Self {
        let shown = match &offer.pods[..] {
            [] => vec![Outcome::from(Err(Failure::Refused))],
            pods => pods.iter().cloned().map(Outcome::Answered).collect(),
        };
        Self {
            offer,
            to: offer.frontend(family),
            recent: Recent::new(WINDOW, shown),
        }
    }

    fn note(&mut self, outcome: Outcome) {
        if let Some(counts) = self.recent.note(outcome) {
            println!(
                "  {} {} now: {}",
                self.offer.service.key(),
                self.to,
                in_words(&counts)
            );
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
        println!("  `lb status` says: {problem}");
    }
    for problem in known.difference(&problems) {
        println!("  solved: {problem}");
    }
    problems
}
