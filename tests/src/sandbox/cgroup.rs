//! A cgroup for each node, and below it one for each of its pods.
//!
//! Programs on a cgroup see every process below it, in whatever network namespace. Nodes and pods
//! are threads of one process here, which only threaded cgroups can tell apart.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use procfs::process::Process;

/// The threads in a cgroup, which a thread joins by writing 0.
const THREADS: &str = "cgroup.threads";

/// A cgroup. Goes, with those below it, when it is dropped.
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup below that of this process.
    pub(super) fn create(name: &str) -> Result<Self> {
        let path = own()?.join(name);
        make_threaded(&path)?;
        Ok(Self { path })
    }

    /// Makes a cgroup below this one; `path` may have several parts.
    pub(super) fn child(&self, path: &str) -> Result<Self> {
        let mut at = self.path.clone();
        for part in Path::new(path) {
            at.push(part);
            make_threaded(&at)?;
        }
        Ok(Self { path: at })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How a thread gets into it.
    pub(super) fn entrance(&self) -> PathBuf {
        self.path.join(THREADS)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Makes a threaded cgroup if it is not there.
fn make_threaded(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir(path)
        .and_then(|()| fs::write(path.join("cgroup.type"), "threaded"))
        .with_context(|| format!("make the cgroup {}", path.display()))
}

/// The cgroup of this process in the hierarchy of version 2, which a hybrid one has below its own.
pub(super) fn own() -> Result<PathBuf> {
    let process = Process::myself()?;
    let mounts = process.mountinfo()?;
    let mount = mounts
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2")
        .context("cgroup v2 is not mounted")?;
    let cgroups = process.cgroups()?;
    let own = cgroups
        .into_iter()
        .find(|cgroup| cgroup.hierarchy == 0)
        .context("this process has no cgroup of version 2")?;
    Ok(mount.mount_point.join(own.pathname.trim_start_matches('/')))
}

/// Removes a cgroup with those below it. Threads that are still in it move up.
pub(super) fn remove(path: &Path) {
    /// A thread that is just being started moves in the next round.
    const ROUNDS: u32 = 10;

    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&child.path());
        }
    }
    for _ in 0..ROUNDS {
        for thread in fs::read_to_string(path.join(THREADS))
            .iter()
            .flat_map(|t| t.lines())
        {
            // Fails where the thread has just ended.
            let _ = fs::write(path.join("..").join(THREADS), thread);
        }
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
    }
}
