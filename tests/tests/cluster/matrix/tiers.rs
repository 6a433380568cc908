//! ClusterNetworkPolicies: tiers, priorities, actions, peers and protocols.

use super::case::{Case, Direction, Shape, audited, cluster_policy, policy};

const TIERS: [&str; 2] = ["Admin", "Baseline"];
const ACTIONS: [&str; 3] = ["Accept", "Deny", "Pass"];
/// The namespace that most of these are about.
const X: &str = "{namespaces: {matchLabels: {ns: x}}}";
const EVERYBODY: &str = "[{namespaces: {}}]";
const FROM_Y: &str = "[{namespaces: {matchLabels: {ns: y}}}]";

const CLOSED: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";
/// Who is meant, besides a namespace by its label.
const SUBJECTS: &[Shape] = &[
    ("everybody", "{namespaces: {}}"),
    (
        "namespaces without a team",
        "{namespaces: {matchExpressions: [{key: team, operator: DoesNotExist}]}}",
    ),
    (
        "a of all namespaces",
        "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}}",
    ),
    (
        "pods that are not of tier front, of x and y",
        "{pods: {namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [x, y]}]}, \
         podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}}}",
    ),
];

/// Peers of either direction.
const PEERS: &[Shape] = &[
    (
        "namespaces of no team red",
        "[{namespaces: {matchExpressions: [{key: team, operator: NotIn, values: [red]}]}}]",
    ),
    (
        "its own namespace",
        "[{namespaces: {matchLabels: {kubernetes.io/metadata.name: x}}}]",
    ),
    (
        "b of all namespaces",
        "[{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}}]",
    ),
    (
        "pods without a tier of namespace y",
        "[{pods: {namespaceSelector: {matchLabels: {ns: y}}, \
         podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}}]",
    ),
    (
        "namespace y or a of all namespaces",
        "[{namespaces: {matchLabels: {ns: y}}}, \
         {pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}}]",
    ),
];

/// Peers of egress alone.
const NETWORKS: &[Shape] = &[
    ("a network of IPv4", "[{networks: [10.244.1.16/28]}]"),
    ("a network of IPv6", "[{networks: ['fd00:10:244:2::/64']}]"),
    (
        "networks of both",
        "[{networks: [10.244.2.0/24, 'fd00:10:244:1::10/126']}]",
    ),
    (
        "networks or a namespace",
        "[{networks: [10.244.1.0/24]}, {namespaces: {matchLabels: {ns: z}}}]",
    ),
    ("everything", "[{networks: [0.0.0.0/0, '::/0']}]"),
    (
        "the networks of Services",
        "[{networks: [10.96.0.0/16, 'fd00:10:96::/112']}]",
    ),
    ("all nodes", "[{nodes: {}}]"),
];

const PROTOCOLS: &[Shape] = &[
    ("TCP 80", "[{tcp: {destinationPort: {number: 80}}}]"),
    ("UDP 81", "[{udp: {destinationPort: {number: 81}}}]"),
    ("SCTP 80", "[{sctp: {destinationPort: {number: 80}}}]"),
    (
        "a range of TCP",
        "[{tcp: {destinationPort: {range: {start: 81, end: 90}}}}]",
    ),
    (
        "a range of UDP",
        "[{udp: {destinationPort: {range: {start: 1, end: 65535}}}}]",
    ),
    (
        "a name that means another port each",
        "[{destinationNamedPort: web}]",
    ),
    ("a name of UDP", "[{destinationNamedPort: serve-80-udp}]"),
    (
        "a name that nobody has",
        "[{destinationNamedPort: nothing}]",
    ),
    (
        "several",
        "[{tcp: {destinationPort: {number: 81}}}, \
         {udp: {destinationPort: {range: {start: 70, end: 80}}}}, \
         {destinationNamedPort: web}]",
    ),
];

/// Peers that are not known, or not yet: the rule fails closed.
const UNKNOWN: &[Shape] = &[
    ("a domain", "[{domainNames: [example.org]}]"),
    (
        "a domain or a namespace",
        "[{namespaces: {matchLabels: {ns: y}}}, {domainNames: ['*.example.org']}]",
    ),
    (
        "a kind of a later version",
        "[{serviceAccounts: {matchLabels: {ns: y}}}]",
    ),
];

pub fn cases() -> Vec<Case> {
    [
        alone(),
        beside_policies(),
        subjects(),
        peers(),
        protocols(),
        unknown(),
        orders(),
        stacks(),
    ]
    .concat()
}

