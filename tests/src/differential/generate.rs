//! Random worlds.

use fastrand::Rng;
use ipnet::IpNet;

use super::world::{Endpoint, Kind, Port, Service, Slice, World};
use crate::sandbox::{Family, Protocol};

/// The servers that endpoints are drawn from; `host-` ones are on the addresses of their nodes.
pub const SERVERS: [&str; 7] = [
    "here-1", "here-2", "there-1", "there-2", "far-1", "host-1", "host-2",
];
/// The ports that every server listens on.
pub const TARGETS: [u16; 2] = [8080, 8081];
/// The zone of the node under test, and one that it is not in.
pub const ZONES: [&str; 2] = ["zone-a", "zone-b"];

/// Where load balancers may be reached from: a client outside, pods, the node itself, nobody here.
const SOURCES: [&str; 8] = [
    "198.51.100.1/32",
    "fd00:198:51:100::1/128",
    "10.244.0.0/16",
    "fd00:10:244::/48",
    "172.18.0.2/32",
    "fd00:172:18::2/128",
    "192.0.2.0/24",
    "2001:db8::/32",
];

/// How the endpoints of a service are doing.
#[derive(Clone, Copy)]
enum Health {
    Good,
    Mixed,
    Ending,
}

/// How they are hinted at.
#[derive(Clone, Copy)]
enum Hints {
    None,
    Zones,
    Nodes,
    Some,
}

/// The world of a seed.
pub fn world(seed: u64) -> World {
    let mut rng = Rng::with_seed(seed);
    let count = rng.u8(1..=3);
    World {
        services: (1..=count)
            .map(|number| (number, service(&mut rng)))
            .collect(),
    }
}

fn service(rng: &mut Rng) -> Service {
    let families = match rng.u8(0..6) {
        0 => vec![Family::V4],
        1 => vec![Family::V6],
        2 => vec![Family::V6, Family::V4],
        _ => vec![Family::V4, Family::V6],
    };
    let slices = slices(rng, &families);
    Service {
        kind: kind(rng),
        ports: ports(rng),
        external_ips: one_in(rng, 3),
        internal_local: one_in(rng, 4),
        external_local: one_in(rng, 2),
        affinity: one_in(rng, 5),
        families,
        slices,
    }
}

fn kind(rng: &mut Rng) -> Kind {
    match rng.u8(0..6) {
        0 | 1 => Kind::ClusterIp,
        2 | 3 => Kind::NodePort,
        _ => Kind::LoadBalancer {
            ip_mode: pick(rng, &[None, None, Some("VIP"), Some("Proxy")]),
            source_ranges: source_ranges(rng),
            node_ports: !one_in(rng, 4),
        },
    }
}

fn source_ranges(rng: &mut Rng) -> Vec<IpNet> {
    if !one_in(rng, 2) {
        return Vec::new();
    }
    let count = rng.usize(1..=3);
    let chosen = rng.choose_multiple(SOURCES, count);
    chosen
        .into_iter()
        .filter_map(|range| range.parse().ok())
        .collect()
}

fn ports(rng: &mut Rng) -> Vec<Port> {
    let port = |name, protocol, port| Port {
        name,
        protocol,
        port,
    };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    match rng.u8(0..4) {
        0 => vec![port("web", tcp, 80)],
        1 => vec![port("dns", udp, 53)],
        2 => vec![port("dns", udp, 53), port("dns-tcp", tcp, 53)],
        _ => vec![port("web", tcp, 80), port("voice", udp, 5060)],
    }
}

