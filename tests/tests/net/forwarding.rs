//! A node as a router: large and broken packets, errors on the way, ports that run short.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{
    IpHeaders, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6Header, PacketBuilder,
};
use futures::future::join_all;
use lb_tests::sandbox::{
    Client, Conversation, Endpoint, Failure, Family, Namespace, Protocol, Reply, Topology,
    outside_client,
};
use libtest_mimic::Trial;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    socket,
};
use tokio::net::UdpSocket;

use crate::{
    each,
    errors::provoke,
    outside::{Offer, Outside, PLAIN, Via, belongs_to, once},
    world::Shared,
};

/// What VXLAN leaves of an uplink's 1500.
const NARROW: u32 = 1450;
/// A datagram that takes several packets on any link.
const LARGE: usize = 8_000;
/// How long a packet may take.
const SOON: Duration = Duration::from_millis(500);
/// Many segments in one go.
const TRANSFER: usize = 4 << 20;

pub fn trials(shared: &Shared<Outside>) -> Vec<Trial> {
    let mut trials = vec![
        once(shared, "large transfers through nodes", transfers),
        once(shared, "fragments through nodes", fragments),
        once(shared, "IP options through nodes", options),
        once(shared, "time exceeded at a node", time_exceeded),
        once(shared, "spoofed sources from outside", spoofed),
        once(shared, "many connections to another node's backend", many),
    ];
    if shared.shape() == PLAIN {
        trials.push(once(
            shared,
            "many questions to another node's backend",
            questions,
        ));
    }
    if shared.shape().topology == Topology::Vxlan {
        trials.push(once(shared, "a narrow path behind a node", narrow));
    }
    trials.extend(each(
        shared,
        "one client port of two clients outside",
        one_port,
    ));
    trials
}

/// A frontend for each path that a packet can take.
fn paths(scene: &Outside, family: Family) -> Vec<(Client<'_>, SocketAddr)> {
    let node = scene.nodes()[0];
    let mut paths = Vec::new();
    for (_, client) in scene.clients() {
        for offer in [&scene.near, &scene.far] {
            for via in [Via::ClusterIp, Via::NodePort] {
                paths.push((client, offer.at(via, node, family)));
            }
        }
    }
    paths
}

fn transfers(scene: &Outside) -> Result<()> {
    for family in Family::BOTH {
        for (client, to) in paths(scene, family) {
            let mut connection = client.open(Protocol::Tcp, to)?;
            let there = client.namespace().wait(connection.upload(TRANSFER));
            there.with_context(|| format!("upload to {to}"))?;
            let back = client.namespace().wait(connection.download(TRANSFER));
            back.with_context(|| format!("download from {to}"))?;
        }
    }
    Ok(())
}

fn fragments(scene: &Outside) -> Result<()> {
    for family in Family::BOTH {
        for (client, to) in paths(scene, family) {
            let mut socket = client.open(Protocol::Udp, to)?;
            let mut there = client.namespace().wait(socket.upload(LARGE));
            if matches!(there, Err(Failure::Broken(_))) {
                // The node does not cut what is too large behind it: it says so once.
                there = client.namespace().wait(socket.upload(LARGE));
            }
            there.with_context(|| format!("to {to}"))?;
            let back = client.namespace().wait(socket.download(LARGE));
            back.with_context(|| format!("from {to}"))?;
        }
    }
    Ok(())
}

/// Datagrams that no ordinary socket sends.
fn options(scene: &Outside) -> Result<()> {
    const SOURCE: u16 = 4_700;
    /// Four options that do nothing.
    const NOTHING: [u8; 4] = [1; 4];

    let mut port = SOURCE;
    for offer in [&scene.near, &scene.far] {
        for (client, via) in [
            (scene.outsider(), Via::NodePort),
            (scene.pod(), Via::ClusterIp),
        ] {
            let to = offer.at(via, scene.nodes()[0], Family::V4);
            let own = match client.from(to).ip() {
                ip if ip.is_unspecified() => scene.world.client().address(Family::V4),
                ip => ip,
            };
            port += 1;
            let from = SocketAddr::new(own, port);
            let heard = client.run(async move {
                let socket = UdpSocket::bind(from).await?;
                send_raw(&packet(from, to, &NOTHING, b"who\n")?, to)?;
                let mut answer = [0; 256];
                let answer = socket.recv(&mut answer);
                anyhow::Ok(tokio::time::timeout(Duration::from_secs(1), answer).await??)
            });
            heard.with_context(|| format!("{from} to {to}"))?;
        }
    }
    Ok(())
}

