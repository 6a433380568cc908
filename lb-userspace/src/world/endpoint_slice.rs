//! EndpointSlices that belong to a Service.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as discovery;

use super::{Family, ObjectKey, Protocol, Row, address, label, protocol::UnusableProtocol};

/// Names the Service that a slice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Set on the slices of Services without a ClusterIP.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// A slice of a service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub service: ObjectKey,
    pub family: Family,
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<SlicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// The node it runs on, where the slice says.
    pub node: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the service port that it serves.
    pub name: String,
    pub protocol: Protocol,
    /// The port to send to, which may differ from slice to slice.
    pub port: u16,
}

/// The row of an EndpointSlice. One of no Service, of a headless one or of host names has no value
/// (`endpointslicecache.go` of kube-proxy).
pub fn reduce(object: &discovery::EndpointSlice) -> Row<EndpointSlice> {
    let mut problems = Vec::new();
    let family = match object.address_type.as_str() {
        "IPv4" => Some(Family::IPv4),
        "IPv6" => Some(Family::IPv6),
        "FQDN" => None,
        other => {
            problems.push(format!("`{other}` is not an address type"));
            None
        }
    };
    let service = label(&object.metadata, SERVICE_NAME_LABEL)
        .filter(|_| label(&object.metadata, HEADLESS_LABEL).is_none())
        .map(|name| ObjectKey::new(object.metadata.namespace.clone().unwrap_or_default(), name));
    let value = family.zip(service).map(|(family, service)| EndpointSlice {
        service,
        family,
        endpoints: reduce_endpoints(object, family, &mut problems),
        ports: reduce_ports(object, &mut problems),
    });
    Row {
        value,
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
}

fn reduce_endpoints(
    object: &discovery::EndpointSlice,
    family: Family,
    problems: &mut Vec<String>,
) -> Vec<Endpoint> {
    let endpoints = object.endpoints.iter().flatten().enumerate();
    endpoints
        .filter_map(|(index, endpoint)| {
            // The others stand for the same endpoint, and no proxy uses them.
            let address = match endpoint.addresses.first() {
                Some(text) => address::parse_family(text, family),
                None => Err("no address".into()),
            };
            let address = address
                .map_err(|reason| problems.push(format!("endpoint {index}: {reason}")))
                .ok()?;
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            Some(Endpoint {
                address,
                ready: conditions.ready.unwrap_or(true),
                serving: conditions.serving.unwrap_or(true),
                terminating: conditions.terminating.unwrap_or(false),
                node: endpoint.node_name.clone(),
            })
        })
        .collect()
}

fn reduce_ports(object: &discovery::EndpointSlice, problems: &mut Vec<String>) -> Vec<SlicePort> {
    let ports = object.ports.iter().flatten();
    ports
        .filter_map(|port| {
            // Without a name it serves no service port; without a number, or with 0, all ports.
            let name = port.name.as_deref()?;
            let number = port.port.filter(|&number| number != 0)?;
            match (
                Protocol::parse(port.protocol.as_deref()),
                u16::try_from(number),
            ) {
                (Ok(protocol), Ok(port)) => Some(SlicePort {
                    name: name.into(),
                    protocol,
                    port,
                }),
                // The Service says so already.
                (Err(UnusableProtocol::Unsupported(_)), _) => None,
                (Err(unknown), _) => {
                    problems.push(format!("port {number}: {unknown}"));
                    None
                }
                (_, Err(_)) => {
                    problems.push(format!("port {number}: not a port number"));
                    None
                }
            }
        })
        .collect()
}
