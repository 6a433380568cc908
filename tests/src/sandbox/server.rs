//! Servers that say who they are and whom they saw.
//!
//! The protocol is a line each way: to any line the answer is `NAME saw ADDRESS:PORT`. A TCP
//! connection takes any number of lines. The line `take N` announces N bytes, which are read before
//! the answer; `give N` asks for N bytes after the answer; `part` asks the server to close the
//! connection after the answer. In a datagram, what follows the line stands in the same datagram.

use std::{io, net::SocketAddr};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
};

use super::{addresses::Pair, namespace::Namespace};

/// More than a datagram can hold, in bytes.
pub(super) const LARGEST_DATAGRAM: usize = 65536;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// Serves a port on both addresses for as long as the namespace is there.
pub(super) fn start(
    namespace: &Namespace,
    name: &str,
    protocol: Protocol,
    addresses: Pair,
    port: u16,
) -> Result<()> {
    let name = name.to_owned();
    namespace.run(async move {
        for address in addresses.each() {
            let (address, name) = (SocketAddr::new(address, port), name.clone());
            match protocol {
                Protocol::Tcp => {
                    let listener = TcpListener::bind(address).await;
                    tokio::spawn(serve_tcp(name, listener.with_context(|| failed(address))?));
                }
                Protocol::Udp => {
                    let socket = UdpSocket::bind(address).await;
                    tokio::spawn(serve_udp(name, socket.with_context(|| failed(address))?));
                }
            }
        }
        Ok(())
    })
}

fn failed(address: SocketAddr) -> String {
    format!("listen on {address}")
}

async fn serve_tcp(name: String, listener: TcpListener) {
    while let Ok((stream, client)) = listener.accept().await {
        let greeting = answer(&name, client);
        tokio::spawn(async move {
            // Ends with the connection, whichever way that ends.
            let _ = converse(&greeting, stream).await;
        });
    }
}

async fn converse(answer: &str, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        if let Some(size) = amount(&line, "take ") {
            let mut bytes = (&mut stream).take(size);
            let taken = tokio::io::copy_buf(&mut bytes, &mut tokio::io::sink()).await?;
            if taken < size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        stream.write_all(answer.as_bytes()).await?;
        if let Some(size) = amount(&line, "give ") {
            tokio::io::copy(&mut tokio::io::repeat(b'.').take(size), &mut stream).await?;
        }
        if line == "part\n" {
            break;
        }
        line.clear();
    }
    Ok(())
}

async fn serve_udp(name: String, socket: UdpSocket) {
    let mut datagram = vec![0; LARGEST_DATAGRAM];
    loop {
        // An ICMP error for an earlier answer comes up here as well; the next datagram is awaited.
        if let Ok((size, client)) = socket.recv_from(&mut datagram).await {
            let answer = answer_datagram(&name, client, &datagram[..size]);
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

/// The answer to a datagram. One that is shorter than it says has lost something on its way, and
/// gets none that is understood.
fn answer_datagram(name: &str, client: SocketAddr, request: &[u8]) -> Vec<u8> {
    let line = request.split_inclusive(|byte| *byte == b'\n').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    let whole = amount(&line, "take ").is_none_or(|size| {
        usize::try_from(size).is_ok_and(|size| request.len() == line.len() + size)
    });
    if !whole {
        return b"cut short\n".to_vec();
    }
    let mut answer = answer(name, client).into_bytes();
    let more = amount(&line, "give ").and_then(|size| usize::try_from(size).ok());
    answer.resize(answer.len() + more.unwrap_or_default(), b'.');
    answer
}

fn answer(name: &str, client: SocketAddr) -> String {
    format!("{name} saw {client}\n")
}

fn amount(line: &str, command: &str) -> Option<u64> {
    line.trim_end().strip_prefix(command)?.parse().ok()
}

/// What an answer says: the server's name, and the client's address as the server saw it.
pub(super) fn parse(answer: &str) -> Option<(String, SocketAddr)> {
    let (name, client) = answer.lines().next()?.split_once(" saw ")?;
    Some((name.to_owned(), client.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood() {
        let client = "[fd00:10:244:1::10]:4242".parse().expect("an address");
        assert_eq!(
            parse(&answer("web-0", client)),
            Some(("web-0".to_owned(), client))
        );
        assert_eq!(parse("web-0 saw nobody\n"), None);
    }
}
