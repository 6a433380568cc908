//! The rules of the APIs, case by case, by the numbers that `docs/network-policy.md` gives them; and
//! for each case both the documentation and the tables are asked.

use std::net::IpAddr;

use lb_tests::policy::{Cluster, Direction, Packet, may, may_by_service};
use lb_userspace::world::ObjectKey;
use serde_json::Value;

use crate::tables::Agent;

/// Namespaces x (team a), v (team b) and z (no team), each with pods a and b, on a node; a pod on the
/// host's network; nodes n1 and n2.
fn world() -> Vec<Value> {
    let mut text = String::new();
    for (n, (namespace, team)) in [("x", "team: a"), ("v", "team: b"), ("z", "")]
        .iter()
        .enumerate()
    {
        text += &format!(
            "---\nkind: Namespace\nmetadata: {{name: {namespace}, labels: \
             {{kubernetes.io/metadata.name: {namespace}, {team}}}}}\n"
        );
        for (m, app) in ["a", "b"].iter().enumerate() {
            let host = 10 * (n + 1) + m + 1;
            text += &format!(
                "---\nkind: Pod\nmetadata: {{name: {app}, namespace: {namespace}, \
                 labels: {{app: {app}}}}}\n\
                 spec: {{nodeName: n1, containers: [{{name: c, ports: [\
                 {{name: web, containerPort: {port}}}, \
                 {{name: dns, containerPort: 53, protocol: UDP}}]}}]}}\n\
                 status: {{phase: Running, podIPs: \
                 [{{ip: 10.0.0.{host}}}, {{ip: 'fd00::{host}'}}]}}\n",
                port = 8080 + m
            );
        }
    }
    for (n, role) in ["edge", "work"].iter().enumerate() {
        let n = n + 1;
        text += &format!(
            "---\nkind: Node\nmetadata: {{name: n{n}, labels: {{role: {role}}}}}\n\
             status: {{addresses: [{{type: InternalIP, address: 192.168.0.{n}}}, \
             {{type: Hostname, address: n{n}}}]}}\n"
        );
    }
    text += "---\nkind: Pod\nmetadata: {name: host, namespace: x, labels: {app: a}}\n\
             spec: {nodeName: n2, hostNetwork: true, containers: []}\n\
             status: {phase: Running, podIPs: [{ip: 192.168.0.2}]}\n";
    documents(&text)
}

fn documents(text: &str) -> Vec<Value> {
    let mut reader = text.as_bytes();
    let documents: Result<Vec<Value>, _> = serde_saphyr::read(&mut reader).collect();
    documents
        .expect("YAML")
        .into_iter()
        .filter(|it| !it.is_null())
        .collect()
}

/// The pod's first address of a family, or what the text says.
fn address(cluster: &Cluster, name: &str, v6: bool) -> IpAddr {
    let pod = cluster.pods.iter().find(|pod| {
        let metadata = &pod.metadata;
        let parts = [&metadata.namespace, &metadata.name].map(|it| it.as_deref().unwrap_or(""));
        parts.join("/") == name
    });
    let Some(pod) = pod else {
        return name.parse().expect("a pod or an address");
    };
    let ips = pod.status.as_ref().and_then(|it| it.pod_ips.clone());
    let mut ips = ips
        .into_iter()
        .flatten()
        .map(|ip| ip.ip.parse().expect("an address"));
    ips.find(|ip: &IpAddr| ip.is_ipv6() == v6)
        .expect("an address of the family")
}

/// What is to come of a packet.
fn compiled(cluster: &Cluster, agent: &Agent, packet: &Packet) -> bool {
    packet.source == packet.destination || compiled_by_service(cluster, agent, packet)
}

