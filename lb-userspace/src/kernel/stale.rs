//! Ends UDP sockets that talk to a backend that is gone.
//!
//! Nobody translates what a connected socket sends, so it would go to the dead for ever. Its owner is
//! told by an error, and the socket is as if it had never been connected. Only sockets that we
//! connected to the backend are concerned. TCP connections find out for themselves, and datagrams
//! of sockets that are not connected choose anew.

use std::{
    collections::BTreeSet,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    address::{Address, from_ip},
    headers::UDP,
    socket::{Side, Socket, SocketKey},
};
use tracing::{info, warn};

use super::{Pins, diag::Diag, mapped::Mapped, tables};

/// A thread that looks for such sockets in this process's network namespace.
pub struct StaleSockets {
    wake: SyncSender<()>,
}

impl StaleSockets {
    /// Starts the thread. It ends when this is dropped.
    pub fn watch(pins: &Pins) -> Result<Self> {
        let mut tables = Tables {
            sockets: Map::LruHashMap(tables::open(pins, "SOCKETS")?).try_into()?,
            live: tables::mapped(pins, "LIVE")?,
        };
        // One look that is yet to come is as good as many.
        let (wake, woken): (_, Receiver<()>) = sync_channel(1);
        let run = move || {
            while woken.recv().is_ok() {
                if let Err(error) = tables.end_stale() {
                    warn!("cannot tell UDP sockets that their backend is gone: {error:#}");
                }
            }
        };
        thread::Builder::new()
            .name("stale-sockets".to_owned())
            .spawn(run)
            .context("start a thread")?;
        Ok(Self { wake })
    }

    /// Lets the thread look again: some backend is gone.
    pub fn look(&self) {
        // Full is as good: it is about to look.
        let _ = self.wake.try_send(());
    }
}

struct Tables {
    sockets: HashMap<MapData, SocketKey, Socket>,
    live: Mapped<u32>,
}

impl Tables {
    fn end_stale(&mut self) -> Result<()> {
        let stale = self.stale()?;
        if stale.is_empty() {
            return Ok(());
        }
        let mut diag = Diag::open()?;
        let mut ended = 0;
        for socket in diag.connected_udp()? {
            let end = (socket.cookie, from_ip(socket.peer.ip()), socket.peer.port());
            if stale.contains(&end) {
                ended += usize::from(diag.end(&socket)?);
            }
        }
        if ended > 0 {
            info!(sockets = ended, "ended UDP sockets whose backend is gone");
        }
        Ok(())
    }

    /// The sockets that were led to a backend that is gone: cookie, and the backend's address and
    /// port.
    fn stale(&self) -> Result<BTreeSet<(u64, Address, u16)>> {
        let mut stale = BTreeSet::new();
        for entry in self.sockets.iter() {
            let (key, socket) = entry.context("read SOCKETS")?;
            let led = key.side == Side::Backend as u8 && key.protocol == UDP;
            if led && self.live.get(socket.backend)? != socket.generation {
                stale.insert((key.cookie, key.address, key.port));
            }
        }
        Ok(stale)
    }
}
