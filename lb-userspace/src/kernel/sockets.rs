//! Attaches the socket programs to control groups, so that they stay when the agent goes.
//!
//! A link cannot be given another program by this version of aya, so a new one is attached beside the
//! old one and takes its pin. In the moment between, both programs run: the later one finds a
//! backend where the earlier one has translated, and leaves it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, links::FdLink},
};

use super::{Programs, attach::unpin, load::refusal};

/// Programs that undo a translation, wherever it was made.
const UNDO: [&str; 4] = ["recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];
/// Programs that translate for the processes that the settings say.
const TRANSLATE: [&str; 4] = ["connect4", "connect6", "sendmsg4", "sendmsg6"];
/// Programs that translate for every process of the group that they hang on.
const TRANSLATE_POD: [&str; 4] = [
    "connect4_pod",
    "connect6_pod",
    "sendmsg4_pod",
    "sendmsg6_pod",
];

impl Programs {
    /// Attaches to the root of all control groups, in place of what an earlier agent attached.
    pub fn attach_sockets(&mut self, root: &Path) -> Result<()> {
        let pins = self.pins.sockets();
        fs::create_dir_all(&pins).with_context(|| format!("make {}", pins.display()))?;
        // What undoes comes first: a translation that is not undone looks like another peer.
        self.attach_to_group(root, &UNDO, |program| pins.join(program))?;
        self.attach_to_group(root, &TRANSLATE, |program| pins.join(program))
    }

    /// Attaches to the control group of a pod, in place of what an earlier agent attached.
    pub fn attach_pod_sockets(&mut self, uid: &str, group: &Path) -> Result<()> {
        let pins = self.pins.pod_sockets(uid);
        fs::create_dir_all(&pins).with_context(|| format!("make {}", pins.display()))?;
        self.attach_to_group(group, &TRANSLATE_POD, |program| pins.join(program))
    }

    /// Detaches from the control group of a pod.
    pub fn detach_pod_sockets(&mut self, uid: &str) -> Result<()> {
        remove_directory(&self.pins.pod_sockets(uid))
    }

    /// Detaches from all control groups.
    pub fn detach_sockets(&mut self) -> Result<()> {
        remove_directory(&self.pins.sockets())
    }

    /// The pods to whose control groups something of ours, or of an earlier agent, is attached.
    pub fn socket_pods(&self) -> Result<Vec<String>> {
        let pins = self.pins.sockets();
        let entries = match fs::read_dir(&pins) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("list {}", pins.display())),
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let names: Vec<OsString> = names
            .collect::<io::Result<_>>()
            .with_context(|| format!("list {}", pins.display()))?;
        Ok(names
            .iter()
            .filter_map(|name| name.to_str()?.strip_prefix(POD).map(str::to_owned))
            .collect())
    }

    fn attach_to_group(
        &mut self,
        group: &Path,
        programs: &[&str],
        pin: impl Fn(&str) -> PathBuf,
    ) -> Result<()> {
        let group = File::open(group).with_context(|| format!("open {}", group.display()))?;
        for name in programs {
            let program = program(&mut self.ebpf, name)?;
            attach(program, &group, &pin(name)).with_context(|| format!("attach {name}"))?;
        }
        Ok(())
    }
}

/// What the names of pods' directories begin with, among the pins.
pub(super) const POD: &str = "pod_";

/// A program, loaded when it is first asked for.
fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr> {
    let program: &mut CgroupSockAddr = ebpf
        .program_mut(name)
        .with_context(|| format!("there is no program {name}"))?
        .try_into()
        .with_context(|| format!("{name} is no program of a control group"))?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(error) => Err(refusal(name, error)),
    }
}

fn attach(program: &mut CgroupSockAddr, group: &File, pin: &Path) -> Result<()> {
    // The kernel attaches a link beside others whatever the mode, and refuses any other mode.
    let id = program.attach(group, CgroupAttachMode::Single)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    let mut fresh = pin.to_owned().into_os_string();
    fresh.push("_new");
    let fresh = PathBuf::from(fresh);
    unpin(&fresh)?;
    link.pin(&fresh)
        .with_context(|| format!("pin {}", fresh.display()))?;
    fs::rename(&fresh, pin).with_context(|| format!("pin {}", pin.display()))
}

fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