/// What the tables of both ends say.
fn compiled_by_service(cluster: &Cluster, agent: &Agent, packet: &Packet) -> bool {
    let pod = |address| {
        let pods = agent.world.local_pods();
        let mut pods = pods.filter(|(_, pod, _)| pod.ips.contains(&address));
        pods.next().map(|(key, ..)| key.clone())
    };
    let passes = |pod: Option<ObjectKey>, direction| {
        pod.is_none_or(|pod| agent.told(&pod, direction, packet).0.1)
    };
    let own_node = cluster.nodes.iter().any(|node| {
        let own = node.metadata.name.as_deref() == Some("n1");
        let addresses = node
            .status
            .iter()
            .flat_map(|it| it.addresses.iter().flatten());
        own && addresses
            .into_iter()
            .any(|it| it.address.parse() == Ok(packet.source))
    });
    passes(pod(packet.source), Direction::Egress)
        && (own_node || passes(pod(packet.destination), Direction::Ingress))
}

/// Holds the world with these policies and other objects against lines such as
/// `x/a > v/b tcp/80 yes`; with `>>` the packet comes through a Service. The policies are YAML documents without what is always the same.
fn check(objects: &str, lines: &str) {
    let mut all = world();
    all.extend(documents(objects));
    check_all(all, lines);
}

fn check_all(objects: Vec<Value>, lines: &str) {
    let cluster = Cluster::of(objects).expect("objects");
    let agent = Agent::of(&cluster, "n1");
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [source, way @ (">" | ">>"), destination, what, answer] = words[..] else {
            panic!("{line}");
        };
        let (protocol, port) = what.split_once('/').unwrap_or((what, "0"));
        let protocol = match protocol {
            "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            "icmp" => 1,
            other => other.parse().expect("a protocol"),
        };
        let literal = [source, destination];
        let families: &[bool] = match literal.iter().find(|it| !it.contains('/')) {
            Some(address) => &[address.contains(':')],
            None => &[false, true],
        };
        for v6 in families {
            let packet = Packet {
                source: address(&cluster, source, *v6),
                destination: address(&cluster, destination, *v6),
                protocol,
                port: port.parse().expect("a port"),
            };
            let answers = match way {
                ">" => (
                    may(&cluster, &packet, false),
                    compiled(&cluster, &agent, &packet),
                ),
                _ => (
                    may_by_service(&cluster, &packet, false),
                    compiled_by_service(&cluster, &agent, &packet),
                ),
            };
            assert_eq!(
                answers,
                (answer == "yes", answer == "yes"),
                "{line}: {packet:?}"
            );
        }
    }
}

/// A NetworkPolicy of namespace x.
fn policy(spec: &str) -> String {
    format!("---\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: {spec}\n")
}

/// A ClusterNetworkPolicy with a subject of all pods of x.
fn cluster_policy(name: &str, tier: &str, priority: u16, rules: &str) -> String {
    format!(
        "---\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{tier: {tier}, priority: {priority}, \
         subject: {{namespaces: {{matchLabels: {{team: a}}}}}}, {rules}}}\n"
    )
}

#[test]
fn row_1_a_connection_needs_egress_and_ingress_and_policies_add_up() {
    let egress = "---\nkind: NetworkPolicy\nmetadata: {name: q, namespace: v}\n\
                  spec: {policyTypes: [Egress], podSelector: {matchLabels: {app: a}}}\n";
    let a = policy("{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}");
    let b = "---\nkind: NetworkPolicy\nmetadata: {name: b, namespace: x}\n\
             spec: {podSelector: {matchLabels: {app: a}}, ingress: [{from: \
             [{namespaceSelector: {matchLabels: {team: b}}}]}]}\n";
    check(
        &[egress, &a, b].concat(),
        "x/b > x/a tcp/80 yes
         v/b > x/a tcp/80 yes
         v/a > x/a tcp/80 no
         v/b > x/b tcp/80 no
         z/a > x/a tcp/80 no
         x/a > z/a tcp/80 yes
         v/a > z/a tcp/80 no
         z/a > v/a tcp/80 yes",
    );
}

