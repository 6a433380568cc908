//! A program of the control plane, with a log file.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::PATIENCE;
use crate::sandbox::{Namespace, tied};

/// A running program. Killed when it is dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program. What it prints is added to `<folder>/<name of the program>.log`.
    pub fn start(
        namespace: &Namespace,
        program: &Path,
        arguments: &[String],
        folder: &Path,
    ) -> Result<Self> {
        let name = program.file_name().context("no program")?.display();
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = tied(program);
        command
            .args(arguments)
            .stdout(file.try_clone()?)
            .stderr(file)
            .current_dir(folder);
        let child = namespace
            .start(command)
            .with_context(|| format!("start {name}"))?;
        Ok(Self { child, log })
    }

    /// Asks until there is an answer; an error if the program ends, or takes too long.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        mut answer: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            let error = match answer() {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "waiting until {what}: the program ended with {status}: {}",
                    self.last_line()
                );
            }
            if start.elapsed() > PATIENCE {
                return Err(error.context(format!(
                    "not seen within {} s: {what}; the log ends: {}",
                    PATIENCE.as_secs(),
                    self.last_line()
                )));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn last_line(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().last().unwrap_or("(empty)").to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
