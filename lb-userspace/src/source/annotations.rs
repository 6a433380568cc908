//! The annotations that the agent reads, all of them in one table. `docs/annotations.md` lists them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::world::Kind;

/// An annotation that chooses one of a few values.
#[derive(Debug)]
pub struct Annotation {
    pub key: &'static str,
    /// The objects that it is read from.
    pub kinds: &'static [Kind],
    pub values: &'static [&'static str],
    /// What applies where the object does not say, or says something that is not a value.
    pub default: &'static str,
    /// What it decides, in a sentence.
    pub meaning: &'static str,
}

/// Every annotation, by key.
pub const ALL: &[&Annotation] = &[&POLICY_AUDIT, &SOCKET_LB];

pub const POLICY_AUDIT: Annotation = Annotation {
    key: "lb.io/policy-audit",
    kinds: &[
        Kind::Namespace,
        Kind::NetworkPolicy,
        Kind::ClusterNetworkPolicy,
    ],
    values: &["true", "false"],
    default: "false",
    meaning: "Whether the policy, or every NetworkPolicy of the namespace, is not enforced: what it \
              would allow and deny is counted and reported.",
};

pub const SOCKET_LB: Annotation = Annotation {
    key: "lb.io/socket-lb",
    kinds: &[Kind::Pod],
    values: &["true", "false"],
    default: "false",
    meaning: "Whether the pod's processes reach services when they connect, at socket level, as those \
              of the host do, and not packet by packet.",
};

impl Annotation {
    /// The value that applies to an object. One that is none of those it may have is a problem.
    pub fn read(&self, metadata: &ObjectMeta, problems: &mut Vec<String>) -> &'static str {
        let &Self {
            key,
            values,
            default,
            ..
        } = self;
        let annotations = metadata.annotations.as_ref();
        let Some(said) = annotations.and_then(|annotations| annotations.get(key)) else {
            return default;
        };
        let value = values.iter().find(|value| *value == said);
        value.copied().unwrap_or_else(|| {
            let values = values.join("` or `");
            problems.push(format!(
                "annotation {key} is `{said}`, not `{values}`: it counts as `{default}`"
            ));
            default
        })
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
    fn every_annotation_has_its_default_among_its_values() {
        assert!(ALL.is_sorted_by_key(|annotation| annotation.key));
        for annotation in ALL {
            assert!(
                annotation.values.contains(&annotation.default),
                "{annotation:?}"
            );
            assert!(annotation.key.starts_with("lb.io/"), "{annotation:?}");
        }
    }

    fn table() -> String {
        let row = |annotation: &&Annotation| {
            let Annotation {
                key,
                kinds,
                values,
                default,
                meaning,
            } = annotation;
            let values = values.join("`, `");
            let kinds: Vec<_> = kinds.iter().map(ToString::to_string).collect();
            let kinds = kinds.join(", ");
            format!("| `{key}` | {kinds} | `{values}` | `{default}` | {meaning} |\n")
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
