//! The evaluator held against one that others wrote: `nca` of network-config-analyzer 2.1 (Apache-2.0,
//! from PyPI), where it is installed. It knows NetworkPolicies alone.

use std::{
    env, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use lb_tests::policy::{Cluster, Packet, may, yaml};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};
use serde_json::{Map, Value, json};

use crate::generate::{objects, running};

const WORLDS: usize = 300;
/// Attempts to make a world smaller that shows a difference.
const SHRINKING: usize = 200;
const PROTOCOLS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];
/// Those that rules speak of, and their neighbours.
const PORTS: [u16; 9] = [1, 52, 53, 79, 80, 81, 8080, 8081, 65535];

/// Those that pods' labels have.
const POD_LABEL_VALUES: [&str; 3] = ["a", "b", "c"];

/// `$NCA`, or what the search path has.
fn program() -> Option<PathBuf> {
    if let Some(program) = env::var_os("NCA") {
        return Some(program.into());
    }
    let path = env::var_os("PATH")?;
    let mut programs = env::split_paths(&path).map(|folder| folder.join("nca"));
    programs.find(|program| program.is_file())
}

#[test]
fn others_read_network_policies_the_same_way() {
    let Some(program) = program() else {
        eprintln!("skipped: there is no `nca` (pip install network-config-analyzer==2.1.0, NCA=…)");
        return;
    };
    let mut runner = TestRunner::default();
    let worlds = objects().prop_map(|objects| supported(&objects));
    let mut trees: Vec<_> = (0..WORLDS)
        .map(|_| worlds.new_tree(&mut runner).expect("a world"))
        .collect();
    let drawn: Vec<_> = trees.iter().map(|tree| tree.current()).collect();
    let differences = compare(&program, &drawn).expect("ask nca");
    let Some(first) = differences.iter().position(Option::is_some) else {
        return;
    };
    let tree = &mut trees[first];
    let mut smallest = (tree.current(), differences[first].clone());
    for _ in 0..SHRINKING {
        let world = tree.current();
        let difference = compare(&program, std::slice::from_ref(&world)).expect("ask nca");
        let differs = difference[0].is_some();
        if differs {
            smallest = (world, difference[0].clone());
        }
        if !(if differs {
            tree.simplify()
        } else {
            tree.complicate()
        }) {
            break;
        }
    }
    let (world, difference) = smallest;
    panic!(
        "{}\n{}",
        difference.unwrap_or_default(),
        yaml(&world).expect("YAML")
    );
}

/// The part of a world that `nca` knows: no audits, no clusters' policies, no names of ports, pods with
/// a network and an IPv4 address of their own.
fn supported(objects: &[Value]) -> Vec<Value> {
    let pods = running(objects);
    let kept = objects
        .iter()
        .filter(|object| match object["kind"].as_str() {
            Some("Pod") => pods.contains(object),
            Some("Namespace" | "NetworkPolicy") => true,
            _ => false,
        });
    kept.cloned()
        .map(|mut object| {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("annotations");
            }
            match object["kind"].as_str() {
                Some("Pod") => simplify_pod(&mut object),
                Some("NetworkPolicy") => number_ports(&mut object),
                _ => (),
            }
            object
        })
        .collect()
}

fn simplify_pod(pod: &mut Value) {
    let first = pod["status"]["podIPs"][0].clone();
    pod["status"] = json!({
        "phase": "Running",
        "hostIP": "192.168.0.1",
        "podIP": first["ip"],
        "podIPs": [first],
    });
    if let Some(spec) = pod["spec"].as_object_mut() {
        spec.remove("initContainers");
    }
}

/// Asks for a number in place of a name: `nca` forgets pods that lack a name which others have.
fn number_ports(policy: &mut Value) {
    for rules in ["ingress", "egress"] {
        let rules = policy["spec"][rules].as_array_mut();
        let ports = rules.into_iter().flatten();
        let ports = ports.filter_map(|rule| rule["ports"].as_array_mut());
        for port in ports.flatten().filter(|port| port["port"].is_string()) {
            port["port"] = 80.into();
        }
    }
}

/// The world as `nca` is to read it: as an apiserver stores it, with labels by which each pod can be
/// selected, and the pods that a network holds in place of the network, which means none to it.
fn translated(world: &[Value]) -> Vec<Value> {
    let pods = world.iter().filter(|object| object["kind"] == "Pod");
    let pods: Vec<_> = pods.map(|pod| (address(pod), pod)).collect();
    let mut objects = world.to_vec();
    for object in &mut objects {
        match object["kind"].as_str() {
            Some("Pod") => {
                object["apiVersion"] = "v1".into();
                object["metadata"]["labels"]["id"] = object["metadata"]["name"].clone();
            }
            Some("Namespace") => object["apiVersion"] = "v1".into(),
            _ => {
                object["apiVersion"] = "networking.k8s.io/v1".into();
                name_values(&mut object["spec"]);
                for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
                    let rules = object["spec"][rules].as_array_mut();
                    for rule in rules.into_iter().flatten() {
                        expand(&mut rule[peers], &pods);
                        strip(rule);
                    }
                }
                settle_types(&mut object["spec"]);
                strip(&mut object["spec"]);
            }
        }
    }
    objects
}