#[test]
fn row_2_policy_types_default() {
    for (spec, into, out) in [
        ("{egress: []}", "no", "yes"),
        ("{egress: [{ports: [{port: 1}]}]}", "no", "no"),
        ("{policyTypes: [Egress]}", "yes", "no"),
        ("{ingress: [{}]}", "yes", "yes"),
    ] {
        let lines = format!("v/a > x/a tcp/80 {into}\nx/a > v/a tcp/80 {out}");
        check(&policy(spec), &lines);
    }
}

#[test]
fn row_3_the_protocol_defaults_to_tcp() {
    check(
        &policy("{ingress: [{ports: [{port: 80}]}]}"),
        "v/a > x/a tcp/80 yes
         v/a > x/a udp/80 no
         v/a > x/a tcp/81 no",
    );
}

#[test]
fn row_4_no_rules_deny_and_an_empty_rule_allows() {
    for rules in ["", "ingress: [], ", "ingress: null, "] {
        let spec = format!("{{{rules}policyTypes: [Ingress]}}");
        check(&policy(&spec), "v/a > x/a tcp/80 no\nv/a > x/a icmp no");
    }
    for rule in ["{}", "{from: [], ports: []}"] {
        let spec = format!("{{ingress: [{rule}]}}");
        check(&policy(&spec), "v/a > x/a tcp/80 yes\nv/a > x/a icmp yes");
    }
}

#[test]
fn row_5_the_shapes_of_peers() {
    for (peer, xa, xb, ya, yb, za) in [
        ("[{podSelector: {}}]", "yes", "yes", "no", "no", "no"),
        (
            "[{podSelector: {matchLabels: {app: b}}}]",
            "no",
            "yes",
            "no",
            "no",
            "no",
        ),
        (
            "[{namespaceSelector: {}}]",
            "yes",
            "yes",
            "yes",
            "yes",
            "yes",
        ),
        (
            "[{namespaceSelector: {matchLabels: {team: b}}}]",
            "no",
            "no",
            "yes",
            "yes",
            "no",
        ),
        (
            "[{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: b}}}]",
            "no",
            "no",
            "no",
            "yes",
            "no",
        ),
        (
            "[{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: b}}}]",
            "no",
            "yes",
            "yes",
            "yes",
            "no",
        ),
        (
            "[{ipBlock: {cidr: 10.0.0.0/8}}, {ipBlock: {cidr: 'fd00::/8'}}]",
            "yes",
            "yes",
            "yes",
            "yes",
            "yes",
        ),
    ] {
        let spec = format!("{{podSelector: {{}}, ingress: [{{from: {peer}}}]}}");
        let lines = format!(
            "x/a > x/b tcp/80 {xa}
             x/b > x/a tcp/80 {xb}
             v/a > x/a tcp/80 {ya}
             v/b > x/a tcp/80 {yb}
             z/a > x/a tcp/80 {za}"
        );
        check(&policy(&spec), &lines);
    }
}

#[test]
fn row_6_negative_operators_select_what_lacks_the_key() {
    for (operator, y, z) in [
        ("operator: NotIn, values: [b]", "no", "yes"),
        ("operator: DoesNotExist", "no", "yes"),
        ("operator: Exists", "yes", "no"),
        ("operator: In, values: [a, b]", "yes", "no"),
    ] {
        let spec = format!(
            "{{ingress: [{{from: [{{namespaceSelector: \
             {{matchExpressions: [{{key: team, {operator}}}]}}}}]}}]}}"
        );
        let lines = format!("v/a > x/a tcp/80 {y}\nz/a > x/a tcp/80 {z}");
        check(&policy(&spec), &lines);
    }
}

#[test]
fn row_7_namespaces_are_selected_by_name() {
    let spec = "{ingress: [{from: [{namespaceSelector: \
                {matchLabels: {kubernetes.io/metadata.name: z}}}]}]}";
    check(&policy(spec), "z/a > x/a tcp/80 yes\nv/a > x/a tcp/80 no");
}

