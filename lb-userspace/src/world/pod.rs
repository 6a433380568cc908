//! Pods of this node.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{Row, address};
use crate::source::annotations::SOCKET_LB;

/// A pod of this node with a network of its own that has not finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub ips: Vec<IpAddr>,
    /// As the kubelet writes it into the names of the pod's cgroups, but for `-` or `_`.
    pub uid: String,
    /// Whether its processes reach services at socket level, whatever other pods do.
    pub socket_lb: bool,
}

/// The row of a Pod. One that shares the node's network, has finished or runs elsewhere than on
/// `node` has no value.
pub fn reduce(object: &core::Pod, node: &str) -> Row<Pod> {
    let mut problems = Vec::new();
    let value = is_ours(object, node).then(|| Pod {
        ips: reduce_ips(object, &mut problems),
        uid: object.metadata.uid.clone().unwrap_or_default(),
        socket_lb: SOCKET_LB.read(&object.metadata, &mut problems) == "true",
    });
    Row {
        value,
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
}

fn is_ours(object: &core::Pod, node: &str) -> bool {
    let finished = object
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    let here = object.spec.as_ref().is_some_and(|spec| {
        spec.node_name.as_deref() == Some(node) && spec.host_network != Some(true)
    });
    here && !finished
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
    fn a_pod_of_this_node_has_its_addresses() {
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
            let pod = row.value.expect("a pod");
            assert_eq!(pod.uid, "1-2");
            (pod.socket_lb, row.problems.len())
        };
        assert_eq!(asked("true"), (true, 0));
        assert_eq!(asked("false"), (false, 0));
        assert_eq!(asked("yes"), (false, 1));
        let silent = reduced(spec(), json!({})).value.expect("a pod");
        assert!(!silent.socket_lb);
    }

    #[test]
    fn pods_elsewhere_on_the_host_network_or_finished_have_no_row() {
        let containers = json!([]);
        let running = json!({"podIP": "10.0.0.1"});
        for (spec, status) in [
            (
                json!({"nodeName": "n2", "containers": containers}),
                running.clone(),
            ),
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
    fn an_address_of_the_node_itself_is_no_pods() {
        let row = reduced(
            spec(),
            json!({"podIPs": [{"ip": "127.0.0.1"}, {"ip": "10.0.0.1"}]}),
        );
        assert_eq!(row.value.expect("a pod").ips.len(), 1);
        assert_eq!(row.problems, ["`127.0.0.1` is a loopback address: refused"]);
    }
}
