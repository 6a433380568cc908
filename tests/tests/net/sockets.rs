//! Services for processes: the choice is made when a socket is connected or a datagram sent.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use ipnet::IpNet;
use lb_common::socket::{Socket, SocketKey};
use lb_tests::sandbox::{
    Client, Conversation, Failure, Family, Node, PATIENCE, Pair, Protocol, Reply, Service,
    cluster_ip, public_ip, until,
};
use libtest_mimic::Trial;
use nix::{errno::Errno, sys::signal::Signal};
use tokio::{net::UdpSocket, time::timeout};

use crate::{
    trial,
    world::{PORT, Shape, TARGET, World, frontend, service},
};

/// Two nodes, so that backends are here and there.
const TWO: Shape = Shape {
    nodes: 2,
    // These tests run on kernels without tcx, too.
    attach: "auto",
    ..Shape::PLAIN
};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("a host process reaches ClusterIPs", cluster_ips),
        trial(
            "a host process reaches NodePorts, load balancers and external IPs",
            external_frontends,
        ),
        trial("source ranges hold for host processes", source_ranges),
        trial(
            "a host process keeps its backend under session affinity",
            session_affinity,
        ),
        trial(
            "internalTrafficPolicy Local holds for host processes",
            internal_policy,
        ),
        trial(
            "a host process is refused where there are no endpoints",
            refusals,
        ),
        trial("unconnected datagrams of a host process", unconnected),
        trial("a UDP socket whose backend is gone is told", stale),
        trial("socket-lb all serves the processes of pods", every_process),
        trial("socket-lb off leaves all processes alone", no_process),
        trial("socket-lb of a pod that asks for it", one_pod),
        trial(
            "host processes do not notice that the agent restarts",
            restart,
        ),
    ]
}

/// The ways to write what is dialled: as it is, and IPv4 as IPv6 (RFC 4291, 2.5.5.2).
fn spellings(to: SocketAddr) -> Vec<SocketAddr> {
    match to.ip() {
        IpAddr::V4(v4) => vec![to, SocketAddr::new(v4.to_ipv6_mapped().into(), to.port())],
        IpAddr::V6(_) => vec![to],
    }
}

fn cluster_ips() -> Result<()> {
    let mut world = World::without_agent(TWO)?;
    let web = service("web", 10).endpoints([world.pod("near"), world.pod("far")]);
    let host = service("host", 11).endpoint(&world.sandbox.nodes()[1]);
    for service in [&web, &host] {
        world.manifests.write_service(service)?;
    }
    world.start_agents()?;
    let node = &world.sandbox.nodes()[0];
    for (service, servers) in [(&web, &["near", "far"][..]), (&host, &["node-2"])] {
        world.wait_for(service)?;
        for protocol in Protocol::BOTH {
            for family in Family::BOTH {
                for to in spellings(frontend(service, family)) {
                    let what = || format!("{protocol:?} {to}");
                    let reply = node.ask(protocol, to).with_context(what)?;
                    ensure!(servers.contains(&&reply.server[..]), "{to}: {reply:?}");
                    ensure!(reply.from == to, "{to} shows through: {reply:?}");
                    ensure!(same(reply.seen, reply.local), "{to}: {reply:?}");
                    all_answer(node.client(), protocol, to, servers)?;
                }
            }
        }
    }
    let reached = dialled(node)?;
    ensure!(!reached.is_empty(), "packets were translated, not sockets");
    Ok(())
}

