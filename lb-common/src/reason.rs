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
    /// Dropped: a fragment to or from a service, whose ports cannot be told.
    Fragment = 5,
    /// Dropped: the packet ends before its headers do, or could not be rewritten.
    Malformed = 6,
}

impl Reason {
    pub const ALL: [Self; 7] = [
        Self::NoEndpoints,
        Self::UndefinedPort,
        Self::RefusalLimit,
        Self::FlowTableFull,
        Self::FlowCollision,
        Self::Fragment,
        Self::Malformed,
    ];

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
        }
    }
}
