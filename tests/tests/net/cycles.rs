//! What becomes of UDP sockets and TCP connections when backends, and whole Services, come and go.

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::sandbox::{Client, Conversation, Failure, Family, Protocol, Reply, Service, until};
use libtest_mimic::Trial;

use crate::{
    outside::{Offer, Outside, Via, once},
    world::Shared,
};

pub fn trials(shared: &Shared<Outside>) -> Vec<Trial> {
    vec![
        once(
            shared,
            "a UDP socket outside moves on by NodePort",
            |scene| {
                moves_on(
                    scene,
                    scene.outsider(),
                    Offer::new("cycle-outside", 80),
                    Via::NodePort,
                )
            },
        ),
        once(
            shared,
            "a UDP socket outside moves on by load balancer",
            |scene| {
                moves_on(
                    scene,
                    scene.outsider(),
                    Offer::new("cycle-balancer", 81),
                    Via::LoadBalancer,
                )
            },
        ),
        once(shared, "a pod's UDP socket moves on by NodePort", |scene| {
            moves_on(
                scene,
                scene.pod(),
                Offer::new("cycle-pod-port", 82),
                Via::NodePort,
            )
        }),
        once(
            shared,
            "a pod's UDP socket moves on by ClusterIP",
            |scene| {
                moves_on(
                    scene,
                    scene.pod(),
                    Offer::new("cycle-pod", 83),
                    Via::ClusterIp,
                )
            },
        ),
        once(
            shared,
            "a host process's UDP socket moves on by ClusterIP",
            |scene| host_moves_on(scene, Offer::new("cycle-host", 84), Via::ClusterIp),
        ),
        once(
            shared,
            "a host process's UDP socket moves on by NodePort",
            |scene| host_moves_on(scene, Offer::new("cycle-host-port", 85), Via::NodePort),
        ),
        once(
            shared,
            "a UDP Service that is deleted and made again",
            deleted,
        ),
        once(shared, "TCP connections outlive their endpoint", tcp_stays),
    ]
}

/// One socket all along, as kube-proxy's cleanup of connection tracking allows.
fn moves_on(scene: &Outside, client: Client, offer: Offer, via: Via) -> Result<()> {
    for family in Family::BOTH {
        let to = offer.at(via, scene.nodes()[0], family);
        let both = offer
            .with(|service| service.endpoints(["near", "far"].map(|name| scene.world.pod(name))));
        scene.world.program(&both.service)?;
        let mut socket = client.open(Protocol::Udp, to)?;
        for _ in 0..3 {
            let first = ask(client, &mut socket).context("with both")?.server;
            let rest = both.with(|service| service.without(&first));
            scene.world.program(&rest.service)?;
            let second = ask(client, &mut socket).context("with one")?.server;
            ensure!(second != first, "the socket is stuck with {first}");

            scene.world.program(&offer.service)?;
            let nobody = ask(client, &mut socket);
            ensure!(nobody.is_err(), "without endpoints: {nobody:?}");
            let back = both.with(|service| service.without(&second));
            scene.world.program(&back.service)?;
            let third = ask_again(client, &mut socket)?.server;
            ensure!(third == first, "back is {first}, and {third} answers");
            scene.world.program(&both.service)?;
        }
    }
    Ok(())
}

/// A connected socket of a host process has been given the backend's address. When the backend goes,
/// the socket is steered to another one or told by an error; it never waits in vain.
fn host_moves_on(scene: &Outside, offer: Offer, via: Via) -> Result<()> {
    let client = scene.host();
    for family in Family::BOTH {
        let to = offer.at(via, scene.nodes()[0], family);
        let both = offer
            .with(|service| service.endpoints(["near", "far"].map(|name| scene.world.pod(name))));
        for _ in 0..3 {
            scene.world.program(&both.service)?;
            let mut socket = client.open(Protocol::Udp, to)?;
            let first = ask(client, &mut socket).context("with both")?.server;
            let rest = both.with(|service| service.without(&first));
            scene.world.program(&rest.service)?;
            match ask(client, &mut socket) {
                Ok(reply) => ensure!(reply.server != first, "the socket is stuck with {first}"),
                Err(Failure::TimedOut) => bail!("the socket waits in vain"),
                Err(Failure::Refused | Failure::Broken(_)) => (),
            }
            let fresh = client.ask(Protocol::Udp, to).context("a new socket")?;
            ensure!(fresh.server != first, "a new socket gets {first}");
        }
    }
    Ok(())
}

