//! The agent ends, in whatever way, and starts again: nobody notices.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use lb_tests::sandbox::{Conversation, Failure, Family, Pod, Protocol, Service, Topology, until};
use lb_userspace::status::Verdict;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use crate::{
    trial,
    world::{Shape, World, frontend, service},
};

/// Long connections, which each ask once in a pause.
const CONNECTIONS: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(500);

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("an agent that comes back after changes", changes_while_away),
        trial("a change of the way to attach", change_of_attachment),
    ];
    for attach in ["tcx", "clsact"] {
        for topology in [Topology::PointToPoint, Topology::Bridge] {
            let shape = Shape {
                topology,
                attach,
                nodes: 1,
            };
            let name = format!("restart under traffic {}", shape.name());
            trials.push(trial(name, move || under_traffic(shape)));
        }
    }
    trials
}

fn under_traffic(shape: Shape) -> Result<()> {
    let mut world = World::serving(shape, &[])?;
    let web = service("web", 10).endpoints([world.pod("near"), world.pod("far")]);
    world.program(&web)?;
    let load = Load::start(world.client(), &web)?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        for agent in &mut world.agents {
            agent.end(signal)?;
        }
        load.goes_on(|| format!("after {signal}"))?;
        new_connections(&world, &web).with_context(|| format!("after {signal}"))?;
        let list = world.sandbox.nodes()[0].lb(&["service", "list"])?;
        let text = String::from_utf8_lossy(&list.stdout);
        ensure!(
            list.status.success() && text.contains(&web.key()),
            "without an agent: {list:?}"
        );

        world.start_agents()?;
        world.wait_for(&web)?;
        load.goes_on(|| format!("back after {signal}"))?;
        new_connections(&world, &web).with_context(|| format!("back after {signal}"))?;
    }
    load.end()
}

/// The tables are brought up to date without touching what has not changed.
fn changes_while_away() -> Result<()> {
    let mut world = World::serving(Shape::PLAIN, &[])?;
    let kept = service("kept", 10).endpoint(world.pod("near"));
    let changed = service("changed", 11).endpoint(world.pod("near"));
    let gone = service("gone", 12).endpoint(world.pod("far"));
    for service in [&kept, &changed, &gone] {
        world.program(service)?;
    }
    let load = Load::start(world.client(), &kept)?;
    for agent in &mut world.agents {
        agent.end(Signal::SIGKILL)?;
    }
    let changed = changed.without("near").endpoint(world.pod("far"));
    let new = service("new", 13).endpoint(world.pod("far"));
    world.manifests.write_service(&changed)?;
    world.manifests.write_service(&new)?;
    world.manifests.remove(&gone.file())?;
    world.start_agents()?;
    for service in [&kept, &changed, &new] {
        world.wait_for(service)?;
    }
    for family in Family::BOTH {
        let ask = |service| world.client().ask(Protocol::Tcp, frontend(service, family));
        ensure!(ask(&kept)?.server == "near" && ask(&changed)?.server == "far");
        ensure!(ask(&new)?.server == "far");
        let result = ask(&gone);
        ensure!(result.is_err(), "what is gone answers: {result:?}");
    }
    load.end()
}

/// From tcx to clsact and back under traffic, without a packet that no program or both see.
fn change_of_attachment() -> Result<()> {
    let mut world = World::serving(Shape::PLAIN, &[])?;
    let web = service("web", 10).endpoints([world.pod("near"), world.pod("far")]);
    world.program(&web)?;
    let load = Load::start(world.client(), &web)?;
    for attach in ["clsact", "tcx"] {
        for agent in &mut world.agents {
            agent.end(Signal::SIGTERM)?;
        }
        world.attach(attach);
        world.start_agents()?;
        until("all interfaces are attached so", || {
            let status = world.sandbox.nodes()[0].status()?;
            let all = status
                .interfaces
                .iter()
                .all(|interface| match &interface.verdict {
                    Verdict::Taken { attach: how, .. } | Verdict::Device { attach: how, .. } => {
                        how == attach
                    }
                    Verdict::Failed { .. } => false,
                    Verdict::Left { .. } => true,
                });
            Ok(all.then_some(()))
        })?;
        load.goes_on(|| format!("with {attach}"))?;
        new_connections(&world, &web).with_context(|| format!("with {attach}"))?;
    }
    load.end()
}

fn new_connections(world: &World, service: &Service) -> Result<()> {
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let reply = world.client().ask(protocol, frontend(service, family));
            reply.with_context(|| format!("{protocol:?} {family:?}"))?;
        }
    }
    Ok(())
}

/// Long TCP connections of both families that never stop asking.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    broken: Arc<AtomicU64>,
    connections: Vec<JoinHandle<Result<(), Failure>>>,
}

impl Load {
    fn start(client: &Pod, service: &Service) -> Result<Self> {
        let mut load = Self {
            stop: Arc::default(),
            answers: Arc::default(),
            broken: Arc::default(),
            connections: Vec::new(),
        };
        for i in 0..CONNECTIONS {
            let to = frontend(service, Family::BOTH[i % 2]);
            let (stop, answers) = (load.stop.clone(), load.answers.clone());
            let broken = load.broken.clone();
            load.connections.push(client.spawn(async move {
                let result = keep_asking(to, &stop, &answers).await;
                broken.fetch_add(result.is_err().into(), Ordering::Relaxed);
                result
            }));
        }
        load.goes_on(|| "at the start".to_owned())?;
        Ok(load)
    }

    /// Waits until there have been several answers per connection, and none is broken.
    fn goes_on(&self, when: impl Fn() -> String) -> Result<()> {
        let enough = self.answers.load(Ordering::Relaxed) + 3 * CONNECTIONS as u64;
        until("the connections go on", || {
            let broken = self.broken.load(Ordering::Relaxed);
            ensure!(broken == 0, "{broken} connections broke {}", when());
            thread::sleep(PAUSE / 10);
            Ok((self.answers.load(Ordering::Relaxed) >= enough).then_some(()))
        })
    }

    /// Ends the connections; an error where one had broken.
    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for connection in futures::executor::block_on(join_all(self.connections)) {
            connection??;
        }
        Ok(())
    }
}

async fn keep_asking(
    to: SocketAddr,
    stop: &AtomicBool,
    answers: &AtomicU64,
) -> Result<(), Failure> {
    let mut conversation = Conversation::open(Protocol::Tcp, to).await?;
    let server = conversation.ask().await?.server;
    while !stop.load(Ordering::Relaxed) {
        if conversation.ask().await?.server != server {
            return Err(Failure::Broken("another server answered".to_owned()));
        }
        answers.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
