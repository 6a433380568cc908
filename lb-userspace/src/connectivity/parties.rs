//! Who may be at one end of a connection, and what the tables of both sets know of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Party, networks::divided};
use crate::{
    compile::{
        Range,
        policy::{Policies, RuleSets, Tables},
    },
    world::{Family, Labels, ObjectKey, World},
};

/// Something of the old set, and of the new one.
pub type Both<T> = [T; 2];

/// All that tells parties apart, by both sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    pub is_pod: bool,
    /// Identities of its IPv4 and IPv6 address.
    v4: Option<Both<u32>>,
    v6: Option<Both<u32>>,
    pub rule_sets: Both<RuleSets>,
    /// The node that a pod runs on, or those that have an address.
    nodes: Both<BTreeSet<String>>,
}

impl Kind {
    /// The identities of its address of a family.
    pub fn side(&self, family: Family) -> Option<Both<u32>> {
        match family {
            Family::IPv4 => self.v4,
            Family::IPv6 => self.v6,
        }
    }

    pub fn families(&self) -> impl Iterator<Item = (Family, Both<u32>)> {
        let families = [Family::IPv4, Family::IPv6].into_iter();
        families.filter_map(|family| Some((family, self.side(family)?)))
    }

    /// Whether this is the node of a pod, which may always reach it.
    pub fn is_own_node_of(&self, pod: &Self, set: usize) -> bool {
        let (own, other) = (&self.nodes[set], &pod.nodes[set]);
        !self.is_pod && pod.is_pod && !own.is_disjoint(other)
    }
}

/// Everybody.
pub struct Parties {
    pub kinds: BTreeMap<Kind, Vec<Party>>,
    /// Pods and nodes that one of the sets alone has.
    pub alone: Both<Vec<String>>,
    pub without_address: Vec<String>,
    /// Of pods, by namespace and by workload.
    pub counts: BTreeMap<String, usize>,
}

/// What one world has: who has which addresses.
struct Inventory<'a> {
    world: &'a World,
    /// The pod that has each address: of several the one that stays, then the one with the least key.
    pods: BTreeMap<IpAddr, &'a ObjectKey>,
    /// Names of nodes by address.
    nodes: BTreeMap<IpAddr, BTreeSet<String>>,
}

impl<'a> Inventory<'a> {
    fn of(world: &'a World) -> Self {
        let mut pods: BTreeMap<IpAddr, (bool, &ObjectKey)> = BTreeMap::new();
        for (key, pod) in world.pods() {
            for address in &pod.ips {
                let holder = (pod.terminating, key);
                let known = pods.entry(*address).or_insert(holder);
                *known = holder.min(*known);
            }
        }
        let pods: BTreeMap<_, _> = pods.into_iter().map(|(at, (_, key))| (at, key)).collect();
        let mut nodes: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        for (key, node) in world.nodes() {
            let own = node.all_addresses.iter();
            for address in own.filter(|address| !pods.contains_key(address)) {
                let names = nodes.entry(*address).or_default();
                names.insert(key.name.clone());
            }
        }
        Self { world, pods, nodes }
    }

    /// The pod's address of each family; Kubernetes gives it one (PodStatus, `podIPs`).
    fn addresses(&self, pod: &ObjectKey) -> BTreeMap<Family, IpAddr> {
        let ips = self.world.pod(pod).map(|pod| pod.ips.as_slice());
        let ips = ips.unwrap_or_default().iter().rev();
        let own = ips.filter(|address| self.pods.get(address) == Some(&pod));
        own.map(|address| (Family::of(*address), *address))
            .collect()
    }
}

impl Parties {
    pub fn of(worlds: Both<&World>, compiled: &Both<Policies>) -> Self {
        let inventories = worlds.map(Inventory::of);
        let tables = [compiled[0].tables(), compiled[1].tables()];
        let mut parties = Self {
            kinds: BTreeMap::new(),
            alone: [Vec::new(), Vec::new()],
            without_address: Vec::new(),
            counts: BTreeMap::new(),
        };
        let pods: BTreeSet<&ObjectKey> = worlds
            .iter()
            .flat_map(|world| world.pods().map(|(key, _)| key))
            .collect();
        for pod in pods {
            parties.add_pod(pod, &inventories, tables);
        }
        parties.add_nodes(&inventories, tables);
        parties.add_networks(&inventories, tables);
        parties
    }

