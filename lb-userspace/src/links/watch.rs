//! Follows the interfaces of this namespace by netlink.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::{
    Stream, StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver, stream,
};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressMessage, AddressScope},
        link::{InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage, State},
    },
    sys::SocketAddr,
};
use tracing::{debug, warn};

use super::{Link, LinkChange, Peer, peer::address_of};

/// How long to wait before a netlink socket that broke is opened again.
const RETRY: Duration = Duration::from_secs(1);

/// Reports all interfaces, then every change. Never ends: what is lost is read again.
///
/// Must be called within a tokio runtime.
pub fn watch() -> Result<impl Stream<Item = LinkChange> + Send> {
    let watcher = Watcher::new()?;
    Ok(stream::unfold(watcher, |mut watcher| async move {
        Some((watcher.next().await, watcher))
    }))
}

type Events = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

struct Watcher {
    events: Events,
    /// Requests have a socket of their own: an overrun of the other one would swallow answers.
    handle: Handle,
    links: BTreeMap<u32, Link>,
    addresses: BTreeMap<u32, BTreeSet<IpAddr>>,
    stale: bool,
    listed: bool,
    reports: VecDeque<LinkChange>,
}

impl Watcher {
    fn new() -> Result<Self> {
        let (events, handle) = subscribe()?;
        Ok(Self {
            events,
            handle,
            links: BTreeMap::new(),
            addresses: BTreeMap::new(),
            stale: true,
            listed: false,
            reports: VecDeque::new(),
        })
    }

    async fn next(&mut self) -> LinkChange {
        loop {
            if let Some(report) = self.reports.pop_front() {
                return report;
            }
            if let Err(error) = self.step().await {
                warn!("cannot follow the node's interfaces, trying again: {error:#}");
                tokio::time::sleep(RETRY).await;
                self.stale = true;
            }
        }
    }

    async fn step(&mut self) -> Result<()> {
        if self.stale {
            self.list().await?;
            self.stale = false;
            return Ok(());
        }
        match self.events.next().await {
            Some((
                NetlinkMessage {
                    payload: NetlinkPayload::InnerMessage(event),
                    ..
                },
                _,
            )) => self.apply(event).await,
            Some((
                NetlinkMessage {
                    payload: NetlinkPayload::Overrun(_),
                    ..
                },
                _,
            )) => {
                debug!("netlink events were lost, listing the interfaces again");
                self.stale = true;
                Ok(())
            }
            Some(_) => Ok(()),
            None => {
                (self.events, self.handle) = subscribe()?;
                self.stale = true;
                Ok(())
            }
        }
    }

    /// Brings everything up to date. Events that arrived meanwhile are still to come, and do no harm.
    async fn list(&mut self) -> Result<()> {
        let addresses: Vec<_> = self.handle.address().get().execute().try_collect().await?;
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await?;
        self.addresses.clear();
        for message in &addresses {
            self.apply_address(message, true);
        }
        let links: Vec<_> = links.iter().map(|message| self.link(message)).collect();
        let present: BTreeSet<_> = links.iter().map(|link| link.index).collect();
        let absent: Vec<_> = self
            .links
            .keys()
            .copied()
            .filter(|index| !present.contains(index))
            .collect();
        for index in absent {
            self.gone(index);
        }
        for link in links {
            self.seen(link);
        }
        if !self.listed {
            self.listed = true;
            self.reports.push_back(LinkChange::Listed);
        }
        Ok(())
    }

    async fn apply(&mut self, event: RouteNetlinkMessage) -> Result<()> {
        match event {
            // A bridge's own messages tell of its ports in terms of the bridge.
            RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family == AddressFamily::Bridge => {}
            RouteNetlinkMessage::NewLink(message) => {
                let link = self.link(&message);
                // An end that was made first does not know the other one when it is announced.
                if link.veth && link.peer.is_none() {
                    self.refresh(link.index).await?;
                } else {
                    self.seen(link);
                }
            }
            RouteNetlinkMessage::DelLink(message) => {
                self.gone(message.header.index);
                self.refresh_pairs().await?;
            }
            RouteNetlinkMessage::NewAddress(message) => self.apply_address(&message, true),
            RouteNetlinkMessage::DelAddress(message) => self.apply_address(&message, false),
            _ => {}
        }
        Ok(())
    }

    /// An end that leaves our namespace is announced as deleted; the one that stays, not at all.
    async fn refresh_pairs(&mut self) -> Result<()> {
        let unpaired = self
            .links
            .values()
            .filter(|link| link.veth && link.peer.is_none());
        for index in unpaired.map(|link| link.index).collect::<Vec<_>>() {
            self.refresh(index).await?;
        }
        Ok(())
    }

    async fn refresh(&mut self, index: u32) -> Result<()> {
        let answer = Box::pin(self.handle.link().get().match_index(index).execute())
            .next()
            .await;
        match answer.context("no answer about an interface")? {
            Ok(message) => {
                let link = self.link(&message);
                self.seen(link);
                Ok(())
            }
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {
                self.gone(index);
                Ok(())
            }
            Err(error) => Err(error).context("ask about an interface"),
        }
    }

    fn apply_address(&mut self, message: &AddressMessage, present: bool) {
        let Some(address) = address_of(message) else {
            return;
        };
        if message.header.scope != AddressScope::Universe {
            return;
        }
        let index = message.header.index;
        let addresses = self.addresses.entry(index).or_default();
        if present {
            addresses.insert(address);
        } else {
            addresses.remove(&address);
        }
        let addresses = addresses.clone();
        if let Some(link) = self.links.get(&index) {
            self.seen(Link {
                addresses,
                ..link.clone()
            });
        }
    }

    fn seen(&mut self, link: Link) {
        if self.links.get(&link.index) != Some(&link) {
            self.links.insert(link.index, link.clone());
            self.reports.push_back(LinkChange::Seen(link));
        }
    }

    fn gone(&mut self, index: u32) {
        self.addresses.remove(&index);
        if self.links.remove(&index).is_some() {
            self.reports.push_back(LinkChange::Gone(index));
        }
    }

    fn link(&self, message: &LinkMessage) -> Link {
        let index = message.header.index;
        let mut link = Link {
            index,
            name: String::new(),
            veth: false,
            bridge_port: false,
            up: false,
            peer: None,
            addresses: self.addresses.get(&index).cloned().unwrap_or_default(),
        };
        let (mut peer_index, mut peer_namespace) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::OperState(state) => link.up = *state == State::Up,
                LinkAttribute::Link(index) => peer_index = Some(*index),
                LinkAttribute::LinkNetNsId(namespace) => peer_namespace = Some(*namespace),
                LinkAttribute::LinkInfo(infos) => {
                    link.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                    link.bridge_port = infos.contains(&LinkInfo::PortKind(InfoPortKind::Bridge));
                }
                _ => {}
            }
        }
        if link.veth {
            link.peer = peer_index
                .zip(peer_namespace)
                .map(|(index, namespace)| Peer { index, namespace });
        }
        link
    }
}

fn subscribe() -> Result<(Events, Handle)> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (connection, _, events) =
        rtnetlink::new_multicast_connection(&groups).context("subscribe to netlink events")?;
    tokio::spawn(connection);
    let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
    tokio::spawn(connection);
    Ok((events, handle))
}
