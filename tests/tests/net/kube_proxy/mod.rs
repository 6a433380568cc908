//! What kube-proxy leaves on a node goes, and nothing else does.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::sandbox::{Node, get, until};
use libtest_mimic::Trial;

use crate::{
    surface::{answer_as_kube_proxy, local},
    trial,
    world::{Shape, World, service},
};

/// Rules that kube-proxy writes, and rules of others that look like them.
const LEFT_NFT: &str = include_str!("left.nft");
const OTHERS_NFT: &str = include_str!("others.nft");
const LEFT_RULES: &str = include_str!("left.rules");
const OTHERS_RULES: &str = include_str!("others.rules");

/// iptables' programs, by back end and family, and where a backend is in that family.
const IPTABLES: [(&str, &str); 4] = [
    ("iptables-nft", "10.244.1.11:8080"),
    ("ip6tables-nft", "[fd00:244:1::11]:8080"),
    ("iptables-legacy", "10.244.1.11:8080"),
    ("ip6tables-legacy", "[fd00:244:1::11]:8080"),
];

pub fn trials() -> Vec<Trial> {
    vec![
        trial("what kube-proxy left in nftables goes alone", nftables),
        trial("what kube-proxy left in iptables goes alone", iptables),
        trial("what kube-proxy left in ipset goes unless used", ipsets),
        trial("chains that others use stay", shared_chains),
        trial("a running agent takes over from kube-proxy", take_over),
        trial("a live kube-proxy is told and not robbed", live),
    ]
}

/// Runs a program on a node, with a text to read.
fn run(node: &Node, program: &str, arguments: &[&str], text: &str) -> Result<Output> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = node
        .namespace()
        .start(command)
        .with_context(|| format!("run {program}"))?;
    let mut stdin = process.stdin.take().context("a pipe")?;
    stdin.write_all(text.as_bytes())?;
    drop(stdin);
    Ok(process.wait_with_output()?)
}

/// The same, which must succeed: what it prints.
fn says(node: &Node, program: &str, arguments: &[&str], text: &str) -> Result<String> {
    let output = run(node, program, arguments, text)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

fn nft(node: &Node, rules: &str) -> Result<()> {
    says(node, "nft", &["-f", "-"], rules).map(drop)
}

/// All that nftables holds, but for what packets count.
fn nftables_of(node: &Node) -> Result<String> {
    says(node, "nft", &["--stateless", "list", "ruleset"], "")
}

fn restore(node: &Node, (program, target): (&str, &str), rules: &str) -> Result<()> {
    let program = format!("{program}-restore");
    let rules = rules.replace("TARGET", target);
    says(node, &program, &["--noflush"], &rules).map(drop)
}

/// All rules of a back end, but for the time and what packets count.
fn rules_of(node: &Node, program: &str) -> Result<String> {
    let saved = says(node, &format!("{program}-save"), &[], "")?;
    let lines = saved
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" [").next().unwrap_or_default());
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

/// Cleans up: what is said of it.
fn clean(node: &Node) -> Result<String> {
    let output = node.lb(&["cleanup", "--kube-proxy"])?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "{said}");
    Ok(said)
}

fn nothing_is_left(node: &Node) -> Result<()> {
    let said = clean(node)?;
    ensure!(said == "there was nothing to remove\n", "{said}");
    Ok(())
}

fn nftables() -> Result<()> {
    let world = World::without_agent(Shape::PLAIN)?;
    let node = &world.sandbox.nodes()[0];
    nothing_is_left(node)?;
    nft(node, OTHERS_NFT)?;
    let before = nftables_of(node)?;
    nft(node, LEFT_NFT)?;
    ensure!(nftables_of(node)? != before, "the test leaves nothing");
    let said = clean(node)?;
    for table in ["ip kube-proxy", "ip6 kube-proxy"] {
        let line = format!("removed the nftables table {table}\n");
        ensure!(said.contains(&line), "{said}");
    }
    ensure!(nftables_of(node)? == before, "{}", nftables_of(node)?);
    nothing_is_left(node)
}

fn iptables() -> Result<()> {
    let world = World::without_agent(Shape::PLAIN)?;
    let node = &world.sandbox.nodes()[0];
    let all = || -> Result<Vec<String>> {
        let all = IPTABLES.map(|(program, _)| rules_of(node, program));
        all.into_iter().collect()
    };
    for backend in IPTABLES {
        restore(node, backend, OTHERS_RULES)?;
    }
    let before = all()?;
    for backend in IPTABLES {
        restore(node, backend, LEFT_RULES)?;
    }
    for (rules, (program, _)) in all()?.iter().zip(IPTABLES) {
        ensure!(rules.contains("-j KUBE-SERVICES\n"), "{program}: {rules}");
    }
    let said = clean(node)?;
    for (program, _) in IPTABLES {
        for gone in [
            format!("removed 10 chains and 3 jumps of {program}'s table nat\n"),
            format!("removed 6 chains and 6 jumps of {program}'s table filter\n"),
            format!("removed 1 chains and 0 jumps of {program}'s table mangle\n"),
        ] {
            ensure!(said.contains(&gone), "{gone}{said}");
        }
    }
    ensure!(all()? == before, "{:#?}\n{before:#?}", all()?);
    nothing_is_left(node)
}

