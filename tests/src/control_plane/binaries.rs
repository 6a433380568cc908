//! Where etcd, kube-apiserver, kube-controller-manager and kube-proxy come from: found, or built
//! once.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::go;

/// The programs of a control plane, and kube-proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    pub etcd: PathBuf,
    pub apiserver: PathBuf,
    pub controller_manager: PathBuf,
    pub kube_proxy: PathBuf,
}

impl Binaries {
    /// The folders they stand in, each once.
    pub fn folders(&self) -> Vec<&Path> {
        let Self {
            etcd,
            apiserver,
            controller_manager,
            kube_proxy,
        } = self;
        let mut folders = Vec::new();
        for folder in [etcd, apiserver, controller_manager, kube_proxy]
            .into_iter()
            .filter_map(|p| p.parent())
        {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        folders
    }
}

/// Finds the control plane. An error says in one sentence how to get it.
pub fn find() -> Result<Binaries> {
    provide(|command, _| {
        bail!(
            "no {} was found: `cargo run -p lb-tests --bin control-plane` builds it",
            command.name
        )
    })
}

/// Finds the control plane, or builds what is missing of it, with progress on stderr. An error
/// says in one sentence what is missing and how to get it.
pub fn ensure() -> Result<Binaries> {
    provide(go::build)
}

fn provide(missing: impl Fn(&go::Command, &Path) -> Result<PathBuf>) -> Result<Binaries> {
    let cache = cache_folder()?;
    let mut folders = search_path();
    folders.push(cache.clone());
    let provide = |command: &go::Command| match first(&folders, command.name) {
        Some(path) => Ok(path),
        None => missing(command, &cache),
    };
    Ok(Binaries {
        etcd: provide(&go::ETCD)?,
        apiserver: provide(&go::APISERVER)?,
        controller_manager: provide(&go::CONTROLLER_MANAGER)?,
        kube_proxy: provide(&go::KUBE_PROXY)?,
    })
}

fn first(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Where binaries that somebody else provides may stand, in order of preference.
fn search_path() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = env::var_os("KUBEBUILDER_ASSETS")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    folders.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    folders.extend(
        base_folder("XDG_DATA_HOME", ".local/share")
            .iter()
            .flat_map(|data| newest_first(&data.join("kubebuilder-envtest/k8s"))),
    );
    folders
}

/// The folders of setup-envtest, named like `1.36.2-linux-amd64`, the newest version first.
fn newest_first(store: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<(Vec<u32>, PathBuf)> = fs::read_dir(store)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let version = name.to_str()?.split('-').next()?;
            Some((
                version
                    .split('.')
                    .map_while(|part| part.parse().ok())
                    .collect(),
                entry.path(),
            ))
        })
        .collect();
    folders.sort_by(|(a, _), (b, _)| b.cmp(a));
    folders.into_iter().map(|(_, path)| path).collect()
}

/// The folder of what is built here, outside of the checkout so that clones share it.
fn cache_folder() -> Result<PathBuf> {
    let root = env::var_os("LB_CACHE_DIR")
        .map(PathBuf::from)
        .or_else(|| base_folder("XDG_CACHE_HOME", ".cache").map(|cache| cache.join("lb-tests")))
        .context("no folder to keep the control plane in: set LB_CACHE_DIR or HOME")?;
    Ok(root.join(format!(
        "control-plane-{}-etcd-{}",
        go::KUBERNETES,
        go::ETCD_VERSION
    )))
}

/// A base folder of the XDG specification: the variable, or its default below `$HOME`.
fn base_folder(variable: &str, default: &str) -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set(variable).or_else(|| set("HOME").map(|home| home.join(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_setup_envtest_comes_first() -> Result<()> {
        let store = tempfile::tempdir()?;
        for name in [
            "1.9.0-linux-amd64",
            "1.36.2-linux-amd64",
            "1.36.10-linux-amd64",
        ] {
            fs::create_dir(store.path().join(name))?;
        }
        let names: Vec<_> = newest_first(store.path())
            .iter()
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect();
        assert_eq!(
            names,
            [
                "1.36.10-linux-amd64",
                "1.36.2-linux-amd64",
                "1.9.0-linux-amd64"
            ]
        );
        Ok(())
    }

    #[test]
    fn an_absent_store_holds_nothing() {
        assert!(newest_first(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn the_first_folder_that_has_a_binary_gives_it() -> Result<()> {
        let (empty, full) = (tempfile::tempdir()?, tempfile::tempdir()?);
        fs::write(full.path().join("etcd"), "")?;
        let folders = [empty.path().to_owned(), full.path().to_owned()];
        assert_eq!(first(&folders, "etcd"), Some(full.path().join("etcd")));
        assert_eq!(first(&folders, "kube-apiserver"), None);
        Ok(())
    }

    #[test]
    fn folders_are_named_once() {
        let binaries = Binaries {
            etcd: "/a/etcd".into(),
            apiserver: "/b/kube-apiserver".into(),
            controller_manager: "/b/kube-controller-manager".into(),
            kube_proxy: "/b/kube-proxy".into(),
        };
        assert_eq!(binaries.folders(), [Path::new("/a"), Path::new("/b")]);
    }
}
