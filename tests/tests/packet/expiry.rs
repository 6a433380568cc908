//! The program that expires flows.

use std::net::SocketAddr;

use lb_common::{expiry::BATCH, flow::FlowKey, headers::UDP, tables::FlowTable};

use crate::{CLIENT, Cast, Story, pair::Pair, wire::udp};

pub const STORIES: &[Story] = &[
    ("only silent flows expire", silent),
    ("a twin that was seen keeps both", twin),
    ("more keys than a batch", batch),
];

/// Makes two-way flows from these ports of the client.
fn converse(pair: &mut Pair, cast: &Cast, ports: std::ops::Range<u16>) {
    for port in ports {
        let client = SocketAddr::new(cast.client.ip(), port);
        let query = udp(client, cast.service, b"query");
        pair.from(CLIENT, &query);
        pair.to(CLIENT, &udp(cast.one, client, b"answer"));
        pair.from(CLIENT, &query);
    }
}

fn keys(pair: &Pair) -> Vec<FlowKey> {
    pair.flows(FlowTable::Flows).into_keys().collect()
}

fn silent(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    converse(pair, cast, 1000..1005);
    pair.pass_time(121);
    converse(pair, cast, 2000..2003);
    let mut all = keys(pair);
    // A flow that is gone already, and one key twice.
    all.push(FlowKey::NONE);
    all.push(all[0]);
    pair.expire(&all);
    let left = keys(pair);
    assert_eq!(left.len(), 6);
    let of_client = |key: &FlowKey| {
        let ports = [key.tuple.source_port, key.tuple.destination_port];
        ports.iter().any(|port| (2000..2003).contains(port))
    };
    assert!(left.iter().all(of_client));
}

fn twin(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    converse(pair, cast, 1000..1001);
    let mut flows = pair.flows(FlowTable::Flows);
    pair.pass_time(121);
    for (key, flow) in pair.flows(FlowTable::Flows) {
        if flow.opener == 1 {
            flows.insert(key, flow);
        }
    }
    pair.set_flows(FlowTable::Flows, flows);
    pair.expire(&keys(pair));
    assert_eq!(keys(pair).len(), 2);
}

fn batch(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    converse(pair, cast, 1000..1040);
    pair.pass_time(121);
    let all = keys(pair);
    pair.expire(&all[..BATCH]);
    pair.expire(&all);
    pair.expire(&keys(pair));
    assert!(keys(pair).is_empty());
}
