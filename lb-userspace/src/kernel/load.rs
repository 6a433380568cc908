//! Loads the programs, with the tables that are pinned already.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramError, ProgramType, SchedClassifier},
    sys::{BpfHelper, is_helper_supported},
};
use lb_common::flow::FlowKey;
use nix::{
    mount::{MsFlags, mount},
    sys::{
        resource::{RLIM_INFINITY, Resource, setrlimit},
        statfs::{BPF_FS_MAGIC, statfs},
    },
};

use tokio::time::interval;

use super::{Attach, Pins, Side, layout};

/// The program that expires flows. It is never attached.
const EXPIRE: &str = "expire";

/// Lines of the verifier's log that an error shows: the last ones say what it minds.
const LOG_LINES: usize = 25;

/// Between looks at the programs' log, which is only written for debugging.
const LOG_INTERVAL: Duration = Duration::from_millis(100);

/// The object file with all programs.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// The loaded programs.
pub struct Programs {
    pub(super) ebpf: Ebpf,
    pub(super) pins: Pins,
    pub(super) attach: Attach,
}

/// A loader that tells the programs what this kernel can do, and how verbose they are to be.
pub fn loader(log_level: &u8) -> EbpfLoader<'_> {
    let told = |has: bool| &[0u8, 1][usize::from(has)];
    let mut loader = EbpfLoader::new();
    loader
        .override_global(aya_log::LEVEL, log_level, false)
        .override_global("REFUSES", told(can_refuse()), true)
        .override_global("HAS_COARSE_CLOCK", told(has_coarse_clock()), true);
    loader
}

/// Whether the kernel lets the programs of sockets make a call fail with an error of their choice
/// (6.1).
fn can_refuse() -> bool {
    let set_retval = BpfHelper::BPF_FUNC_set_retval;
    is_helper_supported(ProgramType::CgroupSockAddr, set_retval).unwrap_or(false)
}

/// Whether the kernel tells the programs the time of its last tick (5.11).
fn has_coarse_clock() -> bool {
    let coarse = BpfHelper::BPF_FUNC_ktime_get_coarse_ns;
    is_helper_supported(ProgramType::SchedClassifier, coarse).unwrap_or(false)
}

/// Loads the programs beside those that may be attached, and pins the tables that are not there yet.
///
/// `log_level` is the most verbose level of `aya_log` that the programs log at; 0 costs nothing.
pub fn load(pins: Pins, attach: Attach, log_level: u8) -> Result<Programs> {
    // Up to 5.10 the kernel counts tables against this limit; it can only fail where it is moot.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    mount_bpffs(pins.bpffs())?;
    fs::create_dir_all(pins.links())
        .with_context(|| format!("make the directory {}", pins.links().display()))?;

    let mut loader = loader(&log_level);
    for table in &layout::TABLES {
        if pins.table(table.name).exists() {
            table.open(&pins)?;
        }
        loader.map_pin_path(table.name, pins.table(table.name));
    }
    let mut ebpf = loader.load(OBJECT).context("load the tables")?;
    let hooks = [Side::Pod, Side::Node].map(Side::hooks);
    let names = hooks.as_flattened().iter().map(|hook| hook.program());
    for name in names.chain([EXPIRE]) {
        loaded(&mut ebpf, name)?;
    }
    Ok(Programs { ebpf, pins, attach })
}

impl Programs {
    /// Writes what the programs log to our own log, from now on. Must be called within a tokio
    /// runtime.
    pub fn follow_log(&mut self) -> Result<()> {
        let mut logger =
            aya_log::EbpfLogger::init(&mut self.ebpf).context("open the programs' log")?;
        tokio::spawn(async move {
            let mut tick = interval(LOG_INTERVAL);
            loop {
                tick.tick().await;
                logger.flush();
            }
        });
        Ok(())
    }

    /// Removes those of the flows with these keys that are expired now.
    pub fn expire(&mut self, keys: &[FlowKey]) -> Result<()> {
        let program = program(&mut self.ebpf, EXPIRE)?;
        super::sweep::expire(program, keys)
    }
}

/// The program, loaded if it is not yet: not every node needs each.
pub(super) fn loaded<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = program(ebpf, name)?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(error) => Err(refusal(name, error)),
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("there is no program {name}"))?;
    program
        .try_into()
        .with_context(|| format!("{name} is no classifier"))
}

/// An error that says what the verifier minds.
pub(super) fn refusal(name: &str, error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return anyhow!(error).context(format!("load {name}"));
    };
    let log = verifier_log.to_string();
    let lines: Vec<_> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    anyhow!("the kernel refuses {name}: {io_error}; the verifier's last words:\n{tail}")
}

fn mount_bpffs(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make the directory {}", path.display()))?;
    if statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    let mut entries = fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
    if entries.next().is_some() {
        bail!(
            "{} is neither a BPF file system nor empty, so none is mounted there: name another \
             directory with --bpffs",
            path.display()
        );
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mount a BPF file system on {}", path.display()))
}
