//! The annotations that the agent reads, all of them in one table. `docs/annotations.md` lists them.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::world::{Kind, address};

/// An annotation.
#[derive(Debug)]
pub struct Annotation {
    pub key: &'static str,
    /// The objects that it is read from.
    pub kinds: &'static [Kind],
    pub values: Values,
    /// What it decides, in a sentence.
    pub meaning: &'static str,
}

/// What an annotation may say.
#[derive(Debug)]
pub enum Values {
    /// One of a few values.
    OneOf {
        values: &'static [&'static str],
        /// What applies where the object does not say, or says something that is not a value.
        default: &'static str,
    },
    /// Addresses and networks, separated by commas or spaces; none where the object does not say.
    Networks,
}

const YES_OR_NO: Values = Values::OneOf {
    values: &["true", "false"],
    default: "false",
};

/// Every annotation, by key.
pub const ALL: &[&Annotation] = &[&ALLOWED_SOURCES, &POLICY_AUDIT, &SOCKET_LB];

pub const ALLOWED_SOURCES: Annotation = Annotation {
    key: "lb.io/allowed-sources",
    kinds: &[Kind::Pod],
    values: Values::Networks,
    meaning: "What the pod may send from besides its own addresses, within what \
              `--allow-pod-sources` allows and nobody else has.",
};

pub const POLICY_AUDIT: Annotation = Annotation {
    key: "lb.io/policy-audit",
    kinds: &[
        Kind::Namespace,
        Kind::NetworkPolicy,
        Kind::ClusterNetworkPolicy,
    ],
    values: YES_OR_NO,
    meaning: "Whether the policy, or every NetworkPolicy of the namespace, is not enforced: what it \
              would allow and deny is counted and reported.",
};

pub const SOCKET_LB: Annotation = Annotation {
    key: "lb.io/socket-lb",
    kinds: &[Kind::Pod],
    values: YES_OR_NO,
    meaning: "Whether the pod's processes reach services when they connect, at socket level, as those \
              of the host do, and not packet by packet.",
};

impl Annotation {
    /// The value that applies to an object, of an annotation that has a few. One that is none of
    /// those it may have is a problem.
    pub fn read(&self, metadata: &ObjectMeta, problems: &mut Vec<String>) -> &'static str {
        let Values::OneOf { values, default } = self.values else {
            return "";
        };
        let Some(said) = self.said(metadata) else {
            return default;
        };
        let value = values.iter().find(|value| **value == said);
        value.copied().unwrap_or_else(|| {
            let (key, values) = (self.key, values.join("` or `"));
            problems.push(format!(
                "annotation {key} is `{said}`, not `{values}`: it counts as `{default}`"
            ));
            default
        })
    }

    /// The networks that an object names; what is neither one nor an address is a problem.
    pub fn read_networks(
        &self,
        metadata: &ObjectMeta,
        problems: &mut Vec<String>,
    ) -> BTreeSet<IpNet> {
        let said = self.said(metadata).unwrap_or_default();
        let texts = said.split([',', ' ']).filter(|text| !text.is_empty());
        let networks = texts.filter_map(|text| {
            let host = address::parse_sloppy(text).map(IpNet::from);
            let network = host.or_else(|| address::parse_network(text));
            if network.is_none() {
                let key = self.key;
                problems.push(format!(
                    "annotation {key} has `{text}`, which is no address and no network: left out"
                ));
            }
            network
        });
        networks.collect()
    }

    fn said<'a>(&self, metadata: &'a ObjectMeta) -> Option<&'a str> {
        let annotations = metadata.annotations.as_ref()?;
        annotations.get(self.key).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;

    #[test]
    fn what_is_not_a_value_is_a_problem_and_the_default_applies() {
        for (said, value, problem) in [
            (None, "false", None),
            (Some("true"), "true", None),
            (Some("false"), "false", None),
            (
                Some("True"),
                "false",
                Some(
                    "annotation lb.io/socket-lb is `True`, not `true` or `false`: it counts as `false`",
                ),
            ),
        ] {
            let annotations = said.map(|said| [(SOCKET_LB.key.to_owned(), said.to_owned())].into());
            let metadata = ObjectMeta {
                annotations,
                ..ObjectMeta::default()
            };
            let mut problems = Vec::new();
            assert_eq!(SOCKET_LB.read(&metadata, &mut problems), value);
            assert_eq!(problems, Vec::from_iter(problem));
        }
    }

    #[test]
    fn networks_are_read_from_a_list() {
        let said = "10.9.0.7, 192.0.2.9/28,fd00::1 fd01::/64,, 10.9.0/8 nonsense";
        let metadata = ObjectMeta {
            annotations: Some([(ALLOWED_SOURCES.key.to_owned(), said.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let mut problems = Vec::new();
        let networks = ALLOWED_SOURCES.read_networks(&metadata, &mut problems);
        let texts: Vec<_> = networks.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["10.9.0.7/32", "192.0.2.0/28", "fd00::1/128", "fd01::/64"]
        );
        assert_eq!(problems.len(), 2);
        assert!(problems[1].contains("`nonsense`"), "{problems:?}");
        let silent = ALLOWED_SOURCES.read_networks(&ObjectMeta::default(), &mut problems);
        assert!(silent.is_empty());
    }

    #[test]
    fn every_annotation_has_its_default_among_its_values() {
        assert!(ALL.is_sorted_by_key(|annotation| annotation.key));
        for annotation in ALL {
            if let Values::OneOf { values, default } = annotation.values {
                assert!(values.contains(&default), "{annotation:?}");
            }
            assert!(annotation.key.starts_with("lb.io/"), "{annotation:?}");
        }
    }

    fn table() -> String {
        let row = |annotation: &&Annotation| {
            let Annotation {
                key,
                kinds,
                values,
                meaning,
            } = annotation;
            let (values, default) = match values {
                Values::OneOf { values, default } => {
                    (format!("`{}`", values.join("`, `")), format!("`{default}`"))
                }
                Values::Networks => ("addresses, networks".to_owned(), "none".to_owned()),
            };
            let kinds: Vec<_> = kinds.iter().map(ToString::to_string).collect();
            let kinds = kinds.join(", ");
            format!("| `{key}` | {kinds} | {values} | {default} | {meaning} |\n")
        };
        format!(
            "| annotation | on a | values | default | meaning |\n|---|---|---|---|---|\n{}",
            ALL.iter().map(row).collect::<String>()
        )
    }

    /// `UPDATE=1` writes the table anew.
    #[test]
    fn the_page_lists_every_annotation() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/annotations.md");
        let text = fs::read_to_string(&page).expect("the page");
        let begin = text.find("| annotation |").expect("a table on the page");
        if env::var_os("UPDATE").is_some() {
            fs::write(&page, format!("{}{}", &text[..begin], table())).expect("write the page");
        } else {
            assert_eq!(text[begin..], table(), "UPDATE=1 writes it anew");
        }
    }
}
