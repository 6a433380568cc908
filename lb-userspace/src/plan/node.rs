//! The rows of this node's addresses, and the networks of services.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::service::{Cidr, FrontendKey, Target};

use super::{Allocations, Draft, Full, Item, Op, record};
use crate::compile::DesiredNode;

impl Allocations {
    /// Plans for the node, after the services: an address that a service has stays the service's.
    pub(super) fn plan_node(&mut self, desired: &DesiredNode, draft: &mut Draft) {
        let DesiredNode { addresses, cidrs } = desired;
        let wanted: BTreeMap<_, _> = addresses
            .iter()
            .map(|(address, ports)| {
                let target = Target::NodeAddress { ports: *ports };
                (FrontendKey::whole_address(*address), target)
            })
            .collect();
        let before = std::mem::take(&mut self.addresses);
        let gone = before.into_keys().filter(|key| !wanted.contains_key(key));
        draft.left.extend(gone);
        let mut full = false;
        for (key, target) in wanted {
            if !self.owners.contains_key(&key) {
                if !self.room_for([&key].into_iter()) {
                    full = true;
                    continue;
                }
                self.write_frontend(key, target, &mut draft.puts);
            }
            self.addresses.insert(key, target);
        }
        if full {
            draft.no_room(Item::NodeAddresses, Full::Frontends);
        }
        self.plan_cidrs(cidrs, draft);
    }

    /// A place that is freed is not used again by the same plan: some program may read it.
    fn plan_cidrs(&mut self, wanted: &BTreeSet<Cidr>, draft: &mut Draft) {
        let before = self.tables.cidrs.clone();
        let mut kept = BTreeSet::new();
        for (&place, cidr) in &before {
            if !wanted.contains(cidr) || !kept.insert(*cidr) {
                let cidr = Cidr::FREE;
                record(
                    &mut self.tables,
                    &mut draft.cidrs.1,
                    Op::Cidr { place, cidr },
                );
            }
        }
        let mut free = (0..self.sizes.cidrs).filter(|place| !before.contains_key(place));
        for &cidr in wanted.difference(&kept) {
            let Some(place) = free.next() else {
                draft.no_room(Item::ServiceCidrs, Full::Cidrs);
                return;
            };
            record(
                &mut self.tables,
                &mut draft.cidrs.0,
                Op::Cidr { place, cidr },
            );
        }
    }
}