/// A UDP packet with its IP header. Only IPv4 has options.
pub fn packet(from: SocketAddr, to: SocketAddr, options: &[u8], payload: &[u8]) -> Result<Vec<u8>> {
    let ip = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            let header = Ipv4Header {
                time_to_live: 64,
                source: from.ip().octets(),
                destination: to.ip().octets(),
                options: Ipv4Options::try_from(options)?,
                ..Ipv4Header::default()
            };
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            let header = Ipv6Header {
                hop_limit: 64,
                source: from.ip().octets(),
                destination: to.ip().octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
        _ => bail!("{from} and {to} are of two families"),
    };
    let mut packet = Vec::new();
    let builder = PacketBuilder::ip(ip).udp(from.port(), to.port());
    builder.write(&mut packet, payload)?;
    Ok(packet)
}

/// Sends a packet as it is, to where the route to `to` leads.
pub fn send_raw(packet: &[u8], to: SocketAddr) -> Result<()> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let raw = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)?;
    let raw = raw.as_raw_fd();
    let sent = match to {
        SocketAddr::V4(to) => {
            let to = SocketAddrV4::new(*to.ip(), 0);
            sendto(raw, packet, &SockaddrIn::from(to), MsgFlags::empty())
        }
        SocketAddr::V6(to) => {
            let to = SocketAddrV6::new(*to.ip(), 0, 0, 0);
            sendto(raw, packet, &SockaddrIn6::from(to), MsgFlags::empty())
        }
    };
    ensure!(sent? == packet.len(), "cut short");
    Ok(())
}

/// The node that the client dialled is the first router, also for the backend of another node.
fn time_exceeded(scene: &Outside) -> Result<()> {
    let node = scene.nodes()[0];
    for family in Family::BOTH {
        for (offer, hops) in [(&scene.far, 1), (&scene.far, 2), (&scene.near, 1)] {
            for via in [Via::NodePort, Via::LoadBalancer] {
                let to = offer.at(via, node, family);
                let error = provoke(scene.outsider(), to, Some(hops), 100);
                let error = error.with_context(|| format!("{hops} hops to {to}"))?;
                ensure!(
                    matches!((error.kind, error.code), (3, 0) | (11, 0)),
                    "{hops} hops to {to}: {error:?}"
                );
                ensure!(
                    error.quoted == to,
                    "{hops} hops: it quotes {}",
                    error.quoted
                );
                // A node answers from the address that was dialled.
                let known = error
                    .from
                    .is_some_and(|from| belongs_to(node, from) || from == to.ip());
                ensure!(hops != 1 || known, "{to}: it is from {:?}", error.from);
            }
        }
    }
    Ok(())
}

/// Nobody outside can pretend to be a pod, a node or this very machine.
fn spoofed(scene: &Outside) -> Result<()> {
    /// A port on which nobody else hears anything.
    const TRAP: u16 = 9_400;

    let offers = ["near", "far"].map(|name| {
        let number = if name == "near" { 90 } else { 91 };
        let pod = scene.world.pod(name);
        let trap = Endpoint::from(pod).listening_on(TRAP);
        (
            pod,
            Offer::new(&format!("trap-{name}"), number).with(|service| service.endpoint(trap)),
        )
    });
    for (pod, offer) in offers {
        scene.world.program(&offer.service)?;
        for family in Family::BOTH {
            let node = scene.nodes()[0];
            let to = offer.at(Via::NodePort, node, family);
            let loopback: IpAddr = match family {
                Family::V4 => [127, 0, 0, 9].into(),
                Family::V6 => Ipv6Addr::LOCALHOST.into(),
            };
            let local = [
                scene.world.client().address(family),
                node.addresses().get(family),
                loopback,
            ];
            let trap = SocketAddr::new(pod.address(family), TRAP);
            let outside = scene.outsider().namespace();
            for source in local {
                let heard = sprung(pod.namespace(), trap, outside, source, to)?;
                ensure!(!heard, "{source} got through to {}", pod.name());
            }
            let honest = outside_client(5).get(family);
            let heard = sprung(pod.namespace(), trap, outside, honest, to)?;
            ensure!(heard, "{honest} was not heard by {}", pod.name());
        }
    }
    Ok(())
}

/// Whether a packet from outside with this source reaches the trap.
fn sprung(
    pod: &Namespace,
    trap: SocketAddr,
    outside: &Namespace,
    source: IpAddr,
    to: SocketAddr,
) -> Result<bool> {
    let ready = pod.run(bind(trap))?;
    let packet = packet(SocketAddr::new(source, 4_800), to, &[], b"boo\n")?;
    outside.run(async move { send_raw(&packet, to) })?;
    let mut datagram = [0; 16];
    let heard = async { tokio::time::timeout(SOON, ready.recv(&mut datagram)).await };
    Ok(pod.wait(heard).is_ok())
}

