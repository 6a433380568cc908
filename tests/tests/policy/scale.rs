//! What compiling costs in a large cluster.

use std::time::{Duration, Instant};

use lb_userspace::{
    compile::policy::{LastNumbers, Policies, Sizes},
    world::{Change, Event, ObjectKey, PolicyDirty, World, namespace, pod, policy::network_policy},
};
use serde_json::{Value, json};

const NAMESPACES: usize = 100;
const PODS: usize = 100;
const POLICIES: usize = 10;

fn namespace_of(number: usize) -> String {
    format!("ns{number}")
}

fn pod_object(namespace: usize, number: usize, app: usize) -> Value {
    json!({
        "metadata": {
            "namespace": namespace_of(namespace),
            "name": format!("pod{number}"),
            "labels": {"app": format!("app{app}"), "hash": format!("{namespace}-{number}")},
        },
        "spec": {
            "nodeName": if number == 0 { "n1" } else { "n2" },
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"podIPs": [
            {"ip": format!("10.{}.{}.{}", namespace / 200, namespace % 200, number + 1)},
            {"ip": format!("fd00::{namespace:x}:{:x}", number + 1)},
        ]},
    })
}

fn policy_object(namespace: usize, number: usize) -> Value {
    json!({
        "metadata": {"namespace": namespace_of(namespace), "name": format!("policy{number}")},
        "spec": {
            "podSelector": if number < 3 { json!({}) } else {
                json!({"matchLabels": {"app": format!("app{number}")}})
            },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": format!("app{number}")}}}],
                 "ports": [{"port": 8080 + number}]},
                {"from": [{
                    "namespaceSelector": {"matchLabels": {"team": format!("team{}", number % 5)}},
                    "podSelector": {"matchExpressions": [
                        {"key": "app", "operator": "NotIn", "values": [format!("app{number}")]},
                    ]},
                }]},
            ],
            "egress": [
                {"to": [{"ipBlock": {
                    "cidr": format!("172.{}.{namespace}.0/24", 16 + number),
                    "except": [format!("172.{}.{namespace}.8/29", 16 + number)],
                }}]},
                {"to": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]},
            ],
        },
    })
}

fn key(object: &Value) -> ObjectKey {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    ObjectKey::new(text("namespace"), text("name"))
}

fn pod_change(object: &Value, node: &str) -> Change {
    let row = pod::reduce(
        &serde_json::from_value(object.clone()).expect("a Pod"),
        node,
    );
    Change::Pod(Event::Apply(key(object), row))
}

fn policy_change(object: &Value) -> Change {
    let typed = serde_json::from_value(object.clone()).expect("a NetworkPolicy");
    Change::NetworkPolicy(Event::Apply(key(object), network_policy::reduce(&typed)))
}

fn world() -> World {
    let mut world = World::default();
    for number in 0..NAMESPACES {
        let object = json!({"metadata": {
            "name": namespace_of(number),
            "labels": {"team": format!("team{}", number % 7)},
        }});
        let row = namespace::reduce(&serde_json::from_value(object.clone()).expect("a Namespace"));
        world.apply(Change::Namespace(Event::Apply(key(&object), row)));
        for pod in 0..PODS {
            world.apply(pod_change(&pod_object(number, pod, pod % 20), "n1"));
        }
        for policy in 0..POLICIES {
            world.apply(policy_change(&policy_object(number, policy)));
        }
    }
    world
}

#[test]
#[cfg_attr(debug_assertions, ignore = "measures: cargo test --release")]
fn ten_thousand_pods_and_a_thousand_policies_compile_fast() {
    let mut world = world();
    let start = Instant::now();
    let mut policies = Policies::new(Sizes::KERNEL, LastNumbers::default());
    policies.update(&world, &PolicyDirty::default());
    let full = start.elapsed();
    let tables = policies.tables();
    println!(
        "everything in {full:?}: {} identities of addresses, {} peers, {} rules",
        tables.identities.len(),
        tables.peers.len(),
        tables.rules.len(),
    );
    let mut apply = |change: Change| {
        let dirty = world.apply(change).policy;
        assert!(!dirty.is_empty());
        let start = Instant::now();
        let changes = policies.update(&world, &dirty);
        assert!(!changes.is_empty());
        start.elapsed()
    };
    let label = |round: usize| pod_change(&pod_object(7, 50, 3 + round % 2), "n1");
    let remote: Vec<_> = (0..9).map(|round| apply(label(round))).collect();
    let label = |round: usize| pod_change(&pod_object(7, 0, 3 + round % 2), "n1");
    let local: Vec<_> = (0..9).map(|round| apply(label(round))).collect();
    let policy = |round: usize| policy_change(&policy_object(7, POLICIES + round));
    let new: Vec<_> = (0..9).map(|round| apply(policy(round))).collect();
    println!("a pod's label elsewhere {remote:?}");
    println!("a pod's label here {local:?}");
    println!("a new policy {new:?}");
    assert!(full < Duration::from_secs(1), "{full:?}");
    for times in [remote, local] {
        let fastest = times.into_iter().min().expect("rounds");
        assert!(fastest < Duration::from_millis(5), "{fastest:?}");
    }
}
