//! The command line.

mod agent;
mod cni;
mod explain;
mod output;
mod policy;
mod settings;
mod view;

use std::{env, ffi::OsString, fmt, fs, io::ErrorKind, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, anyhow};
use clap::{
    ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
};
use glob::Pattern;
use http::Uri;
use ipnet::IpNet;
use nix::{
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
    unistd::gethostname,
};
use serde_json::Value;

pub use self::output::Failure;
use crate::{
    api,
    cni::Variables,
    explain::Party,
    kernel::{self, Pins},
    kube_proxy::{self, Cleaned},
    listen::BindAddress,
    logging::Format,
    names::Names,
    node_view::NodePortAddresses,
    run::SocketLb,
    status::{Agent, Status},
};

/// A service load balancer and NetworkPolicy enforcer for Kubernetes nodes, by eBPF programs on the
/// interfaces of pods and of the node, and at its processes' sockets.
#[derive(Debug, Parser)]
#[command(name = "lb", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Every flag can be set by an environment variable, shown with the flag. There is no configuration
file. Data goes to stdout, logs to stderr.

Exit codes: 0 done, 1 failed or not found, 2 wrong usage, 3 the agent is not running and left
nothing behind to answer from. `lb policy diff` ends as diff does.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent of this node
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<Run>),
    /// Show what the agent does, what it took hold of, and what is wrong
    #[command(after_help = STATUS_EXAMPLES)]
    Status(View),
    /// Show the services that are in the kernel's tables
    #[command(after_help = SERVICE_EXAMPLES)]
    Service {
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// Say whether a connection is allowed, and by which policies and rules
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(Explain),
    /// Show policies and the pods that they select, or what a change of them changes
    #[command(after_help = POLICY_EXAMPLES)]
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Show what was dropped lately at pods' interfaces, and which policy and rule say so
    #[command(after_help = DROPS_EXAMPLES)]
    Drops(View),
    /// Print the kernel's tables, one line per entry, with names
    #[command(after_help = DUMP_EXAMPLES)]
    Dump(View),
    /// Remove every program, table and file that the agent left, or what kube-proxy left
    #[command(after_help = CLEANUP_EXAMPLES)]
    Cleanup(Cleanup),
    /// Be the CNI plugin that holds pods back until they are guarded, or install it
    #[command(after_help = CNI_EXAMPLES)]
    Cni(cni::Cni),
}

#[derive(Debug, Args)]
pub struct Explain {
    /// Who connects: a pod, as NAME or NS/NAME, or an IP address
    #[arg(value_name = "SRC")]
    source: Party,
    /// To whom: the pod or the address itself; instead of a Service one of its backends
    #[arg(value_name = "DST")]
    destination: Party,
    /// The destination's port, after translation: the target port of a Service; 0 for protocols
    /// without ports
    port: u16,
    /// `tcp`, `udp`, `sctp`, `icmp`, or an IANA protocol number
    #[arg(value_name = "PROTO", default_value = "tcp", value_parser = protocol)]
    protocol: u8,
    /// Answer from this YAML file, or those of this directory [default: ask the agent]
    #[arg(long, env = "LB_MANIFESTS", value_name = "DIR")]
    manifests: Option<PathBuf>,
    #[command(flatten)]
    view: View,
}

