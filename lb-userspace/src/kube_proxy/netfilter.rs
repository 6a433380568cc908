//! What kube-proxy's nftables mode leaves, and the sets of its ipvs mode: objects of netfilter that
//! have its name.

use std::{io, path::Path};

use anyhow::{Context as _, Result};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    Cleaned,
    netlink::{Message, Netlink, attribute, is_absent, text_attribute},
};

/// `NFNL_SUBSYS_*`, `NFNL_MSG_*`, `NFT_MSG_*` and `IPSET_CMD_*` of the kernel's headers.
const NFTABLES: u16 = 10;
const IPSET: u16 = 6;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const GET_CHAIN: u16 = 4;
const DESTROY_SET: u16 = 3;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_CHAIN_NAME`, `IPSET_ATTR_PROTOCOL`,
/// `IPSET_ATTR_SETNAME`.
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const SET_PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
/// The oldest protocol of ipset that kernels still speak.
const SET_VERSION: u8 = 6;
/// Bytes of a set's name at most, to which kube-proxy cuts its own.
const LONGEST_SET: usize = 31;
/// `IPSET_ERR_BUSY`.
const IN_USE: i32 = 4100;

/// The table of kube-proxy's nftables mode (`knftables` `"kube-proxy"`), in each family.
const TABLE: &str = "kube-proxy";
const FAMILIES: [(&str, u8); 2] = [("ip", IPV4), ("ip6", IPV6)];
/// `NFPROTO_*`.
pub const IPV4: u8 = 2;
pub const IPV6: u8 = 10;

/// The sets of kube-proxy's ipvs mode (`ipset.go`), without their prefix.
const SETS: [&str; 17] = [
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "LOOP-BACK",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
];

/// The header that every message of netfilter begins with: family, version, resource.
fn header(family: u8, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![family, 0, high, low]
}

fn message(subsystem: u16, command: u16, family: u8, attributes: &[Vec<u8>]) -> Message {
    Message {
        kind: (subsystem << 8) | command,
        payload: [header(family, 0), attributes.concat()].concat(),
    }
}

fn batch(command: u16) -> Message {
    Message {
        kind: command,
        payload: header(0, NFTABLES),
    }
}

/// The tables that are there, in words.
///
/// # Errors
///
/// Where the kernel cannot be asked.
pub fn tables() -> Result<Vec<String>> {
    let mut netlink = Netlink::connect(NETLINK_NETFILTER)?;
    let mut found = Vec::new();
    for (name, family) in FAMILIES {
        let get = message(
            NFTABLES,
            GET_TABLE,
            family,
            &[text_attribute(TABLE_NAME, TABLE)],
        );
        match netlink.request(&get) {
            Ok(_) => found.push(in_words(name)),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error).context("look for the nftables table kube-proxy"),
        }
    }
    Ok(found)
}

/// Whether a table of iptables' nftables back end has a chain.
///
/// # Errors
///
/// Where the kernel cannot be asked.
pub fn has_chain(family: u8, table: &str, chain: &str) -> Result<bool> {
    let attributes = [
        text_attribute(CHAIN_TABLE, table),
        text_attribute(CHAIN_NAME, chain),
    ];
    let get = message(NFTABLES, GET_CHAIN, family, &attributes);
    match Netlink::connect(NETLINK_NETFILTER)?.request(&get) {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("look for the chain {chain}")),
    }
}

/// Deletes the tables. Says which were there, in words.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn delete_tables() -> Result<Vec<String>> {
    let mut netlink = Netlink::connect(NETLINK_NETFILTER)?;
    let mut deleted = Vec::new();
    for (name, family) in FAMILIES {
        let delete = message(
            NFTABLES,
            DELETE_TABLE,
            family,
            &[text_attribute(TABLE_NAME, TABLE)],
        );
        match netlink.enclosed(&batch(BATCH_BEGIN), &delete, &batch(BATCH_END)) {
            Ok(()) => deleted.push(in_words(name)),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("delete {}", in_words(name))),
        }
    }
    Ok(deleted)
}

fn in_words(family: &str) -> String {
    format!("the nftables table {family} {TABLE}")
}

/// Destroys the sets that nobody uses.
pub fn destroy_sets(cleaned: &mut Cleaned) {
    // Asking would load the module.
    if !Path::new("/sys/module/ip_set").exists() {
        return;
    }
    let mut netlink = match Netlink::connect(NETLINK_NETFILTER) {
        Ok(netlink) => netlink,
        Err(error) => return cleaned.failed.push(format!("{error:#}")),
    };
    for set in SETS {
        for prefix in ["KUBE-", "KUBE-6-"] {
            let mut name = format!("{prefix}{set}");
            name.truncate(LONGEST_SET);
            let attributes = [
                attribute(SET_PROTOCOL, &[SET_VERSION]),
                text_attribute(SET_NAME, &name),
            ];
            let destroy = message(IPSET, DESTROY_SET, IPV4, &attributes);
            match netlink.remove(&destroy) {
                Ok(()) => cleaned.removed.push(format!("the set {name}")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(IN_USE) => {
                    cleaned.kept.push(format!("the set {name}"));
                }
                Err(error) => cleaned.failed.push(format!("the set {name}: {error}")),
            }
        }
    }
}
