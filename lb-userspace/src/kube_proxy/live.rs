//! Whether a kube-proxy runs on this node.

use std::{ffi::OsStr, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use procfs::process::{self, Process};
use tokio::{net::TcpStream, time::timeout};

/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// What `/proxyMode` of kube-proxy may say on Linux.
const MODES: [&str; 3] = ["iptables", "ipvs", "nftables"];
/// More bytes than any of them has.
const LONGEST: usize = 64;

/// What tells that a kube-proxy runs, in words: a process that this one can see, or an answer on
/// kube-proxy's port for metrics, `address`.
pub async fn live(address: SocketAddr) -> Option<String> {
    if let Some(pid) = process() {
        return Some(format!("it runs as pid {pid}"));
    }
    let mode = timeout(PATIENCE, proxy_mode(address)).await.ok()??;
    MODES
        .contains(&&mode[..])
        .then(|| format!("it answers on {address}, in {mode} mode"))
}

/// A kube-proxy in this network namespace: one in another is a neighbour at most.
fn process() -> Option<i32> {
    let own = Process::myself().ok()?;
    let processes = process::all_processes().ok()?;
    processes.flatten().find_map(|process| {
        let known = process.stat().ok()?.comm == "kube-proxy";
        let beside = known && network(&process)? == network(&own)?;
        beside.then_some(process.pid)
    })
}

fn network(process: &Process) -> Option<u64> {
    let namespaces = process.namespaces().ok()?.0;
    Some(namespaces.get(OsStr::new("net"))?.identifier)
}

async fn proxy_mode(address: SocketAddr) -> Option<String> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/proxyMode")
        .header("host", address.to_string())
        .body(Empty::<Bytes>::new())
        .ok()?;
    let answer = sender.send_request(request).await.ok()?;
    let body = Limited::new(answer.into_body(), LONGEST).collect().await;
    connection.abort();
    String::from_utf8(body.ok()?.to_bytes().to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};

    use super::*;

    async fn answering(mode: &'static str) -> SocketAddr {
        let listener = crate::listen::listen(([127, 0, 0, 1], 0).into()).expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().route("/proxyMode", get(async move || mode));
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn kube_proxy_is_known_by_its_mode() {
        assert_eq!(
            proxy_mode(answering("nftables").await).await.as_deref(),
            Some("nftables")
        );
        let address = answering("nftables").await;
        let live = live(address).await.expect("it is alive");
        assert!(live.contains("nftables") || live.contains("pid"), "{live}");
    }

    #[tokio::test]
    async fn others_are_not_taken_for_it() {
        let long = "nftables".repeat(LONGEST);
        for mode in ["ebpf", "", long.leak()] {
            let address = answering(mode).await;
            let known = proxy_mode(address).await;
            assert!(
                !MODES.contains(&known.as_deref().unwrap_or_default()),
                "{known:?}"
            );
        }
        assert_eq!(proxy_mode(([127, 0, 0, 1], 1).into()).await, None);
    }
}
