//! Where in the BPF file system everything of ours is pinned.

use std::path::{Path, PathBuf};

use lb_common::LAYOUT_VERSION;

use super::{Hook, xdp::XDP_PROGRAM};

/// The names of all pins below one BPF file system.
#[derive(Clone, Debug)]
pub struct Pins {
    bpffs: PathBuf,
}

impl Pins {
    pub fn below(bpffs: &Path) -> Self {
        Self {
            bpffs: bpffs.to_owned(),
        }
    }

    /// Where the BPF file system is mounted.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// All that is ours, of every version.
    pub fn root(&self) -> PathBuf {
        self.bpffs.join("lb")
    }

    /// What has this version's layout.
    pub fn version(&self) -> PathBuf {
        self.root().join(format!("v{LAYOUT_VERSION}"))
    }

    pub fn table(&self, name: &str) -> PathBuf {
        self.version().join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// The link of one hook of the interface with this index.
    pub fn link(&self, interface: u32, hook: Hook) -> PathBuf {
        self.links().join(format!("{interface}_{}", hook.program()))
    }

    /// The XDP link of the interface with this index.
    pub fn xdp(&self, interface: u32) -> PathBuf {
        self.links().join(format!("{interface}_{XDP_PROGRAM}"))
    }

    /// Whether an agent of this version has been here.
    pub fn exist(&self) -> bool {
        self.table("FRONTENDS").exists()
    }
}
