//! A world: Services with their EndpointSlices, and the objects that say so.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};

use crate::sandbox::{Family, Pair, Protocol};

/// The label of all objects of a world.
pub const LABEL: &str = "differential";

/// The place of the health check among the NodePorts of a service, after those of its ports.
const HEALTH_CHECK: usize = 3;

/// What clients dial where no port is defined.
pub const UNDEFINED_PORT: u16 = 4444;

/// Services, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    pub services: BTreeMap<u8, Service>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub families: Vec<Family>,
    pub kind: Kind,
    pub ports: Vec<Port>,
    pub external_ips: bool,
    pub internal_local: bool,
    pub external_local: bool,
    pub affinity: bool,
    pub slices: Vec<Slice>,
}

/// The type of a Service, and what only this type has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer {
        ip_mode: Option<&'static str>,
        source_ranges: Vec<IpNet>,
        node_ports: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub name: &'static str,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub family: Family,
    /// The port that the servers of this slice listen on, for every port of the Service.
    pub target: u16,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The name of a server, see [`Servers`].
    pub server: &'static str,
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
    pub zones: Vec<&'static str>,
    pub nodes: Vec<&'static str>,
}

/// Where a server is.
#[derive(Clone, Debug)]
pub struct Place {
    pub addresses: Pair,
    pub node: String,
}

/// All servers, by name.
pub type Servers = BTreeMap<String, Place>;

/// The numbers that addresses and NodePorts of one round are made of. Every round has its own, so
/// that no flow of an earlier one lives on in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round(pub u8);

impl Round {
    /// How many there are before addresses come again.
    const COUNT: u8 = 60;

    pub fn next(self) -> Self {
        Self((self.0 + 1) % Self::COUNT)
    }

    pub fn cluster_ip(self, service: u8) -> Pair {
        Pair {
            v4: Ipv4Addr::new(10, 96, self.0 + 1, service),
            v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, self.group(service)),
        }
    }

    /// A ClusterIP that no Service has.
    pub fn unallocated(self) -> Pair {
        self.cluster_ip(250)
    }

    /// The ClusterIP of the Service that says whether a round has begun.
    pub fn marker(self) -> Pair {
        self.cluster_ip(251)
    }

    pub fn load_balancer_ip(self, service: u8) -> Pair {
        self.public_ip(service)
    }

    pub fn external_ip(self, service: u8) -> Pair {
        self.public_ip(100 + service)
    }

    pub fn node_port(self, service: u8, port: usize) -> u16 {
        let port = u16::try_from(port).unwrap_or_default();
        30000 + u16::from(self.0) * 40 + u16::from(service) * 4 + port
    }

    fn public_ip(self, number: u8) -> Pair {
        Pair {
            v4: Ipv4Addr::new(203, 0, self.0 + 1, number),
            v6: Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, self.group(number)),
        }
    }

    fn group(self, number: u8) -> u16 {
        u16::from(self.0 + 1) << 8 | u16::from(number)
    }
}

impl World {
    /// The Services and their EndpointSlices, the former first.
    pub fn objects(&self, round: Round, servers: &Servers) -> Vec<Value> {
        let services = self.services.iter();
        let mut objects: Vec<Value> = services
            .clone()
            .map(|(number, service)| service.object(*number, round))
            .collect();
        for (number, service) in services {
            let slices = service.slices.iter().enumerate();
            objects.extend(
                slices.map(|(index, slice)| slice.object(*number, index, &service.ports, servers)),
            );
        }
        objects
    }
}

impl Service {
    /// Whether it has NodePorts.
    pub fn has_node_ports(&self) -> bool {
        match self.kind {
            Kind::ClusterIp => false,
            Kind::NodePort => true,
            Kind::LoadBalancer { node_ports, .. } => node_ports,
        }
    }

    /// How many backends it has in one family, in whatever condition.
    pub fn backends(&self, family: Family) -> usize {
        let slices = self.slices.iter().filter(|slice| slice.family == family);
        let backends: BTreeSet<_> = slices
            .flat_map(|slice| {
                let endpoints = slice.endpoints.iter();
                endpoints.map(|endpoint| (endpoint.server, slice.target))
            })
            .collect();
        backends.len()
    }

