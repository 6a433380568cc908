//! From asking an apiserver for a policy to the first packet that it holds back, in an idle cluster of
//! 10,000 pods and 1,000 policies.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use lb_tests::{
    control_plane::{self, Client, ControlPlane, kubeconfig},
    sandbox::{Agent, Conversation, Family, Pod, Protocol, Sandbox, text},
};
use serde_json::{Value, json};

use crate::measure::{Table, Unit, table};

const TARGET: u16 = 8080;
const NAMESPACES: u32 = 100;
const PODS: u32 = 100;
const POLICIES: u32 = 10;
const CHANGES: usize = 200;
/// A datagram that is not answered for so long is not let through.
const SILENCE: Duration = Duration::from_millis(60);
const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "closed";

pub fn run() -> Result<Vec<Table>> {
    let sandbox = Sandbox::builder()
        .pod("client", 1)
        .pod("server", 1)
        .build()?;
    sandbox.pod("server").serve(Protocol::Udp, TARGET)?;
    let address = sandbox.outside_addresses().get(Family::V4);
    let folder = sandbox.directory().join("control-plane");
    let binaries = control_plane::find()?;
    let plane = ControlPlane::start(binaries, sandbox.outside().clone(), address, folder)?;
    let admin = plane.admin()?;
    admin.apply(include_str!("../../../deploy/lb.yaml"))?;
    admin.apply(&text(&sandbox.objects())?)?;
    for namespace in 0..NAMESPACES {
        admin.apply(&text(&others(namespace))?)?;
    }
    let token = admin.service_account_token("kube-system", "lb")?;
    let file = sandbox.directory().join("agent.kubeconfig");
    let config = kubeconfig(&plane.url(), &plane.certificate_authority(), &token);
    fs::write(&file, config)?;
    let none: [&str; 0] = [];
    let _agent = Agent::follow(&sandbox.nodes()[0], "--kubeconfig", &file, none)?;

    let server = SocketAddr::new(sandbox.pod("server").address(Family::V4), TARGET);
    let client = sandbox.pod("client");
    // The first is not followed before everything has been listed.
    close(&admin, client, server)?;
    let mut samples = Vec::new();
    for _ in 0..CHANGES {
        open(&admin, client, server)?;
        samples.push(close(&admin, client, server)?);
    }
    samples.sort_by(f64::total_cmp);
    let slowest = samples[CHANGES * 99 / 100];
    let title = "From asking for a policy to the first packet that it holds back";
    Ok(vec![table(
        title,
        Unit::Milliseconds,
        [
            ("all".to_owned(), samples),
            ("slowest but for one of a hundred".to_owned(), vec![slowest]),
        ],
    )])
}

/// Creates the policy, and returns after how many milliseconds no packet came through.
fn close(admin: &Client, client: &Pod, server: SocketAddr) -> Result<f64> {
    let talk = client.run(Conversation::open(Protocol::Udp, server))?;
    let (begin, began) = std::sync::mpsc::channel();
    let asking = client.spawn(async move {
        let mut talk = talk;
        let _ = begin.send(());
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let sent = Instant::now();
            let answer = tokio::time::timeout(SILENCE, talk.ask()).await;
            if !matches!(answer, Ok(Ok(_))) {
                return Some(sent);
            }
        }
        None
    });
    began.recv()?;
    let started = Instant::now();
    admin.apply(&policy().to_string())?;
    let silent = client.namespace().wait(asking)?;
    let silent = silent.context("the policy holds nothing back")?;
    Ok(silent.saturating_duration_since(started).as_secs_f64() * 1e3)
}

/// Deletes the policy, and returns when packets come through again.
fn open(admin: &Client, client: &Pod, server: SocketAddr) -> Result<()> {
    admin.delete::<NetworkPolicy>("default", NAME)?;
    let started = Instant::now();
    while client.ask(Protocol::Udp, server).is_err() {
        if started.elapsed() > PATIENCE {
            bail!("{server} is not reached any more");
        }
    }
    ensure!(started.elapsed() < PATIENCE);
    Ok(())
}

fn policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": NAME, "namespace": "default" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "server" } },
            "policyTypes": ["Ingress"],
        },
    })
}

/// A namespace of pods on another node, and the policies that select them.
fn others(number: u32) -> Vec<Value> {
    let namespace = format!("team-{number}");
    let mut objects = vec![json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": namespace, "labels": { "team": (number % 7).to_string() } },
    })];
    objects.extend((0..PODS).map(|pod| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": format!("pod-{pod}"),
                "namespace": namespace,
                "labels": { "app": format!("app-{}", pod % 20) },
            },
            "spec": {
                "nodeName": "elsewhere",
                "containers": [{ "name": "server", "image": "example.com/server" }],
            },
            "status": {
                "phase": "Running",
                "podIP": format!("10.{}.{}.{}", 100 + number / 200, number % 200, pod + 1),
                "podIPs": [{ "ip": format!("10.{}.{}.{}", 100 + number / 200, number % 200, pod + 1) }],
            },
        })
    }));
    objects.extend((0..POLICIES).map(|policy| {
        let app = |number: u32| json!({ "matchLabels": { "app": format!("app-{number}") } });
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": format!("policy-{policy}"), "namespace": namespace },
            "spec": {
                "podSelector": app(policy),
                "policyTypes": ["Ingress"],
                "ingress": [{
                    "from": [{
                        "namespaceSelector": { "matchLabels": { "team": (policy % 5).to_string() } },
                        "podSelector": app(policy + 1),
                    }],
                    "ports": [{ "protocol": "TCP", "port": 8080 + policy }],
                }],
            },
        })
    }));
    objects
}
