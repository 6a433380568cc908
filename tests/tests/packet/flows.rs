//! Flows that no service translates, and flows as time passes.

use lb_common::{
    headers::{ACK, SYN, TCP, UDP},
    tables::FlowTable,
};

use crate::{
    CLIENT, Cast, SERVER, Story,
    kernel::Action,
    pair::Pair,
    wire::{read, seen, tcp, udp},
};

pub const STORIES: &[Story] = &[
    ("a flow that no service translates", plain),
    ("an interface that is not ours", foreign_interface),
    ("a service appears under an unanswered flow", late_service),
    (
        "an unanswered SYN is forgotten after a minute",
        half_open_expires,
    ),
    ("silent datagrams are forgotten", datagrams_expire),
    ("a lost twin is made again", lost_twin),
    (
        "a flow that is answered outlives its first minute",
        refreshed,
    ),
];

fn plain(pair: &mut Pair, cast: &Cast) {
    let syn = tcp(cast.one, cast.client, SYN);
    assert_eq!(pair.to(CLIENT, &syn).bytes, syn);
    let reply = tcp(cast.client, cast.one, SYN | ACK);
    let sent = pair.from(CLIENT, &reply);
    assert_eq!((sent.action, sent.bytes), (Action::Pass, reply));
    let ack = tcp(cast.one, cast.client, ACK);
    assert_eq!(pair.to(CLIENT, &ack).bytes, ack);
    assert_eq!(pair.flows(FlowTable::Flows).len(), 2);
}

fn foreign_interface(pair: &mut Pair, cast: &Cast) {
    const LOOPBACK: u32 = 1;
    pair.service(cast.service, TCP, &[cast.one]);
    let syn = tcp(cast.client, cast.service, SYN);
    let sent = pair.from(LOOPBACK, &syn);
    assert_eq!((sent.action, sent.bytes), (Action::Pass, syn));
}

fn late_service(pair: &mut Pair, cast: &Cast) {
    let query = udp(cast.client, cast.service, b"query");
    assert_eq!(pair.from(CLIENT, &query).bytes, query);
    pair.service(cast.service, UDP, &[cast.one]);
    let sent = pair.from(CLIENT, &query);
    assert_eq!(read(&sent.bytes), seen(cast.client, cast.one));
}

fn half_open_expires(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, TCP, &[cast.one]);
    let syn = tcp(cast.client, cast.service, SYN);
    pair.from(CLIENT, &syn);
    pair.service(cast.service, TCP, &[cast.two]);
    pair.pass_time(59);
    assert_eq!(read(&pair.from(CLIENT, &syn).bytes).to, cast.one);
    pair.pass_time(61);
    assert_eq!(read(&pair.from(CLIENT, &syn).bytes).to, cast.two);
}

fn datagrams_expire(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    let query = udp(cast.client, cast.service, b"query");
    pair.from(CLIENT, &query);
    pair.service(cast.service, UDP, &[cast.two]);
    pair.pass_time(29);
    assert_eq!(read(&pair.from(CLIENT, &query).bytes).to, cast.one);
    pair.pass_time(31);
    assert_eq!(read(&pair.from(CLIENT, &query).bytes).to, cast.two);
    pair.to(CLIENT, &udp(cast.two, cast.client, b"answer"));
    assert!(pair.flows(FlowTable::Flows).is_empty());
    assert_eq!(read(&pair.from(CLIENT, &query).bytes).to, cast.two);
    assert_eq!(pair.flows(FlowTable::Flows).len(), 2);
    pair.service(cast.service, UDP, &[cast.one]);
    pair.pass_time(119);
    assert_eq!(read(&pair.from(CLIENT, &query).bytes).to, cast.two);
    pair.pass_time(121);
    assert_eq!(read(&pair.from(CLIENT, &query).bytes).to, cast.one);
}

fn lost_twin(pair: &mut Pair, cast: &Cast) {
    pair.service(cast.service, UDP, &[cast.one]);
    let query = udp(cast.client, cast.service, b"query");
    pair.from(CLIENT, &query);
    pair.to(CLIENT, &udp(cast.one, cast.client, b"answer"));
    pair.from(CLIENT, &query);
    let whole = pair.flows(FlowTable::Flows);
    let mut half = whole.clone();
    half.retain(|_, flow| flow.opener == 1);
    pair.set_flows(FlowTable::Flows, half);
    pair.from(CLIENT, &query);
    assert_eq!(
        pair.flows(FlowTable::Flows).len(),
        1,
        "not every packet looks"
    );
    pair.pass_time(2);
    pair.from(CLIENT, &query);
    assert!(pair.flows(FlowTable::Flows).keys().eq(whole.keys()));
}

fn refreshed(pair: &mut Pair, cast: &Cast) {
    pair.pod(cast.one, SERVER);
    pair.service(cast.service, TCP, &[cast.one]);
    pair.from(CLIENT, &tcp(cast.client, cast.service, SYN));
    for _ in 0..3 {
        pair.pass_time(40);
        let reply = pair.to(CLIENT, &tcp(cast.one, cast.client, SYN | ACK));
        assert_eq!(read(&reply.bytes), seen(cast.service, cast.client));
    }
    pair.from(CLIENT, &tcp(cast.client, cast.service, ACK));
    assert_eq!(pair.flows(FlowTable::Flows).len(), 2);
}
