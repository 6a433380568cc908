//! Random clusters: few names, so that rules meet what they ask for, and every shape of rule.

use std::net::IpAddr;

use lb_tests::policy::Packet;
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select, subsequence},
};
use serde_json::{Map, Value, json};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const NODES: [&str; 2] = ["n1", "n2"];
const PORTS: [u16; 8] = [0, 1, 53, 79, 80, 81, 8080, 65535];
const NETWORKS_V4: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/29",
    "10.0.0.2/31",
    "10.0.0.3/32",
    "192.168.0.0/16",
    "192.168.0.1/32",
    "128.0.0.0/1",
];
const NETWORKS_V6: [&str; 8] = [
    "::/0",
    "::/1",
    "::/90",
    "fd00::/8",
    "fd00::/125",
    "fd00::2/127",
    "fd00::3/128",
    "fd01::1/128",
];
const OUTSIDE: [&str; 8] = [
    "8.8.8.8",
    "192.168.7.7",
    "10.0.0.77",
    "10.9.9.9",
    "200.0.0.1",
    "2001:db8::1",
    "fd00::77",
    "::1:2",
];

/// Every object of a cluster.
pub fn objects() -> impl Strategy<Value = Vec<Value>> {
    (
        namespaces(),
        nodes(),
        vec(pod(), 1..7),
        vec(network_policy(), 0..5),
        vec(cluster_network_policy(), 0..4),
    )
        .prop_map(|(namespaces, nodes, pods, policies, cluster_policies)| {
            let pods = pods
                .into_iter()
                .enumerate()
                .map(|(n, pod)| placed(n + 1, pod));
            let policies = policies.into_iter().enumerate().map(|(n, p)| named(n, p));
            let of_cluster = cluster_policies.into_iter().enumerate();
            let of_cluster = of_cluster.map(|(n, policy)| named(n, policy));
            let all = namespaces.into_iter().chain(nodes);
            all.chain(pods).chain(policies).chain(of_cluster).collect()
        })
}

/// A history: each cluster has some objects of the one before and some new ones.
pub fn history() -> impl Strategy<Value = Vec<Vec<Value>>> {
    let step = (objects(), vec(any::<u8>(), 24));
    vec(step, 1..5).prop_map(|steps| {
        let mut history: Vec<Vec<Value>> = Vec::new();
        for (objects, keep) in steps {
            let mut keep = keep.into_iter().cycle();
            let before = history.last().cloned().unwrap_or_default();
            let name = |object: &Value| {
                let metadata = &object["metadata"];
                let parts = [&object["kind"], &metadata["namespace"], &metadata["name"]];
                parts.map(Clone::clone)
            };
            let mut after: Vec<Value> = Vec::new();
            for object in before.into_iter().chain(objects) {
                let known = after.iter().any(|other| name(other) == name(&object));
                if !known && keep.next().is_some_and(|byte| byte % 3 > 0) {
                    after.push(object);
                }
            }
            history.push(unambiguous(after));
        }
        history
    })
}

/// Pods that run have addresses of their own.
fn unambiguous(objects: Vec<Value>) -> Vec<Value> {
    let mut taken = Vec::new();
    let kept = objects.into_iter().filter(|object| {
        if object["kind"] != "Pod" || object["status"]["phase"] == "Succeeded" {
            return true;
        }
        let address = object["status"]["podIPs"][0]["ip"].clone();
        let new = !taken.contains(&address);
        taken.push(address);
        new
    });
    kept.collect()
}

/// The names and addresses of pods that have a network of their own and run.
pub fn running(objects: &[Value]) -> Vec<&Value> {
    let pods = objects.iter().filter(|object| object["kind"] == "Pod");
    pods.filter(|pod| pod["status"]["phase"] == "Running" && pod["spec"]["hostNetwork"] != true)
        .collect()
}

/// Addresses of everything in the cluster, and some outside of it.
pub fn addresses(objects: &[Value]) -> Vec<IpAddr> {
    let pods = objects
        .iter()
        .flat_map(|object| object["status"]["podIPs"].as_array());
    let pods = pods.flatten().filter_map(|ip| ip["ip"].as_str());
    let nodes = objects
        .iter()
        .flat_map(|object| object["status"]["addresses"].as_array());
    let nodes = nodes.flatten().filter_map(|it| it["address"].as_str());
    let all = pods.chain(nodes).chain(OUTSIDE);
    all.filter_map(|text| text.parse().ok()).collect()
}

