//! The packet path twice, in the kernel and in memory, with the same tables.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    address::from_ip,
    endpoint::{Endpoint, EndpointKey},
    expiry,
    flow::{Direction, Flow, FlowKey},
    memory::{Frame, MemoryTables},
    packet::{ETHERNET, Verdict},
    pipeline::Inline,
    policy::{Guard, PeerKey, Rule, RuleKey, SourceKey},
    reason::Reason,
    scratch::Scratch,
    service::{Backend, Extent, FrontendKey, FrontendKind, Target},
    tables::FlowTable,
};

use crate::{
    CLIENT, SERVER,
    kernel::{Action, Kernel, Outcome, now},
    wire,
};

const TABLES: [FlowTable; 2] = [FlowTable::Flows, FlowTable::HalfOpen];
const SECOND: u64 = 1_000_000_000;

pub struct Pair<'a> {
    kernel: &'a mut Kernel,
    memory: MemoryTables,
    rows: u32,
    /// Services with their backends, by index.
    backends: BTreeMap<u32, Vec<SocketAddr>>,
}

impl<'a> Pair<'a> {
    pub fn new(kernel: &'a mut Kernel) -> Self {
        let memory = MemoryTables {
            slots: BTreeMap::from([(CLIENT, 1), (SERVER, 2)]),
            ..MemoryTables::default()
        };
        let pair = Self {
            kernel,
            memory,
            rows: 1,
            backends: BTreeMap::new(),
        };
        pair.kernel.write(&pair.memory);
        pair
    }

    /// Makes the address that of a local pod.
    pub fn pod(&mut self, address: SocketAddr, interface: u32) {
        let address = from_ip(address.ip());
        let slot = self.memory.slots[&interface];
        let endpoint = Endpoint {
            interface,
            slot,
            mac: wire::mac(interface),
            mtu: 1500,
        };
        self.memory
            .endpoints
            .insert(EndpointKey { address }, endpoint);
        self.kernel.write(&self.memory);
    }

    /// Programs a service. The ids of its backends are their rows.
    pub fn service(&mut self, frontend: SocketAddr, protocol: u8, backends: &[SocketAddr]) {
        let index = self.memory.services.len() as u32 + 1;
        let key = FrontendKey::new(from_ip(frontend.ip()), frontend.port(), protocol);
        let first = self.rows;
        let header = Backend {
            count: backends.len() as u32,
            any: u8::from(!backends.is_empty()),
            ..Backend::header(&key, index)
        };
        self.memory.backends.insert(first, header);
        for (id, backend) in (first + 1..).zip(backends) {
            let row = Backend::new(from_ip(backend.ip()), backend.port(), id, 1);
            self.memory.backends.insert(id, row);
            self.memory.live.insert(id, 1);
        }
        self.rows += 1 + backends.len() as u32;
        self.backends.insert(index, backends.to_vec());
        let extent = Extent { first, revision: 1 };
        self.memory.services.insert(index, extent);
        self.memory.frontends.extend([
            (FrontendKey::whole_address(key.address), Target::Undefined),
            (
                key,
                Target::Service {
                    index,
                    kind: FrontendKind::Internal,
                },
            ),
        ]);
        self.kernel.write(&self.memory);
    }

    /// Gives every backend another life: the one that flows remember is over.
    pub fn replace_backends(&mut self) {
        for generation in self.memory.live.values_mut() {
            *generation += 2;
        }
        for row in self.memory.backends.values_mut() {
            if row.generation != 0 {
                row.generation += 2;
            }
        }
        self.kernel.write(&self.memory);
    }

    /// Gives a slot its guard.
    pub fn guard(&mut self, slot: u32, guard: Guard) {
        self.memory.guards.borrow_mut().insert(slot, guard);
        self.kernel.write(&self.memory);
    }

    /// Gives a prefix its identity. `prefix` counts the bits of the sixteen bytes.
    pub fn identity(&mut self, prefix: u32, address: IpAddr, identity: u32) {
        let key = (prefix, from_ip(address));
        self.memory.identities.borrow_mut().insert(key, identity);
        self.kernel.write(&self.memory);
    }

    pub fn peer(&mut self, key: PeerKey, class: u32) {
        self.memory.peers.borrow_mut().insert(key, class);
        self.kernel.write(&self.memory);
    }

    pub fn rule(&mut self, prefix: u32, key: RuleKey, rule: Rule) {
        self.memory.rules.borrow_mut().insert((prefix, key), rule);
        self.kernel.write(&self.memory);
    }

    /// Lets a pod send from a network, of whose address `prefix` bits count.
    pub fn source(&mut self, prefix: u32, key: SourceKey) {
        self.memory.pod_sources.insert((prefix, key));
        self.kernel.write(&self.memory);
    }

    /// Has the flows of an endpoint judged again.
    pub fn bump(&mut self, slot: u32) {
        if let Some(guard) = self.memory.guards.borrow_mut().get_mut(&slot) {
            guard.epoch += 1;
        }
        self.kernel.write(&self.memory);
    }

    /// Leaves no refusal for this second and the next thousand.
    pub fn spend_refusals(&mut self) {
        self.memory.refusal_debt.set(now() + 1000 * SECOND);
        self.kernel.write(&self.memory);
    }

    /// Lets time pass for every flow.
    pub fn pass_time(&mut self, seconds: u64) {
        for table in TABLES {
            let mut flows = self.memory.table(table).borrow_mut();
            for flow in flows.values_mut() {
                flow.last_seen = flow.last_seen.saturating_sub(seconds * SECOND);
            }
            self.kernel.set_flows(table, &flows);
        }
    }

