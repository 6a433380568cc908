//! Which endpoints of a service port a new flow may go to, seen from this node.
//!
//! The rules are those of `CategorizeEndpoints` in kube-proxy's `topology.go`.

use std::collections::BTreeMap;

use super::{BackendKey, Backends};

/// An endpoint of a service port, as far as the choice depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// It runs on this node.
    pub local: bool,
    /// Names of the nodes that should use it; empty: the slice does not say.
    pub nodes: &'a [String],
    /// Names of the zones that should use it; empty: the slice does not say.
    pub zones: &'a [String],
}

/// What a service port asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// It can be reached other than by its ClusterIP.
    pub external: bool,
}

/// Where this node is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Name of its Node object.
    pub node: &'a str,
    pub zone: Option<&'a str>,
}

impl Policies {
    /// Whether some flow may go to any node: under `externalTrafficPolicy: Local` those of local
    /// pods and host processes do.
    fn use_cluster(self) -> bool {
        !self.internal_local || self.external
    }

    /// Whether some flow must stay on this node.
    fn use_local(self) -> bool {
        self.internal_local || self.external_local && self.external
    }
}

/// Sorts the endpoints of a service port by the lists that they are on.
///
/// Each list has the ready endpoints; where there is none, those that serve while they terminate.
/// Hints narrow the cluster list down, never the local one, and never to nothing. What serves and
/// is on neither list keeps the flows it has.
pub fn categorize(
    endpoints: &BTreeMap<BackendKey, Candidate<'_>>,
    policies: Policies,
    place: Place<'_>,
) -> Backends {
    let all = || endpoints.values();
    let cluster = Condition::best(all()).filter(|_| policies.use_cluster());
    let local = Condition::best(all().filter(|endpoint| endpoint.local));
    let local = local.filter(|_| policies.use_local());
    let topology = Topology::of(all(), place);
    let mut backends = Backends {
        any: Condition::best(all()).is_some(),
        ..Backends::default()
    };
    for (key, endpoint) in endpoints {
        let on_local = endpoint.local && local.is_some_and(|local| local.holds(endpoint));
        let on_cluster = cluster.is_some_and(|cluster| cluster.holds(endpoint))
            && topology.allows(endpoint, place);
        let group = match (on_local, on_cluster) {
            (true, false) => &mut backends.only_local,
            (true, true) => &mut backends.both,
            (false, true) => &mut backends.only_cluster,
            (false, false) if endpoint.serving => &mut backends.draining,
            (false, false) => continue,
        };
        group.push(*key);
    }
    backends
}

/// What an endpoint must be to be chosen.
#[derive(Clone, Copy)]
enum Condition {
    Ready,
    /// Serving while it terminates: better than nothing.
    Terminating,
}

impl Condition {
    /// The best condition that some endpoint is in; `None` where none is usable.
    fn best<'a>(endpoints: impl Iterator<Item = &'a Candidate<'a>> + Clone) -> Option<Self> {
        let by_preference = [Self::Ready, Self::Terminating].into_iter();
        let mut found = by_preference
            .filter(|condition| endpoints.clone().any(|endpoint| condition.holds(endpoint)));
        found.next()
    }

    fn holds(self, endpoint: &Candidate<'_>) -> bool {
        match self {
            Self::Ready => endpoint.ready,
            Self::Terminating => endpoint.serving && endpoint.terminating,
        }
    }
}

/// Which hints count.
#[derive(Clone, Copy)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

impl Topology {
    /// A level of hints counts where every ready endpoint has one and some endpoint is meant for us.
    fn of<'a>(endpoints: impl Iterator<Item = &'a Candidate<'a>>, place: Place<'_>) -> Self {
        let ready: Vec<_> = endpoints.filter(|endpoint| endpoint.ready).collect();
        if usable(&ready, |endpoint| endpoint.nodes, place.node) {
            return Self::SameNode;
        }
        match place.zone {
            Some(zone) if usable(&ready, |endpoint| endpoint.zones, zone) => Self::SameZone,
            Some(_) | None => Self::Anywhere,
        }
    }

    fn allows(self, endpoint: &Candidate<'_>, place: Place<'_>) -> bool {
        match self {
            Self::SameNode => names(endpoint.nodes, place.node),
            Self::SameZone => place.zone.is_some_and(|zone| names(endpoint.zones, zone)),
            Self::Anywhere => true,
        }
    }
}

fn usable<'a>(
    endpoints: &[&'a Candidate<'a>],
    hints: impl Fn(&'a Candidate<'a>) -> &'a [String],
    name: &str,
) -> bool {
    endpoints.iter().all(|endpoint| !hints(endpoint).is_empty())
        && endpoints
            .iter()
            .any(|endpoint| names(hints(endpoint), name))
}

fn names(hints: &[String], name: &str) -> bool {
    hints.iter().any(|hint| hint == name)
}

#[cfg(test)]
mod tests;
