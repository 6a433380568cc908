//! Says which step is being done and how far it is: a line that changes on a terminal, plain lines
//! elsewhere.

use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// How often a step that takes long says so in plain lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// The steps that lie ahead.
pub struct Steps {
    number: usize,
    of: usize,
}

impl Steps {
    /// As many steps as `needed` holds true.
    pub fn new(needed: &[bool]) -> Self {
        Self {
            number: 0,
            of: needed.iter().filter(|needed| **needed).count(),
        }
    }

    /// Begins the next step, and says `what` it is.
    pub fn start(&mut self, what: &str) -> Step {
        self.number += 1;
        eprintln!("[{}/{}] {what}", self.number, self.of);
        let now = Instant::now();
        Step {
            line: stderr().is_terminal().then(line),
            started: now,
            said: now,
        }
    }
}

/// One step, under way.
pub struct Step {
    line: Option<ProgressBar>,
    started: Instant,
    said: Instant,
}

impl Step {
    /// The step is at `detail`.
    pub fn at(&mut self, detail: &str) {
        if let Some(line) = &self.line {
            line.set_message(detail.to_owned());
        } else if self.said.elapsed() >= INTERVAL {
            self.said = Instant::now();
            eprintln!("      {detail}");
        }
    }

    /// The step has ended, and `how`.
    pub fn end(self, how: &str) {
        let Self { line, started, .. } = self;
        drop(line);
        eprintln!("      {how} ({:.0?})", started.elapsed());
    }
}

fn line() -> ProgressBar {
    let style = ProgressStyle::with_template("    {spinner} {elapsed:>4}  {wide_msg}")
        .expect("the template is well-formed");
    let line = ProgressBar::new_spinner()
        .with_style(style)
        .with_finish(ProgressFinish::AndClear);
    line.enable_steady_tick(Duration::from_millis(200));
    line
}
