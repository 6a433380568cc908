//! What the agent answers to load balancers, the kubelet and Prometheus.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use lb_tests::sandbox::{Agent, Family, Namespace, Node, until};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

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
        trial("an empty bind address turns a server off", off),
        trial("a bind address that is taken is tried again", taken),
        trial("a bind address that is taken may be fatal", fatal),
    ]
}

/// An answer with its body.
pub type Answer = Response<String>;

/// Asks over HTTP from a namespace.
pub fn get(from: &Namespace, at: SocketAddr, path: &str) -> Result<Answer> {
    let request = Request::get(path).header("host", at.to_string());
    let request = request.body(Empty::<Bytes>::new())?;
    from.run(async move {
        let stream = TcpStream::connect(at).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        Ok(Response::from_parts(
            parts,
            String::from_utf8(body.to_vec())?,
        ))
    })
}

fn local(port: u16) -> SocketAddr {
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
fn measured(node: &Node, name: &str) -> Result<Option<f64>> {
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
