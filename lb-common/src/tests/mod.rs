//! The packet path on packets of bytes.

mod attacks;
mod enforcement;
mod errors;
mod fence;
mod flows;
mod frames;
mod headers;
mod policies;
mod races;
mod sctp;
mod services;
mod sockets;
mod translation;
mod wire;
mod wires;

use std::net::SocketAddr;

use crate::{
    address::from_ip,
    endpoint::{Endpoint, EndpointKey},
    flow::Direction,
    memory::{Frame, MemoryTables},
    packet::{MARK_FROM_POD, Verdict},
    pipeline::Inline,
    scratch::Scratch,
    service::{Backend, Extent, FrontendKey, FrontendKind, Target},
    tables::Tables,
};

pub const SECOND: u64 = 1_000_000_000;

/// Interface of the client pod, and of the pod that backs services on this node.
pub const CLIENT: u32 = 7;
pub const SERVER: u32 = 9;

/// A node's tables: pods on [`CLIENT`] and [`SERVER`], whose addresses the tests choose.
pub struct Node {
    pub tables: MemoryTables,
    rows: u32,
    ids: u32,
}

impl Node {
    pub fn new() -> Self {
        let tables = MemoryTables::default();
        tables.now.set(1000 * SECOND);
        let mut node = Self {
            tables,
            rows: 1,
            ids: 1,
        };
        node.tables.slots.insert(CLIENT, 1);
        node.tables.slots.insert(SERVER, 2);
        node
    }

    /// Makes the address that of a local pod.
    pub fn pod(&mut self, address: SocketAddr, interface: u32) {
        let key = EndpointKey {
            address: from_ip(address.ip()),
        };
        let slot = self.tables.slots[&interface];
        let endpoint = Endpoint {
            interface,
            slot,
            mac: wire::mac(interface),
            mtu: 1500,
        };
        self.tables.endpoints.insert(key, endpoint);
    }

    /// Programs a service and returns its index.
    pub fn service(&mut self, frontend: SocketAddr, protocol: u8, backends: &[SocketAddr]) -> u32 {
        let index = self.tables.services.len() as u32 + 1;
        let key = FrontendKey::new(from_ip(frontend.ip()), frontend.port(), protocol);
        let kind = FrontendKind::Internal;
        self.tables
            .frontends
            .insert(key, Target::Service { index, kind });
        self.tables
            .frontends
            .insert(FrontendKey::whole_address(key.address), Target::Undefined);
        self.point(index, backends);
        index
    }

    /// Moves a service to a new extent with new backends; the old backends live on.
    pub fn point(&mut self, index: u32, backends: &[SocketAddr]) {
        let first = self.rows;
        let mut frontends = self.tables.frontends.iter();
        let (key, _) = frontends
            .find(|(_, target)| matches!(target, Target::Service { index: found, .. } if *found == index))
            .expect("a frontend");
        let header = Backend {
            count: backends.len() as u32,
            any: u8::from(!backends.is_empty()),
            ..Backend::header(key, index)
        };
        self.tables.backends.insert(first, header);
        self.rows += 1;
        for backend in backends {
            self.tables.live.insert(self.ids, 1);
            let row = Backend::new(from_ip(backend.ip()), backend.port(), self.ids, 1);
            self.tables.backends.insert(self.rows, row);
            self.rows += 1;
            self.ids += 1;
        }
        self.tables
            .services
            .insert(index, Extent { first, revision: 1 });
    }

    /// Kills every backend there is.
    pub fn kill_all(&mut self) {
        self.tables
            .live
            .values_mut()
            .for_each(|generation| *generation = 2);
    }

    pub fn pass_time(&self, time: u64) {
        self.tables.now.set(self.tables.now.get() + time);
    }

    pub fn cross<T: Tables>(
        tables: &T,
        interface: u32,
        direction: Direction,
        bytes: &[u8],
        mark: u32,
    ) -> (Verdict, Frame) {
        let mut frame = Frame {
            bytes: bytes.to_vec(),
            interface,
            arrived_by: CLIENT,
            mark,
            ..Frame::default()
        };
        let across = Inline {
            packet: &mut frame,
            tables,
            scratch: &mut Scratch::new(),
            direction,
        };
        let verdict = across.cross();
        if matches!(verdict, Verdict::Pass | Verdict::Redirect(_)) {
            wire::check(&frame.bytes);
        }
        (verdict, frame)
    }

    /// Sends a packet out of a pod.
    pub fn from(&self, interface: u32, bytes: &[u8]) -> (Verdict, Frame) {
        Self::cross(&self.tables, interface, Direction::FromPod, bytes, 0)
    }

    /// Sends a packet to a pod through the stack.
    pub fn to(&self, interface: u32, bytes: &[u8]) -> (Verdict, Frame) {
        Self::cross(&self.tables, interface, Direction::ToPod, bytes, 0)
    }

    /// Sends a packet to a pod by redirect.
    pub fn redirected_to(&self, interface: u32, bytes: &[u8]) -> (Verdict, Frame) {
        Self::cross(
            &self.tables,
            interface,
            Direction::ToPod,
            bytes,
            MARK_FROM_POD,
        )
    }
}

pub fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// The same story in both families: client, service, two backends.
pub struct Cast {
    pub client: SocketAddr,
    pub service: SocketAddr,
    pub one: SocketAddr,
    pub two: SocketAddr,
}

pub fn casts() -> [Cast; 2] {
    [
        Cast {
            client: socket("10.244.0.5:40000"),
            service: socket("10.96.0.10:80"),
            one: socket("10.244.1.7:8080"),
            two: socket("10.244.1.8:8080"),
        },
        Cast {
            client: socket("[fd00:244::5]:40000"),
            service: socket("[fd00:96::10]:80"),
            one: socket("[fd00:244:1::7]:8080"),
            two: socket("[fd00:244:1::8]:8080"),
        },
    ]
}
