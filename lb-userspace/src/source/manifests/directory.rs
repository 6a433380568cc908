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
/// written is not read, and one that is being replaced is not gone.
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

    /// Looks once and returns what has changed.
    pub fn look(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut troubles = BTreeMap::new();
        match stamps(&self.path) {
            Ok(seen) => {
                if self.read_settled(&seen) || self.listing.is_none() {
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

    /// The names of the Nodes that the last look found.
    pub fn node_names(&self) -> Vec<String> {
        self.listing
            .as_ref()
            .map(Listing::node_names)
            .unwrap_or_default()
    }

    /// Reads the files that have settled and forgets those that are gone. Returns whether any
    /// object may be another.
    fn read_settled(&mut self, now: &BTreeMap<String, Stamp>) -> bool {
        let mut changed = false;
        for (name, stamp) in now {
            let settled = self
                .seen
                .as_ref()
                .map(|before| before.get(name) == Some(stamp));
            match settled {
                Some(false) => {}
                Some(true) => {
                    let file = self.files.entry(name.clone()).or_default();
                    changed |= file.update(&self.path.join(name), stamp);
                }
                // The first look waits for nothing, and what it read is read once more.
                None => {
                    let file = self.files.entry(name.clone()).or_default();
                    changed |= file.update(&self.path.join(name), stamp);
                    file.stamp = None;
                }
            }
        }
        let before = self.seen.as_ref();
        let known = self.files.len();
        self.files.retain(|name, _| {
            now.contains_key(name) || before.is_some_and(|before| before.contains_key(name))
        });
        changed || self.files.len() != known
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
        match fs::metadata(entry.path()) {
            Ok(metadata) => {
                let stamp = Stamp {
                    changed: (metadata.ctime(), metadata.ctime_nsec()),
                    device: metadata.dev(),
                    inode: metadata.ino(),
                    is_file: metadata.is_file(),
                };
                stamps.insert(name, stamp);
            }
            // Removed since the directory was read, or a link to nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(stamps)
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
        match fs::read(path) {
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
