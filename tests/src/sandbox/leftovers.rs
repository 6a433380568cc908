//! Whatever a sandbox leaves outside of its own memory, and how it goes.
//!
//! All of it carries the process id: the names of namespaces and cgroups, and one directory per
//! process.

use std::{
    fs,
    path::{Path, PathBuf},
    process, thread,
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};
use tokio::signal::unix::{SignalKind, signal};

use super::{cgroup, namespace};

/// One directory per process that has sandboxes.
const DIRECTORIES: &str = "/run/lb-sandbox";

/// Removes this process's sandboxes and exits with `code` when it is interrupted, terminated or hung
/// up. For processes that have nothing else to do on these signals.
pub fn remove_on_signal(code: i32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let wait = move || {
        let waited = runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let mut hangup = signal(SignalKind::hangup())?;
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
                _ = hangup.recv() => (),
            }
            anyhow::Ok(())
        });
        if waited.is_ok() {
            remove(process::id());
            process::exit(code);
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .context("start a thread")?;
    Ok(())
}

/// What the names of a process's namespaces begin with.
pub(super) fn prefix(pid: u32) -> String {
    format!("lb{pid}-")
}

/// The directory of a process.
pub(super) fn directory(pid: u32) -> PathBuf {
    Path::new(DIRECTORIES).join(pid.to_string())
}

/// Removes what dead processes have left.
pub(super) fn remove_dead() {
    let cgroups = cgroup::own().map(entries).into_iter().flatten();
    let named = entries(namespace::NAMED).chain(cgroups).filter_map(|name| {
        let (pid, _) = name.strip_prefix("lb")?.split_once('-')?;
        pid.parse().ok()
    });
    let owners = entries(DIRECTORIES).filter_map(|name| name.parse().ok());
    for pid in named.chain(owners) {
        if !Path::new("/proc").join(u32::to_string(&pid)).exists() {
            remove(pid);
        }
    }
}

/// Removes what a process has left: names of namespaces, cgroups, bpf file systems, files.
fn remove(pid: u32) {
    let prefix = prefix(pid);
    for name in entries(namespace::NAMED).filter(|name| name.starts_with(&prefix)) {
        namespace::remove(&Path::new(namespace::NAMED).join(name));
    }
    if let Ok(cgroups) = cgroup::own() {
        for name in entries(&cgroups).filter(|name| name.starts_with(&prefix)) {
            cgroup::remove(&cgroups.join(name));
        }
    }
    let directory = directory(pid);
    for sandbox in entries(&directory) {
        remove_sandbox(&directory.join(sandbox));
    }
    remove_owner(pid);
}

/// Removes the directory of a process if it has no sandbox any more.
pub(super) fn remove_owner(pid: u32) {
    let _ = fs::remove_dir(directory(pid));
}

/// Removes the directory of a sandbox, in which `NODE/bpf` may be a bpf file system.
pub(super) fn remove_sandbox(directory: &Path) {
    for node in entries(directory) {
        // Fails where nothing is mounted.
        let _ = umount2(&directory.join(node).join("bpf"), MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(directory);
}

fn entries(directory: impl AsRef<Path>) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}
