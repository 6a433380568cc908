//! Sandboxes with an agent on each node, shared by the tests that only look.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use anyhow::{Result, anyhow};
use lb_tests::sandbox::{
    Agent, Family, Manifests, Node, Pod, Protocol, Sandbox, Service, Topology, cluster_ip,
};

/// The port that servers listen on, and the one that their Services offer.
pub const TARGET: u16 = 8080;
pub const PORT: u16 = 80;

/// What a world consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub topology: Topology,
    pub nodes: u8,
    pub attach: &'static str,
}

impl Shape {
    pub const PLAIN: Self = Self {
        topology: Topology::PointToPoint,
        nodes: 1,
        attach: "tcx",
    };

    /// All combinations.
    pub fn all() -> impl Iterator<Item = Self> {
        let topologies = [Topology::PointToPoint, Topology::Bridge];
        topologies.into_iter().flat_map(|topology| {
            [1, 2].into_iter().flat_map(move |nodes| {
                ["tcx", "clsact"].map(|attach| Self {
                    topology,
                    nodes,
                    attach,
                })
            })
        })
    }

    /// For the names of tests.
    pub fn name(&self) -> String {
        let topology = self.topology.name();
        format!("{topology} {}-node {}", self.nodes, self.attach)
    }
}

/// A sandbox whose agents serve a directory of manifests.
///
/// On the first node: `client`, `other` and the server `near`; on the last: `peer` and the server `far`. Every
/// pod and node listens on [`TARGET`]. With two nodes, bridged packets pass netfilter.
pub struct World {
    /// Before the sandbox, whose nodes they run on.
    pub agents: Vec<Agent>,
    pub sandbox: Sandbox,
    pub manifests: Manifests,
    /// More flags for agents that are started from now on.
    pub flags: Vec<&'static str>,
    shape: Shape,
}

impl World {
    /// Makes the pods and nodes; no agent runs.
    pub fn without_agent(shape: Shape) -> Result<Self> {
        let Shape {
            topology,
            nodes,
            attach: _,
        } = shape;
        let sandbox = Sandbox::builder()
            .topology(topology)
            .nodes(nodes)
            .pod("client", 1)
            .pod("other", 1)
            .pod("near", 1)
            .pod("far", nodes)
            .pod("peer", nodes)
            .build()?;
        for node in sandbox.nodes() {
            if topology == Topology::Bridge {
                node.filter_bridged(nodes > 1)?;
            }
            for protocol in Protocol::BOTH {
                node.serve(node.name(), protocol, TARGET)?;
            }
        }
        for pod in sandbox.pods() {
            for protocol in Protocol::BOTH {
                pod.serve(protocol, TARGET)?;
            }
        }
        let manifests = Manifests::create(sandbox.directory().join("manifests"))?;
        manifests.write("objects.yaml", &sandbox.objects())?;
        Ok(Self {
            agents: Vec::new(),
            sandbox,
            manifests,
            flags: Vec::new(),
            shape,
        })
    }

    /// The same with an agent on each node that serves `services`.
    pub fn serving(shape: Shape, services: &[&Service]) -> Result<Self> {
        let mut world = Self::without_agent(shape)?;
        for service in services {
            world.manifests.write_service(service)?;
        }
        world.start_agents()?;
        for service in services {
            world.wait_for(service)?;
        }
        Ok(world)
    }

    /// Starts an agent on each node, in place of the one that ran there.
    pub fn start_agents(&mut self) -> Result<()> {
        self.start_agents_with(&[])
    }

    /// The same with more flags.
    pub fn start_agents_with(&mut self, flags: &[&str]) -> Result<()> {
        let start = |node| {
            let attach = ["--attach", self.shape.attach];
            let flags = attach.iter().chain(&self.flags).chain(flags);
            Agent::start(node, self.manifests.directory(), flags)
        };
        self.agents = self
            .sandbox
            .nodes()
            .iter()
            .map(start)
            .collect::<Result<_>>()?;
        for node in self.sandbox.nodes() {
            let pods = self.sandbox.pods().filter(|pod| pod.node() == node.name());
            let interfaces: Vec<&str> = pods.map(Pod::interface).collect();
            node.wait_for("the agent has taken all pods' interfaces", |status| {
                interfaces.iter().all(|name| is_taken(status, name))
            })?;
        }
        Ok(())
    }

    /// Starts agents with one more flag from the next start on.
    pub fn flag(&mut self, flag: &'static str) {
        self.flags.push(flag);
    }

    /// Attaches in another way from the next start on.
    pub fn attach(&mut self, attach: &'static str) {
        self.shape.attach = attach;
    }