fn ipsets() -> Result<()> {
    let world = World::without_agent(Shape::PLAIN)?;
    let node = &world.sandbox.nodes()[0];
    let ipset = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        says(node, "ipset", &arguments, "")
    };
    ipset("create KUBE-CLUSTER-IPS-OF-OTHERS hash:ip")?;
    ipset("create KUBE-LOOP-BACK hash:ip,port,ip")?;
    nft(node, "table ip others {}")?;
    let using =
        "*filter\n-A INPUT -m set --match-set KUBE-LOOP-BACK src,dst,dst -j ACCEPT\nCOMMIT\n";
    says(node, "iptables-legacy-restore", &["--noflush"], using)?;
    let before = ipset("list")?;
    ipset("create KUBE-CLUSTER-IP hash:ip,port")?;
    ipset("add KUBE-CLUSTER-IP 10.96.0.10,tcp:80")?;
    ipset("create KUBE-6-CLUSTER-IP hash:ip,port family inet6")?;
    ipset("create KUBE-NODE-PORT-TCP bitmap:port range 0-65535")?;
    let said = clean(node)?;
    for line in [
        "removed the set KUBE-CLUSTER-IP\n",
        "removed the set KUBE-6-CLUSTER-IP\n",
        "removed the set KUBE-NODE-PORT-TCP\n",
        "kept the set KUBE-LOOP-BACK, which others use\n",
    ] {
        ensure!(said.contains(line), "{said}");
    }
    ensure!(ipset("list")? == before, "{}", ipset("list")?);
    Ok(())
}

fn shared_chains() -> Result<()> {
    let world = World::without_agent(Shape::PLAIN)?;
    let node = &world.sandbox.nodes()[0];
    let backend = IPTABLES[0];
    restore(node, backend, OTHERS_RULES)?;
    restore(node, backend, LEFT_RULES)?;
    let sharing = "*nat\n-A CNI-HOSTPORT-DNAT -s 10.244.1.11/32 -j KUBE-MARK-MASQ\nCOMMIT\n";
    restore(node, backend, sharing)?;
    let said = clean(node)?;
    for chain in ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"] {
        ensure!(
            said.contains(&format!("kept the chain {chain} of")),
            "{said}"
        );
    }
    let rules = rules_of(node, backend.0)?;
    for rule in [
        "-A CNI-HOSTPORT-DNAT -s 10.244.1.11/32 -j KUBE-MARK-MASQ\n",
        "-j KUBE-POSTROUTING\n",
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n",
    ] {
        ensure!(rules.contains(rule), "{rules}");
    }
    ensure!(!rules.contains("KUBE-SERVICES -"), "{rules}");
    Ok(())
}

fn take_over() -> Result<()> {
    let mut world = World::without_agent(Shape::PLAIN)?;
    let web = service("web", 10).endpoint(world.pod("near"));
    world.manifests.write_service(&web)?;
    let node = &world.sandbox.nodes()[0];
    let before = nftables_of(node)?;
    nft(node, LEFT_NFT)?;
    world.start_agents()?;
    world.wait_for(&web)?;
    let node = &world.sandbox.nodes()[0];
    node.wait_for("what kube-proxy left is a problem", |status| {
        let problems = &status.problems;
        problems.iter().any(|found| {
            found.kind == "kube-proxy" && found.problem.contains("the nftables table ip kube-proxy")
        })
    })?;

    world.agents.clear();
    world.start_agents_with(&["--cleanup-kube-proxy"])?;
    let node = &world.sandbox.nodes()[0];
    until("what kube-proxy left is gone", || {
        Ok((nftables_of(node)? == before).then_some(()))
    })?;
    node.wait_for("nothing is a problem any more", |status| {
        status.problems.is_empty()
    })?;
    world.wait_for(&web)
}

fn live() -> Result<()> {
    let mut world = World::without_agent(Shape::PLAIN)?;
    let node = &world.sandbox.nodes()[0];
    nft(node, LEFT_NFT)?;
    let before = nftables_of(node)?;
    let proxy = answer_as_kube_proxy(node, "nftables")?;
    ensure!(get(node.namespace(), local(10249), "/proxyMode")?.body() == "nftables");
    let output = node.lb(&["cleanup", "--kube-proxy"])?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("in nftables mode: stop it first"), "{said}");

    world.start_agents_with(&["--cleanup-kube-proxy"])?;
    let node = &world.sandbox.nodes()[0];
    node.wait_for("the live kube-proxy is a problem", |status| {
        let problems = &status.problems;
        problems.iter().any(|found| found.object == "beside us")
    })?;
    ensure!(nftables_of(node)? == before, "it was robbed");
    proxy.abort();
    Ok(())
}