#[test]
fn row_8_exceptions_narrow_their_own_peer_alone() {
    let except = "{ingress: [{from: [{ipBlock: {cidr: 8.0.0.0/8, except: [8.8.0.0/16]}}]}]}";
    check(
        &policy(except),
        "8.1.0.1 > x/a tcp/80 yes
         8.8.8.8 > x/a tcp/80 no
         9.0.0.1 > x/a tcp/80 no",
    );
    let another = "---\nkind: NetworkPolicy\nmetadata: {name: q, namespace: x}\n\
                   spec: {ingress: [{from: [{ipBlock: {cidr: 8.8.8.0/24}}]}]}\n";
    check(
        &[&policy(except), another].concat(),
        "8.8.8.8 > x/a tcp/80 yes
         8.8.7.7 > x/a tcp/80 no
         8.1.0.1 > x/a tcp/80 yes",
    );
}

#[test]
fn row_9_networks_hold_pods_and_other_nodes_like_anybody_else() {
    let spec = "{policyTypes: [Ingress, Egress], \
                ingress: [{from: [{ipBlock: {cidr: 10.0.0.21/32}}]}], \
                egress: [{to: [{ipBlock: {cidr: 192.168.0.0/16}}]}]}";
    check(
        &policy(spec),
        "10.0.0.21 > x/a tcp/80 yes
         10.0.0.22 > x/a tcp/80 no
         x/a > 192.168.0.2 tcp/80 yes
         192.168.0.2 > x/a tcp/80 no",
    );
}

#[test]
fn row_11_a_named_port_is_the_destinations() {
    check(
        &policy("{ingress: [{ports: [{port: web}]}]}"),
        "v/a > x/a tcp/8080 yes
         v/a > x/a tcp/8081 no
         v/a > x/b tcp/8081 yes
         v/a > x/b tcp/8080 no
         v/a > x/a udp/8080 no",
    );
    check(
        &policy(
            "{policyTypes: [Egress], egress: [{ports: [{port: web}, {port: dns, protocol: UDP}]}]}",
        ),
        "x/a > v/a tcp/8080 yes
         x/a > v/b tcp/8081 yes
         x/a > v/b tcp/8080 no
         x/a > v/b udp/53 yes
         x/a > v/b tcp/53 no
         x/a > 8.8.8.8 tcp/8080 no
         x/a > 8.8.8.8 udp/53 no",
    );
    check(
        &policy("{ingress: [{ports: [{port: web, protocol: UDP}, {port: none}]}]}"),
        "v/a > x/a udp/8080 no\nv/a > x/a tcp/8080 no",
    );
}

#[test]
fn row_12_a_protocol_alone_is_all_its_ports() {
    check(
        &policy("{ingress: [{ports: [{protocol: UDP}]}]}"),
        "v/a > x/a udp/1 yes
         v/a > x/a udp/65535 yes
         v/a > x/a tcp/1 no
         v/a > x/a icmp no",
    );
}

#[test]
fn row_13_a_range_has_both_its_ends() {
    for (range, inside, outside) in [
        ("port: 53, endPort: 80", [53, 80], [52, 81]),
        ("port: 1, endPort: 65534", [1, 65534], [0, 65535]),
        ("port: 80, endPort: 80", [80, 80], [79, 81]),
    ] {
        for protocol in ["TCP", "UDP", "SCTP"] {
            let spec = format!("{{ingress: [{{ports: [{{protocol: {protocol}, {range}}}]}}]}}");
            let name = protocol.to_lowercase();
            let line = |port, answer| format!("v/a > x/a {name}/{port} {answer}\n");
            let inside = inside.map(|port| line(port, "yes")).concat();
            let outside = outside.map(|port| line(port, "no")).concat();
            check(&policy(&spec), &format!("{inside}{outside}"));
        }
    }
}

#[test]
fn row_14_sctp_is_not_tcp_and_isolates_it() {
    check(
        &policy("{ingress: [{ports: [{protocol: SCTP, port: 80}]}]}"),
        "v/a > x/a sctp/80 yes
         v/a > x/a tcp/80 no
         v/a > x/a udp/80 no",
    );
}

