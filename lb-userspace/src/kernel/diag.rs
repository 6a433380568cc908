//! The sockets of this process's network namespace, by sock_diag(7).

use std::{io, net::SocketAddr};

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr as Kernel, protocols::NETLINK_SOCK_DIAG};

/// A socket to ask about sockets.
pub struct Diag {
    socket: Socket,
}

/// A UDP socket that is connected.
pub struct Connected {
    pub cookie: u64,
    pub peer: SocketAddr,
    family: u8,
    id: SocketId,
}

impl Diag {
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG).context("open a sock_diag socket")?;
        socket.bind_auto().context("bind a sock_diag socket")?;
        socket.connect(&Kernel::new(0, 0))?;
        Ok(Self { socket })
    }

    /// All UDP sockets that are connected.
    pub fn connected_udp(&mut self) -> Result<Vec<Connected>> {
        let mut found = Vec::new();
        for (family, any) in [
            (AF_INET, SocketId::new_v4()),
            (AF_INET6, SocketId::new_v6()),
        ] {
            let request = SockDiagMessage::InetRequest(udp(family, any));
            self.send(NLM_F_REQUEST | NLM_F_DUMP, request.into())?;
            self.receive(|id| {
                found.push(Connected {
                    cookie: u64::from_ne_bytes(id.cookie),
                    peer: SocketAddr::new(id.destination_address, id.destination_port),
                    family,
                    id: id.clone(),
                });
            })
            .context("list UDP sockets")?;
        }
        Ok(found)
    }

    /// Disconnects a socket, whose owner gets ECONNABORTED where it waits and EDESTADDRREQ where it
    /// sends; says whether it still was there.
    pub fn end(&mut self, socket: &Connected) -> Result<bool> {
        let request = SockDiagMessage::InetRequest(udp(socket.family, socket.id.clone()));
        let request = SockDiagDestroy::new(request);
        self.send(NLM_F_REQUEST | NLM_F_ACK, request.into())?;
        match self.receive(|_| ()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                bail!("the kernel was built without INET_DIAG_DESTROY")
            }
            Err(error) => Err(error).context("end a UDP socket"),
        }
    }

    fn send<M: NetlinkSerializable>(&self, flags: u16, payload: NetlinkPayload<M>) -> Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket
            .send(&bytes, 0)
            .context("write to a sock_diag socket")?;
        Ok(())
    }

    /// Reads answers until their end.
    fn receive(&self, mut each: impl FnMut(&SocketId)) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(io::Error::other)?;
                match message.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                        each(&response.header.socket_id);
                    }
                    NetlinkPayload::Error(answer) if answer.code.is_some() => {
                        return Err(answer.to_io());
                    }
                    // An error without a code is an acknowledgement.
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
                let length = message.header.length.next_multiple_of(4) as usize;
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

fn udp(family: u8, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_UDP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::ESTABLISHED,
        socket_id,
    }
}
