//! Where objects come from: an apiserver, or a directory of manifests.

pub mod apiserver;
pub mod manifests;

use futures::{Stream, StreamExt, stream::BoxStream};

use crate::world::{Change, Severity, SourceTrouble};

use apiserver::ApiServer;
use manifests::Manifests;

/// The one source that the agent follows.
pub enum Source {
    ApiServer(ApiServer),
    Manifests(Manifests),
}

impl Source {
    /// Follows the source for the agent of `node`, for ever. An end of the stream is a defect.
    pub fn changes(&self, node: &str) -> BoxStream<'static, Change> {
        match self {
            Self::ApiServer(server) => logged(server.changes(node)).boxed(),
            Self::Manifests(manifests) => logged(manifests.changes(node)).boxed(),
        }
    }

    /// The names of all Nodes, to help a person who got theirs wrong.
    pub async fn node_names(&self) -> anyhow::Result<Vec<String>> {
        match self {
            Self::ApiServer(server) => server.node_names().await,
            Self::Manifests(manifests) => Ok(manifests.node_names()),
        }
    }
}

fn logged(changes: impl Stream<Item = Change>) -> impl Stream<Item = Change> {
    changes.inspect(|change| {
        if let Change::Trouble(SourceTrouble { subject, troubles }) = change {
            for trouble in troubles {
                match trouble.severity {
                    Severity::Error => tracing::warn!(%subject, "{}", trouble.text),
                    Severity::Ignored => tracing::info!(%subject, "{}", trouble.text),
                }
            }
            if troubles.is_empty() {
                tracing::info!(%subject, "well again");
            }
        }
    })
}
