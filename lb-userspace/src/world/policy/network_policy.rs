//! NetworkPolicies of networking.k8s.io/v1.

use k8s_openapi::{
    api::networking::v1 as networking, apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    Action, NamespaceMatch, Peer, Peers, PodMatch, Policy, PortMatch, Ports, Rule, Side, Tier,
};
use crate::{
    source::annotations::POLICY_AUDIT,
    world::{Protocol, Row, Selector, address, labels},
};

/// The row of a NetworkPolicy, with what the apiserver would have filled in
/// (`SetDefaults_NetworkPolicy` of Kubernetes). What the apiserver would not take allows nothing.
pub fn reduce(object: &networking::NetworkPolicy) -> Row<Policy> {
    let mut problems = Vec::new();
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let empty = networking::NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let (isolates_ingress, isolates_egress) = types(spec, &mut problems);
    let pods = labels::reduce_or_all(spec.pod_selector.as_ref());
    // Rules for pods that nobody knows would open others.
    let readable = pods.is_ok();
    let pods = pods.unwrap_or_else(|error| {
        problems.push(format!(
            "podSelector: {error}: every pod of the namespace is isolated"
        ));
        Selector::default()
    });
    let ingress = spec.ingress.iter().flatten();
    let ingress = ingress.map(|rule| (rule.from.as_deref(), rule.ports.as_deref()));
    let egress = spec.egress.iter().flatten();
    let egress = egress.map(|rule| (rule.to.as_deref(), rule.ports.as_deref()));
    let mut rules = |isolates: bool, rules: Vec<_>, field| Side {
        isolates,
        rules: rules
            .into_iter()
            .filter(|_| isolates && readable)
            .enumerate()
            .map(|(index, (peers, ports))| {
                reduce_rule(namespace, peers, ports, &mut |problem| {
                    problems.push(format!("{field}[{index}]{problem}"));
                })
            })
            .collect(),
    };
    let value = Policy {
        tier: Tier::NetworkPolicy,
        priority: 0,
        ingress: rules(isolates_ingress, ingress.collect(), "ingress"),
        egress: rules(isolates_egress, egress.collect(), "egress"),
        audited: POLICY_AUDIT.read(&object.metadata, &mut problems) == "true",
        subject: PodMatch {
            namespaces: NamespaceMatch::Named(namespace.to_owned()),
            pods,
        },
    };
    Row {
        value: Some(value),
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
}

/// Whether the policy isolates for ingress, and for egress.
fn types(spec: &networking::NetworkPolicySpec, problems: &mut Vec<String>) -> (bool, bool) {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        return (true, egress);
    }
    let names = |name: &str| types.iter().any(|text| text == name);
    let unknown = types
        .iter()
        .find(|text| !["Ingress", "Egress"].contains(&text.as_str()));
    if let Some(unknown) = unknown {
        problems.push(format!(
            "policyTypes: `{unknown}` is not a type: the policy isolates in both directions"
        ));
    }
    let any = unknown.is_some();
    (names("Ingress") || any, names("Egress") || any)
}

fn reduce_rule(
    namespace: &str,
    peers: Option<&[networking::NetworkPolicyPeer]>,
    ports: Option<&[networking::NetworkPolicyPort]>,
    problem: &mut dyn FnMut(String),
) -> Rule {
    let peers = match peers.unwrap_or_default() {
        [] => Peers::Any,
        peers => Peers::Of(
            kept(peers.iter().map(|peer| reduce_peer(namespace, peer)), |e| {
                problem(format!(": {e}: this peer is left out"));
            })
            .collect(),
        ),
    };
    let ports = match ports.unwrap_or_default() {
        [] => Ports::Any,
        ports => Ports::Of(
            kept(ports.iter().map(reduce_port), |e| {
                problem(format!(": {e}: this port is left out"));
            })
            .collect(),
        ),
    };
    Rule {
        action: Action::Accept,
        peers,
        ports,
    }
}

