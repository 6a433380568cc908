//! What is looked up now and then rather than counted as it happens.

use std::{collections::BTreeMap, fmt};

use lb_common::{address::to_ip, reason::Reason};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use tokio::sync::watch;

use crate::{
    plan::ServiceTables,
    status::{Fill, Interface, Problem},
    tallies::{Happening, Tallies},
    world::Family,
};

/// The state of the node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Packets by [`lb_common::reason::Reason`].
    pub packets: BTreeMap<String, u64>,
    pub tables: Vec<Fill>,
    pub interfaces: Vec<Interface>,
    pub problems: Vec<Problem>,
    /// As [`without_local`] says.
    pub without_local: BTreeMap<(Family, &'static str), u64>,
    pub tallies: Tallies,
    /// Events at pods' interfaces that nobody was told of.
    pub lost_events: u64,
    /// Pods whose policies do not fit.
    pub closed_pods: usize,
}

/// How many services of each family a policy (`internal` or `external`) leaves without endpoints on
/// this node, although the cluster has some.
pub fn without_local(tables: &ServiceTables) -> BTreeMap<(Family, &'static str), u64> {
    let mut counts = BTreeMap::new();
    let headers = tables.services.values();
    let headers = headers.filter_map(|extent| tables.rows.get(&extent.first));
    for header in headers.filter(|header| header.any != 0 && header.local == 0) {
        let family = Family::of(to_ip(&header.address));
        let policies = [
            ("internal", header.internal_local),
            ("external", header.external_local),
        ];
        for (policy, _) in policies.into_iter().filter(|(_, local)| *local != 0) {
            *counts.entry((family, policy)).or_default() += 1;
        }
    }
    counts
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
            without_local,
            tallies,
            lost_events,
            closed_pods,
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
        )?;
        let mut metric = encoder.encode_descriptor(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Service ports with the traffic policy Local and endpoints, none of which is on this node",
            None,
            MetricType::Gauge,
        )?;
        for ((family, policy), ports) in without_local {
            let labels = [
                ("ip_family", family.to_string()),
                ("traffic_policy", policy.to_owned()),
            ];
            ConstGauge::new(ports).encode(metric.encode_family(&labels)?)?;
        }
        put_tallies(encoder, &tallies)?;
        let lost = encoder.encode_descriptor(
            "lb_lost_events",
            "What happened at pods' interfaces that `lb drops` was not told of, since it was too much",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(lost_events).encode(lost)?;
        let closed = encoder.encode_descriptor(
            "lb_closed_pods",
            "Pods of this node that nothing may reach or leave, since their policies do not fit the tables",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(closed_pods as u64).encode(closed)
    }
}

/// What happened at the interfaces of pods, all of it, and what audited policies would change.
fn put_tallies(encoder: &mut DescriptorEncoder, tallies: &Tallies) -> fmt::Result {
    let mut all: BTreeMap<[(&str, String); 4], u64> = BTreeMap::new();
    let mut audited = all.clone();
    for (happening, count) in tallies.iter() {
        let Happening {
            pod,
            direction,
            dropped,
            audited_differs,
        } = happening;
        let labels = [
            ("namespace", pod.namespace.clone()),
            ("pod", pod.name.clone()),
            ("direction", direction.to_string()),
            ("reason", dropped.map_or("allowed", Reason::name).to_owned()),
        ];
        if *audited_differs {
            *audited.entry(labels.clone()).or_default() += count;
        }
        *all.entry(labels).or_default() += count;
    }
    for (name, help, counts) in [
        (
            "lb_pod_packets",
            "Packets dropped at the interfaces of this node's pods, by reason, and the first ones of \
             flows that policies let through, as `allowed`",
            all,
        ),
        (
            "lb_pod_audited_packets",
            "Those of lb_pod_packets that audited policies, were they in force, would decide otherwise",
            audited,
        ),
    ] {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in counts {
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use lb_common::{
        address::from_ip,
        service::{Backend, Extent, FrontendKey},
    };

    use super::*;

    #[test]
    fn a_policy_that_leaves_nothing_here_is_counted() {
        let header = |address: &str, change: &dyn Fn(&mut Backend)| {
            let address = from_ip(address.parse().expect("an address"));
            let mut header = Backend::header(&FrontendKey::new(address, 80, 6), 1);
            header.any = 1;
            change(&mut header);
            header
        };
        let headers = [
            header("10.96.0.1", &|header| header.internal_local = 1),
            header("10.96.0.2", &|header| {
                (header.internal_local, header.external_local) = (1, 1);
            }),
            header("fd00::1", &|header| header.external_local = 1),
            // Some are here.
            header("10.96.0.3", &|header| {
                (header.internal_local, header.count, header.local) = (1, 1, 1);
            }),
            // There are none anywhere.
            header("10.96.0.4", &|header| {
                (header.internal_local, header.any) = (1, 0);
            }),
            header("10.96.0.5", &|_| {}),
        ];
        let mut tables = ServiceTables::default();
        for (first, header) in (1..).zip(headers) {
            let revision = 1;
            tables.services.insert(first, Extent { first, revision });
            tables.rows.insert(first, header);
        }
        let counts: Vec<_> = without_local(&tables).into_iter().collect();
        assert_eq!(
            counts,
            [
                ((Family::IPv4, "external"), 1),
                ((Family::IPv4, "internal"), 2),
                ((Family::IPv6, "external"), 1),
            ]
        );
    }
}
