//! What happens to objects and to the apiserver, while an agent follows.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use lb_tests::sandbox::{Agent, Conversation, Failure, Family, Protocol, cluster_ip};
use lb_userspace::status::Agent as AgentStatus;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{
    Test,
    cluster::{Cluster, DEPLOYMENT, eventually},
    harness::watch_since,
    objects,
};

pub const TESTS: &[Test] = &[
    (
        "an agent with empty tables reaches the apiserver without kube-proxy",
        starts_from_nothing,
    ),
    (
        "services and pods come, change and go",
        services_come_and_go,
    ),
    ("a slice moves from one service to another", slice_moves),
    (
        "an endpoint moves from one slice to another in two events",
        endpoint_moves,
    ),
    (
        "a service is made again with another address",
        service_made_again,
    ),
    ("the apiserver is killed and comes back", apiserver_killed),
    (
        "the agent lists anew after 410 Gone",
        relist_after_compaction,
    ),
    ("a verb that the role lacks is named", missing_verb),
];

/// Where a service made by [`objects::service`] is reached.
pub fn frontend(number: u8, family: Family) -> SocketAddr {
    SocketAddr::new(cluster_ip(number).get(family), 80)
}

/// Which servers answer at a service, asked often enough to meet all of a few.
fn servers(cluster: &Cluster, number: u8) -> Result<BTreeSet<String>> {
    let mut servers = BTreeSet::new();
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            for _ in 0..15 {
                servers.insert(cluster.ask(protocol, frontend(number, family))?.server);
            }
        }
    }
    Ok(servers)
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

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

fn services_come_and_go(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    let admin = &cluster.admin;
    admin.apply(&objects::service("web", cluster_ip(10), Some("web")))?;
    cluster.wait_for_backends("default/web", 4)?;
    ensure!(servers(cluster, 10)? == names(&["web-1", "web-2", "web-3", "web-4"]));
    cluster.wait_for_fresh_tables()?;

    // The controller takes a pod out of the slices when its labels no longer match.
    admin.merge::<Pod>(
        "default",
        "web-4",
        &json!({ "metadata": { "labels": { "app": "retired" } } }),
    )?;
    cluster.wait_for_backends("default/web", 3)?;
    ensure!(servers(cluster, 10)? == names(&["web-1", "web-2", "web-3"]));

    admin.apply(&objects::service("web", cluster_ip(10), Some("nothing")))?;
    cluster.wait_for_backends("default/web", 0)?;
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let reply = cluster.client().ask(protocol, frontend(10, family));
            ensure!(
                reply == Err(Failure::Refused),
                "without endpoints: {reply:?}"
            );
        }
    }
    cluster.wait_for_fresh_tables()?;

    admin.merge::<Pod>(
        "default",
        "web-4",
        &json!({ "metadata": { "labels": { "app": "web" } } }),
    )?;
    admin.apply(&objects::service("web", cluster_ip(10), Some("web")))?;
    cluster.wait_for_backends("default/web", 4)?;
    ensure!(servers(cluster, 10)?.contains("web-4"));

    admin.delete::<Service>("default", "web")?;
    cluster.wait_for_service("default/web", "it is gone", |service| service.is_none())?;
    let reply = cluster
        .client()
        .ask(Protocol::Tcp, frontend(10, Family::V4));
    ensure!(reply == Err(Failure::TimedOut), "after its end: {reply:?}");
    cluster.wait_for_fresh_tables()
}

fn slice_moves(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    let admin = &cluster.admin;
    let addresses = [cluster.sandbox.pod("web-1").address(Family::V4)];
    admin.apply(&objects::service("one", cluster_ip(11), None))?;
    admin.apply(&objects::service("two", cluster_ip(12), None))?;
    admin.apply(&objects::slice("moving", "one", Family::V4, &addresses))?;
    let reaches = |number, expected: Result<&str, Failure>| {
        eventually(&format!("the service {number} is {expected:?}"), || {
            let reply = cluster
                .client()
                .ask(Protocol::Tcp, frontend(number, Family::V4));
            let server = reply.as_ref().map(|reply| reply.server.as_str());
            ensure!(server == expected.as_ref().map(|name| *name), "{reply:?}");
            Ok(())
        })
    };
    reaches(11, Ok("web-1"))?;
    reaches(12, Err(Failure::Refused))?;
    admin.apply(&objects::slice("moving", "two", Family::V4, &addresses))?;
    reaches(12, Ok("web-1"))?;
    reaches(11, Err(Failure::Refused))?;
    cluster.wait_for_fresh_tables()?;
    admin.delete::<EndpointSlice>("default", "moving")?;
    reaches(12, Err(Failure::Refused))?;
    cluster.wait_for_fresh_tables()
}

