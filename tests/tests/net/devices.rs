//! The interfaces that lead out of a node: found, followed, attached and left.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType, Xdp, XdpMode, loaded_links},
};
use futures::TryStreamExt as _;
use lb_tests::sandbox::{Agent, Node, Topology, until};
use lb_userspace::{
    kernel::OBJECT,
    render::{Dump, Target},
    status::{Interface, Status, Verdict},
};
use libtest_mimic::Trial;
use netlink_packet_route::{
    address::AddressAttribute,
    link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
    route::RouteMessage,
};
use nix::sys::signal::Signal;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{
    trial,
    world::{Shape, World},
};

const UPLINK: &str = "eth0";
const TUNNEL: &str = "flannel.1";
const BARE: &str = "wg0";

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("uplinks and tunnels are found", uplinks_and_tunnels),
        trial("uplinks are told by name where a pattern says so", by_name),
        trial("uplinks come, change and go", come_and_go),
        trial(
            "addresses of the node and where NodePorts are",
            node_addresses,
        ),
        trial("an uplink without Ethernet", without_ethernet),
        trial("an XDP program of somebody else on an uplink", foreign_xdp),
        trial("cleanup removes XDP", cleanup_of_xdp),
    ];
    for attach in ["tcx", "clsact"] {
        trials.push(trial(
            format!("uplinks of an agent that is away {attach}"),
            move || away(attach),
        ));
    }
    trials.push(trial("a restart keeps the links of uplinks", restart));
    trials
}

fn world(topology: Topology, flags: &[&str]) -> Result<World> {
    let shape = Shape {
        topology,
        ..Shape::PLAIN
    };
    let mut world = World::without_agent(shape)?;
    start(&mut world, flags)?;
    Ok(world)
}

/// Starts an agent on the first node and waits until it has looked at the uplink.
fn start(world: &mut World, flags: &[&str]) -> Result<()> {
    let node = &world.sandbox.nodes()[0];
    world.agents = vec![Agent::start(node, world.manifests.directory(), flags)?];
    device_when(node, UPLINK, "the uplink is taken", |_| true).map(drop)
}

fn node(world: &World) -> &Node {
    &world.sandbox.nodes()[0]
}

fn interface<'a>(status: &'a Status, name: &str) -> Option<&'a Interface> {
    let mut interfaces = status.interfaces.iter();
    interfaces.find(|interface| interface.name == name)
}

/// What is said of an interface that leads out of the node.
#[derive(Debug)]
struct Device {
    because: Option<String>,
    attach: String,
    xdp: String,
    mtu: u32,
    sources: Vec<IpAddr>,
}

fn device(status: &Status, name: &str) -> Option<Device> {
    match interface(status, name)?.verdict.clone() {
        Verdict::Device {
            because,
            attach,
            xdp,
            mtu,
            sources,
        } => Some(Device {
            because,
            attach,
            xdp,
            mtu,
            sources,
        }),
        Verdict::Taken { .. } | Verdict::Failed { .. } | Verdict::Left { .. } => None,
    }
}

fn device_when(
    node: &Node,
    name: &str,
    what: &str,
    condition: impl Fn(&Device) -> bool,
) -> Result<Device> {
    let found = |status: &Status| device(status, name).is_some_and(|device| condition(&device));
    let status = node.wait_for(&format!("{name}: {what}"), found)?;
    device(&status, name).with_context(|| format!("{name} is no device"))
}

fn left_because(status: &Status, name: &str) -> Option<String> {
    match &interface(status, name)?.verdict {
        Verdict::Left { reason } => Some(reason.clone()),
        Verdict::Taken { .. } | Verdict::Device { .. } | Verdict::Failed { .. } => None,
    }
}

fn uplinks_and_tunnels() -> Result<()> {
    let shape = Shape {
        topology: Topology::Vxlan,
        nodes: 2,
        ..Shape::PLAIN
    };
    let mut world = World::without_agent(shape)?;
    start(&mut world, &[])?;
    let node = node(&world);
    let tunnel = device_when(node, TUNNEL, "it is taken", |_| true)?;
    let because = tunnel.because.clone().unwrap_or_default();
    ensure!(because.starts_with("carries the route to "), "{tunnel:?}");
    ensure!(tunnel.mtu < 1500 && tunnel.sources.len() == 2, "{tunnel:?}");
    ensure!(tunnel.xdp == "none: a tunnel", "{tunnel:?}");

    let status = node.status()?;
    let uplink = device(&status, UPLINK).context("the uplink")?;
    let addresses = node.addresses().each();
    ensure!(
        uplink.sources == addresses && uplink.mtu == 1500,
        "{uplink:?}"
    );
    let carries = format!("carries the node's address {}", addresses[0]);
    ensure!(uplink.because == Some(carries), "{uplink:?}");
    ensure!(uplink.xdp.starts_with("none: a veth"), "{uplink:?}");
    let lo = left_because(&status, "lo");
    ensure!(lo.as_deref() == Some("not a veth; leads nowhere"), "{lo:?}");
    for pod in world.sandbox.pods().filter(|pod| pod.node() == node.name()) {
        let taken = interface(&status, pod.interface()).map(|interface| &interface.verdict);
        ensure!(matches!(taken, Some(Verdict::Taken { .. })), "{taken:?}");
    }
    ensure!(
        attached(node, UPLINK)?.len() == 2 && attached(node, TUNNEL)?.len() == 2,
        "the programs are not there"
    );
    Ok(())
}

