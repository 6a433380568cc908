//! Frontends, services and backends: how a new flow finds where to go.
//!
//! `FRONTENDS[key]` names a service, `SERVICES[service]` says where its extent begins, and the
//! extent is a run of rows in `BACKENDS`: a header row, the backends that may be chosen, then those
//! that only keep the flows they have. An extent never changes once a service points at it, so one
//! store to `SERVICES` moves all frontends of the service at once.
//!
//! The backends that may be chosen stand in three groups: those of the local list only, those of
//! both lists, those of the cluster list only. Each list is therefore one [`Window`] of rows.

use crate::address::{ANY_V4, Address, UNSPECIFIED};

/// Frontends that fit. A dual-stack service port with a ClusterIP takes two, and each ClusterIP one
/// more (see [`FrontendKey::whole_address`]).
pub const MAX_FRONTENDS: usize = 262_144;
/// Services (one per service port and address family) that fit; index 0 is [`NO_SERVICE`].
pub const MAX_SERVICES: usize = 131_072;
/// Rows of all extents that fit; row 0 belongs to nobody.
pub const MAX_BACKENDS: usize = 524_288;
/// Stable backend ids that fit; id 0 is [`NO_BACKEND`].
pub const MAX_BACKEND_IDS: usize = 524_288;

/// Entries of `SOURCE_RANGES` that fit.
pub const MAX_SOURCE_RANGES: usize = 65_536;
/// ServiceCIDRs that fit.
pub const MAX_CIDRS: usize = 16;
/// Clients with session affinity that fit; the least recently used make room.
pub const MAX_AFFINITIES: usize = 131_072;

/// The service index that no service has.
pub const NO_SERVICE: u32 = 0;
/// The source range set of a service that serves any source.
pub const ANY_SOURCE: u32 = 0;
/// The backend id of a flow that no service chose.
pub const NO_BACKEND: u32 = 0;

/// Key of `FRONTENDS`: what clients dial.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendKey {
    pub address: Address,
    /// Host order. 0 together with protocol 0 stands for the whole address.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    _pad: u8,
}

impl FrontendKey {
    #[inline(always)]
    pub const fn new(address: Address, port: u16, protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            _pad: 0,
        }
    }

    /// The key that says whose `address` is, whatever the port: a ClusterIP, of which a port that no
    /// service defines is refused instead of passed on, or an address of this node.
    #[inline(always)]
    pub const fn whole_address(address: Address) -> Self {
        Self::new(address, 0, 0)
    }

    /// The key of a NodePort, which is one row for all addresses of the node: those whose
    /// [`FrontendKey::whole_address`] row is [`Target::NodeAddress`] with `ports`.
    #[inline(always)]
    pub const fn node_port(v4: bool, port: u16, protocol: u8) -> Self {
        let any = if v4 { ANY_V4 } else { UNSPECIFIED };
        Self::new(any, port, protocol)
    }

    /// A digest of the key, kept in the value: elements of a kernel hash are recycled at once, so a
    /// value read without a lock may by then belong to another key.
    #[inline(always)]
    pub fn check(&self) -> u32 {
        let mut digest = u32::from(self.port) << 16 | u32::from(self.protocol);
        for word in self.address.bytes.as_chunks::<4>().0 {
            digest = (digest ^ u32::from_ne_bytes(*word))
                .wrapping_mul(0x9e37_79b1)
                .rotate_left(13);
        }
        digest
    }
}

/// What a frontend leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A whole ClusterIP: nothing listens at the ports that have no row of their own.
    Undefined,
    /// A whole address of this node; `ports`: NodePorts are served there.
    NodeAddress { ports: bool },
    Service {
        /// Index into `SERVICES`.
        index: u32,
        kind: FrontendKind,
    },
}

