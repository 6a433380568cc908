//! The netfilter rules that a node of a real cluster has without any service proxy.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;

use super::{addresses, namespace::Namespace};

/// Loads the rules of a node.
pub(super) fn load(namespace: &Namespace, node: u8) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped());
    let mut nft = namespace
        .start(command)
        .context("run nft (package nftables)")?;
    let mut stdin = nft.stdin.take().context("nft has no standard input")?;
    stdin.write_all(ruleset(node).as_bytes())?;
    drop(stdin);
    ensure!(
        nft.wait()?.success(),
        "nft refused the rules of node {node}"
    );
    Ok(())
}

/// Connection tracking that drops what it cannot place, as kube-proxy sets it up; forwarding only
/// for pods, as flannel does; and the masquerade that CNI plugins add for pods that leave the
/// cluster network.
fn ruleset(node: u8) -> String {
    let accepts: String = addresses::cluster_networks().map(accept).concat();
    let masquerades: String = addresses::pod_networks(node)
        .into_iter()
        .zip(addresses::cluster_networks())
        .map(|(pods, cluster)| {
            let family = family(&pods);
            format!("    {family} saddr {pods} {family} daddr != {cluster} masquerade\n")
        })
        .collect();
    format!(
        "table inet node {{\n\
         \x20 chain forward {{\n\
         \x20   type filter hook forward priority filter; policy drop;\n\
         \x20   ct state invalid drop\n\
         {accepts}\
         \x20 }}\n\
         \x20 chain postrouting {{\n\
         \x20   type nat hook postrouting priority srcnat;\n\
         {masquerades}\
         \x20 }}\n\
         }}\n"
    )
}

fn accept(network: IpNet) -> String {
    let family = family(&network);
    format!("    {family} saddr {network} accept\n    {family} daddr {network} accept\n")
}

fn family(network: &IpNet) -> &'static str {
    match network {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}