fn by_name() -> Result<()> {
    let world = world(Topology::Bridge, &["--uplink-interface", "e*,cni*,lo"])?;
    let node = node(&world);
    let status = node.wait_for("the bridge is left", |status| {
        left_because(status, "cni0").is_some_and(|reason| reason.ends_with("a bridge of pods"))
    })?;
    let uplink = device(&status, UPLINK).context("the uplink")?;
    ensure!(
        uplink.because.as_deref() == Some("matches --uplink-interface"),
        "{uplink:?}"
    );
    ensure!(left_because(&status, "lo").is_some(), "{status}");
    Ok(())
}

/// Does something with netlink in a node's own namespace.
fn on<F: Future<Output = Result<()>> + Send>(
    node: &Node,
    work: impl FnOnce(Handle) -> F + Send + 'static,
) -> Result<()> {
    node.namespace().run(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        result
    })
}

async fn link(handle: &Handle, name: &str) -> Result<LinkMessage> {
    let found = handle.link().get().match_name(name).execute();
    let found = Box::pin(found).try_next().await?;
    found.with_context(|| format!("{name} is not there"))
}

async fn index(handle: &Handle, name: &str) -> Result<u32> {
    Ok(link(handle, name).await?.header.index)
}

/// A default route that is used when there is no other.
fn second_default(index: u32) -> RouteMessage {
    RouteMessageBuilder::<std::net::Ipv4Addr>::new()
        .output_interface(index)
        .gateway([198, 51, 100, 1].into())
        .priority(1_000)
        .build()
}

fn come_and_go() -> Result<()> {
    let world = world(Topology::PointToPoint, &[])?;
    let node = node(&world);
    on(node, async |handle| {
        let pair = LinkVeth::new("second", "behind").build();
        handle.link().add(pair).execute().await?;
        for name in ["second", "behind"] {
            let up = LinkUnspec::new_with_index(index(&handle, name).await?).up();
            handle.link().set(up.build()).execute().await?;
        }
        Ok(())
    })?;
    node.wait_for("it is left until something leads through it", |status| {
        left_because(status, "second").is_some_and(|reason| reason.contains("no route leads out"))
    })?;

    on(node, async |handle| {
        let index = index(&handle, "second").await?;
        let address = [198, 51, 100, 7].into();
        handle.address().add(index, address, 24).execute().await?;
        Ok(handle.route().add(second_default(index)).execute().await?)
    })?;
    // It has no address of the other family, so it sends with the node's.
    let sources: [IpAddr; 2] = [[198, 51, 100, 7].into(), node.addresses().v6.into()];
    let second = device_when(node, "second", "it sends with its address", |device| {
        device.sources == sources
    })?;
    ensure!(
        second.because.as_deref() == Some("carries the default route"),
        "{second:?}"
    );
    let programs = attached(node, "second")?;
    ensure!(programs.len() == 2, "{programs:?}");

    on(node, async |handle| {
        let index = index(&handle, "second").await?;
        let down = LinkUnspec::new_with_index(index).down();
        handle.link().set(down.build()).execute().await?;
        let renamed = LinkUnspec::new_with_index(index).name("renamed").mtu(1400);
        handle.link().set(renamed.build()).execute().await?;
        let up = LinkUnspec::new_with_index(index).up();
        handle.link().set(up.build()).execute().await?;
        Ok(handle.route().add(second_default(index)).execute().await?)
    })?;
    device_when(node, "renamed", "it has a new name and MTU", |device| {
        device.mtu == 1400
    })?;
    ensure!(attached(node, "renamed")?.len() == 2);

    on(node, async |handle| {
        let route = second_default(index(&handle, "renamed").await?);
        Ok(handle.route().del(route).execute().await?)
    })?;
    node.wait_for("it is left without its route", |status| {
        left_because(status, "renamed").is_some()
    })?;
    until("its programs are gone", || {
        Ok(attached(node, "renamed")?.is_empty().then_some(()))
    })?;

    on(node, async |handle| {
        let index = index(&handle, "renamed").await?;
        handle.route().add(second_default(index)).execute().await?;
        Ok(())
    })?;
    device_when(node, "renamed", "it is taken again", |_| true)?;
    on(node, async |handle| {
        let index = index(&handle, "renamed").await?;
        Ok(handle.link().del(index).execute().await?)
    })?;
    let status = node.wait_for("it is gone", |status| {
        interface(status, "renamed").is_none()
    })?;
    ensure!(device(&status, UPLINK).is_some(), "{status}");
    Ok(())
}

