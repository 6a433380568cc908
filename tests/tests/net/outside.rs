//! A cluster that clients outside use too, and Services with a frontend of every kind.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use lb_tests::sandbox::{
    Client, Conversation, Failure, Family, Node, Pair, Protocol, Reply, Service, Topology,
    outside_client, public_ip, public_networks, service_cidr, service_networks,
};

use libtest_mimic::Trial;

use crate::{
    trial,
    world::{PORT, Scene, Shape, Shared, TARGET, World, service},
};

/// The two-node cluster in which all behaviour is tested; in the others, whether packets arrive.
pub const PLAIN: Shape = Shape {
    topology: Topology::PointToPoint,
    nodes: 2,
    attach: "tcx",
};

/// Each topology, and each way to attach.
pub const SHAPES: [Shape; 6] = [
    PLAIN,
    Shape {
        attach: "clsact",
        ..PLAIN
    },
    Shape {
        topology: Topology::Bridge,
        ..PLAIN
    },
    Shape {
        topology: Topology::Vxlan,
        ..PLAIN
    },
    Shape {
        topology: Topology::Vxlan,
        attach: "clsact",
        ..PLAIN
    },
    Shape {
        topology: Topology::Tunnel,
        ..PLAIN
    },
];

/// How long nobody says anything where a packet is dropped. A TCP client repeats its SYN within.
const SILENCE: Duration = Duration::from_millis(1_500);

/// A kind of frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

impl Via {
    pub const ALL: [Self; 4] = [
        Self::ClusterIp,
        Self::NodePort,
        Self::LoadBalancer,
        Self::ExternalIp,
    ];
    pub const EXTERNAL: [Self; 3] = [Self::NodePort, Self::LoadBalancer, Self::ExternalIp];
}

/// A Service with a frontend of every kind, which its number tells.
#[derive(Clone)]
pub struct Offer {
    number: u8,
    pub service: Service,
}

impl Offer {
    /// A Service without endpoints; numbers up to 99.
    pub fn new(name: &str, number: u8) -> Self {
        let node_port = node_port(number);
        let service = Service::new(name, lb_tests::sandbox::cluster_ip(number))
            .port("tcp", Protocol::Tcp, PORT, TARGET)
            .node_port(node_port)
            .port("udp", Protocol::Udp, PORT, TARGET)
            .node_port(node_port)
            .load_balancer(public_ip(number))
            .external_ip(public_ip(100 + number));
        Self { number, service }
    }

    /// The same with a changed Service.
    pub fn with(&self, change: impl FnOnce(Service) -> Service) -> Self {
        Self {
            number: self.number,
            service: change(self.service.clone()),
        }
    }

    /// Where clients reach it; `node` is whose NodePort that is.
    pub fn at(&self, via: Via, node: &Node, family: Family) -> SocketAddr {
        let ip = match via {
            Via::ClusterIp => self.service.ip(family),
            Via::NodePort => {
                return SocketAddr::new(node.addresses().get(family), node_port(self.number));
            }
            Via::LoadBalancer => public_ip(self.number).get(family),
            Via::ExternalIp => public_ip(100 + self.number).get(family),
        };
        SocketAddr::new(ip, PORT)
    }
}

/// The port on the nodes that leads to a Service with a frontend of every kind.
pub fn node_port(number: u8) -> u16 {
    30_000 + u16::from(number)
}

/// A cluster of two nodes. What is outside sends everything but NodePorts to the first.
pub struct Outside {
    pub world: World,
    /// `near`, on the first node.
    pub near: Offer,
    /// `far`, on the second.
    pub far: Offer,
    /// Both.
    pub both: Offer,
    /// The nodes.
    pub host: Offer,
    /// `far`, with `externalTrafficPolicy: Local`.
    pub external_local: Offer,
    /// `far`, with `internalTrafficPolicy: Local`.
    pub internal_local: Offer,
    /// Nobody.
    pub none: Offer,
    /// `near`, for the first client outside by load balancer.
    pub ranged: Offer,
    /// `near`, for the first node by load balancer.
    pub ranged_to_node: Offer,
    /// `near`, behind a load balancer that is a proxy and called `balancer`.
    pub proxied: Service,
    /// Addresses of the first node that no Node object mentions.
    pub spare: Pair,
}

impl Scene for Outside {
    fn world(&self) -> &World {
        &self.world
    }

