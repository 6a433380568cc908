//! A node whose pods are isolated and bound, for tests of policy.

use std::net::{IpAddr, SocketAddr};

use super::{CLIENT, Cast, Node, SERVER, wire};
use crate::{
    address::{UNSPECIFIED, from_ip},
    event::Event,
    flow::Direction,
    memory::{Frame, MemoryTables},
    packet::Verdict,
    pipeline::Inline,
    policy::{Guard, OPEN, PeerKey, Rule, RuleKey, SourceKey},
    reason::Reason,
    scratch::Scratch,
    service::{FrontendKey, Target},
};

/// Slots of the two pods.
pub const CLIENT_SLOT: u32 = 1;
pub const SERVER_SLOT: u32 = 2;

/// Rule sets of the client and of the server.
pub const CLIENT_INGRESS: u32 = 101;
pub const CLIENT_EGRESS: u32 = 102;
pub const SERVER_INGRESS: u32 = 201;

/// What a rule speaks of.
#[derive(Clone, Copy, Debug)]
pub enum What {
    Everything,
    Protocol(u8),
    Port(u8, u16),
    /// Protocol, first port, and how many bits of it count.
    Ports(u8, u16, u32),
}

/// Has the flows of every endpoint judged again.
pub fn bump_all(tables: &MemoryTables) {
    let mut guards = tables.guards.borrow_mut();
    guards.values_mut().for_each(|guard| guard.epoch += 1);
}

/// A node with a client pod, and a server pod that has [`Cast::one`]'s address where a test says so.
pub struct Fence {
    pub node: Node,
    pub cast: Cast,
    classes: u32,
}

impl Fence {
    pub fn new(cast: Cast) -> Self {
        Self {
            node: Node::new(),
            cast,
            classes: 1000,
        }
    }

    fn edit(&self, slot: u32, edit: impl FnOnce(&mut Guard)) {
        let mut guards = self.node.tables.guards.borrow_mut();
        let guard = guards.entry(slot).or_insert(Guard::NONE);
        edit(guard);
        guard.epoch += 1;
    }

    /// Gives an endpoint rule sets; [`OPEN`] isolates nothing.
    pub fn isolate(&self, slot: u32, ingress: u32, egress: u32) {
        self.edit(slot, |guard| {
            (guard.ingress, guard.egress) = (ingress, egress);
        });
    }

    /// Isolates the client in both directions, with nothing allowed yet.
    pub fn isolate_client(&self) {
        self.isolate(CLIENT_SLOT, CLIENT_INGRESS, CLIENT_EGRESS);
    }

    /// Isolates the client, which may send anything to this peer, and nothing else.
    pub fn confine_client(&mut self, peer: IpAddr) {
        self.isolate_client();
        self.allow(CLIENT_EGRESS, peer, What::Everything);
    }

    /// Isolates what the server receives.
    pub fn isolate_server(&self) {
        self.isolate(SERVER_SLOT, SERVER_INGRESS, OPEN);
    }

    /// Binds a pod to its address and the MAC address of its interface.
    pub fn bind(&self, slot: u32, interface: u32, address: IpAddr) {
        let own = from_ip(address);
        self.edit(slot, |guard| {
            (guard.v4, guard.v6) = match address {
                IpAddr::V4(_) => (own, UNSPECIFIED),
                IpAddr::V6(_) => (UNSPECIFIED, own),
            };
            (guard.mac, guard.bound) = (wire::mac(interface), 1);
        });
    }

    pub fn bind_client(&self) {
        self.bind(CLIENT_SLOT, CLIENT, self.cast.client.ip());
    }

    /// Lets the client send from these addresses too.
    pub fn allow_source(&mut self, address: IpAddr, prefix: u32) {
        let source = SourceKey {
            slot: CLIENT_SLOT,
            address: from_ip(address),
        };
        self.node.tables.pod_sources.insert((prefix, source));
        self.edit(CLIENT_SLOT, |guard| guard.more_sources = 1);
    }

    /// The class of rules that a rule set has for a peer.
    fn class(&mut self, rule_set: u32, peer: IpAddr) -> u32 {
        let tables = &self.node.tables;
        let address = from_ip(peer);
        let mut identities = tables.identities.borrow_mut();
        let next = 1 + identities.len() as u32;
        let identity = *identities.entry((128, address)).or_insert(next);
        let mut peers = tables.peers.borrow_mut();
        let key = PeerKey { rule_set, identity };
        *peers.entry(key).or_insert_with(|| {
            self.classes += 1;
            self.classes
        })
    }

