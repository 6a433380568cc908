//! Services for processes: the choice is made when a socket is connected or a datagram sent, and the
//! socket talks to the backend itself.
//!
//! A process that asks who is at the other end is told what it dialled. Two kinds of entries in
//! `SOCKETS` serve that, both under the socket's cookie: from a backend back to the frontend that was
//! dialled, and for datagrams from a frontend to the backend that the socket keeps while it lives.
//!
//! Nothing here uses [`crate::scratch::Scratch`]: these programs can be preempted, and another one
//! of ours may then run on the same CPU.

use crate::{
    address::{Address, UNSPECIFIED, is_v4},
    affinity::{self, Rows},
    balance::{self, pick},
    reason::Reason,
    service::{AffinityKey, FrontendKey, FrontendKind, NO_BACKEND, Target},
    tables::Tables,
};

/// Entries of `SOCKETS` that fit; the least recently used make room.
pub const MAX_SOCKETS: usize = 131_072;

/// Value of `SETTINGS`: what the programs must know of the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Cookie of the node's own network namespace; 0 stands for the one that the kernel began with.
    pub namespace: u64,
    /// Cookie of the agent's socket whose next call tells `namespace`; 0 where that is known. Before 5.14
    /// only a program can learn it.
    pub asking: u64,
    /// The node's primary addresses, by which services know its processes; [`UNSPECIFIED`] where
    /// there is none or it is not known yet.
    pub v4: Address,
    pub v6: Address,
    /// 1 where processes in every network namespace are served, 0 where only those in the node's.
    pub everywhere: u8,
    pub _pad: [u8; 7],
}

impl Settings {
    pub const NONE: Self = Self {
        namespace: 0,
        asking: 0,
        v4: UNSPECIFIED,
        v6: UNSPECIFIED,
        everywhere: 0,
        _pad: [0; 7],
    };

    /// The node's primary address of the family of `other`.
    #[inline(always)]
    pub fn primary(&self, other: &Address) -> Address {
        if is_v4(other) { self.v4 } else { self.v6 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::NONE
    }
}

/// Key of `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketKey {
    /// The kernel's number for the socket, which no other ever has.
    pub cookie: u64,
    pub address: Address,
    /// Host order.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`Side`]: what address and port are.
    pub side: u8,
    _pad: [u8; 4],
}

/// Which end of the translation a key names; the value is the other one.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The frontend that the process dialled.
    Frontend = 0,
    /// The backend that the socket talks to.
    Backend = 1,
}

impl SocketKey {
    #[inline(always)]
    const fn new(caller: &Caller, (side, peer): (Side, &Peer)) -> Self {
        Self {
            cookie: caller.cookie,
            address: peer.address,
            port: peer.port,
            protocol: caller.protocol,
            side: side as u8,
            _pad: [0; 4],
        }
    }

    /// A digest of the key, kept in the value; see [`FrontendKey::check`].
    #[inline(always)]
    pub fn check(&self) -> u32 {
        let peer = FrontendKey::new(self.address, self.port, self.protocol).check();
        let cookie = self.cookie ^ self.cookie >> 32;
        (peer ^ cookie as u32 ^ u32::from(self.side)).wrapping_mul(0x9e37_79b1)
    }
}

/// Value of `SOCKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The other side: the backend of a frontend, the frontend of a backend.
    pub address: Address,
    /// Id and generation of the backend.
    pub backend: u32,
    pub generation: u32,
    /// [`SocketKey::check`] of the key.
    pub check: u32,
    /// Host order.
    pub port: u16,
    _pad: [u8; 2],
}

impl Socket {
    #[inline(always)]
    const fn peer(&self) -> Peer {
        Peer {
            address: self.address,
            port: self.port,
        }
    }
}

/// One end of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: Address,
    /// Host order.
    pub port: u16,
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The socket's cookie.
    pub cookie: u64,
    /// IANA protocol number.
    pub protocol: u8,
    /// The network namespace of the socket where that is not the node's own, else `None`.
    pub namespace: Option<u64>,
}

/// The tables, and what is remembered of sockets.
pub trait Sockets: Tables {
    fn settings(&self) -> Settings;
    fn socket(&self, key: &SocketKey) -> Option<Socket>;
    /// Inserts or replaces an entry.
    fn remember(&self, key: &SocketKey, socket: &Socket);
}

/// A socket is to be connected to `peer`, which becomes the backend where that is a service's: the
/// choice is made afresh. An error is the reason to refuse.
#[inline(always)]
pub fn connect<T: Sockets>(tables: &T, caller: &Caller, peer: &mut Peer) -> Result<(), Reason> {
    let mut choice = Choice::NONE;
    choose(tables, caller, peer, &mut choice)?;
    if choice.backend != NO_BACKEND {
        note(tables, caller, (Side::Backend, &choice.peer), peer, &choice);
        *peer = choice.peer;
    }
    Ok(())
}

/// A datagram is to be sent to `peer`, which becomes the backend where that is a service's: the one
/// that the last datagram from this socket went to, while it lives. An error is the reason to refuse.
#[inline(always)]
pub fn send<T: Sockets>(tables: &T, caller: &Caller, peer: &mut Peer) -> Result<(), Reason> {
    if let Some(kept) = recall(tables, caller, (Side::Frontend, peer))
        && tables.generation(kept.backend) == kept.generation
    {
        *peer = kept.peer();
        return Ok(());
    }
    let mut choice = Choice::NONE;
    choose(tables, caller, peer, &mut choice)?;
    if choice.backend != NO_BACKEND {
        note(tables, caller, (Side::Backend, &choice.peer), peer, &choice);
        note(
            tables,
            caller,
            (Side::Frontend, peer),
            &choice.peer,
            &choice,
        );
        *peer = choice.peer;
    }
    Ok(())
}

