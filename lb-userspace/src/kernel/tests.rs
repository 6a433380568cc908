//! With the real kernel: each test has network and mount namespaces of its own, which take everything
//! with them.

mod devices;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    thread,
    time::{Duration, Instant},
};

use aya::maps::Array;
use futures::TryStreamExt as _;
use lb_common::{
    address::{UNSPECIFIED, from_ip},
    endpoint::{Endpoint, WIRE},
    flow::{Direction, Flow, FlowKey, Tuple},
    headers::UDP,
    policy::{CLOSED, OPEN, PeerKey, Rule, RuleKey},
    service::{FrontendKey, FrontendKind},
};
use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, packet_route::link::LinkMessage};
use tokio::sync::{mpsc, watch};

use super::{tables::Flows, *};
use crate::{
    compile::{BackendKey, Backends, Choice, Desired, DesiredNode, Port, Range},
    plan::{Allocations, Sizes},
    world::ObjectKey,
};

/// Runs a test in namespaces of its own, with a BPF file system.
pub fn sandbox<F: Future<Output = ()>>(test: impl FnOnce(Pins) -> F + Send) {
    let directory = tempfile::tempdir().expect("a directory");
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime
            .expect("a runtime")
            .block_on(test(Pins::below(&directory.path().join("bpf"))));
    };
    thread::scope(|scope| scope.spawn(run).join()).expect("the test passes");
}

fn start(pins: &Pins, attach: Attach) -> Programs {
    load(pins.clone(), attach, 0).expect("the kernel takes our programs")
}

fn netlink() -> Handle {
    let (connection, handle, _) = rtnetlink::new_connection().expect("a netlink socket");
    tokio::spawn(connection);
    handle
}

/// Makes a veth pair; returns the index of `pod`.
async fn veth(netlink: &Handle, index: Option<u32>) -> u32 {
    let mut pair: LinkMessage = LinkVeth::new("pod", "peer").build();
    pair.header.index = index.unwrap_or_default();
    netlink
        .link()
        .add(pair)
        .execute()
        .await
        .expect("a veth pair");
    let index = if_nametoindex("pod").expect("the veth is there");
    netlink
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .expect("up");
    index
}

/// Ids of the programs that hang on `pod` as tcx links.
fn tcx_programs(hook: Hook) -> Vec<u32> {
    let query = aya::programs::SchedClassifier::query_tcx("pod", hook.attach_type());
    query
        .expect("a query")
        .1
        .iter()
        .map(|program| program.id())
        .collect()
}

