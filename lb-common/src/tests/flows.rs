//! The life of a flow.

use super::{CLIENT, Cast, Node, SECOND, casts, wire};
use crate::{
    expiry,
    flow::{Flow, FlowKey, State},
    headers::{ACK, FIN, RST, SYN, TCP, UDP},
    memory::Frame,
    packet::{ETHERNET, Verdict},
    reason::Reason,
    scratch::Scratch,
    tables::FlowTable,
};

fn counts(node: &Node) -> (usize, usize) {
    (
        node.tables.flows.borrow().len(),
        node.tables.half_open.borrow().len(),
    )
}

/// A connection in both directions, and the packets of its handshake.
struct Connection {
    node: Node,
    cast: Cast,
}

impl Connection {
    fn opened(cast: Cast) -> Self {
        let mut node = Node::new();
        node.service(cast.service, TCP, &[cast.one]);
        let connection = Self { node, cast };
        connection.send(SYN);
        connection
    }

    fn established(cast: Cast) -> Self {
        let connection = Self::opened(cast);
        connection.answer(SYN | ACK);
        connection.send(ACK);
        connection
    }

    fn send(&self, flags: u8) -> Verdict {
        self.node
            .from(
                CLIENT,
                &wire::tcp(self.cast.client, self.cast.service, flags),
            )
            .0
    }

    fn answer(&self, flags: u8) -> Verdict {
        self.node
            .to(CLIENT, &wire::tcp(self.cast.one, self.cast.client, flags))
            .0
    }

    fn states(&self) -> Vec<State> {
        let mut states = Vec::new();
        for table in [FlowTable::Flows, FlowTable::HalfOpen] {
            for flow in self.node.tables.table(table).borrow().values() {
                states.push(flow.state(table, TCP));
            }
        }
        states
    }
}

#[test]
fn the_table_of_timeouts() {
    assert_eq!(State::HalfOpen.timeout(), 60 * SECOND);
    assert_eq!(State::Established.timeout(), 24 * 3600 * SECOND);
    assert_eq!(State::Closing.timeout(), 120 * SECOND);
    assert_eq!(State::OneWay.timeout(), 30 * SECOND);
    assert_eq!(State::TwoWay.timeout(), 120 * SECOND);
}

#[test]
fn a_handshake_moves_a_flow_among_the_two_way_ones() {
    for cast in casts() {
        let connection = Connection::opened(cast);
        assert_eq!(counts(&connection.node), (0, 2));
        connection.answer(SYN | ACK);
        assert_eq!(counts(&connection.node), (0, 2));
        assert_eq!(connection.states(), [State::HalfOpen; 2]);
        connection.send(ACK);
        assert_eq!(counts(&connection.node), (2, 0));
        assert_eq!(connection.states(), [State::Established; 2]);
    }
}

/// Answers to a flood of forged SYNs stay among the half-open.
#[test]
fn an_answer_that_nobody_acknowledges_is_not_two_way() {
    let [cast, _] = casts();
    let connection = Connection::opened(cast);
    connection.answer(SYN | ACK);
    connection.send(SYN);
    connection.answer(SYN | ACK);
    assert_eq!(counts(&connection.node), (0, 2));
}

#[test]
fn a_refused_connection_is_over() {
    let [cast, _] = casts();
    let connection = Connection::opened(cast);
    connection.answer(RST | ACK);
    assert_eq!(connection.states(), [State::Closing; 2]);
}

