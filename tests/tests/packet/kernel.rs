//! The programs in the kernel, with tables of their own.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, Pod, TestRun as _,
    maps::{
        Array, HashMap, LpmTrie, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues, lpm_trie::Key,
    },
    programs::{SchedClassifier, TestRunOptions},
};
use lb_common::{
    address::Address,
    endpoint::{Endpoint, EndpointKey},
    event::TallyKey,
    flow::{Direction, Flow, FlowKey},
    fragment::{FragmentKey, Ports},
    memory::{Frame, MemoryTables},
    policy::{Guard, PeerKey, Rule, RuleKey, SourceKey},
    reason::Reason,
    service::{Frontend, FrontendKey},
    tables::FlowTable,
};
use lb_userspace::kernel::{Hook, OBJECT, Side, loader};
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};
use rtnetlink::{LinkVeth, packet_route::link::LinkMessage};

/// The program that is never attached.
pub const EXPIRE: &str = "expire";

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    /// Of a dropped packet, nothing: nobody sees it again.
    pub bytes: Vec<u8>,
    pub mark: u32,
}

/// A tc action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Redirect,
    Drop,
}

pub struct Kernel {
    ebpf: Ebpf,
    /// Rows of arrays that are not as they were at first, by table.
    guards: BTreeMap<u32, Guard>,
}

