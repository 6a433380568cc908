//! Smaller worlds that may still show what a world shows.

use super::world::{Kind, Service, World};

/// Worlds with one thing less, the largest things first.
pub fn smaller(world: &World) -> Vec<World> {
    let mut worlds: Vec<World> = Vec::new();
    for number in world.services.keys() {
        let mut smaller = world.clone();
        smaller.services.remove(number);
        worlds.push(smaller);
    }
    for (number, service) in &world.services {
        worlds.extend(simpler(service).into_iter().map(|service| {
            let mut smaller = world.clone();
            smaller.services.insert(*number, service);
            smaller
        }));
    }
    worlds
}

/// Services with one thing less.
fn simpler(service: &Service) -> Vec<Service> {
    let mut services = Vec::new();
    let mut with = |change: &dyn Fn(&mut Service)| {
        let mut changed = service.clone();
        change(&mut changed);
        if changed != *service {
            services.push(changed);
        }
    };
    for slice in 0..service.slices.len() {
        with(&|service| {
            service.slices.remove(slice);
        });
    }
    for port in 0..service.ports.len() {
        with(&|service| {
            if service.ports.len() > 1 {
                service.ports.remove(port);
            }
        });
    }
    with(&|service| service.kind = Kind::ClusterIp);
    with(&|service| {
        if matches!(service.kind, Kind::LoadBalancer { .. }) {
            service.kind = Kind::NodePort;
        }
    });
    with(&|service| {
        if let Kind::LoadBalancer { source_ranges, .. } = &mut service.kind {
            source_ranges.clear();
        }
    });
    with(&|service| {
        if let Kind::LoadBalancer { ip_mode, .. } = &mut service.kind {
            *ip_mode = None;
        }
    });
    with(&|service| service.external_ips = false);
    with(&|service| service.internal_local = false);
    with(&|service| service.external_local = false);
    with(&|service| service.affinity = false);
    with(&|service| {
        if service.families.len() > 1 {
            let gone = service.families.pop();
            service.slices.retain(|slice| Some(slice.family) != gone);
        }
    });
    for slice in 0..service.slices.len() {
        for endpoint in 0..service.slices[slice].endpoints.len() {
            with(&|service| {
                service.slices[slice].endpoints.remove(endpoint);
            });
            with(&|service| {
                let endpoint = &mut service.slices[slice].endpoints[endpoint];
                endpoint.zones.clear();
                endpoint.nodes.clear();
            });
        }
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::generate;

    #[test]
    fn shrinking_again_and_again_ends_with_nothing() {
        let mut world = generate::world(3);
        for _ in 0..200 {
            match smaller(&world).into_iter().next() {
                Some(smaller) => world = smaller,
                None => break,
            }
        }
        assert_eq!(world, World::default());
    }

    #[test]
    fn no_smaller_world_is_the_same() {
        for seed in 0..50 {
            let world = generate::world(seed);
            assert!(smaller(&world).iter().all(|smaller| *smaller != world));
        }
    }
}
