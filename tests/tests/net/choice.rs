//! Which backends a Service has for whom: affinity, topology, termination, ports.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::sandbox::{Client, Endpoint, Family, Protocol, Service, cluster_ip};
use libtest_mimic::Trial;

use crate::{
    outside::{Offer, Outside, Via, combinations, ensure_refused, ensure_silent, node_port, once},
    world::{Shared, TARGET},
};

/// So often the same one of two servers answers by chance once in 500,000 times.
const OFTEN: u32 = 20;

pub fn trials(shared: &Shared<Outside>) -> Vec<Trial> {
    vec![
        once(shared, "affinity is one for all frontends", affinity),
        once(shared, "affinity is refreshed and runs out", affinity_ends),
        once(shared, "affinity is switched on and off", affinity_switched),
        once(shared, "affinity ends with the backend", affinity_moves),
        once(shared, "zone hints", zone_hints),
        once(shared, "node hints come before zone hints", node_hints),
        once(shared, "one missing hint turns hints off", missing_hint),
        once(shared, "policies Local ignore hints", hints_and_local),
        once(
            shared,
            "terminating endpoints serve where no other is",
            terminating,
        ),
        once(
            shared,
            "local terminating endpoints serve where no other is",
            local_terminating,
        ),
        once(shared, "an endpoint that is not ready", unready),
        once(shared, "target ports that differ by endpoint", named_ports),
        once(shared, "an external IP comes before a NodePort", precedence),
    ]
}

/// Who answers a client that asks often.
fn servers(client: Client, protocol: Protocol, to: SocketAddr) -> Result<BTreeSet<String>> {
    let ask = |_| {
        let reply = client.ask(protocol, to);
        let from = client.namespace().name();
        let asked = || format!("{from} asks {to} by {}", protocol.name());
        Ok(reply.with_context(asked)?.server)
    };
    (0..OFTEN).map(ask).collect()
}

fn ensure_servers(
    client: Client,
    protocol: Protocol,
    to: SocketAddr,
    expected: &[&str],
) -> Result<()> {
    let found = servers(client, protocol, to)?;
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    ensure!(found == expected, "{to}: {found:?} instead of {expected:?}");
    Ok(())
}

/// Both servers.
fn pair(scene: &Outside, name: &str, number: u8) -> Offer {
    let pods = ["near", "far"].map(|name| scene.world.pod(name));
    Offer::new(name, number).with(|service| service.endpoints(pods))
}

/// A client meets one server by the ClusterIP, the NodePort, the load balancer and the external IP.
fn affinity(scene: &Outside) -> Result<()> {
    let offer = pair(scene, "sticky", 60).with(|service| service.affinity(100));
    scene.world.program(&offer.service)?;
    for (protocol, family) in combinations() {
        let outsiders = (1..=4).map(|number| scene.world.sandbox.outside_client(number));
        for client in outsiders.chain([scene.pod(), scene.host()]) {
            let mut found = BTreeSet::new();
            for via in Via::ALL {
                let to = offer.at(via, scene.nodes()[0], family);
                found.extend(servers(client, protocol, to)?);
            }
            ensure!(found.len() == 1, "one client meets {found:?}");
        }
    }
    Ok(())
}

fn affinity_ends(scene: &Outside) -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(2);

    let offer = pair(scene, "sticky-briefly", 61).with(|service| service.affinity(2));
    scene.world.program(&offer.service)?;
    for (client, via) in [
        (scene.pod(), Via::ClusterIp),
        (scene.outsider(), Via::NodePort),
        (scene.host(), Via::LoadBalancer),
    ] {
        let to = offer.at(via, scene.nodes()[0], Family::V4);
        let first = client.ask(Protocol::Tcp, to)?.server;
        let started = Instant::now();
        // Every connection counts anew.
        while started.elapsed() < TIMEOUT * 2 {
            let server = client.ask(Protocol::Tcp, to)?.server;
            ensure!(server == first, "{server} in place of {first} in time");
            thread::sleep(TIMEOUT / 4);
        }
        let mut rounds = 0..10;
        let moved = rounds.any(|_| {
            thread::sleep(TIMEOUT + Duration::from_millis(500));
            client
                .ask(Protocol::Tcp, to)
                .is_ok_and(|reply| reply.server != first)
        });
        ensure!(moved, "{first} for ever");
    }
    Ok(())
}

