//! Builds the eBPF programs and leaves the object in `OUT_DIR`, from where `kernel::load` embeds it.

use std::{
    env,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

#[path = "build/toolchain.rs"]
mod toolchain;

/// Set in the second run of this script, the one that builds.
const TOOLCHAIN: &str = "LB_EBPF_TOOLCHAIN";

/// What a build needs beside `lb-ebpf`, whose folder aya-build names itself.
const INPUTS: [&str; 5] = [
    "build.rs",
    "build",
    "../lb-common",
    "../Cargo.toml",
    "../Cargo.lock",
];

fn main() {
    // An error that is only logged fails the build without cargo repeating all that was printed.
    if let Err(error) = run() {
        println!("cargo::error={error:#}");
    }
}

fn run() -> Result<()> {
    match env::var(TOOLCHAIN) {
        Ok(toolchain) => build(&toolchain),
        Err(_) => build_quietly(),
    }
}

/// Runs this script again as the builder, because aya-build reads `RUSTC_BOOTSTRAP` from the
/// environment and turns every line that cargo prints into a warning; only the warnings that the
/// compiler gave are let through.
fn build_quietly() -> Result<()> {
    for input in INPUTS {
        println!("cargo::rerun-if-changed={input}");
    }
    let (Some(compiler), Some(linker)) = (toolchain::compiler(), toolchain::linker()) else {
        anyhow::bail!("the eBPF toolchain is missing: `cargo xtask setup` installs it");
    };
    println!("cargo::rerun-if-changed={}", linker.display());

    let output = Command::new(env::current_exe().context("find this build script")?)
        .env(TOOLCHAIN, compiler)
        .env("RUSTC_BOOTSTRAP", "1")
        .stderr(Stdio::inherit())
        .output()
        .context("run this build script again")?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| !is_progress(line))
        .for_each(|line| println!("{line}"));
    Ok(())
}

fn build(toolchain: &str) -> Result<()> {
    let package = aya_build::Package {
        name: "lb-ebpf",
        root_dir: "../lb-ebpf",
        ..Default::default()
    };
    aya_build::build_ebpf([package], aya_build::Toolchain::Custom(toolchain)).map_err(|error| {
        // The whole command line of the inner cargo; `cargo build -vv` shows it.
        eprintln!("{error:#}");
        anyhow::anyhow!("the eBPF programs do not build: the warnings above say why")
    })
}

/// Whether the line is cargo saying what it does: a verb right-aligned in twelve columns.
fn is_progress(line: &str) -> bool {
    let Some(line) = line.strip_prefix("cargo:warning=") else {
        return false;
    };
    line.is_empty()
        || line.split_at_checked(12).is_some_and(|(verb, rest)| {
            let verb = verb.trim_start();
            verb.starts_with(|c: char| c.is_ascii_uppercase())
                && verb.chars().all(|c| c.is_ascii_alphabetic())
                && rest.starts_with(' ')
        })
}
