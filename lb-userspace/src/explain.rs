//! Why a connection is allowed or denied. Pure.

use std::{fmt, net::IpAddr, str::FromStr};

use lb_common::{
    address::from_ip,
    enforce,
    policy::{CLOSED, NO_RULE, Rule},
};
use serde::{Deserialize, Serialize};

use crate::{
    compile::policy::Policies,
    world::{Change, Family, ObjectKey, Protocol, World, policy::Direction},
};

/// How many backends of a service are named to whoever asks about it.
const NAMED: usize = 3;

/// A connection that somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub source: Party,
    pub destination: Party,
    /// IANA protocol number.
    pub protocol: u8,
    /// As in [`Packet`].
    pub port: u16,
}

impl Question {
    /// The packet that it is about.
    ///
    /// # Errors
    ///
    /// A text for whoever asks: no such pod, no addresses of one family, or a service instead of a
    /// backend, of which policies know nothing.
    pub fn packet(&self, world: &World) -> Result<Packet, String> {
        let (source, destination) = addresses(world, &self.source, &self.destination)?;
        let packet = Packet {
            source,
            destination,
            protocol: self.protocol,
            port: self.port,
        };
        match service_at(world, &packet) {
            Some(service) => Err(no_peer(world, &packet, service)),
            None => Ok(packet),
        }
    }
}

/// The service that a packet is sent to.
fn service_at<'a>(world: &'a World, packet: &Packet) -> Option<&'a ObjectKey> {
    let protocols = Protocol::ALL.into_iter();
    let mut named = protocols.filter(|protocol| protocol.number() == packet.protocol);
    let external = named
        .next()
        .and_then(|protocol| world.owner_of_external(packet.destination, packet.port, protocol));
    world.owner_of(packet.destination).or(external)
}

/// Says whom to ask about instead of a service.
fn no_peer(world: &World, packet: &Packet, service: &ObjectKey) -> String {
    let Packet {
        destination,
        protocol,
        port,
        ..
    } = *packet;
    let ports = world.service(service).into_iter().flat_map(|it| &it.ports);
    let mut ports = ports.filter(|it| (it.port, it.protocol.number()) == (port, protocol));
    let Some(asked) = ports.next() else {
        return format!("Service {service} at {destination} has no such port {port}");
    };
    let slices = world.slices_of(service).map(|(_, slice)| slice);
    let slices = slices.filter(|slice| slice.family == Family::of(destination));
    let backends = slices.flat_map(|slice| {
        let ports = slice.ports.iter();
        let ports = ports.filter(|it| (&it.name, it.protocol) == (&asked.name, asked.protocol));
        let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
        ports.flat_map(move |port| {
            ready
                .clone()
                .map(|it| format!("{} {}", it.address, port.port))
        })
    });
    let backends: Vec<String> = backends.take(NAMED).collect();
    if backends.is_empty() {
        return format!(
            "Service {service} at {destination} has no ready endpoints for port {port}"
        );
    }
    format!(
        "{destination} is Service {service}, and policies are about its backends: ask about {}",
        backends.join(" or ")
    )
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Party {
    Pod(ObjectKey),
    Address(IpAddr),
}

impl FromStr for Party {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err("neither an IP address nor a pod, as NAME or NS/NAME".to_owned());
        }
        Ok(Self::Pod(ObjectKey::new(namespace, name)))
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => key.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// The first packet of a flow, after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// The destination's; 0 where the protocol has none.
    pub port: u16,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub allowed: bool,
    /// Why no policy is asked, where none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// What the pods at both ends say: the source first.
    pub verdicts: Vec<Verdict>,
    /// What is decided where somebody else has to be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<String>,
}

/// What the policies of one pod say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub pod: String,
    pub direction: String,
    pub allowed: bool,
    /// The rule that says so; `None` where no policy speaks of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What the verdict would be with audited policies in force.
    pub audited_allowed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audited_rule: Option<String>,
    /// The policies that select the pod, in order of precedence.
    pub policies: Vec<String>,
}

/// The addresses of a connection between two parties: the first that are of one family.
pub fn addresses(
    world: &World,
    source: &Party,
    destination: &Party,
) -> Result<(IpAddr, IpAddr), String> {
    let (sources, destinations) = (known(world, source)?, known(world, destination)?);
    let pairs = sources.iter().flat_map(|source| {
        let other = destinations.iter();
        other.map(move |destination| (*source, *destination))
    });
    let mut pairs = pairs.filter(|(one, other)| Family::of(*one) == Family::of(*other));
    let none = || format!("{source} and {destination} have no addresses of one family");
    pairs.next().ok_or_else(none)
}

