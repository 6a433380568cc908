//! What the directory holds, and what has changed since the last look.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    listing::Listing,
    parse::{self, Object, Parsed},
};
use crate::world::{Change, SourceTrouble, Trouble};

/// The directory as last looked at and as last told.
///
/// A file counts once two looks in a row find it the same, so that one in the middle of being
/// written is not read, and one that is being replaced is not gone. Nothing is told before every
/// file has counted once.
pub struct Directory {
    path: PathBuf,
    node: String,
    /// What the last look found; `None` before the first.
    seen: Option<BTreeMap<String, Stamp>>,
    files: BTreeMap<String, File>,
    listing: Option<Listing>,
    troubles: BTreeMap<String, Vec<Trouble>>,
}

impl Directory {
    /// The directory at `path`, for the agent of `node`.
    pub fn new(path: &Path, node: &str) -> Self {
        Self {
            path: path.into(),
            node: node.into(),
            seen: None,
            files: BTreeMap::new(),
            listing: None,
            troubles: BTreeMap::new(),
        }
    }

    /// The names of the Nodes in the directory at `path` as it is now, settled or not.
    pub fn node_names(path: &Path) -> io::Result<Vec<String>> {
        let mut directory = Self::new(path, "");
        directory.seen = Some(stamps(path)?);
        directory.look();
        Ok(directory
            .listing
            .as_ref()
            .map(Listing::node_names)
            .unwrap_or_default())
    }

    /// All that the directory at `path` says as it is now, settled or not, to the agent of `node`.
    pub fn read(path: &Path, node: &str) -> io::Result<Vec<Change>> {
        let mut directory = Self::new(path, node);
        directory.seen = Some(stamps(path)?);
        Ok(directory.look())
    }

    /// All that the file at `path` says as it is now, to the agent of `node`.
    pub fn read_file(path: &Path, node: &str) -> io::Result<Vec<Change>> {
        let mut file = File::default();
        file.update(path, &Stamp::of(path)?);
        let name = path.display().to_string();
        let listing = Listing::of([(name.as_str(), file.objects.as_slice())].into_iter(), node);
        let mut changes = listing.changes_since(None);
        if !file.troubles.is_empty() {
            let troubles = BTreeMap::from([(name.clone(), file.troubles.clone())]);
            changes.extend(tell(&BTreeMap::new(), &troubles));
        }
        Ok(changes)
    }

    /// Looks once and returns what has changed.
    pub fn look(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut troubles = BTreeMap::new();
        match stamps(&self.path) {
            Ok(seen) => {
                let changed = self.read_settled(&seen);
                let first = self.listing.is_none();
                if changed && !first || first && self.knows_all(&seen) {
                    changes = self.relist();
                }
                self.seen = Some(seen);
            }
            Err(error) => {
                let text = format!("cannot be read: {error}; what was read before stays in force");
                troubles.insert(self.path.display().to_string(), vec![Trouble::error(text)]);
            }
        }
        for (name, file) in &self.files {
            if !file.troubles.is_empty() {
                troubles.insert(name.clone(), file.troubles.clone());
            }
        }
        changes.extend(tell(&self.troubles, &troubles));
        self.troubles = troubles;
        changes
    }

    /// Reads the files that have settled and forgets those that are gone. Returns whether any
    /// object may be another.
    fn read_settled(&mut self, now: &BTreeMap<String, Stamp>) -> bool {
        let Some(before) = &self.seen else {
            return false;
        };
        let mut changed = false;
        for (name, stamp) in now {
            if before.get(name) == Some(stamp) {
                let file = self.files.entry(name.clone()).or_default();
                changed |= file.update(&self.path.join(name), stamp);
            }
        }
        let known = self.files.len();
        self.files
            .retain(|name, _| now.contains_key(name) || before.contains_key(name));
        changed || self.files.len() != known
    }

    /// Whether every file has counted once. The first look cannot tell.
    fn knows_all(&self, now: &BTreeMap<String, Stamp>) -> bool {
        let mut files = now.keys().map(|name| self.files.get(name));
        self.seen.is_some() && files.all(|file| file.is_some_and(File::is_known))
    }

    fn relist(&mut self) -> Vec<Change> {
        let files = self.files.iter();
        let listing = Listing::of(
            files.map(|(name, file)| (name.as_str(), file.objects.as_slice())),
            &self.node,
        );
        let changes = listing.changes_since(self.listing.as_ref());
        self.listing = Some(listing);
        changes
    }
}

