//! `cargo xtask bench`: what things cost.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{
    artifacts::{cargo, executables},
    children, root, setup,
};

/// Measure what things cost, each beside what it cannot cost less than.
///
/// Builds with optimisation. Nothing passes or fails; docs/benchmarks.md says what the numbers mean.
///
/// Examples:
///   cargo xtask bench              everything
///   cargo xtask bench tc xdp       what a packet costs at a hook
///   cargo xtask bench --json tc    for other programs to read
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The benchmarks to run: tc, xdp, connect, forwarding, updates, verdicts, policies,
    /// enforcement [default: all]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Builds and runs the benchmarks.
///
/// # Errors
///
/// When something cannot be built or run.
pub fn run(args: &Args) -> Result<ExitCode> {
    root::check("running benchmarks with packets")?;
    setup::ensure()?;
    let mut build = cargo("build");
    build.args([
        "--release",
        "--bin=lb",
        "--bin=control-plane",
        "--bench=bench",
    ]);
    let Some(programs) = executables(build)? else {
        return Ok(ExitCode::FAILURE);
    };
    let program = |name: &str| {
        let found = programs.iter().find(|program| program.target.name == name);
        let executable = found.and_then(|program| program.executable.clone());
        executable.with_context(|| format!("cargo did not build {name}"))
    };
    let mut command = root::command("env");
    let mut path = std::ffi::OsString::from("PATH=");
    let of_cluster = |name: &String| ["updates", "enforcement"].contains(&name.as_str());
    if args.names.is_empty() || args.names.iter().any(of_cluster) {
        let plane = std::process::Command::new(program("control-plane")?);
        let (status, folders) = children::output(plane)?;
        if status.success() {
            path.push(String::from_utf8_lossy(folders.trim_ascii_end()).as_ref());
            path.push(":");
        }
    }
    path.push(root::search_path());
    command.arg(path).arg(format!("LB={}", program("lb")?));
    command.arg(program("bench")?).args(&args.names);
    command.args(args.json.then_some("--json"));
    let (status, ()) = children::run(command, |_| ())?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
