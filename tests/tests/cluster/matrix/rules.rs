//! One NetworkPolicy with one rule, in all the shapes that its parts may have.

use super::case::{Case, Direction, Shape, policy};

/// Rows 2 and 4: lists that are absent, and lists that are empty.
const LISTS: &[Shape] = &[
    ("a policy that says nothing", "{}"),
    ("an empty podSelector", "{podSelector: {}}"),
    (
        "no ingress rules",
        "{podSelector: {}, policyTypes: [Ingress]}",
    ),
    (
        "an empty list of ingress rules",
        "{podSelector: {}, policyTypes: [Ingress], ingress: []}",
    ),
    (
        "an empty ingress rule",
        "{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}",
    ),
    (
        "an ingress rule of empty lists",
        "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [], ports: []}]}",
    ),
    (
        "an empty ingress rule without types",
        "{podSelector: {}, ingress: [{}]}",
    ),
    (
        "no egress rules",
        "{podSelector: {}, policyTypes: [Egress]}",
    ),
    (
        "an empty list of egress rules",
        "{podSelector: {}, policyTypes: [Egress], egress: []}",
    ),
    (
        "an empty egress rule",
        "{podSelector: {}, policyTypes: [Egress], egress: [{}]}",
    ),
    (
        "an egress rule of empty lists",
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [], ports: []}]}",
    ),
    (
        "an empty list of egress rules without types",
        "{podSelector: {}, egress: []}",
    ),
    (
        "an empty egress rule without types",
        "{podSelector: {}, egress: [{}]}",
    ),
    (
        "no rules of either type",
        "{podSelector: {}, policyTypes: [Ingress, Egress]}",
    ),
    (
        "empty rules of both types",
        "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}",
    ),
    (
        "ingress rules where the type is egress",
        "{podSelector: {}, policyTypes: [Egress], ingress: [{}]}",
    ),
    (
        "egress rules where the type is ingress",
        "{podSelector: {}, policyTypes: [Ingress], egress: [{}]}",
    ),
];

/// Rows 5 and 6: pods by their labels, of which some lack the key `tier`.
const SUBJECTS: &[Shape] = &[
    ("a", "{matchLabels: {pod: a}}"),
    ("nobody", "{matchLabels: {pod: d}}"),
    (
        "two labels that meet",
        "{matchLabels: {pod: a, tier: front}}",
    ),
    (
        "two labels that do not meet",
        "{matchLabels: {pod: a, tier: back}}",
    ),
    (
        "In",
        "{matchExpressions: [{key: pod, operator: In, values: [a, b]}]}",
    ),
    (
        "NotIn",
        "{matchExpressions: [{key: pod, operator: NotIn, values: [a]}]}",
    ),
    (
        "NotIn of a key that c lacks",
        "{matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}",
    ),
    (
        "Exists",
        "{matchExpressions: [{key: tier, operator: Exists}]}",
    ),
    (
        "DoesNotExist",
        "{matchExpressions: [{key: tier, operator: DoesNotExist}]}",
    ),
    (
        "labels and expressions",
        "{matchLabels: {tier: back}, \
         matchExpressions: [{key: pod, operator: NotIn, values: [a]}]}",
    ),
    (
        "two expressions of one key",
        "{matchExpressions: [{key: pod, operator: In, values: [a, b]}, \
         {key: pod, operator: NotIn, values: [a]}]}",
    ),
    (
        "expressions that contradict each other",
        "{matchExpressions: [{key: tier, operator: Exists}, \
         {key: tier, operator: DoesNotExist}]}",
    ),
];