/// What tells that a file was written or replaced. Unlike the time of modification, the time of
/// change cannot be set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    changed: (i64, i64),
    device: u64,
    inode: u64,
    length: u64,
    is_file: bool,
}

/// The stamps of everything in the directory that is not hidden. A link counts as what it leads to:
/// a mounted ConfigMap is made of them.
fn stamps(path: &Path) -> io::Result<BTreeMap<String, Stamp>> {
    let mut stamps = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        // One that is gone since the directory was read is gone.
        if let Ok(stamp) = Stamp::of(&entry.path()) {
            stamps.insert(name, stamp);
        }
    }
    Ok(stamps)
}

impl Stamp {
    /// A link that leads nowhere is a file, one that cannot be read.
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path).or_else(|_| fs::symlink_metadata(path))?;
        let kind = metadata.file_type();
        Ok(Self {
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            is_file: kind.is_file() || kind.is_symlink(),
        })
    }
}

/// What is known of one file.
#[derive(Default)]
struct File {
    /// The stamp under which it was read; `None` to read it again.
    stamp: Option<Stamp>,
    /// Of the text that `objects` and `troubles` come from.
    digest: Option<u64>,
    /// The objects in force: those of the last text without an error, if there was one.
    objects: Vec<Object>,
    troubles: Vec<Trouble>,
}

impl File {
    /// Whether it has been read, or found to be unreadable.
    fn is_known(&self) -> bool {
        self.stamp.is_some() || !self.troubles.is_empty()
    }

    /// Reads the file if its stamp is new. Returns whether its objects may be others.
    fn update(&mut self, path: &Path, stamp: &Stamp) -> bool {
        if self.stamp.replace(*stamp) == Some(*stamp) {
            return false;
        }
        let known = path.extension().and_then(|extension| extension.to_str());
        if !stamp.is_file || !matches!(known, Some("yaml" | "yml" | "json")) {
            *self = Self {
                stamp: self.stamp,
                troubles: vec![Trouble::ignored("not a .yaml, .yml or .json file".into())],
                ..Self::default()
            };
            return true;
        }
        let text = fs::read(path);
        if Stamp::of(path).ok() != Some(*stamp) {
            // Written to while it was read.
            self.stamp = None;
            return false;
        }
        match text {
            Ok(text) => self.take(&text),
            Err(error) => {
                self.stamp = None;
                self.digest = None;
                self.troubles = vec![Trouble::error(
                    self.with_consequence(&format!("cannot be read: {error}")),
                )];
                false
            }
        }
    }

    fn take(&mut self, text: &[u8]) -> bool {
        let digest = digest(text);
        if self.digest.replace(digest) == Some(digest) {
            return false;
        }
        let Parsed {
            objects,
            errors,
            ignored,
        } = parse::parse(text);
        let troubles = errors
            .iter()
            .map(|error| Trouble::error(self.with_consequence(error)))
            .chain(ignored.into_iter().map(Trouble::ignored))
            .collect();
        self.troubles = troubles;
        if errors.is_empty() || self.objects.is_empty() {
            self.objects = objects;
        }
        true
    }

    fn with_consequence(&self, error: &str) -> String {
        if self.objects.is_empty() {
            error.into()
        } else {
            format!("{error}; what the file said before stays in force")
        }
    }
}

