//! The layers of tests, each of which needs more of the machine than the one before.

use cargo_metadata::{Artifact, TargetKind};
use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layer {
    /// The unit tests of every crate
    Pure,
    /// Manifests in, tables as text out
    Golden,
    /// Packets through the loaded programs (root)
    Packet,
    /// TCP and UDP through network namespaces, and unit tests that need the kernel (root)
    Net,
    /// A real control plane drives the agent (root)
    Cluster,
}

impl Layer {
    /// As it is typed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Golden => "golden",
            Self::Packet => "packet",
            Self::Net => "net",
            Self::Cluster => "cluster",
        }
    }

    pub const fn needs_root(self) -> bool {
        match self {
            Self::Pure | Self::Golden => false,
            Self::Packet | Self::Net | Self::Cluster => true,
        }
    }

    /// The targets that cargo has to build for it.
    pub const fn targets(self) -> &'static str {
        match self {
            Self::Pure | Self::Net => "--tests",
            Self::Golden => "--test=golden",
            Self::Packet => "--test=packet",
            Self::Cluster => "--test=cluster",
        }
    }

    /// The layer that a test executable belongs to.
    pub fn of(artifact: &Artifact) -> Self {
        if !artifact.target.kind.contains(&TargetKind::Test) {
            return Self::Pure;
        }
        match artifact.target.name.as_str() {
            "golden" => Self::Golden,
            "packet" => Self::Packet,
            "cluster" => Self::Cluster,
            name if name.starts_with("net") => Self::Net,
            _ => Self::Pure,
        }
    }
}
