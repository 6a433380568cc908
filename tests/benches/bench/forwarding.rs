//! Connections through a sandbox: connect, one request and its response, and a reset, after which
//! neither side keeps the ports: a server that has closed a connection refuses what comes from the
//! same port within a minute, if its timestamp is older (RFC 7323, 5), and random ports meet again
//! soon. Through a service against the same server dialled directly.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_tests::sandbox::{
    Agent, Client, Conversation, Family, Manifests, Protocol, Sandbox, Service, cluster_ip,
};

use crate::measure::{Contender, Table, Unit, contest};

const PORT: u16 = 80;
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30080;

/// How many clients dial at the same time.
const CLIENTS: usize = 8;
const SAMPLE: Duration = Duration::from_millis(500);
const ROUNDS: usize = 15;

pub fn run() -> Result<Vec<Table>> {
    let sandbox = Sandbox::builder()
        .nodes(2)
        .pod("client", 1)
        .pod("server", 2)
        .build()?;
    let (client, server) = (sandbox.pod("client"), sandbox.pod("server"));
    let [near, far] = sandbox.nodes() else {
        anyhow::bail!("there are two nodes");
    };
    server.serve(Protocol::Tcp, TARGET)?;
    far.serve("far", Protocol::Tcp, TARGET)?;
    // A client makes more connections a minute than a system gives ports by default.
    for namespace in [client.namespace(), sandbox.outside()] {
        namespace.set("ipv4/ip_local_port_range", "1024 65535")?;
    }
    let (agents, manifests) = serve(&sandbox)?;

    let outside = sandbox.outside_client(1);
    let at = |address, port| SocketAddr::new(address, port);
    let v4 = Family::V4;
    let cluster_ip = contest(
        "Connections from a pod to a pod of another node",
        Unit::PerSecond,
        ROUNDS,
        vec![
            to(
                client.client(),
                "the pod itself",
                at(server.address(v4), TARGET),
            ),
            to(
                client.client(),
                "its ClusterIP",
                at(cluster_ip(10).get(v4), PORT),
            ),
        ],
    )?;
    let node_port = contest(
        "Connections from outside to a server on the second node",
        Unit::PerSecond,
        ROUNDS,
        vec![
            to(
                outside,
                "a port of that node itself",
                at(far.addresses().get(v4), TARGET),
            ),
            to(
                outside,
                "a NodePort of the first node",
                at(near.addresses().get(v4), NODE_PORT),
            ),
        ],
    );
    drop((agents, manifests));
    Ok(vec![cluster_ip, node_port.context("by NodePort")?])
}

/// Starts an agent on each node with a service of `server`, and waits until it is served.
fn serve(sandbox: &Sandbox) -> Result<(Vec<Agent>, Manifests)> {
    let manifests = Manifests::create(sandbox.directory().join("manifests"))?;
    manifests.write("objects.yaml", &sandbox.objects())?;
    let service = Service::new("web", cluster_ip(10))
        .port("tcp", Protocol::Tcp, PORT, TARGET)
        .node_port(NODE_PORT)
        .endpoint(sandbox.pod("server"));
    manifests.write_service(&service)?;
    let mut agents = Vec::new();
    for node in sandbox.nodes() {
        let none: [&str; 0] = [];
        agents.push(Agent::start(node, manifests.directory(), none)?);
        node.wait_for("the service is served", |status| service.is_served(status))?;
    }
    Ok((agents, manifests))
}

/// How many connections a second there are to an address.
fn to<'a>(client: Client<'a>, name: &str, to: SocketAddr) -> Contender<'a> {
    Contender::new(name, move || {
        let from = client.from(to);
        let made = Arc::new(AtomicU32::new(0));
        let started = Instant::now();
        let sum = Arc::clone(&made);
        client
            .run(async move {
                let dial = || {
                    let made = Arc::clone(&made);
                    async move {
                        while started.elapsed() < SAMPLE {
                            let conversation =
                                Conversation::open_at(from, Protocol::Tcp, to).await?;
                            conversation.abort().await?;
                            made.fetch_add(1, Ordering::Relaxed);
                        }
                        anyhow::Ok(())
                    }
                };
                let clients: Vec<_> = (0..CLIENTS).map(|_| dial()).collect();
                futures::future::try_join_all(clients).await
            })
            .with_context(|| format!("dial {to}"))?;
        Ok(f64::from(sum.load(Ordering::Relaxed)) / started.elapsed().as_secs_f64())
    })
}
