//! Where objects come from: an apiserver, or a directory of manifests.
//!
//! Both tell what they know as one endless stream of changes, in the order of a list followed by a
//! watch. What ails them is part of it, and logged.

pub mod annotations;
pub mod apiserver;
pub mod manifests;

use futures::{Stream, StreamExt};

use crate::world::{Change, Severity, SourceTrouble};

/// What a source says, but for the external IPs of Services: kube-proxy without its feature gate
/// `AllowServiceExternalIPs` (KEP-5707).
pub fn without_external_ips(changes: impl Stream<Item = Change>) -> impl Stream<Item = Change> {
    changes.map(|mut change| {
        if let Change::Service(event) = &mut change
            && let Some(service) = event.row_mut().and_then(|row| row.value.as_mut())
        {
            service.external_ips.clear();
        }
        change
    })
}

fn logged(changes: impl Stream<Item = Change>) -> impl Stream<Item = Change> {
    changes.inspect(|change| {
        let Change::Trouble(SourceTrouble { subject, troubles }) = change else {
            return;
        };
        for trouble in troubles {
            match trouble.severity {
                Severity::Error => tracing::warn!(%subject, "{}", trouble.text),
                Severity::Ignored => tracing::info!(%subject, "{}", trouble.text),
            }
        }
        if troubles.is_empty() {
            tracing::info!(%subject, "well again");
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures::{FutureExt, stream};

    use super::*;
    use crate::world::{Event, ObjectKey, Row, Service};

    #[test]
    fn without_their_gate_external_ips_are_not_served_and_vips_are() {
        let address: IpAddr = "203.0.113.1".parse().expect("an address");
        let events = |external_ips: &[IpAddr]| {
            let service = Service {
                external_ips: external_ips.to_vec(),
                load_balancer_ips: vec!["203.0.113.2".parse().expect("an address")],
                ..Service::default()
            };
            let row = Row {
                value: Some(service),
                version: "1".into(),
                problems: Vec::new(),
            };
            let key = ObjectKey::new("default", "web");
            let events = [
                Event::InitApply(key.clone(), row.clone()),
                Event::Apply(key, row),
            ];
            events.map(Change::Service)
        };
        let changes = without_external_ips(stream::iter(events(&[address])));
        let changes: Vec<_> = changes.collect().now_or_never().expect("at once");
        assert_eq!(changes, events(&[]));
    }
}
