//! `cargo xtask setup`: looks for everything that builds and tests need, and installs what is
//! missing. What is there is found by looking, never by remembering an earlier run.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::progress::Steps;

pub use packages::search;

mod compiler;
mod linker;
mod packages;
#[path = "../../../lb-userspace/build/toolchain.rs"]
mod toolchain;

/// Install what this machine lacks: an eBPF compiler and linker, system packages.
///
/// `run` and `test` do this by themselves. A second time it installs nothing.
#[derive(clap::Args)]
pub struct Args {}

/// Sets the machine up and says with what.
///
/// # Errors
///
/// As [`ensure`].
pub fn run(_args: &Args) -> Result<ExitCode> {
    ensure()?;
    if let (Some(compiler), Some(linker)) = (toolchain::compiler(), toolchain::linker()) {
        println!(
            "ready: eBPF compiler `{compiler}`, linker {}",
            linker.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing; silent when nothing is.
///
/// # Errors
///
/// One sentence on what cannot be installed, and how to get it.
pub fn ensure() -> Result<()> {
    let compiler = toolchain::compiler().is_none();
    let linker = toolchain::linker().is_none();
    let mut names = packages::missing_programs(packages::PROGRAMS);
    if linker {
        names.extend(linker::PACKAGES);
    }
    let mut steps = Steps::new(&[
        compiler,
        compiler || !packages::missing(&names).is_empty(),
        linker,
    ]);

    ensure!(
        !(compiler || linker) || toolchain::search("rustup").is_some(),
        "rustup is missing: https://rustup.rs says how to get it"
    );
    let from_debian = compiler && !compiler::fetch(&mut steps)?;
    if from_debian {
        names.extend(compiler::PACKAGES);
    }
    packages::install(&packages::missing(&names), &mut steps)?;
    if from_debian {
        compiler::link()?;
    }
    if linker {
        linker::build(&mut steps)?;
    }
    Ok(())
}

/// Installs what booting other kernels takes; silent when nothing is missing.
///
/// # Errors
///
/// As [`ensure`].
pub fn ensure_virtual_machines() -> Result<()> {
    let mut names = packages::missing_programs(packages::VIRTUAL_MACHINES);
    names.push("debian-archive-keyring");
    let missing = packages::missing(&names);
    packages::install(&missing, &mut Steps::new(&[!missing.is_empty()]))
}
