//! Links, addresses and routes, by netlink.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::RawFd,
};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::{
    address::AddressHeaderFlags,
    link::{InfoData, InfoKind, InfoVeth},
    neighbour::NeighbourFlags,
    route::{RouteMessage, RouteScope},
};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder,
};

use super::{addresses::Family, namespace::Namespace};

/// What a packet to some destination is given to.
#[derive(Clone, Copy)]
pub(super) enum Via {
    /// The link itself.
    Link,
    /// A router on the link.
    Gateway(IpAddr),
    /// A router that the link leads to although no address of the link says so.
    Onlink(IpAddr),
}

/// A netlink socket of one namespace.
#[derive(Clone)]
pub(super) struct Wiring {
    handle: Handle,
}

impl Wiring {
    /// Opens the socket in `namespace` and runs `work` with it there.
    pub(super) fn of<F, T>(
        namespace: &Namespace,
        work: impl FnOnce(Self) -> F + Send + 'static,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
        T: Send + 'static,
    {
        namespace.run(async {
            let (connection, handle, _) =
                rtnetlink::new_connection().context("open a netlink socket")?;
            let connection = tokio::spawn(connection);
            let result = work(Self { handle }).await;
            connection.abort();
            result
        })
    }

    /// The index of the link with this name.
    pub(super) async fn index(&self, name: &str) -> Result<u32> {
        let found = self
            .handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await;
        let link = found.with_context(|| format!("find {name}"))?;
        Ok(link
            .with_context(|| format!("{name} is not there"))?
            .header
            .index)
    }

    /// Makes a veth pair with its other end in another namespace.
    pub(super) async fn veth(&self, name: &str, peer: &str, namespace: RawFd) -> Result<u32> {
        let peer = LinkMessageBuilder::<LinkUnspec>::default()
            .name(peer)
            .setns_by_fd(namespace)
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        let made = self.handle.link().add(pair).execute().await;
        made.with_context(|| format!("make the veth {name}"))?;
        self.index(name).await
    }

    /// Makes a bridge.
    pub(super) async fn bridge(&self, name: &str) -> Result<u32> {
        let made = self
            .handle
            .link()
            .add(LinkBridge::new(name).build())
            .execute()
            .await;
        made.with_context(|| format!("make the bridge {name}"))?;
        let index = self.index(name).await?;
        self.up(index).await?;
        Ok(index)
    }

    /// Makes a VXLAN device that learns nothing by itself.
    pub(super) async fn vxlan(
        &self,
        name: &str,
        lower: u32,
        local: Ipv4Addr,
        port: u16,
        mac: [u8; 6],
    ) -> Result<u32> {
        let link = LinkVxlan::new(name, 1)
            .dev(lower)
            .local(local)
            .port(port)
            .learning(false)
            .address(mac.to_vec())
            .up();
        let made = self.handle.link().add(link.build()).execute().await;
        made.with_context(|| format!("make the VXLAN device {name}"))?;
        self.index(name).await
    }

    /// Says which hardware address an address on a link has.
    pub(super) async fn neighbour(&self, index: u32, of: IpAddr, mac: [u8; 6]) -> Result<()> {
        let request = self.handle.neighbours().add(index, of);
        let added = request.link_layer_address(&mac).execute().await;
        added.with_context(|| format!("add the neighbour {of}"))
    }

    /// Says behind which tunnel end a hardware address is.
    pub(super) async fn forwarding(&self, index: u32, mac: [u8; 6], end: IpAddr) -> Result<()> {
        let request = self.handle.neighbours().add_bridge(index, &mac);
        let added = request
            .flags(NeighbourFlags::Own)
            .destination(end)
            .execute()
            .await;
        added.with_context(|| format!("forward to {end}"))
    }

    /// Brings a link up.
    pub(super) async fn up(&self, index: u32) -> Result<()> {
        self.set(LinkUnspec::new_with_index(index).up())
            .await
            .context("bring a link up")
    }

    /// Makes a link a port of a bridge.
    pub(super) async fn join(&self, index: u32, bridge: u32) -> Result<()> {
        let link = LinkUnspec::new_with_index(index).controller(bridge);
        self.set(link).await.context("join a bridge")
    }

    /// Sets the largest packet that a link sends, in bytes from the IP header on.
    pub(super) async fn mtu(&self, index: u32, mtu: u32) -> Result<()> {
        self.set(LinkUnspec::new_with_index(index).mtu(mtu))
            .await
            .context("set an MTU")
    }

    async fn set(&self, link: LinkMessageBuilder<LinkUnspec>) -> Result<()> {
        Ok(self.handle.link().set(link.build()).execute().await?)
    }

    /// Gives a link an address that works at once: there is nobody to collide with.
    pub(super) async fn address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut request = self.handle.address().add(index, address, prefix);
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        let added = request.execute().await;
        added.with_context(|| format!("add the address {address}/{prefix}"))
    }

    /// Adds a route through a link.
    pub(super) async fn route(&self, destination: IpNet, index: u32, via: Via) -> Result<()> {
        let request = self.handle.route().add(route(destination, index, via)?);
        let added = request.execute().await;
        added.with_context(|| format!("add a route to {destination}"))
    }

    /// The same in place of the route to the same destination, if there is one.
    pub(super) async fn replace_route(
        &self,
        destination: IpNet,
        index: u32,
        via: Via,
    ) -> Result<()> {
        let request = self.handle.route().add(route(destination, index, via)?);
        let replaced = request.replace().execute().await;
        replaced.with_context(|| format!("replace the route to {destination}"))
    }
}

fn route(destination: IpNet, index: u32, via: Via) -> Result<RouteMessage> {
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.network(), destination.prefix_len())?
        .output_interface(index);
    let route = match via {
        Via::Gateway(gateway) => route.gateway(gateway)?,
        Via::Onlink(gateway) => route.gateway(gateway)?.onlink(),
        Via::Link => route.scope(RouteScope::Link),
    };
    Ok(route.build())
}

/// The network that holds everything.
pub(super) fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
        Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

/// The network of one address.
pub(super) fn only(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
