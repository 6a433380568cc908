//! Pods.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::{Labels, Protocol, Row, address};
use crate::source::annotations::{ALLOWED_SOURCES, SOCKET_LB};

/// A pod with a network of its own that has a node and has not finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Name of the Node that it runs on.
    pub node: String,
    pub ips: Vec<IpAddr>,
    pub labels: Labels,
    pub named_ports: BTreeSet<NamedPort>,
    /// It is about to go; until then it keeps its connections and its rules.
    pub terminating: bool,
    /// What only a pod of this node has.
    pub local: Option<LocalPod>,
}

/// What counts of a pod of this node alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalPod {
    /// As the kubelet writes it into the names of the pod's cgroups, but for `-` or `_`.
    pub uid: String,
    /// Whether its processes reach services at socket level, whatever other pods do.
    pub socket_lb: bool,
    /// What it asks to send from besides its own addresses.
    pub asked_sources: BTreeSet<IpNet>,
}

/// A port that containers of a pod call by a name; several may give one name to different ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    pub name: String,
    pub protocol: Protocol,
    pub number: u16,
}

/// The row of a Pod, for the agent of `node`. One that shares its node's network is its node; that
/// one, one that has finished and one without a node have no value.
pub fn reduce(object: &core::Pod, node: &str) -> Row<Pod> {
    let mut problems = Vec::new();
    let spec = object.spec.as_ref();
    let value = is_on_network(object).then(|| Pod {
        node: spec
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default(),
        ips: reduce_ips(object, &mut problems),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        named_ports: reduce_ports(object),
        terminating: object.metadata.deletion_timestamp.is_some(),
        local: is_on(object, node).then(|| LocalPod {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            socket_lb: SOCKET_LB.read(&object.metadata, &mut problems) == "true",
            asked_sources: ALLOWED_SOURCES.read_networks(&object.metadata, &mut problems),
        }),
    });
    Row {
        value,
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
}

fn is_on_network(object: &core::Pod) -> bool {
    let finished = object
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    let own_network = object.spec.as_ref().is_some_and(|spec| {
        spec.node_name.as_ref().is_some_and(|name| !name.is_empty())
            && spec.host_network != Some(true)
    });
    own_network && !finished
}

fn is_on(object: &core::Pod, node: &str) -> bool {
    let spec = object.spec.as_ref();
    spec.is_some_and(|spec| spec.node_name.as_deref() == Some(node))
}

/// The named ports of what runs for as long as the pod does: containers, and init containers that
/// are always restarted (KEP-753).
fn reduce_ports(object: &core::Pod) -> BTreeSet<NamedPort> {
    let Some(spec) = &object.spec else {
        return BTreeSet::new();
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter_map(|port| {
        Some(NamedPort {
            name: port.name.clone().filter(|name| !name.is_empty())?,
            protocol: Protocol::parse(port.protocol.as_deref()).ok()?,
            number: u16::try_from(port.container_port).ok()?,
        })
    });
    named.collect()
}

fn reduce_ips(object: &core::Pod, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let Some(status) = &object.status else {
        return Vec::new();
    };
    let texts: Vec<&str> = match status.pod_ips.as_deref() {
        Some(ips) if !ips.is_empty() => ips.iter().map(|ip| ip.ip.as_str()).collect(),
        _ => status.pod_ip.as_deref().into_iter().collect(),
    };
    let addresses = texts.into_iter().map(address::parse);
    addresses
        .filter_map(|address| address.map_err(|reason| problems.push(reason)).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reduced(spec: Value, status: Value) -> Row<Pod> {
        let object = json!({"spec": spec, "status": status});
        reduce(&serde_json::from_value(object).expect("a Pod"), "n1")
    }

    fn spec() -> Value {
        json!({"nodeName": "n1", "containers": []})
    }

    #[test]
    fn row_28_a_pod_has_all_its_addresses() {
        for (status, expected) in [
            (json!({"phase": "Pending"}), vec![]),
            (
                json!({"phase": "Running", "podIP": "10.0.0.1"}),
                vec!["10.0.0.1"],
            ),
            (
                json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}),
                vec!["10.0.0.1", "fd00::1"],
            ),
        ] {
            let ips = reduced(spec(), status).value.expect("a pod").ips;
            let ips: Vec<_> = ips.iter().map(IpAddr::to_string).collect();
            assert_eq!(ips, expected);
        }
    }

    #[test]
    fn a_pod_may_ask_for_services_at_socket_level() {
        let asked = |value: &str| {
            let metadata = json!({"uid": "1-2", "annotations": {SOCKET_LB.key: value}});
            let object = json!({"metadata": metadata, "spec": spec()});
            let row = reduce(&serde_json::from_value(object).expect("a Pod"), "n1");
            let local = row.value.expect("a pod").local.expect("a local pod");
            assert_eq!(local.uid, "1-2");
            (local.socket_lb, row.problems.len())
        };
        assert_eq!(asked("true"), (true, 0));
        assert_eq!(asked("false"), (false, 0));
        assert_eq!(asked("yes"), (false, 1));
        let silent = reduced(spec(), json!({})).value.expect("a pod");
        assert!(!silent.local.expect("a local pod").socket_lb);
    }

    #[test]
    fn rows_20_and_27_pods_on_the_host_network_finished_or_without_a_node_have_no_row() {
        let containers = json!([]);
        let running = json!({"podIP": "10.0.0.1"});
        for (spec, status) in [
            (json!({"containers": containers}), running.clone()),
            (
                json!({"nodeName": "n1", "hostNetwork": true, "containers": containers}),
                running,
            ),
            (spec(), json!({"phase": "Succeeded", "podIP": "10.0.0.1"})),
            (spec(), json!({"phase": "Failed", "podIP": "10.0.0.1"})),
        ] {
            assert_eq!(reduced(spec, status).value, None);
        }
    }

    #[test]
    fn row_26_a_terminating_pod_keeps_its_row() {
        let metadata = json!({"deletionTimestamp": "2026-11-21T12:00:00Z"});
        let object = json!({"metadata": metadata, "spec": spec()});
        let row = reduce(&serde_json::from_value(object).expect("a Pod"), "n1");
        assert!(row.value.expect("a pod").terminating);
    }

    #[test]
    fn a_pod_elsewhere_is_not_local() {
        let elsewhere = json!({"nodeName": "n2", "containers": []});
        let pod = reduced(elsewhere, json!({"podIP": "10.0.0.1"})).value;
        let pod = pod.expect("a pod");
        assert_eq!((pod.local, pod.ips.len()), (None, 1));
    }

    #[test]
    fn row_11_ports_have_names_in_containers_and_sidecars() {
        let ports = |name: &str, number: u16| json!([{"name": name, "containerPort": number}]);
        let spec = json!({
            "nodeName": "n1",
            "containers": [
                {"name": "a", "ports": ports("http", 80)},
                {"name": "b", "ports": [
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                    {"containerPort": 9},
                ]},
            ],
            "initContainers": [
                {"name": "c", "restartPolicy": "Always", "ports": ports("metrics", 90)},
                {"name": "d", "ports": ports("setup", 91)},
            ],
        });
        let pod = reduced(spec, json!({})).value.expect("a pod");
        let ports: Vec<_> = pod.named_ports.iter().collect();
        let ports: Vec<_> = ports
            .iter()
            .map(|port| format!("{} {} {}", port.name, port.protocol, port.number))
            .collect();
        assert_eq!(ports, ["dns UDP 53", "http TCP 80", "metrics TCP 90"]);
    }

    #[test]
    fn an_address_of_the_node_itself_is_no_pods() {
        let row = reduced(
            spec(),
            json!({"podIPs": [{"ip": "127.0.0.1"}, {"ip": "10.0.0.1"}]}),
        );
        assert_eq!(row.value.expect("a pod").ips.len(), 1);
        assert_eq!(row.problems, ["`127.0.0.1` is a loopback address: refused"]);
    }
}
