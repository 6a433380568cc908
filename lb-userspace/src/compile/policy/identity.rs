//! Which of the peers that policies tell apart an address is.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::policy::NO_IDENTITY;

use super::{
    marks::{Mark, MarkId, Marks, edges, matches, matches_namespace},
    numbers::Numbers,
};
use crate::world::{Labels, Node, ObjectKey, Pod, Protocol, World, policy::Peer};

/// All that policies can tell of an address: two with one key have one identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// In order, each once.
    pub marks: Vec<MarkId>,
    /// The numbers that a pod gives to names that egress rules ask for.
    pub ports: Vec<(MarkId, Protocol, u16)>,
}

impl Key {
    fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.ports.is_empty()
    }

    /// The marks that tell it from another one.
    fn differences(&self, other: &Self) -> BTreeSet<MarkId> {
        let traits = |key: &Self| -> BTreeSet<(MarkId, Option<(Protocol, u16)>)> {
            let marks = key.marks.iter().map(|mark| (*mark, None));
            let ports = key.ports.iter();
            let ports = ports.map(|(mark, protocol, port)| (*mark, Some((*protocol, *port))));
            marks.chain(ports).collect()
        };
        let differences = &traits(self) ^ &traits(other);
        differences.into_iter().map(|(mark, _)| mark).collect()
    }
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    Pod(ObjectKey),
    Node(String),
}

/// The addresses of pods and nodes, by both.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    holders: BTreeMap<IpAddr, BTreeSet<Holder>>,
    held: BTreeMap<Holder, BTreeSet<IpAddr>>,
}

impl Addresses {
    /// Replaces the addresses of a holder; all it had and has are added to `dirty`.
    pub fn set(&mut self, holder: Holder, now: BTreeSet<IpAddr>, dirty: &mut BTreeSet<IpNet>) {
        let was = self.held.remove(&holder).unwrap_or_default();
        for address in &was {
            if let Some(holders) = self.holders.get_mut(address) {
                holders.remove(&holder);
                if holders.is_empty() {
                    self.holders.remove(address);
                }
            }
        }
        for address in &now {
            let holders = self.holders.entry(*address).or_default();
            holders.insert(holder.clone());
        }
        dirty.extend(was.union(&now).copied().map(IpNet::from));
        if !now.is_empty() {
            self.held.insert(holder, now);
        }
    }

    pub fn of(&self, holder: &Holder) -> impl Iterator<Item = IpAddr> {
        self.held.get(holder).into_iter().flatten().copied()
    }

    pub fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.holders.keys().copied()
    }

    fn within(&self, network: IpNet) -> impl Iterator<Item = IpAddr> {
        let range = network.network()..=network.broadcast();
        self.holders.range(range).map(|(address, _)| *address)
    }

    /// The pod that has the address: of several the one that stays, then the one with the least key.
    fn pod<'a>(&'a self, address: IpAddr, world: &'a World) -> Option<(&'a ObjectKey, &'a Pod)> {
        let holders = self.holders.get(&address)?.iter();
        let pods = holders.filter_map(|holder| match holder {
            Holder::Pod(key) => Some((key, world.pod(key)?)),
            Holder::Node(_) => None,
        });
        pods.min_by_key(|(key, pod)| (pod.terminating, *key))
    }

    fn nodes<'a>(&'a self, address: IpAddr, world: &'a World) -> impl Iterator<Item = &'a Node> {
        let holders = self.holders.get(&address).into_iter().flatten();
        holders.filter_map(|holder| match holder {
            Holder::Node(name) => world.node(name),
            Holder::Pod(_) => None,
        })
    }
}

/// Labels of a namespace. Where it is not known, its name is, which the apiserver would write.
pub fn namespace_labels<'a>(world: &'a World, name: &str) -> Cow<'a, Labels> {
    let known = world.namespace(name).map(|row| Cow::Borrowed(&row.labels));
    known
        .unwrap_or_else(|| Cow::Owned([("kubernetes.io/metadata.name".into(), name.into())].into()))
}

/// What an identity has become.
#[derive(Debug, Default)]
pub struct Reassigned {
    /// Identities that are new.
    pub new: Vec<u32>,
    /// The identity of each network that has another one than before; `None`: none of its own.
    pub changed: BTreeMap<IpNet, Option<u32>>,
    /// Marks that some address has gained or lost.
    pub moved: BTreeSet<MarkId>,
    /// Each identity that an address does not have any more, once for each.
    pub left: Vec<u32>,
}

/// The identity of every network and address that may have one of its own.
#[derive(Clone, Debug)]
pub struct Identities {
    numbers: Numbers<Key>,
    entries: BTreeMap<IpNet, u32>,
    by_mark: BTreeMap<MarkId, BTreeSet<u32>>,
}

