//! Text to objects, with the defaults that the apiserver would have filled in.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    serde::de::DeserializeOwned,
};
use serde_json::Value;
use serde_saphyr::{Options, Spanned, UserMessageFormatter};

use super::directory::digest;
use crate::world::{ObjectKey, policy::cluster_network_policy::ClusterNetworkPolicy};

/// What one file says.
#[derive(Debug, Default)]
pub struct Parsed {
    pub objects: Vec<Object>,
    /// What could not be read, with the line.
    pub errors: Vec<String>,
    /// The kinds that are not ours.
    pub ignored: BTreeSet<String>,
}

/// One object of a kind that the agent reads.
#[derive(Debug)]
pub struct Object {
    pub key: ObjectKey,
    /// Digest of the content.
    pub version: String,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    Service(Box<core::Service>),
    EndpointSlice(Box<discovery::EndpointSlice>),
    Node(Box<core::Node>),
    Pod(Box<core::Pod>),
    ServiceCidr(Box<networking::ServiceCIDR>),
    Namespace(Box<core::Namespace>),
    NetworkPolicy(Box<networking::NetworkPolicy>),
    ClusterNetworkPolicy(Box<ClusterNetworkPolicy>),
}

/// The label that the apiserver writes on each Namespace: its name.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// Reads the documents of a file, which may be lists. After an error of syntax the rest of the file
/// cannot be read; any other error spoils one object.
pub fn parse(text: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    // What is about to be written is often emptied first, and may stay so for long.
    if text.is_empty() {
        parsed.errors.push("empty".into());
    }
    if let Err(error) = std::str::from_utf8(text) {
        parsed.errors.push(format!("not UTF-8: {error}"));
        return parsed;
    }
    let mut reader = text;
    for document in serde_saphyr::read_with_options(&mut reader, options(text.len())) {
        match document {
            Ok(Spanned::<Value> {
                value, referenced, ..
            }) => parsed.add(value, referenced.line()),
            Err(error) => {
                let error = error.render_with_formatter(&UserMessageFormatter);
                parsed.errors.push(error);
            }
        }
    }
    parsed
}

/// Limits that a file of `length` bytes reaches only by repeating itself through aliases.
fn options(length: usize) -> Options {
    let most = 1_000 + 4 * length;
    let budget = serde_saphyr::budget! {
        max_reader_input_bytes: None,
        max_documents: most,
        max_nodes: most,
        max_events: most,
        max_total_scalar_bytes: most,
    };
    serde_saphyr::options! {
        budget: budget,
        with_snippet: false,
    }
}

impl Parsed {
    fn add(&mut self, document: Value, line: u64) {
        let text = |field: &str| document.get(field).and_then(Value::as_str);
        let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else {
            let error = "not an object: `apiVersion` or `kind` is missing";
            self.errors.push(format!("line {line}: {error}"));
            return;
        };
        let (version, kind) = (version.to_owned(), kind.to_owned());
        let object = match (version.as_str(), kind.as_str()) {
            ("v1", "List") => return self.add_list(document, line),
            ("v1", "Service") => Object::read(document, NAMESPACED, service),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                Object::read(document, NAMESPACED, endpoint_slice)
            }
            ("v1", "Node") => Object::read(document, CLUSTER_SCOPED, node),
            ("v1", "Pod") => Object::read(document, NAMESPACED, pod),
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                Object::read(document, CLUSTER_SCOPED, service_cidr)
            }
            ("v1", "Namespace") => Object::read(document, CLUSTER_SCOPED, namespace),
            ("networking.k8s.io/v1", "NetworkPolicy") => {
                Object::read(document, NAMESPACED, network_policy)
            }
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => {
                Object::read(document, CLUSTER_SCOPED, cluster_network_policy)
            }
            _ => {
                self.ignored.insert(format!("{kind} ({version}): not read"));
                return;
            }
        };
        match object {
            Ok(object) => self.objects.push(object),
            Err(error) => self.errors.push(format!("line {line}: {kind} {error}")),
        }
    }

    fn add_list(&mut self, mut list: Value, line: u64) {
        match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => {
                for item in items {
                    self.add(item, line);
                }
            }
            _ => self
                .errors
                .push(format!("line {line}: `items` of the List is not a list")),
        }
    }
}

const NAMESPACED: bool = true;
const CLUSTER_SCOPED: bool = false;

