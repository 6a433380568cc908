//! What is counted at pods' interfaces, by pod. Pure.

use std::{collections::BTreeMap, fmt};

use lb_common::{
    event::{ALLOWED, TallyKey},
    flow::Direction,
    reason::Reason,
};
use serde::{Deserialize, Serialize};

use crate::world::{ObjectKey, policy};

/// What policies said of new flows at one pod's interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hits {
    pub ingress_allowed: u64,
    pub ingress_denied: u64,
    pub egress_allowed: u64,
    pub egress_denied: u64,
}

/// For a person to read.
impl fmt::Display for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            ingress_allowed,
            ingress_denied,
            egress_allowed,
            egress_denied,
        } = self;
        write!(
            f,
            "{ingress_allowed} new flows allowed and {ingress_denied} denied on ingress, \
             {egress_allowed} and {egress_denied} on egress"
        )
    }
}

/// Something that happened at a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Happening {
    pub pod: ObjectKey,
    pub direction: policy::Direction,
    /// `None`: policy let a new flow through.
    pub dropped: Option<Reason>,
    /// Audited policies, were they in force, would decide otherwise.
    pub audited_differs: bool,
}

/// How often what happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tallies(BTreeMap<Happening, u64>);

impl Tallies {
    /// The counts of slots that are known to be pods'.
    pub fn of<'a>(
        counts: impl IntoIterator<Item = (TallyKey, u64)>,
        pods: impl IntoIterator<Item = (u32, Option<&'a ObjectKey>)>,
    ) -> Self {
        let pods = pods
            .into_iter()
            .filter_map(|(slot, pod)| Some((slot, pod?)));
        let pods: BTreeMap<u32, &ObjectKey> = pods.collect();
        let mut tallies = Self::default();
        for (key, count) in counts {
            let Some(pod) = pods.get(&key.slot) else {
                continue;
            };
            let happening = Happening {
                pod: (*pod).clone(),
                direction: match key.direction == Direction::ToPod as u8 {
                    true => policy::Direction::Ingress,
                    false => policy::Direction::Egress,
                },
                dropped: (key.outcome != ALLOWED).then(|| Reason::of(key.outcome.into())),
                audited_differs: key.audited_differs == 1,
            };
            *tallies.0.entry(happening).or_default() += count;
        }
        tallies
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Happening, u64)> {
        self.0.iter().map(|(happening, count)| (happening, *count))
    }

    /// What policies said at the interfaces of a pod.
    pub fn hits(&self, pod: &ObjectKey) -> Hits {
        let mut hits = Hits::default();
        for (happening, count) in self.iter().filter(|(happening, _)| happening.pod == *pod) {
            let counted = match (happening.direction, happening.dropped) {
                (policy::Direction::Ingress, None) => &mut hits.ingress_allowed,
                (policy::Direction::Egress, None) => &mut hits.egress_allowed,
                (_, Some(Reason::IngressDenied)) => &mut hits.ingress_denied,
                (_, Some(Reason::EgressDenied)) => &mut hits.egress_denied,
                (_, Some(_)) => continue,
            };
            *counted += count;
        }
        hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_those_of_one_pod_by_its_slots() {
        let key = |slot, outcome, direction: Direction| TallyKey {
            slot,
            outcome,
            direction: direction as u8,
            audited_differs: 0,
        };
        let [to, from] = [Direction::ToPod, Direction::FromPod];
        let counts = [
            (key(1, ALLOWED, to), 2),
            (key(2, ALLOWED, to), 3),
            (key(1, ALLOWED, from), 5),
            (key(1, Reason::IngressDenied as u16, to), 7),
            (key(1, Reason::EgressDenied as u16, from), 11),
            (key(1, Reason::ForgedSource as u16, from), 13),
            (key(3, ALLOWED, to), 17),
            (key(4, ALLOWED, to), 19),
        ];
        let [web, cart] = ["web", "cart"].map(|name| ObjectKey::new("shop", name));
        let pods = [
            (1, Some(&web)),
            (2, Some(&web)),
            (3, Some(&cart)),
            (4, None),
        ];
        let tallies = Tallies::of(counts, pods);
        assert_eq!(
            tallies.hits(&web),
            Hits {
                ingress_allowed: 5,
                ingress_denied: 7,
                egress_allowed: 5,
                egress_denied: 11,
            }
        );
        assert_eq!(tallies.hits(&cart).ingress_allowed, 17);
        assert_eq!(tallies.iter().count(), 6, "nobody's slot has none");
    }
}