/// Whether two addresses are one, however they are written.
fn same(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

/// Asks until each server has answered.
fn all_answer(
    client: Client<'_>,
    protocol: Protocol,
    to: SocketAddr,
    servers: &[&str],
) -> Result<()> {
    let mut missing: BTreeSet<&str> = servers.iter().copied().collect();
    until(&format!("each of {servers:?} answers at {to}"), || {
        let reply = client.ask(protocol, to)?;
        missing.remove(&reply.server[..]);
        Ok(missing.is_empty().then_some(()))
    })
}

/// The frontends in `SOCKETS`, which the sockets of processes dialled.
fn dialled(node: &Node) -> Result<BTreeSet<IpAddr>> {
    let path = node
        .bpffs()
        .join(format!("lb/v{}/SOCKETS", lb_common::LAYOUT_VERSION));
    let map = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    let sockets: HashMap<_, SocketKey, Socket> = Map::LruHashMap(map).try_into()?;
    sockets
        .iter()
        .map(|entry| Ok(lb_common::address::to_ip(&entry?.1.address)))
        .collect()
}

/// What clients outside dial leads to an endpoint from the node itself too, wherever that is and
/// whatever the external policy says.
fn external_frontends() -> Result<()> {
    let mut world = World::without_agent(TWO)?;
    let [vip, external] = [1, 2].map(public_ip);
    let web = both_ports("web", 10, true)
        .load_balancer(vip)
        .external_ip(external)
        .external_local()
        .endpoint(world.pod("far"));
    world.manifests.write_service(&web)?;
    world.start_agents()?;
    world.wait_for(&web)?;
    let node = &world.sandbox.nodes()[0];
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let own = SocketAddr::new(node.addresses().get(family), node_port(protocol));
            let [vip, external] = [vip, external].map(|ips| SocketAddr::new(ips.get(family), PORT));
            for to in [own, vip, external].into_iter().flat_map(spellings) {
                let reply = node
                    .ask(protocol, to)
                    .with_context(|| format!("{protocol:?} {to}"))?;
                ensure!(reply.server == "far" && reply.from == to, "{to}: {reply:?}");
            }
            let found = dialled(node)?;
            for to in [own, vip, external] {
                ensure!(found.contains(&to.ip()), "{to} was translated by packets");
            }
        }
    }
    Ok(())
}

/// A Service with a TCP and a UDP port that nodes may offer too.
fn both_ports(name: &str, ip: u8, on_nodes: bool) -> Service {
    let mut service = Service::new(name, cluster_ip(ip));
    for protocol in Protocol::BOTH {
        service = service.port(protocol.name(), protocol, PORT, TARGET);
        if on_nodes {
            service = service.node_port(node_port(protocol));
        }
    }
    service
}

const fn node_port(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 30080,
        Protocol::Udp => 30053,
    }
}

/// The node's own address must be in the ranges; else its packets are lost.
fn source_ranges() -> Result<()> {
    let mut world = World::without_agent(Shape::PLAIN)?;
    let [open, closed] = [1, 2].map(public_ip);
    let near = world.pod("near");
    let lets = |service: Service, networks: [IpAddr; 2]| {
        let ranges = networks.map(IpNet::from).into_iter();
        ranges.fold(service, Service::source_range).endpoint(near)
    };
    let own = world.sandbox.nodes()[0].addresses().each();
    let other = world.sandbox.outside_addresses().each();
    let services = [
        lets(service("open", 10).load_balancer(open), own),
        lets(service("closed", 11).load_balancer(closed), other),
    ];
    for service in &services {
        world.manifests.write_service(service)?;
    }
    world.start_agents()?;
    for service in &services {
        world.wait_for(service)?;
    }
    let node = &world.sandbox.nodes()[0];
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let ask = |ips: Pair| node.ask(protocol, SocketAddr::new(ips.get(family), PORT));
            ensure!(ask(open)?.server == "near");
            let result = ask(closed);
            ensure!(result == Err(Failure::TimedOut), "{result:?}");
        }
    }
    Ok(())
}

/// One backend, whether the ClusterIP or the NodePort is dialled, and another for each port.
fn session_affinity() -> Result<()> {
    let mut world = World::without_agent(TWO)?;
    let web = both_ports("web", 10, true)
        .affinity(60)
        .endpoints([world.pod("near"), world.pod("far")]);
    world.manifests.write_service(&web)?;
    world.start_agents()?;
    world.wait_for(&web)?;
    let node = &world.sandbox.nodes()[0];
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let own = SocketAddr::new(node.addresses().get(family), node_port(protocol));
            let mut servers = BTreeSet::new();
            for to in [frontend(&web, family), own] {
                for _ in 0..10 {
                    servers.insert(node.ask(protocol, to)?.server);
                }
            }
            ensure!(servers.len() == 1, "{protocol:?} {family:?}: {servers:?}");
        }
    }
    Ok(())
}

/// Only an endpoint of this node serves; without one packets are lost, as kube-proxy loses them.
fn internal_policy() -> Result<()> {
    let mut world = World::without_agent(TWO)?;
    let both = service("both", 10)
        .internal_local()
        .endpoints([world.pod("near"), world.pod("far")]);
    let there = service("there", 11)
        .internal_local()
        .endpoint(world.pod("far"));
    for service in [&both, &there] {
        world.manifests.write_service(service)?;
    }
    world.start_agents()?;
    world.wait_for(&both)?;
    world.wait_for(&there)?;
    let [here, far] = world.sandbox.nodes() else {
        anyhow::bail!("two nodes");
    };
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            for _ in 0..5 {
                let reply = here.ask(protocol, frontend(&both, family))?;
                ensure!(reply.server == "near", "{reply:?}");
            }
            let lost = here.ask(protocol, frontend(&there, family));
            ensure!(lost == Err(Failure::TimedOut), "{lost:?}");
            let reply = far.ask(protocol, frontend(&there, family))?;
            ensure!(reply.server == "far", "{reply:?}");
        }
    }
    Ok(())
}

