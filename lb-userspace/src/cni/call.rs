//! What a runtime asks for: environment variables, and a network configuration on stdin.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Attachment, AttachmentId, VERSIONS};
use crate::world::ObjectKey;

/// The `CNI_` variables, without that prefix.
#[derive(Clone, Debug, Default)]
pub struct Variables(pub BTreeMap<String, String>);

impl Variables {
    /// Those of this process; `None` where no runtime has called it.
    pub fn of_process() -> Option<Self> {
        let variables = std::env::vars().filter_map(|(name, value)| {
            let name = name.strip_prefix("CNI_")?;
            Some((name.to_owned(), value))
        });
        let variables = Self(variables.collect());
        variables.0.contains_key("COMMAND").then_some(variables)
    }

    fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    fn require(&self, name: &str) -> Result<String, Failure> {
        let missing = || Failure::new(Code::Variables, format!("CNI_{name} is not set"));
        self.get(name).map(ToOwned::to_owned).ok_or_else(missing)
    }

    fn id(&self) -> Result<AttachmentId, Failure> {
        Ok(AttachmentId {
            container: self.require("CONTAINERID")?,
            interface: self.require("IFNAME")?,
        })
    }

    /// The pod that `CNI_ARGS` name, as the kubelet has them written: `KEY=VALUE;…`.
    fn pod(&self) -> Option<ObjectKey> {
        let args = self.get("ARGS")?;
        let of = |key: &str| {
            let mut pairs = args.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(name, value)| (name == key).then_some(value))
        };
        Some(ObjectKey::new(
            of("K8S_POD_NAMESPACE")?,
            of("K8S_POD_NAME")?,
        ))
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Version,
    /// With the result of the plugins before us, which is ours too.
    Add(Attachment, Value),
    Check(Attachment),
    Delete(AttachmentId),
    Collect(BTreeSet<AttachmentId>),
    Status,
}

/// A call of the plugin.
#[derive(Clone, Debug)]
pub struct Call {
    pub command: Command,
    config: Config,
}

/// The parts of a network configuration that we look at.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    cni_version: String,
    /// The agent's unix socket.
    #[serde(default = "default_socket")]
    socket: PathBuf,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid_attachments: BTreeSet<AttachmentId>,
}

fn default_socket() -> PathBuf {
    "/run/lb/lb.sock".into()
}

impl Call {
    /// Understands a call, or says what is wrong with it.
    pub fn read(variables: &Variables, input: &str) -> Result<Self, Failure> {
        let config: Config = serde_json::from_str(input).map_err(|error| {
            Failure::new(Code::Decode, format!("the network configuration: {error}"))
        })?;
        let command = variables.require("COMMAND")?;
        let version = &config.cni_version;
        if command != "VERSION" && !VERSIONS.contains(&version.as_str()) {
            let text = format!("cniVersion {version:?} is none of {}", VERSIONS.join(", "));
            return Err(Failure::new(Code::Version, text));
        }
        let command = config.command(&command, variables);
        let command = command.map_err(|failure| failure.in_version(&config.cni_version))?;
        Ok(Self { command, config })
    }

    pub fn socket(&self) -> &Path {
        &self.config.socket
    }

    /// The agent cannot guard the pod now.
    pub fn try_again(&self, text: String) -> Failure {
        Failure::new(Code::TryAgain, text).in_version(&self.config.cni_version)
    }

    /// No pod could be guarded.
    pub fn unavailable(&self, text: String) -> Failure {
        Failure::new(Code::Unavailable, text).in_version(&self.config.cni_version)
    }
}

impl Config {
    fn command(&self, name: &str, variables: &Variables) -> Result<Command, Failure> {
        Ok(match name {
            "VERSION" => Command::Version,
            "ADD" => {
                let attachment = self.attachment(variables)?;
                Command::Add(attachment, self.result()?)
            }
            "CHECK" => Command::Check(self.attachment(variables)?),
            "DEL" => Command::Delete(variables.id()?),
            "GC" => Command::Collect(self.valid_attachments.clone()),
            "STATUS" => Command::Status,
            other => {
                let text = format!("CNI_COMMAND {other:?} is not known");
                return Err(Failure::new(Code::Variables, text));
            }
        })
    }

    fn previous(&self) -> Result<&Value, Failure> {
        let alone = || {
            let text = "there is no prevResult: lb must stand behind the plugin that makes the \
                        pod's interface; `lb cni install` puts it there";
            Failure::new(Code::Config, text.to_owned())
        };
        self.prev_result.as_ref().ok_or_else(alone)
    }

    /// The result of the plugins before us, in the version that was asked for.
    fn result(&self) -> Result<Value, Failure> {
        let mut result = self.previous()?.clone();
        result["cniVersion"] = self.cni_version.clone().into();
        Ok(result)
    }

    fn attachment(&self, variables: &Variables) -> Result<Attachment, Failure> {
        #[derive(Deserialize)]
        struct Previous {
            #[serde(default)]
            ips: Vec<Ip>,
        }
        #[derive(Deserialize)]
        struct Ip {
            address: IpNet,
        }

        let previous = Previous::deserialize(self.previous()?);
        let Previous { ips } = previous
            .map_err(|error| Failure::new(Code::Decode, format!("the prevResult: {error}")))?;
        let addresses: BTreeSet<IpAddr> = ips.iter().map(|ip| ip.address.addr()).collect();
        if addresses.is_empty() {
            let text = "the prevResult has no address: nothing tells the pod's interface";
            return Err(Failure::new(Code::Config, text.to_owned()));
        }
        Ok(Attachment {
            id: variables.id()?,
            pod: variables.pod(),
            addresses,
        })
    }
}

/// Error codes of the specification's section "Error".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Version = 1,
    Variables = 4,
    Decode = 6,
    Config = 7,
    TryAgain = 11,
    Unavailable = 50,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub text: String,
    version: Option<String>,
}

impl Failure {
    fn new(code: Code, text: String) -> Self {
        Self {
            code,
            text,
            version: None,
        }
    }

    fn in_version(mut self, version: &str) -> Self {
        self.version = Some(version.to_owned());
        self
    }

    /// As it goes to stdout.
    pub fn to_json(&self) -> Value {
        let Self {
            code,
            text,
            version,
        } = self;
        let message = match code {
            Code::Version => "incompatible CNI version",
            Code::Variables => "invalid environment variables",
            Code::Decode => "cannot decode",
            Code::Config => "invalid network configuration",
            Code::TryAgain => "the pod is not guarded yet, try again later",
            Code::Unavailable => "no pod can be guarded now",
        };
        let version = version.as_deref().or(VERSIONS.last().copied());
        json!({ "cniVersion": version, "code": *code as u32, "msg": message, "details": text })
    }
}
