//! What the agent tells the apiserver, and what it learns from real controllers.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice, events::v1::Event};
use kube::ResourceExt as _;
use lb_tests::sandbox::{cluster_ip, get};
use lb_userspace::status;
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    Test,
    cluster::{Cluster, eventually},
    objects,
};

pub const TESTS: &[Test] = &[
    ("the start of the agent is an event of its Node", start),
    (
        "a health check that cannot be served is an event of its Service",
        check_fails,
    ),
    (
        "the time from a pod's change to the tables is measured",
        lag_is_measured,
    ),
];

/// Waits until there is an event of this type and reason about an object.
fn event(cluster: &Cluster, reason: &str, kind: &str, about: (&str, &str)) -> Result<()> {
    eventually(&format!("the event {reason}"), || {
        let events: Vec<Event> = cluster.admin.list("default")?;
        let found = events.iter().any(|event| {
            let regarding = event.regarding.clone().unwrap_or_default();
            event.reason.as_deref() == Some(reason)
                && event.type_.as_deref() == Some(kind)
                && regarding.kind.as_deref() == Some(about.0)
                && regarding.name.as_deref() == Some(about.1)
        });
        ensure!(found, "{events:?}");
        Ok(())
    })
}

fn start(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    event(
        cluster,
        "Starting",
        "Normal",
        ("Node", cluster.node().name()),
    )
}

fn check_fails(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    cluster
        .admin
        .apply(&objects::service("web", cluster_ip(10), Some("web")))?;
    let listen = async { TcpListener::bind((Ipv4Addr::UNSPECIFIED, 32_100)).await };
    let _taken = cluster.node().namespace().run(listen)?;
    let change = json!({ "spec": {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 32_100,
    }});
    cluster.admin.merge::<Service>("default", "web", &change)?;
    event(
        cluster,
        "FailedToStartServiceHealthcheck",
        "Warning",
        ("Service", "web"),
    )
}

fn lag_is_measured(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    // Tables that an agent before it left have services, but changes count from this one's start.
    cluster.wait_for_status("the agent has all objects", |status| {
        matches!(&status.agent, status::Agent::Running { awaited, .. } if awaited.is_empty())
    })?;
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, 10249));
    let count = r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} "#;
    told_service(cluster)?;
    eventually("a change is measured", || {
        let answer = get(cluster.node().namespace(), metrics, "/metrics")?;
        let measured = answer
            .body()
            .lines()
            .find_map(|line| line.strip_prefix(count));
        let measured: u64 = measured.context("nothing is measured")?.parse()?;
        ensure!(measured > 0, "{}", answer.body());
        Ok(())
    })
}

/// Makes a service whose slices say when that was, after the agent's start: whole seconds.
fn told_service(cluster: &Cluster) -> Result<()> {
    const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
    // The controller says it where it has not known the name before, and need not try again.
    for number in 1..=5 {
        thread::sleep(Duration::from_secs(1));
        let name = format!("new-{number}");
        let service = objects::service(&name, cluster_ip(10), Some("web"));
        cluster.admin.apply(&service)?;
        cluster.wait_for_backends(&format!("default/{name}"), 4)?;
        let slices: Vec<EndpointSlice> = cluster.admin.list("default")?;
        let told = slices.iter().any(|slice| {
            slice.address_type == "IPv4"
                && slice.name_any().starts_with(&name)
                && slice.annotations().contains_key(TRIGGER)
        });
        if told {
            return Ok(());
        }
        cluster.admin.delete::<Service>("default", &name)?;
    }
    bail!("the controller never says when a service was made")
}