#[test]
fn row_15_other_protocols_pass_by_rules_without_ports() {
    for protocol in ["icmp", "0", "47", "136", "255"] {
        let line = |answer| format!("v/a > x/a {protocol} {answer}");
        check(
            &policy("{ingress: [{ports: [{protocol: TCP}, {protocol: UDP}]}]}"),
            &line("no"),
        );
        check(
            &policy("{ingress: [{from: [{namespaceSelector: {}}]}]}"),
            &line("yes"),
        );
        check("", &line("yes"));
    }
}

#[test]
fn row_18_a_node_reaches_its_own_pods_and_no_other_node_does() {
    check(
        &policy("{policyTypes: [Ingress, Egress]}"),
        "192.168.0.1 > x/a tcp/80 yes
         192.168.0.2 > x/a tcp/80 no",
    );
}

#[test]
fn row_19_what_a_pod_sends_to_its_node_is_judged() {
    check(
        &policy("{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.168.0.2/32}}]}]}"),
        "x/a > 192.168.0.1 tcp/80 no\nx/a > 192.168.0.2 tcp/80 yes",
    );
}

#[test]
fn row_20_a_pod_on_the_hosts_network_is_its_node() {
    check(
        &policy("{ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}]}]}"),
        "192.168.0.2 > x/a tcp/80 no\nv/a > 192.168.0.2 tcp/80 yes",
    );
    check(
        &policy("{ingress: [{from: [{ipBlock: {cidr: 192.168.0.2/32}}]}]}"),
        "192.168.0.2 > x/a tcp/80 yes",
    );
}

#[test]
fn row_21_a_pod_may_reach_itself() {
    check(
        &policy("{policyTypes: [Ingress, Egress]}"),
        "x/a > x/a tcp/80 yes",
    );
}

#[test]
fn row_22_a_pod_that_reaches_itself_through_a_service_is_its_own_peer() {
    check(
        &policy("{policyTypes: [Ingress, Egress]}"),
        "x/a > x/a tcp/80 yes\nx/a >> x/a tcp/80 no",
    );
    check(
        &policy("{ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}"),
        "x/a >> x/a tcp/80 yes\nx/b >> x/b tcp/80 no\nx/a >> x/b tcp/80 yes",
    );
}

/// The world, with what `change` makes of pod x/b.
fn with_b(change: impl Fn(&mut Value)) -> Vec<Value> {
    let mut objects = world();
    let b = objects.iter_mut().find(|object| {
        let metadata = &object["metadata"];
        metadata["namespace"] == "x" && metadata["name"] == "b"
    });
    change(b.expect("pod x/b"));
    objects.extend(documents(&policy(
        "{ingress: [{from: [{podSelector: {}}]}]}",
    )));
    objects
}

