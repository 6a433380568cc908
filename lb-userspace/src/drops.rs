//! Packets that were dropped at pods' interfaces, and who is to blame, in names.

use std::{fmt, net::IpAddr};

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::world::ObjectKey;

/// A packet that was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drop {
    pub time: Timestamp,
    /// The pod at whose interface, where that is known.
    pub pod: Option<ObjectKey>,
    /// `egress`: what the pod sends; `ingress`: what reaches it.
    pub direction: String,
    pub source: End,
    pub destination: End,
    /// Its name, or the IANA number.
    pub protocol: String,
    /// As in the counters of `lb status`.
    pub reason: String,
    /// The rule that says so, where a policy does.
    pub rule: Option<String>,
    /// How many were like it, of which this is the last.
    pub count: u64,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    pub address: IpAddr,
    /// 0 where the protocol has none.
    pub port: u16,
    /// The pod that has the address.
    pub pod: Option<ObjectKey>,
}

/// `10.0.0.1:80 (default/web-0)`.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (address, 0) => write!(f, "{address}")?,
            (IpAddr::V4(address), port) => write!(f, "{address}:{port}")?,
            (IpAddr::V6(address), port) => write!(f, "[{address}]:{port}")?,
        }
        match &self.pod {
            Some(pod) => write!(f, " ({pod})"),
            None => Ok(()),
        }
    }
}

/// As text, the latest last.
pub fn list(drops: &[Drop]) -> String {
    if drops.is_empty() {
        return "nothing was dropped at pods' interfaces lately\n".to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["TIME", "AT", "FROM", "TO", "COUNT", "WHY"]);
    for drop in drops {
        let pod = drop
            .pod
            .as_ref()
            .map_or("?".to_owned(), ToString::to_string);
        let why = drop.rule.as_ref().unwrap_or(&drop.reason);
        table.add_row([
            format!("{:.0}", drop.time),
            format!("{pod} {}", drop.direction),
            drop.source.to_string(),
            format!("{}/{}", drop.destination, drop.protocol),
            drop.count.to_string(),
            why.clone(),
        ]);
    }
    format!("{table}\n")
}
