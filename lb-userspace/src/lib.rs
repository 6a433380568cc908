//! The agent: source → world → compile → plan → kernel.
