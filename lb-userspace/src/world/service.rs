//! Services with a ClusterIP.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{Family, Protocol, Row, address, label};

/// Set on Services that another proxy serves.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// A Service of ours: what clients dial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// At most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// No two have the same name and protocol, or the same number and protocol.
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where the service has one port without a name.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// The row of a Service. Headless ones, ExternalName ones and those of another proxy have no value
/// (`ShouldSkipService` of kube-proxy).
pub fn reduce(object: &core::Service) -> Row<Service> {
    let mut problems = Vec::new();
    let value = object
        .spec
        .as_ref()
        .filter(|spec| !is_skipped(object, spec))
        .and_then(|spec| {
            let cluster_ips = reduce_cluster_ips(spec, &mut problems);
            let ports = reduce_ports(spec.ports.as_deref().unwrap_or_default(), &mut problems);
            (!cluster_ips.is_empty()).then_some(Service { cluster_ips, ports })
        });
    Row {
        value,
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
}

fn is_skipped(object: &core::Service, spec: &core::ServiceSpec) -> bool {
    label(&object.metadata, PROXY_NAME_LABEL).is_some()
        || spec.type_.as_deref() == Some("ExternalName")
        || matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"))
}

fn reduce_cluster_ips(spec: &core::ServiceSpec, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let texts = match spec.cluster_ips.as_deref() {
        Some(texts) if !texts.is_empty() => texts,
        _ => spec.cluster_ip.as_slice(),
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts {
        match address::parse(text) {
            Ok(address)
                if addresses
                    .iter()
                    .any(|&other| Family::of(other) == Family::of(address)) =>
            {
                let family = Family::of(address);
                problems.push(format!("ClusterIP {text} is a second {family} address"));
            }
            Ok(address) => addresses.push(address),
            Err(reason) => problems.push(format!("ClusterIP {reason}")),
        }
    }
    addresses
}

fn reduce_ports(ports: &[core::ServicePort], problems: &mut Vec<String>) -> Vec<ServicePort> {
    let mut reduced: Vec<ServicePort> = Vec::new();
    for port in ports {
        match reduce_port(port) {
            Ok(port)
                if reduced.iter().any(|other| {
                    other.protocol == port.protocol
                        && (other.port == port.port || other.name == port.name)
                }) =>
            {
                problems.push(format!("{} is there twice", describe(&port)));
            }
            Ok(port) => reduced.push(port),
            Err(reason) => problems.push(format!("port {}: {reason}", port.port)),
        }
    }
    reduced
}

fn reduce_port(port: &core::ServicePort) -> Result<ServicePort, String> {
    let protocol = Protocol::parse(port.protocol.as_deref()).map_err(|error| error.to_string())?;
    let number = u16::try_from(port.port)
        .ok()
        .filter(|&number| number != 0)
        .ok_or("not a port number")?;
    Ok(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol,
        port: number,
    })
}

fn describe(port: &ServicePort) -> String {
    let ServicePort {
        name,
        protocol,
        port,
    } = port;
    if name.is_empty() {
        format!("port {port}/{protocol}")
    } else {
        format!("port {port}/{protocol} (`{name}`)")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reduced(metadata: Value, spec: Value) -> Row<Service> {
        let object = json!({"metadata": metadata, "spec": spec});
        reduce(&serde_json::from_value(object).expect("a Service"))
    }

    fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
        ServicePort {
            name: name.into(),
            protocol,
            port,
        }
    }

    #[test]
    fn a_dual_stack_service_has_an_address_of_each_family() {
        let row = reduced(
            json!({"name": "web", "resourceVersion": "7"}),
            json!({
                "clusterIP": "10.96.0.10",
                "clusterIPs": ["10.96.0.10", "fd00::10"],
                "ports": [
                    {"name": "http", "port": 80},
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            }),
        );
        let addresses = ["10.96.0.10", "fd00::10"];
        let service = Service {
            cluster_ips: addresses
                .map(|text| text.parse().expect("an address"))
                .into(),
            ports: vec![
                port("http", Protocol::Tcp, 80),
                port("dns", Protocol::Udp, 53),
                port("dns-tcp", Protocol::Tcp, 53),
            ],
        };
        assert_eq!(row.value, Some(service));
        assert_eq!(row.version, "7");
        assert_eq!(row.problems, Vec::<String>::new());
    }

    #[test]
    fn what_is_not_served_here_has_no_row() {
        for (metadata, spec) in [
            (json!({}), json!({"clusterIP": "None"})),
            (json!({}), json!({"clusterIP": ""})),
            (json!({}), json!({})),
            (
                json!({}),
                json!({"type": "ExternalName", "clusterIP": "10.96.0.1"}),
            ),
            (
                json!({"labels": {PROXY_NAME_LABEL: ""}}),
                json!({"clusterIP": "10.96.0.1"}),
            ),
        ] {
            let row = reduced(metadata, spec.clone());
            assert_eq!((row.value, row.problems), (None, Vec::new()), "{spec}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_the_rest_is_kept() {
        let row = reduced(
            json!({}),
            json!({
                "clusterIP": "10.96.0.1",
                "clusterIPs": ["10.96.0.1", "10.96.0.2", "fe80::1", "x"],
                "ports": [
                    {"name": "a", "port": 80},
                    {"name": "b", "port": 80},
                    {"name": "a", "port": 81},
                    {"name": "c", "port": 0},
                    {"name": "d", "port": 65536},
                    {"name": "e", "port": 1, "protocol": "SCTP"},
                    {"name": "f", "port": 2, "protocol": "tcp"},
                    {"name": "a", "port": 80, "protocol": "UDP"},
                ],
            }),
        );
        let service = Service {
            cluster_ips: vec!["10.96.0.1".parse().expect("an address")],
            ports: vec![port("a", Protocol::Tcp, 80), port("a", Protocol::Udp, 80)],
        };
        assert_eq!(row.value, Some(service));
        assert_eq!(
            row.problems,
            [
                "ClusterIP 10.96.0.2 is a second IPv4 address",
                "ClusterIP `fe80::1` is a link-local address: refused",
                "ClusterIP `x` is not an IP address",
                "port 80/TCP (`b`) is there twice",
                "port 81/TCP (`a`) is there twice",
                "port 0: not a port number",
                "port 65536: not a port number",
                "port 1: SCTP is not supported yet",
                "port 2: `tcp` is not a protocol",
            ]
        );
    }

    #[test]
    fn a_service_without_a_usable_address_has_no_value() {
        let row = reduced(json!({}), json!({"clusterIP": "127.0.0.1"}));
        assert_eq!(row.value, None);
        let problem = "ClusterIP `127.0.0.1` is a loopback address: refused";
        assert_eq!(row.problems, [problem]);
    }
}