    /// Writes a Service and waits until every node serves it so.
    pub fn program(&self, service: &Service) -> Result<()> {
        self.manifests.write_service(service)?;
        self.wait_for(service)
    }

    /// Waits until every node serves a Service as its objects say.
    pub fn wait_for(&self, service: &Service) -> Result<()> {
        for node in self.sandbox.nodes() {
            node.wait_for(&format!("{} is served", service.key()), |status| {
                service.is_served(status)
            })?;
        }
        Ok(())
    }

    /// What each node has dropped since its tables were made.
    fn drops(&self) -> String {
        let of = |node: &Node| match node.status() {
            Ok(status) => {
                let reasons = status.counters.into_iter().filter(|(_, count)| *count > 0);
                let reasons: Vec<_> = reasons
                    .map(|(why, count)| format!("{count} {why}"))
                    .collect();
                format!("{} dropped [{}]", node.name(), reasons.join(", "))
            }
            Err(error) => format!("{}: {error:#}", node.name()),
        };
        let nodes: Vec<_> = self.sandbox.nodes().iter().map(of).collect();
        nodes.join(", ")
    }

    pub fn client(&self) -> &Pod {
        self.sandbox.pod("client")
    }

    pub fn pod(&self, name: &str) -> &Pod {
        self.sandbox.pod(name)
    }
}

fn is_taken(status: &lb_userspace::status::Status, name: &str) -> bool {
    use lb_userspace::status::Verdict;

    status.interfaces.iter().any(|interface| {
        let known = match &interface.verdict {
            Verdict::Taken { addresses, .. } => addresses.len() == 2,
            Verdict::Device { .. } | Verdict::Failed { .. } | Verdict::Left { .. } => false,
        };
        interface.name == name && known
    })
}

/// A Service with a TCP and a UDP port, without endpoints.
pub fn service(name: &str, ip: u8) -> Service {
    Service::new(name, cluster_ip(ip))
        .port("tcp", Protocol::Tcp, PORT, TARGET)
        .port("udp", Protocol::Udp, PORT, TARGET)
}

/// Where clients reach a Service.
pub fn frontend(service: &Service, family: Family) -> SocketAddr {
    SocketAddr::new(service.ip(family), PORT)
}

/// What is made when the first test asks for it, and goes with the last test that could.
pub struct Shared<T = Stage> {
    shape: Shape,
    cell: Arc<OnceLock<Result<T, String>>>,
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self {
            shape: self.shape,
            cell: self.cell.clone(),
        }
    }
}

/// What tests share.
pub trait Scene: Sized {
    fn make(shape: Shape) -> Result<Self>;

    fn world(&self) -> &World;
}

/// A world with the Services that most tests need.
pub struct Stage {
    pub world: World,
    /// `near` and `far`.
    pub web: Service,
    /// `client` alone.
    pub own: Service,
    /// The nodes.
    pub host: Service,
    /// Nobody.
    pub none: Service,
    /// `near` alone, twice.
    pub twins: [Service; 2],
}

impl<T: Scene> Shared<T> {
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            cell: Arc::default(),
        }
    }

    pub fn name(&self) -> String {
        self.shape.name()
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Runs a test; if it fails, the error says what the nodes have dropped so far, and why.
    pub fn run(&self, test: impl FnOnce(&T) -> Result<()>) -> Result<()> {
        let scene = self.get()?;
        test(scene).map_err(|error| error.context(scene.world().drops()))
    }

    fn get(&self) -> Result<&T> {
        let made = self
            .cell
            .get_or_init(|| T::make(self.shape).map_err(|e| format!("{e:#}")));
        made.as_ref().map_err(|error| anyhow!("{error}"))
    }
}

impl Scene for Stage {
    fn world(&self) -> &World {
        &self.world
    }

    fn make(shape: Shape) -> Result<Self> {
        let mut world = World::without_agent(shape)?;
        let [client, near, far] = ["client", "near", "far"].map(|name| world.sandbox.pod(name));
        let web = service("web", 10).endpoint(near).endpoint(far);
        let own = service("own", 11).endpoint(client);
        let host = world
            .sandbox
            .nodes()
            .iter()
            .fold(service("host", 12), Service::endpoint);
        let none = service("none", 13);
        let twins = [
            service("twin-a", 14).endpoint(near),
            service("twin-b", 15).endpoint(near),
        ];
        let services = [&web, &own, &host, &none, &twins[0], &twins[1]];
        for service in services {
            world.manifests.write_service(service)?;
        }
        world.start_agents()?;
        for service in services {
            world.wait_for(service)?;
        }
        Ok(Self {
            world,
            web,
            own,
            host,
            none,
            twins,
        })
    }
}
