//! The interfaces of this node's pods: attached, with a slot, and with the addresses behind them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use glob::Pattern;
use lb_common::{
    address::{Address, from_ip, to_ip},
    endpoint::Endpoint,
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::slots::Slots;
use crate::{
    kernel::{Pins, Programs, Tables, owners},
    links::{Claims, Holder, Link, LinkChange, Links, Reader},
    status::{Interface, Verdict},
    world::{Kind, World},
};

/// The interfaces of the node, and what we did about each.
pub struct Interfaces {
    links: Links,
    /// Whether interfaces are told by name alone; else the Node object must be known, because it
    /// tells the node's own uplink.
    by_name: bool,
    claims: Claims,
    reader: Reader,
    slots: Slots,
    /// The slots in use, for the sweeper.
    in_use: watch::Sender<BTreeSet<u32>>,
    /// Whether our programs are attached, by interface index; else why not.
    attached: BTreeMap<u32, Result<(), String>>,
    /// Interfaces of an earlier agent, until those that lead to pods are known.
    restored: Option<BTreeSet<u32>>,
    /// Interfaces whose inside is to be read.
    unread: BTreeSet<u32>,
    /// What `ENDPOINTS` holds.
    endpoints: BTreeMap<Address, Endpoint>,
    pending: bool,
}

/// Interfaces that are attached before other things have their turn: the kernel waits for all its
/// readers each time.
const TURN: usize = 4;

impl Interfaces {
    /// Starts from what an earlier agent left. Must be called within a tokio runtime.
    pub fn restore(patterns: Vec<Pattern>, pins: &Pins, tables: &Tables) -> Result<Self> {
        let endpoints = tables.endpoints()?;
        let holders = endpoints.iter().map(|(address, endpoint)| {
            let holder = Holder {
                interface: endpoint.interface,
                mac: endpoint.mac,
            };
            (to_ip(address), holder)
        });
        let interfaces = tables.interfaces()?;
        let restored = Some(interfaces.keys().copied().collect());
        let slots = Slots::restore(interfaces, &owners(pins)?);
        Ok(Self {
            by_name: !patterns.is_empty(),
            links: Links::new(patterns),
            claims: Claims::restore(holders.collect()),
            reader: Reader::new()?,
            in_use: watch::Sender::new(slots.in_use()),
            slots,
            attached: BTreeMap::new(),
            restored,
            unread: BTreeSet::new(),
            endpoints,
            pending: false,
        })
    }

    /// The slots in use.
    pub fn slots(&self) -> watch::Receiver<BTreeSet<u32>> {
        self.in_use.subscribe()
    }

    /// A pass over all flows is over.
    pub fn swept(&mut self) {
        self.slots.swept();
    }

    /// Takes in a change of the node's interfaces.
    pub fn apply(&mut self, change: LinkChange) {
        if let LinkChange::Seen(Link { index, .. }) = &change {
            self.unread.insert(*index);
            if matches!(self.attached.get(index), Some(Err(_))) {
                self.attached.remove(index);
            }
        }
        self.links.apply(change);
    }

    /// Takes in what the objects say of the node and its pods.
    pub fn confirm(&mut self, world: &World, node: &str) {
        if let Some(node) = world.node(node) {
            self.links
                .set_node_addresses(node.addresses.iter().copied().collect());
        }
        if !world.waiting_for().contains(&Kind::Pod) {
            let pods = world
                .pods()
                .map(|(key, pod)| (key.clone(), pod.ips.iter().copied().collect()));
            self.claims.confirm(pods.collect());
        }
    }

    /// Whether there was more to do than one turn should take.
    pub fn pending(&self) -> bool {
        self.pending
    }

    /// Lets every inside be read again.
    pub fn reread(&mut self) {
        self.unread.extend(self.attached.keys());
    }

    /// Whether a pod of this node has an address that no interface is known to hold.
    pub fn wanting(&self) -> bool {
        self.claims.wanting()
    }

    /// Lets what failed be tried again.
    pub fn retry(&mut self) {
        self.attached.retain(|_, attached| attached.is_ok());
    }

    /// Attaches to the interfaces that lead to pods, leaves those that no longer do, reads what is
    /// behind them, and writes down how to get there.
    pub async fn settle(
        &mut self,
        world: &World,
        node: &str,
        tables: &mut Tables,
        programs: &mut Programs,
    ) -> Result<()> {
        let known = self.by_name || world.node(node).is_some();
        let taken: Vec<Link> = self.links.taken().cloned().collect();
        let mut untried = taken.iter().filter(|link| {
            let restored = self.restored.as_ref();
            let ours = known || restored.is_some_and(|restored| restored.contains(&link.index));
            ours && !self.attached.contains_key(&link.index)
        });
        let turn: Vec<_> = untried.by_ref().take(TURN).collect();
        self.pending = untried.next().is_some();
        for link in turn {
            self.attach(link, tables, programs).await;
        }
        if self.links.listed() && known {
            let taken: BTreeSet<_> = taken.iter().map(|link| link.index).collect();
            self.leave(&taken, tables, programs).await?;
        }
        self.read(&taken).await;
        self.write_endpoints(tables)
    }

    async fn attach(&mut self, link: &Link, tables: &mut Tables, programs: &mut Programs) {
        let Link { index, name, .. } = link;
        let attached = self.try_attach(*index, name, tables, programs).await;
        let attached = attached.map_err(|error| format!("{error:#}"));
        match &attached {
            Ok(()) => info!(interface = %name, "attached"),
            Err(error) => warn!(interface = %name, "cannot attach, will try again: {error}"),
        }
        self.attached.insert(*index, attached);
        self.unread.insert(*index);
    }

    /// The slot first: a program on an interface without one lets everything pass.
    async fn try_attach(
        &mut self,
        index: u32,
        name: &str,
        tables: &mut Tables,
        programs: &mut Programs,
    ) -> Result<()> {
        let slot = self.slots.take(index).context("there are no more slots")?;
        self.in_use.send_replace(self.slots.in_use());
        tables.put_interface(index, slot)?;
        programs.attach(index, name).await
    }

    /// Leaves all interfaces but those that lead to pods.
    async fn leave(
        &mut self,
        taken: &BTreeSet<u32>,
        tables: &mut Tables,
        programs: &mut Programs,
    ) -> Result<()> {
        let first = self.restored.take().is_some();
        let ours: BTreeSet<_> = self.slots.interfaces().collect();
        let left = &ours - taken;
        for index in &left {
            let link = self
                .links
                .judged()
                .map(|(link, _)| link)
                .find(|link| link.index == *index);
            if let Some(Link { name, .. }) = link {
                // Whatever it is that fails, the other interfaces have nothing to do with it.
                match programs.detach(*index, name).await {
                    Ok(()) => info!(interface = %name, "detached"),
                    Err(error) => warn!(interface = %name, "cannot detach: {error:#}"),
                }
            }
            tables.remove_interface(*index)?;
            self.slots.leave(*index);
            self.attached.remove(index);
        }
        if first || !left.is_empty() {
            programs.retain_links(taken)?;
            self.in_use.send_replace(self.slots.in_use());
            self.claims.retain(taken);
        }
        Ok(())
    }

    async fn read(&mut self, taken: &[Link]) {
        let unread = std::mem::take(&mut self.unread);
        for Link {
            index, name, peer, ..
        } in taken.iter().filter(|l| unread.contains(&l.index))
        {
            let reading = match peer {
                Some(peer) => self.reader.read(*peer).await,
                None => continue,
            };
            match reading {
                Ok(reading) => self.claims.read(*index, Some(reading)),
                Err(error) => {
                    warn!(interface = %name, "cannot read what is behind it: {error:#}");
                    self.claims.read(*index, None);
                }
            }
        }
    }

    fn write_endpoints(&mut self, tables: &mut Tables) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for (address, Holder { interface, mac }) in self.claims.holders() {
            if let Some(slot) = self.slots.of(*interface) {
                wanted.insert(
                    from_ip(*address),
                    Endpoint {
                        interface: *interface,
                        slot,
                        mac: *mac,
                        mtu: 0,
                    },
                );
            }
        }
        for (address, endpoint) in &wanted {
            if self.endpoints.get(address) != Some(endpoint) {
                tables.put_endpoint(*address, *endpoint)?;
            }
        }
        for address in self
            .endpoints
            .keys()
            .filter(|address| !wanted.contains_key(*address))
        {
            tables.remove_endpoint(*address)?;
        }
        self.endpoints = wanted;
        Ok(())
    }

    /// Reads the tables again, so that what differs from what was written is written again.
    pub fn audit(&mut self, tables: &mut Tables) -> Result<()> {
        self.endpoints = tables.endpoints()?;
        let slots = tables.interfaces()?;
        for index in self.slots.interfaces() {
            if slots.get(&index).copied() != self.slots.of(index) {
                self.attached.remove(&index);
            }
        }
        Ok(())
    }

    /// How many addresses of pods are known.
    pub fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Each interface, and what became of it.
    pub fn status(&self, attach: &str) -> Vec<Interface> {
        let mut addresses: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for (address, holder) in self.claims.holders() {
            addresses
                .entry(holder.interface)
                .or_default()
                .push(*address);
        }
        self.links
            .judged()
            .map(|(link, left)| Interface {
                index: link.index,
                name: link.name.clone(),
                verdict: match (
                    left,
                    self.attached.get(&link.index),
                    self.slots.of(link.index),
                ) {
                    (Some(left), ..) => Verdict::Left {
                        reason: left.to_string(),
                    },
                    (None, Some(Ok(())), Some(slot)) => Verdict::Taken {
                        attach: attach.to_owned(),
                        slot,
                        pod: self.claims.pod(link.index).map(ToString::to_string),
                        addresses: addresses.remove(&link.index).unwrap_or_default(),
                    },
                    (None, Some(Err(error)), _) => Verdict::Failed {
                        error: error.clone(),
                    },
                    (None, ..) => Verdict::Left {
                        reason: "not looked at yet".to_owned(),
                    },
                },
            })
            .collect()
    }
}
