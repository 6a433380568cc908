//! `lb policy`.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{
    PolicyCommand,
    output::{Failure, print},
};
use crate::{
    compile::policy::{LastNumbers, Policies, Sizes},
    explain::everywhere,
    source::manifests::Manifests,
    world::{self, PolicyDirty, PolicyName, World, policy::Side},
};

/// A policy and whom it is about.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    name: String,
    tier: String,
    priority: u16,
    /// It is not enforced.
    audited: bool,
    ingress: Rules,
    egress: Rules,
    /// The pods that have rules by it.
    pods: Vec<String>,
    problems: Vec<String>,
}

/// What a policy says about one direction.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rules {
    /// Nothing passes that no rule accepts.
    isolates: bool,
    /// In words, in order.
    rules: Vec<String>,
}

/// Answers from manifests alone, with no kernel and no agent.
pub fn answer(command: &PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::List { manifests, output } => {
            let policies = policies(manifests)?;
            Ok(print(*output, &policies, |policies| list(policies))?)
        }
        PolicyCommand::Get {
            name,
            manifests,
            output,
        } => {
            let named = |policy: &Policy| policy.name.rsplit(' ').next() == Some(name);
            let mut found = policies(manifests)?;
            found.retain(named);
            if found.is_empty() {
                return Err(anyhow::anyhow!("there is no policy {name}").into());
            }
            let text = |policies: &Vec<Policy>| {
                let texts = policies.iter().map(ToString::to_string);
                texts.collect::<String>()
            };
            Ok(print(*output, &found, text)?)
        }
    }
}

fn policies(manifests: &Path) -> Result<Vec<Policy>> {
    let manifests = Manifests::open(manifests)?;
    let world = everywhere(manifests.read("").context("look for policies")?);
    for (subject, trouble) in world.troubles() {
        eprintln!("lb: {subject}: {}", trouble.text);
    }
    Ok(described(&world))
}

fn described(world: &World) -> Vec<Policy> {
    let mut compiled = Policies::new(Sizes::KERNEL, LastNumbers::default());
    compiled.update(world, &PolicyDirty::default());
    let mut pods: BTreeMap<&PolicyName, Vec<String>> = BTreeMap::new();
    for (pod, sets) in &compiled.tables().endpoints {
        for rule_set in [sets.ingress, sets.egress] {
            for name in compiled.policies_of(rule_set) {
                let selected = pods.entry(name).or_default();
                let pod = pod.to_string();
                if !selected.contains(&pod) {
                    selected.push(pod);
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

fn describe(world: &World, name: &PolicyName, policy: &world::Policy, pods: Vec<String>) -> Policy {
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

fn list(policies: &[Policy]) -> String {
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
        for pod in &self.pods {
            writeln!(lines, "  selects {pod}")?;
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
        let policies = policies(disk.path()).expect("policies");
        let [policy] = policies.as_slice() else {
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
        assert!(list(&policies).contains("NetworkPolicy shop/web"));
    }
}
