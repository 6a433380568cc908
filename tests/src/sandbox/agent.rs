//! The agent of a node, as a process.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::status::Status;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{namespace::tied, node::Node};

/// How long something that the agent does may take on a busy machine. Where that is an emulated one,
/// `LB_TESTS_SLOWER` says by what factor.
fn soon() -> Duration {
    let slower = env::var("LB_TESTS_SLOWER").ok();
    Duration::from_secs(20) * slower.and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// The command `lb`: `$LB`, or what stands in the build directory beside this program.
pub fn program() -> Result<PathBuf> {
    if let Some(program) = env::var_os("LB") {
        return Ok(program.into());
    }
    let own = env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("lb"))
        .find(|program| program.is_file())
        .context("`lb` is not built: run `cargo build -p lb-userspace`, or set LB to its path")
}

/// `lb run` on a node. Killed when it is dropped; what it pinned stays.
pub struct Agent {
    process: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts it on a directory of manifests; the flags come after those that say where things are.
    pub fn start<I>(node: &Node, manifests: &Path, flags: I) -> Result<Self>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        Self::follow(node, "--manifests", manifests, flags)
    }

    /// Starts it on what a file or directory says, which `source` is the flag for.
    pub fn follow<I>(node: &Node, source: &str, at: &Path, flags: I) -> Result<Self>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let mut command = tied(program()?);
        command
            .args(["run", "--node-name", node.name(), source])
            .arg(at)
            .args(flags);
        Self::spawn(node, command)
    }

    /// Starts it as its DaemonSet does: what it needs to know is in the environment and in a directory
    /// that it sees as `/var/run`. Of what else is there it sees the node's directory.
    pub fn in_container<'a>(
        node: &Node,
        run: &Path,
        environment: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self> {
        const ENTER: &str = r#"mount --rbind "$1" /mnt && mount --bind "$0" /var/run &&
            mkdir -p "$1" && mount --rbind /mnt "$1" && shift && exec "$@""#;
        let mut command = tied("unshare");
        command
            .args(["--mount", "sh", "-c", ENTER])
            .args([run, node.directory(), &program()?, Path::new("run")])
            .env("NODE_NAME", node.name())
            .envs(environment);
        Self::spawn(node, command)
    }

    fn spawn(node: &Node, mut command: Command) -> Result<Self> {
        let log = node.directory().join("lb.log");
        command
            .args(places(node))
            .arg("--cgroup-root")
            .arg(node.cgroup())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log)?);
        let process = node.namespace().start(command).context("start lb")?;
        Ok(Self { process, log })
    }

    /// Sends a signal and waits until the process has ended.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.process.id().try_into()?), signal)?;
        let status = until("the agent ends", || Ok(self.process.try_wait()?))?;
        Ok(status)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Node {
    /// Runs `lb` with `arguments` on the node and waits for its end.
    pub fn lb(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program()?);
        command
            .args(arguments)
            .args(places(self))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(self.namespace().start(command)?.wait_with_output()?)
    }

    /// What `lb status` says.
    pub fn status(&self) -> Result<Status> {
        let output = self.lb(&["status", "-o", "json"])?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("read the answer of `lb status`")
    }

    /// Waits until `lb status` says that `condition` holds.
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Result<Status> {
        let mut last = None;
        until(what, || {
            let status = self.status();
            let found = status
                .as_ref()
                .is_ok_and(&condition)
                .then(|| status.as_ref().ok().cloned());
            last = Some(status);
            Ok(found.flatten())
        })
        .with_context(|| match last {
            Some(Ok(status)) => format!("{status}"),
            Some(Err(error)) => format!("{error:#}"),
            None => String::new(),
        })
    }
}

/// The flags that say where a node's agent keeps things.
fn places(node: &Node) -> Vec<std::ffi::OsString> {
    vec![
        "--bpffs".into(),
        node.bpffs().into(),
        "--socket".into(),
        node.socket().into(),
    ]
}

/// Asks again and again until there is an answer.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let (started, soon) = (Instant::now(), soon());
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed() > soon {
            bail!("waited {} s in vain: {what}", soon.as_secs());
        }
        thread::sleep(Duration::from_millis(10));
    }
}
