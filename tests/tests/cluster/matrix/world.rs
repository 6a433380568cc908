//! Three namespaces of three pods over two nodes, whose pods all serve the same ports, and a Service
//! for each pod.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_tests::{
    control_plane::Binaries,
    sandbox::{Agent, Family, Pair, Pod, Protocol, Sandbox, cluster_ip, text},
};
use serde_json::{Value, json};

use super::in_force::{self, SENTRIES};
use crate::{
    cluster::{Cluster, eventually},
    objects,
};

/// A namespace, its team, and the nodes of its pods. The namespace z has no team.
const NAMESPACES: [(&str, Option<&str>, [u8; 3]); 3] = [
    ("x", Some("red"), [1, 2, 1]),
    ("y", Some("blue"), [1, 2, 2]),
    ("z", None, [1, 2, 1]),
];
/// The pods of each namespace, and their tiers. Pods c have none.
const PODS: [(&str, Option<&str>); 3] = [("a", Some("front")), ("b", Some("back")), ("c", None)];
/// What every pod serves, by TCP and UDP.
pub const PORTS: [u16; 2] = [80, 81];
/// How much more the port of a Service is than the one that its pod serves.
const SERVICE_PORTS: u16 = 1000;
/// The number of the first Service's ClusterIP.
const FIRST_CLUSTER_IP: u8 = 101;

/// One of the nine pods, by its place among them.
pub type Place = usize;

/// The world, with an agent on each node. The fields stand in the order in which they go.
pub struct World {
    agents: Vec<Agent>,
    pub cluster: Cluster,
}

impl World {
    /// Starts it, without any policy.
    pub fn start(binaries: Binaries) -> Result<Self> {
        let mut sandbox = Sandbox::builder().nodes(2);
        for (namespace, name, node) in pods() {
            sandbox = sandbox.pod(format!("{namespace}-{name}"), node);
        }
        for (name, node) in SENTRIES {
            sandbox = sandbox.pod(name, node);
        }
        let cluster = Cluster::of(binaries, sandbox.build()?)?;
        let mut world = Self {
            agents: Vec::new(),
            cluster,
        };
        world.ensure_plan()?;
        world.serve()?;
        // An agent looks but once a minute for a kind that it has not found.
        world.write()?;
        for node in world.cluster.sandbox.nodes() {
            world.agents.push(world.cluster.start_agent_on(node)?);
        }
        Ok(world)
    }

    /// What the agents have logged.
    pub fn logs(&self) -> String {
        self.agents.iter().map(Agent::log).collect()
    }

    /// The networks of the cases are about these addresses.
    fn ensure_plan(&self) -> Result<()> {
        let addresses = |place| self.pod(place).addresses().each().map(|ip| ip.to_string());
        let (first, last) = (addresses(0), addresses(8));
        ensure!(first == ["10.244.1.10", "fd00:10:244:1::10"], "{first:?}");
        ensure!(last == ["10.244.1.18", "fd00:10:244:1::18"], "{last:?}");
        Ok(())
    }

    fn serve(&self) -> Result<()> {
        for place in 0..pods().count() {
            for protocol in Protocol::BOTH {
                for port in PORTS {
                    self.pod(place).serve(protocol, port)?;
                }
            }
        }
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let admin = &self.cluster.admin;
        let mut nodes = self.cluster.sandbox.objects();
        nodes.retain(|object| object["kind"] == "Node");
        admin.apply(objects::CLUSTER_NETWORK_POLICIES)?;
        admin.apply(&text(&nodes)?)?;
        let (namespaces, others): (Vec<_>, Vec<_>) = self
            .objects()
            .into_iter()
            .chain(in_force::objects(&self.cluster.sandbox))
            .partition(|object| object["kind"] == "Namespace");
        admin.apply(&text(&namespaces)?)?;
        // A namespace takes pods once it has a service account.
        eventually("the namespaces take pods", || {
            admin.apply(&text(&others)?)?;
            admin.apply(&text(&self.services())?)
        })
    }

