//! Waits until every program that is running has returned.
#![expect(unsafe_code, reason = "two system calls that no library wraps")]

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, ArrayOfMaps, Map, MapData};

/// A way to wait for the kernel's readers. Programs run under RCU, so the end of a grace period is
/// the end of every run that began before it.
pub enum Barrier {
    /// `membarrier(MEMBARRIER_CMD_GLOBAL)`, which waits for a grace period.
    Membarrier,
    /// An update of a map of maps waits for one too; for kernels that refuse the other under
    /// nohz_full.
    MapOfMaps(Box<MapOfMaps>),
}

pub struct MapOfMaps {
    outer: ArrayOfMaps<MapData, Array<MapData, u32>>,
    inner: Array<MapData, u32>,
}

impl Barrier {
    /// Takes the first way that the kernel offers.
    pub fn new() -> Result<Self> {
        match membarrier() {
            Ok(()) => Ok(Self::Membarrier),
            Err(_) => Self::map_of_maps(),
        }
    }

    fn map_of_maps() -> Result<Self> {
        let inner = create_map(BPF_MAP_TYPE_ARRAY, 0).context("make a map to wait with")?;
        let outer = create_map(BPF_MAP_TYPE_ARRAY_OF_MAPS, inner.as_raw_fd())
            .context("make a map of maps to wait with")?;
        Ok(Self::MapOfMaps(Box::new(MapOfMaps {
            outer: Map::ArrayOfMaps(MapData::from_fd(outer)?).try_into()?,
            inner: Map::Array(MapData::from_fd(inner)?).try_into()?,
        })))
    }

    /// Returns once no program holds anything that it read before. Takes milliseconds.
    pub fn wait(&mut self) -> Result<()> {
        match self {
            Self::Membarrier => membarrier().context("membarrier"),
            Self::MapOfMaps(maps) => {
                let MapOfMaps { outer, inner } = maps.as_mut();
                outer.set(0, inner, 0).context("update a map of maps")
            }
        }
    }
}

fn membarrier() -> io::Result<()> {
    const CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes no pointers.
    match unsafe { libc::syscall(libc::SYS_membarrier, CMD_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

/// Makes an array of one `u32`, or of one map like `inner`. aya makes maps of maps only from an
/// object file.
fn create_map(map_type: u32, inner: RawFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: RawFd,
    }
    const BPF_MAP_CREATE: libc::c_int = 0;
    let attributes = Attributes {
        map_type,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
        inner_map_fd: inner,
    };
    let size = size_of::<Attributes>();
    // SAFETY: the attributes live until the call returns, and it is told their size.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attributes, size) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn both_ways_wait() {
        // As `load` does: up to 5.10 the kernel counts maps against this limit.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        Barrier::new().expect("a barrier").wait().expect("it waits");
        Barrier::map_of_maps()
            .expect("a map of maps")
            .wait()
            .expect("it waits");
    }
}
