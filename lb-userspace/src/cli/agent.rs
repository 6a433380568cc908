//! `lb run`.

use std::pin::Pin;

use anyhow::{Context as _, Result};
use futures::Stream;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tracing::info;

use super::{Failure, Run, Source};
use crate::{
    api, logging,
    source::{apiserver::ApiServer, manifests::Manifests},
    world::Change,
};

/// Runs the agent until a signal ends it. What is attached stays attached.
pub async fn run(run: Run) -> Result<(), Failure> {
    logging::init(run.log_format);
    let source = run.source().map_err(Failure::Usage)?;
    let node = run.node_name()?;
    let mut stop = Stop::new()?;
    let listener = api::bind(&run.places.socket).await?;
    let (queries, asked) = mpsc::channel(16);
    tokio::spawn(api::serve(listener, queries));
    let objects = Objects::open(source, &run).await?;
    let changes = objects.changes(&node);
    drop((changes, asked));
    tokio::select! {
        signal = stop.asked() => info!("{signal}: the agent ends, its programs stay at work"),
    }
    Ok(())
}

/// The source of objects, opened.
enum Objects {
    Manifests(Manifests),
    ApiServer(ApiServer),
}

impl Objects {
    async fn open(source: Source, run: &Run) -> Result<Self> {
        Ok(match source {
            Source::Manifests(directory) => Self::Manifests(Manifests::open(directory)?),
            Source::Kubeconfig(file) => {
                let server = ApiServer::from_kubeconfig(file.as_deref(), &run.apiserver);
                Self::ApiServer(server.await?)
            }
            Source::InCluster => Self::ApiServer(ApiServer::in_cluster(&run.apiserver)?),
        })
    }

    fn changes(&self, node: &str) -> Pin<Box<dyn Stream<Item = Change> + Send>> {
        match self {
            Self::Manifests(manifests) => Box::pin(manifests.changes(node)),
            Self::ApiServer(server) => Box::pin(server.changes(node)),
        }
    }
}

/// The signals that end the agent.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Waits for one and returns its name.
    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
