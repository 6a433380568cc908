//! Programs on interfaces that lead out of the node.

use aya::{
    Ebpf,
    programs::{SchedClassifier, XdpMode, loaded_links},
};
use rtnetlink::LinkBridge;

use super::*;

/// Names of the programs that hang on `pod` as tcx links, of ingress and then of egress.
fn names() -> Vec<String> {
    let programs = [TcAttachType::Ingress, TcAttachType::Egress]
        .map(|hook| SchedClassifier::query_tcx("pod", hook).expect("a query").1);
    let name = |program: &aya::programs::ProgramInfo| {
        let name = program.name_as_str().expect("text");
        name.to_owned()
    };
    programs.iter().flatten().map(name).collect()
}

#[test]
#[ignore = "needs root"]
fn each_side_has_programs_of_its_own() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        let mut programs = start(&pins, Attach::Tcx);
        for (side, expected) in [
            (Side::Pod, ["pod_egress", "pod_ingress"]),
            (Side::Node, ["node_ingress", "node_egress"]),
            (Side::NodeL3, ["node_ingress_l3", "node_egress_l3"]),
        ] {
            programs.attach(index, "pod", side).await.expect("attached");
            assert_eq!(names(), expected);
            let links = BTreeMap::from([(index, side)]);
            programs.retain_links(&links).expect("kept");
            assert_eq!(names(), expected);
            programs.detach(index, "pod", side).await.expect("detached");
            await_detached();
        }
    });
}

#[test]
#[ignore = "needs root"]
fn an_interface_that_changes_sides_keeps_no_program_of_the_other() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        let mut programs = start(&pins, Attach::Clsact);
        for side in [Side::Pod, Side::Node] {
            programs.attach(index, "pod", side).await.expect("attached");
        }
        programs
            .detach(index, "pod", Side::Pod)
            .await
            .expect("detached");
        assert_eq!(filters(&netlink, index).await, (1, 1), "the other side's");
        programs
            .detach(index, "pod", Side::Node)
            .await
            .expect("detached");
        assert_eq!(filters(&netlink, index).await, (0, 0));
    });
}

/// The id of the XDP program of an interface.
async fn xdp_program(index: u32) -> Option<u32> {
    let netlink = netlink();
    let attached = xdp::attached(&netlink, index).await;
    attached.expect("an answer").map(|(_, id)| id)
}

/// The ids of the XDP links that carry a program.
fn links_of(program: u32) -> Vec<u32> {
    let links = loaded_links().filter_map(Result::ok);
    links
        .filter(|link| link.program_id() == program)
        .map(|link| link.id())
        .collect()
}

#[test]
#[ignore = "needs root"]
fn an_xdp_link_moves_to_the_new_program() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        // In the end the other mode comes in the place of the first.
        for (generic, expected) in [(false, Xdp::Native), (true, Xdp::Generic)] {
            let mut first = start(&pins, Attach::Tcx);
            let attached = first.attach_xdp(index, generic).await.expect("attached");
            assert_eq!(attached, expected);
            drop(first);
            let before = xdp_program(index).await.expect("it stays");
            let link = links_of(before);
            assert_eq!(link.len(), 1, "a link, not a netlink attachment");

            let mut second = start(&pins, Attach::Tcx);
            for _ in 0..2 {
                let attached = second.attach_xdp(index, generic).await.expect("attached");
                assert_eq!(attached, expected);
            }
            let after = xdp_program(index).await.expect("it is there");
            assert_ne!(before, after);
            assert_eq!(links_of(after), link, "the link is the same");
        }
        let mut programs = start(&pins, Attach::Tcx);
        programs.detach_xdp(index).expect("detached");
        let start = Instant::now();
        while xdp_program(index).await.is_some() {
            assert!(start.elapsed() < Duration::from_secs(5), "still attached");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
#[ignore = "needs root"]
fn an_xdp_program_of_somebody_else_stays() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        for mode in [XdpMode::Driver, XdpMode::Skb] {
            let mut other = Ebpf::load(OBJECT).expect("programs");
            let program: &mut aya::programs::Xdp = other
                .program_mut("node_xdp")
                .expect("the program")
                .try_into()
                .expect("an XDP program");
            program.load().expect("loaded");
            program.attach_to_if_index(index, mode).expect("attached");
            let theirs = xdp_program(index).await;

            let mut programs = start(&pins, Attach::Tcx);
            for generic in [false, true] {
                let found = programs.attach_xdp(index, generic).await.expect("no error");
                let Xdp::Foreign(reason) = &found else {
                    panic!("{found:?}")
                };
                let id = theirs.expect("it is there").to_string();
                assert!(reason.ends_with(&id), "{reason}");
                assert_eq!(xdp_program(index).await, theirs);
            }
            drop(other);
            let attached = programs.attach_xdp(index, false).await.expect("attached");
            assert_eq!(attached, Xdp::Native);
            programs.detach_xdp(index).expect("detached");
            while xdp_program(index).await.is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
}

#[test]
#[ignore = "needs root"]
fn a_driver_without_xdp_has_none_but_the_generic_sort() {
    sandbox(async |pins| {
        let netlink = netlink();
        let bridge = LinkBridge::new("pod").build();
        netlink.link().add(bridge).execute().await.expect("made");
        let index = if_nametoindex("pod").expect("it is there");
        let mut programs = start(&pins, Attach::Tcx);
        let native = programs.attach_xdp(index, false).await.expect("no error");
        assert_eq!(native, Xdp::None("its driver has none".to_owned()));
        assert_eq!(xdp_program(index).await, None);
        let generic = programs.attach_xdp(index, true).await.expect("attached");
        assert_eq!(generic, Xdp::Generic);
    });
}

#[test]
#[ignore = "needs root"]
fn an_xdp_link_of_a_device_that_is_gone_gives_way() {
    sandbox(async |pins| {
        let netlink = netlink();
        let index = veth(&netlink, None).await;
        let mut programs = start(&pins, Attach::Tcx);
        programs.attach_xdp(index, false).await.expect("attached");
        netlink.link().del(index).execute().await.expect("deleted");
        assert!(pins.xdp(index).exists());
        programs
            .attach_xdp(index, false)
            .await
            .expect_err("there is no such interface");
        veth(&netlink, Some(index)).await;
        let attached = programs.attach_xdp(index, false).await.expect("attached");
        assert_eq!(attached, Xdp::Native);

        let kept = BTreeMap::from([(index, Side::Node)]);
        programs.retain_links(&kept).expect("kept");
        assert!(pins.xdp(index).exists());
        let pods = BTreeMap::from([(index, Side::Pod)]);
        programs.retain_links(&pods).expect("forgotten");
        assert!(!pins.xdp(index).exists());
    });
}

#[test]
#[ignore = "needs root"]
fn rows_of_devices_outlive_the_agent() {
    sandbox(async |pins| {
        drop(start(&pins, Attach::Tcx));
        let mut tables = Tables::open(&pins).expect("tables");
        let device = lb_common::endpoint::Device {
            v4: from_ip("172.18.0.2".parse().expect("an address")),
            v6: UNSPECIFIED,
            mtu: 1500,
            ethernet: 1,
            xdp: 0,
        };
        tables.put_device(2, device).expect("a write");
        tables.put_device(3, device).expect("a write");
        tables.remove_device(3).expect("a write");
        tables.remove_device(3).expect("absent is fine");
        drop(start(&pins, Attach::Tcx));
        let tables = Tables::open(&pins).expect("tables");
        assert_eq!(tables.devices().expect("a reading"), [(2, device)].into());
    });
}
