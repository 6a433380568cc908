//! What the other tests rely on: without any service proxy, everything in a sandbox that has an
//! address can be reached at it, and nothing of a sandbox stays behind.

use std::{
    env, fs,
    net::SocketAddr,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::demo::Cluster;
use lb_tests::sandbox::{
    Failure, Family, Namespace, Protocol, Sandbox, Topology, cluster_ip, outside_client,
    remove_on_signal,
};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> Result<ExitCode> {
    remove_on_signal(130)?;
    let mut trials = vec![
        Trial::test("nothing stays behind", || check(leaves_nothing())),
        Trial::test("what a dead process left goes", || check(dead_owner())),
        Trial::test("every node has a cgroup", || check(cgroups())),
        Trial::test(
            "the examples are what the demo writes",
            || check(examples()),
        ),
    ];
    for topology in Topology::ALL {
        for nodes in 1..=3 {
            let name = format!("plain connectivity {topology:?} {nodes} nodes");
            trials.push(Trial::test(name, move || check(plain(topology, nodes))));
            let name = format!("processes of nodes and clients outside {topology:?} {nodes} nodes");
            trials.push(Trial::test(name, move || check(hosts(topology, nodes))));
        }
    }
    Ok(libtest_mimic::run(&Arguments::from_args(), trials).exit_code())
}

/// What a killed process left goes when the next sandbox is built.
fn dead_owner() -> Result<()> {
    /// The kernel gives no process an id as high as this.
    const NOBODY: u32 = 1 << 22;

    let named = Path::new("/run/netns").join(format!("lb{NOBODY}-1-client"));
    let owned = Path::new("/run/lb-sandbox").join(NOBODY.to_string());
    fs::create_dir_all("/run/netns")?;
    fs::write(&named, "")?;
    fs::create_dir_all(owned.join("1/node-1/bpf"))?;
    Sandbox::builder().build()?;
    ensure!(
        !named.exists() && !owned.exists(),
        "{named:?} or {owned:?} stayed"
    );
    Ok(())
}

/// The files in `examples/` are those of the demo with one node; `UPDATE=1` writes them.
fn examples() -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for (file, content) in Cluster::create(Topology::PointToPoint, 1)?.files()? {
        let path = directory.join(file);
        if env::var_os("UPDATE").is_some() {
            fs::write(&path, &content)?;
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        ensure!(
            found == content,
            "{} is not what the demo writes",
            path.display()
        );
    }
    Ok(())
}

fn check(result: Result<()>) -> Result<(), Failed> {
    result.map_err(|error| format!("{error:#}").into())
}

fn plain(topology: Topology, nodes: u8) -> Result<()> {
    let sandbox = Sandbox::builder()
        .topology(topology)
        .nodes(nodes)
        .pod("client", 1)
        .pod("near", 1)
        .pod("far", nodes)
        .build()?;
    let client = sandbox.pod("client");
    for protocol in Protocol::BOTH {
        for name in ["client", "near", "far"] {
            sandbox.pod(name).serve(protocol, 8080)?;
        }
        for node in sandbox.nodes() {
            node.serve(node.name(), protocol, 9100)?;
        }
        for family in Family::BOTH {
            for name in ["client", "near", "far"] {
                let to = SocketAddr::new(sandbox.pod(name).address(family), 8080);
                let reply = client
                    .ask(protocol, to)
                    .with_context(|| format!("{protocol:?} {to}"))?;
                ensure!(reply.server == name, "{to} is {}", reply.server);
                ensure!(reply.from == to && reply.true_source(), "{reply:?}");
                let closed = SocketAddr::new(to.ip(), 8081);
                ensure!(
                    client.ask(protocol, closed) == Err(Failure::Refused),
                    "{closed} is open"
                );
            }
            for node in sandbox.nodes() {
                let to = SocketAddr::new(node.addresses().get(family), 9100);
                let reply = client
                    .ask(protocol, to)
                    .with_context(|| format!("{protocol:?} {to}"))?;
                ensure!(reply.server == node.name(), "{to} is {}", reply.server);
                let own = node.name() == client.node();
                ensure!(
                    reply.true_source() == own,
                    "masquerade is for other nodes: {reply:?}"
                );
            }
        }
    }
    let service = SocketAddr::new(cluster_ip(10).get(Family::V4), 80);
    ensure!(
        client.ask(Protocol::Udp, service) == Err(Failure::TimedOut),
        "who translates?"
    );
    Ok(())
}

/// Processes of a node reach all pods, clients outside reach nodes and what is routed to them, and
/// everybody sees who really asks.
fn hosts(topology: Topology, nodes: u8) -> Result<()> {
    let sandbox = Sandbox::builder()
        .topology(topology)
        .nodes(nodes)
        .pod("near", 1)
        .pod("far", nodes)
        .build()?;
    let node = &sandbox.nodes()[0];
    let last = &sandbox.nodes()[usize::from(nodes) - 1];
    let spare = last.add_spare_addresses()?;
    sandbox.route_outside(spare.networks(), node)?;
    sandbox.route_outside(spare.networks(), last)?;
    for protocol in Protocol::BOTH {
        for name in ["near", "far"] {
            sandbox.pod(name).serve(protocol, 8080)?;
        }
        for (port, address) in [(9100, last.addresses()), (9200, spare)] {
            last.serve_on(address, last.name(), protocol, port)?;
        }
        for family in Family::BOTH {
            for name in ["near", "far"] {
                let to = SocketAddr::new(sandbox.pod(name).address(family), 8080);
                let reply = node.ask(protocol, to).with_context(|| to.to_string())?;
                ensure!(reply.server == name && reply.true_source(), "{reply:?}");
            }
            for (port, address) in [(9100, last.addresses()), (9200, spare)] {
                let to = SocketAddr::new(address.get(family), port);
                let client = sandbox.outside_client(3);
                let reply = client.ask(protocol, to).with_context(|| to.to_string())?;
                let own = outside_client(3).get(family);
                ensure!(
                    reply.server == last.name() && reply.seen.ip() == own,
                    "{reply:?}"
                );
            }
        }
    }
    Ok(())
}

/// The cgroup of whoever a namespace runs.
fn cgroup_of(namespace: &Namespace) -> Result<String> {
    let process = namespace.run(async { fs::read_to_string("/proc/thread-self/cgroup") })?;
    let unified = process.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(unified.context("no cgroup of version 2")?.to_owned())
}

/// Every node has a cgroup, and its pods and processes are in it.
fn cgroups() -> Result<()> {
    let sandbox = Sandbox::builder().nodes(2).pod("client", 2).build()?;
    for node in sandbox.nodes() {
        let own = cgroup_of(node.namespace())?;
        ensure!(
            node.cgroup().ends_with(own.trim_start_matches('/')),
            "{own}"
        );
        let mut command = Command::new("cat");
        command.arg("/proc/self/cgroup").stdout(Stdio::piped());
        let output = node.namespace().start(command)?.wait_with_output()?;
        let process = String::from_utf8(output.stdout)?;
        ensure!(process.contains(&format!("0::{own}\n")), "{process}");
    }
    let pod = sandbox.pod("client");
    let within = cgroup_of(sandbox.nodes()[1].namespace())?;
    let own = cgroup_of(pod.namespace())?;
    ensure!(
        own.starts_with(&within) && own.ends_with(&pod.uid()),
        "{own}"
    );
    Ok(())
}

fn leaves_nothing() -> Result<()> {
    let sandbox = Sandbox::builder().pod("client", 1).build()?;
    let node = &sandbox.nodes()[0];
    let traces = [
        Path::new("/run/netns").join(node.namespace().name()),
        Path::new("/run/netns").join(sandbox.pod("client").namespace().name()),
        node.cgroup().to_owned(),
        sandbox.directory().to_owned(),
    ];
    ensure!(
        traces.iter().all(|path| path.exists()),
        "{traces:?} are expected"
    );
    drop(sandbox);
    ensure!(
        !traces.iter().any(|path| path.exists()),
        "one of {traces:?} stayed"
    );
    Ok(())
}
