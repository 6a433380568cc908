//! What the commands show: the agent's own answer, or, where none runs, what it left in the kernel.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use lb_common::{address::to_ip, endpoint::Device};
use nix::net::if_::if_indextoname;

use super::{
    Places, ServiceCommand, View,
    output::{Failure, print},
    service_key,
};
use crate::{
    api, drops,
    kernel::{Attach, Pins, Side, Tables},
    names::Names,
    render::{self, NodeTables, PolicyEntries},
    status::{self, Agent, Interface, PolicyCounts, Service, Status, Verdict, write_services},
};

/// `lb status`.
pub async fn status(view: &View) -> Result<(), Failure> {
    let status = current(&view.places).await?;
    Ok(print(view.output, &status, Status::to_string)?)
}

/// `lb service`.
pub async fn service(command: &ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::List { namespace, view } => {
            let mut services = current(&view.places).await?.services;
            if let Some(namespace) = namespace {
                services.retain(|service| service.namespace() == namespace);
            }
            Ok(print(view.output, &services, |services| list(services))?)
        }
        ServiceCommand::Get {
            name,
            namespace,
            view,
        } => {
            let key = service_key(name, namespace.as_deref()).map_err(Failure::Usage)?;
            let services = current(&view.places).await?.services;
            let service = services.into_iter().find(|service| service.service == key);
            let service = service.with_context(|| format!("the tables know no service {key}"))?;
            Ok(print(view.output, &service, Service::to_string)?)
        }
    }
}

/// `lb drops`.
pub async fn drops(view: &View) -> Result<(), Failure> {
    match api::drops(&view.places.socket).await? {
        Some(drops) => Ok(print(view.output, &drops, |drops| drops::list(drops))?),
        None => Err(Failure::NotRunning(
            "the agent is not running: nobody remembers what was dropped".to_owned(),
        )),
    }
}

/// `lb dump`.
pub async fn dump(view: &View) -> Result<(), Failure> {
    let View { output, places } = view;
    let pins = Pins::below(&places.bpffs);
    let names = match api::names(&places.socket).await? {
        Some(names) => names,
        None => {
            let (names, agent) = left_names(places)?;
            pins.exist().then(|| eprintln!("lb: the agent is {agent}"));
            names
        }
    };
    let tables = open(&pins)?;
    let dump = render::dump(
        &tables.services()?,
        &names,
        &NodeTables {
            interfaces: tables.interfaces()?,
            endpoints: tables.endpoints()?,
            devices: tables.devices()?,
            policies: PolicyEntries {
                guards: tables.guards(),
                sources: tables.sources()?,
                identities: tables.identities()?,
                peers: tables.peers()?,
                rules: tables.rules()?,
            },
        },
    );
    Ok(print(*output, &dump, render::Dump::to_string)?)
}

/// The agent's status, or one made from what is in the kernel.
async fn current(places: &Places) -> Result<Status, Failure> {
    if let Some(status) = api::status(&places.socket).await? {
        return Ok(status);
    }
    let pins = Pins::below(&places.bpffs);
    let tables = open(&pins)?;
    let (names, agent) = left_names(places)?;
    let services = tables.services()?;
    let endpoints = tables.endpoints()?;
    let mut addresses: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    for (address, endpoint) in &endpoints {
        addresses
            .entry(endpoint.interface)
            .or_default()
            .push(to_ip(address));
    }
    let mut interfaces: Vec<_> = tables
        .devices()?
        .iter()
        .map(|(index, row)| device(&pins, *index, row))
        .collect();
    interfaces.extend(tables.interfaces()?.into_iter().map(|(index, slot)| {
        let addresses = addresses.remove(&index).unwrap_or_default();
        pod_interface(&pins, index, slot, addresses)
    }));
    interfaces.sort_by_key(|interface| interface.index);
    let mut fills = status::fills(&services, endpoints.len(), None);
    let policies = PolicyCounts {
        identities: tables.identities()?.len(),
        peers: tables.peers()?.len(),
        rules: tables.rules()?.len(),
    };
    fills.extend(status::policy_fills(policies, tables.sources()?.len()));
    Ok(Status {
        agent,
        tables_at: pins.version(),
        interfaces,
        services: status::services(&services, &names.services),
        problems: Vec::new(),
        tables: fills,
        counters: tables.counters()?,
    })
}

/// The tables that are pinned.
fn open(pins: &Pins) -> Result<Tables, Failure> {
    if pins.exist() {
        return Ok(Tables::open(pins)?);
    }
    let directory = pins.version();
    let text = format!(
        "the agent is not running, and there is nothing in {}",
        directory.display()
    );
    Err(Failure::NotRunning(text))
}

/// The names that an agent left, and since when it is away.
fn left_names(places: &Places) -> Result<(Names, Agent)> {
    let (names, since) = match Names::read(&Names::path(&places.socket))? {
        Some((names, seen)) => (names, Some(Timestamp::try_from(seen)?)),
        None => (Names::default(), None),
    };
    let since = since.map(|since| format!("{since:.0}"));
    Ok((names, Agent::Away { since }))
}

fn pod_interface(pins: &Pins, index: u32, slot: u32, addresses: Vec<IpAddr>) -> Interface {
    Interface {
        index,
        name: name(index),
        verdict: Verdict::Taken {
            attach: attach(pins, index, Side::Pod).name().to_owned(),
            slot,
            pod: None,
            addresses,
        },
    }
}

fn device(pins: &Pins, index: u32, row: &Device) -> Interface {
    let (side, xdp) = match row {
        Device { ethernet: 0, .. } => (Side::NodeL3, "none"),
        Device { xdp: 0, .. } => (Side::Node, "none"),
        Device { .. } => (Side::Node, "attached"),
    };
    Interface {
        index,
        name: name(index),
        verdict: Verdict::Device {
            because: None,
            attach: attach(pins, index, side).name().to_owned(),
            xdp: xdp.to_owned(),
            mtu: row.mtu.into(),
            sources: status::sources(row),
        },
    }
}

fn name(index: u32) -> String {
    let name = if_indextoname(index).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|_| "(gone)".to_owned())
}

/// How the programs of one side are attached to an interface.
fn attach(pins: &Pins, index: u32, side: Side) -> Attach {
    let pinned = |hook| pins.link(index, hook).exists();
    match side.hooks().into_iter().any(pinned) {
        true => Attach::Tcx,
        false => Attach::Clsact,
    }
}

fn list(services: &[Service]) -> String {
    let mut text = String::new();
    write_services(&mut text, services).expect("writing to a string does not fail");
    text
}
