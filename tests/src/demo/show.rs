//! What the demo prints.

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use lb_common::LAYOUT_VERSION;
use lb_userspace::{drops::Drop, world::ObjectKey};

use super::{
    Options,
    cluster::{Cluster, Offer, POLICY},
    tally::{Outcome, Tally},
};
use crate::{
    evenness::is_even,
    sandbox::{Failure, Family, Protocol, Topology, program},
};

/// Connections to each address.
const CONNECTIONS: u32 = 400;
/// How long a refusal may take. An ICMP error that arrives while the client's kernel still sends
/// the SYN is overlooked, and the answer to its repetition after a second counts.
const PROMPT: Duration = Duration::from_secs(2);
/// A pod meets itself in one connection of four; it fails to in so many once in 10^37.
const UNTIL_HAIRPIN: u32 = 300;

/// What was not as it should be.
#[derive(Default)]
pub struct Findings(Vec<String>);

impl Findings {
    fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.0.push(otherwise());
        }
    }

    pub fn none(&self) -> bool {
        self.0.is_empty()
    }

    /// Says whether everything was as it should be.
    pub fn print(&self) {
        println!();
        if self.none() {
            println!("All as it should be.");
        }
        for finding in &self.0 {
            println!("NOT AS IT SHOULD BE: {finding}");
        }
    }
}

/// The nodes and pods.
pub fn cluster(cluster: &Cluster, options: &Options) {
    let nodes = match options.nodes {
        1 => "one node".to_owned(),
        n => format!("{n} nodes"),
    };
    let links = match options.topology {
        Topology::PointToPoint => "each pod on a link of its own",
        Topology::Bridge => "the pods of a node on one bridge",
        Topology::Vxlan => "each pod on a link of its own, and VXLAN from node to node",
        Topology::Tunnel => "each pod on a link of its own, and tunnels from node to node",
    };
    heading(&format!(
        "A cluster of {nodes} made of network namespaces, {links}"
    ));
    let mut table = table(["POD", "NODE", "ADDRESSES", "NETWORK NAMESPACE"]);
    for pod in cluster.sandbox.pods() {
        let [v4, v6] = pod.addresses().each();
        table.add_row([
            pod.name(),
            pod.node(),
            &format!("{v4}  {v6}"),
            pod.namespace().name(),
        ]);
    }
    println!("{table}");
}

/// The Services, and where they are described.
pub fn services(cluster: &Cluster) {
    heading("The services, as `lb run --manifests` has read them");
    let mut table = table(["SERVICE", "CLUSTERIPS", "PORT", "PODS BEHIND IT"]);
    for Offer {
        service,
        protocol,
        port,
        pods,
    } in [&cluster.web, &cluster.dns, &cluster.retired]
    {
        let ips = Family::BOTH
            .map(|family| service.ip(family).to_string())
            .join("  ");
        let pods = if pods.is_empty() {
            "none".to_owned()
        } else {
            pods.join(" ")
        };
        table.add_row([
            service.key(),
            ips,
            format!("{port}/{}", protocol.name()),
            pods,
        ]);
    }
    println!("{table}");
}

/// Where many connections went.
pub fn shares(cluster: &Cluster, findings: &mut Findings) {
    heading(&format!(
        "Where {CONNECTIONS} connections from client-0 to each ClusterIP went"
    ));
    let client = cluster.sandbox.pod("client-0");
    let mut table = table(["TO", "ANSWERED BY", "ON", "CONNECTIONS", "SHARE"]);
    right_align(&mut table, 3..=4);
    let mut elsewhere = 0;
    let mut disguised = 0;
    for offer in [&cluster.web, &cluster.dns] {
        for family in Family::BOTH {
            let to = offer.frontend(family);
            let tally = Tally::take(client, offer.protocol, to, CONNECTIONS);
            for (i, (outcome, count)) in tally.outcomes.iter().enumerate() {
                let dialled = match i {
                    0 => format!("{} {to}/{}", offer.service.key(), offer.protocol.name()),
                    _ => String::new(),
                };
                let on = match outcome {
                    Outcome::Answered(pod) => cluster.sandbox.pod(pod).node(),
                    Outcome::Failed(_) => "",
                };
                let share = percent(f64::from(*count) / f64::from(CONNECTIONS));
                table.add_row([
                    dialled,
                    outcome.to_string(),
                    on.into(),
                    count.to_string(),
                    share,
                ]);
            }
            elsewhere += tally.elsewhere;
            disguised += tally.disguised;
            let servers = offer.pods.iter().cloned().map(Outcome::Answered);
            let expected = tally.outcomes.keys().cloned().eq(servers);
            findings.check(expected, || {
                format!(
                    "not all pods behind {}, or others, answered at {to}",
                    offer.service.key()
                )
            });
            findings.check(is_even(tally.outcomes.values().copied()), || {
                format!("connections to {to} are spread unevenly")
            });
        }
    }
    println!("{table}");
    fact(
        elsewhere == 0,
        "every answer came from the ClusterIP that was dialled",
    );
    fact(
        disguised == 0,
        "every server saw the client's own address and port",
    );
    findings.check(elsewhere == 0, || {
        format!("{elsewhere} answers came from elsewhere")
    });
    findings.check(disguised == 0, || {
        format!("{disguised} servers saw another address")
    });
}

