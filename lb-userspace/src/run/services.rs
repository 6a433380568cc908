//! Services: what is dirty, what is programmed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::{Context as _, Result};
use lb_common::service::is_live;
use tracing::{debug, warn};

use crate::{
    compile::{self, Local, PortName},
    kernel::Tables,
    node_view::NodeView,
    plan::{Allocations, NoRoom, Op, Plan, ServiceTables, Sizes},
    world::{ObjectKey, World},
};

/// The services in the tables, and those whose entries may be out of date.
pub struct Services {
    /// Where this node stood when the services were last compiled.
    local: Local,
    /// The node's addresses, once they are known.
    view: Option<NodeView>,
    /// What the tables hold; none until they have been read, or when a write has failed.
    allocations: Option<Allocations>,
    dirty: BTreeSet<ObjectKey>,
    /// What the tables say of the node may be out of date.
    node_dirty: bool,
    no_room: Vec<NoRoom>,
    /// Entries that the audits found to differ from what was written.
    repaired: usize,
    /// Whether a backend has died since somebody asked.
    deaths: bool,
}

impl Services {
    /// No services yet, on the node of this name.
    pub fn new(node: &str) -> Self {
        Self {
            local: Local {
                node: node.to_owned(),
                ..Local::default()
            },
            view: None,
            allocations: None,
            dirty: BTreeSet::new(),
            node_dirty: false,
            no_room: Vec::new(),
            repaired: 0,
            deaths: false,
        }
    }

    /// Marks what a change of the world concerns, to be compiled afresh.
    pub fn mark(&mut self, world: &World, services: BTreeSet<ObjectKey>) {
        self.dirty.extend(services);
        let local = Local::of(world, &self.local.node);
        if self.local != local {
            self.local = local;
            self.dirty
                .extend(world.services().map(|(key, _)| key.clone()));
        }
    }

    /// Takes note of the node's addresses. Until they are known, the tables say of them what they
    /// said before.
    pub fn set_node(&mut self, view: NodeView) {
        if self.view.as_ref() != Some(&view) {
            self.view = Some(view);
            self.node_dirty = true;
        }
    }

    /// Marks the networks of services to be compiled afresh.
    pub fn mark_cidrs(&mut self) {
        self.node_dirty = true;
    }

    /// The node's addresses, once they are known.
    pub fn node(&self) -> Option<&NodeView> {
        self.view.as_ref()
    }

    /// Whether something may be out of date.
    pub fn pending(&self) -> bool {
        self.allocations.is_none()
            || !self.dirty.is_empty()
            || self.node_dirty && self.view.is_some()
    }

    /// Makes the tables say what the world says, and returns when every program sees it. Says whether
    /// the names of service indices changed.
    ///
    /// On an error the tables are read again, and everything is planned from what they hold.
    pub fn program(&mut self, world: &World, tables: &mut Tables) -> Result<bool> {
        let start = Instant::now();
        let mut keys = std::mem::take(&mut self.dirty);
        let mut node = std::mem::take(&mut self.node_dirty);
        let allocations = match &mut self.allocations {
            Some(allocations) => allocations,
            none => {
                keys = world.services().map(|(key, _)| key.clone()).collect();
                node = true;
                none.insert(restore(tables)?)
            }
        };
        for NoRoom { item, .. } in self.no_room.drain(..) {
            match item.service() {
                Some(service) => drop(keys.insert(service.clone())),
                None => node = true,
            }
        }
        let desired = keys
            .iter()
            .map(|key| (key.clone(), compile::service(world, &self.local, key)))
            .collect();
        let node = self.view.as_ref().filter(|_| node);
        let node = node.map(|view| compile::node(world, view));
        let Plan {
            ops,
            no_room,
            renamed,
        } = allocations.plan(&desired, node.as_ref());
        for NoRoom { item, full } in &no_room {
            warn!("{full} has no room for {item}: what was there before stays");
        }
        if !ops.is_empty() {
            // What these writes free may be room enough.
            let services = no_room.iter().filter_map(|no_room| no_room.item.service());
            self.dirty.extend(services.cloned());
            self.node_dirty = no_room
                .iter()
                .any(|no_room| no_room.item.service().is_none());
        }
        self.no_room = no_room;
        for op in &ops {
            if let Err(error) = tables.apply(op) {
                self.allocations = None;
                return Err(error).with_context(|| format!("apply {op:?}"));
            }
        }
        self.deaths |= ops.iter().any(is_death);
        debug!(services = keys.len(), writes = ops.len(), elapsed = ?start.elapsed(), "programmed");
        Ok(renamed)
    }

    /// Compares the tables with what was written, and writes again what differs.
    pub fn audit(&mut self, tables: &mut Tables) -> Result<()> {
        let Some(allocations) = &self.allocations else {
            return Ok(());
        };
        let repairs = allocations.tables().repair(&tables.services()?);
        for op in &repairs {
            warn!("somebody else changed the tables: {op:?} mends it");
            tables.apply(op)?;
        }
        self.repaired += repairs.len();
        Ok(())
    }

