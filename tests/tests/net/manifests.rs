//! Manifests with something wrong in them, and a command line with something wrong in it.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lb_tests::sandbox::{Family, Protocol};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    trial,
    world::{PORT, Shape, World, frontend, service},
};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "what is wrong in manifests is named, and the rest works",
            problems_are_named,
        ),
        trial("commands exit as they say", exit_codes),
        trial("bpftool shows named fields", bpftool),
    ]
}

fn problems_are_named() -> Result<()> {
    let world = World::serving(Shape::PLAIN, &[])?;
    let web = service("web", 10).endpoint(world.pod("near"));
    let cut = service("cut", 11).endpoint(world.pod("near"));
    world.program(&web)?;
    world.program(&cut)?;
    let node = &world.sandbox.nodes()[0];
    let problems = || -> Result<String> {
        let problems = node.status()?.problems;
        let lines = problems
            .iter()
            .map(|p| format!("{} {}: {}\n", p.kind, p.object, p.problem));
        Ok(lines.collect())
    };
    ensure!(
        problems()?.is_empty(),
        "before anything is wrong: {}",
        problems()?
    );

    let whole = lb_tests::sandbox::text(&cut.objects())?;
    let bad = service("bad", 12).endpoint(world.pod("near")).objects();
    let bad = lb_tests::sandbox::text(&bad)?.replace("10.244.", "10.999.");
    for (file, text) in [
        ("garbage.yaml", "\u{7}{{{{ not: [yaml"),
        (&*cut.file(), &whole[..whole.len() * 2 / 3]),
        ("bad.yaml", &bad),
        (
            "unknown.yaml",
            "apiVersion: example.com/v1\nkind: Gadget\nmetadata:\n  name: odd\n",
        ),
    ] {
        world.manifests.write_text(file, text)?;
    }
    for named in ["garbage.yaml", "cut.yaml", "10.999.", "Gadget"] {
        node.wait_for(&format!("{named} is named"), |_| {
            problems().is_ok_and(|problems| problems.contains(named))
        })?;
    }
    // What parsed once stays, and what is new is served.
    let late = service("late", 13).endpoint(world.pod("far"));
    world.program(&late)?;
    for family in Family::BOTH {
        for service in [&web, &cut, &late] {
            let reply = world.client().ask(Protocol::Tcp, frontend(service, family));
            reply.with_context(|| service.key())?;
        }
    }

    world.manifests.write_service(&cut)?;
    for file in ["garbage.yaml", "bad.yaml", "unknown.yaml"] {
        world.manifests.remove(file)?;
    }
    node.wait_for("nothing is wrong any more", |status| {
        status.problems.is_empty()
    })?;
    Ok(())
}

fn exit_codes() -> Result<()> {
    let mut world = World::without_agent(Shape::PLAIN)?;
    let node = &world.sandbox.nodes()[0];
    let code = |arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let output = node.lb(arguments)?;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    };
    ensure!(
        code(&["status"])?.0 == Some(3),
        "no agent and nothing left: {:?}",
        code(&["status"])?
    );
    let (none, message) = code(&["run", "--node-name", "node-1"])?;
    ensure!(none == Some(2), "no source: {none:?}, {message}");
    for source in ["--manifests", "--kubeconfig", "service account"] {
        ensure!(message.contains(source), "{source} is not named: {message}");
    }
    let directory = world.manifests.directory().display().to_string();
    let (stranger, message) = code(&["run", "--node-name", "node-7", "--manifests", &directory])?;
    ensure!(stranger == Some(1) || stranger == Some(2), "{stranger:?}");
    ensure!(
        message.contains("node-7") && message.contains("node-1"),
        "{message}"
    );

    let web = service("web", 10).endpoint(world.pod("near"));
    world.manifests.write_service(&web)?;
    world.start_agents()?;
    world.wait_for(&web)?;
    let node = &world.sandbox.nodes()[0];
    let code = |arguments: &[&str]| anyhow::Ok(node.lb(arguments)?.status.code());
    for both_ways in [
        &["get", "default/web"][..],
        &["get", "-n", "default", "web"],
    ] {
        let arguments = [&["service"], both_ways].concat();
        ensure!(code(&arguments)? == Some(0), "{arguments:?}");
    }
    ensure!(code(&["service", "get", "nothing"])? == Some(1));
    ensure!(code(&["service", "fetch"])? == Some(2));
    for json in [
        &["status"][..],
        &["service", "list"],
        &["service", "get", "web"],
        &["dump"],
    ] {
        let output = node.lb(&[json, &["-o", "json"]].concat())?;
        serde_json::from_slice::<Value>(&output.stdout).with_context(|| format!("{json:?}"))?;
    }
    for agent in &mut world.agents {
        ensure!(
            agent.end(Signal::SIGTERM)?.success(),
            "SIGTERM is not a failure: {}",
            agent.log()
        );
    }
    Ok(())
}

fn bpftool() -> Result<()> {
    let world = World::serving(Shape::PLAIN, &[])?;
    let web = service("web", 10).endpoint(world.pod("near"));
    world.program(&web)?;
    let map = world.sandbox.nodes()[0].bpffs().join("lb");
    let map = map
        .join(format!("v{}", lb_common::LAYOUT_VERSION))
        .join("FRONTENDS");
    let output = Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned"])
        .arg(&map)
        .output()?;
    let entries: Vec<Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let port = Value::from(PORT);
    let named = entries
        .iter()
        .any(|entry| entry["formatted"]["key"]["port"] == port);
    ensure!(named, "no entry says port {PORT}: {entries:?}");
    Ok(())
}
