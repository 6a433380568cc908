use lb_common::address::map_v4;
use proptest::prelude::*;

use super::*;

const HERE: Place<'_> = Place {
    node: "here",
    zone: Some("zone-a"),
};

/// Reachable by its ClusterIP only, from any node.
const INTERNAL: Policies = Policies {
    internal_local: false,
    external_local: false,
    external: false,
};
/// Reachable from outside too, on any node.
const EXTERNAL: Policies = Policies {
    external: true,
    ..INTERNAL
};
const INTERNAL_LOCAL: Policies = Policies {
    internal_local: true,
    ..INTERNAL
};
const EXTERNAL_LOCAL: Policies = Policies {
    external_local: true,
    ..EXTERNAL
};

/// An endpoint that a table row speaks of: `READY.here().zones(&["zone-a"])`.
#[derive(Clone, Debug)]
struct Example {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    nodes: Vec<String>,
    zones: Vec<String>,
}

const READY: Example = Example::new(true, true, false);
/// It terminates, and still serves.
const LEAVING: Example = Example::new(false, true, true);
/// It terminates, and serves no more.
const DEAD: Example = Example::new(false, false, true);
const NOT_READY: Example = Example::new(false, false, false);
/// As `publishNotReadyAddresses` makes the controller write it.
const PUBLISHED: Example = Example::new(true, false, false);
const PUBLISHED_LEAVING: Example = Example::new(true, true, true);
/// Not ready, not terminating, and serving: no controller writes it, but the API allows it.
const SERVING: Example = Example::new(false, true, false);

impl Example {
    const fn new(ready: bool, serving: bool, terminating: bool) -> Self {
        Self {
            ready,
            serving,
            terminating,
            local: false,
            nodes: Vec::new(),
            zones: Vec::new(),
        }
    }

    fn here(self) -> Self {
        Self {
            local: true,
            ..self
        }
    }

    fn nodes(self, names: &[&str]) -> Self {
        Self {
            nodes: names.iter().map(ToString::to_string).collect(),
            ..self
        }
    }

    fn zones(self, names: &[&str]) -> Self {
        Self {
            zones: names.iter().map(ToString::to_string).collect(),
            ..self
        }
    }

    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            local: self.local,
            nodes: &self.nodes,
            zones: &self.zones,
        }
    }
}

/// The endpoint that stands at this place in a table row, counted from 1.
fn backend(number: usize) -> BackendKey {
    BackendKey {
        address: map_v4([10, 0, 0, u8::try_from(number).expect("few endpoints")]),
        port: 80,
    }
}

fn categorized(endpoints: &[Example], policies: Policies, place: Place<'_>) -> Backends {
    let endpoints = (1..)
        .map(backend)
        .zip(endpoints.iter().map(Example::candidate));
    categorize(&endpoints.collect(), policies, place)
}

/// What a table row expects, by the places of the endpoints.
#[derive(Clone, Copy, Default)]
struct Expected {
    local: &'static [usize],
    cluster: &'static [usize],
    draining: &'static [usize],
    any: bool,
}

#[track_caller]
fn check(rule: &str, endpoints: &[Example], policies: Policies, place: Place<'_>, e: &Expected) {
    let found = categorized(endpoints, policies, place);
    let keys = |numbers: &[usize]| numbers.iter().map(|&n| backend(n)).collect::<Vec<_>>();
    let sorted = |keys: &mut dyn Iterator<Item = &BackendKey>| {
        let mut keys: Vec<_> = keys.copied().collect();
        keys.sort();
        keys
    };
    assert_eq!(
        sorted(&mut found.local_list()),
        keys(e.local),
        "{rule}: local list"
    );
    assert_eq!(
        sorted(&mut found.cluster_list()),
        keys(e.cluster),
        "{rule}: cluster list"
    );
    assert_eq!(found.draining, keys(e.draining), "{rule}: draining");
    assert_eq!(found.any, e.any, "{rule}: any endpoint");
}

