//! A real control plane: etcd, kube-apiserver and kube-controller-manager in a network namespace.

mod binaries;
mod client;
mod credentials;
mod go;
mod logs;
mod process;

use std::{
    fmt::Display,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::{Value, json};

pub use self::{
    binaries::{Binaries, ensure, find},
    client::{Client, Kind},
    credentials::kubeconfig,
    logs::keep_logs,
};
use self::{
    credentials::{ADMIN_TOKEN, Credentials},
    process::Process,
};
use crate::sandbox::Namespace;

/// The ranges that ClusterIPs come from, as [`crate::sandbox::cluster_ip`] counts them.
const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The controllers that what is tested depends on.
const CONTROLLERS: [&str; 6] = [
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "service-cidr-controller",
];
/// How long each of the programs may take until it is of use.
const PATIENCE: Duration = Duration::from_secs(90);

const SECURE_PORT: u16 = 6443;
const ETCD_URL: &str = "http://127.0.0.1:2379";
const ETCD_PEER_URL: &str = "http://127.0.0.1:2380";
const STATUS: &str = "/v3/maintenance/status";
const COMPACT: &str = "/v3/kv/compaction";

/// A running control plane. Ends when it is dropped.
pub struct ControlPlane {
    namespace: Arc<Namespace>,
    address: IpAddr,
    binaries: Binaries,
    credentials: Credentials,
    // In the order in which they end.
    controller_manager: Option<Process>,
    apiserver: Option<Process>,
    etcd: Process,
    folder: PathBuf,
}

impl ControlPlane {
    /// Starts a control plane in a namespace, to be reached at an address of it, and waits until it
    /// is ready and has the objects that pods need. `folder` is for its data; it is made here, and
    /// the logs in it are kept if the start fails.
    pub fn start(
        binaries: Binaries,
        namespace: Arc<Namespace>,
        address: IpAddr,
        folder: PathBuf,
    ) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let credentials = Credentials::write(&folder)?;
        let etcd = start_etcd(&binaries.etcd, &namespace, &folder)?;
        let mut plane = Self {
            namespace,
            address,
            binaries,
            credentials,
            controller_manager: None,
            apiserver: None,
            etcd,
            folder,
        };
        match plane.begin() {
            Ok(()) => Ok(plane),
            Err(error) => {
                let logs = keep_logs([plane.folder()])?;
                Err(error.context(format!(
                    "start a control plane (its logs are in {})",
                    logs.display()
                )))
            }
        }
    }

    fn begin(&mut self) -> Result<()> {
        let etcd = etcd_client(&self.namespace)?;
        self.etcd.wait_until("etcd answers", || {
            ask_etcd(&self.namespace, &etcd, STATUS, &json!({}))
        })?;
        self.start_apiserver()
    }

    /// The address of the machine that it runs on.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The apiserver's address, as `lb run --apiserver` takes it.
    pub fn url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.address, SECURE_PORT))
    }

    /// The certificate that the apiserver's is signed with, as a PEM file.
    pub fn certificate_authority(&self) -> PathBuf {
        self.folder.join("apiserver.crt")
    }

    /// The port of the apiserver.
    pub fn port(&self) -> u16 {
        SECURE_PORT
    }

    /// A kubeconfig of somebody who may do everything.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// Where its data, its logs and its certificate are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A connection that may do everything.
    pub fn admin(&self) -> Result<Client> {
        self.client(ADMIN_TOKEN)
    }

    /// A connection of whoever has the token.
    pub fn client(&self, token: &str) -> Result<Client> {
        Client::new(
            Arc::clone(&self.namespace),
            &self.url(),
            &self.certificate_authority(),
            token,
        )
    }

    /// Kills the apiserver, as a crash does.
    pub fn kill_apiserver(&mut self) {
        self.apiserver = None;
    }

    /// Starts the apiserver and the controllers, and waits until they are ready.
    pub fn start_apiserver(&mut self) -> Result<()> {
        let folder = &self.folder;
        let mut process = Process::start(
            &self.namespace,
            &self.binaries.apiserver,
            &apiserver_flags(self.address, &self.credentials, folder),
            folder,
        )?;
        // It makes its certificate on the way, without which there is no client.
        process.wait_until("the apiserver is ready", || self.admin()?.ready())?;
        self.apiserver = Some(process);
        // Its watches pause after an outage, for longer each time; a new one lists at once.
        self.controller_manager = None;
        self.start_controller_manager()
    }

    /// Makes etcd forget all but the newest version of every object: who asks for changes since
    /// an older one is answered "410 Gone".
    pub fn compact(&self) -> Result<()> {
        let etcd = etcd_client(&self.namespace)?;
        let status = ask_etcd(&self.namespace, &etcd, STATUS, &json!({}))?;
        let revision = &status["header"]["revision"];
        ask_etcd(
            &self.namespace,
            &etcd,
            COMPACT,
            &json!({ "revision": revision, "physical": true }),
        )?;
        Ok(())
    }

    fn start_controller_manager(&mut self) -> Result<()> {
        let folder = &self.folder;
        let config = self.admin_kubeconfig();
        fs::write(
            &config,
            kubeconfig(&self.url(), &self.certificate_authority(), ADMIN_TOKEN),
        )?;
        let mut process = Process::start(
            &self.namespace,
            &self.binaries.controller_manager,
            &flags(&[
                ("kubeconfig", &config.display()),
                ("controllers", &CONTROLLERS.join(",")),
                ("leader-elect", &false),
                ("secure-port", &0),
            ]),
            folder,
        )?;
        let admin = self.admin()?;
        process.wait_until("pods can be created", || {
            admin.get::<ServiceAccount>("default", "default")
        })?;
        self.controller_manager = Some(process);
        Ok(())
    }
}