/// The packets that may show a difference, between two addresses.
pub fn packets(source: IpAddr, destination: IpAddr) -> impl Iterator<Item = Packet> {
    let with_ports = [6, 17, 132].into_iter();
    let with_ports = with_ports.flat_map(|protocol| PORTS.map(|port| (protocol, port)));
    let kinds = with_ports.chain([(1, 0), (58, 0), (0, 0), (255, 0)]);
    kinds.map(move |(protocol, port)| Packet {
        source,
        destination,
        protocol,
        port,
    })
}

fn named(number: usize, mut object: Value) -> Value {
    object["metadata"]["name"] = json!(format!("p{number}"));
    object
}

fn labels(keys: &'static [(&'static str, &'static [&'static str])]) -> BoxedStrategy<Value> {
    let labels = keys.iter().map(|(key, values)| {
        option::weighted(0.7, select(*values)).prop_map(move |value| Some((*key, value?)))
    });
    let labels: Vec<_> = labels.collect();
    labels
        .prop_map(|labels| {
            let labels = labels.into_iter().flatten();
            let labels = labels.map(|(key, value)| (key.to_owned(), json!(value)));
            Value::Object(labels.collect())
        })
        .boxed()
}

fn audit() -> impl Strategy<Value = Value> {
    option::weighted(0.15, Just(json!({"lb.io/policy-audit": "true"})))
        .prop_map(|annotations| annotations.unwrap_or(json!({})))
}

fn namespaces() -> impl Strategy<Value = Vec<Value>> {
    NAMESPACES
        .map(|name| {
            (labels(&[("team", &["a", "b"]), ("env", &["p"])]), audit()).prop_map(
                move |(mut labels, annotations)| {
                    labels["kubernetes.io/metadata.name"] = json!(name);
                    json!({
                        "kind": "Namespace",
                        "metadata": {"name": name, "labels": labels, "annotations": annotations},
                    })
                },
            )
        })
        .prop_map(Vec::from)
}

fn nodes() -> impl Strategy<Value = Vec<Value>> {
    let node = |number: usize| {
        labels(&[("role", &["edge", "work"])]).prop_map(move |labels| {
            json!({
                "kind": "Node",
                "metadata": {"name": NODES[number], "labels": labels},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": format!("192.168.0.{}", number + 1)},
                    {"type": "ExternalIP", "address": format!("fd01::{}", number + 1)},
                    {"type": "Hostname", "address": NODES[number]},
                ]},
            })
        })
    };
    [node(0), node(1)].prop_map(Vec::from)
}

fn named_ports() -> impl Strategy<Value = Value> {
    let port = |name, number: u16, protocol: &str| json!({"name": name, "containerPort": number, "protocol": protocol});
    subsequence(
        vec![
            port("http", 80, "TCP"),
            port("http", 8080, "TCP"),
            port("http", 81, "UDP"),
            port("dns", 53, "UDP"),
            port("dns", 53, "TCP"),
        ],
        0..4,
    )
    .prop_map(Value::Array)
}

fn pod() -> impl Strategy<Value = Value> {
    (
        select(&NAMESPACES[..]),
        select(&NODES[..]),
        labels(&[("app", &["a", "b"]), ("tier", &["a", "b", "c"])]),
        named_ports(),
        named_ports(),
        0..8u8,
        any::<bool>(),
    )
        .prop_map(
            |(namespace, node, labels, ports, sidecar_ports, state, dual)| {
                json!({
                    "kind": "Pod",
                    "metadata": {"namespace": namespace, "labels": labels},
                    "spec": {
                        "nodeName": node,
                        "hostNetwork": state == 0,
                        "containers": [{"name": "c", "ports": ports}],
                        "initContainers": [{
                            "name": "s",
                            "restartPolicy": if state % 2 == 0 { "Always" } else { "Never" },
                            "ports": sidecar_ports,
                        }],
                    },
                    "status": {"phase": if state == 1 { "Succeeded" } else { "Running" }},
                    "dual": dual,
                })
            },
        )
}

