//! ICMP errors that quote translated flows.

use super::{CLIENT, Cast, Node, SERVER, casts, wire};
use crate::{
    headers::{SYN, TCP, UDP},
    packet::{MARK_FROM_POD, Verdict},
};

const TIME_EXCEEDED: [[u8; 2]; 2] = [[11, 0], [3, 0]];
const PORT_UNREACHABLE: [[u8; 2]; 2] = [[3, 3], [1, 4]];
const TOO_BIG: [[u8; 2]; 2] = [[3, 4], [2, 0]];

/// A router on the way to the backend: its error reaches the client as one about the service.
#[test]
fn a_routers_error_quotes_what_the_client_sent() {
    for (
        family,
        Cast {
            client,
            service,
            one,
            ..
        },
    ) in casts().into_iter().enumerate()
    {
        for kind in [TIME_EXCEEDED[family], TOO_BIG[family]] {
            let router = if family == 0 {
                "172.16.0.1"
            } else {
                "fd00:172::1"
            };
            let router = router.parse().expect("an address");
            let mut node = Node::new();
            node.service(service, TCP, &[one]);
            let (_, sent) = node.from(CLIENT, &wire::tcp(client, service, SYN));
            let error = wire::error(router, client.ip(), kind, &sent.bytes);
            let (verdict, error) = node.to(CLIENT, &error);
            assert_eq!(verdict, Verdict::Pass);
            let (from, to, quoted) = wire::quoted(&error.bytes);
            assert_eq!((from, to), (router, client.ip()));
            assert_eq!(wire::read(&quoted), wire::seen(client, service));
        }
    }
}

/// The backend's own error reaches the client as one from the service.
#[test]
fn a_backends_error_comes_from_the_service() {
    for (
        family,
        Cast {
            client,
            service,
            one,
            ..
        },
    ) in casts().into_iter().enumerate()
    {
        let mut node = Node::new();
        node.pod(one, SERVER);
        node.service(service, UDP, &[one]);
        let (_, sent) = node.from(CLIENT, &wire::udp(client, service, b"?"));
        node.redirected_to(SERVER, &sent.bytes);
        let error = wire::error(one.ip(), client.ip(), PORT_UNREACHABLE[family], &sent.bytes);
        // It goes back the way the datagram came, past the stack that never saw the flow.
        let (verdict, error) = node.from(SERVER, &error);
        assert_eq!(
            (verdict, error.mark),
            (Verdict::Redirect(CLIENT), MARK_FROM_POD)
        );
        let (verdict, error) = node.redirected_to(CLIENT, &error.bytes);
        assert_eq!(verdict, Verdict::Pass);
        let (from, to, quoted) = wire::quoted(&error.bytes);
        assert_eq!((from, to), (service.ip(), client.ip()));
        assert_eq!(wire::read(&quoted), wire::seen(client, service));
    }
}

/// The client's error about an answer goes to the backend that sent it.
#[test]
fn a_clients_error_goes_to_the_backend() {
    for (
        family,
        Cast {
            client,
            service,
            one,
            ..
        },
    ) in casts().into_iter().enumerate()
    {
        let mut node = Node::new();
        node.service(service, UDP, &[one]);
        node.from(CLIENT, &wire::udp(client, service, b"?"));
        let (_, answer) = node.to(CLIENT, &wire::udp(one, client, b"!"));
        let error = wire::error(
            client.ip(),
            service.ip(),
            PORT_UNREACHABLE[family],
            &answer.bytes,
        );
        let (verdict, error) = node.from(CLIENT, &error);
        assert_eq!(verdict, Verdict::Pass);
        let (from, to, quoted) = wire::quoted(&error.bytes);
        assert_eq!((from, to), (client.ip(), one.ip()));
        assert_eq!(wire::read(&quoted), wire::seen(one, client));
    }
}

/// A pod's error about itself goes back to the pod that dialled: itself.
#[test]
fn a_hairpins_error_finds_its_way_back() {
    for (
        family,
        Cast {
            client, service, ..
        },
    ) in casts().into_iter().enumerate()
    {
        let mut own = client;
        own.set_port(8080);
        let mut node = Node::new();
        node.service(service, UDP, &[own]);
        let (_, sent) = node.from(CLIENT, &wire::udp(client, service, b"?"));
        let reserved = wire::read(&sent.bytes).from;
        let error = wire::error(
            own.ip(),
            reserved.ip(),
            PORT_UNREACHABLE[family],
            &sent.bytes,
        );
        let (verdict, error) = node.from(CLIENT, &error);
        assert_eq!(verdict, Verdict::Redirect(CLIENT));
        let (from, to, quoted) = wire::quoted(&error.bytes);
        assert_eq!((from, to), (service.ip(), client.ip()));
        assert_eq!(wire::read(&quoted), wire::seen(client, service));
    }
}

#[test]
fn an_error_about_an_unknown_flow_passes_untouched() {
    for (family, Cast { client, one, .. }) in casts().into_iter().enumerate() {
        let node = Node::new();
        let unknown = wire::udp(client, one, b"?");
        let error = wire::error(one.ip(), client.ip(), PORT_UNREACHABLE[family], &unknown);
        let (verdict, passed) = node.to(CLIENT, &error);
        assert_eq!((verdict, passed.bytes), (Verdict::Pass, error));
    }
}

/// Errors about a flow of one pod mean nothing at another pod's interface.
#[test]
fn an_error_at_another_pod_passes_untouched() {
    for (
        family,
        Cast {
            client,
            service,
            one,
            ..
        },
    ) in casts().into_iter().enumerate()
    {
        let mut node = Node::new();
        node.service(service, UDP, &[one]);
        let (_, sent) = node.from(CLIENT, &wire::udp(client, service, b"?"));
        let error = wire::error(one.ip(), client.ip(), PORT_UNREACHABLE[family], &sent.bytes);
        let (_, passed) = node.to(SERVER, &error);
        assert_eq!(passed.bytes, error);
    }
}
