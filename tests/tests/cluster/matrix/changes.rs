//! Row 31: policies, and the labels of pods and namespaces, that change while a policy is in force.
//! Each case begins where the one before it has ended.

use super::case::{Case, Direction, cluster_policy, namespace, pod, policy};

/// Lets b of team blue reach the pods a of namespace x.
fn before() -> String {
    let peers = "[{namespaceSelector: {matchLabels: {team: blue}}, \
                 podSelector: {matchLabels: {pod: b}}}]";
    policy(
        "x",
        "p",
        &Direction::INGRESS.spec("{matchLabels: {pod: a}}", peers, "[]"),
    )
}

pub fn cases() -> Vec<Case> {
    [
        labels_of_peers(),
        labels_of_subjects(),
        policies(),
        labels_and_tiers(),
    ]
    .concat()
}

fn labels_of_peers() -> Vec<Case> {
    let changed = [
        ("nothing has changed yet", vec![]),
        ("a peer loses its label", vec![pod("y", "b", "{pod: null}")]),
        ("a peer gets another label", vec![pod("y", "b", "{pod: d}")]),
        ("a pod becomes a peer", vec![pod("y", "c", "{pod: b}")]),
        (
            "a pod becomes a peer and another is none any more",
            vec![pod("y", "c", "{pod: b}"), pod("y", "b", "{pod: c}")],
        ),
        (
            "a namespace's pods become peers",
            vec![namespace("z", "{team: blue}")],
        ),
        (
            "a namespace loses its label",
            vec![namespace("y", "{team: null}")],
        ),
        (
            "two namespaces change places",
            vec![
                namespace("y", "{team: red}"),
                namespace("z", "{team: blue}"),
            ],
        ),
        (
            "the policy's own namespace gets the label",
            vec![namespace("x", "{team: blue}")],
        ),
        (
            "a pod and its namespace change at once",
            vec![namespace("z", "{team: blue}"), pod("z", "c", "{pod: b}")],
        ),
    ];
    let all = changed.into_iter().map(|(name, labels)| {
        let name = format!("labels of peers: {name}");
        Case::new(name, [before()].into_iter().chain(labels))
    });
    all.collect()
}

fn labels_of_subjects() -> Vec<Case> {
    let changed = [
        (
            "a pod is selected no longer",
            vec![pod("x", "a", "{pod: d}")],
        ),
        ("a pod is selected", vec![pod("x", "c", "{pod: a}")]),
        (
            "another pod is selected",
            vec![pod("x", "a", "{pod: b}"), pod("x", "b", "{pod: a}")],
        ),
        (
            "a label that nobody asks for changes",
            vec![pod("x", "a", "{tier: none}")],
        ),
    ];
    let all = changed.into_iter().map(|(name, labels)| {
        let name = format!("labels of subjects: {name}");
        Case::new(name, [before()].into_iter().chain(labels))
    });
    all.collect()
}

fn policies() -> Vec<Case> {
    let spec =
        |pods: &str, rest: &str| policy("x", "p", &format!("{{podSelector: {pods}, {rest}}}"));
    let a = "{matchLabels: {pod: a}}";
    vec![
        Case::new(
            "a policy selects others",
            [spec("{matchLabels: {pod: c}}", "ingress: []")],
        ),
        Case::new(
            "a policy gets a rule",
            [spec(
                "{matchLabels: {pod: c}}",
                "ingress: [{from: [{podSelector: {}}]}]",
            )],
        ),
        Case::new(
            "a policy gets other rules",
            [spec(
                "{matchLabels: {pod: c}}",
                "ingress: [{ports: [{port: 81}]}]",
            )],
        ),
        Case::new(
            "a policy turns round",
            [spec(
                a,
                "policyTypes: [Egress], egress: [{ports: [{port: 81}]}]",
            )],
        ),
        Case::new(
            "a policy is about both directions",
            [spec(
                a,
                "policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 80}]}], egress: [{ports: [{port: 81}]}]",
            )],
        ),
        Case::new(
            "a policy is joined by another",
            [
                spec(
                    a,
                    "policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 80}]}], egress: [{ports: [{port: 81}]}]",
                ),
                policy(
                    "x",
                    "q",
                    "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP}]}]}",
                ),
            ],
        ),
        Case::new(
            "a policy is gone",
            [policy(
                "x",
                "q",
                "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP}]}]}",
            )],
        ),
        Case::new(
            "a policy is made again in another namespace",
            [policy(
                "y",
                "q",
                "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP}]}]}",
            )],
        ),
    ]
}

fn labels_and_tiers() -> Vec<Case> {
    let subject = "{pods: {namespaceSelector: {matchLabels: {team: red}}, \
                   podSelector: {matchLabels: {pod: a}}}}";
    let peers = "[{pods: {namespaceSelector: {matchLabels: {team: blue}}, \
                 podSelector: {matchLabels: {tier: back}}}}]";
    let rules = Direction::EGRESS.rule("Deny", peers, "");
    let changed = [
        ("nothing has changed yet", vec![]),
        ("a subject's label changes", vec![pod("x", "a", "{pod: d}")]),
        ("a pod becomes a subject", vec![pod("x", "b", "{pod: a}")]),
        (
            "a namespace's pods become subjects",
            vec![namespace("z", "{team: red}")],
        ),
        (
            "a peer's label changes",
            vec![pod("y", "b", "{tier: null}")],
        ),
        ("a pod becomes a peer", vec![pod("y", "c", "{tier: back}")]),
        (
            "a namespace's pods become peers",
            vec![namespace("z", "{team: blue}")],
        ),
        (
            "a namespace's pods are peers no longer",
            vec![namespace("y", "{team: red}")],
        ),
    ];
    let all = changed.into_iter().map(|(name, labels)| {
        let name = format!("labels under a tier: {name}");
        let policy = cluster_policy("p", "Admin", 10, subject, &rules);
        Case::new(name, [policy].into_iter().chain(labels))
    });
    all.collect()
}
