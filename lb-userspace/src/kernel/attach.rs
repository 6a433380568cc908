//! Attaches the programs to interfaces, so that they stay when the agent goes.
//!
//! A tcx link is pinned, and moved to the new program when the agent starts again. A clsact filter
//! has a fixed place, in which the new program replaces the old one. Either way no packet passes
//! between the two.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io, mem,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier,
        links::{FdLink, LinkError, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
    util::KernelVersion,
};
use nix::net::if_::if_nametoindex;

use super::{Hook, Programs, Side, clsact, load::loaded};

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    Tcx,
    Clsact,
}

impl Attach {
    /// tcx where the kernel has it.
    pub fn best() -> Self {
        let has_tcx = |version| version >= KernelVersion::new(6, 6, 0);
        if KernelVersion::current().is_ok_and(has_tcx) {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Where our filters are among those of an interface. Another's at the same priority is no obstacle
/// while its handle differs.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x6c62);

impl Programs {
    /// How programs are attached.
    pub fn how(&self) -> Attach {
        self.attach
    }

    /// Attaches the programs of one side to an interface, in place of those of an earlier agent.
    pub async fn attach(&mut self, index: u32, name: &str, side: Side) -> Result<()> {
        ensure!(
            if_nametoindex(name) == Ok(index),
            "it is gone, or has another name by now"
        );
        for hook in side.hooks() {
            let pin = self.pins.link(index, hook);
            let program = loaded(&mut self.ebpf, hook.program())?;
            match self.attach {
                Attach::Tcx => attach_tcx(program, name, hook, &pin)?,
                Attach::Clsact => {
                    attach_clsact(program, index, name, hook).await?;
                    unpin(&pin)?;
                }
            }
        }
        if self.attach == Attach::Tcx {
            clsact::remove(index, name, &side.hooks()).await?;
        }
        Ok(())
    }

    /// Detaches the programs of one side from an interface that is not on it any more.
    pub async fn detach(&mut self, index: u32, name: &str, side: Side) -> Result<()> {
        for hook in side.hooks() {
            unpin(&self.pins.link(index, hook))?;
        }
        clsact::remove(index, name, &side.hooks()).await?;
        Ok(())
    }

    /// Forgets the links of all interfaces but these, and those of another side than theirs.
    pub fn retain_links(&mut self, interfaces: &BTreeMap<u32, Side>) -> Result<()> {
        let mut kept = BTreeSet::new();
        for (index, side) in interfaces {
            kept.extend(side.hooks().map(|hook| self.pins.link(*index, hook)));
            kept.extend((*side == Side::Node).then(|| self.pins.xdp(*index)));
        }
        for entry in fs::read_dir(self.pins.links()).context("list the links")? {
            let path = entry.context("list the links")?.path();
            if !kept.contains(&path) {
                unpin(&path)?;
            }
        }
        Ok(())
    }
}

fn attach_tcx(program: &mut SchedClassifier, name: &str, hook: Hook, pin: &Path) -> Result<()> {
    if let Some(link) = pinned(pin)? {
        let link = SchedClassifierLink::try_from(link)?;
        match program.attach_to_link(link) {
            Ok(id) => {
                // Closes it; it stays pinned.
                let _: FdLink = program.take_link(id)?.try_into()?;
                return Ok(());
            }
            // It was on an interface that is gone.
            Err(error) if is_error(&error, libc::ENOLINK) => unpin(pin)?,
            Err(error) => return Err(error).context("replace the program of a tcx link"),
        }
    }
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(name, hook.attach_type(), first)
        .with_context(|| format!("attach {}", hook.program()))?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin)
        .with_context(|| format!("pin {}", pin.display()))?;
    Ok(())
}

/// The link that is pinned there, if one is.
pub(super) fn pinned(pin: &Path) -> Result<Option<FdLink>> {
    match PinnedLink::from_pin(pin) {
        Ok(pinned) => Ok(Some(pinned.into())),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("open {}", pin.display())),
    }
}

async fn attach_clsact(
    program: &mut SchedClassifier,
    index: u32,
    name: &str,
    hook: Hook,
) -> Result<()> {
    let hook_type = hook.attach_type();
    let ours = SchedClassifierLink::attached(name, hook_type, PRIORITY, HANDLE, None)?;
    let id = match program.attach_to_link(ours) {
        Ok(id) => id,
        // There is no such filter, or no clsact for it to be in.
        Err(_) => {
            clsact::ensure_qdisc(index, name).await?;
            let place = NlOptions {
                priority: PRIORITY,
                handle: HANDLE,
                classid: None,
            };
            program
                .attach_with_options(name, hook_type, TcAttachOptions::Netlink(place))
                .with_context(|| format!("attach {}", hook.program()))?
        }
    };
    // Dropping the link would remove the filter.
    mem::forget(program.take_link(id)?);
    Ok(())
}

/// The kernel detaches a link that has no pin, a moment later.
pub(super) fn unpin(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", pin.display()))
        }
        _ => Ok(()),
    }
}

pub(super) fn is_error(error: &ProgramError, number: i32) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.raw_os_error() == Some(number))
}
