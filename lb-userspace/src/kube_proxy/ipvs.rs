//! What kube-proxy's ipvs mode leaves in IPVS: its virtual services, and the interface that holds
//! their addresses.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::Path,
};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::sys::socket::AddressFamily;
use rtnetlink::{
    Handle,
    packet_route::{
        address::AddressAttribute,
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    },
};

use super::netlink::{Message, Netlink, attribute, find_attribute, is_absent, text_attribute};

/// The interface that holds the addresses of services (`ipvs/netlink.go`).
const INTERFACE: &str = "kube-ipvs0";
/// The apiserver's default for `--service-node-port-range`.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_*`.
const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `IPVS_CMD_*`, `IPVS_CMD_ATTR_SERVICE`, `IPVS_SVC_ATTR_*`.
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const SERVICE: u16 = 1;
const AF: u16 = 1;
const PROTOCOL: u16 = 2;
const ADDRESS: u16 = 3;
const PORT: u16 = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// A virtual service of IPVS. Those known by a mark alone are none of kube-proxy's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Virtual {
    protocol: u16,
    address: IpAddr,
    port: u16,
}

/// Whether the interface is there, in words.
///
/// # Errors
///
/// Where the kernel cannot be asked.
pub async fn remains() -> Result<Vec<String>> {
    let found = interface(&connect()?).await?;
    Ok(found
        .map(|_| format!("the interface {INTERFACE}"))
        .into_iter()
        .collect())
}

/// Removes the virtual services and the interface. Says what went, in words. Without the interface
/// nothing is touched: it is what tells that kube-proxy ran in ipvs mode.
///
/// # Errors
///
/// Where the kernel refuses.
pub async fn clean() -> Result<Vec<String>> {
    let handle = connect()?;
    let Some(index) = interface(&handle).await? else {
        return Ok(Vec::new());
    };
    let (own, local) = addresses(&handle, index).await?;
    let services = tokio::task::spawn_blocking(move || delete_services(&own, &local));
    let mut removed = Vec::new();
    let services = services.await??;
    if services > 0 {
        removed.push(format!("{services} virtual services of IPVS"));
    }
    let delete = handle.link().del(index).execute().await;
    delete.with_context(|| format!("remove the interface {INTERFACE}"))?;
    removed.push(format!("the interface {INTERFACE}"));
    Ok(removed)
}

fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn interface(handle: &Handle) -> Result<Option<u32>> {
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.context("list the interfaces")? {
        if is_kube_proxys(&link) {
            return Ok(Some(link.header.index));
        }
    }
    Ok(None)
}

fn is_kube_proxys(link: &LinkMessage) -> bool {
    let named = LinkAttribute::IfName(INTERFACE.to_owned());
    let is_dummy = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Dummy)),
        _ => false,
    };
    link.attributes.contains(&named) && link.attributes.iter().any(is_dummy)
}

/// The addresses of an interface, and those of all others.
async fn addresses(handle: &Handle, index: u32) -> Result<(BTreeSet<IpAddr>, BTreeSet<IpAddr>)> {
    let (mut own, mut others) = (BTreeSet::new(), BTreeSet::new());
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.context("list the addresses")? {
        let set = match message.header.index == index {
            true => &mut own,
            false => &mut others,
        };
        set.extend(
            message
                .attributes
                .iter()
                .filter_map(|attribute| match attribute {
                    AddressAttribute::Local(address) | AddressAttribute::Address(address) => {
                        Some(*address)
                    }
                    _ => None,
                }),
        );
    }
    Ok((own, others))
}

/// Deletes kube-proxy's virtual services; says how many. `own` are the addresses of its interface,
/// `local` the node's others.
fn delete_services(own: &BTreeSet<IpAddr>, local: &BTreeSet<IpAddr>) -> Result<usize> {
    // Asking would load the module.
    if !Path::new("/sys/module/ip_vs").exists() {
        return Ok(0);
    }
    let mut netlink = Netlink::connect(NETLINK_GENERIC)?;
    let Some(family) = family(&mut netlink)? else {
        return Ok(0);
    };
    let found = netlink
        .dump(&message(family, GET_SERVICE, &[]))
        .context("list the virtual services of IPVS")?;
    let services: Vec<_> = found
        .iter()
        .filter_map(|payload| Virtual::parse(payload))
        .filter(|service| service.is_kube_proxys(own, local))
        .collect();
    for service in &services {
        let delete = message(family, DELETE_SERVICE, &service.attributes());
        netlink
            .request(&delete)
            .with_context(|| format!("delete the virtual service {service:?}"))?;
    }
    Ok(services.len())
}