/// Waits until no program hangs on `pod` as a tcx link: the kernel detaches one that lost its pin a
/// moment later.
fn await_detached() {
    let start = Instant::now();
    while !Hook::ALL.map(tcx_programs).iter().all(Vec::is_empty) {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "they are still attached"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// How many filters hang on the interface, both ways.
async fn filters(netlink: &Handle, index: u32) -> (usize, usize) {
    let mut filters = netlink.traffic_filter(index as i32);
    let ingress: Vec<_> = filters
        .get()
        .ingress()
        .execute()
        .try_collect()
        .await
        .expect("a list");
    let egress: Vec<_> = filters
        .get()
        .egress()
        .execute()
        .try_collect()
        .await
        .expect("a list");
    let ours = |filters: Vec<rtnetlink::packet_route::tc::TcMessage>| {
        // The kernel lists each priority as well as each filter.
        filters
            .iter()
            .filter(|filter| u32::from(filter.header.handle) != 0)
            .count()
    };
    (ours(ingress), ours(egress))
}

fn backend(text: &str) -> BackendKey {
    let socket: std::net::SocketAddr = text.parse().expect("an address");
    BackendKey {
        address: from_ip(socket.ip()),
        port: socket.port(),
    }
}

fn range(text: &str) -> Range {
    Range::from(text.parse::<ipnet::IpNet>().expect("a network"))
}

fn node() -> DesiredNode {
    let address = from_ip("192.168.0.1".parse().expect("an address"));
    DesiredNode {
        addresses: BTreeMap::from([(address, true)]),
        cidrs: BTreeSet::from(["10.96.0.0/12", "fd00::/108"].map(|text| range(text).cidr())),
    }
}

fn desired() -> BTreeMap<ObjectKey, Desired> {
    let [cluster_ip, vip] =
        ["10.96.0.10", "203.0.113.1"].map(|text| from_ip(text.parse().expect("an address")));
    let name = "default/web:http/TCP/IPv4".parse().expect("a name");
    let port = Port {
        frontends: vec![
            (FrontendKey::new(cluster_ip, 80, 6), FrontendKind::Internal),
            (FrontendKey::new(vip, 80, 6), FrontendKind::LoadBalancer),
            (
                FrontendKey::node_port(true, 30080, 6),
                FrontendKind::External,
            ),
        ],
        choice: Choice {
            internal_local: false,
            external_local: true,
            affinity: 60,
            ranges: ["192.0.2.0/24", "198.51.100.7/32"].map(range).into(),
            backends: Backends {
                only_local: vec![],
                both: vec![backend("10.0.1.1:8080")],
                only_cluster: vec![backend("10.0.1.2:8080")],
                draining: vec![backend("10.0.1.3:8080")],
                any: true,
            },
        },
    };
    let desired = Desired {
        addresses: BTreeSet::from([cluster_ip]),
        ports: BTreeMap::from([(name, port)]),
    };
    BTreeMap::from([(ObjectKey::new("default", "web"), desired)])
}

#[test]
#[ignore = "needs root"]
fn a_directory_with_files_is_no_place_for_a_bpf_file_system() {
    sandbox(|pins| async move {
        std::fs::create_dir_all(pins.bpffs().join("somebodys")).expect("a directory");
        let refusal = load(pins.clone(), Attach::Tcx, 0).err().expect("an error");
        assert!(refusal.to_string().contains("--bpffs"), "{refusal}");
        assert!(pins.bpffs().join("somebodys").exists());
    });
}

#[test]
#[ignore = "needs root"]
fn tables_say_what_was_written_and_outlive_the_agent() {
    sandbox(async |pins| {
        drop(start(&pins, Attach::Tcx));
        let mut tables = Tables::open(&pins).expect("tables");
        let mut allocations =
            Allocations::restore(tables.services().expect("a reading"), Sizes::KERNEL);
        for op in allocations.plan(&desired(), Some(&node())).ops {
            tables.apply(&op).expect("a write");
        }
        let address = from_ip("10.0.1.1".parse().expect("an address"));
        let endpoint = Endpoint {
            interface: 7,
            slot: 3,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
        };
        tables.put_endpoint(address, endpoint).expect("a write");
        // One bucket holds four: the fifth interface with its remainder finds no room.
        for n in 0..4 {
            tables
                .put_interface(7 + n * 16_384, 3 + n)
                .expect("a write");
        }
        tables
            .put_interface(7 + 4 * 16_384, 9)
            .expect_err("the bucket is full");
        tables.remove_interface(7 + 16_384).expect("a write");
        drop(tables);

        drop(start(&pins, Attach::Tcx));
        let mut tables = Tables::open(&pins).expect("tables");
        assert_eq!(&tables.services().expect("a reading"), allocations.tables());
        assert_eq!(
            tables.endpoints().expect("a reading"),
            BTreeMap::from([(address, endpoint)])
        );
        let slots = BTreeMap::from([(7, 3), (7 + 2 * 16_384, 5), (7 + 3 * 16_384, 6)]);
        assert_eq!(tables.interfaces().expect("a reading"), slots);
        let gone = desired().into_keys().map(|key| (key, Desired::default()));
        let node = DesiredNode::default();
        for op in allocations.plan(&gone.collect(), Some(&node)).ops {
            tables.apply(&op).expect("a write");
        }
        assert_eq!(&tables.services().expect("a reading"), allocations.tables());
        tables.remove_endpoint(address).expect("a write");
        tables.remove_endpoint(address).expect("absent is fine");
        assert!(
            tables
                .counters()
                .expect("a reading")
                .values()
                .all(|count| *count == 0)
        );
    });
}

#[test]
#[ignore = "needs root"]
fn guards_say_what_was_written() {
    sandbox(async |pins| {
        drop(start(&pins, Attach::Tcx));
        let mut tables = Tables::open(&pins).expect("tables");
        let binding = Binding {
            v4: from_ip("10.244.0.5".parse().expect("an address")),
            v6: UNSPECIFIED,
            mac: [2, 0, 0, 0, 0, 5],
        };
        tables.bind(3, Some(binding)).expect("a write");
        tables.set_rule_sets(3, CLOSED, 7).expect("a write");
        let guard = tables.guard(3).expect("a reading");
        assert_eq!(Binding::of(&guard), Some(binding));
        assert_eq!((guard.ingress, guard.egress), (CLOSED, 7));
        assert_ne!(guard.epoch, 0);
        // Neither touches what is the other's, and every change of policy counts.
        tables.bind(3, None).expect("a write");
        tables.set_rule_sets(3, CLOSED, 7).expect("a write");
        let freed = tables.guard(3).expect("a reading");
        assert_eq!(Binding::of(&freed), None);
        assert_eq!((freed.ingress, freed.egress), (CLOSED, 7));
        assert_eq!(freed.epoch, guard.epoch + 1);
        assert_eq!(tables.guards(), BTreeMap::from([(3, freed)]));
        tables.clear_guard(3).expect("a write");
        let cleared = tables.guard(3).expect("a reading");
        assert_eq!((cleared.ingress, cleared.epoch), (OPEN, freed.epoch + 1));
    });
}

#[test]
#[ignore = "needs root"]
fn tables_of_policies_say_what_was_written() {
    sandbox(async |pins| {
        drop(start(&pins, Attach::Tcx));
        let mut tables = Tables::open(&pins).expect("tables");
        let address = from_ip("10.244.0.5".parse().expect("an address"));
        let peer = PeerKey {
            rule_set: 7,
            identity: 1,
        };
        let rule = RuleKey::new(70, UDP, 53);
        let bits = RuleKey::PORT_BITS;
        tables.put_identity(120, address, 1).expect("a write");
        tables.put_peer(peer, 70).expect("a write");
        tables.put_rule(bits, rule, Rule::ALLOW).expect("a write");
        let identities = tables.identities().expect("a reading");
        assert!(identities.values().eq(&[1]));
        let peers = tables.peers().expect("a reading");
        assert_eq!(peers, BTreeMap::from([(peer, 70)]));
        let rules = tables.rules().expect("a reading");
        assert_eq!(rules, BTreeMap::from([((bits, rule), Rule::ALLOW)]));
        for _ in 0..2 {
            tables
                .remove_identity(120, address)
                .expect("absent is fine");
            tables.remove_peer(&peer).expect("absent is fine");
            tables.remove_rule(bits, rule).expect("absent is fine");
        }
        assert!(tables.identities().expect("a reading").is_empty());
        assert!(tables.peers().expect("a reading").is_empty());
        assert!(tables.rules().expect("a reading").is_empty());
    });
}

#[test]
#[ignore = "needs root"]
fn a_table_of_another_layout_is_refused() {
    sandbox(async |pins| {
        drop(start(&pins, Attach::Tcx));
        let path = pins.table("ENDPOINTS");
        std::fs::remove_file(&path).expect("unpinned");
        let mut other = Array::<_, u64>::create(8, 0).expect("another table");
        other.set(0, 1, 0).expect("it works");
        other.pin(&path).expect("pinned");
        let error = load(pins, Attach::Tcx, 0).map(drop).expect_err("refused");
        let error = format!("{error:#}");
        assert!(
            error.contains("ENDPOINTS") && error.contains("lb cleanup"),
            "{error}"
        );
    });
}

#[test]
#[ignore = "needs root"]
fn a_tcx_link_moves_to_the_new_program() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        let mut first = start(&pins, Attach::Tcx);
        first
            .attach(index, "pod", Side::Pod)
            .await
            .expect("attached");
        let before = Hook::ALL.map(tcx_programs);
        assert!(
            before.iter().all(|programs| programs.len() == 1),
            "{before:?}"
        );
        drop(first);
        assert_eq!(
            Hook::ALL.map(tcx_programs),
            before,
            "they stay when the agent goes"
        );

        let mut second = start(&pins, Attach::Tcx);
        second
            .attach(index, "pod", Side::Pod)
            .await
            .expect("attached");
        second
            .attach(index, "pod", Side::Pod)
            .await
            .expect("again is no error");
        let after = Hook::ALL.map(tcx_programs);
        assert!(
            after.iter().all(|programs| programs.len() == 1),
            "{after:?}"
        );
        assert!(
            before
                .iter()
                .zip(&after)
                .all(|(before, after)| before != after),
            "no new ones"
        );

        second
            .detach(index, "pod", Side::Pod)
            .await
            .expect("detached");
        await_detached();
    });
}

