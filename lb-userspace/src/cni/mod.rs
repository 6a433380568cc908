//! The CNI plugin: chained behind the one that makes a pod's interface, it lets the pod start only
//! once that interface carries our programs and the pod's policy.
//!
//! <https://github.com/containernetworking/cni/blob/main/SPEC.md>, version 1.1.

mod call;
mod conflist;

use std::{collections::BTreeSet, net::IpAddr, path::Path, time::Duration};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use self::call::{Command, Failure};
pub use self::{
    call::{Call, Variables},
    conflist::{Installed, Removed, install, remove},
};
use crate::{api, world::ObjectKey};

/// The plugin's `type`, and so the name of its binary.
pub const TYPE: &str = "lb";

/// How long the agent has.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A pod's interface, as the runtime and the plugins before us tell of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    pub id: AttachmentId,
    /// `None` where the runtime is not Kubernetes'.
    pub pod: Option<ObjectKey>,
    pub addresses: BTreeSet<IpAddr>,
}

/// What tells an attachment from others (section "GC" of the specification).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentId {
    #[serde(rename = "containerID")]
    pub container: String,
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// What the agent is asked about attachments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Answered once the pod is guarded.
    Add(Attachment),
    /// Whether the pod is guarded.
    Check(Attachment),
    Delete(AttachmentId),
    /// Forget all others.
    Keep(BTreeSet<AttachmentId>),
    /// Whether pods can be added.
    Status,
}

/// Does what a runtime asks for. Returns what goes to stdout, and whether all went well.
pub async fn execute(variables: &Variables, input: &str) -> (Option<Value>, bool) {
    match answer(variables, input).await {
        Ok(answer) => (answer, true),
        Err(failure) => (Some(failure.to_json()), false),
    }
}

async fn answer(variables: &Variables, input: &str) -> Result<Option<Value>, Failure> {
    let call = Call::read(variables, input)?;
    let ask = async |request| ask(call.socket(), &request).await;
    match &call.command {
        Command::Version => Ok(Some(versions())),
        Command::Add(attachment, result) => {
            ask(Request::Add(attachment.clone()))
                .await
                .map_err(|error| call.try_again(error))?;
            Ok(Some(result.clone()))
        }
        Command::Check(attachment) => {
            ask(Request::Check(attachment.clone()))
                .await
                .map_err(|error| call.try_again(error))?;
            Ok(None)
        }
        Command::Status => {
            ask(Request::Status)
                .await
                .map_err(|error| call.unavailable(error))?;
            Ok(None)
        }
        // What is not forgotten now is when the interface goes: a pod must always be able to go.
        Command::Delete(id) => {
            let _ = ask(Request::Delete(id.clone())).await;
            Ok(None)
        }
        Command::Collect(valid) => {
            let _ = ask(Request::Keep(valid.clone())).await;
            Ok(None)
        }
    }
}

/// The versions of the specification in whose terms we answer: earlier ones have no `prevResult`.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn versions() -> Value {
    json!({ "cniVersion": VERSIONS.last(), "supportedVersions": VERSIONS })
}

async fn ask(socket: &Path, request: &Request) -> Result<(), String> {
    match timeout(PATIENCE, api::attachment(socket, request)).await {
        Ok(Ok(Some(answer))) => answer,
        Ok(Ok(None)) => Err(format!("no agent listens on {}", socket.display())),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!(
            "the agent does not answer within {} s",
            PATIENCE.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests;