fn deleted(scene: &Outside) -> Result<()> {
    let offer = Offer::new("deleted", 86);
    let with = |name: &str| offer.with(|service| service.endpoint(scene.world.pod(name)));
    for family in Family::BOTH {
        for (client, via) in [
            (scene.pod(), Via::ClusterIp),
            (scene.pod(), Via::NodePort),
            (scene.outsider(), Via::NodePort),
            (scene.outsider(), Via::LoadBalancer),
        ] {
            let to = offer.at(via, scene.nodes()[0], family);
            let first = with("near");
            scene.world.program(&first.service)?;
            let mut socket = client.open(Protocol::Udp, to)?;
            ensure!(ask(client, &mut socket)?.server == "near");
            scene.world.manifests.remove(&first.service.file())?;
            wait_until_gone(scene, &first.service)?;
            let nobody = ask(client, &mut socket);
            ensure!(nobody.is_err(), "{via:?} without a Service: {nobody:?}");
            scene.world.program(&with("far").service)?;
            let server = ask_again(client, &mut socket)?.server;
            ensure!(
                server == "far",
                "{via:?}: {server} answers for the old Service"
            );
        }
    }
    Ok(())
}

fn tcp_stays(scene: &Outside) -> Result<()> {
    let offer = Offer::new("stays", 87);
    let with = |name: &str| offer.with(|service| service.endpoint(scene.world.pod(name)));
    for (before, after) in [("near", "far"), ("far", "near")] {
        scene.world.program(&with(before).service)?;
        let mut kept = Vec::new();
        for family in Family::BOTH {
            for via in Via::ALL {
                for (name, client) in scene.clients() {
                    let to = offer.at(via, scene.nodes()[0], family);
                    let mut connection = client.open(Protocol::Tcp, to)?;
                    ensure!(ask(client, &mut connection)?.server == before);
                    kept.push((name, client, to, connection));
                }
            }
        }
        scene.world.program(&with(after).service)?;
        for (name, client, to, connection) in &mut kept {
            let reply = ask(*client, connection).with_context(|| format!("{name} to {to}"))?;
            ensure!(
                reply.server == before,
                "{name} to {to} is with {}",
                reply.server
            );
        }
        scene.world.manifests.remove(&offer.service.file())?;
        wait_until_gone(scene, &offer.service)?;
        for (name, client, to, connection) in &mut kept {
            let reply = ask(*client, connection).with_context(|| format!("{name} to {to}"))?;
            ensure!(
                reply.server == before,
                "{name} to {to} is with {}",
                reply.server
            );
        }
    }
    Ok(())
}

fn wait_until_gone(scene: &Outside, service: &Service) -> Result<()> {
    for node in scene.nodes() {
        node.wait_for(&format!("{} is gone", service.key()), |status| {
            !status
                .services
                .iter()
                .any(|served| served.service == service.key())
        })?;
    }
    Ok(())
}

/// Asks in a conversation that goes on.
fn ask(client: Client, conversation: &mut Conversation) -> Result<Reply, Failure> {
    client.namespace().wait(conversation.ask())
}

/// Asks until a datagram has reached a server: a refusal that is still on its way is reported by the
/// socket for the next one.
fn ask_again(client: Client, conversation: &mut Conversation) -> Result<Reply> {
    until("somebody answers", || Ok(ask(client, conversation).ok()))
}
