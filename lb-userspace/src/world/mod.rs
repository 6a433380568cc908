//! Everything the sources have told us, reduced to our own rows, and which keys a change concerns.
//!
//! Kubernetes' types end at the `reduce` functions of this module; what comes after sees rows only.

pub mod address;
mod claims;
pub mod endpoint_slice;
mod labels;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod policy;
mod protocol;
pub mod service;
pub mod service_cidr;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use claims::{Claim, Claims};
pub use endpoint_slice::{Endpoint, EndpointSlice, Hints, SlicePort};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
pub use labels::{Labels, Requirement, Selector};
pub use namespace::Namespace;
pub use node::{Node, close_names};
pub use pod::{LocalPod, NamedPort, Pod};
pub use policy::{Policy, PolicyName};
pub use protocol::Protocol;
use serde::{Deserialize, Serialize};
pub use service::{Service, ServicePort};
pub use service_cidr::ServiceCidr;
use table::{Changed, Table};

/// Name of an object; the namespace is empty where its kind has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// `namespace/name`, or `name` alone.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, name } = self;
        if namespace.is_empty() {
            f.write_str(name)
        } else {
            write!(f, "{namespace}/{name}")
        }
    }
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn names(kind: Kind, changed: Vec<Changed<Policy>>) -> BTreeSet<PolicyName> {
    let keys = changed.into_iter().map(|changed| changed.key);
    keys.map(|key| PolicyName { kind, key }).collect()
}

/// The kinds of objects that the agent reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Service,
    EndpointSlice,
    Node,
    Pod,
    ServiceCidr,
    Namespace,
    NetworkPolicy,
    ClusterNetworkPolicy,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::Pod,
        Self::ServiceCidr,
        Self::Namespace,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];
}

/// As Kubernetes writes it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Namespace => "Namespace",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Family {
    IPv4,
    IPv6,
}

impl Family {
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::IPv4,
            IpAddr::V6(_) => Self::IPv6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What becomes of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row<R> {
    /// `None` where the object is none of our business, or too broken to use.
    pub value: Option<R>,
    /// The object's `resourceVersion`; for a manifest, a digest of its content.
    pub version: String,
    /// What is wrong with the object, in words; the rest of it is in `value`.
    pub problems: Vec<String>,
}

/// What a source says about one kind, in the order of a list followed by a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<R> {
    /// A list begins. What is known stays in force until [`Event::InitDone`].
    Init,
    /// One object of the list.
    InitApply(ObjectKey, Row<R>),
    /// The list is complete: what it did not name is gone.
    InitDone,
    /// An object was created or changed.
    Apply(ObjectKey, Row<R>),
    Delete(ObjectKey),
}

impl<R> Event<R> {
    /// The row that the object becomes, where the event brings one.
    pub fn row_mut(&mut self) -> Option<&mut Row<R>> {
        match self {
            Self::InitApply(_, row) | Self::Apply(_, row) => Some(row),
            Self::Init | Self::InitDone | Self::Delete(_) => None,
        }
    }
}

/// One thing that a source has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Service(Event<Service>),
    EndpointSlice(Event<EndpointSlice>),
    Node(Event<Node>),
    Pod(Event<Pod>),
    ServiceCidr(Event<ServiceCidr>),
    Namespace(Event<Namespace>),
    NetworkPolicy(Event<Policy>),
    ClusterNetworkPolicy(Event<Policy>),
    Trouble(SourceTrouble),
}

/// All that ails one subject of a source, in place of what was said about it before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTrouble {
    /// A file, or a resource of the apiserver.
    pub subject: String,
    /// Empty when the subject is well again.
    pub troubles: Vec<Trouble>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub severity: Severity,
    pub text: String,
}

impl Trouble {
    pub fn error(text: String) -> Self {
        let severity = Severity::Error;
        Self { severity, text }
    }

    pub fn ignored(text: String) -> Self {
        let severity = Severity::Ignored;
        Self { severity, text }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Left out on purpose; nothing needs doing.
    Ignored,
    /// What the agent knows may be incomplete or out of date.
    Error,
}

/// Something wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub kind: Kind,
    pub key: ObjectKey,
    pub text: String,
}

