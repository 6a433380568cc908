//! Policies with marks in place of peers, and the sets of rules that endpoints have by them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    identity::Key,
    marks::{Mark, MarkId, Marks},
    numbers::Numbers,
    verdict::{self, Claim, Entry, Isolation, Span},
};
use crate::world::{
    NamedPort, PolicyName, Protocol,
    policy::{Action, Direction, Peers, PodMatch, Policy, PortMatch, Ports, Side, Tier},
};

/// What a verdict is owed to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleName {
    pub policy: PolicyName,
    pub direction: Direction,
    /// Place among the policy's rules of the direction; `None`: the policy isolates the pod, and no
    /// rule lets the packet pass.
    pub index: Option<usize>,
}

/// `NetworkPolicy default/web ingress rule 0`.
impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            policy,
            direction,
            index,
        } = self;
        match index {
            Some(index) => write!(f, "{policy} {direction} rule {index}"),
            None => write!(f, "{policy} isolates for {direction}, no rule matches"),
        }
    }
}

/// A policy whose peers are marks.
#[derive(Clone, Debug)]
pub struct CompiledPolicy {
    pub tier: Tier,
    pub priority: u16,
    pub audited: bool,
    pub subject: PodMatch,
    pub ingress: CompiledSide,
    pub egress: CompiledSide,
}

