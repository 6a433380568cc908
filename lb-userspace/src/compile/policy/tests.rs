//! What the writes are, and what becomes of what does not fit. That the tables say the right thing is
//! tested against the documentation in the `tests` package.

use std::collections::BTreeSet;

use lb_common::policy::{CLOSED, OPEN};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::{
    plan::policy::{Op, plan},
    world::{Change, Event, namespace, node, pod, policy::network_policy},
};

struct Agent {
    world: World,
    policies: Policies,
}

fn key(object: &Value) -> ObjectKey {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    ObjectKey::new(text("namespace"), text("name"))
}

fn change(object: &Value) -> Change {
    fn typed<T: DeserializeOwned>(object: &Value) -> T {
        serde_json::from_value(object.clone()).expect("an object")
    }
    let key = key(object);
    match object["kind"].as_str() {
        Some("Pod") => Change::Pod(Event::Apply(key, pod::reduce(&typed(object), "n1"))),
        Some("Namespace") => {
            Change::Namespace(Event::Apply(key, namespace::reduce(&typed(object))))
        }
        Some("Node") => Change::Node(Event::Apply(key, node::reduce(&typed(object), "n1"))),
        _ => Change::NetworkPolicy(Event::Apply(key, network_policy::reduce(&typed(object)))),
    }
}

impl Agent {
    fn new(sizes: Sizes) -> Self {
        Self {
            world: World::default(),
            policies: Policies::new(sizes, LastNumbers::default()),
        }
    }

    /// Takes in objects at once.
    fn apply(&mut self, objects: &[Value]) -> Changes {
        let mut dirty = PolicyDirty::default();
        for object in objects {
            dirty.merge(self.world.apply(change(object)).policy);
        }
        self.policies.update(&self.world, &dirty)
    }

    fn delete_policy(&mut self, name: &str) -> Changes {
        let change = Change::NetworkPolicy(Event::Delete(ObjectKey::new("x", name)));
        let dirty = self.world.apply(change).policy;
        self.policies.update(&self.world, &dirty)
    }

    fn settle(&mut self) -> Changes {
        let nothing = PolicyDirty::default();
        self.policies.update(&self.world, &nothing)
    }

    fn sets(&self, pod: &str) -> RuleSets {
        self.policies.tables().endpoints[&ObjectKey::new("x", pod)]
    }
}

fn a_pod(name: &str, ip: &str, app: &str) -> Value {
    json!({
        "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "labels": {"app": app}},
        "spec": {"nodeName": "n1", "containers": []},
        "status": {"podIPs": [{"ip": ip}]},
    })
}

fn a_policy(name: &str, app: &str, from: Value) -> Value {
    json!({
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": name},
        "spec": {
            "podSelector": {"matchLabels": {"app": app}},
            "ingress": [{"from": from}],
        },
    })
}

/// The pods whose flows are judged again.
fn judged_again(changes: &Changes) -> Vec<String> {
    let endpoints = changes.endpoints.iter();
    let endpoints = endpoints.filter(|(_, sets)| sets.is_some());
    endpoints.map(|(pod, _)| pod.name.clone()).collect()
}

fn pods_of(app: &str) -> Value {
    json!([{"podSelector": {"matchLabels": {"app": app}}}])
}

fn two_pods() -> [Value; 2] {
    [a_pod("a", "10.0.0.1", "a"), a_pod("b", "10.0.0.2", "b")]
}

#[test]
fn without_policies_every_pod_is_open_and_nobody_has_an_identity() {
    let mut agent = Agent::new(Sizes::KERNEL);
    let changes = agent.apply(&two_pods());
    let tables = agent.policies.tables();
    assert!(tables.identities.is_empty() && tables.peers.is_empty() && tables.rules.is_empty());
    assert_eq!(agent.sets("a"), RuleSets::OPEN);
    let pod = |name| ObjectKey::new("x", name);
    assert_eq!(
        plan(&changes),
        [
            Op::Endpoint {
                pod: pod("a"),
                sets: RuleSets::OPEN
            },
            Op::Endpoint {
                pod: pod("b"),
                sets: RuleSets::OPEN
            },
        ]
    );
}

#[test]
fn telling_the_same_again_changes_nothing() {
    let mut agent = Agent::new(Sizes::KERNEL);
    agent.apply(&two_pods());
    agent.apply(&[a_policy("p", "a", pods_of("b"))]);
    let dirty = everything(&agent.world);
    assert_eq!(
        agent.policies.update(&agent.world, &dirty),
        Changes::default()
    );
}