fn every(of: impl Fn(&str, &str, Direction) -> Case) -> Vec<Case> {
    let kinds = TIERS
        .into_iter()
        .flat_map(|tier| ACTIONS.map(|action| (tier, action)));
    let kinds = kinds.flat_map(|(tier, action)| Direction::BOTH.map(|it| (tier, action, it)));
    kinds
        .map(|(tier, action, direction)| of(tier, action, direction))
        .collect()
}

/// Nothing is isolated by being selected.
fn alone() -> Vec<Case> {
    every(|tier, action, direction| {
        let name = format!("{tier}: {action} {} alone", direction.rules);
        let rules = direction.rule(action, FROM_Y, "");
        Case::new(name, [cluster_policy("p", tier, 10, X, &rules)])
    })
}

/// The Admin tier comes before NetworkPolicies, the Baseline tier where none isolates.
fn beside_policies() -> Vec<Case> {
    let beside = |what: &'static str, spec: &'static str| {
        every(move |tier, action, direction| {
            let name = format!(
                "{tier}: {action} {} beside a policy that {what}",
                direction.rules
            );
            let rules = direction.rule(action, FROM_Y, "");
            let policies = [
                cluster_policy("p", tier, 10, X, &rules),
                policy("x", "p", spec),
            ];
            Case::new(name, policies)
        })
    };
    [
        beside("closes both directions", CLOSED),
        beside(
            "isolates for egress",
            "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}",
        ),
    ]
    .concat()
}

fn subjects() -> Vec<Case> {
    let of = |(name, subject): &Shape| {
        let name = format!("subjects: {name}");
        let rules = Direction::INGRESS.rule("Deny", FROM_Y, "");
        Case::new(name, [cluster_policy("p", "Baseline", 10, subject, &rules)])
    };
    SUBJECTS.iter().map(of).collect()
}

fn peers() -> Vec<Case> {
    let of = |direction: Direction, tier: &'static str| {
        move |(name, peers): &Shape| {
            let name = format!("{tier} {} {}: {name}", direction.rules, direction.peers);
            let rules = direction.rule("Deny", peers, "");
            Case::new(name, [cluster_policy("p", tier, 10, X, &rules)])
        }
    };
    let ingress = PEERS.iter().map(of(Direction::INGRESS, "Baseline"));
    let egress = PEERS
        .iter()
        .chain(NETWORKS)
        .map(of(Direction::EGRESS, "Admin"));
    ingress.chain(egress).collect()
}

fn protocols() -> Vec<Case> {
    let denied = PROTOCOLS.iter().map(|(name, protocols)| {
        let rules = Direction::EGRESS.rule("Deny", EVERYBODY, protocols);
        let policy = cluster_policy("p", "Admin", 10, X, &rules);
        Case::new(format!("denied to everybody: {name}"), [policy])
    });
    let accepted = PROTOCOLS.iter().map(|(name, protocols)| {
        let rules = Direction::INGRESS.rule("Accept", EVERYBODY, protocols);
        let accepts = cluster_policy("p", "Admin", 10, X, &rules);
        let name = format!("accepted of everybody: {name}");
        Case::new(name, [accepts, policy("x", "p", CLOSED)])
    });
    denied.chain(accepted).collect()
}

fn unknown() -> Vec<Case> {
    let both = UNKNOWN
        .iter()
        .flat_map(|peers| ACTIONS.map(|action| (peers, action)));
    let of = |((name, peers), action): (&Shape, &str)| {
        let name = format!("not known: {action} to {name}");
        let rules = Direction::EGRESS.rule(action, peers, "");
        Case::new(name, [cluster_policy("p", "Admin", 10, X, &rules)])
    };
    both.map(of).collect()
}