impl CompiledPolicy {
    pub fn side(&self, direction: Direction) -> &CompiledSide {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    pub fn sides(&self) -> [&CompiledSide; 2] {
        [&self.ingress, &self.egress]
    }

    /// Takes the marks that the policy asks for; those that nobody asked for before are `new`.
    pub fn new(
        policy: &Policy,
        was: Option<&Self>,
        marks: &mut Marks,
        versions: &mut u64,
        new: &mut BTreeSet<MarkId>,
    ) -> Self {
        let mut side = |direction| {
            let mut side = CompiledSide::new(policy.side(direction), direction, marks, new);
            let was = was.map(|was| was.side(direction));
            let same = was.filter(|was| was.rules == side.rules && was.isolates == side.isolates);
            side.version = same.map_or_else(
                || {
                    *versions += 1;
                    *versions
                },
                |was| was.version,
            );
            side
        };
        let (ingress, egress) = (side(Direction::Ingress), side(Direction::Egress));
        Self {
            tier: policy.tier,
            priority: policy.priority,
            audited: policy.audited,
            subject: policy.subject.clone(),
            ingress,
            egress,
        }
    }
}

#[derive(Clone, Debug)]
pub struct CompiledSide {
    pub isolates: bool,
    rules: Vec<CompiledRule>,
    /// Tells contents of one policy's side apart.
    pub version: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CompiledRule {
    action: Action,
    /// `None`: any peer.
    peers: Option<Vec<MarkId>>,
    /// `None`: any port.
    ports: Option<Vec<CompiledPort>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum CompiledPort {
    Span(Span),
    Named {
        name: String,
        protocol: Option<Protocol>,
        /// What peers have that have such a port: on egress they are the destination.
        mark: Option<MarkId>,
    },
}

impl CompiledSide {
    fn new(
        side: &Side,
        direction: Direction,
        marks: &mut Marks,
        new: &mut BTreeSet<MarkId>,
    ) -> Self {
        let mut take = |mark: Mark| {
            let (id, is_new) = marks.take(&mark);
            if is_new {
                new.insert(id);
            }
            id
        };
        let rules = side.rules.iter().map(|rule| CompiledRule {
            action: rule.action,
            peers: match &rule.peers {
                Peers::Any => None,
                Peers::Of(peers) => {
                    let peers = peers.iter().cloned().map(Mark::Peer);
                    Some(peers.map(&mut take).collect())
                }
            },
            ports: match &rule.ports {
                Ports::Any => None,
                Ports::Of(ports) => Some(
                    ports
                        .iter()
                        .map(|port| compile_port(port, direction, &mut take))
                        .collect(),
                ),
            },
        });
        Self {
            isolates: side.isolates,
            rules: rules.collect(),
            version: 0,
        }
    }

    /// Whether it says nothing at all.
    pub fn is_silent(&self) -> bool {
        !self.isolates && self.rules.is_empty()
    }

    /// Each mark that it asks for, once for each time that it does.
    pub fn marks(&self) -> impl Iterator<Item = MarkId> {
        self.rules.iter().flat_map(|rule| {
            let ports = rule.ports.iter().flatten();
            let names = ports.filter_map(|port| match port {
                CompiledPort::Named { mark, .. } => *mark,
                CompiledPort::Span(_) => None,
            });
            rule.peers.iter().flatten().copied().chain(names)
        })
    }

    /// The names that it gives to ports.
    pub fn port_names(&self) -> impl Iterator<Item = &str> {
        let ports = self
            .rules
            .iter()
            .flat_map(|rule| rule.ports.iter().flatten());
        ports.filter_map(|port| match port {
            CompiledPort::Named { name, .. } => Some(name.as_str()),
            CompiledPort::Span(_) => None,
        })
    }
}

fn compile_port(
    port: &PortMatch,
    direction: Direction,
    take: &mut impl FnMut(Mark) -> MarkId,
) -> CompiledPort {
    match port {
        PortMatch::Numbers {
            protocol,
            first,
            last,
        } => CompiledPort::Span(Span {
            protocol: *protocol,
            first: *first,
            last: *last,
        }),
        PortMatch::Named { name, protocol } => CompiledPort::Named {
            name: name.clone(),
            protocol: *protocol,
            mark: (direction == Direction::Egress).then(|| take(Mark::PortName(name.clone()))),
        },
    }
}

/// The mark of those who give a port the name that a rule asks for, and the protocol that it must be
/// of; `None`: any.
type PortName = (MarkId, Option<Protocol>);

/// What a rule set is made of. All endpoints with the same share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleSetKey {
    pub direction: Direction,
    /// In order of precedence; those with one priority by name.
    pub policies: Vec<PolicyUse>,
    /// On ingress the endpoint's ports that the policies call by name.
    pub ports: Vec<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyUse {
    pub tier: Tier,
    pub priority: u16,
    pub name: PolicyName,
    pub audited: bool,
    pub version: u64,
}

/// The rules that one rule set has for an identity: their places, and the ports that the identity
/// gives to the names in them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signature {
    rules: Vec<usize>,
    ports: Vec<(MarkId, Protocol, u16)>,
}

impl Signature {
    /// Whether there are only the rules for everybody.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// All rules of an endpoint in one direction, in order of precedence.
#[derive(Clone, Debug)]
pub struct RuleSet {
    rules: Vec<SetRule>,
    isolation: Isolation,
    by_mark: BTreeMap<MarkId, Vec<usize>>,
    /// The numbers of rules that it uses.
    numbers: Vec<u32>,
}

#[derive(Clone, Debug)]
struct SetRule {
    tier: Tier,
    action: Action,
    audited: bool,
    number: u32,
    /// Whether it is for every peer.
    any: bool,
    spans: Option<Vec<Span>>,
    names: Vec<PortName>,
}

impl RuleSet {
    pub fn new<'a>(
        key: &RuleSetKey,
        side: impl Fn(&PolicyName) -> Option<&'a CompiledSide>,
        rule_names: &mut Numbers<RuleName>,
    ) -> Self {
        let mut set = Self {
            rules: Vec::new(),
            isolation: Isolation::default(),
            by_mark: BTreeMap::new(),
            numbers: Vec::new(),
        };
        for policy in &key.policies {
            if let Some(side) = side(&policy.name) {
                set.add(key, policy, side, rule_names);
            }
        }
        set
    }

