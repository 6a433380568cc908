//! A network from node to node, and from outside, whose packets have no link layer, as WireGuard has
//! it: a TUN device each, and this process between them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, RwLock},
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use tokio_tun::Tun;

use super::{
    addresses::{self, Family},
    namespace::Namespace,
    wiring::{Via, Wiring},
};

const DEVICE: &str = "wg0";
/// What WireGuard leaves of 1500.
pub(super) const MTU: u32 = 1420;
/// The key of what is outside; nodes are counted from 1.
pub(super) const OUTSIDE: u8 = 0;

/// Who gets what: the last network that contains an address says.
type Routes = Arc<RwLock<Vec<(IpNet, Arc<Tun>)>>>;

/// The network. Its devices go with their namespaces.
#[derive(Default)]
pub(super) struct Tunnels {
    routes: Routes,
    ends: RwLock<Vec<(u8, Arc<Tun>)>>,
}

impl Tunnels {
    /// Gives a namespace its device, with the addresses of a node's tunnel if it is one.
    pub(super) fn add(&self, namespace: &Namespace, key: u8) -> Result<()> {
        let routes = self.routes.clone();
        let tun = namespace.run(async move {
            let mtu = i32::try_from(MTU)?;
            let tuns = Tun::builder().name(DEVICE).mtu(mtu).up().build();
            let tun = tuns.context("make a TUN device")?.pop();
            let tun = Arc::new(tun.context("no TUN device")?);
            tokio::spawn(relay(tun.clone(), routes));
            anyhow::Ok(tun)
        })?;
        self.ends.write().expect(UNPOISONED).push((key, tun));
        let clients = addresses::outside_networks();
        Wiring::of(namespace, move |wiring| async move {
            if key == OUTSIDE {
                return Ok(());
            }
            let index = wiring.index(DEVICE).await?;
            for address in addresses::overlay(key).each() {
                let prefix = Family::of(address).host_prefix();
                wiring.address(index, address, prefix).await?;
            }
            for network in clients {
                wiring.route(network, index, Via::Link).await?;
            }
            Ok(())
        })?;
        if key == OUTSIDE {
            self.lead(clients, OUTSIDE);
            return Ok(());
        }
        self.lead(addresses::pod_networks(key), key);
        self.lead(addresses::node(key).networks(), key);
        Ok(())
    }

    /// Sends what is for some networks from a namespace to an end of the tunnels.
    pub(super) fn route(&self, from: &Namespace, networks: [IpNet; 2], key: u8) -> Result<()> {
        self.lead(networks, key);
        Wiring::of(from, move |wiring| async move {
            let index = wiring.index(DEVICE).await?;
            for network in networks {
                wiring.replace_route(network, index, Via::Link).await?;
            }
            Ok(())
        })
    }

    fn lead(&self, networks: [IpNet; 2], key: u8) {
        let ends = self.ends.read().expect(UNPOISONED);
        let Some((_, tun)) = ends.iter().find(|(known, _)| *known == key) else {
            return;
        };
        let mut routes = self.routes.write().expect(UNPOISONED);
        routes.extend(networks.map(|network| (network, tun.clone())));
    }
}

/// Nobody panics with one of the locks in hand.
const UNPOISONED: &str = "a lock of the tunnels";

/// Passes on what leaves a device, until its namespace goes.
async fn relay(tun: Arc<Tun>, routes: Routes) {
    let mut packet = [0; 65536];
    while let Ok(size) = tun.recv(&mut packet).await {
        let packet = &packet[..size];
        let to = destination(packet).and_then(|to| {
            let routes = routes.read().expect(UNPOISONED);
            let last = routes
                .iter()
                .rev()
                .find(|(network, _)| network.contains(&to));
            last.map(|(_, tun)| tun.clone())
        });
        if let Some(to) = to {
            // A device that is full loses packets, as any other.
            let _ = to.try_send(packet);
        }
    }
}

/// Where an IP packet goes.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => {
            let bytes: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes).into())
        }
        6 => {
            let bytes: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}
