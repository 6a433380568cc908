use std::{collections::BTreeMap, fs, path::PathBuf};

use tempfile::TempDir;

use super::{
    call::{Code, Command},
    *,
};

fn variables(pairs: &[(&str, &str)]) -> Variables {
    let pairs = pairs
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()));
    Variables(pairs.collect::<BTreeMap<_, _>>())
}

fn of_pod(command: &str) -> Variables {
    variables(&[
        ("COMMAND", command),
        ("CONTAINERID", "c1"),
        ("IFNAME", "eth0"),
        ("NETNS", "/run/netns/x"),
        (
            "ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u",
        ),
    ])
}

fn config() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "lb",
        "socket": "/nowhere/lb.sock",
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "cni0" },
                { "name": "veth1" },
                { "name": "eth0", "sandbox": "/run/netns/x" },
            ],
            "ips": [
                { "address": "10.1.2.3/24", "interface": 2 },
                { "address": "fd00::3/64", "interface": 2 },
            ],
        },
    })
}

fn read(variables: &Variables, config: &Value) -> Result<Command, (Code, String)> {
    let call = Call::read(variables, &config.to_string());
    call.map(|call| call.command)
        .map_err(|failure| (failure.code, failure.text))
}

#[test]
fn a_pod_is_told_by_the_arguments_and_its_addresses_by_the_result_before() {
    let Ok(Command::Add(attachment, result)) = read(&of_pod("ADD"), &config()) else {
        panic!("not understood");
    };
    let addresses = ["10.1.2.3", "fd00::3"].map(|ip| ip.parse().expect("an address"));
    let expected = Attachment {
        id: AttachmentId {
            container: "c1".to_owned(),
            interface: "eth0".to_owned(),
        },
        pod: Some(ObjectKey::new("shop", "web-0")),
        addresses: BTreeSet::from(addresses),
    };
    assert_eq!(attachment, expected);
    assert_eq!(
        result,
        config()["prevResult"],
        "ours is that of those before"
    );
    assert_eq!(
        read(&of_pod("CHECK"), &config()),
        Ok(Command::Check(expected.clone()))
    );
    assert_eq!(
        read(&of_pod("DEL"), &config()),
        Ok(Command::Delete(expected.id))
    );
}

#[test]
fn the_result_is_in_the_version_that_was_asked_for() {
    let mut config = config();
    config["cniVersion"] = "0.4.0".into();
    let Ok(Command::Add(_, result)) = read(&of_pod("ADD"), &config) else {
        panic!("not understood");
    };
    assert_eq!(result["cniVersion"], "0.4.0");
}

#[test]
fn a_call_without_kubernetes_names_no_pod() {
    let mut of_other = of_pod("ADD");
    of_other.0.remove("ARGS");
    let Ok(Command::Add(attachment, _)) = read(&of_other, &config()) else {
        panic!("not understood");
    };
    assert_eq!(attachment.pod, None);
}

#[test]
fn what_is_still_valid_is_named_when_rubbish_is_collected() {
    let mut config = config();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }, { "containerID": "c2", "ifname": "net1" }]);
    let command = read(&variables(&[("COMMAND", "GC")]), &config);
    let Ok(Command::Collect(valid)) = command else {
        panic!("{command:?}");
    };
    let valid: Vec<_> = valid
        .iter()
        .map(|id| (&*id.container, &*id.interface))
        .collect();
    assert_eq!(valid, [("c1", "eth0"), ("c2", "net1")]);
}

#[test]
fn what_cannot_be_done_has_the_code_of_the_specification() {
    let without = |key: &str| {
        let mut config = config();
        config.as_object_mut().expect("an object").remove(key);
        config
    };
    let with = |key: &str, value: Value| {
        let mut config = config();
        config[key] = value;
        config
    };
    let add = of_pod("ADD");
    let nameless = variables(&[("COMMAND", "ADD")]);
    for (variables, config, code, part) in [
        (&add, without("prevResult"), Code::Config, "lb cni install"),
        (
            &add,
            with("prevResult", json!({ "ips": [] })),
            Code::Config,
            "no address",
        ),
        (
            &add,
            with("prevResult", json!({ "ips": 1 })),
            Code::Decode,
            "prevResult",
        ),
        (
            &add,
            with("cniVersion", json!("0.2.0")),
            Code::Version,
            "0.2.0",
        ),
        (&add, without("cniVersion"), Code::Version, "none of"),
        (&nameless, config(), Code::Variables, "CNI_CONTAINERID"),
        (&of_pod("FLY"), config(), Code::Variables, "FLY"),
        (&variables(&[]), config(), Code::Variables, "CNI_COMMAND"),
    ] {
        let (found, text) = read(variables, &config).expect_err("refused");
        assert_eq!(found, code, "{text}");
        assert!(text.contains(part), "{text}");
    }
    let failure = Call::read(&add, "{").expect_err("no JSON");
    assert_eq!(failure.to_json()["code"], 6);
}

