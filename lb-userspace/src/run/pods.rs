//! The interfaces of this node's pods: attached, with a slot, and with the addresses behind them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use lb_common::{
    address::{Address, UNSPECIFIED, from_ip, is_v4, to_ip},
    endpoint::Endpoint,
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{policies::Places, slots::Slots};
use crate::{
    compile::policy::RuleSets,
    kernel::{Binding, Pins, Programs, Side, Tables, owners},
    links::{Claims, Holder, Link, Links, Reader},
    status::Verdict,
    world::{Kind, ObjectKey, World},
};

/// The interfaces that lead to pods, and what we did about each.
pub struct Pods {
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
    /// What `GUARDS` says that pods are, by slot.
    bindings: BTreeMap<u32, Binding>,
    /// The rule sets of an interface until it is known whose it is.
    stranger: RuleSets,
    pending: bool,
}

/// Interfaces that are attached before other things have their turn: the kernel waits for all its
/// readers each time.
const TURN: usize = 4;

impl Pods {
    /// Starts from what an earlier agent left. Must be called within a tokio runtime.
    pub fn restore(pins: &Pins, tables: &Tables) -> Result<Self> {
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
            claims: Claims::restore(holders.collect()),
            reader: Reader::new()?,
            in_use: watch::Sender::new(slots.in_use()),
            slots,
            attached: BTreeMap::new(),
            restored,
            unread: BTreeSet::new(),
            endpoints,
            bindings: bindings(tables),
            stranger: RuleSets::OPEN,
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

    /// An interface is new, or not as it was.
    pub fn seen(&mut self, index: u32) {
        self.unread.insert(index);
        if matches!(self.attached.get(&index), Some(Err(_))) {
            self.attached.remove(&index);
        }
    }

    /// An interface is gone: the next one with its index is another, on which nothing hangs.
    pub fn gone(&mut self, index: u32) {
        self.attached.remove(&index);
    }

    /// Takes in what the objects say of the node's pods, and what runtimes said of the addresses
    /// that they gave them.
    pub fn confirm<'a>(
        &mut self,
        world: &World,
        announced: impl Iterator<Item = (&'a ObjectKey, &'a BTreeSet<IpAddr>)>,
    ) {
        if world.waiting_for().contains(&Kind::Pod) {
            return;
        }
        let pods = world
            .local_pods()
            .map(|(key, pod, _)| (key.clone(), pod.ips.iter().copied().collect()));
        let mut pods: BTreeMap<ObjectKey, BTreeSet<IpAddr>> = pods.collect();
        for (pod, addresses) in announced.filter(|(pod, _)| world.is_local(pod)) {
            // Who had an address before has it no more, whatever its object still says.
            for known in pods.values_mut() {
                known.retain(|address| !addresses.contains(address));
            }
            pods.entry(pod.clone()).or_default().extend(addresses);
        }
        self.claims.confirm(pods);
    }

