//! How commands end: data on stdout, or a failure with its exit code.

use std::{
    fmt,
    io::{self, ErrorKind, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::Output;

/// Why a command ended without having done its work.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1: it failed, or what it was asked for is not there.
    Failed(anyhow::Error),
    /// Exit code 2: it was called wrongly, or what it was to compare cannot be.
    Usage(String),
    /// Exit code 3: no agent runs, and none left anything to answer from.
    NotRunning(String),
}

impl Failure {
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotRunning(_) => 3,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "{error:#}"),
            Self::Usage(text) | Self::NotRunning(text) => f.write_str(text),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Prints data in the form asked for.
pub fn print<T: Serialize>(
    output: Output,
    data: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<()> {
    let mut out = match output {
        Output::Text => text(data),
        Output::Json => serde_json::to_string_pretty(data).context("write JSON")?,
    };
    if !out.ends_with('\n') {
        out.push('\n');
    }
    match io::stdout().lock().write_all(out.as_bytes()) {
        // Whoever reads has seen enough, as in `lb dump | head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to stdout"),
    }
}