impl Object {
    fn read(
        mut value: Value,
        namespaced: bool,
        content: impl FnOnce(Value) -> Result<Content, String>,
    ) -> Result<Self, String> {
        let key = complete_name(&mut value, namespaced)?;
        let version = version(&value);
        let content = content(value).map_err(|error| format!("{key}: {error}"))?;
        Ok(Self {
            key,
            version,
            content,
        })
    }
}

/// What stands for the `resourceVersion` of an object in a manifest: a digest of its content.
pub fn version(object: &Value) -> String {
    format!("{:016x}", digest(object))
}

/// Fills in the namespace and returns the name.
fn complete_name(value: &mut Value, namespaced: bool) -> Result<ObjectKey, String> {
    let metadata = value
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .ok_or("without `metadata`")?;
    if !namespaced {
        metadata.remove("namespace");
    } else if matches!(metadata.get("namespace"), None | Some(Value::Null)) {
        metadata.insert("namespace".into(), "default".into());
    }
    let text = |field: &str| match metadata.get(field) {
        Some(Value::String(text)) if is_name(text) => Ok(text.as_str()),
        Some(other) => Err(format!("`metadata.{field}` {other} is not a name")),
        None => Err(format!("without `metadata.{field}`")),
    };
    let namespace = if namespaced { text("namespace")? } else { "" };
    Ok(ObjectKey::new(namespace, text("name")?))
}

/// Whether the apiserver would take it for a name (RFC 1123 subdomain).
fn is_name(text: &str) -> bool {
    let is_end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 253
        && text.bytes().next().is_some_and(is_end)
        && text.bytes().next_back().is_some_and(is_end)
        && text
            .bytes()
            .all(|byte| is_end(byte) || matches!(byte, b'-' | b'.'))
}

fn service(value: Value) -> Result<Content, String> {
    decode(value).map(Content::Service)
}

fn endpoint_slice(value: Value) -> Result<Content, String> {
    let mut slice: Box<discovery::EndpointSlice> = decode(value)?;
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
    }
    Ok(Content::EndpointSlice(slice))
}

fn node(value: Value) -> Result<Content, String> {
    decode(value).map(Content::Node)
}

fn pod(value: Value) -> Result<Content, String> {
    decode(value).map(Content::Pod)
}

fn service_cidr(value: Value) -> Result<Content, String> {
    decode(value).map(Content::ServiceCidr)
}

fn namespace(value: Value) -> Result<Content, String> {
    let mut namespace: Box<core::Namespace> = decode(value)?;
    let name = namespace.metadata.name.clone().unwrap_or_default();
    let labels = namespace.metadata.labels.get_or_insert_default();
    labels.insert(NAMESPACE_LABEL.to_owned(), name);
    Ok(Content::Namespace(namespace))
}

fn network_policy(value: Value) -> Result<Content, String> {
    decode(value).map(Content::NetworkPolicy)
}

fn cluster_network_policy(value: Value) -> Result<Content, String> {
    decode(value).map(Content::ClusterNetworkPolicy)
}