    fn add(
        &mut self,
        key: &RuleSetKey,
        policy: &PolicyUse,
        side: &CompiledSide,
        rule_names: &mut Numbers<RuleName>,
    ) {
        let mut number = |index| {
            let name = RuleName {
                policy: policy.name.clone(),
                direction: key.direction,
                index,
            };
            let (number, _) = rule_names.take(&name);
            self.numbers.push(number);
            number
        };
        let Isolation { enforced, audited } = &mut self.isolation;
        let unnamed = audited.is_none() || enforced.is_none() && !policy.audited;
        if side.isolates && unnamed {
            let number = number(None);
            audited.get_or_insert(number);
            if !policy.audited {
                enforced.get_or_insert(number);
            }
        }
        for (index, rule) in side.rules.iter().enumerate() {
            let place = self.rules.len();
            let (spans, names) = rule.resolve(&key.ports);
            let named = || names.iter().map(|(mark, _)| *mark).collect();
            for mark in rule.peers.clone().unwrap_or_else(named) {
                self.by_mark.entry(mark).or_default().push(place);
            }
            self.rules.push(SetRule {
                tier: policy.tier,
                action: rule.action,
                audited: policy.audited,
                number: number(Some(index)),
                any: rule.peers.is_none(),
                spans,
                names,
            });
        }
    }

    /// The marks by which its rules tell identities apart.
    pub fn marks(&self) -> impl Iterator<Item = MarkId> {
        self.by_mark.keys().copied()
    }

    /// The numbers of rules that it uses, each as often as it does.
    pub fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// Which of the rules an identity has.
    pub fn signature(&self, key: &Key) -> Signature {
        let ports = key.ports.iter().map(|(mark, ..)| mark);
        let places = key.marks.iter().chain(ports);
        let places = places.filter_map(|mark| self.by_mark.get(mark));
        let mut rules: Vec<usize> = places.flatten().copied().collect();
        rules.sort_unstable();
        rules.dedup();
        let names = || rules.iter().flat_map(|place| &self.rules[*place].names);
        let ports = key.ports.iter();
        let ports = ports.filter(|(mark, ..)| names().any(|(name, _)| name == mark));
        Signature {
            ports: ports.copied().collect(),
            rules,
        }
    }

    /// The class of rules of the identities with a signature.
    pub fn class(&self, signature: &Signature) -> Vec<Entry> {
        let rules = self.rules.iter().enumerate();
        let claims = rules.filter_map(|(place, rule)| {
            let specific = signature.rules.binary_search(&place).is_ok();
            (rule.any || specific).then(|| rule.claim(&signature.ports))
        });
        verdict::entries(&claims.collect::<Vec<_>>(), self.isolation)
    }
}

impl CompiledRule {
    /// The ports whose numbers are known, and the names that each peer has a number for.
    fn resolve(&self, own: &[NamedPort]) -> (Option<Vec<Span>>, Vec<PortName>) {
        let Some(ports) = &self.ports else {
            return (None, Vec::new());
        };
        let (mut spans, mut names) = (Vec::new(), Vec::new());
        for port in ports {
            match port {
                CompiledPort::Span(span) => spans.push(*span),
                CompiledPort::Named {
                    mark: Some(mark),
                    protocol,
                    ..
                } => names.push((*mark, *protocol)),
                CompiledPort::Named { name, protocol, .. } => {
                    let own = own.iter().filter(|port| port.name == *name);
                    let own = own.map(|port| (port.protocol, port.number));
                    spans.extend(own.filter_map(|port| named_span(port, *protocol)));
                }
            }
        }
        (Some(spans), names)
    }
}

impl SetRule {
    fn claim(&self, ports: &[(MarkId, Protocol, u16)]) -> Claim {
        let named = self.names.iter().flat_map(|(name, protocol)| {
            let called = ports.iter().filter(move |(mark, ..)| mark == name);
            called.filter_map(|&(_, own, number)| named_span((own, number), *protocol))
        });
        let spans = self.spans.as_ref().map(|spans| {
            let spans = spans.iter().copied();
            spans.chain(named).collect()
        });
        Claim {
            tier: self.tier,
            action: self.action,
            audited: self.audited,
            rule: self.number,
            spans,
        }
    }
}

/// The port that a name means, where it is of the protocol that the rule asks for.
fn named_span((own, number): (Protocol, u16), asked: Option<Protocol>) -> Option<Span> {
    asked.is_none_or(|asked| asked == own).then_some(Span {
        protocol: own,
        first: number,
        last: number,
    })
}