/// A process is to be told that it talks to `peer`, which becomes what it dialled. Where two frontends
/// led one socket to the same backend, it is the one that did so last.
#[inline(always)]
pub fn report<T: Sockets>(tables: &T, caller: &Caller, peer: &mut Peer) {
    if let Some(socket) = recall(tables, caller, (Side::Backend, peer)) {
        *peer = socket.peer();
    }
}

/// Where a call goes.
#[derive(Clone, Copy)]
struct Choice {
    peer: Peer,
    /// Id and generation of the backend; [`NO_BACKEND`] where the address stays.
    backend: u32,
    generation: u32,
}

impl Choice {
    const NONE: Self = Self {
        peer: Peer {
            address: UNSPECIFIED,
            port: 0,
        },
        backend: NO_BACKEND,
        generation: 0,
    };
}

/// Chooses a backend by the rules of the packet path, as for a client on this node.
///
/// What kube-proxy drops keeps its address: the packets are dropped, and counted, where they leave
/// the node.
#[inline(always)]
fn choose<T: Sockets>(
    tables: &T,
    caller: &Caller,
    dialled: &Peer,
    choice: &mut Choice,
) -> Result<(), Reason> {
    // Nobody talks to port 0: who connects there asks which of its addresses would be used.
    if dialled.port == 0 {
        return Ok(());
    }
    match Target::unpack(find(tables, caller, dialled)) {
        Target::Service { index, kind } => {
            let mut session = AffinityKey {
                client: UNSPECIFIED,
                service: index,
            };
            set_client(tables, caller, &dialled.address, &mut session.client);
            from_service(tables, &session, kind, choice)
        }
        Target::Undefined => Err(Reason::UndefinedPort),
        Target::NodeAddress { .. } => Ok(()),
    }
}

/// What a call leads to, as it stands in the table; the verifier follows numbers better than enums.
#[inline(never)]
fn find<T: Sockets>(tables: &T, caller: &Caller, dialled: &Peer) -> u32 {
    balance::target(tables, &dialled.address, dialled.port, caller.protocol)
        .unwrap_or(Target::NodeAddress { ports: false })
        .pack()
}

/// Chooses a backend of a service for a client.
#[inline(never)]
fn from_service<T: Sockets>(
    tables: &T,
    session: &AffinityKey,
    kind: FrontendKind,
    choice: &mut Choice,
) -> Result<(), Reason> {
    let first = tables
        .extent(session.service)
        .map_or(0, |extent| extent.first);
    let header = match tables.backend(first) {
        Some(header) if first != 0 => header,
        _ => return Err(Reason::NoEndpoints),
    };
    if !balance::admits(tables, &header, kind, &session.client) {
        return Ok(());
    }
    let list = match balance::list(&header, kind, true) {
        Ok(list) => list,
        Err(Reason::NoLocalEndpoints) => return Ok(()),
        Err(reason) => return Err(reason),
    };
    let now = tables.now();
    let recalled = if header.affinity == 0 {
        None
    } else {
        affinity::recall(tables, session, &Rows::new(first, &header, list), now)
    };
    let row = recalled.unwrap_or_else(|| list.first + pick(tables.random(), list.count));
    let Some(backend) = tables.backend(first + 1 + row) else {
        return Err(Reason::NoEndpoints);
    };
    *choice = Choice {
        peer: Peer {
            address: backend.address,
            port: backend.port,
        },
        backend: backend.id,
        generation: backend.generation,
    };
    if header.affinity != 0 {
        let Peer { address, port } = &choice.peer;
        affinity::remember(tables, session, address, *port, now);
    }
    Ok(())
}

/// The address that the caller is known by to services. Which one a pod has cannot be told here: it
/// gets one that no packet has (the discard prefix of RFC 6666), which no source range holds.
///
/// Apart, because the compiler would keep each byte of either address on the stack.
#[inline(never)]
fn set_client<T: Sockets>(tables: &T, caller: &Caller, like: &Address, client: &mut Address) {
    match caller.namespace {
        None => *client = tables.settings().primary(like),
        Some(namespace) => {
            client.bytes[0] = 1;
            client.bytes[8..].copy_from_slice(&namespace.to_be_bytes());
        }
    }
}

/// What is remembered under one end of a translation.
#[inline(always)]
fn recall<T: Sockets>(tables: &T, caller: &Caller, end: (Side, &Peer)) -> Option<Socket> {
    let key = SocketKey::new(caller, end);
    tables
        .socket(&key)
        .filter(|socket| socket.check == key.check())
}

/// Remembers the other end of a translation under one.
#[inline(never)]
fn note<T: Sockets>(
    tables: &T,
    caller: &Caller,
    end: (Side, &Peer),
    other: &Peer,
    choice: &Choice,
) {
    let key = SocketKey::new(caller, end);
    let socket = Socket {
        address: other.address,
        backend: choice.backend,
        generation: choice.generation,
        check: key.check(),
        port: other.port,
        _pad: [0; 2],
    };
    tables.remember(&key, &socket);
}

const _: () = assert!(size_of::<Settings>() == 56);
const _: () = assert!(size_of::<SocketKey>() == 32);
const _: () = assert!(size_of::<Socket>() == 32);
