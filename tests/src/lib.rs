//! The sandbox of network namespaces, and the harnesses that tests share.

pub mod control_plane;
pub mod sandbox;
