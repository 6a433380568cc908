//! The agent: source → world → compile → plan → kernel.

pub mod cli;
pub mod compile;
pub mod links;
pub mod logging;
pub mod plan;
pub mod status;
pub mod world;