/// Gives the pod a name and addresses. A finished one has those of the pod after it.
fn placed(number: usize, mut pod: Value) -> Value {
    pod["metadata"]["name"] = json!(format!("pod{number}"));
    let dual = pod["dual"] == true;
    if let Some(fields) = pod.as_object_mut() {
        fields.remove("dual");
    }
    let on_host = pod["spec"]["hostNetwork"] == true;
    let finished = pod["status"]["phase"] == "Succeeded";
    let address = if finished { number + 1 } else { number };
    let mut ips = vec![json!({"ip": format!("10.0.0.{address}")})];
    if dual {
        ips.push(json!({"ip": format!("fd00::{address}")}));
    }
    if on_host {
        let node = if pod["spec"]["nodeName"] == "n1" {
            1
        } else {
            2
        };
        ips = vec![json!({"ip": format!("192.168.0.{node}")})];
    }
    pod["status"]["podIPs"] = json!(ips);
    pod
}

fn selector(keys: &'static [(&'static str, &'static [&'static str])]) -> BoxedStrategy<Value> {
    let expression = (select(keys), 0..4usize, 1..3usize).prop_map(|((key, values), kind, n)| {
        let values = &values[..n.min(values.len())];
        match kind {
            0 => json!({"key": key, "operator": "In", "values": values}),
            1 => json!({"key": key, "operator": "NotIn", "values": values}),
            2 => json!({"key": key, "operator": "Exists"}),
            _ => json!({"key": key, "operator": "DoesNotExist"}),
        }
    });
    let equal = select(keys)
        .prop_flat_map(|(key, values)| select(values).prop_map(move |value| json!({ key: value })));
    prop_oneof![
        2 => Just(json!({})),
        3 => equal.prop_map(|labels| json!({"matchLabels": labels})),
        3 => vec(expression, 1..3).prop_map(|it| json!({"matchExpressions": it})),
    ]
    .boxed()
}

fn pod_selector() -> BoxedStrategy<Value> {
    selector(&[("app", &["a", "b"]), ("tier", &["a", "b", "c"])])
}

fn namespace_selector() -> BoxedStrategy<Value> {
    selector(&[
        ("team", &["a", "b"]),
        ("env", &["p"]),
        ("kubernetes.io/metadata.name", &["x", "y"]),
    ])
}

fn block() -> impl Strategy<Value = Value> {
    let block = |networks: &'static [&'static str]| {
        (select(networks), vec(select(networks), 0..3))
            .prop_map(|(cidr, except)| json!({"ipBlock": {"cidr": cidr, "except": except}}))
    };
    prop_oneof![block(&NETWORKS_V4), block(&NETWORKS_V6)]
}

fn peer() -> impl Strategy<Value = Value> {
    let pods = (option::of(namespace_selector()), option::of(pod_selector()));
    let pods = pods.prop_map(|(namespaces, pods)| {
        let mut peer = Map::new();
        if let Some(namespaces) = namespaces {
            peer.insert("namespaceSelector".into(), namespaces);
        }
        if pods.is_some() || peer.is_empty() {
            peer.insert("podSelector".into(), pods.unwrap_or(json!({})));
        }
        Value::Object(peer)
    });
    prop_oneof![2 => pods, 1 => block()]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = option::of(select(vec!["TCP", "UDP", "SCTP"]));
    let numbers = (any::<Index>(), option::of(any::<Index>())).prop_map(|(one, other)| {
        let ports = &PORTS[1..];
        let (one, other) = (*one.get(ports), other.map(|other| *other.get(ports)));
        let first = other.map_or(one, |other| one.min(other));
        match other {
            Some(other) => json!({"port": first, "endPort": one.max(other)}),
            None => json!({"port": first}),
        }
    });
    let port = prop_oneof![
        4 => numbers,
        1 => Just(json!({})),
        2 => select(vec!["http", "dns", "none"]).prop_map(|name| json!({"port": name})),
    ];
    (protocol, port).prop_map(|(protocol, mut port)| {
        if let Some(protocol) = protocol {
            port["protocol"] = json!(protocol);
        }
        port
    })
}