/// What has to be compiled afresh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services whose own object, slices or claims changed, or all where this node's place did.
    pub services: BTreeSet<ObjectKey>,
    /// A Pod of this node changed.
    pub pods: bool,
    /// This Node changed.
    pub node: bool,
    /// A `ServiceCIDR` changed.
    pub cidrs: bool,
    /// What policies are compiled from.
    pub policy: PolicyDirty,
}

/// Objects that changed in what policies depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyDirty {
    pub pods: BTreeSet<ObjectKey>,
    pub namespaces: BTreeSet<String>,
    /// Nodes whose labels or addresses changed.
    pub nodes: BTreeSet<String>,
    pub policies: BTreeSet<PolicyName>,
}

impl PolicyDirty {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what `other` names.
    pub fn merge(&mut self, other: Self) {
        let Self {
            pods,
            namespaces,
            nodes,
            policies,
        } = other;
        self.pods.extend(pods);
        self.namespaces.extend(namespaces);
        self.nodes.extend(nodes);
        self.policies.extend(policies);
    }
}

impl Dirty {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what `other` names.
    pub fn merge(&mut self, other: Self) {
        let Self {
            services,
            pods,
            node,
            cidrs,
            policy,
        } = other;
        self.services.extend(services);
        self.pods |= pods;
        self.node |= node;
        self.cidrs |= cidrs;
        self.policy.merge(policy);
    }
}

/// All rows, with the indexes that compiling by key needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    services: Table<Service>,
    slices: Table<EndpointSlice>,
    nodes: Table<Node>,
    pods: Table<Pod>,
    service_cidrs: Table<ServiceCidr>,
    namespaces: Table<Namespace>,
    network_policies: Table<Policy>,
    cluster_network_policies: Table<Policy>,
    slices_by_service: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    claims: Claims,
    troubles: BTreeMap<String, Vec<Trouble>>,
}

impl World {
    /// Takes in one change and says what has to be compiled afresh.
    pub fn apply(&mut self, change: Change) -> Dirty {
        let mut dirty = Dirty::default();
        match change {
            Change::Service(event) => self.apply_service(event, &mut dirty),
            Change::EndpointSlice(event) => self.apply_slice(event, &mut dirty),
            Change::Node(event) => self.apply_node(event, &mut dirty),
            Change::Pod(event) => self.apply_pod(event, &mut dirty),
            Change::ServiceCidr(event) => {
                dirty.cidrs = !self.service_cidrs.apply(event).is_empty();
            }
            Change::Namespace(event) => {
                let changed = self.namespaces.apply(event).into_iter();
                dirty.policy.namespaces = changed.map(|changed| changed.key.name).collect();
            }
            Change::NetworkPolicy(event) => {
                let changed = self.network_policies.apply(event);
                dirty.policy.policies = names(Kind::NetworkPolicy, changed);
            }
            Change::ClusterNetworkPolicy(event) => {
                let changed = self.cluster_network_policies.apply(event);
                dirty.policy.policies = names(Kind::ClusterNetworkPolicy, changed);
            }
            Change::Trouble(SourceTrouble { subject, troubles }) => {
                if troubles.is_empty() {
                    self.troubles.remove(&subject);
                } else {
                    self.troubles.insert(subject, troubles);
                }
            }
        }
        dirty
    }

    /// Whether every kind has been listed once; nothing may be deleted before.
    pub fn synced(&self) -> bool {
        self.waiting_for().is_empty()
    }

    /// The kinds that have not been listed yet.
    pub fn waiting_for(&self) -> Vec<Kind> {
        [
            (Kind::Service, self.services.synced()),
            (Kind::EndpointSlice, self.slices.synced()),
            (Kind::Node, self.nodes.synced()),
            (Kind::Pod, self.pods.synced()),
            (Kind::ServiceCidr, self.service_cidrs.synced()),
            (Kind::Namespace, self.namespaces.synced()),
            (Kind::NetworkPolicy, self.network_policies.synced()),
            (
                Kind::ClusterNetworkPolicy,
                self.cluster_network_policies.synced(),
            ),
        ]
        .into_iter()
        .filter_map(|(kind, synced)| (!synced).then_some(kind))
        .collect()
    }

