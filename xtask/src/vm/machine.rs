//! A virtual machine, and what its first process tells us over a serial port.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::children;

/// A machine that runs longer hangs. Emulation is slow.
const PATIENCE_SECONDS: &str = "3600";

/// What a line of the first process begins with.
const OURS: u8 = 1;

/// A machine to be run.
pub struct Machine<'a> {
    pub image: &'a Path,
    pub initramfs: &'a Path,
    /// Whether the tests may rewrite what they compare with.
    pub update: bool,
}

/// What a machine says.
pub enum Event {
    /// The next program begins.
    Begin,
    Line(String),
    End {
        name: String,
        code: i32,
    },
    /// A file at a path, with these bytes.
    File(String, Vec<u8>),
}

impl Machine<'_> {
    /// Runs the machine until it turns itself off, and returns the end of what its console said.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or `take` fails.
    pub fn run(&self, mut take: impl FnMut(Event) -> Result<()>) -> Result<String> {
        let console = self.initramfs.with_extension("console");
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", PATIENCE_SECONDS, "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-cpu", cpu(), "-smp", "2", "-m", "2048"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio", "-append"])
            .arg(self.parameters())
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-accel", if kvm() { "kvm" } else { "tcg,thread=multi" }])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let (_, read) = children::run(command, |child| {
            let stdout = child.stdout.take().context("no output")?;
            let mut reader = BufReader::new(stdout);
            while let Some(event) = next(&mut reader)? {
                take(event)?;
            }
            anyhow::Ok(())
        })?;
        read?;
        Ok(last_lines(&console))
    }

    /// The kernel's command line; what it does not know becomes the first process's environment.
    fn parameters(&self) -> String {
        let mut parameters = "console=ttyS0 quiet panic=-1 rdinit=/init".to_owned();
        parameters.push_str(" PATH=/usr/sbin:/usr/bin LB=/usr/bin/lb LB_TESTS_SLOWER=30");
        if self.update {
            parameters.push_str(" UPDATE=1");
        }
        parameters
    }
}

fn last_lines(console: &Path) -> String {
    const LINES: usize = 30;
    let console = fs::read(console).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<_> = console.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// The processor that there is: without cmpxchg16b where it is emulated, of which QEMU 7.2 leaves
/// other flags than it should, in the midst of the allocator of kernels from 6.5 on.
fn cpu() -> &'static str {
    if kvm() { "max" } else { "max,-cx16" }
}

/// How machines are run here.
pub fn how() -> &'static str {
    if kvm() {
        "by the processor itself (KVM)"
    } else {
        "emulated, for want of KVM"
    }
}

fn kvm() -> bool {
    // Without the flag it is other software that does the processor's part, and not all of it.
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let able = cpuinfo
        .split_ascii_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm");
    able && File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

/// Reads what is said next; `None` at the end.
fn next(reader: &mut impl BufRead) -> Result<Option<Event>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let ours = line.first() == Some(&OURS);
    let text = String::from_utf8_lossy(&line[usize::from(ours)..]);
    let text = text.trim_end();
    if !ours {
        return Ok(Some(Event::Line(text.to_owned())));
    }
    let words: Vec<_> = text.split(' ').collect();
    Ok(Some(match words[..] {
        ["begin", _] => Event::Begin,
        ["end", name, code] => Event::End {
            name: name.to_owned(),
            code: code.parse()?,
        },
        ["file", path, length] => {
            let mut bytes = vec![0; length.parse()?];
            reader.read_exact(&mut bytes)?;
            Event::File(path.to_owned(), bytes)
        }
        _ => Event::Line(text.to_owned()),
    }))
}