fn network_policy() -> impl Strategy<Value = Value> {
    let rules = |field: &'static str| {
        let rule = (vec(peer(), 0..3), vec(port(), 0..3));
        let rule = rule.prop_map(move |(peers, ports)| json!({field: peers, "ports": ports}));
        option::of(vec(rule, 0..3))
    };
    let types = vec![
        vec![],
        vec!["Ingress"],
        vec!["Egress"],
        vec!["Ingress", "Egress"],
    ];
    (
        select(&NAMESPACES[..]),
        audit(),
        pod_selector(),
        rules("from"),
        rules("to"),
        select(types),
    )
        .prop_map(|(namespace, annotations, pods, ingress, egress, types)| {
            json!({
                "kind": "NetworkPolicy",
                "metadata": {"namespace": namespace, "annotations": annotations},
                "spec": {
                    "podSelector": pods,
                    "policyTypes": types,
                    "ingress": ingress,
                    "egress": egress,
                },
            })
        })
}

fn namespaced_pod() -> impl Strategy<Value = Value> {
    let both = (namespace_selector(), pod_selector());
    let both = both.prop_map(|(namespaces, pods)| {
        json!({"pods": {"namespaceSelector": namespaces, "podSelector": pods}})
    });
    let namespaces = namespace_selector().prop_map(|it| json!({"namespaces": it}));
    prop_oneof![both, namespaces]
}

fn egress_peer() -> impl Strategy<Value = Value> {
    let networks = prop_oneof![
        vec(select(&NETWORKS_V4[..]), 1..3),
        vec(select(&NETWORKS_V6[..]), 1..3),
    ];
    prop_oneof![
        6 => namespaced_pod(),
        4 => networks.prop_map(|it| json!({"networks": it})),
        3 => selector(&[("role", &["edge", "work"])]).prop_map(|it| json!({"nodes": it})),
        1 => Just(json!({"domainNames": ["*.example.org"]})),
    ]
}

fn ingress_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        9 => namespaced_pod(),
        1 => Just(json!({"serviceAccounts": {}})),
    ]
}

fn protocol() -> impl Strategy<Value = Value> {
    let number = select(&PORTS[1..]).prop_map(|number| json!({"number": number}));
    let range = (any::<Index>(), any::<Index>()).prop_map(|(one, other)| {
        let (one, other) = (*one.get(&PORTS[1..]), *other.get(&PORTS[1..]));
        json!({"range": {"start": one.min(other), "end": one.max(other)}})
    });
    let numbers = (
        select(vec!["tcp", "udp", "sctp"]),
        prop_oneof![number, range],
    );
    prop_oneof![
        4 => numbers.prop_map(|(protocol, port)| json!({protocol: {"destinationPort": port}})),
        1 => select(vec!["http", "dns"]).prop_map(|it| json!({"destinationNamedPort": it})),
    ]
}

fn cluster_network_policy() -> impl Strategy<Value = Value> {
    fn rules(
        field: &'static str,
        peer: impl Strategy<Value = Value>,
    ) -> impl Strategy<Value = Vec<Value>> {
        let action = select(vec!["Accept", "Deny", "Pass"]);
        let rule = (action, vec(peer, 1..3), option::of(vec(protocol(), 1..3)));
        let rule = rule.prop_map(move |(action, peers, protocols)| {
            let mut rule = json!({"action": action, field: peers});
            if let Some(protocols) = protocols {
                rule["protocols"] = json!(protocols);
            }
            rule
        });
        vec(rule, 0..4)
    }
    (
        select(vec!["Admin", "Baseline"]),
        0..3u16,
        audit(),
        namespaced_pod(),
        rules("from", ingress_peer()),
        rules("to", egress_peer()),
    )
        .prop_map(|(tier, priority, annotations, subject, ingress, egress)| {
            json!({
                "kind": "ClusterNetworkPolicy",
                "metadata": {"annotations": annotations},
                "spec": {
                    "tier": tier,
                    "priority": priority,
                    "subject": subject,
                    "ingress": ingress,
                    "egress": egress,
                },
            })
        })
}