#[test]
#[ignore = "needs root"]
fn a_tcx_link_of_an_interface_that_is_gone_gives_way() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        let mut programs = start(&pins, Attach::Tcx);
        programs
            .attach(index, "pod", Side::Pod)
            .await
            .expect("attached");
        netlink.link().del(index).execute().await.expect("deleted");
        assert!(pins.link(index, Hook::PodEgress).exists());
        programs
            .attach(index, "pod", Side::Pod)
            .await
            .expect_err("there is no such interface");

        veth(&netlink, Some(index)).await;
        programs
            .attach(index, "pod", Side::Pod)
            .await
            .expect("attached");
        assert!(
            Hook::ALL
                .map(tcx_programs)
                .iter()
                .all(|programs| programs.len() == 1)
        );

        programs
            .retain_links(&BTreeMap::from([(index, Side::Pod)]))
            .expect("kept");
        assert!(pins.link(index, Hook::PodEgress).exists());
        programs.retain_links(&BTreeMap::new()).expect("forgotten");
        await_detached();
    });
}

#[test]
#[ignore = "needs root"]
fn a_clsact_filter_is_replaced_in_its_place() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        for _ in 0..2 {
            let mut programs = start(&pins, Attach::Clsact);
            programs
                .attach(index, "pod", Side::Pod)
                .await
                .expect("attached");
            programs
                .attach(index, "pod", Side::Pod)
                .await
                .expect("again is no error");
            drop(programs);
            assert_eq!(filters(&netlink, index).await, (1, 1));
        }
        let mut programs = start(&pins, Attach::Clsact);
        programs
            .detach(index, "pod", Side::Pod)
            .await
            .expect("detached");
        assert_eq!(filters(&netlink, index).await, (0, 0));
    });
}