fn decode<T: DeserializeOwned>(value: Value) -> Result<Box<T>, String> {
    serde_path_to_error::deserialize(value)
        .map(Box::new)
        .map_err(|error| format!("`{}`: {}", error.path(), error.inner()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WEB: &str = "\
# a comment
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.10
  ports:
  - port: 80
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: shop
  labels:
    kubernetes.io/service-name: web
addressType: IPv4
endpoints:
- addresses: [10.0.0.1]
ports:
- port: 8080
";

    fn names(parsed: &Parsed) -> Vec<String> {
        let objects = parsed.objects.iter();
        objects.map(|object| object.key.to_string()).collect()
    }

    #[test]
    fn a_file_holds_many_documents() {
        let parsed = parse(WEB.as_bytes());
        assert_eq!(names(&parsed), ["default/web", "shop/web-1"]);
        assert_eq!(parsed.errors, Vec::<String>::new());
        assert!(parsed.ignored.is_empty());
    }

    #[test]
    fn the_defaults_of_the_apiserver_are_filled_in() {
        let parsed = parse(WEB.as_bytes());
        let [service, slice] = parsed.objects.as_slice() else {
            panic!("{parsed:?}");
        };
        let Content::Service(service) = &service.content else {
            panic!("{service:?}");
        };
        assert_eq!(service.metadata.namespace.as_deref(), Some("default"));
        let Content::EndpointSlice(slice) = &slice.content else {
            panic!("{slice:?}");
        };
        let ports = slice.ports.as_deref().expect("ports");
        assert_eq!(ports[0].name.as_deref(), Some(""));
    }

    #[test]
    fn lists_are_unpacked_and_json_is_read() {
        let json = r#"{
            "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""},
            "items": [
                {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "namespace": "x"}},
                {"apiVersion": "v1", "kind": "List", "items": [
                    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": null}}
                ]},
                {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
            ]
        }"#;
        let parsed = parse(json.as_bytes());
        assert_eq!(names(&parsed), ["n1", "default/p"]);
        assert_eq!(parsed.errors, Vec::<String>::new());
        let ignored: Vec<_> = parsed.ignored.iter().collect();
        assert_eq!(ignored, ["Deployment (apps/v1): not read"]);
    }

    #[test]
    fn an_error_names_the_line_and_the_reason() {
        for (text, expected) in [
            ("a: [1, 2", "unclosed bracket '[' at line 1, column 4"),
            (
                "\na: b: c",
                "mapping values are not allowed in this context at line 2, column 5",
            ),
            (
                "hello",
                "line 1: not an object: `apiVersion` or `kind` is missing",
            ),
            (
                "\n\nkind: Pod",
                "line 3: not an object: `apiVersion` or `kind` is missing",
            ),
            (
                "apiVersion: v1\nkind: List",
                "line 1: `items` of the List is not a list",
            ),
            (
                "apiVersion: v1\nkind: Pod",
                "line 1: Pod without `metadata`",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {generateName: web-}",
                "line 1: Pod without `metadata.name`",
            ),
            (
                "apiVersion: v1\nkind: Node\nmetadata: {name: a/b}",
                "line 1: Node `metadata.name` \"a/b\" is not a name",
            ),
            (
                "\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: b}]}",
                "line 2: Service default/a: `spec.ports[0].port`: \
                 invalid type: string \"b\", expected i32",
            ),
        ] {
            let parsed = parse(text.as_bytes());
            assert_eq!(parsed.errors, [expected], "{text}");
            assert!(parsed.objects.is_empty(), "{text}");
        }
        assert_eq!(parse(b"").errors, ["empty"]);
        let [error] = parse(b"kind: \xff").errors.try_into().expect("an error");
        assert!(error.starts_with("not UTF-8: "), "{error}");
    }

    #[test]
    fn a_broken_object_does_not_stop_the_others() {
        let text = format!("apiVersion: v1\nkind: Pod\n---\n{WEB}---\nspec: [");
        let parsed = parse(text.as_bytes());
        assert_eq!(names(&parsed), ["default/web", "shop/web-1"]);
        assert_eq!(parsed.errors.len(), 2);
    }

    #[test]
    fn a_file_may_say_nothing() {
        for text in ["\n", "# only a comment\n", "---\n---\n", "null\n"] {
            let parsed = parse(text.as_bytes());
            assert!(
                parsed.objects.is_empty() && parsed.errors.is_empty(),
                "{text:?}"
            );
        }
    }

    #[test]
    fn the_version_tells_contents_apart() {
        let version = |text: &str| parse(text.as_bytes()).objects[0].version.clone();
        let other = WEB.replace("port: 80\n", "port: 81\n");
        assert_eq!(version(WEB), version(&format!("# moved\n{WEB}")));
        assert_ne!(version(WEB), version(&other));
    }

    #[test]
    fn what_grows_without_bound_is_an_error() {
        let nested = "- ".repeat(100_000);
        let brackets = "[".repeat(100_000);
        let aliases = (b'b'..=b'i').fold("a: &a [x, x, x, x, x, x, x, x, x]\n".into(), {
            |text: String, name| {
                let (name, last) = (char::from(name), char::from(name - 1));
                let many = format!("*{last}, ").repeat(9);
                format!("{text}{name}: &{name} [{many}]\n")
            }
        });
        for text in [nested, brackets, aliases] {
            assert_eq!(parse(text.as_bytes()).errors.len(), 1);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }

        #[test]
        fn no_yaml_makes_it_panic(text in r#"([\[\]{}:,&*!|>'"%@`?#\-\n \t~<]|[a-c0-9]){0,200}"#) {
            parse(text.as_bytes());
        }

        /// A cut can leave whole documents, or shorter texts that are still valid.
        #[test]
        fn no_cut_makes_it_panic(cut in 0..WEB.len()) {
            let parsed = parse(&WEB.as_bytes()[..cut]);
            prop_assert!(parsed.objects.len() <= 2);
        }

        #[test]
        fn no_damage_makes_it_panic(
            damage in prop::collection::vec((0..WEB.len(), any::<u8>()), 1..8),
        ) {
            let mut text = WEB.as_bytes().to_vec();
            for (position, byte) in damage {
                text[position] = byte;
            }
            parse(&text);
        }
    }
}
