//! The agent: source → world → compile → plan → kernel.

pub mod links;
