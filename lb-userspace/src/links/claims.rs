//! Which interface an address belongs to.
//!
//! What stands on the inside of a pod's interface is a claim: a pod may give itself any address.
//! Three rules decide. An address is believed only if a Pod object of this node has it. The first
//! interface to hold an address keeps it for as long as it claims it. An interface that holds an
//! address of one pod leads to that pod, and is never believed to hold another's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::world::ObjectKey;

/// What the inside of a pod's interface carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    pub mac: [u8; 6],
    pub addresses: BTreeSet<IpAddr>,
}

/// The interface that an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Index of the host-side interface.
    pub interface: u32,
    /// MAC address of the inside.
    pub mac: [u8; 6],
}

/// The claims of all pod interfaces, and who holds what.
#[derive(Debug, Default)]
pub struct Claims {
    /// None until the Pod objects are known; until then nobody gains or loses an address by them.
    pods: Option<BTreeMap<ObjectKey, BTreeSet<IpAddr>>>,
    readings: BTreeMap<u32, Reading>,
    holders: BTreeMap<IpAddr, Holder>,
    /// The pod that an interface leads to.
    bound: BTreeMap<u32, ObjectKey>,
}

impl Claims {
    /// Starts from the holders that an earlier run left in the kernel: each stays until no Pod
    /// object has the address, or its interface is gone or does not claim it.
    pub fn restore(holders: BTreeMap<IpAddr, Holder>) -> Self {
        Self {
            holders,
            ..Self::default()
        }
    }

    /// Who holds which address.
    pub fn holders(&self) -> &BTreeMap<IpAddr, Holder> {
        &self.holders
    }

    /// The pod that an interface has been found to lead to.
    pub fn pod(&self, interface: u32) -> Option<&ObjectKey> {
        self.bound.get(&interface)
    }

    /// Whether some pod's address has no holder, so that reading the interfaces again may find one.
    pub fn wanting(&self) -> bool {
        let mut addresses = self.pods.iter().flat_map(BTreeMap::values).flatten();
        addresses.any(|address| !self.holders.contains_key(address))
    }

    /// Sets the addresses of the Pod objects of this node.
    pub fn confirm(&mut self, pods: BTreeMap<ObjectKey, BTreeSet<IpAddr>>) {
        self.bound.retain(|_, pod| pods.contains_key(pod));
        self.pods = Some(pods);
        self.settle();
    }

    /// Sets what the inside of an interface carries; one that could not be read claims nothing.
    pub fn read(&mut self, interface: u32, reading: Option<Reading>) {
        match reading {
            Some(Reading { mac, addresses }) => {
                self.holders.retain(|address, holder| {
                    let own = holder.interface == interface;
                    if own {
                        holder.mac = mac;
                    }
                    !own || addresses.contains(address)
                });
                self.readings.insert(interface, Reading { mac, addresses });
            }
            None => {
                self.readings.remove(&interface);
                self.holders
                    .retain(|_, holder| holder.interface != interface);
            }
        }
        self.settle();
    }

    /// Forgets every interface that is not among those that lead to pods.
    pub fn retain(&mut self, taken: &BTreeSet<u32>) {
        self.readings
            .retain(|interface, _| taken.contains(interface));
        self.bound.retain(|interface, _| taken.contains(interface));
        self.holders
            .retain(|_, holder| taken.contains(&holder.interface));
        self.settle();
    }

    /// Takes from holders what the Pod objects no longer bear out, then gives what nobody holds.
    fn settle(&mut self) {
        let Self {
            pods: Some(pods),
            readings,
            holders,
            bound,
        } = self
        else {
            return;
        };
        holders.retain(|address, holder| bind(pods, bound, holder.interface, *address));
        for (&interface, Reading { mac, addresses }) in &*readings {
            for &address in addresses {
                if !holders.contains_key(&address) && bind(pods, bound, interface, address) {
                    holders.insert(
                        address,
                        Holder {
                            interface,
                            mac: *mac,
                        },
                    );
                }
            }
        }
    }
}

