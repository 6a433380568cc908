//! Who is reached through the frontends that clients outside use, and what each side sees.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::address::{HAIRPIN_V4, HAIRPIN_V6, to_ip};
use lb_tests::sandbox::{Conversation, Family, Protocol, public_ip};
use libtest_mimic::Trial;

use crate::{
    each,
    outside::{Offer, Outside, Via, belongs_to, ensure_refused, node_port},
    world::{PORT, Shared, TARGET},
};

/// Asks until each of two servers must have answered: both stay away once in 2^40 times.
const ENOUGH: u32 = 40;

pub fn trials(shared: &Shared<Outside>) -> Vec<Trial> {
    [
        each(shared, "outside to a local backend", local_backend),
        each(
            shared,
            "outside to a backend on another node",
            remote_backend,
        ),
        each(shared, "outside to the NodePort of every node", every_node),
        each(shared, "outside to host-network backends", host_backends),
        each(shared, "pods to external frontends", from_pods),
        each(shared, "pods to themselves by external frontends", hairpin),
        each(shared, "host processes to all frontends", from_host),
        each(shared, "NodePorts on no other address", other_addresses),
        each(shared, "ports of nodes that no Service has", plain_ports),
        each(shared, "a load balancer that is a proxy", proxied),
        each(shared, "one port for a Service and its backend", both_ways),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The server sees the client's own address.
fn local_backend(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    for via in Via::ALL {
        let to = scene.near.at(via, scene.nodes()[0], family);
        let reply = scene.ask(scene.outsider(), protocol, to, "near")?;
        ensure!(reply.true_address(), "{via:?}: {reply:?}");
    }
    Ok(())
}

/// The server sees the node that the client dialled.
fn remote_backend(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let node = scene.nodes()[0];
    for via in Via::ALL {
        let to = scene.far.at(via, node, family);
        let reply = scene.ask(scene.outsider(), protocol, to, "far")?;
        ensure!(belongs_to(node, reply.seen.ip()), "{via:?}: {reply:?}");
    }
    Ok(())
}

fn every_node(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    for node in scene.nodes() {
        let to = scene.both.at(Via::NodePort, node, family);
        let mut servers = BTreeSet::new();
        for _ in 0..ENOUGH {
            let reply = scene
                .outsider()
                .ask(protocol, to)
                .with_context(|| to.to_string())?;
            let own_pod = scene.world.pod(&reply.server).node() == node.name();
            ensure!(reply.true_address() == own_pod, "{to}: {reply:?}");
            servers.insert(reply.server);
        }
        ensure!(servers.len() == 2, "{to}: only {servers:?} answered");
    }
    Ok(())
}

fn host_backends(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    for via in Via::ALL {
        let to = scene.host.at(via, scene.nodes()[0], family);
        let mut servers = BTreeSet::new();
        for _ in 0..ENOUGH {
            let reply = scene
                .outsider()
                .ask(protocol, to)
                .with_context(|| to.to_string())?;
            let own_node = reply.server == scene.nodes()[0].name();
            ensure!(reply.true_address() == own_node, "{to}: {reply:?}");
            servers.insert(reply.server);
        }
        ensure!(servers.len() == 2, "{to}: only {servers:?} answered");
    }
    Ok(())
}

/// Pods never use a frontend of their own node as clients outside do: their address is kept, wherever
/// the backend is. On the way to another node's NodePort they are masqueraded by the node, as on any
/// way out of the cluster's network.
fn from_pods(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let [own, other] = scene.nodes();
    for (offer, server) in [(&scene.near, "near"), (&scene.far, "far")] {
        for via in Via::EXTERNAL {
            let to = offer.at(via, own, family);
            let reply = scene.ask(scene.pod(), protocol, to, server)?;
            ensure!(reply.true_address(), "{via:?}: {reply:?}");
        }
        let to = offer.at(Via::NodePort, other, family);
        scene.ask(scene.pod(), protocol, to, server)?;
    }
    Ok(())
}

fn hairpin(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let reserved = to_ip(match family {
        Family::V4 => &HAIRPIN_V4,
        Family::V6 => &HAIRPIN_V6,
    });
    for via in Via::EXTERNAL {
        let to = scene.near.at(via, scene.nodes()[0], family);
        let near = scene.world.pod("near").client();
        let reply = scene.ask(near, protocol, to, "near")?;
        ensure!(reply.seen.ip() == reserved, "{via:?}: {reply:?}");
    }
    Ok(())
}

fn from_host(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let [own, other] = scene.nodes();
    for (offer, server) in [(&scene.near, "near"), (&scene.far, "far")] {
        for via in Via::ALL {
            let to = offer.at(via, own, family);
            let reply = scene.ask(scene.host(), protocol, to, server)?;
            ensure!(reply.true_address(), "{via:?}: {reply:?}");
        }
        let to = offer.at(Via::NodePort, other, family);
        scene.ask(scene.host(), protocol, to, server)?;
    }
    Ok(())
}

/// Only the node's primary addresses serve NodePorts by default.
fn other_addresses(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let loopback: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let port = node_port(30);
    ensure_refused(scene.host(), protocol, SocketAddr::new(loopback, port))?;
    let spare = SocketAddr::new(scene.spare.get(family), port);
    for (_, client) in scene.clients() {
        ensure_refused(client, protocol, spare)?;
    }
    Ok(())
}

/// What a node itself serves stays reachable, on the ports beside those of Services.
fn plain_ports(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let node = scene.nodes()[0];
    let address = node.addresses().get(family);
    let to = SocketAddr::new(address, TARGET);
    let reply = scene.ask(scene.outsider(), protocol, to, node.name())?;
    ensure!(reply.true_address(), "{reply:?}");
    for (_, client) in scene.clients() {
        ensure_refused(client, protocol, SocketAddr::new(address, node_port(99)))?;
    }
    Ok(())
}

/// A client that uses one port for a Service and for the backend itself: what the one says to it is not
/// taken for what the other says, by whichever hook it passes.
fn both_ways(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let [own, other] = scene.nodes();
    let number = 94 + u8::from(protocol == Protocol::Udp) * 2 + u8::from(family == Family::V6);
    let here = Offer::new(&format!("own-node-{number}"), number);
    let here = here.with(|service| service.endpoint(own));
    scene.world.program(&here.service)?;
    for (client, offer, via, address) in [
        (
            scene.outsider(),
            &here,
            (Via::NodePort, own),
            own.addresses(),
        ),
        (
            scene.pod(),
            &scene.near,
            (Via::ClusterIp, own),
            scene.world.pod("near").addresses(),
        ),
        (
            scene.host(),
            &scene.far,
            (Via::NodePort, other),
            scene.world.pod("far").addresses(),
        ),
    ] {
        let service = offer.at(via.0, via.1, family);
        let backend = SocketAddr::new(address.get(family), TARGET);
        let mut from = client.from(service);
        for to in [service, backend] {
            let reply = client
                .run(async move { Conversation::open_at(from, protocol, to).await?.ask().await });
            let reply = reply.with_context(|| format!("{from} to {to}"))?;
            ensure!(reply.true_address() && reply.from == to, "{to}: {reply:?}");
            from.set_port(reply.local.port());
        }
    }
    Ok(())
}

/// What is for it goes there, wherever its client is.
fn proxied(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let to = SocketAddr::new(public_ip(40).get(family), PORT);
    for client in [scene.pod(), scene.host()] {
        scene.ask(client, protocol, to, "balancer")?;
    }
    Ok(())
}
