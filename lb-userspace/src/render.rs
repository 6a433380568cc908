//! The tables as text: one line per entry, with names.

mod policies;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use lb_common::{
    address::{Address, to_ip},
    endpoint::{Device, Endpoint},
    service::{self, Backend, FrontendKey, FrontendKind, is_live},
};
use serde::{Deserialize, Serialize};

pub use self::policies::{Policies, PolicyEntries};
use crate::{
    compile::{BackendKey, Choice, PortName, Range},
    names::Names,
    plan::{ServiceTables, index},
    status,
    world::Protocol,
};

/// Entries of the tables, readable. Displays as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dump {
    pub frontends: Vec<Frontend>,
    pub services: Vec<Service>,
    pub backends: Vec<Row>,
    pub live: Vec<Live>,
    pub source_ranges: Vec<SourceRange>,
    pub cidrs: Vec<ServiceCidr>,
    pub interfaces: Vec<Interface>,
    pub endpoints: Vec<PodAddress>,
    pub devices: Vec<Outlet>,
    #[serde(flatten)]
    pub policies: Policies,
}

/// An entry of `FRONTENDS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    /// Address, port and protocol; `*` stands for all ports that no other frontend names. A NodePort
    /// has the unspecified address.
    pub frontend: String,
    #[serde(flatten)]
    pub target: Target,
    pub name: Option<PortName>,
}

/// What a frontend leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "target")]
pub enum Target {
    /// A port of a ClusterIP that no service defines.
    Refused,
    /// An address of this node.
    #[serde(rename_all = "camelCase")]
    NodeAddress { node_ports: bool },
    Service {
        /// Index into `SERVICES`.
        service: u32,
        #[serde(rename = "type")]
        kind: FrontendType,
    },
}

/// What a frontend is to its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FrontendType {
    ClusterIP,
    NodePort,
    ExternalIP,
    LoadBalancer,
}

impl FrontendType {
    pub fn of(key: &FrontendKey, kind: FrontendKind) -> Self {
        let node_port = [true, false].map(|v4| FrontendKey::node_port(v4, key.port, key.protocol));
        match kind {
            FrontendKind::Internal => Self::ClusterIP,
            FrontendKind::External if node_port.contains(key) => Self::NodePort,
            FrontendKind::External => Self::ExternalIP,
            FrontendKind::LoadBalancer => Self::LoadBalancer,
        }
    }
}

impl fmt::Display for FrontendType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An entry of `SERVICES`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub service: u32,
    /// Row of the extent's header in `BACKENDS`.
    pub first: u32,
    pub revision: u32,
    pub name: Option<PortName>,
}

/// A row of `BACKENDS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Row {
    Header(Header),
    Backend {
        row: u32,
        address: SocketAddr,
        id: u32,
        generation: u32,
    },
}

/// The header row of an extent. All counts are of rows behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    pub row: u32,
    pub service: u32,
    pub frontend: SocketAddr,
    /// Rows that new flows choose from.
    pub count: u32,
    /// How many of these, from the first on, are the local list.
    pub local: u32,
    /// How many of these, from the first on, are not on the cluster list.
    pub only_local: u32,
    pub draining: u32,
    /// Seconds; 0: none.
    pub affinity: u32,
    /// The set of `SOURCE_RANGES`; 0: any source.
    pub ranges: u32,
    pub internal_local: bool,
    pub external_local: bool,
    /// Whether some endpoint of the cluster is fit for new flows.
    pub any: bool,
}

/// An entry of `SOURCE_RANGES`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRange {
    pub set: u32,
    pub range: IpNet,
}

/// An entry of `CIDRS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceCidr {
    pub place: u32,
    pub cidr: IpNet,
}

/// An entry of `LIVE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Live {
    pub id: u32,
    pub generation: u32,
    pub live: bool,
}

/// An entry of `INTERFACES`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    pub interface: u32,
    pub slot: u32,
}

/// An entry of `ENDPOINTS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAddress {
    pub address: IpAddr,
    pub interface: u32,
    pub slot: u32,
    pub mac: String,
}

/// An entry of `DEVICES`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outlet {
    pub interface: u32,
    /// What packets leave it with whose own source would not do.
    pub sources: Vec<IpAddr>,
    pub mtu: u16,
    pub ethernet: bool,
    pub xdp: bool,
}

/// The tables that say what leads where, by interface index, and by address.
#[derive(Debug, Default)]
pub struct NodeTables {
    pub interfaces: BTreeMap<u32, u32>,
    pub endpoints: BTreeMap<Address, Endpoint>,
    pub devices: BTreeMap<u32, Device>,
    pub policies: PolicyEntries,
}

