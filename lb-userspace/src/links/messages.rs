//! What netlink's messages say, as our own rows. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
        State,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType},
};

use super::{Framing, Kind, Link, OwnAddress, Peer, Port};

/// The table of the node's own addresses.
const LOCAL_TABLE: u32 = 255;

/// An interface, with the addresses that it is known to have.
pub fn link(message: &LinkMessage, addresses: Vec<OwnAddress>) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: Kind::Other,
        port: None,
        framing: framing(message.header.link_layer_type),
        mtu: 0,
        up: false,
        peer: None,
        addresses,
    };
    let (mut peer_index, mut peer_namespace, mut controller) = (None, None, None);
    let mut port = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::OperState(state) => link.up = *state == State::Up,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::Link(index) => peer_index = Some(*index),
            LinkAttribute::LinkNetNsId(namespace) => peer_namespace = Some(*namespace),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(info) => link.kind = kind(info),
                        LinkInfo::PortKind(kind) => port = Some(kind),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if message.header.flags.contains(LinkFlags::Loopback) {
        link.kind = Kind::Loopback;
    }
    // Whatever it is, what has no link layer leads to one place elsewhere.
    if link.kind == Kind::Other && link.framing == Framing::Bare {
        link.kind = Kind::Tunnel;
    }
    if link.kind == Kind::Veth {
        link.peer = peer_index
            .zip(peer_namespace)
            .map(|(index, namespace)| Peer { index, namespace });
    }
    // A member of a VRF stays what it is.
    link.port = controller
        .zip(port.filter(|port| **port != InfoPortKind::Vrf))
        .map(|(controller, kind)| Port {
            controller,
            bridge: *kind == InfoPortKind::Bridge,
        });
    link
}

fn kind(info: &InfoKind) -> Kind {
    match info {
        InfoKind::Veth => Kind::Veth,
        InfoKind::Bridge => Kind::Bridge,
        InfoKind::Dummy | InfoKind::Ifb | InfoKind::Nlmon => Kind::Dummy,
        InfoKind::Vxlan
        | InfoKind::Geneve
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::GreTap
        | InfoKind::GreTap6
        | InfoKind::Vti
        | InfoKind::Vti6
        | InfoKind::Xfrm
        | InfoKind::BareUdp
        | InfoKind::Wireguard => Kind::Tunnel,
        _ => Kind::Other,
    }
}

fn framing(kind: LinkLayerType) -> Framing {
    match kind {
        LinkLayerType::Ether | LinkLayerType::Loopback => Framing::Ethernet,
        LinkLayerType::None
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre
        | LinkLayerType::Ppp
        | LinkLayerType::Rawip => Framing::Bare,
        _ => Framing::Unknown,
    }
}

/// The address that an interface itself has: `IFA_LOCAL`, which point-to-point links tell apart from
/// `IFA_ADDRESS`, the other side's.
pub fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let find = |local: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
    };
    find(true).or_else(|| find(false))
}

/// An address of the node's own.
pub fn own_address(message: &AddressMessage) -> Option<OwnAddress> {
    let flags = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        })
        .unwrap_or_else(|| header_flags(message.header.flags));
    let doubtful = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    Some(OwnAddress {
        address: address_of(message)?,
        global: message.header.scope == AddressScope::Universe,
        secondary: flags.contains(AddressFlags::Secondary),
        preferred: !flags.intersects(doubtful),
    })
}

/// The flags of a kernel that has no attribute for them.
fn header_flags(flags: AddressHeaderFlags) -> AddressFlags {
    AddressFlags::from_bits_retain(flags.bits().into())
}

/// The farthest that routes through an interface lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// To a network right behind the interface.
    Link(IpNet),
    /// To a network behind a router.
    Gateway(IpNet),
    /// Wherever no other route leads.
    Everywhere,
}

/// The farthest that routes through each interface lead, by its index.
pub fn reach<'a>(routes: impl IntoIterator<Item = &'a RouteMessage>) -> BTreeMap<u32, Reach> {
    let mut farthest: BTreeMap<u32, Reach> = BTreeMap::new();
    for route in routes {
        let Some(network) = destination(route) else {
            continue;
        };
        for (index, gateway) in hops(&route.attributes) {
            let reach = match network.prefix_len() {
                0 => Reach::Everywhere,
                _ if gateway => Reach::Gateway(network),
                _ => Reach::Link(network),
            };
            let farthest = farthest.entry(index).or_insert(reach);
            *farthest = reach.max(*farthest);
        }
    }
    farthest
}

/// The network that a route leads to, if it is one to other machines.
fn destination(
    RouteMessage {
        header, attributes, ..
    }: &RouteMessage,
) -> Option<IpNet> {
    let table = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    if header.kind != RouteType::Unicast || table.unwrap_or(header.table.into()) == LOCAL_TABLE {
        return None;
    }
    let address = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    });
    let address = match address {
        Some(address) => address,
        None => anywhere(header)?,
    };
    let elsewhere = match address {
        IpAddr::V4(address) => !address.is_multicast() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_multicast() && !address.is_unicast_link_local(),
    };
    let network = IpNet::new(address, header.destination_prefix_length).ok()?;
    elsewhere.then_some(network)
}