/// A socket at an address that another has just left: a process that somebody starts meanwhile holds
/// the other for a moment, until it is another program's.
async fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let started = Instant::now();
    loop {
        match UdpSocket::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && started.elapsed() < SOON => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            bound => return bound,
        }
    }
}

/// The node tells them apart by ports of its own.
fn one_port(scene: &Outside, protocol: Protocol, family: Family) -> Result<()> {
    const PORT: u16 = 4_900;

    let port = PORT + u16::from(protocol == Protocol::Udp) * 2 + u16::from(family == Family::V6);
    for offer in [&scene.far, &scene.near] {
        let to = offer.at(Via::NodePort, scene.nodes()[0], family);
        let mut conversations = Vec::new();
        for client in 1..=3 {
            let from = SocketAddr::new(outside_client(client).get(family), port);
            let outside = scene.world.sandbox.outside();
            let open = Conversation::open_at(from, protocol, to);
            conversations.push((from, outside.run(open)?));
        }
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            for (from, conversation) in &mut conversations {
                let reply = scene.world.sandbox.outside().wait(conversation.ask());
                let reply: Reply = reply.with_context(|| format!("{from} to {to}"))?;
                seen.insert(reply.seen);
            }
        }
        ensure!(seen.len() == 3, "the server saw {seen:?}");
        for (_, conversation) in conversations {
            if protocol == Protocol::Tcp {
                let outside = scene.world.sandbox.outside();
                outside.run(conversation.part())?;
            }
        }
    }
    Ok(())
}

/// Open at one time, each with a port of the node.
fn many(scene: &Outside) -> Result<()> {
    const CONNECTIONS: usize = 1_000;

    for family in Family::BOTH {
        let to = scene.far.at(Via::NodePort, scene.nodes()[0], family);
        let clients = (0..CONNECTIONS).map(|number| {
            let number = u8::try_from(number % 4 + 1).unwrap_or(1);
            SocketAddr::new(outside_client(number).get(family), 0)
        });
        let opened: Vec<_> = clients
            .map(|from| async move {
                let mut conversation = Conversation::open_at(from, Protocol::Tcp, to).await?;
                let reply = conversation.ask().await?;
                Ok::<_, Failure>((conversation, reply))
            })
            .collect();
        let opened = scene.world.sandbox.outside().run(join_all(opened));
        let opened: Vec<_> = opened.into_iter().collect::<Result<_, _>>()?;
        let seen: BTreeSet<_> = opened.iter().map(|(_, reply)| reply.seen).collect();
        ensure!(seen.len() == CONNECTIONS, "two connections share a port");
    }
    Ok(())
}

/// Asked one after another, each from a port of the node that it keeps for a while: half of all that
/// there are.
fn questions(scene: &Outside) -> Result<()> {
    const QUESTIONS: usize = 14_000;
    const AT_ONCE: usize = 100;

    let to = scene.far.at(Via::NodePort, scene.nodes()[0], Family::V4);
    let ask = |from| async move {
        let mut conversation = Conversation::open_at(from, Protocol::Udp, to).await?;
        conversation.ask().await
    };
    for _ in 0..QUESTIONS / AT_ONCE {
        let clients = (1..=4).cycle().take(AT_ONCE);
        let from = clients.map(|number| SocketAddr::new(outside_client(number).v4.into(), 0));
        let replies = scene
            .world
            .sandbox
            .outside()
            .run(join_all(from.map(ask).collect::<Vec<_>>()));
        for reply in replies {
            let reply = reply?;
            ensure!(reply.server == "far", "{reply:?}");
        }
    }
    Ok(())
}

/// What is behind the node carries less than its uplink: a datagram that does not fit comes back as
/// an error about the frontend.
fn narrow(scene: &Outside) -> Result<()> {
    /// Too much for VXLAN, not too much for an uplink.
    const DATAGRAM: usize = 1_440;

    for family in Family::BOTH {
        for offer in [&scene.near, &scene.far] {
            // Nobody else sends much there: a client's kernel remembers what it has been told.
            let to = offer.at(Via::ExternalIp, scene.nodes()[0], family);
            let error = provoke(scene.outsider(), to, None, DATAGRAM);
            let error = error.with_context(|| to.to_string())?;
            // ICMPv6 packet too big, ICMP fragmentation needed.
            ensure!(
                matches!((error.kind, error.code), (2, 0) | (3, 4)),
                "{error:?}"
            );
            ensure!(error.quoted == to, "the error quotes {}", error.quoted);
            ensure!(error.info == NARROW, "{to}: the error says {}", error.info);
        }
    }
    Ok(())
}
