//! Puts the plugin into the list of plugins that the runtime calls for each pod, and takes it out.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Gid, Uid, chown};
use serde_json::{Value, json};

use super::TYPE;

/// What a single plugin's file is called once a list has taken its place.
const ASIDE: &str = "before-lb";

/// What [`install`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The list that the runtime reads.
    pub conflist: PathBuf,
    /// False where the plugin was in it already.
    pub changed: bool,
    pub binary: PathBuf,
}

/// What [`remove`] did: the files that were changed or removed.
pub type Removed = Vec<PathBuf>;

/// Copies a binary to where plugins are, then puts it at the end of the first list, which is the one
/// that runtimes read. Both are replaced in one step: a runtime sees the old file or the new one.
pub fn install(configs: &Path, binaries: &Path, own: &Path, socket: &Path) -> Result<Installed> {
    let binary = binaries.join(TYPE);
    let list = first(configs)?.with_context(|| {
        format!(
            "{} has no network configuration yet: install the network plugin first",
            configs.display()
        )
    })?;
    let config = read(&list)?;
    let bytes = fs::read(own).with_context(|| format!("read {}", own.display()))?;
    replace(&binary, &bytes, 0o755)?;
    let chained = chain(config, socket)?;
    let Some(chained) = chained else {
        return Ok(Installed {
            conflist: list,
            changed: false,
            binary,
        });
    };
    let conflist = list.with_extension("conflist");
    write(&conflist, &chained, &list)?;
    if conflist != list {
        let aside = aside(&list);
        fs::rename(&list, &aside).with_context(|| format!("rename {}", list.display()))?;
    }
    Ok(Installed {
        conflist,
        changed: true,
        binary,
    })
}

/// Takes the plugin out of every list, then removes the binary.
pub fn remove(configs: &Path, binaries: &Path) -> Result<Removed> {
    let mut changed = Vec::new();
    for list in files(configs)? {
        let Some(unchained) = unchain(read(&list)?) else {
            continue;
        };
        let single = list.with_extension("conf");
        if aside(&single).exists() {
            fs::rename(aside(&single), &single)
                .with_context(|| format!("restore {}", single.display()))?;
            fs::remove_file(&list).with_context(|| format!("remove {}", list.display()))?;
        } else {
            write(&list, &unchained, &list)?;
        }
        changed.push(list);
    }
    let binary = binaries.join(TYPE);
    if binary.exists() {
        fs::remove_file(&binary).with_context(|| format!("remove {}", binary.display()))?;
        changed.push(binary);
    }
    Ok(changed)
}

/// The configuration with the plugin at the end; `None` where it is there as it should be.
fn chain(config: Value, socket: &Path) -> Result<Option<Value>> {
    let plugin = json!({ "type": TYPE, "socket": socket });
    let mut list = match config.get("plugins") {
        Some(_) => config,
        None => listed(config),
    };
    let plugins = list["plugins"].as_array_mut();
    let plugins = plugins.context("its `plugins` are no list")?;
    ensure!(
        !plugins.is_empty(),
        "it has no plugin that makes interfaces"
    );
    if plugins.last() == Some(&plugin) {
        return Ok(None);
    }
    plugins.retain(|plugin| plugin["type"] != TYPE);
    plugins.push(plugin);
    Ok(Some(list))
}

/// A single plugin as a list of one.
fn listed(mut plugin: Value) -> Value {
    let list = json!({ "cniVersion": plugin["cniVersion"], "name": plugin["name"] });
    if let Some(plugin) = plugin.as_object_mut() {
        plugin.remove("cniVersion");
        plugin.remove("name");
    }
    let mut list = list;
    list["plugins"] = json!([plugin]);
    list
}

/// The configuration without the plugin; `None` where it is not there.
fn unchain(mut config: Value) -> Option<Value> {
    let plugins = config.get_mut("plugins")?.as_array_mut()?;
    let before = plugins.len();
    plugins.retain(|plugin| plugin["type"] != TYPE);
    (plugins.len() < before).then_some(config)
}

/// The file that runtimes read: the first by name.
fn first(configs: &Path) -> Result<Option<PathBuf>> {
    Ok(files(configs)?.into_iter().next())
}

/// The network configurations, by name.
fn files(configs: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(configs).with_context(|| format!("read {}", configs.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("conflist" | "conf" | "json")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn aside(list: &Path) -> PathBuf {
    let mut name = list.as_os_str().to_owned();
    name.push(".");
    name.push(ASIDE);
    name.into()
}

fn read(list: &Path) -> Result<Value> {
    let read = || -> Result<Value> { Ok(serde_json::from_slice(&fs::read(list)?)?) };
    read().with_context(|| format!("read {}", list.display()))
}

/// Writes a configuration with the mode and owner of another file.
fn write(list: &Path, config: &Value, like: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::metadata(like).with_context(|| format!("look at {}", like.display()))?;
    let mut bytes = serde_json::to_vec_pretty(config)?;
    bytes.push(b'\n');
    replace(list, &bytes, metadata.mode() & 0o7777)?;
    let (owner, group) = (Uid::from(metadata.uid()), Gid::from(metadata.gid()));
    chown(list, Some(owner), Some(group)).with_context(|| format!("own {}", list.display()))
}

/// Replaces a file in one step. The new file's name is none that runtimes read.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".lb-new");
    let new = PathBuf::from(new);
    let replace = || -> Result<()> {
        let mut file = fs::File::create(&new)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(fs::rename(&new, path)?)
    };
    replace().with_context(|| format!("write {}", path.display()))
}
