//! Writes the objects of a case, and knows when both agents have all of them in force.
//!
//! Each kind has a watch of its own, so that an agent may have seen a new policy and not yet a new
//! label. After the objects of a case, one object of every kind is therefore changed: a policy of
//! each kind, a Pod and a Namespace, each of which names the case. A watch keeps the order of writes,
//! and the agent writes all that it knows to the kernel's tables before it answers again. Once the
//! tables say that the one packet passes that takes all four objects, they say all else too.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use lb_tests::sandbox::{Pair, Sandbox, until};
use lb_userspace::{
    api,
    explain::{Party, Question},
    world::ObjectKey,
};
use serde_json::{Map, Value, json};

use super::world::pod_object;
use crate::cluster::Cluster;

/// A pod on each node that nobody but the agents is asked about.
pub const SENTRIES: [(&str, u8); 2] = [("sentry-1", 1), ("sentry-2", 2)];
/// The namespace of what marks a case.
const NAMESPACE: &str = "mark";
/// IANA protocol number.
const TCP: u8 = 6;

/// The objects of the last case, and how many cases there were.
pub struct InForce<'a> {
    cluster: &'a Cluster,
    objects: Vec<Value>,
    case: u16,
}

impl<'a> InForce<'a> {
    /// `objects`: what the apiserver has.
    pub fn new(cluster: &'a Cluster, objects: Vec<Value>) -> Self {
        Self {
            cluster,
            objects,
            case: 0,
        }
    }

    /// Makes these all objects there are, and returns once both agents go by them.
    pub fn bring(&mut self, objects: &[Value]) -> Result<()> {
        self.case += 1;
        self.write(changes(&self.objects, objects)?)?;
        self.write(marks(self.case))?;
        self.objects = objects.to_vec();
        for (node, (sentry, _)) in self.cluster.sandbox.nodes().iter().zip(SENTRIES) {
            let question = Question {
                source: Party::Pod(ObjectKey::new(NAMESPACE, "asker")),
                destination: Party::Pod(ObjectKey::new(NAMESPACE, sentry)),
                protocol: TCP,
                port: self.case,
            };
            until("the case is in force", || {
                let (socket, question) = (node.socket(), question.clone());
                let asked = async move { api::explain(&socket, &question).await };
                let answer = node.namespace().run(asked)?.context("no agent runs")?;
                let passes = answer.is_ok_and(|explained| {
                    explained.verdicts.len() == 1 && explained.verdicts[0].allowed
                });
                Ok(passes.then_some(()))
            })?;
        }
        Ok(())
    }

    fn write(&self, writes: Vec<Write>) -> Result<()> {
        let client = self.cluster.admin.kube();
        let written = writes.into_iter().map(move |write| {
            let client = client.clone();
            async move {
                let what = format!("write {write:?}");
                write.carry_out(client).await.context(what)
            }
        });
        let written = try_join_all(written);
        self.cluster.admin.namespace().run(written)?;
        Ok(())
    }
}

/// The namespace, the pods and the policies that mark cases, before the first.
pub fn objects(sandbox: &Sandbox) -> Vec<Value> {
    let namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": NAMESPACE },
    });
    let sentries = SENTRIES.map(|(name, _)| {
        let pod = sandbox.pod(name);
        pod_object(NAMESPACE, name, pod.node(), pod.addresses(), &json!({}))
    });
    let nowhere = Pair {
        v4: [10, 244, 9, 9].into(),
        v6: [0xfd00, 0x10, 0x244, 9, 0, 0, 0, 9].into(),
    };
    let asker = pod_object(NAMESPACE, "asker", "elsewhere", nowhere, &json!({}));
    [namespace]
        .into_iter()
        .chain(sentries)
        .chain([asker])
        .collect()
}

/// What says that all writes of a case have been seen.
fn marks(case: u16) -> Vec<Write> {
    let label = json!({ "case": case.to_string() });
    let labelled = json!({ "matchLabels": label });
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "mark", "namespace": NAMESPACE },
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{ "namespaceSelector": labelled, "podSelector": labelled }],
                "ports": [{ "port": case }],
            }],
        },
    });
    let anybody = json!([{ "namespaces": {} }]);
    let number = json!([{ "tcp": { "destinationPort": { "number": case } } }]);
    let own = json!({ "matchLabels": { "kubernetes.io/metadata.name": NAMESPACE } });
    // Before all others of its tier.
    let cluster_policy = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": { "name": "a-mark" },
        "spec": {
            "tier": "Admin",
            "priority": 0,
            "subject": { "namespaces": own },
            "ingress": [
                { "action": "Pass", "from": anybody, "protocols": number },
                { "action": "Deny", "from": anybody },
            ],
        },
    });
    let patch = json!({ "metadata": { "labels": label } });
    vec![
        Write::Put(policy),
        Write::Put(cluster_policy),
        Write::Patch(Name::new("Pod", Some(NAMESPACE), "asker"), patch.clone()),
        Write::Patch(Name::new("Namespace", None, NAMESPACE), patch),
    ]
}

