//! Two sets of policies, compared, and held against the API's documentation.

use std::{collections::BTreeSet, net::IpAddr};

use lb_tests::policy::{Cluster, Direction, Packet, decide, may, yaml};
use lb_userspace::connectivity::{Change, Difference, Party, PortSpan, compare};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    generate::{addresses, history, packets, running},
    tables::{cluster, everywhere},
};

fn difference(old: &[Value], new: &[Value]) -> Difference {
    compare(&everywhere(&cluster(old)), &everywhere(&cluster(new)))
}

fn text(object: &Value, field: &str) -> String {
    let text = object["metadata"][field].as_str();
    text.expect("a name").to_owned()
}

/// Who has an address in one set: the pod, or else the nodes.
fn holders(objects: &[Value], address: IpAddr) -> BTreeSet<String> {
    let parse = |it: &Value| it.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    let pods = running(objects).into_iter().filter(|pod| {
        let ips = pod["status"]["podIPs"].as_array();
        ips.into_iter()
            .flatten()
            .any(|ip| parse(&ip["ip"]) == Some(address))
    });
    let pods: BTreeSet<_> = pods
        .map(|pod| format!("{}/{}", text(pod, "namespace"), text(pod, "name")))
        .collect();
    if !pods.is_empty() {
        return pods;
    }
    let nodes = objects.iter().filter(|object| {
        let own = object["status"]["addresses"].as_array();
        let own = own.into_iter().flatten();
        object["kind"] == "Node"
            && own
                .map(|it| parse(&it["address"]))
                .any(|it| it == Some(address))
    });
    nodes.map(|node| text(node, "name")).collect()
}

fn is_party(party: &Party, holders: &BTreeSet<String>, address: IpAddr) -> bool {
    match party {
        Party::Pod { name, .. } => holders.contains(&name.to_string()),
        Party::Node { name, address: own } => *own == address && holders.contains(name),
        Party::Network(network) => holders.is_empty() && network.contains(address),
    }
}

fn is_in(span: &PortSpan, packet: &Packet) -> bool {
    let protocol = span.protocol.map(lb_userspace::world::Protocol::number);
    let known = [6, 17, 132]
        .contains(&packet.protocol)
        .then_some(packet.protocol);
    protocol == known && (known.is_none() || (span.first..=span.last).contains(&packet.port))
}

fn speaks_of(change: &Change, packet: &Packet, ends: &[BTreeSet<String>; 2]) -> bool {
    let is_v4 = packet.source.is_ipv4();
    let family = change
        .family
        .is_none_or(|it| (it == lb_userspace::world::Family::IPv4) == is_v4);
    let [source, destination] = ends;
    let from = |party| is_party(party, source, packet.source);
    let to = |party| is_party(party, destination, packet.destination);
    family
        && change.sources.iter().any(from)
        && change.destinations.iter().any(to)
        && change.ports.iter().any(|span| is_in(span, packet))
}

/// The rules by which a connection is allowed or denied.
fn reasons(cluster: &Cluster, packet: &Packet) -> Vec<String> {
    let pod_at = |address: IpAddr| {
        let mut pods = cluster.pods.iter().filter(|pod| {
            let status = pod.status.as_ref();
            let ips = status.and_then(|status| status.pod_ips.as_ref());
            let here = ips
                .into_iter()
                .flatten()
                .any(|ip| ip.ip.parse() == Ok(address));
            let running = status.is_some_and(|it| it.phase.as_deref() == Some("Running"));
            let on_host = pod
                .spec
                .as_ref()
                .is_some_and(|it| it.host_network == Some(true));
            here && running && !on_host
        });
        pods.next()
    };
    let allowed = may(cluster, packet, false);
    let (source, destination) = (pod_at(packet.source), pod_at(packet.destination));
    let own_node = destination.is_some_and(|pod| {
        let names = cluster.nodes.iter().filter(|node| {
            let status = node.status.as_ref().and_then(|it| it.addresses.as_ref());
            let text = packet.source.to_string();
            status.into_iter().flatten().any(|it| it.address == text)
        });
        let own = pod.spec.as_ref().and_then(|it| it.node_name.clone());
        source.is_none()
            && names
                .map(|it| it.metadata.name.clone())
                .any(|name| name == own)
    });
    let egress = source.map(|pod| decide(cluster, pod, Direction::Egress, packet, false));
    let ingress = destination.map(|pod| decide(cluster, pod, Direction::Ingress, packet, false));
    let asked = egress.into_iter().chain(ingress.filter(|_| !own_node));
    let saying = asked.filter(|verdict| verdict.allow == allowed);
    saying.filter_map(|verdict| verdict.by).collect()
}

/// The first packet of which the comparison says anything but the documentation.
fn mistake(old: &[Value], new: &[Value]) -> Option<String> {
    let told = difference(old, new);
    let clusters = [cluster(old), cluster(new)];
    let all: BTreeSet<IpAddr> = addresses(old).into_iter().chain(addresses(new)).collect();
    for source in &all {
        for destination in &all {
            if source == destination || source.is_ipv4() != destination.is_ipv4() {
                continue;
            }
            // Those that are somebody else's in the other set are told of by name.
            let ends = [source, destination].map(|end| [old, new].map(|set| holders(set, *end)));
            if ends.iter().any(|[old, new]| old != new) {
                continue;
            }
            let ends = ends.map(|[old, _]| old);
            for packet in packets(*source, *destination) {
                let [was, is] = [0, 1].map(|set| may(&clusters[set], &packet, false));
                let meant = (was != is).then(|| {
                    let [old, new] = [0, 1].map(|set| reasons(&clusters[set], &packet));
                    (is, old, new)
                });
                let changes = told.changes.iter();
                let speaking: Vec<_> = changes
                    .filter(|change| speaks_of(change, &packet, &ends))
                    .map(|it| (it.allowed, it.old.clone(), it.new.clone()))
                    .collect();
                if speaking != Vec::from_iter(meant.clone()) {
                    return Some(format!(
                        "{packet:?}\nmeant {meant:?}\ntold  {speaking:?}\n{}\n# new\n{}",
                        yaml(old).expect("YAML"),
                        yaml(new).expect("YAML"),
                    ));
                }
            }
        }
    }
    None
}

/// With the Namespaces that the apiserver would have.
fn complete(mut objects: Vec<Value>) -> Vec<Value> {
    for name in ["x", "y", "z"] {
        let own = |it: &Value| it["kind"] == "Namespace" && it["metadata"]["name"] == name;
        if !objects.iter().any(own) {
            let labels = json!({ "kubernetes.io/metadata.name": name });
            let metadata = json!({ "name": name, "labels": labels });
            objects.push(json!({ "kind": "Namespace", "metadata": metadata }));
        }
    }
    objects
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, max_shrink_iters: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_difference_is_what_the_documentation_decides_otherwise(history in history()) {
        let sets: Vec<_> = history.into_iter().map(complete).collect();
        for pair in sets.windows(2) {
            if let Some(mistake) = mistake(&pair[0], &pair[1]) {
                prop_assert!(false, "{}", mistake);
            }
        }
    }

    #[test]
    fn equal_sets_differ_in_nothing(history in history()) {
        for objects in &history {
            let mut reversed = objects.clone();
            reversed.reverse();
            let told = difference(objects, &reversed);
            prop_assert!(told.is_empty(), "{}", told);
        }
    }
}
