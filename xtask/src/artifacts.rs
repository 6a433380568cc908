//! What cargo builds, and where it puts it.

use std::{
    env,
    io::BufReader,
    process::{Command, Stdio},
};

use anyhow::Result;
use cargo_metadata::{Artifact, Message};

use crate::children;

/// A cargo command, by the cargo that runs us.
///
/// Without `--package`: then the features of dependencies are the same in every build, and none is
/// compiled twice.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand);
    // What the cargo that runs us says about this package. Build scripts look at some of it (ring's
    // does), and would run again after a build that was not started by us.
    for (name, _) in env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"CARGO_PKG_") || bytes.starts_with(b"CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs `command`, a `cargo build` or the like, and returns the executables it built; `None` when
/// something does not compile, which cargo has explained by then.
///
/// # Errors
///
/// When cargo cannot be run.
pub fn executables(mut command: Command) -> Result<Option<Vec<Artifact>>> {
    command
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped());
    let (status, artifacts) = children::run(command, |child| {
        let stdout = child.stdout.take().map(BufReader::new);
        stdout
            .into_iter()
            .flat_map(Message::parse_stream)
            .filter_map(|message| match message {
                Ok(Message::CompilerArtifact(artifact)) => Some(artifact),
                Ok(_) | Err(_) => None,
            })
            .filter(|artifact| artifact.executable.is_some())
            .collect()
    })?;
    Ok(status.success().then_some(artifacts))
}
