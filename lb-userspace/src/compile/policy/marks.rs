//! What rules ask of the other side of a connection.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net};

use super::numbers::Numbers;
use crate::world::{
    Labels, Selector,
    policy::{NamespaceMatch, Peer, PodMatch},
};

/// Number of a mark.
pub type MarkId = u32;

/// Something that an address may be or have, and that some rule asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    Peer(Peer),
    /// A name that an egress rule gives to ports of the destination.
    PortName(String),
}

/// Marks of pods.
type OfPods = BTreeMap<MarkId, PodMatch>;
/// Marks of pods by the value of a label that whatever has them must have.
type ByLabel = BTreeMap<String, BTreeMap<String, OfPods>>;

/// The marks that some policy asks for, with indexes by which few are tried for each address.
///
/// One that no policy asks for any more counts until the next update: nothing that is in force then
/// depends on it.
#[derive(Clone, Debug)]
pub struct Marks {
    numbers: Numbers<Mark>,
    /// How many rules ask for each; those that none does are about to go.
    users: BTreeMap<MarkId, usize>,
    by_namespace: BTreeMap<String, OfPods>,
    by_pod_label: ByLabel,
    by_namespace_label: ByLabel,
    /// Those of pods that no index has.
    other_pods: OfPods,
    /// Marks of networks by the network that they are about, with its exceptions.
    by_network: BTreeMap<IpNet, BTreeMap<MarkId, Vec<IpNet>>>,
    /// How many networks have a prefix of each length, by whether they are of IPv6.
    lengths: BTreeMap<(bool, u8), usize>,
    /// How many marks change at the edge of a network.
    edges: BTreeMap<IpNet, usize>,
    nodes: BTreeMap<MarkId, Selector>,
    port_names: BTreeMap<String, MarkId>,
}

/// Where a mark of pods is found.
enum Anchor<'a> {
    Namespace(&'a str),
    PodLabel(&'a str, &'a BTreeSet<String>),
    NamespaceLabel(&'a str, &'a BTreeSet<String>),
    Nowhere,
}

impl<'a> Anchor<'a> {
    fn of(pods: &'a PodMatch) -> Self {
        let namespace = match &pods.namespaces {
            NamespaceMatch::Named(name) => return Self::Namespace(name),
            NamespaceMatch::Labelled(selector) => selector.anchor(),
        };
        match (pods.pods.anchor(), namespace) {
            (Some((key, values)), _) => Self::PodLabel(key, values),
            (None, Some((key, values))) => Self::NamespaceLabel(key, values),
            (None, None) => Self::Nowhere,
        }
    }
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            numbers: Numbers::above(0),
            users: BTreeMap::new(),
            by_namespace: BTreeMap::new(),
            by_pod_label: ByLabel::new(),
            by_namespace_label: ByLabel::new(),
            other_pods: OfPods::new(),
            by_network: BTreeMap::new(),
            lengths: BTreeMap::new(),
            edges: BTreeMap::new(),
            nodes: BTreeMap::new(),
            port_names: BTreeMap::new(),
        }
    }
}

impl Marks {
    /// One more rule asks for the mark. Says whether none did before.
    pub fn take(&mut self, mark: &Mark) -> (MarkId, bool) {
        let (id, new) = match self.numbers.number(mark) {
            Some(id) => (id, false),
            None => self.numbers.take(mark),
        };
        *self.users.entry(id).or_default() += 1;
        if new {
            self.index(id, mark, true);
        }
        (id, new)
    }

    /// One rule less asks for it.
    pub fn release(&mut self, id: MarkId) {
        if let Some(users) = self.users.get_mut(&id) {
            *users -= 1;
        }
    }

    /// Those that no rule asks for.
    pub fn unused(&self) -> BTreeSet<MarkId> {
        let unused = self.users.iter().filter(|(_, users)| **users == 0);
        unused.map(|(id, _)| *id).collect()
    }

    /// Forgets a mark that no rule asks for.
    pub fn forget(&mut self, id: MarkId) -> Option<Mark> {
        self.users.remove(&id);
        let mark = self.numbers.release(id)?;
        self.index(id, &mark, false);
        Some(mark)
    }

    pub fn get(&self, id: MarkId) -> Option<&Mark> {
        self.numbers.value(id)
    }

