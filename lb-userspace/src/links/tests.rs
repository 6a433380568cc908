use super::*;

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: Kind::Other,
        port: None,
        framing: Framing::Ethernet,
        mtu: 1500,
        up: true,
        peer: None,
        addresses: Vec::new(),
    }
}

fn pod_link(index: u32, name: &str) -> Link {
    Link {
        kind: Kind::Veth,
        peer: Some(Peer {
            index: 2,
            namespace: 0,
        }),
        ..link(index, name)
    }
}

fn of_kind(index: u32, name: &str, kind: Kind) -> Link {
    Link {
        kind,
        ..link(index, name)
    }
}

fn port_of(controller: u32, link: Link) -> Link {
    let port = Some(Port {
        controller,
        bridge: true,
    });
    Link { port, ..link }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn own(text: &str) -> OwnAddress {
    OwnAddress {
        address: ip(text),
        global: true,
        secondary: false,
        preferred: true,
    }
}

fn carrying(link: Link, addresses: &[&str]) -> Link {
    let addresses = addresses.iter().map(|address| own(address)).collect();
    Link { addresses, ..link }
}

fn patterns(pods: &[&str], uplinks: &[&str]) -> Patterns {
    let parse = |texts: &[&str]| {
        let patterns = texts.iter().map(|text| text.parse().expect("a pattern"));
        patterns.collect()
    };
    Patterns {
        pods: parse(pods),
        uplinks: parse(uplinks),
    }
}

fn left(links: &Links, index: u32) -> Option<String> {
    links
        .judged()
        .find_map(|(link, judgement)| match judgement {
            Judgement::Left(left, _) if link.index == index => Some(left.to_string()),
            _ => None,
        })
}

fn pods(links: &Links) -> Vec<&str> {
    links.pods().map(|link| link.name.as_str()).collect()
}

/// A node with one interface of each sort.
fn node(pods: &[&str]) -> Links {
    let mut links = Links::new(patterns(pods, &[]), Vec::new());
    for link in [
        link(1, "ens3"),
        carrying(pod_link(2, "eth0"), &["192.0.2.7"]),
        pod_link(3, "veth1234"),
        pod_link(4, "cali0001"),
        of_kind(5, "veth-local", Kind::Veth),
        port_of(9, link(6, "tap0")),
        link(7, "veth-not"),
    ] {
        links.apply(LinkChange::Seen(link));
    }
    links.set_node_addresses(&[ip("192.0.2.7")]);
    links
}

#[test]
fn without_patterns_a_veth_into_another_namespace_is_taken() {
    let links = node(&[]);
    assert_eq!(pods(&links), ["veth1234", "cali0001"]);
    assert_eq!(left(&links, 1).as_deref(), Some("not a veth"));
    assert_eq!(left(&links, 3), None);
    assert_eq!(
        left(&links, 5).as_deref(),
        Some("peer is in this namespace")
    );
    assert_eq!(left(&links, 6).as_deref(), Some("not a veth"));
    assert_eq!(
        device(&links, 2).as_deref(),
        Ok("carries the node's address 192.0.2.7")
    );
}

#[test]
fn patterns_select_among_veths_and_bridge_ports() {
    let links = node(&["veth*", "tap?"]);
    assert_eq!(pods(&links), ["veth1234", "tap0"]);
    assert_eq!(
        left(&links, 4).as_deref(),
        Some("does not match --pod-interface")
    );
    assert_eq!(
        left(&links, 5).as_deref(),
        Some("peer is in this namespace")
    );
    assert_eq!(
        left(&links, 7).as_deref(),
        Some("neither a veth nor a bridge port")
    );
}

#[test]
fn a_link_that_goes_or_changes_is_judged_anew() {
    let mut links = node(&[]);
    links.apply(LinkChange::Gone(3));
    links.apply(LinkChange::Seen(Link {
        peer: None,
        ..pod_link(4, "cali0001")
    }));
    assert_eq!(links.pods().count(), 0);
    assert!(!links.listed());
    links.apply(LinkChange::Listed);
    assert!(links.listed());
}

/// Whether an interface leads out of the node, in words.
fn device(links: &Links, index: u32) -> Result<String, String> {
    let link = links.get(index).expect("the interface");
    let judgement = links.judge_device(link);
    judgement
        .map(|leads| leads.to_string())
        .map_err(|no_device| no_device.to_string())
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().expect("a network")
}

/// A node with many interfaces: a bridge of pods, an uplink, tunnels, bonds, a second network.
fn large_node(uplinks: &[&str], nodeports: &str) -> Links {
    let items = nodeports.split_whitespace();
    let items = items.map(|item| item.parse().expect("an item")).collect();
    let mut links = Links::new(patterns(&[], uplinks), items);
    let bare = |link| Link {
        framing: Framing::Bare,
        ..link
    };
    for link in [
        carrying(of_kind(1, "lo", Kind::Loopback), &["127.0.0.1", "::1"]),
        carrying(link(2, "eth0"), &["172.18.0.2", "fd00:172:18::2"]),
        carrying(link(3, "eth1"), &["192.168.7.2"]),
        carrying(of_kind(4, "cni0", Kind::Bridge), &["10.244.1.1"]),
        port_of(4, pod_link(5, "veth1")),
        bare(of_kind(6, "tunl0", Kind::Tunnel)),
        of_kind(7, "flannel.1", Kind::Tunnel),
        of_kind(8, "geneve0", Kind::Tunnel),
        carrying(of_kind(9, "dummy0", Kind::Dummy), &["10.7.7.7"]),
        of_kind(10, "br0", Kind::Bridge),
        port_of(10, link(11, "eth2")),
        pod_link(12, "uplink"),
        Link {
            framing: Framing::Unknown,
            ..link(13, "ib0")
        },
        bare(link(14, "tun0")),
        link(15, "eth3"),
        carrying(of_kind(16, "docker0", Kind::Bridge), &["172.17.0.1"]),
    ] {
        links.apply(LinkChange::Seen(link));
    }
    links.apply(LinkChange::Routes(
        [
            (2, Reach::Link(net("172.18.0.0/16"))),
            (3, Reach::Link(net("192.168.7.0/24"))),
            (4, Reach::Gateway(net("10.99.0.0/16"))),
            (6, Reach::Gateway(net("10.244.2.0/24"))),
            (7, Reach::Link(net("10.244.3.0/24"))),
            (9, Reach::Everywhere),
            (10, Reach::Everywhere),
            (11, Reach::Everywhere),
            (12, Reach::Everywhere),
            (13, Reach::Everywhere),
            (14, Reach::Gateway(net("10.8.0.0/16"))),
            (15, Reach::Link(net("10.3.0.0/24"))),
        ]
        .into(),
    ));
    links.set_node_addresses(&[ip("172.18.0.2"), ip("fd00:172:18::2")]);
    links
}

#[test]
fn routes_and_addresses_tell_what_leads_out_of_the_node() {
    let links = large_node(&[], "primary");
    for (index, expected) in [
        (1, Err("leads nowhere")),
        (2, Ok("carries the node's address 172.18.0.2")),
        (3, Err("no route leads out through it")),
        (4, Err("a bridge of pods")),
        (5, Err("leads to a pod")),
        (6, Ok("carries the route to 10.244.2.0/24")),
        (7, Ok("carries the route to 10.244.3.0/24")),
        (8, Err("no route leads out through it")),
        (9, Err("nothing is behind it")),
        (10, Ok("carries the default route")),
        (11, Err("a port of a bridge or bond")),
        (12, Ok("carries the default route")),
        (
            13,
            Err("its packets have a header that is neither Ethernet nor IP"),
        ),
        (14, Ok("carries the route to 10.8.0.0/16")),
        (15, Err("no route leads out through it")),
        (16, Err("no route leads out through it")),
    ] {
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        assert_eq!(device(&links, index), expected, "interface {index}");
    }
}

#[test]
fn an_interface_that_serves_nodeports_is_an_uplink() {
    let links = large_node(&[], "all");
    assert_eq!(
        device(&links, 3).as_deref(),
        Ok("carries 192.168.7.2, which serves NodePorts")
    );
    assert!(device(&links, 4).is_err(), "a bridge of pods");
    assert!(device(&links, 16).is_err(), "a bridge without ports");
    assert!(device(&links, 1).is_err() && device(&links, 9).is_err());
    assert!(device(&large_node(&[], "primary localhost"), 1).is_err());
}

#[test]
fn patterns_replace_the_search_for_uplinks_but_never_take_pods() {
    let links = large_node(
        &["eth[013]", "uplink", "cni0", "lo", "dummy0", "tunl0"],
        "all",
    );
    let found: Vec<_> = links.devices().map(|(link, _)| &*link.name).collect();
    assert_eq!(found, ["eth0", "eth1", "tunl0", "uplink", "eth3"]);
    assert_eq!(
        device(&links, 7),
        Err("does not match --uplink-interface".to_owned())
    );
    assert_eq!(device(&links, 4), Err("a bridge of pods".to_owned()));

    let mut links = Links::new(patterns(&[], &["veth2"]), Vec::new());
    links.apply(LinkChange::Seen(pod_link(2, "veth2")));
    links.apply(LinkChange::Seen(pod_link(3, "veth3")));
    assert_eq!(
        pods(&links),
        ["veth3"],
        "what is named as an uplink is no pod's"
    );
}

#[test]
fn an_interface_said_to_lead_to_pods_does_whatever_else_is_said() {
    let mut links = Links::new(patterns(&["veth*"], &["veth*"]), Vec::new());
    links.apply(LinkChange::Seen(pod_link(2, "veth1")));
    links.apply(LinkChange::Routes([(2, Reach::Everywhere)].into()));
    assert_eq!(pods(&links), ["veth1"]);
    assert_eq!(links.devices().count(), 0);
}

#[test]
fn a_device_sends_with_its_first_primary_address_of_the_family() {
    let source = |device: Link, listed: &[&str]| {
        let mut links = Links::new(Patterns::default(), Vec::new());
        links.apply(LinkChange::Seen(carrying(link(9, "eth9"), &["172.18.0.2"])));
        links.apply(LinkChange::Seen(device));
        let listed: Vec<_> = listed.iter().map(|text| ip(text)).collect();
        links.set_node_addresses(&listed);
        let device = links.get(2).expect("the device");
        let [v4, v6] = [true, false].map(|v4| links.source(device, v4));
        let text = |address: Option<IpAddr>| address.map_or("none".to_owned(), |a| a.to_string());
        format!("{} {}", text(v4), text(v6))
    };
    let secondary = |text| OwnAddress {
        secondary: true,
        ..own(text)
    };
    let doubtful = |text| OwnAddress {
        preferred: false,
        ..own(text)
    };
    let local = |text| OwnAddress {
        global: false,
        ..own(text)
    };
    for (addresses, listed, expected) in [
        (
            vec![own("10.0.0.1"), own("10.1.0.1")],
            vec![],
            "10.0.0.1 none",
        ),
        (
            vec![secondary("10.0.0.2"), own("10.0.0.1")],
            vec![],
            "10.0.0.1 none",
        ),
        (
            vec![own("10.0.0.1"), secondary("10.0.0.2")],
            vec!["10.0.0.2"],
            "10.0.0.2 none",
        ),
        (
            vec![
                local("fe80::1"),
                doubtful("fd00::1"),
                secondary("fd00::2"),
                own("fd00::3"),
            ],
            vec![],
            "none fd00::3",
        ),
        (
            vec![doubtful("fd00::1"), secondary("fd00::2")],
            vec![],
            "none fd00::2",
        ),
        (vec![doubtful("fd00::1")], vec![], "none fd00::1"),
        (vec![local("10.0.0.1")], vec![], "none none"),
        // A device without addresses sends with the node's.
        (vec![], vec!["172.18.0.2", "fd00::9"], "172.18.0.2 none"),
    ] {
        let device = Link {
            addresses: addresses.clone(),
            ..link(2, "eth0")
        };
        assert_eq!(source(device, &listed), expected, "{addresses:?}");
    }
}

#[test]
fn the_node_view_follows_the_interfaces() {
    let mut links = Links::new(Patterns::default(), vec![NodePortAddresses::Primary]);
    links.set_node_addresses(&[ip("172.18.0.2")]);
    assert_eq!(*links.view(), NodeView::default());
    let eth0 = carrying(link(2, "eth0"), &["172.18.0.2", "172.18.0.9"]);
    links.apply(LinkChange::Seen(eth0));
    let set = |texts: &[&str]| texts.iter().map(|text| ip(text)).collect();
    assert_eq!(links.view().addresses, set(&["172.18.0.2", "172.18.0.9"]));
    assert_eq!(links.view().nodeports_on, set(&["172.18.0.2"]));
    links.set_node_addresses(&[ip("172.18.0.9")]);
    assert_eq!(links.view().nodeports_on, set(&["172.18.0.9"]));
    links.apply(LinkChange::Gone(2));
    assert_eq!(*links.view(), NodeView::default());
}