/// Puts pods in place of networks. A list must not become empty: that would be everybody.
fn expand(peers: &mut Value, pods: &[(IpAddr, &Value)]) {
    let Some(list) = peers.as_array_mut().filter(|list| !list.is_empty()) else {
        return;
    };
    let selected = |peer: &Value| -> Vec<Value> {
        let Some(block) = peer.get("ipBlock") else {
            return vec![peer.clone()];
        };
        let holds = |network: &Value, address| {
            let network = network.as_str().and_then(|it| it.parse::<IpNet>().ok());
            network.is_some_and(|network| network.contains(&address))
        };
        let except = block["except"]
            .as_array()
            .map_or(&[] as &[_], Vec::as_slice);
        let meant = pods.iter().filter(|(address, _)| {
            holds(&block["cidr"], *address) && !except.iter().any(|it| holds(it, *address))
        });
        meant
            .map(|(_, pod)| {
                let own = json!({ "kubernetes.io/metadata.name": pod["metadata"]["namespace"] });
                let id = json!({ "id": pod["metadata"]["name"] });
                json!({
                    "namespaceSelector": { "matchLabels": own },
                    "podSelector": { "matchLabels": id },
                })
            })
            .collect()
    };
    let mut expanded: Vec<_> = list.iter().flat_map(selected).collect();
    if expanded.is_empty() {
        expanded.push(json!({ "podSelector": { "matchLabels": { "id": "nobody" } } }));
    }
    *list = expanded;
}

/// What asks pods for a key asks them for its values instead: `nca` looks for keys of pods in the
/// policy's own namespace alone.
fn name_values(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(name_values),
        Value::Object(fields) => {
            let selector = fields.get_mut("podSelector").map(Value::take);
            fields.values_mut().for_each(name_values);
            if let Some(mut selector) = selector {
                let expressions = selector["matchExpressions"].as_array_mut();
                for expression in expressions.into_iter().flatten() {
                    let operator = match expression["operator"].as_str() {
                        Some("Exists") => "In",
                        Some("DoesNotExist") => "NotIn",
                        _ => continue,
                    };
                    expression["operator"] = operator.into();
                    expression["values"] = json!(POD_LABEL_VALUES);
                }
                strip(&mut selector);
                fields.insert("podSelector".to_owned(), selector);
            }
        }
        _ => (),
    }
}

/// Fills in `policyTypes` as an apiserver does. Rules of a direction that the policy is not about say
/// nothing; `nca` refuses them.
fn settle_types(spec: &mut Value) {
    let said = spec["policyTypes"]
        .as_array()
        .is_some_and(|types| !types.is_empty());
    if !said {
        let egress = spec["egress"]
            .as_array()
            .is_some_and(|rules| !rules.is_empty());
        let types: &[_] = if egress {
            &["Ingress", "Egress"]
        } else {
            &["Ingress"]
        };
        spec["policyTypes"] = json!(types);
    }
    for (kind, rules) in [("Ingress", "ingress"), ("Egress", "egress")] {
        let types = spec["policyTypes"].as_array();
        if types.is_some_and(|types| !types.contains(&kind.into())) {
            spec[rules].take();
        }
    }
}

/// An apiserver keeps no empty lists of peers, ports and types, and no nulls.
fn strip(fields: &mut Value) {
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    if let Some(fields) = fields.as_object_mut() {
        fields.retain(|name, value| !empty(value) || value.is_array() && is_rules(name));
    }
}

fn is_rules(name: &str) -> bool {
    ["ingress", "egress"].contains(&name)
}

fn address(pod: &Value) -> IpAddr {
    let address = pod["status"]["podIP"].as_str().expect("an address");
    address.parse().expect("an address")
}

