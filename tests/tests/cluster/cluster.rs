//! A control plane and a sandbox, with an object for each node and pod.

use std::{
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::api::ListParams;
use lb_tests::{
    control_plane::{Binaries, Client, ControlPlane, kubeconfig},
    sandbox::{Agent, Family, Node, Pod, Protocol, Reply, Sandbox, text},
};
use lb_userspace::status::{self, Status};

use crate::tables;

/// What the cluster is installed from.
pub const DEPLOYMENT: &str = include_str!("../../../deploy/lb.yaml");
/// Where pods of the application `web` listen.
pub const WEB_PORT: u16 = 8080;
/// How long the agent may take to follow, from a restarted apiserver even.
const SOON: Duration = Duration::from_secs(30);

/// A cluster of two nodes, without kubelets and kube-proxy: objects are written here, by hand.
pub struct Cluster {
    pub plane: ControlPlane,
    pub admin: Client,
    pub sandbox: Sandbox,
}

impl Cluster {
    pub fn start(binaries: Binaries) -> Result<Self> {
        let sandbox = Sandbox::builder()
            .nodes(2)
            .pod("client", 1)
            .pod("web-1", 1)
            .pod("web-2", 1)
            .pod("web-3", 2)
            .pod("web-4", 2)
            .build()?;
        let address = sandbox.outside_addresses().get(Family::V4);
        let plane = ControlPlane::start(binaries, sandbox.outside().clone(), address)?;
        let admin = plane.admin()?;
        admin.apply(&text(&sandbox.objects())?)?;
        admin.apply(DEPLOYMENT)?;
        for pod in web_pods(&sandbox) {
            for protocol in Protocol::BOTH {
                pod.serve(protocol, WEB_PORT)?;
            }
        }
        Ok(Self {
            plane,
            admin,
            sandbox,
        })
    }

    /// Removes the services that a test has left.
    pub fn clear(&self) -> Result<()> {
        let services = ListParams::default().fields("metadata.name!=kubernetes");
        self.admin.delete_all::<Service>("default", services)?;
        let slices = ListParams::default().labels("kubernetes.io/service-name!=kubernetes");
        self.admin.delete_all::<EndpointSlice>("default", slices)
    }

    /// The pod that connects to services.
    pub fn client(&self) -> &Pod {
        self.sandbox.pod("client")
    }

    /// The pods that serve.
    pub fn web_pods(&self) -> impl Iterator<Item = &Pod> {
        web_pods(&self.sandbox)
    }

    /// The client's node, the one with an agent.
    pub fn node(&self) -> &Node {
        &self.sandbox.nodes()[0]
    }

    /// Starts the agent as its DaemonSet would be started: with a token of its service account, and
    /// the apiserver's ClusterIP as address, which nobody serves yet.
    pub fn start_agent(&self) -> Result<Agent> {
        let token = self.admin.service_account_token("kube-system", "lb")?;
        let authority = self.plane.certificate_authority();
        let file = self.plane.folder().join("agent.kubeconfig");
        std::fs::write(
            &file,
            kubeconfig("https://10.96.0.1:443", &authority, &token),
        )?;
        let apiserver = self.plane.url();
        Agent::follow(
            self.node(),
            "--kubeconfig",
            &file,
            ["--apiserver", &apiserver],
        )
    }

    /// Waits until `lb status` says that `condition` holds of a service.
    pub fn wait_for_service(
        &self,
        key: &str,
        what: &str,
        condition: impl Fn(Option<&status::Service>) -> bool,
    ) -> Result<()> {
        self.wait_for_status(&format!("{key}: {what}"), |status| {
            condition(
                status
                    .services
                    .iter()
                    .find(|service| service.service == key),
            )
        })
    }

    /// Waits until `lb status` says that a service's ports have as many backends each.
    pub fn wait_for_backends(&self, key: &str, count: usize) -> Result<()> {
        self.wait_for_service(key, &format!("{count} backends"), |service| {
            service.is_some_and(|service| {
                !service.ports.is_empty()
                    && service
                        .ports
                        .iter()
                        .all(|port| port.backends.len() == count)
            })
        })
    }

    /// Waits until `lb status` says that `condition` holds.
    pub fn wait_for_status(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Result<()> {
        eventually(what, || {
            let status = self.node().status()?;
            ensure!(condition(&status), "{status}");
            Ok(())
        })
    }

    /// Waits until the tables in the kernel say what a compilation of all objects says.
    pub fn wait_for_fresh_tables(&self) -> Result<()> {
        eventually("the tables are those of a fresh compilation", || {
            let fresh = tables::fresh(&self.admin, self.admin_kubeconfig()?, self.node().name())?;
            let live = tables::live(self.node())?;
            ensure!(live == fresh, "in the kernel:\n{live}\nfresh:\n{fresh}");
            Ok(())
        })
    }

    /// Asks a service who it is, as the client.
    pub fn ask(&self, protocol: Protocol, to: SocketAddr) -> Result<Reply> {
        let reply = self.client().ask(protocol, to);
        let reply = reply.with_context(|| format!("{} {to}", protocol.name()))?;
        ensure!(
            reply.from == to && reply.true_source(),
            "translated half-way: {reply:?}"
        );
        Ok(reply)
    }

    fn admin_kubeconfig(&self) -> Result<PathBuf> {
        let file = self.plane.folder().join("admin.kubeconfig");
        ensure!(file.exists(), "{} is not there", file.display());
        Ok(file)
    }
}

/// Tries again and again until it works; the error is the last attempt's.
pub fn eventually(what: &str, attempt: impl Fn() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    while let Err(error) = attempt() {
        if started.elapsed() > SOON {
            let error = error.context(format!("waited {} s in vain: {what}", SOON.as_secs()));
            bail!(error);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn web_pods(sandbox: &Sandbox) -> impl Iterator<Item = &Pod> {
    sandbox.pods().filter(|pod| pod.name().starts_with("web-"))
}
