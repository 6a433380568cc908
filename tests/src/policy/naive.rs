//! Who may talk to whom, asked of the objects themselves, one after the other, each time anew.
//!
//! A transcription of the API's documentation: for NetworkPolicy its page "Network Policies" and
//! `types.go` of networking.k8s.io/v1, for ClusterNetworkPolicy `clusternetworkpolicy_types.go` of
//! network-policy-api v0.2. Where these leave room, the decision is named here. It shares nothing
//! with the compiler, and has no concern for speed.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::{core::v1 as core, networking::v1 as networking},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use serde_json::Value;

use super::Cluster;

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

/// Seen from the pod that policies select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    fn policy_type(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }
}

/// What becomes of a packet in one direction, and by what; `None`: nothing speaks of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allow: bool,
    pub by: Option<String>,
}

/// What the other side of a pod is asked for.
#[derive(Clone, Copy)]
struct Asked {
    direction: Direction,
    peer: IpAddr,
    protocol: u8,
    port: u16,
}

/// Whether a connection may be opened to an address. A pod may always reach its own.
pub fn may(cluster: &Cluster, packet: &Packet, audited: bool) -> bool {
    packet.source == packet.destination || may_by_service(cluster, packet, audited)
}

/// Whether a connection may be opened through a Service, which leads to `packet`. It takes both
/// sides: the rules of the source for egress and those of the destination for ingress; a pod that
/// reaches itself is both. A node may always reach its own pods.
pub fn may_by_service(cluster: &Cluster, packet: &Packet, audited: bool) -> bool {
    let egress = pod_at(cluster, packet.source)
        .is_none_or(|pod| decide(cluster, pod, Direction::Egress, packet, audited).allow);
    let ingress = pod_at(cluster, packet.destination).is_none_or(|pod| {
        let own_node = pod_at(cluster, packet.source).is_none()
            && nodes_at(cluster, packet.source)
                .any(|node| node.metadata.name == spec(pod).and_then(|it| it.node_name.clone()));
        own_node || decide(cluster, pod, Direction::Ingress, packet, audited).allow
    });
    egress && ingress
}

/// What the policies of a pod say about a packet that it sends, or that it receives; `audited`: with
/// those that are not enforced.
pub fn decide(
    cluster: &Cluster,
    pod: &core::Pod,
    direction: Direction,
    packet: &Packet,
    audited: bool,
) -> Verdict {
    let asked = Asked {
        direction,
        peer: match direction {
            Direction::Ingress => packet.source,
            Direction::Egress => packet.destination,
        },
        protocol: packet.protocol,
        port: packet.port,
    };
    if let Some(verdict) = ask_tier(cluster, "Admin", pod, asked, audited) {
        return verdict;
    }
    if let Some(verdict) = ask_network_policies(cluster, pod, asked, audited) {
        return verdict;
    }
    let verdict = ask_tier(cluster, "Baseline", pod, asked, audited);
    verdict.unwrap_or(Verdict {
        allow: true,
        by: None,
    })
}

fn ask_network_policies(
    cluster: &Cluster,
    pod: &core::Pod,
    asked: Asked,
    audited: bool,
) -> Option<Verdict> {
    let mut policies: Vec<_> = cluster.network_policies.iter().collect();
    policies.sort_by_key(|policy| policy.metadata.name.clone());
    let applying: Vec<_> = policies
        .into_iter()
        .filter(|policy| audited || !is_audited(cluster, policy))
        .filter(|policy| isolates(policy, pod, asked.direction))
        .collect();
    let first = applying.first()?;
    for policy in &applying {
        let rules = rules_of(policy, asked.direction);
        for (index, (peers, ports)) in rules.into_iter().enumerate() {
            let from = peers.is_empty()
                || peers
                    .iter()
                    .any(|peer| is_peer(cluster, policy, peer, asked.peer));
            let to =
                ports.is_empty() || ports.iter().any(|port| is_port(cluster, pod, port, asked));
            if from && to {
                let (name, direction) = (name_of(&policy.metadata), asked.direction.name());
                return Some(Verdict {
                    allow: true,
                    by: Some(format!("NetworkPolicy {name} {direction} rule {index}")),
                });
            }
        }
    }
    let (name, direction) = (name_of(&first.metadata), asked.direction.name());
    Some(Verdict {
        allow: false,
        by: Some(format!(
            "NetworkPolicy {name} isolates for {direction}, no rule matches"
        )),
    })
}