/// Those that can be read; the others are told.
fn kept<T>(
    items: impl Iterator<Item = Result<T, String>>,
    mut problem: impl FnMut(String),
) -> impl Iterator<Item = T> {
    items.filter_map(move |item| item.map_err(&mut problem).ok())
}

fn reduce_peer(namespace: &str, peer: &networking::NetworkPolicyPeer) -> Result<Peer, String> {
    let networking::NetworkPolicyPeer {
        ip_block,
        namespace_selector,
        pod_selector,
    } = peer;
    match (ip_block, namespace_selector, pod_selector) {
        (Some(block), None, None) => reduce_block(block),
        (None, None, None) => Err("a peer that says nothing".to_owned()),
        (Some(_), _, _) => Err("an `ipBlock` beside a selector".to_owned()),
        (None, namespaces, pods) => Ok(Peer::Pods(PodMatch {
            namespaces: match namespaces {
                Some(namespaces) => NamespaceMatch::Labelled(labels::reduce(namespaces)?),
                None => NamespaceMatch::Named(namespace.to_owned()),
            },
            pods: labels::reduce_or_all(pods.as_ref())?,
        })),
    }
}

fn reduce_block(block: &networking::IPBlock) -> Result<Peer, String> {
    let network = |text: &String| {
        address::parse_network(text.trim()).ok_or_else(|| format!("`{text}` is not a network"))
    };
    let except = block.except.iter().flatten().map(network);
    Ok(Peer::Network {
        cidr: network(&block.cidr)?,
        except: except.collect::<Result<_, _>>()?,
    })
}

