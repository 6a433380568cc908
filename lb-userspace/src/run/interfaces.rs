//! The interfaces of the node: those that lead to its pods, and those that lead out of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::Result;
use tokio::sync::watch;

use super::{devices::Devices, pods::Pods};
use crate::{
    kernel::{Pins, Programs, Side, Tables, XdpChoice},
    links::{Judgement, Link, LinkChange, Links, Patterns},
    node_view::{NodePortAddresses, NodeView},
    status::{Interface, Verdict},
    world::{ObjectKey, World},
};

/// What the command line says of interfaces.
pub struct Choices {
    pub patterns: Patterns,
    pub nodeport_addresses: Vec<NodePortAddresses>,
    pub xdp: XdpChoice,
}

/// The interfaces of the node, and what we did about each.
pub struct Interfaces {
    links: Links,
    /// Whether interfaces are told by name alone, those of pods and those that lead out; else the
    /// Node object must be known, because it tells the node's own uplink.
    by_name: (bool, bool),
    /// Whether the Node object has been seen.
    node_known: bool,
    pods: Pods,
    devices: Devices,
}

impl Interfaces {
    /// Starts from what an earlier agent left. Must be called within a tokio runtime.
    pub fn restore(choices: Choices, pins: &Pins, tables: &Tables) -> Result<Self> {
        let Choices {
            patterns,
            nodeport_addresses,
            xdp,
        } = choices;
        Ok(Self {
            by_name: (!patterns.pods.is_empty(), !patterns.uplinks.is_empty()),
            node_known: false,
            links: Links::new(patterns, nodeport_addresses),
            pods: Pods::restore(pins, tables)?,
            devices: Devices::restore(xdp, tables)?,
        })
    }

    /// The slots in use.
    pub fn slots(&self) -> watch::Receiver<BTreeSet<u32>> {
        self.pods.slots()
    }

    /// A pass over all flows is over.
    pub fn swept(&mut self) {
        self.pods.swept();
    }

    /// The interfaces of pods.
    pub fn pods(&self) -> &Pods {
        &self.pods
    }

    /// As [`Self::pods`], to be changed.
    pub fn pods_mut(&mut self) -> &mut Pods {
        &mut self.pods
    }

    /// Takes in a change of the node's interfaces.
    pub fn apply(&mut self, change: LinkChange) {
        match &change {
            LinkChange::Seen(Link { index, .. }) => {
                self.pods.seen(*index);
                self.devices.seen(*index);
            }
            LinkChange::Gone(index) => {
                self.pods.gone(*index);
                self.devices.gone(*index);
            }
            LinkChange::Routes(_) | LinkChange::Listed => {}
        }
        self.links.apply(change);
    }

    /// Takes in what the objects say of the node and its pods, and runtimes of the pods' addresses.
    pub fn confirm<'a>(
        &mut self,
        world: &World,
        node: &str,
        announced: impl Iterator<Item = (&'a ObjectKey, &'a BTreeSet<IpAddr>)>,
    ) {
        if let Some(node) = world.node(node) {
            self.links.set_node_addresses(&node.addresses);
            self.node_known = true;
        }
        self.pods.confirm(world, announced);
    }

    /// The node's own addresses and where NodePorts are served, once that is known.
    pub fn view(&self) -> Option<&NodeView> {
        let known = self.node_known && self.links.listed();
        known.then(|| self.links.view())
    }

    /// Whether there was more to do than one turn should take.
    pub fn pending(&self) -> bool {
        self.pods.pending()
    }

    /// Lets every inside be read again.
    pub fn reread(&mut self) {
        self.pods.reread();
    }

    /// Whether our programs are on the interface behind which all these addresses are; else why not.
    pub fn hold(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), String> {
        addresses
            .iter()
            .try_for_each(|address| self.pods.hold(address))
    }

    /// Whether a pod of this node has an address that no interface is known to hold.
    pub fn wanting(&self) -> bool {
        self.pods.wanting()
    }

    /// Lets what failed be tried again.
    pub fn retry(&mut self) {
        self.pods.retry();
        self.devices.retry();
    }

    /// Attaches to the interfaces that lead to pods or out of the node, leaves those that no longer
    /// do, and writes down what is behind them.
    pub async fn settle(&mut self, tables: &mut Tables, programs: &mut Programs) -> Result<()> {
        let Self {
            links,
            by_name,
            node_known,
            pods,
            devices,
        } = self;
        let (pods_known, devices_known) = (*node_known || by_name.0, *node_known || by_name.1);
        let to_pods: Vec<Link> = links.pods().cloned().collect();
        let out: Vec<Link> = links.devices().map(|(link, _)| link.clone()).collect();
        if links.listed() {
            let mut left = false;
            if pods_known {
                left |= pods.leave(&to_pods, links, tables, programs).await?;
            }
            if devices_known {
                left |= devices.leave(&out, links, tables, programs).await?;
            }
            if left {
                let sides = pods.interfaces().map(|index| (index, Side::Pod));
                let sides: BTreeMap<_, _> = sides.chain(devices.sides()).collect();
                programs.retain_links(&sides)?;
            }
        }
        let attached = devices
            .attach(&out, devices_known, links, tables, programs)
            .await;
        // What fails at one side does not keep us from the other.
        pods.attach_some(&to_pods, pods_known, tables, programs)
            .await;
        pods.find_addresses(&to_pods, tables).await?;
        attached
    }

    /// Reads the tables again, so that what differs from what was written is written again.
    pub fn audit(&mut self, tables: &mut Tables) -> Result<()> {
        self.pods.audit(tables)?;
        self.devices.audit(tables)
    }

    /// How many addresses of pods are known.
    pub fn endpoints(&self) -> usize {
        self.pods.endpoints()
    }

    /// Each interface, and what became of it.
    pub fn status(&self, attach: &str) -> Vec<Interface> {
        self.links
            .judged()
            .map(|(link, judgement)| Interface {
                index: link.index,
                name: link.name.clone(),
                verdict: match judgement {
                    Judgement::Pod => self.pods.status(link.index, attach),
                    Judgement::Device(leads) => self.devices.status(link, leads, attach),
                    Judgement::Left(left, no_device) => Verdict::Left {
                        reason: format!("{left}; {no_device}"),
                    },
                },
            })
            .collect()
    }
}
