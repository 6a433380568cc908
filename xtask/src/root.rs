//! Running something as root: directly, or through `sudo -n`, which never asks.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};
use nix::unistd::Uid;

/// A command that runs `program` as root with the caller's environment.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    if Uid::effective().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    // sudo puts its own PATH in place of the caller's, even with -E.
    let mut path = OsString::from("PATH=");
    path.push(search_path());
    command.args(["-n", "-E", "--", "env"]).arg(path);
    command.arg(program);
    command
}

/// The caller's search path, and where programs for root are.
pub fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Checks that [`command`] will work, to `what` end.
///
/// # Errors
///
/// When the caller is not root and sudo would ask or refuse.
pub fn check(what: &str) -> Result<()> {
    let allowed = || {
        Command::new("sudo")
            .args(["-n", "true"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    ensure!(
        Uid::effective().is_root() || allowed(),
        "{what} needs root: run this as root, or let `sudo -n` work for you"
    );
    Ok(())
}

/// Ends the process `pid`, which [`command`] may have started.
pub fn terminate(pid: u32) {
    // The shell's own: the program is not on every machine.
    let mut kill = command("sh");
    kill.args(["-c", &format!("kill -TERM {pid}")])
        // sudo does not pass on a signal that comes from its own group.
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Fails when the process is gone, which is as good.
    let _gone = kill.status();
}
