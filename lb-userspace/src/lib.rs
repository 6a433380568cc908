//! The agent: source → world → compile → plan → kernel.

pub mod api;
pub mod cli;
pub mod cni;
pub mod compile;
pub mod connectivity;
pub mod drops;
pub mod events;
pub mod explain;
pub mod health;
pub mod kernel;
pub mod kube_proxy;
pub mod links;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod names;
pub mod node_view;
pub mod plan;
pub mod policies;
pub mod render;
pub mod run;
pub mod source;
pub mod status;
pub mod tallies;
pub mod world;
