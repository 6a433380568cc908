//! How long it took until the tables said what happened in the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use crate::world::{Family, ObjectKey, World};

/// The moments of changes that have been counted, as the EndpointSlices say them
/// (`endpointschangetracker.go` of kube-proxy).
#[derive(Debug)]
pub struct Triggers {
    /// What happened before says nothing about this agent.
    started: Timestamp,
    /// By service and slice.
    counted: BTreeMap<ObjectKey, BTreeMap<ObjectKey, Timestamp>>,
}

impl Triggers {
    pub fn new(started: Timestamp) -> Self {
        Self {
            started,
            counted: BTreeMap::new(),
        }
    }

    /// How long ago each change happened that the tables say now that these services are written;
    /// each counts once.
    pub fn take(
        &mut self,
        world: &World,
        written: &BTreeSet<ObjectKey>,
        now: Timestamp,
    ) -> Vec<(Family, Duration)> {
        let mut ages = Vec::new();
        for service in written {
            let before = self.counted.remove(service).unwrap_or_default();
            let mut counted = BTreeMap::new();
            for (key, slice) in world.slices_of(service) {
                let Some(moment) = slice.trigger.filter(|moment| *moment > self.started) else {
                    continue;
                };
                if before.get(key) != Some(&moment) {
                    // A clock that runs behind that of the control plane is no negative time.
                    let age = now.duration_since(moment).try_into().unwrap_or_default();
                    ages.push((slice.family, age));
                }
                counted.insert(key.clone(), moment);
            }
            if !counted.is_empty() {
                self.counted.insert(service.clone(), counted);
            }
        }
        ages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Change, EndpointSlice, Event, Row};

    fn second(second: i64) -> Timestamp {
        Timestamp::new(second, 0).expect("a time")
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    /// A world in which these slices of `web` changed at these moments.
    fn world(slices: &[(&str, Family, i64)]) -> World {
        let mut world = World::default();
        for &(name, family, moment) in slices {
            let row = Row {
                value: Some(EndpointSlice {
                    service: key("web"),
                    family,
                    endpoints: Vec::new(),
                    ports: Vec::new(),
                    trigger: Some(second(moment)),
                }),
                version: String::new(),
                problems: Vec::new(),
            };
            world.apply(Change::EndpointSlice(Event::Apply(key(name), row)));
        }
        world
    }

    #[test]
    fn each_change_since_the_start_counts_once() {
        let mut triggers = Triggers::new(second(100));
        let web = BTreeSet::from([key("web")]);
        let v4 = Family::IPv4;
        let ages = |triggers: &mut Triggers, slices: &[_], now| {
            let ages = triggers.take(&world(slices), &web, second(now));
            let ages = ages.iter().map(|(family, age)| (*family, age.as_secs()));
            ages.collect::<Vec<_>>()
        };
        let early = [("a", v4, 99), ("b", v4, 100)];
        assert_eq!(ages(&mut triggers, &early, 105), []);
        let later = [("a", v4, 101), ("b", v4, 100), ("c", Family::IPv6, 104)];
        assert_eq!(
            ages(&mut triggers, &later, 105),
            [(v4, 4), (Family::IPv6, 1)]
        );
        assert_eq!(ages(&mut triggers, &later, 200), [], "counted");
        let again = [("a", v4, 300), ("c", Family::IPv6, 104)];
        assert_eq!(ages(&mut triggers, &again, 250), [(v4, 0)], "clocks differ");
        assert_eq!(ages(&mut triggers, &[], 250), [], "deleted");
        assert!(triggers.counted.is_empty());
    }
}
