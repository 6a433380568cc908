//! What is looked up now and then rather than counted as it happens.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use tokio::sync::watch;

use crate::status::{Fill, Interface, Problem};

/// The state of the node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Packets by [`lb_common::reason::Reason`].
    pub packets: BTreeMap<String, u64>,
    pub tables: Vec<Fill>,
    pub interfaces: Vec<Interface>,
    pub problems: Vec<Problem>,
}

/// Writes the last snapshot.
#[derive(Debug)]
pub struct Snapshots(watch::Receiver<Snapshot>);

impl Snapshots {
    pub fn new(taken: watch::Receiver<Snapshot>) -> Self {
        Self(taken)
    }
}

impl Collector for Snapshots {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Snapshot {
            packets,
            tables,
            interfaces,
            problems,
        } = self.0.borrow().clone();
        let encoder = &mut encoder;
        let packets = packets
            .into_iter()
            .map(|(reason, count)| (reason, ConstCounter::new(count)));
        put(
            encoder,
            (
                "lb_packets",
                "Packets for which something out of the ordinary was done, by reason",
            ),
            ("reason", MetricType::Counter),
            packets,
        )?;
        let fills = |amount: fn(&Fill) -> usize| {
            let fill = move |fill: &Fill| (fill.table.clone(), ConstGauge::new(amount(fill)));
            tables.iter().map(fill)
        };
        put(
            encoder,
            (
                "lb_table_entries",
                "Entries of each table; those of FLOWS and HALF_OPEN are two per flow",
            ),
            ("table", MetricType::Gauge),
            fills(|fill| fill.used),
        )?;
        put(
            encoder,
            ("lb_table_size", "Entries that each table has room for"),
            ("table", MetricType::Gauge),
            fills(|fill| fill.size),
        )?;
        put(
            encoder,
            (
                "lb_interfaces",
                "Interfaces of the node, by what became of them",
            ),
            ("state", MetricType::Gauge),
            counted(interfaces.iter().map(|interface| interface.verdict.name())),
        )?;
        put(
            encoder,
            (
                "lb_problems",
                "Things that `lb status` calls problems, by the kind of object",
            ),
            ("kind", MetricType::Gauge),
            counted(problems.iter().map(|problem| &problem.kind[..])),
        )
    }
}

/// How often each value occurs.
fn counted<'a>(
    values: impl Iterator<Item = &'a str>,
) -> impl Iterator<Item = (String, ConstGauge<u64>)> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for value in values {
        *counts.entry(value.to_owned()).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|(value, count)| (value, ConstGauge::new(count)))
}

/// Writes one metric with one label.
fn put<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder,
    (name, help): (&str, &str),
    (label, kind): (&str, MetricType),
    values: impl Iterator<Item = (String, M)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (value, number) in values {
        number.encode(metric.encode_family(&[(label, value)])?)?;
    }
    Ok(())
}
