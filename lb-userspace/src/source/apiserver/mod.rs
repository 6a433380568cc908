//! An apiserver, followed by a list and a watch of each kind.

mod connect;
mod feed;
mod optional;
mod patience;
mod resource;

use std::{path::Path, sync::Arc};

use anyhow::{Context, anyhow};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use http::Uri;
use k8s_openapi::api::core::v1 as core;
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use super::logged;
use crate::world::{
    Change, Event, ObjectKey, Row,
    endpoint_slice::{self, HEADLESS_LABEL},
    namespace, node, pod,
    policy::{cluster_network_policy, network_policy},
    service::{self, PROXY_NAME_LABEL},
    service_cidr,
};

use feed::{Subject, explain};
use patience::Patience;

/// An apiserver and the right to read from it.
pub struct ApiServer {
    client: Client,
}

impl ApiServer {
    /// The apiserver of a kubeconfig: the one at `path`, or `$KUBECONFIG`, or `~/.kube/config`.
    ///
    /// `addresses` replace the one it names, which stays the name that the server's certificate is
    /// checked for. Where one does not answer, the next is tried.
    pub async fn from_kubeconfig(path: Option<&Path>, addresses: &[Uri]) -> anyhow::Result<Self> {
        let options = KubeConfigOptions::default();
        let config = match path {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path)?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await?
            }
            None => Config::from_kubeconfig(&options).await?,
        };
        Self::connect(config, addresses).context("use the kubeconfig")
    }

    /// The apiserver of the cluster that this process runs in as a pod. `addresses` as in
    /// [`ApiServer::from_kubeconfig`].
    pub fn in_cluster(addresses: &[Uri]) -> anyhow::Result<Self> {
        Self::connect(Config::incluster()?, addresses).context("use the service account")
    }

    fn connect(config: Config, addresses: &[Uri]) -> anyhow::Result<Self> {
        let client = connect::client(config, addresses)?;
        Ok(Self { client })
    }

    /// For what is not read but written.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Follows the apiserver for the agent of `node`, through any failure, for ever.
    pub fn changes(&self, node: &str) -> impl Stream<Item = Change> + use<> {
        let (own, own_pods) = (node.to_owned(), node.to_owned());
        logged(stream::select_all([
            self.watch(
                watcher::Config::default()
                    .labels(&format!("!{PROXY_NAME_LABEL}"))
                    .fields("spec.clusterIP!=None"),
                |event| Change::Service(reduced(event, service::reduce)),
            ),
            self.watch(
                watcher::Config::default().labels(&format!("!{HEADLESS_LABEL}")),
                |event| Change::EndpointSlice(reduced(event, endpoint_slice::reduce)),
            ),
            self.watch(watcher::Config::default(), move |event| {
                Change::Node(reduced(event, |node| node::reduce(node, &own)))
            }),
            self.watch(watcher::Config::default(), move |event| {
                Change::Pod(reduced(event, |pod| pod::reduce(pod, &own_pods)))
            }),
            self.watch(watcher::Config::default(), |event| {
                Change::Namespace(reduced(event, namespace::reduce))
            }),
            self.watch(watcher::Config::default(), |event| {
                Change::NetworkPolicy(reduced(event, network_policy::reduce))
            }),
            self.watch_optional(|event| Change::ServiceCidr(reduced(event, service_cidr::reduce))),
            self.watch_optional(|event| {
                Change::ClusterNetworkPolicy(reduced(event, cluster_network_policy::reduce))
            }),
        ]))
    }

    /// The names of all Nodes.
    pub async fn node_names(&self) -> anyhow::Result<Vec<String>> {
        let nodes = Api::<core::Node>::all(self.client.clone());
        let nodes = nodes
            .list_metadata(&ListParams::default())
            .await
            .map_err(|error| anyhow!("list nodes: {}", explain(&error)))?;
        Ok(nodes.iter().map(ResourceExt::name_any).collect())
    }

    fn watch<K>(
        &self,
        config: watcher::Config,
        change: impl Fn(watcher::Event<K>) -> Change + Send + 'static,
    ) -> BoxStream<'static, Change>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        let answered = Arc::new(Notify::new());
        let client = connect::noting_answers(self.client.clone(), Arc::clone(&answered));
        // Lists come from the apiserver's cache: an agent on every node asks.
        let events = watcher(Api::all(client), config.any_semantic()).backoff(Patience::new());
        told(events, answered, change)
    }

    /// Follows a kind that the apiserver may not have.
    fn watch_optional<K>(
        &self,
        change: impl Fn(watcher::Event<K>) -> Change + Send + 'static,
    ) -> BoxStream<'static, Change>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        let answered = Arc::new(Notify::new());
        let client = connect::noting_answers(self.client.clone(), Arc::clone(&answered));
        let watch = move || {
            let config = watcher::Config::default().any_semantic();
            let events = watcher(Api::all(client.clone()), config);
            events.backoff(Patience::new()).boxed()
        };
        let events = optional::events(watch, Arc::clone(&answered));
        told(events, answered, change)
    }
}

/// Events as changes, with what ails them.
fn told<K: Resource<DynamicType = ()> + 'static>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    answered: Arc<Notify>,
    change: impl Fn(watcher::Event<K>) -> Change + Send + 'static,
) -> BoxStream<'static, Change> {
    let answers = stream::unfold(answered, |answered| async {
        answered.notified().await;
        Some(((), answered))
    });
    feed::changes(Subject::of::<K>(), events, answers, change).boxed()
}

/// The event with the row in place of the object.
fn reduced<K: Resource, R>(event: watcher::Event<K>, reduce: impl Fn(&K) -> Row<R>) -> Event<R> {
    let key =
        |object: &K| ObjectKey::new(object.namespace().unwrap_or_default(), object.name_any());
    match event {
        watcher::Event::Init => Event::Init,
        watcher::Event::InitApply(object) => Event::InitApply(key(&object), reduce(&object)),
        watcher::Event::InitDone => Event::InitDone,
        watcher::Event::Apply(object) => Event::Apply(key(&object), reduce(&object)),
        watcher::Event::Delete(object) => Event::Delete(key(&object)),
    }
}
