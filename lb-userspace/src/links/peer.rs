//! Reads what the inside of a pod's interface carries, without entering its namespace.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle,
    packet_route::{
        address::{AddressAttribute, AddressScope},
        link::LinkAttribute,
    },
};

use super::{Peer, Reading, messages::address_of};

/// A netlink socket through which peers are read.
#[derive(Clone)]
pub struct Reader {
    handle: Handle,
}

impl Reader {
    /// Must be called within a tokio runtime.
    pub fn new() -> Result<Self> {
        // Strict, or the kernel ignores the namespace of an address request and answers for ours.
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().context("open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The MAC address and the global addresses of a peer.
    pub async fn read(&self, peer: Peer) -> Result<Reading> {
        let mac = self
            .mac(peer)
            .await
            .context("read the peer's MAC address")?;
        let addresses = self
            .addresses(peer)
            .await
            .context("read the peer's addresses")?;
        Ok(Reading { mac, addresses })
    }

    async fn mac(&self, peer: Peer) -> Result<[u8; 6]> {
        let mut request = self.handle.link().get().match_index(peer.index);
        request
            .message_mut()
            .attributes
            .push(LinkAttribute::IfNetnsId(peer.namespace));
        let link = Box::pin(request.execute())
            .next()
            .await
            .context("no answer")??;
        let mac = link
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes).ok(),
                _ => None,
            });
        mac.context("it has none")
    }

    async fn addresses(&self, peer: Peer) -> Result<BTreeSet<IpAddr>> {
        let mut request = self.handle.address().get();
        request.message_mut().header.index = peer.index;
        request
            .message_mut()
            .attributes
            .push(AddressAttribute::TargetNetNsId(peer.namespace));
        let messages: Vec<_> = request.execute().try_collect().await?;
        Ok(messages
            .into_iter()
            .filter(|message| message.header.scope == AddressScope::Universe)
            .filter_map(|message| address_of(&message))
            .collect())
    }
}
