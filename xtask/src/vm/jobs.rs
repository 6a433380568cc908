//! What is run on a kernel, and what is said about it.

use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus, time::Instant};

use super::{kernel::Kernel, machine::Event};
use crate::test::suite;

/// Where the programs are in a machine.
pub const LB: &str = "/usr/bin/lb";
pub const PACKET: &str = "/usr/bin/packet";
pub const NET: &str = "/usr/bin/net";
pub const USERSPACE: &str = "/usr/bin/userspace";

/// What the kernel and the tests call, and where they look for it.
pub const TOOLS: [(&str, &str); 3] = [
    ("modprobe", "/sbin/modprobe"),
    ("nft", "/usr/sbin/nft"),
    ("setpriv", "/usr/bin/setpriv"),
];

/// A program to be run.
#[derive(Clone, Copy)]
pub struct Job {
    name: &'static str,
    what: &'static str,
    program: &'static str,
    args: &'static [&'static str],
}

/// Loads every program; nothing else can work where that does not.
const LIMITS: Job = Job {
    name: "limits",
    what: "every program loads, at its cost",
    program: PACKET,
    args: &["--exact", "limits"],
};

/// Not stories of flows that have been silent for minutes: a machine that has just been booted has
/// no such past.
const PACKETS: Job = Job {
    name: "packets",
    what: "packets through the programs",
    program: PACKET,
    args: &[
        "--skip=limits",
        "--skip=forgotten",
        "--skip=only silent flows expire",
        "--skip=more keys than a batch",
    ],
};

/// What the agent does with the kernel.
const KERNEL: Job = Job {
    name: "kernel",
    what: "attaching by clsact, barriers",
    program: USERSPACE,
    args: &[
        "--ignored",
        "--test-threads=2",
        "--skip=tcx",
        "clsact",
        "barrier",
    ],
};

const CLSACT: Job = Job {
    name: "clsact",
    what: "connections, programs attached by clsact",
    program: NET,
    args: &["--test-threads=2", "backends ptp 1-node clsact"],
};

const OUTSIDE: Job = Job {
    name: "outside",
    what: "connections from outside to NodePorts",
    program: NET,
    args: &[
        "--test-threads=2",
        "outside to the NodePort of every node ptp 2-node clsact",
    ],
};

const HOST: Job = Job {
    name: "host",
    what: "host processes, at their sockets",
    program: NET,
    args: &["--test-threads=2", "a host process reaches"],
};

const POLICIES: Job = Job {
    name: "policies",
    what: "policies, programs attached by clsact",
    program: NET,
    args: &[
        "--test-threads=2",
        "policies decide who talks to whom ptp 1-node clsact",
    ],
};

const ATTACHING_TCX: Job = Job {
    name: "attaching-tcx",
    what: "attaching by tcx",
    program: USERSPACE,
    args: &["--ignored", "--test-threads=2", "tcx"],
};

const TCX: Job = Job {
    name: "tcx",
    what: "connections, programs attached by tcx",
    program: NET,
    args: &["--test-threads=2", "backends ptp 1-node tcx"],
};

/// The jobs for a kernel.
pub fn of(kernel: Kernel) -> Vec<Job> {
    let mut jobs = vec![LIMITS, KERNEL, CLSACT, OUTSIDE, HOST, POLICIES];
    match kernel {
        // Its BPF_PROG_TEST_RUN does not take the interface that a packet came by.
        Kernel::Bullseye => {}
        Kernel::Bookworm => jobs.push(PACKETS),
        Kernel::Trixie => jobs.extend([PACKETS, ATTACHING_TCX, TCX]),
    }
    jobs
}

impl Job {
    /// As the machine's first process reads it.
    pub fn line(&self) -> String {
        let mut line = format!("{}\t{}", self.name, self.program);
        for arg in self.args {
            line.push('\t');
            line.push_str(arg);
        }
        line.push('\n');
        line
    }
}

/// Says how a kernel's jobs go, as they go.
pub struct Report {
    kernel: &'static str,
    verbose: bool,
    /// What has not ended yet.
    jobs: Vec<Job>,
    /// When the running job began, and what it has said.
    began: Instant,
    said: String,
    failed: bool,
}

/// What a line begins with that the test of limits has about a program.
const COST: &str = "limits: ";

impl Report {
    /// Nothing has been run yet.
    pub fn new(kernel: &'static str, jobs: Vec<Job>, verbose: bool) -> Self {
        Self {
            kernel,
            verbose,
            jobs,
            began: Instant::now(),
            said: String::new(),
            failed: false,
        }
    }

    /// Says what there is to say about an event.
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Begin => {
                self.began = Instant::now();
                self.said.clear();
            }
            Event::Line(line) => {
                if let Some((_, program)) = line.split_once(COST) {
                    println!("{:<6} {program}", self.kernel);
                } else if self.verbose {
                    println!("{:<6} | {line}", self.kernel);
                }
                self.said.push_str(line);
                self.said.push('\n');
            }
            Event::End { name, code } => self.ended(name, *code),
            Event::File(..) => {}
        }
    }

    fn ended(&mut self, name: &str, code: i32) {
        let Some(at) = self.jobs.iter().position(|job| job.name == name) else {
            return;
        };
        let job = self.jobs.remove(at);
        let counts = suite::judge(ExitStatus::from_raw(code << 8), &self.said);
        let well = counts.failed == 0 && counts.passed > 0;
        self.failed |= !well;
        println!(
            "{:<6} {}: {} passed, {} failed, {} skipped ({:.0?})",
            self.kernel,
            job.what,
            counts.passed,
            counts.failed,
            counts.skipped,
            self.began.elapsed()
        );
        if !well && !self.verbose {
            println!("{}", self.said);
        }
    }

    /// Says what never ended; true if all went well. `console` is what the kernel said last.
    pub fn end(mut self, console: &str) -> bool {
        for job in &self.jobs {
            self.failed = true;
            println!("{:<6} {}: the machine ended before", self.kernel, job.what);
        }
        if !self.jobs.is_empty() {
            println!("{}\n{console}", self.said);
        }
        !self.failed
    }
}