fn is_audited(cluster: &Cluster, policy: &networking::NetworkPolicy) -> bool {
    let namespaces = cluster.namespaces.iter();
    let mut own = namespaces.filter(|it| it.metadata.name == policy.metadata.namespace);
    says_audit(&policy.metadata) || own.any(|namespace| says_audit(&namespace.metadata))
}

fn says_audit(metadata: &ObjectMeta) -> bool {
    let annotations = metadata.annotations.as_ref();
    let said = annotations.and_then(|it| it.get("lb.io/policy-audit"));
    said.is_some_and(|said| said == "true")
}

/// Whether the policy selects the pod and is about the direction.
fn isolates(policy: &networking::NetworkPolicy, pod: &core::Pod, direction: Direction) -> bool {
    let empty = networking::NetworkPolicySpec::default();
    let spec = policy.spec.as_ref().unwrap_or(&empty);
    let types = spec.policy_types.clone().unwrap_or_default();
    let about = if types.is_empty() {
        match direction {
            Direction::Ingress => true,
            Direction::Egress => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        }
    } else {
        types.iter().any(|text| text == direction.policy_type())
    };
    let own = policy.metadata.namespace == pod.metadata.namespace;
    let selector = spec.pod_selector.as_ref();
    own && about && selector.is_none_or(|it| selects(it, &labels(&pod.metadata)))
}

type Rule<'a> = (
    &'a [networking::NetworkPolicyPeer],
    &'a [networking::NetworkPolicyPort],
);

fn rules_of(policy: &networking::NetworkPolicy, direction: Direction) -> Vec<Rule<'_>> {
    let Some(spec) = &policy.spec else {
        return Vec::new();
    };
    let ingress = spec.ingress.iter().flatten();
    let egress = spec.egress.iter().flatten();
    match direction {
        Direction::Ingress => ingress
            .map(|rule| (list(rule.from.as_ref()), list(rule.ports.as_ref())))
            .collect(),
        Direction::Egress => egress
            .map(|rule| (list(rule.to.as_ref()), list(rule.ports.as_ref())))
            .collect(),
    }
}

fn list<T>(list: Option<&Vec<T>>) -> &[T] {
    list.map_or(&[], Vec::as_slice)
}

/// Whether an address is meant by a peer. The network of an `ipBlock` holds pods like anybody else.
fn is_peer(
    cluster: &Cluster,
    policy: &networking::NetworkPolicy,
    peer: &networking::NetworkPolicyPeer,
    address: IpAddr,
) -> bool {
    if let Some(block) = &peer.ip_block {
        let except = block.except.iter().flatten();
        return is_in(&block.cidr, address) && !except.into_iter().any(|it| is_in(it, address));
    }
    let Some(pod) = pod_at(cluster, address) else {
        return false;
    };
    let namespace = match &peer.namespace_selector {
        Some(selector) => selects(selector, &namespace_labels(cluster, pod)),
        None => policy.metadata.namespace == pod.metadata.namespace,
    };
    let selector = peer.pod_selector.as_ref();
    namespace && selector.is_none_or(|it| selects(it, &labels(&pod.metadata)))
}

fn is_port(
    cluster: &Cluster,
    pod: &core::Pod,
    port: &networking::NetworkPolicyPort,
    asked: Asked,
) -> bool {
    if protocol_number(port.protocol.as_deref().unwrap_or("TCP")) != Some(asked.protocol) {
        return false;
    }
    match (&port.port, port.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), last) => {
            (*first..=last.unwrap_or(*first)).contains(&i32::from(asked.port))
        }
        (Some(IntOrString::String(name)), _) => {
            destination(cluster, pod, asked).is_some_and(|it| calls(it, name, asked))
        }
    }
}

/// The pod whose ports a rule means: the one that is connected to.
fn destination<'a>(
    cluster: &'a Cluster,
    pod: &'a core::Pod,
    asked: Asked,
) -> Option<&'a core::Pod> {
    match asked.direction {
        Direction::Ingress => Some(pod),
        Direction::Egress => pod_at(cluster, asked.peer),
    }
}

