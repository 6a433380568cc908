//! The tables of policies as text: one line per entry, with names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::{
    address::{Address, UNSPECIFIED, to_ip},
    policy::{self, CLOSED, NO_RULE, OPEN, PeerKey, RuleKey, SourceKey},
};
use serde::{Deserialize, Serialize};

use crate::{
    compile::{Range, policy::RuleEntry},
    connectivity::PortSpan,
    names::Names,
    world::{ObjectKey, Protocol},
};

/// What the tables hold, by prefix length and key where they are of prefixes.
#[derive(Debug, Default)]
pub struct PolicyEntries {
    pub guards: BTreeMap<u32, policy::Guard>,
    pub sources: BTreeSet<(u32, SourceKey)>,
    pub identities: BTreeMap<(u32, Address), u32>,
    pub peers: BTreeMap<PeerKey, u32>,
    pub rules: BTreeMap<(u32, RuleKey), policy::Rule>,
}

/// Entries of the tables, readable. Displays as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policies {
    pub guards: Vec<Guard>,
    pub pod_sources: Vec<PodSource>,
    pub identities: Vec<Identity>,
    pub peers: Vec<Peer>,
    pub rules: Vec<Rule>,
}

/// An entry of `GUARDS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guard {
    pub slot: u32,
    pub pod: Option<ObjectKey>,
    /// What the pod may only send from; none where it may send from any.
    pub bound: Vec<String>,
    /// Whether `POD_SOURCES` may allow it more.
    pub more_sources: bool,
    /// A number, `open` or `closed`.
    pub ingress: String,
    pub egress: String,
    pub epoch: u32,
}

/// An entry of `POD_SOURCES`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSource {
    pub slot: u32,
    pub network: IpNet,
}

/// An entry of `IDENTITIES`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub network: IpNet,
    pub identity: u32,
}

/// An entry of `PEERS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub rule_set: u32,
    pub identity: u32,
    pub class: u32,
}

/// An entry of `RULES`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    pub class: u32,
    /// Such as `80-95/TCP`; `*` stands for all that no other entry speaks of.
    pub ports: String,
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The verdict if audited policies were in force, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audited: Option<Verdict>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub allow: bool,
    pub rule: u32,
    pub name: Option<String>,
}

impl Policies {
    pub fn of(entries: &PolicyEntries, names: &Names) -> Self {
        let PolicyEntries {
            guards,
            sources,
            identities,
            peers,
            rules,
        } = entries;
        let network = |bits: u32, address: Address| {
            let bits = bits.try_into().ok()?;
            Range { address, bits }.network()
        };
        let guards = guards.iter();
        let guards = guards.map(|(slot, guard)| Guard::of(*slot, guard, names));
        let sources = sources.iter().filter_map(|&(bits, key)| {
            let SourceKey { slot, address } = key;
            let network = network(bits.checked_sub(SourceKey::SLOT_BITS)?, address)?;
            Some(PodSource { slot, network })
        });
        let identities = identities
            .iter()
            .filter_map(|(&(bits, address), &identity)| {
                let network = network(bits, address)?;
                Some(Identity { network, identity })
            });
        let peers = peers.iter().map(|(key, &class)| Peer {
            rule_set: key.rule_set,
            identity: key.identity,
            class,
        });
        let rules = rules.iter();
        let rules =
            rules.map(|(&(bits, key), rule)| Rule::of(RuleEntry { key, bits }, rule, names));
        let mut dumped = Self {
            guards: guards.collect(),
            pod_sources: sources.collect(),
            identities: identities.collect(),
            peers: peers.collect(),
            rules: rules.collect(),
        };
        dumped.identities.sort_by_key(|it| it.network);
        dumped.rules.sort_by_key(|it| it.class);
        dumped
    }
}

impl Guard {
    fn of(slot: u32, guard: &policy::Guard, names: &Names) -> Self {
        let addresses = [guard.v4, guard.v6].into_iter();
        let addresses = addresses.filter(|address| *address != UNSPECIFIED);
        let addresses = addresses.map(|address| IpAddr::to_string(&to_ip(&address)));
        let mac = guard.mac.map(|byte| format!("{byte:02x}")).join(":");
        let bound = addresses.chain([mac]).filter(|_| guard.bound == 1);
        let rule_set = |number| match number {
            OPEN => "open".to_owned(),
            CLOSED => "closed".to_owned(),
            number => number.to_string(),
        };
        Self {
            slot,
            pod: names.pods.get(&slot).cloned(),
            bound: bound.collect(),
            more_sources: guard.more_sources == 1,
            ingress: rule_set(guard.ingress),
            egress: rule_set(guard.egress),
            epoch: guard.epoch,
        }
    }
}

