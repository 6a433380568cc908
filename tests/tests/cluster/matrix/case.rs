//! A case: what it is called, and the objects that it has.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value};

/// A part of an object: what it is called, and its YAML.
pub type Shape = (&'static str, &'static str);

/// Policies, and what is different of the world's Namespaces and Pods.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub yaml: String,
}

impl Case {
    pub fn new(name: impl Into<String>, documents: impl IntoIterator<Item = String>) -> Self {
        Self {
            name: name.into(),
            yaml: documents.into_iter().collect(),
        }
    }

    /// All objects of the case: those of the world with what it changes in them, and its policies.
    pub fn objects(&self, world: &[Value]) -> Result<Vec<Value>> {
        let mut objects = world.to_vec();
        let mut reader = self.yaml.as_bytes();
        // The namespace `y` is no truth.
        let options = serde_saphyr::options! { strict_booleans: true };
        for document in serde_saphyr::read_with_options(&mut reader, options) {
            let document: Value = document.with_context(|| format!("read {}", self.name))?;
            if !["Namespace", "Pod"]
                .map(Value::from)
                .contains(&document["kind"])
            {
                objects.push(document);
                continue;
            }
            let known = objects.iter_mut().find(|object| {
                let same = |field| object["metadata"][field] == document["metadata"][field];
                object["kind"] == document["kind"] && same("namespace") && same("name")
            });
            let known = known.with_context(|| format!("{}: no such object", self.name))?;
            for field in ["labels", "annotations"] {
                merge(&mut known["metadata"], field, &document["metadata"][field])?;
            }
        }
        Ok(objects)
    }
}

/// Takes over what is said of a field's keys; `null` removes a key.
fn merge(metadata: &mut Value, field: &str, said: &Value) -> Result<()> {
    let Some(said) = said.as_object() else {
        ensure!(said.is_null(), "{field} is no map");
        return Ok(());
    };
    let mut merged = metadata[field].as_object().cloned().unwrap_or_default();
    for (key, value) in said {
        match value {
            Value::Null => merged.remove(key),
            value => merged.insert(key.clone(), value.clone()),
        };
    }
    metadata[field] = Value::Object(Map::from_iter(merged));
    Ok(())
}

/// One of the two directions, by the names that policies have for it.
#[derive(Clone, Copy)]
pub struct Direction {
    /// As in `policyTypes`.
    pub kind: &'static str,
    /// The list of rules.
    pub rules: &'static str,
    /// A rule's list of peers.
    pub peers: &'static str,
}

impl Direction {
    pub const INGRESS: Self = Self {
        kind: "Ingress",
        rules: "ingress",
        peers: "from",
    };
    pub const EGRESS: Self = Self {
        kind: "Egress",
        rules: "egress",
        peers: "to",
    };
    pub const BOTH: [Self; 2] = [Self::INGRESS, Self::EGRESS];

    /// The `spec` of a NetworkPolicy with a rule.
    pub fn spec(self, pods: &str, peers: &str, ports: &str) -> String {
        let Self {
            kind,
            rules,
            peers: field,
        } = self;
        format!(
            "{{podSelector: {pods}, policyTypes: [{kind}], \
             {rules}: [{{{field}: {peers}, ports: {ports}}}]}}"
        )
    }

    /// The rules of a ClusterNetworkPolicy: one.
    pub fn rule(self, action: &str, peers: &str, protocols: &str) -> String {
        let Self {
            rules,
            peers: field,
            ..
        } = self;
        let protocols = match protocols {
            "" => String::new(),
            protocols => format!(", protocols: {protocols}"),
        };
        format!("{rules}: [{{action: {action}, {field}: {peers}{protocols}}}]")
    }
}

/// A NetworkPolicy.
pub fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
    )
}

/// One that nobody enforces.
pub fn audited(policy: &str) -> String {
    policy.replacen(
        "metadata: {",
        "metadata: {annotations: {lb.io/policy-audit: 'true'}, ",
        1,
    )
}

/// A ClusterNetworkPolicy.
pub fn cluster_policy(name: &str, tier: &str, priority: u16, subject: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
         metadata: {{name: {name}}}\n\
         spec: {{tier: {tier}, priority: {priority}, subject: {subject}, {rules}}}\n"
    )
}

/// What is different of a pod's labels, as a merge patch.
pub fn pod(namespace: &str, name: &str, labels: &str) -> String {
    format!(
        "---\nkind: Pod\nmetadata: {{namespace: {namespace}, name: {name}, labels: {labels}}}\n"
    )
}

/// The same of a Namespace.
pub fn namespace(name: &str, labels: &str) -> String {
    format!("---\nkind: Namespace\nmetadata: {{name: {name}, labels: {labels}}}\n")
}
