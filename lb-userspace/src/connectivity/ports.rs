//! What two sets say of all ports between two kinds of parties.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_common::policy::{NO_RULE, Rule};
use serde::{Serialize, Serializer};

use super::parties::Both;
use crate::{compile::policy::Policies, world::Protocol};

/// Destination ports of a protocol, the first and the last among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortSpan {
    /// `None`: all protocols but TCP, UDP and SCTP, which have no ports that rules speak of.
    pub protocol: Option<Protocol>,
    pub first: u16,
    pub last: u16,
}

/// `80-90/TCP`, `UDP`, `other protocols`.
impl fmt::Display for PortSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            first,
            last,
        } = *self;
        let Some(protocol) = protocol else {
            return f.write_str("other protocols");
        };
        match (first, last) {
            (0, u16::MAX) => protocol.fmt(f),
            _ if first == last => write!(f, "{first}/{protocol}"),
            _ => write!(f, "{first}-{last}/{protocol}"),
        }
    }
}

impl Serialize for PortSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The spaces of ports.
pub const SPACES: [Option<Protocol>; 4] = [
    Some(Protocol::Tcp),
    Some(Protocol::Udp),
    Some(Protocol::Sctp),
    None,
];

/// Ports on which the two sets differ in one way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contrast {
    /// By the new set.
    pub allowed: bool,
    /// The rules that say so, by each set.
    pub old: Vec<String>,
    pub new: Vec<String>,
    pub ports: Vec<PortSpan>,
}

/// What one set asks: the source's class of rules for egress, the destination's for ingress.
type Classes = [u32; 2];
/// A rule set and the identity that it is asked about.
type Asked = [(u32, u32); 2];

/// What two sets say, found out once for each combination of classes of rules.
pub struct Contrasts<'a> {
    compiled: &'a Both<Policies>,
    known: BTreeMap<Both<Classes>, Vec<Contrast>>,
    /// The ports at which what a class says begins, of each space, by set and class.
    edges: BTreeMap<(usize, u32), [BTreeSet<u16>; SPACES.len()]>,
}

impl<'a> Contrasts<'a> {
    pub fn of(compiled: &'a Both<Policies>) -> Self {
        Self {
            compiled,
            known: BTreeMap::new(),
            edges: BTreeMap::new(),
        }
    }

    /// In what the sets differ, where these are asked.
    pub fn of_asked(&mut self, asked: Both<Asked>) -> &[Contrast] {
        let classes = [0, 1].map(|set| {
            let tables = self.compiled[set].tables();
            asked[set].map(|(rule_set, identity)| tables.class(rule_set, identity))
        });
        if !self.known.contains_key(&classes) {
            let found = self.find(classes);
            self.known.insert(classes, found);
        }
        self.known.get(&classes).map_or(&[], Vec::as_slice)
    }

    fn find(&mut self, classes: Both<Classes>) -> Vec<Contrast> {
        let mut found: BTreeMap<(bool, Both<Vec<u32>>), Vec<PortSpan>> = BTreeMap::new();
        for (space, protocol) in SPACES.into_iter().enumerate() {
            let mut firsts = BTreeSet::from([0]);
            for (set, classes) in classes.iter().enumerate() {
                for class in classes {
                    firsts.extend(&self.edges(set, *class)[space]);
                }
            }
            let lasts = firsts.iter().skip(1).map(|next| next - 1);
            for (first, last) in firsts.iter().zip(lasts.chain([u16::MAX])) {
                let [old, new] = [0, 1].map(|set| self.judge(set, classes[set], protocol, *first));
                if old.0 == new.0 {
                    continue;
                }
                let spans = found.entry((new.0, [old.1, new.1])).or_default();
                extend(spans, protocol, *first, last);
            }
        }
        let found = found.into_iter();
        let contrasts = found.map(|((allowed, [old, new]), ports)| Contrast {
            allowed,
            old: self.names(0, &old),
            new: self.names(1, &new),
            ports,
        });
        contrasts.collect()
    }

    /// Whether a connection passes, and the numbers of the rules that say so.
    fn judge(
        &self,
        set: usize,
        classes: Classes,
        protocol: Option<Protocol>,
        port: u16,
    ) -> (bool, Vec<u32>) {
        let tables = self.compiled[set].tables();
        let number = protocol.map_or(0, Protocol::number);
        let rules = classes.map(|class| tables.rule_of(class, number, port).unwrap_or(Rule::DENY));
        let allowed = rules.iter().all(|rule| rule.allow == 1);
        let saying = rules.iter().filter(|rule| (rule.allow == 1) == allowed);
        let numbers = saying.map(|rule| rule.rule);
        (allowed, numbers.filter(|rule| *rule != NO_RULE).collect())
    }

    fn names(&self, set: usize, rules: &[u32]) -> Vec<String> {
        let names = rules.iter();
        let names = names.filter_map(|rule| self.compiled[set].rule_name(*rule));
        names.map(ToString::to_string).collect()
    }

    fn edges(&mut self, set: usize, class: u32) -> &[BTreeSet<u16>; SPACES.len()] {
        let compiled = self.compiled;
        let tables = compiled[set].tables();
        self.edges.entry((set, class)).or_insert_with(|| {
            let mut edges: [BTreeSet<u16>; SPACES.len()] = Default::default();
            for entry in tables.entries_of(class) {
                let of_protocol = |protocol: &Option<Protocol>| {
                    protocol.is_some_and(|it| it.number() == entry.key.protocol)
                };
                let Some(space) = SPACES.iter().position(of_protocol) else {
                    continue;
                };
                let (first, last) = entry.ports();
                edges[space].insert(first);
                edges[space].extend(last.checked_add(1));
            }
            edges
        })
    }
}

/// Adds ports behind all others.
fn extend(spans: &mut Vec<PortSpan>, protocol: Option<Protocol>, first: u16, last: u16) {
    let before = spans
        .last_mut()
        .filter(|span| span.protocol == protocol && span.last.checked_add(1) == Some(first));
    match before {
        Some(before) => before.last = last,
        None => spans.push(PortSpan {
            protocol,
            first,
            last,
        }),
    }
}
