//! The servers on Services' `healthCheckNodePort`, which tell load balancers what nodes have ready
//! endpoints (kube-proxy's `service_health.go`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use axum::{
    Router,
    extract::State,
    http::HeaderName,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use tokio::sync::watch;

use super::{
    Progress,
    server::{code, json},
};
use crate::{
    listen::{self, Closable},
    world::{EndpointSlice, Family, ObjectKey, World},
};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What a load balancer may ask about a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Port of the server.
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// How many ready endpoints a service has on this node, whatever port they serve. Where both families
/// have some, the larger number: an endpoint of a dual-stack service has an address in each.
pub fn local_endpoints(world: &World, service: &ObjectKey, node: &str) -> usize {
    let mut ready: BTreeMap<Family, BTreeSet<IpAddr>> = BTreeMap::new();
    let slices = world.slices_of(service).map(|(_, slice)| slice);
    for EndpointSlice {
        family, endpoints, ..
    } in slices.filter(|slice| !slice.ports.is_empty())
    {
        let local = endpoints
            .iter()
            .filter(|endpoint| endpoint.ready && endpoint.node.as_deref() == Some(node));
        let addresses = local.map(|endpoint| endpoint.address);
        ready.entry(*family).or_default().extend(addresses);
    }
    ready.values().map(BTreeSet::len).max().unwrap_or(0)
}

/// The servers that run, and those that could not be started.
pub struct Checks {
    progress: watch::Receiver<Progress>,
    /// The addresses to listen on; none: all there are.
    addresses: Option<BTreeSet<IpAddr>>,
    servers: BTreeMap<ObjectKey, Server>,
    failed: BTreeMap<ObjectKey, Failed>,
}

struct Server {
    port: u16,
    addresses: Option<BTreeSet<IpAddr>>,
    local_endpoints: watch::Sender<usize>,
    listening: Vec<Closable>,
}

/// A server that could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub port: u16,
    /// Why, in words.
    pub error: String,
}

/// For a person to read.
impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, error } = self;
        write!(f, "cannot serve the health check on port {port}: {error}")
    }
}

