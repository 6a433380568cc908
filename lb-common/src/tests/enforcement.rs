//! NetworkPolicy's semantics as far as packets show them. The rows are those of
//! `reference/network-policy.md`, section 1.

use super::{
    CLIENT, Cast, Node, SECOND, SERVER, casts,
    fence::{
        CLIENT_EGRESS, CLIENT_INGRESS, CLIENT_SLOT, DENIED_EGRESS, DENIED_INGRESS, Fence,
        OUT_OF_STATE, SERVER_INGRESS, SERVER_SLOT, What, with_port,
    },
    frames, wire,
};
use crate::{
    event::{ALLOWED, TallyKey},
    flow::Direction,
    headers::{ACK, FIN, RST, SCTP, SYN, TCP, UDP},
    packet::{MARK_DELIVER, MARK_FROM_HOST, MARK_FROM_POD, Verdict},
    policy::{CLOSED, NO_RULE, OPEN, Rule},
    reason::Reason,
};

const GRE: u8 = 47;
const UNREACHABLE: [[u8; 2]; 2] = [[3, 3], [1, 4]];
const TOO_BIG: [[u8; 2]; 2] = [[3, 4], [2, 0]];

fn fences() -> [Fence; 2] {
    casts().map(Fence::new)
}

/// ICMP's protocol number in the family of the cast.
fn icmp(cast: &Cast) -> u8 {
    if cast.client.is_ipv4() { 1 } else { 58 }
}

#[test]
fn row_01_isolation_is_per_direction() {
    for fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        let (out, back) = (wire::tcp(client, one, SYN), wire::tcp(one, client, SYN));
        fence.isolate(CLIENT_SLOT, OPEN, CLIENT_EGRESS);
        assert_eq!(fence.sends(&out), DENIED_EGRESS);
        assert_eq!(fence.receives(&back), Verdict::Pass);

        let fence = Fence::new(Cast { ..fence.cast });
        fence.isolate(CLIENT_SLOT, CLIENT_INGRESS, OPEN);
        assert_eq!(fence.sends(&out), Verdict::Pass);
        let other = wire::tcp(with_port(one, 9), client, SYN);
        assert_eq!(fence.receives(&other), DENIED_INGRESS);
    }
}

#[test]
fn row_01_a_connection_needs_both_ends() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        let syn = wire::tcp(client, one, SYN);
        fence.isolate_client();
        fence.isolate_server();
        fence.allow(CLIENT_EGRESS, one.ip(), What::Everything);
        assert_eq!(fence.sends(&syn), Verdict::Pass);
        assert_eq!(fence.serves(&syn), DENIED_INGRESS);
        fence.allow(SERVER_INGRESS, client.ip(), What::Everything);
        assert_eq!(fence.serves(&syn), Verdict::Pass);
    }
}

#[test]
fn row_04_a_rule_set_for_everybody_and_one_for_nobody() {
    for fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        let syn = wire::tcp(client, one, SYN);
        fence.isolate(CLIENT_SLOT, OPEN, CLOSED);
        assert_eq!(fence.sends(&syn), DENIED_EGRESS);
        fence.isolate_client();
        fence.allow_anybody(CLIENT_EGRESS, What::Everything);
        assert_eq!(fence.sends(&syn), Verdict::Pass);
    }
}

/// Who is known to a rule set has its own class, even where that says less than the one for all.
#[test]
fn row_08_what_is_excepted_is_not_allowed_by_the_rest() {
    for mut fence in fences() {
        let Cast {
            client, one, two, ..
        } = fence.cast;
        fence.isolate_client();
        fence.allow_anybody(CLIENT_EGRESS, What::Everything);
        fence.set(CLIENT_EGRESS, one.ip(), What::Everything, Rule::DENY);
        assert_eq!(fence.sends(&wire::udp(client, one, b"?")), DENIED_EGRESS);
        assert_eq!(fence.sends(&wire::udp(client, two, b"?")), Verdict::Pass);
    }
}