/// A short name for `content`.
pub fn digest(content: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

/// What to say so that a listener who knows `before` knows `now`.
fn tell<'a>(
    before: &'a BTreeMap<String, Vec<Trouble>>,
    now: &'a BTreeMap<String, Vec<Trouble>>,
) -> impl Iterator<Item = Change> + 'a {
    let new = now
        .iter()
        .filter(|(subject, troubles)| before.get(*subject) != Some(troubles))
        .map(|(subject, troubles)| (subject, troubles.clone()));
    let gone = before
        .keys()
        .filter(|subject| !now.contains_key(*subject))
        .map(|subject| (subject, Vec::new()));
    new.chain(gone).map(|(subject, troubles)| {
        Change::Trouble(SourceTrouble {
            subject: subject.clone(),
            troubles,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::{error::Error, os::unix::fs::symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::world::{ObjectKey, Severity, World};

    type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

    /// A directory on disk and what a follower of it knows.
    struct Followed {
        disk: TempDir,
        directory: Directory,
        world: World,
    }

    impl Followed {
        fn new() -> Result<Self> {
            let disk = TempDir::new()?;
            let directory = Directory::new(disk.path(), "n1");
            let world = World::default();
            Ok(Self {
                disk,
                directory,
                world,
            })
        }

        fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result {
            Ok(fs::write(self.disk.path().join(name), text)?)
        }

        fn remove(&self, name: &str) -> Result {
            Ok(fs::remove_file(self.disk.path().join(name))?)
        }

        fn look(&mut self) -> Vec<Change> {
            let changes = self.directory.look();
            for change in changes.clone() {
                self.world.apply(change);
            }
            changes
        }

        /// Looks until all that is there has settled.
        fn settle(&mut self) {
            self.look();
            self.look();
        }

        fn services(&self) -> Vec<String> {
            let services = self.world.services();
            services.map(|(key, _)| key.name.clone()).collect()
        }

        fn troubles(&self) -> Vec<String> {
            let troubles = self.world.troubles();
            troubles
                .map(|(subject, trouble)| format!("{subject}: {}", trouble.text))
                .collect()
        }
    }

    fn service(name: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
             spec: {{clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}}}\n"
        )
    }

    #[test]
    fn nothing_is_told_before_all_has_settled() -> Result {
        let mut followed = Followed::new()?;
        followed.write("a.yaml", service("a"))?;
        assert_eq!(followed.look(), []);
        followed.write("b.yaml", "")?;
        assert_eq!(followed.look(), []);
        followed.write("b.yaml", service("b"))?;
        assert_eq!(followed.look(), []);
        followed.look();
        assert!(followed.world.synced());
        assert_eq!(followed.services(), ["a", "b"]);
        assert_eq!(followed.look(), [], "nothing has changed");
        Ok(())
    }

    #[test]
    fn an_empty_directory_is_an_empty_list() -> Result {
        let mut followed = Followed::new()?;
        followed.settle();
        assert!(followed.world.synced());
        Ok(())
    }

    #[test]
    fn a_file_that_was_emptied_keeps_what_it_said() -> Result {
        let mut followed = Followed::new()?;
        followed.write("a.yaml", service("a"))?;
        followed.settle();
        followed.write("a.yaml", "")?;
        followed.settle();
        assert_eq!(followed.services(), ["a"]);
        let trouble = "a.yaml: empty; what the file said before stays in force";
        assert_eq!(followed.troubles(), [trouble]);
        followed.write("a.yaml", "# nothing any more")?;
        followed.settle();
        assert_eq!(followed.services(), Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn files_that_come_change_and_go_are_followed() -> Result {
        let mut followed = Followed::new()?;
        followed.settle();
        assert!(followed.world.synced());

        followed.write("a.yaml", service("a"))?;
        followed.write("b.json", service("b"))?;
        followed.settle();
        assert_eq!(followed.services(), ["a", "b"]);

        followed.write("a.yaml", [service("c"), service("d")].join("---\n"))?;
        followed.settle();
        assert_eq!(followed.services(), ["b", "c", "d"]);

        followed.remove("a.yaml")?;
        followed.settle();
        assert_eq!(followed.services(), ["b"]);
        Ok(())
    }

    #[test]
    fn a_file_that_is_being_written_or_replaced_is_left_alone() -> Result {
        let mut followed = Followed::new()?;
        followed.write("a.yaml", service("a"))?;
        followed.settle();

        followed.write("a.yaml", "")?;
        assert_eq!(followed.look(), []);
        followed.write("a.yaml", [service("a"), service("b")].join("---\n"))?;
        assert_eq!(followed.look(), []);
        followed.look();
        assert_eq!(followed.services(), ["a", "b"]);

        followed.remove("a.yaml")?;
        assert_eq!(followed.look(), []);
        followed.write("a.yaml", service("c"))?;
        assert_eq!(followed.look(), []);
        followed.look();
        assert_eq!(followed.services(), ["c"]);
        Ok(())
    }

    #[test]
    fn a_file_renamed_never_lacks_its_objects() -> Result {
        let mut followed = Followed::new()?;
        followed.write("a.yaml", service("a"))?;
        followed.settle();
        let path = followed.disk.path();
        fs::rename(path.join("a.yaml"), path.join("b.yaml"))?;
        for _ in 0..3 {
            followed.look();
            assert_eq!(followed.services(), ["a"]);
        }
        assert_eq!(followed.world.problems().count(), 0);
        Ok(())
    }

    #[test]
    fn a_file_that_breaks_keeps_what_it_said_and_says_where() -> Result {
        let mut followed = Followed::new()?;
        followed.write("a.yaml", service("a"))?;
        followed.write("b.yaml", service("b"))?;
        followed.settle();

        followed.write("a.yaml", format!("{}---\nspec: [", service("c")))?;
        followed.settle();
        assert_eq!(followed.services(), ["a", "b"]);
        assert_eq!(
            followed.troubles(),
            [
                "a.yaml: unclosed bracket '[' at line 3, column 7; what the file said before stays \
              in force"
            ]
        );

        followed.write("a.yaml", service("c"))?;
        followed.settle();
        assert_eq!(followed.services(), ["b", "c"]);
        assert_eq!(followed.troubles(), Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_file_that_was_never_whole_gives_what_can_be_read() -> Result {
        let mut followed = Followed::new()?;
        followed.write("a.yaml", format!("{}---\nspec: [", service("a")))?;
        followed.write("b.yaml", service("b"))?;
        followed.settle();
        assert_eq!(followed.services(), ["a", "b"]);
        assert_eq!(
            followed.troubles(),
            ["a.yaml: unclosed bracket '[' at line 3, column 7"]
        );
        Ok(())
    }

    #[test]
    fn what_is_not_read_is_named_as_ignored() -> Result {
        let mut followed = Followed::new()?;
        followed.write("README.md", "# Hello")?;
        followed.write(".hidden.yaml", service("hidden"))?;
        followed.write(
            "d.yaml",
            "{apiVersion: apps/v1, kind: Deployment}\n---\n{apiVersion: apps/v1, kind: Deployment}",
        )?;
        fs::create_dir(followed.disk.path().join("sub.yaml"))?;
        followed.settle();
        let troubles: Vec<_> = followed.world.troubles().collect();
        assert!(
            troubles
                .iter()
                .all(|(_, trouble)| trouble.severity == Severity::Ignored)
        );
        assert_eq!(
            followed.troubles(),
            [
                "README.md: not a .yaml, .yml or .json file",
                "d.yaml: Deployment (apps/v1): not read",
                "sub.yaml: not a .yaml, .yml or .json file",
            ]
        );
        assert_eq!(followed.services(), Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_directory_that_cannot_be_read_takes_nothing_away() -> Result {
        let mut followed = Followed::new()?;
        followed.write("a.yaml", service("a"))?;
        followed.settle();

        let away = followed.disk.path().with_extension("away");
        fs::rename(followed.disk.path(), &away)?;
        followed.settle();
        assert_eq!(followed.services(), ["a"]);
        let subject = followed.disk.path().display().to_string();
        let troubles = followed.troubles();
        assert_eq!(troubles.len(), 1);
        assert!(
            troubles[0].starts_with(&format!("{subject}: cannot be read: ")),
            "{troubles:?}"
        );

        fs::rename(&away, followed.disk.path())?;
        followed.settle();
        assert_eq!(followed.services(), ["a"]);
        assert_eq!(followed.troubles(), Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_link_that_leads_nowhere_takes_nothing_away() -> Result {
        let mut followed = Followed::new()?;
        let path = followed.disk.path().to_owned();
        fs::create_dir(path.join(".data"))?;
        fs::write(path.join(".data/a.yaml"), service("a"))?;
        symlink(".data/a.yaml", path.join("a.yaml"))?;
        symlink("loop.yaml", path.join("loop.yaml"))?;
        followed.settle();
        assert_eq!(followed.services(), ["a"]);
        assert_eq!(followed.troubles().len(), 1, "{:?}", followed.troubles());

        followed.remove(".data/a.yaml")?;
        followed.settle();
        assert_eq!(followed.services(), ["a"]);
        assert_eq!(followed.troubles().len(), 2, "{:?}", followed.troubles());

        followed.write(".data/a.yaml", service("b"))?;
        followed.settle();
        assert_eq!(followed.services(), ["b"]);
        Ok(())
    }

    #[test]
    fn a_version_is_told_although_nothing_we_read_has_changed() -> Result {
        let mut followed = Followed::new()?;
        let key = ObjectKey::new("default", "a");
        followed.write("a.yaml", service("a"))?;
        followed.settle();
        let version = followed.world.versions_of(&key);
        followed.write("a.yaml", service("a").replace("name: a", "name: a, uid: x"))?;
        followed.settle();
        assert_eq!(followed.services(), ["a"]);
        assert_ne!(followed.world.versions_of(&key), version);
        Ok(())
    }

    #[test]
    fn the_names_of_nodes_are_known() -> Result {
        let followed = Followed::new()?;
        followed.write(
            "n.yaml",
            "{apiVersion: v1, kind: Node, metadata: {name: n1}}",
        )?;
        assert_eq!(Directory::node_names(followed.disk.path())?, ["n1"]);
        Ok(())
    }
}