/// The destination of a route that names none.
fn anywhere(header: &RouteHeader) -> Option<IpAddr> {
    match header.address_family {
        AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

/// The interfaces that a route leads through, and whether a router is behind each.
fn hops(attributes: &[RouteAttribute]) -> Vec<(u32, bool)> {
    let gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().any(|attribute| {
            matches!(
                attribute,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
            )
        })
    };
    let mut hops = Vec::new();
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => hops.push((*index, gateway(attributes))),
            RouteAttribute::MultiPath(paths) => hops.extend(paths.iter().map(
                |RouteNextHop {
                     interface_index,
                     attributes,
                     ..
                 }| (*interface_index, gateway(attributes)),
            )),
            _ => {}
        }
    }
    hops
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(network: &str, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let network: IpNet = network.parse().expect("a network");
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.destination_prefix_length = network.prefix_len();
        route.header.address_family = match network {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        if network.prefix_len() > 0 {
            let destination = RouteAttribute::Destination(network.addr().into());
            route.attributes.push(destination);
        }
        route.attributes.extend(attributes);
        route
    }

    fn gateway(address: &str) -> RouteAttribute {
        let address: IpAddr = address.parse().expect("an address");
        RouteAttribute::Gateway(address.into())
    }

    fn oif(index: u32) -> RouteAttribute {
        RouteAttribute::Oif(index)
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    fn of_kind(kind: Option<InfoKind>, layer: LinkLayerType) -> (Kind, Framing) {
        let mut message = LinkMessage::default();
        message.header.link_layer_type = layer;
        let info = kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        message.attributes.extend(info);
        let link = link(&message, Vec::new());
        (link.kind, link.framing)
    }

    #[test]
    fn what_has_no_link_layer_is_a_tunnel() {
        let tun = Some(InfoKind::Tun);
        for (kind, layer, expected) in [
            (
                tun.clone(),
                LinkLayerType::None,
                (Kind::Tunnel, Framing::Bare),
            ),
            (tun, LinkLayerType::Ether, (Kind::Other, Framing::Ethernet)),
            (None, LinkLayerType::Ppp, (Kind::Tunnel, Framing::Bare)),
            (None, LinkLayerType::Ether, (Kind::Other, Framing::Ethernet)),
            (
                Some(InfoKind::Vxlan),
                LinkLayerType::Ether,
                (Kind::Tunnel, Framing::Ethernet),
            ),
            (
                None,
                LinkLayerType::Infiniband,
                (Kind::Other, Framing::Unknown),
            ),
        ] {
            assert_eq!(of_kind(kind, layer), expected, "{layer:?}");
        }
    }

    #[test]
    fn the_farthest_route_through_an_interface_counts() {
        let hop = |index, attributes| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes = attributes;
            hop
        };
        let routes = [
            route("172.18.0.0/16", vec![oif(2)]),
            route("0.0.0.0/0", vec![oif(2), gateway("172.18.0.1")]),
            route("10.244.2.0/24", vec![oif(2), gateway("172.18.0.3")]),
            route("10.244.2.0/24", vec![oif(3), gateway("10.244.2.0")]),
            route("10.9.0.0/16", vec![oif(4)]),
            route("fd00::/64", vec![oif(4)]),
            route("fe80::/64", vec![oif(5)]),
            route("ff00::/8", vec![oif(5)]),
            route("169.254.0.0/16", vec![oif(5)]),
            route(
                "::/0",
                vec![RouteAttribute::MultiPath(vec![
                    hop(6, vec![gateway("fe80::1")]),
                    hop(7, vec![]),
                ])],
            ),
            route(
                "10.10.0.0/16",
                vec![RouteAttribute::MultiPath(vec![
                    hop(8, vec![gateway("10.1.0.1")]),
                    hop(9, vec![]),
                ])],
            ),
        ];
        let expected = [
            (2, Reach::Everywhere),
            (3, Reach::Gateway(net("10.244.2.0/24"))),
            (4, Reach::Link(net("fd00::/64"))),
            (6, Reach::Everywhere),
            (7, Reach::Everywhere),
            (8, Reach::Gateway(net("10.10.0.0/16"))),
            (9, Reach::Link(net("10.10.0.0/16"))),
        ];
        assert_eq!(reach(&routes), expected.into());
        assert_eq!(reach(routes.iter().rev()), expected.into());
    }

    #[test]
    fn routes_to_the_node_itself_or_to_nobody_count_for_nothing() {
        let mut local = route("10.0.0.0/8", vec![oif(1)]);
        local.header.table = 255;
        let mut local_by_attribute = route("10.0.0.0/8", vec![oif(2)]);
        local_by_attribute
            .attributes
            .push(RouteAttribute::Table(255));
        let mut unreachable = route("0.0.0.0/0", vec![oif(3)]);
        unreachable.header.kind = RouteType::Unreachable;
        let mut other_family = route("0.0.0.0/0", vec![oif(4)]);
        other_family.header.address_family = AddressFamily::Mpls;
        assert_eq!(
            reach(&[local, local_by_attribute, unreachable, other_family]),
            BTreeMap::new()
        );
    }

    #[test]
    fn another_table_is_as_good_as_the_main_one() {
        let mut route = route("0.0.0.0/0", vec![oif(2), RouteAttribute::Table(51_820)]);
        route.header.table = 0;
        assert_eq!(reach(&[route]), [(2, Reach::Everywhere)].into());
    }
}
