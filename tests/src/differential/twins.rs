//! Two sandboxes that follow one apiserver: node-1 of the one is run by us, of the other by
//! kube-proxy.

use std::{
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::api::ListParams;
use serde_json::{Value, json};

use super::{
    forward::Forwarder,
    generate::{TARGETS, ZONES},
    outcome::{Effort, Outcome},
    probe::Probe,
    side::Side,
    world::{Endpoint, LABEL, Round, Servers, Slice, World},
};
use crate::{
    control_plane::{Binaries, Client, ControlPlane, keep_logs},
    kube_proxy::{self, KubeProxy},
    sandbox::{Agent, Family, text},
};

/// How long a proxy may take to follow.
const SOON: Duration = Duration::from_secs(60);
/// kube-proxy's least time between two changes: a second, unless it is told.
const QUICKLY: [&str; 2] = ["--iptables-min-sync-period", "50ms"];
/// A server of the node under test that always answers.
const MARKER_SERVER: &str = "here-2";

/// Both sides, what runs in them, and what they follow. The fields stand in the order in which they
/// go.
pub struct Twins {
    _agent: Agent,
    _proxy: KubeProxy,
    _forwarder: Forwarder,
    admin: Client,
    plane: ControlPlane,
    pub ours: Side,
    pub rival: Side,
    servers: Servers,
    round: Round,
}

/// The outcomes of both sides, ours first.
pub type Both<T> = (T, T);

impl Twins {
    pub fn start(binaries: Binaries) -> Result<Self> {
        let kube_proxy = binaries.kube_proxy.clone();
        let (ours, rival) = (Side::build()?, Side::build()?);
        let address = ours.sandbox.outside_addresses().get(Family::V4);
        let folder = ours.sandbox.directory().join("control-plane");
        let plane = ControlPlane::start(binaries, ours.sandbox.outside().clone(), address, folder)?;
        let admin = plane.admin()?;
        admin.apply(&text(&objects(&ours))?)?;

        let server = SocketAddr::new(address, plane.port());
        let outside = ours.sandbox.outside();
        let forwarder = Forwarder::start(server, rival.sandbox.outside(), outside)?;
        let kubeconfig = plane.admin_kubeconfig();
        let agent = Agent::follow(ours.node(), "--kubeconfig", &kubeconfig, [""; 0])?;
        let proxy = KubeProxy::start(&kube_proxy, rival.node(), &kubeconfig, &QUICKLY)?;
        Ok(Self {
            _agent: agent,
            _proxy: proxy,
            _forwarder: forwarder,
            admin,
            plane,
            servers: ours.servers(),
            ours,
            rival,
            round: Round(0),
        })
    }

    /// Keeps the logs of everything that runs, and returns where.
    pub fn keep_logs(&self) -> Result<PathBuf> {
        keep_logs([
            self.plane.folder(),
            self.ours.node().directory(),
            self.rival.node().directory(),
        ])
    }

    /// Makes a world the one that both sides serve, under addresses that no earlier one had.
    pub fn enact(&mut self, world: &World) -> Result<()> {
        self.round = self.round.next();
        let all = || ListParams::default().labels(LABEL);
        self.admin.delete_all::<Service>("default", all())?;
        self.admin.delete_all::<EndpointSlice>("default", all())?;
        let mut objects = world.objects(self.round, &self.servers);
        // Proxies see each kind in order: who serves the last of both has seen all before.
        objects.extend(self.marker());
        self.admin.apply(&text(&objects)?)?;
        self.wait()
    }

    /// The objects of a world as they were written last.
    pub fn yaml(&self, world: &World) -> Result<String> {
        text(&world.objects(self.round, &self.servers))
    }

    /// What both sides show to the same probes, which are carried out at the same time.
    pub fn ask(
        &self,
        world: &World,
        probes: &[Probe],
        effort: impl Fn(&Probe) -> Effort + Sync,
    ) -> Both<Vec<Outcome>> {
        let ask = |side: &Side| side.ask(world, self.round, probes, &effort);
        thread::scope(|scope| {
            let rival = scope.spawn(|| ask(&self.rival));
            let ours = ask(&self.ours);
            match rival.join() {
                Ok(rival) => (ours, rival),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn wait(&self) -> Result<()> {
        let started = Instant::now();
        for (name, side) in [("lb", &self.ours), ("kube-proxy", &self.rival)] {
            while !side.is_at(self.round) {
                if started.elapsed() > SOON {
                    let log = std::fs::read_to_string(kube_proxy::log(self.rival.node()));
                    let log = log.context("read the log of kube-proxy")?;
                    let last = log.lines().last().unwrap_or("(empty)");
                    bail!(
                        "{name} did not follow within {} s; the log of kube-proxy ends: {last}",
                        SOON.as_secs()
                    );
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// A Service that works once everything written before it does.
    fn marker(&self) -> Vec<Value> {
        let ips = self.round.marker().each();
        let port = json!({ "name": "marker", "protocol": "TCP", "port": TARGETS[0] });
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": "marker", "labels": { LABEL: "marker" } },
            "spec": {
                "clusterIP": ips[0],
                "clusterIPs": ips,
                "ipFamilies": ["IPv4", "IPv6"],
                "ipFamilyPolicy": "RequireDualStack",
                "ports": [port],
            },
        });
        let slice = |family| {
            let slice = Slice {
                family,
                target: TARGETS[0],
                endpoints: vec![Endpoint::ready(MARKER_SERVER)],
            };
            slice.object_of("marker", std::slice::from_ref(&port), &self.servers)
        };
        [service]
            .into_iter()
            .chain(Family::BOTH.map(slice))
            .collect()
    }
}

/// The Nodes, each with its zone, and the Pods.
fn objects(side: &Side) -> Vec<Value> {
    let mut objects = side.sandbox.objects();
    for object in objects.iter_mut().filter(|object| object["kind"] == "Node") {
        let near = object["metadata"]["name"] != "node-3";
        let zone = if near { ZONES[0] } else { ZONES[1] };
        object["metadata"]["labels"]["topology.kubernetes.io/zone"] = zone.into();
    }
    objects
}