#[test]
fn row_12_a_protocol_without_port_means_all_of_its_ports() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.isolate_client();
        fence.allow(CLIENT_EGRESS, one.ip(), What::Protocol(TCP));
        for port in [1, 80, 65535] {
            let to = with_port(one, port);
            assert_eq!(fence.sends(&wire::tcp(client, to, SYN)), Verdict::Pass);
            assert_eq!(fence.sends(&wire::udp(client, to, b"?")), DENIED_EGRESS);
        }
    }
}

#[test]
fn row_13_a_range_of_ports_ends_where_it_ends() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.isolate_client();
        // 80 to 95.
        fence.allow(CLIENT_EGRESS, one.ip(), What::Ports(TCP, 80, 12));
        for (port, verdict) in [
            (79, DENIED_EGRESS),
            (80, Verdict::Pass),
            (95, Verdict::Pass),
            (96, DENIED_EGRESS),
        ] {
            let syn = wire::tcp(client, with_port(one, port), SYN);
            assert_eq!(fence.sends(&syn), verdict, "{port}");
        }
    }
}

#[test]
fn row_14_rules_for_sctp_open_nothing_else() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.isolate_client();
        fence.allow(CLIENT_EGRESS, one.ip(), What::Port(SCTP, one.port()));
        assert_eq!(fence.sends(&wire::tcp(client, one, SYN)), DENIED_EGRESS);
        assert_eq!(fence.sends(&wire::udp(client, one, b"?")), DENIED_EGRESS);
        let init = super::sctp::packet(client, one, 1);
        assert_eq!(fence.sends(&init), Verdict::Pass);
    }
}

#[test]
fn row_15_protocols_without_ports_need_rules_without_ports() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        let icmp = icmp(&fence.cast);
        let ping = frames::echo(client.ip(), one.ip(), 7, false);
        let tunnelled = frames::other(client.ip(), one.ip(), GRE, b"tunnelled");
        fence.isolate_client();
        for protocol in [TCP, icmp, GRE] {
            fence.allow(CLIENT_EGRESS, one.ip(), What::Port(protocol, 7));
        }
        assert_eq!(fence.sends(&ping), DENIED_EGRESS);
        assert_eq!(fence.sends(&tunnelled), DENIED_EGRESS);
        fence.allow(CLIENT_EGRESS, one.ip(), What::Protocol(icmp));
        assert_eq!(fence.sends(&ping), Verdict::Pass);
        assert_eq!(fence.sends(&tunnelled), DENIED_EGRESS);
        fence.allow(CLIENT_EGRESS, one.ip(), What::Everything);
        assert_eq!(fence.sends(&tunnelled), Verdict::Pass);
    }
}

#[test]
fn row_16_replies_pass_whatever_the_other_direction_allows() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        assert_eq!(fence.sends(&wire::tcp(client, one, SYN)), Verdict::Pass);
        assert_eq!(
            fence.receives(&wire::tcp(one, client, SYN | ACK)),
            Verdict::Pass
        );
        assert_eq!(fence.sends(&wire::tcp(client, one, ACK)), Verdict::Pass);
        assert_eq!(fence.receives(&wire::tcp(one, client, ACK)), Verdict::Pass);

        assert_eq!(fence.sends(&wire::udp(client, one, b"?")), Verdict::Pass);
        assert_eq!(fence.receives(&wire::udp(one, client, b"!")), Verdict::Pass);

        let ping = frames::echo(client.ip(), one.ip(), 7, false);
        let pong = frames::echo(one.ip(), client.ip(), 7, true);
        assert_eq!(fence.receives(&pong), OUT_OF_STATE);
        assert_eq!(fence.sends(&ping), Verdict::Pass);
        assert_eq!(fence.receives(&pong), Verdict::Pass);

        let gre = |from: std::net::SocketAddr, to: std::net::SocketAddr| {
            frames::other(from.ip(), to.ip(), GRE, b"tunnelled")
        };
        assert_eq!(fence.receives(&gre(one, client)), DENIED_INGRESS);
        assert_eq!(fence.sends(&gre(client, one)), Verdict::Pass);
        assert_eq!(fence.receives(&gre(one, client)), Verdict::Pass);
    }
}

