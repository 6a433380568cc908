//! Services with a ClusterIP.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::{Family, Protocol, Row, address, label};

/// Set on Services that another proxy serves.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Seconds for which a client keeps its endpoint: the least, the most, and where none are said.
const AFFINITY: (u32, u32, u32) = (1, 86_400, 10_800);

/// A Service of ours: what clients dial, and how an endpoint is chosen for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// At most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, each once, of the families of `cluster_ips`, and none that is a VIP as well;
    /// empty where they are not served.
    pub external_ips: Vec<IpAddr>,
    /// The VIPs of load balancers that hand packets on as they are, each once, of the families of
    /// `cluster_ips`.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may use the VIPs, of the families of `cluster_ips`; where a family has none, anybody.
    pub source_ranges: Vec<IpNet>,
    /// No two have the same name and protocol, the same number and protocol, or the same NodePort and
    /// protocol.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Seconds for which a client keeps its endpoint; `None`: it does not.
    pub affinity: Option<u32>,
    /// Where a load balancer asks for local endpoints; only where it is to send to no other nodes.
    pub health_check_node_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where the service has one port without a name.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

impl Service {
    /// Whether it has an address of the family.
    fn has(&self, family: Family) -> bool {
        self.cluster_ips.iter().any(|&ip| Family::of(ip) == family)
    }
}

/// The row of a Service. Headless ones, `ExternalName` ones and those of another proxy have no value
/// (`ShouldSkipService` of kube-proxy). Fields are read as its `serviceport.go` does: what is of a
/// family that the service has no ClusterIP of is left out without a word.
pub fn reduce(object: &core::Service) -> Row<Service> {
    let mut problems = Vec::new();
    let spec = object.spec.as_ref();
    let value = spec
        .filter(|spec| !is_skipped(object, spec))
        .and_then(|spec| {
            let mut service = Service {
                cluster_ips: reduce_cluster_ips(spec, &mut problems),
                ..Service::default()
            };
            service.ports = reduce_ports(spec.ports.as_deref().unwrap_or_default(), &mut problems);
            if service.cluster_ips.is_empty() {
                return None;
            }
            add_external(&mut service, object, spec, &mut problems);
            add_policies(&mut service, spec, &mut problems);
            Some(service)
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

/// What is dialled from outside, and who may.
fn add_external(
    service: &mut Service,
    object: &core::Service,
    spec: &core::ServiceSpec,
    problems: &mut Vec<String>,
) {
    let status = object.status.as_ref();
    let ingress = status
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|balancer| balancer.ingress.as_deref())
        .unwrap_or_default();
    // A proxy sends to NodePorts or pods itself: what dials it from inside has to get there too.
    let vips = ingress
        .iter()
        .filter(|ingress| matches!(ingress.ip_mode.as_deref(), None | Some("VIP")))
        .filter_map(|ingress| ingress.ip.as_deref().filter(|ip| !ip.is_empty()));
    service.load_balancer_ips = addresses(service, "load balancer address", vips, problems);

    let texts = spec.external_ips.iter().flatten().map(String::as_str);
    service.external_ips = addresses(service, "external IP", texts, problems);
    // As a VIP it may be for some clients only.
    let vips = &service.load_balancer_ips;
    service
        .external_ips
        .retain(|address| !vips.contains(address));

    let texts = spec.load_balancer_source_ranges.iter().flatten();
    service.source_ranges = source_ranges(service, texts, problems);
}

/// The addresses that can be read, each once, of the families of the service.
fn addresses<'a>(
    service: &Service,
    what: &str,
    texts: impl Iterator<Item = &'a str>,
    problems: &mut Vec<String>,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts {
        match address::parse(text) {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) if service.has(Family::of(address)) => addresses.push(address),
            Ok(_) => {}
            Err(reason) => problems.push(format!("{what} {reason}")),
        }
    }
    addresses
}

fn source_ranges<'a>(
    service: &Service,
    texts: impl Iterator<Item = &'a String>,
    problems: &mut Vec<String>,
) -> Vec<IpNet> {
    let (mut bad, mut nobody) = (Vec::new(), Vec::new());
    let mut ranges = address::networks(texts, &mut bad);
    let of = |range: &IpNet| Family::of(range.addr());
    if !bad.is_empty() {
        // A range that cannot be read lets nobody in; without any, everybody would be.
        nobody = NOBODY.map(IpNet::from).into();
        nobody.retain(|none| !ranges.iter().any(|range| of(range) == of(none)));
    }
    problems.extend(bad.iter().map(|problem| format!("source range {problem}")));
    ranges.extend(nobody);
    ranges.retain(|range| service.has(of(range)));
    ranges
}

