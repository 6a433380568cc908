//! Services, slices and pods that come, change and go, while the agent follows.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, stream::BoxStream};
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::api::{Api, DeleteParams, PostParams};
use lb_tests::sandbox::{Failure, Family, Protocol, cluster_ip};
use lb_userspace::{
    source::apiserver::ApiServer,
    world::{Change, World},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    Test,
    clients::{Conversations, frontend, names, servers},
    cluster::{Cluster, eventually},
    objects,
};

pub const TESTS: &[Test] = &[
    (
        "the agent finds its way with what a container is given",
        in_container,
    ),
    (
        "services and pods come, change and go",
        services_come_and_go,
    ),
    (
        "a pod that shuts down keeps its connections and gets no new ones",
        pod_shuts_down,
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
    (
        "labels give a service to another proxy and take it back",
        service_given_away,
    ),
    (
        "a slice that becomes a headless service's is no longer used",
        slice_becomes_headless,
    ),
    (
        "the networks of services are followed",
        service_cidrs_followed,
    ),
];

/// As `deploy/lb.yaml` starts it: by a token and a certificate in files, and by the environment.
fn in_container(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_container()?;
    let web = objects::service("web", cluster_ip(10), Some("web"));
    cluster.admin.apply(&web)?;
    cluster.wait_for_backends("default/web", 4)?;
    ensure!(servers(cluster, 10)? == names(&["web-1", "web-2", "web-3", "web-4"]));
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

fn pod_shuts_down(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    let admin = &cluster.admin;
    admin.apply(&objects::service("web", cluster_ip(10), Some("web")))?;
    cluster.wait_for_backends("default/web", 4)?;
    let mut conversations = Conversations::open(cluster, 10)?;
    ensure!(conversations.with("web-4") > 0);

    admin.delete_after::<Pod>("default", "web-4", 30)?;
    cluster.wait_for_ports("default/web", "one of 4 backends drains", |port| {
        port.backends.len() == 3 && port.draining.len() == 1
    })?;
    conversations = conversations.go_on(cluster)?;
    ensure!(servers(cluster, 10)? == names(&["web-1", "web-2", "web-3"]));
    cluster.wait_for_fresh_tables()?;

    admin.delete::<Pod>("default", "web-4")?;
    cluster.wait_for_ports("default/web", "nothing drains", |port| {
        port.draining.is_empty()
    })?;
    conversations.go_on(cluster)?;
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
        cluster.wait_for_ports("default/web", &format!("{count} backends"), |port| {
            port.family != "IPv4" || port.backends.len() == count
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

    cluster.while_stopped(|cluster| {
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
    cluster.wait_for_ports("default/web", "it has the new address", |port| {
        let frontends = Family::BOTH.map(|family| frontend(20, family));
        port.frontends
            .iter()
            .all(|frontend| frontends.contains(&frontend.address))
    })?;
    cluster.wait_for_backends("default/web", 4)?;
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

/// To a watch that selects by the label, the change is a deletion.
fn service_given_away(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    let admin = &cluster.admin;
    admin.apply(&objects::service("web", cluster_ip(10), Some("web")))?;
    cluster.wait_for_backends("default/web", 4)?;
    let label = |value: Value| {
        let labels = json!({ "service.kubernetes.io/service-proxy-name": value });
        admin.merge::<Service>(
            "default",
            "web",
            &json!({ "metadata": { "labels": labels } }),
        )
    };
    // Whatever the value is.
    for value in ["other", ""] {
        label(value.into())?;
        cluster.wait_for_service("default/web", "it is another's", |service| {
            service.is_none()
        })?;
        let reply = cluster
            .client()
            .ask(Protocol::Tcp, frontend(10, Family::V4));
        ensure!(reply == Err(Failure::TimedOut), "given away: {reply:?}");
        cluster.wait_for_fresh_tables()?;

        label(Value::Null)?;
        cluster.wait_for_backends("default/web", 4)?;
        servers(cluster, 10)?;
    }
    cluster.wait_for_fresh_tables()
}

fn slice_becomes_headless(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    let admin = &cluster.admin;
    let addresses = |family| ["web-1", "web-2"].map(|pod| cluster.sandbox.pod(pod).address(family));
    admin.apply(&objects::service("web", cluster_ip(10), None))?;
    for family in Family::BOTH {
        let name = family.name().to_lowercase();
        admin.apply(&objects::slice(&name, "web", family, &addresses(family)))?;
    }
    cluster.wait_for_backends("default/web", 2)?;
    let label = |value: Value| {
        let labels = json!({ "service.kubernetes.io/headless": value });
        let change = json!({ "metadata": { "labels": labels } });
        for family in Family::BOTH {
            let name = family.name().to_lowercase();
            admin.merge::<EndpointSlice>("default", &name, &change)?;
        }
        anyhow::Ok(())
    };
    label("".into())?;
    cluster.wait_for_backends("default/web", 0)?;
    let reply = cluster
        .client()
        .ask(Protocol::Tcp, frontend(10, Family::V4));
    ensure!(reply == Err(Failure::Refused), "headless: {reply:?}");
    cluster.wait_for_fresh_tables()?;

    label(Value::Null)?;
    cluster.wait_for_backends("default/web", 2)?;
    ensure!(servers(cluster, 10)? == names(&["web-1", "web-2"]));
    cluster.wait_for_fresh_tables()
}

/// By the source alone, with the rights of the agent.
fn service_cidrs_followed(cluster: &mut Cluster) -> Result<()> {
    const MORE: &str = "10.97.0.0/24";
    let has_more = |world: &World| {
        let networks = world.service_cidrs();
        networks.iter().any(|network| network.to_string() == MORE)
    };
    let kubeconfig = cluster.agent_kubeconfig(&cluster.plane.url())?;
    let node = cluster.node().name().to_owned();
    let api: Api<ServiceCIDR> = Api::all(cluster.admin.kube());
    let object = serde_json::from_value(json!({
        "metadata": { "name": "more" },
        "spec": { "cidrs": [MORE] },
    }))?;
    cluster.admin.namespace().run(async move {
        let server = ApiServer::from_kubeconfig(Some(&kubeconfig), &[]).await?;
        let mut changes = server.changes(&node).boxed();
        let mut world = World::default();
        follow(&mut world, &mut changes, World::synced).await?;
        ensure!(
            world.service_cidrs().len() == 2,
            "those of the control plane"
        );
        api.create(&PostParams::default(), &object).await?;
        let seen = follow(&mut world, &mut changes, has_more).await;
        api.delete("more", &DeleteParams::default()).await?;
        seen.context("made")?;
        let seen = follow(&mut world, &mut changes, |world| !has_more(world)).await;
        seen.context("deleted")
    })
}

/// Takes in changes until the world is as it is to be.
async fn follow(
    world: &mut World,
    changes: &mut BoxStream<'static, Change>,
    until: impl Fn(&World) -> bool,
) -> Result<()> {
    let followed = async {
        while !until(world) {
            world.apply(changes.next().await.context("the source ended")?);
        }
        Ok(())
    };
    // The controller lets go of a network ten seconds after its deletion.
    timeout(Duration::from_secs(30), followed).await?
}
