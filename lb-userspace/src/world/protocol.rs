//! Transport protocols.

use std::fmt;

/// The transport protocols that services are served for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Why a port's protocol cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnusableProtocol {
    /// Kubernetes knows it, we do not.
    Unsupported(&'static str),
    Unknown(String),
}

impl Protocol {
    /// The protocol that Kubernetes writes as `text`; TCP where it writes none.
    pub fn parse(text: Option<&str>) -> Result<Self, UnusableProtocol> {
        match text {
            None | Some("TCP") => Ok(Self::Tcp),
            Some("UDP") => Ok(Self::Udp),
            Some("SCTP") => Err(UnusableProtocol::Unsupported("SCTP")),
            Some(other) => Err(UnusableProtocol::Unknown(other.into())),
        }
    }

    /// The IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// As Kubernetes writes it.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

impl fmt::Display for UnusableProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(protocol) => write!(f, "{protocol} is not supported yet"),
            Self::Unknown(protocol) => write!(f, "`{protocol}` is not a protocol"),
        }
    }
}