/// The tables say of every address of the node whether NodePorts are served there.
fn node_addresses() -> Result<()> {
    let flags = ["--nodeport-addresses", "localhost,172.18.0.0/16"];
    let world = world(Topology::PointToPoint, &flags)?;
    let node = node(&world);
    let own = node.addresses();
    let serving = [
        own.v4.into(),
        [127, 0, 0, 1].into(),
        Ipv6Addr::LOCALHOST.into(),
    ];
    let others: [IpAddr; 2] = [[10, 244, 1, 1].into(), own.v6.into()];
    let says = |address: IpAddr, expected: Option<bool>| {
        let what = format!("{address} has NodePorts: {expected:?}");
        until(&what, || {
            let found = node_ports(node, address)?;
            Ok((found == expected).then_some(()))
        })
    };
    for address in serving {
        says(address, Some(true))?;
    }
    for address in others {
        says(address, Some(false))?;
    }

    let new: [IpAddr; 2] = [[172, 18, 0, 99].into(), [10, 9, 9, 9].into()];
    on(node, async move |handle| {
        let index = index(&handle, UPLINK).await?;
        for address in new {
            handle.address().add(index, address, 32).execute().await?;
        }
        Ok(())
    })?;
    says(new[0], Some(true))?;
    says(new[1], Some(false))?;
    on(node, async move |handle| {
        let index = index(&handle, UPLINK).await?;
        let addresses = handle.address().get().set_link_index_filter(index);
        let addresses: Vec<_> = addresses.execute().try_collect().await?;
        for message in addresses {
            let is_new = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Local(address) if new.contains(address));
            if message.attributes.iter().any(is_new) {
                handle.address().del(message).execute().await?;
            }
        }
        Ok(())
    })?;
    says(new[0], None)?;
    says(new[1], None)
}

/// Whether the tables say that NodePorts are served on an address of the node; none where they do
/// not know it for one.
fn node_ports(node: &Node, address: IpAddr) -> Result<Option<bool>> {
    let output = node.lb(&["dump", "-o", "json"])?;
    let dump: Dump = serde_json::from_slice(&output.stdout).context("read `lb dump`")?;
    let whole = match address {
        IpAddr::V4(address) => format!("{address}:*"),
        IpAddr::V6(address) => format!("[{address}]:*"),
    };
    let mut frontends = dump.frontends.into_iter();
    let target = frontends.find(|found| found.frontend == whole);
    Ok(target.and_then(|found| match found.target {
        Target::NodeAddress { node_ports } => Some(node_ports),
        Target::Refused | Target::Service { .. } => None,
    }))
}

/// A device whose packets begin with the IP header.
fn without_ethernet() -> Result<()> {
    let shape = Shape {
        topology: Topology::Tunnel,
        nodes: 2,
        ..Shape::PLAIN
    };
    let mut world = World::without_agent(shape)?;
    start(&mut world, &["--xdp", "generic"])?;
    let node = node(&world);
    let bare = device_when(node, BARE, "it is taken", |_| true)?;
    ensure!(bare.xdp == "none: no Ethernet header", "{bare:?}");
    let names = attached(node, BARE)?.into_iter().map(|(name, _)| name);
    let names: Vec<_> = names.collect();
    ensure!(names == ["node_ingress_l3", "node_egress_l3"], "{names:?}");
    Ok(())
}

fn restart() -> Result<()> {
    let flags = ["--xdp", "generic"];
    let mut world = world(Topology::PointToPoint, &flags)?;
    let uplink = device(&node(&world).status()?, UPLINK).context("the uplink")?;
    ensure!(uplink.xdp == "generic", "{uplink:?}");
    let before = all_programs(node(&world))?;
    ensure!(before.len() == 3, "{before:?}");
    let links = links_of(&before);
    ensure!(links.len() == 3, "{links:?}");
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        world.agents[0].end(signal)?;
        ensure!(links_of(&before) == links || signal != Signal::SIGKILL);
        start(&mut world, &flags)?;
        until("the programs are new ones", || {
            let now = all_programs(node(&world))?;
            Ok((now.len() == 3 && now.is_disjoint(&before)).then_some(()))
        })?;
        let now = all_programs(node(&world))?;
        ensure!(
            links_of(&now) == links,
            "{links:?} became {:?}",
            links_of(&now)
        );
    }

    world.agents[0].end(Signal::SIGTERM)?;
    start(&mut world, &["--xdp", "off"])?;
    until("XDP is off", || {
        Ok(xdp_program(node(&world))?.is_none().then_some(()))
    })
}

