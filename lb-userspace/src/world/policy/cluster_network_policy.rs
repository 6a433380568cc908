//! ClusterNetworkPolicies of policy.networking.k8s.io/v1alpha2 (network-policy-api v0.2).
//!
//! A newer apiserver may know peers, protocols and tiers that are not known here. Then the API asks
//! to fail closed: a rule that accepts matches nothing, and any other denies everything.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
    serde::de::DeserializeOwned,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Action, NamespaceMatch, Peer, Peers, PodMatch, Policy, PortMatch, Ports, Rule, Side, Tier,
};
use crate::{
    source::annotations::POLICY_AUDIT,
    world::{Protocol, Row, Selector, address, labels},
};

/// The object. What is in its `spec` is read piece by piece: one that cannot be read must not keep a
/// whole list from being read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterNetworkPolicy {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: Value,
}

#[derive(Deserialize)]
struct Spec {
    tier: String,
    priority: u16,
    subject: Map<String, Value>,
    #[serde(default)]
    ingress: Option<Vec<RuleObject>>,
    #[serde(default)]
    egress: Option<Vec<RuleObject>>,
}

#[derive(Deserialize)]
struct RuleObject {
    action: String,
    #[serde(default, alias = "from", alias = "to")]
    peers: Vec<Map<String, Value>>,
    #[serde(default)]
    protocols: Option<Vec<Map<String, Value>>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NamespacedPod {
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
}

#[derive(Deserialize)]
struct PortRange {
    start: u16,
    end: u16,
}

/// The row of a ClusterNetworkPolicy.
pub fn reduce(object: &ClusterNetworkPolicy) -> Row<Policy> {
    let mut problems = Vec::new();
    let value = match serde_path_to_error::deserialize(&object.spec) {
        Ok(spec) => Some(reduce_spec(&spec, &object.metadata, &mut problems)),
        Err(error) => {
            problems.push(format!("`spec.{}`: {}", error.path(), error.inner()));
            None
        }
    };
    Row {
        value,
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
}

fn reduce_spec(spec: &Spec, metadata: &ObjectMeta, problems: &mut Vec<String>) -> Policy {
    let tier = match spec.tier.as_str() {
        "Admin" => Ok(Tier::Admin),
        "Baseline" => Ok(Tier::Baseline),
        other => Err(format!("`{other}` is not a tier")),
    };
    let subject = reduce_subject(&spec.subject);
    let unclear = [tier.as_ref().err(), subject.as_ref().err()];
    let unclear: Vec<_> = unclear.into_iter().flatten().cloned().collect();
    let mut side = |rules: &Option<Vec<RuleObject>>, direction| Side {
        isolates: false,
        rules: rules
            .iter()
            .flatten()
            .enumerate()
            .map(|(index, rule)| {
                let (rule, problem) = reduce_rule(rule, direction);
                problems.extend(problem.map(|text| format!("{direction}[{index}]: {text}")));
                match rule.action {
                    Action::Accept | Action::Pass if !unclear.is_empty() => Rule::nothing(),
                    _ => rule,
                }
            })
            .collect(),
    };
    let ingress = side(&spec.ingress, "ingress");
    let egress = side(&spec.egress, "egress");
    for error in unclear {
        problems.push(format!("{error}: only what the policy denies counts"));
    }
    Policy {
        tier: tier.unwrap_or(Tier::Admin),
        priority: spec.priority,
        audited: POLICY_AUDIT.read(metadata, problems) == "true",
        subject: subject.unwrap_or_default(),
        ingress,
        egress,
    }
}

fn reduce_subject(subject: &Map<String, Value>) -> Result<PodMatch, String> {
    let (kind, value) = only("subject", subject)?;
    pods(kind, value)?.ok_or_else(|| format!("`{kind}` is not known as a subject"))
}

/// The rule, and what is wrong with it.
fn reduce_rule(object: &RuleObject, direction: &str) -> (Rule, Option<String>) {
    let action = match object.action.as_str() {
        "Accept" => Ok(Action::Accept),
        "Deny" => Ok(Action::Deny),
        "Pass" => Ok(Action::Pass),
        other => Err(format!("`{other}` is not an action")),
    };
    let peers = reduce_peers(&object.peers, direction == "egress");
    let ports = reduce_protocols(object.protocols.as_deref());
    match (action, peers, ports) {
        (Ok(action), Ok(peers), Ok(ports)) => {
            let rule = Rule {
                action,
                peers: Peers::Of(peers),
                ports,
            };
            (rule, None)
        }
        (Ok(Action::Accept), Err(error), _) | (Ok(Action::Accept), _, Err(error)) => {
            let text = format!("{error}: the rule matches nothing");
            (Rule::nothing(), Some(text))
        }
        (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
            let text = format!("{error}: the rule denies everything");
            (Rule::deny_all(), Some(text))
        }
    }
}

fn reduce_peers(peers: &[Map<String, Value>], egress: bool) -> Result<Vec<Peer>, String> {
    if peers.is_empty() {
        return Err("no peers".to_owned());
    }
    let mut reduced = Vec::new();
    for peer in peers {
        let (kind, value) = only("peer", peer)?;
        match kind {
            "networks" if egress => {
                for text in decode::<Vec<String>>(kind, value)? {
                    let cidr = address::parse_network(&text);
                    reduced.push(Peer::Network {
                        cidr: cidr.ok_or_else(|| format!("`{text}` is not a network"))?,
                        except: Vec::new(),
                    });
                }
            }
            "nodes" if egress => reduced.push(Peer::Nodes(selector(kind, value)?)),
            _ => {
                let pods = pods(kind, value)?;
                let pods = pods.ok_or_else(|| format!("`{kind}` peers are not known"))?;
                reduced.push(Peer::Pods(pods));
            }
        }
    }
    Ok(reduced)
}

/// The pods that a subject or a peer of this kind means; `None` where it is of another kind.
fn pods(kind: &str, value: &Value) -> Result<Option<PodMatch>, String> {
    match kind {
        "namespaces" => Ok(Some(PodMatch {
            namespaces: NamespaceMatch::Labelled(selector(kind, value)?),
            pods: Selector::default(),
        })),
        "pods" => {
            let object: NamespacedPod = decode(kind, value)?;
            Ok(Some(PodMatch {
                namespaces: NamespaceMatch::Labelled(labels::reduce(&object.namespace_selector)?),
                pods: labels::reduce(&object.pod_selector)?,
            }))
        }
        _ => Ok(None),
    }
}

fn reduce_protocols(protocols: Option<&[Map<String, Value>]>) -> Result<Ports, String> {
    let Some(protocols) = protocols else {
        return Ok(Ports::Any);
    };
    if protocols.is_empty() {
        return Err("no protocols".to_owned());
    }
    let ports = protocols.iter().map(|object| {
        let (kind, value) = only("protocol", object)?;
        let protocol = match kind {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            "destinationNamedPort" => {
                return Ok(PortMatch::Named {
                    name: decode(kind, value)?,
                    protocol: None,
                });
            }
            _ => return Err(format!("`{kind}` is not a protocol")),
        };
        let matches: Map<String, Value> = decode(kind, value)?;
        let (first, last) = match only("protocol's match", &matches)? {
            ("destinationPort", port) => reduce_port(port)?,
            (other, _) => return Err(format!("`{other}` of a protocol is not known")),
        };
        Ok(PortMatch::Numbers {
            protocol,
            first,
            last,
        })
    });
    ports.collect::<Result<_, _>>().map(Ports::Of)
}

fn reduce_port(port: &Value) -> Result<(u16, u16), String> {
    let port: Map<String, Value> = decode("destinationPort", port)?;
    let (first, last) = match only("port", &port)? {
        ("number", number) => {
            let number = decode("number", number)?;
            (number, number)
        }
        ("range", range) => {
            let PortRange { start, end } = decode("range", range)?;
            (start, end)
        }
        (other, _) => return Err(format!("`{other}` of a port is not known")),
    };
    if first == 0 || last < first {
        return Err(format!("{first} to {last} are no ports"));
    }
    Ok((first, last))
}

/// The only field of an object that must have one.
fn only<'a>(what: &str, object: &'a Map<String, Value>) -> Result<(&'a str, &'a Value), String> {
    let mut fields = object.iter();
    match (fields.next(), fields.next()) {
        (Some((kind, value)), None) => Ok((kind, value)),
        (None, _) => Err(format!("a {what} that says nothing")),
        (Some((one, _)), Some((other, _))) => {
            Err(format!("a {what} that is both `{one}` and `{other}`"))
        }
    }
}

fn selector(field: &str, value: &Value) -> Result<Selector, String> {
    labels::reduce(&decode(field, value)?)
}

fn decode<T: DeserializeOwned>(field: &str, value: &Value) -> Result<T, String> {
    T::deserialize(value).map_err(|error| format!("`{field}`: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reduced(spec: Value) -> Row<Policy> {
        let object = json!({"metadata": {"name": "guard"}, "spec": spec});
        reduce(&serde_json::from_value(object).expect("a ClusterNetworkPolicy"))
    }

    fn spec(field: &str, rules: Value) -> Value {
        json!({"tier": "Admin", "priority": 7, "subject": {"namespaces": {}}, field: rules})
    }

    fn rule(field: &str, rule: Value) -> (Rule, Vec<String>) {
        let row = reduced(spec(field, json!([rule])));
        let policy = row.value.expect("a policy");
        let mut rules = policy.ingress.rules;
        rules.extend(policy.egress.rules);
        let [rule] = <[Rule; 1]>::try_from(rules).expect("a rule");
        (rule, row.problems)
    }

    fn anything() -> Peer {
        Peer::Pods(PodMatch::default())
    }

    #[test]
    fn every_kind_of_peer_is_read() {
        let network = |text: &str| Peer::Network {
            cidr: text.parse().expect("a network"),
            except: Vec::new(),
        };
        for (peer, expected) in [
            (json!({"namespaces": {}}), vec![anything()]),
            (json!({"pods": {"podSelector": {}}}), vec![anything()]),
            (
                json!({"pods": {"podSelector": {}, "namespaceSelector": {}}}),
                vec![anything()],
            ),
            (json!({"nodes": {}}), vec![Peer::Nodes(Selector::default())]),
            (
                json!({"networks": ["10.0.0.0/8", "::/0"]}),
                vec![network("10.0.0.0/8"), network("::/0")],
            ),
        ] {
            let object = json!({"action": "Pass", "to": [peer]});
            let (rule, problems) = rule("egress", object);
            assert_eq!(rule.peers, Peers::Of(expected));
            assert_eq!((rule.action, rule.ports), (Action::Pass, Ports::Any));
            assert_eq!(problems, Vec::<String>::new());
        }
    }

    #[test]
    fn every_kind_of_protocol_is_read() {
        let numbers = |protocol, first, last| PortMatch::Numbers {
            protocol,
            first,
            last,
        };
        for (protocol, expected) in [
            (
                json!({"tcp": {"destinationPort": {"number": 80}}}),
                numbers(Protocol::Tcp, 80, 80),
            ),
            (
                json!({"udp": {"destinationPort": {"range": {"start": 1, "end": 65535}}}}),
                numbers(Protocol::Udp, 1, 65535),
            ),
            (
                json!({"sctp": {"destinationPort": {"number": 9003}}}),
                numbers(Protocol::Sctp, 9003, 9003),
            ),
            (
                json!({"destinationNamedPort": "dns"}),
                PortMatch::Named {
                    name: "dns".into(),
                    protocol: None,
                },
            ),
        ] {
            let object = json!({
                "action": "Deny", "from": [{"namespaces": {}}], "protocols": [protocol],
            });
            let (rule, problems) = rule("ingress", object);
            assert_eq!(rule.ports, Ports::Of(vec![expected]));
            assert_eq!(rule.peers, Peers::Of(vec![anything()]));
            assert_eq!(problems, Vec::<String>::new());
        }
    }

    #[test]
    fn section_2_what_is_not_known_fails_closed() {
        let all = json!({"namespaces": {}});
        let tcp = |port: Value| json!([{"tcp": port}]);
        for (direction, peers, protocols, problem) in [
            (
                "egress",
                json!([all, {"domainNames": ["*.example.org"]}]),
                json!(null),
                "`domainNames` peers are not known",
            ),
            (
                "egress",
                json!([{}]),
                json!(null),
                "a peer that says nothing",
            ),
            ("egress", json!([]), json!(null), "no peers"),
            (
                "egress",
                json!([{"networks": ["10.0.0.0"]}]),
                json!(null),
                "`10.0.0.0` is not a network",
            ),
            (
                "ingress",
                json!([{"networks": ["10.0.0.0/8"]}]),
                json!(null),
                "`networks` peers are not known",
            ),
            (
                "ingress",
                json!([{"nodes": {}}]),
                json!(null),
                "`nodes` peers are not known",
            ),
            (
                "ingress",
                json!([{"namespaces": {}, "pods": {}}]),
                json!(null),
                "a peer that is both `namespaces` and `pods`",
            ),
            ("ingress", json!([all]), json!([]), "no protocols"),
            (
                "ingress",
                json!([all]),
                json!([{}]),
                "a protocol that says nothing",
            ),
            (
                "ingress",
                json!([all]),
                json!([{"icmp": {}}]),
                "`icmp` is not a protocol",
            ),
            (
                "ingress",
                json!([all]),
                tcp(json!({})),
                "a protocol's match that says nothing",
            ),
            (
                "ingress",
                json!([all]),
                tcp(json!({"sourcePort": 1})),
                "`sourcePort` of a protocol is not known",
            ),
            (
                "ingress",
                json!([all]),
                tcp(json!({"destinationPort": {"number": 0}})),
                "0 to 0 are no ports",
            ),
        ] {
            let field = if direction == "egress" { "to" } else { "from" };
            for (action, expected, effect) in [
                ("Accept", Rule::nothing(), "matches nothing"),
                ("Deny", Rule::deny_all(), "denies everything"),
                ("Pass", Rule::deny_all(), "denies everything"),
            ] {
                let object = json!({"action": action, field: peers, "protocols": protocols});
                let (rule, problems) = rule(direction, object.clone());
                assert_eq!(rule, expected, "{object}");
                let text = format!("{direction}[0]: {problem}: the rule {effect}");
                assert_eq!(problems, [text]);
            }
        }
    }

    #[test]
    fn of_a_policy_that_nobody_knows_where_it_stands_only_denials_count() {
        let rules = json!([
            {"action": "Accept", "from": [{"namespaces": {}}]},
            {"action": "Deny", "from": [{"namespaces": {}}]},
        ]);
        let mut unknown_tier = spec("ingress", rules.clone());
        unknown_tier["tier"] = json!("Developer");
        let mut unknown_subject = spec("ingress", rules);
        unknown_subject["subject"] = json!({"serviceAccounts": {}});
        for spec in [unknown_tier, unknown_subject] {
            let row = reduced(spec);
            let policy = row.value.expect("a policy");
            assert_eq!(policy.tier, Tier::Admin);
            assert_eq!(policy.subject, PodMatch::default());
            assert_eq!(policy.ingress.rules[0], Rule::nothing());
            assert_eq!(policy.ingress.rules[1].action, Action::Deny);
            assert_eq!(row.problems.len(), 1);
        }
    }

    #[test]
    fn a_spec_that_cannot_be_read_is_a_problem() {
        let row = reduced(json!({"tier": "Admin", "priority": "high", "subject": {}}));
        assert_eq!(row.value, None);
        let problem = "`spec.priority`: invalid type: string \"high\", expected u16";
        assert_eq!(row.problems, [problem]);
    }
}
