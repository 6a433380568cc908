//! The command `lb` as a process: what it prints, where, and how it ends.

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result};
use lb_userspace::{
    api::{self, Query},
    names::Names,
    render::FrontendType,
    status::{Agent, Frontend, Policy, Port, Service, Status},
};
use tempfile::TempDir;
use tokio::sync::mpsc;

const LB: &str = env!("CARGO_BIN_EXE_lb");

/// `lb` with these arguments and nothing else to go by.
fn lb(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(LB);
    command
        .args(arguments)
        .arg("--socket")
        .arg(directory.join("lb.sock"))
        .arg("--bpffs")
        .arg(directory)
        .env_clear()
        .stdin(Stdio::null());
    command
}

fn ends(directory: &Path, arguments: &[&str], code: i32) -> Result<Output> {
    let output = lb(directory, arguments).output()?;
    assert_eq!(
        output.status.code(),
        Some(code),
        "lb {arguments:?}: {output:?}"
    );
    Ok(output)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn service(name: String) -> Service {
    let port = Port {
        port: "http".to_owned(),
        protocol: "TCP".to_owned(),
        family: "IPv4".to_owned(),
        index: 1,
        revision: 7,
        frontends: vec![Frontend {
            address: ([10, 96, 0, 1], 80).into(),
            kind: FrontendType::ClusterIP,
        }],
        internal_traffic_policy: Policy::Cluster,
        external_traffic_policy: Policy::Cluster,
        affinity: None,
        source_ranges: vec![],
        backends: vec![([10, 0, 0, 1], 8080).into()],
        local_backends: vec![],
        draining: vec![],
        any_endpoints: true,
    };
    Service {
        service: name,
        ports: vec![port],
        versions: [].into(),
    }
}

/// An agent that knows 2,000 services: more than a pipe holds.
fn status() -> Status {
    Status {
        agent: Agent::Running {
            pid: 4711,
            version: "0.1.0".to_owned(),
            uptime_seconds: 1,
            node: "node-a".to_owned(),
            source: "a test".to_owned(),
            synced: vec![],
            awaited: vec![],
            cgroup_root: None,
            socket_lb: "host".to_owned(),
        },
        tables_at: "/t".into(),
        interfaces: vec![],
        services: (0..2_000)
            .map(|n| service(format!("ns-{}/web-{n}", n % 2)))
            .collect(),
        problems: vec![],
        tables: vec![],
        counters: [].into(),
    }
}

/// Serves in the background until the test ends.
async fn agent(directory: &Path) -> Result<()> {
    let (ask, mut asked) = mpsc::channel(1);
    tokio::spawn(api::serve(
        api::bind(&directory.join("lb.sock")).await?,
        ask,
    ));
    tokio::spawn(async move {
        while let Some(query) = asked.recv().await {
            // The client may have gone.
            match query {
                Query::Status(answer) => drop(answer.send(status())),
                Query::Names(answer) => drop(answer.send(Names::default())),
                Query::Drops(answer) => drop(answer.send(Vec::new())),
                Query::Policies(answer) => drop(answer.send(Vec::new())),
                Query::Explain(_, answer) => drop(answer.send(Err("no".to_owned()))),
                Query::Attachment(_, answer) => drop(answer.send(Ok(()))),
            }
        }
    });
    Ok(())
}

#[test]
fn wrong_usage_ends_with_2() -> Result<()> {
    let directory = TempDir::new()?;
    let output = ends(directory.path(), &["run"], 2)?;
    for source in [
        "--manifests",
        "--kubeconfig",
        "$KUBECONFIG",
        "service account",
    ] {
        assert!(stderr(&output).contains(source), "{output:?}");
    }
    ends(directory.path(), &["status", "--nonsense"], 2)?;
    ends(directory.path(), &["service", "get", "a/web", "-n", "b"], 2)?;
    Ok(())
}

#[test]
fn a_name_without_a_node_is_told_before_anything_is_touched() -> Result<()> {
    let directory = TempDir::new()?;
    let manifests = directory.path().join("manifests");
    std::fs::create_dir(&manifests)?;
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: worker-1}\n";
    std::fs::write(manifests.join("node.yaml"), node)?;
    let manifests = manifests.to_string_lossy();
    let arguments = ["run", "--node-name", "worker-2", "--manifests", &manifests];
    let output = ends(directory.path(), &arguments, 1)?;
    assert!(
        stderr(&output).contains("no Node worker-2: close names are worker-1"),
        "{output:?}"
    );
    assert_eq!(directory.path().read_dir()?.count(), 1);
    Ok(())
}

