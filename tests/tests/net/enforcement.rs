//! Who may talk to whom: policies on real connections, from a pod's first packet on.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::sandbox::{
    Client, Conversation, Family, Node, Pod, Protocol, program, public_ip, until,
};
use lb_userspace::{drops::Drop, policies::Policy, world::ObjectKey};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{net::UdpSocket, time::timeout};

use crate::{
    forwarding::{packet, send_raw},
    surface::measured,
    trial,
    world::{Shape, TARGET, World, frontend, service},
};

const FILE: &str = "policies.yaml";
/// How long nothing is heard from who is not let through.
const SILENCE: Duration = Duration::from_millis(400);

pub fn trials() -> Vec<Trial> {
    let mut trials: Vec<_> = Shape::all()
        .map(|shape| {
            let name = format!("policies decide who talks to whom {}", shape.name());
            trial(name, move || decide(shape))
        })
        .collect();
    trials.extend([
        trial("a policy ends a connection, and gives it back", again),
        trial("policies stay in force without an agent", without_agent),
        trial("a pod may only send from its own addresses", spoofed),
        trial(
            "a pod may send from what both operator and pod say",
            more_sources,
        ),
        trial("a pod starts once it is guarded", plugin),
        trial("no pod starts without an agent", plugin_alone),
        trial("an audited policy lets everything through", audited),
    ]);
    trials
}

/// A NetworkPolicy of the pods of an app.
fn policy(name: &str, app: &str, spec: &Value) -> Value {
    let mut policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": "default" },
        "spec": spec,
    });
    policy["spec"]["podSelector"] = json!({ "matchLabels": { "app": app } });
    policy
}

fn closed(app: &str) -> Value {
    policy("closed", app, &json!({ "policyTypes": ["Ingress"] }))
}

/// Lets one app reach another on the port that its servers listen on, not on that of their Services.
fn admits(app: &str, from: &str) -> Value {
    let ports = ["TCP", "UDP"].map(|protocol| json!({ "protocol": protocol, "port": TARGET }));
    let from = json!([{ "podSelector": { "matchLabels": { "app": from } } }]);
    let ingress = json!([{ "from": from, "ports": ports }]);
    let spec = json!({ "policyTypes": ["Ingress"], "ingress": ingress });
    policy("admits", app, &spec)
}

/// Lets an app reach one other and nobody else.
fn confines(app: &str, to: &str) -> Value {
    let to = json!([{ "podSelector": { "matchLabels": { "app": to } } }]);
    let spec = json!({ "policyTypes": ["Egress"], "egress": [{ "to": to }] });
    policy("confines", app, &spec)
}

/// Whether somebody answers a client at once.
fn answers(client: Client, protocol: Protocol, to: SocketAddr) -> bool {
    let from = client.from(to);
    let ask = async move { Conversation::open_at(from, protocol, to).await?.ask().await };
    let asked = client.run(async move { timeout(SILENCE, ask).await });
    matches!(asked, Ok(Ok(_)))
}

/// Makes these all policies there are.
fn write(world: &World, policies: &[Value]) -> Result<()> {
    match policies {
        [] => world.manifests.remove(FILE),
        policies => world.manifests.write(FILE, policies),
    }
}

/// Waits until a client is answered, or is not any more.
fn wait_until(client: Client, to: SocketAddr, answered: bool) -> Result<()> {
    let what = format!("{to} answers: {answered}");
    until(&what, || {
        let is = answers(client, Protocol::Tcp, to);
        Ok((is == answered).then_some(()))
    })
}

/// A world with a Service of `far`.
fn world(shape: Shape) -> Result<World> {
    let world = World::serving(shape, &[])?;
    world.program(&service("web", 10).endpoint(world.pod("far")))?;
    Ok(world)
}

/// The ways to a server on the pod `far`: its own address, and its Service.
fn ways(world: &World, family: Family) -> [SocketAddr; 2] {
    let pod = SocketAddr::new(world.pod("far").address(family), TARGET);
    let web = service("web", 10).endpoint(world.pod("far"));
    [pod, frontend(&web, family)]
}

