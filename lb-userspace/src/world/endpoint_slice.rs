//! EndpointSlices that belong to a Service.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1 as discovery;

use super::{Family, ObjectKey, Protocol, Row, address, label};

/// Names the Service that a slice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Set on the slices of Services without a ClusterIP.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// When what led to the last write of a slice happened, as the controller saw it.
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A slice of a service's endpoints. Two are equal where they say the same, whenever they did.
#[derive(Clone, Debug, Eq)]
pub struct EndpointSlice {
    pub service: ObjectKey,
    pub family: Family,
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<SlicePort>,
    /// When what led to the last write happened; `None` where the slice does not say.
    pub trigger: Option<Timestamp>,
}

impl PartialEq for EndpointSlice {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            service,
            family,
            endpoints,
            ports,
            trigger: _,
        } = self;
        *service == other.service
            && *family == other.family
            && *endpoints == other.endpoints
            && *ports == other.ports
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// The node it runs on, where the slice says.
    pub node: Option<String>,
    pub hints: Hints,
}

/// Who should use an endpoint. A list that is empty says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    pub zones: Vec<String>,
    /// Names of Node objects.
    pub nodes: Vec<String>,
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
        trigger: trigger(object),
    });
    Row {
        value,
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
}

/// A time that cannot be read is none: nothing but a measurement is lost.
fn trigger(object: &discovery::EndpointSlice) -> Option<Timestamp> {
    let annotations = object.metadata.annotations.as_ref()?;
    annotations.get(TRIGGER_ANNOTATION)?.parse().ok()
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
                hints: endpoint
                    .hints
                    .as_ref()
                    .map(reduce_hints)
                    .unwrap_or_default(),
            })
        })
        .collect()
}

