//! The networks that ClusterIPs are taken from.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;

use super::{Row, address};

/// Networks whose addresses are all services'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    pub cidrs: Vec<IpNet>,
}

/// The row of a `ServiceCIDR`, ready or not and also while it is deleted: kube-proxy takes all of them
/// (`config.go`, `ServiceCIDRConfig`).
pub fn reduce(object: &networking::ServiceCIDR) -> Row<ServiceCidr> {
    let mut problems = Vec::new();
    let texts = object
        .spec
        .iter()
        .flat_map(|spec| spec.cidrs.iter().flatten());
    let cidrs = address::networks(texts, &mut problems);
    Row {
        value: Some(ServiceCidr { cidrs }),
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_cidr_has_a_network_of_each_family() {
        let object = json!({"spec": {"cidrs": ["10.96.0.0/12", "fd00::/108", "10.96.0.0"]}});
        let row = reduce(&serde_json::from_value(object).expect("a ServiceCIDR"));
        let cidrs: Vec<_> = row.value.iter().flat_map(|row| &row.cidrs).collect();
        let expected: [IpNet; 2] =
            ["10.96.0.0/12", "fd00::/108"].map(|text| text.parse().expect("a network"));
        assert_eq!(cidrs, expected.each_ref());
        assert_eq!(row.problems, ["`10.96.0.0` is not a network"]);
    }
}
