//! What holds for every cluster and every history.

use std::{collections::BTreeMap, net::IpAddr};

use lb_tests::policy::{Cluster, Direction, Packet, Verdict, decide, yaml};
use lb_userspace::{plan::policy::Op, world::ObjectKey};
use proptest::prelude::*;
use serde_json::Value;

use crate::{
    generate::{addresses, history, objects, packets, running},
    tables::{Agent, Kernel, cluster, identity, lookup},
};

fn key(pod: &Value) -> ObjectKey {
    let text = |field: &str| pod["metadata"][field].as_str().expect("a name");
    ObjectKey::new(text("namespace"), text("name"))
}

fn own_addresses(pod: &Value) -> Vec<IpAddr> {
    let ips = pod["status"]["podIPs"].as_array().expect("addresses");
    let ips = ips.iter().filter_map(|ip| ip["ip"].as_str());
    ips.map(|ip| ip.parse().expect("an address")).collect()
}

/// Every packet that a pod may send or receive.
fn traffic(pod: &Value, others: &[IpAddr]) -> Vec<(Direction, Packet)> {
    let mut traffic = Vec::new();
    for own in own_addresses(pod) {
        for other in others.iter().copied() {
            if other.is_ipv4() != own.is_ipv4() || other == own {
                continue;
            }
            let sent = packets(own, other).map(|packet| (Direction::Egress, packet));
            let received = packets(other, own).map(|packet| (Direction::Ingress, packet));
            traffic.extend(sent.chain(received));
        }
    }
    traffic
}

/// The first packet that the tables judge otherwise than the documentation does.
fn difference(objects: &[Value]) -> Option<String> {
    let cluster = cluster(objects);
    let others = addresses(objects);
    for node in ["n1", "n2"] {
        let agent = Agent::of(&cluster, node);
        for pod in running(objects)
            .into_iter()
            .filter(|pod| pod["spec"]["nodeName"] == node)
        {
            let object = serde_json::from_value(pod.clone()).expect("a Pod");
            for (direction, packet) in traffic(pod, &others) {
                let meant = |audited| {
                    let verdict = decide(&cluster, &object, direction, &packet, audited);
                    let Verdict { allow, by } = verdict;
                    (by, allow)
                };
                let meant = (meant(false), meant(true));
                let told = agent.told(&key(pod), direction, &packet);
                if told != meant {
                    return Some(format!(
                        "{} {direction:?} {packet:?}\nmeant {meant:?}\ntold  {told:?}\n{}",
                        key(pod),
                        yaml(objects).expect("YAML"),
                    ));
                }
            }
        }
    }
    None
}

