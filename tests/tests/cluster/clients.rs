//! What clients see of a service.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_tests::sandbox::{Conversation, Family, Protocol, cluster_ip};

use crate::cluster::Cluster;

/// Where a service made by [`objects::service`] is reached.
pub fn frontend(number: u8, family: Family) -> SocketAddr {
    SocketAddr::new(cluster_ip(number).get(family), 80)
}

/// Which servers answer at a service, asked often enough to meet all of a few.
pub fn servers(cluster: &Cluster, number: u8) -> Result<BTreeSet<String>> {
    let mut servers = BTreeSet::new();
    for family in Family::BOTH {
        for protocol in Protocol::BOTH {
            for _ in 0..15 {
                servers.insert(cluster.ask(protocol, frontend(number, family))?.server);
            }
        }
    }
    Ok(servers)
}

/// A set of servers, to compare with.
pub fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// TCP connections to a service, each with the server that answered first.
pub struct Conversations(Vec<(Conversation, String)>);

impl Conversations {
    /// Opens enough to have some with each of a few servers.
    pub fn open(cluster: &Cluster, number: u8) -> Result<Self> {
        let talk = async move {
            let mut conversations = Vec::new();
            for _ in 0..30 {
                for family in Family::BOTH {
                    let opened = Conversation::open(Protocol::Tcp, frontend(number, family));
                    let mut conversation = opened.await?;
                    let server = conversation.ask().await?.server;
                    conversations.push((conversation, server));
                }
            }
            Ok(Self(conversations))
        };
        cluster.client().run(talk)
    }

    /// How many there are with a server.
    pub fn with(&self, server: &str) -> usize {
        self.0.iter().filter(|(_, other)| other == server).count()
    }

    /// Checks that each goes on with the server that it was begun with.
    pub fn go_on(self, cluster: &Cluster) -> Result<Self> {
        cluster.client().run(async {
            let mut same = Vec::new();
            for (mut conversation, server) in self.0 {
                let reply = conversation.ask().await;
                let reply = reply.with_context(|| format!("ask {server} again"))?;
                ensure!(reply.server == server, "{server} became {}", reply.server);
                same.push((conversation, server));
            }
            Ok(Self(same))
        })
    }
}