/// With no agent, `lb status` knows the devices from what is in the kernel.
fn away(attach: &str) -> Result<()> {
    let mut world = world(Topology::PointToPoint, &["--attach", attach])?;
    let before = device(&node(&world).status()?, UPLINK).context("the uplink")?;
    world.agents[0].end(Signal::SIGTERM)?;
    let after = device(&node(&world).status()?, UPLINK).context("the uplink without an agent")?;
    ensure!(
        after.because.is_none() && after.attach == attach,
        "{after:?}"
    );
    ensure!(
        after.sources == before.sources && after.mtu == before.mtu,
        "{after:?}"
    );
    Ok(())
}

fn foreign_xdp() -> Result<()> {
    let mut world = World::without_agent(Shape::PLAIN)?;
    let (attached, is_attached) = mpsc::channel();
    let (remove, removed) = mpsc::channel::<()>();
    // Its link goes with the thread.
    let namespace = node(&world).namespace();
    let thread = namespace.run_blocking(move || {
        thread::spawn(move || -> Result<()> {
            let mut other = Ebpf::load(OBJECT)?;
            let program = other.program_mut("node_xdp").context("the program")?;
            let program: &mut Xdp = program.try_into()?;
            program.load()?;
            program.attach(UPLINK, XdpMode::Skb)?;
            attached.send(())?;
            // An error means as much: this test has ended.
            let _ = removed.recv();
            Ok(())
        })
    });
    is_attached
        .recv()
        .context("the other program is attached")?;
    let theirs = xdp_program(node(&world))?;
    start(&mut world, &["--xdp", "generic"])?;
    let uplink = device_when(node(&world), UPLINK, "it has an XDP program", |device| {
        device.xdp.starts_with("none: another program is there")
    })?;
    ensure!(xdp_program(node(&world))? == theirs, "{uplink:?}");
    ensure!(
        self::attached(node(&world), UPLINK)?.len() == 2,
        "{uplink:?}"
    );

    remove.send(())?;
    thread.join().expect("no panic")?;
    device_when(node(&world), UPLINK, "it has our XDP program", |device| {
        device.xdp == "generic"
    })?;
    Ok(())
}

fn cleanup_of_xdp() -> Result<()> {
    let mut world = world(Topology::PointToPoint, &["--xdp", "generic"])?;
    ensure!(xdp_program(node(&world))?.is_some(), "it is not there");
    world.agents[0].end(Signal::SIGTERM)?;
    let output = node(&world).lb(&["cleanup"])?;
    ensure!(output.status.success(), "{output:?}");
    until("no program is left", || {
        let none = all_programs(node(&world))?.is_empty();
        Ok(none.then_some(()))
    })
}

/// Names and ids of the tcx programs of an interface, of ingress and then of egress.
fn attached(node: &Node, interface: &str) -> Result<Vec<(String, u32)>> {
    let interface = interface.to_owned();
    node.namespace().run_blocking(move || {
        let mut found = Vec::new();
        for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
            for program in SchedClassifier::query_tcx(&interface, hook)?.1 {
                let name = program.name_as_str().unwrap_or_default();
                found.push((name.to_owned(), program.id()));
            }
        }
        Ok(found)
    })
}

/// The id of the XDP program of the uplink.
fn xdp_program(node: &Node) -> Result<Option<u32>> {
    let (answer, answered) = mpsc::channel();
    on(node, async move |handle| {
        let xdp = link(&handle, UPLINK).await?.attributes.into_iter();
        let xdp = xdp.filter_map(|attribute| match attribute {
            LinkAttribute::Xdp(attributes) => Some(attributes),
            _ => None,
        });
        let xdp: Vec<_> = xdp.flatten().collect();
        let id = xdp.iter().find_map(|attribute| match attribute {
            LinkXdp::ProgId(id) => Some(*id),
            _ => None,
        });
        let none = xdp.contains(&LinkXdp::Attached(XdpAttached::None));
        Ok(answer.send(id.filter(|_| !none))?)
    })?;
    Ok(answered.recv()?)
}

/// The ids of all our programs on the uplink.
fn all_programs(node: &Node) -> Result<BTreeSet<u32>> {
    let tc = attached(node, UPLINK)?.into_iter().map(|(_, id)| id);
    Ok(tc.chain(xdp_program(node)?).collect())
}

/// The ids of the links of these programs.
fn links_of(programs: &BTreeSet<u32>) -> BTreeSet<u32> {
    let links = loaded_links().filter_map(Result::ok);
    links
        .filter(|link| programs.contains(&link.program_id()))
        .map(|link| link.id())
        .collect()
}
