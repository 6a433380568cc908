//! Attaches the XDP program to devices that lead out of the node.
//!
//! Only ever by a link: it is pinned, and moved to the new program when the agent starts again.
//! Another's program is left in its place; the tc programs do the same work there.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::programs::{
    self, ProgramError, XdpMode,
    links::FdLink,
    xdp::{XdpError, XdpLink},
};
use futures::StreamExt as _;
use rtnetlink::{
    Handle, LinkUnspec,
    packet_route::link::{LinkAttribute, LinkXdp, XdpAttached},
};

use super::{
    Programs,
    attach::{pinned, unpin},
    load::refusal,
};

/// Name of the program, and of the pins of its links.
pub const XDP_PROGRAM: &str = "node_xdp";

/// Between looks whether a link that lost its pin is gone, and how many of them.
const PAUSE: Duration = Duration::from_millis(10);
const LOOKS: u32 = 200;

/// Where XDP is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpChoice {
    /// In drivers that have it, but not on veths.
    Auto,
    /// In drivers that have it, veths' too.
    Native,
    /// In the kernel's stack.
    Generic,
    Off,
}

/// What became of XDP on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Xdp {
    Native,
    Generic,
    /// Another's program is there, in words.
    Foreign(String),
    /// There is none, and why not.
    None(String),
}

impl Programs {
    /// Attaches the XDP program to a device with an Ethernet header, in place of that of an earlier
    /// agent.
    pub async fn attach_xdp(&mut self, index: u32, generic: bool) -> Result<Xdp> {
        let pin = self.pins.xdp(index);
        let netlink = connect()?;
        let program = self.xdp_program()?;
        let mut looks = 0;
        if let Some(link) = pinned(&pin)? {
            let there = attached(&netlink, index).await?.map(|(how, _)| how);
            if there != Some(how(generic)) {
                // The kernel detaches it a moment later.
                looks = LOOKS;
            } else if replace(program, link)? {
                return Ok(on(generic));
            }
            unpin(&pin)?;
        }
        match create(program, &netlink, index, generic, looks).await? {
            Ok(link) => {
                link.pin(&pin)
                    .with_context(|| format!("pin {}", pin.display()))?;
                Ok(on(generic))
            }
            Err(why_not) => Ok(why_not),
        }
    }

    /// Detaches the XDP program from a device, if it is there.
    pub fn detach_xdp(&mut self, index: u32) -> Result<()> {
        unpin(&self.pins.xdp(index))
    }

    /// The program, loaded when it is first needed: without it, tc does the same work.
    fn xdp_program(&mut self) -> Result<&mut programs::Xdp> {
        let program = self
            .ebpf
            .program_mut(XDP_PROGRAM)
            .with_context(|| format!("there is no program {XDP_PROGRAM}"))?;
        let program: &mut programs::Xdp = program.try_into()?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
            Err(error) => Err(refusal(XDP_PROGRAM, error)),
        }
    }
}

/// Moves a link to the program; says whether its device is there still.
fn replace(program: &mut programs::Xdp, link: FdLink) -> Result<bool> {
    match program.attach_to_link(XdpLink::try_from(link)?) {
        Ok(id) => {
            // Closes it; it stays pinned.
            let _: FdLink = program.take_link(id)?.try_into()?;
            Ok(true)
        }
        Err(error) if errno(&error) == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(error).context("replace the program of an XDP link"),
    }
}

/// Attaches the program by a new link, or says why none can be. Another program that is there is
/// looked for again so many times: it may be ours, and about to go.
async fn create(
    program: &mut programs::Xdp,
    netlink: &Handle,
    index: u32,
    generic: bool,
    looks: u32,
) -> Result<Result<FdLink, Xdp>> {
    let mode = if generic {
        XdpMode::Skb
    } else {
        XdpMode::Driver
    };
    let mut looks = 0..looks;
    loop {
        let error = match program.attach_to_if_index(index, mode) {
            Ok(id) => {
                let Ok(link) = FdLink::try_from(program.take_link(id)?) else {
                    // aya went another way, on which nothing could replace the program in place.
                    remove(netlink, index).await?;
                    bail!("the kernel makes no link for XDP");
                };
                return Ok(Ok(link));
            }
            Err(error) => error,
        };
        match errno(&error) {
            Some(libc::EBUSY | libc::EEXIST) => {
                if looks.next().is_none() {
                    let other = attached(netlink, index).await?;
                    let id = other.map_or("gone by now".to_owned(), |(_, id)| format!("id {id}"));
                    let reason = format!("another program is there, {id}");
                    return Ok(Err(Xdp::Foreign(reason)));
                }
                tokio::time::sleep(PAUSE).await;
            }
            Some(libc::EOPNOTSUPP) => {
                return Ok(Err(Xdp::None("its driver has none".to_owned())));
            }
            _ => return Err(error).context("attach the XDP program"),
        }
    }
}

fn how(generic: bool) -> XdpAttached {
    if generic {
        XdpAttached::SocketBuffer
    } else {
        XdpAttached::Driver
    }
}

fn on(generic: bool) -> Xdp {
    if generic { Xdp::Generic } else { Xdp::Native }
}

fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::XdpError(XdpError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    }
}

fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// How an XDP program is attached to a device, and its id.
pub(super) async fn attached(netlink: &Handle, index: u32) -> Result<Option<(XdpAttached, u32)>> {
    let link = Box::pin(netlink.link().get().match_index(index).execute())
        .next()
        .await
        .context("no answer about an interface")??;
    let (mut how, mut id) = (XdpAttached::None, 0);
    for attribute in link.attributes {
        if let LinkAttribute::Xdp(attributes) = attribute {
            for attribute in attributes {
                match attribute {
                    LinkXdp::Attached(attached) => how = attached,
                    LinkXdp::ProgId(program) => id = program,
                    _ => {}
                }
            }
        }
    }
    Ok((how != XdpAttached::None).then_some((how, id)))
}

/// Removes a program that is attached without a link.
async fn remove(netlink: &Handle, index: u32) -> Result<()> {
    let nothing = LinkAttribute::Xdp(vec![LinkXdp::Fd(-1)]);
    let link = LinkUnspec::new_with_index(index).append_extra_attribute(nothing);
    let removed = netlink.link().set(link.build()).execute().await;
    removed.context("remove an XDP program that has no link")
}