impl Identities {
    /// Their numbers are above `last`.
    pub fn above(last: u32) -> Self {
        Self {
            numbers: Numbers::above(last),
            entries: BTreeMap::new(),
            by_mark: BTreeMap::new(),
        }
    }

    pub fn key(&self, identity: u32) -> Option<&Key> {
        self.numbers.value(identity)
    }

    /// The identity that a network or an address has of its own.
    pub fn of(&self, network: IpNet) -> Option<u32> {
        self.entries.get(&network).copied()
    }

    /// Those that have a mark.
    pub fn having(&self, mark: MarkId) -> impl Iterator<Item = u32> {
        self.by_mark.get(&mark).into_iter().flatten().copied()
    }

    /// The networks and addresses whose identity may depend on a mark.
    pub fn touched(&self, mark: &Mark, addresses: &Addresses, world: &World) -> BTreeSet<IpNet> {
        let held = |holder| addresses.of(&holder).map(IpNet::from).collect::<Vec<_>>();
        match mark {
            Mark::Peer(Peer::Pods(asked)) => {
                let namespaces: BTreeSet<&str> = namespaces_of_pods(world)
                    .filter(|name| {
                        matches_namespace(&asked.namespaces, name, &namespace_labels(world, name))
                    })
                    .collect();
                let pods = namespaces.into_iter().flat_map(|name| {
                    let labels = namespace_labels(world, name);
                    let pods = world.pods_in(name);
                    pods.filter(move |(_, pod)| matches(asked, name, &labels, &pod.labels))
                });
                pods.flat_map(|(key, _)| held(Holder::Pod(key.clone())))
                    .collect()
            }
            Mark::PortName(name) => {
                let pods = world.pods();
                let pods =
                    pods.filter(|(_, pod)| pod.named_ports.iter().any(|port| port.name == *name));
                pods.flat_map(|(key, _)| held(Holder::Pod(key.clone())))
                    .collect()
            }
            Mark::Peer(Peer::Nodes(_)) => {
                let nodes = world.nodes();
                nodes
                    .flat_map(|(key, _)| held(Holder::Node(key.name.clone())))
                    .collect()
            }
            Mark::Peer(Peer::Network { cidr, except }) => {
                let last = IpNet::from(cidr.broadcast());
                let entries = self
                    .entries
                    .range(*cidr..=last)
                    .map(|(network, _)| *network);
                let held = addresses.within(*cidr).map(IpNet::from);
                entries.chain(held).chain(edges(*cidr, except)).collect()
            }
        }
    }

    /// The networks and addresses that have a mark.
    pub fn marked(&self, marks: &BTreeSet<MarkId>) -> impl Iterator<Item = IpNet> {
        let identities = marks.iter().filter_map(|mark| self.by_mark.get(mark));
        let identities: BTreeSet<u32> = identities.flatten().copied().collect();
        let entries = self.entries.iter();
        entries
            .filter(move |(_, identity)| identities.contains(identity))
            .map(|(network, _)| *network)
    }

    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.entries.keys().copied()
    }

    /// Gives the networks and addresses that are `dirty` the identities that they should have.
    /// `fresh` are marks that no rule set in force asks for.
    pub fn reassign(
        &mut self,
        dirty: &BTreeSet<IpNet>,
        fresh: &BTreeSet<MarkId>,
        mut key: impl FnMut(IpNet) -> Option<Key>,
    ) -> Reassigned {
        let mut groups: BTreeMap<Option<u32>, BTreeMap<Option<Key>, Vec<IpNet>>> = BTreeMap::new();
        for &network in dirty {
            let was = self.entries.get(&network).copied();
            let is = key(network);
            let same = match (was, &is) {
                (None, None) => true,
                (Some(was), Some(is)) => match self.numbers.value(was) {
                    Some(was) => was == is,
                    None => is.is_empty(),
                },
                _ => false,
            };
            if !same {
                let group = groups.entry(was).or_default().entry(is).or_default();
                group.push(network);
            }
        }
        let mut reassigned = Reassigned::default();
        for (was, groups) in groups {
            let renamed = was.and_then(|was| self.rename(was, &groups, fresh));
            for (key, networks) in groups {
                if renamed.is_none() || renamed != key {
                    self.move_group(was, key, networks, &mut reassigned);
                }
            }
        }
        reassigned
    }

    /// One address less that has an identity; its key, where it was the last.
    pub fn release(&mut self, identity: u32) -> Option<Key> {
        let key = self.numbers.release(identity)?;
        self.index(identity, &key, false);
        Some(key)
    }

    /// Where all that have an identity become the same other, which nobody is, in nothing that a
    /// rule in force asks for, the identity becomes it, and nothing need be written.
    fn rename(
        &mut self,
        identity: u32,
        groups: &BTreeMap<Option<Key>, Vec<IpNet>>,
        fresh: &BTreeSet<MarkId>,
    ) -> Option<Key> {
        let was = self.numbers.value(identity)?.clone();
        let leaving: usize = groups.values().map(Vec::len).sum();
        if leaving < self.numbers.users(identity) {
            return None;
        }
        let able = groups.iter().filter_map(|(key, networks)| {
            let key = key.as_ref().filter(|key| !key.is_empty())?;
            let unused = self.numbers.number(key).is_none();
            (unused && key.differences(&was).is_subset(fresh)).then_some((key, networks.len()))
        });
        let (key, _) = able.max_by_key(|(_, size)| *size)?;
        self.index(identity, &was, false);
        self.index(identity, key, true);
        self.numbers.rename(identity, key.clone());
        Some(key.clone())
    }

    fn move_group(
        &mut self,
        was: Option<u32>,
        key: Option<Key>,
        networks: Vec<IpNet>,
        reassigned: &mut Reassigned,
    ) {
        let before = was.map(|was| self.key_or_empty(was)).unwrap_or_default();
        let after = key.clone().unwrap_or_default();
        reassigned.moved.extend(after.differences(&before));
        for network in networks {
            let identity = key.as_ref().map(|key| self.take(key, &mut reassigned.new));
            match identity {
                Some(identity) => self.entries.insert(network, identity),
                None => self.entries.remove(&network),
            };
            reassigned
                .left
                .extend(was.filter(|was| *was != NO_IDENTITY));
            if identity != was {
                reassigned.changed.insert(network, identity);
            }
        }
    }

    fn take(&mut self, key: &Key, new: &mut Vec<u32>) -> u32 {
        if key.is_empty() {
            return NO_IDENTITY;
        }
        let (identity, is_new) = self.numbers.take(key);
        if is_new {
            self.index(identity, key, true);
            new.push(identity);
        }
        identity
    }

    fn key_or_empty(&self, identity: u32) -> Key {
        self.numbers.value(identity).cloned().unwrap_or_default()
    }

    fn index(&mut self, identity: u32, key: &Key, add: bool) {
        let names = key.ports.iter().map(|(mark, ..)| *mark);
        for mark in key.marks.iter().copied().chain(names) {
            let identities = self.by_mark.entry(mark).or_default();
            if add {
                identities.insert(identity);
            } else {
                identities.remove(&identity);
            }
            if identities.is_empty() {
                self.by_mark.remove(&mark);
            }
        }
    }
}

