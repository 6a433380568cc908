//! Objects that the tests write.

use std::net::IpAddr;

use lb_tests::sandbox::{Family, Pair};
use serde_json::{Value, json};

/// The kind ClusterNetworkPolicy, with no more of a schema than an apiserver asks for.
pub const CLUSTER_NETWORK_POLICIES: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: clusternetworkpolicies.policy.networking.k8s.io
  annotations:
    api-approved.kubernetes.io: https://github.com/kubernetes-sigs/network-policy-api/pull/300
spec:
  group: policy.networking.k8s.io
  scope: Cluster
  names:
    kind: ClusterNetworkPolicy
    listKind: ClusterNetworkPolicyList
    plural: clusternetworkpolicies
    singular: clusternetworkpolicy
  versions:
  - name: v1alpha2
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        x-kubernetes-preserve-unknown-fields: true
";

/// A dual-stack Service with the ports 80/TCP and 80/UDP, in the namespace `default`. Without a
/// selector its slices are the test's own; with one, the control plane's.
pub fn service(name: &str, ips: Pair, selector: Option<&str>) -> String {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name },
        "spec": {
            "clusterIP": ips.v4,
            "clusterIPs": ips.each(),
            "ipFamilyPolicy": "RequireDualStack",
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": ports(|port| {
                port["port"] = 80.into();
                port["targetPort"] = 8080.into();
            }),
        },
    });
    if let Some(app) = selector {
        object["spec"]["selector"] = json!({ "app": app });
    }
    object.to_string()
}

/// An EndpointSlice of ready endpoints of one family, which belongs to a service.
pub fn slice(name: &str, service: &str, family: Family, addresses: &[IpAddr]) -> String {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": service } },
        "addressType": family.name(),
        "ports": ports(|port| port["port"] = 8080.into()),
        "endpoints": endpoints(addresses),
    })
    .to_string()
}

/// The `endpoints` of a slice.
pub fn endpoints(addresses: &[IpAddr]) -> Value {
    let endpoint = |address| json!({ "addresses": [address], "conditions": { "ready": true } });
    addresses.iter().map(endpoint).collect()
}

/// A port `tcp` and a port `udp`, with the numbers that `number` gives them.
fn ports(number: impl Fn(&mut Value)) -> Value {
    let port = |protocol: &str| {
        let mut port = json!({ "name": protocol.to_lowercase(), "protocol": protocol });
        number(&mut port);
        port
    };
    ["TCP", "UDP"].map(port).into_iter().collect()
}
