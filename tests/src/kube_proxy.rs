//! The real kube-proxy of a node, as a process.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};

use crate::sandbox::{Node, tied};

/// The name of its log in the node's directory.
pub const LOG: &str = "kube-proxy.log";

/// kube-proxy in its nftables mode. Killed when it is dropped.
pub struct KubeProxy(Child);

impl KubeProxy {
    /// Starts it in a node. What it changes there is the node's own: rules and settings of the
    /// network namespace.
    pub fn start(binary: &Path, node: &Node, kubeconfig: &Path, flags: &[&str]) -> Result<Self> {
        let log = File::create(node.directory().join(LOG))?;
        let mut command = tied(binary);
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--hostname-override", node.name()])
            .args(["--proxy-mode", "nftables"])
            // Our notion of a local pod: one of this node.
            .args(["--detect-local-mode", "NodeCIDR"])
            // Kernel settings that are the machine's, not the node's.
            .args(["--conntrack-max-per-core", "0"])
            .args(["--conntrack-min", "0"])
            .args(["--conntrack-tcp-timeout-established", "0"])
            .args(["--conntrack-tcp-timeout-close-wait", "0"])
            .args(["--oom-score-adj", "0"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = node.namespace().start(command);
        Ok(Self(child.context("start kube-proxy")?))
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where its log is.
pub fn log(node: &Node) -> PathBuf {
    node.directory().join(LOG)
}
