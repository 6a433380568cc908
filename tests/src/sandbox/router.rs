//! What is outside of the cluster.

use std::sync::Arc;

use anyhow::Result;
use ipnet::IpNet;

use super::{
    addresses::{self, Family, Pair},
    namespace::Namespace,
    node::UPLINK,
    wiring::{Via, Wiring, everything},
};

const UPLINKS: &str = "uplinks";
/// How many clients there are outside.
const CLIENTS: u8 = 8;

/// What the nodes' uplinks are connected to: a bridge, whose own address is the way out of the
/// cluster. It forwards nothing, so what reaches it unasked for is lost. The clients outside have
/// their addresses here too.
pub(super) struct Router {
    namespace: Arc<Namespace>,
}

impl Router {
    pub(super) fn create(prefix: &str) -> Result<Self> {
        let namespace = Namespace::create(&format!("{prefix}router"), None)?;
        for setting in [
            "ipv4/ip_forward",
            "ipv4/conf/all/rp_filter",
            "ipv4/conf/default/rp_filter",
            "ipv6/conf/all/forwarding",
        ] {
            namespace.set(setting, "0")?;
        }
        Wiring::of(&namespace, |wiring| async move {
            let loopback = wiring.index("lo").await?;
            wiring.up(loopback).await?;
            for address in (1..=CLIENTS).flat_map(|client| addresses::outside_client(client).each())
            {
                let prefix = Family::of(address).host_prefix();
                wiring.address(loopback, address, prefix).await?;
            }
            let bridge = wiring.bridge(UPLINKS).await?;
            let addresses = addresses::outside().each();
            for (address, prefix) in addresses.into_iter().zip(addresses::UPLINK_PREFIX) {
                wiring.address(bridge, address, prefix).await?;
            }
            Ok(())
        })?;
        Ok(Self {
            namespace: Arc::new(namespace),
        })
    }

    pub(super) fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// Sends what is for some networks to a node, in place of another.
    pub(super) fn route(&self, networks: [IpNet; 2], node: Pair) -> Result<()> {
        Wiring::of(&self.namespace, move |wiring| async move {
            let uplinks = wiring.index(UPLINKS).await?;
            for (network, node) in networks.into_iter().zip(node.each()) {
                wiring
                    .replace_route(network, uplinks, Via::Gateway(node))
                    .await?;
            }
            Ok(())
        })
    }

    /// Gives what is outside some more addresses.
    pub(super) fn add_addresses(&self, addresses: Pair) -> Result<()> {
        Wiring::of(&self.namespace, move |wiring| async move {
            let loopback = wiring.index("lo").await?;
            for address in addresses.each() {
                let prefix = Family::of(address).host_prefix();
                wiring.address(loopback, address, prefix).await?;
            }
            Ok(())
        })
    }

    /// Gives a node its uplink.
    pub(super) fn connect(&self, node: &Namespace, number: u8) -> Result<()> {
        let port = format!("node-{number}");
        let (peer, descriptor) = (port.clone(), self.namespace.descriptor());
        let uplink = Wiring::of(node, move |wiring| async move {
            wiring.up(wiring.index("lo").await?).await?;
            let index = wiring.veth(UPLINK, &peer, descriptor).await?;
            wiring.up(index).await?;
            Ok(index)
        })?;
        Wiring::of(&self.namespace, move |wiring| async move {
            let index = wiring.index(&port).await?;
            wiring.join(index, wiring.index(UPLINKS).await?).await?;
            wiring.up(index).await
        })?;
        Wiring::of(node, move |wiring| async move {
            let own = addresses::node(number).each();
            let outside = addresses::outside().each();
            let prefixes = addresses::UPLINK_PREFIX;
            for ((address, outside), prefix) in own.into_iter().zip(outside).zip(prefixes) {
                wiring.address(uplink, address, prefix).await?;
                let family = Family::of(address);
                wiring
                    .route(everything(family), uplink, Via::Gateway(outside))
                    .await?;
            }
            Ok(())
        })
    }
}
