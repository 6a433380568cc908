//! For a person to read.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use super::{
    Change, Difference, Party,
    ports::{PortSpan, SPACES},
};

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            changes,
            only_old,
            only_new,
            without_address,
            ..
        } = self;
        for (allowed, title) in [(false, "Denied now"), (true, "Allowed now")] {
            let mut changes = changes.iter().filter(|it| it.allowed == allowed).peekable();
            if changes.peek().is_some() {
                writeln!(f, "{title}:")?;
            }
            changes.try_for_each(|change| self.write(f, change))?;
        }
        for (parties, title) in [
            (only_old, "Only in the old set"),
            (only_new, "Only in the new set"),
            (
                without_address,
                "Not compared, for want of an address of its own",
            ),
        ] {
            if !parties.is_empty() {
                writeln!(f, "{title}: {}", parties.join(", "))?;
            }
        }
        if self.is_empty() {
            writeln!(f, "every connection has the same verdict")?;
        }
        Ok(())
    }
}

impl Difference {
    fn write(&self, f: &mut fmt::Formatter<'_>, change: &Change) -> fmt::Result {
        let Change {
            sources,
            destinations,
            ports,
            family,
            old,
            new,
            ..
        } = change;
        let [sources, destinations] = [sources, destinations].map(|it| self.listed(it));
        write!(f, "  {sources} -> {destinations}: {}", listed_ports(ports))?;
        if let Some(family) = family {
            write!(f, ", by {family} alone")?;
        }
        f.write_char('\n')?;
        for (set, rules) in [("old", old), ("new", new)] {
            let rules = match rules.is_empty() {
                true => "no policy speaks of it".to_owned(),
                false => rules.join("; "),
            };
            writeln!(f, "    {set}: {rules}")?;
        }
        Ok(())
    }

    /// Parties, all pods of a namespace or a workload as one.
    fn listed(&self, parties: &[Party]) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for party in parties {
            for group in groups(party) {
                *counts.entry(group).or_default() += 1;
            }
        }
        let complete = |group: &&str| {
            let count = counts.get(group).copied().unwrap_or_default();
            count > 1 && self.counts.get(*group) == Some(&count)
        };
        let mut texts: Vec<String> = Vec::new();
        for party in parties {
            let group = groups(party).find(complete);
            let text = match (party, group) {
                (Party::Pod { name, .. }, Some(group)) if *group == name.namespace => {
                    format!("all {} pods of {group}", counts[group])
                }
                (_, Some(group)) => format!("{group} ({} pods)", counts[group]),
                (_, None) => party.to_string(),
            };
            if texts.last() != Some(&text) {
                texts.push(text);
            }
        }
        texts.join(", ")
    }
}

/// The namespace and the workload of a pod, by the names that both have in [`Difference::counts`].
fn groups(party: &Party) -> impl Iterator<Item = &str> {
    let groups = match party {
        Party::Pod { name, workload } => [Some(&*name.namespace), workload.as_deref()],
        Party::Node { .. } | Party::Network(_) => [None, None],
    };
    groups.into_iter().flatten()
}

fn listed_ports(ports: &[PortSpan]) -> String {
    let whole = |span: &&PortSpan| (span.first, span.last) == (0, u16::MAX);
    if ports.iter().filter(whole).count() == SPACES.len() {
        return "any port".to_owned();
    }
    let texts: Vec<_> = ports.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { name, .. } => name.fmt(f),
            Self::Node { name, address } => write!(f, "node {name} ({address})"),
            Self::Network(network) => network.fmt(f),
        }
    }
}
