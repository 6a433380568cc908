//! A control plane and a sandbox, with an object for each node and pod.

use std::{
    fs, iter,
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Resource, api::ListParams};
use lb_tests::{
    control_plane::{Binaries, Client, ControlPlane, Kind, keep_logs, kubeconfig},
    sandbox::{Agent, Family, Node, Pod, Protocol, Reply, Sandbox, text},
};
use lb_userspace::status::{self, Status};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

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
        let cluster = Self::of(binaries, sandbox)?;
        for pod in cluster.web_pods() {
            for protocol in Protocol::BOTH {
                pod.serve(protocol, WEB_PORT)?;
            }
        }
        Ok(cluster)
    }

    /// A control plane for a sandbox.
    pub fn of(binaries: Binaries, sandbox: Sandbox) -> Result<Self> {
        let address = sandbox.outside_addresses().get(Family::V4);
        let folder = sandbox.directory().join("control-plane");
        let plane = ControlPlane::start(binaries, sandbox.outside().clone(), address, folder)?;
        let admin = plane.admin()?;
        admin.apply(DEPLOYMENT)?;
        Ok(Self {
            plane,
            admin,
            sandbox,
        })
    }

    /// Keeps the logs of everything that runs, and says where.
    pub fn keep_logs(&self) -> Result<()> {
        let nodes = self.sandbox.nodes().iter().map(Node::directory);
        let logs = keep_logs(iter::once(self.plane.folder()).chain(nodes))?;
        eprintln!(
            "the logs of the control plane and of lb are in {}",
            logs.display()
        );
        Ok(())
    }

    /// Makes the objects those of a cluster that no test has run in.
    pub fn reset(&self) -> Result<()> {
        let services = ListParams::default().fields("metadata.name!=kubernetes");
        self.admin.delete_all::<Service>("default", services)?;
        let slices = ListParams::default().labels("kubernetes.io/service-name!=kubernetes");
        self.admin.delete_all::<EndpointSlice>("default", slices)?;
        self.admin.apply(&text(&self.sandbox.objects())?)
    }

    /// The pod that connects to services.
    pub fn client(&self) -> &Pod {
        self.sandbox.pod("client")
    }

    /// The pods that serve.
    pub fn web_pods(&self) -> impl Iterator<Item = &Pod> {
        let pods = self.sandbox.pods();
        pods.filter(|pod| pod.name().starts_with("web-"))
    }

    /// The client's node, in most tests the one with an agent.
    pub fn node(&self) -> &Node {
        &self.sandbox.nodes()[0]
    }

    /// Starts the agent of the client's node.
    pub fn start_agent(&self) -> Result<Agent> {
        self.start_agent_on(self.node())
    }

    /// Starts an agent as its DaemonSet would be started: with a token of its service account, and
    /// the apiserver's ClusterIP as address, which nobody serves yet.
    pub fn start_agent_on(&self, node: &Node) -> Result<Agent> {
        let file = self.agent_kubeconfig("https://10.96.0.1:443")?;
        let apiserver = self.plane.url();
        Agent::follow(node, "--kubeconfig", &file, ["--apiserver", &apiserver])
    }

    /// Starts the agent as a container of its DaemonSet: with what the kubelet gives every container.
    pub fn start_container(&self) -> Result<Agent> {
        let run = self.sandbox.directory().join("container");
        let account = run.join("secrets/kubernetes.io/serviceaccount");
        fs::create_dir_all(&account)?;
        fs::copy(self.plane.certificate_authority(), account.join("ca.crt"))?;
        fs::write(account.join("namespace"), "kube-system")?;
        let token = self.admin.service_account_token("kube-system", "lb")?;
        fs::write(account.join("token"), token)?;
        let environment = [
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("LB_APISERVER", &self.plane.url()),
        ];
        Agent::in_container(self.node(), &run, environment)
    }

    /// A kubeconfig with a token of the agent's service account.
    pub fn agent_kubeconfig(&self, server: &str) -> Result<PathBuf> {
        let token = self.admin.service_account_token("kube-system", "lb")?;
        let authority = self.plane.certificate_authority();
        let [file, unfinished] = ["agent.kubeconfig", ".agent.kubeconfig"]
            .map(|name| self.sandbox.directory().join(name));
        // Another agent may be reading the last one.
        fs::write(&unfinished, kubeconfig(server, &authority, &token))?;
        fs::rename(&unfinished, &file)?;
        Ok(file)
    }

    /// Does something while the agent is stopped, so that it sees only what came of it.
    pub fn while_stopped(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let status::Agent::Running { pid, .. } = self.node().status()?.agent else {
            bail!("the agent does not run");
        };
        let agent = Pid::from_raw(pid.try_into()?);
        kill(agent, Signal::SIGSTOP)?;
        let done = work(self);
        kill(agent, Signal::SIGCONT)?;
        done
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

    /// Waits until `lb status` says that the tables reflect an object as it is now.
    pub fn wait_until_reflected<K>(&self, service: &str, name: &str) -> Result<()>
    where
        K: Kind + Resource<DynamicType = ()>,
    {
        let object: K = self.admin.get("default", name)?;
        let object_name = format!("{} default/{name}", K::kind(&()));
        let version = object.meta().resource_version.as_deref();
        let what = format!("{object_name} at {version:?} is reflected");
        self.wait_for_service(service, &what, |service| {
            let reflected = service.and_then(|service| service.versions.get(&object_name));
            reflected.map(String::as_str) == version
        })
    }

    /// Waits until `lb status` says that `condition` holds of every port of a service.
    pub fn wait_for_ports(
        &self,
        key: &str,
        what: &str,
        condition: impl Fn(&status::Port) -> bool,
    ) -> Result<()> {
        self.wait_for_service(key, what, |service| {
            let ports = service.map_or(&[] as &[_], |service| &service.ports);
            !ports.is_empty() && ports.iter().all(&condition)
        })
    }

    /// Waits until `lb status` says that a service's ports have as many backends each.
    pub fn wait_for_backends(&self, key: &str, count: usize) -> Result<()> {
        self.wait_for_ports(key, &format!("{count} backends"), |port| {
            port.backends.len() == count
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
            reply.from == to && reply.true_address(),
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