    /// What is wrong with objects, each with its name and the reason.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        fn of<R: Clone + PartialEq>(kind: Kind, table: &Table<R>) -> impl Iterator<Item = Problem> {
            table.rows().flat_map(move |(key, row)| {
                row.problems.iter().map(move |text| Problem {
                    kind,
                    key: key.clone(),
                    text: text.clone(),
                })
            })
        }
        of(Kind::Service, &self.services)
            .chain(self.refused_claims())
            .chain(of(Kind::EndpointSlice, &self.slices))
            .chain(of(Kind::Node, &self.nodes))
            .chain(of(Kind::Pod, &self.pods))
            .chain(of(Kind::ServiceCidr, &self.service_cidrs))
            .chain(of(Kind::Namespace, &self.namespaces))
            .chain(of(Kind::NetworkPolicy, &self.network_policies))
            .chain(of(
                Kind::ClusterNetworkPolicy,
                &self.cluster_network_policies,
            ))
    }

    /// What ails the sources, by file or resource.
    pub fn troubles(&self) -> impl Iterator<Item = (&str, &Trouble)> {
        self.troubles
            .iter()
            .flat_map(|(subject, troubles)| troubles.iter().map(move |t| (subject.as_str(), t)))
    }

    /// Every service that has a ClusterIP, by key.
    pub fn services(&self) -> impl Iterator<Item = (&ObjectKey, &Service)> {
        self.services.values()
    }

    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// The version of each object that a service is compiled from, by kind and name.
    pub fn versions_of(&self, service: &ObjectKey) -> BTreeMap<String, String> {
        let slices = self.slices_by_service.get(service).into_iter().flatten();
        let slices = slices.filter_map(|key| Some((key, &self.slices.row(key)?.version)));
        let slices = slices.map(|(key, version)| (Kind::EndpointSlice, key, version));
        let own = self.services.row(service);
        let own = own.map(|row| (Kind::Service, service, &row.version));
        own.into_iter()
            .chain(slices)
            .map(|(kind, key, version)| (format!("{kind} {key}"), version.clone()))
            .collect()
    }

    /// The slices that name the service, by key, whether or not the service exists.
    pub fn slices_of(
        &self,
        service: &ObjectKey,
    ) -> impl Iterator<Item = (&ObjectKey, &EndpointSlice)> {
        self.slices_by_service
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|key| self.slices.get(key).map(|slice| (key, slice)))
    }

    /// The service that serves a ClusterIP: of several that claim it, the one with the least key.
    pub fn owner_of(&self, address: IpAddr) -> Option<&ObjectKey> {
        self.claims.owner(Claim::ClusterIp(address))
    }

    /// The service that serves a port of an external IP or of a load balancer's VIP: of several that
    /// claim it, the one with the least key. Nobody does where the address is a ClusterIP.
    pub fn owner_of_external(
        &self,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> Option<&ObjectKey> {
        self.claims.owner(Claim::External(address, port, protocol))
    }

    /// The service that serves a NodePort: of several that claim it, the one with the least key.
    pub fn owner_of_node_port(&self, port: u16, protocol: Protocol) -> Option<&ObjectKey> {
        self.claims.owner(Claim::NodePort(port, protocol))
    }

    /// The networks that ClusterIPs are taken from, each once, in order.
    pub fn service_cidrs(&self) -> BTreeSet<IpNet> {
        let rows = self.service_cidrs.values();
        rows.flat_map(|(_, row)| row.cidrs.iter().copied())
            .collect()
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(&ObjectKey::new("", name))
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&ObjectKey, &Node)> {
        self.nodes.values()
    }

    /// The Pods of this node that have a network of their own and have not finished, by key.
    pub fn local_pods(&self) -> impl Iterator<Item = (&ObjectKey, &Pod, &LocalPod)> {
        let pods = self.pods.values();
        pods.filter_map(|(key, pod)| Some((key, pod, pod.local.as_ref()?)))
    }

    /// Whether a pod is one of [`Self::local_pods`].
    pub fn is_local(&self, pod: &ObjectKey) -> bool {
        self.pod(pod).is_some_and(|pod| pod.local.is_some())
    }

    /// The Pods of all nodes that have a network of their own and have not finished, by key.
    pub fn pods(&self) -> impl Iterator<Item = (&ObjectKey, &Pod)> {
        self.pods.values()
    }

    pub fn pods_in<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Pod)> {
        self.pods.in_namespace(namespace)
    }

    pub fn pod(&self, key: &ObjectKey) -> Option<&Pod> {
        self.pods.get(key)
    }

    pub fn namespaces(&self) -> impl Iterator<Item = (&ObjectKey, &Namespace)> {
        self.namespaces.values()
    }

    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(&ObjectKey::new("", name))
    }

    /// The policies of both kinds.
    pub fn policies(&self) -> impl Iterator<Item = (PolicyName, &Policy)> {
        let named = |kind| {
            move |(key, policy)| {
                let key = ObjectKey::clone(key);
                (PolicyName { kind, key }, policy)
            }
        };
        let of_cluster = self.cluster_network_policies.values();
        let of_namespaces = self.network_policies.values();
        of_namespaces
            .map(named(Kind::NetworkPolicy))
            .chain(of_cluster.map(named(Kind::ClusterNetworkPolicy)))
    }

    pub fn policy(&self, name: &PolicyName) -> Option<&Policy> {
        match name.kind {
            Kind::ClusterNetworkPolicy => self.cluster_network_policies.get(&name.key),
            _ => self.network_policies.get(&name.key),
        }
    }

    fn apply_service(&mut self, event: Event<Service>, dirty: &mut Dirty) {
        for Changed { key, was } in self.services.apply(event) {
            let is = self.services.get(&key);
            self.claims
                .replace(&key, was.as_ref(), is, &mut dirty.services);
            dirty.services.insert(key);
        }
    }

    fn apply_node(&mut self, event: Event<Node>, dirty: &mut Dirty) {
        for Changed { key, was } in self.nodes.apply(event) {
            let (was, is) = (was.as_ref(), self.nodes.get(&key));
            let known = || was.into_iter().chain(is);
            dirty.node |= known().next().is_none() || known().any(|node| node.own);
            if was.and_then(Node::place) != is.and_then(Node::place) {
                let services = self.services.values();
                dirty.services.extend(services.map(|(key, _)| key.clone()));
            }
            if was.map(Node::peer) != is.map(Node::peer) {
                dirty.policy.nodes.insert(key.name);
            }
        }
    }

    fn apply_pod(&mut self, event: Event<Pod>, dirty: &mut Dirty) {
        for Changed { key, was } in self.pods.apply(event) {
            let is = self.pods.get(&key);
            let known = || was.iter().chain(is);
            dirty.pods |= known().any(|pod| pod.local.is_some());
            if was.as_ref() != is {
                dirty.policy.pods.insert(key);
            }
        }
    }

    fn apply_slice(&mut self, event: Event<EndpointSlice>, dirty: &mut Dirty) {
        for Changed { key, was } in self.slices.apply(event) {
            if let Some(EndpointSlice { service, .. }) = was {
                if let Some(slices) = self.slices_by_service.get_mut(&service) {
                    slices.remove(&key);
                    if slices.is_empty() {
                        self.slices_by_service.remove(&service);
                    }
                }
                dirty.services.insert(service);
            }
            if let Some(EndpointSlice { service, .. }) = self.slices.get(&key) {
                self.slices_by_service
                    .entry(service.clone())
                    .or_default()
                    .insert(key);
                dirty.services.insert(service.clone());
            }
        }
    }

    fn refused_claims(&self) -> impl Iterator<Item = Problem> {
        self.claims.refused().map(|(key, text)| Problem {
            kind: Kind::Service,
            key: key.clone(),
            text,
        })
    }
}
