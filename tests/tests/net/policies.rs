//! Who is turned away, and who is not heard at all.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_tests::sandbox::{
    Endpoint, Failure, Family, Protocol, Service, Topology, cluster_ip, service_cidr, until,
};
use libtest_mimic::Trial;

use crate::{
    each,
    outside::{Offer, Outside, Via, combinations, ensure_refused, ensure_silent},
    trial,
    world::{PORT, Shape, Shared, World},
};

pub fn trials(shared: &Shared<Outside>) -> Vec<Trial> {
    let mut trials = vec![
        trial(
            "an address of a ServiceCIDR that no Service has",
            unallocated,
        ),
        trial(
            "external policy Local on three nodes",
            external_local_on_three_nodes,
        ),
        trial("external IPs are ignored where they are not allowed", gate),
        trial(
            "health checks tell which nodes have an endpoint",
            health_checks,
        ),
    ];
    for several in [
        each(shared, "external policy Local", external_local),
        each(shared, "internal policy Local", internal_local),
        each(shared, "no endpoints", no_endpoints),
        each(
            shared,
            "a port that a ClusterIP does not have",
            undefined_port,
        ),
        each(shared, "source ranges", source_ranges),
        each(
            shared,
            "source ranges with the node's address",
            node_in_ranges,
        ),
    ] {
        trials.extend(several);
    }
    trials
}

/// Clients outside need an endpoint on the node that they use; pods and processes of the node do not.
fn external_local(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let [without, with] = scene.nodes();
    let offer = &scene.external_local;
    let to = Via::EXTERNAL.map(|via| (scene.outsider(), offer.at(via, without, family)));
    ensure_silent(protocol, &to)?;
    for via in Via::EXTERNAL {
        for client in [scene.pod(), scene.host()] {
            scene.ask(client, protocol, offer.at(via, without, family), "far")?;
        }
    }
    let to = offer.at(Via::NodePort, with, family);
    let reply = scene.ask(scene.outsider(), protocol, to, "far")?;
    ensure!(
        reply.true_address(),
        "the client's address was lost: {reply:?}"
    );
    // It is not a policy for ClusterIPs.
    for (_, client) in scene.clients() {
        let to = offer.at(Via::ClusterIp, without, family);
        scene.ask(client, protocol, to, "far")?;
    }
    Ok(())
}

/// ClusterIPs need an endpoint on the client's node, whoever the client is; NodePorts do not.
fn internal_local(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let [without, with] = scene.nodes();
    let offer = &scene.internal_local;
    let to = offer.at(Via::ClusterIp, without, family);
    ensure_silent(protocol, &scene.clients().map(|(_, client)| (client, to)))?;
    for client in [scene.peer(), with.client()] {
        scene.ask(client, protocol, to, "far")?;
    }
    for via in Via::EXTERNAL {
        for (_, client) in scene.clients() {
            scene.ask(client, protocol, offer.at(via, without, family), "far")?;
        }
    }
    Ok(())
}

fn no_endpoints(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    for via in Via::ALL {
        for (_, client) in scene.clients() {
            let to = scene.none.at(via, scene.nodes()[0], family);
            ensure_refused(client, protocol, to)?;
        }
    }
    Ok(())
}

fn undefined_port(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let to = SocketAddr::new(scene.near.service.ip(family), PORT + 1);
    for (_, client) in scene.clients() {
        ensure_refused(client, protocol, to)?;
    }
    Ok(())
}

/// They are about load balancers, and about nothing else.
fn source_ranges(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let node = scene.nodes()[0];
    let balancer = scene.ranged.at(Via::LoadBalancer, node, family);
    let allowed = scene.world.sandbox.outside_client(1);
    scene.ask(allowed, protocol, balancer, "near")?;
    ensure_silent(
        protocol,
        &scene.clients().map(|(_, client)| (client, balancer)),
    )?;
    for via in [Via::ClusterIp, Via::NodePort, Via::ExternalIp] {
        for (_, client) in scene.clients() {
            scene.ask(client, protocol, scene.ranged.at(via, node, family), "near")?;
        }
    }
    Ok(())
}

fn node_in_ranges(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    let balancer = scene
        .ranged_to_node
        .at(Via::LoadBalancer, scene.nodes()[0], family);
    scene.ask(scene.host(), protocol, balancer, "near")?;
    ensure_silent(
        protocol,
        &[(scene.outsider(), balancer), (scene.pod(), balancer)],
    )
}

