//! Nodes.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::{Labels, Row, address, label};

/// Says which zone a node is in.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Key of the taint of nodes that the cluster autoscaler is about to remove.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Internal addresses, then external ones; the first of a family is the node's primary address
    /// (`GetNodeHostIPs` of Kubernetes).
    pub addresses: Vec<IpAddr>,
    pub zone: Option<String>,
    /// The networks of its pods, where something gives each node some.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether load balancers may send to it: it is not about to go (`proxy_health.go` of kube-proxy).
    pub eligible: bool,
    pub labels: Labels,
    /// Every address of whatever type, each once.
    pub all_addresses: BTreeSet<IpAddr>,
    /// Whether it is this node.
    pub own: bool,
}

impl Node {
    /// What the choice of endpoints, and who may use VIPs, depend on: of this node alone.
    pub(super) fn place(&self) -> Option<(Option<&str>, &[IpAddr])> {
        self.own.then_some((self.zone.as_deref(), &self.addresses))
    }

    /// What policies that speak of nodes depend on.
    pub(super) fn peer(&self) -> (&Labels, &BTreeSet<IpAddr>) {
        (&self.labels, &self.all_addresses)
    }
}

/// The row of a Node, for the agent of the one that is called `own`.
pub fn reduce(object: &core::Node, own: &str) -> Row<Node> {
    let mut problems = Vec::new();
    let value = Node {
        addresses: reduce_addresses(object, &mut problems),
        zone: label(&object.metadata, ZONE_LABEL).map(str::to_owned),
        pod_cidrs: reduce_pod_cidrs(object, &mut problems),
        eligible: object.metadata.deletion_timestamp.is_none() && !is_leaving(object),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        all_addresses: status_addresses(object)
            .filter_map(|address| address::parse_sloppy(&address.address))
            .collect(),
        own: object.metadata.name.as_deref() == Some(own),
    };
    Row {
        value: Some(value),
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
}

fn status_addresses(object: &core::Node) -> impl Iterator<Item = &core::NodeAddress> {
    let statuses = object.status.iter();
    statuses.flat_map(|status| status.addresses.iter().flatten())
}

fn reduce_addresses(object: &core::Node, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let of_type =
        |name: &'static str| status_addresses(object).filter(move |address| address.type_ == name);
    let mut addresses = Vec::new();
    for core::NodeAddress { address, type_ } in of_type("InternalIP").chain(of_type("ExternalIP")) {
        match address::parse_sloppy(address) {
            Some(address) => addresses.push(address),
            None => problems.push(format!("{type_} `{address}` is not an IP address")),
        }
    }
    addresses
}

fn reduce_pod_cidrs(object: &core::Node, problems: &mut Vec<String>) -> Vec<IpNet> {
    let Some(spec) = &object.spec else {
        return Vec::new();
    };
    let texts = match spec.pod_cidrs.as_deref() {
        Some(texts) if !texts.is_empty() => texts,
        _ => spec.pod_cidr.as_slice(),
    };
    address::networks(texts, problems)
}

fn is_leaving(object: &core::Node) -> bool {
    let taints = object
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    taints.into_iter().any(|taint| taint.key == LEAVING_TAINT)
}

/// Those of `names` that look like `name`, the most alike first: what the caller may have meant.
pub fn close_names<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    const ALIKE: f64 = 0.8;
    const MOST: usize = 5;
    let mut close: Vec<_> = names
        .into_iter()
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|&(likeness, _)| likeness >= ALIKE)
        .collect();
    close.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    close.into_iter().take(MOST).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_internal_addresses_of_a_node_come_before_the_external_ones() {
        let object = json!({
            "metadata": {"name": "n1", "labels": {"role": "edge"}},
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "n1.example.org"},
                {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "InternalIP", "address": "192.168.0.1"},
                {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "InternalDNS", "address": "10.0.0.9"},
            ]},
        });
        let row = reduce(&serde_json::from_value(object).expect("a Node"), "n1");
        let addresses: Vec<_> = row.value.iter().flat_map(|node| &node.addresses).collect();
        let expected: [IpAddr; 3] =
            ["192.168.0.1", "fd00::1", "203.0.113.1"].map(|text| text.parse().expect("an address"));
        assert_eq!(addresses, expected.each_ref());
        let node = row.value.as_ref().expect("a row");
        assert_eq!(node.all_addresses.len(), 4);
        assert_eq!(node.labels["role"], "edge");
        assert!(node.own);
        assert_eq!(
            row.problems,
            ["ExternalIP `n1.example.org` is not an IP address"]
        );
    }

    fn reduced(metadata: Value, spec: Value) -> Node {
        let object = json!({"metadata": metadata, "spec": spec});
        let row = reduce(&serde_json::from_value(object).expect("a Node"), "n1");
        row.value.expect("a row")
    }

    #[test]
    fn a_node_has_a_zone_and_networks_for_its_pods() {
        let bare = reduced(json!({}), json!({}));
        assert_eq!((bare.zone, bare.pod_cidrs), (None, Vec::new()));
        for spec in [
            json!({"podCIDR": "10.244.1.0/24"}),
            json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.244.1.0/24"]}),
        ] {
            let node = reduced(json!({"labels": {ZONE_LABEL: "a"}}), spec);
            assert_eq!(node.zone.as_deref(), Some("a"));
            assert_eq!(
                node.pod_cidrs,
                ["10.244.1.0/24".parse().expect("a network")]
            );
        }
    }

    #[test]
    fn a_node_that_is_about_to_go_is_not_eligible() {
        let taint = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
        for (metadata, spec, eligible) in [
            (json!({}), json!({}), true),
            (json!({}), taint("other", "NoSchedule"), true),
            (json!({}), taint(LEAVING_TAINT, "NoSchedule"), false),
            (json!({}), taint(LEAVING_TAINT, "PreferNoSchedule"), false),
            (
                json!({"deletionTimestamp": "2026-11-21T12:00:00Z"}),
                json!({}),
                false,
            ),
        ] {
            assert_eq!(reduced(metadata, spec.clone()).eligible, eligible, "{spec}");
        }
    }

    #[test]
    fn close_names_come_first_and_far_ones_not_at_all() {
        let names = ["worker-1", "worker-10", "worker-2", "control-plane"];
        let close = close_names("worker-11", names);
        assert_eq!(close, ["worker-1", "worker-10", "worker-2"]);
        assert_eq!(close_names("edge", names), Vec::<&str>::new());
        assert_eq!(close_names("x", []), Vec::<&str>::new());
    }

    #[test]
    fn of_many_close_names_the_closest_are_enough() {
        let names: Vec<_> = (0..100).map(|n| format!("worker-{n}")).collect();
        let close = close_names("worker-7", names.iter().map(String::as_str));
        assert_eq!(close.len(), 5);
        assert_eq!(close[0], "worker-7");
    }
}
