//! The kernel's side: programs, tables, links. The only module that knows aya.

mod attach;
mod barrier;
mod cleanup;
mod clsact;
mod diag;
mod events;
mod layout;
mod load;
mod mapped;
mod pins;
mod pod_cgroup;
mod policy;
mod sockets;
mod stale;
mod sweep;
mod tables;
mod xdp;

use aya::programs::TcAttachType;

pub use self::{
    attach::Attach,
    barrier::Barrier,
    cleanup::cleanup,
    events::Events,
    load::{OBJECT, Programs, load, loader},
    pins::Pins,
    pod_cgroup::pod_cgroup,
    policy::Binding,
    stale::StaleSockets,
    sweep::{FlowCounts, Swept, owners, sweep},
    tables::Tables,
    xdp::{Xdp, XdpChoice},
};

/// A place on an interface where a program of ours runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tc ingress of a pod's host-side interface: what the pod sends.
    PodEgress,
    /// tc egress of it: what the pod receives.
    PodIngress,
    /// tc ingress of an interface that leads out of the node: what comes in.
    NodeIngress,
    /// tc egress of it: what goes out.
    NodeEgress,
    /// The same where packets have no Ethernet header.
    NodeIngressL3,
    NodeEgressL3,
}

impl Hook {
    pub const ALL: [Self; 6] = [
        Self::PodEgress,
        Self::PodIngress,
        Self::NodeIngress,
        Self::NodeEgress,
        Self::NodeIngressL3,
        Self::NodeEgressL3,
    ];

    /// Name of the program, and of its filter.
    pub const fn program(self) -> &'static str {
        match self {
            Self::PodEgress => "pod_egress",
            Self::PodIngress => "pod_ingress",
            Self::NodeIngress => "node_ingress",
            Self::NodeEgress => "node_egress",
            Self::NodeIngressL3 => "node_ingress_l3",
            Self::NodeEgressL3 => "node_egress_l3",
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::PodEgress | Self::NodeIngress | Self::NodeIngressL3 => TcAttachType::Ingress,
            Self::PodIngress | Self::NodeEgress | Self::NodeEgressL3 => TcAttachType::Egress,
        }
    }
}

/// What an interface leads to, as far as programs are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Pod,
    /// Out of the node, with an Ethernet header.
    Node,
    /// Out of the node, without one.
    NodeL3,
}

impl Side {
    pub const ALL: [Self; 3] = [Self::Pod, Self::Node, Self::NodeL3];

    /// In the order of attaching: a reply that nobody expects does no harm, but a request whose reply
    /// is not translated back does.
    pub const fn hooks(self) -> [Hook; 2] {
        match self {
            Self::Pod => [Hook::PodIngress, Hook::PodEgress],
            Self::Node => [Hook::NodeEgress, Hook::NodeIngress],
            Self::NodeL3 => [Hook::NodeEgressL3, Hook::NodeIngressL3],
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
