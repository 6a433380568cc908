//! Removes every trace.

use std::{fs, io};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nameindex;

use super::{Hook, Pins, clsact};

/// Detaches all programs from the interfaces of this network namespace and removes all pins. Says
/// what it removed, in words.
pub async fn cleanup(pins: &Pins) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for interface in &if_nameindex().context("list the interfaces")? {
        let name = interface.name().to_string_lossy().into_owned();
        removed.extend(clsact::remove(interface.index(), &name, &Hook::ALL).await?);
    }
    let root = pins.root();
    match fs::remove_dir_all(&root) {
        Ok(()) => removed.push(format!("{} with all tables and links", root.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("remove {}", root.display())),
    }
    Ok(removed)
}
