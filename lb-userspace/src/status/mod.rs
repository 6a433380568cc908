//! What `lb status` and `lb service` say, as data. The agent serves it; without an agent it is made
//! from the tables in the kernel and the names file.

mod text;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use lb_common::{
    address::{UNSPECIFIED, to_ip},
    endpoint::{Device, MAX_ENDPOINTS},
    flow::{MAX_FLOWS, MAX_HALF_OPEN},
    policy::{MAX_IDENTITIES, MAX_PEERS, MAX_POD_SOURCES, MAX_RULES},
    service::{
        Extent, MAX_BACKEND_IDS, MAX_BACKENDS, MAX_FRONTENDS, MAX_SERVICES, MAX_SOURCE_RANGES,
        Target, is_live,
    },
};
use serde::{Deserialize, Serialize};

pub use self::text::write_services;
use crate::{
    compile::{BackendKey, Choice, PortName, Range},
    kernel::FlowCounts,
    plan::ServiceTables,
    render::FrontendType,
    world::{ObjectKey, Severity, World},
};

/// Everything that `lb status` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub agent: Agent,
    /// Directory of the pinned tables.
    pub tables_at: PathBuf,
    pub interfaces: Vec<Interface>,
    pub services: Vec<Service>,
    pub problems: Vec<Problem>,
    pub tables: Vec<Fill>,
    /// Packets by [`lb_common::reason::Reason`].
    pub counters: BTreeMap<String, u64>,
}

/// The process that fills the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Agent {
    #[serde(rename_all = "camelCase")]
    Running {
        pid: u32,
        version: String,
        uptime_seconds: u64,
        node: String,
        /// Where objects come from, in words.
        source: String,
        /// Kinds of which all objects are known.
        synced: Vec<String>,
        /// Kinds of which they are not.
        awaited: Vec<String>,
        cgroup_root: Option<PathBuf>,
        /// The processes that reach services when they connect and send.
        socket_lb: String,
    },
    /// The kernel goes on with what the agent left there.
    #[serde(rename_all = "camelCase")]
    Away {
        /// The last sign of life, RFC 3339, where one was left.
        since: Option<String>,
    },
}

/// A network interface of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    pub index: u32,
    pub name: String,
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What became of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "verdict")]
pub enum Verdict {
    /// It leads to a pod and carries our programs.
    Taken {
        /// `tcx` or `clsact`.
        attach: String,
        slot: u32,
        /// The pod behind it, once known.
        pod: Option<String>,
        /// The pod's addresses, as far as they are confirmed.
        addresses: Vec<IpAddr>,
    },
    /// It leads out of the node and carries our programs.
    Device {
        /// Why the agent thinks that it leads out of the node, in words.
        because: Option<String>,
        /// `tcx` or `clsact`.
        attach: String,
        /// `native`, `generic`, or why there is no XDP program.
        xdp: String,
        /// The largest IP packet that it carries, in bytes.
        mtu: u32,
        /// What packets that others sent leave with, where their own source would not do.
        sources: Vec<IpAddr>,
    },
    /// It is one of ours, but our programs could not be attached.
    Failed { error: String },
    /// It is none of our business.
    Left { reason: String },
}

impl Verdict {
    /// One word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Taken { .. } => "taken",
            Self::Device { .. } => "device",
            Self::Failed { .. } => "failed",
            Self::Left { .. } => "left",
        }
    }
}

/// A service that is in the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// `namespace/name`.
    pub service: String,
    pub ports: Vec<Port>,
    /// resourceVersion of each object that the tables reflect, by kind and name; only the agent
    /// knows these.
    pub versions: BTreeMap<String, String>,
}