/// What a pod receives is answered although it may send nothing.
#[test]
fn row_16_a_server_that_may_send_nothing_answers() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.isolate_client();
        fence.allow(CLIENT_INGRESS, one.ip(), What::Port(TCP, client.port()));
        assert_eq!(fence.receives(&wire::tcp(one, client, SYN)), Verdict::Pass);
        assert_eq!(
            fence.sends(&wire::tcp(client, one, SYN | ACK)),
            Verdict::Pass
        );
        assert_eq!(
            fence.sends(&wire::tcp(client, one, SYN)),
            Verdict::Pass,
            "on its own flow"
        );
        let elsewhere = wire::tcp(client, with_port(one, 9), SYN);
        assert_eq!(fence.sends(&elsewhere), DENIED_EGRESS);
    }
}

#[test]
fn row_16_a_ping_in_the_open_direction_is_answered() {
    for fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.isolate(CLIENT_SLOT, CLIENT_INGRESS, OPEN);
        let ping = frames::echo(client.ip(), one.ip(), 7, false);
        let pong = frames::echo(one.ip(), client.ip(), 7, true);
        assert_eq!(fence.sends(&ping), Verdict::Pass);
        assert_eq!(fence.receives(&pong), Verdict::Pass);
    }
}

#[test]
fn row_17_errors_about_allowed_flows_pass_and_no_others() {
    for (family, mut fence) in fences().into_iter().enumerate() {
        let Cast {
            client, one, two, ..
        } = fence.cast;
        fence.confine_client(one.ip());
        let syn = wire::tcp(client, one, SYN);
        let ping = frames::echo(client.ip(), one.ip(), 7, false);
        for kind in [UNREACHABLE[family], TOO_BIG[family]] {
            for packet in [&syn, &ping] {
                let error = wire::error(two.ip(), client.ip(), kind, packet);
                assert_eq!(
                    fence.receives(&error),
                    Verdict::Drop(Reason::UnrelatedError),
                    "before the flow"
                );
            }
        }
        fence.sends(&syn);
        fence.sends(&ping);
        for kind in [UNREACHABLE[family], TOO_BIG[family]] {
            for packet in [&syn, &ping] {
                let error = wire::error(two.ip(), client.ip(), kind, packet);
                assert_eq!(fence.receives(&error), Verdict::Pass);
            }
        }
    }
}

/// An error about a flow that policy no longer allows is judged like any packet of it.
#[test]
fn row_17_errors_about_flows_that_were_allowed_once_do_not_pass() {
    for (family, mut fence) in fences().into_iter().enumerate() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        let syn = wire::tcp(client, one, SYN);
        fence.sends(&syn);
        let error = wire::error(one.ip(), client.ip(), UNREACHABLE[family], &syn);
        fence.bump(CLIENT_SLOT);
        assert_eq!(fence.receives(&error), Verdict::Pass);
        fence.forbid(CLIENT_EGRESS, one.ip());
        assert_eq!(fence.receives(&error), DENIED_EGRESS);
    }
}

#[test]
fn row_18_the_node_reaches_its_own_pods() {
    for mut fence in fences() {
        let Cast {
            client, one, two, ..
        } = fence.cast;
        fence.own(one.ip());
        fence.isolate(CLIENT_SLOT, CLOSED, CLOSED);
        let probe = wire::tcp(one, client, SYN);
        assert_eq!(fence.receives_from_node(&probe), Verdict::Pass);
        assert_eq!(
            fence.sends(&wire::tcp(client, one, SYN | ACK)),
            Verdict::Pass
        );
        assert_eq!(
            fence.receives_from_node(&wire::tcp(one, client, ACK)),
            Verdict::Pass
        );
        assert_eq!(
            fence.sends(&wire::tcp(client, one, FIN | ACK)),
            Verdict::Pass
        );
        let ping = frames::echo(one.ip(), client.ip(), 7, false);
        assert_eq!(fence.receives_from_node(&ping), Verdict::Pass);
        assert_eq!(
            fence.sends(&frames::echo(client.ip(), one.ip(), 7, true)),
            Verdict::Pass
        );
        // A change of policy changes nothing about that.
        fence.bump(CLIENT_SLOT);
        assert_eq!(
            fence.receives_from_node(&wire::tcp(one, client, ACK)),
            Verdict::Pass
        );
        // Others do not become the node by its address, nor by where they are.
        let forged = wire::tcp(with_port(one, 9), client, SYN);
        assert_eq!(fence.receives(&forged), DENIED_INGRESS);
        let other_node = wire::tcp(two, client, SYN);
        assert_eq!(fence.receives_from_node(&other_node), DENIED_INGRESS);
    }
}

