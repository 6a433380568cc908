//! The kernel's side: programs, tables, links. The only module that knows aya.

mod attach;
mod barrier;
mod cleanup;
mod clsact;
mod layout;
mod load;
mod mapped;
mod pins;
mod sweep;
mod tables;

use aya::programs::TcAttachType;

pub use self::{
    attach::Attach,
    barrier::Barrier,
    cleanup::cleanup,
    load::{OBJECT, Programs, load},
    pins::Pins,
    sweep::{FlowCounts, Swept, owners, sweep},
    tables::Tables,
};

/// A place on a pod's host-side interface where a program of ours runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tc ingress: what the pod sends.
    PodEgress,
    /// tc egress: what the pod receives.
    PodIngress,
}

impl Hook {
    /// In the order of attaching: a reply that nobody expects does no harm, but a request whose reply
    /// is not translated back does.
    pub const ALL: [Self; 2] = [Self::PodIngress, Self::PodEgress];

    /// Name of the program, and of its filter.
    pub const fn program(self) -> &'static str {
        match self {
            Self::PodEgress => "pod_egress",
            Self::PodIngress => "pod_ingress",
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::PodEgress => TcAttachType::Ingress,
            Self::PodIngress => TcAttachType::Egress,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
