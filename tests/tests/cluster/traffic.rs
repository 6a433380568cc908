//! Many connections, at rest and while endpoints change.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use lb_tests::{
    evenness::is_even,
    sandbox::{Conversation, Failure, Family, Pod, Protocol, cluster_ip},
};
use serde_json::json;
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::{Test, clients::frontend, cluster::Cluster, objects};

pub const TESTS: &[Test] = &[
    ("10,000 connections are shared evenly", shares_are_even),
    (
        "a removed backend gets no connection once its removal is programmed",
        removed_gets_nothing,
    ),
    (
        "nothing fails while endpoints change 100 times a second",
        nothing_fails_under_churn,
    ),
];

/// The slices of the service that has no selector.
const SLICES: [(Family, &str); 2] = [(Family::V4, "ipv4"), (Family::V6, "ipv6")];

/// One conversation: when it began, and who answered.
type Attempt = (Instant, Result<String, Failure>);

fn shares_are_even(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    cluster
        .admin
        .apply(&objects::service("web", cluster_ip(10), Some("web")))?;
    cluster.wait_for_backends("default/web", 4)?;
    for family in Family::BOTH {
        let to = frontend(10, family);
        let attempts = cluster.client().run(async move {
            stream::iter(0..5_000)
                .map(|_| attempt(Protocol::Tcp, to))
                .buffer_unordered(8)
                .collect::<Vec<_>>()
                .await
        });
        let mut shares = BTreeMap::<String, u32>::new();
        for (_, server) in attempts {
            *shares.entry(server?).or_default() += 1;
        }
        ensure!(
            shares.len() == 4 && is_even(shares.values().copied()),
            "{shares:?}"
        );
    }
    cluster.wait_for_fresh_tables()
}

/// Writes a service with its slices by hand, so that nobody else changes them.
fn serve_by_hand(cluster: &Cluster, pods: &[&Pod]) -> Result<()> {
    cluster
        .admin
        .apply(&objects::service("web", cluster_ip(10), None))?;
    for (family, name) in SLICES {
        let addresses: Vec<IpAddr> = pods.iter().map(|pod| pod.address(family)).collect();
        cluster
            .admin
            .apply(&objects::slice(name, "web", family, &addresses))?;
    }
    Ok(())
}

fn removed_gets_nothing(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    let pods: Vec<&Pod> = cluster.web_pods().collect();
    serve_by_hand(cluster, &pods)?;
    cluster.wait_for_backends("default/web", 4)?;

    let traffic = Traffic::start(cluster.client(), 10);
    std::thread::sleep(Duration::from_secs(1));
    serve_by_hand(cluster, &pods[1..])?;
    for (_, name) in SLICES {
        cluster.wait_until_reflected::<EndpointSlice>("default/web", name)?;
    }
    let programmed = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let attempts = traffic.stop()?;

    let failed = failures(&attempts);
    ensure!(failed.is_empty(), "{failed:?}");
    let (before, after): (Vec<_>, Vec<_>) =
        attempts.iter().partition(|(began, _)| *began < programmed);
    let met = |attempts: &[&Attempt]| {
        let met = attempts
            .iter()
            .filter(|(_, server)| server.as_deref() == Ok(pods[0].name()));
        met.count()
    };
    ensure!(
        met(&before) > 0 && after.len() > 100,
        "too little traffic to tell"
    );
    ensure!(
        met(&after) == 0,
        "{} of {} conversations",
        met(&after),
        after.len()
    );
    cluster.wait_for_fresh_tables()
}