fn refusals() -> Result<()> {
    let none = service("none", 10);
    let world = World::serving(Shape::PLAIN, &[&none])?;
    let client = world.sandbox.nodes()[0].client();
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let defined = frontend(&none, family);
            for port in [PORT, PORT + 1] {
                for to in spellings(SocketAddr::new(defined.ip(), port)) {
                    let result = client.ask(protocol, to);
                    ensure!(
                        result == Err(Failure::Refused),
                        "{protocol:?} {to}: {result:?}"
                    );
                }
            }
            if protocol == Protocol::Udp {
                let result = client.run(Unconnected::ask(defined, defined));
                ensure!(result == Err(Failure::Refused), "{defined}: {result:?}");
            }
        }
    }
    Ok(())
}

/// A UDP socket that is connected to nobody.
struct Unconnected {
    socket: UdpSocket,
}

impl Unconnected {
    async fn open(like: SocketAddr) -> Result<Self, Failure> {
        let any: IpAddr = match like {
            SocketAddr::V4(_) => [0, 0, 0, 0].into(),
            SocketAddr::V6(_) => [0u16; 8].into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        Ok(Self { socket })
    }

    /// Sends a datagram to `to`; says which server answered, and from where.
    async fn exchange(&self, to: SocketAddr) -> Result<(String, SocketAddr), Failure> {
        self.socket.send_to(b"who\n", to).await?;
        let mut datagram = [0; 256];
        let answer = timeout(PATIENCE, self.socket.recv_from(&mut datagram)).await;
        let (size, from) = answer.map_err(|_| Failure::TimedOut)??;
        let text = String::from_utf8_lossy(&datagram[..size]).into_owned();
        let server = text.split_whitespace().next().unwrap_or_default();
        Ok((server.to_owned(), from))
    }

    async fn ask(like: SocketAddr, to: SocketAddr) -> Result<(String, SocketAddr), Failure> {
        Self::open(like).await?.exchange(to).await
    }
}

/// A socket's datagrams to one address go to one backend, and come from what was dialled; when the
/// backend is gone, the next one goes to another.
fn unconnected() -> Result<()> {
    let mut world = World::without_agent(TWO)?;
    let web = service("web", 10).endpoints([world.pod("near"), world.pod("far")]);
    world.manifests.write_service(&web)?;
    world.start_agents()?;
    world.wait_for(&web)?;
    let client = world.sandbox.nodes()[0].client();
    for family in Family::BOTH {
        for to in spellings(frontend(&web, family)) {
            let socket = Arc::new(client.run(Unconnected::open(to))?);
            let first = exchange(client, &socket, to)?;
            for _ in 0..20 {
                let next = exchange(client, &socket, to)?;
                ensure!(next == first, "{next} after {first}");
            }
            let left = web.clone().without(&first);
            world.program(&left)?;
            let next = exchange(client, &socket, to)?;
            ensure!(next != first, "{first} is gone and answers at {to}");
            world.program(&web)?;
        }
    }
    Ok(())
}

/// The server that answers, from the address that was dialled.
fn exchange(client: Client<'_>, socket: &Arc<Unconnected>, to: SocketAddr) -> Result<String> {
    let socket = socket.clone();
    let (server, from) = client.run(async move { socket.exchange(to).await })?;
    ensure!(from == to, "{to} answers as {from}");
    Ok(server)
}

/// A connected UDP socket gets an error when its backend is gone, and finds another when it is
/// connected again. Sockets that have nothing to do with it go on.
fn stale() -> Result<()> {
    let mut world = World::without_agent(TWO)?;
    let web = service("web", 10).endpoint(world.pod("far"));
    world.manifests.write_service(&web)?;
    world.start_agents()?;
    world.wait_for(&web)?;
    let client = world.sandbox.nodes()[0].client();
    for family in Family::BOTH {
        for to in spellings(frontend(&web, family)) {
            let socket = Arc::new(client.run(connected(to))?);
            let direct = SocketAddr::new(world.pod("far").address(family), TARGET);
            let mut bystander = client.open(Protocol::Udp, direct)?;
            ensure!(send(client, &socket) == Ok("far".to_owned()));

            let moved = web.clone().without("far").endpoint(world.pod("near"));
            world.program(&moved)?;
            until("the socket is told", || match send(client, &socket) {
                Ok(_) => Ok(None),
                Err(error) if TOLD.contains(&error) => Ok(Some(())),
                Err(error) => Err(anyhow::anyhow!("an error of another kind: {error}")),
            })?;
            let reply: Reply = client.run(async move { bystander.ask().await })?;
            ensure!(reply.server == "far", "{reply:?}");
            let again = client.ask(Protocol::Udp, to)?;
            ensure!(again.server == "near", "{again:?}");
            world.program(&web)?;
        }
    }
    Ok(())
}

async fn connected(to: SocketAddr) -> Result<UdpSocket, Failure> {
    let Unconnected { socket } = Unconnected::open(to).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// What the owner of a socket gets that we end: where it waits, and where it sends.
const TOLD: [Errno; 2] = [Errno::ECONNABORTED, Errno::EDESTADDRREQ];

/// Asks over a connected socket.
fn send(client: Client<'_>, socket: &Arc<UdpSocket>) -> Result<String, Errno> {
    let socket = socket.clone();
    client.run(async move {
        let kind = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        socket.send(b"who\n").await.map_err(kind)?;
        let mut datagram = [0; 256];
        let answer = timeout(PATIENCE, socket.recv(&mut datagram)).await;
        let size = answer.map_err(|_| Errno::ETIMEDOUT)?.map_err(kind)?;
        let text = String::from_utf8_lossy(&datagram[..size]).into_owned();
        Ok(text
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned())
    })
}

fn every_process() -> Result<()> {
    let mut world = World::without_agent(TWO)?;
    let (web, other) = two_services(&world);
    world.flags = vec!["--socket-lb", "all"];
    for service in [&web, &other] {
        world.manifests.write_service(service)?;
    }
    world.start_agents()?;
    world.wait_for(&web)?;
    world.wait_for(&other)?;
    ask_all(world.client().client(), &web, "far")?;
    ask_all(world.sandbox.nodes()[0].client(), &other, "far")?;
    let found = dialled(&world.sandbox.nodes()[0])?;
    for service in [&web, &other] {
        ensure!(found.contains(&service.ip(Family::V4)), "{found:?}");
    }
    // A socket belongs to the node that it is on.
    let found = dialled(&world.sandbox.nodes()[1])?;
    ensure!(found.is_empty(), "{found:?}");

    // Back to the default: pods are left to their interfaces.
    world.flags = Vec::new();
    end(&mut world)?;
    world.start_agents()?;
    let third = service("third", 12).endpoint(world.pod("far"));
    world.program(&third)?;
    ask_all(world.client().client(), &third, "far")?;
    let found = dialled(&world.sandbox.nodes()[0])?;
    ensure!(!found.contains(&third.ip(Family::V4)), "{found:?}");
    Ok(())
}

fn two_services(world: &World) -> (Service, Service) {
    let web = service("web", 10).endpoint(world.pod("far"));
    let other = service("other", 11).endpoint(world.pod("far"));
    (web, other)
}

fn ask_all(client: Client<'_>, service: &Service, server: &str) -> Result<()> {
    for protocol in Protocol::BOTH {
        for family in Family::BOTH {
            let to = frontend(service, family);
            let reply = client
                .ask(protocol, to)
                .with_context(|| format!("{protocol:?} {to}"))?;
            ensure!(reply.server == server && reply.from == to, "{reply:?}");
        }
    }
    Ok(())
}

fn end(world: &mut World) -> Result<()> {
    for agent in &mut world.agents {
        agent.end(Signal::SIGTERM)?;
    }
    Ok(())
}

/// From on to off: what hung there is gone, and nothing of it is left.
fn no_process() -> Result<()> {
    let mut world = World::without_agent(TWO)?;
    let (web, other) = two_services(&world);
    world.manifests.write_service(&web)?;
    world.start_agents()?;
    world.wait_for(&web)?;
    let node = &world.sandbox.nodes()[0];
    ask_all(node.client(), &web, "far")?;
    let pins = node
        .bpffs()
        .join(format!("lb/v{}/sockets", lb_common::LAYOUT_VERSION));
    ensure!(pins.exists(), "{} is expected", pins.display());

    world.flags = vec!["--socket-lb", "off"];
    end(&mut world)?;
    world.start_agents()?;
    world.program(&other)?;
    ensure!(!pins.exists(), "{} is still there", pins.display());
    let node = &world.sandbox.nodes()[0];
    // The kernel lets go of links in its own time; whoever serves the node then, it is no socket.
    until("no socket is translated", || {
        let before = dialled(node)?.contains(&other.ip(Family::V4));
        let _ = node.ask(Protocol::Udp, frontend(&other, Family::V4));
        Ok((!before).then_some(()))
    })?;
    thread::sleep(Duration::from_millis(100));
    let _ = node.ask(Protocol::Udp, frontend(&other, Family::V6));
    let found = dialled(node)?;
    ensure!(!found.contains(&other.ip(Family::V6)), "{found:?}");
    Ok(())
}

/// The annotation of a pod has its own processes served, and nobody else's; without it they are left.
fn one_pod() -> Result<()> {
    let mut world = World::without_agent(TWO)?;
    let (web, other) = two_services(&world);
    for service in [&web, &other] {
        world.manifests.write_service(service)?;
    }
    let mut objects = world.sandbox.objects();
    let asks = objects
        .iter_mut()
        .find(|object| object["metadata"]["name"] == "client")
        .context("the Pod of `client`")?;
    asks["metadata"]["annotations"] = serde_json::json!({ ANNOTATION: "true" });
    world.manifests.write("objects.yaml", &objects)?;
    world.start_agents()?;
    for service in [&web, &other] {
        world.wait_for(service)?;
    }
    let node = &world.sandbox.nodes()[0];
    until("the pod's sockets are translated", || {
        ask_all(world.client().client(), &web, "far")?;
        Ok(dialled(node)?.contains(&web.ip(Family::V6)).then_some(()))
    })?;
    ask_all(world.pod("other").client(), &other, "far")?;
    let found = dialled(node)?;
    ensure!(!found.contains(&other.ip(Family::V4)), "{found:?}");

    let objects = world.sandbox.objects();
    world.manifests.write("objects.yaml", &objects)?;
    let third = service("third", 12).endpoint(world.pod("far"));
    world.program(&third)?;
    let pins = node
        .bpffs()
        .join(format!("lb/v{}/sockets", lb_common::LAYOUT_VERSION))
        .join(format!("pod_{}", world.client().uid()));
    until("the pod is left", || Ok((!pins.exists()).then_some(())))?;
    thread::sleep(Duration::from_millis(100));
    ask_all(world.client().client(), &third, "far")?;
    let found = dialled(node)?;
    ensure!(!found.contains(&third.ip(Family::V4)), "{found:?}");
    Ok(())
}

/// What a pod asks by.
const ANNOTATION: &str = "lb.io/socket-lb";

/// Connections and datagrams succeed while agents end and others take over, also when sockets live
/// longer than either.
fn restart() -> Result<()> {
    let mut world = World::without_agent(TWO)?;
    let (web, _) = two_services(&world);
    world.manifests.write_service(&web)?;
    world.start_agents()?;
    world.wait_for(&web)?;
    let to = frontend(&web, Family::V4);
    let client = world.sandbox.nodes()[0].namespace();
    let mut old = client.run(Conversation::open(Protocol::Udp, to))?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let load = client.spawn(async move {
        let mut asked = 0u32;
        let asking = async {
            loop {
                for protocol in Protocol::BOTH {
                    let reply = Conversation::open(protocol, to).await?.ask().await?;
                    if reply.from != to {
                        return Err(Failure::Broken(format!("{reply:?}")));
                    }
                }
                asked += 1;
            }
        };
        tokio::select! {
            failed = asking => failed,
            _ = stopped => Ok::<u32, Failure>(asked),
        }
    });
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for agent in &mut world.agents {
            agent.end(signal)?;
        }
        world.start_agents()?;
        world.wait_for(&web)?;
    }
    let node = &world.sandbox.nodes()[0];
    old = node.namespace().run(async move {
        let reply = old.ask().await?;
        if reply.from == to {
            Ok(old)
        } else {
            Err(Failure::Broken(format!("{reply:?}")))
        }
    })?;
    drop(old);
    // An error means that the load has ended by itself.
    let _ = stop.send(());
    let asked = futures::executor::block_on(load)??;
    ensure!(asked > 10, "only {asked} rounds");
    Ok(())
}