#[test]
fn endpoints_with_the_same_policies_share_a_rule_set() {
    let mut agent = Agent::new(Sizes::KERNEL);
    agent.apply(&two_pods());
    agent.apply(&[
        a_pod("c", "10.0.0.3", "a"),
        a_policy("p", "a", pods_of("b")),
    ]);
    let [a, b, c] = ["a", "b", "c"].map(|name| agent.sets(name));
    assert_eq!(a, c);
    assert_ne!(a.ingress, OPEN);
    assert_eq!((a.egress, b), (OPEN, RuleSets::OPEN));
    let names: Vec<_> = agent.policies.policies_of(a.ingress).collect();
    assert_eq!(
        names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["NetworkPolicy x/p"]
    );
}

#[test]
fn numbers_stay_while_what_they_mean_does() {
    let mut agent = Agent::new(Sizes::KERNEL);
    agent.apply(&two_pods());
    agent.apply(&[a_policy("p", "a", pods_of("b"))]);
    let before = agent.policies.tables().clone();
    let changes = agent.apply(&[a_policy("q", "b", pods_of("a"))]);
    let after = agent.policies.tables();
    for (range, identity) in &before.identities {
        assert_eq!(after.identities.get(range), Some(identity));
    }
    assert_eq!(
        after.endpoints[&ObjectKey::new("x", "a")],
        before.endpoints[&ObjectKey::new("x", "a")]
    );
    assert!(changes.gone_peers.is_empty() && changes.gone_rules.is_empty());
    agent.delete_policy("q");
    agent.settle();
    assert_eq!(*agent.policies.tables(), before);
    agent.apply(&[a_policy("q", "b", pods_of("a"))]);
    let again = agent.sets("b").ingress;
    assert!(!before.rules.keys().any(|entry| entry.key.class == again));
}

#[test]
fn a_peer_that_all_alike_are_takes_no_write_of_identities() {
    let mut agent = Agent::new(Sizes::KERNEL);
    agent.apply(&two_pods());
    agent.apply(&[a_policy("p", "a", json!([{"namespaceSelector": {}}]))]);
    let known = agent.policies.tables().identities.clone();
    assert_eq!(known.len(), 2);
    let broad = json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}]);
    let changes = agent.apply(&[a_policy("q", "a", broad)]);
    let networks: Vec<_> = changes.identities.keys().map(|range| range.bits).collect();
    assert_eq!(networks, [96 + 8], "the network alone");
    assert_eq!(judged_again(&changes), ["a"], "by another rule set");
    assert_eq!(known.values().collect::<BTreeSet<_>>().len(), 1);
}

#[test]
fn what_no_policy_asks_for_is_forgotten_one_update_later() {
    let mut agent = Agent::new(Sizes::KERNEL);
    agent.apply(&two_pods());
    agent.apply(&[a_policy("p", "a", pods_of("b"))]);
    assert!(!agent.policies.pending());
    let changes = agent.delete_policy("p");
    assert_eq!(agent.sets("a"), RuleSets::OPEN);
    assert!(changes.identities.is_empty(), "{changes:?}");
    assert!(!changes.gone_rules.is_empty() && !changes.gone_peers.is_empty());
    assert!(agent.policies.pending());
    let changes = agent.settle();
    assert_eq!(changes.identities.len(), 1);
    assert!(changes.endpoints.is_empty(), "no rule can tell");
    assert!(!agent.policies.pending());
    let Tables {
        identities,
        peers,
        rules,
        ..
    } = agent.policies.tables();
    assert!(identities.is_empty() && peers.is_empty() && rules.is_empty());
}

#[test]
fn a_peer_that_changes_has_flows_judged_again_and_an_endpoint_too() {
    let mut agent = Agent::new(Sizes::KERNEL);
    agent.apply(&two_pods());
    agent.apply(&[a_policy("p", "a", pods_of("b"))]);
    let changes = agent.apply(&[a_pod("b", "10.0.0.2", "c")]);
    assert_eq!(judged_again(&changes), ["a"]);
    let address = Range::host("10.0.0.2".parse().expect("an address"));
    let ops = plan(&changes);
    assert_eq!(ops[0], Op::NoIdentity { range: address });
    assert!(matches!(ops[1], Op::Endpoint { .. }), "{ops:?}");
    let changes = agent.apply(&[a_pod("b", "10.0.0.2", "a")]);
    assert_eq!(judged_again(&changes), ["b"]);
}

#[test]
fn flows_of_endpoints_that_cannot_tell_are_not_judged_again() {
    let mut agent = Agent::new(Sizes::KERNEL);
    agent.apply(&two_pods());
    agent.apply(&[
        a_policy("p", "a", pods_of("c")),
        a_policy("q", "b", pods_of("d")),
    ]);
    let mut judged = |app| judged_again(&agent.apply(&[a_pod("new", "10.0.0.3", app)]));
    assert_eq!(judged("e"), ["new"]);
    assert_eq!(judged("c"), ["a"]);
    assert_eq!(judged("d"), ["a", "b"]);
    assert_eq!(judged("e"), ["b"]);
}

