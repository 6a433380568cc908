//! Who is reached through a ClusterIP, and what each side sees of the other.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::address::{HAIRPIN_V4, HAIRPIN_V6, to_ip};
use lb_tests::sandbox::{Conversation, Failure, Family, Protocol, cluster_ip};
use libtest_mimic::Trial;
use tokio::net::UdpSocket;

use crate::{
    each,
    world::{PORT, Shared, Stage, frontend},
};

/// Asks until each of two servers must have answered: both stay away once in 2^60 times.
const ENOUGH: u32 = 60;
/// How long an answer by UDP may take.
const PROMPT: Duration = Duration::from_millis(500);
/// A TCP client's kernel overlooks an ICMP error that arrives while it still sends the SYN, and
/// believes the one for the repetition of the SYN a second later; the third would come after three.
const REPEATED: Duration = Duration::from_millis(2_500);

pub fn trials(shared: &Shared) -> Vec<Trial> {
    [
        each(shared, "near and far backends", near_and_far),
        each(shared, "host-network backends", host_network),
        each(shared, "hairpin", hairpin),
        each(shared, "refused", refused),
        each(
            shared,
            "one client port to two ClusterIPs with one backend",
            twins,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn near_and_far(stage: &Stage, protocol: Protocol, family: Family) -> Result<()> {
    let to = frontend(&stage.web, family);
    let mut servers = BTreeSet::new();
    for name in ["client", "other"] {
        for _ in 0..ENOUGH {
            let reply = stage
                .world
                .pod(name)
                .ask(protocol, to)
                .with_context(|| name.to_owned())?;
            ensure!(
                reply.true_address(),
                "the client's address was lost: {reply:?}"
            );
            servers.insert(reply.server);
        }
    }
    ensure!(
        servers == ["far", "near"].map(str::to_owned).into(),
        "only {servers:?} answered"
    );
    Ok(())
}

fn host_network(stage: &Stage, protocol: Protocol, family: Family) -> Result<()> {
    let to = frontend(&stage.host, family);
    let mut servers = BTreeSet::new();
    for _ in 0..ENOUGH {
        let reply = stage.world.client().ask(protocol, to)?;
        let own_node = reply.server == stage.world.client().node();
        // Pods that talk to other nodes are masqueraded, with or without a service.
        ensure!(
            reply.true_address() || !own_node,
            "the client's address was lost: {reply:?}"
        );
        servers.insert(reply.server);
    }
    let nodes: BTreeSet<String> = stage
        .world
        .sandbox
        .nodes()
        .iter()
        .map(|node| node.name().to_owned())
        .collect();
    ensure!(servers == nodes, "only {servers:?} answered");
    Ok(())
}

fn hairpin(stage: &Stage, protocol: Protocol, family: Family) -> Result<()> {
    let reply = stage
        .world
        .client()
        .ask(protocol, frontend(&stage.own, family))?;
    let reserved = to_ip(match family {
        Family::V4 => &HAIRPIN_V4,
        Family::V6 => &HAIRPIN_V6,
    });
    ensure!(
        reply.server == "client" && reply.seen.ip() == reserved,
        "{reply:?}"
    );
    let other = stage
        .world
        .pod("other")
        .ask(protocol, frontend(&stage.own, family))?;
    ensure!(
        other.server == "client" && other.true_address(),
        "{other:?}"
    );
    Ok(())
}

fn refused(stage: &Stage, protocol: Protocol, family: Family) -> Result<()> {
    let undefined = SocketAddr::new(stage.web.ip(family), PORT + 1);
    for to in [frontend(&stage.none, family), undefined] {
        let started = Instant::now();
        let result = stage.world.client().ask(protocol, to);
        ensure!(result == Err(Failure::Refused), "{to}: {result:?}");
        let limit = match protocol {
            Protocol::Tcp => REPEATED,
            Protocol::Udp => PROMPT,
        };
        let elapsed = started.elapsed();
        ensure!(elapsed < limit, "{to}: refused after {elapsed:?}");
    }
    if protocol == Protocol::Udp {
        // An address of the range that no Service has is none of our business.
        let unknown = SocketAddr::new(cluster_ip(99).get(family), PORT);
        let result = stage.world.client().ask(protocol, unknown);
        ensure!(result == Err(Failure::TimedOut), "{unknown}: {result:?}");
    }
    Ok(())
}

fn twins(stage: &Stage, protocol: Protocol, family: Family) -> Result<()> {
    let to = [0, 1].map(|i| frontend(&stage.twins[i], family));
    let client = stage.world.client();
    match protocol {
        Protocol::Tcp => client.run(async move {
            let mut first = Conversation::open(protocol, to[0]).await?;
            let port = first.local().port();
            let mut second = Conversation::open_from(port, protocol, to[1]).await?;
            for _ in 0..3 {
                for conversation in [&mut first, &mut second] {
                    ensure!(conversation.ask().await?.server == "near", "who is that?");
                }
            }
            Ok(())
        }),
        Protocol::Udp => client.run(async move {
            let any: SocketAddr = match family {
                Family::V4 => "0.0.0.0:0".parse()?,
                Family::V6 => "[::]:0".parse()?,
            };
            let socket = UdpSocket::bind(any).await?;
            for _ in 0..3 {
                let mut heard = BTreeSet::new();
                for to in to {
                    socket.send_to(b"who\n", to).await?;
                }
                for _ in to {
                    let mut answer = [0; 256];
                    let receive = socket.recv_from(&mut answer);
                    let (_, from) = tokio::time::timeout(PROMPT, receive)
                        .await
                        .context("lost")??;
                    heard.insert(from);
                }
                ensure!(heard == to.into(), "answers came from {heard:?}");
            }
            Ok(())
        }),
    }
}