/// The number under which the kernel knows IPVS.
fn family(netlink: &mut Netlink) -> Result<Option<u16>> {
    let get = message(CONTROLLER, GET_FAMILY, &text_attribute(FAMILY_NAME, "IPVS"));
    let answers = match netlink.request(&get) {
        Ok(answers) => answers,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error).context("look for IPVS"),
    };
    let id = answers
        .first()
        .and_then(|payload| find_attribute(payload.get(4..)?, FAMILY_ID))
        .and_then(|id| Some(u16::from_ne_bytes(id.try_into().ok()?)));
    Ok(id)
}

/// A message of generic netlink: command and version, then attributes.
fn message(family: u16, command: u8, attributes: &[u8]) -> Message {
    Message {
        kind: family,
        payload: [&[command, 1, 0, 0], attributes].concat(),
    }
}

impl Virtual {
    /// From a message of `IPVS_CMD_GET_SERVICE`.
    fn parse(payload: &[u8]) -> Option<Self> {
        let service = find_attribute(payload.get(4..)?, SERVICE)?;
        let number = |kind| -> Option<[u8; 2]> { find_attribute(&service, kind)?.try_into().ok() };
        let address: [u8; 16] = find_attribute(&service, ADDRESS)?.try_into().ok()?;
        let [a, b, c, d, ..] = address;
        let address = match i32::from(u16::from_ne_bytes(number(AF)?)) {
            family if family == AddressFamily::Inet as i32 => Ipv4Addr::new(a, b, c, d).into(),
            _ => Ipv6Addr::from(address).into(),
        };
        Some(Self {
            protocol: u16::from_ne_bytes(number(PROTOCOL)?),
            address,
            port: u16::from_be_bytes(number(PORT)?),
        })
    }

    /// What `IPVS_CMD_DEL_SERVICE` wants to know.
    fn attributes(&self) -> Vec<u8> {
        let mut bytes = [0; 16];
        let family = match self.address {
            IpAddr::V4(address) => {
                bytes[..4].copy_from_slice(&address.octets());
                AddressFamily::Inet
            }
            IpAddr::V6(address) => {
                bytes = address.octets();
                AddressFamily::Inet6
            }
        };
        let family = u16::try_from(family as i32).unwrap_or_default();
        let service = [
            attribute(AF, &family.to_ne_bytes()),
            attribute(PROTOCOL, &self.protocol.to_ne_bytes()),
            attribute(ADDRESS, &bytes),
            attribute(PORT, &self.port.to_be_bytes()),
        ];
        attribute(SERVICE | NESTED, &service.concat())
    }

    /// Whether it is on an address of kube-proxy's interface, or a NodePort.
    fn is_kube_proxys(&self, own: &BTreeSet<IpAddr>, local: &BTreeSet<IpAddr>) -> bool {
        own.contains(&self.address)
            || (local.contains(&self.address) && NODE_PORTS.contains(&self.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(address: &str, port: u16) -> Virtual {
        Virtual {
            protocol: 6,
            address: address.parse().expect("an address"),
            port,
        }
    }

    #[test]
    fn a_virtual_service_is_read_as_it_is_deleted() {
        for service in [service("10.96.0.1", 80), service("fd00::1", 30_000)] {
            let payload = message(0, GET_SERVICE, &service.attributes()).payload;
            assert_eq!(Virtual::parse(&payload), Some(service));
        }
        // What the kernel's `ip_vs.h` makes of TCP 10.96.0.1:80.
        let expected = [
            [48, 0, 1, 0x80].as_slice(),
            &[6, 0, 1, 0, 2, 0, 0, 0],
            &[6, 0, 2, 0, 6, 0, 0, 0],
            &[
                20, 0, 3, 0, 10, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
            &[6, 0, 4, 0, 0, 80, 0, 0],
        ];
        assert_eq!(service("10.96.0.1", 80).attributes(), expected.concat());
        assert_eq!(Virtual::parse(&[4, 1, 0, 0]), None, "known by its mark");
    }

    #[test]
    fn others_virtual_services_are_left_alone() {
        let own = BTreeSet::from(["10.96.0.1".parse().expect("an address")]);
        let local = BTreeSet::from(["192.0.2.1".parse().expect("an address")]);
        for (address, port, kube_proxys) in [
            ("10.96.0.1", 80, true),
            ("192.0.2.1", 30_080, true),
            ("192.0.2.1", 443, false),
            ("192.0.2.9", 30_080, false),
        ] {
            let service = service(address, port);
            assert_eq!(
                service.is_kube_proxys(&own, &local),
                kube_proxys,
                "{service:?}"
            );
        }
    }

    #[test]
    fn only_a_dummy_interface_of_that_name_is_kube_proxys() {
        let link = |name: &str, kind| {
            let mut link = LinkMessage::default();
            link.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
            ];
            link
        };
        assert!(is_kube_proxys(&link(INTERFACE, InfoKind::Dummy)));
        assert!(!is_kube_proxys(&link(INTERFACE, InfoKind::Bridge)));
        assert!(!is_kube_proxys(&link("nodelocaldns", InfoKind::Dummy)));
    }
}