/// What a frontend is to its service, which decides whose policy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrontendKind {
    /// A ClusterIP: `internalTrafficPolicy`.
    Internal,
    /// A NodePort or an external IP: `externalTrafficPolicy`.
    External,
    /// An IP of a load balancer: `externalTrafficPolicy`, and `loadBalancerSourceRanges`.
    LoadBalancer,
}

impl Target {
    const NODE: u32 = 1 << 29;
    const NODE_PORTS: u32 = Self::NODE | 1;
    const LOAD_BALANCER: u32 = 1 << 30;
    const EXTERNAL: u32 = 1 << 31;
    const INDEX: u32 = Self::NODE - 1;

    /// The number that stands in the table.
    #[inline(always)]
    pub const fn pack(self) -> u32 {
        match self {
            Self::Undefined => NO_SERVICE,
            Self::NodeAddress { ports: false } => Self::NODE,
            Self::NodeAddress { ports: true } => Self::NODE_PORTS,
            Self::Service { index, kind } => {
                index
                    | match kind {
                        FrontendKind::Internal => 0,
                        FrontendKind::External => Self::EXTERNAL,
                        FrontendKind::LoadBalancer => Self::EXTERNAL | Self::LOAD_BALANCER,
                    }
            }
        }
    }

    /// What a number in the table stands for.
    #[inline(always)]
    pub const fn unpack(packed: u32) -> Self {
        match packed {
            NO_SERVICE => Self::Undefined,
            Self::NODE => Self::NodeAddress { ports: false },
            Self::NODE_PORTS => Self::NodeAddress { ports: true },
            _ => Self::Service {
                index: packed & Self::INDEX,
                kind: if packed & Self::LOAD_BALANCER != 0 {
                    FrontendKind::LoadBalancer
                } else if packed & Self::EXTERNAL != 0 {
                    FrontendKind::External
                } else {
                    FrontendKind::Internal
                },
            },
        }
    }
}

/// Value of `FRONTENDS`. Read and written as one `u64`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// A packed [`Target`].
    pub target: u32,
    /// [`FrontendKey::check`] of the key.
    pub check: u32,
}

/// Value of `SERVICES`: the extent in force. Stored as one `u64`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Row of the extent's header in `BACKENDS`; 0 where the service does not exist.
    pub first: u32,
    /// Counts the changes of this service that took effect.
    pub revision: u32,
}

/// Value of `BACKENDS`: a row of an extent, either its header or a backend.
///
/// The header row carries the service's first frontend as address and port, the service index as
/// id, and the fields that say so, which are 0 on the backends' rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: Address,
    /// Stable id of the backend: index into `LIVE`.
    pub id: u32,
    /// Value of `LIVE[id]` while this backend lives.
    pub generation: u32,
    /// Header: rows after it that new flows choose from.
    pub count: u32,
    /// Header: how many of those, from the first on, are the local list.
    pub local: u32,
    /// Header: how many of those, from the first on, are not on the cluster list.
    pub only_local: u32,
    /// Header: rows after those whose backends live on for the flows they have.
    pub draining: u32,
    /// Header: seconds for which a client keeps its backend; 0 is no affinity.
    pub affinity: u32,
    /// Header: the set of `SOURCE_RANGES` that load balancer IPs serve, or [`ANY_SOURCE`].
    pub ranges: u32,
    /// Host order.
    pub port: u16,
    /// Header: 1 for `internalTrafficPolicy: Local`.
    pub internal_local: u8,
    /// Header: 1 for `externalTrafficPolicy: Local`.
    pub external_local: u8,
    /// Header: 1 where some endpoint of the cluster is ready, or serves while it terminates.
    pub any: u8,
    pub _pad: [u8; 3],
}

impl Backend {
    #[inline(always)]
    pub const fn new(address: Address, port: u16, id: u32, generation: u32) -> Self {
        Self {
            address,
            id,
            generation,
            count: 0,
            local: 0,
            only_local: 0,
            draining: 0,
            affinity: 0,
            ranges: ANY_SOURCE,
            port,
            internal_local: 0,
            external_local: 0,
            any: 0,
            _pad: [0; 3],
        }
    }

