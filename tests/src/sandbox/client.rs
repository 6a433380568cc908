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
    namespace::Namespace,
    server::{self, Protocol},
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
    /// Whether the server saw the address that the client really has.
    pub fn true_source(&self) -> bool {
        self.seen == self.local
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
        let any = SocketAddr::new(unspecified(to.ip()), port);
        let transport = match protocol {
            Protocol::Tcp => {
                let stream = patiently(connect(any, to)).await?;
                stream.set_nodelay(true)?;
                Transport::Tcp(BufReader::new(stream))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(any).await?;
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

    /// Sends `size` bytes and asks who took them. TCP only.
    pub async fn upload(&mut self, size: usize) -> Result<Reply, Failure> {
        let answer = patiently(self.exchange(&format!("take {size}\n"), size)).await?;
        self.reply(&answer)
    }

    /// Receives `size` bytes. TCP only.
    pub async fn download(&mut self, size: usize) -> Result<Reply, Failure> {
        let answer = patiently(self.exchange(&format!("give {size}\n"), 0)).await?;
        if let Transport::Tcp(stream) = &mut self.transport {
            patiently(stream.read_exact(&mut vec![0; size])).await?;
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
                socket.send(request.as_bytes()).await?;
                let mut datagram = [0; 2048];
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

/// Asks a server who it is, in a conversation of its own.
pub(super) fn ask(
    namespace: &Namespace,
    protocol: Protocol,
    to: SocketAddr,
) -> Result<Reply, Failure> {
    namespace.run(async move { Conversation::open(protocol, to).await?.ask().await })
}
