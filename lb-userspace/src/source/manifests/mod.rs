//! A directory of manifests: an apiserver that relists every time.

mod directory;
mod listing;
mod parse;

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::Context;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;

use super::logged;
use crate::world::Change;

use directory::Directory;

/// Time between two looks at the directory.
const INTERVAL: Duration = Duration::from_millis(100);

/// A directory of YAML and JSON files.
pub struct Manifests {
    path: PathBuf,
}

impl Manifests {
    /// Fails where there is no directory to read.
    pub fn open(path: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let path = path.into();
        fs::read_dir(&path).with_context(|| format!("read the manifests in {}", path.display()))?;
        Ok(Self { path })
    }

    /// Follows the directory for the agent of `node` until the stream is dropped.
    pub fn changes(&self, node: &str) -> impl Stream<Item = Change> + use<> {
        let mut directory = Directory::new(&self.path, node);
        let (sender, mut receiver) = mpsc::channel(1);
        thread::spawn(move || {
            while !sender.is_closed() {
                let changes = directory.look();
                if !changes.is_empty() && sender.blocking_send(changes).is_err() {
                    return;
                }
                thread::sleep(INTERVAL);
            }
        });
        let batches = stream::poll_fn(move |context| receiver.poll_recv(context));
        logged(batches.flat_map(stream::iter))
    }

    /// The names of the Nodes in the directory as it is now.
    pub fn node_names(&self) -> Vec<String> {
        let mut directory = Directory::new(&self.path, "");
        directory.look();
        directory.node_names()
    }
}