    /// Whether a backend has died since the last call.
    pub fn take_deaths(&mut self) -> bool {
        std::mem::take(&mut self.deaths)
    }

    /// What the tables hold, as far as that is known.
    pub fn tables(&self) -> Option<&ServiceTables> {
        self.allocations.as_ref().map(Allocations::tables)
    }

    /// The service port of each service index.
    pub fn names(&self) -> BTreeMap<u32, PortName> {
        self.allocations
            .as_ref()
            .map(Allocations::names)
            .unwrap_or_default()
    }

    /// What there is no room for.
    pub fn no_room(&self) -> &[NoRoom] {
        &self.no_room
    }

    /// Entries that the audits had to mend.
    pub fn repaired(&self) -> usize {
        self.repaired
    }

    /// Whether the tables say what the world says of this service.
    pub fn reflects(&self, service: &ObjectKey) -> bool {
        let fits = !self
            .no_room
            .iter()
            .any(|no_room| no_room.item.service() == Some(service));
        self.allocations.is_some() && !self.dirty.contains(service) && fits
    }
}

fn is_death(op: &Op) -> bool {
    matches!(op, Op::Live { generation, .. } if !is_live(*generation))
}

/// Reads the tables, once no program can be using what an earlier agent freed.
fn restore(tables: &mut Tables) -> Result<Allocations> {
    tables.wait()?;
    Ok(Allocations::restore(
        tables.services().context("read the tables")?,
        Sizes::KERNEL,
    ))
}

#[cfg(test)]
mod tests {
    use aya::maps::{HashMap, Map, MapData, MapError};
    use lb_common::{
        address::from_ip,
        service::{Frontend, FrontendKey, MAX_FRONTENDS},
    };

    use super::*;
    use crate::{
        kernel::{self, Attach, Pins, tests::sandbox},
        render,
        world::{Change, Event, Protocol, Row, Service, ServicePort},
    };

    fn add(world: &mut World, services: &mut Services, number: u8) {
        let service = Service {
            cluster_ips: vec![[10, 96, 0, number].into()],
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            ..Service::default()
        };
        let row = Row {
            value: Some(service),
            version: "1".to_owned(),
            problems: Vec::new(),
        };
        let key = ObjectKey::new("default", format!("service-{number}"));
        let dirty = world.apply(Change::Service(Event::Apply(key, row)));
        services.mark(world, dirty.services);
    }

    /// Fills the table behind the agent's back.
    fn fill_frontends(pins: &Pins) {
        let map = MapData::from_pin(pins.table("FRONTENDS")).expect("the table");
        let mut frontends: HashMap<_, FrontendKey, Frontend> =
            Map::HashMap(map).try_into().expect("its layout");
        for number in 0..=MAX_FRONTENDS as u32 {
            let key = FrontendKey::new(from_ip(number.to_be_bytes().into()), 1, 6);
            let frontend = Frontend {
                target: 9,
                check: key.check(),
            };
            match frontends.insert(key, frontend, 0) {
                Ok(()) => {}
                Err(MapError::SyscallError(_)) => return,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the table never fills");
    }

    #[test]
    #[ignore = "needs root"]
    fn a_write_that_fails_is_made_good() {
        sandbox(async |pins| {
            drop(kernel::load(pins.clone(), Attach::Tcx, 0).expect("programs"));
            let mut tables = Tables::open(&pins).expect("tables");
            let (mut world, mut services) = (World::default(), Services::new("node-a"));
            [
                Change::Service(Event::Init),
                Change::Service(Event::InitDone),
            ]
            .into_iter()
            .for_each(|change| drop(world.apply(change)));
            add(&mut world, &mut services, 1);
            assert!(services.program(&world, &mut tables).expect("written"));
            assert!(!services.pending());

            fill_frontends(&pins);
            add(&mut world, &mut services, 2);
            services
                .program(&world, &mut tables)
                .expect_err("there is no room");
            assert!(services.pending());
            // Everything is found again, and what is nobody's goes.
            services.program(&world, &mut tables).expect("written");
            assert_eq!(services.no_room().len(), 1 + 1, "the port and the address");
            // Which makes room.
            services.program(&world, &mut tables).expect("written");
            assert_eq!(services.no_room(), []);
            assert!(!services.pending());
            let tables = tables.services().expect("a reading");
            assert_eq!(Some(&tables), services.tables());
            assert_eq!(
                render::resolved(&tables, &services.names()),
                "10.96.0.1:* -> refused\n\
                 10.96.0.1:80/TCP -> default/service-1/TCP/IPv4: refused\n\
                 10.96.0.2:* -> refused\n\
                 10.96.0.2:80/TCP -> default/service-2/TCP/IPv4: refused\n"
            );
        });
    }
}
