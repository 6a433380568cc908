//! The compiler of the eBPF programs.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::toolchain;
use crate::{children, progress::Steps};

/// A nightly whose LLVM is the one that the linker is built with.
const NIGHTLY: &str = "nightly-2026-05-20";

/// Debian's compiler, kept recent in every release because Firefox is built with it.
pub const PACKAGES: [&str; 3] = ["cargo-web", "rust-web-src", "rustc-web"];

/// Fetches a nightly through rustup; false when that does not work here.
///
/// # Errors
///
/// When rustup cannot be run.
pub fn fetch(steps: &mut Steps) -> Result<bool> {
    let mut step = steps.start(&format!("eBPF compiler: fetch {NIGHTLY} through rustup"));
    let mut command = Command::new("timeout");
    command
        .args(["300", "rustup", "toolchain", "install", NIGHTLY])
        .args(["--profile", "minimal", "--component", "rust-src"])
        .arg("--no-self-update")
        .env("RUSTUP_DOWNLOAD_TIMEOUT", "15")
        .env("RUSTUP_MAX_RETRIES", "1");
    let status = children::follow(command, |line| {
        if let Some(info) = line.strip_prefix("info: ") {
            step.at(info);
        }
    })?;
    let fetched = status.success() && toolchain::compiler().is_some();
    step.end(if fetched {
        "done"
    } else {
        "not to be had here, so Debian's compiler is taken"
    });
    Ok(fetched)
}

/// Makes Debian's compiler known to rustup.
///
/// # Errors
///
/// When it is not able to build the eBPF programs.
pub fn link() -> Result<()> {
    Command::new("rustup")
        .args(["toolchain", "link", toolchain::DEBIAN_TOOLCHAIN, "/usr"])
        .output()
        .context("run rustup")?;
    ensure!(
        toolchain::compiler().is_some(),
        "Debian's rustc-web cannot build the eBPF programs here: `rustup toolchain install \
         {NIGHTLY} --component rust-src` gets a compiler that can"
    );
    Ok(())
}
