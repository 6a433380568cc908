//! Where objects come from: an apiserver, or a directory of manifests.
//!
//! Both tell what they know as one endless stream of changes, in the order of a list followed by a
//! watch. What ails them is part of it, and logged.

pub mod apiserver;
pub mod manifests;

use futures::{Stream, StreamExt};

use crate::world::{Change, Severity, SourceTrouble};

fn logged(changes: impl Stream<Item = Change>) -> impl Stream<Item = Change> {
    changes.inspect(|change| {
        let Change::Trouble(SourceTrouble { subject, troubles }) = change else {
            return;
        };
        for trouble in troubles {
            match trouble.severity {
                Severity::Error => tracing::warn!(%subject, "{}", trouble.text),
                Severity::Ignored => tracing::info!(%subject, "{}", trouble.text),
            }
        }
        if troubles.is_empty() {
            tracing::info!(%subject, "well again");
        }
    })
}