    fn make(shape: Shape) -> Result<Self> {
        let world = World::without_agent(shape)?;
        let sandbox = &world.sandbox;
        let spare = sandbox.nodes()[0].add_spare_addresses()?;
        for networks in [service_networks(), public_networks(), spare.networks()] {
            sandbox.route_outside(networks, &sandbox.nodes()[0])?;
        }
        sandbox.add_outside(public_ip(40))?;
        for protocol in Protocol::BOTH {
            sandbox.serve_outside(public_ip(40), "balancer", protocol, PORT)?;
        }
        world.manifests.write("networks.yaml", &[service_cidr()])?;
        let [near, far] = ["near", "far"].map(|name| sandbox.pod(name));
        let nodes = sandbox.nodes();
        let ranged = |name, number, by: [IpAddr; 2]| {
            Offer::new(name, number).with(|service| {
                let ranges = by.into_iter().map(ipnet::IpNet::from);
                ranges.fold(service.endpoint(near), Service::source_range)
            })
        };
        let proxied = service("proxied", 40)
            .endpoint(near)
            .proxy_load_balancer(public_ip(40));
        let scene = Self {
            near: Offer::new("near", 30).with(|service| service.endpoint(near)),
            far: Offer::new("far", 31).with(|service| service.endpoint(far)),
            both: Offer::new("both", 32).with(|service| service.endpoints([near, far])),
            host: Offer::new("host", 33)
                .with(|service| nodes.iter().fold(service, Service::endpoint)),
            external_local: Offer::new("external-local", 34)
                .with(|service| service.endpoint(far).external_local()),
            internal_local: Offer::new("internal-local", 35)
                .with(|service| service.endpoint(far).internal_local()),
            none: Offer::new("none", 36),
            ranged: ranged("ranged", 37, outside_client(1).each()),
            ranged_to_node: ranged("ranged-to-node", 38, nodes[0].addresses().each()),
            proxied,
            spare,
            world,
        };
        scene.start()
    }
}

impl Outside {
    /// Starts the agents, and returns once they serve everything.
    fn start(mut self) -> Result<Self> {
        for service in self.services() {
            self.world.manifests.write_service(&service)?;
        }
        self.world.start_agents()?;
        for service in self.services() {
            self.world.wait_for(&service)?;
        }
        Ok(self)
    }

    fn services(&self) -> Vec<Service> {
        let offers = [
            &self.near,
            &self.far,
            &self.both,
            &self.host,
            &self.external_local,
            &self.internal_local,
            &self.none,
            &self.ranged,
            &self.ranged_to_node,
        ];
        let services = offers.into_iter().map(|offer| offer.service.clone());
        services.chain([self.proxied.clone()]).collect()
    }

    /// The nodes.
    pub fn nodes(&self) -> [&Node; 2] {
        let nodes = self.world.sandbox.nodes();
        [&nodes[0], &nodes[1]]
    }

    /// A client outside.
    pub fn outsider(&self) -> Client<'_> {
        self.world.sandbox.outside_client(2)
    }

    /// A pod on the first node.
    pub fn pod(&self) -> Client<'_> {
        self.world.client().client()
    }

    /// A pod on the second node.
    pub fn peer(&self) -> Client<'_> {
        self.world.pod("peer").client()
    }

    /// A process of the first node.
    pub fn host(&self) -> Client<'_> {
        self.nodes()[0].client()
    }

    /// Clients of every kind that use the first node.
    pub fn clients(&self) -> [(&'static str, Client<'_>); 3] {
        [
            ("outside", self.outsider()),
            ("pod", self.pod()),
            ("host", self.host()),
        ]
    }

    /// Fails unless a Service answers that `server` serves, from where it was dialled.
    pub fn ask(
        &self,
        client: Client,
        protocol: Protocol,
        to: SocketAddr,
        server: &str,
    ) -> Result<Reply> {
        let reply = client.ask(protocol, to);
        let Ok(reply) = reply else {
            bail!("{to}: {reply:?}");
        };
        ensure!(
            reply.server == server,
            "{to} is {}: {reply:?}",
            reply.server
        );
        ensure!(reply.from == to, "{to} answers as {}", reply.from);
        Ok(reply)
    }
}

/// Whether an address is one of a node's own.
pub fn belongs_to(node: &Node, address: IpAddr) -> bool {
    let own = [node.addresses(), node.tunnel_addresses()];
    own.iter().any(|own| own.each().contains(&address))
}

/// Fails unless the other side, or a node on the way, says no.
pub fn ensure_refused(client: Client, protocol: Protocol, to: SocketAddr) -> Result<()> {
    let result = client.ask(protocol, to);
    ensure!(result == Err(Failure::Refused), "{to}: {result:?}");
    Ok(())
}

/// Fails unless nobody says anything to any of these clients.
pub fn ensure_silent(protocol: Protocol, asked: &[(Client, SocketAddr)]) -> Result<()> {
    let asked: Vec<_> = asked
        .iter()
        .map(|(client, to)| {
            let (from, to) = (client.from(*to), *to);
            let ask = async move { Conversation::open_at(from, protocol, to).await?.ask().await };
            let asked = async move { tokio::time::timeout(SILENCE, ask).await };
            (to, client.namespace().spawn(asked))
        })
        .collect();
    for (to, result) in asked {
        if let Ok(result) = futures::executor::block_on(result)? {
            bail!("{to}: {result:?}");
        }
    }
    Ok(())
}

/// A trial of a scene that needs no more than one.
pub fn once(shared: &Shared<Outside>, what: &str, test: fn(&Outside) -> Result<()>) -> Trial {
    let shared = shared.clone();
    trial(format!("{what} {}", shared.name()), move || {
        shared.run(test)
    })
}

/// Each protocol with each family.
pub fn combinations() -> impl Iterator<Item = (Protocol, Family)> {
    let of = |protocol| Family::BOTH.map(|family| (protocol, family));
    Protocol::BOTH.into_iter().flat_map(of)
}
