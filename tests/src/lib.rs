//! The sandbox of network namespaces, and the harnesses that tests share.

pub mod control_plane;
pub mod demo;
pub mod differential;
pub mod evenness;
pub mod kube_proxy;
pub mod policy;
pub mod sandbox;