fn slices(rng: &mut Rng, families: &[Family]) -> Vec<Slice> {
    if one_in(rng, 8) {
        return Vec::new();
    }
    let health = pick(
        rng,
        &[Health::Good, Health::Good, Health::Mixed, Health::Ending],
    );
    let hints = pick(
        rng,
        &[
            Hints::None,
            Hints::None,
            Hints::Zones,
            Hints::Nodes,
            Hints::Some,
        ],
    );
    let count = rng.usize(0..=4);
    let endpoints: Vec<Endpoint> = rng
        .choose_multiple(SERVERS, count)
        .into_iter()
        .map(|server| endpoint(rng, server, health, hints))
        .collect();
    let (first, second) = endpoints.split_at(rng.usize(0..=endpoints.len()));
    let (mut first, second) = (first.to_vec(), second.to_vec());
    let targets = [pick(rng, &TARGETS), pick(rng, &TARGETS)];
    if one_in(rng, 3) {
        first.extend(second.first().map(|endpoint| again(rng, endpoint)));
    }
    let both = [(targets[0], first), (targets[1], second)];
    families
        .iter()
        .flat_map(|&family| {
            both.iter()
                .filter(|(_, endpoints)| !endpoints.is_empty())
                .map(move |(target, endpoints)| Slice {
                    family,
                    target: *target,
                    endpoints: endpoints.clone(),
                })
        })
        .collect()
}

fn endpoint(rng: &mut Rng, server: &'static str, health: Health, hints: Hints) -> Endpoint {
    let (ready, serving, terminating) = match health {
        Health::Good => pick(
            rng,
            &[
                (Some(true), Some(true), Some(false)),
                (Some(true), None, None),
                (None, None, None),
            ],
        ),
        Health::Mixed => pick(
            rng,
            &[
                (Some(true), Some(true), Some(false)),
                (Some(false), Some(false), Some(false)),
                (Some(false), Some(true), Some(true)),
                (Some(false), Some(false), Some(true)),
            ],
        ),
        Health::Ending => pick(
            rng,
            &[
                (Some(false), Some(true), Some(true)),
                (Some(false), None, Some(true)),
                (Some(false), Some(false), Some(true)),
            ],
        ),
    };
    let zones = || vec![ZONES[0]];
    let (zones, nodes) = match hints {
        Hints::None => (Vec::new(), Vec::new()),
        Hints::Zones => (
            pick(rng, &[zones(), vec![ZONES[1]], ZONES.to_vec()]),
            Vec::new(),
        ),
        Hints::Nodes => (
            pick(rng, &[zones(), vec![ZONES[1]]]),
            pick(
                rng,
                &[vec!["node-1"], vec!["node-2"], vec!["node-1", "node-3"]],
            ),
        ),
        Hints::Some => (pick(rng, &[zones(), zones(), Vec::new()]), Vec::new()),
    };
    Endpoint {
        server,
        ready,
        serving,
        terminating,
        zones,
        nodes,
    }
}

/// The same endpoint in another slice, perhaps from before its address was given to a new pod.
/// Which of two that do not terminate counts is left open.
fn again(rng: &mut Rng, endpoint: &Endpoint) -> Endpoint {
    let mut again = endpoint.clone();
    if one_in(rng, 2) && endpoint.terminating != Some(true) {
        again.ready = Some(false);
        again.serving = Some(true);
        again.terminating = Some(true);
    }
    again
}

fn one_in(rng: &mut Rng, count: u8) -> bool {
    rng.u8(0..count) == 0
}

fn pick<T: Clone>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(0..from.len())].clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_world_and_another_seed_another() {
        assert_eq!(world(7), world(7));
        assert_ne!(world(7), world(8));
    }

    #[test]
    fn seeds_give_services_of_all_kinds() {
        let services: Vec<Service> = (0..100)
            .flat_map(|seed| world(seed).services.into_values())
            .collect();
        let some = |what: fn(&Service) -> bool| services.iter().any(what);
        assert!(some(|service| service.kind == Kind::ClusterIp));
        assert!(some(
            |service| service.external_local && service.has_node_ports()
        ));
        assert!(some(|service| service.slices.is_empty()));
        assert!(some(|service| service.affinity && service.slices.len() > 2));
        assert!(some(|service| service.families == [Family::V6]));
    }
}