    /// A header without backends, for the other fields to be filled in.
    #[inline(always)]
    pub const fn header(frontend: &FrontendKey, service: u32) -> Self {
        Self::new(frontend.address, frontend.port, service, 0)
    }

    /// Header: the rows of the local list.
    #[inline(always)]
    pub const fn local_list(&self) -> Window {
        Window {
            first: 0,
            count: self.local,
        }
    }

    /// Header: the rows of the cluster list.
    #[inline(always)]
    pub const fn cluster_list(&self) -> Window {
        Window {
            first: self.only_local,
            count: self.count - self.only_local,
        }
    }

    /// A row that belongs to no extent.
    pub const FREE: Self = Self::new(UNSPECIFIED, 0, NO_BACKEND, 0);
}

/// Some of the rows after an extent's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// 0 is the row after the header.
    pub first: u32,
    pub count: u32,
}

/// Key of `SOURCE_RANGES`, a longest-prefix table: any entry that matches lets the source in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeKey {
    /// A set never changes once a header names it.
    pub set: u32,
    pub address: Address,
}

impl RangeKey {
    /// Bits of the key that come before the address, for prefix lengths.
    pub const SET_BITS: u32 = 32;
}

/// Value of `CIDRS`: a network whose addresses are all services'.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    pub network: Address,
    /// Ones for the bits that count; all zero in a free place.
    pub mask: Address,
}

impl Cidr {
    /// A place that holds no network.
    pub const FREE: Self = Self {
        network: UNSPECIFIED,
        mask: UNSPECIFIED,
    };

    /// Whether the address is in the network.
    #[inline(always)]
    pub fn contains(&self, address: &Address) -> bool {
        self.mask != UNSPECIFIED && address.masked(&self.mask) == self.network
    }
}

/// Key of `AFFINITY`: a client of a service port, whichever frontend it dials.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AffinityKey {
    pub client: Address,
    /// Index into `SERVICES`.
    pub service: u32,
}

/// Value of `AFFINITY`: where the client's last connection went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// When the client last opened a connection: CLOCK_MONOTONIC in nanoseconds.
    pub last_opened: u64,
    pub address: Address,
    /// Host order.
    pub port: u16,
    _pad: [u8; 6],
}

impl Affinity {
    #[inline(always)]
    pub const fn new(address: Address, port: u16, last_opened: u64) -> Self {
        Self {
            last_opened,
            address,
            port,
            _pad: [0; 6],
        }
    }
}

/// Whether a value of `LIVE` marks a living backend. Each birth and each death adds one, so a flow
/// that remembers an odd generation sees its backend's death, and no later owner of the id can be
/// taken for it.
pub const fn is_live(generation: u32) -> bool {
    generation % 2 == 1
}

const _: () = assert!(size_of::<FrontendKey>() == 20);
const _: () = assert!(size_of::<Frontend>() == 8);
const _: () = assert!(size_of::<Extent>() == 8);
const _: () = assert!(size_of::<Backend>() == 56);
const _: () = assert!(size_of::<RangeKey>() == 20);
const _: () = assert!(size_of::<Cidr>() == 32);
const _: () = assert!(size_of::<AffinityKey>() == 20);
const _: () = assert!(size_of::<Affinity>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_survive_the_table() {
        let mut targets = vec![
            Target::Undefined,
            Target::NodeAddress { ports: false },
            Target::NodeAddress { ports: true },
        ];
        for index in [1, 2, MAX_SERVICES as u32 - 1] {
            for kind in [
                FrontendKind::Internal,
                FrontendKind::External,
                FrontendKind::LoadBalancer,
            ] {
                targets.push(Target::Service { index, kind });
            }
        }
        for target in targets {
            assert_eq!(Target::unpack(target.pack()), target);
        }
    }
}
