//! Frontends, services and backends: how a new flow finds where to go.
//!
//! `FRONTENDS[key]` names a service, `SERVICES[service]` says where its extent begins, and the
//! extent is a run of rows in `BACKENDS`: a header row, the backends that may be chosen, then those
//! that only keep the flows they have. An extent never changes once a service points at it, so one
//! store to `SERVICES` moves all frontends of the service at once.

use crate::address::{Address, UNSPECIFIED};

/// Frontends that fit. A dual-stack service port with a ClusterIP takes two, and each ClusterIP one
/// more (see [`FrontendKey::whole_address`]).
pub const MAX_FRONTENDS: usize = 262_144;
/// Services (one per service port and address family) that fit; index 0 is [`NO_SERVICE`].
pub const MAX_SERVICES: usize = 131_072;
/// Rows of all extents that fit; row 0 belongs to nobody.
pub const MAX_BACKENDS: usize = 524_288;
/// Stable backend ids that fit; id 0 is [`NO_BACKEND`].
pub const MAX_BACKEND_IDS: usize = 524_288;

/// The service index of a known address on which nothing listens at this port.
pub const NO_SERVICE: u32 = 0;
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

    /// The key that marks `address` as one of ours, whatever the port: a port of it that no service
    /// defines is refused instead of passed on.
    #[inline(always)]
    pub const fn whole_address(address: Address) -> Self {
        Self::new(address, 0, 0)
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

/// Value of `FRONTENDS`. Read and written as one `u64`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Index into `SERVICES`, or [`NO_SERVICE`].
    pub service: u32,
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

/// Value of `BACKENDS`: a row of an extent.
///
/// The header row carries the service's first frontend as address and port, the service index as
/// id, and the two counts, which are 0 on the backends' rows.
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
    /// Header: rows after those whose backends live on for the flows they have.
    pub draining: u32,
    /// Host order.
    pub port: u16,
    _pad: [u8; 2],
}

impl Backend {
    #[inline(always)]
    pub const fn new(address: Address, port: u16, id: u32, generation: u32) -> Self {
        Self {
            address,
            id,
            generation,
            count: 0,
            draining: 0,
            port,
            _pad: [0; 2],
        }
    }

    #[inline(always)]
    pub const fn header(frontend: &FrontendKey, service: u32, count: u32, draining: u32) -> Self {
        Self {
            address: frontend.address,
            id: service,
            generation: 0,
            count,
            draining,
            port: frontend.port,
            _pad: [0; 2],
        }
    }

    /// A row that belongs to no extent.
    pub const FREE: Self = Self::new(UNSPECIFIED, 0, NO_BACKEND, 0);
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
const _: () = assert!(size_of::<Backend>() == 36);