/// By priority, then by name, then by place: the first rule that matches decides.
fn orders() -> Vec<Case> {
    let rule = |action, peers| Direction::INGRESS.rule(action, peers, "");
    let (accept, deny) = (rule("Accept", FROM_Y), rule("Deny", EVERYBODY));
    let two = |one: (&str, u16, &str), other: (&str, u16, &str)| {
        [one, other]
            .map(|(name, priority, rules)| cluster_policy(name, "Admin", priority, X, rules))
    };
    let listed = |rules: &str| {
        [cluster_policy(
            "p",
            "Baseline",
            10,
            X,
            &format!("ingress: [{rules}]"),
        )]
    };
    let accepts = "{action: Accept, from: [{namespaces: {matchLabels: {ns: y}}}]}";
    let denies = "{action: Deny, from: [{namespaces: {}}]}";
    let passes = "{action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}}]}";
    vec![
        Case::new(
            "the lower number accepts",
            two(("p", 5, &accept), ("q", 6, &deny)),
        ),
        Case::new(
            "the lower number denies",
            two(("p", 6, &accept), ("q", 5, &deny)),
        ),
        Case::new(
            "numbers far apart",
            two(("q", 0, &accept), ("p", 1000, &deny)),
        ),
        Case::new(
            "numbers are no texts",
            two(("p", 10, &accept), ("q", 9, &deny)),
        ),
        Case::new(
            "of equal numbers the lesser name",
            two(("p", 7, &accept), ("q", 7, &deny)),
        ),
        Case::new(
            "of equal numbers the lesser name, the other way",
            two(("q", 7, &accept), ("p", 7, &deny)),
        ),
        Case::new(
            "the first rule accepts",
            listed(&format!("{accepts}, {denies}")),
        ),
        Case::new(
            "the first rule denies",
            listed(&format!("{denies}, {accepts}")),
        ),
        Case::new(
            "the first rule passes",
            listed(&format!("{passes}, {accepts}, {denies}")),
        ),
    ]
}

/// Several tiers at once.
fn stacks() -> Vec<Case> {
    let ingress = |name, tier, priority, action| {
        cluster_policy(
            name,
            tier,
            priority,
            X,
            &Direction::INGRESS.rule(action, EVERYBODY, ""),
        )
    };
    let egress = |tier, action, subject, ports| {
        cluster_policy(
            "p",
            tier,
            10,
            subject,
            &Direction::EGRESS.rule(action, EVERYBODY, ports),
        )
    };
    let own = policy(
        "x",
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
    );
    let audit = cluster_policy(
        "p",
        "Admin",
        10,
        X,
        &Direction::INGRESS.rule("Deny", EVERYBODY, ""),
    );
    let tcp = "[{tcp: {destinationPort: {range: {start: 1, end: 65535}}}}]";
    vec![
        Case::new(
            "passed on to NetworkPolicies",
            [
                ingress("p", "Admin", 10, "Pass"),
                own.clone(),
                ingress("q", "Baseline", 10, "Deny"),
            ],
        ),
        Case::new(
            "passed on to the Baseline tier",
            [
                ingress("p", "Admin", 10, "Pass"),
                ingress("q", "Baseline", 10, "Deny"),
            ],
        ),
        Case::new(
            "a policy opens what the Baseline tier denies",
            [
                policy("x", "p", "{podSelector: {}, ingress: [{}]}"),
                ingress("q", "Baseline", 10, "Deny"),
            ],
        ),
        Case::new(
            "a policy opens what the Admin tier denies",
            [
                policy("x", "p", "{podSelector: {}, ingress: [{}]}"),
                ingress("q", "Admin", 10, "Deny"),
            ],
        ),
        Case::new(
            "passed over a denial of the same tier",
            [
                ingress("p", "Admin", 10, "Pass"),
                ingress("q", "Admin", 11, "Deny"),
            ],
        ),
        Case::new(
            "passed out of the Baseline tier",
            [
                ingress("p", "Baseline", 10, "Pass"),
                ingress("q", "Baseline", 11, "Deny"),
            ],
        ),
        Case::new(
            "accepted before the Baseline tier denies",
            [
                ingress("p", "Admin", 10, "Accept"),
                ingress("q", "Baseline", 10, "Deny"),
            ],
        ),
        Case::new(
            "accepted egress is judged where it arrives",
            [egress("Admin", "Accept", "{namespaces: {}}", ""), own],
        ),
        Case::new(
            "each direction has its own verdict",
            [
                egress("Admin", "Deny", "{namespaces: {matchLabels: {ns: y}}}", tcp),
                ingress("q", "Baseline", 10, "Deny"),
            ],
        ),
        Case::new(
            "everything is denied but TCP",
            [
                egress("Baseline", "Accept", "{namespaces: {}}", tcp),
                cluster_policy(
                    "q",
                    "Baseline",
                    20,
                    "{namespaces: {}}",
                    &Direction::EGRESS.rule("Deny", EVERYBODY, ""),
                ),
            ],
        ),
        Case::new("an audited denial of the cluster", [audited(&audit)]),
        Case::new(
            "an audited denial before another",
            [audited(&audit), ingress("q", "Admin", 20, "Deny")],
        ),
    ]
}
