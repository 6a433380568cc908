//! kube-proxy beside us, or before us: what it left, how to be rid of that, and whether it still runs.

mod beside;
mod iptables;
mod ipvs;
mod live;
mod netfilter;
mod netlink;
mod rules;

use anyhow::Result;
use tokio::task::spawn_blocking;

pub use self::{
    beside::{Found, METRICS, watch},
    live::live,
};

/// What became of kube-proxy's remains, in words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    pub removed: Vec<String>,
    /// What stays because others use it.
    pub kept: Vec<String>,
    /// What should be gone and is not, with the reason.
    pub failed: Vec<String>,
}

impl Cleaned {
    fn note(&mut self, removed: Result<Vec<String>>) {
        match removed {
            Ok(removed) => self.removed.extend(removed),
            Err(error) => self.failed.push(format!("{error:#}")),
        }
    }
}

/// Removes what kube-proxy's modes leave in this network namespace, and nothing else. A failure with
/// one mode does not stop the others.
pub async fn clean() -> Cleaned {
    let rules = spawn_blocking(|| {
        let mut cleaned = Cleaned::default();
        cleaned.note(netfilter::delete_tables());
        iptables::clean(&mut cleaned);
        // After the rules that use them.
        netfilter::destroy_sets(&mut cleaned);
        cleaned
    });
    let mut cleaned = rules.await.unwrap_or_else(|panic| Cleaned {
        failed: vec![panic.to_string()],
        ..Cleaned::default()
    });
    cleaned.note(ipvs::clean().await);
    cleaned
}

/// What kube-proxy left in this network namespace, in words.
///
/// # Errors
///
/// Where the kernel cannot be asked.
pub async fn remains() -> Result<Vec<String>> {
    let mut found = spawn_blocking(|| {
        let mut found = netfilter::tables()?;
        found.extend(iptables::remains());
        anyhow::Ok(found)
    })
    .await??;
    found.extend(ipvs::remains().await?);
    Ok(found)
}