/// The hairpin and the refusals.
pub fn special_cases(cluster: &Cluster, findings: &mut Findings) {
    heading("Special cases");
    for family in Family::BOTH {
        hairpin(cluster, family, findings);
    }
    for family in Family::BOTH {
        let retired = cluster.retired.frontend(family);
        refusal(
            cluster,
            Protocol::Tcp,
            retired,
            "a service without endpoints",
            findings,
        );
        let undefined = SocketAddr::new(cluster.web.service.ip(family), 81);
        refusal(
            cluster,
            Protocol::Tcp,
            undefined,
            "a port that the service does not have",
            findings,
        );
        refusal(
            cluster,
            Protocol::Udp,
            undefined,
            "the same by UDP",
            findings,
        );
    }
}

fn hairpin(cluster: &Cluster, family: Family, findings: &mut Findings) {
    let pod = cluster.sandbox.pod("web-0");
    let to = cluster.web.frontend(family);
    let met = (0..UNTIL_HAIRPIN)
        .filter_map(|_| pod.ask(Protocol::Tcp, to).ok())
        .find(|reply| reply.server == pod.name());
    let text = match &met {
        Some(reply) => format!(
            "web-0 reaches itself through {to}: it hears {} and sees {} as the client",
            reply.from, reply.seen
        ),
        None => format!("web-0 does not reach itself through {to}"),
    };
    fact(met.is_some(), &text);
    findings.check(met.is_some(), || text);
}

fn refusal(
    cluster: &Cluster,
    protocol: Protocol,
    to: SocketAddr,
    what: &str,
    findings: &mut Findings,
) {
    let client = cluster.sandbox.pod("client-0");
    let started = Instant::now();
    let result = client.ask(protocol, to);
    let elapsed = started.elapsed();
    let outcome = Outcome::from(result.clone());
    let text = format!("{to}, {what}: {outcome} after {} ms", milliseconds(elapsed));
    let refused = result == Err(Failure::Refused) && elapsed < PROMPT;
    fact(refused, &text);
    findings.check(refused, || text);
}

/// A connection that a policy does not allow, and who is told why.
pub fn a_policy(cluster: &Cluster, findings: &mut Findings) {
    heading("A policy");
    let (asker, dns) = (
        cluster.sandbox.pod("web-0"),
        cluster.dns.frontend(Family::V4),
    );
    let outcome = Outcome::from(asker.ask(Protocol::Udp, dns));
    let silent = outcome == Outcome::from(Err(Failure::TimedOut));
    let text = format!(
        "web-0 asks {} {dns}/UDP: {outcome}",
        cluster.dns.service.key()
    );
    fact(silent, &text);
    findings.check(silent, || text);

    let named = |pod: &Option<ObjectKey>| pod.as_ref().is_some_and(|pod| pod.name == "web-0");
    let drops = cluster.sandbox.nodes().iter().flat_map(|node| {
        let output = node.lb(&["drops", "-o", "json"]).ok();
        let drops = output.and_then(|it| serde_json::from_slice::<Vec<Drop>>(&it.stdout).ok());
        drops.unwrap_or_default()
    });
    let policy = format!("default/{POLICY}");
    let told = drops.into_iter().find_map(|drop| {
        let rule = drop.rule.filter(|_| named(&drop.source.pod))?;
        let (source, destination) = (drop.source, drop.destination);
        Some((
            rule.contains(&policy),
            format!("{source} to {destination}: {rule}"),
        ))
    });
    let (known, text) = told.unwrap_or((false, "nothing of it".to_owned()));
    let text = format!("`lb drops` says: {text}");
    fact(known, &text);
    findings.check(known, || text);
}

