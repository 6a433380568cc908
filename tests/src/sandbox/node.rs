//! A node: the host side of its pods' links, its uplink, and its netfilter rules.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use nix::mount::{MsFlags, mount};

use super::{
    Topology,
    addresses::{self, Family, Pair},
    cgroup::Cgroup,
    client::{Client, Failure, Reply},
    namespace::Namespace,
    netfilter, overlay,
    router::Router,
    server::{self, Protocol},
    tunnel::Tunnels,
    wiring::{Via, Wiring, everything, only},
};

const BRIDGE: &str = "cni0";
pub(super) const UPLINK: &str = "eth0";
/// A pod's interface as the pod sees it.
const INSIDE: &str = "eth0";

/// A simulated node.
pub struct Node {
    name: String,
    number: u8,
    topology: Topology,
    namespace: Namespace,
    /// After the namespace, whose threads are in it.
    cgroup: Cgroup,
    directory: PathBuf,
}

impl Node {
    /// Makes a node whose uplink is a port of the router's bridge. `directory` is the sandbox's.
    pub(super) fn create(
        prefix: &str,
        number: u8,
        topology: Topology,
        router: &Router,
        cgroups: &Cgroup,
        directory: &Path,
    ) -> Result<Self> {
        let name = format!("node-{number}");
        let cgroup = cgroups.child(&name)?;
        let namespace = Namespace::create(&format!("{prefix}{name}"), Some(&cgroup))?;
        for (setting, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/default/rp_filter", "1"),
        ] {
            namespace.set(setting, value)?;
        }
        router.connect(&namespace, number)?;
        match topology {
            Topology::PointToPoint | Topology::Tunnel => (),
            Topology::Bridge => add_bridge(&namespace, number)?,
            Topology::Vxlan => overlay::add(&namespace, number)?,
        }
        netfilter::load(&namespace, number)?;

        let directory = directory.join(&name);
        let bpffs = directory.join("bpf");
        fs::create_dir_all(&bpffs)?;
        mount(
            Some("bpf"),
            &bpffs,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount a bpf file system on {}", bpffs.display()))?;
        Ok(Self {
            name,
            number,
            topology,
            namespace,
            cgroup,
            directory,
        })
    }

    /// The name of its Node object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The zone of its Node object.
    pub fn zone(&self) -> String {
        format!("zone-{}", self.number)
    }

    /// Its own addresses, which host-network pods have.
    pub fn addresses(&self) -> Pair {
        addresses::node(self.number)
    }

    /// The addresses of its tunnel device, where the topology has one.
    pub fn tunnel_addresses(&self) -> Pair {
        addresses::overlay(self.number)
    }

    /// The addresses that it has towards its pods.
    pub fn gateway(&self) -> Pair {
        addresses::gateway(self.number)
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The cgroup that holds its processes and its pods.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// A cgroup for a pod, where a kubelet makes it.
    pub(super) fn pod_cgroup(&self, uid: &str) -> Result<Cgroup> {
        self.cgroup.child(&format!("kubepods/besteffort/pod{uid}"))
    }

    /// A process in its host namespace.
    pub fn client(&self) -> Client<'_> {
        Client::any(&self.namespace)
    }

    /// Asks a server who it is, in a conversation of its own.
    pub fn ask(&self, protocol: Protocol, to: SocketAddr) -> Result<Reply, Failure> {
        self.client().ask(protocol, to)
    }

    /// Gives it addresses that no Node object mentions, and returns them.
    pub fn add_spare_addresses(&self) -> Result<Pair> {
        let spare = addresses::spare(self.number);
        Wiring::of(&self.namespace, move |wiring| async move {
            let index = wiring.index("lo").await?;
            for address in spare.each() {
                let prefix = Family::of(address).host_prefix();
                wiring.address(index, address, prefix).await?;
            }
            Ok(())
        })?;
        Ok(spare)
    }

    /// Its own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its own bpf file system.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// Where its agent answers.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("lb.sock")
    }

    /// The networks of its pods.
    pub fn pod_networks(&self) -> [IpNet; 2] {
        addresses::pod_networks(self.number)
    }

    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// Serves a port on its own addresses, as a host-network pod called `name` does.
    pub fn serve(&self, name: &str, protocol: Protocol, port: u16) -> Result<()> {
        self.serve_on(self.addresses(), name, protocol, port)
    }

    /// Serves a port on other addresses of the node.
    pub fn serve_on(&self, on: Pair, name: &str, protocol: Protocol, port: u16) -> Result<()> {
        server::start(&self.namespace, name, protocol, on, port)
    }

    /// Lets bridged packets pass netfilter, as real clusters do.
    pub fn filter_bridged(&self, on: bool) -> Result<()> {
        let value = if on { "1" } else { "0" };
        self.namespace
            .set("bridge/bridge-nf-call-iptables", value)?;
        self.namespace.set("bridge/bridge-nf-call-ip6tables", value)
    }

