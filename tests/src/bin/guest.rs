//! The first process of the machines that `cargo xtask vm-test` boots: makes the system ready, runs
//! the programs that `/jobs` lists, and says on the second serial port what came of them.
//!
//! Beside what the programs print, the port carries `begin NAME` and `end NAME CODE` around each,
//! and at the end `file PATH LENGTH` before the bytes of each file that `/results` names.

use std::{
    fs::{self, File},
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr},
    },
    unistd::sync,
};

/// What a line of ours begins with.
const OURS: &str = "\u{1}";

fn main() -> Result<()> {
    let outcome = run();
    if let Err(error) = &outcome {
        // To the console, which the host shows when a machine dies.
        eprintln!("guest: {error:#}");
    }
    sync();
    reboot(RebootMode::RB_POWER_OFF)?;
    Ok(())
}

fn run() -> Result<()> {
    for (kind, place) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        fs::create_dir_all(place).with_context(|| format!("make the directory {place}"))?;
        mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount {kind} on {place}"))?;
    }
    let mut port = File::options()
        .write(true)
        .open("/dev/ttyS1")
        .context("open the second serial port")?;
    let mut settings = tcgetattr(&port).context("look at the serial port")?;
    // Every byte as it is, line ends included.
    cfmakeraw(&mut settings);
    tcsetattr(&port, SetArg::TCSANOW, &settings).context("set the serial port up")?;
    let jobs = fs::read_to_string("/jobs").context("read the list of jobs")?;
    for job in jobs.lines() {
        let mut words = job.split('\t');
        let (Some(name), Some(program)) = (words.next(), words.next()) else {
            continue;
        };
        writeln!(port, "{OURS}begin {name}")?;
        let status = Command::new(program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(port.try_clone()?)
            .stderr(port.try_clone()?)
            .status()
            .with_context(|| format!("run {program}"))?;
        let code = status.code().unwrap_or(-1);
        writeln!(port, "{OURS}end {name} {code}")?;
    }
    let results = fs::read_to_string("/results").context("read the list of results")?;
    for path in results.lines() {
        let bytes = fs::read(path).with_context(|| format!("read {path}"))?;
        writeln!(port, "{OURS}file {path} {}", bytes.len())?;
        port.write_all(&bytes)?;
    }
    // What has not been sent yet is lost when the machine is turned off.
    tcdrain(&port).context("send the results")
}