#[derive(Debug, Args)]
pub struct Cleanup {
    /// Remove what kube-proxy left on this node instead: its rules of all modes, and nobody else's
    #[arg(long, env = "LB_KUBE_PROXY")]
    kube_proxy: bool,
    #[command(flatten)]
    places: Places,
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List all services, one line per port and address family
    List {
        /// Only the services of this namespace
        #[arg(short, long, env = "LB_NAMESPACE", value_name = "NS")]
        namespace: Option<String>,
        #[command(flatten)]
        view: View,
    },
    /// Show one service with all its backends
    Get {
        /// The service, as NAME or NS/NAME
        #[arg(value_name = "[NS/]NAME")]
        name: String,
        /// The namespace, where NAME does not say it [default: default]
        #[arg(short, long, env = "LB_NAMESPACE", value_name = "NS")]
        namespace: Option<String>,
        #[command(flatten)]
        view: View,
    },
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// List all policies of both kinds, one line each
    List {
        /// Answer from this YAML file, or those of this directory [default: ask the agent, which
        /// knows the pods of its node]
        #[arg(long, env = "LB_MANIFESTS", value_name = "DIR")]
        manifests: Option<PathBuf>,
        #[command(flatten)]
        view: View,
    },
    /// Show the policies of a name with their rules and their pods
    Get {
        /// A NetworkPolicy, as NS/NAME, or a ClusterNetworkPolicy, as NAME
        #[arg(value_name = "[NS/]NAME")]
        name: String,
        /// Answer from this YAML file, or those of this directory [default: ask the agent, which
        /// knows the pods of its node, and counts what their policies say]
        #[arg(long, env = "LB_MANIFESTS", value_name = "DIR")]
        manifests: Option<PathBuf>,
        #[command(flatten)]
        view: View,
    },
    /// Compare two sets of manifests by the connections that they allow
    #[command(after_help = DIFF_HELP)]
    Diff {
        /// A YAML file, or a directory of them, with the namespaces, nodes, pods and policies
        #[arg(value_name = "OLD")]
        old: PathBuf,
        /// The same as it is to be
        #[arg(value_name = "NEW")]
        new: PathBuf,
        /// How to print it
        #[arg(
            short,
            long,
            env = "LB_OUTPUT",
            value_name = "FORMAT",
            default_value = "text"
        )]
        output: Output,
    },
}

const RUN_EXAMPLES: &str = "\
Examples:
  # Services and EndpointSlices from a directory of manifests, re-read when it changes
  lb run --manifests ./manifests --node-name node-a

  # A cluster, before anything serves its own ClusterIP on this node
  lb run --kubeconfig /etc/kubernetes/admin.conf --apiserver https://192.0.2.1:6443

  # In a pod of a DaemonSet: credentials from the service account, the node's name from NODE_NAME
  lb run --apiserver https://192.0.2.1:6443 --apiserver https://192.0.2.2:6443

Stopping the agent, in whatever way, leaves its programs at work; `lb cleanup` removes them.";

const STATUS_EXAMPLES: &str = "\
Examples:
  lb status
  lb status -o json | jq '.problems'";

const SERVICE_EXAMPLES: &str = "\
Examples:
  lb service list
  lb service get default/web
  lb service get -n default web -o json";

const DROPS_EXAMPLES: &str = "\
Examples:
  lb drops
  lb drops -o json | jq '.[] | select(.pod.name == \"web-0\") | .rule'";

const DUMP_EXAMPLES: &str = "\
Examples:
  lb dump | grep default/web
  lb dump -o json";

const POLICY_EXAMPLES: &str = "\
Examples:
  lb policy list
  lb policy get shop/deny-all
  lb policy list --manifests ./manifests
  lb policy get --manifests ./manifests shop/deny-all -o json
  lb policy diff before.yaml after.yaml";

const DIFF_HELP: &str = "\
All pairs of pods, nodes and networks that some rule tells apart are compared, on all ports, by the
destination's address and port: what Services translate to. Networks are what no pod and no node has.

Examples:
  kubectl get -A -o yaml namespaces,nodes,pods,networkpolicies > before.yaml
  lb policy diff before.yaml after.yaml

Exit codes, as diff has them: 0 no difference, 1 a difference, 2 trouble.";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  lb explain shop/cart shop/payment 8080
  lb explain --manifests ./manifests shop/cart shop/payment 8080
  lb explain --manifests ./manifests 203.0.113.7 web 53 udp -o json

What a manifest does not say, `kubectl get -A -o yaml namespaces,nodes,pods,networkpolicies` does.
The agent reads the kernel's tables, and knows what holds for the pods of its own node.
The exit code tells whether the question could be answered, not how.";

const CLEANUP_EXAMPLES: &str = "\
Examples:
  lb cleanup
  lb cleanup --kube-proxy
  lb cleanup --bpffs /run/lb/bpffs";

const CNI_EXAMPLES: &str = "\
Examples:
  lb cni install
  lb cni install --cni-conf-dir /host/etc/cni/net.d --cni-bin-dir /host/opt/cni/bin
  lb cni uninstall

Without a command it is the plugin: a container runtime calls it so, by CNI_COMMAND.";