    /// Sets the largest packet that its uplink sends, in bytes.
    pub fn limit_uplink(&self, mtu: u32) -> Result<()> {
        Wiring::of(&self.namespace, move |wiring| async move {
            wiring.mtu(wiring.index(UPLINK).await?, mtu).await
        })
    }

    /// Connects a pod in the order in which the CNI plugins `ptp` and `bridge` do.
    pub(super) fn connect(&self, pod: &Namespace, interface: &str, own: Pair) -> Result<()> {
        self.plug_in(pod, interface)?;
        self.configure_inside(pod, own)?;
        match self.topology {
            Topology::PointToPoint | Topology::Vxlan | Topology::Tunnel => {
                self.route_to_pod(interface, own)
            }
            Topology::Bridge => Ok(()),
        }
    }

    /// Makes the veth pair and brings both ends up.
    fn plug_in(&self, pod: &Namespace, interface: &str) -> Result<()> {
        let (peer, descriptor) = (interface.to_owned(), self.namespace.descriptor());
        let mtu = self.topology.pod_mtu();
        Wiring::of(pod, move |wiring| async move {
            wiring.up(wiring.index("lo").await?).await?;
            let index = wiring.veth(INSIDE, &peer, descriptor).await?;
            wiring.mtu(index, mtu).await?;
            wiring.up(index).await
        })?;
        let (outer, topology) = (interface.to_owned(), self.topology);
        Wiring::of(&self.namespace, move |wiring| async move {
            let index = wiring.index(&outer).await?;
            wiring.mtu(index, mtu).await?;
            if topology == Topology::Bridge {
                wiring.join(index, wiring.index(BRIDGE).await?).await?;
            }
            wiring.up(index).await
        })
    }

    /// Gives a pod its addresses, and a way out through the gateway.
    fn configure_inside(&self, pod: &Namespace, own: Pair) -> Result<()> {
        let (topology, networks) = (self.topology, self.pod_networks());
        let gateways = addresses::gateway(self.number).each();
        Wiring::of(pod, move |wiring| async move {
            let index = wiring.index(INSIDE).await?;
            for ((address, gateway), network) in own.each().into_iter().zip(gateways).zip(networks)
            {
                let family = Family::of(address);
                match topology {
                    Topology::PointToPoint | Topology::Vxlan | Topology::Tunnel => {
                        wiring.address(index, address, family.host_prefix()).await?;
                        wiring.route(only(gateway), index, Via::Link).await?;
                    }
                    Topology::Bridge => {
                        wiring.address(index, address, network.prefix_len()).await?;
                    }
                }
                wiring
                    .route(everything(family), index, Via::Gateway(gateway))
                    .await?;
            }
            Ok(())
        })
    }

    /// Gives a pod's link the gateway's addresses, and routes the pod's through it.
    fn route_to_pod(&self, interface: &str, own: Pair) -> Result<()> {
        let (outer, gateways) = (interface.to_owned(), addresses::gateway(self.number).each());
        Wiring::of(&self.namespace, move |wiring| async move {
            let index = wiring.index(&outer).await?;
            for (address, gateway) in own.each().into_iter().zip(gateways) {
                let prefix = Family::of(gateway).host_prefix();
                wiring.address(index, gateway, prefix).await?;
                wiring.route(only(address), index, Via::Link).await?;
            }
            Ok(())
        })
    }

    /// Routes the pods of another node to that node.
    pub(super) fn route_to(&self, other: &Node, tunnels: Option<&Tunnels>) -> Result<()> {
        if let Some(tunnels) = tunnels {
            return tunnels.route(&self.namespace, other.pod_networks(), other.number);
        }
        match self.topology {
            Topology::Vxlan => overlay::connect(&self.namespace, other.number),
            Topology::PointToPoint | Topology::Bridge | Topology::Tunnel => {
                self.route_through(other)
            }
        }
    }

    fn route_through(&self, other: &Node) -> Result<()> {
        let (number, addresses) = (other.number, other.addresses());
        Wiring::of(&self.namespace, move |wiring| async move {
            let uplink = wiring.index(UPLINK).await?;
            for (pods, node) in addresses::pod_networks(number)
                .into_iter()
                .zip(addresses.each())
            {
                wiring.route(pods, uplink, Via::Gateway(node)).await?;
            }
            Ok(())
        })
    }
}

fn add_bridge(namespace: &Namespace, number: u8) -> Result<()> {
    Wiring::of(namespace, move |wiring| async move {
        let bridge = wiring.bridge(BRIDGE).await?;
        let networks = addresses::pod_networks(number);
        for (address, network) in addresses::gateway(number).each().into_iter().zip(networks) {
            wiring
                .address(bridge, address, network.prefix_len())
                .await?;
        }
        Ok(())
    })
}
