//! From a policy's creation in an apiserver to the first packet that it holds back, in an idle cluster
//! of 10,000 pods and 1,000 policies.

use std::{
    fs,
    net::SocketAddr,
    thread,
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
/// After a deletion the agent waits for packets under way before it forgets rules; this is not what is
/// measured.
const REST: Duration = Duration::from_millis(150);
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
        thread::sleep(REST);
        samples.push(close(&admin, client, server)?);
    }
    let asked = |at: fn(&Closing) -> Duration| -> Vec<f64> {
        let samples = samples.iter().map(at);
        samples.map(|sample| sample.as_secs_f64() * 1e3).collect()
    };
    let lines = [
        ("asked, to held back", asked(|it| it.held_back)),
        ("asked, to created", asked(|it| it.created)),
        (
            "created, to held back",
            asked(|it| it.held_back.saturating_sub(it.created)),
        ),
    ];
    let slowest = lines.clone().map(|(name, mut samples)| {
        samples.sort_by(f64::total_cmp);
        let name = format!("{name}, 99 of a hundred");
        (name, vec![samples[CHANGES * 99 / 100]])
    });
    let lines = lines.map(|(name, samples)| (name.to_owned(), samples));
    Ok(vec![table(
        "A policy, from asking for it to the first packet that it holds back",
        Unit::Milliseconds,
        lines.into_iter().chain(slowest),
    )])
}

/// When things had happened, since a policy was asked for.
struct Closing {
    /// The apiserver said that there is one.
    created: Duration,
    /// The first packet that did not come through was sent.
    held_back: Duration,
}

/// Creates the policy, and waits until no packet comes through.
fn close(admin: &Client, client: &Pod, server: SocketAddr) -> Result<Closing> {
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
    let created = started.elapsed();
    let silent = client.namespace().wait(asking)?;
    let silent = silent.context("the policy holds nothing back")?;
    let held_back = silent.saturating_duration_since(started);
    Ok(Closing { created, held_back })
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
