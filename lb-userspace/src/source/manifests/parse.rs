//! Text to objects, with the defaults that the apiserver would have filled in.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    serde::de::DeserializeOwned,
};
use serde_json::Value;
use serde_saphyr::{Options, Spanned};

use super::directory::digest;
use crate::world::ObjectKey;

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
}

/// Reads the documents of a file, which may be lists. After an error of syntax the rest of the file
/// cannot be read; any other error spoils one object.
pub fn parse(text: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
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
            Err(error) => parsed.errors.push(error.to_string()),
        }
    }
    parsed
}

/// Limits that a file of `length` bytes cannot reach by saying something, only by repeating itself
/// through aliases.
fn options(length: usize) -> Options {
    let budget = serde_saphyr::budget! {
        max_reader_input_bytes: None,
        max_documents: length,
        max_nodes: length,
        max_events: 4 * length + 16,
        max_total_scalar_bytes: length,
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
        let version = format!("{:016x}", digest(&value));
        let content = content(value).map_err(|error| format!("{key}: {error}"))?;
        Ok(Self {
            key,
            version,
            content,
        })
    }
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

fn decode<T: DeserializeOwned>(value: Value) -> Result<Box<T>, String> {
    serde_path_to_error::deserialize(value)
        .map(Box::new)
        .map_err(|error| format!("`{}`: {}", error.path(), error.inner()))
}