/// One port of a service in one address family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Empty where the service's only port has no name.
    pub port: String,
    pub protocol: String,
    pub family: String,
    /// Index into `SERVICES`.
    pub index: u32,
    /// Changes that took effect.
    pub revision: u32,
    pub frontends: Vec<Frontend>,
    pub internal_traffic_policy: Policy,
    pub external_traffic_policy: Policy,
    /// Seconds for which a client keeps its backend.
    pub affinity: Option<u32>,
    /// The sources that may dial the load balancer's IPs; empty: any.
    pub source_ranges: Vec<IpNet>,
    /// What new flows choose from that may go to any node. None: they are refused.
    pub backends: Vec<SocketAddr>,
    /// What new flows choose from that must stay on this node, where a policy says so.
    pub local_backends: Vec<SocketAddr>,
    /// What keeps only the flows it has.
    pub draining: Vec<SocketAddr>,
    /// Whether the service has an endpoint anywhere: without, flows are refused, not dropped.
    pub any_endpoints: bool,
}

/// What clients dial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    /// A NodePort has the unspecified address: it is served on the node's own.
    pub address: SocketAddr,
    #[serde(rename = "type")]
    pub kind: FrontendType,
}

/// A traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    Cluster,
    Local,
}

impl Policy {
    fn of(local: bool) -> Self {
        if local { Self::Local } else { Self::Cluster }
    }
}

/// Something wrong with an object or a source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Kind of the object, or of the source.
    pub kind: String,
    pub object: String,
    pub problem: String,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fill {
    pub table: String,
    pub used: usize,
    pub size: usize,
}

/// How full the tables are; those of flows only where these have been counted.
pub fn fills(services: &ServiceTables, endpoints: usize, flows: Option<FlowCounts>) -> Vec<Fill> {
    let live = services
        .live
        .values()
        .filter(|generation| is_live(**generation))
        .count();
    let mut fills = vec![
        Fill::new("FRONTENDS", services.frontends.len(), MAX_FRONTENDS),
        Fill::new("SERVICES", services.services.len(), MAX_SERVICES),
        Fill::new("BACKENDS", services.rows.len(), MAX_BACKENDS),
        Fill::new("LIVE", live, MAX_BACKEND_IDS),
        Fill::new("SOURCE_RANGES", services.ranges.len(), MAX_SOURCE_RANGES),
        Fill::new("ENDPOINTS", endpoints, MAX_ENDPOINTS),
    ];
    if let Some(FlowCounts { two_way, half_open }) = flows {
        fills.push(Fill::new("FLOWS", two_way, MAX_FLOWS));
        fills.push(Fill::new("HALF_OPEN", half_open, MAX_HALF_OPEN));
    }
    fills
}

/// How many entries the tables of policies have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyCounts {
    pub identities: usize,
    pub peers: usize,
    pub rules: usize,
}

/// How full the tables of policies are; `sources`: what pods may send from besides their own
/// addresses.
pub fn policy_fills(counts: PolicyCounts, sources: usize) -> [Fill; 4] {
    let PolicyCounts {
        identities,
        peers,
        rules,
    } = counts;
    [
        Fill::new("IDENTITIES", identities, MAX_IDENTITIES),
        Fill::new("PEERS", peers, MAX_PEERS),
        Fill::new("RULES", rules, MAX_RULES),
        Fill::new("POD_SOURCES", sources, MAX_POD_SOURCES),
    ]
}

impl Fill {
    fn new(table: &str, used: usize, size: usize) -> Self {
        Self {
            table: table.to_owned(),
            used,
            size,
        }
    }
}

impl Service {
    pub fn namespace(&self) -> &str {
        self.service
            .split_once('/')
            .map_or("", |(namespace, _)| namespace)
    }
}

