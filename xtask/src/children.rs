//! The one child that runs at a time, and what a signal does to it.

use std::{
    io::{self, BufRead as _, BufReader, Read as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};

use crate::root;

/// The running child, 0 for none.
static RUNNING: AtomicU32 = AtomicU32::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP end the running child, and us only when it has ended.
///
/// # Errors
///
/// When the handler cannot be installed.
pub fn forward_signals() -> Result<()> {
    ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::SeqCst);
        match RUNNING.load(Ordering::SeqCst) {
            0 => {}
            pid => root::terminate(pid),
        }
    })
    .context("handle signals")
}

/// Runs `command` to its end while `watch` reads what it says.
///
/// # Errors
///
/// When the command cannot be run, or a signal told us to stop.
pub fn run<T>(
    mut command: Command,
    watch: impl FnOnce(&mut Child) -> T,
) -> Result<(ExitStatus, T)> {
    let program = command.get_program().to_owned();
    let mut child = command
        .spawn()
        .with_context(|| format!("run {}", program.display()))?;
    // It holds our copies of the pipes that `watch` reads to their end.
    drop(command);
    RUNNING.store(child.id(), Ordering::SeqCst);
    let watched = watch(&mut child);
    let status = child.wait();
    RUNNING.store(0, Ordering::SeqCst);
    ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
    let status = status.with_context(|| format!("wait for {}", program.display()))?;
    Ok((status, watched))
}

/// Runs `command` and gives `line` every line it writes, to either output; a carriage return ends
/// a line too.
///
/// # Errors
///
/// As [`run`].
pub fn follow(mut command: Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let (reader, writer) = io::pipe().context("make a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("copy a pipe")?)
        .stderr(writer);
    let (status, ()) = run(command, |_| {
        let chunks = BufReader::new(reader).split(b'\n').map_while(Result::ok);
        for chunk in chunks {
            for part in chunk.split(|&byte| byte == b'\r') {
                line(String::from_utf8_lossy(part).trim());
            }
        }
    })?;
    Ok(status)
}

/// Runs `command` and returns what it prints to its standard output.
///
/// # Errors
///
/// As [`run`].
pub fn output(mut command: Command) -> Result<(ExitStatus, Vec<u8>)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let (status, printed) = run(command, |child| {
        let mut printed = Vec::new();
        let mut stdout = child.stdout.take();
        stdout
            .as_mut()
            .map_or(Ok(0), |stdout| stdout.read_to_end(&mut printed))
            .map(|_| printed)
    })?;
    Ok((status, printed.context("read what a command prints")?))
}
