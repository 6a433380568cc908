//! The differences from kube-proxy that are meant. `docs/kube-proxy-parity.md` lists the same.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    outcome::Seen,
    probe::{At, NodeAddresses, Probe, To, Who},
};
use crate::sandbox::Family;

/// A difference that is meant.
pub struct Meant {
    /// As the parity page has it, which also says why.
    pub name: &'static str,
    /// Whether we may show the first where kube-proxy shows the second.
    accepts: fn(&Context<'_>, &Seen, &Seen) -> bool,
}

/// What a difference may depend on.
pub struct Context<'a> {
    pub probe: &'a Probe,
    pub nodes: &'a NodeAddresses,
    /// The address that the client arrives with.
    pub client: IpAddr,
    /// The address that the node has towards its pods.
    pub gateway: IpAddr,
}

pub const MEANT: &[Meant] = &[
    Meant {
        name: "A local backend sees the client under `externalTrafficPolicy: Cluster`.",
        accepts: client_is_kept,
    },
    Meant {
        name: "Pods and processes of a node are not masqueraded on external frontends.",
        accepts: pod_is_kept,
    },
    Meant {
        name: "A pod that reaches itself sees a reserved address",
        accepts: hairpin_is_reserved,
    },
    Meant {
        name: "A process of the node that reaches its own node keeps the address it would have.",
        accepts: node_is_kept,
    },
    Meant {
        name: "A process of the node whose datagram is refused or dropped is not told EPERM.",
        accepts: datagram_is_not_forbidden,
    },
];

/// Whether all that we show is what kube-proxy shows, and the reverse, but for what is meant.
pub fn agree(context: &Context<'_>, ours: &BTreeSet<Seen>, rival: &BTreeSet<Seen>) -> bool {
    let same = |ours: &Seen, rival: &Seen| {
        ours == rival
            || MEANT
                .iter()
                .any(|meant| (meant.accepts)(context, ours, rival))
    };
    ours.iter().all(|a| rival.iter().any(|b| same(a, b)))
        && rival.iter().all(|b| ours.iter().any(|a| same(a, b)))
}

fn client_is_kept(context: &Context<'_>, ours: &Seen, rival: &Seen) -> bool {
    let outside = matches!(
        context.probe.who,
        Who::Outside | Who::OtherPod | Who::OtherHost
    );
    let local = |server: &str| server.starts_with("here-") || server.starts_with("host-1:");
    outside
        && context
            .masquerade(ours, rival)
            .is_some_and(|(server, source)| local(server) && source == context.client)
}

fn pod_is_kept(context: &Context<'_>, ours: &Seen, rival: &Seen) -> bool {
    let Probe { who, to, .. } = context.probe;
    let external = matches!(to, To::Port { at, .. } if *at != At::ClusterIp);
    matches!(who, Who::Pod | Who::Server)
        && external
        && context
            .masquerade(ours, rival)
            .is_some_and(|(_, source)| source == context.client)
}

fn hairpin_is_reserved(context: &Context<'_>, ours: &Seen, rival: &Seen) -> bool {
    let reserved = match context.probe.family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 8)),
    };
    context.probe.who == Who::Server
        && context
            .masquerade(ours, rival)
            .is_some_and(|(server, source)| server.starts_with("here-1:") && source == reserved)
}

/// nftables masquerades with the first address of the device that leads there, the loopback one.
fn node_is_kept(context: &Context<'_>, ours: &Seen, rival: &Seen) -> bool {
    let own = context.nodes.own.get(context.probe.family);
    context.probe.who == Who::Host
        && context
            .masquerade(ours, rival)
            .is_some_and(|(server, source)| server.starts_with("host-1:") && source == own)
}

/// nftables ends a datagram in the call that sends it, and so does not say whether it was refused or
/// dropped.
fn datagram_is_not_forbidden(context: &Context<'_>, ours: &Seen, rival: &Seen) -> bool {
    context.probe.who == Who::Host
        && *rival == Seen::Forbidden
        && matches!(ours, Seen::Refused | Seen::Dropped)
}

impl Context<'_> {
    /// The server and what we show it as client, where kube-proxy shows the same server an address
    /// of the node.
    fn masquerade<'a>(&self, ours: &'a Seen, rival: &Seen) -> Option<(&'a str, IpAddr)> {
        let (
            Seen::Answer { server, source },
            Seen::Answer {
                server: same,
                source: masqueraded,
            },
        ) = (ours, rival)
        else {
            return None;
        };
        let Self { nodes, gateway, .. } = self;
        let family = self.probe.family;
        let own = [nodes.own.get(family), nodes.spare.get(family), *gateway];
        (server == same && own.contains(masqueraded)).then_some((server, *source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How the parity page names the proof of a difference that is in the table here.
    const PROOF: &str = "`cluster: random worlds look as with kube-proxy`";

    #[test]
    fn the_parity_page_lists_what_is_meant_here() -> anyhow::Result<()> {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kube-proxy-parity.md");
        let page = std::fs::read_to_string(page)?;
        let listed: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with(char::is_numeric) && line.contains(PROOF))
            .filter_map(|line| line.split("**").nth(1))
            .collect();
        let meant: Vec<&str> = MEANT.iter().map(|meant| meant.name).collect();
        assert_eq!(listed, meant);
        Ok(())
    }
}