/// Whether the address is one of the pod's that the interface leads to. An interface of which that
/// is not known yet leads to the pod that has the address.
fn bind(
    pods: &BTreeMap<ObjectKey, BTreeSet<IpAddr>>,
    bound: &mut BTreeMap<u32, ObjectKey>,
    interface: u32,
    address: IpAddr,
) -> bool {
    if let Some(pod) = bound.get(&interface) {
        return pods
            .get(pod)
            .is_some_and(|addresses| addresses.contains(&address));
    }
    let owner = pods
        .iter()
        .find(|(_, addresses)| addresses.contains(&address));
    if let Some((pod, _)) = owner {
        bound.insert(interface, pod.clone());
    }
    owner.is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn pod(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    fn pods<const N: usize>(pods: [(&str, &[u8]); N]) -> BTreeMap<ObjectKey, BTreeSet<IpAddr>> {
        pods.map(|(name, ips)| (pod(name), ips.iter().copied().map(ip).collect()))
            .into()
    }

    /// The MAC address of the inside of interface `n`, and the addresses there.
    fn inside(n: u8, addresses: &[u8]) -> Option<Reading> {
        let addresses = addresses.iter().copied().map(ip).collect();
        Some(Reading {
            mac: [2, 0, 0, 0, 0, n],
            addresses,
        })
    }

    fn interface_of(claims: &Claims, last: u8) -> Option<u32> {
        claims
            .holders()
            .get(&ip(last))
            .map(|holder| holder.interface)
    }

    #[test]
    fn an_address_needs_a_pod_object_and_an_interface() {
        let mut claims = Claims::default();
        claims.read(7, inside(7, &[1, 9]));
        assert!(claims.holders().is_empty());
        assert!(!claims.wanting());

        claims.confirm(pods([("a", &[1, 2])]));
        assert_eq!(
            claims.holders(),
            &[(
                ip(1),
                Holder {
                    interface: 7,
                    mac: [2, 0, 0, 0, 0, 7]
                }
            )]
            .into()
        );
        assert_eq!(claims.pod(7), Some(&pod("a")));
        assert!(
            claims.wanting(),
            "the pod's second address is not there yet"
        );

        claims.read(7, inside(7, &[1, 2]));
        assert_eq!(interface_of(&claims, 2), Some(7));
        assert!(!claims.wanting());
    }

    #[test]
    fn the_first_holder_keeps_an_address() {
        let mut claims = Claims::default();
        claims.confirm(pods([("a", &[1])]));
        claims.read(8, inside(8, &[1]));
        claims.read(7, inside(7, &[1]));
        assert_eq!(interface_of(&claims, 1), Some(8));
        claims.read(8, inside(8, &[]));
        assert_eq!(
            interface_of(&claims, 1),
            Some(7),
            "given up, so the next one has it"
        );
        claims.read(8, inside(8, &[1]));
        assert_eq!(interface_of(&claims, 1), Some(7));
        claims.retain(&[8].into());
        assert_eq!(interface_of(&claims, 1), Some(8));
    }

    #[test]
    fn a_pod_cannot_hold_the_address_of_another_pod() {
        let mut claims = Claims::default();
        claims.confirm(pods([("thief", &[1])]));
        claims.read(7, inside(7, &[1, 2, 3, 4]));
        claims.confirm(pods([("thief", &[1]), ("victim", &[2])]));
        assert_eq!(interface_of(&claims, 2), None);
        claims.read(7, inside(7, &[2]));
        assert_eq!(claims.holders().len(), 0, "nor after it gave up its own");
        claims.read(8, inside(8, &[2]));
        assert_eq!(interface_of(&claims, 2), Some(8));
    }

    #[test]
    fn an_interface_follows_its_pod_object() {
        let mut claims = Claims::default();
        claims.confirm(pods([("a", &[1])]));
        claims.read(7, inside(7, &[1, 2]));
        claims.confirm(pods([("a", &[2])]));
        assert_eq!(interface_of(&claims, 1), None);
        assert_eq!(interface_of(&claims, 2), Some(7));
        claims.confirm(pods([("renamed", &[1])]));
        assert_eq!(interface_of(&claims, 1), Some(7));
    }

    #[test]
    fn a_new_mac_address_reaches_the_holder() {
        let mut claims = Claims::default();
        claims.confirm(pods([("a", &[1])]));
        claims.read(7, inside(7, &[1]));
        claims.read(7, inside(9, &[1]));
        assert_eq!(claims.holders()[&ip(1)].mac, [2, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn a_restored_holder_stays_until_something_speaks_against_it() {
        let held = Holder {
            interface: 9,
            mac: [2, 0, 0, 0, 0, 9],
        };
        let restored = || Claims::restore([(ip(1), held)].into());

        let mut claims = restored();
        claims.read(7, inside(7, &[1]));
        claims.retain(&[7, 9].into());
        assert_eq!(
            interface_of(&claims, 1),
            Some(9),
            "before the pods are known"
        );
        claims.confirm(pods([("a", &[1])]));
        assert_eq!(interface_of(&claims, 1), Some(9));
        claims.read(9, inside(9, &[]));
        assert_eq!(interface_of(&claims, 1), Some(7));

        let mut claims = restored();
        claims.retain(&[7].into());
        assert!(claims.holders().is_empty(), "its interface is gone");

        let mut claims = restored();
        claims.confirm(pods([("b", &[2])]));
        assert!(claims.holders().is_empty(), "no pod has the address");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Confirm(BTreeMap<ObjectKey, BTreeSet<IpAddr>>),
        Read(u32, Option<Reading>),
        Retain(BTreeSet<u32>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let addresses = || prop::collection::btree_set((0..5u8).prop_map(ip), 0..4);
        let names = prop::sample::select(vec!["a", "b", "c"]).prop_map(pod);
        let reading = addresses().prop_map(|addresses| Reading {
            mac: [2; 6],
            addresses,
        });
        prop_oneof![
            prop::collection::btree_map(names, addresses(), 0..4).prop_map(Step::Confirm),
            (0..4u32, prop::option::of(reading)).prop_map(|(i, reading)| Step::Read(i, reading)),
            prop::collection::btree_set(0..4u32, 0..5).prop_map(Step::Retain),
        ]
    }

    proptest! {
        #[test]
        fn the_rules_hold_whatever_happens(steps in prop::collection::vec(step(), 1..40)) {
            let mut claims = Claims::default();
            let mut pods = BTreeMap::new();
            let mut readings: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
            for step in steps {
                let before = claims.holders().clone();
                match step {
                    Step::Confirm(now) => {
                        pods.clone_from(&now);
                        claims.confirm(now);
                    }
                    Step::Read(interface, reading) => {
                        readings.remove(&interface);
                        readings.extend(reading.iter().map(|r| (interface, r.addresses.clone())));
                        claims.read(interface, reading);
                    }
                    Step::Retain(taken) => {
                        readings.retain(|interface, _| taken.contains(interface));
                        claims.retain(&taken);
                    }
                }
                for (address, holder) in claims.holders() {
                    prop_assert!(readings[&holder.interface].contains(address), "it is claimed");
                    let leads_to = claims.pod(holder.interface).expect("the pod of a holder");
                    prop_assert!(pods[leads_to].contains(address), "the pod object has it");
                }
                for (interface, addresses) in &readings {
                    for address in addresses {
                        let owns = |pod: &ObjectKey| pods.get(pod).is_some_and(|p| p.contains(address));
                        let may = claims.pod(*interface).map_or_else(
                            || pods.keys().any(owns),
                            owns,
                        );
                        prop_assert!(!may || claims.holders().contains_key(address), "nothing is left over");
                    }
                }
                for (address, holder) in &before {
                    let claimed = readings.get(&holder.interface).is_some_and(|r| r.contains(address));
                    let pod = claims.pod(holder.interface);
                    let confirmed = pod.is_some_and(|pod| pods[pod].contains(address));
                    let now = claims.holders().get(address).map(|holder| holder.interface);
                    prop_assert!(
                        !(claimed && confirmed) || now == Some(holder.interface)
                            || pod != claims.pod(holder.interface),
                        "the first holder keeps it"
                    );
                }
            }
        }
    }
}