/// A process of the node that dials a service is led to the pod by redirect.
#[test]
fn row_18_the_node_reaches_its_own_pods_through_services() {
    for fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.isolate(CLIENT_SLOT, CLOSED, CLOSED);
        let probe = wire::tcp(one, client, SYN);
        let tables = &fence.node.tables;
        let (verdict, _) = Node::cross(tables, CLIENT, Direction::ToPod, &probe, MARK_FROM_HOST);
        assert_eq!(verdict, Verdict::Pass);
        let answer = wire::tcp(client, one, SYN | ACK);
        assert_eq!(fence.sends(&answer), Verdict::Enter(0));
    }
}

#[test]
fn row_19_pods_do_not_reach_the_node_unless_policy_says_so() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.own(one.ip());
        fence.isolate_client();
        let syn = wire::tcp(client, one, SYN);
        assert_eq!(fence.sends(&syn), DENIED_EGRESS);
        fence.allow(CLIENT_EGRESS, one.ip(), What::Port(TCP, one.port()));
        assert_eq!(fence.sends(&syn), Verdict::Pass);
    }
}

/// A pod that reaches itself through a service: judged as its own peer, both as who sends and as who
/// receives, on the port of the server.
#[test]
fn row_22_a_pod_that_reaches_itself_is_judged_as_itself() {
    for mut fence in fences() {
        let Cast {
            client, service, ..
        } = fence.cast;
        let own = with_port(client, 8080);
        fence.node.service(service, TCP, &[own]);
        let syn = wire::tcp(client, service, SYN);
        fence.isolate_client();
        assert_eq!(fence.sends(&syn), DENIED_EGRESS);
        fence.allow(CLIENT_EGRESS, own.ip(), What::Port(TCP, 8080));
        assert_eq!(fence.sends(&syn), DENIED_INGRESS);
        fence.allow(CLIENT_INGRESS, own.ip(), What::Port(TCP, 8080));
        fence.events();
        let (verdict, sent) = fence.node.from(CLIENT, &syn);
        assert_eq!(
            (verdict, sent.mark),
            (Verdict::Redirect(CLIENT), MARK_DELIVER)
        );
        let [event] = fence.events()[..] else {
            panic!("one event")
        };
        assert_eq!(event.tuple.source, crate::address::from_ip(own.ip()));

        // Back, and again after a change.
        let reserved = wire::read(&sent.bytes).from;
        let answer = wire::tcp(own, reserved, SYN | ACK);
        assert_eq!(fence.sends(&answer), Verdict::Redirect(CLIENT));
        fence.bump(CLIENT_SLOT);
        assert_eq!(fence.sends(&answer), Verdict::Redirect(CLIENT));
        fence.forbid(CLIENT_INGRESS, own.ip());
        assert_eq!(fence.sends(&answer), DENIED_INGRESS);
        assert_eq!(
            fence.sends(&wire::tcp(client, service, ACK)),
            DENIED_INGRESS
        );
    }
}