/// The unspecified addresses, which no packet comes from.
const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];

/// How endpoints are chosen.
fn add_policies(service: &mut Service, spec: &core::ServiceSpec, problems: &mut Vec<String>) {
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    service.internal_local = is_local(&spec.internal_traffic_policy);
    service.external_local = is_local(&spec.external_traffic_policy);
    service.affinity = reduce_affinity(spec, problems);
    if service.external_local && spec.type_.as_deref() == Some("LoadBalancer") {
        let number = spec.health_check_node_port.unwrap_or_default();
        service.health_check_node_port = optional_port(number).unwrap_or_else(|reason| {
            problems.push(format!("health check NodePort {number}: {reason}"));
            None
        });
    }
}

fn reduce_affinity(spec: &core::ServiceSpec, problems: &mut Vec<String>) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            problems.push(format!("`{other}` is not a session affinity"));
            return None;
        }
    }
    let (least, most, default) = AFFINITY;
    let config = spec.session_affinity_config.as_ref();
    let said = config
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client_ip| client_ip.timeout_seconds);
    let Some(said) = said else {
        return Some(default);
    };
    let seconds = u32::try_from(said).ok();
    let seconds = seconds.filter(|seconds| (least..=most).contains(seconds));
    if seconds.is_none() {
        problems.push(format!(
            "session affinity timeout {said} is not between {least} and {most} s: it is {default} s"
        ));
    }
    Some(seconds.unwrap_or(default))
}

fn reduce_ports(ports: &[core::ServicePort], problems: &mut Vec<String>) -> Vec<ServicePort> {
    let mut reduced: Vec<ServicePort> = Vec::new();
    let mut node_ports = BTreeSet::new();
    for port in ports {
        let mut port = match reduce_port(port, problems) {
            Ok(port) => port,
            Err(reason) => {
                problems.push(format!("port {}: {reason}", port.port));
                continue;
            }
        };
        if reduced.iter().any(|other| {
            other.protocol == port.protocol && (other.port == port.port || other.name == port.name)
        }) {
            problems.push(format!("{} is there twice", describe(&port)));
            continue;
        }
        port.node_port = port.node_port.filter(|&node_port| {
            let first = node_ports.insert((node_port, port.protocol));
            if !first {
                problems.push(format!(
                    "NodePort {node_port}/{} is there twice",
                    port.protocol
                ));
            }
            first
        });
        reduced.push(port);
    }
    reduced
}

fn reduce_port(
    port: &core::ServicePort,
    problems: &mut Vec<String>,
) -> Result<ServicePort, String> {
    let protocol = Protocol::parse(port.protocol.as_deref()).map_err(|error| error.to_string())?;
    let number = optional_port(port.port)?.ok_or(NO_PORT)?;
    let node_port = optional_port(port.node_port.unwrap_or_default());
    let node_port = node_port.unwrap_or_else(|reason| {
        let node_port = port.node_port.unwrap_or_default();
        problems.push(format!("NodePort {node_port}: {reason}"));
        None
    });
    Ok(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol,
        port: number,
        node_port,
    })
}

const NO_PORT: &str = "not a port number";

/// A port's number; 0 stands for none.
fn optional_port(number: i32) -> Result<Option<u16>, &'static str> {
    let number = u16::try_from(number).map_err(|_| NO_PORT)?;
    Ok(Some(number).filter(|&number| number != 0))
}

