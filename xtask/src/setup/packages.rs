//! Packages of the system, through apt.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail, ensure};

use super::toolchain;
use crate::{children, progress::Steps, root};

/// Programs, each with the packages it comes with.
pub type Programs = [(&'static str, &'static [&'static str])];

/// What builds and tests call.
pub const PROGRAMS: &Programs = &[
    ("bpftool", &["bpftool"]),
    ("nft", &["nftables"]),
    ("iptables", &["iptables"]),
    ("ipset", &["ipset"]),
];

/// What booting other kernels takes.
pub const VIRTUAL_MACHINES: &Programs = &[
    ("dpkg-deb", &["dpkg"]),
    ("modprobe", &["kmod"]),
    ("qemu-system-x86_64", &["qemu-system-x86"]),
    ("strip", &["binutils"]),
];

/// The packages of those programs that are not here, wherever they would have come from.
pub fn missing_programs(programs: &Programs) -> Vec<&'static str> {
    programs
        .iter()
        .filter(|(program, _)| search(program).is_none())
        .flat_map(|(_, packages)| packages.iter().copied())
        .collect()
}

/// Where `program` is.
pub fn search(program: &str) -> Option<PathBuf> {
    let administration = ["/usr/sbin", "/sbin"];
    toolchain::search(program).or_else(|| {
        // Not on the path of every user.
        let files = administration.map(|folder| Path::new(folder).join(program));
        files.into_iter().find(|file| file.is_file())
    })
}

/// Those of `names` that are not installed.
pub fn missing<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let installed = |name: &&&str| {
        Command::new("dpkg-query")
            .args(["--show", "--showformat", "${db:Status-Status}", name])
            .output()
            .is_ok_and(|output| output.stdout == b"installed")
    };
    names
        .iter()
        .filter(|name| !installed(name))
        .copied()
        .collect()
}

/// Installs the packages `names`.
///
/// # Errors
///
/// When there is no apt, no root, or no such package.
pub fn install(names: &[&str], steps: &mut Steps) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let list = names.join(" ");
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "there is no apt-get here: install what Debian calls {list} and try again"
    );
    root::check(&format!("installing {list}"))?;

    let mut step = steps.start(&format!("system packages: install {list}"));
    step.at("read the package lists");
    // Old lists may do; if not, it is the installation that says so.
    children::follow(apt_get(&["update"]), |_| ())?;
    let mut install = apt_get(&["install", "--yes", "--no-install-recommends"]);
    install.args(["-o", "APT::Status-Fd=1"]).args(names);
    let mut reason = String::new();
    let status = children::follow(install, |line| {
        if let Some(status) = line
            .strip_prefix("dlstatus:")
            .or(line.strip_prefix("pmstatus:"))
        {
            // "<package>:<percent>:<what>"
            let mut fields = status.splitn(3, ':').skip(1);
            if let (Some(percent), Some(what)) = (fields.next(), fields.next()) {
                let percent = percent.split('.').next().unwrap_or_default();
                step.at(&format!("{percent:>3} %  {what}"));
            }
        } else if let Some(error) = line.strip_prefix("E: ") {
            reason = error.to_owned();
        }
    })?;
    if !status.success() {
        bail!("apt-get cannot install {list}: {reason}");
    }
    step.end("done");
    Ok(())
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = root::command("env");
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get"])
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(args);
    command
}
