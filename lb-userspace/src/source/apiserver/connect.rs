//! Connections to an apiserver that may have several addresses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use http::{Request, Response, Uri};
use hyper_util::{client::legacy, client::legacy::connect::HttpConnector, rt::TokioExecutor};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use tokio::{sync::Notify, time::timeout};
use tower::{BoxError, ServiceBuilder};

use super::feed::with_causes;

/// Time for a connection to come up.
const CONNECT: Duration = Duration::from_secs(3);
/// Time for an answer to begin.
const ANSWER: Duration = Duration::from_secs(30);
/// A peer that is gone without a word is noticed after about half a minute.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A client of the apiserver of `config`, under `addresses` if there are any.
pub fn client(config: Config, addresses: &[Uri]) -> anyhow::Result<Client> {
    let namespace = config.default_namespace.clone();
    if let Some(proxy) = &config.proxy_url {
        tracing::warn!(%proxy, "not used: the apiserver is dialled directly");
    }
    let mut servers = Vec::new();
    for config in at_addresses(config, addresses)? {
        servers.push((config.cluster_url.clone(), single(config)?));
    }
    let servers = Arc::new(Servers {
        servers,
        current: AtomicUsize::new(0),
    });
    let service = tower::service_fn(move |request| {
        let servers = Arc::clone(&servers);
        async move { servers.send(request).await }
    });
    Ok(Client::new(service, namespace))
}

/// `client`, which also tells whenever a request was granted.
pub fn noting_answers(client: Client, answered: Arc<Notify>) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request| {
        let (client, answered) = (client.clone(), Arc::clone(&answered));
        async move {
            let response = client.send(request).await?;
            if response.status().is_success() {
                answered.notify_one();
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, namespace)
}

/// The configuration with each of the addresses in turn. Certificates are checked for the name in
/// the original, which is what they were made for.
fn at_addresses(config: Config, addresses: &[Uri]) -> anyhow::Result<Vec<Config>> {
    if addresses.is_empty() {
        return Ok(vec![config]);
    }
    let original = config.cluster_url.host().map(|host| {
        let host = host.strip_prefix('[').unwrap_or(host);
        host.strip_suffix(']').unwrap_or(host).to_owned()
    });
    let configs = addresses.iter().map(|address| {
        ensure!(
            matches!(address.scheme_str(), Some("https" | "http")) && address.host().is_some(),
            "`{address}` is not the URL of an apiserver"
        );
        let mut config = config.clone();
        config.tls_server_name = config.tls_server_name.or_else(|| original.clone());
        config.cluster_url = address.clone();
        Ok(config)
    });
    configs.collect()
}

/// A client of one address. Unlike kube's own it notices a peer that is gone, and leaves waiting
/// to the watches: kube's would wait for as long as 1,000 seconds after a 503.
fn single(config: Config) -> anyhow::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(2));
    let connector = config
        .rustls_https_connector_with_connector(connector)
        .context("set up TLS")?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// One apiserver under several addresses.
struct Servers {
    servers: Vec<(Uri, Client)>,
    /// The one that answered last.
    current: AtomicUsize,
}

impl Servers {
    /// Sends the request to the first that answers, whatever its answer is.
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (parts, body) = request.into_parts();
        let first = self.current.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for turn in 0..self.servers.len() {
            let index = (first + turn) % self.servers.len();
            let (address, client) = &self.servers[index];
            let body = body.try_clone().ok_or("a body that is a stream")?;
            let request = Request::from_parts(parts.clone(), body);
            match timeout(ANSWER, client.send(request)).await {
                Ok(Ok(response)) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(response);
                }
                Ok(Err(error)) => failures.push(format!("{address} {}", with_causes(&error))),
                Err(_) => failures.push(format!("{address} does not answer")),
            }
        }
        Err(failures.join("; ").into())
    }
}
