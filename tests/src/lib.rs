//! The sandbox of network namespaces, and the harnesses that tests share.