/// The services that are in the tables, as far as they have names.
pub fn services(tables: &ServiceTables, names: &BTreeMap<u32, PortName>) -> Vec<Service> {
    let mut frontends: BTreeMap<u32, Vec<Frontend>> = BTreeMap::new();
    for (key, target) in &tables.frontends {
        if let Target::Service { index, kind } = *target {
            frontends.entry(index).or_default().push(Frontend {
                address: SocketAddr::new(to_ip(&key.address), key.port),
                kind: FrontendType::of(key, kind),
            });
        }
    }
    let mut services: BTreeMap<&ObjectKey, Vec<Port>> = BTreeMap::new();
    let mut ports: Vec<_> = names.iter().map(|(index, name)| (name, *index)).collect();
    ports.sort();
    for (name, index) in ports {
        let Some(extent) = tables.services.get(&index) else {
            continue;
        };
        let choice = tables.resolve(index).unwrap_or_default();
        let mut frontends = frontends.remove(&index).unwrap_or_default();
        frontends.sort_by_key(|frontend| (frontend.kind, frontend.address));
        let ports = services.entry(&name.service).or_default();
        ports.push(Port::of(name, index, extent, frontends, choice));
    }
    services
        .into_iter()
        .map(|(service, ports)| Service {
            service: service.to_string(),
            ports,
            versions: BTreeMap::new(),
        })
        .collect()
}

impl Port {
    fn of(
        name: &PortName,
        index: u32,
        extent: &Extent,
        frontends: Vec<Frontend>,
        choice: Choice,
    ) -> Self {
        let Choice {
            internal_local,
            external_local,
            affinity,
            ranges,
            backends,
        } = choice;
        Self {
            port: name.port.clone(),
            protocol: name.protocol.to_string(),
            family: name.family.to_string(),
            index,
            revision: extent.revision,
            frontends,
            internal_traffic_policy: Policy::of(internal_local),
            external_traffic_policy: Policy::of(external_local),
            affinity: Some(affinity).filter(|seconds| *seconds > 0),
            source_ranges: ranges.iter().filter_map(Range::network).collect(),
            backends: sockets(backends.cluster_list()),
            local_backends: sockets(backends.local_list()),
            draining: sockets(backends.draining.iter()),
            any_endpoints: backends.any,
        }
    }
}

/// The addresses that packets leave a device with.
pub fn sources(device: &Device) -> Vec<IpAddr> {
    let sources = [device.v4, device.v6].into_iter();
    sources
        .filter(|address| *address != UNSPECIFIED)
        .map(|address| to_ip(&address))
        .collect()
}

/// What is wrong with objects and sources.
pub fn problems(world: &World) -> Vec<Problem> {
    let objects = world.problems().map(|problem| Problem {
        kind: problem.kind.to_string(),
        object: problem.key.to_string(),
        problem: problem.text,
    });
    let sources = world.troubles().map(|(subject, trouble)| Problem {
        kind: "source".to_owned(),
        object: subject.to_owned(),
        problem: match trouble.severity {
            Severity::Ignored => format!("ignored: {}", trouble.text),
            Severity::Error => trouble.text.clone(),
        },
    });
    let mut problems: Vec<_> = objects.chain(sources).collect();
    problems.sort();
    problems
}

fn sockets<'a>(backends: impl Iterator<Item = &'a BackendKey>) -> Vec<SocketAddr> {
    let mut sockets: Vec<_> = backends
        .map(|key| SocketAddr::new(to_ip(&key.address), key.port))
        .collect();
    sockets.sort();
    sockets
}

#[cfg(test)]
mod tests {
    use lb_common::{
        address::from_ip,
        service::{Backend, FrontendKey, FrontendKind},
    };

    use super::*;
    use crate::plan::RangeEntry;
    use crate::world::{Family, Protocol};

    fn address(text: &str) -> lb_common::address::Address {
        from_ip(text.parse().expect("an address"))
    }

    fn name(service: &str, port: &str) -> PortName {
        PortName {
            service: ObjectKey::new("default", service),
            port: port.to_owned(),
            protocol: Protocol::Tcp,
            family: Family::IPv4,
        }
    }