fn describe(port: &ServicePort) -> String {
    let ServicePort {
        name,
        protocol,
        port,
        node_port: _,
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

    /// What becomes of a whole Service that has ClusterIPs of these families.
    fn served(cluster_ips: Value, spec: Value, status: Value) -> (Service, Vec<String>) {
        let mut object = json!({"spec": spec, "status": status});
        object["spec"]["clusterIP"] = cluster_ips[0].clone();
        object["spec"]["clusterIPs"] = cluster_ips;
        let row = reduce(&serde_json::from_value(object).expect("a Service"));
        (row.value.expect("a row"), row.problems)
    }

    fn texts<T: ToString>(values: &[T]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }

    fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
        ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port: None,
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
            ..Service::default()
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
            ports: vec![
                port("a", Protocol::Tcp, 80),
                port("e", Protocol::Sctp, 1),
                port("a", Protocol::Udp, 80),
            ],
            ..Service::default()
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

    #[test]
    fn a_load_balancer_that_hands_packets_on_has_vips() {
        let (service, problems) = served(
            json!(["10.96.0.1"]),
            json!({"type": "LoadBalancer"}),
            json!({"loadBalancer": {"ingress": [
                {"ip": "203.0.113.1"},
                {"ip": "203.0.113.2", "ipMode": "VIP"},
                {"ip": "203.0.113.3", "ipMode": "Proxy"},
                {"hostname": "lb.example.org"},
                {"ip": "", "hostname": "lb.example.org"},
                {"ip": "203.0.113.1"},
                {"ip": "2001:db8::1"},
                {"ip": "x"},
            ]}}),
        );
        assert_eq!(
            texts(&service.load_balancer_ips),
            ["203.0.113.1", "203.0.113.2"]
        );
        assert_eq!(problems, ["load balancer address `x` is not an IP address"]);
    }

    #[test]
    fn external_ips_are_those_of_the_services_families_that_are_no_vips() {
        let spec = json!({
            "clusterIP": "fd00::10",
            "externalIPs": ["2001:db8::1", "203.0.113.1", "2001:db8::2", "::1"],
        });
        let status = json!({"loadBalancer": {"ingress": [{"ip": "2001:db8::2"}]}});
        let (service, problems) = served(json!(["fd00::10"]), spec, status);
        assert_eq!(texts(&service.external_ips), ["2001:db8::1"]);
        assert_eq!(texts(&service.load_balancer_ips), ["2001:db8::2"]);
        assert_eq!(
            problems,
            ["external IP `::1` is a loopback address: refused"]
        );
    }

    #[test]
    fn source_ranges_are_those_of_the_services_families() {
        let ranges = |cluster_ips: Value, ranges: &[&str]| {
            let spec = json!({"loadBalancerSourceRanges": ranges});
            let (service, problems) = served(cluster_ips, spec, json!({}));
            (texts(&service.source_ranges), problems)
        };
        let none = Vec::<String>::new;
        let both = json!(["10.96.0.1", "fd00::1"]);
        assert_eq!(ranges(json!(["10.96.0.1"]), &[]), (none(), none()));
        let given = [" 192.0.2.0/24 ", "2001:db8::/32", "192.0.2.9/24"];
        let (kept, problems) = ranges(both, &given);
        assert_eq!(
            (kept, problems),
            (vec!["192.0.2.0/24".into(), "2001:db8::/32".into()], none())
        );
        let (kept, problems) = ranges(json!(["fd00::1"]), &given);
        assert_eq!((kept, problems), (vec!["2001:db8::/32".into()], none()));
        let of_the_other = ranges(json!(["10.96.0.1"]), &["2001:db8::/32"]);
        assert_eq!(of_the_other, (none(), none()));
    }

    #[test]
    fn a_source_range_that_cannot_be_read_lets_nobody_in() {
        for (cluster_ips, given, expected) in [
            (json!(["10.96.0.1"]), json!(["x"]), vec!["0.0.0.0/32"]),
            (
                json!(["10.96.0.1"]),
                json!(["x", "192.0.2.0/24"]),
                vec!["192.0.2.0/24"],
            ),
            (
                json!(["10.96.0.1", "fd00::1"]),
                json!(["192.0.2.0/24", "x"]),
                vec!["192.0.2.0/24", "::/128"],
            ),
        ] {
            let spec = json!({"loadBalancerSourceRanges": given});
            let (service, problems) = served(cluster_ips, spec, json!({}));
            assert_eq!(texts(&service.source_ranges), expected);
            assert_eq!(problems, ["source range `x` is not a network"]);
        }
    }

    #[test]
    fn node_ports_come_with_their_ports() {
        let (service, problems) = served(
            json!(["10.96.0.1"]),
            json!({"type": "NodePort", "ports": [
                {"name": "a", "port": 80, "nodePort": 30080},
                {"name": "b", "port": 81, "nodePort": 30080, "protocol": "UDP"},
                {"name": "c", "port": 82, "nodePort": 0},
                {"name": "d", "port": 83},
                {"name": "e", "port": 84, "nodePort": 30080},
                {"name": "f", "port": 85, "nodePort": 70000},
                {"name": "f", "port": 85, "nodePort": 30085},
            ]}),
            json!({}),
        );
        let node_ports: Vec<_> = service.ports.iter().map(|port| port.node_port).collect();
        assert_eq!(
            node_ports,
            [Some(30080), Some(30080), None, None, None, None]
        );
        assert_eq!(
            problems,
            [
                "NodePort 30080/TCP is there twice",
                "NodePort 70000: not a port number",
                "port 85/TCP (`f`) is there twice",
            ]
        );
    }

    #[test]
    fn a_load_balancer_without_node_ports_keeps_its_vip() {
        let (service, _) = served(
            json!(["10.96.0.1"]),
            json!({
                "type": "LoadBalancer",
                "allocateLoadBalancerNodePorts": false,
                "ports": [{"port": 80}],
            }),
            json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}),
        );
        assert_eq!(service.ports[0].node_port, None);
        assert_eq!(texts(&service.load_balancer_ips), ["203.0.113.1"]);
    }

    #[test]
    fn a_policy_that_is_not_said_is_cluster() {
        for (spec, expected) in [
            (json!({}), (false, false)),
            (json!({"internalTrafficPolicy": "Cluster"}), (false, false)),
            (json!({"externalTrafficPolicy": "Cluster"}), (false, false)),
            (json!({"internalTrafficPolicy": "Local"}), (true, false)),
            (json!({"externalTrafficPolicy": "Local"}), (false, true)),
        ] {
            let (service, _) = served(json!(["10.96.0.1"]), spec.clone(), json!({}));
            let is = (service.internal_local, service.external_local);
            assert_eq!(is, expected, "{spec}");
        }
    }

    #[test]
    fn a_health_check_needs_a_load_balancer_and_the_local_policy() {
        let check = |kind: &str, policy: &str, port: i32| {
            let spec = json!({
                "type": kind,
                "externalTrafficPolicy": policy,
                "healthCheckNodePort": port,
            });
            let (service, problems) = served(json!(["10.96.0.1"]), spec, json!({}));
            (service.health_check_node_port, problems.len())
        };
        assert_eq!(check("LoadBalancer", "Local", 32000), (Some(32000), 0));
        assert_eq!(check("LoadBalancer", "Local", 0), (None, 0));
        assert_eq!(check("LoadBalancer", "Local", 70000), (None, 1));
        assert_eq!(check("LoadBalancer", "Cluster", 32000), (None, 0));
        assert_eq!(check("NodePort", "Local", 32000), (None, 0));
    }

    #[test]
    fn clients_keep_their_endpoint_for_as_long_as_the_service_says() {
        let affinity = |affinity: &str, seconds: Value| {
            let spec = json!({
                "sessionAffinity": affinity,
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
            });
            let (service, problems) = served(json!(["10.96.0.1"]), spec, json!({}));
            (service.affinity, problems.len())
        };
        assert_eq!(affinity("None", json!(10)), (None, 0));
        assert_eq!(affinity("", json!(null)), (None, 0));
        assert_eq!(affinity("ClientIP", json!(null)), (Some(10_800), 0));
        assert_eq!(affinity("ClientIP", json!(1)), (Some(1), 0));
        assert_eq!(affinity("ClientIP", json!(86_400)), (Some(86_400), 0));
        assert_eq!(affinity("ClientIP", json!(0)), (Some(10_800), 1));
        assert_eq!(affinity("ClientIP", json!(-1)), (Some(10_800), 1));
        assert_eq!(affinity("ClientIP", json!(86_401)), (Some(10_800), 1));
        assert_eq!(affinity("Cookie", json!(10)), (None, 1));
        let (service, _) = served(
            json!(["10.96.0.1"]),
            json!({"sessionAffinity": "ClientIP"}),
            json!({}),
        );
        assert_eq!(service.affinity, Some(10_800));
    }

    #[test]
    fn addresses_that_are_not_ready_are_the_controllers_matter() {
        let reduced = |publish: bool| {
            let spec = json!({"publishNotReadyAddresses": publish, "appProtocol": "not read"});
            served(json!(["10.96.0.1"]), spec, json!({}))
        };
        assert_eq!(reduced(true), reduced(false));
    }
}