#[test]
#[ignore = "needs root"]
fn a_tcx_link_takes_the_place_of_a_clsact_filter_and_back() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        let mut programs = start(&pins, Attach::Clsact);
        programs
            .attach(index, "pod", Side::Pod)
            .await
            .expect("attached");
        let mut programs = start(&pins, Attach::Tcx);
        programs
            .attach(index, "pod", Side::Pod)
            .await
            .expect("attached");
        assert_eq!(filters(&netlink, index).await, (0, 0));
        assert!(
            Hook::ALL
                .map(tcx_programs)
                .iter()
                .all(|programs| programs.len() == 1)
        );

        let mut programs = start(&pins, Attach::Clsact);
        programs
            .attach(index, "pod", Side::Pod)
            .await
            .expect("attached");
        assert_eq!(filters(&netlink, index).await, (1, 1));
        await_detached();
        programs
            .detach(index, "pod", Side::Pod)
            .await
            .expect("detached");
        assert_eq!(filters(&netlink, index).await, (0, 0));
    });
}

#[test]
#[ignore = "needs root"]
fn an_ingress_qdisc_is_not_taken_for_clsact() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        netlink
            .qdisc()
            .add(index as i32)
            .ingress()
            .execute()
            .await
            .expect("a qdisc");
        let mut programs = start(&pins, Attach::Clsact);
        let error = programs
            .attach(index, "pod", Side::Pod)
            .await
            .expect_err("refused");
        assert!(format!("{error:#}").contains("`ingress`"), "{error:#}");
    });
}

