//! Clients that report what came of a connection.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::{sleep, timeout},
};

use super::{
    addresses::{Family, Pair},
    namespace::Namespace,
    server::{self, LARGEST_DATAGRAM, Protocol},
};

/// How long a client waits before it gives up: long enough for one lost SYN.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// The answer of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The server that answered.
    pub server: String,
    /// The client's address as the server saw it.
    pub seen: SocketAddr,
    /// The client's own address.
    pub local: SocketAddr,
    /// The address that the client got the answer from.
    pub from: SocketAddr,
}

impl Reply {
    /// Whether the server saw the address and port that the client really has.
    pub fn true_source(&self) -> bool {
        self.seen == self.local
    }

    /// The same of the address alone: where a client reaches one server in several ways, its port is
    /// another where the server may remember a connection from that port.
    pub fn true_address(&self) -> bool {
        self.seen.ip() == self.local.ip()
    }
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The other side, or a node on the way, said no.
    Refused,
    /// Nobody said anything.
    TimedOut,
    /// A connection that was there broke, or something else went wrong.
    Broken(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Broken(how) => f.write_str(how),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// A conversation with a server: a TCP connection, or a UDP socket connected to one address, which
/// hears nobody else.
pub struct Conversation {
    transport: Transport,
    local: SocketAddr,
    from: SocketAddr,
}

enum Transport {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Conversation {
    /// Opens a conversation from any port.
    pub async fn open(protocol: Protocol, to: SocketAddr) -> Result<Self, Failure> {
        Self::open_from(0, protocol, to).await
    }

    /// Opens a conversation from a port; a TCP port may still linger from an earlier connection.
    pub async fn open_from(port: u16, protocol: Protocol, to: SocketAddr) -> Result<Self, Failure> {
        Self::open_at(SocketAddr::new(unspecified(to.ip()), port), protocol, to).await
    }

    /// Opens a conversation from an address and port, of which either may be left to the kernel.
    pub async fn open_at(
        from: SocketAddr,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Result<Self, Failure> {
        let transport = match protocol {
            Protocol::Tcp => {
                let stream = patiently(connect(from, to)).await?;
                stream.set_nodelay(true)?;
                Transport::Tcp(BufReader::new(stream))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(from).await?;
                socket.connect(to).await?;
                Transport::Udp(socket)
            }
        };
        let (local, from) = match &transport {
            Transport::Tcp(stream) => (
                stream.get_ref().local_addr()?,
                stream.get_ref().peer_addr()?,
            ),
            Transport::Udp(socket) => (socket.local_addr()?, socket.peer_addr()?),
        };
        Ok(Self {
            transport,
            local,
            from,
        })
    }

    /// The client's address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Asks who is there. A datagram is not repeated.
    pub async fn ask(&mut self) -> Result<Reply, Failure> {
        let answer = patiently(self.exchange("who\n", 0)).await?;
        self.reply(&answer)
    }

    /// Sends `size` bytes, by UDP in one datagram, and asks who took them.
    pub async fn upload(&mut self, size: usize) -> Result<Reply, Failure> {
        let answer = patiently(self.exchange(&format!("take {size}\n"), size)).await?;
        self.reply(&answer)
    }

    /// Receives `size` bytes, by UDP in one datagram.
    pub async fn download(&mut self, size: usize) -> Result<Reply, Failure> {
        let answer = patiently(self.exchange(&format!("give {size}\n"), 0)).await?;
        match &mut self.transport {
            Transport::Tcp(stream) => {
                patiently(stream.read_exact(&mut vec![0; size])).await?;
            }
            Transport::Udp(_) => {
                let more = answer.split_once('\n').map_or(0, |(_, more)| more.len());
                if more != size {
                    return Err(Failure::Broken(format!("{more} of {size} bytes came")));
                }
            }
        }
        self.reply(&answer)
    }

    /// Asks who is there, and closes the connection in a way that leaves the client's port free: the
    /// server closes first. TCP only.
    pub async fn part(mut self) -> Result<Reply, Failure> {
        let answer = patiently(self.exchange("part\n", 0)).await?;
        if let Transport::Tcp(stream) = &mut self.transport {
            patiently(stream.read_to_end(&mut Vec::new())).await?;
        }
        self.reply(&answer)
    }

    /// Asks who is there, and ends the connection with a reset. TCP only.
    pub async fn abort(mut self) -> Result<Reply, Failure> {
        let reply = self.ask().await;
        if let Transport::Tcp(stream) = &self.transport {
            stream.get_ref().set_zero_linger()?;
        }
        reply
    }

    async fn exchange(&mut self, request: &str, more: usize) -> io::Result<String> {
        match &mut self.transport {
            Transport::Tcp(stream) => {
                stream.write_all(request.as_bytes()).await?;
                stream.write_all(&vec![b'.'; more]).await?;
                let mut answer = String::new();
                if stream.read_line(&mut answer).await? == 0 {
                    return Err(io::Error::other("the server closed the connection"));
                }
                Ok(answer)
            }
            Transport::Udp(socket) => {
                socket
                    .send(&[request.as_bytes(), &vec![b'.'; more]].concat())
                    .await?;
                let mut datagram = vec![0; LARGEST_DATAGRAM];
                let size = socket.recv(&mut datagram).await?;
                Ok(String::from_utf8_lossy(&datagram[..size]).into_owned())
            }
        }
    }

    fn reply(&self, answer: &str) -> Result<Reply, Failure> {
        let (server, seen) = server::parse(answer)
            .ok_or_else(|| Failure::Broken(format!("an answer that says {answer:?}")))?;
        Ok(Reply {
            server,
            seen,
            local: self.local,
            from: self.from,
        })
    }
}

/// Connects from an address, as soon as the address is free: a process that is just being started
/// holds copies of all our descriptors, and with them a connection that we have closed.
async fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    loop {
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        match socket.connect(to).await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                sleep(Duration::from_millis(1)).await;
            }
            result => return result,
        }
    }
}

async fn patiently<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    Ok(timeout(PATIENCE, work)
        .await
        .map_err(|_| Failure::TimedOut)??)
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Who asks: a pod, a process of a node, or somebody outside.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    namespace: &'a Namespace,
    source: Option<Pair>,
}

impl<'a> Client<'a> {
    /// A client that leaves its address to the kernel.
    pub(super) fn any(namespace: &'a Namespace) -> Self {
        Self {
            namespace,
            source: None,
        }
    }

    /// A client with an address of its own.
    pub(super) fn with(namespace: &'a Namespace, source: Pair) -> Self {
        Self {
            namespace,
            source: Some(source),
        }
    }

    /// Asks a server who it is, in a conversation of its own.
    pub fn ask(&self, protocol: Protocol, to: SocketAddr) -> Result<Reply, Failure> {
        let from = self.from(to);
        self.run(async move { Conversation::open_at(from, protocol, to).await?.ask().await })
    }

    /// Opens a conversation.
    pub fn open(&self, protocol: Protocol, to: SocketAddr) -> Result<Conversation, Failure> {
        let from = self.from(to);
        self.run(Conversation::open_at(from, protocol, to))
    }

    /// What a socket of this client that is to reach `to` is bound to, with any port.
    pub fn from(&self, to: SocketAddr) -> SocketAddr {
        let source = self.source.map(|source| source.get(Family::of(to.ip())));
        SocketAddr::new(source.unwrap_or_else(|| unspecified(to.ip())), 0)
    }

    /// Where the client is.
    pub fn namespace(&self) -> &'a Namespace {
        self.namespace
    }

    /// Runs a future where the client is; see [`Namespace::run`].
    pub fn run<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.namespace.run(future)
    }
}