/// All that tables say, without numbers: two with the same verdicts may differ in waste.
fn content(agent: &Agent) -> impl PartialEq + std::fmt::Debug + use<> {
    let tables = agent.policies.tables();
    let networks: Vec<_> = tables.identities.keys().copied().collect();
    // Identities in the order in which networks have them.
    let mut order = BTreeMap::new();
    let kinds: Vec<usize> = tables
        .identities
        .values()
        .map(|identity| {
            let next = order.len();
            *order.entry(*identity).or_insert(next)
        })
        .collect();
    let counts = (tables.peers.len(), tables.rules.len());
    let names: Vec<String> = agent
        .policies
        .rule_names()
        .map(|(_, it)| it.to_string())
        .collect();
    let names: std::collections::BTreeSet<_> = names.into_iter().collect();
    let pods: Vec<_> = tables.endpoints.keys().cloned().collect();
    (networks, kinds, counts, names, pods)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_tables_say_what_the_documentation_says(objects in objects()) {
        if let Some(difference) = difference(&objects) {
            prop_assert!(false, "{}", difference);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    /// What is compiled from changes is what is compiled from everything, once all is settled.
    #[test]
    fn changes_lead_where_everything_leads(history in history()) {
        let mut agent = Agent::new("n1");
        for objects in &history {
            let cluster = cluster(objects);
            agent.follow(&cluster);
            let fresh = Agent::of(&cluster, "n1");
            same_verdicts(&agent, &fresh, objects)?;
        }
        while agent.policies.pending() {
            agent.settle();
        }
        let last = history.last().map(Vec::as_slice).unwrap_or_default();
        let fresh = Agent::of(&cluster(last), "n1");
        prop_assert_eq!(content(&agent), content(&fresh));
        same_verdicts(&agent, &fresh, last)?;
    }

    /// The kernel's tables end as they should, and at every step each packet is judged as before or
    /// as after; a flow whose verdict changes is judged again once it can be.
    #[test]
    fn no_step_shows_anything_but_before_and_after(history in history()) {
        let mut agent = Agent::new("n1");
        let mut kernel = Kernel::default();
        for (objects, whole) in one_by_one(&history) {
            let before = kernel.clone();
            let ops = agent.follow(&cluster(&objects));
            step(&mut kernel, &agent, &before, &objects, &ops, whole)?;
            let before = kernel.clone();
            let ops = agent.settle();
            step(&mut kernel, &agent, &before, &objects, &ops, true)?;
        }
    }
}

/// The history, one object at a time, and whether a change is one of a single pod, node or policy:
/// that of a namespace is one of many pods.
fn one_by_one(history: &[Vec<Value>]) -> Vec<(Vec<Value>, bool)> {
    let name = |object: &Value| {
        let metadata = &object["metadata"];
        [&object["kind"], &metadata["namespace"], &metadata["name"]].map(Clone::clone)
    };
    let first = history.first().cloned().unwrap_or_default();
    let mut steps = vec![(first, false)];
    for target in history.iter().skip(1) {
        let known = |objects: &[Value], object: &Value| {
            objects.iter().any(|other| name(other) == name(object))
        };
        let before = steps
            .last()
            .map(|(objects, _)| objects.clone())
            .unwrap_or_default();
        let gone = before.iter().filter(|object| !known(target, object));
        let changed = target.iter().filter(|object| !before.contains(object));
        for object in gone.chain(changed) {
            let last = steps
                .last()
                .map(|(objects, _)| objects.clone())
                .unwrap_or_default();
            let mut next: Vec<_> = last
                .into_iter()
                .filter(|it| name(it) != name(object))
                .collect();
            next.extend(target.contains(object).then(|| object.clone()));
            steps.push((next, object["kind"] != "Namespace"));
        }
    }
    steps.truncate(14);
    steps
}

fn same_verdicts(one: &Agent, other: &Agent, objects: &[Value]) -> Result<(), TestCaseError> {
    let others = addresses(objects);
    for pod in running(objects)
        .into_iter()
        .filter(|pod| pod["spec"]["nodeName"] == "n1")
    {
        for (direction, packet) in traffic(pod, &others) {
            let key = key(pod);
            let told = one.told(&key, direction, &packet);
            prop_assert_eq!(
                told,
                other.told(&key, direction, &packet),
                "{} {:?}",
                key,
                packet
            );
        }
    }
    Ok(())
}

/// Writes what has changed, looking at all that matters after every write.
fn step(
    kernel: &mut Kernel,
    agent: &Agent,
    before: &Kernel,
    objects: &[Value],
    ops: &[Op],
    whole: bool,
) -> Result<(), TestCaseError> {
    let after = agent.policies.tables();
    let others = addresses(objects);
    let pods = running(objects).into_iter();
    let pods = pods.filter(|pod| {
        pod["spec"]["nodeName"] == "n1" && before.tables.endpoints.contains_key(&key(pod))
    });
    let watched: Vec<_> = pods
        .flat_map(|pod| {
            let traffic = traffic(pod, &others).into_iter().step_by(5);
            traffic.map(move |(direction, packet)| (key(pod), direction, packet))
        })
        .collect();
    let verdict = |tables: &_, (pod, direction, packet): &(ObjectKey, Direction, Packet)| {
        let rule = lookup(tables, pod, *direction, packet);
        (rule.allow, rule.audited_allow)
    };
    for (number, op) in ops.iter().enumerate() {
        kernel.write(op);
        if !whole || watched.len() * ops.len() > 100_000 && number % 7 > 0 {
            continue;
        }
        for flow in &watched {
            let now = verdict(&kernel.tables, flow);
            let expected = [verdict(&before.tables, flow), verdict(after, flow)];
            prop_assert!(expected.contains(&now), "{:?} at {:?}", flow, op);
        }
    }
    prop_assert_eq!(&kernel.tables, after);
    for flow in &watched {
        let (pod, direction, packet) = flow;
        let peer = match direction {
            Direction::Ingress => packet.source,
            Direction::Egress => packet.destination,
        };
        let judged_again = kernel.epochs.get(pod) != before.epochs.get(pod);
        let same = verdict(&before.tables, flow) == verdict(after, flow);
        prop_assert!(
            same || judged_again,
            "{:?}: {}",
            flow,
            identity(after, peer)
        );
    }
    Ok(())
}

/// A cluster that the generator need not find.
#[test]
fn a_difference_is_shown_with_the_objects() {
    let text = "\
kind: Namespace
metadata: {name: x, labels: {kubernetes.io/metadata.name: x}}
---
kind: Pod
metadata: {name: a, namespace: x}
spec: {nodeName: n1, containers: []}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}
";
    let cluster = Cluster::parse(text).expect("a cluster");
    assert_eq!((cluster.namespaces.len(), cluster.pods.len()), (1, 1));
}