    /// `web:http` with one backend to choose and one that drains, and `idle` with none.
    fn tables() -> ServiceTables {
        let (web, idle) = (address("10.96.0.1"), address("10.96.0.2"));
        let (web_key, idle_key) = (FrontendKey::new(web, 80, 6), FrontendKey::new(idle, 81, 6));
        let vip_key = FrontendKey::new(address("192.0.2.1"), 80, 6);
        let node_port = FrontendKey::node_port(true, 30080, 6);
        let to = |index, kind| Target::Service { index, kind };
        let range = Range::from("198.51.100.0/24".parse::<IpNet>().expect("a network"));
        ServiceTables {
            frontends: [
                (web_key, to(1, FrontendKind::Internal)),
                (vip_key, to(1, FrontendKind::LoadBalancer)),
                (node_port, to(1, FrontendKind::External)),
                (FrontendKey::whole_address(web), Target::Undefined),
                (idle_key, to(2, FrontendKind::Internal)),
            ]
            .into(),
            services: [
                (
                    1,
                    Extent {
                        first: 1,
                        revision: 3,
                    },
                ),
                (
                    2,
                    Extent {
                        first: 4,
                        revision: 1,
                    },
                ),
            ]
            .into(),
            rows: [
                (
                    1,
                    Backend {
                        local: 0,
                        external_local: 1,
                        affinity: 10_800,
                        ranges: 1,
                        ..header(&web_key, 1, 1, 1)
                    },
                ),
                (2, Backend::new(address("10.0.0.1"), 8080, 1, 1)),
                (3, Backend::new(address("10.0.0.2"), 8080, 2, 1)),
                (4, header(&idle_key, 2, 0, 0)),
            ]
            .into(),
            live: [(1, 1), (2, 1)].into(),
            ranges: [RangeEntry::new(1, range)].into(),
            ..ServiceTables::default()
        }
    }

    fn header(key: &FrontendKey, service: u32, count: u32, draining: u32) -> Backend {
        Backend {
            count,
            draining,
            any: u8::from(count > 0),
            ..Backend::header(key, service)
        }
    }

    fn status() -> Status {
        let names = [(1, name("web", "http")), (2, name("idle", ""))].into();
        let mut services = services(&tables(), &names);
        services[1]
            .versions
            .insert("Service default/web".to_owned(), "17".to_owned());
        Status {
            agent: Agent::Running {
                pid: 7,
                version: "0.1.0".to_owned(),
                uptime_seconds: 3_725,
                node: "node-a".to_owned(),
                source: "manifests in m".to_owned(),
                synced: vec!["Service".to_owned(), "Node".to_owned()],
                awaited: vec!["EndpointSlice".to_owned()],
                cgroup_root: None,
                socket_lb: "host".to_owned(),
            },
            tables_at: "/sys/fs/bpf/lb/v4".into(),
            interfaces: vec![
                Interface {
                    index: 3,
                    name: "veth0".to_owned(),
                    verdict: Verdict::Taken {
                        attach: "tcx".to_owned(),
                        slot: 1,
                        pod: Some("default/client".to_owned()),
                        addresses: vec!["10.0.0.9".parse().expect("an address")],
                    },
                },
                Interface {
                    index: 2,
                    name: "eth0".to_owned(),
                    verdict: Verdict::Device {
                        because: Some("carries the default route".to_owned()),
                        attach: "tcx".to_owned(),
                        xdp: "native".to_owned(),
                        mtu: 1500,
                        sources: vec!["172.18.0.2".parse().expect("an address")],
                    },
                },
                Interface {
                    index: 1,
                    name: "lo".to_owned(),
                    verdict: Verdict::Left {
                        reason: "not a veth; leads nowhere".to_owned(),
                    },
                },
            ],
            services,
            problems: vec![],
            tables: fills(
                &tables(),
                0,
                Some(FlowCounts {
                    two_way: 471_859,
                    half_open: 0,
                }),
            ),
            counters: [("no-endpoints".to_owned(), 12)].into(),
        }
    }