#[test]
fn row_26_a_terminating_pod_keeps_its_rules() {
    let objects = with_b(|b| b["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z".into());
    check_all(objects, "x/b > x/a tcp/80 yes\nv/a > x/b tcp/80 no");
}

#[test]
fn row_27_the_address_of_a_finished_pod_is_anothers() {
    let mut objects = with_b(|b| b["status"]["phase"] = "Succeeded".into());
    objects.extend(documents(
        "kind: Pod\nmetadata: {name: heir, namespace: v}\n\
         spec: {nodeName: n1, containers: []}\n\
         status: {phase: Running, podIPs: [{ip: 10.0.0.12}]}\n",
    ));
    check_all(
        objects,
        "10.0.0.12 > x/a tcp/80 no\nv/a > 10.0.0.12 tcp/80 yes",
    );
}

#[test]
fn row_28_a_pod_without_an_address_is_nobody() {
    let objects = with_b(|b| b["status"]["podIPs"] = Value::Array(Vec::new()));
    check_all(objects, "10.0.0.12 > x/a tcp/80 no\nx/a > v/a tcp/80 yes");
    let objects = with_b(|b| b["status"]["podIPs"] = serde_json::json!([{"ip": "fd00::12"}]));
    check_all(
        objects,
        "fd00::12 > x/a tcp/80 yes\n10.0.0.12 > x/a tcp/80 no",
    );
}

#[test]
fn row_29_a_network_of_one_family_says_nothing_of_the_other() {
    check(
        &policy("{ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]}"),
        "2001:db8::1 > x/a tcp/80 yes
         fd00::21 > x/a tcp/80 yes
         8.8.8.8 > x/a tcp/80 no
         10.0.0.21 > x/a tcp/80 no",
    );
    check(
        &policy("{ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"),
        "2001:db8::1 > x/a tcp/80 no
         fd00::21 > x/a tcp/80 no
         8.8.8.8 > x/a tcp/80 yes
         10.0.0.21 > x/a tcp/80 yes",
    );
}

#[test]
fn row_31_every_change_takes_effect() {
    let spec = "{ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}, \
                podSelector: {matchLabels: {app: a}}}]}]}";
    let packet = |cluster: &Cluster| Packet {
        source: address(cluster, "v/a", false),
        destination: address(cluster, "x/a", false),
        protocol: 6,
        port: 80,
    };
    let mut objects = world();
    let mut agent = Agent::new("n1");
    let mut expect = |objects: &[Value], answer: bool, what: &str| {
        let cluster = Cluster::of(objects.iter().cloned()).expect("objects");
        agent.follow(&cluster);
        assert_eq!(
            compiled(&cluster, &agent, &packet(&cluster)),
            answer,
            "{what}"
        );
        agent.settle();
        assert_eq!(
            compiled(&cluster, &agent, &packet(&cluster)),
            answer,
            "{what}, settled"
        );
    };
    fn labels<'a>(
        objects: &'a mut [Value],
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> &'a mut Value {
        let object = objects.iter_mut().find(|object| {
            let metadata = &object["metadata"];
            object["kind"] == kind
                && metadata["name"] == name
                && metadata["namespace"].as_str() == namespace
        });
        &mut object.expect("the object")["metadata"]["labels"]
    }
    expect(&objects, true, "no policy");
    objects.extend(documents(&policy("{ingress: []}")));
    expect(&objects, false, "a policy is made");
    objects.pop();
    objects.extend(documents(&policy(spec)));
    expect(&objects, true, "it changes");
    labels(&mut objects, "Pod", Some("v"), "a")["app"] = "c".into();
    expect(&objects, false, "a pod's label changes");
    labels(&mut objects, "Pod", Some("v"), "a")["app"] = "a".into();
    expect(&objects, true, "and back");
    labels(&mut objects, "Namespace", None, "v")["team"] = "c".into();
    expect(&objects, false, "a namespace's label changes");
    labels(&mut objects, "Namespace", None, "v")["team"] = "b".into();
    expect(&objects, true, "and back");
    objects.pop();
    expect(&objects, true, "the policy is gone");
}

#[test]
fn section_2_the_tiers_are_asked_in_turn() {
    let deny_all = "ingress: [{action: Deny, from: [{namespaces: {}}]}]";
    let accept_all = "ingress: [{action: Accept, from: [{namespaces: {}}]}]";
    let pass_all = "ingress: [{action: Pass, from: [{namespaces: {}}]}]";
    let closed = policy("{ingress: []}");
    let open = policy("{ingress: [{}]}");
    let admin = |rules| cluster_policy("admin", "Admin", 5, rules);
    let baseline = |rules| cluster_policy("baseline", "Baseline", 5, rules);
    for (objects, answer) in [
        (vec![admin(deny_all), open.clone()], "no"),
        (vec![admin(accept_all), closed.clone()], "yes"),
        (vec![admin(pass_all), closed.clone()], "no"),
        (vec![admin(pass_all), open.clone()], "yes"),
        (vec![admin(pass_all), baseline(deny_all)], "no"),
        (vec![open, baseline(deny_all)], "yes"),
        (vec![closed, baseline(accept_all)], "no"),
        (vec![baseline(deny_all)], "no"),
        (
            vec![
                baseline(pass_all),
                cluster_policy("later", "Baseline", 6, deny_all),
            ],
            "yes",
        ),
        (
            vec![
                admin(pass_all),
                cluster_policy("later", "Admin", 6, deny_all),
            ],
            "yes",
        ),
        (vec![], "yes"),
    ] {
        check(&objects.concat(), &format!("v/a > x/a tcp/80 {answer}"));
    }
}