    /// Replaces the flows of a table.
    pub fn set_flows(&mut self, table: FlowTable, flows: BTreeMap<FlowKey, Flow>) {
        self.kernel.set_flows(table, &flows);
        self.memory.table(table).replace(flows);
    }

    pub fn flows(&self, table: FlowTable) -> BTreeMap<FlowKey, Flow> {
        self.memory.table(table).borrow().clone()
    }

    pub fn counted(&self, reason: Reason) -> u64 {
        let counters = self.memory.counters.borrow();
        counters.get(&reason).copied().unwrap_or(0)
    }

    /// Sends a packet out of a pod.
    pub fn from(&mut self, interface: u32, bytes: &[u8]) -> Outcome {
        self.check(Direction::FromPod, frame(interface, bytes))
    }

    /// Sends a packet to a pod through the stack.
    pub fn to(&mut self, interface: u32, bytes: &[u8]) -> Outcome {
        self.check(Direction::ToPod, frame(interface, bytes))
    }

    /// Sends a packet on to another local pod after it was redirected.
    pub fn follow(&mut self, arrived_by: u32, interface: u32, redirected: &Outcome) -> Outcome {
        assert_eq!(redirected.action, Action::Redirect);
        let frame = Frame {
            bytes: redirected.bytes.clone(),
            interface,
            arrived_by,
            mark: redirected.mark,
            ..Frame::default()
        };
        self.check(Direction::ToPod, frame)
    }

    /// Runs a good packet, which must come out as good.
    fn check(&mut self, direction: Direction, frame: Frame) -> Outcome {
        wire::check(&frame.bytes);
        let outcome = self.cross(direction, frame);
        wire::check(&outcome.bytes);
        self.compare_tables();
        outcome
    }

    /// Runs any packet at all.
    pub fn cross(&mut self, direction: Direction, mut frame: Frame) -> Outcome {
        let mut outcome = self.kernel.cross(direction, &frame);
        let luck = self.luck();
        self.memory.random.replace(luck.into());
        self.memory.now.set(now());

        let input = frame.clone();
        let across = Inline {
            packet: &mut frame,
            tables: &self.memory,
            scratch: &mut Scratch::new(),
            direction,
        };
        let verdict = across.cross();
        let mut expected = Outcome {
            action: match verdict {
                Verdict::Pass => Action::Pass,
                Verdict::Redirect(_) | Verdict::Neighbour(_) | Verdict::Enter(_) => {
                    Action::Redirect
                }
                Verdict::Drop(_) => Action::Drop,
            },
            bytes: frame.bytes,
            mark: frame.mark,
        };
        for outcome in [&mut outcome, &mut expected] {
            if outcome.action == Action::Drop {
                outcome.bytes.clear();
            }
        }
        assert_eq!(outcome, expected, "{direction:?} {input:x?}");
        outcome
    }

    /// The random numbers that explain the flow that the kernel alone has opened so far.
    fn luck(&mut self) -> Vec<u32> {
        let now = self.kernel.flows(FlowTable::HalfOpen);
        let before = self.memory.half_open.borrow();
        let opened = now.iter().find(|(key, flow)| {
            flow.opener == 1 && before.get(key).is_none_or(|old| old.to != flow.to)
        });
        let Some((key, flow)) = opened else {
            return vec![0];
        };
        let mut luck = vec![0];
        for (index, backends) in &self.backends {
            let first = self.memory.services[index].first;
            let count = backends.len() as u32;
            if (first + 1..=first + count).contains(&flow.backend) {
                luck = vec![draw(flow.backend - first - 1, count)];
            }
        }
        if flow.to.source_port != key.tuple.source_port {
            luck.push(draw(u32::from(flow.to.source_port) - 1024, 65_536 - 1024));
        }
        luck
    }

    /// Panics unless both have the same flows and counters. When a flow was last seen is not
    /// compared: the two saw it one after the other.
    pub fn compare_tables(&mut self) {
        let timeless = |flows: &BTreeMap<FlowKey, Flow>| -> BTreeMap<FlowKey, Flow> {
            flows
                .iter()
                .map(|(key, flow)| {
                    (
                        *key,
                        Flow {
                            last_seen: 0,
                            ..*flow
                        },
                    )
                })
                .collect()
        };
        for table in TABLES {
            assert_eq!(
                timeless(&self.kernel.flows(table)),
                timeless(&self.memory.table(table).borrow()),
                "{table:?}",
            );
        }
        assert_eq!(self.kernel.counters(), *self.memory.counters.borrow());
        assert_eq!(self.kernel.tallies(), *self.memory.tallies.borrow());
    }

    /// Runs `expire` over keys.
    pub fn expire(&mut self, keys: &[FlowKey]) {
        let mut packet = vec![0; ETHERNET];
        packet.extend(keys.iter().flat_map(|key| key.to_bytes()));
        self.kernel.expire(&packet);
        self.memory.now.set(now());
        let frame = frame(CLIENT, &packet);
        expiry::expire(&frame, &self.memory, &mut Scratch::new());
        self.compare_tables();
    }
}

fn frame(interface: u32, bytes: &[u8]) -> Frame {
    Frame {
        bytes: bytes.to_vec(),
        interface,
        ..Frame::default()
    }
}

/// A random number that picks `place` of `count`.
fn draw(place: u32, count: u32) -> u32 {
    ((u64::from(place) << 32).div_ceil(u64::from(count))) as u32
}
