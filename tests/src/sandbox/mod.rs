//! A small cluster on one machine: nodes and pods are network namespaces, links are veth pairs.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use lb_tests::sandbox::{Family, Protocol, Sandbox, Topology};
//!
//! let sandbox = Sandbox::builder()
//!     .topology(Topology::Bridge)
//!     .nodes(2)
//!     .pod("client", 1)
//!     .pod("web", 2)
//!     .build()?;
//! let (client, web) = (sandbox.pod("client"), sandbox.pod("web"));
//! web.serve(Protocol::Tcp, 8080)?;
//! let reply = client.ask(Protocol::Tcp, (web.address(Family::V4), 8080).into())?;
//! assert_eq!(reply.server, "web");
//! # Ok(()) }
//! ```
//!
//! Needs root. Everything goes when the sandbox is dropped, and what a killed process left goes when
//! the next sandbox is built; [`remove_on_signal`] covers the signals that end a process.

mod addresses;
mod agent;
mod cgroup;
mod client;
mod endpoint;
mod http;
mod leftovers;
mod manifests;
mod namespace;
mod netfilter;
mod node;
mod overlay;
mod pod;
mod router;
mod server;
mod service;
mod tunnel;
mod wiring;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;

pub use self::{
    addresses::{
        Family, Pair, cluster_ip, outside_client, public_ip, public_networks, service_networks,
    },
    agent::{Agent, program, until},
    client::{Client, Conversation, Failure, PATIENCE, Reply},
    endpoint::Endpoint,
    http::{Answer, get},
    leftovers::remove_on_signal,
    manifests::{Manifests, service_cidr, text},
    namespace::{Namespace, tied},
    node::Node,
    pod::Pod,
    server::Protocol,
    service::Service,
};
use self::{
    cgroup::Cgroup,
    router::Router,
    tunnel::{OUTSIDE, Tunnels},
};

/// Host numbers of pods begin here.
const FIRST_POD: u8 = 10;

/// How a node reaches its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topology {
    /// A route to each pod through its own link, as the CNI plugin `ptp` and kindnet have it.
    PointToPoint,
    /// All pods on one bridge, as the CNI plugin `bridge` and flannel have it.
    Bridge,
    /// Point to point on the node, and VXLAN from node to node, as flannel has it.
    Vxlan,
    /// Point to point on the node, and a tunnel without a link layer to the other nodes and to what is
    /// outside, as with WireGuard.
    Tunnel,
}

impl Topology {
    pub const ALL: [Self; 4] = [Self::PointToPoint, Self::Bridge, Self::Vxlan, Self::Tunnel];

    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PointToPoint => "ptp",
            Self::Bridge => "bridge",
            Self::Vxlan => "vxlan",
            Self::Tunnel => "tunnel",
        }
    }

    /// The largest packet that a pod sends, in bytes.
    fn pod_mtu(self) -> u32 {
        match self {
            Self::PointToPoint | Self::Bridge => 1500,
            Self::Vxlan => overlay::MTU,
            Self::Tunnel => tunnel::MTU,
        }
    }
}

/// What a sandbox is to consist of.
pub struct Builder {
    topology: Topology,
    nodes: u8,
    pods: Vec<(String, u8)>,
}

impl Builder {
    /// How nodes reach their pods; point to point if not called.
    pub fn topology(self, topology: Topology) -> Self {
        Self { topology, ..self }
    }

    /// How many nodes there are; one if not called.
    pub fn nodes(self, nodes: u8) -> Self {
        Self { nodes, ..self }
    }

    /// Adds a pod on a node; nodes are counted from 1.
    pub fn pod(mut self, name: impl Into<String>, node: u8) -> Self {
        self.pods.push((name.into(), node));
        self
    }

