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
