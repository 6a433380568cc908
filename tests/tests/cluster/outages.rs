//! Times in which the agent, or what it follows, is away or refuses.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use lb_tests::sandbox::{Agent, Conversation, Failure, Family, Protocol, cluster_ip};
use lb_userspace::status;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    Test,
    clients::{Conversations, frontend, servers},
    cluster::{Cluster, DEPLOYMENT},
    harness::watch_since,
    objects,
};

pub const TESTS: &[Test] = &[
    (
        "an agent with empty tables reaches the apiserver without kube-proxy",
        starts_from_nothing,
    ),
    (
        "what changed while the agent was away is made up for",
        changed_while_away,
    ),
    ("the apiserver is killed and comes back", apiserver_killed),
    (
        "the agent lists anew after 410 Gone",
        relist_after_compaction,
    ),
    ("a verb that the role lacks is named", missing_verb),
];

fn starts_from_nothing(cluster: &mut Cluster) -> Result<()> {
    let connect = || {
        let kubernetes = SocketAddr::new(cluster_ip(1).get(Family::V4), 443);
        let opened = Conversation::open(Protocol::Tcp, kubernetes);
        cluster.client().run(opened).map(|_| ())
    };
    ensure!(
        connect() == Err(Failure::TimedOut),
        "there is a service proxy already"
    );
    let _agent = cluster.start_agent()?;
    cluster.wait_for_backends("default/kubernetes", 1)?;
    connect()?;
    cluster.wait_for_fresh_tables()
}

fn changed_while_away(cluster: &mut Cluster) -> Result<()> {
    let mut agent = cluster.start_agent()?;
    let admin = &cluster.admin;
    for (name, number) in [("stays", 10), ("goes", 11)] {
        admin.apply(&objects::service(name, cluster_ip(number), Some("web")))?;
        cluster.wait_for_backends(&format!("default/{name}"), 4)?;
    }
    let conversations = Conversations::open(cluster, 10)?;
    agent.end(Signal::SIGKILL)?;
    admin.delete::<Service>("default", "goes")?;
    admin.apply(&objects::service("comes", cluster_ip(12), Some("web")))?;
    admin.apply(&objects::service("stays", cluster_ip(10), Some("nothing")))?;
    // The kernel goes on with what it was told last.
    servers(cluster, 10)?;
    servers(cluster, 11)?;

    let _agent = cluster.start_agent()?;
    cluster.wait_for_backends("default/comes", 4)?;
    cluster.wait_for_backends("default/stays", 0)?;
    cluster.wait_for_service("default/goes", "it is gone", |service| service.is_none())?;
    servers(cluster, 12)?;
    let reply = cluster
        .client()
        .ask(Protocol::Tcp, frontend(10, Family::V4));
    ensure!(reply == Err(Failure::Refused), "{reply:?}");
    conversations.go_on(cluster)?;
    cluster.wait_for_fresh_tables()
}

fn apiserver_killed(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    cluster
        .admin
        .apply(&objects::service("web", cluster_ip(10), Some("web")))?;
    cluster.wait_for_backends("default/web", 4)?;

    cluster.plane.kill_apiserver();
    cluster.wait_for_status("the loss is shown", |status| !status.problems.is_empty())?;
    servers(cluster, 10)?;
    let status = cluster.node().status()?;
    ensure!(
        status.services.len() >= 2,
        "services were lost with the apiserver: {status}"
    );

    cluster.plane.start_apiserver()?;
    cluster
        .admin
        .apply(&objects::service("late", cluster_ip(11), Some("web")))?;
    cluster.wait_for_backends("default/late", 4)?;
    servers(cluster, 11)?;
    cluster.wait_for_status("it is well again", |status| status.problems.is_empty())?;
    cluster.wait_for_fresh_tables()
}

fn relist_after_compaction(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    for (name, number) in [("stays", 10), ("goes", 11)] {
        cluster
            .admin
            .apply(&objects::service(name, cluster_ip(number), Some("web")))?;
        cluster.wait_for_backends(&format!("default/{name}"), 4)?;
    }
    let service: Service = cluster.admin.get("default", "goes")?;
    let seen = service
        .metadata
        .resource_version
        .context("no resourceVersion")?;

    cluster.while_stopped(|cluster| {
        cluster.admin.delete::<Service>("default", "goes")?;
        cluster
            .admin
            .apply(&objects::service("comes", cluster_ip(12), Some("web")))?;
        cluster.plane.kill_apiserver();
        cluster.plane.compact()?;
        cluster.plane.start_apiserver()?;
        let code = watch_since(cluster, &seen)?;
        ensure!(code == Some(410), "nothing is gone: {code:?}");
        Ok(())
    })?;
    cluster.wait_for_backends("default/comes", 4)?;
    cluster.wait_for_service("default/goes", "it is gone", |service| service.is_none())?;
    servers(cluster, 10)?;
    servers(cluster, 12)?;
    cluster.wait_for_fresh_tables()
}

fn missing_verb(cluster: &mut Cluster) -> Result<()> {
    let mut agent = cluster.start_agent()?;
    cluster
        .admin
        .apply(&objects::service("web", cluster_ip(10), Some("web")))?;
    cluster.wait_for_backends("default/web", 4)?;
    agent.end(Signal::SIGTERM)?;

    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": { "name": "lb" },
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["namespaces", "nodes", "pods", "services"],
                "verbs": ["list", "watch"],
            },
            {
                "apiGroups": ["networking.k8s.io"],
                "resources": ["networkpolicies", "servicecidrs"],
                "verbs": ["list", "watch"],
            },
            {
                "apiGroups": ["policy.networking.k8s.io"],
                "resources": ["clusternetworkpolicies"],
                "verbs": ["list", "watch"],
            },
        ],
    });
    cluster.admin.apply(&role.to_string())?;
    let outcome = without_verb(cluster);
    cluster.admin.apply(DEPLOYMENT)?;
    let _agent = outcome?;
    cluster.wait_for_status("it is well again", |status| status.problems.is_empty())?;
    cluster.wait_for_fresh_tables()
}

fn without_verb(cluster: &Cluster) -> Result<Agent> {
    let agent = cluster.start_agent()?;
    cluster.wait_for_status("what is missing is named, and awaited", |status| {
        let named = status.problems.iter().any(|problem| {
            let text = format!("{} {}", problem.object, problem.problem);
            text.contains("list") && text.contains("endpointslices")
        });
        let awaited = match &status.agent {
            status::Agent::Running { awaited, .. } => awaited.as_slice(),
            status::Agent::Away { .. } => &[],
        };
        named && awaited == ["EndpointSlice"]
    })?;
    // Nothing is deleted before everything is known.
    servers(cluster, 10)?;
    Ok(agent)
}
