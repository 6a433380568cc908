//! Several NetworkPolicies, and rules of several parts: they add up, in any order.

use super::case::{Case, Direction, Shape, audited, policy};

const CLOSED: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";

/// Several rules of one policy.
const RULES: &[Shape] = &[
    (
        "two rules of other peers and ports",
        "{podSelector: {}, ingress: [\
         {from: [{podSelector: {}}], ports: [{port: 80}]}, \
         {from: [{namespaceSelector: {matchLabels: {ns: y}}}], \
         ports: [{protocol: UDP, port: 81}]}]}",
    ),
    (
        "a narrow rule and a wide one",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], \
         ports: [{port: 80}]}, {from: [{namespaceSelector: {}}]}]}",
    ),
    (
        "three rules of egress",
        "{podSelector: {}, policyTypes: [Egress], egress: [\
         {to: [{podSelector: {}}]}, \
         {to: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: web}]}, \
         {to: [{ipBlock: {cidr: 10.244.1.16/28}}], ports: [{protocol: UDP}]}]}",
    ),
    (
        "rules of both directions",
        "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress], \
         ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}], \
         egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 80}]}]}",
    ),
    (
        "one direction open, the other closed",
        "{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{}]}",
    ),
    (
        "answers need no rule",
        "{podSelector: {matchLabels: {pod: c}}, policyTypes: [Ingress, Egress], \
         ingress: [{from: [{namespaceSelector: {}}]}]}",
    ),
];

/// Two policies of namespace x, by their specs.
const TWO: &[(&str, &str, &str)] = &[
    (
        "closed, and open for b",
        CLOSED,
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}",
    ),
    (
        "closed, and open for everybody",
        CLOSED,
        "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}",
    ),
    (
        "closed, and one pod open",
        CLOSED,
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{}]}",
    ),
    (
        "peers of one and ports of the other",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}",
        "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}",
    ),
    (
        "an exception that the other gives back",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, \
         except: [10.244.1.0/24]}}]}]}",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.1.16/28}}]}]}",
    ),
    (
        "the one's network is the other's exception",
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: \
         {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}], ports: [{port: 80}]}]}",
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: \
         {cidr: 10.244.2.0/24}}], ports: [{protocol: UDP, port: 80}]}]}",
    ),
    (
        "a range and a port in it",
        "{podSelector: {}, ingress: [{from: [{podSelector: {}}], \
         ports: [{port: 1, endPort: 81}]}]}",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 80}]}]}",
    ),
    (
        "a name and a number",
        "{podSelector: {}, ingress: [{ports: [{port: web}]}]}",
        "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}",
    ),
    (
        "one that selects nobody",
        "{podSelector: {matchLabels: {pod: d}}}",
        "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
    ),
    (
        "one for each direction",
        "{podSelector: {}, policyTypes: [Ingress], \
         ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}",
        "{podSelector: {}, policyTypes: [Egress], \
         egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}",
    ),
    (
        "all of SCTP and one of UDP",
        "{podSelector: {}, ingress: [{ports: [{protocol: SCTP}]}]}",
        "{podSelector: {}, ingress: [{ports: [{protocol: UDP, port: 81}]}]}",
    ),
    (
        "other pods of the namespace",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {}}]}]}",
        "{podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress], \
         egress: [{to: [{podSelector: {}}]}]}",
    ),
];

pub fn cases() -> Vec<Case> {
    let none = Case::new("no policy at all", []);
    let rules = RULES.iter().map(|(name, spec)| {
        let name = format!("several rules: {name}");
        Case::new(name, [policy("x", "p", spec)])
    });
    let two = TWO.iter().map(|(name, one, other)| {
        let name = format!("two policies: {name}");
        Case::new(name, [policy("x", "p", one), policy("x", "q", other)])
    });
    let all = [none].into_iter().chain(rules).chain(two);
    all.chain(both_ends()).chain(audits()).collect()
}

/// Row 1: it takes the source's egress and the destination's ingress.
fn both_ends() -> Vec<Case> {
    let to_y = "[{namespaceSelector: {matchLabels: {ns: y}}}]";
    let from_x = "[{namespaceSelector: {matchLabels: {ns: x}}}]";
    let from_z = "[{namespaceSelector: {matchLabels: {ns: z}}}]";
    let sends = |ports| policy("x", "p", &Direction::EGRESS.spec("{}", to_y, ports));
    let takes = |from, ports| policy("y", "p", &Direction::INGRESS.spec("{}", from, ports));
    let closed = |namespace| policy(namespace, "p", CLOSED);
    vec![
        Case::new("both ends agree", [sends("[]"), takes(from_x, "[]")]),
        Case::new(
            "the destination wants others",
            [sends("[]"), takes(from_z, "[]")],
        ),
        Case::new(
            "both ends agree on one port",
            [
                sends("[{port: 80}, {protocol: UDP, port: 80}]"),
                takes(from_x, "[{port: 80}, {protocol: UDP, port: 81}]"),
            ],
        ),
        Case::new(
            "both ends agree on no port",
            [
                sends("[{port: 80}]"),
                takes(from_x, "[{protocol: UDP, port: 80}]"),
            ],
        ),
        Case::new("the source is closed", [closed("x"), takes(from_x, "[]")]),
        Case::new("the destination is closed", [sends("[]"), closed("y")]),
        Case::new("everything is closed", ["x", "y", "z"].map(closed)),
        Case::new(
            "one namespace opens what all others close",
            [
                closed("y"),
                closed("z"),
                policy(
                    "x",
                    "p",
                    "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}",
                ),
            ],
        ),
    ]
}

/// What is audited is not in force.
fn audits() -> Vec<Case> {
    let closed = policy("x", "p", CLOSED);
    let opens = policy(
        "x",
        "q",
        "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
    );
    let of_namespace = "---\nkind: Namespace\n\
        metadata: {name: x, annotations: {lb.io/policy-audit: 'true'}}\n";
    let elsewhere = policy("y", "p", "{podSelector: {}}");
    vec![
        Case::new("an audited policy", [audited(&closed)]),
        Case::new(
            "an audited policy beside another",
            [audited(&closed), opens.clone()],
        ),
        Case::new("a policy beside an audited one", [closed, audited(&opens)]),
        Case::new(
            "a namespace that audits",
            [opens, elsewhere, of_namespace.to_owned()],
        ),
    ]
}