#[test]
fn section_2_the_lower_priority_number_and_then_the_name_comes_first() {
    let deny = "ingress: [{action: Deny, from: [{namespaces: {}}]}]";
    let accept = "ingress: [{action: Accept, from: [{namespaces: {}}]}]";
    for (one, other, answer) in [
        (("b", 0, deny), ("a", 1000, accept), "no"),
        (("a", 1000, deny), ("b", 0, accept), "yes"),
        (("a", 9, deny), ("b", 10, accept), "no"),
        (("a", 7, deny), ("b", 7, accept), "no"),
        (("b", 7, deny), ("a", 7, accept), "yes"),
    ] {
        let policies = [one, other]
            .map(|(name, priority, rules)| cluster_policy(name, "Admin", priority, rules));
        check(&policies.concat(), &format!("v/a > x/a tcp/80 {answer}"));
    }
}

#[test]
fn section_2_nothing_is_isolated_by_being_selected() {
    let rules = "ingress: [{action: Accept, from: [{namespaces: {matchLabels: {team: b}}}]}]";
    check(
        &cluster_policy("a", "Admin", 1, rules),
        "z/a > x/a tcp/80 yes",
    );
}

#[test]
fn section_2_accepted_egress_is_still_judged_where_it_arrives() {
    let egress = cluster_policy(
        "a",
        "Admin",
        1,
        "egress: [{action: Accept, to: [{namespaces: {}}]}]",
    );
    let closed =
        "---\nkind: NetworkPolicy\nmetadata: {name: q, namespace: v}\nspec: {ingress: []}\n";
    check(
        &[&egress, closed].concat(),
        "x/a > v/a tcp/80 no\nx/a > z/a tcp/80 yes",
    );
}

#[test]
fn section_2_a_policy_of_one_direction_leaves_the_other_to_the_baseline() {
    let egress_only = policy("{policyTypes: [Egress], egress: [{}]}");
    let baseline = cluster_policy(
        "b",
        "Baseline",
        1,
        "ingress: [{action: Deny, from: [{namespaces: {}}]}]",
    );
    check(&[egress_only, baseline].concat(), "v/a > x/a tcp/80 no");
}

#[test]
fn section_2_networks_mean_pods_and_icmp_too() {
    let rules = "egress: [{action: Deny, to: [{networks: [10.0.0.16/28, 'fd00::/16']}]}]";
    check(
        &cluster_policy("a", "Admin", 1, rules),
        "x/a > 10.0.0.21 tcp/80 no
         x/a > 10.0.0.21 icmp no
         x/a > 10.0.0.31 icmp no
         x/a > 10.0.0.32 tcp/80 yes
         x/a > fd00::21 58 no
         x/a > 8.8.8.8 tcp/80 yes",
    );
}

#[test]
fn section_2_nodes_are_their_addresses_and_never_pods() {
    let rules = "egress: [{action: Deny, to: [{nodes: {matchLabels: {role: work}}}]}]";
    check(
        &cluster_policy("a", "Admin", 1, rules),
        "x/a > 192.168.0.2 tcp/80 no
         x/a > 192.168.0.2 icmp no
         x/a > 192.168.0.1 tcp/80 yes
         x/a > v/a tcp/80 yes",
    );
    let rules = "egress: [{action: Deny, to: [{nodes: {}}]}]";
    check(
        &cluster_policy("a", "Admin", 1, rules),
        "x/a > 192.168.0.1 tcp/80 no
         x/a > 192.168.0.2 tcp/80 no
         x/a > 192.168.0.3 tcp/80 yes
         x/a > v/a tcp/80 yes",
    );
}

