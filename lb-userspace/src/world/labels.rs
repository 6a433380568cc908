//! Labels, and the queries for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

pub type Labels = BTreeMap<String, String>;

/// A label query: all requirements must hold, so that none at all selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector(BTreeSet<Requirement>);

/// What a label must be. `NotIn` and `DoesNotExist` hold where there is no such label
/// (`LabelSelectorAsSelector` of Kubernetes).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    In {
        key: String,
        values: BTreeSet<String>,
    },
    Exists {
        key: String,
    },
    NotIn {
        key: String,
        values: BTreeSet<String>,
    },
    DoesNotExist {
        key: String,
    },
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In { key, values } => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::Exists { key } => labels.contains_key(key),
            Self::NotIn { key, values } => {
                labels.get(key).is_none_or(|value| !values.contains(value))
            }
            Self::DoesNotExist { key } => !labels.contains_key(key),
        }
    }
}

/// As `kubectl --selector` takes it.
impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |values: &BTreeSet<String>| {
            let values: Vec<_> = values.iter().map(String::as_str).collect();
            values.join(",")
        };
        match self {
            Self::In { key, values } => write!(f, "{key} in ({})", listed(values)),
            Self::NotIn { key, values } => write!(f, "{key} notin ({})", listed(values)),
            Self::Exists { key } => f.write_str(key),
            Self::DoesNotExist { key } => write!(f, "!{key}"),
        }
    }
}

/// As `kubectl --selector` takes it.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }

    /// Whether it selects everything.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// A key and the values of which whatever is selected has one; `None` where none is needed.
    pub fn anchor(&self) -> Option<(&str, &BTreeSet<String>)> {
        self.0.iter().find_map(|requirement| match requirement {
            Requirement::In { key, values } => Some((key.as_str(), values)),
            _ => None,
        })
    }
}

/// The query of a `LabelSelector`. The error is a sentence about what the apiserver would not take.
pub fn reduce(object: &meta::LabelSelector) -> Result<Selector, String> {
    let equal = object.match_labels.iter().flatten();
    let equal = equal.map(|(key, value)| {
        Ok(Requirement::In {
            key: key.clone(),
            values: [value.clone()].into(),
        })
    });
    let expressions = object.match_expressions.iter().flatten();
    let requirements = equal.chain(expressions.map(reduce_expression));
    requirements.collect::<Result<_, _>>().map(Selector)
}

/// [`reduce`], where no selector at all selects everything.
pub fn reduce_or_all(object: Option<&meta::LabelSelector>) -> Result<Selector, String> {
    object.map_or_else(|| Ok(Selector::default()), reduce)
}

fn reduce_expression(object: &meta::LabelSelectorRequirement) -> Result<Requirement, String> {
    let meta::LabelSelectorRequirement {
        key,
        operator,
        values,
    } = object;
    let key = key.clone();
    let values: BTreeSet<String> = values.iter().flatten().cloned().collect();
    match (operator.as_str(), values.is_empty()) {
        ("In", false) => Ok(Requirement::In { key, values }),
        ("NotIn", false) => Ok(Requirement::NotIn { key, values }),
        ("Exists", true) => Ok(Requirement::Exists { key }),
        ("DoesNotExist", true) => Ok(Requirement::DoesNotExist { key }),
        ("In" | "NotIn", true) => Err(format!("`{operator}` of label `{key}` names no value")),
        ("Exists" | "DoesNotExist", false) => {
            Err(format!("`{operator}` of label `{key}` names values"))
        }
        _ => Err(format!("`{operator}` of label `{key}` is not an operator")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn selector(object: Value) -> Result<Selector, String> {
        reduce(&serde_json::from_value(object).expect("a LabelSelector"))
    }

    #[test]
    fn row_6_negative_operators_hold_where_the_label_is_absent() {
        let one = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]});
        let labels = |tier: Option<&str>| -> Labels {
            let tier = tier.map(|tier| ("tier".to_owned(), tier.to_owned()));
            tier.into_iter().collect()
        };
        let states = [None, Some(""), Some("a"), Some("b"), Some("c")];
        for (object, expected) in [
            (json!({}), [true; 5]),
            (
                json!({"matchLabels": {"tier": "a"}}),
                [false, false, true, false, false],
            ),
            (one("In", &["a", "b"]), [false, false, true, true, false]),
            (one("NotIn", &["a", "b"]), [true, true, false, false, true]),
            (one("Exists", &[]), [false, true, true, true, true]),
            (one("DoesNotExist", &[]), [true, false, false, false, false]),
            (
                json!({
                    "matchLabels": {"tier": "a"},
                    "matchExpressions": [
                        {"key": "other", "operator": "NotIn", "values": ["x"]},
                        {"key": "tier", "operator": "In", "values": ["a", "b"]},
                    ],
                }),
                [false, false, true, false, false],
            ),
        ] {
            let selector = selector(object.clone()).expect("a selector");
            let matched = states.map(|tier| selector.matches(&labels(tier)));
            assert_eq!(matched, expected, "{object}");
        }
    }

    #[test]
    fn what_the_apiserver_would_not_take_is_refused() {
        for (operator, values, error) in [
            ("In", json!([]), "`In` of label `tier` names no value"),
            (
                "Exists",
                json!(["a"]),
                "`Exists` of label `tier` names values",
            ),
            (
                "Equals",
                json!(["a"]),
                "`Equals` of label `tier` is not an operator",
            ),
        ] {
            let expression = json!({"key": "tier", "operator": operator, "values": values});
            let refused = selector(json!({"matchExpressions": [expression]}));
            assert_eq!(refused, Err(error.to_owned()));
        }
    }

    #[test]
    fn an_anchor_is_what_everything_selected_has() {
        let exists = json!([{"key": "a", "operator": "Exists"}]);
        let negative = selector(json!({"matchExpressions": exists})).expect("a selector");
        assert_eq!(negative.anchor(), None);
        let positive = json!({"matchLabels": {"b": "1"}, "matchExpressions": exists});
        let positive = selector(positive).expect("a selector");
        assert_eq!(positive.anchor(), Some(("b", &["1".to_owned()].into())));
    }
}
