//! Services for processes: the programs on the root of the control groups, and on those of pods that
//! ask for them.

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use lb_common::{
    address::{UNSPECIFIED, from_ip},
    socket::Settings,
};
use socket2::{Domain, Socket, Type};
use tracing::{info, warn};

use crate::{
    compile::Local,
    kernel::{Programs, Tables, pod_cgroup},
    world::{Kind, World},
};

/// The processes that reach services when they connect and send, instead of packet by packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SocketLb {
    /// Those in the node's own network namespace, and those of pods that ask for it
    Host,
    /// All, those of all pods included
    All,
    /// None
    Off,
}

impl fmt::Display for SocketLb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::All => "all",
            Self::Off => "off",
        })
    }
}

/// The control groups that the programs hang on.
pub struct Sockets {
    scope: SocketLb,
    /// The root of all groups; none where there is no cgroup v2.
    root: Option<PathBuf>,
    /// Whether they hang there; else why not.
    attached: Result<(), String>,
    /// What the programs are told of the node.
    settings: Settings,
    /// By the UID of the pod: the inode of the group, which tells it from a later one at its place, or
    /// why there is none.
    pods: BTreeMap<String, Result<u64, String>>,
    /// Whether the pods of an earlier agent have been left or taken over.
    restored: bool,
}

impl Sockets {
    /// Attaches as `scope` says, in place of an earlier agent's programs.
    pub fn start(
        scope: SocketLb,
        root: Option<PathBuf>,
        programs: &mut Programs,
        tables: &mut Tables,
    ) -> Result<Self> {
        let mut sockets = Self {
            scope,
            root,
            attached: Ok(()),
            settings: Settings {
                everywhere: (scope == SocketLb::All).into(),
                ..tables.settings()?
            },
            pods: BTreeMap::new(),
            restored: false,
        };
        tables.set_settings(sockets.settings)?;
        sockets.attach(programs, tables);
        Ok(sockets)
    }

    /// How they are told apart.
    pub fn scope(&self) -> SocketLb {
        self.scope
    }

    /// Tries again what failed.
    pub fn retry(&mut self, programs: &mut Programs, tables: &mut Tables) {
        if self.attached.is_err() {
            self.attach(programs, tables);
        }
    }

    fn attach(&mut self, programs: &mut Programs, tables: &mut Tables) {
        let attached = match (self.scope, &self.root) {
            (SocketLb::Off, _) => programs.detach_sockets(),
            (_, None) => Err(anyhow::anyhow!("cgroup v2 is not mounted")),
            (_, Some(root)) => programs
                .attach_sockets(root)
                .and_then(|()| self.learn_namespace(tables)),
        };
        self.attached = attached.map_err(|error| format!("{error:#}"));
        match &self.attached {
            Ok(()) => info!(scope = %self.scope, "services for processes"),
            Err(error) => warn!("cannot serve processes, will try again: {error}"),
        }
    }

    /// Has the programs tell which network namespace this process is in.
    fn learn_namespace(&mut self, tables: &mut Tables) -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        tables.set_settings(Settings {
            asking: socket.cookie().context("ask for a socket's cookie")?,
            ..self.settings
        })?;
        // They have run when the kernel looks for a way there; nothing is sent.
        let _ = socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, 9)).into());
        self.settings.namespace = tables.settings()?.namespace;
        tables.set_settings(self.settings)
    }

    /// Takes in what the objects say of the node and its pods.
    pub fn settle(
        &mut self,
        world: &World,
        node: &str,
        programs: &mut Programs,
        tables: &mut Tables,
    ) -> Result<()> {
        if world.node(node).is_some() {
            let primary = Local::of(world, node).primary;
            let of = |v4| {
                let mut addresses = primary.iter();
                let found = addresses.find(|address| address.is_ipv4() == v4);
                found.map_or(UNSPECIFIED, |address| from_ip(*address))
            };
            let settings = Settings {
                v4: of(true),
                v6: of(false),
                ..self.settings
            };
            if settings != self.settings {
                tables.set_settings(settings)?;
                self.settings = settings;
            }
        }
        match (self.scope, self.root.clone()) {
            (SocketLb::Off, _) | (_, None) => Ok(()),
            (_, Some(_)) if world.waiting_for().contains(&Kind::Pod) => Ok(()),
            (_, Some(root)) => self.settle_pods(&root, world, programs),
        }
    }

    /// Attaches to the groups of the pods that ask for it, and leaves those of others.
    fn settle_pods(&mut self, root: &Path, world: &World, programs: &mut Programs) -> Result<()> {
        let wanted: BTreeMap<&str, String> = world
            .local_pods()
            .filter(|(_, _, pod)| pod.socket_lb)
            .map(|(key, _, pod)| (pod.uid.as_str(), key.to_string()))
            .collect();
        let mut left: Vec<String> = self.pods.keys().cloned().collect();
        if !self.restored {
            left.extend(programs.socket_pods()?);
            self.restored = true;
        }
        for uid in left.iter().filter(|uid| !wanted.contains_key(uid.as_str())) {
            programs.detach_pod_sockets(uid)?;
            self.pods.remove(uid);
        }
        for (uid, name) in wanted {
            let group = pod_cgroup(root, uid);
            let found = group.as_deref().map(inode).transpose();
            let known = self.pods.get(uid);
            if let (Ok(Some(inode)), Some(Ok(known))) = (&found, known)
                && inode == known
            {
                continue;
            }
            let attached = match (&group, found) {
                (Some(group), Ok(Some(inode))) => programs
                    .attach_pod_sockets(uid, group)
                    .map(|()| inode)
                    .map_err(|error| format!("{error:#}")),
                (_, Err(error)) => Err(format!("{error:#}")),
                _ => Err("its control group is not there".to_owned()),
            };
            if attached.is_ok() {
                info!(pod = %name, "services for its processes");
            } else if known != Some(&attached) {
                warn!(pod = %name, "cannot serve its processes, will try again: {attached:?}");
            }
            self.pods.insert(uid.to_owned(), attached);
        }
        Ok(())
    }

    /// Whether the group of some pod is yet to be found.
    pub fn wanting(&self) -> bool {
        self.pods.values().any(Result::is_err)
    }

    /// What does not work, in words: where, and why not.
    pub fn problems(&self) -> Vec<(String, String)> {
        let root = self.root.as_ref();
        let root = root.map_or("/".to_owned(), |root| root.display().to_string());
        let failed = self.attached.as_ref().err();
        let failed = failed.map(|error| (root, format!("processes are not served: {error}")));
        let pods = self.pods.iter().filter_map(|(uid, attached)| {
            let error = attached.as_ref().err()?;
            Some((
                format!("pod {uid}"),
                format!("its processes are not served: {error}"),
            ))
        });
        failed.into_iter().chain(pods).collect()
    }
}

fn inode(group: &Path) -> Result<u64> {
    let metadata = fs::metadata(group);
    Ok(metadata
        .with_context(|| format!("look at {}", group.display()))?
        .ino())
}
