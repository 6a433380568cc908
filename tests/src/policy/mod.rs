//! Policies as the API's documentation has them, to hold the compiled ones against.

mod naive;

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::{core::v1 as core, networking::v1 as networking};
use serde_json::Value;

pub use self::naive::{Direction, Packet, Verdict, decide, may, may_by_service};

/// The objects of a cluster, as the apiserver has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    pub namespaces: Vec<core::Namespace>,
    pub nodes: Vec<core::Node>,
    pub pods: Vec<core::Pod>,
    pub network_policies: Vec<networking::NetworkPolicy>,
    /// As JSON has them: no crate knows their type.
    pub cluster_network_policies: Vec<Value>,
}

impl Cluster {
    /// The cluster with these objects.
    pub fn of(objects: impl IntoIterator<Item = Value>) -> Result<Self> {
        let mut cluster = Self::default();
        for object in objects {
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let failed = || format!("read a {kind}: {object}");
            let typed = object.clone();
            match kind.as_str() {
                "Namespace" => {
                    let namespace = serde_json::from_value(typed).with_context(failed)?;
                    cluster.namespaces.push(namespace);
                }
                "Node" => {
                    let node = serde_json::from_value(typed).with_context(failed)?;
                    cluster.nodes.push(node);
                }
                "Pod" => {
                    let pod = serde_json::from_value(typed).with_context(failed)?;
                    cluster.pods.push(pod);
                }
                "NetworkPolicy" => {
                    let policy = serde_json::from_value(typed).with_context(failed)?;
                    cluster.network_policies.push(policy);
                }
                "ClusterNetworkPolicy" => cluster.cluster_network_policies.push(object),
                other => bail!("`{other}` is not a kind that policies depend on"),
            }
        }
        Ok(cluster)
    }

    /// The cluster that a text of many YAML documents describes.
    pub fn parse(yaml: &str) -> Result<Self> {
        let mut reader = yaml.as_bytes();
        let documents: Result<Vec<Value>, _> = serde_saphyr::read(&mut reader).collect();
        Self::of(
            documents
                .context("read YAML")?
                .into_iter()
                .filter(|it| !it.is_null()),
        )
    }
}

/// Objects as YAML documents.
pub fn yaml(objects: &[Value]) -> Result<String> {
    let mut text = String::new();
    for object in objects {
        write!(text, "---\n{}", serde_saphyr::to_string(object)?)?;
    }
    Ok(text)
}
