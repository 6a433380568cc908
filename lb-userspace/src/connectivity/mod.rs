//! In which connections two sets of policies differ. Pure.
//!
//! Nothing is sampled. Both sets are compiled; parties that the tables of both tell apart in nothing
//! are one kind, and each pair of kinds is compared on every span of ports that a rule of either set
//! distinguishes. Addresses that are nobody's are parties too: a network that some rule names, but
//! for the smaller ones inside of it.

mod networks;
mod parties;
mod ports;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use self::{networks::Network, ports::PortSpan};
use self::{
    parties::{Kind, Parties},
    ports::{Contrast, Contrasts},
};
use crate::{
    compile::policy::Policies,
    world::{Family, ObjectKey, World},
};

/// What two sets of policies differ in, and what could not be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    pub changes: Vec<Change>,
    /// Pods and nodes that one set alone has, and addresses that they have there alone.
    pub only_old: Vec<String>,
    pub only_new: Vec<String>,
    /// Pods without an address of their own: nobody can connect to them, nor they to anybody.
    pub without_address: Vec<String>,
    /// How many pods of each namespace and of each workload were compared.
    #[serde(skip)]
    counts: BTreeMap<String, usize>,
}

/// Connections whose verdict changes, from each of the sources to each of the destinations but
/// itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Whether they are allowed by the new set.
    pub allowed: bool,
    pub sources: Vec<Party>,
    pub destinations: Vec<Party>,
    /// In order.
    pub ports: Vec<PortSpan>,
    /// The one address family that changes, where both ends have both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The rules that allow or deny it by each set; none where no policy speaks of it.
    pub old: Vec<String>,
    pub new: Vec<String>,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Party {
    Pod {
        name: ObjectKey,
        /// What made it, as far as its labels say.
        #[serde(skip_serializing_if = "Option::is_none")]
        workload: Option<String>,
    },
    /// An address of a node, of its pods on the host network too.
    Node {
        name: String,
        address: std::net::IpAddr,
    },
    /// Addresses that no pod and no node has.
    Network(Network),
}

impl Difference {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        let Self {
            changes,
            only_old,
            only_new,
            ..
        } = self;
        changes.is_empty() && only_old.is_empty() && only_new.is_empty()
    }
}

/// Compares two worlds of [`crate::explain::everywhere`].
pub fn compare(old: &World, new: &World) -> Difference {
    let worlds = [old, new];
    let compiled = worlds.map(Policies::boundless);
    let parties = Parties::of(worlds, &compiled);
    let mut contrasts = Contrasts::of(&compiled);
    let mut changed: BTreeMap<(Contrast, Option<Family>), Pairs> = BTreeMap::new();
    let kinds: Vec<_> = parties.kinds.iter().collect();
    for (place, (source, sources)) in kinds.iter().enumerate() {
        for (other, (destination, _)) in kinds.iter().enumerate() {
            if place == other && sources.len() == 1 || !source.is_pod && !destination.is_pod {
                continue;
            }
            for key in contrasts.between(source, destination) {
                let pairs = changed.entry(key).or_default();
                pairs.entry(place).or_default().insert(other);
            }
        }
    }
    let members = |places: &BTreeSet<usize>| {
        let parties = places.iter().filter_map(|place| kinds.get(*place));
        gathered(parties.flat_map(|(_, parties)| parties.iter().cloned()))
    };
    let changes = changed.into_iter().flat_map(|((contrast, family), pairs)| {
        let rectangles = rectangles(pairs).into_iter();
        rectangles.map(move |(destinations, sources)| Change {
            allowed: contrast.allowed,
            sources: members(&sources),
            destinations: members(&destinations),
            ports: contrast.ports.clone(),
            family,
            old: contrast.old.clone(),
            new: contrast.new.clone(),
        })
    });
    let mut changes: Vec<_> = changes.collect();
    changes.sort();
    let [only_old, only_new] = parties.alone;
    Difference {
        changes,
        only_old,
        only_new,
        without_address: parties.without_address,
        counts: parties.counts,
    }
}

/// Destinations by source, both as places among the kinds of parties.
type Pairs = BTreeMap<usize, BTreeSet<usize>>;

/// The same pairs as sets of sources by sets of destinations.
fn rectangles(pairs: Pairs) -> BTreeMap<BTreeSet<usize>, BTreeSet<usize>> {
    let mut rectangles: BTreeMap<_, BTreeSet<usize>> = BTreeMap::new();
    for (source, destinations) in pairs {
        rectangles.entry(destinations).or_default().insert(source);
    }
    rectangles
}

/// Parties in order, networks inside of one another as one.
fn gathered(parties: impl Iterator<Item = Party>) -> Vec<Party> {
    let (mut gathered, mut networks) = (Vec::new(), Vec::new());
    for party in parties {
        match party {
            Party::Network(network) => networks.push(network),
            Party::Pod { .. } | Party::Node { .. } => gathered.push(party),
        }
    }
    gathered.sort();
    let networks = networks::merged(networks).into_iter();
    gathered.extend(networks.map(Party::Network));
    gathered
}

impl Contrasts<'_> {
    /// What differs between parties of two kinds, and the family in which, where they could connect
    /// by both and it does not in the other.
    fn between(
        &mut self,
        source: &Kind,
        destination: &Kind,
    ) -> BTreeSet<(Contrast, Option<Family>)> {
        let mut found: BTreeMap<Contrast, Vec<Family>> = BTreeMap::new();
        let mut common = 0;
        for (family, sides) in source.families() {
            let Some(others) = destination.side(family) else {
                continue;
            };
            common += 1;
            let asked = [0, 1].map(|set| {
                let egress = source.rule_sets[set].egress;
                let ingress = match source.is_own_node_of(destination, set) {
                    true => lb_common::policy::OPEN,
                    false => destination.rule_sets[set].ingress,
                };
                [(egress, others[set]), (ingress, sides[set])]
            });
            for contrast in self.of_asked(asked) {
                found.entry(contrast.clone()).or_default().push(family);
            }
        }
        let found = found.into_iter();
        let keys = found.map(|(contrast, families)| {
            let only = (families.len() < common).then(|| families.first().copied());
            (contrast, only.flatten())
        });
        keys.collect()
    }
}

#[cfg(test)]
mod tests;