/// The entries of all tables.
pub fn dump(tables: &ServiceTables, names: &Names, node: &NodeTables) -> Dump {
    let NodeTables {
        interfaces,
        endpoints,
        devices,
        policies,
    } = node;
    let name = |service: &u32| names.services.get(service).cloned();
    let headers: BTreeMap<_, _> = tables
        .services
        .iter()
        .map(|(service, extent)| (extent.first, *service))
        .collect();
    Dump {
        frontends: tables
            .frontends
            .iter()
            .map(|(key, target)| Frontend {
                frontend: frontend(key),
                target: Target::of(key, *target),
                name: index(*target).and_then(|service| name(&service)),
            })
            .collect(),
        services: tables
            .services
            .iter()
            .map(|(service, extent)| Service {
                service: *service,
                first: extent.first,
                revision: extent.revision,
                name: name(service),
            })
            .collect(),
        backends: tables
            .rows
            .iter()
            .map(|(row, backend)| match headers.get(row) {
                Some(_) => Row::Header(Header::of(*row, backend)),
                None => Row::Backend {
                    row: *row,
                    address: socket(&backend.address, backend.port),
                    id: backend.id,
                    generation: backend.generation,
                },
            })
            .collect(),
        source_ranges: tables
            .ranges
            .iter()
            .filter_map(|entry| {
                Some(SourceRange {
                    set: entry.key.set,
                    range: entry.range()?.network()?,
                })
            })
            .collect(),
        cidrs: tables
            .cidrs
            .iter()
            .filter_map(|(&place, cidr)| {
                let cidr = Range::from(*cidr).network()?;
                Some(ServiceCidr { place, cidr })
            })
            .collect(),
        live: tables
            .live
            .iter()
            .map(|(&id, &generation)| Live {
                id,
                generation,
                live: is_live(generation),
            })
            .collect(),
        interfaces: interfaces
            .iter()
            .map(|(&interface, &slot)| Interface { interface, slot })
            .collect(),
        endpoints: endpoints
            .iter()
            .map(|(address, endpoint)| PodAddress {
                address: to_ip(address),
                interface: endpoint.interface,
                slot: endpoint.slot,
                mac: endpoint.mac.map(|byte| format!("{byte:02x}")).join(":"),
            })
            .collect(),
        devices: devices
            .iter()
            .map(|(&interface, device)| Outlet {
                interface,
                sources: status::sources(device),
                mtu: device.mtu,
                ethernet: device.ethernet != 0,
                xdp: device.xdp != 0,
            })
            .collect(),
        policies: Policies::of(policies, names),
    }
}

impl Target {
    fn of(key: &FrontendKey, target: service::Target) -> Self {
        match target {
            service::Target::Undefined => Self::Refused,
            service::Target::NodeAddress { ports } => Self::NodeAddress { node_ports: ports },
            service::Target::Service { index, kind } => Self::Service {
                service: index,
                kind: FrontendType::of(key, kind),
            },
        }
    }
}

/// `service 1 NodePort`; a ClusterIP needs no word.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::NodeAddress { node_ports: false } => f.write_str("node address"),
            Self::NodeAddress { node_ports: true } => f.write_str("node address with NodePorts"),
            Self::Service {
                service,
                kind: FrontendType::ClusterIP,
            } => write!(f, "service {service}"),
            Self::Service { service, kind } => write!(f, "service {service} {kind}"),
        }
    }
}

impl Header {
    fn of(row: u32, header: &Backend) -> Self {
        Self {
            row,
            service: header.id,
            frontend: socket(&header.address, header.port),
            count: header.count,
            local: header.local,
            only_local: header.only_local,
            draining: header.draining,
            affinity: header.affinity,
            ranges: header.ranges,
            internal_local: header.internal_local != 0,
            external_local: header.external_local != 0,
            any: header.any != 0,
        }
    }
}

/// What is not as usual comes last, each with a word.
impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            row,
            service,
            frontend,
            count,
            local,
            only_local,
            draining,
            affinity,
            ranges,
            internal_local,
            external_local,
            any,
        } = *self;
        write!(
            f,
            "BACKENDS {row} = service {service} {frontend} chosen {count} draining {draining}"
        )?;
        if local > 0 {
            write!(f, " local {local} only-local {only_local}")?;
        }
        if internal_local {
            f.write_str(" internal-local")?;
        }
        if external_local {
            f.write_str(" external-local")?;
        }
        if any && count == 0 {
            f.write_str(" endpoints-elsewhere")?;
        }
        if affinity > 0 {
            write!(f, " affinity {affinity}s")?;
        }
        if ranges > 0 {
            write!(f, " source-ranges {ranges}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frontends,
            services,
            backends,
            live,
            source_ranges,
            cidrs,
            interfaces,
            endpoints,
            devices,
            policies,
        } = self;
        let known = |name: &Option<PortName>| match name {
            Some(name) => format!(" {name}"),
            None => String::new(),
        };
        for Frontend {
            frontend,
            target,
            name,
        } in frontends
        {
            writeln!(f, "FRONTENDS {frontend} -> {target}{}", known(name))?;
        }
        for Service {
            service,
            first,
            revision,
            name,
        } in services
        {
            writeln!(
                f,
                "SERVICES {service} -> row {first} revision {revision}{}",
                known(name)
            )?;
        }
        for row in backends {
            match row {
                Row::Header(header) => writeln!(f, "{header}"),
                Row::Backend {
                    row,
                    address,
                    id,
                    generation,
                } => {
                    writeln!(
                        f,
                        "BACKENDS {row} = {address} id {id} generation {generation}"
                    )
                }
            }?;
        }
        for Live {
            id,
            generation,
            live,
        } in live
        {
            writeln!(
                f,
                "LIVE {id} = {generation} {}",
                if *live { "live" } else { "dead" }
            )?;
        }
        for SourceRange { set, range } in source_ranges {
            writeln!(f, "SOURCE_RANGES {set} holds {range}")?;
        }
        for ServiceCidr { place, cidr } in cidrs {
            writeln!(f, "CIDRS {place} = {cidr}")?;
        }
        for Interface { interface, slot } in interfaces {
            writeln!(f, "INTERFACES {interface} -> slot {slot}")?;
        }
        for PodAddress {
            address,
            interface,
            slot,
            mac,
        } in endpoints
        {
            writeln!(
                f,
                "ENDPOINTS {address} -> interface {interface} slot {slot} mac {mac}"
            )?;
        }
        for Outlet {
            interface,
            sources,
            mtu,
            ethernet,
            xdp,
        } in devices
        {
            let sources: Vec<_> = sources.iter().map(ToString::to_string).collect();
            let ethernet = if *ethernet { "ethernet" } else { "bare" };
            let xdp = if *xdp { " xdp" } else { "" };
            writeln!(
                f,
                "DEVICES {interface} from {} mtu {mtu} {ethernet}{xdp}",
                sources.join(", ")
            )?;
        }
        policies.fmt(f)
    }
}

