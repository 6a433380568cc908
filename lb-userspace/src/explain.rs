//! Why a connection is allowed or denied. Pure.

use std::{fmt, net::IpAddr, str::FromStr};

use lb_common::policy::{CLOSED, NO_RULE};
use serde::Serialize;

use crate::{
    compile::policy::{LastNumbers, Policies, Sizes},
    world::{Family, ObjectKey, PolicyDirty, World, policy::Direction},
};

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    Pod(ObjectKey),
    Address(IpAddr),
}

impl FromStr for Party {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err("neither an IP address nor a pod, as NAME or NS/NAME".to_owned());
        }
        Ok(Self::Pod(ObjectKey::new(namespace, name)))
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => key.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// The first packet of a flow, after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// The destination's; 0 where the protocol has none.
    pub port: u16,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub allowed: bool,
    /// Why no policy is asked, where none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// What the pods at both ends say: the source first.
    pub verdicts: Vec<Verdict>,
}

/// What the policies of one pod say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub pod: String,
    pub direction: String,
    pub allowed: bool,
    /// The rule that says so; `None` where no policy speaks of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What the verdict would be with audited policies in force.
    pub audited_allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audited_rule: Option<String>,
    /// The policies that select the pod, in order of precedence.
    pub policies: Vec<String>,
}

/// The addresses of a connection between two parties: the first that are of one family.
pub fn addresses(
    world: &World,
    source: &Party,
    destination: &Party,
) -> Result<(IpAddr, IpAddr), String> {
    let (sources, destinations) = (known(world, source)?, known(world, destination)?);
    let pairs = sources.iter().flat_map(|source| {
        let other = destinations.iter();
        other.map(move |destination| (*source, *destination))
    });
    let mut pairs = pairs.filter(|(one, other)| Family::of(*one) == Family::of(*other));
    let none = || format!("{source} and {destination} have no addresses of one family");
    pairs.next().ok_or_else(none)
}

fn known(world: &World, party: &Party) -> Result<Vec<IpAddr>, String> {
    match party {
        Party::Address(address) => Ok(vec![*address]),
        Party::Pod(key) => {
            let pod = world.pod(key);
            let pod = pod.ok_or_else(|| format!("there is no pod {key} with its own network"))?;
            Ok(pod.ips.clone())
        }
    }
}

/// The pod that has an address, and the node it runs on.
pub fn pod_at(world: &World, address: IpAddr) -> Option<(&ObjectKey, &str)> {
    let pods = world.pods().filter(|(_, pod)| pod.ips.contains(&address));
    let first = pods.min_by_key(|(key, pod)| (pod.terminating, *key));
    first.map(|(key, pod)| (key, pod.node.as_str()))
}

/// What becomes of a packet; `world_of` is what the agent of a node knows.
pub fn explain<E>(
    packet: Packet,
    world: &World,
    world_of: impl Fn(&str) -> Result<World, E>,
) -> Result<Explanation, E> {
    let Packet {
        source,
        destination,
        ..
    } = packet;
    let mut explanation = Explanation {
        source,
        destination,
        allowed: true,
        because: None,
        verdicts: Vec::new(),
    };
    if source == destination {
        explanation.because = Some("a pod may always reach itself".to_owned());
        return Ok(explanation);
    }
    if let Some((key, node)) = pod_at(world, source) {
        let verdict = judge(&world_of(node)?, key, Direction::Egress, packet);
        explanation.verdicts.push(verdict);
    }
    if let Some((key, node)) = pod_at(world, destination) {
        let own = world.node(node);
        let own = own.is_some_and(|node| node.all_addresses.contains(&source));
        if own && pod_at(world, source).is_none() {
            let because = format!("{source} is the node of {key}, which may always reach it");
            explanation.because = Some(because);
        } else {
            let verdict = judge(&world_of(node)?, key, Direction::Ingress, packet);
            explanation.verdicts.push(verdict);
        }
    } else if explanation.verdicts.is_empty() {
        explanation.because = Some("neither end is a pod with its own network".to_owned());
    }
    explanation.allowed = explanation.verdicts.iter().all(|verdict| verdict.allowed);
    Ok(explanation)
}

fn judge(world: &World, pod: &ObjectKey, direction: Direction, packet: Packet) -> Verdict {
    let mut policies = Policies::new(Sizes::KERNEL, LastNumbers::default());
    policies.update(world, &PolicyDirty::default());
    let tables = policies.tables();
    let sets = tables.endpoints.get(pod);
    let (rule_set, peer) = match direction {
        Direction::Ingress => (sets.map(|sets| sets.ingress), packet.source),
        Direction::Egress => (sets.map(|sets| sets.egress), packet.destination),
    };
    let rule_set = rule_set.unwrap_or(CLOSED);
    let rule = tables.rule(rule_set, peer, packet.protocol, packet.port);
    let named = |number: u32| match number {
        NO_RULE => None,
        number => policies.rule_name(number).map(ToString::to_string),
    };
    let selecting = policies.policies_of(rule_set);
    Verdict {
        pod: pod.to_string(),
        direction: direction.to_string(),
        allowed: rule.is_some_and(|rule| rule.allow == 1),
        rule: rule.and_then(|rule| named(rule.rule)),
        audited_allowed: rule.is_some_and(|rule| rule.audited_allow == 1),
        audited_rule: rule.and_then(|rule| named(rule.audited_rule)),
        policies: selecting.map(ToString::to_string).collect(),
    }
}

/// For a person to read.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |allowed| if allowed { "allowed" } else { "denied" };
        let Self {
            source,
            destination,
            allowed,
            because,
            verdicts,
        } = self;
        write!(f, "{source} to {destination}: {}", word(*allowed))?;
        if let Some(because) = because {
            write!(f, ": {because}")?;
        }
        for verdict in verdicts {
            let by = |rule: &Option<String>| match rule {
                Some(rule) => format!("by {rule}"),
                None => "as no policy speaks of it".to_owned(),
            };
            let Verdict { pod, direction, .. } = verdict;
            let (allowed, rule) = (word(verdict.allowed), by(&verdict.rule));
            write!(f, "\n  {direction} of {pod}: {allowed} {rule}")?;
            if (verdict.audited_allowed, &verdict.audited_rule) != (verdict.allowed, &verdict.rule)
            {
                let (allowed, rule) = (word(verdict.audited_allowed), by(&verdict.audited_rule));
                write!(f, "\n    with audited policies: {allowed} {rule}")?;
            }
            for policy in &verdict.policies {
                write!(f, "\n    selected by {policy}")?;
            }
        }
        writeln!(f)
    }
}