/// `namespace/name`.
fn name(pod: &Value) -> String {
    let text = |field: &str| pod["metadata"][field].as_str().expect("a name").to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

/// For each world the first connection that is answered differently, in words.
fn compare(program: &Path, worlds: &[Vec<Value>]) -> Result<Vec<Option<String>>> {
    let relations = ask(program, worlds)?;
    let pairs = worlds.iter().zip(relations);
    pairs
        .map(|(world, allowed)| difference(world, &allowed))
        .collect()
}

fn difference(world: &[Value], allowed: &[Connections]) -> Result<Option<String>> {
    let cluster = Cluster::of(world.iter().cloned())?;
    let pods: Vec<_> = world
        .iter()
        .filter(|object| object["kind"] == "Pod")
        .collect();
    for (source, destination) in pods
        .iter()
        .flat_map(|pod| pods.iter().map(move |it| (pod, it)))
    {
        if name(source) == name(destination) {
            continue;
        }
        for ((protocol, number), port) in
            PROTOCOLS.iter().flat_map(|it| PORTS.map(|port| (it, port)))
        {
            let packet = Packet {
                source: address(source),
                destination: address(destination),
                protocol: *number,
                port,
            };
            let ours = may(&cluster, &packet, false);
            let (from, to) = (name(source), name(destination));
            let theirs = allowed.iter().any(|it| it.hold(&from, &to, protocol, port));
            if ours != theirs {
                let what = format!("{from} > {to} {protocol}/{port}");
                return Ok(Some(format!("{what}: we say {ours}, nca says {theirs}")));
            }
        }
    }
    Ok(None)
}

/// Connections that are allowed: a line of `nca`'s.
struct Connections {
    from: String,
    to: String,
    protocols: Vec<String>,
    /// First and last.
    ports: Vec<(u16, u16)>,
}

impl Connections {
    /// Reads `x/a => y/b : {protocols:TCP,dst_ports:80,90-99}` or `… : All connections`; `None` where
    /// an end is no pod.
    fn read(line: &str) -> Result<Option<Self>> {
        let (ends, what) = line.split_once(" : ").context("no connections")?;
        let (from, to) = ends.split_once(" => ").context("no ends")?;
        if !from.contains('/') || !to.contains('/') {
            return Ok(None);
        }
        let (mut protocols, mut ports) = ("*", "0-65535");
        if what != "All connections" {
            let inner = what.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
            let inner = inner.context("no braces")?;
            let (head, tail) = match inner.split_once("dst_ports:") {
                Some((head, tail)) => (head.trim_end_matches(','), tail),
                None => (inner, ports),
            };
            ports = tail;
            if !head.is_empty() {
                protocols = head.strip_prefix("protocols:").context("no protocols")?;
            }
        }
        let all = PROTOCOLS.iter().map(|(name, _)| (*name).to_owned());
        let listed = |names: &str| names.split(',').map(|it| it.trim().to_owned()).collect();
        let protocols: Vec<String> = match protocols.strip_prefix("all but ") {
            _ if protocols == "*" => all.collect(),
            None => listed(protocols),
            Some(others) => {
                let others: Vec<String> = listed(others);
                all.filter(|name| !others.contains(name)).collect()
            }
        };
        let range = |text: &str| -> Result<(u16, u16)> {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Ok((first.parse()?, last.parse()?))
        };
        Ok(Some(Self {
            from: from.to_owned(),
            to: to.to_owned(),
            protocols,
            ports: ports.split(',').map(range).collect::<Result<_>>()?,
        }))
    }

    fn hold(&self, from: &str, to: &str, protocol: &str, port: u16) -> bool {
        let in_range = |(first, last): &(u16, u16)| (*first..=*last).contains(&port);
        self.from == from
            && self.to == to
            && self.protocols.iter().any(|it| it == protocol)
            && self.ports.iter().any(in_range)
    }
}

/// What `nca` says of the worlds, all at once.
fn ask(program: &Path, worlds: &[Vec<Value>]) -> Result<Vec<Vec<Connections>>> {
    let folder = tempfile::tempdir()?;
    let (mut configs, mut queries) = (Vec::new(), Vec::new());
    for (number, world) in worlds.iter().enumerate() {
        let file = folder.path().join(format!("{number}.yaml"));
        fs::write(&file, yaml(&translated(world))?)?;
        let name = format!("w{number}");
        configs.push(json!({ "name": name, "resourceList": [file] }));
        let output = json!({ "outputFormat": "txt_no_fw_rules", "outputEndpoints": "pods" });
        queries.push(json!({
            "name": format!("q{number}"),
            "connectivityMap": [name],
            "outputConfiguration": output,
        }));
    }
    let scheme = folder.path().join("scheme.yaml");
    let text: Map<String, Value> = [
        ("networkConfigList".to_owned(), configs.into()),
        ("queries".to_owned(), queries.into()),
    ]
    .into_iter()
    .collect();
    fs::write(&scheme, serde_saphyr::to_string(&text)?)?;
    let output = Command::new(program)
        .arg("--scheme")
        .arg(&scheme)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut answers: Vec<Vec<Connections>> = Vec::new();
    for line in said.lines() {
        if line.starts_with("Running query ") {
            answers.push(Vec::new());
        } else if let Some(answer) = answers.last_mut()
            && line.contains(" => ")
        {
            let read = Connections::read(line);
            answer.extend(read.with_context(|| format!("understand {line}"))?);
        }
    }
    if answers.len() != worlds.len() {
        let failed = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} answers to {} worlds: {failed}",
            answers.len(),
            worlds.len()
        );
    }
    ensure!(!said.contains("Traceback"), "{said}");
    Ok(answers)
}