/// Rows 5 to 9 and 29, seen from namespace x.
const PEERS: &[Shape] = &[
    ("own pods", "[{podSelector: {}}]"),
    ("own b", "[{podSelector: {matchLabels: {pod: b}}}]"),
    (
        "own pods but b",
        "[{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [b]}]}}]",
    ),
    (
        "own pods with a tier",
        "[{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}]",
    ),
    (
        "own pods that are not of tier front",
        "[{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}}]",
    ),
    ("all namespaces", "[{namespaceSelector: {}}]"),
    (
        "namespace y",
        "[{namespaceSelector: {matchLabels: {ns: y}}}]",
    ),
    (
        "namespace z by its name",
        "[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]",
    ),
    (
        "namespaces in a list",
        "[{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [x, y]}]}}]",
    ),
    (
        "namespaces but one by its name",
        "[{namespaceSelector: {matchExpressions: \
         [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]}}]",
    ),
    (
        "namespaces with a team",
        "[{namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}}]",
    ),
    (
        "namespaces without a team",
        "[{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]",
    ),
    (
        "namespaces that are not of team red",
        "[{namespaceSelector: {matchExpressions: \
         [{key: team, operator: NotIn, values: [red]}]}}]",
    ),
    (
        "b of all namespaces",
        "[{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}]",
    ),
    (
        "b of namespace y",
        "[{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]",
    ),
    (
        "pods but a of namespaces but y",
        "[{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [y]}]}, \
         podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [a]}]}}]",
    ),
    (
        "pods without a tier of namespaces without a team",
        "[{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}, \
         podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}]",
    ),
    (
        "namespace y or own b",
        "[{namespaceSelector: {matchLabels: {ns: y}}}, {podSelector: {matchLabels: {pod: b}}}]",
    ),
    (
        "no pod that is there",
        "[{podSelector: {matchLabels: {pod: d}}}]",
    ),
    (
        "no namespace that is there",
        "[{namespaceSelector: {matchLabels: {ns: w}}}]",
    ),
    ("all of IPv4", "[{ipBlock: {cidr: 0.0.0.0/0}}]"),
    ("all of IPv6", "[{ipBlock: {cidr: '::/0'}}]"),
    (
        "both families",
        "[{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]",
    ),
    (
        "a node's network",
        "[{ipBlock: {cidr: 10.244.1.0/24}}, {ipBlock: {cidr: 'fd00:10:244:1::/64'}}]",
    ),
    (
        "a node's network but some",
        "[{ipBlock: {cidr: 10.244.1.0/24, except: [10.244.1.16/28]}}, \
         {ipBlock: {cidr: 'fd00:10:244:1::/64', except: ['fd00:10:244:1::18/125']}}]",
    ),
    (
        "one address",
        "[{ipBlock: {cidr: 10.244.1.13/32}}, {ipBlock: {cidr: 'fd00:10:244:1::13/128'}}]",
    ),
    (
        "a network but all its parts",
        "[{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.0/24, 10.244.2.0/24]}}, \
         {ipBlock: {cidr: 'fd00:10:244::/48', \
         except: ['fd00:10:244:1::/64', 'fd00:10:244:2::/64']}}]",
    ),
    (
        "an exception that another network gives back",
        "[{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.0/24]}}, \
         {ipBlock: {cidr: 10.244.1.16/28}}, \
         {ipBlock: {cidr: 'fd00:10:244::/48', except: ['fd00:10:244:1::/64']}}, \
         {ipBlock: {cidr: 'fd00:10:244:1::10/126'}}]",
    ),
    (
        "an exception that a selector gives back",
        "[{ipBlock: {cidr: 0.0.0.0/0, except: [10.244.2.0/24]}}, \
         {namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}]",
    ),
    (
        "the networks of Services",
        "[{ipBlock: {cidr: 10.96.0.0/16}}, {ipBlock: {cidr: 'fd00:10:96::/112'}}]",
    ),
    ("somebody outside", "[{ipBlock: {cidr: 192.0.2.0/24}}]"),
];

/// Rows 3 and 11 to 14. Pods a call 80 `web`, pods c 81, and pods b none.
const PORTS: &[Shape] = &[
    ("80 without a protocol", "[{port: 80}]"),
    ("TCP 81", "[{protocol: TCP, port: 81}]"),
    ("UDP 80", "[{protocol: UDP, port: 80}]"),
    ("SCTP 80", "[{protocol: SCTP, port: 80}]"),
    ("a port that nobody serves", "[{port: 82}]"),
    ("the port of the Service", "[{port: 1080}]"),
    ("a name", "[{port: serve-81-tcp}]"),
    ("a name of UDP", "[{protocol: UDP, port: serve-80-udp}]"),
    ("a name that means another port each", "[{port: web}]"),
    (
        "a name of another protocol",
        "[{protocol: UDP, port: serve-80-tcp}]",
    ),
    ("a name of SCTP", "[{protocol: SCTP, port: web}]"),
    ("a name that nobody has", "[{port: nothing}]"),
    ("a range of both", "[{port: 80, endPort: 81}]"),
    (
        "a range that ends with one",
        "[{protocol: UDP, port: 1, endPort: 80}]",
    ),
    (
        "a range that begins with one",
        "[{protocol: TCP, port: 81, endPort: 65535}]",
    ),
    ("a range of one", "[{port: 81, endPort: 81}]"),
    ("a range of neither", "[{port: 82, endPort: 90}]"),
    (
        "a range of SCTP",
        "[{protocol: SCTP, port: 1, endPort: 65535}]",
    ),
    ("all of TCP", "[{protocol: TCP}]"),
    ("all of UDP", "[{protocol: UDP}]"),
    ("all of SCTP", "[{protocol: SCTP}]"),
    (
        "two of two protocols",
        "[{protocol: TCP, port: 80}, {protocol: UDP, port: 81}]",
    ),
    (
        "a range and a name",
        "[{protocol: UDP, port: 70, endPort: 80}, {port: web}]",
    ),
    ("all of UDP and SCTP", "[{protocol: UDP}, {protocol: SCTP}]"),
];

