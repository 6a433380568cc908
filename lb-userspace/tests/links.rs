//! Interfaces and addresses as netlink really reports them, in namespaces of the test's own.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    future::Future,
    net::IpAddr,
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use lb_userspace::{
    links::{self, Claims, Judgement, LinkChange, Links, Patterns, Peer, Reader, Reading},
    world::ObjectKey,
};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace, which lives as long as this does.
struct Namespace(File);

impl Namespace {
    fn new() -> Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?))
        });
        made.join().expect("the thread does not panic")
    }

    /// Runs a task on a thread and a runtime that are in this namespace.
    fn run<T: Send + 'static, F: Future<Output = Result<T>>>(
        &self,
        task: impl FnOnce(Handle) -> F + Send + 'static,
    ) -> Result<T> {
        let file = self.0.try_clone()?;
        let thread = thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                tokio::time::timeout(4 * PATIENCE, task(handle))
                    .await
                    .context("the test hangs")?
            })
        });
        thread.join().expect("the thread does not panic")
    }
}

async fn index(handle: &Handle, name: &str) -> Result<u32> {
    let links: Vec<_> = handle
        .link()
        .get()
        .match_name(name)
        .execute()
        .try_collect()
        .await?;
    Ok(links.first().context("the link")?.header.index)
}

async fn set_up(handle: &Handle, name: &str) -> Result<()> {
    let link = LinkMessageBuilder::<LinkUnspec>::new()
        .index(index(handle, name).await?)
        .up();
    Ok(handle.link().change(link.build()).execute().await?)
}

/// A veth of which one end is made in another namespace.
fn veth_into(name: &str, peer: &str, namespace: &Namespace) -> LinkMessage {
    let mut inside = LinkMessage::default();
    inside.attributes = vec![
        LinkAttribute::IfName(peer.to_owned()),
        LinkAttribute::NetNsFd(namespace.0.as_raw_fd()),
    ];
    LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name.to_owned())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
        .build()
}

/// Follows changes until `done` says so.
async fn follow(
    changes: &mut (impl Stream<Item = LinkChange> + Unpin),
    links: &mut Links,
    done: impl Fn(&Links) -> bool,
) -> Result<()> {
    let following = async {
        while !done(links) {
            links.apply(changes.next().await.expect("the stream never ends"));
        }
    };
    let names = |links: &Links| format!("{:?}", links.judged().collect::<Vec<_>>());
    tokio::time::timeout(PATIENCE, following)
        .await
        .map_err(|_| anyhow::anyhow!("{}", names(links)))
}

fn pods(links: &Links) -> Vec<String> {
    links.pods().map(|link| link.name.clone()).collect()
}

fn peer(links: &Links, name: &str) -> Option<Peer> {
    links.pods().find(|link| link.name == name)?.peer
}

