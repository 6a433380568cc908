//! What the agent answers to load balancers, the kubelet and Prometheus.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use http::Response;
use http_body_util::Full;
use hyper::{body::Bytes, server, service::service_fn};
use hyper_util::rt::TokioIo;
use lb_tests::sandbox::{Agent, Answer, Endpoint, Family, Node, Pair, Service, get, until};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    trial,
    world::{Shape, World, service},
};

const HEALTH: u16 = 10256;
const METRICS: u16 = 10249;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("healthz and livez answer from everywhere", health),
        trial(
            "metrics and the proxy mode answer on this node alone",
            metrics,
        ),
        trial(
            "a node that is about to go is told to load balancers alone",
            eligibility,
        ),
        trial(
            "a health check node port counts ready endpoints here",
            check_counts,
        ),
        trial(
            "a health check node port follows its service",
            check_follows,
        ),
        trial(
            "a health check node port that is taken is told and tried again",
            check_taken,
        ),
        trial(
            "policies that leave nothing here are measured",
            without_local,
        ),
        trial("an empty bind address turns a server off", off),
        trial("a bind address that is taken is tried again", taken),
        trial("a bind address that is taken may be fatal", fatal),
    ]
}

pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn json(answer: &Answer) -> Result<Value> {
    serde_json::from_str(answer.body()).with_context(|| answer.body().clone())
}

fn health() -> Result<()> {
    let world = World::serving(Shape::PLAIN, &[&service("web", 10)])?;
    let node = &world.sandbox.nodes()[0];
    for family in Family::BOTH {
        let at = |port| SocketAddr::new(node.addresses().get(family), port);
        let healthz = get(world.sandbox.outside(), at(HEALTH), "/healthz")?;
        ensure!(healthz.status() == 200, "{healthz:?}");
        let headers = healthz.headers();
        ensure!(headers["content-type"] == "application/json", "{headers:?}");
        ensure!(
            headers["x-content-type-options"] == "nosniff",
            "{headers:?}"
        );
        let body = json(&healthz)?;
        ensure!(body["lastUpdated"] == body["currentTime"], "{body}");
        ensure!(body["nodeEligible"] == true, "{body}");
        ensure!(body["status"]["IPv4"]["healthy"] == true, "{body}");
        ensure!(body["status"]["IPv6"]["healthy"] == true, "{body}");

        let livez = get(world.sandbox.outside(), at(HEALTH), "/livez")?;
        ensure!(livez.status() == 200, "{livez:?}");
        ensure!(json(&livez)?.get("nodeEligible").is_none(), "{livez:?}");
        let other = get(world.sandbox.outside(), at(HEALTH), "/")?;
        ensure!(other.status() == 404, "{other:?}");
        let metrics = get(world.sandbox.outside(), at(METRICS), "/metrics");
        ensure!(metrics.is_err(), "metrics are not for others: {metrics:?}");
    }
    Ok(())
}

/// The value of a metric, labels and all.
pub fn measured(node: &Node, name: &str) -> Result<Option<f64>> {
    let answer = get(node.namespace(), local(METRICS), "/metrics")?;
    let value = answer.body().lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(' ')?;
        Some(value.parse())
    });
    Ok(value.transpose()?)
}

fn metrics() -> Result<()> {
    let world = World::serving(Shape::PLAIN, &[])?;
    let node = &world.sandbox.nodes()[0];
    let mode = get(node.namespace(), local(METRICS), "/proxyMode")?;
    ensure!((mode.status(), &mode.body()[..]) == (200.try_into()?, "ebpf"));
    let healthz = get(node.namespace(), local(METRICS), "/healthz")?;
    ensure!(healthz.body() == "ok", "{healthz:?}");
    let configz = json(&get(node.namespace(), local(METRICS), "/configz")?)?;
    ensure!(configz["lb"]["nodeName"] == node.name(), "{configz}");
    ensure!(configz["lb"]["attach"] == "tcx", "{configz}");

    let syncs = r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"}"#;
    let seen = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
    let before = (measured(node, syncs)?, measured(node, seen)?);
    let web = service("web", 10).endpoint(world.pod("near"));
    world.program(&web)?;
    let after = (measured(node, syncs)?, measured(node, seen)?);
    ensure!(
        after.0 > before.0 && after.1 > before.1,
        "{before:?}, {after:?}"
    );
    let pending = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
    ensure!(measured(node, pending)? == Some(0.0));

    get(node.namespace(), local(HEALTH), "/healthz")?;
    let answers = r#"kubeproxy_proxy_healthz_total{code="200"}"#;
    ensure!(measured(node, answers)? == Some(1.0));
    for looked_up in [
        r#"lb_table_entries{table="SERVICES"}"#,
        r#"lb_interfaces{state="taken"}"#,
    ] {
        until("the state of the node is measured", || {
            Ok(measured(node, looked_up)?.filter(|value| *value > 0.0))
        })?;
    }
    Ok(())
}

/// The load balancer's service, with `near` and `far` as endpoints.
fn balanced(world: &World, port: u16) -> Service {
    let [near, far] = ["near", "far"].map(|name| world.pod(name));
    service("web", 10)
        .load_balancer(VIP)
        .external_local()
        .health_check(port)
        .endpoint(near)
        .endpoint(far)
}

