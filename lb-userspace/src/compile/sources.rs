//! What pods may send from besides their own addresses: what they ask for, as far as the operator
//! allows it and nobody else has any of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    source::annotations::ALLOWED_SOURCES,
    world::{ObjectKey, World},
};

/// What no pod may send from, whoever allows it: what stands for this host, for a link, for many, or
/// for nobody (RFC 6890), and what IPv4 addresses are in the tables.
const RESERVED: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// What the pods of this node get of what they ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    pub allowed: BTreeMap<ObjectKey, BTreeSet<IpNet>>,
    /// Why a pod does not get something, in words.
    pub refused: Vec<(ObjectKey, String)>,
}

/// Addresses that the objects do not tell of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unlisted {
    /// Those of this node's interfaces.
    pub own: BTreeSet<IpAddr>,
    /// Those that runtimes have just given to pods.
    pub announced: BTreeMap<ObjectKey, BTreeSet<IpAddr>>,
}

/// `limits` are what the operator allows, and `room` how many networks fit.
pub fn sources(world: &World, unlisted: &Unlisted, limits: &[IpNet], room: usize) -> Sources {
    let mut sources = Sources::default();
    let asking: Vec<_> = world
        .local_pods()
        .filter(|(_, _, local)| !local.asked_sources.is_empty())
        .collect();
    if asking.is_empty() {
        return sources;
    }
    let taken = taken(world, unlisted);
    let mut left = room;
    for (pod, _, local) in asking {
        for network in &local.asked_sources {
            let objection = objection(*network, pod, limits, &taken);
            let objection =
                objection.or_else(|| (left == 0).then(|| "there is no room".to_owned()));
            match objection {
                Some(why) => {
                    let text = format!(
                        "annotation {} asks for {network}, which is refused: {why}",
                        ALLOWED_SOURCES.key
                    );
                    sources.refused.push((pod.clone(), text));
                }
                None => {
                    left -= 1;
                    let allowed = sources.allowed.entry(pod.clone()).or_default();
                    allowed.insert(*network);
                }
            }
        }
    }
    sources
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Pod(ObjectKey),
    /// In words.
    Other(String),
}

fn taken(world: &World, unlisted: &Unlisted) -> BTreeMap<IpAddr, BTreeSet<Owner>> {
    let Unlisted { own, announced } = unlisted;
    let listed = world
        .pods()
        .map(|(key, pod)| (key, Vec::from_iter(&pod.ips)));
    let announced = announced
        .iter()
        .map(|(key, ips)| (key, Vec::from_iter(ips)));
    let pods = listed.chain(announced).flat_map(|(key, ips)| {
        let ips = ips.into_iter();
        ips.map(|address| (*address, Owner::Pod(key.clone())))
    });
    let other = |text: String| move |address: &IpAddr| (*address, Owner::Other(text.clone()));
    let nodes = world.nodes().flat_map(|(key, node)| {
        let name = format!("node {}", key.name);
        node.all_addresses.iter().map(other(name))
    });
    let services = world.services().flat_map(|(key, service)| {
        let vips = service.cluster_ips.iter().chain(&service.external_ips);
        let vips = vips.chain(&service.load_balancer_ips);
        vips.map(other(format!("service {key}")))
    });
    let own = own.iter().map(other("this node".to_owned()));
    let mut taken: BTreeMap<IpAddr, BTreeSet<Owner>> = BTreeMap::new();
    for (address, owner) in pods.chain(nodes).chain(services).chain(own) {
        taken.entry(address).or_default().insert(owner);
    }
    taken
}

