//! Nodes.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{Row, address};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Internal and external addresses.
    pub addresses: Vec<IpAddr>,
}

/// The row of a Node.
pub fn reduce(object: &core::Node) -> Row<Node> {
    let mut addresses = Vec::new();
    let mut problems = Vec::new();
    for core::NodeAddress { address, type_ } in object
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .filter(|address| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"))
    {
        match address::parse_sloppy(address) {
            Some(address) => addresses.push(address),
            None => problems.push(format!("{type_} `{address}` is not an IP address")),
        }
    }
    Row {
        value: Some(Node { addresses }),
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
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
