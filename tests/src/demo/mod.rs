//! The demo: a small cluster that shows where connections go.

mod cluster;
mod live;
mod show;
mod tally;

use anyhow::Result;

pub use self::cluster::Cluster;
use crate::sandbox::Topology;

/// What is shown.
pub struct Options {
    pub topology: Topology,
    /// How many nodes there are.
    pub nodes: u8,
    /// Whether to end when everything has been shown, instead of running until it is interrupted.
    pub once: bool,
}

/// Shows everything; false where something was not as it should be, which the output names.
pub fn run(options: &Options) -> Result<bool> {
    let mut cluster = Cluster::create(options.topology, options.nodes)?;
    show::cluster(&cluster, options);
    cluster.start_agents()?;
    show::services(&cluster);
    let mut findings = show::Findings::default();
    show::shares(&cluster, &mut findings);
    show::special_cases(&cluster, &mut findings);
    show::a_policy(&cluster, &mut findings);
    show::an_edit(&cluster, &mut findings)?;
    findings.print();
    if !options.once {
        show::commands(&cluster)?;
        live::watch(&cluster);
    }
    Ok(findings.none())
}