impl Kernel {
    pub fn load() -> Result<Self> {
        let mut ebpf = loader(&0).load(OBJECT).context("load the tables")?;
        for name in Self::programs() {
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .with_context(|| format!("there is no program {name}"))?
                .try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        Ok(Self {
            ebpf,
            guards: BTreeMap::new(),
        })
    }

    pub fn programs() -> [&'static str; 3] {
        let [one, other] = Side::Pod.hooks().map(Hook::program);
        [one, other, EXPIRE]
    }

    pub fn program(&self, name: &str) -> &SchedClassifier {
        let program = self.ebpf.program(name).expect("a program of ours");
        program.try_into().expect("a classifier")
    }

    /// Runs the program of a direction over a packet.
    pub fn cross(&self, direction: Direction, frame: &Frame) -> Outcome {
        let hook = match direction {
            Direction::FromPod => Hook::PodEgress,
            Direction::ToPod => Hook::PodIngress,
            Direction::FromWire | Direction::ToWire => unreachable!("not a pod's"),
        };
        let mut bytes = vec![0; frame.bytes.len() + 128];
        let mut context_out = [0; CONTEXT];
        let context = context(frame);
        let options = TestRunOptions {
            data_in: Some(&frame.bytes),
            data_out: Some(&mut bytes),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::default()
        };
        let result = self
            .program(hook.program())
            .test_run(options)
            .expect("the program runs");
        let action = match result.return_value as i32 {
            -1 => Action::Pass,
            2 => Action::Drop,
            7 => Action::Redirect,
            other => panic!("TC action {other}"),
        };
        bytes.truncate(result.data_size_out as usize);
        Outcome {
            action,
            bytes,
            mark: word(&context_out, MARK),
        }
    }

    /// Runs `expire` over the keys.
    pub fn expire(&self, packet: &[u8]) {
        let options = TestRunOptions {
            data_in: Some(packet),
            ..TestRunOptions::default()
        };
        self.program(EXPIRE)
            .test_run(options)
            .expect("the program runs");
    }

    /// Empties every hash, and so forgets what the arrays hold, and starts counting anew.
    pub fn clear(&mut self) {
        clear::<FrontendKey, Frontend>(self.hash("FRONTENDS"));
        clear::<EndpointKey, Endpoint>(self.hash("ENDPOINTS"));
        clear::<FragmentKey, Ports>(self.hash("FRAGMENTS"));
        for table in [FlowTable::Flows, FlowTable::HalfOpen] {
            clear::<FlowKey, Flow>(self.hash(name(table)));
        }
        clear::<PeerKey, u32>(self.hash("PEERS"));
        clear_prefixes::<Address, u32>(self.prefixes("IDENTITIES"));
        clear_prefixes::<RuleKey, Rule>(self.prefixes("RULES"));
        clear_prefixes::<SourceKey, u8>(self.prefixes("POD_SOURCES"));
        let mut guards = std::mem::take(&mut self.guards);
        guards.values_mut().for_each(|guard| *guard = Guard::NONE);
        self.fill("GUARDS", &guards);
        let mut tallies = self.tally_table();
        let keys: Vec<TallyKey> = tallies.keys().map(|key| key.expect("a key")).collect();
        for key in &keys {
            tallies.remove(key).expect("it is there");
        }
        let map = self.ebpf.map_mut("COUNTERS").expect("a table of ours");
        let mut counters: PerCpuArray<_, u64> = map.try_into().expect("counters");
        for reason in Reason::ALL {
            let values = counters.get(&(reason as u32), 0).expect("a counter");
            let zeros = PerCpuValues::try_from(vec![0; values.len()]).expect("one a CPU");
            counters.set(reason as u32, zeros, 0).expect("a counter");
        }
    }

    /// Writes everything but flows and counters.
    pub fn write(&mut self, tables: &MemoryTables) {
        for (key, target) in &tables.frontends {
            let check = key.check();
            let target = target.pack();
            put(self.hash("FRONTENDS"), key, &Frontend { target, check });
        }
        self.fill("SERVICES", &tables.services);
        self.fill("BACKENDS", &tables.backends);
        self.fill("LIVE", &tables.live);
        self.fill("INTERFACES", &tables.buckets());
        for (key, endpoint) in &tables.endpoints {
            put(self.hash("ENDPOINTS"), key, endpoint);
        }
        self.guards.extend(tables.guards.borrow().iter());
        self.fill("GUARDS", &tables.guards.borrow());
        for (key, class) in &*tables.peers.borrow() {
            put(self.hash("PEERS"), key, class);
        }
        for ((bits, address), identity) in &*tables.identities.borrow() {
            put_prefix(self.prefixes("IDENTITIES"), *bits, *address, identity);
        }
        for ((bits, key), rule) in &*tables.rules.borrow() {
            put_prefix(self.prefixes("RULES"), *bits, *key, rule);
        }
        for (bits, key) in &tables.pod_sources {
            let bits = SourceKey::SLOT_BITS + bits;
            put_prefix(self.prefixes("POD_SOURCES"), bits, *key, &1u8);
        }
        self.fill(
            "REFUSALS",
            &BTreeMap::from([(0, tables.refusal_debt.get())]),
        );
    }

    pub fn flows(&mut self, table: FlowTable) -> BTreeMap<FlowKey, Flow> {
        self.hash(name(table))
            .iter()
            .map(|entry| entry.expect("a flow"))
            .collect()
    }

    /// Makes a table of flows hold these.
    pub fn set_flows(&mut self, table: FlowTable, flows: &BTreeMap<FlowKey, Flow>) {
        clear::<FlowKey, Flow>(self.hash(name(table)));
        for (key, flow) in flows {
            put(self.hash(name(table)), key, flow);
        }
    }

    pub fn counters(&mut self) -> BTreeMap<Reason, u64> {
        let map = self.ebpf.map("COUNTERS").expect("a table of ours");
        let counters: PerCpuArray<_, u64> = map.try_into().expect("counters");
        Reason::ALL
            .into_iter()
            .map(|reason| {
                let values = counters.get(&(reason as u32), 0).expect("a counter");
                (reason, values.iter().sum())
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// What happened at endpoints, of all CPUs.
    pub fn tallies(&mut self) -> BTreeMap<TallyKey, u64> {
        let tallies = self.tally_table();
        let entries = tallies.iter().map(|entry| {
            let (key, counts) = entry.expect("a tally");
            (key, counts.iter().sum())
        });
        entries.collect()
    }

    fn tally_table(&mut self) -> PerCpuHashMap<&mut MapData, TallyKey, u64> {
        let map = self.ebpf.map_mut("TALLIES").expect("a table of ours");
        map.try_into().expect("a hash of these types")
    }

    fn prefixes<K: Pod, V: Pod>(&mut self, name: &str) -> LpmTrie<&mut MapData, K, V> {
        let map = self.ebpf.map_mut(name).expect("a table of ours");
        map.try_into().expect("a trie of these types")
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        let map = self.ebpf.map_mut(name).expect("a table of ours");
        map.try_into().expect("a hash of these types")
    }

    fn fill<V: Pod>(&mut self, name: &str, rows: &BTreeMap<u32, V>) {
        let map = self.ebpf.map_mut(name).expect("a table of ours");
        let mut array: Array<_, V> = map.try_into().expect("an array of this type");
        for (index, row) in rows {
            array.set(*index, row, 0).expect("a row");
        }
    }
}

fn clear<K: Pod, V: Pod>(mut table: HashMap<&mut MapData, K, V>) {
    let keys: Vec<K> = table.keys().map(|key| key.expect("a key")).collect();
    for key in &keys {
        table.remove(key).expect("it is there");
    }
}

fn put<K: Pod, V: Pod>(mut table: HashMap<&mut MapData, K, V>, key: &K, value: &V) {
    table.insert(key, value, 0).expect("room");
}

fn clear_prefixes<K: Pod, V: Pod>(mut table: LpmTrie<&mut MapData, K, V>) {
    let keys: Vec<Key<K>> = table.keys().map(|key| key.expect("a key")).collect();
    for key in &keys {
        table.remove(key).expect("it is there");
    }
}

fn put_prefix<K: Pod, V: Pod>(
    mut table: LpmTrie<&mut MapData, K, V>,
    bits: u32,
    key: K,
    value: &V,
) {
    table.insert(&Key::new(bits, key), value, 0).expect("room");
}

const fn name(table: FlowTable) -> &'static str {
    match table {
        FlowTable::Flows => "FLOWS",
        FlowTable::HalfOpen => "HALF_OPEN",
    }
}

/// Offsets in `struct __sk_buff` (linux/bpf.h), and room for all of it.
const MARK: usize = 8;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const CONTEXT: usize = 256;

fn context(frame: &Frame) -> [u8; IFINDEX + 4] {
    let mut context = [0; IFINDEX + 4];
    for (offset, value) in [
        (MARK, frame.mark),
        (INGRESS_IFINDEX, frame.arrived_by),
        (IFINDEX, frame.interface),
    ] {
        context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
    context
}

fn word(context: &[u8], offset: usize) -> u32 {
    let bytes = context[offset..].first_chunk().expect("a word");
    u32::from_ne_bytes(*bytes)
}

/// What the programs read as the time.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    Duration::from(time).as_nanos() as u64
}

/// Takes this thread to a new network namespace with these interfaces.
pub fn enter_namespace(interfaces: &[u32]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        for index in interfaces {
            let (name, peer) = (format!("pod{index}"), format!("peer{index}"));
            let mut pair: LinkMessage = LinkVeth::new(&name, &peer).build();
            pair.header.index = *index;
            let made = netlink.link().add(pair).execute().await;
            made.with_context(|| format!("make the interface {name}"))?;
        }
        Ok(())
    })
}