fn known(world: &World, party: &Party) -> Result<Vec<IpAddr>, String> {
    match party {
        Party::Address(address) => Ok(vec![*address]),
        Party::Pod(key) => {
            let pod = world.pod(key);
            let pod = pod.ok_or_else(|| format!("there is no pod {key} with its own network"))?;
            Ok(pod.ips.clone())
        }
    }
}

/// The pod that has an address, and the node it runs on.
fn pod_at(world: &World, address: IpAddr) -> Option<(&ObjectKey, &str)> {
    let pods = world.pods().filter(|(_, pod)| pod.ips.contains(&address));
    let first = pods.min_by_key(|(key, pod)| (pod.terminating, *key));
    first.map(|(key, pod)| (key, pod.node.as_str()))
}

/// What all agents together know: every pod is a local one.
pub fn everywhere(changes: impl IntoIterator<Item = Change>) -> World {
    let mut world = World::default();
    for mut change in changes {
        if let Change::Pod(event) = &mut change
            && let Some(pod) = event.row_mut().and_then(|row| row.value.as_mut())
        {
            pod.local.get_or_insert_default();
        }
        world.apply(change);
    }
    world
}

/// What becomes of a packet in the world of [`everywhere`].
pub fn explain_everywhere(packet: Packet, world: &World) -> Explanation {
    let policies = Policies::boundless(world);
    explain(packet, world, |pod, direction| {
        let sets = policies.tables().endpoints.get(pod);
        let rule_set = sets.map_or(CLOSED, |sets| sets.of(direction));
        let peer = from_ip(packet.peer(direction));
        let (protocol, port) = (packet.protocol, packet.port);
        let rule = enforce::rule(policies.tables(), rule_set, &peer, protocol, port);
        Some(Verdict::new(pod, direction, rule_set, rule, &policies))
    })
}

/// What becomes of a packet; `judge` says what the policies of a pod say, where it can.
pub fn explain(
    packet: Packet,
    world: &World,
    judge: impl Fn(&ObjectKey, Direction) -> Option<Verdict>,
) -> Explanation {
    let Packet {
        source,
        destination,
        ..
    } = packet;
    let (sender, receiver) = (pod_at(world, source), pod_at(world, destination));
    let exempt = match (&sender, &receiver) {
        _ if source == destination => {
            Some("a pod may always reach itself by its own address".to_owned())
        }
        (None, None) => Some("neither end is a pod with its own network".to_owned()),
        (None, Some((pod, node))) => {
            let node = world.node(node);
            let own = node.is_some_and(|node| node.all_addresses.contains(&source));
            own.then(|| format!("{source} is the node of {pod}, which may always reach it"))
        }
        (Some(_), _) => None,
    };
    let (mut verdicts, mut elsewhere) = (Vec::new(), Vec::new());
    if exempt.is_none() {
        let sender = sender.map(|sender| (sender, Direction::Egress));
        let receiver = receiver.map(|receiver| (receiver, Direction::Ingress));
        for ((pod, node), direction) in sender.into_iter().chain(receiver) {
            match judge(pod, direction) {
                Some(verdict) => verdicts.push(verdict),
                None => elsewhere.push(format!("{direction} of {pod} is decided on {node}")),
            }
        }
    }
    Explanation {
        source,
        destination,
        allowed: verdicts.iter().all(|verdict| verdict.allowed),
        because: exempt,
        verdicts,
        elsewhere,
    }
}

impl Packet {
    /// The other end, of the pod that policy is asked about in this direction.
    pub const fn peer(&self, direction: Direction) -> IpAddr {
        match direction {
            Direction::Ingress => self.source,
            Direction::Egress => self.destination,
        }
    }
}

impl Verdict {
    /// What a rule of a pod's rule set says, in names.
    pub fn new(
        pod: &ObjectKey,
        direction: Direction,
        rule_set: u32,
        rule: Rule,
        policies: &Policies,
    ) -> Self {
        let named = |number: u32| match number {
            NO_RULE => None,
            number => policies.rule_name(number).map(ToString::to_string),
        };
        let selecting = policies.policies_of(rule_set);
        Self {
            pod: pod.to_string(),
            direction: direction.to_string(),
            allowed: rule.allow == 1,
            rule: named(rule.rule),
            audited_allowed: rule.audited_allow == 1,
            audited_rule: named(rule.audited_rule),
            policies: selecting.map(ToString::to_string).collect(),
        }
    }
}