/// The port of the service means nothing, that of the backend everything; so with the addresses.
#[test]
fn row_23_services_are_judged_by_their_backends() {
    for mut fence in fences() {
        let Cast {
            client,
            service,
            one,
            ..
        } = fence.cast;
        fence.node.service(service, TCP, &[one]);
        let syn = wire::tcp(client, service, SYN);
        fence.isolate_client();
        fence.allow(CLIENT_EGRESS, service.ip(), What::Everything);
        fence.allow(CLIENT_EGRESS, one.ip(), What::Port(TCP, service.port()));
        assert_eq!(fence.sends(&syn), DENIED_EGRESS);
        fence.allow(CLIENT_EGRESS, one.ip(), What::Port(TCP, one.port()));
        assert_eq!(fence.sends(&syn), Verdict::Pass);
        assert_eq!(
            fence.receives(&wire::tcp(one, client, SYN | ACK)),
            Verdict::Pass
        );
        fence.forbid(CLIENT_EGRESS, one.ip());
        assert_eq!(fence.receives(&wire::tcp(one, client, ACK)), DENIED_EGRESS);
    }
}

/// A local backend sees who dials, and its own policy decides about that.
#[test]
fn row_23_a_local_backend_judges_the_client() {
    for mut fence in fences() {
        let Cast {
            client,
            service,
            one,
            ..
        } = fence.cast;
        fence.node.pod(one, SERVER);
        fence.node.service(service, TCP, &[one]);
        fence.isolate_server();
        let (verdict, sent) = fence.node.from(CLIENT, &wire::tcp(client, service, SYN));
        assert_eq!(
            (verdict, sent.mark),
            (Verdict::Redirect(SERVER), MARK_FROM_POD)
        );
        assert_eq!(
            fence.node.redirected_to(SERVER, &sent.bytes).0,
            DENIED_INGRESS
        );
        fence.allow(SERVER_INGRESS, client.ip(), What::Port(TCP, one.port()));
        assert_eq!(
            fence.node.redirected_to(SERVER, &sent.bytes).0,
            Verdict::Pass
        );
    }
}

/// Every packet after a change is judged, whichever way it goes.
#[test]
fn row_24_established_flows_are_judged_again_after_a_change() {
    for (from_client, by_peer) in [(true, true), (true, false), (false, true), (false, false)] {
        for mut fence in fences() {
            let Cast { client, one, .. } = fence.cast;
            fence.confine_client(one.ip());
            fence.sends(&wire::tcp(client, one, SYN));
            fence.receives(&wire::tcp(one, client, SYN | ACK));
            fence.sends(&wire::tcp(client, one, ACK));
            let next = |fence: &Fence| {
                if from_client {
                    fence.sends(&wire::tcp(client, one, ACK))
                } else {
                    fence.receives(&wire::tcp(one, client, ACK))
                }
            };
            assert_eq!(next(&fence), Verdict::Pass);
            if by_peer {
                fence.forbid(CLIENT_EGRESS, one.ip());
            } else {
                fence.isolate(CLIENT_SLOT, CLIENT_INGRESS, CLOSED);
            }
            assert_eq!(next(&fence), DENIED_EGRESS);
            // A deny is not remembered: what is allowed again goes on.
            fence.confine_client(one.ip());
            assert_eq!(next(&fence), Verdict::Pass);
        }
    }
}

/// Policy that comes to a pod finds the flows that nobody has judged.
#[test]
fn row_24_flows_from_before_a_pod_was_isolated_are_judged() {
    for mut fence in fences() {
        let Cast {
            client, one, two, ..
        } = fence.cast;
        fence.sends(&wire::udp(client, one, b"?"));
        fence.sends(&wire::udp(client, two, b"?"));
        fence.confine_client(one.ip());
        assert_eq!(fence.receives(&wire::udp(one, client, b"!")), Verdict::Pass);
        assert_eq!(fence.receives(&wire::udp(two, client, b"!")), DENIED_EGRESS);
    }
}

