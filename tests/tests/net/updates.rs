//! What clients notice of a Service that changes: nothing but who answers.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::sandbox::{Conversation, Endpoint, Failure, Family, Pod, Protocol, Reply};
use libtest_mimic::Trial;
use tokio::task::JoinHandle;

use crate::{
    flows::count,
    trial,
    world::{PORT, Shape, TARGET, World, frontend, service},
};

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("connections during updates", connections_during_updates),
        trial(
            "a Service that appears, moves to other ports, and goes",
            comes_and_goes,
        ),
        trial("connections from before the agent", from_before_the_agent),
    ];
    for family in Family::BOTH {
        let name = |what: &str| format!("{what} {}", family.name());
        trials.extend([
            trial(
                name("a removed backend keeps its connections and gets no new one"),
                move || removed(family),
            ),
            trial(
                name("a UDP socket moves on when its backend is removed"),
                move || moves_on(family),
            ),
            trial(name("a terminating backend keeps its flows"), move || {
                terminating(family)
            }),
        ]);
    }
    trials
}

fn removed(family: Family) -> Result<()> {
    let world = World::serving(Shape::PLAIN, &[])?;
    let both = service("web", 10).endpoints([world.pod("near"), world.pod("far")]);
    let near = both.clone().without("far");
    let to = frontend(&both, family);
    for _ in 0..3 {
        world.program(&both)?;
        let mut far = converse_with(world.client(), Protocol::Tcp, to, "far")?;
        world.program(&near)?;
        for protocol in Protocol::BOTH {
            let counts = count(world.client(), protocol, to, 200)?;
            ensure!(counts.keys().eq(["near"]), "{counts:?}");
        }
        let reply = world.client().run(async move { far.ask().await });
        ensure!(reply?.server == "far", "an open connection changed sides");
    }
    Ok(())
}

fn moves_on(family: Family) -> Result<()> {
    let world = World::serving(Shape::PLAIN, &[])?;
    let both = service("web", 10).endpoints([world.pod("near"), world.pod("far")]);
    let to = frontend(&both, family);
    for leaver in ["near", "far", "near"] {
        world.program(&both)?;
        let mut socket = converse_with(world.client(), Protocol::Udp, to, leaver)?;
        world.program(&both.clone().without(leaver))?;
        let reply = world.client().run(async move { socket.ask().await })?;
        ensure!(reply.server != leaver, "the socket is stuck with {leaver}");
    }
    Ok(())
}

fn terminating(family: Family) -> Result<()> {
    let world = World::serving(Shape::PLAIN, &[])?;
    let (near, far) = (world.pod("near"), world.pod("far"));
    let both = service("web", 10).endpoints([near, far]);
    world.program(&both)?;
    let to = frontend(&both, family);
    let mut kept = Vec::new();
    for protocol in Protocol::BOTH {
        kept.push(converse_with(world.client(), protocol, to, "far")?);
    }
    let leaving = service("web", 10)
        .endpoint(near)
        .endpoint(Endpoint::from(far).terminating());
    world.program(&leaving)?;
    for protocol in Protocol::BOTH {
        let counts = count(world.client(), protocol, to, 100)?;
        ensure!(counts.keys().eq(["near"]), "new flows went to {counts:?}");
    }
    for mut conversation in kept {
        let reply = world
            .client()
            .run(async move { conversation.ask().await })?;
        ensure!(
            reply.server == "far",
            "a flow left its terminating backend: {reply:?}"
        );
    }
    Ok(())
}