fn reduce_port(port: &networking::NetworkPolicyPort) -> Result<PortMatch, String> {
    let networking::NetworkPolicyPort {
        end_port,
        port,
        protocol,
    } = port;
    let protocol = Protocol::parse(protocol.as_deref()).map_err(|error| error.to_string())?;
    let number = |number: i32| {
        let valid = u16::try_from(number).ok().filter(|number| *number > 0);
        valid.ok_or_else(|| format!("`{number}` is not a port"))
    };
    match (port, end_port) {
        (None, None) => Ok(PortMatch::Numbers {
            protocol,
            first: 0,
            last: u16::MAX,
        }),
        (Some(IntOrString::String(name)), None) => Ok(PortMatch::Named {
            name: name.clone(),
            protocol: Some(protocol),
        }),
        (Some(IntOrString::Int(first)), end) => {
            let (first, last) = (number(*first)?, number(end.unwrap_or(*first))?);
            if last < first {
                return Err(format!("endPort {last} is less than port {first}"));
            }
            Ok(PortMatch::Numbers {
                protocol,
                first,
                last,
            })
        }
        (None | Some(IntOrString::String(_)), Some(_)) => {
            Err("`endPort` without a port number".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reduced(spec: Value) -> (Policy, Vec<String>) {
        let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec});
        let row = reduce(&serde_json::from_value(object).expect("a NetworkPolicy"));
        (row.value.expect("a policy"), row.problems)
    }

    fn rule(rule: Value) -> (Rule, Vec<String>) {
        let (policy, problems) = reduced(json!({"ingress": [rule]}));
        let [rule] = <[Rule; 1]>::try_from(policy.ingress.rules).expect("a rule");
        (rule, problems)
    }

    #[test]
    fn row_2_policy_types_default_to_ingress_and_to_egress_where_it_has_rules() {
        for (spec, ingress, egress) in [
            (json!({}), true, false),
            (json!({"egress": []}), true, false),
            (json!({"egress": [{}]}), true, true),
            (json!({"policyTypes": []}), true, false),
            (json!({"policyTypes": ["Egress"]}), false, true),
            (
                json!({"policyTypes": ["Egress"], "ingress": [{}]}),
                false,
                true,
            ),
            (
                json!({"policyTypes": ["Ingress"], "egress": [{}]}),
                true,
                false,
            ),
            (json!({"policyTypes": ["Sideways"]}), true, true),
        ] {
            let (policy, _) = reduced(spec.clone());
            let isolates = (policy.ingress.isolates, policy.egress.isolates);
            assert_eq!(isolates, (ingress, egress), "{spec}");
            assert!(ingress || policy.ingress.rules.is_empty(), "{spec}");
            assert!(egress || policy.egress.rules.is_empty(), "{spec}");
        }
    }

    #[test]
    fn row_3_a_port_without_a_protocol_is_tcp() {
        for (port, expected) in [
            (json!({"port": 80}), (Protocol::Tcp, 80, 80)),
            (
                json!({"port": 53, "protocol": "UDP"}),
                (Protocol::Udp, 53, 53),
            ),
            (json!({"protocol": "SCTP"}), (Protocol::Sctp, 0, u16::MAX)),
            (json!({"port": 80, "endPort": 90}), (Protocol::Tcp, 80, 90)),
        ] {
            let (rule, problems) = rule(json!({"ports": [port]}));
            let (protocol, first, last) = expected;
            let expected = PortMatch::Numbers {
                protocol,
                first,
                last,
            };
            assert_eq!(rule.ports, Ports::Of(vec![expected]));
            assert_eq!(problems, Vec::<String>::new());
        }
    }

    #[test]
    fn row_4_absent_and_empty_lists_are_the_same() {
        for rules in [json!(null), json!([])] {
            let (policy, _) = reduced(json!({"ingress": rules}));
            assert!(policy.ingress.isolates && policy.ingress.rules.is_empty());
        }
        for lists in [
            json!({}),
            json!({"from": [], "ports": []}),
            json!({"from": null}),
        ] {
            let (rule, _) = rule(lists);
            assert_eq!((rule.peers, rule.ports), (Peers::Any, Ports::Any));
        }
    }

    #[test]
    fn row_5_a_peer_is_of_its_own_namespace_unless_it_says_otherwise() {
        let own = NamespaceMatch::Named("shop".to_owned());
        let all = NamespaceMatch::default();
        for (peer, namespaces) in [
            (json!({"podSelector": {}}), own),
            (json!({"namespaceSelector": {}}), all.clone()),
            (json!({"namespaceSelector": {}, "podSelector": {}}), all),
        ] {
            let (rule, _) = rule(json!({"from": [peer]}));
            let pods = Selector::default();
            let expected = Peer::Pods(PodMatch { namespaces, pods });
            assert_eq!(rule.peers, Peers::Of(vec![expected]));
        }
    }

    #[test]
    fn what_the_apiserver_would_not_take_allows_nothing() {
        for (rejected, problem) in [
            (
                json!({"from": [{}]}),
                ": a peer that says nothing: this peer is left out",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
                ": an `ipBlock` beside a selector: this peer is left out",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}),
                ": `10.0.0.0` is not a network: this peer is left out",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}}]}),
                ": `x` is not a network: this peer is left out",
            ),
            (
                json!({"ports": [{"port": 0}]}),
                ": `0` is not a port: this port is left out",
            ),
            (
                json!({"ports": [{"port": 80, "endPort": 79}]}),
                ": endPort 79 is less than port 80: this port is left out",
            ),
            (
                json!({"ports": [{"port": "http", "endPort": 79}]}),
                ": `endPort` without a port number: this port is left out",
            ),
            (
                json!({"ports": [{"protocol": "ICMP"}]}),
                ": `ICMP` is not a protocol: this port is left out",
            ),
        ] {
            let (rule, problems) = rule(rejected);
            assert_eq!(problems, [format!("ingress[0]{problem}")]);
            let nothing =
                rule.peers == Peers::Of(Vec::new()) || rule.ports == Ports::Of(Vec::new());
            assert!(nothing, "{rule:?}");
        }
    }

    #[test]
    fn a_policy_that_nobody_knows_whom_it_selects_isolates_its_namespace() {
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "Like"}]});
        let (policy, problems) = reduced(json!({"podSelector": selector, "ingress": [{}]}));
        assert_eq!(policy.subject.pods, Selector::default());
        assert!(policy.ingress.isolates && policy.ingress.rules.is_empty());
        assert_eq!(problems.len(), 1);
    }
}
