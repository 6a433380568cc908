//! Pods of this node.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{Row, address};

/// A pod of this node with a network of its own that has not finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub ips: Vec<IpAddr>,
}

/// The row of a Pod. One that shares the node's network, has finished or runs elsewhere than on
/// `node` has no value.
pub fn reduce(object: &core::Pod, node: &str) -> Row<Pod> {
    let mut problems = Vec::new();
    let value = is_ours(object, node).then(|| Pod {
        ips: reduce_ips(object, &mut problems),
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