/// Nobody has seen who opened a connection that is older than us: where policy would allow it either
/// way it goes on, and elsewhere it ends.
#[test]
fn row_24_connections_older_than_us_go_on_where_policy_allows_them() {
    for by_client in [true, false] {
        for first_from_client in [true, false] {
            for mut fence in fences() {
                let Cast {
                    client, one, two, ..
                } = fence.cast;
                let talk = |fence: &Fence, other| {
                    let sent = fence.sends(&wire::tcp(client, other, ACK));
                    (sent, fence.receives(&wire::tcp(other, client, ACK)))
                };
                if first_from_client {
                    fence.sends(&wire::tcp(client, one, ACK));
                }
                fence.receives(&wire::tcp(one, client, ACK));
                talk(&fence, two);
                fence.isolate_client();
                if by_client {
                    fence.allow(CLIENT_EGRESS, one.ip(), What::Port(TCP, one.port()));
                } else {
                    fence.allow(CLIENT_INGRESS, one.ip(), What::Port(TCP, client.port()));
                }
                for _ in 0..3 {
                    assert_eq!(talk(&fence, one), (Verdict::Pass, Verdict::Pass));
                    assert_eq!(talk(&fence, two), (DENIED_INGRESS, DENIED_INGRESS));
                }
                fence.isolate(CLIENT_SLOT, CLOSED, CLOSED);
                assert_eq!(talk(&fence, one), (DENIED_INGRESS, DENIED_INGRESS));
            }
        }
    }
}

/// Only what may be a connection in full swing is followed, and none that leads to a service.
#[test]
fn row_24_little_else_is_taken_for_a_connection_older_than_us() {
    for mut fence in fences() {
        let Cast {
            client,
            service,
            one,
            ..
        } = fence.cast;
        fence.node.service(service, TCP, &[one]);
        for flags in [SYN | ACK, FIN, FIN | ACK, RST, RST | ACK, 0] {
            assert_eq!(fence.sends(&wire::tcp(client, one, flags)), Verdict::Pass);
        }
        fence.sends(&wire::tcp(client, service, ACK));
        fence.receives(&wire::tcp(service, client, ACK));
        assert!(fence.node.tables.half_open.borrow().is_empty());
    }
}

/// Nothing is looked up for a flow that was judged, and nothing that another pod is judged by.
#[test]
fn row_24_a_flow_is_judged_once_between_changes() {
    for mut fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.confine_client(one.ip());
        fence.sends(&wire::udp(client, one, b"?"));
        // Without an epoch, a change is none.
        fence.node.tables.rules.borrow_mut().clear();
        assert_eq!(fence.sends(&wire::udp(client, one, b"?")), Verdict::Pass);
        assert_eq!(fence.receives(&wire::udp(one, client, b"!")), Verdict::Pass);
        fence.bump(SERVER_SLOT);
        assert_eq!(fence.sends(&wire::udp(client, one, b"?")), Verdict::Pass);
        fence.bump(CLIENT_SLOT);
        assert_eq!(fence.sends(&wire::udp(client, one, b"?")), DENIED_EGRESS);
    }
}

#[test]
fn row_29_neighbours_are_found_by_isolated_pods() {
    let [_, cast] = casts();
    let fence = Fence::new(cast);
    fence.isolate(CLIENT_SLOT, CLOSED, CLOSED);
    let link_local = frames::link_local(wire::mac(CLIENT));
    for icmp_type in [133, 135, 136] {
        let message = frames::neighbour(icmp_type, link_local, link_local, None);
        assert_eq!(fence.sends(&message), Verdict::Pass, "{icmp_type}");
        assert_eq!(fence.receives(&message), Verdict::Pass, "{icmp_type}");
    }
    for icmp_type in [134, 137] {
        let message = frames::neighbour(icmp_type, link_local, link_local, None);
        assert_eq!(fence.receives(&message), Verdict::Pass, "{icmp_type}");
    }
    // What has crossed a router is none of the link's.
    let mut routed = frames::neighbour(135, link_local, link_local, None);
    routed[21] = 254;
    assert_eq!(fence.sends(&routed), DENIED_EGRESS);
    let report = frames::icmp(link_local.into(), link_local.into(), 1, 143, &[0; 4]);
    assert_eq!(fence.sends(&report), Verdict::Pass);
}

