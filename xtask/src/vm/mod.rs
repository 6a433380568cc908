//! `cargo xtask vm-test`: the programs and a part of the tests on the kernels of Debian's releases,
//! each in a virtual machine.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::Artifact;
use clap::ValueEnum as _;

use self::{
    initramfs::Initramfs,
    jobs::Job,
    kernel::Kernel,
    machine::{Event, Machine},
};
use crate::{
    artifacts::{cargo, executables},
    children, setup,
};

mod initramfs;
mod jobs;
mod kernel;
mod machine;

/// Boot the kernels of Debian's releases and see that everything works on them.
///
/// On each kernel every program is loaded, and what it costs the verifier is compared with
/// `tests/limits.yaml`; the packet tests run, the tests of attaching, and connections through a
/// sandbox. With UPDATE=1 the limits are written anew instead.
///
/// Kernels come from Debian's mirror, signatures checked, once; removing their folder below
/// `~/.cache/lb-tests/kernels` fetches the newest. A machine is emulated where there is no KVM,
/// which takes about ten times as long.
///
/// Exits with 1 if something failed on some kernel.
///
/// Examples:
///   cargo xtask vm-test        all kernels
///   cargo xtask vm-test 5.10   the oldest that is supported
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The kernels to boot [default: all]
    kernels: Vec<Kernel>,
    /// Where Debian's packages are [default: where this machine has its own from]
    #[arg(long)]
    mirror: Option<String>,
    /// Show everything that the tests print
    #[arg(long)]
    verbose: bool,
}

/// Boots the kernels one after another.
///
/// # Errors
///
/// When something cannot be fetched, built or booted; failures of tests are in the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "only kernels and an emulator for x86-64 are known here"
    );
    setup::ensure()?;
    setup::ensure_virtual_machines()?;
    let mut build = cargo("build");
    build.args(["--bin=lb", "--bin=guest", "--tests"]);
    let Some(artifacts) = executables(build)? else {
        return Ok(ExitCode::FAILURE);
    };
    let built = Built::of(&artifacts)?;

    let kernels = if args.kernels.is_empty() {
        Kernel::value_variants()
    } else {
        &args.kernels
    };
    let mut well = true;
    for &kernel in kernels {
        well &= built.boot(kernel, args)?;
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Where this machine has its packages from.
fn own_mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)"]);
    let (_, said) = children::output(command)?;
    let said = String::from_utf8_lossy(&said);
    let mut mirrors = said.lines().filter(|mirror| !mirror.contains("security"));
    let mirror = mirrors
        .next()
        .context("apt has no sources: give --mirror URL")?;
    Ok(mirror.trim_end_matches('/').to_owned())
}

/// The executables that go into a machine.
struct Built {
    lb: PathBuf,
    guest: PathBuf,
    packet: PathBuf,
    net: PathBuf,
    /// The agent's unit tests, some of which need a kernel.
    userspace: PathBuf,
    limits: PathBuf,
}

impl Built {
    fn of(artifacts: &[Artifact]) -> Result<Self> {
        let find = |name: &str, test: bool| -> Result<PathBuf> {
            artifacts
                .iter()
                .find(|artifact| artifact.target.name == name && artifact.profile.test == test)
                .and_then(|artifact| artifact.executable.clone())
                .map(PathBuf::from)
                .with_context(|| format!("cargo did not build {name}"))
        };
        let tests = artifacts
            .iter()
            .find(|artifact| artifact.target.name == "packet")
            .and_then(|artifact| artifact.manifest_path.parent())
            .context("lb-tests has no test packet")?;
        Ok(Self {
            lb: find("lb", false)?,
            guest: find("guest", false)?,
            packet: find("packet", true)?,
            net: find("net", true)?,
            userspace: find("lb_userspace", true)?,
            limits: tests.join("limits.yaml").into(),
        })
    }

    /// Runs everything on one kernel and says how it went.
    fn boot(&self, kernel: Kernel, args: &Args) -> Result<bool> {
        let mirror = args.mirror.clone().map_or_else(own_mirror, Ok)?;
        let fetched = kernel.fetch(&mirror)?;
        let update = env::var_os("UPDATE").is_some();
        let jobs = jobs::of(kernel);
        let mut files = Initramfs::new()?;
        files.program(&self.guest, "/init")?;
        files.program(&self.lb, jobs::LB)?;
        files.program(&self.packet, jobs::PACKET)?;
        files.program(&self.net, jobs::NET)?;
        files.program(&self.userspace, jobs::USERSPACE)?;
        for (name, at) in jobs::TOOLS {
            let tool = setup::search(name).with_context(|| format!("there is no {name}"))?;
            files.program(&tool, at)?;
        }
        files.modules(&fetched)?;
        // Where the tests were built to look for it.
        let limits = self.limits.to_str().context("the path of limits.yaml")?;
        files.text(limits, &fs::read_to_string(limits)?)?;
        files.text("/jobs", &jobs.iter().map(Job::line).collect::<String>())?;
        files.text("/results", limits)?;

        println!("\n{}: {}", kernel.version(), fetched.release);
        let started = Instant::now();
        let machine = Machine {
            image: &fetched.image,
            initramfs: &files.write()?,
            update,
        };
        let mut report = jobs::Report::new(kernel.version(), jobs, args.verbose);
        let console = machine.run(|event| match event {
            Event::File(path, bytes) if update && path == limits => {
                fs::write(&path, bytes).with_context(|| format!("write {path}"))
            }
            event => {
                report.take(&event);
                Ok(())
            }
        })?;
        let well = report.end(&console);
        println!(
            "{:<6} {:.0?} in all, {}",
            kernel.version(),
            started.elapsed(),
            machine::how()
        );
        Ok(well)
    }
}
