//! What things cost, each beside what it cannot cost less than. Nothing here passes or fails.
//! `docs/benchmarks.md` says how to read the numbers.

mod connect;
mod enforcement;
mod forwarding;
mod measure;
mod policies;
mod programs;
mod tc;
mod updates;
mod verdicts;
mod xdp;

use std::{env, fs, panic::resume_unwind, process::ExitCode, thread};

use anyhow::{Result, ensure};
use clap::Parser;
use lb_tests::sandbox::remove_on_signal;
use nix::{sys::utsname::uname, unistd::geteuid};
use serde_json::json;

use self::measure::Table;

/// A benchmark, and what it is called.
type Benchmark = (&'static str, fn() -> Result<Vec<Table>>);

const ALL: [Benchmark; 8] = [
    ("tc", tc::run),
    ("xdp", xdp::run),
    ("connect", connect::run),
    ("forwarding", forwarding::run),
    ("updates", updates::run),
    ("verdicts", verdicts::run),
    ("policies", policies::run),
    ("enforcement", enforcement::run),
];

/// Measures what things cost.
#[derive(Parser)]
struct Arguments {
    /// The benchmarks to run, of tc, xdp, connect, forwarding, updates, verdicts, policies and
    /// enforcement [default: all]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(geteuid().is_root(), "only root may load programs");
    remove_on_signal(130)?;
    for name in &arguments.names {
        ensure!(
            ALL.iter().any(|(known, _)| known == name),
            "there is no benchmark {name}"
        );
    }
    let wanted =
        |name: &str| arguments.names.is_empty() || arguments.names.iter().any(|n| n == name);

    let machine = machine()?;
    if !arguments.json {
        println!("{machine}");
    }
    let mut failed = false;
    let mut tables = Vec::new();
    for (name, run) in ALL.iter().filter(|(name, _)| wanted(name)) {
        // Each on a thread of its own, which it may take to another namespace.
        let measured = thread::spawn(*run).join();
        match measured.unwrap_or_else(|panic| resume_unwind(panic)) {
            Ok(measured) => {
                if !arguments.json {
                    measured.iter().for_each(|table| println!("\n{table}"));
                }
                tables.extend(measured);
            }
            Err(error) => {
                eprintln!("\n{name}: {error:#}");
                failed = true;
            }
        }
    }
    if arguments.json {
        println!("{:#}", json!({ "machine": machine, "tables": tables }));
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The machine, as far as it explains the numbers.
fn machine() -> Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let processors = info.lines().filter(|l| l.starts_with("processor")).count();
    let kernel = uname()?.release().to_string_lossy().into_owned();
    let kernel: Vec<_> = kernel.splitn(3, '.').take(2).collect();
    let hypervisor = info.contains(" hypervisor");
    Ok(format!(
        "{} with {processors} CPUs{}, Linux {}, programs of the {} profile",
        env::consts::ARCH,
        if hypervisor { ", virtual" } else { "" },
        kernel.join("."),
        if cfg!(debug_assertions) {
            "dev"
        } else {
            "release"
        },
    ))
}