/// Whether the pod calls the port by the name: any of its containers that run as long as it does.
fn calls(pod: &core::Pod, name: &str, asked: Asked) -> bool {
    let Some(spec) = spec(pod) else {
        return false;
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars);
    let mut ports = ports.flat_map(|container| container.ports.iter().flatten());
    ports.any(|port| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        port.name.as_deref() == Some(name)
            && protocol_number(protocol) == Some(asked.protocol)
            && port.container_port == i32::from(asked.port)
    })
}

/// What the ClusterNetworkPolicies of a tier say: the first rule that matches, by priority, then by
/// name, then by its place. `None` where none does, or where it passes on to the next tier.
fn ask_tier(
    cluster: &Cluster,
    tier: &str,
    pod: &core::Pod,
    asked: Asked,
    audited: bool,
) -> Option<Verdict> {
    let mut policies: Vec<&Value> = cluster
        .cluster_network_policies
        .iter()
        .filter(|policy| policy["spec"]["tier"] == tier)
        .filter(|policy| {
            let said = &policy["metadata"]["annotations"]["lb.io/policy-audit"];
            audited || said != "true"
        })
        .filter(|policy| is_subject(cluster, pod, &policy["spec"]["subject"]))
        .collect();
    policies.sort_by_key(|policy| {
        let name = policy["metadata"]["name"].as_str();
        (policy["spec"]["priority"].as_u64(), name)
    });
    for policy in policies {
        let rules = policy["spec"][asked.direction.name()].as_array();
        for (index, rule) in rules.into_iter().flatten().enumerate() {
            let action = effective_action(rule, asked.direction);
            let matches = match action {
                Effect::Nothing => continue,
                Effect::DenyAll => true,
                Effect::Does(_) => is_rule_for(cluster, pod, rule, asked),
            };
            if !matches {
                continue;
            }
            let allow = match action {
                Effect::Does("Accept") => true,
                Effect::Does("Pass") if tier == "Admin" => return None,
                Effect::Does("Pass") => true,
                _ => false,
            };
            let name = policy["metadata"]["name"].as_str().unwrap_or_default();
            let direction = asked.direction.name();
            return Some(Verdict {
                allow,
                by: Some(format!(
                    "ClusterNetworkPolicy {name} {direction} rule {index}"
                )),
            });
        }
    }
    None
}

#[derive(Clone, Copy)]
enum Effect<'a> {
    Does(&'a str),
    Nothing,
    DenyAll,
}

/// The action of a rule. With a peer of a kind that is not known, an "Accept" matches nothing, and
/// any other denies everything.
fn effective_action(rule: &Value, direction: Direction) -> Effect<'_> {
    let known: &[&str] = match direction {
        Direction::Ingress => &["namespaces", "pods"],
        Direction::Egress => &["namespaces", "pods", "networks", "nodes"],
    };
    let peers = peers_of(rule, direction);
    let clear = peers.iter().all(|peer| {
        let mut kinds = peer.as_object().into_iter().flat_map(serde_json::Map::keys);
        kinds
            .next()
            .is_some_and(|kind| known.contains(&kind.as_str()))
    });
    match (rule["action"].as_str().unwrap_or_default(), clear) {
        (action, true) => Effect::Does(action),
        ("Accept", false) => Effect::Nothing,
        (_, false) => Effect::DenyAll,
    }
}

fn peers_of(rule: &Value, direction: Direction) -> &[Value] {
    let field = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    rule[field].as_array().map_or(&[], Vec::as_slice)
}

fn is_rule_for(cluster: &Cluster, pod: &core::Pod, rule: &Value, asked: Asked) -> bool {
    let mut peers = peers_of(rule, asked.direction).iter();
    let protocols = rule["protocols"].as_array();
    peers.any(|peer| is_cluster_peer(cluster, peer, asked.peer))
        && protocols.is_none_or(|protocols| {
            protocols
                .iter()
                .any(|it| is_protocol(cluster, pod, it, asked))
        })
}

fn is_cluster_peer(cluster: &Cluster, peer: &Value, address: IpAddr) -> bool {
    if let Some(networks) = peer["networks"].as_array() {
        let mut networks = networks.iter().filter_map(Value::as_str);
        return networks.any(|network| is_in(network, address));
    }
    let pod = pod_at(cluster, address);
    if let Some(selector) = peer.get("nodes") {
        // A peer that means nodes never means a pod.
        let mut nodes = nodes_at(cluster, address);
        return pod.is_none() && nodes.any(|it| selects(&read(selector), &labels(&it.metadata)));
    }
    pod.is_some_and(|pod| is_subject(cluster, pod, peer))
}