/// Says of each pod whether `far` answers it, by all ways.
fn ensure_reach(world: &World, expected: &[(&str, bool)]) -> Result<()> {
    for family in Family::BOTH {
        for (name, answered) in expected {
            for protocol in Protocol::BOTH {
                for to in ways(world, family) {
                    let is = answers(world.pod(name).client(), protocol, to);
                    let protocol = protocol.name();
                    ensure!(is == *answered, "{name} to {to}/{protocol}: answered {is}");
                }
            }
        }
    }
    Ok(())
}

fn decide(shape: Shape) -> Result<()> {
    let world = world(shape)?;
    let client = world.client().client();
    let [far, _] = ways(&world, Family::V4);
    let enact = |policies: &[Value], answered| {
        write(&world, policies)?;
        wait_until(client, far, answered)
    };
    ensure_reach(&world, &[("client", true), ("other", true)])?;

    enact(&[closed("far")], false)?;
    ensure_reach(
        &world,
        &[("client", false), ("other", false), ("peer", false)],
    )?;
    ensure_named(&world)?;
    // The node itself probes its pods, and what the pod asks for is answered.
    let node = world.sandbox.nodes().last().context("a node")?;
    for family in Family::BOTH {
        let [far, _] = ways(&world, family);
        let near = SocketAddr::new(world.pod("near").address(family), TARGET);
        for protocol in Protocol::BOTH {
            ensure!(answers(node.client(), protocol, far), "the node to {far}");
            let asked = answers(world.pod("far").client(), protocol, near);
            ensure!(asked, "far to {near}");
        }
    }

    enact(&[closed("far"), admits("far", "client")], true)?;
    ensure_reach(
        &world,
        &[("client", true), ("other", false), ("peer", false)],
    )?;

    let policies = [admits("far", "client"), confines("client", "near")];
    enact(&policies, false)?;
    ensure_reach(&world, &[("client", false), ("other", false)])?;
    let near = SocketAddr::new(world.pod("near").address(Family::V6), TARGET);
    ensure!(answers(client, Protocol::Udp, near), "client to {near}");

    enact(&[], true)?;
    ensure_reach(&world, &[("client", true), ("other", true), ("peer", true)])
}