/// What `lb run` is told.
#[derive(Debug, Args)]
pub struct Run {
    /// Read objects from the YAML files of this directory
    #[arg(long, env = "LB_MANIFESTS", value_name = "DIR", conflicts_with_all = ["kubeconfig", "apiserver"])]
    manifests: Option<PathBuf>,
    /// Read objects from the cluster of this kubeconfig file [default: $KUBECONFIG]
    #[arg(long, env = "LB_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Reach the apiserver here, with the credentials and the TLS server name that the kubeconfig
    /// or the service account gives; repeatable, tried in turn
    #[arg(long, env = "LB_APISERVER", value_name = "URL", value_delimiter = ',')]
    pub apiserver: Vec<Uri>,
    /// Name of this node's Node object [default: $NODE_NAME, then the lower-cased hostname]
    #[arg(long, env = "LB_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Take only the veths and bridge ports whose name matches this pattern of `*` and `?`;
    /// repeatable [default: every veth whose other end is in another network namespace]
    #[arg(
        long,
        env = "LB_POD_INTERFACE",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub pod_interface: Vec<Pattern>,
    /// Take only the interfaces whose name matches this pattern of `*` and `?` for uplinks and
    /// tunnels to other nodes; repeatable [default: those that carry an address of the node, the
    /// default route, or a route to another network, and those that serve NodePorts]
    #[arg(
        long,
        env = "LB_UPLINK_INTERFACE",
        value_name = "PATTERN",
        value_delimiter = ','
    )]
    pub uplink_interface: Vec<Pattern>,
    /// Serve NodePorts on these of the node's own addresses: those in a network such as 10.0.0.0/8,
    /// `primary` (the first of each family that the Node object lists), `all`, `localhost`;
    /// repeatable. A family that no item speaks of serves on all its addresses
    #[arg(
        long,
        env = "LB_NODEPORT_ADDRESSES",
        value_name = "WHERE",
        value_delimiter = ',',
        default_value = "primary"
    )]
    pub nodeport_addresses: Vec<NodePortAddresses>,
    /// Where XDP does on uplinks what else tc does
    #[arg(long, env = "LB_XDP", value_name = "HOW", default_value = "auto")]
    pub xdp: Xdp,
    /// Where cgroup v2 is mounted [default: found among the mounts]
    #[arg(long, env = "LB_CGROUP_ROOT", value_name = "DIR", value_parser = cgroup2)]
    cgroup_root: Option<PathBuf>,
    /// Serve the external IPs of Services; deprecated with them, as kube-proxy's feature gate
    /// `AllowServiceExternalIPs` is
    #[arg(
        long,
        env = "LB_ALLOW_SERVICE_EXTERNAL_IPS",
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = ArgAction::Set
    )]
    pub allow_service_external_ips: bool,
    /// The processes that reach services when they connect and send; others do packet by packet
    #[arg(
        long,
        env = "LB_SOCKET_LB",
        value_name = "WHICH",
        default_value = "host"
    )]
    pub socket_lb: SocketLb,
    /// Let pods send from addresses of this network besides their own, where their annotation
    /// `lb.io/allowed-sources` names them and they are no node's, no Service's and no other pod's;
    /// repeatable [default: from none]
    #[arg(
        long,
        env = "LB_ALLOW_POD_SOURCES",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub allow_pod_sources: Vec<IpNet>,
    /// How programs are attached to interfaces
    #[arg(long, env = "LB_ATTACH", value_name = "HOW", default_value = "auto")]
    pub attach: Attach,
    /// How log lines look
    #[arg(
        long,
        env = "LB_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: Format,
    /// Log what the eBPF programs do from this level up; costs time for every packet
    #[arg(long, env = "LB_BPF_LOG", value_name = "LEVEL", default_value = "off")]
    pub bpf_log: BpfLog,
    /// Remove what kube-proxy left on this node, once services are served without it and it no
    /// longer runs
    #[arg(long, env = "LB_CLEANUP_KUBE_PROXY")]
    pub cleanup_kube_proxy: bool,
    #[command(flatten)]
    pub servers: Servers,
    #[command(flatten)]
    pub places: Places,
}

/// Where others may ask the agent.
#[derive(Clone, Debug, Args)]
pub struct Servers {
    /// Serve /healthz and /livez here; empty: nowhere
    #[arg(
        long,
        env = "LB_HEALTHZ_BIND_ADDRESS",
        value_name = "IP:PORT",
        default_value = "0.0.0.0:10256"
    )]
    pub healthz_bind_address: BindAddress,
    /// Serve /metrics, /healthz, /proxyMode and /configz here; empty: nowhere
    #[arg(
        long,
        env = "LB_METRICS_BIND_ADDRESS",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:10249"
    )]
    pub metrics_bind_address: BindAddress,
    /// End where one of these addresses cannot be had; else that is tried every 5 seconds
    #[arg(long, env = "LB_BIND_ADDRESS_HARD_FAIL")]
    pub bind_address_hard_fail: bool,
}