    #[test]
    fn services_are_read_back_from_the_tables() {
        let status = status();
        let [idle, web] = &status.services[..] else {
            panic!("two services")
        };
        assert_eq!(idle.service, "default/idle");
        assert_eq!(idle.ports[0].backends, []);
        let port = &web.ports[0];
        assert_eq!((port.index, port.revision), (1, 3));
        let frontends: Vec<_> = port.frontends.iter().map(ToString::to_string).collect();
        assert_eq!(
            frontends,
            [
                "10.96.0.1:80",
                "0.0.0.0:30080 (NodePort)",
                "192.0.2.1:80 (LoadBalancer)"
            ]
        );
        assert_eq!(port.external_traffic_policy, Policy::Local);
        assert_eq!(port.affinity, Some(10_800));
        assert_eq!(
            port.source_ranges,
            ["198.51.100.0/24".parse().expect("a network")]
        );
        assert_eq!(port.local_backends, []);
        assert_eq!(port.backends, ["10.0.0.1:8080".parse().expect("a backend")]);
        assert_eq!(port.draining, ["10.0.0.2:8080".parse().expect("a backend")]);
    }

    #[test]
    fn a_service_without_a_name_or_an_extent_is_not_shown() {
        let names = [(2, name("idle", "")), (9, name("gone", ""))].into();
        let services = services(&tables(), &names);
        assert_eq!(services.len(), 1);
        assert_eq!(services[0].service, "default/idle");
    }

    #[test]
    fn status_survives_json() {
        let json = serde_json::to_string(&status()).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Status>(&json).expect("a status"),
            status()
        );
        assert!(
            json.contains(r#""name":"lo","verdict":"left","reason":"not a veth; leads nowhere""#),
            "{json}"
        );
    }

    #[test]
    fn status_reads_well() {
        let expected = "\
agent      running as pid 7, version 0.1.0, up 1h 2m
node       node-a
source     manifests in m
synced     Service, Node
awaited    EndpointSlice
socket-lb  host
tables     /sys/fs/bpf/lb/v4

INTERFACE  INDEX  STATE                                                  POD             ADDRESSES
veth0      3      taken: tcx, slot 1                                     default/client  10.0.0.9
eth0       2      leads out: tcx, XDP native; carries the default route                  172.18.0.2
lo         1      left: not a veth; leads nowhere

SERVICE       PORT           FRONTENDS                                                            REVISION  BACKENDS              DRAINING
default/idle  TCP/IPv4       10.96.0.2:81                                                         1         0 (refused)           0
default/web   http/TCP/IPv4  10.96.0.1:80, 0.0.0.0:30080 (NodePort), 192.0.2.1:80 (LoadBalancer)  3         1, local 0 (dropped)  1

PROBLEMS: none

TABLE          USED    SIZE    FULL
FRONTENDS      5       262144  0%
SERVICES       2       131072  0%
BACKENDS       4       524288  0%
LIVE           2       524288  0%
SOURCE_RANGES  1       65536   0%
ENDPOINTS      0       16384   0%
FLOWS          471859  524288  89%
HALF_OPEN      0       131072  0%

PACKETS       COUNT
no-endpoints  12
";
        assert_eq!(status().to_string(), expected);
    }

    #[test]
    fn a_service_reads_well() {
        let expected = "\
default/web
  reflects Service default/web at version 17
  http/TCP/IPv4
    index     1
    revision  3
    frontends 10.96.0.1:80, 0.0.0.0:30080 (NodePort), 192.0.2.1:80 (LoadBalancer)
    policy    internal Cluster, external Local
    affinity  by client for 3h 0m
    only from 198.51.100.0/24
    backends  10.0.0.1:8080
    local     none
    draining  10.0.0.2:8080
";
        assert_eq!(status().services[1].to_string(), expected);
    }

    #[test]
    fn without_an_agent_the_status_says_so() {
        let away = |since: Option<&str>| Status {
            agent: Agent::Away {
                since: since.map(str::to_owned),
            },
            ..status()
        };
        let text = away(Some("2026-01-02T03:04:05Z")).to_string();
        assert!(
            text.starts_with("agent   not running since 2026-01-02T03:04:05Z; the kernel"),
            "{text}"
        );
        assert!(away(None).to_string().contains("not running; the kernel"));
    }
}