/// What each of [`CROSSED_PORTS`] is crossed with, for a pod of namespace y.
const CROSSED_PEERS: &[Shape] = &[
    ("own a", "[{podSelector: {matchLabels: {pod: a}}}]"),
    (
        "a of all namespaces",
        "[{namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}]",
    ),
    (
        "namespaces with a team",
        "[{namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}}]",
    ),
    (
        "c of namespace z",
        "[{namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: c}}}]",
    ),
    (
        "a network but some",
        "[{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.16/28]}}, \
         {ipBlock: {cidr: 'fd00:10:244::/48', except: ['fd00:10:244:2::/64']}}]",
    ),
];

const CROSSED_PORTS: &[Shape] = &[
    ("TCP 80", "[{port: 80}]"),
    ("UDP 81", "[{protocol: UDP, port: 81}]"),
    ("web", "[{port: web}]"),
    ("UDP 70-80", "[{protocol: UDP, port: 70, endPort: 80}]"),
    ("all of TCP", "[{protocol: TCP}]"),
];

/// Two of these stand in one rule.
const PAIRED: &[Shape] = &[
    ("own b", "{podSelector: {matchLabels: {pod: b}}}"),
    (
        "own pods without a tier",
        "{podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}",
    ),
    ("namespace y", "{namespaceSelector: {matchLabels: {ns: y}}}"),
    (
        "namespaces but x",
        "{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}",
    ),
    (
        "c of all namespaces",
        "{namespaceSelector: {}, podSelector: {matchLabels: {pod: c}}}",
    ),
    (
        "a of namespace z",
        "{namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: a}}}",
    ),
    ("node-2 by IPv4", "{ipBlock: {cidr: 10.244.2.0/24}}"),
    (
        "some of node-1 by IPv6",
        "{ipBlock: {cidr: 'fd00:10:244:1::/64', except: ['fd00:10:244:1::10/126']}}",
    ),
];

pub fn cases() -> Vec<Case> {
    let lists = LISTS.iter().map(|(name, spec)| {
        let name = format!("lists: {name}");
        Case::new(name, [policy("x", "p", spec)])
    });
    let directed = Direction::BOTH
        .into_iter()
        .flat_map(|direction| [peers(direction), ports(direction)])
        .flatten();
    let by_turns = [subjects(), crossed(), pairs()].into_iter().flatten();
    lists.chain(directed).chain(by_turns).collect()
}

/// The one direction and the other.
fn turns() -> impl Iterator<Item = Direction> {
    Direction::BOTH.into_iter().cycle()
}

fn subjects() -> Vec<Case> {
    let of = |((name, pods), direction): (&Shape, Direction)| {
        let name = format!("{} is closed for {name}", direction.rules);
        let spec = format!("{{podSelector: {pods}, policyTypes: [{}]}}", direction.kind);
        Case::new(name, [policy("y", "p", &spec)])
    };
    SUBJECTS.iter().zip(turns()).map(of).collect()
}

fn peers(direction: Direction) -> Vec<Case> {
    let of = |(name, peers): &Shape| {
        let name = format!("{} {}: {name}", direction.rules, direction.peers);
        Case::new(name, [policy("x", "p", &direction.spec("{}", peers, "[]"))])
    };
    PEERS.iter().map(of).collect()
}

fn ports(direction: Direction) -> Vec<Case> {
    let of = |(name, ports): &Shape| {
        let name = format!("{} ports: {name}", direction.rules);
        Case::new(name, [policy("x", "p", &direction.spec("{}", "[]", ports))])
    };
    PORTS.iter().map(of).collect()
}

fn crossed() -> Vec<Case> {
    let peers = CROSSED_PEERS.iter();
    let both = peers.flat_map(|peers| CROSSED_PORTS.iter().map(move |ports| (peers, ports)));
    let of = |(((name, peers), (port, ports)), direction): ((&Shape, &Shape), Direction)| {
        let name = format!("{} {} {name} at {port}", direction.rules, direction.peers);
        let spec = direction.spec("{matchLabels: {pod: a}}", peers, ports);
        Case::new(name, [policy("y", "p", &spec)])
    };
    both.zip(turns()).map(of).collect()
}

fn pairs() -> Vec<Case> {
    let all = PAIRED.iter().enumerate();
    let both = all.flat_map(|(n, one)| PAIRED[n + 1..].iter().map(move |other| (one, other)));
    let of = |(((name, peer), (other, other_peer)), direction): ((&Shape, &Shape), Direction)| {
        let name = format!("{} {} {name} or {other}", direction.rules, direction.peers);
        let peers = format!("[{peer}, {other_peer}]");
        let pods = "{matchExpressions: [{key: pod, operator: In, values: [a, b]}]}";
        Case::new(
            name,
            [policy("x", "p", &direction.spec(pods, &peers, "[]"))],
        )
    };
    both.zip(turns()).map(of).collect()
}