/// Whether the pod is meant by a subject, or by a peer of the same form.
fn is_subject(cluster: &Cluster, pod: &core::Pod, subject: &Value) -> bool {
    let of_namespace = namespace_labels(cluster, pod);
    if let Some(selector) = subject.get("namespaces") {
        return selects(&read(selector), &of_namespace);
    }
    let Some(pods) = subject.get("pods") else {
        return false;
    };
    let namespaces: LabelSelector = read(&pods["namespaceSelector"]);
    let selector: LabelSelector = read(&pods["podSelector"]);
    selects(&namespaces, &of_namespace) && selects(&selector, &labels(&pod.metadata))
}

fn is_protocol(cluster: &Cluster, pod: &core::Pod, protocol: &Value, asked: Asked) -> bool {
    if let Some(name) = protocol["destinationNamedPort"].as_str() {
        return destination(cluster, pod, asked).is_some_and(|it| calls(it, name, asked));
    }
    let (name, number) = match asked.protocol {
        6 => ("tcp", asked.port),
        17 => ("udp", asked.port),
        132 => ("sctp", asked.port),
        _ => return false,
    };
    let port = &protocol[name]["destinationPort"];
    let number = u64::from(number);
    let range = &port["range"];
    port["number"] == number
        || range["start"].as_u64().is_some_and(|start| start <= number)
            && range["end"].as_u64().is_some_and(|end| number <= end)
}

/// The pod that has the address: one that shares its node's network is its node, and one that has
/// finished may have lost it to another.
fn pod_at(cluster: &Cluster, address: IpAddr) -> Option<&core::Pod> {
    let mut pods = cluster.pods.iter().filter(|pod| {
        let finished = pod.status.as_ref().and_then(|it| it.phase.as_deref());
        let finished = matches!(finished, Some("Succeeded" | "Failed"));
        let on_host = spec(pod).is_some_and(|it| it.host_network == Some(true));
        let placed = spec(pod).is_some_and(|it| it.node_name.is_some());
        placed && !finished && !on_host
    });
    pods.find(|pod| {
        let ips = pod.status.iter().flat_map(|it| it.pod_ips.iter().flatten());
        let mut ips = ips.filter_map(|ip| ip.ip.parse::<IpAddr>().ok());
        ips.any(|ip| ip == address)
    })
}

fn nodes_at(cluster: &Cluster, address: IpAddr) -> impl Iterator<Item = &core::Node> {
    cluster.nodes.iter().filter(move |node| {
        let addresses = node
            .status
            .iter()
            .flat_map(|it| it.addresses.iter().flatten());
        let mut addresses = addresses.filter_map(|it| it.address.parse::<IpAddr>().ok());
        addresses.any(|it| it == address)
    })
}

fn spec(pod: &core::Pod) -> Option<&core::PodSpec> {
    pod.spec.as_ref()
}

fn namespace_labels(cluster: &Cluster, pod: &core::Pod) -> BTreeMap<String, String> {
    let mut namespaces = cluster.namespaces.iter();
    let own = namespaces.find(|it| it.metadata.name == pod.metadata.namespace);
    own.map(|namespace| labels(&namespace.metadata))
        .unwrap_or_default()
}

fn labels(metadata: &ObjectMeta) -> BTreeMap<String, String> {
    metadata.labels.clone().unwrap_or_default()
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let mut equal = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    equal.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|expression| {
            let values = list(expression.values.as_ref());
            let value = labels.get(&expression.key);
            match expression.operator.as_str() {
                "In" => value.is_some_and(|value| values.contains(value)),
                "NotIn" => !value.is_some_and(|value| values.contains(value)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

fn is_in(network: &str, address: IpAddr) -> bool {
    network
        .parse::<IpNet>()
        .is_ok_and(|it| it.contains(&address))
}

fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

fn name_of(metadata: &ObjectMeta) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
}

fn read<T: serde::de::DeserializeOwned + Default>(value: &Value) -> T {
    T::deserialize(value).unwrap_or_default()
}