    fn object(&self, number: u8, round: Round) -> Value {
        let pick = |pair: Pair| -> Vec<IpAddr> {
            let families = self.families.iter();
            families.map(|family| pair.get(*family)).collect()
        };
        let ips = pick(round.cluster_ip(number));
        let mut spec = json!({
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "ipFamilies": self.families.iter().map(|family| family.name()).collect::<Vec<_>>(),
            "ipFamilyPolicy": if self.families.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "internalTrafficPolicy": policy(self.internal_local),
            "sessionAffinity": if self.affinity { "ClientIP" } else { "None" },
            "ports": self.port_objects(number, round),
            "type": self.kind.name(),
        });
        if self.external_ips {
            spec["externalIPs"] = json!(pick(round.external_ip(number)));
        }
        if self.external_ips || self.kind != Kind::ClusterIp {
            spec["externalTrafficPolicy"] = policy(self.external_local).into();
        }
        if self.external_local && matches!(self.kind, Kind::LoadBalancer { .. }) {
            // Left to the apiserver, it may be a port of another service.
            spec["healthCheckNodePort"] = round.node_port(number, HEALTH_CHECK).into();
        }
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": service_name(number), "labels": { LABEL: "world" } },
            "spec": spec,
        });
        if let Kind::LoadBalancer {
            ip_mode,
            source_ranges,
            node_ports,
        } = &self.kind
        {
            object["spec"]["allocateLoadBalancerNodePorts"] = json!(node_ports);
            if !source_ranges.is_empty() {
                object["spec"]["loadBalancerSourceRanges"] = json!(source_ranges);
            }
            let ingress = |ip| match ip_mode {
                Some(mode) => json!({ "ip": ip, "ipMode": mode }),
                None => json!({ "ip": ip }),
            };
            let ips = pick(round.load_balancer_ip(number));
            let ingress: Vec<Value> = ips.into_iter().map(ingress).collect();
            object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        object
    }

    fn port_objects(&self, number: u8, round: Round) -> Vec<Value> {
        let ports = self.ports.iter().enumerate();
        let object = |(index, port): (usize, &Port)| {
            let Port {
                name,
                protocol,
                port,
            } = port;
            let mut object = json!({ "name": name, "protocol": protocol.name(), "port": port });
            if self.has_node_ports() {
                object["nodePort"] = round.node_port(number, index).into();
            }
            object
        };
        ports.map(object).collect()
    }
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer { .. } => "LoadBalancer",
        }
    }
}

impl Slice {
    fn object(&self, service: u8, index: usize, ports: &[Port], servers: &Servers) -> Value {
        let name = service_name(service);
        let ports = ports.iter().map(|port| {
            json!({ "name": port.name, "protocol": port.protocol.name(), "port": self.target })
        });
        let mut object = self.object_of(&name, &ports.collect::<Vec<_>>(), servers);
        object["metadata"]["name"] = format!("{name}-{index}").into();
        object
    }

    /// A slice of a service with any name, as its only one of this family.
    pub fn object_of(&self, service: &str, ports: &[Value], servers: &Servers) -> Value {
        let endpoints = self.endpoints.iter();
        let endpoints = endpoints.map(|endpoint| endpoint.object(self.family, servers));
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{}", self.family.name().to_lowercase()),
                "labels": { LABEL: "world", "kubernetes.io/service-name": service },
            },
            "addressType": self.family.name(),
            "ports": ports,
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}

impl Endpoint {
    /// A ready endpoint without hints.
    pub fn ready(server: &'static str) -> Self {
        Self {
            server,
            ready: Some(true),
            serving: None,
            terminating: None,
            zones: Vec::new(),
            nodes: Vec::new(),
        }
    }

    fn object(&self, family: Family, servers: &Servers) -> Value {
        let Place { addresses, node } = &servers[self.server];
        let mut conditions = json!({});
        for (name, value) in [
            ("ready", self.ready),
            ("serving", self.serving),
            ("terminating", self.terminating),
        ] {
            if let Some(value) = value {
                conditions[name] = value.into();
            }
        }
        let mut object = json!({
            "addresses": [addresses.get(family)],
            "conditions": conditions,
            "nodeName": node,
        });
        let names = |names: &[&str]| -> Vec<Value> {
            names.iter().map(|name| json!({ "name": name })).collect()
        };
        if !self.zones.is_empty() {
            object["hints"]["forZones"] = names(&self.zones).into();
        }
        if !self.nodes.is_empty() {
            object["hints"]["forNodes"] = names(&self.nodes).into();
        }
        object
    }
}

/// The networks that load balancers and external IPs are from.
pub fn public_networks() -> [IpNet; 2] {
    let v4 = Ipv4Addr::new(203, 0, 0, 0);
    let v6 = Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, 0);
    [
        IpNet::V4(Ipv4Net::new_assert(v4, 16)),
        IpNet::V6(Ipv6Net::new_assert(v6, 112)),
    ]
}

/// The name of the Service with this number.
pub fn service_name(number: u8) -> String {
    format!("service-{number}")
}

fn policy(local: bool) -> &'static str {
    if local { "Local" } else { "Cluster" }
}