fn affinity_switched(scene: &Outside) -> Result<()> {
    let off = pair(scene, "switched", 62);
    let on = off.with(|service| service.affinity(100));
    for (offer, expected) in [(&off, 2), (&on, 1), (&off, 2)] {
        scene.world.program(&offer.service)?;
        for (protocol, family) in combinations() {
            for (_, client) in scene.clients() {
                let to = offer.at(Via::ClusterIp, scene.nodes()[0], family);
                let found = servers(client, protocol, to)?.len();
                ensure!(found == expected, "{found} servers instead of {expected}");
            }
        }
    }
    Ok(())
}

fn affinity_moves(scene: &Outside) -> Result<()> {
    let offer = pair(scene, "sticky-moves", 63).with(|service| service.affinity(100));
    for (protocol, family) in combinations() {
        for (_, client) in scene.clients() {
            scene.world.program(&offer.service)?;
            let to = offer.at(Via::NodePort, scene.nodes()[0], family);
            let first = client.ask(protocol, to)?.server;
            let rest = offer.with(|service| service.without(&first));
            scene.world.program(&rest.service)?;
            let found = servers(client, protocol, to)?;
            ensure!(
                found.len() == 1 && !found.contains(&first),
                "{first}, then {found:?}"
            );
        }
    }
    Ok(())
}

fn zone_hints(scene: &Outside) -> Result<()> {
    let [own, other] = scene.nodes();
    let hinted = |name: &str, zone: String| Endpoint::from(scene.world.pod(name)).for_zone(&zone);
    let offer = Offer::new("zones", 64).with(|service| {
        let near = hinted("near", own.zone());
        service.endpoint(near).endpoint(hinted("far", other.zone()))
    });
    scene.world.program(&offer.service)?;
    for (protocol, family) in combinations() {
        for via in Via::ALL {
            for (_, client) in scene.clients() {
                ensure_servers(client, protocol, offer.at(via, own, family), &["near"])?;
            }
            let far = offer.at(via, other, family);
            ensure_servers(scene.peer(), protocol, far, &["far"])?;
        }
    }
    Ok(())
}

fn node_hints(scene: &Outside) -> Result<()> {
    let [own, other] = scene.nodes();
    let offer = Offer::new("nodes", 65).with(|service| {
        let near = Endpoint::from(scene.world.pod("near"));
        let far = Endpoint::from(scene.world.pod("far"));
        // The zones alone would send everybody to the other node.
        let near = near.for_node(own.name()).for_zone(&other.zone());
        service
            .endpoint(near)
            .endpoint(far.for_node(other.name()).for_zone(&own.zone()))
    });
    scene.world.program(&offer.service)?;
    for (protocol, family) in combinations() {
        for (_, client) in scene.clients() {
            let to = offer.at(Via::NodePort, own, family);
            ensure_servers(client, protocol, to, &["near"])?;
        }
        let to = offer.at(Via::ClusterIp, own, family);
        ensure_servers(scene.peer(), protocol, to, &["far"])?;
    }
    Ok(())
}

fn missing_hint(scene: &Outside) -> Result<()> {
    let [own, _] = scene.nodes();
    let offer = Offer::new("hint-missing", 66).with(|service| {
        let near = Endpoint::from(scene.world.pod("near")).for_zone(&own.zone());
        service.endpoint(near).endpoint(scene.world.pod("far"))
    });
    scene.world.program(&offer.service)?;
    for (protocol, family) in combinations() {
        for (_, client) in scene.clients() {
            let to = offer.at(Via::NodePort, own, family);
            ensure_servers(client, protocol, to, &["near", "far"])?;
        }
    }
    Ok(())
}

fn hints_and_local(scene: &Outside) -> Result<()> {
    let [own, other] = scene.nodes();
    let offer = Offer::new("hints-local", 67).with(|service| {
        let near = Endpoint::from(scene.world.pod("near")).for_zone(&other.zone());
        let far = Endpoint::from(scene.world.pod("far")).for_zone(&own.zone());
        service.endpoint(near).endpoint(far).external_local()
    });
    scene.world.program(&offer.service)?;
    for (protocol, family) in combinations() {
        let to = offer.at(Via::NodePort, own, family);
        ensure_servers(scene.outsider(), protocol, to, &["near"])?;
        // The short cut of pods and processes goes where all of the cluster goes.
        for client in [scene.pod(), scene.host()] {
            ensure_servers(client, protocol, to, &["far"])?;
        }
    }
    Ok(())
}

