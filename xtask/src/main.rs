//! `cargo xtask`: sets the machine up, runs the sandbox, runs the tests, compares with kube-proxy.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod artifacts;
mod bench;
mod children;
mod differential;
mod progress;
mod root;
mod run;
mod setup;
mod test;
mod vm;

/// Everything that this project needs doing on a developer's machine.
///
/// Builds run as you; installing packages, loading programs and making network namespaces is done
/// as root, through `sudo -n` where you are not root.
///
/// Exits with 0 if all went well, 1 if something that was run failed, 2 if it could not be run.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    Run(run::Args),
    Test(test::Args),
    VmTest(vm::Args),
    Bench(bench::Args),
    Differential(differential::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let outcome = children::forward_signals().and_then(|()| match command {
        Command::Setup(args) => setup::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Test(args) => test::run(&args),
        Command::VmTest(args) => vm::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Differential(args) => differential::run(&args),
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::from(2)
    })
}
