//! Policies and whom they are about, in names. Pure.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use crate::{
    compile::policy::Policies,
    tallies::Hits,
    world::{self, ObjectKey, PolicyName, World, policy::Side},
};

/// A policy and whom it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    pub name: String,
    pub tier: String,
    pub priority: u16,
    /// It is not enforced.
    pub audited: bool,
    pub ingress: Rules,
    pub egress: Rules,
    /// The pods that have rules by it.
    pub pods: Vec<Selected>,
    pub problems: Vec<String>,
}

/// What a policy says about one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rules {
    /// Nothing passes that no rule accepts.
    pub isolates: bool,
    /// In words, in order.
    pub rules: Vec<String>,
}

/// A pod that has rules by a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selected {
    pub pod: ObjectKey,
    /// What all its policies together said of new flows; only an agent counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hits: Option<Hits>,
}

/// What becomes of a pod whose policies do not fit the tables.
pub fn closed_text(policies: &[PolicyName]) -> String {
    let names: Vec<_> = policies.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    format!("the tables have no room for its policies ({names}): nothing may reach or leave it")
}

/// The policies of the world of [`crate::explain::everywhere`].
pub fn everywhere(world: &World) -> Vec<Policy> {
    described(world, &Policies::boundless(world), |_| None)
}

/// All policies, with the pods whose rule sets are compiled; `hits` are those of a pod.
pub fn described(
    world: &World,
    compiled: &Policies,
    hits: impl Fn(&ObjectKey) -> Option<Hits>,
) -> Vec<Policy> {
    let mut pods: BTreeMap<&PolicyName, Vec<Selected>> = BTreeMap::new();
    for (pod, sets) in &compiled.tables().endpoints {
        for rule_set in [sets.ingress, sets.egress] {
            for name in compiled.policies_of(rule_set) {
                let selected = pods.entry(name).or_default();
                if selected.last().is_none_or(|last| last.pod != *pod) {
                    selected.push(Selected {
                        pod: pod.clone(),
                        hits: hits(pod),
                    });
                }
            }
        }
    }
    let policies = world.policies();
    policies
        .map(|(name, policy)| {
            let pods = pods.remove(&name).unwrap_or_default();
            describe(world, &name, policy, pods)
        })
        .collect()
}

fn describe(
    world: &World,
    name: &PolicyName,
    policy: &world::Policy,
    pods: Vec<Selected>,
) -> Policy {
    let rules = |side: &Side| Rules {
        isolates: side.isolates,
        rules: side.rules.iter().map(ToString::to_string).collect(),
    };
    let problems = world.problems();
    let own = problems.filter(|problem| problem.kind == name.kind && problem.key == name.key);
    let namespace = world.namespace(&name.key.namespace);
    Policy {
        name: name.to_string(),
        tier: policy.tier.to_string(),
        priority: policy.priority,
        audited: policy.audited || namespace.is_some_and(|namespace| namespace.audited),
        ingress: rules(&policy.ingress),
        egress: rules(&policy.egress),
        pods,
        problems: own.map(|problem| problem.text).collect(),
    }
}

/// As a table.
pub fn list(policies: &[Policy]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let header = ["POLICY", "TIER", "PRIORITY", "IN FORCE", "PODS", "PROBLEMS"];
    table.set_header(header);
    for policy in policies {
        let in_force = if policy.audited { "audited" } else { "yes" };
        table.add_row([
            policy.name.clone(),
            policy.tier.clone(),
            policy.priority.to_string(),
            in_force.to_owned(),
            policy.pods.len().to_string(),
            policy.problems.len().to_string(),
        ]);
    }
    table.to_string()
}

/// For a person to read.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            tier,
            priority,
            audited,
            ..
        } = self;
        let in_force = if *audited { ", audited" } else { "" };
        writeln!(f, "{name}: tier {tier}, priority {priority}{in_force}")?;
        for (direction, side) in [("ingress", &self.ingress), ("egress", &self.egress)] {
            if side.isolates {
                writeln!(f, "  isolates for {direction}")?;
            }
            for (index, rule) in side.rules.iter().enumerate() {
                writeln!(f, "  {direction} rule {index}: {rule}")?;
            }
        }
        let mut lines = String::new();
        for Selected { pod, hits } in &self.pods {
            match hits {
                Some(hits) => writeln!(lines, "  selects {pod}: {hits}")?,
                None => writeln!(lines, "  selects {pod}")?,
            }
        }
        for problem in &self.problems {
            writeln!(lines, "  problem: {problem}")?;
        }
        f.write_str(&lines)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::{explain, source::manifests};

    #[test]
    fn a_policy_is_shown_with_its_rules_and_its_pods() {
        let disk = TempDir::new().expect("a directory");
        let text = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: []}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {}]
    ports: [{port: 80, endPort: 90}, {port: dns, protocol: UDP}]
  - {}
";
        fs::write(disk.path().join("all.yaml"), text).expect("a file");
        let changes = manifests::read(disk.path()).expect("manifests");
        let mut policies = everywhere(&explain::everywhere(changes));
        let [policy] = policies.as_mut_slice() else {
            panic!("{policies:?}");
        };
        assert_eq!(
            policy.to_string(),
            "NetworkPolicy shop/web: tier NetworkPolicy, priority 0
  isolates for ingress
  ingress rule 0: Accept pods of shop, 10.0.0.0/8 but for 10.1.0.0/16; ports 80-90/TCP, dns/UDP
  ingress rule 1: Accept any peer; any port
  selects shop/web
  problem: ingress[0]: a peer that says nothing: this peer is left out
"
        );
        policy.pods[0].hits = Some(Hits {
            ingress_allowed: 7,
            ingress_denied: 1,
            ..Hits::default()
        });
        let line =
            "selects shop/web: 7 new flows allowed and 1 denied on ingress, 0 and 0 on egress";
        assert!(policy.to_string().contains(line), "{policy}");
        assert!(list(&policies).contains("NetworkPolicy shop/web"));
    }
}
