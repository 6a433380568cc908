//! ICMP errors that routers and nodes send for translated packets.

use std::{
    io::IoSliceMut,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::sandbox::{Client, Conversation, Family, Protocol, Topology};
use libtest_mimic::Trial;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, setsockopt,
    sockopt,
};

use crate::{
    trial,
    world::{Shape, TARGET, World, frontend, service},
};

/// What the uplinks carry in the tests of path MTU discovery; pods believe in 1500.
const NARROW: u32 = 1400;
/// Too much for the uplink, not too much for a pod.
const DATAGRAM: usize = 1440;

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for topology in [Topology::PointToPoint, Topology::Bridge] {
        for family in Family::BOTH {
            let name = |what: &str| format!("{what} {topology:?} {}", family.name());
            trials.extend([
                trial(name("large transfers over a narrow path"), move || {
                    narrow(topology, family)
                }),
                trial(name("a datagram that is too large"), move || {
                    too_large(topology, family)
                }),
                trial(name("time exceeded on the way"), move || {
                    traced(topology, family)
                }),
                trial(name("a backend that refuses"), move || {
                    refusing_backend(topology, family)
                }),
            ]);
        }
    }
    trials
}

/// A world with two nodes in which only `far` is behind the Service.
fn world(topology: Topology) -> Result<(World, lb_tests::sandbox::Service)> {
    let world = World::serving(
        Shape {
            topology,
            nodes: 2,
            ..Shape::PLAIN
        },
        &[],
    )?;
    let web = service("web", 10).endpoint(world.pod("far"));
    world.program(&web)?;
    Ok((world, web))
}

fn narrow(topology: Topology, family: Family) -> Result<()> {
    const SIZE: usize = 1 << 20;

    let (world, web) = world(topology)?;
    for node in world.sandbox.nodes() {
        node.limit_uplink(NARROW)?;
    }
    let to = frontend(&web, family);
    world.client().run(async move {
        let mut conversation = Conversation::open(Protocol::Tcp, to).await?;
        conversation.upload(SIZE).await.context("upload")?;
        conversation.download(SIZE).await.context("download")?;
        Ok(())
    })
}

fn too_large(topology: Topology, family: Family) -> Result<()> {
    let (world, web) = world(topology)?;
    world.sandbox.nodes()[0].limit_uplink(NARROW)?;
    let to = frontend(&web, family);
    let error = provoke(world.client().client(), to, None, DATAGRAM)?;
    // ICMPv6 packet too big, ICMP fragmentation needed.
    ensure!(
        matches!((error.kind, error.code), (2, 0) | (3, 4)),
        "{error:?}"
    );
    ensure!(error.quoted == to, "the error quotes {}", error.quoted);
    ensure!(error.info == NARROW, "the error says {}", error.info);
    Ok(())
}

fn traced(topology: Topology, family: Family) -> Result<()> {
    let (world, web) = world(topology)?;
    let to = frontend(&web, family);
    for hops in 1..=2 {
        let error = provoke(world.client().client(), to, Some(hops), 100)?;
        ensure!(
            matches!((error.kind, error.code), (3, 0) | (11, 0)),
            "{hops} hops: {error:?}"
        );
        ensure!(
            error.quoted == to,
            "{hops} hops: the error quotes {}",
            error.quoted
        );
    }
    let error = provoke(world.client().client(), to, Some(2), 100)?;
    let far_node = world.sandbox.nodes()[1].addresses().get(family);
    ensure!(
        error.from == Some(far_node),
        "the second hop is {:?}",
        error.from
    );
    Ok(())
}

/// A pod that does not listen answers with a reset, or with an ICMP error that quotes its own port.
fn refusing_backend(topology: Topology, family: Family) -> Result<()> {
    let (world, _) = world(topology)?;
    let closed = service("closed", 11)
        .port("tcp-closed", Protocol::Tcp, 90, TARGET + 1)
        .port("udp-closed", Protocol::Udp, 90, TARGET + 1);
    for pod in ["near", "far"] {
        let closed = closed.clone().endpoint(world.pod(pod));
        world.program(&closed)?;
        let to = SocketAddr::new(closed.ip(family), 90);
        for protocol in Protocol::BOTH {
            let result = world.client().ask(protocol, to);
            let refused = result == Err(lb_tests::sandbox::Failure::Refused);
            ensure!(refused, "{pod} {protocol:?}: {result:?}");
        }
        let error = provoke(world.client().client(), to, None, 100)?;
        ensure!(error.quoted == to, "the error quotes {}", error.quoted);
    }
    Ok(())
}

/// An ICMP error as the socket reports it whose packet it quotes.
#[derive(Debug)]
pub struct IcmpError {
    pub kind: u8,
    pub code: u8,
    /// The MTU, where the error has one.
    pub info: u32,
    /// The destination of the quoted packet.
    pub quoted: SocketAddr,
    /// Who sent the error.
    pub from: Option<IpAddr>,
}

/// How often to try, ten times a second: a kernel on the way has only one ICMPv6 error a second for
/// each client, and other tests provoke them too.
const ATTEMPTS: usize = 50;

/// Sends datagrams with a hop limit until there is an ICMP error for one.
pub fn provoke(
    client: Client,
    to: SocketAddr,
    hops: Option<i32>,
    size: usize,
) -> Result<IcmpError> {
    let from = client.from(to);
    client.namespace().run_blocking(move || {
        let socket = UdpSocket::bind(from)?;
        if to.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
        match (hops, to) {
            (Some(hops), SocketAddr::V4(_)) => setsockopt(&socket, sockopt::Ipv4Ttl, &hops)?,
            (Some(hops), SocketAddr::V6(_)) => setsockopt(&socket, sockopt::Ipv6Ttl, &hops)?,
            (None, _) => (),
        }
        socket.connect(to)?;
        for _ in 0..ATTEMPTS {
            // Fails with what an earlier one came to.
            let _ = socket.send(&vec![b'.'; size]);
            thread::sleep(Duration::from_millis(100));
            if let Some(error) = read_error(&socket)? {
                return Ok(error);
            }
        }
        bail!("no ICMP error came back")
    })
}

fn read_error(socket: &UdpSocket) -> Result<Option<IcmpError>> {
    let mut packet = [0; 2048];
    let mut buffer = [IoSliceMut::new(&mut packet)];
    let mut control = nix::cmsg_space!([u8; 256]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let received =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer, Some(&mut control), flags);
    let message = match received {
        Ok(message) => message,
        Err(nix::Error::EAGAIN) => return Ok(None),
        Err(error) => return Err(error).context("read the error queue"),
    };
    let quoted = message
        .address
        .as_ref()
        .and_then(socket_address)
        .context("quotes nothing")?;
    for control in message.cmsgs()? {
        let (error, from) = match control {
            ControlMessageOwned::Ipv4RecvErr(error, from) => (
                error,
                from.map(|from| IpAddr::from(SockaddrIn::from(from).ip())),
            ),
            ControlMessageOwned::Ipv6RecvErr(error, from) => (
                error,
                from.map(|from| IpAddr::from(SockaddrIn6::from(from).ip())),
            ),
            _ => continue,
        };
        let (kind, code, info) = (error.ee_type, error.ee_code, error.ee_info);
        return Ok(Some(IcmpError {
            kind,
            code,
            info,
            quoted,
            from,
        }));
    }
    bail!("an error without particulars")
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|v6| SocketAddr::from((v6.ip(), v6.port())))
    })
}
