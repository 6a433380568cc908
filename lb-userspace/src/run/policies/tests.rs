//! What becomes of pods and strangers when a write fails.

use anyhow::bail;
use serde_json::{Value, json};

use super::*;
use crate::world::{Change, Event, pod, policy::network_policy};

/// Tables that fail when they are told to.
#[derive(Default)]
struct Faulty {
    desired: Desired,
    guards: BTreeMap<u32, RuleSets>,
    /// How many more writes succeed; `None`: all.
    left: Option<usize>,
}

impl Faulty {
    fn spend(&mut self) -> Result<()> {
        match &mut self.left {
            Some(0) => bail!("no more"),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }
}

impl PolicyTables for Faulty {
    fn read(&self) -> Result<(Desired, LastNumbers)> {
        Ok((self.desired.clone(), last_numbers(&self.desired)))
    }

    fn write(&mut self, op: &Op) -> Result<()> {
        self.spend()?;
        let Desired {
            identities,
            peers,
            rules,
            ..
        } = &mut self.desired;
        match op {
            Op::Rule { entry, rule } => drop(rules.insert(*entry, *rule)),
            Op::Peer { key, class } => drop(peers.insert(*key, *class)),
            Op::Identity { range, identity } => drop(identities.insert(*range, *identity)),
            Op::NoIdentity { range } => drop(identities.remove(range)),
            Op::NoPeer { key } => drop(peers.remove(key)),
            Op::NoRule { entry } => drop(rules.remove(entry)),
            Op::Endpoint { .. } | Op::NoEndpoint { .. } | Op::Barrier => {}
        }
        Ok(())
    }

    fn set_rule_sets(&mut self, slot: u32, ingress: u32, egress: u32) -> Result<()> {
        self.spend()?;
        self.guards.insert(slot, RuleSets { ingress, egress });
        Ok(())
    }

    fn guard(&self, slot: u32) -> Result<Guard> {
        let RuleSets { ingress, egress } =
            self.guards.get(&slot).copied().unwrap_or(RuleSets::OPEN);
        Ok(Guard {
            ingress,
            egress,
            ..Guard::NONE
        })
    }
}

/// A node with the pods `a` in slot 1 and `b` in slot 2, and a stranger in slot 3.
struct Node {
    world: World,
    policies: Policies,
    tables: Faulty,
    places: Places,
}

const STRANGER: u32 = 3;

impl Node {
    fn new(sizes: Sizes) -> Self {
        let mut tables = Faulty::default();
        let key = |name| ObjectKey::new("x", name);
        let mut node = Self {
            world: World::default(),
            policies: Policies::restore(&tables, sizes).expect("a reading"),
            places: [(1, Some(key("a"))), (2, Some(key("b"))), (STRANGER, None)].into(),
            tables: std::mem::take(&mut tables),
        };
        for (name, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
            let object = json!({
                "metadata": {"labels": {"app": name}},
                "spec": {"nodeName": "n1", "containers": []},
                "status": {"podIPs": [{"ip": ip}]},
            });
            let row = pod::reduce(&serde_json::from_value(object).expect("a Pod"), "n1");
            node.apply(Change::Pod(Event::Apply(key(name), row)));
        }
        node
    }

    fn apply(&mut self, change: Change) {
        let dirty = self.world.apply(change).policy;
        self.policies.mark(dirty);
    }

    /// Lets `a` be reached from `b` alone, on some ports.
    fn isolate(&mut self, ports: &[u16]) {
        let from = json!([{"podSelector": {"matchLabels": {"app": "b"}}}]);
        let ports: Vec<Value> = ports.iter().map(|port| json!({"port": port})).collect();
        let object = json!({
            "metadata": {"namespace": "x"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "a"}},
                "ingress": [{"from": from, "ports": ports}],
            },
        });
        let row = network_policy::reduce(&serde_json::from_value(object).expect("a policy"));
        let key = ObjectKey::new("x", "p");
        self.apply(Change::NetworkPolicy(Event::Apply(key, row)));
    }

    fn program(&mut self) -> Result<()> {
        let Self {
            world,
            policies,
            tables,
            places,
        } = self;
        policies.program(world, places, tables)
    }

    /// The rule sets that a new interface gets, whose pod is not known.
    fn stranger(&self) -> RuleSets {
        self.policies.stranger(&self.places)
    }
}

#[test]
fn strangers_are_kept_out_after_a_write_that_failed_until_one_succeeds() {
    let mut whole = Node::new(Sizes::KERNEL);
    whole.program().expect("all is written");
    assert_eq!(whole.stranger(), RuleSets::OPEN, "every pod is placed");
    whole.isolate(&[80]);
    whole.program().expect("all is written");
    let wanted = whole.tables.guards.clone();
    assert_eq!(wanted[&STRANGER], RuleSets::OPEN);
    let writes = plan(&Changes::between(
        &Desired::default(),
        &whole.tables.desired,
    ))
    .len();
    assert!(writes > 3);

    for done in 0..=writes {
        let mut node = Node::new(Sizes::KERNEL);
        node.program().expect("all is written");
        node.isolate(&[80]);
        node.tables.left = Some(done);
        node.program().expect_err("a write fails");
        assert_eq!(node.stranger(), RuleSets::CLOSED, "after {done} writes");
        assert!(node.policies.pending());
        // Whoever comes now is not let through, whatever of it is settled.
        let Node {
            policies,
            places,
            tables,
            ..
        } = &mut node;
        places.insert(STRANGER + 1, None);
        tables
            .guards
            .insert(STRANGER + 1, policies.stranger(places));
        policies.guard(places, tables).expect("nothing is written");
        assert_eq!(node.tables.guards[&(STRANGER + 1)], RuleSets::CLOSED);
        assert!(!node.policies.hold(&ObjectKey::new("x", "a"), &node.places));

        node.tables.left = None;
        node.program().expect("all is written");
        assert_eq!(node.stranger(), RuleSets::OPEN);
        let guards = &node.tables.guards;
        for slot in [STRANGER, STRANGER + 1] {
            assert_eq!(guards[&slot], RuleSets::OPEN, "after {done} writes");
        }
        assert_ne!(guards[&1].ingress, OPEN);
        assert_eq!(guards[&2], RuleSets::OPEN);
        let (rules, peers) = (&node.tables.desired.rules, &node.tables.desired.peers);
        assert_eq!(
            rules.len(),
            whole.tables.desired.rules.len(),
            "nothing is left over"
        );
        assert_eq!(peers.len(), whole.tables.desired.peers.len());
    }
}

#[test]
fn a_pod_whose_policies_do_not_fit_is_closed_and_told_with_them() {
    let sizes = Sizes {
        rules: 8,
        ..Sizes::KERNEL
    };
    let mut node = Node::new(sizes);
    node.isolate(&[80, 82, 84, 86, 88, 90, 92, 94]);
    node.program().expect("all is written that fits");
    assert_eq!(node.tables.guards[&1].ingress, CLOSED);
    let closed = node.policies.closed(&node.world).into_iter();
    let closed: Vec<_> = closed
        .map(|(pod, policies)| format!("{pod}: {}", crate::policies::closed_text(&policies)))
        .collect();
    assert_eq!(
        closed,
        [
            "x/a: the tables have no room for its policies (NetworkPolicy x/p): \
          nothing may reach or leave it"
        ]
    );
    node.isolate(&[80]);
    node.program().expect("all is written");
    assert!(node.policies.closed(&node.world).is_empty());
    assert_ne!(node.tables.guards[&1].ingress, CLOSED);
}