fn nothing_fails_under_churn(cluster: &mut Cluster) -> Result<()> {
    const DURATION: Duration = Duration::from_secs(60);
    const PERIOD: Duration = Duration::from_millis(10);

    let _agent = cluster.start_agent()?;
    let pods: Vec<&Pod> = cluster.web_pods().collect();
    serve_by_hand(cluster, &pods)?;
    cluster.wait_for_backends("default/web", 4)?;

    let traffic = Traffic::start(cluster.client(), 10);
    let addresses = pods.iter().map(|pod| pod.addresses().each()).collect();
    let churn = churn(cluster.admin.kube(), addresses, DURATION, PERIOD);
    let changes = cluster.admin.namespace().run(churn)?;
    let attempts = traffic.stop()?;

    let wanted = DURATION.as_millis() / PERIOD.as_millis();
    ensure!(
        changes as u128 >= wanted * 9 / 10,
        "only {changes} of {wanted} changes were possible"
    );
    let failed = failures(&attempts);
    ensure!(
        failed.is_empty(),
        "of {} conversations: {failed:?}",
        attempts.len()
    );
    ensure!(
        attempts.len() > 10_000,
        "only {} conversations",
        attempts.len()
    );
    cluster.wait_for_fresh_tables()
}

/// Gives the slices one subset of the pods after another, never the empty one, and returns how
/// many changes there were.
async fn churn(
    client: kube::Client,
    addresses: Vec<[IpAddr; 2]>,
    duration: Duration,
    period: Duration,
) -> Result<usize> {
    let slices: Api<EndpointSlice> = Api::namespaced(client, "default");
    let subsets = (1 << addresses.len()) - 1;
    let mut ticks = interval(period);
    // A change that was late does not make the next one late.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let end = Instant::now() + duration;
    let changes = stream::unfold(ticks, |mut ticks| async move {
        (ticks.tick().await.into_std() < end).then_some(((), ticks))
    });
    changes
        .enumerate()
        .map(|(number, ())| {
            let (place, name) = (number % SLICES.len(), SLICES[number % SLICES.len()].1);
            // 7 is coprime to the number of subsets: all of them come, neighbours differ much.
            let subset = number / SLICES.len() * 7 % subsets + 1;
            let members = addresses
                .iter()
                .enumerate()
                .filter(|(index, _)| subset >> index & 1 == 1);
            let members: Vec<IpAddr> = members.map(|(_, each)| each[place]).collect();
            let change = Patch::Merge(json!({ "endpoints": objects::endpoints(&members) }));
            let slices = slices.clone();
            async move { slices.patch(name, &PatchParams::default(), &change).await }
        })
        .buffer_unordered(4)
        .try_fold(0, |count, _| async move { Ok(count + 1) })
        .await
        .context("change a slice")
}

/// Conversations with a service, one after another, over each family and protocol at once.
struct Traffic {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Attempt>>>,
}

impl Traffic {
    fn start(client: &Pod, number: u8) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = Family::BOTH
            .into_iter()
            .flat_map(|family| Protocol::BOTH.map(|protocol| (family, protocol)))
            .map(|(family, protocol)| {
                let stop = Arc::clone(&stop);
                client.spawn(async move {
                    let mut attempts = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        attempts.push(attempt(protocol, frontend(number, family)).await);
                    }
                    attempts
                })
            })
            .collect();
        Self { stop, tasks }
    }

    /// Waits for the conversations under way and returns all.
    fn stop(self) -> Result<Vec<Attempt>> {
        self.stop.store(true, Ordering::Relaxed);
        let attempts = futures::executor::block_on(futures::future::try_join_all(self.tasks))?;
        Ok(attempts.into_iter().flatten().collect())
    }
}

async fn attempt(protocol: Protocol, to: SocketAddr) -> Attempt {
    let began = Instant::now();
    let server = async { Ok(Conversation::open(protocol, to).await?.ask().await?.server) };
    (began, server.await)
}

/// How often conversations failed, by the way in which they did.
fn failures(attempts: &[Attempt]) -> BTreeMap<String, usize> {
    let mut failures = BTreeMap::new();
    for failure in attempts
        .iter()
        .filter_map(|(_, server)| server.as_ref().err())
    {
        *failures.entry(failure.to_string()).or_default() += 1;
    }
    failures
}
