//! When the changes happened that wait to be written.

use std::time::Duration;

use jiff::Timestamp;

use crate::world::Family;

/// The moments of changes that wait to be written, as the EndpointSlices say them
/// (`endpointschangetracker.go` of kube-proxy).
#[derive(Debug)]
pub struct Triggers {
    /// What happened before says nothing about this agent.
    started: Timestamp,
    pending: Vec<(Family, Timestamp)>,
}

impl Triggers {
    pub fn new(started: Timestamp) -> Self {
        Self {
            started,
            pending: Vec::new(),
        }
    }

    /// A slice of this family changed because of something that happened then.
    pub fn push(&mut self, family: Family, moment: Timestamp) {
        if moment > self.started {
            self.pending.push((family, moment));
        }
    }

    /// How long ago each of the changes happened that are now written.
    pub fn take(&mut self, now: Timestamp) -> Vec<(Family, Duration)> {
        let ages = self.pending.drain(..).map(|(family, moment)| {
            // A clock that runs behind that of the control plane is no negative time.
            let age = now.duration_since(moment).try_into().unwrap_or_default();
            (family, age)
        });
        ages.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::new(second, 0).expect("a time")
    }

    #[test]
    fn what_happened_before_the_start_does_not_count() {
        let mut triggers = Triggers::new(second(100));
        for moment in [99, 100, 101, 105] {
            triggers.push(Family::IPv4, second(moment));
        }
        triggers.push(Family::IPv6, second(107));
        let ages = triggers.take(second(106));
        let expected = [(Family::IPv4, 5), (Family::IPv4, 1), (Family::IPv6, 0)]
            .map(|(family, age)| (family, Duration::from_secs(age)));
        assert_eq!(ages, expected);
        assert_eq!(triggers.take(second(200)), [], "each counts once");
    }
}