#[test]
fn a_list_is_made_where_some_flow_uses_it() {
    let both = Expected {
        local: &[1],
        cluster: &[1, 2],
        any: true,
        ..Expected::default()
    };
    let cluster = Expected { local: &[], ..both };
    let local = Expected {
        cluster: &[],
        draining: &[2],
        ..both
    };
    let internal_only = Policies {
        external_local: true,
        ..INTERNAL
    };
    let internal_local = Policies {
        internal_local: true,
        ..EXTERNAL
    };
    let all_local = Policies {
        internal_local: true,
        ..EXTERNAL_LOCAL
    };
    for (rule, policies, expected) in [
        ("both policies Cluster", EXTERNAL, cluster),
        ("ClusterIP only, policy Cluster", INTERNAL, cluster),
        ("ClusterIP only, policy Local", INTERNAL_LOCAL, local),
        (
            "external Local without external access",
            internal_only,
            cluster,
        ),
        (
            "external Local: short-circuits use the cluster list",
            EXTERNAL_LOCAL,
            both,
        ),
        ("internal Local, external Cluster", internal_local, both),
        (
            "both Local: short-circuits use the cluster list",
            all_local,
            both,
        ),
    ] {
        check(rule, &[READY.here(), READY], policies, HERE, &expected);
    }
}

