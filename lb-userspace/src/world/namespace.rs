//! Namespaces.

use k8s_openapi::api::core::v1 as core;

use super::{Labels, Row};
use crate::source::annotations::POLICY_AUDIT;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub labels: Labels,
    /// Whether its NetworkPolicies only say what they would do.
    pub audited: bool,
}

/// The row of a Namespace. Labels are taken as they are: it is the apiserver that writes
/// `kubernetes.io/metadata.name`.
pub fn reduce(object: &core::Namespace) -> Row<Namespace> {
    let mut problems = Vec::new();
    let value = Namespace {
        labels: object.metadata.labels.clone().unwrap_or_default(),
        audited: POLICY_AUDIT.read(&object.metadata, &mut problems) == "true",
    };
    Row {
        value: Some(value),
        version: object.metadata.resource_version.clone().unwrap_or_default(),
        problems,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_namespace_has_labels_and_may_audit_its_policies() {
        for (said, audited, problems) in [("true", true, 0), ("false", false, 0), ("1", false, 1)] {
            let object = json!({"metadata": {
                "labels": {"team": "a"},
                "annotations": {POLICY_AUDIT.key: said},
            }});
            let row = reduce(&serde_json::from_value(object).expect("a Namespace"));
            let labels = [("team".to_owned(), "a".to_owned())].into();
            assert_eq!(row.value, Some(Namespace { labels, audited }));
            assert_eq!(row.problems.len(), problems);
        }
    }
}