#[test]
fn row_30_what_is_denied_is_dropped_without_an_answer() {
    for mut fence in fences() {
        let Cast {
            client,
            service,
            one,
            ..
        } = fence.cast;
        fence.node.service(service, TCP, &[one]);
        fence.isolate_client();
        let syn = wire::tcp(client, service, SYN);
        assert_eq!(fence.sends(&syn), DENIED_EGRESS);
        assert_eq!(fence.counted(Reason::EgressDenied), 1);
        assert!(
            fence.node.tables.half_open.borrow().is_empty(),
            "denies are not remembered"
        );
    }
}

/// Whoever is not isolated pays nothing and is told nothing.
#[test]
fn an_open_pod_is_not_asked_about() {
    for fence in fences() {
        let Cast { client, one, .. } = fence.cast;
        fence.sends(&wire::tcp(client, one, SYN));
        fence.sends(&frames::echo(client.ip(), one.ip(), 7, false));
        assert!(fence.events().is_empty());
        assert_eq!(fence.node.tables.half_open.borrow().len(), 2);
    }
}

#[test]
fn verdicts_and_drops_are_told_with_their_rules() {
    for mut fence in fences() {
        let Cast {
            client,
            service,
            one,
            two,
        } = fence.cast;
        fence.node.service(service, TCP, &[one]);
        fence.isolate_client();
        fence.set(
            CLIENT_EGRESS,
            one.ip(),
            What::Port(TCP, one.port()),
            Rule {
                rule: 41,
                audited_rule: 42,
                audited_allow: 0,
                ..Rule::ALLOW
            },
        );
        fence.sends(&wire::tcp(client, service, SYN));
        fence.sends(&wire::tcp(client, service, SYN));
        fence.receives(&wire::udp(two, client, b"?"));
        let [allowed, denied] = fence.events()[..] else {
            panic!("a verdict and a drop")
        };
        assert_eq!(allowed.slot, CLIENT_SLOT);
        assert_eq!(allowed.outcome, ALLOWED);
        assert_eq!((allowed.rule, allowed.audited_rule), (41, 42));
        assert_eq!(
            (allowed.direction, allowed.audited_allow),
            (Direction::FromPod as u8, 0)
        );
        assert_eq!(allowed.protocol, TCP);
        assert_eq!(allowed.tuple.destination, crate::address::from_ip(one.ip()));
        assert_eq!(allowed.tuple.destination_port, one.port());
        assert_eq!(denied.outcome, Reason::IngressDenied as u16);
        assert_eq!(
            (denied.rule, denied.direction),
            (NO_RULE, Direction::ToPod as u8)
        );
        assert_eq!(denied.tuple.source, crate::address::from_ip(two.ip()));
        assert_eq!(denied.protocol, UDP);

        let tallies = fence.node.tables.tallies.borrow();
        let tally = |outcome, direction: Direction, audited_differs| {
            let key = TallyKey {
                slot: CLIENT_SLOT,
                outcome,
                direction: direction as u8,
                audited_differs,
            };
            tallies.get(&key).copied()
        };
        assert_eq!(tally(ALLOWED, Direction::FromPod, 1), Some(1));
        assert_eq!(
            tally(Reason::IngressDenied as u16, Direction::ToPod, 0),
            Some(1)
        );
        assert_eq!(tallies.len(), 2);
    }
}

#[test]
fn events_are_limited_and_the_rest_is_counted() {
    let [fence, _] = fences();
    let Cast { client, one, .. } = fence.cast;
    fence.isolate_client();
    let denied = wire::udp(client, one, b"?");
    for _ in 0..crate::budget::RATE + 5 {
        fence.sends(&denied);
    }
    assert_eq!(fence.events().len() as u64, crate::budget::RATE);
    assert_eq!(fence.node.tables.lost_events.get(), 5);
    assert_eq!(fence.counted(Reason::EgressDenied), crate::budget::RATE + 5);
    // The other endpoint's drops are counted all the same, and nobody who reads counts as well.
    fence.node.pass_time(SECOND);
    let mut fence = fence;
    fence.node.tables.event_limit = Some(0);
    fence.isolate(SERVER_SLOT, CLOSED, OPEN);
    fence.serves(&denied);
    assert_eq!(fence.node.tables.lost_events.get(), 6);
}
