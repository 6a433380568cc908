//! What `cargo xtask run` starts as root.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use lb_tests::{
    demo::{self, Options},
    sandbox::{Topology, remove_on_signal},
};

/// Shows a small cluster of network namespaces whose services our programs balance.
#[derive(Parser)]
struct Arguments {
    /// How nodes reach their pods
    #[arg(long, default_value = "ptp")]
    topology: Shape,
    /// How many nodes there are
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// End when everything has been shown
    #[arg(long)]
    once: bool,
}

#[derive(Clone, ValueEnum)]
enum Shape {
    /// A link for each pod
    Ptp,
    /// A bridge for all pods of a node
    Bridge,
    /// A link for each pod, and VXLAN between nodes
    Vxlan,
    /// A link for each pod, and tunnels without a link layer between nodes
    Tunnel,
}

fn main() -> Result<ExitCode> {
    let Arguments {
        topology,
        nodes,
        once,
    } = Arguments::parse();
    // An interrupt is how the demo is meant to end, and not how a check is.
    remove_on_signal(if once { 130 } else { 0 })?;
    let topology = match topology {
        Shape::Ptp => Topology::PointToPoint,
        Shape::Bridge => Topology::Bridge,
        Shape::Vxlan => Topology::Vxlan,
        Shape::Tunnel => Topology::Tunnel,
    };
    let well = demo::run(&Options {
        topology,
        nodes,
        once,
    })?;
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
