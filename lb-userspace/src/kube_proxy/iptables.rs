//! Runs `iptables-save` and `iptables-restore` of each back end and family.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Cleaned, netfilter,
    rules::{self, Removal},
};

/// The rules of one family, as one of iptables' back ends keeps them.
struct Backend {
    /// What its programs are called, without `-save` and `-restore`.
    name: &'static str,
    kept: Kept,
}

enum Kept {
    /// In nftables, for a family.
    Nftables(u8),
    /// In tables of its own, which this file lists. Looking into one that is not there makes it.
    Legacy(&'static str),
}

const BACKENDS: [Backend; 4] = [
    Backend {
        name: "iptables-nft",
        kept: Kept::Nftables(netfilter::IPV4),
    },
    Backend {
        name: "ip6tables-nft",
        kept: Kept::Nftables(netfilter::IPV6),
    },
    Backend {
        name: "iptables-legacy",
        kept: Kept::Legacy("/proc/net/ip_tables_names"),
    },
    Backend {
        name: "ip6tables-legacy",
        kept: Kept::Legacy("/proc/net/ip6_tables_names"),
    },
];

/// Chains that kube-proxy always has, in the tables where it has them.
const TELLING: [(&str, &str); 2] = [("nat", "KUBE-SERVICES"), ("filter", "KUBE-FORWARD")];

/// Removes kube-proxy's rules and chains.
pub fn clean(cleaned: &mut Cleaned) {
    for backend in BACKENDS.iter().filter(|backend| backend.in_use()) {
        if let Err(error) = clean_backend(backend.name, cleaned) {
            cleaned.failed.push(format!("{error:#}"));
        }
    }
}

/// The back ends that have chains of kube-proxy's, in words.
pub fn remains() -> Vec<String> {
    BACKENDS
        .iter()
        .filter(|backend| backend.has_chains())
        .map(|backend| format!("the chains KUBE-* of {}", backend.name))
        .collect()
}

impl Backend {
    /// Whether it has tables at all.
    fn in_use(&self) -> bool {
        match self.kept {
            Kept::Nftables(_) => self.has_chains() || program(&self.save()).is_some(),
            Kept::Legacy(list) => fs::read_to_string(list).is_ok_and(|tables| !tables.is_empty()),
        }
    }

    fn has_chains(&self) -> bool {
        TELLING.iter().any(|(table, chain)| match self.kept {
            Kept::Nftables(family) => {
                netfilter::has_chain(family, table, chain).unwrap_or_default()
            }
            Kept::Legacy(_) => self.in_use() && self.lists(table, chain),
        })
    }

    /// Whether the program knows a chain. Only its exit code says so, and it prints one rule at most.
    fn lists(&self, table: &str, chain: &str) -> bool {
        let listed = program(self.name).map(|program| {
            Command::new(program)
                .args(["--wait", "1", "-t", table, "-S", chain, "1"])
                .stdin(Stdio::null())
                .output()
        });
        matches!(listed, Some(Ok(output)) if output.status.success())
    }

    fn save(&self) -> String {
        format!("{}-save", self.name)
    }
}

fn clean_backend(backend: &str, cleaned: &mut Cleaned) -> Result<()> {
    let saved = save(&format!("{backend}-save"))?;
    let removals = rules::removals(&saved).with_context(|| format!("{backend}-save"))?;
    for removal in &removals {
        let of = format!("of {backend}'s table {}", removal.table);
        let kept = removal.kept.iter();
        cleaned
            .kept
            .extend(kept.map(|chain| format!("the chain {chain} {of}")));
        if !removal.is_empty() {
            restore(backend, removal)?;
            let (chains, jumps) = removal.counts();
            let what = format!("{chains} chains and {jumps} jumps {of}");
            cleaned.removed.push(what);
        }
    }
    Ok(())
}

fn save(name: &str) -> Result<String> {
    let program = program(name).with_context(|| format!("{name} is missing"))?;
    let output = Command::new(program)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {name}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", errors.trim());
    String::from_utf8(output.stdout).with_context(|| name.to_owned())
}

fn restore(backend: &str, removal: &Removal) -> Result<()> {
    let name = format!("{backend}-restore");
    let program = program(&name).with_context(|| format!("{name} is missing"))?;
    let mut process = Command::new(program)
        .args(["--noflush", "--wait", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {name}"))?;
    let mut stdin = process.stdin.take().context("a pipe")?;
    stdin
        .write_all(removal.script().as_bytes())
        .with_context(|| format!("tell {name} what to remove"))?;
    drop(stdin);
    let output = process.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{name} refuses to change the table {}: {}",
        removal.table,
        errors.trim()
    );
    Ok(())
}

/// A program, wherever systems keep those of administrators.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|program| Path::is_file(program))
}