/// What every frontend leads to, in names: equal for tables that mean the same, whatever ids, rows,
/// sets and indices they use.
pub fn resolved(tables: &ServiceTables, names: &BTreeMap<u32, PortName>) -> String {
    let mut text = String::new();
    for (key, target) in &tables.frontends {
        text += &format!("{} -> ", frontend(key));
        match *target {
            service::Target::Service { index, kind } => {
                let name = names
                    .get(&index)
                    .map_or("nameless".to_owned(), PortName::to_string);
                text += &match tables.resolve(index) {
                    Some(choice) => format!("{name}: {}", way(kind, &choice)),
                    None => "broken".to_owned(),
                };
            }
            other => text += &Target::of(key, other).to_string(),
        }
        text.push('\n');
    }
    let networks: BTreeSet<_> = tables.cidrs.values().copied().map(Range::from).collect();
    for range in networks {
        let network = range.network();
        let network = network.map_or("broken".to_owned(), |network| network.to_string());
        text += &format!("{network} -> dropped\n");
    }
    text
}

/// Where flows to a frontend of this kind go.
fn way(kind: FrontendKind, choice: &Choice) -> String {
    let Choice {
        internal_local,
        external_local,
        affinity,
        ranges,
        backends,
    } = choice;
    let local = list(backends.local_list(), true, backends.any);
    let cluster = list(backends.cluster_list(), false, backends.any);
    let mut text = match kind {
        FrontendKind::Internal if *internal_local => local,
        FrontendKind::Internal => cluster,
        FrontendKind::External | FrontendKind::LoadBalancer if *external_local => {
            format!("{local}; from this node {cluster}")
        }
        FrontendKind::External | FrontendKind::LoadBalancer => cluster,
    };
    if !backends.draining.is_empty() {
        text += &format!("; draining {}", addresses(backends.draining.iter()));
    }
    if *affinity > 0 {
        text += &format!("; affinity {affinity}s");
    }
    if kind == FrontendKind::LoadBalancer && !ranges.is_empty() {
        let networks = ranges.iter().filter_map(Range::network);
        let networks: Vec<_> = networks.map(|network| network.to_string()).collect();
        text += &format!("; only from {}", networks.join(" "));
    }
    text
}

/// The backends of a list, or what becomes of flows where it is empty.
fn list<'a>(backends: impl Iterator<Item = &'a BackendKey>, local: bool, any: bool) -> String {
    match addresses(backends) {
        text if !text.is_empty() => text,
        _ if local && any => "dropped".to_owned(),
        _ => "refused".to_owned(),
    }
}

fn addresses<'a>(backends: impl Iterator<Item = &'a BackendKey>) -> String {
    let addresses = backends.map(|key| socket(&key.address, key.port).to_string());
    addresses.collect::<Vec<_>>().join(" ")
}

/// `10.96.0.10:80/TCP`, or `10.96.0.10:*` for all ports that no other frontend names.
fn frontend(key: &FrontendKey) -> String {
    if *key == FrontendKey::whole_address(key.address) {
        return match to_ip(&key.address) {
            IpAddr::V4(v4) => format!("{v4}:*"),
            IpAddr::V6(v6) => format!("[{v6}]:*"),
        };
    }
    let protocol = Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.number() == key.protocol);
    let protocol = protocol.map_or(key.protocol.to_string(), |protocol| protocol.to_string());
    format!("{}/{protocol}", socket(&key.address, key.port))
}

fn socket(address: &Address, port: u16) -> SocketAddr {
    SocketAddr::new(to_ip(address), port)
}