#[test]
#[ignore = "needs root"]
fn a_veth_is_taken_however_it_was_made() -> Result<()> {
    let (node, pod) = (Namespace::new()?, Namespace::new()?);
    let (node_file, pod_file) = (
        Namespace(node.0.try_clone()?),
        Namespace(pod.0.try_clone()?),
    );
    node.run(async move |handle| {
        let mut changes = Box::pin(links::watch()?);
        let mut links = Links::new(Patterns::default(), Vec::new());
        handle
            .link()
            .add(veth_into("before", "eth0", &pod_file))
            .execute()
            .await?;
        follow(&mut changes, &mut links, Links::listed).await?;
        assert_eq!(pods(&links), ["before"]);

        // Both ends here, then one leaves.
        handle
            .link()
            .add(LinkVeth::new("moved", "eth1").build())
            .execute()
            .await?;
        follow(&mut changes, &mut links, |links| {
            links.judged().count() == 4
        })
        .await?;
        assert_eq!(pods(&links), ["before"], "an end whose peer is here");
        let inside = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index(&handle, "eth1").await?)
            .setns_by_fd(pod_file.0.as_raw_fd());
        handle.link().change(inside.build()).execute().await?;
        follow(&mut changes, &mut links, |links| pods(links).len() == 2).await?;

        // As CNI plugins do it: made in the pod, with the other end here.
        pod_file.run(async move |handle| {
            Ok(handle
                .link()
                .add(veth_into("eth2", "from-pod", &node_file))
                .execute()
                .await?)
        })?;
        follow(&mut changes, &mut links, |links| pods(links).len() == 3).await?;
        assert_eq!(pods(&links), ["before", "moved", "from-pod"]);

        pod_file.run(async move |handle| {
            let index = index(&handle, "eth1").await?;
            Ok(handle.link().del(index).execute().await?)
        })?;
        follow(&mut changes, &mut links, |links| pods(links).len() == 2).await?;
        assert_eq!(pods(&links), ["before", "from-pod"]);
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn an_address_inside_a_pod_is_read_from_outside() -> Result<()> {
    let (node, pod) = (Namespace::new()?, Namespace::new()?);
    node.run(async move |handle| {
        let mut changes = Box::pin(links::watch()?);
        let mut links = Links::new(Patterns::default(), Vec::new());
        let reader = Reader::new()?;
        handle
            .link()
            .add(veth_into("veth0", "eth0", &pod))
            .execute()
            .await?;
        follow(&mut changes, &mut links, |links| !pods(links).is_empty()).await?;
        let inside = peer(&links, "veth0").context("the peer")?;
        assert_eq!(
            reader.read(inside).await?.addresses,
            BTreeSet::new(),
            "known before its address"
        );

        let ips: BTreeSet<IpAddr> = ["10.1.2.3".parse()?, "fd00::3".parse()?].into();
        let (given, mac) = (ips.clone(), [2, 0, 0, 0xab, 0xcd, 7]);
        pod.run(async move |handle| {
            let index = index(&handle, "eth0").await?;
            let link = LinkMessageBuilder::<LinkUnspec>::new()
                .index(index)
                .address(mac.into())
                .up();
            handle.link().change(link.build()).execute().await?;
            for ip in given {
                handle.address().add(index, ip, 24).execute().await?;
            }
            Ok(())
        })?;
        set_up(&handle, "veth0").await?;
        let up = |links: &Links| links.pods().any(|link| link.up);
        follow(&mut changes, &mut links, up).await?;
        let reading = reader.read(inside).await?;
        assert_eq!(
            reading,
            Reading {
                mac,
                addresses: ips.clone()
            }
        );

        let index = links.pods().next().context("the link")?.index;
        let mut claims = Claims::default();
        claims.read(index, Some(reading));
        claims.confirm([(ObjectKey::new("default", "pod"), ips.clone())].into());
        assert_eq!(
            claims.holders().keys().copied().collect::<BTreeSet<_>>(),
            ips
        );

        let nowhere = Peer {
            namespace: 4711,
            ..inside
        };
        assert!(
            reader.read(nowhere).await.is_err(),
            "not our own namespace instead"
        );
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_bridge_port_stays_when_it_leaves_its_bridge() -> Result<()> {
    let (node, pod) = (Namespace::new()?, Namespace::new()?);
    node.run(async move |handle| {
        let mut changes = Box::pin(links::watch()?);
        let mut links = Links::new(
            Patterns {
                pods: vec!["port*".parse()?],
                ..Patterns::default()
            },
            Vec::new(),
        );
        handle
            .link()
            .add(LinkBridge::new("bridge").build())
            .execute()
            .await?;
        handle
            .link()
            .add(LinkVeth::new("port0", "local").build())
            .execute()
            .await?;
        handle
            .link()
            .add(veth_into("port1", "eth0", &pod))
            .execute()
            .await?;
        let bridge = index(&handle, "bridge").await?;
        let port = |index| LinkMessageBuilder::<LinkUnspec>::new().index(index);
        for name in ["port0", "port1"] {
            let link = port(index(&handle, name).await?).controller(bridge).build();
            handle.link().change(link).execute().await?;
        }
        follow(&mut changes, &mut links, |links| {
            pods(links) == ["port0", "port1"]
        })
        .await?;
        for name in ["port0", "port1"] {
            let link = port(index(&handle, name).await?).nocontroller().build();
            handle.link().change(link).execute().await?;
        }
        follow(&mut changes, &mut links, |links| pods(links) == ["port1"]).await?;
        let left = links
            .judged()
            .find_map(|(link, judgement)| match judgement {
                Judgement::Left(left, _) if link.name == "port0" => Some(left.to_string()),
                _ => None,
            });
        assert_eq!(left.context("a reason")?, "peer is in this namespace");
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn an_uplink_that_is_a_veth_is_left_once_it_carries_the_node_address() -> Result<()> {
    let (node, outside) = (Namespace::new()?, Namespace::new()?);
    node.run(async move |handle| {
        let mut changes = Box::pin(links::watch()?);
        let mut links = Links::new(Patterns::default(), Vec::new());
        let address: IpAddr = "192.0.2.7".parse()?;
        links.set_node_addresses(&[address]);
        handle
            .link()
            .add(veth_into("eth0", "node", &outside))
            .execute()
            .await?;
        follow(&mut changes, &mut links, |links| pods(links) == ["eth0"]).await?;
        let index = index(&handle, "eth0").await?;
        handle.address().add(index, address, 24).execute().await?;
        follow(&mut changes, &mut links, |links| pods(links).is_empty()).await
    })
}

#[test]
#[ignore = "needs root"]
fn lost_events_are_made_up_for() -> Result<()> {
    let (node, pod) = (Namespace::new()?, Namespace::new()?);
    let (flooded, pod_file) = (
        Namespace(node.0.try_clone()?),
        Namespace(pod.0.try_clone()?),
    );
    node.run(async move |handle| {
        let mut changes = Box::pin(links::watch()?);
        let mut links = Links::new(Patterns::default(), Vec::new());
        handle
            .link()
            .add(LinkBridge::new("leaves").build())
            .execute()
            .await?;
        follow(&mut changes, &mut links, |links| {
            links.judged().count() == 2 && links.listed()
        })
        .await?;

        // This thread reads nothing while another floods the namespace.
        flooded.run(async move |handle| {
            for round in 0..150 {
                handle
                    .link()
                    .add(LinkBridge::new(&format!("flood{round}")).build())
                    .execute()
                    .await?;
            }
            let leaves = index(&handle, "leaves").await?;
            handle.link().del(leaves).execute().await?;
            Ok(handle
                .link()
                .add(veth_into("last", "eth0", &pod_file))
                .execute()
                .await?)
        })?;
        assert!(dropped()? > 0, "the flood was too small to prove anything");
        follow(&mut changes, &mut links, |links| {
            links.judged().count() == 152
        })
        .await?;
        assert_eq!(pods(&links), ["last"]);
        assert!(links.judged().all(|(link, _)| link.name != "leaves"));
        Ok(())
    })
}

/// Messages that netlink sockets of this thread's namespace lost.
fn dropped() -> Result<u64> {
    let sockets = fs::read_to_string("/proc/thread-self/net/netlink")?;
    let column = |line: &str| {
        line.split_whitespace()
            .nth(8)
            .and_then(|n| n.parse::<u64>().ok())
    };
    Ok(sockets.lines().skip(1).filter_map(column).sum())
}
