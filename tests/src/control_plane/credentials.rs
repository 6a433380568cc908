//! Who may talk to the apiserver, and the files that say so.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::KeyPair;
use serde_json::json;

/// The administrator's bearer token. Everything here lives as long as one test run.
pub const ADMIN_TOKEN: &str = "admin";

/// Files that the programs of the control plane are started with.
pub struct Credentials {
    /// Signs the tokens of service accounts.
    pub signing_key: PathBuf,
    /// Verifies them.
    pub verification_key: PathBuf,
    /// The administrator's token, as `--token-auth-file` wants it.
    pub tokens: PathBuf,
}

impl Credentials {
    pub fn write(folder: &Path) -> Result<Self> {
        let key = KeyPair::generate().context("generate a key")?;
        let write = |name: &str, content: String| {
            let path = folder.join(name);
            fs::write(&path, content)
                .with_context(|| format!("write {}", path.display()))
                .map(|()| path)
        };
        Ok(Self {
            signing_key: write("service-accounts.key", key.serialize_pem())?,
            verification_key: write("service-accounts.pub", key.public_key_pem())?,
            tokens: write(
                "tokens.csv",
                format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n"),
            )?,
        })
    }
}

/// A kubeconfig for one user of one server.
pub fn kubeconfig(server: &str, certificate_authority: &Path, token: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "test",
            "cluster": { "server": server, "certificate-authority": certificate_authority },
        }],
        "users": [{ "name": "test", "user": { "token": token } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "current-context": "test",
    });
    format!("{config:#}\n")
}
