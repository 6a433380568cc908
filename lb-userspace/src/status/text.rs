//! The text form of status and services.

use std::fmt::{self, Write as _};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};

use super::{
    Agent, Fill, Frontend, FrontendType, Interface, Policy, Port, Problem, Service, Status, Verdict,
};

/// For a person to read.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            agent,
            tables_at,
            interfaces,
            services,
            problems,
            tables,
            counters,
        } = self;
        let mut summary = agent.lines();
        summary.push(("tables", tables_at.display().to_string()));
        let rows = summary
            .into_iter()
            .map(|(what, value)| vec![bold(what), Cell::new(value)]);
        write_table(f, &[], rows)?;
        section(
            f,
            "INTERFACE",
            &["INTERFACE", "INDEX", "STATE", "POD", "ADDRESSES"],
            interfaces,
            Interface::row,
        )?;
        writeln!(f)?;
        write_services(f, services)?;
        section(
            f,
            "PROBLEMS",
            &["PROBLEM WITH", "NAME", "WHAT"],
            problems,
            Problem::row,
        )?;
        section(
            f,
            "TABLES",
            &["TABLE", "USED", "SIZE", "FULL"],
            tables,
            Fill::row,
        )?;
        let counters: Vec<_> = counters.iter().collect();
        section(
            f,
            "PACKETS",
            &["PACKETS", "COUNT"],
            &counters,
            |(reason, count)| vec![Cell::new(reason), Cell::new(count)],
        )
    }
}

/// The services as a table, one line per port and address family.
pub fn write_services(f: &mut impl fmt::Write, services: &[Service]) -> fmt::Result {
    let head = [
        "SERVICE",
        "PORT",
        "FRONTENDS",
        "REVISION",
        "BACKENDS",
        "DRAINING",
    ];
    let rows = services.iter().flat_map(|service| {
        service.ports.iter().map(move |port| {
            vec![
                Cell::new(&service.service),
                Cell::new(port.name()),
                Cell::new(join(&port.frontends)),
                Cell::new(port.revision),
                port.backends(),
                Cell::new(port.draining.len()),
            ]
        })
    });
    write_table(f, &head, rows)
}

/// One service with all its backends.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            service,
            ports,
            versions,
        } = self;
        writeln!(f, "{service}")?;
        for (object, version) in versions {
            writeln!(f, "  reflects {object} at version {version}")?;
        }
        ports.iter().try_for_each(|port| write!(f, "{port}"))
    }
}

/// One port with all that its flows depend on.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![
            ("index", self.index.to_string()),
            ("revision", self.revision.to_string()),
            ("frontends", join(&self.frontends)),
        ];
        let [internal, external] = [self.internal_traffic_policy, self.external_traffic_policy];
        if [internal, external].contains(&Policy::Local) {
            lines.push((
                "policy",
                format!("internal {internal}, external {external}"),
            ));
        }
        if let Some(seconds) = self.affinity {
            lines.push((
                "affinity",
                format!("by client for {}", span(seconds.into())),
            ));
        }
        if !self.source_ranges.is_empty() {
            lines.push(("only from", join(&self.source_ranges)));
        }
        if self.uses_cluster() {
            lines.push(("backends", join(&self.backends)));
        }
        if self.keeps_local() {
            lines.push(("local", join(&self.local_backends)));
        }
        lines.push(("draining", join(&self.draining)));
        writeln!(f, "  {}", self.name())?;
        for (what, value) in lines {
            let value = if value.is_empty() { "none" } else { &value };
            writeln!(f, "    {what:<9} {value}")?;
        }
        Ok(())
    }
}

/// `10.96.0.10:80`, or with the type of any other frontend: `192.0.2.1:80 (LoadBalancer)`.
impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, kind } = self;
        match kind {
            FrontendType::ClusterIP => write!(f, "{address}"),
            FrontendType::NodePort | FrontendType::ExternalIP | FrontendType::LoadBalancer => {
                write!(f, "{address} ({kind})")
            }
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Agent {
    fn lines(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Running {
                pid,
                version,
                uptime_seconds,
                node,
                source,
                synced,
                awaited,
                cgroup_root,
            } => {
                let mut lines = vec![
                    (
                        "agent",
                        format!(
                            "running as pid {pid}, version {version}, up {}",
                            span(*uptime_seconds)
                        ),
                    ),
                    ("node", node.clone()),
                    ("source", source.clone()),
                    ("synced", list(synced)),
                ];
                if !awaited.is_empty() {
                    lines.push(("awaited", list(awaited)));
                }
                lines.extend(
                    cgroup_root
                        .iter()
                        .map(|root| ("cgroups", root.display().to_string())),
                );
                lines
            }
            Self::Away { .. } => {
                vec![(
                    "agent",
                    format!("{self}; the kernel works with what it left"),
                )]
            }
        }
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running { pid, .. } => write!(f, "running as pid {pid}"),
            Self::Away { since: Some(since) } => write!(f, "not running since {since}"),
            Self::Away { since: None } => f.write_str("not running"),
        }
    }
}