#[test]
#[ignore = "needs root"]
fn cleanup_removes_every_trace_of_ours_alone() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        let mut programs = start(&pins, Attach::Clsact);
        programs
            .attach(index, "pod", Side::Pod)
            .await
            .expect("attached");
        aya::programs::tc::qdisc_add_clsact("peer").expect("a qdisc of somebody else");
        drop(programs);

        let removed = cleanup(&pins).await.expect("removed");
        assert_eq!(removed.len(), 4, "{removed:?}");
        assert_eq!(filters(&netlink, index).await, (0, 0));
        assert!(!pins.root().exists() && pins.bpffs().exists());
        aya::programs::tc::qdisc_add_clsact("pod").expect("ours is gone");
        aya::programs::tc::qdisc_add_clsact("peer").expect_err("theirs is not");
        assert_eq!(cleanup(&pins).await.expect("nothing to remove"), [""; 0]);
    });
}

fn flow_key(owner: u32, port: u16) -> FlowKey {
    let tuple = Tuple {
        source: from_ip("10.0.1.1".parse().expect("an address")),
        destination: from_ip("10.0.1.2".parse().expect("an address")),
        source_port: port,
        destination_port: 53,
    };
    FlowKey::new(tuple, owner, UDP, Direction::FromPod)
}

/// A flow that was last seen so long ago; zero means now.
fn flow(key: &FlowKey, age: Duration) -> Flow {
    let now = Duration::from(
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock"),
    );
    Flow {
        last_seen: now.saturating_sub(age).as_nanos() as u64,
        to: key.tuple,
        check: key.check(),
        twin: Direction::ToPod as u8,
        ..Flow::NONE
    }
}

#[test]
#[ignore = "needs root"]
fn flows_that_are_over_go_and_others_stay() {
    sandbox(async |pins| {
        let mut programs = start(&pins, Attach::Tcx);
        let mut flows = Flows::open(&pins).expect("tables");
        let (old, new) = (flow_key(1, 1000), flow_key(1, 2000));
        let long_ago = Duration::from_secs(300);
        flows
            .two_way
            .insert(old, flow(&old, long_ago), 0)
            .expect("a write");
        flows
            .two_way
            .insert(new, flow(&new, Duration::ZERO), 0)
            .expect("a write");
        let (old_wire, wire) = (flow_key(WIRE, 1000), flow_key(WIRE, 2000));
        for (key, age) in [(old_wire, long_ago), (wire, Duration::ZERO)] {
            let flow = flow(&key, age);
            flows.two_way.insert(key, flow, 0).expect("a write");
        }
        flows
            .half_open
            .insert(wire, flow(&wire, Duration::ZERO), 0)
            .expect("a write");
        let orphan = flow_key(9, 3000);
        for table in [&mut flows.two_way, &mut flows.half_open] {
            table
                .insert(orphan, flow(&orphan, Duration::ZERO), 0)
                .expect("a write");
        }
        assert_eq!(
            owners(&pins).expect("a reading"),
            BTreeSet::from([WIRE, 1, 9])
        );

        let (report, mut reports) = mpsc::channel(4);
        let (_slots, slots) = watch::channel(BTreeSet::from([1]));
        sweep(&pins, slots, report).expect("a thread");
        let Some(Swept::Expired(keys)) = reports.recv().await else {
            panic!("nothing expired")
        };
        let expired = BTreeSet::from_iter(keys);
        assert_eq!(expired, BTreeSet::from([old, old_wire]));
        let Some(Swept::Pass(counts)) = reports.recv().await else {
            panic!("no end")
        };
        assert_eq!(
            counts,
            FlowCounts {
                two_way: 5,
                half_open: 2
            }
        );
        assert_eq!(owners(&pins).expect("a reading"), BTreeSet::from([WIRE, 1]));

        // The kernel judges for itself: a key that only looked expired stays.
        programs
            .expire(&[old, new, old_wire, wire, flow_key(1, 4000)])
            .expect("a run");
        let left: BTreeSet<_> = flows
            .two_way
            .keys()
            .map(|key| key.expect("a key"))
            .collect();
        assert_eq!(left, BTreeSet::from([new, wire]));
    });
}