/// For a person to read.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |allowed| if allowed { "allowed" } else { "denied" };
        let Self {
            source,
            destination,
            allowed,
            because,
            verdicts,
            elsewhere,
        } = self;
        write!(f, "{source} to {destination}: {}", word(*allowed))?;
        if let Some(because) = because {
            write!(f, ": {because}")?;
        }
        for verdict in verdicts {
            let by = |rule: &Option<String>| match rule {
                Some(rule) => format!("by {rule}"),
                None => "as no policy speaks of it".to_owned(),
            };
            let Verdict { pod, direction, .. } = verdict;
            let (allowed, rule) = (word(verdict.allowed), by(&verdict.rule));
            write!(f, "\n  {direction} of {pod}: {allowed} {rule}")?;
            if (verdict.audited_allowed, &verdict.audited_rule) != (verdict.allowed, &verdict.rule)
            {
                let (allowed, rule) = (word(verdict.audited_allowed), by(&verdict.audited_rule));
                write!(f, "\n    with audited policies: {allowed} {rule}")?;
            }
            for policy in &verdict.policies {
                write!(f, "\n    selected by {policy}")?;
            }
        }
        for decided in elsewhere {
            write!(f, "\n  {decided}: ask there")?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::source::manifests::Manifests;

    const MANIFESTS: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: n1, containers: []}
status: {podIPs: [{ip: 'fd00::1'}, {ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: pay, namespace: shop, labels: {app: pay}}
spec: {nodeName: n2, containers: []}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: pay, namespace: shop}
spec:
  podSelector: {matchLabels: {app: pay}}
  ingress: [{from: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  externalIPs: [203.0.113.7]
  ports: [{name: https, port: 443}, {name: dns, port: 53}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pay-1, namespace: shop, labels: {kubernetes.io/service-name: pay}}
addressType: IPv4
ports: [{name: https, port: 8443}]
endpoints: [{addresses: [10.0.0.2]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: quiet, annotations: {lb.io/policy-audit: 'true'}}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}]}]
";

    fn explained(source: &str, destination: &str, port: u16) -> String {
        let disk = TempDir::new().expect("a directory");
        fs::write(disk.path().join("all.yaml"), MANIFESTS).expect("a file");
        let manifests = Manifests::open(disk.path()).expect("a directory");
        let world = everywhere(manifests.read("").expect("manifests"));
        let [one, other] = [source, destination].map(|text| text.parse().expect("a party"));
        let question = Question {
            source: one,
            destination: other,
            protocol: 6,
            port,
        };
        match question.packet(&world) {
            Ok(packet) => explain_everywhere(packet, &world).to_string(),
            Err(error) => error,
        }
    }

    #[test]
    fn for_a_service_its_backends_are_named() {
        for (destination, port, told) in [
            (
                "10.96.0.10",
                443,
                "10.96.0.10 is Service shop/pay, and policies are about its backends: ask about \
                 10.0.0.2 8443",
            ),
            (
                "10.96.0.10",
                444,
                "Service shop/pay at 10.96.0.10 has no such port 444",
            ),
            (
                "203.0.113.7",
                53,
                "Service shop/pay at 203.0.113.7 has no ready endpoints for port 53",
            ),
        ] {
            assert_eq!(explained("shop/cart", destination, port), told);
        }
        assert!(explained("shop/cart", "203.0.113.7", 54).contains("allowed"));
    }

    #[test]
    fn both_ends_are_explained() {
        assert_eq!(
            explained("shop/cart", "shop/pay", 80),
            "10.0.0.1 to 10.0.0.2: allowed
  egress of shop/cart: allowed as no policy speaks of it
    with audited policies: denied by ClusterNetworkPolicy quiet egress rule 0
    selected by ClusterNetworkPolicy quiet
  ingress of shop/pay: allowed by NetworkPolicy shop/pay ingress rule 0
    selected by NetworkPolicy shop/pay
"
        );
        assert_eq!(
            explained("192.168.0.1", "shop/pay", 80),
            "192.168.0.1 to 10.0.0.2: denied
  ingress of shop/pay: denied by NetworkPolicy shop/pay isolates for ingress, no rule matches
    selected by NetworkPolicy shop/pay
"
        );
    }

    #[test]
    fn what_no_policy_is_asked_about_is_told() {
        for (source, destination, told) in [
            (
                "fd00::9",
                "shop/pay",
                "fd00::9 and shop/pay have no addresses of one family",
            ),
            (
                "shop/cart",
                "shop/cart",
                "fd00::1 to fd00::1: allowed: a pod may always reach itself by its own address\n",
            ),
            (
                "8.8.8.8",
                "192.168.0.1",
                "8.8.8.8 to 192.168.0.1: allowed: neither end is a pod with its own network\n",
            ),
            (
                "shop/none",
                "shop/pay",
                "there is no pod shop/none with its own network",
            ),
            (
                "192.168.0.1",
                "10.0.0.1",
                "192.168.0.1 to 10.0.0.1: allowed: 192.168.0.1 is the node of shop/cart, \
                 which may always reach it\n",
            ),
        ] {
            assert_eq!(explained(source, destination, 80), told);
        }
    }
}
