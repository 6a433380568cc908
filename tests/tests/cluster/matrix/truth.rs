//! What the documentation says of all probes, and how what was seen differs from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::Result;
use lb_tests::{
    policy::{Cluster, Packet, may, may_by_service},
    sandbox::Protocol,
};
use serde_json::Value;

use super::{
    probes::{Probe, Seen, all},
    world::{Way, World, name, places},
};

/// How many differences of a case are named one by one.
const NAMED: usize = 12;

/// The probes that have to be answered. Policies see what is left of a Service: a pod and its port.
pub fn open(world: &World, objects: &[Value]) -> Result<BTreeSet<Probe>> {
    let cluster = Cluster::of(objects.iter().cloned())?;
    let mut told = BTreeMap::new();
    let mut open = all();
    open.retain(|probe| {
        let address = |place| world.pod(place).address(probe.family);
        let packet = Packet {
            source: address(probe.from),
            destination: address(probe.to),
            protocol: match probe.protocol {
                Protocol::Tcp => 6,
                Protocol::Udp => 17,
            },
            port: probe.port,
        };
        if probe.way == Way::Pod && probe.from == probe.to {
            return may(&cluster, &packet, false);
        }
        // Between two pods it makes no difference whether there is a Service.
        let ends = (packet.source, packet.destination);
        let key = (ends, packet.protocol, packet.port);
        let told = told.entry(key);
        *told.or_insert_with(|| may_by_service(&cluster, &packet, false))
    });
    Ok(open)
}

/// A table of all pairs and a list of some probes; `None` where all is as it should be.
pub fn difference(open: &BTreeSet<Probe>, seen: &BTreeMap<Probe, Seen>) -> Option<String> {
    let expected = |probe: &Probe| match open.contains(probe) {
        true => Seen::Open,
        false => Seen::Silent,
    };
    let wrong: Vec<_> = seen
        .iter()
        .filter(|(probe, seen)| **seen != expected(probe))
        .collect();
    if wrong.is_empty() {
        return None;
    }
    let mut text = table(open, seen);
    for (probe, seen) in wrong.iter().take(NAMED) {
        let _ = writeln!(
            text,
            "{probe}: expected {:?}, seen {seen:?}",
            expected(probe)
        );
    }
    let more = wrong.len().saturating_sub(NAMED);
    if more > 0 {
        let _ = writeln!(text, "and {more} more");
    }
    Some(text)
}

/// From each pod to each other, how many probes are answered; where it is not as expected, what was
/// expected first, then what was seen.
fn table(open: &BTreeSet<Probe>, seen: &BTreeMap<Probe, Seen>) -> String {
    let mut text = format!("{:>8}", "from\\to");
    for to in places() {
        let _ = write!(text, "{:>8}", name(to));
    }
    text.push('\n');
    for from in places() {
        let _ = write!(text, "{:>8}", name(from));
        for to in places() {
            let mut pair = seen
                .iter()
                .filter(|(probe, _)| (probe.from, probe.to) == (from, to));
            let right = pair.all(|(probe, seen)| {
                let answered = *seen == Seen::Open;
                answered == open.contains(probe) && (answered || *seen == Seen::Silent)
            });
            let count = |set: &mut dyn Iterator<Item = &Probe>| {
                set.filter(|probe| (probe.from, probe.to) == (from, to))
                    .count()
            };
            let expected = count(&mut open.iter());
            let answered = seen.iter().filter(|(_, seen)| **seen == Seen::Open);
            let answered = count(&mut answered.map(|(probe, _)| probe));
            let cell = match right {
                true => expected.to_string(),
                false => format!("{expected}/{answered}!"),
            };
            let _ = write!(text, "{cell:>8}");
        }
        text.push('\n');
    }
    text
}
