//! TCP servers that are meant to be there for as long as the agent runs.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use axum::{Router, serve::Listener};
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use serde::{Serialize, Serializer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::sleep,
};

/// Between attempts to listen (`serveHealthz` of kube-proxy).
const RETRY: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Where a server is to listen; an empty text means nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddress(pub Option<SocketAddr>);

impl FromStr for BindAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let address = text
            .parse()
            .map_err(|_| "not an address and a port, as in 0.0.0.0:10256".to_owned())?;
        Ok(Self(Some(address)))
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |address| address.fmt(f))
    }
}

impl Serialize for BindAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A server that the agent owes to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owed {
    /// `/healthz` and `/livez` of the proxy.
    Health,
    /// `/metrics` and what is beside it.
    Metrics,
}

/// What became of an attempt to listen.
#[derive(Debug)]
pub struct Attempt {
    pub server: Owed,
    pub address: SocketAddr,
    /// Why it failed, in words; the next attempt follows in five seconds.
    pub outcome: Result<(), String>,
}

/// Serves for ever in a task of its own, and reports each attempt to listen.
pub fn keep_serving(
    server: Owed,
    address: SocketAddr,
    router: Router,
    report: mpsc::Sender<Attempt>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let listener = listen(address);
            let outcome = listener
                .as_ref()
                .map(|_| ())
                .map_err(|error| format!("cannot listen on {address}: {error}"));
            let attempt = Attempt {
                server,
                address,
                outcome,
            };
            if report.send(attempt).await.is_err() {
                return;
            }
            if let Ok(listener) = listener {
                // Serving ends by an error of the listener alone, which is a reason to listen anew.
                let _ = axum::serve(listener, router.clone()).await;
            }
            sleep(RETRY).await;
        }
    })
}

/// Listens; on all addresses of both families where `address` names none, whichever family it is
/// of, as Go's `net.Listen` does.
///
/// # Errors
///
/// Those of `socket`, `bind` and `listen`.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return bound(new_socket(address)?, address);
    }
    let port = address.port();
    match TcpSocket::new_v6() {
        Ok(socket) => {
            setsockopt(&socket, Ipv6V6Only, &false)?;
            bound(socket, (Ipv6Addr::UNSPECIFIED, port).into())
        }
        // A kernel without IPv6.
        Err(_) => bound(TcpSocket::new_v4()?, (Ipv4Addr::UNSPECIFIED, port).into()),
    }
}

fn new_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
}

fn bound(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpListener> {
    // Connections of an agent that just ended are no obstacle.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A server that can be closed. Its port is free when [`Closable::close`] returns.
pub struct Closable {
    close: oneshot::Sender<()>,
    closed: oneshot::Receiver<()>,
}

impl Closable {
    /// Serves in a task of its own.
    pub fn serve(listener: TcpListener, router: Router) -> Self {
        let (close, closing) = oneshot::channel();
        let (open, closed) = oneshot::channel();
        let listener = Open {
            listener,
            _until: open,
        };
        tokio::spawn(async move {
            let closing = async { drop(closing.await) };
            axum::serve(listener, router)
                .with_graceful_shutdown(closing)
                .await
        });
        Self { close, closed }
    }

    /// Stops listening, and ends the connections that wait for another request.
    pub async fn close(self) {
        let Self { close, closed } = self;
        drop(close);
        // Told by the end of the other side.
        let _ = closed.await;
    }
}

/// A listener whose end can be waited for.
struct Open {
    listener: TcpListener,
    _until: oneshot::Sender<()>,
}

impl Listener for Open {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, time::timeout};

    use super::*;

    fn local(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[test]
    fn an_empty_bind_address_means_no_server() {
        assert_eq!("".parse(), Ok(BindAddress(None)));
        let address: BindAddress = "127.0.0.1:10249".parse().expect("an address");
        assert_eq!(address.to_string(), "127.0.0.1:10249");
        let error = "10249".parse::<BindAddress>().expect_err("no address");
        assert!(error.contains("0.0.0.0:10256"), "{error}");
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() -> io::Result<()> {
        let listener = listen((Ipv4Addr::UNSPECIFIED, 0).into())?;
        let port = listener.local_addr()?.port();
        TcpStream::connect(local(port)).await?;
        TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await?;
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_taken_port_is_tried_again_every_five_seconds() -> io::Result<()> {
        let taken = listen(local(0))?;
        let address = taken.local_addr()?;
        let (report, mut attempts) = mpsc::channel(1);
        let server = keep_serving(Owed::Health, address, Router::new(), report);
        let started = tokio::time::Instant::now();
        for _ in 0..3 {
            let attempt = attempts.recv().await.expect("an attempt");
            let error = attempt.outcome.expect_err("taken");
            assert!(error.starts_with(&format!("cannot listen on {address}: ")));
        }
        assert!((10..11).contains(&started.elapsed().as_secs()));
        drop(taken);
        let attempt = attempts.recv().await.expect("an attempt");
        assert_eq!(attempt.outcome, Ok(()));
        server.abort();
        Ok(())
    }

    #[tokio::test]
    async fn a_closed_server_frees_its_port_and_ends_idle_connections() -> io::Result<()> {
        let listener = listen(local(0))?;
        let address = listener.local_addr()?;
        let server = Closable::serve(listener, Router::new());
        let mut idle = TcpStream::connect(address).await?;
        idle.writable().await?;
        idle.try_write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut answer = [0; 12];
        idle.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"HTTP/1.1 404");

        server.close().await;
        let again = listen(address)?;
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(5), idle.read_to_end(&mut rest)).await;
        ended.expect("the server ends it")?;
        drop(again);
        Ok(())
    }
}