fn reduce_hints(hints: &discovery::EndpointHints) -> Hints {
    let zones = hints.for_zones.iter().flatten();
    let nodes = hints.for_nodes.iter().flatten();
    Hints {
        zones: zones.map(|zone| zone.name.clone()).collect(),
        nodes: nodes.map(|node| node.name.clone()).collect(),
    }
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reduced(mut object: Value) -> Row<EndpointSlice> {
        let metadata = json!({
            "name": "web-1",
            "namespace": "default",
            "resourceVersion": "7",
            "labels": {SERVICE_NAME_LABEL: "web"},
        });
        for (field, default) in [
            ("metadata", metadata),
            ("addressType", json!("IPv4")),
            ("endpoints", json!([])),
        ] {
            let object = object.as_object_mut().expect("an object");
            object.entry(field).or_insert(default);
        }
        reduce(&serde_json::from_value(object).expect("an EndpointSlice"))
    }

    fn endpoints(row: Row<EndpointSlice>) -> Vec<Endpoint> {
        row.value.expect("a slice").endpoints
    }

    #[test]
    fn a_slice_names_its_service() {
        let row = reduced(json!({
            "addressType": "IPv6",
            "endpoints": [{"addresses": ["fd00::1", "fd00::2"], "nodeName": "n1"}],
            "ports": [{"name": "", "port": 8080, "protocol": "UDP"}],
        }));
        let slice = EndpointSlice {
            service: ObjectKey::new("default", "web"),
            family: Family::IPv6,
            endpoints: vec![Endpoint {
                address: "fd00::1".parse().expect("an address"),
                ready: true,
                serving: true,
                terminating: false,
                node: Some("n1".into()),
                hints: Hints::default(),
            }],
            ports: vec![SlicePort {
                name: String::new(),
                protocol: Protocol::Udp,
                port: 8080,
            }],
            trigger: None,
        };
        assert_eq!(row.value, Some(slice));
        assert_eq!(row.version, "7");
        assert_eq!(row.problems, Vec::<String>::new());
    }

    #[test]
    fn a_condition_that_is_not_said_has_its_default() {
        for (conditions, expected) in [
            (json!(null), (true, true, false)),
            (json!({}), (true, true, false)),
            (json!({"ready": null}), (true, true, false)),
            (json!({"ready": false}), (false, true, false)),
            (json!({"serving": false}), (true, false, false)),
            (
                json!({"ready": false, "serving": true, "terminating": true}),
                (false, true, true),
            ),
        ] {
            let row = reduced(json!({
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": conditions}],
            }));
            let endpoint = &endpoints(row)[0];
            let is = (endpoint.ready, endpoint.serving, endpoint.terminating);
            assert_eq!(is, expected, "{conditions}");
        }
    }

    #[test]
    fn hints_say_for_which_zones_and_nodes_an_endpoint_is() {
        let row = reduced(json!({
            "endpoints": [
                {"addresses": ["10.0.0.1"], "zone": "not read"},
                {"addresses": ["10.0.0.2"], "hints": {}},
                {"addresses": ["10.0.0.3"], "hints": {
                    "forZones": [{"name": "a"}, {"name": "b"}],
                    "forNodes": [{"name": "n1"}],
                }},
            ],
        }));
        let hints: Vec<_> = endpoints(row).into_iter().map(|e| e.hints).collect();
        let given = Hints {
            zones: vec!["a".into(), "b".into()],
            nodes: vec!["n1".into()],
        };
        assert_eq!(hints, [Hints::default(), Hints::default(), given]);
    }

    #[test]
    fn the_time_of_a_trigger_is_kept_and_makes_no_difference() {
        let slice = |time: &str| {
            reduced(json!({
                "metadata": {
                    "labels": {SERVICE_NAME_LABEL: "web"},
                    "annotations": {TRIGGER_ANNOTATION: time},
                },
            }))
        };
        let row = slice("2026-11-21T12:00:00.5Z");
        let trigger = row.value.as_ref().and_then(|slice| slice.trigger);
        let expected = Timestamp::from_millisecond(1_795_262_400_500).expect("a time");
        assert_eq!(trigger, Some(expected));
        let unreadable = slice("yesterday");
        assert_eq!(
            unreadable.value.as_ref().and_then(|slice| slice.trigger),
            None
        );
        assert_eq!(row, unreadable);
    }

    #[test]
    fn bad_addresses_are_named_and_the_others_kept() {
        let row = reduced(json!({
            "endpoints": [
                {"addresses": ["10.0.0.1"]},
                {"addresses": ["127.0.0.1"]},
                {"addresses": ["169.254.169.254"]},
                {"addresses": ["224.0.0.1"]},
                {"addresses": ["0.0.0.0"]},
                {"addresses": ["fd00::1"]},
                {"addresses": ["web.example.org"]},
                {"addresses": []},
                {"addresses": ["010.0.0.02"]},
            ],
        }));
        assert_eq!(
            row.problems,
            [
                "endpoint 1: `127.0.0.1` is a loopback address: refused",
                "endpoint 2: `169.254.169.254` is a link-local address: refused",
                "endpoint 3: `224.0.0.1` is a multicast address: refused",
                "endpoint 4: `0.0.0.0` is the unspecified address: refused",
                "endpoint 5: `fd00::1` is not an IPv4 address",
                "endpoint 6: `web.example.org` is not an IP address",
                "endpoint 7: no address",
            ]
        );
        let kept: Vec<_> = endpoints(row)
            .iter()
            .map(|e| e.address.to_string())
            .collect();
        assert_eq!(kept, ["10.0.0.1", "10.0.0.2"]);
    }

    #[test]
    fn ports_without_a_name_or_a_number_are_left_out() {
        let row = reduced(json!({
            "ports": [
                {"port": 1},
                {"name": "a"},
                {"name": "a", "port": 0},
                {"name": "sctp", "port": 2, "protocol": "SCTP"},
                {"name": "b", "port": 3, "protocol": "QUIC"},
                {"name": "c", "port": 65536},
                {"name": "d", "port": 65535},
            ],
        }));
        assert_eq!(
            row.problems,
            [
                "port 3: `QUIC` is not a protocol",
                "port 65536: not a port number"
            ]
        );
        let names: Vec<_> = row
            .value
            .iter()
            .flat_map(|slice| &slice.ports)
            .map(|port| port.name.as_str())
            .collect();
        assert_eq!(names, ["sctp", "d"]);
    }

    #[test]
    fn a_slice_of_no_service_of_ours_has_no_row() {
        for (object, problems) in [
            (json!({"metadata": {"name": "x"}}), vec![]),
            (
                json!({"metadata": {"labels": {SERVICE_NAME_LABEL: "web", HEADLESS_LABEL: ""}}}),
                vec![],
            ),
            (json!({"addressType": "FQDN"}), vec![]),
            (
                json!({"addressType": "IPX"}),
                vec!["`IPX` is not an address type"],
            ),
        ] {
            let row = reduced(object.clone());
            assert_eq!(row.value, None, "{object}");
            assert_eq!(row.problems, problems, "{object}");
        }
    }
}
