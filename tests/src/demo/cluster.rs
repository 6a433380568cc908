//! The cluster that the demo shows: pods, servers, and the manifests that describe them.

use std::{env, net::SocketAddr, os::unix::fs::chown};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::sandbox::{
    Agent, Family, Manifests, Pod, Protocol, Sandbox, Service, Topology, cluster_ip, text,
};

const WEB_PODS: u8 = 4;
const DNS_PODS: u8 = 2;

/// A sandbox with servers, their Services as manifests, and an agent on each node.
pub struct Cluster {
    /// Before the sandbox, whose nodes they run on.
    agents: Vec<Agent>,
    pub sandbox: Sandbox,
    pub manifests: Manifests,
    pub web: Offer,
    pub dns: Offer,
    pub retired: Offer,
}

/// A Service with one port.
pub struct Offer {
    pub service: Service,
    pub protocol: Protocol,
    pub port: u16,
    pub pods: Vec<String>,
}

impl Offer {
    fn new(
        service: Service,
        (name, protocol, port, target): (&str, Protocol, u16, u16),
        pods: &[&Pod],
    ) -> Self {
        Self {
            service: service
                .port(name, protocol, port, target)
                .endpoints(pods.iter().copied()),
            protocol,
            port,
            pods: pods.iter().map(|pod| pod.name().to_owned()).collect(),
        }
    }

    /// Where clients reach it.
    pub fn frontend(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.service.ip(family), self.port)
    }
}

impl Cluster {
    /// Makes the sandbox, starts the servers and writes the manifests. No agent runs yet.
    pub fn create(topology: Topology, nodes: u8) -> Result<Self> {
        let sandbox = pods(nodes)
            .fold(
                Sandbox::builder().topology(topology).nodes(nodes),
                |builder, (name, node)| builder.pod(name, node),
            )
            .build()?;
        let named = |prefix: &str| -> Vec<&Pod> {
            sandbox
                .pods()
                .filter(|pod| pod.name().starts_with(prefix))
                .collect()
        };
        let web = Service::new("web", cluster_ip(10));
        let web = Offer::new(web, ("http", Protocol::Tcp, 80, 8080), &named("web-"));
        let dns = Service::new("dns", cluster_ip(53));
        let dns = Offer::new(dns, ("dns", Protocol::Udp, 53, 5353), &named("dns-"));
        let retired = Service::new("retired", cluster_ip(30));
        let retired = Offer::new(retired, ("http", Protocol::Tcp, 80, 8080), &[]);
        for pod in named("web-") {
            pod.serve(Protocol::Tcp, 8080)?;
        }
        for pod in named("dns-") {
            pod.serve(Protocol::Udp, 5353)?;
        }

        let manifests = Manifests::create(sandbox.directory().join("manifests"))?;
        let cluster = Self {
            agents: Vec::new(),
            sandbox,
            manifests,
            web,
            dns,
            retired,
        };
        for (file, content) in cluster.files()? {
            cluster.save(&file, &content)?;
        }
        Ok(cluster)
    }

    /// The names and contents of the manifests.
    pub fn files(&self) -> Result<[(String, String); 5]> {
        let objects = format!("{OBJECTS_COMMENT}{}", text(&self.sandbox.objects())?);
        Ok([
            ("nodes-and-pods.yaml".to_owned(), objects),
            file(&self.web.service, WEB_COMMENT)?,
            file(&self.dns.service, DNS_COMMENT)?,
            file(&self.retired.service, RETIRED_COMMENT)?,
            (
                "policy.yaml".to_owned(),
                format!("{POLICY_COMMENT}{}", text(&[policy()])?),
            ),
        ])
    }

    /// Describes the web service anew.
    pub fn save_web(&self, service: &Service) -> Result<()> {
        let (file, content) = file(service, WEB_COMMENT)?;
        self.save(&file, &content)
    }

    /// Writes a manifest, and gives it to the user who became root through sudo, to edit it.
    fn save(&self, file: &str, content: &str) -> Result<()> {
        self.manifests.write_text(file, content)?;
        let id = |name: &str| env::var(name).ok()?.parse().ok();
        if let (Some(user), group) = (id("SUDO_UID"), id("SUDO_GID")) {
            let directory = self.manifests.directory();
            chown(directory, Some(user), group)?;
            chown(directory.join(file), Some(user), group)?;
        }
        Ok(())
    }

    /// Starts an agent on each node and waits until all of them serve everything.
    pub fn start_agents(&mut self) -> Result<()> {
        for node in self.sandbox.nodes() {
            let agent = Agent::start(node, self.manifests.directory(), [""; 0])?;
            self.agents.push(agent);
        }
        for node in self.sandbox.nodes() {
            node.wait_for("the agent serves all services", |status| {
                [&self.web, &self.dns, &self.retired].iter().all(|offer| {
                    status.services.iter().any(|service| {
                        service.service == offer.service.key()
                            && service
                                .ports
                                .iter()
                                .all(|port| port.backends.len() == offer.pods.len())
                    })
                })
            })
            .with_context(|| format!("start lb on {}", node.name()))?;
        }
        Ok(())
    }
}

/// The name of the NetworkPolicy.
pub const POLICY: &str = "dns-for-clients";

/// Lets clients ask the DNS pods, on the port that these listen on, and nobody else.
fn policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": POLICY, "namespace": "default" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "dns" } },
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }],
                "ports": [{ "protocol": "UDP", "port": 5353 }],
            }],
        },
    })
}

/// The file of a Service, and what is in it.
fn file(service: &Service, comment: &str) -> Result<(String, String)> {
    Ok((
        service.file(),
        format!("{comment}{}", text(&service.objects())?),
    ))
}

/// All pods with their nodes: clients on the first, servers on each in turn.
fn pods(nodes: u8) -> impl Iterator<Item = (String, u8)> {
    let spread = move |name: &'static str, count: u8| {
        (0..count).map(move |i| (format!("{name}-{i}"), i % nodes + 1))
    };
    [("client-0".to_owned(), 1)]
        .into_iter()
        .chain(spread("web", WEB_PODS))
        .chain(spread("dns", DNS_PODS))
}

const OBJECTS_COMMENT: &str = "\
# The nodes and pods of the sandbox. The agent finds its own node's addresses here, and believes an
# interface that it leads to an address only where a Pod of its node has that address.
";

const WEB_COMMENT: &str = "\
# Take an endpoint out of both EndpointSlices, or set its `ready` to false, and save: `cargo xtask
# run` shows where new connections go. Those that are open stay where they are.
";

const DNS_COMMENT: &str = "\
# A client that keeps one UDP socket moves on to another pod when its own is taken out.
";

const POLICY_COMMENT: &str = "\
# Nobody but the client gets an answer from the DNS pods: `lb drops` says who did not, and by which
# policy. Take the file away, and web-0 does too.
";

const RETIRED_COMMENT: &str = "\
# A Service without endpoints refuses connections instead of letting them time out.
";
