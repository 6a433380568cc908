//! Builds the control plane from its Go modules, at the versions of `tests/control-plane/go.mod`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{self, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

pub const KUBERNETES: &str = "v1.36.3";
pub const ETCD_VERSION: &str = "v3.6.16";

const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/control-plane");
/// How often a build says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// A command that can be built.
pub struct Command {
    pub name: &'static str,
    version: &'static str,
    package: &'static str,
}

pub const ETCD: Command = Command {
    name: "etcd",
    version: ETCD_VERSION,
    package: "go.etcd.io/etcd/server/v3",
};
pub const APISERVER: Command = Command {
    name: "kube-apiserver",
    version: KUBERNETES,
    package: "k8s.io/kubernetes/cmd/kube-apiserver",
};
pub const CONTROLLER_MANAGER: Command = Command {
    name: "kube-controller-manager",
    version: KUBERNETES,
    package: "k8s.io/kubernetes/cmd/kube-controller-manager",
};
pub const KUBE_PROXY: Command = Command {
    name: "kube-proxy",
    version: KUBERNETES,
    package: "k8s.io/kubernetes/cmd/kube-proxy",
};

/// Builds a command into `folder`. A build that is cut short leaves nothing that could be taken
/// for its result.
pub fn build(command: &Command, folder: &Path) -> Result<PathBuf> {
    let Command {
        name,
        version,
        package,
    } = command;
    if process::Command::new("go")
        .arg("version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        bail!(
            "no {name} was found, and no `go` to build it with: install Go 1.26 or newer \
             (https://go.dev/dl), or point KUBEBUILDER_ASSETS at a folder with etcd, \
             kube-apiserver, kube-controller-manager and kube-proxy"
        );
    }
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let packages = packages(command)?;
    eprintln!("building {name} {version} from {packages} Go packages, once for this machine");

    let result = folder.join(name);
    let part = folder.join(format!(".{name}.{}", process::id()));
    let built = run(
        go(&["build", "-v", "-trimpath", "-ldflags", &linker_flags()])
            .arg("-o")
            .arg(&part)
            .arg(package),
        |done| format!("building {name}: {done} of {packages} packages"),
    );
    if let Err(error) = built {
        // The compiler may have died half-way; what it left is of no use, or does not exist.
        let _ = fs::remove_file(&part);
        return Err(error.context(format!("build {name} {version}")));
    }
    fs::rename(&part, &result).with_context(|| format!("create {}", result.display()))?;
    eprintln!("built {}", result.display());
    Ok(result)
}

/// How many packages a command consists of; also downloads them.
fn packages(command: &Command) -> Result<usize> {
    let Command { name, package, .. } = command;
    let list = run(&mut go(&["list", "-deps", package]), |done| {
        format!("downloading the sources of {name}: {done} modules")
    })
    .with_context(|| format!("download the sources of {name}"))?;
    Ok(list.lines().count())
}

fn go(arguments: &[&str]) -> process::Command {
    let mut go = process::Command::new("go");
    go.args(arguments)
        .current_dir(MODULE)
        .env("CGO_ENABLED", "0");
    go
}

/// The version that the programs say they are; without it they take themselves for v0.0.0.
fn linker_flags() -> String {
    let mut parts = KUBERNETES.trim_start_matches('v').split('.');
    let (major, minor) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let variable = "k8s.io/component-base/version";
    format!(
        "-s -w -X {variable}.gitVersion={KUBERNETES} -X {variable}.gitMajor={major} \
         -X {variable}.gitMinor={minor}"
    )
}

/// Runs a command that prints a line to stderr for each step, says now and then how many there
/// were, and returns what it printed to stdout.
fn run(command: &mut process::Command, progress: impl Fn(usize) -> String) -> Result<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start go")?;
    let stderr = child.stderr.take().context("no stderr")?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    let printed = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let last = follow(stderr, progress);
    let status = child.wait().context("wait for go")?;
    let text = printed
        .join()
        .ok()
        .context("the reader of stdout panicked")??;
    ensure!(status.success(), "go failed: {}", last.join(" "));
    Ok(text)
}

/// Counts lines and says so every now and then; returns the last ones, where an error stands.
fn follow(stderr: impl Read, progress: impl Fn(usize) -> String) -> Vec<String> {
    const KEPT: usize = 5;
    let start = Instant::now();
    let mut said = start;
    let mut last = Vec::new();
    for (done, line) in BufReader::new(stderr)
        .lines()
        .map_while(Result::ok)
        .enumerate()
    {
        if last.len() == KEPT {
            last.remove(0);
        }
        last.push(line);
        if said.elapsed() >= PROGRESS {
            eprintln!("{}, {} s", progress(done + 1), start.elapsed().as_secs());
            said = Instant::now();
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_module() {
        let module = include_str!("../../control-plane/go.mod");
        for requirement in [
            format!("k8s.io/kubernetes {KUBERNETES}"),
            format!("go.etcd.io/etcd/server/v3 {ETCD_VERSION}"),
        ] {
            assert!(module.contains(&requirement), "{requirement}");
        }
    }

    #[test]
    fn programs_are_told_their_version() {
        assert!(
            linker_flags().ends_with("gitMajor=1 -X k8s.io/component-base/version.gitMinor=36")
        );
    }

    #[test]
    fn a_failure_shows_the_last_lines() {
        let error = run(
            process::Command::new("sh").args(["-c", "echo out; echo cause >&2; exit 1"]),
            |_| String::new(),
        )
        .expect_err("it exits with 1");
        assert_eq!(error.to_string(), "go failed: cause");
    }

    #[test]
    fn what_is_printed_is_returned() -> Result<()> {
        let text = run(
            process::Command::new("sh").args(["-c", "echo a; echo b >&2; echo c"]),
            |_| String::new(),
        )?;
        assert_eq!(text, "a\nc\n");
        Ok(())
    }
}
