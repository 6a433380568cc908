//! Policies of an apiserver, and the labels that they select by.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{
    api::{core::v1::Pod, networking::v1::NetworkPolicy},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::api::{Api, DeleteParams};
use lb_tests::sandbox::{self, Family, Protocol, cluster_ip};
use serde_json::{Value, json};

use crate::{
    Test,
    clients::frontend,
    cluster::{Cluster, eventually},
    objects,
};

pub const TESTS: &[Test] = &[
    (
        "policies and labels come, change and go",
        policies_come_and_go,
    ),
    (
        "policies of the cluster come before others",
        cluster_policies,
    ),
];

/// The port that pods serve.
const TARGET: u16 = 8080;

fn network_policy(egress: &Value) -> String {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "client", "namespace": "default" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "client" } },
            "policyTypes": ["Egress"],
            "egress": egress,
        },
    })
    .to_string()
}

/// Waits until the client reaches a server, or does not any more.
fn wait_until(cluster: &Cluster, to: SocketAddr, reached: bool) -> Result<()> {
    eventually(&format!("{to} is reached: {reached}"), || {
        let reply = cluster.client().ask(Protocol::Tcp, to);
        ensure!(reply.is_ok() == reached, "{reply:?}");
        Ok(())
    })
}

fn policies_come_and_go(cluster: &mut Cluster) -> Result<()> {
    let _agent = cluster.start_agent()?;
    let web = objects::service("web", cluster_ip(10), Some("web"));
    cluster.admin.apply(&web)?;
    cluster.wait_for_backends("default/web", 4)?;
    let friend = cluster.web_pods().next().context("a pod")?;
    let stranger = cluster.web_pods().last().context("a pod")?;
    let to = |pod: &sandbox::Pod, family| SocketAddr::new(pod.address(family), TARGET);

    cluster.admin.apply(&network_policy(&json!([])))?;
    for family in Family::BOTH {
        wait_until(cluster, frontend(10, family), false)?;
        wait_until(cluster, to(friend, family), false)?;
    }
    let friends = json!([{ "to": [{ "podSelector": { "matchLabels": { "friend": "yes" } } }] }]);
    cluster.admin.apply(&network_policy(&friends))?;
    let label = |value: Value| {
        let change = json!({ "metadata": { "labels": { "friend": value } } });
        cluster
            .admin
            .merge::<Pod>("default", friend.name(), &change)
    };
    label("yes".into())?;
    for family in Family::BOTH {
        wait_until(cluster, to(friend, family), true)?;
        wait_until(cluster, to(stranger, family), false)?;
    }
    label(Value::Null)?;
    wait_until(cluster, to(friend, Family::V4), false)?;
    cluster.admin.delete::<NetworkPolicy>("default", "client")?;
    for family in Family::BOTH {
        wait_until(cluster, frontend(10, family), true)?;
        wait_until(cluster, to(stranger, family), true)?;
    }
    Ok(())
}

fn cluster_policies(cluster: &mut Cluster) -> Result<()> {
    cluster.admin.apply(objects::CLUSTER_NETWORK_POLICIES)?;
    let outcome = admin_tier(cluster);
    let gone = undefine(cluster);
    let policy = cluster.admin.delete::<NetworkPolicy>("default", "client");
    outcome.and(gone).and(policy)
}

/// What the Admin tier accepts no NetworkPolicy takes away.
fn admin_tier(cluster: &Cluster) -> Result<()> {
    cluster.admin.apply(&network_policy(&json!([])))?;
    let friend = cluster.web_pods().next().context("a pod")?;
    let to = SocketAddr::new(friend.address(Family::V4), TARGET);
    let policy = |action: &str| {
        let peers = json!([{ "pods": {
            "namespaceSelector": {},
            "podSelector": { "matchLabels": { "app": "web" } },
        } }]);
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2",
            "kind": "ClusterNetworkPolicy",
            "metadata": { "name": "web" },
            "spec": {
                "tier": "Admin",
                "priority": 10,
                "subject": { "namespaces": {} },
                "egress": [{ "name": "to-web", "action": action, "to": peers }],
            },
        })
        .to_string()
    };
    eventually("the kind is served", || {
        cluster.admin.apply(&policy("Accept"))
    })?;
    let _agent = cluster.start_agent()?;
    wait_until(cluster, to, true)?;
    cluster.admin.apply(&policy("Pass"))?;
    wait_until(cluster, to, false)?;
    cluster.admin.apply(&policy("Accept"))?;
    wait_until(cluster, to, true)?;
    cluster.admin.apply(&policy("Deny"))?;
    wait_until(cluster, to, false)
}

/// Deletes the definition, and with it all objects of the kind.
fn undefine(cluster: &Cluster) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.admin.kube());
    cluster.admin.namespace().run(async move {
        let name = "clusternetworkpolicies.policy.networking.k8s.io";
        api.delete(name, &DeleteParams::default()).await?;
        Ok(())
    })
}
