//! Network namespaces, each with a thread that lives in it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::{AsRawFd as _, RawFd},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use tokio::{
    runtime::{self, Runtime},
    sync::oneshot,
    task::JoinHandle,
};

use super::cgroup::Cgroup;

/// Where `ip netns` looks for namespaces, so that a person can enter ours with it.
pub(super) const NAMED: &str = "/run/netns";

/// A network namespace. Goes when it is dropped.
///
/// Its thread runs a tokio runtime: every socket that a future opens there belongs to the
/// namespace, and any number of servers and clients cost no process.
pub struct Namespace {
    name: String,
    file: File,
    runtime: runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Namespace {
    /// Makes a namespace that `ip netns exec NAME` enters, with its threads and processes in a
    /// cgroup of their own where there is one.
    pub(super) fn create(name: &str, cgroup: Option<&Cgroup>) -> Result<Self> {
        let (ready, made) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let path = path(name);
        let entrance = cgroup.map(Cgroup::entrance);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || match enter_new(&path, entrance.as_deref()) {
                Ok((file, runtime)) => {
                    let sent = ready.send(Ok((file, runtime.handle().clone())));
                    if sent.is_ok() {
                        // An error means that the sender is gone, which ends the thread just so.
                        let _ = runtime.block_on(stopped);
                    }
                    runtime.shutdown_background();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .context("start a thread")?;
        let (file, runtime) = made
            .recv()
            .context("its thread died")?
            .with_context(|| format!("make the network namespace {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            file,
            runtime,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The name by which `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its descriptor, valid as long as `self`.
    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Starts a future in the namespace.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime.spawn(future)
    }

    /// Runs a future in the namespace and waits for what it gives. Panics where it does.
    ///
    /// Not to be called from a future: it blocks the thread.
    pub fn run<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match futures::executor::block_on(self.spawn(future)) {
            Ok(output) => output,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("{}: {error}", self.name),
            },
        }
    }

    /// Waits for a future that may borrow: one that uses sockets of the namespace, and opens none.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        let _timers = self.runtime.enter();
        futures::executor::block_on(future)
    }

    /// Runs what blocks, such as the sockets of [`std::net`], on a thread of its own in the
    /// namespace.
    pub fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        // A thread inherits the namespace of the thread that starts it.
        self.run(async {
            match tokio::task::spawn_blocking(work).await {
                Ok(output) => output,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        })
    }

    /// Starts a process in the namespace.
    pub fn start(&self, mut command: Command) -> io::Result<Child> {
        self.run(async move { command.spawn() })
    }

    /// Writes a setting of the namespace: a path below `/proc/sys/net`.
    pub fn set(&self, setting: &'static str, value: &'static str) -> Result<()> {
        self.run(async move {
            fs::write(Path::new("/proc/sys/net").join(setting), value)
                .with_context(|| format!("set net/{setting} to {value}"))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it has been reported when it happened.
            let _ = thread.join();
        }
        remove(&path(&self.name));
    }
}

/// A command that is killed when the thread that starts it ends, and so with the namespace or with
/// this process, however that happens.
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Removes the name of a namespace; the namespace itself goes with its last thread and socket.
pub(super) fn remove(path: &Path) {
    // Both fail only where there is nothing to remove.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

fn path(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// Moves this thread into a new namespace and gives that a name, and into a cgroup.
fn enter_new(path: &Path, cgroup: Option<&Path>) -> Result<(File, Runtime)> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare (root is needed)")?;
    if let Some(cgroup) = cgroup {
        fs::write(cgroup, "0").with_context(|| format!("join by {}", cgroup.display()))?;
    }
    fs::create_dir_all(NAMED)?;
    File::create_new(path).with_context(|| format!("create {}", path.display()))?;
    let own = Path::new("/proc/thread-self/ns/net");
    mount(
        Some(own),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("mount on {}", path.display()))?;
    for scope in ["all", "default"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0")?;
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok((File::open(path)?, runtime))
}
