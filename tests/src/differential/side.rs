//! One of the two sandboxes that are alike but for the proxy of node-1.

use std::{
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use futures::{executor::block_on, future::join_all};
use ipnet::IpNet;
use tokio::sync::Semaphore;

use super::{
    generate::{SERVERS, TARGETS},
    outcome::{Effort, Outcome, ask},
    probe::{NodeAddresses, Probe, To, Who},
    world::{Place, Round, Servers, World, public_networks},
};
use crate::sandbox::{
    Client, Family, Namespace, Node, Protocol, Sandbox, outside_client, service_networks,
};

/// How many probes run at once: more, and a busy machine lets some time out.
const AT_ONCE: usize = 48;
/// The only ICMPv6 messages that are limited: there have to be some.
const TIME_EXCEEDED: &str = "3";
/// The client outside, by its number.
const OUTSIDE: u8 = 1;

/// Three nodes with servers on pods and on nodes.
pub struct Side {
    pub sandbox: Sandbox,
    nodes: NodeAddresses,
}

impl Side {
    pub fn build() -> Result<Self> {
        let mut builder = Sandbox::builder().nodes(3).pod("client", 1);
        for server in SERVERS {
            builder = match server.split('-').next() {
                Some("here") => builder.pod(server, 1),
                Some("there") => builder.pod(server, 2),
                Some("far") => builder.pod(server, 3),
                _ => builder,
            };
        }
        let sandbox = builder.build()?;
        for node in sandbox.nodes() {
            let namespace = node.namespace();
            forward_all(namespace)?;
            // Every refusal is to be heard, not only one a second.
            namespace.set("ipv4/icmp_ratemask", "0")?;
            namespace.set("ipv6/icmp/ratemask", TIME_EXCEEDED)?;
        }
        let own = &sandbox.nodes()[0];
        let nodes = NodeAddresses {
            own: own.addresses(),
            spare: own.add_spare_addresses()?,
            other: sandbox.nodes()[1].addresses(),
        };
        sandbox.route_outside(nodes.spare.each().map(IpNet::from), own)?;
        sandbox.route_outside(service_networks(), own)?;
        sandbox.route_outside(public_networks(), own)?;
        let side = Self { sandbox, nodes };
        side.serve()?;
        Ok(side)
    }

    /// The node under test.
    pub fn node(&self) -> &Node {
        &self.sandbox.nodes()[0]
    }

    pub fn nodes(&self) -> &NodeAddresses {
        &self.nodes
    }

    /// Where every server is.
    pub fn servers(&self) -> Servers {
        let place = |name: &str| match self.host(name) {
            Some(node) => Place {
                addresses: node.addresses(),
                node: node.name().to_owned(),
            },
            None => Place {
                addresses: self.sandbox.pod(name).addresses(),
                node: self.sandbox.pod(name).node().to_owned(),
            },
        };
        SERVERS.map(|name| (name.to_owned(), place(name))).into()
    }

    /// Whether the marker of a round is served in both families.
    pub fn is_at(&self, round: Round) -> bool {
        let client = self.sandbox.pod("client");
        Family::BOTH.iter().all(|family| {
            let marker = (round.marker().get(*family), TARGETS[0]).into();
            client.ask(Protocol::Tcp, marker).is_ok()
        })
    }

    /// The address that a client arrives with at the node: its own, but for a pod of another node,
    /// which only calls this node itself and so is masqueraded by its own.
    pub fn address(&self, who: Who, family: Family) -> IpAddr {
        let pair = match who {
            Who::Pod => self.sandbox.pod("client").addresses(),
            Who::Server => self.sandbox.pod("here-1").addresses(),
            Who::Host => self.nodes.own,
            Who::Outside => outside_client(OUTSIDE),
            Who::OtherPod | Who::OtherHost => self.nodes.other,
        };
        pair.get(family)
    }

    /// The address that the node has towards its pods.
    pub fn gateway(&self, family: Family) -> IpAddr {
        self.node().gateway().get(family)
    }

    /// Carries out probes of a world, as many at once as do not disturb each other. There is an
    /// outcome for each.
    pub fn ask(
        &self,
        world: &World,
        round: Round,
        probes: &[Probe],
        effort: impl Fn(&Probe) -> Effort,
    ) -> Vec<Outcome> {
        let slots = Semaphore::new(AT_ONCE);
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (index, probe) in probes.iter().enumerate() {
            let together = groups
                .iter_mut()
                .find(|group| share_affinity(world, &probes[group[0]], probe));
            match together {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        let ask = async |group: Vec<usize>| {
            let mut outcomes = Vec::new();
            for index in group {
                let _slot = slots.acquire().await;
                let probe = &probes[index];
                outcomes.push((
                    index,
                    self.ask_one(world, round, probe, effort(probe)).await,
                ));
            }
            outcomes
        };
        let groups = block_on(join_all(groups.into_iter().map(ask)));
        let mut outcomes: Vec<_> = groups.into_iter().flatten().collect();
        outcomes.sort_by_key(|(index, _)| *index);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    async fn ask_one(&self, world: &World, round: Round, probe: &Probe, effort: Effort) -> Outcome {
        let Some((protocol, to)) = probe.target(world, round, &self.nodes) else {
            return Outcome::default();
        };
        let client = self.client(probe.who);
        let asked = ask(client.from(to), protocol, to, effort);
        match client.namespace().spawn(asked).await {
            Ok(outcome) => outcome,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn client(&self, who: Who) -> Client<'_> {
        match who {
            Who::Pod => self.sandbox.pod("client").client(),
            Who::Server => self.sandbox.pod("here-1").client(),
            Who::Host => self.node().client(),
            Who::Outside => self.sandbox.outside_client(OUTSIDE),
            Who::OtherPod => self.sandbox.pod("there-1").client(),
            Who::OtherHost => self.sandbox.nodes()[1].client(),
        }
    }

    fn serve(&self) -> Result<()> {
        for name in SERVERS {
            for protocol in Protocol::BOTH {
                for port in TARGETS {
                    let called = server_name(name, port);
                    match self.host(name) {
                        Some(node) => node.serve(&called, protocol, port)?,
                        None => self.sandbox.pod(name).serve_as(&called, protocol, port)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// The node that a server called `host-<number>` is on.
    fn host(&self, server: &str) -> Option<&Node> {
        let number: usize = server.strip_prefix("host-")?.parse().ok()?;
        self.sandbox.nodes().get(number - 1)
    }
}

/// Whether two probes are of one service port with session affinity, so that what one does is
/// remembered for the other.
fn share_affinity(world: &World, a: &Probe, b: &Probe) -> bool {
    let port = |probe: &Probe| match probe.to {
        To::Port { service, port, .. } => Some((service, port)),
        To::UndefinedPort { .. } | To::Unallocated { .. } => None,
    };
    port(a).is_some()
        && port(a) == port(b)
        && a.service(world).is_some_and(|service| service.affinity)
}

/// What a server says it is called: its port tells which of the target ports was taken.
pub fn server_name(server: &str, port: u16) -> String {
    format!("{server}:{port}")
}

/// Lets everything be forwarded that is not invalid: who drops or refuses is then the proxy and not
/// the node's firewall.
fn forward_all(namespace: &Namespace) -> Result<()> {
    const RULE: &str = "add rule inet node forward accept\n";
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped());
    let mut nft = namespace.start(command).context("run nft")?;
    let mut stdin = nft.stdin.take().context("nft has no standard input")?;
    stdin.write_all(RULE.as_bytes())?;
    drop(stdin);
    ensure!(nft.wait()?.success(), "nft refused a rule");
    Ok(())
}
