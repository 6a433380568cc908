//! What the other tests rely on: the control plane does what one does, and can be made to fail in
//! the ways that the agent has to bear.

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Pod, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::api::{Api, WatchEvent, WatchParams};
use lb_tests::sandbox::Family;
use serde_json::json;

use crate::{Test, cluster::Cluster};

pub const TESTS: &[Test] = &[
    (
        "the control plane has the objects of every cluster",
        has_the_usual_objects,
    ),
    (
        "the role of the DaemonSet is enough to see and too small for more",
        role_is_exact,
    ),
    (
        "the apiserver comes back with what it knew",
        apiserver_comes_back,
    ),
    (
        "a watcher that was away is told 410 Gone",
        watcher_is_told_gone,
    ),
];

fn has_the_usual_objects(cluster: &mut Cluster) -> Result<()> {
    let service: Service = cluster.admin.get("default", "kubernetes")?;
    let cluster_ip = service.spec.and_then(|spec| spec.cluster_ip);
    ensure!(cluster_ip.as_deref() == Some("10.96.0.1"), "{cluster_ip:?}");
    let slice: EndpointSlice = cluster.admin.get("default", "kubernetes")?;
    let address = cluster.plane.address().to_string();
    ensure!(
        slice
            .endpoints
            .iter()
            .flatten()
            .any(|endpoint| endpoint.addresses.contains(&address)),
        "{slice:?}"
    );

    for pod in cluster.sandbox.pods() {
        let object: Pod = cluster.admin.get("default", pod.name())?;
        let status = object.status.context("a pod without a status")?;
        ensure!(status.phase.as_deref() == Some("Running"), "{status:?}");
        let address = pod.address(Family::V4).to_string();
        ensure!(status.pod_ip == Some(address), "{status:?}");
    }
    cluster.admin.get::<DaemonSet>("kube-system", "lb")?;
    Ok(())
}

fn role_is_exact(cluster: &mut Cluster) -> Result<()> {
    let token = cluster.admin.service_account_token("kube-system", "lb")?;
    let agent = cluster.plane.client(&token)?;
    agent.list::<Service>("default")?;
    agent.list::<EndpointSlice>("default")?;
    agent.list::<Pod>("default")?;
    ensure!(
        agent.list::<Secret>("kube-system").is_err(),
        "it reads secrets"
    );
    ensure!(
        agent.delete::<Pod>("default", "web-1").is_err(),
        "it deletes pods"
    );
    Ok(())
}

fn apiserver_comes_back(cluster: &mut Cluster) -> Result<()> {
    let before: Service = cluster.admin.get("default", "kubernetes")?;
    cluster.plane.kill_apiserver();
    ensure!(
        cluster.admin.ready().is_err(),
        "it answers after it was killed"
    );
    cluster.plane.start_apiserver()?;
    let after: Service = cluster.admin.get("default", "kubernetes")?;
    ensure!(
        before.metadata.uid == after.metadata.uid,
        "{before:?} became {after:?}"
    );
    Ok(())
}

fn watcher_is_told_gone(cluster: &mut Cluster) -> Result<()> {
    let change = |number: u8| {
        let change = json!({ "metadata": { "annotations": { "change": number.to_string() } } });
        cluster.admin.merge::<Pod>("default", "web-1", &change)
    };
    change(1)?;
    let pod: Pod = cluster.admin.get("default", "web-1")?;
    let seen = pod
        .metadata
        .resource_version
        .context("no resourceVersion")?;
    change(2)?;
    ensure!(
        watch_since(cluster, &seen)? != Some(410),
        "forgotten too soon"
    );
    cluster.plane.kill_apiserver();
    cluster.plane.compact()?;
    cluster.plane.start_apiserver()?;
    let code = watch_since(cluster, &seen)?;
    ensure!(code == Some(410), "{code:?}");
    Ok(())
}

/// The code of the error that a watch of pods begins with, if it is one.
pub fn watch_since(cluster: &Cluster, version: &str) -> Result<Option<u16>> {
    let api: Api<Pod> = Api::namespaced(cluster.admin.kube(), "default");
    let version = version.to_owned();
    cluster.admin.namespace().run(async move {
        let events = api
            .watch(&WatchParams::default().timeout(10), &version)
            .await?;
        let first = events.boxed().next().await.transpose()?;
        Ok(match first {
            Some(WatchEvent::Error(status)) => Some(status.code),
            Some(_) | None => None,
        })
    })
}
