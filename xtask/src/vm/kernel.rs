//! Kernels out of Debian's archive, kept unpacked in the cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{children, progress::Steps};

/// With this key ring Debian signs what its mirrors offer.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Debian's smallest kernel for virtual machines: all of networking, few drivers.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel to boot, by version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    /// Of bullseye: the oldest that is supported
    #[value(name = "5.10")]
    Bullseye,
    /// Of bookworm: clsact, no tcx
    #[value(name = "6.1")]
    Bookworm,
    /// Of trixie
    #[value(name = "6.12")]
    Trixie,
}

/// A kernel in the cache.
pub struct Fetched {
    pub image: PathBuf,
    /// `/lib/modules/RELEASE` of a machine.
    pub modules: PathBuf,
    pub release: String,
}

impl Kernel {
    /// Major and minor.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Bullseye => "5.10",
            Self::Bookworm => "6.1",
            Self::Trixie => "6.12",
        }
    }

    const fn suite(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// Finds the kernel in the cache, or fetches it from `mirror`.
    ///
    /// # Errors
    ///
    /// When there is no such package there, or no signature of Debian's.
    pub fn fetch(self, mirror: &str) -> Result<Fetched> {
        let cache = cache_folder()?;
        let folder = cache.join(self.version());
        if !folder.is_dir() {
            let unfinished = cache.join(format!("{}.unfinished", self.version()));
            let _gone = fs::remove_dir_all(&unfinished);
            fs::create_dir_all(&unfinished)
                .with_context(|| format!("make the directory {}", unfinished.display()))?;
            self.unpack(mirror, &unfinished)
                .with_context(|| format!("fetch Linux {} of {mirror}", self.version()))?;
            fs::rename(&unfinished, &folder).context("keep the kernel")?;
        }
        Fetched::find(&folder).with_context(|| {
            format!(
                "{} is incomplete: remove it and try again",
                folder.display()
            )
        })
    }

    /// Downloads the package and unpacks it to `folder`.
    fn unpack(self, mirror: &str, folder: &Path) -> Result<()> {
        let mut steps = Steps::new(&[true]);
        let what = format!("Linux {} of Debian {}", self.version(), self.suite());
        let mut step = steps.start(&format!("{what}: fetch {PACKAGE}"));
        let apt = Apt::new(self.suite(), mirror, &folder.join("apt"))?;
        apt.run("apt-get", &["update"], |line| step.at(line))?;
        let mut depends = String::new();
        apt.run("apt-cache", &["depends", PACKAGE], |line| {
            if let Some(package) = line.strip_prefix("Depends: ") {
                package.clone_into(&mut depends);
            }
        })?;
        ensure!(!depends.is_empty(), "there is no {PACKAGE}");
        step.at(&format!("download {depends}"));
        apt.run("apt-get", &["download", &depends], |line| step.at(line))?;
        let package = only(&apt.folder, |name| {
            Path::new(name)
                .extension()
                .is_some_and(|extension| extension == "deb")
        })?;
        step.at("unpack");
        let mut extract = Command::new("dpkg-deb");
        extract.arg("--extract").arg(package).arg(folder);
        succeed(extract, |_| ())?;
        fs::remove_dir_all(&apt.folder).context("remove what has been unpacked")?;
        if !folder.join("lib/modules").is_dir() {
            fs::create_dir_all(folder.join("lib"))?;
            fs::rename(folder.join("usr/lib/modules"), folder.join("lib/modules"))?;
        }
        let mut depmod = Command::new(crate::setup::search("depmod").context("no depmod")?);
        depmod
            .arg("--basedir")
            .arg(folder)
            .arg(Fetched::find(folder)?.release);
        succeed(depmod, |_| ())?;
        step.end("done");
        Ok(())
    }
}

impl Fetched {
    fn find(folder: &Path) -> Result<Self> {
        let modules = only(&folder.join("lib/modules"), |_| true)?;
        let release = modules
            .file_name()
            .context("a folder with a name")?
            .to_string_lossy()
            .into_owned();
        let image = folder.join("boot").join(format!("vmlinuz-{release}"));
        ensure!(image.is_file(), "there is no {}", image.display());
        Ok(Self {
            image,
            modules,
            release,
        })
    }
}

/// apt with one suite as its only source and nothing installed: it checks signatures and sums as
/// it always does, and leaves the system alone.
struct Apt {
    folder: PathBuf,
    configuration: PathBuf,
}

impl Apt {
    fn new(suite: &str, mirror: &str, folder: &Path) -> Result<Self> {
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let sources = folder.join("sources.list");
        let source = format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(&sources, source)?;
        let configuration = folder.join("apt.conf");
        let lines = [
            ("Dir::State", folder.join("")),
            ("Dir::State::lists", folder.join("lists")),
            ("Dir::State::status", "/dev/null".into()),
            ("Dir::Cache", folder.join("")),
            ("Dir::Etc::sourcelist", sources),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
        ];
        let mut text: String = lines
            .iter()
            .map(|(key, value)| format!("{key} \"{}\";\n", value.display()))
            .collect();
        // The folder is not readable for apt's own user. What the system does after its updates is
        // not for this one.
        text.push_str("APT::Sandbox::User \"\";\n");
        text.push_str("#clear APT::Update::Post-Invoke-Success;\n");
        text.push_str("#clear APT::Update::Post-Invoke;\n");
        fs::write(&configuration, text)?;
        Ok(Self {
            folder: folder.to_owned(),
            configuration,
        })
    }

    fn run(&self, program: &str, args: &[&str], line: impl FnMut(&str)) -> Result<()> {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("APT_CONFIG", &self.configuration)
            .env("LC_ALL", "C")
            .current_dir(&self.folder);
        succeed(command, line)
    }
}

/// Runs `command`; an error says what it complained of.
fn succeed(command: Command, mut line: impl FnMut(&str)) -> Result<()> {
    let name = command.get_program().display().to_string();
    let mut complaint = String::new();
    let status = children::follow(command, |text| {
        if text.starts_with("E: ") || text.contains("error:") {
            text.clone_into(&mut complaint);
        }
        line(text);
    })?;
    ensure!(status.success(), "{name}: {complaint} ({status})");
    Ok(())
}

/// The one entry of a folder whose name `fits`.
fn only(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_str().is_some_and(&fits))
        .map(|entry| entry.path())
        .with_context(|| format!("{} lacks something", folder.display()))
}

/// Outside of the checkout, so that clones share it.
fn cache_folder() -> Result<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = set("LB_CACHE_DIR")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("lb-tests")))
        .or_else(|| Some(set("HOME")?.join(".cache/lb-tests")))
        .context("no folder to keep kernels in: set LB_CACHE_DIR or HOME")?;
    Ok(base.join("kernels"))
}