/// Takes a pod out of a manifest and puts it back.
pub fn an_edit(cluster: &Cluster, findings: &mut Findings) -> Result<()> {
    heading("An edit");
    let Some(leaver) = cluster.web.pods.last() else {
        return Ok(());
    };
    let (client, to) = (
        cluster.sandbox.pod("client-0"),
        cluster.web.frontend(Family::V4),
    );
    cluster.save_web(&cluster.web.service.clone().without(leaver))?;
    let leaver = Outcome::Answered(leaver.clone());
    let saved = Instant::now();
    let mut last_seen = Duration::ZERO;
    while saved.elapsed() < Duration::from_secs(4) {
        if Outcome::from(client.ask(Protocol::Tcp, to)) == leaver {
            last_seen = saved.elapsed();
        }
    }
    let tally = Tally::take(client, Protocol::Tcp, to, CONNECTIONS);
    let left = !tally.outcomes.contains_key(&leaver);
    let text = format!(
        "{leaver} taken out of web.yaml: its last new connection came {} ms after the file was \
         saved; {}",
        milliseconds(last_seen),
        in_words(&tally.outcomes),
    );
    fact(left, &text);
    findings.check(left, || text);

    cluster.save_web(&cluster.web.service)?;
    let saved = Instant::now();
    let mut back = None;
    while back.is_none() && saved.elapsed() < Duration::from_secs(4) {
        let answered = Outcome::from(client.ask(Protocol::Tcp, to)) == leaver;
        back = answered.then(|| saved.elapsed());
    }
    let text = match back {
        Some(after) => format!(
            "{leaver} put back: its first new connection came {} ms after",
            milliseconds(after)
        ),
        None => format!("{leaver} put back: it gets no new connection"),
    };
    fact(back.is_some(), &text);
    findings.check(back.is_some(), || text);
    Ok(())
}

/// What to try while the sandbox is up.
pub fn commands(cluster: &Cluster) -> Result<()> {
    let lb = program()?;
    let lb = lb.display();
    heading("To look inside, in another terminal, as root");
    for node in cluster.sandbox.nodes() {
        let (socket, bpffs) = (node.socket(), node.bpffs());
        let places = format!("--socket {} --bpffs {}", socket.display(), bpffs.display());
        let tables = bpffs.join("lb").join(format!("v{LAYOUT_VERSION}"));
        if cluster.sandbox.nodes().len() > 1 {
            println!("  # {}", node.name());
        }
        for command in ["status", "service list", "service get web", "drops", "dump"] {
            println!("  {lb} {command} {places}");
        }
        for map in ["FRONTENDS", "FLOWS"] {
            println!("  bpftool map dump pinned {}", tables.join(map).display());
        }
    }
    let client = cluster.sandbox.pod("client-0");
    let to = cluster.web.frontend(Family::V4);
    println!(
        "  ip netns exec {} bash -c 'exec 3<>/dev/tcp/{}/{}; echo who >&3; head -1 <&3'",
        client.namespace().name(),
        to.ip(),
        to.port(),
    );
    heading("To see connections move, edit and save");
    println!(
        "  {}",
        cluster.manifests.directory().join("web.yaml").display()
    );
    Ok(())
}

/// The shares of outcomes, in one line.
pub fn in_words(counts: &BTreeMap<Outcome, u32>) -> String {
    let total = f64::from(counts.values().sum::<u32>());
    let shares: Vec<String> = counts
        .iter()
        .map(|(outcome, count)| format!("{outcome} {}", percent(f64::from(*count) / total)))
        .collect();
    shares.join(", ")
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn milliseconds(time: Duration) -> impl Display {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

fn fact(holds: bool, text: &str) {
    println!("  {} {text}", if holds { "✓" } else { "✗" });
}

fn heading(text: &str) {
    println!("\n{text}");
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn right_align(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
