//! The file system that a machine boots into: programs with the libraries they need, modules, and
//! text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use cpio::newc::{self, ModeFileType};
use tempfile::TempDir;

use super::kernel::Fetched;

/// The modules that our programs and tests can make a kernel want.
const MODULES: [&str; 5] = [
    "kernel/arch/x86/crypto",
    "kernel/crypto",
    "kernel/drivers/net",
    "kernel/lib",
    "kernel/net",
];

/// What goes into the archive, by path in the machine.
pub struct Initramfs {
    files: BTreeMap<PathBuf, PathBuf>,
    /// Holds what is not a file yet, and goes when the machine has run.
    scratch: TempDir,
}

impl Initramfs {
    /// Nothing yet.
    pub fn new() -> Result<Self> {
        Ok(Self {
            files: BTreeMap::new(),
            scratch: tempfile::tempdir().context("make a directory")?,
        })
    }

    /// Adds an executable without its debug information, and the libraries it is linked with.
    pub fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        let stripped = self.temporary();
        let status = Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&stripped)
            .arg(from)
            .status()
            .context("run strip (package binutils)")?;
        ensure!(status.success(), "strip {} failed", from.display());
        self.files.insert(to.into(), stripped);

        let tree = lddtree::DependencyAnalyzer::new("/".into())
            .analyze(from)
            .with_context(|| format!("find the libraries of {}", from.display()))?;
        for library in tree.libraries.into_values() {
            ensure!(library.found(), "there is no library {}", library.name);
            self.files.insert(library.path.clone(), library.path);
        }
        if let Some(path) = tree.interpreter.map(PathBuf::from) {
            self.files.insert(path.clone(), path);
        }
        Ok(())
    }

    /// Adds a kernel's modules, and the lists by which they are found.
    pub fn modules(&mut self, kernel: &Fetched) -> Result<()> {
        let place = Path::new("/lib/modules").join(&kernel.release);
        let mut folders: Vec<_> = MODULES.map(|name| kernel.modules.join(name)).into();
        while let Some(folder) = folders.pop() {
            // Not every kernel has each.
            for entry in fs::read_dir(&folder).into_iter().flatten() {
                let path = entry?.path();
                if path.is_dir() {
                    // Devices that no machine of ours has.
                    if !path.ends_with("drivers/net/ethernet") {
                        folders.push(path);
                    }
                } else {
                    let to = place.join(path.strip_prefix(&kernel.modules)?);
                    self.files.insert(to, path);
                }
            }
        }
        for entry in fs::read_dir(&kernel.modules)? {
            let entry = entry?;
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(b"modules.")
            {
                self.files
                    .insert(place.join(entry.file_name()), entry.path());
            }
        }
        Ok(())
    }

    /// Adds a file with this text.
    pub fn text(&mut self, to: &str, text: &str) -> Result<()> {
        let path = self.temporary();
        fs::write(&path, text)?;
        self.files.insert(to.into(), path);
        Ok(())
    }

    /// Writes the archive, which stands as long as `self`.
    pub fn write(&self) -> Result<PathBuf> {
        let path = self.scratch.path().join("initramfs");
        let mut out = BufWriter::new(File::create(&path)?);
        let mut entry = |name: &Path, kind, mode, bytes: &[u8]| -> Result<()> {
            let name = name
                .strip_prefix("/")?
                .to_str()
                .context("a path in UTF-8")?;
            let mut writer = newc::Builder::new(name)
                .mode(mode)
                .set_mode_file_type(kind)
                .write(&mut out, u32::try_from(bytes.len())?);
            writer.write_all(bytes)?;
            writer.finish()?;
            Ok(())
        };
        let mut folders = BTreeSet::from([PathBuf::from("/dev")]);
        for path in self.files.keys() {
            folders.extend(path.ancestors().skip(1).map(Path::to_owned));
        }
        folders.remove(Path::new("/"));
        for folder in &folders {
            entry(folder, ModeFileType::Directory, 0o755, &[])?;
        }
        for (to, from) in &self.files {
            let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
            entry(to, ModeFileType::Regular, 0o755, &bytes)?;
        }
        newc::trailer(out)?.flush()?;
        Ok(path)
    }

    fn temporary(&self) -> PathBuf {
        self.scratch.path().join(self.files.len().to_string())
    }
}
