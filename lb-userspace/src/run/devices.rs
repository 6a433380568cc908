//! The interfaces that lead out of the node: attached, and with what packets that leave by them need.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use lb_common::{
    address::{UNSPECIFIED, from_ip},
    endpoint::Device,
};
use tracing::{info, warn};

use crate::{
    kernel::{Programs, Side, Tables, Xdp, XdpChoice},
    links::{Framing, Kind, Leads, Link, Links},
    status::{self, Verdict},
};

/// The interfaces that lead out of the node, and what we did about each.
pub struct Devices {
    choice: XdpChoice,
    /// What became of each.
    attached: BTreeMap<u32, Outcome>,
    /// Those of which another attempt may come to more.
    due: BTreeSet<u32>,
    /// Those of an earlier agent, until it is known which lead out of the node.
    restored: Option<BTreeSet<u32>>,
    /// What `DEVICES` holds.
    rows: BTreeMap<u32, Device>,
}

/// What became of attaching to an interface.
#[derive(PartialEq, Eq)]
struct Outcome {
    tc: Result<(), String>,
    xdp: Result<Xdp, String>,
}

impl Outcome {
    fn failed(&self) -> bool {
        self.tc.is_err() || self.xdp.is_err()
    }

    fn xdp_is_on(&self) -> bool {
        matches!(self.xdp, Ok(Xdp::Native | Xdp::Generic))
    }
}

impl Devices {
    /// Starts from what an earlier agent left.
    pub fn restore(choice: XdpChoice, tables: &Tables) -> Result<Self> {
        let rows = tables.devices()?;
        Ok(Self {
            choice,
            attached: BTreeMap::new(),
            due: BTreeSet::new(),
            restored: Some(rows.keys().copied().collect()),
            rows,
        })
    }

    /// An interface is new, or not as it was.
    pub fn seen(&mut self, index: u32) {
        if self.attached.get(&index).is_some_and(Outcome::failed) {
            self.due.insert(index);
        }
    }

    /// An interface is gone: the next one with its index is another, on which nothing hangs.
    pub fn gone(&mut self, index: u32) {
        self.attached.remove(&index);
    }

    /// Lets what failed be tried again, and what another's program kept us from.
    pub fn retry(&mut self) {
        let kept = |outcome: &Outcome| matches!(outcome.xdp, Ok(Xdp::Foreign(_)));
        let attached = self.attached.iter();
        let again = attached.filter(|(_, outcome)| outcome.failed() || kept(outcome));
        self.due.extend(again.map(|(index, _)| *index));
    }

    /// The side of each interface that is ours.
    pub fn sides(&self) -> impl Iterator<Item = (u32, Side)> {
        self.rows
            .iter()
            .map(|(index, device)| match device.ethernet {
                0 => (*index, Side::NodeL3),
                _ => (*index, Side::Node),
            })
    }

    /// Leaves all interfaces but those that lead out of the node. Says whether there may be links
    /// left of those.
    pub async fn leave(
        &mut self,
        out: &[Link],
        links: &Links,
        tables: &mut Tables,
        programs: &mut Programs,
    ) -> Result<bool> {
        let first = self.restored.take().is_some();
        let out: BTreeSet<_> = out.iter().map(|link| link.index).collect();
        let left: Vec<_> = self
            .sides()
            .filter(|(index, _)| !out.contains(index))
            .collect();
        for (index, side) in &left {
            if let Some(Link { name, .. }) = links.get(*index) {
                let detached = programs.detach(*index, name, *side).await;
                match detached.and_then(|()| programs.detach_xdp(*index)) {
                    Ok(()) => info!(interface = %name, "detached: it does not lead out any more"),
                    Err(error) => warn!(interface = %name, "cannot detach: {error:#}"),
                }
            }
            tables.remove_device(*index)?;
            self.rows.remove(index);
            self.attached.remove(index);
        }
        Ok(first || !left.is_empty())
    }

    /// Attaches to the interfaces that lead out of the node, and writes down what packets that leave
    /// by them need. Unless it is `known` which do, only to those that did for an earlier agent.
    pub async fn attach(
        &mut self,
        out: &[Link],
        known: bool,
        links: &Links,
        tables: &mut Tables,
        programs: &mut Programs,
    ) -> Result<()> {
        for link in out {
            let restored = self.restored.as_ref();
            if !known && !restored.is_some_and(|restored| restored.contains(&link.index)) {
                continue;
            }
            let before = self.attached.get(&link.index);
            let untried = before.is_none() || self.due.contains(&link.index);
            // The row first: the programs know a device by it.
            self.write(link, links, before.is_some_and(Outcome::xdp_is_on), tables)?;
            if untried {
                self.due.remove(&link.index);
                let outcome = attach(self.choice, link, programs).await;
                self.write(link, links, outcome.xdp_is_on(), tables)?;
                if self.attached.get(&link.index) != Some(&outcome) {
                    report(&link.name, &outcome);
                }
                self.attached.insert(link.index, outcome);
            }
        }
        Ok(())
    }

