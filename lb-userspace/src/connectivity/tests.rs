use std::fs;

use ipnet::IpNet;
use tempfile::TempDir;

use super::{networks::merged, *};
use crate::{explain::everywhere, source::manifests};

const NODES: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
";

fn pod(name: &str, labels: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {labels}}}\n\
         spec: {{nodeName: n1, containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}]}}]}}\n\
         status: {{podIPs: [{address}]}}\n"
    )
}

fn pods() -> String {
    [
        pod("cart", "{app: cart}", "{ip: 10.0.0.1}"),
        pod(
            "pay-5d-aaaaa",
            "{app: pay, pod-template-hash: 5d}",
            "{ip: 10.0.0.2}, {ip: 'fd00::2'}",
        ),
        pod(
            "pay-5d-bbbbb",
            "{app: pay, pod-template-hash: 5d}",
            "{ip: 10.0.0.3}, {ip: 'fd00::3'}",
        ),
    ]
    .concat()
}

fn policy(name: &str, app: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, {rules}}}\n"
    )
}

fn world(text: &str) -> World {
    let disk = TempDir::new().expect("a directory");
    let file = disk.path().join("all.yaml");
    fs::write(&file, text).expect("a file");
    everywhere(manifests::read(&file).expect("manifests"))
}

/// The difference between two sets of policies for [`pods`].
fn told(old: &str, new: &str) -> String {
    let world = |policies: &str| world(&[NODES, &pods(), policies].concat());
    compare(&world(old), &world(new)).to_string()
}

const NOTHING: &str = "every connection has the same verdict\n";
const FROM_CART: &str = "{podSelector: {matchLabels: {app: cart}}}";

#[test]
fn every_connection_that_changes_is_told_with_its_rules() {
    let open = policy(
        "pay",
        "pay",
        &format!("ingress: [{{from: [{FROM_CART}], ports: [{{port: 80}}, {{port: 443}}]}}]"),
    );
    let ports = "ports: [{port: 80}, {port: 443, endPort: 445}]";
    let moved = policy(
        "pay",
        "pay",
        &format!(
            "ingress: [{{from: [{{ipBlock: {{cidr: 172.16.0.0/12, except: [172.16.1.0/24]}}}}], {ports}}}]"
        ),
    );
    for (old, new, expected) in [
        ("", "", NOTHING.to_owned()),
        (&open, &open, NOTHING.to_owned()),
        // What is said in other words is the same.
        (
            &policy("a", "pay", "ingress: [{ports: [{port: 80, endPort: 90}]}]"),
            &policy(
                "b",
                "pay",
                "ingress: [{ports: [{port: 80, endPort: 85}]}, {ports: [{port: 85, endPort: 90}]}]",
            ),
            NOTHING.to_owned(),
        ),
        // A named port is its number.
        (
            &policy("a", "pay", "ingress: [{ports: [{port: web}]}]"),
            &policy("a", "pay", "ingress: [{ports: [{port: 8080}]}]"),
            NOTHING.to_owned(),
        ),
        (
            &open,
            &moved,
            "Denied now:
  shop/cart -> shop/pay (2 pods): 80/TCP, 443/TCP
    old: NetworkPolicy shop/pay ingress rule 0
    new: NetworkPolicy shop/pay isolates for ingress, no rule matches
Allowed now:
  172.16.0.0/12 but for 172.16.1.0/24 -> shop/pay (2 pods): 80/TCP, 443-445/TCP
    old: NetworkPolicy shop/pay isolates for ingress, no rule matches
    new: NetworkPolicy shop/pay ingress rule 0
"
            .to_owned(),
        ),
        // The node n1 may always reach its pods; each pod itself.
        (
            "",
            &policy("pay", "pay", "policyTypes: [Ingress]"),
            "Denied now:
  all 3 pods of shop, node n2 (192.168.0.2), all other IPv4 addresses, all other IPv6 addresses \
             -> shop/pay (2 pods): any port
    old: no policy speaks of it
    new: NetworkPolicy shop/pay isolates for ingress, no rule matches
"
            .to_owned(),
        ),
        (
            &policy(
                "out",
                "cart",
                "policyTypes: [Egress], egress: [{ports: [{protocol: UDP}]}]",
            ),
            &policy("out", "cart", "policyTypes: [Egress]"),
            "Denied now:
  shop/cart -> shop/pay (2 pods), node n1 (192.168.0.1), node n2 (192.168.0.2), \
             all other IPv4 addresses: UDP
    old: NetworkPolicy shop/out egress rule 0
    new: NetworkPolicy shop/out isolates for egress, no rule matches
"
            .to_owned(),
        ),
    ] {
        assert_eq!(told(old, new), expected, "{old}{new}");
    }
}

