//! The clsact qdisc, in which filters hang where the kernel has no tcx.

use std::io;

use anyhow::{Context as _, Result, bail};
use aya::programs::tc::{TcError, qdisc_add_clsact, qdisc_detach_program};
use futures::TryStreamExt as _;
use rtnetlink::{
    Handle,
    packet_route::tc::{TcAttribute, TcHandle, TcMessage},
};

use super::Hook;

/// Adds the qdisc to an interface that does not have it.
pub async fn ensure_qdisc(index: u32, name: &str) -> Result<()> {
    match qdisc(&connect()?, index).await?.as_deref() {
        Some("clsact") => Ok(()),
        Some(other) => bail!("there is a qdisc `{other}` where clsact belongs"),
        None => qdisc_add_clsact(name).context("add a clsact qdisc"),
    }
}

/// Removes our filters of these hooks, and the qdisc with them unless others have filters there. Says what it
/// removed, in words.
pub async fn remove(index: u32, name: &str, hooks: &[Hook]) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for hook in hooks {
        if remove_filter(name, *hook)? {
            removed.push(format!("the filter {} of {name}", hook.program()));
        }
    }
    if !removed.is_empty() && remove_empty_qdisc(index).await? {
        removed.push(format!("the clsact qdisc of {name}"));
    }
    Ok(removed)
}

/// Removes our filter, if it is there; says whether it was.
fn remove_filter(name: &str, hook: Hook) -> Result<bool> {
    match qdisc_detach_program(name, hook.attach_type(), hook.program()) {
        Ok(()) => Ok(true),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove a filter of {name}")),
    }
}

/// Removes the qdisc if no filter is left in it; says whether it did.
async fn remove_empty_qdisc(index: u32) -> Result<bool> {
    let handle = connect()?;
    let mut filters = handle.traffic_filter(index as i32);
    let ingress: Vec<_> = filters.get().ingress().execute().try_collect().await?;
    let egress: Vec<_> = filters.get().egress().execute().try_collect().await?;
    let empty = ingress.is_empty() && egress.is_empty();
    if !empty || qdisc(&handle, index).await?.as_deref() != Some("clsact") {
        return Ok(false);
    }
    let mut request = handle.qdisc().del(index as i32);
    request.message_mut().header.parent = TcHandle::CLSACT;
    request.execute().await.context("remove a clsact qdisc")?;
    Ok(true)
}

fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Kind of the qdisc in the one place that clsact and its older half, ingress, share.
async fn qdisc(handle: &Handle, index: u32) -> Result<Option<String>> {
    let qdiscs: Vec<TcMessage> = handle
        .qdisc()
        .get()
        .execute()
        .try_collect()
        .await
        .context("list the qdiscs")?;
    let place = |message: &TcMessage| {
        message.header.index == index as i32 && message.header.parent == TcHandle::CLSACT
    };
    let found = qdiscs.into_iter().find(place);
    Ok(found.and_then(|message| {
        message
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind),
                _ => None,
            })
    }))
}
