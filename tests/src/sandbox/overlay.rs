//! The way from node to node where the network between them does not know pods: VXLAN, as flannel
//! sets it up.

use std::net::IpAddr;

use anyhow::Result;

use super::{
    addresses::{self, Family, Pair},
    namespace::Namespace,
    node::UPLINK,
    wiring::{Via, Wiring},
};

const DEVICE: &str = "flannel.1";
/// The UDP port that Linux has for it by default.
const PORT: u16 = 8472;
/// What an uplink's 1500 leave for a packet.
pub(super) const MTU: u32 = 1450;

/// Gives a node its VXLAN device.
pub(super) fn add(node: &Namespace, number: u8) -> Result<()> {
    Wiring::of(node, move |wiring| async move {
        let uplink = wiring.index(UPLINK).await?;
        let local = addresses::node(number).v4;
        let index = wiring
            .vxlan(DEVICE, uplink, local, PORT, mac(number))
            .await?;
        for address in addresses::overlay(number).each() {
            let prefix = Family::of(address).host_prefix();
            wiring.address(index, address, prefix).await?;
        }
        Ok(())
    })
}

/// Routes the pods of node `other` through the device.
pub(super) fn connect(node: &Namespace, other: u8) -> Result<()> {
    Wiring::of(node, move |wiring| async move {
        let index = wiring.index(DEVICE).await?;
        let Pair { v4, .. } = addresses::node(other);
        wiring.forwarding(index, mac(other), IpAddr::V4(v4)).await?;
        let gateways = addresses::overlay(other).each();
        for (pods, gateway) in addresses::pod_networks(other).into_iter().zip(gateways) {
            wiring.neighbour(index, gateway, mac(other)).await?;
            wiring.route(pods, index, Via::Onlink(gateway)).await?;
        }
        Ok(())
    })
}

/// The hardware address of a node's device.
fn mac(node: u8) -> [u8; 6] {
    [0x0e, 0, 0, 0, 0, node]
}
