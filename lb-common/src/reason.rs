//! Why a packet was dropped or answered: one vocabulary for counters, logs and tests.

/// The index into `COUNTERS`, one counter each.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Answered with port unreachable: the service has no endpoints.
    NoEndpoints = 0,
    /// Answered with port unreachable: a service address, but no service at this port.
    UndefinedPort = 1,
    /// Dropped instead of answered: more than the node's share of such answers.
    RefusalLimit = 2,
    /// Dropped: `FLOWS` is full.
    FlowTableFull = 3,
    /// Dropped: no backend and no client port leaves the reply unambiguous.
    FlowCollision = 4,
    /// Dropped: a fragment to a service whose first fragment was not seen.
    Fragment = 5,
    /// Dropped: the packet ends before its headers do, or could not be rewritten.
    Malformed = 6,
    /// Dropped: the traffic policy is `Local`, and no endpoint is.
    NoLocalEndpoints = 7,
    /// Dropped: `loadBalancerSourceRanges` do not hold the source.
    SourceRange = 8,
    /// Dropped: an address of a ServiceCIDR that no service has.
    UnallocatedAddress = 9,
    /// Dropped: no port of the node is free for a flow that it forwards.
    PortsExhausted = 10,
    /// Dropped: no route leads to the backend or back to the client.
    NoRoute = 11,
    /// Dropped: a packet from outside that claims to be from this node.
    SpoofedSource = 12,
    /// Answered with packet too big, or fragmentation needed.
    TooBig = 13,
    /// Answered with time exceeded: the packet has been forwarded too often.
    HopLimit = 14,
    /// Dropped: a fragmented SCTP packet whose ports would have to change.
    FragmentedSctp = 15,
    /// Dropped: policy does not let the pod send this.
    EgressDenied = 16,
    /// Dropped: policy does not let the pod receive this.
    IngressDenied = 17,
    /// Dropped: it belongs to no connection that is known, and would not open one, at a pod that
    /// policy isolates.
    OutOfState = 18,
    /// Dropped: an ICMP error at a pod that policy isolates, about nothing that the pod has sent.
    UnrelatedError = 19,
    /// Dropped: nothing that can be read, at a pod that is isolated or bound to its addresses.
    Unreadable = 20,
    /// Dropped: a pod sends from an address, IP or MAC, that is not its own.
    ForgedSource = 21,
    /// Dropped: a pod announces an address that is not its own, by ARP or neighbour discovery.
    ForgedNeighbour = 22,
    /// Dropped: a pod acts as a router or a DHCP server.
    RogueServer = 23,
}

impl Reason {
    pub const ALL: [Self; 24] = [
        Self::NoEndpoints,
        Self::UndefinedPort,
        Self::RefusalLimit,
        Self::FlowTableFull,
        Self::FlowCollision,
        Self::Fragment,
        Self::Malformed,
        Self::NoLocalEndpoints,
        Self::SourceRange,
        Self::UnallocatedAddress,
        Self::PortsExhausted,
        Self::NoRoute,
        Self::SpoofedSource,
        Self::TooBig,
        Self::HopLimit,
        Self::FragmentedSctp,
        Self::EgressDenied,
        Self::IngressDenied,
        Self::OutOfState,
        Self::UnrelatedError,
        Self::Unreadable,
        Self::ForgedSource,
        Self::ForgedNeighbour,
        Self::RogueServer,
    ];

    /// The reason with this number; any other number is a malformed packet.
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        if (number as usize) < Self::ALL.len() {
            Self::ALL[number as usize]
        } else {
            Self::Malformed
        }
    }

    /// The name that dumps and metrics carry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no-endpoints",
            Self::UndefinedPort => "undefined-port",
            Self::RefusalLimit => "refusal-limit",
            Self::FlowTableFull => "flow-table-full",
            Self::FlowCollision => "flow-collision",
            Self::Fragment => "fragment",
            Self::Malformed => "malformed",
            Self::NoLocalEndpoints => "no-local-endpoints",
            Self::SourceRange => "source-range",
            Self::UnallocatedAddress => "unallocated-address",
            Self::PortsExhausted => "ports-exhausted",
            Self::NoRoute => "no-route",
            Self::SpoofedSource => "spoofed-source",
            Self::TooBig => "too-big",
            Self::HopLimit => "hop-limit",
            Self::FragmentedSctp => "fragmented-sctp",
            Self::EgressDenied => "egress-denied",
            Self::IngressDenied => "ingress-denied",
            Self::OutOfState => "out-of-state",
            Self::UnrelatedError => "unrelated-error",
            Self::Unreadable => "unreadable",
            Self::ForgedSource => "forged-source",
            Self::ForgedNeighbour => "forged-neighbour",
            Self::RogueServer => "rogue-server",
        }
    }
}