fn endpoint_moves(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    let admin = &cluster.admin;
    let [first, second] =
        ["web-1", "web-2"].map(|pod| cluster.sandbox.pod(pod).address(Family::V4));
    admin.apply(&objects::service("web", cluster_ip(10), None))?;
    admin.apply(&objects::slice("from", "web", Family::V4, &[first, second]))?;
    admin.apply(&objects::slice("to", "web", Family::V4, &[]))?;
    let count = |count: usize| {
        cluster.wait_for_service("default/web", &format!("{count} backends"), |service| {
            let mut ports = service.into_iter().flat_map(|service| &service.ports);
            ports.any(|port| port.family == "IPv4" && port.backends.len() == count)
        })
    };
    count(2)?;
    // In both slices for a moment, and then in none, it is one endpoint, and then none.
    admin.apply(&objects::slice("to", "web", Family::V4, &[second]))?;
    cluster.wait_for_fresh_tables()?;
    count(2)?;
    admin.apply(&objects::slice("from", "web", Family::V4, &[first]))?;
    cluster.wait_for_fresh_tables()?;
    count(2)?;
    admin.apply(&objects::slice("to", "web", Family::V4, &[]))?;
    count(1)?;
    admin.apply(&objects::slice("from", "web", Family::V4, &[first, second]))?;
    count(2)?;
    cluster.wait_for_fresh_tables()
}

/// Deleted and created while the agent is not looking, so that it sees one object turn into another.
fn service_made_again(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    cluster
        .admin
        .apply(&objects::service("web", cluster_ip(10), Some("web")))?;
    cluster.wait_for_backends("default/web", 4)?;
    let before: Service = cluster.admin.get("default", "web")?;

    paused(cluster, |cluster| {
        cluster.admin.delete::<Service>("default", "web")?;
        cluster
            .admin
            .apply(&objects::service("web", cluster_ip(20), Some("web")))
    })?;
    let after: Service = cluster.admin.get("default", "web")?;
    ensure!(
        before.metadata.uid != after.metadata.uid,
        "the same service"
    );
    cluster.wait_for_service("default/web", "it has the new address", |service| {
        let mut ports = service.into_iter().flat_map(|service| &service.ports);
        ports.any(|port| port.frontends == [frontend(20, Family::V4)] && port.backends.len() == 4)
    })?;
    servers(cluster, 20)?;
    let reply = cluster
        .client()
        .ask(Protocol::Tcp, frontend(10, Family::V4));
    ensure!(
        reply == Err(Failure::TimedOut),
        "at the old address: {reply:?}"
    );
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
    let pod: Pod = cluster.admin.get("default", "web-1")?;
    let seen = pod
        .metadata
        .resource_version
        .context("no resourceVersion")?;

    paused(cluster, |cluster| {
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
        "rules": [{
            "apiGroups": [""],
            "resources": ["nodes", "pods", "services"],
            "verbs": ["list", "watch"],
        }],
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
    cluster.wait_for_status("what is missing is named", |status| {
        let named = |text: &str| text.contains("list") && text.contains("endpointslices");
        status
            .problems
            .iter()
            .any(|problem| named(&format!("{} {}", problem.object, problem.problem)))
    })?;
    let status = cluster.node().status()?;
    let awaited = match &status.agent {
        AgentStatus::Running { awaited, .. } => awaited.as_slice(),
        AgentStatus::Away { .. } => &[],
    };
    ensure!(awaited == ["EndpointSlice"], "{status}");
    // Nothing is deleted before everything is known.
    servers(cluster, 10)?;
    Ok(agent)
}

/// Does something while the agent is stopped.
fn paused(cluster: &mut Cluster, work: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let AgentStatus::Running { pid, .. } = cluster.node().status()?.agent else {
        anyhow::bail!("the agent does not run");
    };
    let agent = Pid::from_raw(pid.try_into()?);
    kill(agent, Signal::SIGSTOP)?;
    let done = work(cluster);
    kill(agent, Signal::SIGCONT)?;
    done
}
