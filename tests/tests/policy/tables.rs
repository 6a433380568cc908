//! The tables, asked as the packet path asks them, and a kernel to write them to.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    address::from_ip,
    policy::{CLOSED, NO_IDENTITY, NO_RULE, OPEN, PeerKey, Rule, RuleKey},
};
use lb_tests::policy::{Cluster, Direction, Packet};
use lb_userspace::{
    compile::policy::{LastNumbers, Policies, RuleSets, Sizes, Tables},
    explain,
    plan::policy::Op,
    world::{
        Change, Event, ObjectKey, Row, World, namespace, node, pod,
        policy::{cluster_network_policy, network_policy},
    },
};
use serde_json::Value;

/// What the tables say: the rule, if any, and whether the packet passes.
pub type Told = (Option<String>, bool);

/// The rows of all objects, for the agent of `own`.
#[derive(Clone, Default, PartialEq)]
struct Rows {
    namespaces: BTreeMap<ObjectKey, Row<lb_userspace::world::Namespace>>,
    nodes: BTreeMap<ObjectKey, Row<lb_userspace::world::Node>>,
    pods: BTreeMap<ObjectKey, Row<lb_userspace::world::Pod>>,
    network_policies: BTreeMap<ObjectKey, Row<lb_userspace::world::Policy>>,
    cluster_network_policies: BTreeMap<ObjectKey, Row<lb_userspace::world::Policy>>,
}

fn key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    ObjectKey::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

impl Rows {
    fn of(cluster: &Cluster, own: &str) -> Self {
        let policies = cluster.cluster_network_policies.iter().cloned();
        let policies = policies.map(|policy| {
            serde_json::from_value::<cluster_network_policy::ClusterNetworkPolicy>(policy)
                .expect("a ClusterNetworkPolicy")
        });
        Self {
            namespaces: cluster
                .namespaces
                .iter()
                .map(|it| (key(&it.metadata), namespace::reduce(it)))
                .collect(),
            nodes: cluster
                .nodes
                .iter()
                .map(|it| (key(&it.metadata), node::reduce(it, own)))
                .collect(),
            pods: cluster
                .pods
                .iter()
                .map(|it| (key(&it.metadata), pod::reduce(it, own)))
                .collect(),
            network_policies: cluster
                .network_policies
                .iter()
                .map(|it| (key(&it.metadata), network_policy::reduce(it)))
                .collect(),
            cluster_network_policies: policies
                .map(|it| (key(&it.metadata), cluster_network_policy::reduce(&it)))
                .collect(),
        }
    }

    fn changes_to(&self, after: &Self) -> Vec<Change> {
        fn deltas<R: Clone + PartialEq>(
            before: &BTreeMap<ObjectKey, Row<R>>,
            after: &BTreeMap<ObjectKey, Row<R>>,
            change: fn(Event<R>) -> Change,
        ) -> Vec<Change> {
            let gone = before.keys().filter(|key| !after.contains_key(key));
            let changed = after
                .iter()
                .filter(|(key, row)| before.get(key) != Some(row));
            gone.map(|key| Event::Delete(key.clone()))
                .chain(changed.map(|(key, row)| Event::Apply(key.clone(), row.clone())))
                .map(change)
                .collect()
        }
        [
            deltas(&self.pods, &after.pods, Change::Pod),
            deltas(&self.namespaces, &after.namespaces, Change::Namespace),
            deltas(&self.nodes, &after.nodes, Change::Node),
            deltas(
                &self.network_policies,
                &after.network_policies,
                Change::NetworkPolicy,
            ),
            deltas(
                &self.cluster_network_policies,
                &after.cluster_network_policies,
                Change::ClusterNetworkPolicy,
            ),
        ]
        .concat()
    }
}

/// What all agents together know.
pub fn everywhere(cluster: &Cluster) -> World {
    let rows = Rows::of(cluster, "");
    explain::everywhere(Rows::default().changes_to(&rows))
}

/// The agent of a node, as far as it compiles policies.
pub struct Agent {
    own: &'static str,
    rows: Rows,
    pub world: World,
    pub policies: Policies,
}

impl Agent {
    pub fn new(own: &'static str) -> Self {
        Self::with(own, Sizes::KERNEL)
    }

    pub fn with(own: &'static str, sizes: Sizes) -> Self {
        Self {
            own,
            rows: Rows::default(),
            world: World::default(),
            policies: Policies::new(sizes, LastNumbers::default()),
        }
    }

    pub fn of(cluster: &Cluster, own: &'static str) -> Self {
        let mut agent = Self::new(own);
        agent.follow(cluster);
        agent
    }

    /// The cluster has become this one. Returns what is written for it.
    pub fn follow(&mut self, cluster: &Cluster) -> Vec<Op> {
        let rows = Rows::of(cluster, self.own);
        let mut dirty = lb_userspace::world::PolicyDirty::default();
        for change in self.rows.changes_to(&rows) {
            dirty.merge(self.world.apply(change).policy);
        }
        self.rows = rows;
        lb_userspace::plan::policy::plan(&self.policies.update(&self.world, &dirty))
    }