const CHECK: u16 = 32_100;
/// Of nobody else.
const VIP: Pair = Pair {
    v4: Ipv4Addr::new(203, 0, 113, 10),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10),
};

/// Waits until a load balancer outside hears this code from each node, and the weight.
fn checks(world: &World, port: u16, expected: [(u16, &str); 2]) -> Result<()> {
    for (node, (code, weight)) in world.sandbox.nodes().iter().zip(expected) {
        let at = SocketAddr::new(node.addresses().get(Family::V4), port);
        until(&format!("{} answers {code}", node.name()), || {
            let Ok(answer) = get(world.sandbox.outside(), at, "/any/path") else {
                return Ok(None);
            };
            let header = &answer.headers()["x-load-balancing-endpoint-weight"];
            let matches = answer.status() == code && header == weight;
            Ok(matches.then_some(()))
        })?;
    }
    Ok(())
}

const TWO_NODES: Shape = Shape {
    nodes: 2,
    ..Shape::PLAIN
};

fn check_counts() -> Result<()> {
    let world = World::serving(TWO_NODES, &[])?;
    let web = balanced(&world, CHECK);
    world.manifests.write_service(&web)?;
    checks(&world, CHECK, [(200, "1"), (200, "1")])?;
    let node = &world.sandbox.nodes()[0];
    let at = SocketAddr::new(node.addresses().get(Family::V6), CHECK);
    let answer = get(world.sandbox.outside(), at, "/")?;
    let expected = json!({
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 1,
        "serviceProxyHealthy": true,
    });
    ensure!(json(&answer)? == expected, "{answer:?}");

    // Both addresses of a pod, and both ports, are one endpoint; another pod is another.
    world
        .manifests
        .write_service(&web.clone().endpoint(world.pod("other")))?;
    checks(&world, CHECK, [(200, "2"), (200, "1")])?;
    world.manifests.write_service(&web.without("near"))?;
    checks(&world, CHECK, [(503, "0"), (200, "1")])?;

    // It still serves, but new clients should go elsewhere.
    let leaving = Endpoint::from(world.pod("near")).terminating();
    let web = balanced(&world, CHECK)
        .without_endpoints()
        .endpoint(leaving);
    world.manifests.write_service(&web)?;
    checks(&world, CHECK, [(503, "0"), (503, "0")])
}

fn check_follows() -> Result<()> {
    let world = World::serving(TWO_NODES, &[])?;
    let closed = |port| -> Result<()> {
        for node in world.sandbox.nodes() {
            let at = SocketAddr::new(node.addresses().get(Family::V4), port);
            until(
                &format!("{} does not listen on {port}", node.name()),
                || Ok(get(world.sandbox.outside(), at, "/").is_err().then_some(())),
            )?;
        }
        Ok(())
    };
    world.manifests.write_service(&balanced(&world, CHECK))?;
    checks(&world, CHECK, [(200, "1"), (200, "1")])?;
    world
        .manifests
        .write_service(&balanced(&world, CHECK + 1))?;
    checks(&world, CHECK + 1, [(200, "1"), (200, "1")])?;
    closed(CHECK)?;
    // `externalTrafficPolicy: Cluster` asks for none.
    let cluster = service("web", 10)
        .load_balancer(VIP)
        .health_check(CHECK + 1)
        .endpoint(world.pod("near"));
    world.manifests.write_service(&cluster)?;
    closed(CHECK + 1)?;
    let web = balanced(&world, CHECK);
    world.manifests.write_service(&web)?;
    checks(&world, CHECK, [(200, "1"), (200, "1")])?;
    world.manifests.remove(&web.file())?;
    closed(CHECK)
}

fn check_taken() -> Result<()> {
    let world = World::serving(Shape::PLAIN, &[])?;
    let node = &world.sandbox.nodes()[0];
    let taken = take(node, Ipv4Addr::UNSPECIFIED.into(), CHECK)?;
    world.manifests.write_service(&balanced(&world, CHECK))?;
    let problem = format!("cannot serve the health check on port {CHECK}");
    node.wait_for("the port is a problem", |status| {
        let problems = &status.problems;
        problems
            .iter()
            .any(|found| found.object == "default/web" && found.problem.starts_with(&problem))
    })?;
    drop(taken);
    let at = SocketAddr::new(node.addresses().get(Family::V4), CHECK);
    until("it is served after all", || {
        let answer = get(world.sandbox.outside(), at, "/");
        Ok(answer
            .is_ok_and(|answer| answer.status() == 200)
            .then_some(()))
    })
}

