//! The tables as text: one line per entry, with names.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    address::{Address, to_ip},
    endpoint::Endpoint,
    service::{Backend, FrontendKey, NO_SERVICE, is_live},
};
use serde::{Deserialize, Serialize};

use crate::{
    compile::{BackendKey, PortName},
    plan::ServiceTables,
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
    pub interfaces: Vec<Interface>,
    pub endpoints: Vec<PodAddress>,
}

/// An entry of `FRONTENDS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    /// Address, port and protocol; `*` stands for all ports that no other frontend names.
    pub frontend: String,
    /// Index into `SERVICES`; none where clients are refused.
    pub service: Option<u32>,
    pub name: Option<PortName>,
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
    Header {
        row: u32,
        service: u32,
        frontend: SocketAddr,
        count: u32,
        draining: u32,
    },
    Backend {
        row: u32,
        address: SocketAddr,
        id: u32,
        generation: u32,
    },
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

/// The entries of all tables.
pub fn dump(
    tables: &ServiceTables,
    names: &BTreeMap<u32, PortName>,
    interfaces: &BTreeMap<u32, u32>,
    endpoints: &BTreeMap<Address, Endpoint>,
) -> Dump {
    let name = |service: &u32| names.get(service).cloned();
    let headers: BTreeMap<_, _> = tables
        .services
        .iter()
        .map(|(service, extent)| (extent.first, *service))
        .collect();
    Dump {
        frontends: tables
            .frontends
            .iter()
            .map(|(key, service)| Frontend {
                frontend: frontend(key),
                service: (*service != NO_SERVICE).then_some(*service),
                name: name(service),
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
                Some(_) => header(*row, backend),
                None => Row::Backend {
                    row: *row,
                    address: socket(&backend.address, backend.port),
                    id: backend.id,
                    generation: backend.generation,
                },
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
    }
}

fn header(row: u32, header: &Backend) -> Row {
    Row::Header {
        row,
        service: header.id,
        frontend: socket(&header.address, header.port),
        count: header.count,
        draining: header.draining,
    }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frontends,
            services,
            backends,
            live,
            interfaces,
            endpoints,
        } = self;
        let known = |name: &Option<PortName>| match name {
            Some(name) => format!(" {name}"),
            None => String::new(),
        };
        for Frontend {
            frontend,
            service,
            name,
        } in frontends
        {
            let service =
                service.map_or("refused".to_owned(), |service| format!("service {service}"));
            writeln!(f, "FRONTENDS {frontend} -> {service}{}", known(name))?;
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
                Row::Header {
                    row,
                    service,
                    frontend,
                    count,
                    draining,
                } => writeln!(
                    f,
                    "BACKENDS {row} = service {service} {frontend} chosen {count} draining {draining}"
                ),
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
        Ok(())
    }
}

/// What every frontend leads to, in names: equal for tables that mean the same, whatever ids, rows
/// and indices they use.
pub fn resolved(tables: &ServiceTables, names: &BTreeMap<u32, PortName>) -> String {
    let mut text = String::new();
    for (key, service) in &tables.frontends {
        text += &frontend(key);
        match tables.resolve(*service).filter(|_| *service != NO_SERVICE) {
            None if *service == NO_SERVICE => text += " -> refused",
            None => text += " -> broken",
            Some(backends) => {
                let name = names
                    .get(service)
                    .map_or("nameless".to_owned(), PortName::to_string);
                text += &format!(" -> {name}: {}", list(&backends.chosen));
                if !backends.draining.is_empty() {
                    text += &format!("; draining {}", list(&backends.draining));
                }
            }
        }
        text.push('\n');
    }
    text
}

fn list(backends: &[BackendKey]) -> String {
    if backends.is_empty() {
        return "refused".to_owned();
    }
    let addresses = backends
        .iter()
        .map(|key| socket(&key.address, key.port).to_string());
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