    fn add_pod(
        &mut self,
        key: &ObjectKey,
        inventories: &Both<Inventory<'_>>,
        tables: Both<&Tables>,
    ) {
        let [old, new] = inventories.each_ref().map(|it| it.world.pod(key));
        let (Some(old), Some(new)) = (old, new) else {
            self.alone[usize::from(old.is_none())].push(format!("pod {key}"));
            return;
        };
        let addresses = inventories.each_ref().map(|it| it.addresses(key));
        if addresses.iter().any(BTreeMap::is_empty) {
            self.without_address.push(key.to_string());
            return;
        }
        let mut identities = BTreeMap::new();
        for family in [Family::IPv4, Family::IPv6] {
            match addresses.each_ref().map(|it| it.get(&family)) {
                [Some(old), Some(new)] => {
                    identities.insert(family, identities_of([*old, *new].map(Range::host), tables));
                }
                [None, None] => {}
                [old, _] => {
                    let alone = &mut self.alone[usize::from(old.is_none())];
                    alone.push(format!("{family} of pod {key}"));
                }
            }
        }
        let kind = Kind {
            is_pod: true,
            v4: identities.get(&Family::IPv4).copied(),
            v6: identities.get(&Family::IPv6).copied(),
            rule_sets: tables.map(|tables| {
                let sets = tables.endpoints.get(key).copied();
                sets.unwrap_or(RuleSets::CLOSED)
            }),
            nodes: [old, new].map(|pod| BTreeSet::from([pod.node.clone()])),
        };
        let workload = workload(key, &new.labels);
        let counted = [Some(&key.namespace), workload.as_ref()];
        for name in counted.into_iter().flatten() {
            *self.counts.entry(name.clone()).or_default() += 1;
        }
        let name = key.clone();
        let members = self.kinds.entry(kind).or_default();
        members.push(Party::Pod { name, workload });
    }

    fn add_nodes(&mut self, inventories: &Both<Inventory<'_>>, tables: Both<&Tables>) {
        let named = |inventory: &Inventory<'_>| {
            let nodes = inventory.nodes.iter();
            let named = nodes.flat_map(|(address, names)| {
                names.iter().map(move |name| (name.clone(), *address))
            });
            named.collect::<BTreeSet<_>>()
        };
        let [old, new] = inventories.each_ref().map(named);
        for (set, only) in [(0, &old - &new), (1, &new - &old)] {
            let only = only.into_iter();
            self.alone[set].extend(only.map(|(name, address)| format!("{address} of node {name}")));
        }
        for (name, address) in old.into_iter().filter(|node| new.contains(node)) {
            let range = Range::host(address);
            let nodes = inventories.each_ref().map(|inventory| {
                let names = inventory.nodes.get(&address);
                names.cloned().unwrap_or_default()
            });
            let party = Party::Node { name, address };
            self.add_open(address, range, nodes, party, tables);
        }
    }

    fn add_networks(&mut self, inventories: &Both<Inventory<'_>>, tables: Both<&Tables>) {
        let taken = inventories.iter().flat_map(|inventory| {
            let pods = inventory.pods.keys();
            pods.chain(inventory.nodes.keys()).copied()
        });
        let edges = tables.into_iter().flat_map(|it| it.identities.keys());
        let edges = edges.filter_map(Range::network).collect();
        for network in divided(edges, &taken.collect()) {
            let (cidr, nodes) = (network.cidr, Default::default());
            let party = Party::Network(network);
            self.add_open(cidr.addr(), Range::from(cidr), nodes, party, tables);
        }
    }

    /// Adds a party without policies of its own.
    fn add_open(
        &mut self,
        address: IpAddr,
        range: Range,
        nodes: Both<BTreeSet<String>>,
        party: Party,
        tables: Both<&Tables>,
    ) {
        let identities = Some(identities_of([range; 2], tables));
        let is_v4 = Family::of(address) == Family::IPv4;
        let kind = Kind {
            is_pod: false,
            v4: identities.filter(|_| is_v4),
            v6: identities.filter(|_| !is_v4),
            rule_sets: [RuleSets::OPEN; 2],
            nodes,
        };
        self.kinds.entry(kind).or_default().push(party);
    }
}

fn identities_of([old, new]: Both<Range>, tables: Both<&Tables>) -> Both<u32> {
    [tables[0].identity(old), tables[1].identity(new)]
}

/// The Deployment, DaemonSet or StatefulSet that a pod is of: its name without what their controllers
/// add to it (the labels `pod-template-hash` and `controller-revision-hash`).
fn workload(pod: &ObjectKey, labels: &Labels) -> Option<String> {
    let (name, _) = pod.name.rsplit_once('-')?;
    let name = match labels.get("pod-template-hash") {
        Some(hash) => name.strip_suffix(hash)?.strip_suffix('-')?,
        None => labels.get("controller-revision-hash").map(|_| name)?,
    };
    Some(ObjectKey::new(pod.namespace.clone(), name).to_string())
}
