//! `cargo xtask differential`: random worlds through our node and through one of kube-proxy's.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    artifacts::{cargo, executables},
    children, root, setup,
};

/// Compare what clients see of a node that we run with what they see of one that kube-proxy runs.
///
/// Both follow one apiserver through random worlds of Services and EndpointSlices. Pods, host
/// processes and clients outside dial everything there is; who answers, whom that server saw, and
/// what is refused or dropped has to be the same, but for the meant differences that
/// docs/kube-proxy-parity.md lists. A world that shows another one is made as small as it still
/// shows it, and printed.
///
/// Exits with 1 if there was a difference that is not meant.
///
/// Examples:
///   cargo xtask differential                         20 worlds, from seed 1
///   cargo xtask differential --seed 700 --worlds 500
///   cargo xtask differential --seed 712 --worlds 1   the world of that seed again
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The seed of the first world; each further one has the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many worlds there are
    #[arg(long, default_value_t = 20)]
    worlds: u64,
    /// How many seconds to look for a smaller world that shows the same difference
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    shrink: u64,
}

/// Sets the machine up, builds, and compares.
///
/// # Errors
///
/// When one of these cannot be done.
pub fn run(args: &Args) -> Result<ExitCode> {
    root::check("making network namespaces and loading eBPF programs")?;
    setup::ensure()?;
    let mut build = cargo("build");
    build.args(["--bin=lb", "--bin=control-plane", "--bin=differential"]);
    let Some(programs) = executables(build)? else {
        return Ok(ExitCode::FAILURE);
    };
    let program = |name: &str| {
        let found = programs.iter().find(|program| program.target.name == name);
        let executable = found.and_then(|program| program.executable.clone());
        executable.with_context(|| format!("cargo did not build {name}"))
    };
    let finder = std::process::Command::new(program("control-plane")?);
    let (status, folders) = children::output(finder)?;
    if !status.success() {
        return Ok(ExitCode::FAILURE);
    }
    let mut path = OsString::from("PATH=");
    path.push(OsString::from_vec(folders.trim_ascii_end().to_vec()));
    path.push(":");
    path.push(root::search_path());

    let Args {
        seed,
        worlds,
        shrink,
    } = args;
    let mut command = root::command("env");
    command.arg(path).arg(program("differential")?);
    for (flag, value) in [("--seed", seed), ("--worlds", worlds), ("--shrink", shrink)] {
        command.arg(flag).arg(value.to_string());
    }
    let (status, ()) = children::run(command, |_| ())?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
