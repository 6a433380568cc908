//! From the moment that an EndpointSlice is written to the first connection that meets its new
//! endpoint, in a cluster with a real control plane.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_tests::{
    control_plane::{self, Client, ControlPlane, kubeconfig},
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
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run() -> Result<Vec<Table>> {
    let sandbox = Sandbox::builder()
        .pod("client", 1)
        .pod("one", 1)
        .pod("two", 1)
        .build()?;
    for name in ["one", "two"] {
        sandbox.pod(name).serve(Protocol::Tcp, TARGET)?;
    }
    let address = sandbox.outside_addresses().get(Family::V4);
    let folder = sandbox.directory().join("control-plane");
    let binaries = control_plane::find()?;
    let plane = ControlPlane::start(binaries, sandbox.outside().clone(), address, folder)?;
    let admin = plane.admin()?;
    admin.apply(include_str!("../../../deploy/lb.yaml"))?;
    admin.apply(&text(&sandbox.objects())?)?;
    admin.apply(&text(&service(
        SERVICE,
        Some(SERVICE_IP),
        sandbox.pod("one"),
    ))?)?;
    let agent = start(&sandbox, &plane, &admin)?;

    let mut measured = Vec::new();
    let mut others = 0;
    for size in SIZES {
        while others < size {
            let batch = others..size.min(others + BATCH);
            let objects: Vec<Value> = batch.clone().flat_map(other).collect();
            admin.apply(&text(&objects)?)?;
            others = batch.end;
        }
        let last = size
            .checked_sub(1)
            .map(|last| format!("default/other-{last}"));
        wait(&sandbox, last.as_deref().unwrap_or("default/web"))?;
        let name = format!("{} services", size + 1);
        let samples = (0..CHANGES)
            .map(|change| change_to(&sandbox, &admin, ["two", "one"][change % 2]))
            .collect::<Result<_>>();
        measured.push((name.clone(), samples.context(name)?));
    }
    drop(agent);
    let title = "From writing an EndpointSlice to the first connection that meets its new endpoint";
    Ok(vec![table(title, Unit::Milliseconds, measured)])
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
fn change_to(sandbox: &Sandbox, admin: &Client, pod: &str) -> Result<f64> {
    let change = json!({ "endpoints": endpoints(&[&sandbox.pod(pod).address(Family::V4)]) });
    let client = sandbox.pod("client");
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
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "ports": [{ "port": PORT, "protocol": "TCP" }] },
    });
    if let Some(ip) = ip {
        service["spec"]["clusterIP"] = ip.into();
    }
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "labels": { "kubernetes.io/service-name": name },
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
