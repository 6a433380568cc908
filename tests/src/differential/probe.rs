//! What is asked of both sides: who dials what.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::world::{Round, Service, UNDEFINED_PORT, World, service_name};
use crate::sandbox::{Family, Pair, Protocol};

/// A client and what it dials, told in a way that outlives a change of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    pub who: Who,
    pub family: Family,
    pub to: To,
}

/// A client. The node under test is node-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A pod of the node that serves nothing.
    Pod,
    /// A pod of the node that may be an endpoint.
    Server,
    /// A process of the node.
    Host,
    /// Somebody outside of the cluster.
    Outside,
    /// A pod of another node.
    OtherPod,
    /// A process of another node.
    OtherHost,
}

/// What is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum To {
    Port {
        service: u8,
        /// Its name.
        port: &'static str,
        at: At,
    },
    /// The ClusterIP at a port that the Service does not have.
    UndefinedPort { service: u8, protocol: Protocol },
    /// An address for Services that no Service has.
    Unallocated { protocol: Protocol },
}

/// Which of the addresses of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    ClusterIp,
    LoadBalancer,
    ExternalIp,
    /// The NodePort at an address of the node.
    NodePort,
    /// At an address of the node that the Node object does not have.
    SpareAddress,
    /// At an address of another node, which runs no proxy.
    OtherNode,
    Loopback,
}

/// Where the addresses of nodes come from.
#[derive(Clone, Copy, Debug)]
pub struct NodeAddresses {
    pub own: Pair,
    pub spare: Pair,
    pub other: Pair,
}

const WITHIN: [Who; 4] = [Who::Pod, Who::Server, Who::Host, Who::Outside];

impl Who {
    fn reaches(at: At) -> &'static [Self] {
        match at {
            At::ClusterIp | At::LoadBalancer | At::ExternalIp => &WITHIN,
            At::NodePort => &[
                Self::Pod,
                Self::Server,
                Self::Host,
                Self::Outside,
                Self::OtherPod,
                Self::OtherHost,
            ],
            At::SpareAddress => &[Self::Pod, Self::Host, Self::Outside],
            At::OtherNode => &[Self::Pod, Self::Host],
            At::Loopback => &[Self::Host],
        }
    }
}

/// Everything that is asked in a world.
pub fn all(world: &World) -> Vec<Probe> {
    let mut probes = Vec::new();
    for (&number, service) in &world.services {
        for &family in &service.families {
            probes.extend(of_service(number, service, family));
        }
    }
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            let to = To::Unallocated { protocol };
            let clients = [Who::Pod, Who::Host, Who::Outside];
            probes.extend(clients.map(|who| Probe { who, family, to }));
        }
    }
    probes
}

fn of_service(number: u8, service: &Service, family: Family) -> Vec<Probe> {
    let mut probes = Vec::new();
    let mut add = |to, clients: &[Who]| {
        probes.extend(clients.iter().map(|&who| Probe { who, family, to }));
    };
    let mut places = vec![At::ClusterIp];
    if matches!(service.kind, super::world::Kind::LoadBalancer { .. }) {
        places.push(At::LoadBalancer);
    }
    if service.external_ips {
        places.push(At::ExternalIp);
    }
    if service.has_node_ports() {
        places.extend([At::NodePort, At::SpareAddress, At::OtherNode, At::Loopback]);
    }
    for port in &service.ports {
        for &at in &places {
            let to = To::Port {
                service: number,
                port: port.name,
                at,
            };
            add(to, Who::reaches(at));
        }
    }
    for protocol in Protocol::BOTH {
        let to = To::UndefinedPort {
            service: number,
            protocol,
        };
        add(to, &[Who::Pod, Who::Host, Who::Outside]);
    }
    probes
}

impl Probe {
    /// The service that is dialled, if the world has it with this port.
    pub fn service<'a>(&self, world: &'a World) -> Option<&'a Service> {
        match self.to {
            To::Port { service, port, .. } => {
                let service = world.services.get(&service)?;
                service.ports.iter().find(|other| other.name == port)?;
                Some(service)
            }
            To::UndefinedPort { service, .. } => world.services.get(&service),
            To::Unallocated { .. } => None,
        }
    }

    /// What is dialled in a round; nothing where the world has no such thing.
    pub fn target(
        &self,
        world: &World,
        round: Round,
        nodes: &NodeAddresses,
    ) -> Option<(Protocol, SocketAddr)> {
        let (protocol, ip, port) = match self.to {
            To::Port { service, port, at } => {
                let ports = &world.services.get(&service)?.ports;
                let index = ports.iter().position(|other| other.name == port)?;
                let ip = at.ip(self.family, round, service, nodes);
                let number = match at {
                    At::ClusterIp | At::LoadBalancer | At::ExternalIp => ports[index].port,
                    At::NodePort | At::SpareAddress | At::OtherNode | At::Loopback => {
                        round.node_port(service, index)
                    }
                };
                (ports[index].protocol, ip, number)
            }
            To::UndefinedPort { service, protocol } => {
                world.services.get(&service)?;
                let ip = round.cluster_ip(service).get(self.family);
                (protocol, ip, UNDEFINED_PORT)
            }
            To::Unallocated { protocol } => (
                protocol,
                round.unallocated().get(self.family),
                UNDEFINED_PORT,
            ),
        };
        Some((protocol, SocketAddr::new(ip, port)))
    }
}

impl At {
    fn ip(self, family: Family, round: Round, service: u8, nodes: &NodeAddresses) -> IpAddr {
        let pair = match self {
            Self::ClusterIp => round.cluster_ip(service),
            Self::LoadBalancer => round.load_balancer_ip(service),
            Self::ExternalIp => round.external_ip(service),
            Self::NodePort => nodes.own,
            Self::SpareAddress => nodes.spare,
            Self::OtherNode => nodes.other,
            Self::Loopback => Pair {
                v4: Ipv4Addr::LOCALHOST,
                v6: Ipv6Addr::LOCALHOST,
            },
        };
        pair.get(family)
    }

    fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "the ClusterIP",
            Self::LoadBalancer => "the load balancer's address",
            Self::ExternalIp => "the external IP",
            Self::NodePort => "the NodePort on the node's address",
            Self::SpareAddress => "the NodePort on an address that the Node object does not have",
            Self::OtherNode => "the NodePort on another node",
            Self::Loopback => "the NodePort on the loopback address",
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "a pod of the node",
            Self::Server => "the pod here-1",
            Self::Host => "a process of the node",
            Self::Outside => "a client outside",
            Self::OtherPod => "a pod of node-2",
            Self::OtherHost => "a process of node-2",
        })
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, family, to } = self;
        let family = family.name();
        match to {
            To::Port { service, port, at } => {
                let (service, at) = (service_name(*service), at.name());
                write!(f, "{family}, {who} to {at} of {service}, port {port}")
            }
            To::UndefinedPort { service, protocol } => {
                let (service, protocol) = (service_name(*service), protocol.name());
                write!(
                    f,
                    "{family}, {who} to an undefined {protocol} port of {service}"
                )
            }
            To::Unallocated { protocol } => {
                let protocol = protocol.name();
                write!(
                    f,
                    "{family}, {who} by {protocol} to a ClusterIP that nobody has"
                )
            }
        }
    }
}