/// What addresses have that rules ask for, from the objects as they are.
pub struct Keys<'a> {
    pub marks: &'a Marks,
    pub addresses: &'a Addresses,
    pub world: &'a World,
    /// What pods that were asked for have, whichever their address.
    pub pods: BTreeMap<ObjectKey, Key>,
}

impl Keys<'_> {
    /// What a network's addresses, or one address, have; `None` where that is what the network
    /// around it has.
    ///
    /// An address of a pod has all that the networks around it have, and one of a node too. One that
    /// is both is the pod's: a peer that means nodes never means a pod.
    pub fn of(&mut self, network: IpNet) -> Option<Key> {
        let mut key = Key {
            marks: self.marks.of_network(network),
            ports: Vec::new(),
        };
        let edge = self.marks.is_edge(&network);
        let host = network.prefix_len() == network.max_prefix_len();
        let own = if !host {
            false
        } else if let Some((name, pod)) = self.addresses.pod(network.addr(), self.world) {
            let of_pod = self.of_pod(name, pod);
            key.marks.extend(&of_pod.marks);
            key.ports.extend(&of_pod.ports);
            !key.is_empty()
        } else {
            let nodes = self.addresses.nodes(network.addr(), self.world);
            let of_nodes: Vec<_> = nodes
                .flat_map(|node| self.marks.of_node(&node.labels))
                .collect();
            key.marks.extend(&of_nodes);
            !of_nodes.is_empty()
        };
        key.marks.sort_unstable();
        key.marks.dedup();
        (own || edge).then_some(key)
    }

    fn of_pod(&mut self, name: &ObjectKey, pod: &Pod) -> &Key {
        let Self { marks, world, .. } = self;
        self.pods.entry(name.clone()).or_insert_with(|| {
            let of_namespace = namespace_labels(world, &name.namespace);
            let ports = pod.named_ports.iter();
            let ports = ports.filter_map(|port| {
                let mark = marks.port_name(&port.name)?;
                Some((mark, port.protocol, port.number))
            });
            let mut ports: Vec<_> = ports.collect();
            ports.sort_unstable();
            Key {
                marks: marks.of_pod(&name.namespace, &of_namespace, &pod.labels),
                ports,
            }
        })
    }
}

fn namespaces_of_pods(world: &World) -> impl Iterator<Item = &str> {
    let names = world.pods().map(|(key, _)| key.namespace.as_str());
    let mut last = None;
    names.filter(move |name| {
        let new = last != Some(*name);
        last = Some(*name);
        new
    })
}