#[test]
fn the_cluster_list_falls_back_to_terminating_endpoints() {
    let rows: [(&str, &[Example], Expected); 8] = [
        ("no endpoints", &[], Expected::default()),
        (
            "ready endpoints are chosen, the others that serve drain",
            &[READY, LEAVING, DEAD, NOT_READY, SERVING],
            Expected {
                cluster: &[1],
                draining: &[2, 5],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "with none ready, those that serve and terminate are",
            &[LEAVING.here(), LEAVING, DEAD, NOT_READY],
            Expected {
                cluster: &[1, 2],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "serving alone is not enough",
            &[SERVING, DEAD],
            Expected {
                draining: &[1],
                ..Expected::default()
            },
        ),
        ("nothing serves", &[DEAD, NOT_READY], Expected::default()),
        (
            "published endpoints are ready, whether they serve or not",
            &[PUBLISHED, PUBLISHED_LEAVING, LEAVING],
            Expected {
                cluster: &[1, 2],
                draining: &[3],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "the fallback ignores hints",
            &[LEAVING.zones(&["zone-b"]), LEAVING.zones(&["zone-a"])],
            Expected {
                cluster: &[1, 2],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "hints of endpoints that are not ready do not count",
            &[READY, LEAVING.zones(&["zone-a"])],
            Expected {
                cluster: &[1],
                draining: &[2],
                any: true,
                ..Expected::default()
            },
        ),
    ];
    for (rule, endpoints, expected) in rows {
        check(rule, endpoints, INTERNAL, HERE, &expected);
    }
}

#[test]
fn the_local_list_falls_back_on_its_own() {
    let rows: [(&str, &[Example], Policies, Expected); 9] = [
        (
            "a local ready endpoint",
            &[READY.here(), LEAVING.here(), READY],
            INTERNAL_LOCAL,
            Expected {
                local: &[1],
                draining: &[2, 3],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "none ready here: those that serve and terminate here, whatever others are",
            &[LEAVING.here(), DEAD.here(), READY],
            INTERNAL_LOCAL,
            Expected {
                local: &[1],
                draining: &[3],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "none here: the list is empty though the cluster has some",
            &[READY],
            INTERNAL_LOCAL,
            Expected {
                draining: &[1],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "none here: elsewhere one only terminates, and still is one",
            &[LEAVING, NOT_READY.here()],
            INTERNAL_LOCAL,
            Expected {
                draining: &[1],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "none anywhere",
            &[DEAD, NOT_READY.here()],
            INTERNAL_LOCAL,
            Expected::default(),
        ),
        (
            "external Local: local list and cluster list fall back each on its own",
            &[LEAVING.here(), READY],
            EXTERNAL_LOCAL,
            Expected {
                local: &[1],
                cluster: &[2],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "external Local: both fall back",
            &[LEAVING.here(), LEAVING],
            EXTERNAL_LOCAL,
            Expected {
                local: &[1],
                cluster: &[1, 2],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "external Local, none here: the cluster list stays for short-circuits",
            &[READY, LEAVING],
            EXTERNAL_LOCAL,
            Expected {
                cluster: &[1],
                draining: &[2],
                any: true,
                ..Expected::default()
            },
        ),
        (
            "hints never apply to Local policy",
            &[READY.here().zones(&["zone-b"]), READY.zones(&["zone-a"])],
            EXTERNAL_LOCAL,
            Expected {
                local: &[1],
                cluster: &[2],
                any: true,
                ..Expected::default()
            },
        ),
    ];
    for (rule, endpoints, policies, expected) in rows {
        check(rule, endpoints, policies, HERE, &expected);
    }
}

#[test]
fn hints_narrow_the_cluster_list_down() {
    let nowhere = Place { zone: None, ..HERE };
    let rows: [(&str, &[Example], Place<'_>, &'static [usize]); 13] = [
        ("no hints", &[READY, READY], HERE, &[1, 2]),
        (
            "every endpoint is hinted, some for our node",
            &[
                READY.nodes(&["here"]),
                READY.nodes(&["there"]),
                READY.nodes(&["there", "here"]),
            ],
            HERE,
            &[1, 3],
        ),
        (
            "every endpoint is hinted, none for our node",
            &[READY.nodes(&["there"]), READY.nodes(&["elsewhere"])],
            HERE,
            &[1, 2],
        ),
        (
            "one missing hint disables the node level",
            &[READY.nodes(&["here"]), READY],
            HERE,
            &[1, 2],
        ),
        (
            "every endpoint is hinted, some for our zone",
            &[
                READY.zones(&["zone-a"]),
                READY.zones(&["zone-b"]),
                READY.zones(&["zone-b", "zone-a"]),
            ],
            HERE,
            &[1, 3],
        ),
        (
            "every endpoint is hinted, none for our zone",
            &[READY.zones(&["zone-b"]), READY.zones(&["zone-c"])],
            HERE,
            &[1, 2],
        ),
        (
            "one missing hint disables the zone level",
            &[READY.zones(&["zone-a"]), READY],
            HERE,
            &[1, 2],
        ),
        (
            "the node level comes before the zone level",
            &[
                READY.nodes(&["here"]).zones(&["zone-b"]),
                READY.nodes(&["there"]).zones(&["zone-a"]),
            ],
            HERE,
            &[1],
        ),
        (
            "no endpoint for our node: the zone level counts",
            &[
                READY.nodes(&["there"]).zones(&["zone-b"]),
                READY.nodes(&["x"]).zones(&["zone-a"]),
            ],
            HERE,
            &[2],
        ),
        (
            "a missing node hint leaves the zone level",
            &[
                READY.nodes(&["here"]).zones(&["zone-b"]),
                READY.zones(&["zone-a"]),
            ],
            HERE,
            &[2],
        ),
        (
            "hints of endpoints that are not ready, or none on these, do not count",
            &[
                READY.zones(&["zone-a"]),
                READY.zones(&["zone-b"]),
                NOT_READY,
                LEAVING,
            ],
            HERE,
            &[1],
        ),
        (
            "a node without a zone uses all",
            &[READY.zones(&["zone-a"]), READY.zones(&[""])],
            nowhere,
            &[1, 2],
        ),
        (
            "a node without a zone has its own name still",
            &[READY.nodes(&["here"]), READY.nodes(&["there"])],
            nowhere,
            &[1],
        ),
    ];
    for (rule, endpoints, place, cluster) in rows {
        let found = categorized(endpoints, INTERNAL, place);
        let numbers: Vec<_> = cluster.iter().map(|&number| backend(number)).collect();
        assert_eq!(
            found.cluster_list().copied().collect::<Vec<_>>(),
            numbers,
            "{rule}"
        );
        assert!(found.any, "{rule}");
    }
}

#[test]
fn each_endpoint_is_in_one_group() {
    let endpoints = [
        READY.here().zones(&["zone-b"]),
        READY.here().zones(&["zone-a"]),
        READY.zones(&["zone-a"]),
        READY.zones(&["zone-b"]),
        LEAVING.here(),
    ];
    let found = categorized(&endpoints, EXTERNAL_LOCAL, HERE);
    let expected = Backends {
        only_local: vec![backend(1)],
        both: vec![backend(2)],
        only_cluster: vec![backend(3)],
        draining: vec![backend(4), backend(5)],
        any: true,
    };
    assert_eq!(found, expected);
}

fn any_names(names: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let all: Vec<String> = names.iter().map(ToString::to_string).collect();
    prop_oneof![
        1 => Just(Vec::new()),
        3 => prop::sample::subsequence(all, 1..=names.len()),
    ]
}

fn any_example() -> impl Strategy<Value = Example> {
    let flags = any::<(bool, bool, bool, bool)>();
    let hints = (
        any_names(&["here", "there"]),
        any_names(&["zone-a", "zone-b"]),
    );
    (flags, hints).prop_map(
        |((ready, serving, terminating, local), (nodes, zones))| Example {
            ready,
            serving,
            terminating,
            local,
            nodes,
            zones,
        },
    )
}

/// The lists of kube-proxy's rules, read out one after the other: (local, cluster, any).
fn by_the_book(
    endpoints: &[Example],
    policies: Policies,
    place: Place<'_>,
) -> (Vec<BackendKey>, Vec<BackendKey>, bool) {
    let numbered: Vec<_> = (1..).map(backend).zip(endpoints).collect();
    let select = |wanted: &dyn Fn(&Example) -> bool| -> Vec<BackendKey> {
        let found = numbered.iter().filter(|(_, endpoint)| wanted(endpoint));
        found.map(|(key, _)| *key).collect()
    };
    let uses_cluster = !policies.internal_local || policies.external;
    let uses_local = policies.internal_local || (policies.external_local && policies.external);

    let ready: Vec<&Example> = endpoints.iter().filter(|endpoint| endpoint.ready).collect();
    let for_node = |endpoint: &Example| endpoint.nodes.contains(&place.node.to_owned());
    let zone = place.zone.unwrap_or_default().to_owned();
    let for_zone = |endpoint: &Example| endpoint.zones.contains(&zone);
    let same_node = ready.iter().all(|e| !e.nodes.is_empty()) && ready.iter().any(|e| for_node(e));
    let same_zone = ready.iter().all(|e| !e.zones.is_empty()) && ready.iter().any(|e| for_zone(e));

    let mut cluster = Vec::new();
    if uses_cluster {
        cluster = if same_node {
            select(&|e| e.ready && for_node(e))
        } else if same_zone {
            select(&|e| e.ready && for_zone(e))
        } else {
            select(&|e| e.ready)
        };
        if cluster.is_empty() {
            cluster = select(&|e| e.serving && e.terminating);
        }
    }
    let mut local = Vec::new();
    if uses_local {
        local = select(&|e| e.local && e.ready);
        if local.is_empty() {
            local = select(&|e| e.local && e.serving && e.terminating);
        }
    }
    let any = endpoints
        .iter()
        .any(|e| e.ready || e.serving && e.terminating);
    (local, cluster, any)
}

proptest! {
    #[test]
    fn the_lists_are_those_of_the_book(
        endpoints in prop::collection::vec(any_example(), 0..6),
        (internal_local, external_local, external) in any::<(bool, bool, bool)>(),
        zone in prop::option::of(Just("zone-a")),
    ) {
        let policies = Policies { internal_local, external_local, external };
        let place = Place { zone, ..HERE };
        let found = categorized(&endpoints, policies, place);
        let (local, cluster, any) = by_the_book(&endpoints, policies, place);
        let sorted = |list: &mut dyn Iterator<Item = &BackendKey>| {
            let mut list: Vec<_> = list.copied().collect();
            list.sort();
            list
        };
        prop_assert_eq!(sorted(&mut found.local_list()), local);
        prop_assert_eq!(sorted(&mut found.cluster_list()), cluster);
        prop_assert_eq!(found.any, any);
        for (key, endpoint) in (1..).map(backend).zip(&endpoints) {
            let times = found.all().filter(|other| **other == key).count();
            prop_assert!(times <= 1, "{key:?} is in two groups");
            prop_assert!(times == 1 || !endpoint.serving, "{key:?} serves and would die");
        }
        let groups = [&found.only_local, &found.both, &found.only_cluster, &found.draining];
        prop_assert!(groups.iter().all(|group| group.is_sorted()), "a group is out of order");
    }
}
