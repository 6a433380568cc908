//! What a `connect` of a process of the node costs: a UDP socket's, which sends nothing.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Instant,
};

use anyhow::Result;
use lb_tests::sandbox::{Agent, Client, Family, Manifests, Protocol, Sandbox, Service, cluster_ip};

use crate::measure::{Contender, Table, Unit, contest};

const PORT: u16 = 80;
const TARGET: u16 = 8080;

const ROUNDS: usize = 60;
const CONNECTS: u32 = 5_000;

pub fn run() -> Result<Vec<Table>> {
    let sandbox = Sandbox::builder().nodes(2).pod("server", 2).build()?;
    let [with, without] = sandbox.nodes() else {
        anyhow::bail!("there are two nodes");
    };
    let manifests = Manifests::create(sandbox.directory().join("manifests"))?;
    manifests.write("objects.yaml", &sandbox.objects())?;
    let service = Service::new("web", cluster_ip(10))
        .port("udp", Protocol::Udp, PORT, TARGET)
        .endpoint(sandbox.pod("server"));
    manifests.write_service(&service)?;
    let none: [&str; 0] = [];
    let agent = Agent::start(with, manifests.directory(), none)?;
    with.wait_for("the service is served", |status| service.is_served(status))?;

    let server = SocketAddr::new(sandbox.pod("server").address(Family::V4), TARGET);
    let service = SocketAddr::new(cluster_ip(10).get(Family::V4), PORT);
    let table = contest(
        "connect() of a process of a node, by UDP",
        Unit::Nanoseconds,
        ROUNDS,
        vec![
            to(
                without.client(),
                "a node without our hooks, to a pod",
                server,
            ),
            to(with.client(), "with our hooks, to a pod", server),
            to(with.client(), "with our hooks, to a ClusterIP", service),
        ],
    );
    drop(agent);
    Ok(vec![table?])
}

/// The nanoseconds that a connect to an address takes.
fn to<'a>(client: Client<'a>, name: &str, to: SocketAddr) -> Contender<'a> {
    Contender::new(name, move || {
        client.run(async move {
            let socket = UdpSocket::bind((IpAddr::from([0, 0, 0, 0]), 0))?;
            let started = Instant::now();
            for _ in 0..CONNECTS {
                socket.connect(to)?;
            }
            Ok(started.elapsed().as_nanos() as f64 / f64::from(CONNECTS))
        })
    })
}