#[test]
fn with_nothing_to_answer_from_it_ends_with_3() -> Result<()> {
    let directory = TempDir::new()?;
    for arguments in [
        &["status"][..],
        &["service", "list"],
        &["service", "get", "web"],
        &["dump"],
        &["policy", "list"],
        &["policy", "get", "web"],
    ] {
        let output = ends(directory.path(), arguments, 3)?;
        assert!(
            stderr(&output).contains("the agent is not running"),
            "{output:?}"
        );
        assert!(output.stdout.is_empty());
    }
    Ok(())
}

#[test]
fn a_comparison_of_policies_ends_as_diff_does() -> Result<()> {
    let directory = TempDir::new()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n\
               spec: {nodeName: n1, containers: []}\nstatus: {podIPs: [{ip: 10.0.0.1}]}\n";
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                  metadata: {name: p}\nspec: {podSelector: {}}\n";
    let open = file("open.yaml", pod)?;
    let closed = file("closed.yaml", &format!("{pod}{policy}"))?;
    let broken = file("broken.yaml", &format!("{pod}---\n{{"))?;
    for (old, new, code) in [
        (&*open, &*open, 0),
        (&open, &closed, 1),
        (&open, &broken, 2),
        (&open, "/nowhere", 2),
    ] {
        for format in ["text", "json"] {
            let mut command = Command::new(LB);
            command
                .args(["policy", "diff", old, new, "-o", format])
                .env_clear();
            let output = command.output()?;
            assert_eq!(output.status.code(), Some(code), "{old} {new}: {output:?}");
            let told = stdout(&output).contains("NetworkPolicy default/p isolates for ingress");
            assert_eq!(told, code == 1, "{output:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_is_asked_where_one_runs() -> Result<()> {
    let directory = TempDir::new()?;
    let directory = directory.path();
    agent(directory).await?;

    let output = ends(directory, &["status"], 0)?;
    assert!(
        stdout(&output).contains("running as pid 4711"),
        "{output:?}"
    );
    let output = ends(directory, &["status", "-o", "json"], 0)?;
    assert_eq!(serde_json::from_slice::<Status>(&output.stdout)?, status());

    let output = ends(directory, &["service", "list", "-n", "ns-1"], 0)?;
    assert_eq!(stdout(&output).lines().count(), 1 + 1_000);
    let output = ends(directory, &["service", "list", "-o", "json"], 0)?;
    assert_eq!(
        serde_json::from_slice::<Vec<Service>>(&output.stdout)?.len(),
        2_000
    );

    let ways = [
        &["service", "get", "ns-1/web-7"][..],
        &["service", "get", "-n", "ns-1", "web-7"],
    ];
    for way in ways {
        let output = ends(directory, way, 0)?;
        assert!(stdout(&output).starts_with("ns-1/web-7\n"), "{output:?}");
        assert!(stdout(&output).contains("revision  7"), "{output:?}");
    }
    let output = ends(directory, &["service", "get", "ns-0/web-7"], 1)?;
    assert!(stderr(&output).contains("ns-0/web-7"), "{output:?}");

    let output = ends(directory, &["cleanup"], 1)?;
    assert!(
        stderr(&output).contains("pid 4711: stop it first"),
        "{output:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_is_no_error() -> Result<()> {
    let directory = TempDir::new()?;
    agent(directory.path()).await?;
    let mut command = lb(directory.path(), &["status"]);
    let mut process = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut out = process.stdout.take().context("a pipe")?;
    out.read_exact(&mut [0; 10])?;
    drop(out);
    let output = process.wait_with_output()?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stderr(&output), "");
    Ok(())
}
