//! `lb cleanup` removes every trace.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{MapInfo, loaded_maps},
    programs::{SchedClassifier, TcAttachType},
};
use futures::TryStreamExt as _;
use lb_tests::sandbox::{Failure, Family, Node, Protocol, until};
use libtest_mimic::Trial;
use netlink_packet_route::tc::TcAttribute;
use nix::sys::signal::Signal;

use crate::{
    trial,
    world::{Shape, World, frontend, service},
};

pub fn trials() -> Vec<Trial> {
    ["tcx", "clsact"]
        .map(|attach| {
            let shape = Shape {
                attach,
                ..Shape::PLAIN
            };
            trial(format!("cleanup removes every trace {attach}"), move || {
                every_trace(shape)
            })
        })
        .into()
}

fn every_trace(shape: Shape) -> Result<()> {
    let mut world = World::serving(shape, &[])?;
    let web = service("web", 10).endpoint(world.pod("near"));
    let none = service("none", 11);
    world.program(&web)?;
    world.program(&none)?;
    let interfaces = || {
        let pods = world.sandbox.pods().map(|pod| pod.interface().to_owned());
        pods.chain(["eth0".to_owned()])
    };
    let maps = pinned_maps(&world.sandbox.nodes()[0])?;
    let before = attached(&world.sandbox.nodes()[0], interfaces().collect())?;
    ensure!(
        !maps.is_empty() && !before.is_empty(),
        "nothing is there to remove"
    );
    for agent in &mut world.agents {
        agent.end(Signal::SIGTERM)?;
    }

    let node = &world.sandbox.nodes()[0];
    let output = node.lb(&["cleanup"])?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let pins = node.bpffs().join("lb");
    ensure!(!pins.exists(), "{} is still there", pins.display());
    // The kernel lets go of links in its own time.
    until("nothing is attached", || {
        Ok(attached(node, interfaces().collect())?
            .is_empty()
            .then_some(()))
    })?;
    // A program that is still loaded would hold them.
    until("the kernel has freed all maps", || {
        let loaded: BTreeSet<u32> = loaded_maps().flatten().map(|map| map.id()).collect();
        Ok(loaded.is_disjoint(&maps).then_some(()))
    })?;
    for family in Family::BOTH {
        for service in [&web, &none] {
            let result = world.client().ask(Protocol::Udp, frontend(service, family));
            ensure!(
                result == Err(Failure::TimedOut),
                "{}: {result:?}",
                service.key()
            );
        }
    }
    ensure!(
        node.lb(&["status"])?.status.code() == Some(3),
        "`lb status` still finds something"
    );
    let again = node.lb(&["cleanup"])?;
    ensure!(
        again.status.success(),
        "nothing to clean up is no failure: {again:?}"
    );

    world.start_agents()?;
    world.wait_for(&web)?;
    let reply = world
        .client()
        .ask(Protocol::Tcp, frontend(&web, Family::V4))?;
    ensure!(reply.server == "near", "{reply:?}");
    Ok(())
}

/// The ids of the maps that a node's agent has pinned.
fn pinned_maps(node: &Node) -> Result<BTreeSet<u32>> {
    let directory = node
        .bpffs()
        .join("lb")
        .join(format!("v{}", lb_common::LAYOUT_VERSION));
    let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let maps = entries.map(|entry| entry.map(|entry| entry.path()));
    let is_map = |path: &std::path::PathBuf| {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name == name.to_uppercase())
    };
    maps.filter(|path| path.as_ref().map_or(true, is_map))
        .map(|path| Ok(MapInfo::from_pin(path?)?.id()))
        .collect()
}

/// What hangs on the interfaces of a node, in words: tcx programs and clsact qdiscs.
fn attached(node: &Node, interfaces: Vec<String>) -> Result<Vec<String>> {
    let mut found = node.namespace().run_blocking(move || {
        let mut found = Vec::new();
        for interface in interfaces {
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                let (_, programs) = SchedClassifier::query_tcx(&interface, hook)?;
                found.extend(
                    programs
                        .iter()
                        .map(|program| format!("{interface}: {}", program.id())),
                );
            }
        }
        anyhow::Ok(found)
    })?;
    found.extend(node.namespace().run(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let qdiscs: Vec<_> = handle.qdisc().get().execute().try_collect().await?;
        connection.abort();
        let clsact = qdiscs.into_iter().filter(|qdisc| {
            qdisc
                .attributes
                .contains(&TcAttribute::Kind("clsact".to_owned()))
        });
        anyhow::Ok(
            clsact
                .map(|qdisc| format!("clsact on {}", qdisc.header.index))
                .collect::<Vec<_>>(),
        )
    })?);
    Ok(found)
}
