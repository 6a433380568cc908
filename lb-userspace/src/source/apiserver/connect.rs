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

use super::feed::explain;

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
        servers.push(Server {
            address: config.cluster_url.to_string().trim_end_matches('/').into(),
            client: single(config)?,
        });
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
    servers: Vec<Server>,
    /// The one that answered last.
    current: AtomicUsize,
}

struct Server {
    address: String,
    client: Client,
}

impl Servers {
    /// Sends the request to the first that answers, whatever its answer is.
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (parts, body) = request.into_parts();
        let first = self.current.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for turn in 0..self.servers.len() {
            let index = (first + turn) % self.servers.len();
            let Server { address, client } = &self.servers[index];
            let body = body.try_clone().ok_or("a body that is a stream")?;
            let request = Request::from_parts(parts.clone(), body);
            match timeout(ANSWER, client.send(request)).await {
                Ok(Ok(response)) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(response);
                }
                Ok(Err(error)) => failures.push(format!("{address}: {}", explain(&error))),
                Err(_) => failures.push(format!("{address}: no answer")),
            }
        }
        Err(failures.join("; ").into())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use k8s_openapi::api::core::v1::Node;
    use kube::{Api, ResourceExt, api::ListParams};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;

    /// An apiserver that knows one Node and closes each connection after its answer.
    async fn apiserver(node: &'static str) -> std::io::Result<(SocketAddr, JoinHandle<()>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = connection.read(&mut request).await;
                let list = format!(
                    r#"{{"kind":"NodeList","apiVersion":"v1","metadata":{{}},"items":[{{"metadata":{{"name":"{node}"}}}}]}}"#
                );
                let length = list.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                     content-length: {length}\r\nconnection: close\r\n\r\n{list}"
                );
                let _ = connection.write_all(answer.as_bytes()).await;
            }
        });
        Ok((address, server))
    }

    fn uri(address: SocketAddr) -> Uri {
        format!("http://{address}").parse().expect("a URL")
    }

    async fn node(client: &Client) -> kube::Result<String> {
        let nodes = Api::<Node>::all(client.clone());
        let nodes = nodes.list(&ListParams::default()).await?;
        Ok(nodes.iter().map(ResourceExt::name_any).collect())
    }

    #[tokio::test]
    async fn the_next_address_is_tried_and_kept_until_it_fails() -> anyhow::Result<()> {
        let (one, first) = apiserver("one").await?;
        let (two, second) = apiserver("two").await?;
        let original = Config::new("http://192.0.2.1:6443".parse()?);
        let client = client(original, &[uri(one), uri(two)])?;
        assert_eq!(node(&client).await?, "one");

        first.abort();
        let _ = first.await;
        assert_eq!(node(&client).await?, "two");

        let listener = TcpListener::bind(one).await?;
        assert_eq!(
            node(&client).await?,
            "two",
            "it stays where it was answered"
        );
        drop(listener);

        second.abort();
        let _ = second.await;
        let error = node(&client).await.expect_err("nobody answers");
        let error = explain(&error);
        for address in [one, two] {
            assert!(error.contains(&format!("http://{address}: ")), "{error}");
        }
        assert!(error.contains("Connection refused"), "{error}");
        Ok(())
    }

    #[tokio::test]
    async fn an_answer_is_noted() -> anyhow::Result<()> {
        let (address, server) = apiserver("one").await?;
        let answered = Arc::new(Notify::new());
        let client = noting_answers(
            client(Config::new(uri(address)), &[])?,
            Arc::clone(&answered),
        );
        node(&client).await?;
        timeout(Duration::from_secs(1), answered.notified()).await?;
        server.abort();
        let _ = server.await;
        assert!(node(&client).await.is_err());
        assert!(
            timeout(Duration::from_millis(10), answered.notified())
                .await
                .is_err()
        );
        Ok(())
    }

    #[test]
    fn another_address_keeps_the_name_of_the_certificate() -> anyhow::Result<()> {
        for (original, own_name, expected) in [
            ("https://api.example.org:6443", None, "api.example.org"),
            ("https://10.96.0.1:443", None, "10.96.0.1"),
            ("https://[fd00::1]:443", None, "fd00::1"),
            ("https://10.96.0.1:443", Some("kubernetes"), "kubernetes"),
        ] {
            let mut config = Config::new(original.parse()?);
            config.tls_server_name = own_name.map(str::to_owned);
            let address: Uri = "https://192.0.2.1:6443".parse()?;
            let [config] = at_addresses(config, std::slice::from_ref(&address))?
                .try_into()
                .expect("one address");
            assert_eq!(config.cluster_url, address);
            assert_eq!(config.tls_server_name.as_deref(), Some(expected));
        }
        Ok(())
    }

    #[test]
    fn the_original_stands_where_no_other_is_given() -> anyhow::Result<()> {
        let config = Config::new("https://10.96.0.1:443".parse()?);
        let [config] = at_addresses(config, &[])?.try_into().expect("one address");
        assert_eq!(config.tls_server_name, None);
        Ok(())
    }

    #[test]
    fn what_is_no_url_is_refused() -> anyhow::Result<()> {
        for address in ["10.0.0.1:6443", "/path", "ftp://10.0.0.1/"] {
            let config = Config::new("https://10.96.0.1:443".parse()?);
            let error = at_addresses(config, &[address.parse()?]).expect_err("not a URL");
            assert_eq!(
                error.to_string(),
                format!("`{address}` is not the URL of an apiserver")
            );
        }
        Ok(())
    }
}