fn eligibility() -> Result<()> {
    let world = World::serving(Shape::PLAIN, &[])?;
    let node = &world.sandbox.nodes()[0];
    world.manifests.write_service(&balanced(&world, CHECK))?;
    let mut objects = world.sandbox.objects();
    objects[0]["spec"]["taints"] = json!([
        {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"},
    ]);
    world.manifests.write("objects.yaml", &objects)?;
    let ask = |port, path| get(node.namespace(), local(port), path);
    until("load balancers are sent away", || {
        Ok((ask(HEALTH, "/healthz")?.status() == 503).then_some(()))
    })?;
    let healthz = json(&ask(HEALTH, "/healthz")?)?;
    ensure!(healthz["nodeEligible"] == false, "{healthz}");
    ensure!(healthz["healthy"] == false, "{healthz}");
    ensure!(healthz["status"]["IPv4"]["healthy"] == true, "{healthz}");
    ensure!(ask(HEALTH, "/livez")?.status() == 200, "the agent is well");
    let check = SocketAddr::new(node.addresses().get(Family::V4), CHECK);
    let check = get(world.sandbox.outside(), check, "/")?;
    ensure!(check.status() == 200, "{check:?}");
    let answers = r#"kubeproxy_proxy_healthz_total{code="503"}"#;
    ensure!(measured(node, answers)? > Some(0.0));

    world
        .manifests
        .write("objects.yaml", &world.sandbox.objects())?;
    until("load balancers may come back", || {
        Ok((ask(HEALTH, "/healthz")?.status() == 200).then_some(()))
    })
}

fn without_local() -> Result<()> {
    let world = World::serving(TWO_NODES, &[])?;
    let web = service("web", 10)
        .internal_local()
        .endpoint(world.pod("far"));
    world.manifests.write_service(&web)?;
    let [here, there] = world.sandbox.nodes() else {
        bail!("two nodes")
    };
    for family in ["IPv4", "IPv6"] {
        let name = format!(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total\
             {{ip_family=\"{family}\",traffic_policy=\"internal\"}}"
        );
        until("the ports without endpoints here are counted", || {
            Ok((measured(here, &name)? == Some(2.0)).then_some(()))
        })?;
        ensure!(
            measured(there, &name)?.is_none(),
            "{name} on the other node"
        );
    }
    Ok(())
}

/// Starts the first node's agent with these flags, and waits until it answers.
fn start<'a>(world: &'a mut World, flags: &[&str]) -> Result<&'a Node> {
    let node = &world.sandbox.nodes()[0];
    let agent = Agent::start(node, world.manifests.directory(), flags)?;
    world.agents.push(agent);
    node.wait_for("the agent runs", |_| true)?;
    Ok(node)
}

fn off() -> Result<()> {
    let mut world = World::without_agent(Shape::PLAIN)?;
    let flags = ["--healthz-bind-address", "", "--metrics-bind-address", ""];
    let node = start(&mut world, &flags)?;
    for port in [HEALTH, METRICS] {
        let answer = get(node.namespace(), local(port), "/healthz");
        ensure!(answer.is_err(), "{answer:?}");
    }
    Ok(())
}

/// Answers `/proxyMode` on the node, as a kube-proxy in that mode does.
pub fn answer_as_kube_proxy(node: &Node, mode: &'static str) -> Result<JoinHandle<()>> {
    let listener = take(node, Ipv4Addr::LOCALHOST.into(), METRICS)?;
    Ok(node.namespace().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(async move |_| {
                anyhow::Ok(Response::new(Full::new(Bytes::from_static(
                    mode.as_bytes(),
                ))))
            });
            let connection = server::conn::http1::Builder::new();
            // A client that goes is no concern here.
            let _ = connection
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        }
    }))
}

/// Takes a port of the node.
fn take(node: &Node, address: IpAddr, port: u16) -> Result<TcpListener> {
    let listener = node
        .namespace()
        .run(async move { TcpListener::bind((address, port)).await })?;
    Ok(listener)
}

fn taken() -> Result<()> {
    let mut world = World::without_agent(Shape::PLAIN)?;
    let node = &world.sandbox.nodes()[0];
    let taken = take(node, Ipv4Addr::LOCALHOST.into(), METRICS)?;
    let node = start(&mut world, &[])?;
    let problem = format!("cannot listen on 127.0.0.1:{METRICS}");
    node.wait_for("the port is a problem", |status| {
        let problems = &status.problems;
        problems
            .iter()
            .any(|found| found.problem.contains(&problem))
    })?;
    drop(taken);
    node.wait_for("it is no problem any more", |status| {
        status.problems.is_empty()
    })?;
    let mode = get(node.namespace(), local(METRICS), "/proxyMode")?;
    ensure!(mode.body() == "ebpf", "{mode:?}");
    Ok(())
}

fn fatal() -> Result<()> {
    let mut world = World::without_agent(Shape::PLAIN)?;
    let node = &world.sandbox.nodes()[0];
    let _taken = take(node, Ipv4Addr::UNSPECIFIED.into(), HEALTH)?;
    let agent = Agent::start(
        node,
        world.manifests.directory(),
        ["--bind-address-hard-fail"],
    )?;
    world.agents.push(agent);
    let agent = &mut world.agents[0];
    let log = until("the agent says why it ends", || {
        let log = agent.log();
        Ok(log.contains(&format!(":{HEALTH}: ")).then_some(log))
    })?;
    let status = agent.end(Signal::SIGTERM)?;
    ensure!(status.code() == Some(1), "{status:?}: {log}");
    Ok(())
}
