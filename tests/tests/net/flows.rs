//! What is chosen for a flow, and when it is chosen anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, UdpSocket},
    sync::Barrier,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    evenness::is_even,
    sandbox::{Conversation, Family, Pod, Protocol, Topology},
};
use libtest_mimic::Trial;

use crate::{
    each, trial,
    world::{Shape, Shared, Stage, TARGET, World, frontend, service},
};

/// Connections of a test of shares, and how many of them are open at a time.
const CONNECTIONS: usize = 2_500;
const AT_A_TIME: usize = 25;

pub fn trials(shared: &Shared) -> Vec<Trial> {
    let mut trials = each(shared, "shares are even", even_shares);
    trials.extend(
        each(shared, "two datagrams at once from a new port", at_once)
            .into_iter()
            .filter(|trial| trial.name().contains("UDP")),
    );
    for (end, how) in [("FIN", End::Fin), ("RST", End::Reset)] {
        for family in Family::BOTH {
            let shared = shared.clone();
            let name = format!("a closed flow ({end}) is chosen anew {}", family.name());
            trials.push(trial(name, move || {
                shared.run(|stage| reopened(stage, how, family))
            }));
        }
    }
    for topology in [Topology::PointToPoint, Topology::Bridge] {
        let name = format!("the first packet of a new pod is translated {topology:?}");
        trials.push(trial(name, move || first_packets(topology)));
    }
    trials
}

/// Opens connections in bundles and counts who answers.
pub fn count(
    client: &Pod,
    protocol: Protocol,
    to: SocketAddr,
    connections: usize,
) -> Result<BTreeMap<String, u32>> {
    let mut counts = BTreeMap::new();
    for _ in 0..connections / AT_A_TIME {
        let replies = client
            .run(futures::future::join_all((0..AT_A_TIME).map(
                |_| async move { Conversation::open(protocol, to).await?.ask().await },
            )));
        for reply in replies {
            *counts.entry(reply?.server).or_default() += 1;
        }
    }
    Ok(counts)
}

fn even_shares(stage: &Stage, protocol: Protocol, family: Family) -> Result<()> {
    let pods = ["other", "near", "far"].map(|name| stage.world.pod(name));
    let number = match (protocol, family) {
        (Protocol::Tcp, Family::V4) => 20,
        (Protocol::Tcp, Family::V6) => 21,
        (Protocol::Udp, Family::V4) => 22,
        (Protocol::Udp, Family::V6) => 23,
    };
    let spread = service(&format!("spread-{number}"), number).endpoints(pods);
    stage.world.program(&spread)?;
    let to = frontend(&spread, family);
    let counts = count(stage.world.client(), protocol, to, CONNECTIONS)?;
    ensure!(counts.len() == pods.len(), "{counts:?}");
    ensure!(is_even(counts.values().copied()), "{counts:?}");
    Ok(())
}

/// What a resolver does that asks for A and AAAA: both queries leave one new port in one moment, on
/// two CPUs.
fn at_once(stage: &Stage, _: Protocol, family: Family) -> Result<()> {
    const ROUNDS: usize = 300;

    let to = frontend(&stage.web, family);
    stage.world.client().namespace().run_blocking(move || {
        for round in 0..ROUNDS {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let start = Barrier::new(2);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        start.wait();
                        socket.send(b"who\n")
                    });
                }
            });
            let mut servers = BTreeSet::new();
            for _ in 0..2 {
                let mut answer = [0; 256];
                let size = socket
                    .recv(&mut answer)
                    .with_context(|| format!("round {round}"))?;
                servers.insert(String::from_utf8_lossy(&answer[..size]).into_owned());
            }
            ensure!(servers.len() == 1, "two servers have the flow: {servers:?}");
        }
        Ok(())
    })
}

#[derive(Clone, Copy)]
enum End {
    Fin,
    Reset,
}

fn reopened(stage: &Stage, end: End, family: Family) -> Result<()> {
    const ROUNDS: usize = 60;

    let to = frontend(&stage.web, family);
    let servers = stage.world.client().run(async move {
        let mut servers = BTreeSet::new();
        let mut port = 0;
        for round in 0..ROUNDS {
            let opened = Conversation::open_from(port, Protocol::Tcp, to).await;
            let conversation = opened.with_context(|| format!("round {round}, port {port}"))?;
            port = conversation.local().port();
            let reply = match end {
                End::Fin => conversation.part().await?,
                End::Reset => conversation.abort().await?,
            };
            servers.insert(reply.server);
        }
        anyhow::Ok(servers)
    })?;
    ensure!(servers.len() == 2, "one port always led to {servers:?}");
    Ok(())
}

fn first_packets(topology: Topology) -> Result<()> {
    const PODS: u8 = 10;
    /// Less than a container runtime needs between the network and the first process.
    const CONTAINER_START: Duration = Duration::from_millis(300);

    let mut world = World::without_agent(Shape {
        topology,
        ..Shape::PLAIN
    })?;
    let web = service("web", 10).endpoint(world.pod("near"));
    world.manifests.write_service(&web)?;
    world.start_agents()?;
    world.wait_for(&web)?;
    for i in 0..PODS {
        for family in Family::BOTH {
            let name = format!("new-{i}-{}", if family == Family::V4 { 4 } else { 6 });
            let to = frontend(&web, family);
            let pod = world.sandbox.add_pod(&name, 1)?;
            thread::sleep(CONTAINER_START);
            // One datagram, never repeated, and nothing before it.
            let reply = pod.ask(Protocol::Udp, to).with_context(|| name.clone())?;
            ensure!(reply.server == "near" && reply.true_source(), "{reply:?}");
            ensure!(
                reply.from.port() != TARGET,
                "it answered from its own address"
            );
            world.sandbox.remove_pod(&name);
        }
    }
    Ok(())
}
