//! The agent: source → world → compile → plan → kernel.

pub mod links;
pub mod world;
