//! `cargo xtask run`: the demo in a sandbox, or the agent on this node against a real cluster.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    artifacts::{cargo, executables},
    children, root, setup,
};

/// Show a small cluster of network namespaces in which our programs balance the services.
///
/// Makes nodes, client and server pods, starts the agent with a directory of manifests, and shows
/// where connections go. Stays up until Ctrl-C, which removes it all: edit a manifest meanwhile and
/// see connections move.
///
/// Exits with 1 if something was not as it should be, which the output names.
///
/// Examples:
///   cargo xtask run                             one node
///   cargo xtask run --nodes 2 --topology bridge
///   cargo xtask run --kubeconfig ~/.kube/config this machine is a node of that cluster
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// How nodes reach their pods
    #[arg(long, default_value = "ptp")]
    topology: Topology,
    /// How many nodes there are
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// End when everything has been shown
    #[arg(long)]
    once: bool,
    /// Instead of all this, run the agent on this machine, a node of the cluster of this kubeconfig
    #[arg(long, value_name = "FILE", conflicts_with_all = ["topology", "nodes", "once"])]
    kubeconfig: Option<PathBuf>,
}

#[derive(Clone, clap::ValueEnum)]
enum Topology {
    /// A link for each pod
    Ptp,
    /// A bridge for all pods of a node
    Bridge,
    /// A link for each pod, and VXLAN between nodes
    Vxlan,
    /// A link for each pod, and tunnels without a link layer between nodes
    Tunnel,
}

/// Sets the machine up, builds, and runs the sandbox or the agent.
///
/// # Errors
///
/// When one of these cannot be done.
pub fn run(args: &Args) -> Result<ExitCode> {
    root::check("making network namespaces and loading eBPF programs")?;
    setup::ensure()?;
    let mut build = cargo("build");
    build.args(["--bin=lb", "--bin=sandbox"]);
    let Some(programs) = executables(build)? else {
        return Ok(ExitCode::FAILURE);
    };
    let program = |name: &str| {
        let found = programs.iter().find(|program| program.target.name == name);
        let executable = found.and_then(|program| program.executable.clone());
        executable.with_context(|| format!("cargo did not build {name}"))
    };
    match &args.kubeconfig {
        Some(kubeconfig) => agent(program("lb")?.as_std_path(), kubeconfig),
        None => sandbox(program("sandbox")?.as_std_path(), args),
    }
}

/// Becomes the sandbox, so that signals and its exit code need no passing on.
fn sandbox(program: &Path, args: &Args) -> Result<ExitCode> {
    let mut command = root::command(program);
    let topology = match args.topology {
        Topology::Ptp => "ptp",
        Topology::Bridge => "bridge",
        Topology::Vxlan => "vxlan",
        Topology::Tunnel => "tunnel",
    };
    command.args(["--topology", topology, "--nodes", &args.nodes.to_string()]);
    if args.once {
        command.arg("--once");
    }
    Err(command.exec()).context("run the sandbox")
}

/// Runs the agent until it is interrupted. What it attached stays.
fn agent(lb: &Path, kubeconfig: &Path) -> Result<ExitCode> {
    ensure!(
        kubeconfig.is_file(),
        "{} is not a file",
        kubeconfig.display()
    );
    println!(
        "The agent of this node follows the cluster of {}.",
        kubeconfig.display()
    );
    println!("Ctrl-C ends the agent; its programs stay attached and go on working.");
    let mut command = root::command(lb);
    command.arg("run").arg("--kubeconfig").arg(kubeconfig);
    match children::run(command, |_| ()) {
        Ok((status, ())) if !status.success() => Ok(ExitCode::FAILURE),
        // An interrupt is how this is meant to end.
        Ok(_) | Err(_) => {
            println!("\nThe programs stay attached. To remove every trace of them, as root:");
            println!("  {} cleanup", lb.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}
