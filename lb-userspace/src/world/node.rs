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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_has_its_internal_and_external_addresses() {
        let object = json!({
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.168.0.1"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "Hostname", "address": "n1"},
                {"type": "ExternalIP", "address": "n1.example.org"},
                {"type": "ExternalIP", "address": "203.0.113.1"},
            ]},
        });
        let row = reduce(&serde_json::from_value(object).expect("a Node"));
        let addresses: Vec<_> = row.value.iter().flat_map(|node| &node.addresses).collect();
        let expected: [IpAddr; 3] =
            ["192.168.0.1", "fd00::1", "203.0.113.1"].map(|text| text.parse().expect("an address"));
        assert_eq!(addresses, expected.each_ref());
        assert_eq!(
            row.problems,
            ["ExternalIP `n1.example.org` is not an IP address"]
        );
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