    /// Forgets what is left to be forgotten. Returns what is written for it.
    pub fn settle(&mut self) -> Vec<Op> {
        let dirty = lb_userspace::world::PolicyDirty::default();
        lb_userspace::plan::policy::plan(&self.policies.update(&self.world, &dirty))
    }

    /// What the tables say about a packet of a local pod, or for one.
    pub fn told(&self, pod: &ObjectKey, direction: Direction, packet: &Packet) -> (Told, Told) {
        let rule = lookup(self.policies.tables(), pod, direction, packet);
        let name = |number| match number {
            NO_RULE => None,
            number => Some(match self.policies.rule_name(number) {
                Some(name) => name.to_string(),
                None => format!("nameless rule {number}"),
            }),
        };
        let enforced = (name(rule.rule), rule.allow == 1);
        let audited = (name(rule.audited_rule), rule.audited_allow == 1);
        (enforced, audited)
    }
}

const OPEN_RULE: Rule = Rule {
    rule: NO_RULE,
    audited_rule: NO_RULE,
    allow: 1,
    audited_allow: 1,
    _pad: [0; 2],
};

const NO_SUCH_RULE: Rule = Rule {
    allow: 0,
    audited_allow: 0,
    ..OPEN_RULE
};

/// The rule that a packet finds.
pub fn lookup(tables: &Tables, pod: &ObjectKey, direction: Direction, packet: &Packet) -> Rule {
    let sets = tables.endpoints.get(pod).copied();
    let sets = sets.unwrap_or(RuleSets::CLOSED);
    let (rule_set, peer) = match direction {
        Direction::Ingress => (sets.ingress, packet.source),
        Direction::Egress => (sets.egress, packet.destination),
    };
    match rule_set {
        OPEN => return OPEN_RULE,
        CLOSED => return NO_SUCH_RULE,
        _ => {}
    }
    let identity = identity(tables, peer);
    let class = tables.peers.get(&PeerKey { rule_set, identity });
    let class = class.copied().unwrap_or(rule_set);
    let wanted = RuleKey::new(class, packet.protocol, packet.port);
    let found = (RuleKey::CLASS_BITS..=RuleKey::PORT_BITS)
        .rev()
        .find_map(|bits| {
            let port = u32::from(packet.port) >> 16u32.saturating_sub(bits.saturating_sub(40));
            let port = (port << 16u32.saturating_sub(bits.saturating_sub(40))) as u16;
            let protocol = if bits < RuleKey::PROTOCOL_BITS {
                0
            } else {
                wanted.protocol
            };
            let key = RuleKey::new(class, protocol, port);
            tables
                .rules
                .get(&lb_userspace::compile::policy::RuleEntry { key, bits })
        });
    found.copied().unwrap_or(NO_SUCH_RULE)
}

/// The identity of the longest prefix.
pub fn identity(tables: &Tables, address: IpAddr) -> u32 {
    let bits = u128::from_be_bytes(from_ip(address).bytes);
    let holding = tables.identities.iter().filter(|(range, _)| {
        let shift = 128 - u32::from(range.bits);
        let network = u128::from_be_bytes(range.address.bytes);
        bits.checked_shr(shift).unwrap_or(0) == network.checked_shr(shift).unwrap_or(0)
    });
    let longest = holding.max_by_key(|(range, _)| range.bits);
    longest.map_or(NO_IDENTITY, |(_, identity)| *identity)
}

/// Tables that are written one operation after the other, and what is counted.
#[derive(Clone, Default)]
pub struct Kernel {
    pub tables: Tables,
    /// How often the flows of each endpoint were to be judged again.
    pub epochs: BTreeMap<ObjectKey, usize>,
}

impl Kernel {
    pub fn write(&mut self, op: &Op) {
        let tables = &mut self.tables;
        match op {
            Op::Rule { entry, rule } => {
                tables.rules.insert(*entry, *rule);
            }
            Op::Peer { key, class } => {
                tables.peers.insert(*key, *class);
            }
            Op::Identity { range, identity } => {
                tables.identities.insert(*range, *identity);
            }
            Op::NoIdentity { range } => {
                tables.identities.remove(range);
            }
            Op::Endpoint { pod, sets } => {
                tables.endpoints.insert(pod.clone(), *sets);
                *self.epochs.entry(pod.clone()).or_default() += 1;
            }
            Op::NoEndpoint { pod } => {
                tables.endpoints.remove(pod);
            }
            Op::Barrier => {}
            Op::NoPeer { key } => {
                tables.peers.remove(key);
            }
            Op::NoRule { entry } => {
                tables.rules.remove(entry);
            }
        }
    }
}

/// Objects as a cluster.
pub fn cluster(objects: &[Value]) -> Cluster {
    Cluster::of(objects.iter().cloned()).expect("objects")
}
