//! One test executable, and the count of what became of its tests.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Read, Write as _},
    ops::AddAssign,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result};
use cargo_metadata::Artifact;

use super::layer::Layer;
use crate::{children, root};

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

impl Counts {
    pub fn skipped(skipped: u32) -> Self {
        Self {
            skipped,
            ..Self::default()
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        let Self {
            passed,
            failed,
            skipped,
        } = other;
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }
}

/// A test executable.
pub struct Suite {
    pub layer: Layer,
    pub name: String,
    executable: PathBuf,
    /// Where `cargo test` would run it.
    folder: PathBuf,
}

impl Suite {
    pub fn of(artifact: Artifact) -> Option<Self> {
        let layer = Layer::of(&artifact);
        let folder = artifact.manifest_path.parent()?;
        let package = folder.file_name()?;
        Some(Self {
            layer,
            name: format!("{package}/{}", artifact.target.name),
            folder: folder.into(),
            executable: artifact.executable?.into(),
        })
    }

    /// Runs the tests whose names contain `filter`, with `path` as search path.
    pub fn run(&self, filter: Option<&str>, path: &OsString) -> Result<Counts> {
        let mut command = if self.layer.needs_root() {
            root::command("env")
        } else {
            Command::new("env")
        };
        self.complete(&mut command, filter, path);
        run(command)
    }

    /// As [`Self::run`], but those tests of a suite without root that are `#[ignore]`d because
    /// they need it.
    pub fn run_as_root(&self, filter: Option<&str>, path: &OsString) -> Result<Counts> {
        let mut command = root::command("env");
        self.complete(&mut command, filter, path);
        command.arg("--ignored");
        run(command)
    }

    /// Gives `env` what it is to run.
    fn complete(&self, env: &mut Command, filter: Option<&str>, path: &OsString) {
        let mut assignment = OsString::from("PATH=");
        assignment.push(path);
        env.arg(assignment).arg(&self.executable).args(filter);
        if io::stdout().is_terminal() {
            env.arg("--color=always");
        }
        env.current_dir(&self.folder);
    }

    /// How many tests have names that contain `filter`; only those that are `#[ignore]`d with
    /// `ignored`.
    pub fn count(&self, filter: Option<&str>, ignored: bool) -> Result<u32> {
        let mut command = Command::new(&self.executable);
        command.arg("--list").args(filter);
        command.args(ignored.then_some("--ignored"));
        command.current_dir(&self.folder);
        let output = command
            .output()
            .with_context(|| format!("list the tests of {}", self.name))?;
        let listed = String::from_utf8_lossy(&output.stdout);
        let tests = listed.lines().filter(|line| line.ends_with(": test"));
        Ok(u32::try_from(tests.count()).unwrap_or(u32::MAX))
    }
}

/// Runs something that speaks as Rust's test harness does, and shows what it says.
pub fn run(mut command: Command) -> Result<Counts> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let (status, said) = children::run(command, |child| child.stdout.take().map(show))?;
    let said = said
        .transpose()
        .context("read what the tests say")?
        .unwrap_or_default();
    Ok(judge(status, &String::from_utf8_lossy(&said)))
}

/// Copies to our output as it comes, because a harness names a test before it runs it.
fn show(mut stdout: impl Read) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stdout.read(&mut chunk)?;
        if read == 0 {
            return Ok(said);
        }
        io::stdout().write_all(&chunk[..read])?;
        io::stdout().flush()?;
        said.extend_from_slice(&chunk[..read]);
    }
}

/// Sums up the closing lines. A suite that fails without saying so counts as one failure.
pub fn judge(status: ExitStatus, said: &str) -> Counts {
    let mut counts = Counts::default();
    let mut closed = false;
    for line in said.lines().filter_map(closing_line) {
        closed = true;
        counts += line;
    }
    if !closed || (!status.success() && counts.failed == 0) {
        println!("the tests ended early ({status})");
        counts.failed += 1;
    }
    counts
}

/// Reads `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; …`.
fn closing_line(line: &str) -> Option<Counts> {
    let (_, result) = line.split_once("test result: ")?;
    let number = |what: &str| {
        result
            .split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(what)?.trim_end().parse().ok())
    };
    Some(Counts {
        passed: number("passed")?,
        failed: number("failed")?,
        skipped: number("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    const OK: &str = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; \
                      finished in 0.02s";
    const COLOURED: &str = "test result: \u{1b}[31mFAILED\u{1b}[0m. 4 passed; 2 failed; 0 ignored; \
                            0 measured; 0 filtered out; finished in 1.50s";

    fn counts(passed: u32, failed: u32, skipped: u32) -> Counts {
        Counts {
            passed,
            failed,
            skipped,
        }
    }

    #[test]
    fn closing_lines_are_read_with_and_without_colour() {
        assert_eq!(closing_line(OK), Some(counts(12, 0, 1)));
        assert_eq!(closing_line(COLOURED), Some(counts(4, 2, 0)));
        assert_eq!(closing_line("test result_is_kept ... ok"), None);
    }

    #[test]
    fn several_suites_add_up() {
        let said = format!("running 13 tests\n{OK}\n\nrunning 6 tests\n{COLOURED}\n");
        assert_eq!(
            judge(ExitStatus::from_raw(101 << 8), &said),
            counts(16, 2, 1)
        );
    }

    #[test]
    fn ending_early_is_a_failure() {
        let killed = ExitStatus::from_raw(9);
        assert_eq!(judge(killed, "running 13 tests\n"), counts(0, 1, 0));
        assert_eq!(judge(killed, OK), counts(12, 1, 1));
        assert_eq!(judge(ExitStatus::default(), ""), counts(0, 1, 0));
    }
}
