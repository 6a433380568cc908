//! `cargo xtask test`: builds the tests as the caller, runs them layer by layer, as root where
//! they need it, and counts.

use std::{env, process::ExitCode, slice, time::Instant};

use anyhow::Result;
use clap::ValueEnum as _;

use self::{built::Built, layer::Layer, report::Report};
use crate::{root, setup};

mod built;
mod layer;
mod report;
pub mod suite;

/// Run the tests: all, those of one layer, or those of one layer whose names contain FILTER.
///
/// Installs what is missing first, as `setup` does. The last line says how many tests passed,
/// failed and were skipped. Exits with 1 if one failed, or if one was skipped and CI=true.
///
/// Examples:
///   cargo xtask test               everything
///   cargo xtask test pure          what needs no root
///   cargo xtask test net restart   the net tests with `restart` in their names
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    layer: Option<Layer>,
    /// A part of the names of the tests to run
    filter: Option<String>,
}

/// Runs the tests.
///
/// # Errors
///
/// When they cannot be run; failures of tests are in the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let layers = match &args.layer {
        Some(layer) => slice::from_ref(layer),
        None => Layer::value_variants(),
    };
    if layers.iter().any(|layer| layer.needs_root()) {
        root::check("running the tests with packets")?;
    }
    setup::ensure()?;
    let Some(built) = Built::build(args.layer)? else {
        return Ok(ExitCode::FAILURE);
    };

    let filter = args.filter.as_deref();
    let mut report = Report::default();
    for &layer in layers {
        let started = Instant::now();
        let counts = built.run(layer, filter, &mut report)?;
        report.layer(layer, counts, started.elapsed());
    }
    Ok(report.print(env::var_os("CI").is_some_and(|ci| ci == "true")))
}
