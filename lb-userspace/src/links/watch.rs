//! Follows the interfaces and routes of this namespace by netlink.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
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
        AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkMessage,
        route::RouteMessage,
    },
    sys::SocketAddr,
};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::{
    Kind, Link, LinkChange, OwnAddress, Reach,
    messages::{self, own_address},
};

/// How long to wait before a netlink socket that broke is opened again.
const RETRY: Duration = Duration::from_secs(1);
/// From a sign that routes have changed until they are read, so that one reading serves many changes.
const SETTLE: Duration = Duration::from_millis(50);
/// How many times as long as the last reading took the next one waits at least.
const REST: u32 = 10;

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
    addresses: BTreeMap<u32, Vec<OwnAddress>>,
    reach: BTreeMap<u32, Reach>,
    /// When the routes are to be read again. The kernel does not tell of all that it drops, so they
    /// are always read as a whole.
    routes_due: Option<Instant>,
    /// How long to wait before that.
    settle: Duration,
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
            reach: BTreeMap::new(),
            routes_due: None,
            settle: SETTLE,
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
        let event = match self.routes_due {
            Some(due) if due <= Instant::now() => return self.read_routes().await,
            Some(due) => match timeout_at(due, self.events.next()).await {
                Ok(event) => event,
                Err(_) => return self.read_routes().await,
            },
            None => self.events.next().await,
        };
        match event {
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
        self.read_routes().await?;
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
                self.expect_routes();
                let link = self.link(&message);
                // An end that was made first does not know the other one when it is announced.
                if link.kind == Kind::Veth && link.peer.is_none() {
                    self.refresh(link.index).await?;
                } else {
                    self.seen(link);
                }
            }
            RouteNetlinkMessage::DelLink(message) => {
                self.expect_routes();
                self.gone(message.header.index);
                self.refresh_pairs().await?;
            }
            RouteNetlinkMessage::NewAddress(message) => self.apply_address(&message, true),
            RouteNetlinkMessage::DelAddress(message) => {
                self.expect_routes();
                self.apply_address(&message, false);
            }
            RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => {
                self.expect_routes();
            }
            _ => {}
        }
        Ok(())
    }

    /// Notes a sign that routes may have changed.
    fn expect_routes(&mut self) {
        let due = Instant::now() + self.settle;
        self.routes_due.get_or_insert(due);
    }

    async fn read_routes(&mut self) -> Result<()> {
        let start = Instant::now();
        // Of all families and tables.
        let request = self.handle.route().get(RouteMessage::default()).execute();
        let routes: Vec<_> = request.try_collect().await.context("list the routes")?;
        let reach = messages::reach(&routes);
        if self.reach != reach {
            self.reach.clone_from(&reach);
            self.reports.push_back(LinkChange::Routes(reach));
        }
        self.routes_due = None;
        self.settle = SETTLE.max(start.elapsed() * REST);
        Ok(())
    }

    /// An end that leaves our namespace is announced as deleted; the one that stays, not at all.
    async fn refresh_pairs(&mut self) -> Result<()> {
        let unpaired = self
            .links
            .values()
            .filter(|link| link.kind == Kind::Veth && link.peer.is_none());
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
        let Some(own) = own_address(message) else {
            return;
        };
        let index = message.header.index;
        let addresses = self.addresses.entry(index).or_default();
        let known = addresses.iter().position(|a| a.address == own.address);
        match (known, present) {
            (Some(place), true) => addresses[place] = own,
            (Some(place), false) => drop(addresses.remove(place)),
            (None, true) => addresses.push(own),
            (None, false) => {}
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
        let addresses = self.addresses.get(&message.header.index);
        messages::link(message, addresses.cloned().unwrap_or_default())
    }
}

fn subscribe() -> Result<(Events, Handle)> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, _, events) =
        rtnetlink::new_multicast_connection(&groups).context("subscribe to netlink events")?;
    tokio::spawn(connection);
    let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
    tokio::spawn(connection);
    Ok((events, handle))
}