/// A client, a Service that answers datagrams, and what each of them says.
struct Exchange {
    node: Node,
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl Exchange {
    fn asked(cast: &Cast) -> Self {
        let &Cast {
            client,
            service,
            one,
            ..
        } = cast;
        let mut node = Node::new();
        node.service(service, UDP, &[one]);
        let exchange = Self {
            node,
            question: wire::udp(client, service, b"?"),
            answer: wire::udp(one, client, b"!"),
        };
        exchange.ask();
        exchange
    }

    fn ask(&self) -> Verdict {
        self.node.from(CLIENT, &self.question).0
    }

    fn answer(&self) -> Verdict {
        self.node.to(CLIENT, &self.answer).0
    }
}

/// Names are looked up in thousands a second: none of that takes a place that lasts.
#[test]
fn a_question_and_its_answers_are_not_two_way() {
    for cast in casts() {
        let exchange = Exchange::asked(&cast);
        exchange.ask();
        for _ in 0..3 {
            exchange.answer();
        }
        assert_eq!(counts(&exchange.node), (0, 2));
    }
}

#[test]
fn a_question_after_the_answer_makes_a_flow_two_way() {
    for cast in casts() {
        let exchange = Exchange::asked(&cast);
        exchange.answer();
        exchange.ask();
        assert_eq!(counts(&exchange.node), (2, 0));
    }
}

#[test]
fn answers_that_last_make_a_flow_two_way() {
    for cast in casts() {
        let exchange = Exchange::asked(&cast);
        exchange.answer();
        exchange.node.pass_time(SECOND);
        exchange.answer();
        assert_eq!(counts(&exchange.node), (2, 0));
    }
}

/// A question that is repeated without an answer, as by somebody who forges his address.
#[test]
fn what_is_not_answered_is_not_two_way() {
    for cast in casts() {
        let exchange = Exchange::asked(&cast);
        exchange.node.pass_time(SECOND);
        exchange.ask();
        assert_eq!(counts(&exchange.node), (0, 2));
    }
}

#[test]
fn datagrams_go_on_where_no_more_two_way_flows_fit() {
    for cast in casts() {
        let mut exchange = Exchange::asked(&cast);
        exchange.node.tables.flow_limit = Some(1);
        exchange.answer();
        for _ in 0..3 {
            assert_ne!(exchange.ask(), Verdict::Drop(Reason::FlowTableFull));
            assert_eq!(exchange.answer(), Verdict::Pass);
            assert_eq!(counts(&exchange.node), (0, 2));
        }
    }
}

/// One port of a pod for a service and for its backend itself.
#[test]
fn a_pod_that_knows_the_backend_too_hears_both() {
    for cast in casts() {
        let exchange = Exchange::asked(&cast);
        let Cast {
            client,
            service,
            one,
            ..
        } = cast;
        let (_, sent) = exchange.node.from(CLIENT, &wire::udp(client, one, b"?"));
        let moved = wire::read(&sent.bytes).from;
        assert_ne!(moved, client);
        for (to, from) in [(client, service), (moved, one)] {
            let (_, sent) = exchange.node.to(CLIENT, &wire::udp(one, to, b"!"));
            assert_eq!(wire::read(&sent.bytes), wire::seen(from, client));
        }
    }
}

#[test]
fn closing_takes_both_sides() {
    let [cast, _] = casts();
    let connection = Connection::established(cast);
    connection.send(FIN | ACK);
    assert_eq!(connection.states(), [State::Established; 2]);
    connection.answer(FIN | ACK);
    assert_eq!(connection.states(), [State::Closing; 2]);
}

#[test]
fn a_reset_closes_at_once() {
    for from_client in [true, false] {
        let [cast, _] = casts();
        let connection = Connection::established(cast);
        if from_client {
            connection.send(RST)
        } else {
            connection.answer(RST)
        };
        assert_eq!(connection.states(), [State::Closing; 2]);
    }
}

#[test]
fn a_syn_on_a_closed_flow_starts_afresh() {
    for cast in casts() {
        let mut connection = Connection::established(cast);
        connection.send(FIN | ACK);
        connection.answer(FIN | ACK);
        connection.send(ACK);
        let Cast {
            client,
            service,
            two,
            ..
        } = connection.cast;
        connection.node.point(1, &[two]);
        let (_, sent) = connection
            .node
            .from(CLIENT, &wire::tcp(client, service, SYN));
        assert_eq!(wire::read(&sent.bytes), wire::seen(client, two));
        assert_eq!(counts(&connection.node), (0, 2));
    }
}

/// A segment of a connection that is alive never moves it, whatever its flags.
#[test]
fn a_syn_on_a_living_flow_keeps_its_backend() {
    let [cast, _] = casts();
    let mut connection = Connection::established(cast);
    let Cast {
        client,
        service,
        one,
        two,
    } = connection.cast;
    connection.node.point(1, &[two]);
    let (_, sent) = connection
        .node
        .from(CLIENT, &wire::tcp(client, service, SYN));
    assert_eq!(wire::read(&sent.bytes), wire::seen(client, one));
}

#[test]
fn a_silent_datagram_flow_is_chosen_anew() {
    for Cast {
        client,
        service,
        one,
        two,
    } in casts()
    {
        let mut node = Node::new();
        node.service(service, UDP, &[one]);
        let query = wire::udp(client, service, b"?");
        node.from(CLIENT, &query);
        node.point(1, &[two]);
        node.pass_time(30 * SECOND);
        assert_eq!(wire::read(&node.from(CLIENT, &query).1.bytes).to, one);
        node.pass_time(31 * SECOND);
        assert_eq!(wire::read(&node.from(CLIENT, &query).1.bytes).to, two);
    }
}

#[test]
fn a_packet_refreshes_both_entries_once_a_second() {
    let [cast, _] = casts();
    let connection = Connection::established(cast);
    let seen = |connection: &Connection| -> Vec<u64> {
        connection
            .node
            .tables
            .flows
            .borrow()
            .values()
            .map(|flow| flow.last_seen)
            .collect()
    };
    let start = connection.node.tables.now.get();
    connection.node.pass_time(SECOND - 1);
    connection.send(ACK);
    assert_eq!(seen(&connection), [start; 2]);
    connection.node.pass_time(1);
    connection.send(ACK);
    assert_eq!(seen(&connection), [start + SECOND; 2]);
}

#[test]
fn a_twin_that_was_lost_is_made_again() {
    for cast in casts() {
        let connection = Connection::established(cast);
        let before = connection.node.tables.flows.borrow().clone();
        for lost in before.keys() {
            connection.node.tables.flows.borrow_mut().remove(lost);
            connection.node.pass_time(SECOND);
            connection.send(ACK);
            connection.answer(ACK);
            let now = connection.node.tables.now.get();
            let mut expected = before.clone();
            expected.values_mut().for_each(|flow| flow.last_seen = now);
            assert_eq!(*connection.node.tables.flows.borrow(), expected);
        }
    }
}

#[test]
fn a_full_table_drops_new_flows_and_keeps_old_ones() {
    let [cast, _] = casts();
    let mut connection = Connection::established(cast);
    connection.node.tables.flow_limit = Some(3);
    let mut other = connection.cast.client;
    other.set_port(41000);
    let Cast { service, one, .. } = connection.cast;
    connection
        .node
        .from(CLIENT, &wire::tcp(other, service, SYN));
    connection
        .node
        .to(CLIENT, &wire::tcp(one, other, SYN | ACK));
    let (verdict, _) = connection
        .node
        .from(CLIENT, &wire::tcp(other, service, ACK));
    assert_eq!(verdict, Verdict::Drop(Reason::FlowTableFull));
    assert_eq!(counts(&connection.node), (2, 2));
    assert_eq!(connection.send(ACK), Verdict::Pass);
}

fn expire(node: &Node, keys: &[FlowKey]) {
    let mut bytes = vec![0; ETHERNET];
    bytes.extend(keys.iter().flat_map(FlowKey::to_bytes));
    let frame = Frame {
        bytes,
        ..Frame::default()
    };
    expiry::expire(&frame, &node.tables, &mut Scratch::new());
}

#[test]
fn expiry_removes_what_is_silent_and_only_that() {
    for cast in casts() {
        let connection = Connection::established(cast);
        let keys: Vec<FlowKey> = connection
            .node
            .tables
            .flows
            .borrow()
            .keys()
            .copied()
            .collect();
        connection.node.pass_time(24 * 3600 * SECOND);
        expire(&connection.node, &keys);
        assert_eq!(counts(&connection.node), (2, 0));
        connection.node.pass_time(1);
        // One entry that was refreshed keeps the pair.
        let edit = |key: &FlowKey, last_seen| {
            let mut flows = connection.node.tables.flows.borrow_mut();
            let flow: &mut Flow = flows.get_mut(key).expect("the flow");
            flow.last_seen = last_seen;
        };
        let old = connection.node.tables.flows.borrow()[&keys[0]].last_seen;
        edit(&keys[0], connection.node.tables.now.get());
        expire(&connection.node, &keys);
        assert_eq!(counts(&connection.node), (2, 0));
        edit(&keys[0], old);
        expire(&connection.node, &keys);
        assert_eq!(counts(&connection.node), (0, 0));
    }
}

#[test]
fn a_flow_that_begins_afresh_leaves_the_replys_key_to_whoever_has_it() {
    for cast in casts() {
        let connection = Connection::established(cast);
        connection.send(RST);
        // Since then a flow of another client has taken the key.
        let taken = {
            let mut flows = connection.node.tables.flows.borrow_mut();
            let reply = flows.iter_mut().find(|(_, flow)| flow.opener == 0);
            let (key, flow) = reply.expect("the entry of replies");
            flow.to.destination_port += 1;
            flow.reset = 0;
            (*key, *flow)
        };
        connection.send(SYN);
        let flows = connection.node.tables.flows.borrow();
        assert_eq!(flows.get(&taken.0), Some(&taken.1));
    }
}
