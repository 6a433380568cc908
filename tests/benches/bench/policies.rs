//! What compiling policies costs in a cluster of 10,000 pods and 1,000 policies, 100 of the pods on this
//! node.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    compile::policy::{LastNumbers, Policies, Sizes},
    world::{Change, Event, ObjectKey, PolicyDirty, World, namespace, pod, policy::network_policy},
};
use serde_json::{Value, json};

use crate::measure::{Table, Unit, table};

const NAMESPACES: usize = 100;
const PODS: usize = 100;
const POLICIES: usize = 10;
const ROUNDS: usize = 9;

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

fn pod_change(object: &Value, node: &str) -> Result<Change> {
    let pod = serde_json::from_value(object.clone()).context("a Pod")?;
    Ok(Change::Pod(Event::Apply(
        key(object),
        pod::reduce(&pod, node),
    )))
}

fn policy_change(object: &Value) -> Result<Change> {
    let policy = serde_json::from_value(object.clone()).context("a NetworkPolicy")?;
    let row = network_policy::reduce(&policy);
    Ok(Change::NetworkPolicy(Event::Apply(key(object), row)))
}

fn world() -> Result<World> {
    let mut world = World::default();
    for number in 0..NAMESPACES {
        let object = json!({"metadata": {
            "name": namespace_of(number),
            "labels": {"team": format!("team{}", number % 7)},
        }});
        let namespace = serde_json::from_value(object.clone()).context("a Namespace")?;
        let row = namespace::reduce(&namespace);
        world.apply(Change::Namespace(Event::Apply(key(&object), row)));
        for pod in 0..PODS {
            world.apply(pod_change(&pod_object(number, pod, pod % 20), "n1")?);
        }
        for policy in 0..POLICIES {
            world.apply(policy_change(&policy_object(number, policy))?);
        }
    }
    Ok(world)
}

pub fn run() -> Result<Vec<Table>> {
    let mut world = world()?;
    let compile = || {
        let mut policies = Policies::new(Sizes::KERNEL, LastNumbers::default());
        let started = Instant::now();
        policies.update(&world, &PolicyDirty::default());
        (milliseconds(started), policies)
    };
    let full = (0..ROUNDS).map(|_| compile().0).collect();
    let (_, mut policies) = compile();

    let mut apply = |change: Change| {
        let dirty = world.apply(change).policy;
        let started = Instant::now();
        let changes = policies.update(&world, &dirty);
        let took = milliseconds(started);
        ensure!(!changes.is_empty(), "nothing has changed");
        Ok(took)
    };
    let mut rounds = |change: &dyn Fn(usize) -> Result<Change>| {
        let rounds = (0..ROUNDS).map(|round| apply(change(round)?));
        rounds.collect::<Result<Vec<_>>>()
    };
    let label = |pod| move |round: usize| pod_change(&pod_object(7, pod, 3 + round % 2), "n1");
    let elsewhere = rounds(&label(50))?;
    let here = rounds(&label(0))?;
    let new = rounds(&|round| policy_change(&policy_object(7, POLICIES + round)))?;
    let measured = [
        ("everything", full),
        ("the label of a pod elsewhere", elsewhere),
        ("the label of a pod of this node", here),
        ("a new policy", new),
    ];
    let title = "Compiling 1,000 policies for 10,000 pods, and what has changed";
    let measured = measured.map(|(name, samples)| (name.to_owned(), samples));
    Ok(vec![table(title, Unit::Milliseconds, measured)])
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