/// The same address leads out of the cluster as soon as no ServiceCIDR has it.
fn unallocated() -> Result<()> {
    const NOBODY: u8 = 200;

    let mut world = World::without_agent(Shape {
        nodes: 1,
        ..Shape::PLAIN
    })?;
    world.sandbox.add_outside(cluster_ip(NOBODY))?;
    for protocol in Protocol::BOTH {
        let on = cluster_ip(NOBODY);
        world
            .sandbox
            .serve_outside(on, "elsewhere", protocol, PORT)?;
    }
    world.start_agents()?;
    let node = &world.sandbox.nodes()[0];
    let to = |family| SocketAddr::new(cluster_ip(NOBODY).get(family), PORT);
    for (protocol, family) in combinations() {
        for client in [world.client().client(), node.client()] {
            let reply = client.ask(protocol, to(family))?;
            ensure!(reply.server == "elsewhere", "{reply:?}");
        }
    }
    world.manifests.write("networks.yaml", &[service_cidr()])?;
    until("the ServiceCIDR is known", || {
        let reply = world.client().ask(Protocol::Udp, to(Family::V4));
        Ok((reply == Err(Failure::TimedOut)).then_some(()))
    })?;
    for (protocol, family) in combinations() {
        let clients = [world.client().client(), node.client()];
        ensure_silent(protocol, &clients.map(|client| (client, to(family))))?;
    }
    Ok(())
}

/// As Kubernetes' own test has it: the node with the endpoint shows who really asks, one without it
/// serves its own pods and processes, and a third one shows that nobody else is served.
fn external_local_on_three_nodes() -> Result<()> {
    let mut world = World::without_agent(Shape {
        topology: Topology::Vxlan,
        nodes: 3,
        ..Shape::PLAIN
    })?;
    let offer =
        Offer::new("local", 50).with(|service| service.endpoint(world.pod("far")).external_local());
    world.manifests.write_service(&offer.service)?;
    world.start_agents()?;
    world.wait_for(&offer.service)?;
    let [first, second, third] = [0, 1, 2].map(|i| &world.sandbox.nodes()[i]);
    for (protocol, family) in combinations() {
        let outsider = world.sandbox.outside_client(1);
        let silent = [first, second].map(|node| (outsider, offer.at(Via::NodePort, node, family)));
        ensure_silent(protocol, &silent)?;
        let reply = outsider.ask(protocol, offer.at(Via::NodePort, third, family))?;
        ensure!(reply.server == "far" && reply.true_address(), "{reply:?}");
        for node in [first, second] {
            let own = offer.at(Via::NodePort, node, family);
            ensure!(node.ask(protocol, own)?.server == "far");
        }
        let own = offer.at(Via::NodePort, first, family);
        ensure!(world.client().ask(protocol, own)?.server == "far");
        // Between nodes it is a client outside like any other.
        ensure_silent(protocol, &[(second.client(), own)])?;
    }
    Ok(())
}

/// Without the upstream gate, an external IP is an address like any other.
fn gate() -> Result<()> {
    let mut world = World::without_agent(Shape {
        nodes: 1,
        ..Shape::PLAIN
    })?;
    let offer = Offer::new("web", 51).with(|service| service.endpoint(world.pod("near")));
    world.manifests.write_service(&offer.service)?;
    world.flag("--allow-service-external-ips=false");
    world.start_agents()?;
    world.wait_for(&offer.service)?;
    let node = &world.sandbox.nodes()[0];
    for (protocol, family) in combinations() {
        let client = world.client().client();
        let silent = offer.at(Via::ExternalIp, node, family);
        let answer = client.ask(protocol, silent);
        ensure!(answer.is_err(), "{answer:?}");
        let reply = client.ask(protocol, offer.at(Via::LoadBalancer, node, family))?;
        ensure!(reply.server == "near", "{reply:?}");
    }
    Ok(())
}

/// As long as the policy is Local; terminating endpoints serve and do not count.
fn health_checks() -> Result<()> {
    const CHECK: u16 = 32_100;

    let mut world = World::without_agent(Shape {
        nodes: 2,
        ..Shape::PLAIN
    })?;
    let far = Endpoint::from(world.pod("far"));
    let offer = Offer::new("checked", 54);
    let local = |far: Endpoint| {
        let checked = offer.service.clone().external_local().health_check(CHECK);
        checked.endpoint(far)
    };
    world.start_agents()?;
    let expect = |service: &Service, codes: [Option<u16>; 2]| -> Result<()> {
        world.program(service)?;
        for (node, code) in world.sandbox.nodes().iter().zip(codes) {
            for address in node.addresses().each() {
                let at = SocketAddr::new(address, CHECK);
                until(&format!("{at} says {code:?}"), || {
                    let answer = lb_tests::sandbox::get(world.sandbox.outside(), at, "/").ok();
                    let found = answer.map(|answer| answer.status().as_u16());
                    Ok((found == code).then_some(()))
                })?;
            }
        }
        Ok(())
    };
    expect(&local(far.clone()), [Some(503), Some(200)])?;
    expect(&local(far.clone().terminating()), [Some(503), Some(503)])?;
    expect(&offer.service.clone().endpoint(far.clone()), [None, None])?;
    expect(&local(far), [Some(503), Some(200)])
}
