//! `lb run`.

use std::{future, pin::Pin, time::Duration};

use anyhow::{Error, Result, anyhow};
use futures::Stream;
use ipnet::IpNet;
use serde_json::Value;
use tracing::debug;

use super::{Attach, Failure, Run, Servers, Source, Xdp};
use crate::{
    events::Events,
    kernel::{self, Pins, XdpChoice},
    links::Patterns,
    logging,
    run::{self, Choices, Config, SurfaceConfig},
    source::{self, apiserver::ApiServer, manifests::Manifests},
    world::{Change, close_names},
};

/// Between two attempts to learn the names of all nodes.
const RETRY: Duration = Duration::from_secs(5);

/// Runs the agent until a signal ends it. What is attached stays attached.
pub async fn run(run: Run, mut settings: Value) -> Result<(), Failure> {
    logging::init(run.log_format);
    let origin = run.source().map_err(Failure::Usage)?;
    let node = run.node_name()?;
    let cgroup_root = run.cgroup_root();
    let objects = Objects::open(&origin, &run).await?;
    settings["nodeName"] = node.clone().into();
    settings["source"] = origin.to_string().into();
    let Servers {
        healthz_bind_address,
        metrics_bind_address,
        bind_address_hard_fail,
    } = run.servers;
    let surface = SurfaceConfig {
        healthz: healthz_bind_address,
        metrics: metrics_bind_address,
        hard_fail: bind_address_hard_fail,
        settings,
        events: objects.events(&node),
        cleanup_kube_proxy: run.cleanup_kube_proxy,
    };
    let config = Config {
        node: node.clone(),
        source: origin.to_string(),
        changes: match run.allow_service_external_ips {
            true => objects.changes(&node),
            false => Box::pin(source::without_external_ips(objects.changes(&node))),
        },
        interfaces: Choices {
            patterns: Patterns {
                pods: run.pod_interface,
                uplinks: run.uplink_interface,
            },
            nodeport_addresses: run.nodeport_addresses,
            xdp: match run.xdp {
                Xdp::Auto => XdpChoice::Auto,
                Xdp::Native => XdpChoice::Native,
                Xdp::Generic => XdpChoice::Generic,
                Xdp::Off => XdpChoice::Off,
            },
        },
        pins: Pins::below(&run.places.bpffs),
        socket: run.places.socket,
        attach: match run.attach {
            Attach::Auto => kernel::Attach::best(),
            Attach::Tcx => kernel::Attach::Tcx,
            Attach::Clsact => kernel::Attach::Clsact,
        },
        // In the order of `aya_log::Level`.
        log_level: run.bpf_log as u8,
        cgroup_root,
        surface,
        socket_lb: run.socket_lb,
        allow_pod_sources: run.allow_pod_sources.iter().map(IpNet::trunc).collect(),
    };
    tokio::select! {
        // A wrong name that can be told at once is told before anything is touched.
        biased;
        unknown = objects.unknown(&node) => Err(unknown.into()),
        ended = run::run(config) => Ok(ended?),
    }
}

/// The source of objects, opened.
enum Objects {
    Manifests(Manifests),
    ApiServer(ApiServer),
}

impl Objects {
    async fn open(source: &Source, run: &Run) -> Result<Self> {
        let addresses = &run.apiserver;
        Ok(match source {
            Source::Manifests(directory) => Self::Manifests(Manifests::open(directory)?),
            Source::Kubeconfig(file) => {
                Self::ApiServer(ApiServer::from_kubeconfig(file.as_deref(), addresses).await?)
            }
            Source::InCluster => Self::ApiServer(ApiServer::in_cluster(addresses)?),
        })
    }

    fn changes(&self, node: &str) -> Pin<Box<dyn Stream<Item = Change> + Send>> {
        match self {
            Self::Manifests(manifests) => Box::pin(manifests.changes(node)),
            Self::ApiServer(server) => Box::pin(server.changes(node)),
        }
    }

    /// Where events go: only an apiserver takes some.
    fn events(&self, node: &str) -> Events {
        match self {
            Self::Manifests(_) => Events::nowhere(),
            Self::ApiServer(server) => Events::to(server.client(), node.to_owned()),
        }
    }

    /// Returns once all nodes are known and this one is not among them, which is nothing to wait
    /// for: most likely the name is wrong.
    async fn unknown(&self, node: &str) -> Error {
        loop {
            match self.node_names().await {
                Ok(names) if names.iter().any(|name| name == node) => {
                    return future::pending().await;
                }
                Ok(names) => return no_node(node, &names),
                Err(error) => debug!("cannot check the node's name yet: {error:#}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn node_names(&self) -> Result<Vec<String>> {
        match self {
            Self::Manifests(manifests) => manifests.node_names(),
            Self::ApiServer(server) => server.node_names().await,
        }
    }
}

fn no_node(node: &str, names: &[String]) -> Error {
    let close = close_names(node, names.iter().map(String::as_str));
    let hint = if close.is_empty() {
        format!("none of the {} Nodes has a name like it", names.len())
    } else {
        format!("close names are {}", close.join(", "))
    };
    anyhow!("there is no Node {node}: {hint}; --node-name says which one this is")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_node_name_lists_the_close_ones() {
        let names = ["worker-1", "worker-2", "control-plane"].map(str::to_owned);
        assert_eq!(
            no_node("worker1", &names).to_string(),
            "there is no Node worker1: close names are worker-1, worker-2; \
             --node-name says which one this is"
        );
        assert_eq!(
            no_node("xyz", &names).to_string(),
            "there is no Node xyz: none of the 3 Nodes has a name like it; \
             --node-name says which one this is"
        );
    }
}
