//! From the moment that an EndpointSlice is written to the first connection that meets its new
//! endpoint, in a cluster with a real control plane, on a node that we run and then on one that the
//! real kube-proxy runs.

use std::{
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::api::ListParams;
use lb_tests::{
    control_plane::{self, Client, ControlPlane, kubeconfig},
    kube_proxy::KubeProxy,
    sandbox::{Agent, Family, Pod, Protocol, Sandbox, text},
};
use serde_json::{Value, json};

use crate::measure::{Table, Unit, table};

const SERVICE: &str = "web";
const SERVICE_IP: &str = "10.96.0.10";
const PORT: u16 = 80;
const TARGET: u16 = 8080;

/// How many other services there are, each with five endpoints.
const SIZES: [u32; 2] = [0, 10_000];
/// Objects in one request of the harness.
const BATCH: u32 = 500;
const CHANGES: usize = 25;
/// Between two changes: more than kube-proxy's least time between two of its own.
const PAUSE: Duration = Duration::from_millis(1_100);
const PATIENCE: Duration = Duration::from_secs(60);
/// A label of the other services.
const OTHER: &str = "other";

pub fn run() -> Result<Vec<Table>> {
    let sandbox = Sandbox::builder()
        .nodes(3)
        .pod("ours", 1)
        .pod("rival", 2)
        .pod("one", 3)
        .pod("two", 3)
        .build()?;
    for name in ["one", "two"] {
        sandbox.pod(name).serve(Protocol::Tcp, TARGET)?;
    }
    let address = sandbox.outside_addresses().get(Family::V4);
    let folder = sandbox.directory().join("control-plane");
    let binaries = control_plane::find()?;
    let kube_proxy = binaries.kube_proxy.clone();
    let plane = ControlPlane::start(binaries, sandbox.outside().clone(), address, folder)?;
    let admin = plane.admin()?;
    admin.apply(include_str!("../../../deploy/lb.yaml"))?;
    admin.apply(&text(&sandbox.objects())?)?;
    let web = service(SERVICE, Some(SERVICE_IP), sandbox.pod("one"));
    admin.apply(&text(&web)?)?;

    let mut measured = Vec::new();
    let mut measure = |proxy: &str, client: &str, others: u32| {
        let name = format!("{proxy}, {} services", others + 1);
        let samples = changes(&sandbox, &admin, client).with_context(|| name.clone())?;
        measured.push((name, samples));
        anyhow::Ok(())
    };
    let [few, many] = SIZES;
    let agent = start(&sandbox, &plane, &admin)?;
    measure("lb", "ours", few)?;
    make_others(&admin, many)?;
    wait(&sandbox, &format!("default/other-{}", many - 1))?;
    measure("lb", "ours", many)?;
    drop(agent);
    let node = &sandbox.nodes()[1];
    let _proxy = KubeProxy::start(&kube_proxy, node, &plane.admin_kubeconfig(), &[])?;
    measure("kube-proxy, nftables", "rival", many)?;
    let others = || ListParams::default().labels(OTHER);
    admin.delete_all::<EndpointSlice>("default", others())?;
    admin.delete_all::<Service>("default", others())?;
    measure("kube-proxy, nftables", "rival", few)?;
    let title = "From writing an EndpointSlice to the first connection that meets its new endpoint";
    Ok(vec![table(title, Unit::Milliseconds, measured)])
}

fn make_others(admin: &Client, count: u32) -> Result<()> {
    for first in (0..count).step_by(BATCH as usize) {
        let batch = first..count.min(first + BATCH);
        let objects: Vec<Value> = batch.flat_map(other).collect();
        admin.apply(&text(&objects)?)?;
    }
    Ok(())
}

/// How long each of some changes takes, once the first is followed.
fn changes(sandbox: &Sandbox, admin: &Client, client: &str) -> Result<Vec<f64>> {
    let mut samples = Vec::with_capacity(CHANGES);
    for change in 0..=CHANGES {
        let pod = ["two", "one"][change % 2];
        samples.push(change_to(sandbox, admin, client, pod)?);
        thread::sleep(PAUSE);
    }
    samples.remove(0);
    Ok(samples)
}

/// Starts the agent as its DaemonSet would be started.
fn start(sandbox: &Sandbox, plane: &ControlPlane, admin: &Client) -> Result<Agent> {
    let token = admin.service_account_token("kube-system", "lb")?;
    let file = sandbox.directory().join("agent.kubeconfig");
    let config = kubeconfig(&plane.url(), &plane.certificate_authority(), &token);
    fs::write(&file, config)?;
    let none: [&str; 0] = [];
    Agent::follow(&sandbox.nodes()[0], "--kubeconfig", &file, none)
}

fn wait(sandbox: &Sandbox, key: &str) -> Result<()> {
    let what = format!("{key} is served");
    sandbox.nodes()[0].wait_for(&what, |status| {
        let served = status
            .services
            .iter()
            .find(|service| service.service == key);
        served.is_some_and(|service| service.ports.iter().any(|port| !port.backends.is_empty()))
    })?;
    Ok(())
}

/// Moves the service to a pod, and returns after how many milliseconds a connection went there.
fn change_to(sandbox: &Sandbox, admin: &Client, client: &str, pod: &str) -> Result<f64> {
    let change = json!({ "endpoints": endpoints(&[&sandbox.pod(pod).address(Family::V4)]) });
    let client = sandbox.pod(client);
    let to = SocketAddr::new(SERVICE_IP.parse()?, PORT);
    let started = Instant::now();
    admin.merge::<EndpointSlice>("default", SERVICE, &change)?;
    loop {
        let reply = client.ask(Protocol::Tcp, to);
        if reply.is_ok_and(|reply| reply.server == pod) {
            return Ok(started.elapsed().as_secs_f64() * 1e3);
        }
        ensure!(started.elapsed() < PATIENCE, "no connection met {pod}");
    }
}

/// A service of one pod.
fn service(name: &str, ip: Option<&str>, pod: &Pod) -> Vec<Value> {
    objects(name, ip, &[&pod.address(Family::V4)])
}

/// A service that nobody dials.
fn other(number: u32) -> Vec<Value> {
    let [.., high, low] = number.to_be_bytes();
    let endpoints: Vec<String> = (1..=5)
        .map(|n| format!("10.{}.{high}.{low}", 200 + n))
        .collect();
    let endpoints: Vec<&String> = endpoints.iter().collect();
    objects(&format!("other-{number}"), None, &endpoints)
}

fn objects(name: &str, ip: Option<&str>, addresses: &[&impl ToString]) -> Vec<Value> {
    let mut labels = json!({ "kubernetes.io/service-name": name });
    if name != SERVICE {
        labels[OTHER] = "".into();
    }
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default", "labels": labels },
        "spec": { "ports": [{ "port": PORT, "protocol": "TCP" }] },
    });
    if let Some(ip) = ip {
        service["spec"]["clusterIP"] = ip.into();
    }
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "labels": labels,
            "name": name,
            "namespace": "default",
        },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": TARGET, "protocol": "TCP" }],
        "endpoints": endpoints(addresses),
    });
    vec![service, slice]
}

fn endpoints(addresses: &[&impl ToString]) -> Value {
    addresses
        .iter()
        .map(|address| {
            json!({ "addresses": [address.to_string()], "conditions": { "ready": true } })
        })
        .collect()
}
