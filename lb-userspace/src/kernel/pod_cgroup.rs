//! Where the kubelet keeps the control group of a pod.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Groups between the root and a pod's: of the kubelet itself, of all pods, of their QoS class, and
/// one more that a node in a container has.
const DEPTH: usize = 5;

/// The control group of the pod with this UID, below `root`; `None` where there is none yet.
///
/// The kubelet names it `pod<uid>` with the cgroupfs driver, and `...-pod<uid>.slice` with the systemd
/// driver, where the UID has `_` for `-` (`pkg/kubelet/cm/pod_container_manager_linux.go` and
/// `cgroup_manager_linux.go` of Kubernetes).
pub fn pod_cgroup(root: &Path, uid: &str) -> Option<PathBuf> {
    let names = Names {
        cgroupfs: format!("pod{uid}"),
        systemd: format!("-pod{}.slice", uid.replace('-', "_")),
    };
    names.find(root, DEPTH)
}

struct Names {
    cgroupfs: String,
    systemd: String,
}

impl Names {
    fn find(&self, group: &Path, depth: usize) -> Option<PathBuf> {
        let mut leads = Vec::new();
        for entry in fs::read_dir(group).ok()?.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name == self.cgroupfs || name.ends_with(&self.systemd) {
                return Some(entry.path());
            }
            if may_hold_pods(name) {
                leads.push(entry.path());
            }
        }
        if depth == 0 {
            return None;
        }
        leads.iter().find_map(|lead| self.find(lead, depth - 1))
    }
}

/// Whether pods' groups may be below a group with this name, which is no pod's.
fn may_hold_pods(name: &str) -> bool {
    name.contains("kube") && !name.contains("-pod") || matches!(name, "burstable" | "besteffort")
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2b5b0f1c-7f0e-4a39-9d2d-3c0e5a6b7c8d";

    #[test]
    fn a_pods_group_is_found_as_each_driver_names_it() {
        let root = tempfile::tempdir().expect("a directory");
        let other = UID.replace("2b5b", "ffff");
        for (group, found) in [
            (format!("kubepods/pod{UID}"), true),
            (format!("kubepods/burstable/pod{UID}"), true),
            (format!("kubepods/besteffort/pod{other}"), false),
            (
                format!(
                    "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice",
                    UID.replace('-', "_")
                ),
                true,
            ),
            (
                format!(
                    "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{}.slice",
                    UID.replace('-', "_")
                ),
                true,
            ),
            (format!("system.slice/pod{UID}"), false),
        ] {
            let path = root.path().join(&group);
            fs::create_dir_all(&path).expect("a group");
            let expected = found.then(|| path.clone());
            assert_eq!(pod_cgroup(root.path(), UID), expected, "{group}");
            fs::remove_dir(&path).expect("removed");
        }
    }
}