    fn write(&mut self, link: &Link, links: &Links, xdp: bool, tables: &mut Tables) -> Result<()> {
        let source = |v4| links.source(link, v4).map_or(UNSPECIFIED, from_ip);
        let row = Device {
            v4: source(true),
            v6: source(false),
            mtu: link.mtu.try_into().unwrap_or(u16::MAX),
            ethernet: (link.framing == Framing::Ethernet).into(),
            xdp: xdp.into(),
        };
        if self.rows.get(&link.index) != Some(&row) {
            tables.put_device(link.index, row)?;
            self.rows.insert(link.index, row);
        }
        Ok(())
    }

    /// Reads the table again, so that what differs from what was written is written again.
    pub fn audit(&mut self, tables: &Tables) -> Result<()> {
        self.rows = tables.devices()?;
        Ok(())
    }

    /// What became of an interface that leads out of the node.
    pub fn status(&self, link: &Link, leads: Leads, attach: &str) -> Verdict {
        let Some(Outcome { tc, xdp }) = self.attached.get(&link.index) else {
            return Verdict::Left {
                reason: "not looked at yet".to_owned(),
            };
        };
        match tc {
            Err(error) => Verdict::Failed {
                error: error.clone(),
            },
            Ok(()) => Verdict::Device {
                because: Some(leads.to_string()),
                attach: attach.to_owned(),
                xdp: match xdp {
                    Ok(Xdp::Native) => "native".to_owned(),
                    Ok(Xdp::Generic) => "generic".to_owned(),
                    Ok(Xdp::None(reason) | Xdp::Foreign(reason)) => format!("none: {reason}"),
                    Err(error) => format!("failed: {error}"),
                },
                mtu: link.mtu,
                sources: self
                    .rows
                    .get(&link.index)
                    .map(status::sources)
                    .unwrap_or_default(),
            },
        }
    }
}

async fn attach(choice: XdpChoice, link: &Link, programs: &mut Programs) -> Outcome {
    let Link { index, name, .. } = link;
    let side = match link.framing {
        Framing::Ethernet => Side::Node,
        Framing::Bare | Framing::Unknown => Side::NodeL3,
    };
    let tc = programs.attach(*index, name, side).await;
    let xdp = match generic_xdp(choice, link) {
        Ok(generic) => programs.attach_xdp(*index, generic).await,
        Err(reason) => programs
            .detach_xdp(*index)
            .map(|()| Xdp::None(reason.to_owned())),
    };
    let text = |error: anyhow::Error| format!("{error:#}");
    Outcome {
        tc: tc.map_err(text),
        xdp: xdp.map_err(text),
    }
}

/// Whether the generic sort of XDP is wanted on a device; an error that says why none is.
fn generic_xdp(choice: XdpChoice, link: &Link) -> Result<bool, &'static str> {
    match (choice, link.kind, link.framing) {
        (XdpChoice::Off, ..) => Err("--xdp is off"),
        (_, _, Framing::Bare | Framing::Unknown) => Err("no Ethernet header"),
        (_, Kind::Tunnel, _) => Err("a tunnel"),
        // Packets that XDP sends on a veth are lost unless the other end takes part in it.
        (XdpChoice::Auto, Kind::Veth, _) => Err("a veth; --xdp native or generic asks for it"),
        (XdpChoice::Auto | XdpChoice::Native, ..) => Ok(false),
        (XdpChoice::Generic, ..) => Ok(true),
    }
}

fn report(interface: &str, Outcome { tc, xdp }: &Outcome) {
    match tc {
        Ok(()) => info!(interface, "attached: it leads out of the node"),
        Err(error) => warn!(interface, "cannot attach, will try again: {error}"),
    }
    match xdp {
        Ok(Xdp::Native) => info!(interface, "attached native XDP"),
        Ok(Xdp::Generic) => info!(interface, "attached generic XDP"),
        Ok(Xdp::None(reason) | Xdp::Foreign(reason)) => info!(interface, "no XDP: {reason}"),
        Err(error) => warn!(interface, "cannot attach XDP, will try again: {error}"),
    }
}
