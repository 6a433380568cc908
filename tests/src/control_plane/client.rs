//! The apiserver as a person with `kubectl` uses it.

use std::{fmt::Debug, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Resource,
    api::{
        DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    },
    core::NamespaceResourceScope,
    discovery::{self, Scope},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::kubeconfig;
use crate::sandbox::Namespace;

/// A kind of objects that belong to namespaces.
pub trait Kind:
    Resource<Scope = NamespaceResourceScope, DynamicType: Default>
    + Clone
    + DeserializeOwned
    + Debug
    + Send
    + 'static
{
}

impl<K> Kind for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType: Default>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static
{
}

/// Who owns the fields that are applied.
const FIELD_MANAGER: &str = "lb-tests";

/// A user's connection to the apiserver, made from inside of a network namespace.
pub struct Client {
    namespace: Arc<Namespace>,
    kube: kube::Client,
}

impl Client {
    /// A client that identifies itself by a token.
    pub fn new(
        namespace: Arc<Namespace>,
        server: &str,
        certificate_authority: &Path,
        token: &str,
    ) -> Result<Self> {
        let text = kubeconfig(server, certificate_authority, token);
        let kube = namespace.run(async move {
            let file = kube::config::Kubeconfig::from_yaml(&text)?;
            let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await?;
            anyhow::Ok(kube::Client::try_from(config)?)
        })?;
        Ok(Self { namespace, kube })
    }

    /// The client of kube, for futures that run in [`Client::namespace`].
    pub fn kube(&self) -> kube::Client {
        self.kube.clone()
    }

    /// Where it connects from.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Fails until the apiserver says that it is ready.
    pub fn ready(&self) -> Result<()> {
        let client = self.kube.clone();
        let request = http::Request::get("/readyz").body(Vec::new())?;
        self.namespace
            .run(async move { client.request_text(request).await })?;
        Ok(())
    }

    /// Creates or changes what the YAML documents say, their `status` included.
    pub fn apply(&self, documents: &str) -> Result<()> {
        let objects: Vec<DynamicObject> =
            serde_saphyr::from_multiple(documents).context("parse the documents")?;
        let client = self.kube.clone();
        self.namespace.run(async move {
            for object in objects {
                let what = describe(&object);
                apply(client.clone(), object)
                    .await
                    .with_context(|| format!("apply {what}"))?;
            }
            Ok(())
        })
    }

    /// Changes what `change` says of an object and leaves the rest of it alone.
    pub fn merge<K: Kind>(&self, namespace: &str, name: &str, change: &Value) -> Result<()> {
        let api: Api<K> = Api::namespaced(self.kube.clone(), namespace);
        let (name, change) = (name.to_owned(), Patch::Merge(change.clone()));
        self.namespace.run(async move {
            api.patch(&name, &PatchParams::default(), &change)
                .await
                .with_context(|| format!("change {name}"))
                .map(|_| ())
        })
    }

    /// Deletes an object at once; one that is not there is an error.
    pub fn delete<K: Kind>(&self, namespace: &str, name: &str) -> Result<()> {
        self.delete_after::<K>(namespace, name, 0)
    }

    /// Deletes an object once it had so many seconds to come to its end. No kubelet ends a pod, so
    /// that it goes on terminating until it is deleted at once.
    pub fn delete_after<K: Kind>(&self, namespace: &str, name: &str, seconds: u32) -> Result<()> {
        let api: Api<K> = Api::namespaced(self.kube.clone(), namespace);
        let name = name.to_owned();
        self.namespace.run(async move {
            api.delete(&name, &DeleteParams::default().grace_period(seconds))
                .await
                .with_context(|| format!("delete {name}"))
                .map(|_| ())
        })
    }

    /// Deletes the objects of one kind in a namespace that the parameters select.
    pub fn delete_all<K: Kind>(&self, namespace: &str, which: ListParams) -> Result<()> {
        let api: Api<K> = Api::namespaced(self.kube.clone(), namespace);
        self.namespace.run(async move {
            api.delete_collection(&DeleteParams::default(), &which)
                .await?;
            Ok(())
        })
    }

    /// The objects of one kind in a namespace.
    pub fn list<K: Kind>(&self, namespace: &str) -> Result<Vec<K>> {
        let api: Api<K> = Api::namespaced(self.kube.clone(), namespace);
        self.namespace
            .run(async move { Ok(api.list(&Default::default()).await?.items) })
    }

    /// One object.
    pub fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<K> {
        let api: Api<K> = Api::namespaced(self.kube.clone(), namespace);
        let name = name.to_owned();
        self.namespace.run(async move { Ok(api.get(&name).await?) })
    }

    /// A token of a service account, as the kubelet puts it into a pod.
    pub fn service_account_token(&self, namespace: &str, name: &str) -> Result<String> {
        let api: Api<ServiceAccount> = Api::namespaced(self.kube.clone(), namespace);
        let name = name.to_owned();
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(3600),
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = self.namespace.run(async move {
            api.create_token_request(&name, &PostParams::default(), &request)
                .await
        })?;
        let token = answer.status.and_then(|status| status.token);
        token.context("a token request without an answer")
    }
}

/// Server-side apply, then the status, which has a resource of its own.
async fn apply(client: kube::Client, mut object: DynamicObject) -> Result<()> {
    let types = object.types.clone().context("no apiVersion and kind")?;
    let kind = GroupVersionKind::try_from(&types)?;
    let (resource, capabilities) = discovery::pinned_kind(&client, &kind).await?;
    let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Namespaced => Api::namespaced_with(client, namespace, &resource),
        Scope::Cluster => Api::all_with(client, &resource),
    };
    let name = object.metadata.name.clone().context("no name")?;
    // The apiserver gives it, and refuses another.
    object.metadata.uid = None;
    let status = object
        .data
        .as_object_mut()
        .and_then(|data| data.remove("status"));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&name, &parameters, &Patch::Apply(&object))
        .await?;
    if let Some(status) = status {
        // Not by server-side apply, which refuses a node's two addresses of one type.
        let status = Patch::Merge(json!({ "status": status }));
        api.patch_status(&name, &PatchParams::default(), &status)
            .await?;
    }
    Ok(())
}

fn describe(object: &DynamicObject) -> String {
    let kind = object
        .types
        .as_ref()
        .map_or("object", |types| types.kind.as_str());
    let name = object.metadata.name.as_deref().unwrap_or("without a name");
    format!("{kind} {name}")
}
