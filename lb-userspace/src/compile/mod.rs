//! What the tables should say, from what the world says. Pure: the same objects give the same
//! result, whatever came before.

mod categorize;
mod endpoints;
mod local;
mod node;
pub mod policy;
mod range;
mod service;
pub mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use lb_common::{
    address::Address,
    service::{Backend, FrontendKey, FrontendKind},
};
use serde::{Deserialize, Serialize};

use self::categorize::Policies;
pub use self::{
    local::Local,
    node::{DesiredNode, node},
    range::{Range, Ranges},
    service::service,
};
use crate::world::{Family, ObjectKey, Protocol};

/// One port of a service in one address family: what has an index in `SERVICES`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PortName {
    pub service: ObjectKey,
    /// Name of the port; empty where the service's only port has none.
    pub port: String,
    pub protocol: Protocol,
    pub family: Family,
}

/// `default/web:http/TCP/IPv4`, or `default/web/TCP/IPv4` where the port has no name.
impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            service,
            port,
            protocol,
            family,
        } = self;
        write!(f, "{service}")?;
        if !port.is_empty() {
            write!(f, ":{port}")?;
        }
        write!(f, "/{protocol}/{family}")
    }
}

impl From<PortName> for String {
    fn from(name: PortName) -> Self {
        name.to_string()
    }
}

/// A text that names no service port.
#[derive(Debug, PartialEq, Eq)]
pub struct NotPortName;

impl fmt::Display for NotPortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the name of a service port")
    }
}

impl TryFrom<String> for PortName {
    type Error = NotPortName;

    fn try_from(text: String) -> Result<Self, NotPortName> {
        text.parse()
    }
}

impl FromStr for PortName {
    type Err = NotPortName;

    fn from_str(text: &str) -> Result<Self, NotPortName> {
        let parts: Vec<_> = text.split('/').collect();
        let [namespace, name, protocol, family] = parts[..] else {
            return Err(NotPortName);
        };
        let (name, port) = name.split_once(':').unwrap_or((name, ""));
        let families = [Family::IPv4, Family::IPv6];
        Ok(Self {
            service: ObjectKey::new(namespace, name),
            port: port.to_owned(),
            protocol: Protocol::ALL
                .into_iter()
                .find(|p| p.to_string() == protocol)
                .ok_or(NotPortName)?,
            family: families
                .into_iter()
                .find(|f| f.to_string() == family)
                .ok_or(NotPortName)?,
        })
    }
}

/// What the tables should say about one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The service's ClusterIPs: a port of these that no service defines is refused.
    pub addresses: BTreeSet<Address>,
    pub ports: BTreeMap<PortName, Port>,
}

/// What the tables should say about one port of a service in one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// What clients dial, and what that is to the service; the ClusterIP first. By these the service
    /// is known again after a restart.
    pub frontends: Vec<(FrontendKey, FrontendKind)>,
    pub choice: Choice,
}

/// How a service port chooses a backend for a new flow: what changes at once for all its frontends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// `internalTrafficPolicy: Local`, for flows to the ClusterIP.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`, for flows to any other frontend.
    pub external_local: bool,
    /// Seconds for which a client keeps its backend; 0: every flow chooses anew.
    pub affinity: u32,
    /// The sources that may dial the load balancer's IPs; none: any source.
    pub ranges: Ranges,
    pub backends: Backends,
}

/// A backend by what it is, not by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendKey {
    pub address: Address,
    /// Host order.
    pub port: u16,
}

impl From<&Backend> for BackendKey {
    fn from(row: &Backend) -> Self {
        Self {
            address: row.address,
            port: row.port,
        }
    }
}

/// The backends of a service port, each once; each group in order of address and port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// On the local list, which flows use that must stay on this node.
    pub only_local: Vec<BackendKey>,
    /// On the local list and on the cluster list.
    pub both: Vec<BackendKey>,
    /// On the cluster list, which all other flows use.
    pub only_cluster: Vec<BackendKey>,
    /// Those that only keep the flows they have.
    pub draining: Vec<BackendKey>,
    /// Whether some endpoint, here or elsewhere, is fit for new flows: with none, clients are
    /// refused; else an empty local list drops what must stay on this node.
    pub any: bool,
}

impl Backends {
    /// What flows choose from that must stay on this node.
    pub fn local_list(&self) -> impl Iterator<Item = &BackendKey> {
        self.only_local.iter().chain(&self.both)
    }

    /// What all other flows choose from.
    pub fn cluster_list(&self) -> impl Iterator<Item = &BackendKey> {
        self.both.iter().chain(&self.only_cluster)
    }

    /// Those that some flow may choose, in the order of the table.
    pub fn chosen(&self) -> impl Iterator<Item = &BackendKey> {
        self.local_list().chain(&self.only_cluster)
    }

    /// Those that may be chosen, then those that drain.
    pub fn all(&self) -> impl Iterator<Item = &BackendKey> {
        self.chosen().chain(&self.draining)
    }
}

#[cfg(test)]
mod tests;