#[test]
fn section_2_protocols_and_named_ports() {
    let rules = "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [\
                 {tcp: {destinationPort: {number: 80}}}, \
                 {udp: {destinationPort: {range: {start: 5, end: 9}}}}, \
                 {destinationNamedPort: dns}]}]";
    check(
        &cluster_policy("a", "Admin", 1, rules),
        "v/a > x/a tcp/80 no
         v/a > x/a tcp/81 yes
         v/a > x/a udp/5 no
         v/a > x/a udp/9 no
         v/a > x/a udp/10 yes
         v/a > x/a udp/53 no
         v/a > x/a tcp/53 yes
         v/a > x/a icmp yes",
    );
}

#[test]
fn section_2_peers_that_are_not_known_fail_closed() {
    for (action, known, unknown) in [
        ("Accept", "no", "no"),
        ("Deny", "no", "no"),
        ("Pass", "no", "no"),
    ] {
        let rules = format!(
            "egress: [{{action: {action}, to: [{{domainNames: [example.org]}}, \
             {{namespaces: {{matchLabels: {{team: b}}}}}}]}}, \
             {{action: Deny, to: [{{networks: [0.0.0.0/0, '::/0']}}]}}]"
        );
        let lines = format!("x/a > v/a tcp/80 {known}\nx/a > z/a tcp/80 {unknown}");
        check(&cluster_policy("a", "Admin", 1, &rules), &lines);
    }
    let accepts = "egress: [{action: Accept, to: [{domainNames: [example.org]}]}]";
    check(
        &cluster_policy("a", "Admin", 1, accepts),
        "x/a > v/a tcp/80 yes",
    );
    let passes = "egress: [{action: Pass, to: [{domainNames: [example.org]}]}]";
    check(
        &cluster_policy("a", "Admin", 1, passes),
        "x/a > 8.8.8.8 tcp/80 no",
    );
}

#[test]
fn what_is_audited_is_not_enforced_and_told() {
    let of_policy = "---\nkind: NetworkPolicy\n\
         metadata: {name: p, namespace: x, annotations: {lb.io/policy-audit: 'true'}}\n\
         spec: {ingress: []}\n";
    let of_cluster = "---\nkind: ClusterNetworkPolicy\n\
         metadata: {name: p, annotations: {lb.io/policy-audit: 'true'}}\n\
         spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, \
         ingress: [{action: Deny, from: [{namespaces: {}}]}]}\n";
    for (text, by) in [
        (
            of_policy,
            "NetworkPolicy x/p isolates for ingress, no rule matches",
        ),
        (of_cluster, "ClusterNetworkPolicy p ingress rule 0"),
    ] {
        check(text, "v/a > x/a tcp/80 yes");
        let mut objects = world();
        objects.extend(documents(text));
        let cluster = Cluster::of(objects).expect("objects");
        let packet = Packet {
            source: address(&cluster, "v/a", false),
            destination: address(&cluster, "x/a", false),
            protocol: 6,
            port: 80,
        };
        assert!(!may(&cluster, &packet, true));
        let agent = Agent::of(&cluster, "n1");
        let told = agent.told(&ObjectKey::new("x", "a"), Direction::Ingress, &packet);
        assert_eq!(told, ((None, true), (Some(by.to_owned()), false)));
    }
}

#[test]
fn a_namespace_audits_its_own_policies_and_not_those_of_the_cluster() {
    let mut objects = world();
    let x = objects
        .iter_mut()
        .find(|it| it["kind"] == "Namespace" && it["metadata"]["name"] == "x");
    x.expect("the namespace")["metadata"]["annotations"] =
        serde_json::json!({"lb.io/policy-audit": "true"});
    objects.extend(documents(&policy("{ingress: []}")));
    check_all(objects.clone(), "v/a > x/a tcp/80 yes");
    let deny = "ingress: [{action: Deny, from: [{namespaces: {}}]}]";
    objects.extend(documents(&cluster_policy("a", "Admin", 1, deny)));
    check_all(objects, "v/a > x/a tcp/80 no");
}