#[test]
fn a_rule_set_that_does_not_fit_closes_its_endpoints_until_it_does() {
    let ports: Vec<_> = (0..8).map(|n| json!({"port": 80 + 2 * n})).collect();
    let mut large = a_policy("p", "a", json!([]));
    large["spec"]["ingress"][0]["ports"] = json!(ports);
    let sizes = Sizes {
        rules: 8,
        ..Sizes::KERNEL
    };
    let mut agent = Agent::new(sizes);
    agent.apply(&two_pods());
    let changes = agent.apply(&[large]);
    assert_eq!(
        agent.sets("a"),
        RuleSets {
            ingress: CLOSED,
            egress: OPEN
        }
    );
    assert!(changes.rules.is_empty());
    let closed: Vec<_> = agent.policies.closed().map(ToString::to_string).collect();
    assert_eq!(closed, ["x/a"]);
    agent.apply(&[a_policy("p", "a", json!([]))]);
    assert_eq!(agent.policies.closed().count(), 0);
}

#[test]
fn identities_that_do_not_fit_in_a_rule_set_close_its_endpoints() {
    for sizes in [
        Sizes {
            peers: 1,
            ..Sizes::KERNEL
        },
        Sizes {
            identities: 1,
            ..Sizes::KERNEL
        },
    ] {
        let mut agent = Agent::new(sizes);
        agent.apply(&two_pods());
        agent.apply(&[a_policy(
            "p",
            "a",
            json!([pods_of("a")[0], pods_of("b")[0]]),
        )]);
        assert_eq!(agent.sets("a").ingress, CLOSED, "{sizes:?}");
        assert_eq!(agent.sets("b"), RuleSets::OPEN);
        let tables = agent.policies.tables();
        assert!(tables.identities.len() <= sizes.identities);
        assert!(tables.peers.len() <= sizes.peers);
        agent.apply(&[a_policy("p", "a", pods_of("b"))]);
        agent.settle();
        agent.settle();
        assert_ne!(agent.sets("a").ingress, CLOSED, "{sizes:?}");
    }
}

#[test]
fn an_identity_that_did_not_fit_is_written_once_it_does() {
    let sizes = Sizes {
        identities: 1,
        ..Sizes::KERNEL
    };
    let mut agent = Agent::new(sizes);
    let [a, b] = two_pods();
    agent.apply(&[a, b, a_policy("p", "c", json!([{"namespaceSelector": {}}]))]);
    agent.apply(&[a_pod("c", "10.0.0.3", "c")]);
    assert_eq!(agent.sets("c").ingress, CLOSED);
    for name in ["a", "b"] {
        let key = ObjectKey::new("x", name);
        let dirty = agent.world.apply(Change::Pod(Event::Delete(key))).policy;
        agent.policies.update(&agent.world, &dirty);
    }
    assert_ne!(agent.sets("c").ingress, CLOSED);
    let identities = &agent.policies.tables().identities;
    let address = Range::host("10.0.0.3".parse().expect("an address"));
    assert_eq!(identities.keys().collect::<Vec<_>>(), [&address]);
}

#[test]
fn of_two_pods_with_one_address_the_one_that_stays_has_it() {
    let mut leaving = a_pod("a", "10.0.0.9", "a");
    leaving["metadata"]["deletionTimestamp"] = json!("2026-11-21T12:00:00Z");
    let mut agent = Agent::new(Sizes::KERNEL);
    agent.apply(&[
        leaving,
        a_pod("b", "10.0.0.9", "b"),
        a_policy("p", "c", pods_of("a")),
    ]);
    assert!(agent.policies.tables().identities.is_empty());
    agent.apply(&[a_policy("p", "c", pods_of("b"))]);
    assert_eq!(agent.policies.tables().identities.len(), 1);
}

#[test]
fn numbers_begin_above_those_of_an_earlier_agent() {
    let last = LastNumbers {
        identity: 10,
        class: 20,
        rule: 30,
    };
    let mut agent = Agent::new(Sizes::KERNEL);
    agent.policies = Policies::new(Sizes::KERNEL, last);
    agent.apply(&two_pods());
    agent.apply(&[a_policy("p", "a", pods_of("b"))]);
    let tables = agent.policies.tables();
    assert!(tables.identities.values().all(|identity| *identity > 10));
    assert!(tables.rules.keys().all(|entry| entry.key.class > 20));
    assert!(agent.policies.rule_names().all(|(number, _)| number > 30));
    let changes = Changes::between(&Tables::default(), tables);
    assert_eq!(changes.rules, tables.rules);
    assert_eq!(changes.peers, tables.peers);
    let none = Changes::between(tables, &Tables::default());
    assert_eq!(none.gone_rules.len(), tables.rules.len());
    assert_eq!(none.identities.len(), tables.identities.len());
}