#[test]
fn what_changes_by_one_family_alone_is_told_so() {
    let blocks = |cidrs: &str| policy("pay", "pay", &format!("ingress: [{{from: [{cidrs}]}}]"));
    let both = blocks("{ipBlock: {cidr: 10.0.0.0/8}}, {ipBlock: {cidr: 'fd00::/8'}}");
    let one = blocks(
        "{ipBlock: {cidr: 10.0.0.0/8}}, {ipBlock: {cidr: 'fd00::/8', except: ['fd00::2/127']}}",
    );
    assert_eq!(
        told(&both, &one),
        "Denied now:
  shop/pay (2 pods) -> shop/pay (2 pods): any port, by IPv6 alone
    old: NetworkPolicy shop/pay ingress rule 0
    new: NetworkPolicy shop/pay isolates for ingress, no rule matches
"
    );
}

#[test]
fn who_is_in_one_set_alone_is_told_apart_from_what_changes() {
    let one = pod("a", "{}", "{ip: 10.0.0.1}, {ip: 'fd00::1'}");
    let gone = pod("b", "{}", "{ip: 10.0.0.2}");
    let other = pod("a", "{}", "{ip: 10.0.0.1}");
    let lost = pod("c", "{}", "");
    let closed = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                  metadata: {name: p, namespace: shop}\nspec: {podSelector: {}}\n";
    let old = world(&[NODES, &one, &gone, &lost].concat());
    let new = world(&[&other, &lost, closed].concat());
    let difference = compare(&old, &new);
    assert_eq!(
        difference.only_old,
        [
            "IPv6 of pod shop/a",
            "pod shop/b",
            "192.168.0.1 of node n1",
            "192.168.0.2 of node n2"
        ]
    );
    assert!(difference.only_new.is_empty());
    assert_eq!(difference.without_address, ["shop/c"]);
    let [change] = difference.changes.as_slice() else {
        panic!("{difference}");
    };
    assert_eq!(
        change
            .sources
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["all other IPv4 addresses"],
        "whoever had an address of the old set is not compared as nobody"
    );
}

#[test]
fn a_workload_that_changes_in_part_is_told_by_pod() {
    let only = |address: &str| {
        policy(
            "cart",
            "cart",
            &format!("ingress: [{{from: [{{ipBlock: {{cidr: {address}/32}}}}]}}]"),
        )
    };
    let told = told(&only("10.0.0.2"), &only("10.0.0.3"));
    assert!(
        told.contains("\n  shop/pay-5d-aaaaa -> shop/cart: any port\n"),
        "{told}"
    );
}

#[test]
fn networks_are_divided_at_their_edges_and_merged_again() {
    let nets = |texts: &[&str]| -> BTreeSet<IpNet> {
        let parsed = texts.iter().map(|text| text.parse().expect("a network"));
        parsed.collect()
    };
    let taken = ["10.0.0.1", "10.0.2.0", "10.0.2.1"].map(|text| text.parse().expect("an address"));
    let edges = nets(&[
        "10.0.0.0/8",
        "10.0.0.0/24",
        "10.0.0.1/32",
        "10.0.1.0/25",
        "10.0.1.0/24",
        "10.0.1.128/25",
        "10.0.2.0/31",
    ]);
    let divided = networks::divided(edges, &taken.into());
    let texts: Vec<_> = divided.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "all other IPv4 addresses but for 10.0.0.0/8",
            "10.0.0.0/8 but for 10.0.0.0/24 and 10.0.1.0/25 and 10.0.1.128/25",
            "10.0.0.0/24",
            "10.0.1.0/25",
            "10.0.1.128/25",
            "all other IPv6 addresses",
        ],
        "no network that others fill, nor one of pods alone"
    );
    let some = divided[1..4].to_vec();
    assert_eq!(
        merged(some)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.0.0.0/8 but for 10.0.1.128/25"]
    );
}

#[test]
fn some_hundred_pods_are_compared() {
    let all: String = (0..400)
        .map(|n| {
            let name = format!("p{n}");
            pod(
                &name,
                &format!("{{app: a{}}}", n % 50),
                &format!("{{ip: 10.1.{}.{}}}", n / 250, n % 250),
            )
        })
        .collect();
    let policies = |port: u16| -> String {
        (0..50)
            .map(|n| {
                let peer = format!(
                    "{{podSelector: {{matchLabels: {{app: a{}}}}}}}",
                    (n + 1) % 50
                );
                let rules = format!("ingress: [{{from: [{peer}], ports: [{{port: {port}}}]}}]");
                policy(&format!("p{n}"), &format!("a{n}"), &rules)
            })
            .collect()
    };
    let old = world(&[NODES, &all, &policies(80)].concat());
    let new = world(&[NODES, &all, &policies(81)].concat());
    let difference = compare(&old, &new);
    let changed = difference.changes.iter();
    let pairs: usize = changed
        .map(|it| it.sources.len() * it.destinations.len())
        .sum();
    assert_eq!(pairs, 2 * 400 * 8);
}