impl Rule {
    fn of(entry: RuleEntry, rule: &policy::Rule, names: &Names) -> Self {
        let verdict = |rule, allow| Verdict {
            allow: allow == 1,
            rule,
            name: names.rules.get(&rule).cloned(),
        };
        let enforced = verdict(rule.rule, rule.allow);
        let audited = verdict(rule.audited_rule, rule.audited_allow);
        let number = entry.key.protocol;
        let protocol = Protocol::ALL.into_iter().find(|it| it.number() == number);
        let (first, last) = entry.ports();
        let ports = match protocol {
            _ if entry.bits < RuleKey::PROTOCOL_BITS => "*".to_owned(),
            None => format!("protocol {number}"),
            protocol => PortSpan {
                protocol,
                first,
                last,
            }
            .to_string(),
        };
        Self {
            class: entry.key.class,
            ports,
            audited: (audited != enforced).then_some(audited),
            verdict: enforced,
        }
    }
}

/// `deny by NetworkPolicy default/web isolates for ingress, no rule matches`.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allow, rule, name } = self;
        f.write_str(if *allow { "allow" } else { "deny" })?;
        match (name, *rule) {
            (_, NO_RULE) => Ok(()),
            (Some(name), _) => write!(f, " by {name}"),
            (None, rule) => write!(f, " by rule {rule}"),
        }
    }
}

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Guard {
            slot,
            pod,
            bound,
            more_sources,
            ingress,
            egress,
            epoch,
        } in &self.guards
        {
            write!(
                f,
                "GUARDS {slot} = ingress {ingress} egress {egress} epoch {epoch}"
            )?;
            if !bound.is_empty() {
                write!(f, " bound to {}", bound.join(" "))?;
            }
            if *more_sources {
                f.write_str(" and more")?;
            }
            match pod {
                Some(pod) => writeln!(f, " {pod}")?,
                None => writeln!(f)?,
            }
        }
        for PodSource { slot, network } in &self.pod_sources {
            writeln!(f, "POD_SOURCES {slot} holds {network}")?;
        }
        for Identity { network, identity } in &self.identities {
            writeln!(f, "IDENTITIES {network} = {identity}")?;
        }
        for Peer {
            rule_set,
            identity,
            class,
        } in &self.peers
        {
            writeln!(f, "PEERS {rule_set} identity {identity} -> class {class}")?;
        }
        for Rule {
            class,
            ports,
            verdict,
            audited,
        } in &self.rules
        {
            write!(f, "RULES {class} {ports} -> {verdict}")?;
            match audited {
                Some(audited) => writeln!(f, "; with audited policies {audited}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lb_common::address::map_v4;

    use super::*;

    #[test]
    fn every_entry_is_a_line_with_names() {
        let verdict = |rule, allow, audited_rule, audited_allow| policy::Rule {
            rule,
            audited_rule,
            allow,
            audited_allow,
            _pad: [0; 2],
        };
        let guard = policy::Guard {
            v4: map_v4([10, 244, 1, 5]),
            ingress: 7,
            egress: CLOSED,
            epoch: 3,
            mac: [2, 0, 0, 0, 0, 5],
            bound: 1,
            more_sources: 1,
            ..policy::Guard::NONE
        };
        let source = SourceKey {
            slot: 1,
            address: map_v4([10, 9, 0, 0]),
        };
        let peer = PeerKey {
            rule_set: 7,
            identity: 3,
        };
        let entries = PolicyEntries {
            guards: [
                (1, guard),
                (
                    2,
                    policy::Guard {
                        epoch: 1,
                        ..policy::Guard::NONE
                    },
                ),
            ]
            .into(),
            sources: [(32 + 96 + 24, source)].into(),
            identities: [((96 + 8, map_v4([10, 0, 0, 0])), 3)].into(),
            peers: [(peer, 9)].into(),
            rules: [
                ((32, RuleKey::new(7, 0, 0)), verdict(4, 0, 4, 0)),
                ((40, RuleKey::new(9, 17, 0)), verdict(5, 1, 5, 1)),
                ((40 + 12, RuleKey::new(9, 6, 80)), verdict(5, 1, 6, 0)),
                ((32, RuleKey::new(9, 0, 0)), verdict(NO_RULE, 1, NO_RULE, 1)),
            ]
            .into(),
        };
        let names = Names {
            pods: [(1, ObjectKey::new("shop", "web-0"))].into(),
            rules: [(5, "NetworkPolicy shop/p ingress rule 0".to_owned())].into(),
            ..Names::default()
        };
        assert_eq!(
            Policies::of(&entries, &names).to_string(),
            "GUARDS 1 = ingress 7 egress closed epoch 3 bound to 10.244.1.5 02:00:00:00:00:05 and more \
             shop/web-0
GUARDS 2 = ingress open egress open epoch 1
POD_SOURCES 1 holds 10.9.0.0/24
IDENTITIES 10.0.0.0/8 = 3
PEERS 7 identity 3 -> class 9
RULES 7 * -> deny by rule 4
RULES 9 * -> allow
RULES 9 UDP -> allow by NetworkPolicy shop/p ingress rule 0
RULES 9 80-95/TCP -> allow by NetworkPolicy shop/p ingress rule 0; with audited policies deny by rule 6
"
        );
    }
}