#[tokio::test]
async fn without_an_agent_no_pod_starts_and_every_pod_may_go() {
    let input = config().to_string();
    for (command, code) in [("ADD", 11), ("CHECK", 11), ("STATUS", 50)] {
        let (answer, well) = execute(&of_pod(command), &input).await;
        let answer = answer.expect("an error");
        assert!(!well);
        assert_eq!(answer["code"], code, "{answer}");
        assert_eq!(answer["cniVersion"], "1.0.0");
        let details = answer["details"].as_str().expect("a text");
        assert!(details.contains("/nowhere/lb.sock"), "{details}");
    }
    for command in ["DEL", "GC"] {
        assert_eq!(execute(&of_pod(command), &input).await, (None, true));
    }
    let version = variables(&[("COMMAND", "VERSION")]);
    let (answer, well) = execute(&version, r#"{"cniVersion": "9.9.9"}"#).await;
    assert!(well);
    assert_eq!(answer, Some(versions()));
}

/// Folders like a node's, with these configurations.
struct Node {
    root: TempDir,
}

impl Node {
    fn with(configs: &[(&str, Value)]) -> Self {
        let node = Self {
            root: TempDir::new().expect("a directory"),
        };
        for folder in ["net.d", "bin"] {
            fs::create_dir(node.path(folder)).expect("made");
        }
        for (name, config) in configs {
            fs::write(node.path("net.d").join(name), config.to_string()).expect("written");
        }
        fs::write(node.path("lb"), "the program").expect("written");
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn install(&self) -> Result<Installed> {
        install(
            &self.path("net.d"),
            &self.path("bin"),
            &self.path("lb"),
            Path::new("/run/lb/lb.sock"),
        )
    }

    fn remove(&self) -> Removed {
        remove(&self.path("net.d"), &self.path("bin")).expect("removed")
    }

    fn config(&self, name: &str) -> Value {
        let text = fs::read(self.path("net.d").join(name)).expect("it is there");
        serde_json::from_slice(&text).expect("JSON")
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn list(plugins: Value) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins })
}

fn ours() -> Value {
    json!({ "type": "lb", "socket": "/run/lb/lb.sock" })
}

#[test]
fn the_plugin_is_the_last_of_the_first_list_and_goes_again() {
    let first = list(json!([{ "type": "bridge" }, { "type": "portmap" }]));
    let other = list(json!([{ "type": "ptp" }]));
    let node = Node::with(&[
        ("10-flannel.conflist", first.clone()),
        ("20-other.conflist", other.clone()),
        ("05-notes.txt", json!("none that runtimes read")),
    ]);
    let installed = node.install().expect("installed");
    assert!(installed.changed);
    let with_us = list(json!([{ "type": "bridge" }, { "type": "portmap" }, ours()]));
    assert_eq!(node.config("10-flannel.conflist"), with_us);
    assert_eq!(node.config("20-other.conflist"), other);
    assert_eq!(
        fs::read(&installed.binary).expect("a binary"),
        b"the program"
    );
    assert!(!node.install().expect("installed").changed, "it is there");
    assert_eq!(node.remove().len(), 2);
    assert_eq!(node.config("10-flannel.conflist"), first);
    assert_eq!(node.names("bin"), [""; 0]);
    assert_eq!(node.remove(), [""; 0].map(PathBuf::from), "nothing is left");
    assert_eq!(
        node.names("net.d"),
        ["05-notes.txt", "10-flannel.conflist", "20-other.conflist"]
    );
}

#[test]
fn a_plugin_of_an_earlier_version_is_replaced() {
    let before = list(json!([{ "type": "lb", "socket": "/old" }, { "type": "ptp" }]));
    let node = Node::with(&[("10.conflist", before)]);
    node.install().expect("installed");
    assert_eq!(
        node.config("10.conflist"),
        list(json!([{ "type": "ptp" }, ours()]))
    );
}

#[test]
fn a_single_plugin_becomes_a_list_and_comes_back() {
    let single = json!({ "cniVersion": "0.3.1", "name": "pods", "type": "bridge", "mtu": 1400 });
    let node = Node::with(&[("10-bridge.conf", single.clone())]);
    node.install().expect("installed");
    let expected = json!({
        "cniVersion": "0.3.1",
        "name": "pods",
        "plugins": [{ "type": "bridge", "mtu": 1400 }, ours()],
    });
    assert_eq!(node.config("10-bridge.conflist"), expected);
    assert_eq!(
        node.names("net.d"),
        ["10-bridge.conf.before-lb", "10-bridge.conflist"]
    );
    node.remove();
    assert_eq!(node.names("net.d"), ["10-bridge.conf"]);
    assert_eq!(node.config("10-bridge.conf"), single);
}

#[test]
fn what_cannot_be_chained_is_left_as_it_is() {
    for (config, part) in [(list(json!([])), "no plugin"), (list(json!({})), "no list")] {
        let node = Node::with(&[("10.conflist", config.clone())]);
        let error = format!("{:#}", node.install().expect_err("refused"));
        assert!(error.contains(part), "{error}");
        assert_eq!(node.config("10.conflist"), config);
    }
    let error = Node::with(&[]).install().expect_err("refused").to_string();
    assert!(
        error.contains("install the network plugin first"),
        "{error}"
    );
}