impl Interface {
    fn row(&self) -> Vec<Cell> {
        let Self {
            index,
            name,
            verdict,
        } = self;
        let (state, pod, addresses) = match verdict {
            Verdict::Taken {
                attach,
                slot,
                pod,
                addresses,
            } => (
                Cell::new(format!("taken: {attach}, slot {slot}")).fg(Color::Green),
                pod.clone().unwrap_or_default(),
                join(addresses),
            ),
            Verdict::Device {
                because,
                attach,
                xdp,
                mtu: _,
                sources,
            } => {
                let because = because.as_ref().map(|why| format!("; {why}"));
                let because = because.unwrap_or_default();
                (
                    Cell::new(format!("leads out: {attach}, XDP {xdp}{because}")).fg(Color::Green),
                    String::new(),
                    join(sources),
                )
            }
            Verdict::Failed { error } => (
                Cell::new(format!("failed: {error}")).fg(Color::Red),
                String::new(),
                String::new(),
            ),
            Verdict::Left { reason } => (
                Cell::new(format!("left: {reason}")),
                String::new(),
                String::new(),
            ),
        };
        vec![
            Cell::new(name),
            Cell::new(index),
            state,
            Cell::new(pod),
            Cell::new(addresses),
        ]
    }
}

impl Port {
    /// `http/TCP/IPv4`, or `TCP/IPv4`.
    fn name(&self) -> String {
        let Self {
            port,
            protocol,
            family,
            ..
        } = self;
        let separator = if port.is_empty() { "" } else { "/" };
        format!("{port}{separator}{protocol}/{family}")
    }

    /// Whether some flows must stay on this node.
    fn keeps_local(&self) -> bool {
        [self.internal_traffic_policy, self.external_traffic_policy].contains(&Policy::Local)
    }

    /// Whether some flows may go to any node.
    fn uses_cluster(&self) -> bool {
        let external = |frontend: &Frontend| frontend.kind != FrontendType::ClusterIP;
        self.internal_traffic_policy == Policy::Cluster || self.frontends.iter().any(external)
    }

    /// How many backends there are to choose from, or what becomes of flows where there are none.
    fn backends(&self) -> Cell {
        let mut lists = Vec::new();
        if self.uses_cluster() {
            lists.push(("", &self.backends, "refused"));
        }
        if self.keeps_local() {
            let without = if self.any_endpoints {
                "dropped"
            } else {
                "refused"
            };
            lists.push(("local ", &self.local_backends, without));
        }
        let texts = lists
            .iter()
            .map(|(which, backends, without)| match backends.len() {
                0 => format!("{which}0 ({without})"),
                count => format!("{which}{count}"),
            });
        let texts: Vec<_> = texts.collect();
        let empty = lists.iter().any(|(_, backends, _)| backends.is_empty());
        let color = if empty { Color::Yellow } else { Color::Reset };
        Cell::new(texts.join(", ")).fg(color)
    }
}

impl Problem {
    fn row(&self) -> Vec<Cell> {
        let Self {
            kind,
            object,
            problem,
        } = self;
        vec![
            Cell::new(kind),
            Cell::new(object),
            Cell::new(problem).fg(Color::Red),
        ]
    }
}

impl Fill {
    fn row(&self) -> Vec<Cell> {
        let Self { table, used, size } = self;
        let percent = used * 100 / (*size).max(1);
        let color = if percent < 80 {
            Color::Reset
        } else {
            Color::Red
        };
        let percent = Cell::new(format!("{percent}%")).fg(color);
        vec![Cell::new(table), Cell::new(used), Cell::new(size), percent]
    }
}

fn section<T>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    head: &[&str],
    items: &[T],
    row: impl Fn(&T) -> Vec<Cell>,
) -> fmt::Result {
    if items.is_empty() {
        return writeln!(f, "\n{title}: none");
    }
    writeln!(f)?;
    write_table(f, head, items.iter().map(row))
}

/// Columns two blanks apart, as wide as they need to be, with nothing behind the last one.
fn write_table(
    f: &mut impl fmt::Write,
    head: &[&str],
    rows: impl Iterator<Item = Vec<Cell>>,
) -> fmt::Result {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if !head.is_empty() {
        table.set_header(head.iter().map(bold));
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .try_for_each(|line| writeln!(f, "{}", line.trim_end()))
}

fn bold(text: impl ToString) -> Cell {
    Cell::new(text).add_attribute(Attribute::Bold)
}

fn join(items: &[impl ToString]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn list(kinds: &[String]) -> String {
    if kinds.is_empty() {
        "none".to_owned()
    } else {
        kinds.join(", ")
    }
}

/// `2d 3h`, `3h 25m`, `25m 10s` or `10s`.
fn span(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let first = units
        .iter()
        .position(|(_, length)| seconds >= *length)
        .unwrap_or(units.len() - 1);
    let mut text = String::new();
    let mut rest = seconds;
    for (unit, length) in units.iter().skip(first).take(2) {
        let blank = if text.is_empty() { "" } else { " " };
        let _ = write!(text, "{blank}{}{unit}", rest / length);
        rest %= length;
    }
    text
}
