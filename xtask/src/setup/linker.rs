//! bpf-linker, which turns the compiler's bitcode into one eBPF object.

use std::{env, process::Command};

use anyhow::{Result, bail};

use super::toolchain::{self, LLVM};
use crate::{children, progress::Steps};

const VERSION: &str = "0.13.0";

/// What building it needs.
pub const PACKAGES: [&str; 5] = [
    "g++",
    "libxml2-dev",
    "libzstd-dev",
    "llvm-22-dev",
    "zlib1g-dev",
];

/// Builds it from its crate, with LLVM linked in.
///
/// # Errors
///
/// When it does not build.
pub fn build(steps: &mut Steps) -> Result<()> {
    let mut step = steps.start(&format!("eBPF linker: build bpf-linker {VERSION}"));
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["install", "bpf-linker", "--locked", "--version", VERSION])
        .arg("--no-default-features")
        .arg(format!("--features=llvm-{LLVM},llvm-link-static"))
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"))
        // Says "Building [===>    ] 23/57: name" even to a pipe.
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", "80");
    let mut reason = String::new();
    let status = children::follow(command, |line| {
        if let Some((_, built)) = line
            .split_once("] ")
            .filter(|_| line.contains("Building ["))
        {
            step.at(&format!("crates {built}"));
        } else if line.starts_with("error") {
            reason = line.to_owned();
        }
    })?;
    if !status.success() || toolchain::linker().is_none() {
        bail!(
            "bpf-linker does not build ({reason}): `LLVM_PREFIX=/usr/lib/llvm-{LLVM} cargo \
             install bpf-linker --version {VERSION} --locked --no-default-features --features \
             llvm-{LLVM},llvm-link-static` shows why"
        );
    }
    step.end("done");
    Ok(())
}
