//! Objects as `kubectl get -o yaml` prints them, and the directory that the agent reads them from.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use lb_userspace::status::Status;
use serde_json::{Value, json};

use super::{
    Sandbox,
    addresses::{Family, Pair},
    node::Node,
    pod::Pod,
    server::Protocol,
};

/// The namespace of all objects that have one.
const NAMESPACE: &str = "default";

/// A Service and the EndpointSlices that belong to it.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    ips: Pair,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    protocol: Protocol,
    port: u16,
    target: u16,
}

/// What an EndpointSlice says of a pod.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pod: String,
    node: String,
    addresses: Pair,
    ready: bool,
    serving: bool,
    terminating: bool,
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        Self::ready(pod.name(), pod.node(), pod.addresses())
    }
}

impl From<&Node> for Endpoint {
    /// The host-network pod that [`Sandbox::objects`] gives every node.
    fn from(node: &Node) -> Self {
        Self::ready(
            &format!("host-{}", node.name()),
            node.name(),
            node.addresses(),
        )
    }
}

impl Endpoint {
    fn ready(pod: &str, node: &str, addresses: Pair) -> Self {
        Self {
            pod: pod.to_owned(),
            node: node.to_owned(),
            addresses,
            ready: true,
            serving: true,
            terminating: false,
        }
    }

    /// The same while the pod shuts down and still answers.
    #[must_use]
    pub fn terminating(self) -> Self {
        Self {
            ready: false,
            terminating: true,
            ..self
        }
    }

    fn object(&self, family: Family) -> Value {
        json!({
            "addresses": [self.addresses.get(family)],
            "conditions": {
                "ready": self.ready,
                "serving": self.serving,
                "terminating": self.terminating,
            },
            "nodeName": self.node,
            "targetRef": { "kind": "Pod", "name": self.pod, "namespace": NAMESPACE },
        })
    }
}

impl Service {
    /// A dual-stack Service without ports and endpoints.
    pub fn new(name: &str, ips: Pair) -> Self {
        Self {
            name: name.to_owned(),
            ips,
            ports: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    /// Adds a port: what clients dial, and what the pods listen on.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, port: u16, target: u16) -> Self {
        self.ports.push(Port {
            name: name.to_owned(),
            protocol,
            port,
            target,
        });
        self
    }

    /// Adds an endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// Adds an endpoint for each of several pods.
    #[must_use]
    pub fn endpoints<'a>(self, pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        pods.into_iter().fold(self, Self::endpoint)
    }

    /// Takes the endpoint of a pod out.
    #[must_use]
    pub fn without(mut self, pod: &str) -> Self {
        self.endpoints.retain(|endpoint| endpoint.pod != pod);
        self
    }

    /// The file that [`Manifests::write_service`] writes.
    pub fn file(&self) -> String {
        format!("{}.yaml", self.name)
    }

    /// The ClusterIP of one family.
    pub fn ip(&self, family: Family) -> IpAddr {
        self.ips.get(family)
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{NAMESPACE}/{}", self.name)
    }

    /// Whether a node serves it as the objects say: with the ready endpoints, all ports, and both
    /// families.
    pub fn is_served(&self, status: &Status) -> bool {
        let Some(served) = status
            .services
            .iter()
            .find(|served| served.service == self.key())
        else {
            return false;
        };
        let expected: BTreeSet<(SocketAddr, &str, BTreeSet<SocketAddr>)> = Family::BOTH
            .into_iter()
            .flat_map(|family| self.ports.iter().map(move |port| (family, port)))
            .map(|(family, port)| {
                let ready = self.endpoints.iter().filter(|endpoint| endpoint.ready);
                let backends = ready
                    .map(|endpoint| SocketAddr::new(endpoint.addresses.get(family), port.target))
                    .collect();
                (
                    SocketAddr::new(self.ip(family), port.port),
                    port.protocol.name(),
                    backends,
                )
            })
            .collect();
        let actual = served.ports.iter().flat_map(|port| {
            let backends: BTreeSet<SocketAddr> = port.backends.iter().copied().collect();
            let frontends = port.frontends.iter();
            frontends.map(move |frontend| (*frontend, &port.protocol[..], backends.clone()))
        });
        actual.collect::<BTreeSet<_>>() == expected
    }

    /// The Service and one EndpointSlice per family.
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![self.service()];
        objects.extend(Family::BOTH.map(|family| self.slice(family)));
        objects
    }

    fn service(&self) -> Value {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| {
                json!({
                    "name": port.name,
                    "port": port.port,
                    "protocol": port.protocol.name(),
                    "targetPort": port.target,
                })
            })
            .collect();
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": NAMESPACE },
            "spec": {
                "clusterIP": self.ips.v4,
                "clusterIPs": self.ips.each(),
                "internalTrafficPolicy": "Cluster",
                "ipFamilies": Family::BOTH.map(Family::name),
                "ipFamilyPolicy": "RequireDualStack",
                "ports": ports,
                "selector": { "app": self.name },
                "sessionAffinity": "None",
                "type": "ClusterIP",
            },
        })
    }

    fn slice(&self, family: Family) -> Value {
        let endpoints: Vec<Value> = self
            .endpoints
            .iter()
            .map(|endpoint| endpoint.object(family))
            .collect();
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| {
                json!({
                    "name": port.name,
                    "port": port.target,
                    "protocol": port.protocol.name(),
                })
            })
            .collect();
        json!({
            "addressType": family.name(),
            "apiVersion": "discovery.k8s.io/v1",
            "endpoints": endpoints,
            "kind": "EndpointSlice",
            "metadata": {
                "labels": {
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "kubernetes.io/service-name": self.name,
                },
                "name": format!("{}-{}", self.name, family.name().to_lowercase()),
                "namespace": NAMESPACE,
            },
            "ports": ports,
        })
    }
}

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
            "labels": { "kubernetes.io/hostname": node.name() },
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