/// What makes the one objects of the other: policies come, change and go; of Namespaces and Pods the
/// labels and annotations change.
fn changes(before: &[Value], after: &[Value]) -> Result<Vec<Write>> {
    let named = |objects: &[Value]| -> Result<BTreeMap<Name, Value>> {
        let named = objects.iter().map(|it| Ok((Name::of(it)?, it.clone())));
        named.collect()
    };
    let (before, after) = (named(before)?, named(after)?);
    let gone = before.keys().filter(|name| !after.contains_key(name));
    let mut writes: Vec<_> = gone.cloned().map(Write::Delete).collect();
    for (name, object) in after {
        match before.get(&name) {
            Some(old) if *old == object => (),
            Some(old) if ["Namespace", "Pod"].contains(&name.kind.as_str()) => {
                let [labels, annotations] = ["labels", "annotations"]
                    .map(|field| difference(&old["metadata"][field], &object["metadata"][field]));
                let metadata = json!({ "labels": labels, "annotations": annotations });
                writes.push(Write::Patch(name, json!({ "metadata": metadata })));
            }
            _ => writes.push(Write::Put(object)),
        }
    }
    Ok(writes)
}

/// The JSON merge patch from one map to another.
fn difference(before: &Value, after: &Value) -> Value {
    let empty = Map::new();
    let [before, after] = [before, after].map(|map| map.as_object().unwrap_or(&empty));
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changed = keys
        .into_iter()
        .filter(|key| before.get(*key) != after.get(*key));
    let changed = changed.map(|key| (key.clone(), after.get(key).cloned().unwrap_or_default()));
    Value::Object(changed.collect())
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    kind: String,
    namespace: Option<String>,
    name: String,
}

impl Name {
    fn new(kind: &str, namespace: Option<&str>, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        }
    }

    fn of(object: &Value) -> Result<Self> {
        let kind = object["kind"].as_str().context("a kind")?;
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().context("a name")?;
        Ok(Self::new(kind, metadata["namespace"].as_str(), name))
    }

    fn api(&self, client: kube::Client) -> Result<Api<DynamicObject>> {
        let resource = match self.kind.as_str() {
            "Namespace" => ApiResource::erase::<Namespace>(&()),
            "Pod" => ApiResource::erase::<Pod>(&()),
            "NetworkPolicy" => ApiResource::erase::<NetworkPolicy>(&()),
            kind => {
                let version = ("policy.networking.k8s.io", "v1alpha2");
                let kind = GroupVersionKind::gvk(version.0, version.1, kind);
                ApiResource::from_gvk_with_plural(&kind, "clusternetworkpolicies")
            }
        };
        Ok(match &self.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        })
    }
}

#[derive(Debug)]
enum Write {
    /// Creates the object, or replaces all of what is there, which gets its defaults again.
    Put(Value),
    /// Changes what a merge patch says.
    Patch(Name, Value),
    Delete(Name),
}

impl Write {
    async fn carry_out(self, client: kube::Client) -> Result<()> {
        match self {
            Self::Put(object) => {
                let name = Name::of(&object)?;
                let api = name.api(client)?;
                let mut object: DynamicObject = serde_json::from_value(object)?;
                let parameters = PostParams::default();
                match api.get_opt(&name.name).await? {
                    Some(old) => {
                        object.metadata.resource_version = old.metadata.resource_version;
                        api.replace(&name.name, &parameters, &object).await?;
                    }
                    None => {
                        api.create(&parameters, &object).await?;
                    }
                }
            }
            Self::Patch(name, patch) => {
                let api = name.api(client)?;
                let patch = Patch::Merge(patch);
                api.patch(&name.name, &PatchParams::default(), &patch)
                    .await?;
            }
            Self::Delete(name) => {
                name.api(client)?
                    .delete(&name.name, &DeleteParams::default())
                    .await?;
            }
        }
        Ok(())
    }
}
