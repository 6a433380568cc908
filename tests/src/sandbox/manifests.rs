//! Objects as `kubectl get -o yaml` prints them, and the directory that the agent reads them from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    Sandbox,
    addresses::{Pair, service_networks},
    node::Node,
    pod::{self, Pod},
    service::Service,
};

/// The namespace of all objects that have one.
pub(super) const NAMESPACE: &str = "default";

impl Sandbox {
    /// Its Nodes and Pods, with a host-network pod on each node.
    pub fn objects(&self) -> Vec<Value> {
        let mut objects: Vec<Value> = self.nodes().iter().map(node).collect();
        objects.extend(self.pods().map(|pod| self.pod_object(pod)));
        objects.extend(self.nodes().iter().map(host_pod));
        objects
    }

    fn pod_object(&self, pod: &Pod) -> Value {
        let host = self.nodes().iter().find(|node| node.name() == pod.node());
        pod_object(
            pod.name(),
            pod.node(),
            host.map(Node::addresses),
            pod.addresses(),
            false,
        )
    }
}

/// The networks that ClusterIPs are from, as the apiserver publishes them.
pub fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": service_networks() },
    })
}

fn host_pod(node: &Node) -> Value {
    let name = format!("host-{}", node.name());
    pod_object(
        &name,
        node.name(),
        Some(node.addresses()),
        node.addresses(),
        true,
    )
}

fn node(node: &Node) -> Value {
    let addresses: Vec<Value> = node
        .addresses()
        .each()
        .into_iter()
        .map(|address| json!({ "address": address, "type": "InternalIP" }))
        .chain([json!({ "address": node.name(), "type": "Hostname" })])
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "labels": {
                "kubernetes.io/hostname": node.name(),
                "topology.kubernetes.io/zone": node.zone(),
            },
            "name": node.name(),
        },
        "spec": {
            "podCIDR": node.pod_networks()[0],
            "podCIDRs": node.pod_networks(),
        },
        "status": { "addresses": addresses },
    })
}

fn pod_object(name: &str, node: &str, host: Option<Pair>, own: Pair, host_network: bool) -> Value {
    let addresses = |pair: Pair| pair.each().map(|ip| json!({ "ip": ip }));
    let mut spec = json!({
        "containers": [{ "image": "example.com/server", "name": "server" }],
        "nodeName": node,
    });
    if host_network {
        spec["hostNetwork"] = true.into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "labels": { "app": name.split('-').next() },
            "name": name,
            "namespace": NAMESPACE,
            "uid": pod::uid(name),
        },
        "spec": spec,
        "status": {
            "conditions": [{ "status": "True", "type": "Ready" }],
            "hostIP": host.map(|host| host.v4),
            "hostIPs": host.map(addresses),
            "phase": "Running",
            "podIP": own.v4,
            "podIPs": addresses(own),
        },
    })
}

/// A directory of manifests.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    /// Makes the directory.
    pub fn create(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(Self { directory })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a file of objects.
    pub fn write(&self, file: &str, objects: &[Value]) -> Result<()> {
        self.write_text(file, &text(objects)?)
    }

    /// Writes a Service with its EndpointSlices to a file of its own.
    pub fn write_service(&self, service: &Service) -> Result<()> {
        self.write(&service.file(), &service.objects())
    }

    /// Writes a file in one step: a reader sees the old text or the new.
    pub fn write_text(&self, file: &str, text: &str) -> Result<()> {
        let path = self.directory.join(file);
        let unfinished = self.directory.join(format!(".{file}"));
        let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, &path));
        written.with_context(|| format!("write {}", path.display()))
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}

/// The text of a file with these objects.
pub fn text(objects: &[Value]) -> Result<String> {
    let documents: Vec<String> = objects
        .iter()
        .map(serde_saphyr::to_string)
        .collect::<Result<_, _>>()?;
    Ok(documents.join("---\n"))
}