    /// Whether our programs are on the interface that an address is behind; else why not.
    pub fn hold(&self, address: &IpAddr) -> Result<(), String> {
        let Some(holder) = self.claims.holders().get(address) else {
            return Err(format!(
                "no interface that leads to a pod is known to have {address}"
            ));
        };
        match self.attached.get(&holder.interface) {
            Some(Ok(())) if self.endpoints.contains_key(&from_ip(*address)) => Ok(()),
            Some(Err(error)) => Err(format!("cannot attach to its interface: {error}")),
            _ => Err(format!("the interface of {address} is not attached yet")),
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

    /// Attaches to some of the interfaces that lead to pods. Unless it is `known` which do, only to
    /// those that did for an earlier agent.
    pub async fn attach_some(
        &mut self,
        taken: &[Link],
        known: bool,
        tables: &mut Tables,
        programs: &mut Programs,
    ) {
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
    }

    /// Reads what is behind the interfaces, and writes down how to get there.
    pub async fn find_addresses(&mut self, taken: &[Link], tables: &mut Tables) -> Result<()> {
        self.read(taken).await;
        self.write_endpoints(taken, tables)?;
        self.write_bindings(tables)
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
        if self.slots.of(index).is_none() {
            let slot = self.slots.take(index).context("there are no more slots")?;
            let RuleSets { ingress, egress } = self.stranger;
            tables.clear_guard(slot)?;
            tables.set_rule_sets(slot, ingress, egress)?;
        }
        let slot = self.slots.of(index).context("it has a slot")?;
        self.in_use.send_replace(self.slots.in_use());
        tables.put_interface(index, slot)?;
        programs.attach(index, name, Side::Pod).await
    }

    /// Leaves all interfaces but those that lead to pods. Says whether there may be links left of
    /// those.
    pub async fn leave(
        &mut self,
        taken: &[Link],
        links: &Links,
        tables: &mut Tables,
        programs: &mut Programs,
    ) -> Result<bool> {
        let first = self.restored.take().is_some();
        let taken: BTreeSet<_> = taken.iter().map(|link| link.index).collect();
        let ours: BTreeSet<_> = self.slots.interfaces().collect();
        let left = &ours - &taken;
        for index in &left {
            if let Some(Link { name, .. }) = links.get(*index) {
                // Whatever it is that fails, the other interfaces have nothing to do with it.
                match programs.detach(*index, name, Side::Pod).await {
                    Ok(()) => info!(interface = %name, "detached"),
                    Err(error) => warn!(interface = %name, "cannot detach: {error:#}"),
                }
            }
            tables.remove_interface(*index)?;
            if let Some(slot) = self.slots.of(*index) {
                tables.clear_guard(slot)?;
                self.bindings.remove(&slot);
            }
            self.slots.leave(*index);
            self.attached.remove(index);
        }
        let changed = first || !left.is_empty();
        if changed {
            self.in_use.send_replace(self.slots.in_use());
            self.claims.retain(&taken);
        }
        Ok(changed)
    }

    /// Says which rule sets an interface has until it is known whose it is.
    pub fn expect(&mut self, stranger: RuleSets) {
        self.stranger = stranger;
    }

    /// The slots in use, each with the pod that its interface leads to where that is known.
    pub fn slots_and_pods(&self) -> impl Iterator<Item = (u32, Option<&ObjectKey>)> {
        let interfaces = self.slots.interfaces();
        interfaces.filter_map(|index| Some((self.slots.of(index)?, self.claims.pod(index))))
    }

    /// The same by slot.
    pub fn places(&self) -> Places {
        let places = self.slots_and_pods();
        places.map(|(slot, pod)| (slot, pod.cloned())).collect()
    }

    /// The interfaces that have a slot.
    pub fn interfaces(&self) -> impl Iterator<Item = u32> {
        self.slots.interfaces()
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

    fn write_endpoints(&mut self, taken: &[Link], tables: &mut Tables) -> Result<()> {
        let mtus: BTreeMap<u32, u16> = taken
            .iter()
            .map(|link| (link.index, link.mtu.try_into().unwrap_or(u16::MAX)))
            .collect();
        let mut wanted = BTreeMap::new();
        for (address, Holder { interface, mac }) in self.claims.holders() {
            if let Some(slot) = self.slots.of(*interface) {
                wanted.insert(
                    from_ip(*address),
                    Endpoint {
                        interface: *interface,
                        slot,
                        mac: *mac,
                        mtu: mtus.get(interface).copied().unwrap_or_default(),
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

    /// Binds each pod of which an address is known to its addresses, and nobody else.
    fn write_bindings(&mut self, tables: &mut Tables) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for (address, Holder { interface, mac }) in self.claims.holders() {
            let Some(slot) = self.slots.of(*interface) else {
                continue;
            };
            let binding = wanted.entry(slot).or_insert(Binding {
                v4: UNSPECIFIED,
                v6: UNSPECIFIED,
                mac: *mac,
            });
            let address = from_ip(*address);
            let own = if is_v4(&address) {
                &mut binding.v4
            } else {
                &mut binding.v6
            };
            // Kubernetes gives a pod one address of each family (PodStatus, `podIPs`).
            if *own == UNSPECIFIED {
                *own = address;
            }
        }
        for (slot, binding) in &wanted {
            if self.bindings.get(slot) != Some(binding) {
                tables.bind(*slot, Some(*binding))?;
            }
        }
        for slot in self.bindings.keys() {
            if !wanted.contains_key(slot) {
                tables.bind(*slot, None)?;
            }
        }
        self.bindings = wanted;
        Ok(())
    }

    /// Reads the tables again, so that what differs from what was written is written again.
    pub fn audit(&mut self, tables: &mut Tables) -> Result<()> {
        self.endpoints = tables.endpoints()?;
        self.bindings = bindings(tables);
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

    /// What became of an interface that leads to a pod.
    pub fn status(&self, index: u32, attach: &str) -> Verdict {
        match (self.attached.get(&index), self.slots.of(index)) {
            (Some(Ok(())), Some(slot)) => Verdict::Taken {
                attach: attach.to_owned(),
                slot,
                pod: self.claims.pod(index).map(ToString::to_string),
                addresses: self.addresses(index),
            },
            (Some(Err(error)), _) => Verdict::Failed {
                error: error.clone(),
            },
            _ => Verdict::Left {
                reason: "not looked at yet".to_owned(),
            },
        }
    }

    fn addresses(&self, index: u32) -> Vec<IpAddr> {
        let holders = self.claims.holders().iter();
        holders
            .filter(|(_, holder)| holder.interface == index)
            .map(|(address, _)| *address)
            .collect()
    }
}

/// What the tables say that pods are, by slot.
fn bindings(tables: &Tables) -> BTreeMap<u32, Binding> {
    let guards = tables.guards().into_iter();
    guards
        .filter_map(|(slot, guard)| Some((slot, Binding::of(&guard)?)))
        .collect()
}