fn terminating(scene: &Outside) -> Result<()> {
    let [near, far] = ["near", "far"].map(|name| Endpoint::from(scene.world.pod(name)));
    let both = |near: Endpoint, far: Endpoint| {
        Offer::new("ending", 68).with(|service| service.endpoint(near).endpoint(far))
    };
    let all = both(near.clone().terminating(), far.clone().terminating());
    let one = both(near, far.terminating());
    for (offer, expected) in [(all, &["near", "far"][..]), (one, &["near"])] {
        scene.world.program(&offer.service)?;
        for (protocol, family) in combinations() {
            for (_, client) in scene.clients() {
                for via in [Via::ClusterIp, Via::NodePort] {
                    let to = offer.at(via, scene.nodes()[0], family);
                    ensure_servers(client, protocol, to, expected)?;
                }
            }
        }
    }
    Ok(())
}

/// Ready endpoints elsewhere make no difference to a policy Local.
fn local_terminating(scene: &Outside) -> Result<()> {
    let [own, other] = scene.nodes();
    let [near, far] = ["near", "far"].map(|name| Endpoint::from(scene.world.pod(name)));
    let offer = Offer::new("ending-locally", 69).with(|service| {
        let service = service.endpoint(near.terminating()).endpoint(far);
        service.external_local().internal_local()
    });
    scene.world.program(&offer.service)?;
    for (protocol, family) in combinations() {
        let to = offer.at(Via::NodePort, own, family);
        ensure_servers(scene.outsider(), protocol, to, &["near"])?;
        let to = offer.at(Via::ClusterIp, own, family);
        for client in [scene.pod(), scene.host()] {
            ensure_servers(client, protocol, to, &["near"])?;
        }
        let to = offer.at(Via::NodePort, other, family);
        ensure_servers(scene.outsider(), protocol, to, &["far"])?;
    }
    Ok(())
}

fn unready(scene: &Outside) -> Result<()> {
    let near = Endpoint::from(scene.world.pod("near"));
    let offer = Offer::new("unready", 70).with(|service| service.endpoint(near.unready()));
    scene.world.program(&offer.service)?;
    let local = offer.with(Service::external_local);
    for (protocol, family) in combinations() {
        for (_, client) in scene.clients() {
            let to = offer.at(Via::NodePort, scene.nodes()[0], family);
            ensure_refused(client, protocol, to)?;
        }
    }
    // Without any endpoint that could serve, the policy makes no difference.
    scene.world.program(&local.service)?;
    let to = local.at(Via::NodePort, scene.nodes()[0], Family::V4);
    ensure_refused(scene.outsider(), Protocol::Udp, to)?;
    let far = Endpoint::from(scene.world.pod("far"));
    let elsewhere = local.with(|service| service.endpoint(far));
    scene.world.program(&elsewhere.service)?;
    ensure_silent(Protocol::Udp, &[(scene.outsider(), to)])
}

fn named_ports(scene: &Outside) -> Result<()> {
    const OTHER: u16 = TARGET + 10;

    let far = scene.world.pod("far");
    for protocol in Protocol::BOTH {
        far.serve(protocol, OTHER)?;
    }
    let offer = Offer::new("ports", 71).with(|service| {
        let far = Endpoint::from(far).listening_on(OTHER);
        service.endpoint(scene.world.pod("near")).endpoint(far)
    });
    scene.world.program(&offer.service)?;
    for (protocol, family) in combinations() {
        for via in Via::ALL {
            for (_, client) in scene.clients() {
                let to = offer.at(via, scene.nodes()[0], family);
                ensure_servers(client, protocol, to, &["near", "far"])?;
            }
        }
    }
    Ok(())
}

/// One Service has a NodePort, and another the node's address and that port as its own.
fn precedence(scene: &Outside) -> Result<()> {
    let node = scene.nodes()[0];
    let by_node_port =
        Offer::new("by-node-port", 72).with(|service| service.endpoint(scene.world.pod("near")));
    let port = node_port(72);
    let external = Service::new("by-external-ip", cluster_ip(73))
        .port("tcp", Protocol::Tcp, port, TARGET)
        .port("udp", Protocol::Udp, port, TARGET)
        .external_ip(node.addresses())
        .endpoint(scene.world.pod("far"));
    scene.world.program(&by_node_port.service)?;
    scene.world.program(&external)?;
    for (protocol, family) in combinations() {
        for (_, client) in scene.clients() {
            let to = by_node_port.at(Via::NodePort, node, family);
            ensure_servers(client, protocol, to, &["far"])?;
        }
    }
    Ok(())
}
