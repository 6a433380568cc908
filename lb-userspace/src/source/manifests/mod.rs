//! A directory of manifests: an apiserver that relists every time.

mod directory;
mod listing;
mod parse;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Context;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;

use super::logged;
use crate::world::Change;

use directory::Directory;
pub use parse::version;

/// Time between two looks at the directory.
const INTERVAL: Duration = Duration::from_millis(50);

/// All that a directory of manifests, or a single file of them, says to nobody's agent in particular.
pub fn read(path: &Path) -> anyhow::Result<Vec<Change>> {
    if path.is_file() {
        let read = Directory::read_file(path, "");
        return read.with_context(|| format!("read the manifests in {}", path.display()));
    }
    Manifests::open(path)?.read("")
}

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

    /// All that the directory says as it is now, to the agent of `node`.
    pub fn read(&self, node: &str) -> anyhow::Result<Vec<Change>> {
        Directory::read(&self.path, node)
            .with_context(|| format!("read the manifests in {}", self.path.display()))
    }

    /// The names of the Nodes in the directory as it is now.
    pub fn node_names(&self) -> anyhow::Result<Vec<String>> {
        Directory::node_names(&self.path)
            .with_context(|| format!("read the manifests in {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;
    use crate::world::World;

    const SOON: Duration = Duration::from_secs(10);

    fn service(name: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
             spec: {{clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}}}"
        )
    }

    /// Follows until the world has just the service `name`.
    async fn until(
        name: &str,
        world: &mut World,
        changes: &mut (impl Stream<Item = Change> + Unpin),
    ) -> anyhow::Result<()> {
        let found = async {
            while !world
                .services()
                .map(|(key, _)| key.name.as_str())
                .eq([name])
            {
                let change = changes.next().await.context("the stream has ended")?;
                world.apply(change);
            }
            Ok(())
        };
        timeout(SOON, found).await?
    }

    #[tokio::test]
    async fn a_directory_is_followed() -> anyhow::Result<()> {
        let disk = TempDir::new()?;
        fs::write(disk.path().join("web.yaml"), service("one"))?;
        let mut changes = Manifests::open(disk.path())?.changes("n1").boxed();
        let mut world = World::default();
        until("one", &mut world, &mut changes).await?;
        fs::write(disk.path().join("web.yaml"), service("two"))?;
        until("two", &mut world, &mut changes).await
    }

    #[test]
    fn a_file_says_what_a_directory_with_it_says() -> anyhow::Result<()> {
        let disk = TempDir::new()?;
        let file = disk.path().join("web.yaml");
        fs::write(&file, service("one"))?;
        let of_file = read(&file)?;
        assert_eq!(of_file, read(disk.path())?);
        fs::write(&file, "{")?;
        let troubles = read(&file)?.into_iter();
        let troubles = troubles.filter(|change| matches!(change, Change::Trouble(_)));
        assert_eq!(troubles.count(), 1);
        Ok(())
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() -> anyhow::Result<()> {
        let disk = TempDir::new()?;
        let missing = disk.path().join("missing");
        let error = Manifests::open(&missing).err().context("an error")?;
        let expected = format!("read the manifests in {}", missing.display());
        assert_eq!(error.to_string(), expected);
        Ok(())
    }
}