    /// Its Namespaces and Pods.
    pub fn objects(&self) -> Vec<Value> {
        let namespaces = NAMESPACES.iter().map(|(name, team, _)| {
            let mut labels = json!({ "kubernetes.io/metadata.name": name, "ns": name });
            if let Some(team) = team {
                labels["team"] = (*team).into();
            }
            json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": { "name": name, "labels": labels },
            })
        });
        let pods = pods().enumerate().map(|(place, (namespace, name, _))| {
            let mut labels = json!({ "pod": name, "server": name });
            let tier = PODS
                .iter()
                .find_map(|(pod, tier)| tier.filter(|_| *pod == name));
            if let Some(tier) = tier {
                labels["tier"] = tier.into();
            }
            let pod = self.pod(place);
            let mut object = pod_object(namespace, name, pod.node(), pod.addresses(), &labels);
            object["spec"]["containers"] = containers(name);
            object
        });
        namespaces.chain(pods).collect()
    }

    /// The Service of each pod. The label that it selects by never changes.
    fn services(&self) -> Vec<Value> {
        let service = |(place, (namespace, name, _))| {
            let ips = service_ips(place);
            let ports = Protocol::BOTH.into_iter().flat_map(|protocol| {
                PORTS.map(|port| {
                    json!({
                        "name": port_name(protocol, port),
                        "protocol": protocol.name(),
                        "port": port + SERVICE_PORTS,
                        "targetPort": port,
                    })
                })
            });
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": name, "namespace": namespace },
                "spec": {
                    "clusterIP": ips.v4,
                    "clusterIPs": ips.each(),
                    "ipFamilyPolicy": "RequireDualStack",
                    "ipFamilies": Family::BOTH.map(Family::name),
                    "selector": { "server": name },
                    "ports": ports.collect::<Vec<_>>(),
                },
            })
        };
        pods().enumerate().map(service).collect()
    }

    pub fn pod(&self, place: Place) -> &Pod {
        self.cluster.sandbox.pod(&name(place).replace('/', "-"))
    }
}

/// How one pod dials another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// By its own address.
    Pod,
    /// By the ClusterIP of its Service, at another port.
    Service,
}

impl Way {
    pub const BOTH: [Self; 2] = [Self::Pod, Self::Service];

    /// What is dialled for a port of a pod.
    pub fn address(self, pod: &Pod, place: Place, family: Family, port: u16) -> SocketAddr {
        match self {
            Self::Pod => SocketAddr::new(pod.address(family), port),
            Self::Service => SocketAddr::new(service_ips(place).get(family), port + SERVICE_PORTS),
        }
    }
}

/// The namespace, name and node of each of the nine.
fn pods() -> impl Iterator<Item = (&'static str, &'static str, u8)> {
    NAMESPACES.iter().flat_map(|(namespace, _, nodes)| {
        let pods = PODS.iter().zip(nodes);
        pods.map(move |((name, _), node)| (*namespace, *name, *node))
    })
}

/// Where each of the nine is among them.
pub fn places() -> impl Iterator<Item = Place> {
    0..pods().count()
}

/// `namespace/name`.
pub fn name(place: Place) -> String {
    let (namespace, name, _) = pods().nth(place).unwrap_or_default();
    format!("{namespace}/{name}")
}

fn service_ips(place: Place) -> Pair {
    let number = u8::try_from(place).unwrap_or(u8::MAX);
    cluster_ip(FIRST_CLUSTER_IP.saturating_add(number))
}

fn port_name(protocol: Protocol, port: u16) -> String {
    format!("serve-{port}-{}", protocol.name().to_lowercase())
}

/// Every port has a name; another container calls one of them `web`: 80 of pods a, 81 of pods c, none
/// of pods b.
fn containers(pod: &str) -> Value {
    let port = |name: &str, protocol: Protocol, port| json!({ "name": name, "containerPort": port, "protocol": protocol.name() });
    let container = |name: &str, ports: Vec<Value>| json!({ "name": name, "image": "example.com/server", "ports": ports });
    let served = Protocol::BOTH.into_iter().flat_map(|protocol| {
        PORTS.map(|number| port(&port_name(protocol, number), protocol, number))
    });
    let web = match pod {
        "a" => Some(80),
        "c" => Some(81),
        _ => None,
    };
    let web = web.map(|number| port("web", Protocol::Tcp, number));
    let web = container("web", web.into_iter().collect());
    [container("server", served.collect()), web]
        .into_iter()
        .collect()
}

/// A Pod that runs.
pub fn pod_object(namespace: &str, name: &str, node: &str, ips: Pair, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": {
            "containers": [{ "name": "server", "image": "example.com/server" }],
            "nodeName": node,
        },
        "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True" }],
            "podIP": ips.v4,
            "podIPs": ips.each().map(|ip| json!({ "ip": ip })),
        },
    })
}