/// Why a pod may not send from a network.
fn objection(
    network: IpNet,
    pod: &ObjectKey,
    limits: &[IpNet],
    taken: &BTreeMap<IpAddr, BTreeSet<Owner>>,
) -> Option<String> {
    if !limits.iter().any(|limit| limit.contains(&network)) {
        return Some("it is not within --allow-pod-sources".to_owned());
    }
    let reserved = RESERVED
        .iter()
        .filter_map(|text| text.parse::<IpNet>().ok());
    let mut overlapping =
        reserved.filter(|other| other.contains(&network) || network.contains(other));
    if let Some(reserved) = overlapping.next() {
        return Some(format!("nobody may send from {reserved}"));
    }
    let inside = taken.range(network.network()..=network.broadcast());
    let mut owners = inside.flat_map(|(address, owners)| {
        let others = owners.iter();
        let others = others.filter(|owner| !matches!(owner, Owner::Pod(key) if key == pod));
        others.map(move |owner| (address, owner))
    });
    owners.next().map(|(address, owner)| match owner {
        Owner::Pod(key) => format!("{address} is that of pod {key}"),
        Owner::Other(other) => format!("{address} is that of {other}"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::world::{Change, Event, node, pod, service};

    fn a_pod(name: &str, asks: &str, ip: &str) -> Change {
        let object = json!({
            "metadata": {"annotations": {ALLOWED_SOURCES.key: asks}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"podIPs": [{"ip": ip}]},
        });
        let row = pod::reduce(&serde_json::from_value(object).expect("a Pod"), "n1");
        Change::Pod(Event::Apply(ObjectKey::new("shop", name), row))
    }

    fn world(asks: &str) -> World {
        let object = json!({
            "status": {"addresses": [{"type": "ExternalIP", "address": "10.9.0.20"}]},
        });
        let row = node::reduce(&serde_json::from_value(object).expect("a Node"), "n1");
        let node = Change::Node(Event::Apply(ObjectKey::new("", "n2"), row));
        let object = json!({
            "spec": {
                "clusterIP": "10.9.0.30",
                "externalIPs": ["10.9.0.31"],
                "type": "LoadBalancer",
                "ports": [{"port": 80, "protocol": "TCP"}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "10.9.0.32"}]}},
        });
        let row = service::reduce(&serde_json::from_value(object).expect("a Service"));
        let service = Change::Service(Event::Apply(ObjectKey::new("shop", "web"), row));
        let mut world = World::default();
        for change in [
            a_pod("vpn", asks, "10.9.0.1"),
            a_pod("web", "", "10.9.0.2"),
            node,
            service,
        ] {
            world.apply(change);
        }
        world
    }

    fn compiled(asks: &str, room: usize) -> (Vec<String>, Vec<String>) {
        let limits = ["10.9.0.0/16", "fd09::/16"].map(|text| text.parse().expect("a network"));
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let new = ObjectKey::new("shop", "new");
        let unlisted = Unlisted {
            own: [address("10.9.0.40")].into(),
            announced: [(new, [address("10.9.0.50")].into())].into(),
        };
        let Sources { allowed, refused } = sources(&world(asks), &unlisted, &limits, room);
        let allowed = allowed.into_values().flatten();
        let refused = refused.into_iter();
        (
            allowed.map(|network| network.to_string()).collect(),
            refused.map(|(pod, why)| format!("{pod}: {why}")).collect(),
        )
    }

    #[test]
    fn a_pod_gets_what_the_operator_allows_and_nobody_else_has() {
        let asked = "10.9.1.0/24, 10.9.0.1, fd09::7";
        let (allowed, refused) = compiled(asked, 9);
        assert_eq!(allowed, ["10.9.0.1/32", "10.9.1.0/24", "fd09::7/128"]);
        assert!(refused.is_empty(), "{refused:?}");
    }

    #[test]
    fn what_is_not_allowed_or_somebody_elses_is_refused_by_name() {
        for (asked, why) in [
            ("10.8.0.0/24", "it is not within --allow-pod-sources"),
            ("10.0.0.0/8", "it is not within --allow-pod-sources"),
            ("10.9.0.2", "10.9.0.2 is that of pod shop/web"),
            ("10.9.0.0/29", "10.9.0.2 is that of pod shop/web"),
            ("10.9.0.20", "10.9.0.20 is that of node n2"),
            ("10.9.0.30", "10.9.0.30 is that of service shop/web"),
            ("10.9.0.31", "10.9.0.31 is that of service shop/web"),
            ("10.9.0.32", "10.9.0.32 is that of service shop/web"),
            ("10.9.0.40", "10.9.0.40 is that of this node"),
            ("10.9.0.48/30", "10.9.0.50 is that of pod shop/new"),
        ] {
            let (allowed, refused) = compiled(asked, 9);
            assert!(allowed.is_empty(), "{asked}: {allowed:?}");
            let [refused] = refused.as_slice() else {
                panic!("{asked}: {refused:?}");
            };
            assert!(refused.starts_with("shop/vpn: "), "{refused}");
            assert!(refused.ends_with(why), "{refused}");
        }
    }

    #[test]
    fn nobody_may_send_from_what_is_reserved() {
        let everything = ["0.0.0.0/0", "::/0"].map(|text| text.parse().expect("a network"));
        for asked in [
            "127.0.0.1",
            "0.0.0.0/0",
            "::/0",
            "255.255.255.255",
            "ff02::1",
            "fe80::1",
        ] {
            let Sources { allowed, refused } =
                sources(&world(asked), &Unlisted::default(), &everything, 9);
            assert!(allowed.is_empty() && refused.len() == 1, "{asked}");
        }
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let (allowed, refused) = compiled("10.9.1.1, 10.9.1.2", 1);
        assert_eq!(allowed, ["10.9.1.1/32"]);
        assert!(refused[0].ends_with("there is no room"), "{refused:?}");
    }
}
