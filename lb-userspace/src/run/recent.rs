//! What was dropped lately.

use std::{collections::VecDeque, net::IpAddr};

use jiff::Timestamp;
use lb_common::{
    address::to_ip,
    event::{ALLOWED, Event},
    flow::Direction,
    reason::Reason,
};

use super::{pods::Pods, policies::Policies};
use crate::{
    drops::{Drop, End},
    world::{ObjectKey, Protocol, World},
};

/// How many are kept.
const KEPT: usize = 1_000;
/// How many of the latest a new one is compared with.
const COMPARED: usize = 100;

/// The latest drops; those that are alike are one.
#[derive(Debug, Default)]
pub struct Recent {
    drops: VecDeque<Drop>,
}

impl Recent {
    /// Takes events in.
    pub fn note(&mut self, events: &[Event], world: &World, pods: &Pods, policies: &Policies) {
        for event in events.iter().filter(|event| event.outcome != ALLOWED) {
            let mut drop = unnamed(event);
            drop.pod = pods
                .slots_and_pods()
                .find_map(|(slot, pod)| (slot == event.slot).then_some(pod).flatten())
                .cloned();
            drop.rule = policies.rule_name(event.rule);
            let mut latest = self.drops.iter_mut().rev().take(COMPARED);
            if let Some(like) = latest.find(|like| are_alike(like, &drop)) {
                like.count += 1;
                like.time = drop.time;
                continue;
            }
            for end in [&mut drop.source, &mut drop.destination] {
                end.pod = pod_at(end.address, world);
            }
            if self.drops.len() == KEPT {
                self.drops.pop_front();
            }
            self.drops.push_back(drop);
        }
    }

    /// All of them, the latest last.
    pub fn all(&self) -> Vec<Drop> {
        let mut drops: Vec<_> = self.drops.iter().cloned().collect();
        drops.sort_by_key(|drop| drop.time);
        drops
    }
}

/// The drop of an event, without the names that the tables do not know.
fn unnamed(event: &Event) -> Drop {
    let end = |address, port| End {
        address: to_ip(address),
        port,
        pod: None,
    };
    let tuple = &event.tuple;
    let ingress = event.direction == Direction::ToPod as u8;
    let mut protocols = Protocol::ALL.into_iter();
    let protocol = protocols.find(|protocol| protocol.number() == event.protocol);
    Drop {
        time: Timestamp::now(),
        pod: None,
        direction: if ingress { "ingress" } else { "egress" }.to_owned(),
        source: end(&tuple.source, tuple.source_port),
        destination: end(&tuple.destination, tuple.destination_port),
        protocol: protocol.map_or_else(|| event.protocol.to_string(), |it| it.to_string()),
        reason: Reason::of(event.outcome.into()).name().to_owned(),
        rule: None,
        count: 1,
    }
}

/// Whether two drops are of one kind: the client's port does not matter.
fn are_alike(one: &Drop, other: &Drop) -> bool {
    one.pod == other.pod
        && one.direction == other.direction
        && one.source.address == other.source.address
        && one.destination.address == other.destination.address
        && one.destination.port == other.destination.port
        && one.protocol == other.protocol
        && one.reason == other.reason
        && one.rule == other.rule
}

fn pod_at(address: IpAddr, world: &World) -> Option<ObjectKey> {
    let mut pods = world.pods();
    pods.find_map(|(key, pod)| pod.ips.contains(&address).then(|| key.clone()))
}

#[cfg(test)]
mod tests {
    use lb_common::address::map_v4;

    use super::*;

    fn drop_of(client_port: u16, port: u16) -> Drop {
        let mut event = Event::NONE;
        event.outcome = Reason::IngressDenied as u16;
        event.direction = Direction::ToPod as u8;
        event.protocol = 6;
        event.tuple.source = map_v4([10, 0, 0, 1]);
        event.tuple.destination = map_v4([10, 0, 0, 2]);
        event.tuple.source_port = client_port;
        event.tuple.destination_port = port;
        unnamed(&event)
    }

    #[test]
    fn an_event_says_who_was_dropped_where_and_why() {
        let drop = drop_of(40_000, 80);
        assert_eq!(drop.source.to_string(), "10.0.0.1:40000");
        assert_eq!(drop.destination.to_string(), "10.0.0.2:80");
        assert_eq!(
            [&*drop.direction, &*drop.protocol, &*drop.reason],
            ["ingress", "TCP", "ingress-denied"]
        );
    }

    #[test]
    fn drops_differ_in_all_but_the_clients_port() {
        assert!(are_alike(&drop_of(1, 80), &drop_of(2, 80)));
        assert!(!are_alike(&drop_of(1, 80), &drop_of(1, 81)));
        let mut other = drop_of(1, 80);
        other.rule = Some("NetworkPolicy default/web ingress rule 0".to_owned());
        assert!(!are_alike(&drop_of(1, 80), &other));
    }
}