    fn write(&self, class: u32, what: What, rule: Rule) {
        let (bits, key) = match what {
            What::Everything => (RuleKey::CLASS_BITS, RuleKey::new(class, 0, 0)),
            What::Protocol(protocol) => (RuleKey::PROTOCOL_BITS, RuleKey::new(class, protocol, 0)),
            What::Port(protocol, port) => (RuleKey::PORT_BITS, RuleKey::new(class, protocol, port)),
            What::Ports(protocol, port, bits) => (
                RuleKey::PROTOCOL_BITS + bits,
                RuleKey::new(class, protocol, port),
            ),
        };
        self.node
            .tables
            .rules
            .borrow_mut()
            .insert((bits, key), rule);
    }

    /// Has a rule set allow something of a peer, as the compiler would: data first, then the epoch.
    pub fn allow(&mut self, rule_set: u32, peer: IpAddr, what: What) {
        self.set(rule_set, peer, what, allowing(self.classes));
    }

    /// Has a rule set say something of a peer.
    pub fn set(&mut self, rule_set: u32, peer: IpAddr, what: What, rule: Rule) {
        let class = self.class(rule_set, peer);
        self.write(class, what, rule);
        bump_all(&self.node.tables);
    }

    /// Has a rule set allow something of everybody of whom it says nothing else.
    pub fn allow_anybody(&self, rule_set: u32, what: What) {
        self.write(rule_set, what, allowing(7));
    }

    /// Takes everything back that a rule set allows a peer.
    pub fn forbid(&mut self, rule_set: u32, peer: IpAddr) {
        let class = self.class(rule_set, peer);
        let rules = &self.node.tables.rules;
        rules.borrow_mut().retain(|(_, key), _| key.class != class);
        bump_all(&self.node.tables);
    }

    /// Has the flows of an endpoint judged again.
    pub fn bump(&self, slot: u32) {
        self.edit(slot, |_| {});
    }

    /// Makes an address one of this node's.
    pub fn own(&mut self, address: IpAddr) {
        let key = FrontendKey::whole_address(from_ip(address));
        let target = Target::NodeAddress { ports: true };
        self.node.tables.frontends.insert(key, target);
    }

    /// What the client sends.
    pub fn sends(&self, bytes: &[u8]) -> Verdict {
        self.node.from(CLIENT, bytes).0
    }

    /// What reaches the client from others.
    pub fn receives(&self, bytes: &[u8]) -> Verdict {
        self.node.to(CLIENT, bytes).0
    }

    /// What reaches the server from others.
    pub fn serves(&self, bytes: &[u8]) -> Verdict {
        self.node.to(SERVER, bytes).0
    }

    /// What reaches the client from the node itself.
    pub fn receives_from_node(&self, bytes: &[u8]) -> Verdict {
        let mut frame = Frame {
            bytes: bytes.to_vec(),
            interface: CLIENT,
            ..Frame::default()
        };
        let across = Inline {
            packet: &mut frame,
            tables: &self.node.tables,
            scratch: &mut Scratch::new(),
            direction: Direction::ToPod,
        };
        across.cross()
    }

    pub fn counted(&self, reason: Reason) -> u64 {
        let counters = self.node.tables.counters.borrow();
        counters.get(&reason).copied().unwrap_or(0)
    }

    /// What has been told since the last time.
    pub fn events(&self) -> Vec<Event> {
        self.node.tables.events.take()
    }
}

/// A rule of this number that allows.
pub const fn allowing(rule: u32) -> Rule {
    Rule {
        rule,
        audited_rule: rule,
        ..Rule::ALLOW
    }
}

pub fn with_port(mut socket: SocketAddr, port: u16) -> SocketAddr {
    socket.set_port(port);
    socket
}

pub const DENIED_EGRESS: Verdict = Verdict::Drop(Reason::EgressDenied);
pub const DENIED_INGRESS: Verdict = Verdict::Drop(Reason::IngressDenied);
pub const OUT_OF_STATE: Verdict = Verdict::Drop(Reason::OutOfState);