    /// Makes the sandbox.
    pub fn build(self) -> Result<Sandbox> {
        static BUILT: AtomicU32 = AtomicU32::new(0);
        leftovers::remove_dead();

        let number = BUILT.fetch_add(1, Ordering::Relaxed) + 1;
        let prefix = format!("{}{number}-", leftovers::prefix(process::id()));
        let directory = leftovers::directory(process::id()).join(number.to_string());
        let cleanup = Cleanup(directory.clone());
        let cgroup = Cgroup::create(prefix.trim_end_matches('-'))?;
        let router = Router::create(&prefix)?;
        let nodes: Vec<Node> = (1..=self.nodes)
            .map(|node| Node::create(&prefix, node, self.topology, &router, &cgroup, &directory))
            .collect::<Result<_>>()?;
        let tunnels = self.tunnels(&nodes, &router)?;
        for node in &nodes {
            for other in nodes.iter().filter(|other| other.name() != node.name()) {
                node.route_to(other, tunnels.as_ref())?;
            }
        }
        let mut sandbox = Sandbox {
            prefix,
            pods: BTreeMap::new(),
            nodes,
            router,
            tunnels,
            _cgroup: cgroup,
            hosts: FIRST_POD,
            cleanup,
        };
        for (name, node) in self.pods {
            sandbox.add_pod(&name, node)?;
        }
        Ok(sandbox)
    }

    fn tunnels(&self, nodes: &[Node], router: &Router) -> Result<Option<Tunnels>> {
        if self.topology != Topology::Tunnel {
            return Ok(None);
        }
        let tunnels = Tunnels::default();
        tunnels.add(router.namespace(), OUTSIDE)?;
        for node in nodes {
            tunnels.add(node.namespace(), node.number())?;
            let own = node.addresses().networks();
            let tunnel = addresses::overlay(node.number()).networks();
            for networks in [own, tunnel] {
                tunnels.route(router.namespace(), networks, node.number())?;
            }
        }
        Ok(Some(tunnels))
    }
}

/// A small cluster. The fields stand in the order in which they go.
pub struct Sandbox {
    pods: BTreeMap<String, Pod>,
    nodes: Vec<Node>,
    router: Router,
    tunnels: Option<Tunnels>,
    _cgroup: Cgroup,
    cleanup: Cleanup,
    prefix: String,
    /// The host number of the next pod.
    hosts: u8,
}

impl Sandbox {
    pub fn builder() -> Builder {
        Builder {
            topology: Topology::PointToPoint,
            nodes: 1,
            pods: Vec::new(),
        }
    }

    /// Adds a pod on a node and returns once it can send.
    pub fn add_pod(&mut self, name: &str, node: u8) -> Result<&Pod> {
        let place = self.nodes.get(usize::from(node).wrapping_sub(1));
        let place = place.with_context(|| format!("there is no node {node}"))?;
        let pod = Pod::create(&self.prefix, name, place, self.hosts)
            .with_context(|| format!("make the pod {name}"))?;
        self.hosts += 1;
        self.pods.insert(name.to_owned(), pod);
        Ok(&self.pods[name])
    }

    /// Removes a pod.
    pub fn remove_pod(&mut self, name: &str) {
        self.pods.remove(name);
    }

    /// The pod with this name. Panics where there is none.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods
            .get(name)
            .unwrap_or_else(|| panic!("the sandbox has no pod {name}"))
    }

    /// All pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The nodes; the first is `node-1`.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The namespace of what is outside of the cluster: the nodes' default route.
    pub fn outside(&self) -> &Arc<Namespace> {
        self.router.namespace()
    }

    /// Its addresses.
    pub fn outside_addresses(&self) -> Pair {
        addresses::outside()
    }

    /// A client outside of the cluster by its number, from 1 to 8.
    pub fn outside_client(&self, number: u8) -> Client<'_> {
        Client::with(self.outside(), outside_client(number))
    }

    /// Sends what is for some networks from outside to a node, in place of another.
    pub fn route_outside(&self, networks: [IpNet; 2], node: &Node) -> Result<()> {
        match &self.tunnels {
            Some(tunnels) => tunnels.route(self.outside(), networks, node.number()),
            None => self.router.route(networks, node.addresses()),
        }
    }

    /// Serves a port outside.
    pub fn serve_outside(&self, on: Pair, name: &str, protocol: Protocol, port: u16) -> Result<()> {
        server::start(self.outside(), name, protocol, on, port)
    }

    /// Gives what is outside some more addresses.
    pub fn add_outside(&self, addresses: Pair) -> Result<()> {
        self.router.add_addresses(addresses)?;
        for node in &self.nodes {
            if let Some(tunnels) = &self.tunnels {
                tunnels.route(node.namespace(), addresses.networks(), OUTSIDE)?;
            }
        }
        Ok(())
    }

    /// A directory that goes with the sandbox.
    pub fn directory(&self) -> &Path {
        &self.cleanup.0
    }
}

struct Cleanup(PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        leftovers::remove_sandbox(&self.0);
        leftovers::remove_owner(process::id());
    }
}
