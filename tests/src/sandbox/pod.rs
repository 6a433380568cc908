//! A pod: a network namespace on a veth pair.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;

use super::{
    addresses::{self, Family, Pair},
    client::{self, Failure, Reply},
    namespace::Namespace,
    node::Node,
    server::{self, Protocol},
};

/// Interface names end after 15 characters.
const LONGEST_NAME: usize = 15 - "veth-".len();

/// A simulated pod. Goes, as its interface does, when it is dropped.
pub struct Pod {
    name: String,
    node: String,
    interface: String,
    addresses: Pair,
    namespace: Namespace,
}

impl Pod {
    /// Makes a pod and connects it to its node.
    pub(super) fn create(prefix: &str, name: &str, node: &Node, host: u8) -> Result<Self> {
        ensure!(
            name.len() <= LONGEST_NAME,
            "{name} is longer than {LONGEST_NAME} characters"
        );
        let interface = format!("veth-{name}");
        let addresses = addresses::pod(node.number(), host);
        let namespace = Namespace::create(&format!("{prefix}{name}"))?;
        node.connect(&namespace, &interface, addresses)?;
        Ok(Self {
            name: name.to_owned(),
            node: node.name().to_owned(),
            interface,
            addresses,
            namespace,
        })
    }

    /// The name of its Pod object, in the namespace `default`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its interface as its node sees it.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    pub fn addresses(&self) -> Pair {
        self.addresses
    }

    /// Its address of one family.
    pub fn address(&self, family: Family) -> IpAddr {
        self.addresses.get(family)
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Serves a port on both addresses until the pod goes.
    pub fn serve(&self, protocol: Protocol, port: u16) -> Result<()> {
        server::start(&self.namespace, &self.name, protocol, self.addresses, port)
    }

    /// Asks a server who it is, in a conversation of its own.
    pub fn ask(&self, protocol: Protocol, to: SocketAddr) -> Result<Reply, Failure> {
        client::ask(&self.namespace, protocol, to)
    }

    /// Runs a future in the pod; see [`Namespace::run`].
    pub fn run<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.namespace.run(future)
    }

    /// Starts a future in the pod; see [`Namespace::spawn`].
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.namespace.spawn(future)
    }
}