fn start_etcd(binary: &Path, namespace: &Namespace, folder: &Path) -> Result<Process> {
    let arguments = flags(&[
        ("data-dir", &folder.join("etcd").display()),
        ("listen-client-urls", &ETCD_URL),
        ("advertise-client-urls", &ETCD_URL),
        ("listen-peer-urls", &ETCD_PEER_URL),
        ("initial-advertise-peer-urls", &ETCD_PEER_URL),
        ("initial-cluster", &format!("default={ETCD_PEER_URL}")),
        ("unsafe-no-fsync", &true),
    ]);
    Process::start(namespace, binary, &arguments, folder)
}

fn apiserver_flags(address: IpAddr, credentials: &Credentials, folder: &Path) -> Vec<String> {
    let Credentials {
        signing_key,
        verification_key,
        tokens,
    } = credentials;
    flags(&[
        ("etcd-servers", &ETCD_URL),
        // Only the tests compact.
        ("etcd-compaction-interval", &"0"),
        ("advertise-address", &address),
        ("secure-port", &SECURE_PORT),
        // Where it puts the certificate that it makes for itself.
        ("cert-dir", &folder.display()),
        ("service-cluster-ip-range", &SERVICE_RANGES),
        ("service-account-issuer", &"https://kubernetes.default.svc"),
        ("service-account-signing-key-file", &signing_key.display()),
        ("service-account-key-file", &verification_key.display()),
        ("token-auth-file", &tokens.display()),
        ("authorization-mode", &"RBAC"),
        // As the clusters that kubeadm sets up; the DaemonSet is privileged.
        ("allow-privileged", &true),
    ])
}

fn flags(flags: &[(&str, &dyn Display)]) -> Vec<String> {
    flags
        .iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}

/// etcd speaks JSON over HTTP too, which kube's client can send.
fn etcd_client(namespace: &Namespace) -> Result<kube::Client> {
    namespace.run(async {
        Ok(kube::Client::try_from(kube::Config::new(
            ETCD_URL.parse()?,
        ))?)
    })
}

fn ask_etcd(namespace: &Namespace, etcd: &kube::Client, path: &str, body: &Value) -> Result<Value> {
    let request = http::Request::post(path).body(body.to_string().into_bytes())?;
    let etcd = etcd.clone();
    namespace
        .run(async move { etcd.request(request).await })
        .with_context(|| format!("ask etcd: POST {path}"))
}