/// Who was dropped is told by name, and whose rule says so.
fn ensure_named(world: &World) -> Result<()> {
    let node = world.sandbox.nodes().last().context("a node")?;
    let output = node.lb(&["drops", "-o", "json"])?;
    ensure!(output.status.success(), "lb drops failed");
    let drops: Vec<Drop> = serde_json::from_slice(&output.stdout)?;
    let rule = "NetworkPolicy default/closed isolates for ingress, no rule matches";
    let named =
        |pod: &Option<ObjectKey>, name: &str| pod.as_ref().is_some_and(|pod| pod.name == name);
    let found = drops.iter().find(|drop| {
        named(&drop.pod, "far")
            && named(&drop.source.pod, "other")
            && named(&drop.destination.pod, "far")
            && drop.destination.port == TARGET
            && drop.rule.as_deref() == Some(rule)
    });
    ensure!(
        found.is_some(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    ensure_counted(node)
}

/// The policy has its pod, with what was denied there, and the tables are shown with both names.
fn ensure_counted(node: &Node) -> Result<()> {
    let output = node.lb(&["policy", "get", "default/closed", "-o", "json"])?;
    let policies: Vec<Policy> = serde_json::from_slice(&output.stdout)?;
    let pods: Vec<_> = policies.iter().flat_map(|policy| &policy.pods).collect();
    let denied = pods.iter().filter_map(|selected| {
        let hits = selected.hits.filter(|_| selected.pod.name == "far")?;
        Some(hits.ingress_denied)
    });
    ensure!(pods.len() == 1 && denied.sum::<u64>() > 0, "{policies:?}");
    for name in [
        r#"lb_pod_packets_total{namespace="default",pod="far",direction="ingress",reason="ingress-denied"}"#,
        r#"lb_table_entries{table="RULES"}"#,
    ] {
        until(&format!("{name} is measured"), || {
            Ok(measured(node, name)?.filter(|value| *value > 0.0))
        })?;
    }
    let output = node.lb(&["dump"])?;
    let dump = String::from_utf8_lossy(&output.stdout);
    let rule = "-> deny by NetworkPolicy default/closed isolates for ingress, no rule matches";
    for (table, end) in [("GUARDS ", " default/far"), ("RULES ", rule)] {
        let mut lines = dump.lines();
        let known = lines.any(|line| line.starts_with(table) && line.ends_with(end));
        ensure!(known, "no {table} with {end}: {dump}");
    }
    Ok(())
}

/// What was allowed once is not allowed for ever, nor lost for ever.
fn again() -> Result<()> {
    let world = world(Shape::PLAIN)?;
    let client = world.client();
    for family in Family::BOTH {
        for to in ways(&world, family) {
            let mut open = client.client().open(Protocol::Udp, to)?;
            let heard = client.run(async move { open.ask().await.map(|_| open) });
            let mut open = heard?;
            write(&world, &[closed("far")])?;
            wait_until(client.client(), to, false)?;
            let (still, mut open) = client.run(async move {
                let heard = timeout(SILENCE, open.ask()).await;
                (matches!(heard, Ok(Ok(_))), open)
            });
            ensure!(!still, "a flow from before the policy goes on to {to}");
            write(&world, &[])?;
            wait_until(client.client(), to, true)?;
            let heard = client.run(async move { open.ask().await });
            heard.with_context(|| format!("{to} does not answer any more"))?;
        }
    }
    Ok(())
}

/// No packet passes while the agent is away, and while the next one starts.
fn without_agent() -> Result<()> {
    let mut world = world(Shape::PLAIN)?;
    let policies = [closed("far"), admits("far", "client")];
    write(&world, &policies)?;
    let [far, _] = ways(&world, Family::V4);
    wait_until(world.pod("other").client(), far, false)?;
    let expected = [("client", true), ("other", false)];
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for agent in &mut world.agents {
            agent.end(signal)?;
        }
        ensure_reach(&world, &expected)?;
        world.start_agents()?;
        for _ in 0..3 {
            ensure_reach(&world, &expected)?;
        }
    }
    // The new agent knows what the old one wrote, and what has changed since.
    write(&world, &policies[..1])?;
    wait_until(world.client().client(), far, false)?;
    write(&world, &[])?;
    wait_until(world.pod("other").client(), far, true)
}

/// Whether a pod hears a datagram that another one sends as somebody else.
fn is_heard(world: &World, liar: &str, source: IpAddr, port: u16) -> Result<bool> {
    let family = if source.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    let victim = world.pod("near");
    let trap = SocketAddr::new(victim.address(family), port);
    let ear = victim.run(UdpSocket::bind(trap))?;
    let packet = packet(SocketAddr::new(source, 4_800), trap, &[], b"boo\n")?;
    world
        .pod(liar)
        .run(async move { send_raw(&packet, trap) })?;
    let mut datagram = [0; 16];
    let listen = async { timeout(SILENCE, ear.recv(&mut datagram)).await };
    Ok(victim.namespace().wait(listen).is_ok())
}

/// What the node says of a pod that is wrong.
fn problems_of(node: &Node, pod: &str) -> Result<Vec<String>> {
    let problems = node.status()?.problems.into_iter();
    let own = problems.filter(|problem| problem.kind == "Pod" && problem.object.ends_with(pod));
    Ok(own.map(|problem| problem.problem).collect())
}

/// Lets a pod ask for sources, and waits until the agent has heard of it: as many are refused.
fn ask_for(world: &World, pod: &str, sources: &[IpAddr], refused: usize) -> Result<()> {
    let mut objects = world.sandbox.objects();
    let of_pod = |object: &&mut Value| object["kind"] == "Pod" && object["metadata"]["name"] == pod;
    let object = objects.iter_mut().find(of_pod).context("a Pod")?;
    let sources: Vec<_> = sources.iter().map(ToString::to_string).collect();
    if !sources.is_empty() {
        object["metadata"]["annotations"] = json!({ "lb.io/allowed-sources": sources.join(",") });
    }
    world.manifests.write("objects.yaml", &objects)?;
    until("the agent has heard what the pod asks for", || {
        let problems = problems_of(&world.sandbox.nodes()[0], pod)?;
        Ok((problems.len() == refused).then_some(()))
    })
}

/// The flag alone does nothing, nor the annotation; what is somebody else's is never given.
fn more_sources() -> Result<()> {
    const EAR: u16 = 9_410;
    const FLAG: &str = "--allow-pod-sources=0.0.0.0/0,::/0";

    let mut world = world(Shape::PLAIN)?;
    let node = &world.sandbox.nodes()[0];
    // What is told apart here is not for the kernel to judge by its routes.
    for setting in ["all".to_owned(), world.client().interface().to_owned()] {
        let path = format!("/proc/sys/net/ipv4/conf/{setting}/rp_filter");
        node.namespace()
            .run_blocking(move || fs::write(path, "0"))?;
    }
    let web = service("web", 10);
    let asked = Family::BOTH.map(|family| public_ip(200).get(family));
    let others = Family::BOTH.map(|family| {
        [
            world.pod("other").address(family),
            node.addresses().get(family),
            node.gateway().get(family),
            web.ip(family),
        ]
    });
    let all: Vec<IpAddr> = asked.into_iter().chain(others.concat()).collect();
    let ensure_heard = |world: &World, own: bool| {
        for source in &all {
            let heard = own && asked.contains(source);
            let is = is_heard(world, "client", *source, EAR)?;
            ensure!(
                is == heard,
                "a packet from {source}: heard {is}, asked by the pod: {own}"
            );
        }
        ensure!(
            !is_heard(world, "other", asked[0], EAR)?,
            "another pod has it too"
        );
        Ok(())
    };
    ask_for(&world, "client", &all, all.len())?;
    ensure_heard(&world, false)?;

    world.flag(FLAG);
    world.start_agents()?;
    until("others' addresses are refused", || {
        let problems = problems_of(&world.sandbox.nodes()[0], "client")?;
        Ok((problems.len() == all.len() - asked.len()).then_some(()))
    })?;
    ensure_heard(&world, true)?;
    // The next agent finds what this one wrote.
    for agent in &mut world.agents {
        agent.end(Signal::SIGKILL)?;
    }
    ensure_heard(&world, true)?;
    world.start_agents()?;
    ensure_heard(&world, true)?;

    ask_for(&world, "client", &[others[0][0]], 1)?;
    ensure_heard(&world, false)?;
    ask_for(&world, "client", &asked, 0)?;
    until("the pod may send so again", || {
        let heard = is_heard(&world, "client", asked[0], EAR)?;
        Ok(heard.then_some(()))
    })?;
    ask_for(&world, "client", &[], 0)?;
    until("the pod may not send so any more", || {
        let heard = is_heard(&world, "client", asked[0], EAR)?;
        Ok((!heard).then_some(()))
    })?;
    ensure_heard(&world, false)
}

/// Neither as another pod, nor as its node, nor as somebody outside.
fn spoofed() -> Result<()> {
    const TRAP: u16 = 9_400;

    let world = world(Shape::PLAIN)?;
    let (liar, victim) = (world.client(), world.pod("near"));
    for (number, family) in (0..).zip(Family::BOTH) {
        let own = liar.address(family);
        let trap = SocketAddr::new(victim.address(family), TRAP + number);
        let ear = victim.run(UdpSocket::bind(trap))?;
        let node = &world.sandbox.nodes()[0];
        let others = [
            world.pod("other").address(family),
            node.addresses().get(family),
            node.gateway().get(family),
            public_ip(1).get(family),
        ];
        for (source, heard) in others
            .map(|other| (other, false))
            .into_iter()
            .chain([(own, true)])
        {
            let packet = packet(SocketAddr::new(source, 4_800), trap, &[], b"boo\n")?;
            liar.run(async move { send_raw(&packet, trap) })?;
            let mut datagram = [0; 16];
            let listen = async { timeout(SILENCE, ear.recv(&mut datagram)).await };
            let is = victim.namespace().wait(listen).is_ok();
            ensure!(is == heard, "a packet from {source}: heard {is}");
        }
    }
    Ok(())
}

/// The verdict of audited policies is told, not enforced.
fn audited() -> Result<()> {
    let world = world(Shape::PLAIN)?;
    let [far, _] = ways(&world, Family::V4);
    let mut policy = closed("far");
    write(&world, &[policy.clone()])?;
    wait_until(world.client().client(), far, false)?;
    policy["metadata"]["annotations"] = json!({ "lb.io/policy-audit": "true" });
    write(&world, &[policy])?;
    wait_until(world.client().client(), far, true)?;
    ensure_reach(&world, &[("client", true), ("other", true)])
}

/// What a container runtime hears from the plugin, and how long that took.
struct Answer {
    well: bool,
    said: Value,
    took: Duration,
}

/// Calls the plugin as a container runtime does.
fn call(node: &Node, command: &str, pod: &str, addresses: &[IpAddr]) -> Result<Answer> {
    let ips: Vec<_> = addresses
        .iter()
        .map(|ip| json!({ "address": format!("{ip}/{}", if ip.is_ipv4() { 24 } else { 64 }) }))
        .collect();
    let config = json!({
        "cniVersion": "1.1.0",
        "name": "pods",
        "type": "lb",
        "socket": node.socket(),
        "prevResult": { "cniVersion": "1.1.0", "ips": ips },
    });
    let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}");
    let mut plugin = Command::new(program()?);
    plugin
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", pod)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", "/run/netns/pod")
        .env("CNI_ARGS", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let started = Instant::now();
    let mut plugin = node.namespace().start(plugin).context("start the plugin")?;
    let mut stdin = plugin.stdin.take().context("no stdin")?;
    stdin.write_all(config.to_string().as_bytes())?;
    drop(stdin);
    let output = plugin.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let said = match said.trim() {
        "" => Value::Null,
        said => serde_json::from_str(said).with_context(|| said.to_owned())?,
    };
    Ok(Answer {
        well: output.status.success(),
        said,
        took: started.elapsed(),
    })
}