/// Where the agent keeps things.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// Where the BPF file system is mounted; tables and programs are pinned there
    #[arg(
        long,
        env = "LB_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf"
    )]
    pub bpffs: PathBuf,
    /// The agent's unix socket; the file of names is beside it
    #[arg(
        long,
        env = "LB_SOCKET",
        value_name = "FILE",
        default_value = "/run/lb/lb.sock"
    )]
    pub socket: PathBuf,
}

/// What the commands that show something are told.
#[derive(Clone, Debug, Args)]
pub struct View {
    /// How to print it
    #[arg(
        short,
        long,
        env = "LB_OUTPUT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub output: Output,
    #[command(flatten)]
    pub places: Places,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// tcx where the kernel has it (6.6 and later), else clsact
    Auto,
    /// tcx links
    Tcx,
    /// filters of a clsact qdisc
    Clsact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Xdp {
    /// In drivers that have it, but not on veths: what XDP sends there is lost unless the other end
    /// takes part
    Auto,
    /// In drivers that have it, veths' too
    Native,
    /// In the kernel's stack, on every uplink; for tests, and for drivers that have none
    Generic,
    /// Nowhere
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum BpfLog {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Manifests(PathBuf),
    /// `None`: `$KUBECONFIG`, which may name several files.
    Kubeconfig(Option<PathBuf>),
    InCluster,
}

/// Reads the command line; ends the process where it is wrong, or asks for help.
pub fn parse() -> (Cli, Value) {
    // Runtimes call a plugin by its path alone.
    if env::args_os().len() == 1 && Variables::of_process().is_some() {
        let command = Command::Cni(cni::Cni { command: None });
        return (Cli { command }, Value::Null);
    }
    let matches = Cli::command().get_matches();
    let settings = settings::of_run(&Cli::command(), &matches);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    (cli, settings)
}

/// Does what the command line says; `settings` are those of `lb run`, as data.
pub async fn execute(cli: Cli, settings: Value) -> Result<ExitCode, Failure> {
    let done = match cli.command {
        Command::Run(run) => agent::run(*run, settings).await,
        Command::Status(view) => view::status(&view).await,
        Command::Service { command } => view::service(&command).await,
        Command::Drops(view) => view::drops(&view).await,
        Command::Dump(view) => view::dump(&view).await,
        Command::Policy { command } => return policy::answer(&command).await,
        Command::Explain(question) => explain::answer(&question).await,
        Command::Cleanup(Cleanup {
            kube_proxy: true, ..
        }) => cleanup_kube_proxy().await,
        Command::Cleanup(Cleanup { places, .. }) => cleanup(&places).await,
        Command::Cni(cni::Cni { command }) => cni::execute(command).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// `lb cleanup`.
async fn cleanup(places: &Places) -> Result<(), Failure> {
    let Places { bpffs, socket } = places;
    if let Some(Status {
        agent: Agent::Running { pid, .. },
        ..
    }) = api::status(socket).await?
    {
        return Err(anyhow!("the agent runs as pid {pid}: stop it first").into());
    }
    let mut removed = kernel::cleanup(&Pins::below(bpffs)).await?;
    for file in [socket.clone(), Names::path(socket)] {
        match fs::remove_file(&file) {
            Ok(()) => removed.push(file.display().to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(anyhow!("remove {}: {error}", file.display()).into()),
        }
    }
    if let Some(directory) = socket.parent()
        && fs::remove_dir(directory).is_ok()
    {
        removed.push(directory.display().to_string());
    }
    removed.iter().for_each(|what| eprintln!("removed {what}"));
    if removed.is_empty() {
        eprintln!("there was nothing to remove");
    }
    Ok(())
}

/// `lb cleanup --kube-proxy`.
async fn cleanup_kube_proxy() -> Result<(), Failure> {
    if let Some(how) = kube_proxy::live(kube_proxy::METRICS).await {
        let text = anyhow!("kube-proxy is alive, {how}: stop it first, or it writes all again");
        return Err(text.into());
    }
    let Cleaned {
        removed,
        kept,
        failed,
    } = kube_proxy::clean().await;
    removed.iter().for_each(|what| eprintln!("removed {what}"));
    kept.iter()
        .for_each(|what| eprintln!("kept {what}, which others use"));
    if removed.is_empty() && kept.is_empty() && failed.is_empty() {
        eprintln!("there was nothing to remove");
    }
    if !failed.is_empty() {
        return Err(anyhow!("not all could be removed: {}", failed.join("; ")).into());
    }
    Ok(())
}

/// For a person to read.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests(directory) => write!(f, "manifests in {}", directory.display()),
            Self::Kubeconfig(Some(file)) => write!(f, "the cluster of {}", file.display()),
            Self::Kubeconfig(None) => f.write_str("the cluster of $KUBECONFIG"),
            Self::InCluster => f.write_str("the cluster that the agent runs in"),
        }
    }
}

impl Run {
    /// Where objects come from; an error in words where that is not said.
    pub fn source(&self) -> Result<Source, String> {
        let in_cluster = env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        choose_source(self, env::var_os("KUBECONFIG"), in_cluster)
    }

    /// The name of this node's Node object.
    pub fn node_name(&self) -> Result<String> {
        let given = self
            .node_name
            .clone()
            .or_else(|| env::var("NODE_NAME").ok());
        if let Some(name) = given.filter(|name| !name.is_empty()) {
            return Ok(name);
        }
        let hostname = gethostname().context("ask for the hostname")?;
        Ok(hostname.to_string_lossy().to_lowercase())
    }

    /// Where cgroup v2 is mounted; `None` where it is not.
    pub fn cgroup_root(&self) -> Option<PathBuf> {
        self.cgroup_root.clone().or_else(find_cgroup2)
    }
}

/// `kubeconfig` is `$KUBECONFIG`.
fn choose_source(
    run: &Run,
    kubeconfig: Option<OsString>,
    in_cluster: bool,
) -> Result<Source, String> {
    if let Some(directory) = &run.manifests {
        Ok(Source::Manifests(directory.clone()))
    } else if run.kubeconfig.is_some() || kubeconfig.is_some_and(|files| !files.is_empty()) {
        Ok(Source::Kubeconfig(run.kubeconfig.clone()))
    } else if in_cluster {
        Ok(Source::InCluster)
    } else {
        Err(
            "no source of objects: give --manifests DIR, or --kubeconfig FILE (or $KUBECONFIG), \
             or run in a pod of the cluster with a service account"
                .to_owned(),
        )
    }
}

/// The key of a service from the command line: `NAME` or `NS/NAME`, and the namespace given apart.
fn service_key(name: &str, namespace: Option<&str>) -> Result<String, String> {
    match (name.split_once('/'), namespace) {
        (Some((given, _)), Some(other)) if given != other => {
            Err(format!("{name} is not in the namespace {other}"))
        }
        (Some(_), _) => Ok(name.to_owned()),
        (None, namespace) => Ok(format!("{}/{name}", namespace.unwrap_or("default"))),
    }
}

/// The number of a protocol from the command line.
fn protocol(text: &str) -> Result<u8, String> {
    match text.to_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "sctp" => Ok(132),
        "icmp" => Ok(1),
        "icmpv6" => Ok(58),
        number => {
            let number = number.parse();
            number.map_err(|_| "not a protocol: tcp, udp, sctp, icmp or a number".to_owned())
        }
    }
}

fn cgroup2(path: &str) -> Result<PathBuf, String> {
    let file_system = statfs(path)
        .map_err(|error| error.to_string())?
        .filesystem_type();
    if file_system == CGROUP2_SUPER_MAGIC {
        Ok(PathBuf::from(path))
    } else {
        Err("not a cgroup v2 directory".to_owned())
    }
}

/// The mount of cgroup v2, which a hybrid hierarchy has below the mounts of v1. Of several, the one
/// nearest to the root: the others are other people's copies.
fn find_cgroup2() -> Option<PathBuf> {
    let mounts = procfs::process::Process::myself()
        .and_then(|me| me.mountinfo())
        .ok()?;
    mounts
        .into_iter()
        .filter(|mount| mount.fs_type == "cgroup2")
        .map(|mount| mount.mount_point)
        .min_by_key(|path| path.components().count())
}

#[cfg(test)]
mod tests;