/// Every second a Service loses one of its two endpoints in turn, and gets it back.
fn connections_during_updates() -> Result<()> {
    const FOR: Duration = Duration::from_secs(15);

    let world = World::serving(
        Shape {
            nodes: 2,
            ..Shape::PLAIN
        },
        &[],
    )?;
    let both = service("web", 10).endpoints([world.pod("near"), world.pod("far")]);
    world.program(&both)?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            for name in ["client", "other"] {
                let to = frontend(&both, family);
                clients.push(keep_connecting(world.pod(name), protocol, to, stop.clone()));
            }
        }
    }
    let started = Instant::now();
    let mut updates = 0;
    while started.elapsed() < FOR {
        for leaver in ["near", "far"] {
            world.program(&both.clone().without(leaver))?;
            world.program(&both)?;
            updates += 2;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut connections = 0;
    for client in clients {
        connections += futures::executor::block_on(client)?
            .with_context(|| format!("among {updates} updates"))?;
    }
    ensure!(
        connections > 1_000,
        "only {connections} connections were tried"
    );
    Ok(())
}

fn keep_connecting(
    client: &Pod,
    protocol: Protocol,
    to: SocketAddr,
    stop: Arc<AtomicBool>,
) -> JoinHandle<Result<u32, Failure>> {
    client.spawn(async move {
        let mut connections = 0;
        while !stop.load(Ordering::Relaxed) {
            Conversation::open(protocol, to).await?.ask().await?;
            connections += 1;
        }
        Ok(connections)
    })
}

fn comes_and_goes() -> Result<()> {
    let world = World::serving(Shape::PLAIN, &[])?;
    let client = world.client();
    let ask = |protocol, family, port| -> Result<Reply, Failure> {
        let ip = service("web", 10).ip(family);
        client.ask(protocol, SocketAddr::new(ip, port))
    };
    let web = service("web", 10).endpoint(world.pod("near"));
    world.program(&web)?;
    let more = web.clone().port("more", Protocol::Tcp, PORT + 1, TARGET);
    for family in Family::BOTH {
        ensure!(ask(Protocol::Tcp, family, PORT)?.server == "near");
        ensure!(ask(Protocol::Tcp, family, PORT + 1) == Err(Failure::Refused));
    }
    world.program(&more)?;
    for family in Family::BOTH {
        ensure!(ask(Protocol::Tcp, family, PORT + 1)?.server == "near");
    }
    world.program(&web)?;
    for family in Family::BOTH {
        ensure!(ask(Protocol::Tcp, family, PORT + 1) == Err(Failure::Refused));
    }
    world.program(&web.clone().without("near"))?;
    for family in Family::BOTH {
        ensure!(ask(Protocol::Udp, family, PORT) == Err(Failure::Refused));
    }
    world.manifests.remove(&web.file())?;
    world.sandbox.nodes()[0]
        .wait_for("the Service is gone", |status| status.services.is_empty())?;
    for family in Family::BOTH {
        ensure!(
            ask(Protocol::Udp, family, PORT) == Err(Failure::TimedOut),
            "it is still known"
        );
    }
    Ok(())
}

/// What was open before the programs were attached stays open, and so does what is opened directly.
fn from_before_the_agent() -> Result<()> {
    let mut world = World::without_agent(Shape::PLAIN)?;
    let mut early = Vec::new();
    for name in ["near", "far"] {
        for family in Family::BOTH {
            let to = SocketAddr::new(world.pod(name).address(family), TARGET);
            for protocol in Protocol::BOTH {
                early.push((name, converse_with(world.client(), protocol, to, name)?));
            }
        }
    }
    let web = service("web", 10).endpoints([world.pod("near"), world.pod("far")]);
    world.manifests.write_service(&web)?;
    world.start_agents()?;
    world.wait_for(&web)?;
    for (name, mut conversation) in early {
        let reply = world
            .client()
            .run(async move { conversation.ask().await })?;
        ensure!(reply.server == name && reply.true_source(), "{reply:?}");
    }
    for family in Family::BOTH {
        let to = SocketAddr::new(world.pod("far").address(family), TARGET);
        let reply = world.client().ask(Protocol::Tcp, to)?;
        ensure!(reply.server == "far" && reply.true_source(), "{reply:?}");
    }
    Ok(())
}

/// Opens conversations until one is with `server`.
fn converse_with(
    client: &Pod,
    protocol: Protocol,
    to: SocketAddr,
    server: &'static str,
) -> Result<Conversation> {
    client.run(async move {
        for _ in 0..100 {
            let mut conversation = Conversation::open(protocol, to).await?;
            if conversation.ask().await?.server == server {
                return Ok(conversation);
            }
        }
        bail!("{server} never answers at {to}")
    })
}