/// The plugin returns when the pod's interface carries our programs and the pod's policy, although
/// the Pod object does not say the pod's addresses yet.
fn plugin() -> Result<()> {
    let mut world = world(Shape::PLAIN)?;
    let open = policy(
        "confines-late",
        "late",
        &json!({ "policyTypes": ["Egress", "Ingress"] }),
    );
    write(&world, &[open])?;
    for round in 0..3 {
        let name = format!("late-{round}");
        world.sandbox.add_pod(&name, 1)?;
        let objects = world.sandbox.objects();
        let of_pod = |object: &&mut Value| object["metadata"]["name"] == name.as_str();
        let mut objects = objects;
        let pod = objects.iter_mut().find(of_pod).context("a Pod")?;
        pod["status"] = json!({ "phase": "Pending" });
        world.manifests.write("objects.yaml", &objects)?;

        let node = &world.sandbox.nodes()[0];
        let pod = world.pod(&name);
        let addresses = pod.addresses().each();
        let Answer { well, said, took } = call(node, "ADD", &name, &addresses)?;
        ensure!(well, "after {took:?}: {said}");
        ensure!(
            said["ips"].as_array().is_some_and(|ips| ips.len() == 2),
            "{said}"
        );
        ensure_confined(&world, pod)?;
        ensure!(
            call(node, "CHECK", &name, &addresses)?.well,
            "the check fails"
        );
        ensure!(
            call(node, "DEL", &name, &addresses)?.well,
            "the pod cannot go"
        );
    }
    let node = &world.sandbox.nodes()[0];
    ensure!(call(node, "STATUS", "", &[])?.well, "no pod could be added");
    let unknown = call(node, "CHECK", "nobody", &world.client().addresses().each())?;
    ensure!(unknown.said["code"] == 11, "{}", unknown.said);
    Ok(())
}

fn ensure_confined(world: &World, pod: &Pod) -> Result<()> {
    for family in Family::BOTH {
        let near = SocketAddr::new(world.pod("near").address(family), TARGET);
        let is = answers(pod.client(), Protocol::Tcp, near);
        ensure!(!is, "{} reaches {near}", pod.name());
    }
    Ok(())
}

fn plugin_alone() -> Result<()> {
    let world = World::without_agent(Shape::PLAIN)?;
    let node = &world.sandbox.nodes()[0];
    let addresses = world.client().addresses().each();
    for (command, code) in [("ADD", 11), ("CHECK", 11), ("STATUS", 50)] {
        let Answer { well, said, took } = call(node, command, "client", &addresses)?;
        ensure!(!well && said["code"] == code, "{command}: {said}");
        ensure!(took < Duration::from_secs(10), "{command} took {took:?}");
    }
    ensure!(
        call(node, "DEL", "client", &addresses)?.well,
        "no pod can go"
    );
    Ok(())
}