    /// The marks of a pod, but for those of its address.
    pub fn of_pod(&self, namespace: &str, of_namespace: &Labels, labels: &Labels) -> Vec<MarkId> {
        let candidates = self.by_namespace.get(namespace).into_iter().flatten();
        let candidates = candidates
            .chain(&self.other_pods)
            .chain(labelled(&self.by_pod_label, labels))
            .chain(labelled(&self.by_namespace_label, of_namespace));
        candidates
            .filter(|(_, pods)| matches(pods, namespace, of_namespace, labels))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The marks of all addresses of a network, by which it is in others.
    pub fn of_network(&self, network: IpNet) -> Vec<MarkId> {
        let v6 = network.addr().is_ipv6();
        let lengths = self.lengths.range((v6, 0)..=(v6, network.prefix_len()));
        let holders = lengths.filter_map(|((_, length), _)| {
            let holder = IpNet::new(network.addr(), *length).ok()?.trunc();
            self.by_network.get(&holder)
        });
        holders
            .flatten()
            .filter(|(_, except)| !except.iter().any(|except| except.contains(&network)))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The marks of a node's addresses, but for those of the networks that they are in.
    pub fn of_node(&self, labels: &Labels) -> Vec<MarkId> {
        let having = self.nodes.iter().filter(|(_, it)| it.matches(labels));
        having.map(|(id, _)| *id).collect()
    }

    /// The mark of ports that are called so.
    pub fn port_name(&self, name: &str) -> Option<MarkId> {
        self.port_names.get(name).copied()
    }

    /// Whether addresses inside of the network have other marks than those just outside.
    pub fn is_edge(&self, network: &IpNet) -> bool {
        self.edges.contains_key(network)
    }

    /// The networks at whose edges some mark changes.
    pub fn edges(&self) -> impl Iterator<Item = IpNet> {
        self.edges.keys().copied()
    }

    fn index(&mut self, id: MarkId, mark: &Mark, add: bool) {
        match mark {
            Mark::Peer(Peer::Pods(pods)) => match Anchor::of(pods) {
                Anchor::Namespace(name) => {
                    put(&mut self.by_namespace, name.to_owned(), id, pods, add);
                }
                Anchor::PodLabel(key, values) => {
                    put_labelled(&mut self.by_pod_label, (key, values), id, pods, add);
                }
                Anchor::NamespaceLabel(key, values) => {
                    put_labelled(&mut self.by_namespace_label, (key, values), id, pods, add);
                }
                Anchor::Nowhere => change(&mut self.other_pods, id, pods, add),
            },
            Mark::Peer(Peer::Network { cidr, except }) => {
                put(&mut self.by_network, *cidr, id, except, add);
                let length = (cidr.addr().is_ipv6(), cidr.prefix_len());
                count(&mut self.lengths, length, add);
                for edge in edges(*cidr, except) {
                    count(&mut self.edges, edge, add);
                }
            }
            Mark::Peer(Peer::Nodes(selector)) => change(&mut self.nodes, id, selector, add),
            Mark::PortName(name) => change(&mut self.port_names, name.clone(), &id, add),
        }
    }
}

fn labelled<'a>(
    index: &'a ByLabel,
    labels: &Labels,
) -> impl Iterator<Item = (&'a MarkId, &'a PodMatch)> {
    let found = labels
        .iter()
        .filter_map(|(key, value)| index.get(key)?.get(value));
    found.flatten()
}

pub fn matches(pods: &PodMatch, namespace: &str, of_namespace: &Labels, labels: &Labels) -> bool {
    let PodMatch { namespaces, pods } = pods;
    matches_namespace(namespaces, namespace, of_namespace) && pods.matches(labels)
}

pub fn matches_namespace(namespaces: &NamespaceMatch, name: &str, labels: &Labels) -> bool {
    match namespaces {
        NamespaceMatch::Named(own) => own == name,
        NamespaceMatch::Labelled(selector) => Selector::matches(selector, labels),
    }
}

/// The networks at whose edges a mark changes.
pub fn edges_of(mark: &Mark) -> Vec<IpNet> {
    match mark {
        Mark::Peer(Peer::Network { cidr, except }) => edges(*cidr, except).collect(),
        Mark::Peer(Peer::Pods(_) | Peer::Nodes(_)) | Mark::PortName(_) => Vec::new(),
    }
}

/// The networks at whose edge the mark of a network with exceptions changes. A network of IPv6 that
/// holds the place of IPv4 in the table has an edge there: it says nothing of IPv4.
pub fn edges(cidr: IpNet, except: &[IpNet]) -> impl Iterator<Item = IpNet> {
    let networks = [cidr].into_iter().chain(except.iter().copied());
    networks.flat_map(|network| {
        let mapped = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        let holds_v4 = matches!(network, IpNet::V6(v6) if v6.contains(&mapped));
        let v4 = holds_v4.then(|| IpNet::V4(Ipv4Net::default()));
        [network].into_iter().chain(v4)
    })
}

fn change<K: Ord, V: Clone>(marks: &mut BTreeMap<K, V>, key: K, value: &V, add: bool) {
    if add {
        marks.insert(key, value.clone());
    } else {
        marks.remove(&key);
    }
}

fn put<K: Ord + Clone, V: Clone>(
    index: &mut BTreeMap<K, BTreeMap<MarkId, V>>,
    key: K,
    id: MarkId,
    value: &V,
    add: bool,
) {
    let marks = index.entry(key.clone()).or_default();
    change(marks, id, value, add);
    if marks.is_empty() {
        index.remove(&key);
    }
}

fn put_labelled(
    index: &mut ByLabel,
    (key, values): (&str, &BTreeSet<String>),
    id: MarkId,
    pods: &PodMatch,
    add: bool,
) {
    let by_value = index.entry(key.to_owned()).or_default();
    for value in values {
        put(by_value, value.clone(), id, pods, add);
    }
    if by_value.is_empty() {
        index.remove(key);
    }
}

fn count<K: Ord + Clone>(counts: &mut BTreeMap<K, usize>, key: K, add: bool) {
    let count = counts.entry(key.clone()).or_default();
    if add {
        *count += 1;
    } else {
        *count = count.saturating_sub(1);
    }
    if *count == 0 {
        counts.remove(&key);
    }
}
