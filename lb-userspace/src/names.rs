//! The names of what stands in the tables as numbers, kept in a file beside the agent's socket, so
//! that the tables can be read when no agent runs.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{compile::PortName, world::ObjectKey};

/// What the agent knows and the tables do not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Names {
    /// Process id of the agent.
    pub pid: u32,
    /// The service port of each service index.
    pub services: BTreeMap<u32, PortName>,
    /// The pod of each endpoint slot.
    #[serde(default)]
    pub pods: BTreeMap<u32, ObjectKey>,
    /// What each number of a rule stands for.
    #[serde(default)]
    pub rules: BTreeMap<u32, String>,
}

impl Names {
    /// Where the names of the agent with this socket are.
    pub fn path(socket: &Path) -> PathBuf {
        socket.with_file_name("names.json")
    }

    /// Replaces the file, so that a reader finds the old names or the new ones.
    pub fn write(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("json.new");
        let write = || -> Result<()> {
            let mut file = File::create(&new)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            serde_json::to_writer(&file, self)?;
            file.write_all(b"\n")?;
            Ok(fs::rename(&new, path)?)
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Reads the file, and when the agent last gave a sign of life; `None` where there is none.
    pub fn read(path: &Path) -> Result<Option<(Self, SystemTime)>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        };
        let read = || -> Result<_> {
            let seen = file.metadata()?.modified()?;
            Ok((serde_json::from_reader(io::BufReader::new(&file))?, seen))
        };
        read()
            .map(Some)
            .with_context(|| format!("read {}", path.display()))
    }

    /// Gives a sign of life: the file's time of modification.
    pub fn touch(path: &Path) -> Result<()> {
        let touch = || {
            File::options()
                .append(true)
                .open(path)?
                .set_modified(SystemTime::now())
        };
        touch().with_context(|| format!("touch {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_survive_the_agent() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Names::path(&directory.path().join("lb.sock"));
        assert_eq!(Names::read(&path).expect("no error"), None);
        assert!(Names::touch(&path).is_err());

        let name = "default/web:http/TCP/IPv4".parse().expect("a name");
        let names = Names {
            pid: 7,
            services: BTreeMap::from([(3, name)]),
            pods: BTreeMap::from([(1, ObjectKey::new("default", "web-0"))]),
            rules: BTreeMap::from([(7, "NetworkPolicy default/p ingress rule 0".to_owned())]),
        };
        names.write(&path).expect("written");
        File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH))
            .expect("an old file");
        Names::touch(&path).expect("touched");
        let (read, seen) = Names::read(&path).expect("no error").expect("names");
        assert_eq!(read, names);
        assert!(seen.elapsed().expect("no time travel") < Duration::from_secs(60));
        assert_eq!(fs::read_dir(&directory).expect("a directory").count(), 1);
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("names.json");
        fs::write(&path, r#"{"pid": 1, "services": {"1": "nonsense"}}"#).expect("written");
        assert!(Names::read(&path).is_err());
    }
}