impl Checks {
    pub fn new(progress: watch::Receiver<Progress>) -> Self {
        Self {
            progress,
            addresses: None,
            servers: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Sets the addresses to listen on from the next [`Checks::sync`] on; none: all there are.
    pub fn set_addresses(&mut self, addresses: Option<BTreeSet<IpAddr>>) {
        self.addresses = addresses;
    }

    /// Runs a server for each of `desired` and no other. Says what fails that did not fail before;
    /// it is tried again by the next call.
    pub async fn sync(&mut self, desired: &BTreeMap<ObjectKey, Check>) -> Vec<(ObjectKey, Failed)> {
        // Before anything is opened: a port may go from one service to another.
        self.close_outdated(desired).await;
        let before = std::mem::take(&mut self.failed);
        let mut news = Vec::new();
        for (key, check) in desired {
            if let Some(server) = self.servers.get(key) {
                server.local_endpoints.send_replace(check.local_endpoints);
                continue;
            }
            match self.open(key, *check) {
                Ok(server) => drop(self.servers.insert(key.clone(), server)),
                Err(error) => {
                    let port = check.port;
                    let failed = Failed {
                        port,
                        error: error.to_string(),
                    };
                    if before.get(key) != Some(&failed) {
                        news.push((key.clone(), failed.clone()));
                    }
                    self.failed.insert(key.clone(), failed);
                }
            }
        }
        news
    }

    async fn close_outdated(&mut self, desired: &BTreeMap<ObjectKey, Check>) {
        let outdated: Vec<_> = self
            .servers
            .iter()
            .filter(|(key, server)| {
                let wanted = desired.get(key).map(|check| check.port);
                wanted != Some(server.port) || server.addresses != self.addresses
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in outdated {
            if let Some(server) = self.servers.remove(&key) {
                server.close().await;
            }
        }
    }

    /// What could not be started.
    pub fn failed(&self) -> &BTreeMap<ObjectKey, Failed> {
        &self.failed
    }

    fn open(&self, key: &ObjectKey, check: Check) -> io::Result<Server> {
        let everywhere = BTreeSet::from([Ipv4Addr::UNSPECIFIED.into()]);
        let addresses = self.addresses.as_ref().unwrap_or(&everywhere);
        let listeners: Vec<_> = addresses
            .iter()
            .map(|&address| listen::listen(SocketAddr::new(address, check.port)))
            .collect::<io::Result<_>>()?;
        let (local_endpoints, count) = watch::channel(check.local_endpoints);
        let asked = Asked {
            service: key.clone(),
            local_endpoints: count,
            progress: self.progress.clone(),
        };
        let router = Router::new().fallback(answer).with_state(asked);
        let serve = |listener| Closable::serve(listener, router.clone());
        Ok(Server {
            port: check.port,
            addresses: self.addresses.clone(),
            local_endpoints,
            listening: listeners.into_iter().map(serve).collect(),
        })
    }
}

impl Server {
    async fn close(self) {
        for listening in self.listening {
            listening.close().await;
        }
    }
}

#[derive(Clone)]
struct Asked {
    service: ObjectKey,
    local_endpoints: watch::Receiver<usize>,
    progress: watch::Receiver<Progress>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

async fn answer(State(asked): State<Asked>) -> Response {
    let Asked {
        service: ObjectKey { namespace, name },
        local_endpoints,
        progress,
    } = &asked;
    let local_endpoints = *local_endpoints.borrow();
    let healthy = progress.borrow().keeps_up(Instant::now());
    let body = pretty(&Answer {
        service: Name { namespace, name },
        local_endpoints,
        service_proxy_healthy: healthy,
    });
    let code = code(local_endpoints > 0 && healthy);
    ([(WEIGHT, local_endpoints)], json(code, body)).into_response()
}

/// In kube-proxy's layout: indented by tabs.
fn pretty(answer: &Answer<'_>) -> serde_json::Result<String> {
    let mut body = Vec::new();
    let layout = PrettyFormatter::with_indent(b"\t");
    answer.serialize(&mut Serializer::with_formatter(&mut body, layout))?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::Result;
    use http::Response as Answered;
    use http_body_util::{BodyExt as _, Empty};
    use hyper::body::Bytes;
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};

    use super::*;
    use crate::world::{Change, Endpoint, Event, Hints, Protocol, Row, SlicePort};

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    /// A port that was free a moment ago.
    fn free_port() -> Result<u16> {
        let listener = std::net::TcpListener::bind("[::]:0")?;
        Ok(listener.local_addr()?.port())
    }

    async fn get(port: u16, path: &str) -> Result<Answered<Bytes>> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let answer = client
            .get(format!("http://127.0.0.1:{port}{path}").parse()?)
            .await?;
        let (parts, body) = answer.into_parts();
        Ok(Answered::from_parts(
            parts,
            body.collect().await?.to_bytes(),
        ))
    }

    fn desired(checks: &[(&str, u16, usize)]) -> BTreeMap<ObjectKey, Check> {
        let checks = checks.iter().map(|&(name, port, local_endpoints)| {
            let check = Check {
                port,
                local_endpoints,
            };
            (key(name), check)
        });
        checks.collect()
    }

    #[tokio::test]
    async fn a_load_balancer_learns_how_many_endpoints_are_here() -> Result<()> {
        let (progress, seen) = watch::channel(Progress::new(Instant::now()));
        let mut checks = Checks::new(seen);
        let port = free_port()?;
        assert_eq!(checks.sync(&desired(&[("web", port, 2)])).await, []);
        for path in ["/", "/healthz", "/any/path?at=all"] {
            let answer = get(port, path).await?;
            assert_eq!(answer.status(), 200, "{path}");
            assert_eq!(answer.headers()["x-load-balancing-endpoint-weight"], "2");
            assert_eq!(answer.headers()["content-type"], "application/json");
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
            assert_eq!(
                String::from_utf8_lossy(answer.body()),
                "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\
                 \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
            );
        }

        assert_eq!(checks.sync(&desired(&[("web", port, 0)])).await, []);
        let answer = get(port, "/").await?;
        assert_eq!(answer.status(), 503, "nobody is here");
        assert_eq!(answer.headers()["x-load-balancing-endpoint-weight"], "0");

        let long_ago = Instant::now()
            .checked_sub(2 * super::super::PATIENCE)
            .expect("the machine has run for two minutes");
        progress.send_modify(|progress| {
            progress.update(jiff::Timestamp::now());
            progress.queue(long_ago);
        });
        assert_eq!(checks.sync(&desired(&[("web", port, 1)])).await, []);
        let answer = get(port, "/").await?;
        assert_eq!(answer.status(), 503, "the proxy lags behind");
        let body = String::from_utf8_lossy(answer.body());
        assert!(body.contains("\"serviceProxyHealthy\": false"), "{body}");

        // The Node does not matter here.
        progress.send_modify(|progress| {
            progress.update(jiff::Timestamp::now());
            progress.set_eligible(false);
        });
        assert_eq!(get(port, "/").await?.status(), 200);
        Ok(())
    }

    #[tokio::test]
    async fn a_port_goes_with_its_service_and_may_go_to_another() -> Result<()> {
        let mut checks = Checks::new(watch::channel(Progress::new(Instant::now())).1);
        let (one, other) = (free_port()?, free_port()?);
        assert_eq!(
            checks
                .sync(&desired(&[("a", one, 1), ("b", other, 1)]))
                .await,
            []
        );
        // They change places.
        assert_eq!(
            checks
                .sync(&desired(&[("a", other, 1), ("b", one, 1)]))
                .await,
            []
        );
        let body = get(one, "/").await?.into_body();
        assert!(String::from_utf8_lossy(&body).contains("\"name\": \"b\""));
        assert_eq!(checks.sync(&BTreeMap::new()).await, []);
        for port in [one, other] {
            get(port, "/").await.expect_err("closed");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_once_and_tried_again() -> Result<()> {
        let mut checks = Checks::new(watch::channel(Progress::new(Instant::now())).1);
        let taken = std::net::TcpListener::bind("[::]:0")?;
        let port = taken.local_addr()?.port();
        let desired = desired(&[("web", port, 1)]);
        let news = checks.sync(&desired).await;
        let [(service, failed)] = &news[..] else {
            panic!("{news:?}")
        };
        assert_eq!((service, failed.port), (&key("web"), port));
        assert!(failed.error.contains("in use"), "{failed:?}");
        assert_eq!(checks.sync(&desired).await, [], "it has been told");
        assert_eq!(checks.failed().len(), 1);

        drop(taken);
        assert_eq!(checks.sync(&desired).await, []);
        assert!(checks.failed().is_empty());
        assert_eq!(get(port, "/").await?.status(), 200);
        Ok(())
    }

    #[tokio::test]
    async fn it_listens_on_the_addresses_of_node_ports_alone() -> Result<()> {
        let mut checks = Checks::new(watch::channel(Progress::new(Instant::now())).1);
        let port = free_port()?;
        let desired = desired(&[("web", port, 1)]);
        assert_eq!(checks.sync(&desired).await, []);
        assert_eq!(get(port, "/").await?.status(), 200);
        checks.set_addresses(Some(["127.0.0.2".parse()?].into()));
        assert_eq!(checks.sync(&desired).await, []);
        get(port, "/").await.expect_err("not there");
        let connect = tokio::net::TcpStream::connect(("127.0.0.2", port));
        tokio::time::timeout(Duration::from_secs(5), connect).await??;
        Ok(())
    }

    #[test]
    fn endpoints_count_by_address_where_they_are_ready_and_here() {
        let endpoint = |address: &str, node: &str, ready| Endpoint {
            address: address.parse().expect("an address"),
            ready,
            serving: true,
            terminating: !ready,
            node: Some(node.to_owned()),
            hints: Hints::default(),
        };
        let slice = |family, port: Option<u16>, endpoints| EndpointSlice {
            service: key("web"),
            family,
            endpoints,
            ports: port
                .map(|port| SlicePort {
                    name: port.to_string(),
                    protocol: Protocol::Tcp,
                    port,
                })
                .into_iter()
                .collect(),
            trigger: None,
        };
        let (here, there) = ("here", "there");
        let both = vec![
            endpoint("10.0.0.1", here, true),
            endpoint("10.0.0.2", here, true),
            endpoint("10.0.0.3", here, false),
            endpoint("10.0.0.4", there, true),
        ];
        let slices = [
            slice(Family::IPv4, Some(80), both.clone()),
            slice(Family::IPv4, Some(443), both),
            slice(
                Family::IPv6,
                Some(80),
                vec![endpoint("fd00::1", here, true)],
            ),
            // It serves no port.
            slice(Family::IPv4, None, vec![endpoint("10.0.0.9", here, true)]),
        ];
        let mut world = World::default();
        for (number, slice) in slices.into_iter().enumerate() {
            let row = Row {
                value: Some(slice),
                version: String::new(),
                problems: Vec::new(),
            };
            let key = key(&format!("web-{number}"));
            world.apply(Change::EndpointSlice(Event::Apply(key, row)));
        }
        assert_eq!(local_endpoints(&world, &key("web"), here), 2);
        assert_eq!(local_endpoints(&world, &key("web"), there), 1);
        assert_eq!(local_endpoints(&world, &key("web"), "nowhere"), 0);
        assert_eq!(local_endpoints(&world, &key("other"), here), 0);
    }
}
