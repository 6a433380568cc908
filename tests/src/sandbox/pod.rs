//! A pod: a network namespace on a veth pair.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;

use super::{
    addresses::{self, Family, Pair},
    cgroup::Cgroup,
    client::{Client, Failure, Reply},
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
    /// After the namespace, whose threads are in it.
    _cgroup: Cgroup,
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
        let cgroup = node.pod_cgroup(&uid(name))?;
        let namespace = Namespace::create(&format!("{prefix}{name}"), Some(&cgroup))?;
        node.connect(&namespace, &interface, addresses)?;
        Ok(Self {
            name: name.to_owned(),
            node: node.name().to_owned(),
            interface,
            addresses,
            namespace,
            _cgroup: cgroup,
        })
    }

    /// The name of its Pod object, in the namespace `default`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The uid of its Pod object, which its cgroup is called by.
    pub fn uid(&self) -> String {
        uid(&self.name)
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
        self.serve_as(&self.name, protocol, port)
    }

    /// The same with another name in the answers.
    pub fn serve_as(&self, name: &str, protocol: Protocol, port: u16) -> Result<()> {
        server::start(&self.namespace, name, protocol, self.addresses, port)
    }

    /// A client in the pod.
    pub fn client(&self) -> Client<'_> {
        Client::any(&self.namespace)
    }

    /// Asks a server who it is, in a conversation of its own.
    pub fn ask(&self, protocol: Protocol, to: SocketAddr) -> Result<Reply, Failure> {
        self.client().ask(protocol, to)
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

/// The uid of the Pod object of a name: the name's bytes and nothing else, so that it can be known
/// before there is a pod.
pub(super) fn uid(name: &str) -> String {
    let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    let digits = format!("{digits:0<32}");
    format!(
        "{}-{}-{}-{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..32]
    )
}
