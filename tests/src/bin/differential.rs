//! What `cargo xtask differential` starts as root.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use lb_tests::{
    control_plane,
    differential::{self, Options},
    sandbox::remove_on_signal,
};

/// Compares a node that we run with one that kube-proxy runs, in random worlds
#[derive(Parser)]
struct Arguments {
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

fn main() -> Result<ExitCode> {
    let Arguments {
        seed,
        worlds,
        shrink,
    } = Arguments::parse();
    remove_on_signal(130)?;
    let options = Options {
        seed,
        worlds,
        shrinking: Duration::from_secs(shrink),
    };
    let reports = differential::run(control_plane::find()?, &options)?;
    if reports.is_empty() {
        println!("{worlds} worlds, no difference that is not meant");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} of {worlds} worlds show differences", reports.len());
    Ok(ExitCode::FAILURE)
}
