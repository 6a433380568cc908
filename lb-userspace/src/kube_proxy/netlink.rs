//! Requests to netfilter and IPVS over netlink. Blocking: the kernel answers at once.

use std::{io, iter};

use anyhow::{Context as _, Result};
use netlink_packet_core::{
    DefaultNla, Emitable as _, ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};

/// Bytes of a message's header.
const HEADER: usize = 16;

/// A message of a subsystem.
pub struct Message {
    pub kind: u16,
    /// The subsystem's own header and the attributes.
    pub payload: Vec<u8>,
}

/// A connection to the kernel.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Connects to a protocol such as `NETLINK_NETFILTER`.
    ///
    /// # Errors
    ///
    /// Where the kernel does not have the protocol.
    pub fn connect(protocol: isize) -> Result<Self> {
        let connect = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            io::Result::Ok(socket)
        };
        Ok(Self {
            socket: connect().context("open a netlink socket")?,
            sequence: 0,
        })
    }

    /// Asks for all objects of a kind: the payload of each.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn dump(&mut self, message: &Message) -> io::Result<Vec<Vec<u8>>> {
        let bytes = self.numbered(message, NLM_F_DUMP);
        self.socket.send(&bytes, 0)?;
        self.answers()
    }

    /// Asks for one thing: the payloads that come back before it is acknowledged.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn request(&mut self, message: &Message) -> io::Result<Vec<Vec<u8>>> {
        let bytes = self.numbered(message, NLM_F_ACK);
        self.socket.send(&bytes, 0)?;
        self.answers()
    }

    /// Removes a thing that must be there.
    ///
    /// # Errors
    ///
    /// Those of the kernel; one where there is no such thing.
    pub fn remove(&mut self, message: &Message) -> io::Result<()> {
        let bytes = self.numbered(message, NLM_F_ACK | NLM_F_EXCL);
        self.socket.send(&bytes, 0)?;
        self.answers().map(drop)
    }

    /// Sends a message between two that need no answer.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn enclosed(
        &mut self,
        begin: &Message,
        message: &Message,
        end: &Message,
    ) -> io::Result<()> {
        let bytes = [
            self.numbered(begin, 0),
            self.numbered(message, NLM_F_ACK),
            self.numbered(end, 0),
        ];
        self.socket.send(&bytes.concat(), 0)?;
        self.answers().map(drop)
    }

    fn numbered(&mut self, message: &Message, flags: u16) -> Vec<u8> {
        self.sequence += 1;
        let mut bytes = vec![0; HEADER];
        bytes.extend(&message.payload);
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut header = NetlinkBuffer::new(&mut bytes);
        header.set_length(length);
        header.set_message_type(message.kind);
        header.set_flags(NLM_F_REQUEST | flags);
        header.set_sequence_number(self.sequence);
        bytes
    }

    /// Reads until the end, an acknowledgement or an error.
    fn answers(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                match message.message_type() {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let error = ErrorBuffer::new_checked(message.payload());
                        return match error.map_err(io::Error::other)?.code() {
                            None => Ok(answers),
                            Some(code) => Err(io::Error::from_raw_os_error(code.get().abs())),
                        };
                    }
                    _ => answers.push(message.payload().to_vec()),
                }
                let length = message.length() as usize;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// An attribute.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// An attribute that is a text, as the kernel ends it.
pub fn text_attribute(kind: u16, text: &str) -> Vec<u8> {
    let bytes: Vec<u8> = text.bytes().chain(iter::once(0)).collect();
    attribute(kind, &bytes)
}

/// The value of the first attribute of a kind, nested or not.
pub fn find_attribute(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    NlasIterator::new(attributes)
        .flatten()
        .find(|attribute| attribute.kind() == kind)
        .map(|attribute| attribute.value().to_vec())
}

/// Whether an error says that there is nothing of the kind here, or no such thing in this kernel.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENOENT
                | libc::ESRCH
                | libc::EINVAL
                | libc::EOPNOTSUPP
                | libc::EPROTONOSUPPORT
                | libc::EAFNOSUPPORT
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_found() {
        let bytes = [text_attribute(1, "ab"), attribute(7, &[9, 9, 9, 9, 9])].concat();
        assert_eq!(bytes.len(), 8 + 12);
        assert_eq!(&bytes[..8], [7, 0, 1, 0, b'a', b'b', 0, 0]);
        assert_eq!(find_attribute(&bytes, 1), Some(b"ab\0".to_vec()));
        assert_eq!(find_attribute(&bytes, 7), Some(vec![9; 5]));
        assert_eq!(find_attribute(&bytes, 2), None);
    }
}
