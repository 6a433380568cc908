//! What clients saw.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::timeout;

use crate::sandbox::{Conversation, Failure, Protocol, Reply};

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// A server answered, and this is the client as it saw it. Ports are not compared: masquerading
    /// chooses them at random.
    Answer {
        server: String,
        source: IpAddr,
    },
    /// The server or a node on the way said no.
    Refused,
    /// Nobody said anything.
    Dropped,
    /// The kernel would not send it.
    Forbidden,
    Broken(String),
}

/// What the kernel says of EPERM, which has no kind in the standard library.
const FORBIDDEN: &str = "Operation not permitted";

impl From<Result<Reply, Failure>> for Seen {
    fn from(result: Result<Reply, Failure>) -> Self {
        match result {
            Ok(reply) => Self::Answer {
                server: reply.server,
                source: reply.seen.ip().to_canonical(),
            },
            Err(Failure::Refused) => Self::Refused,
            Err(Failure::TimedOut) => Self::Dropped,
            Err(Failure::Broken(how)) if how.starts_with(FORBIDDEN) => Self::Forbidden,
            Err(Failure::Broken(how)) => Self::Broken(how),
        }
    }
}

/// Everything that came of several attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome(pub BTreeSet<Seen>);

impl Seen {
    fn is_answer(&self) -> bool {
        matches!(self, Self::Answer { .. })
    }
}

impl Outcome {
    /// Whether a server answered to some attempt.
    pub fn is_answer(&self) -> bool {
        self.0.iter().any(Seen::is_answer)
    }

    /// Adds the answers to earlier attempts.
    pub fn add_answers(&mut self, earlier: &Self) {
        let answers = earlier.0.iter().filter(|seen| seen.is_answer());
        self.0.extend(answers.cloned());
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = self.0.iter().map(|seen| match seen {
            Seen::Answer { server, source } => format!("{server} saw {source}"),
            Seen::Refused => "refused".to_owned(),
            Seen::Dropped => "dropped".to_owned(),
            Seen::Forbidden => "not permitted to send".to_owned(),
            Seen::Broken(how) => how.clone(),
        });
        f.write_str(&texts.collect::<Vec<_>>().join("; "))
    }
}

/// How hard something is tried.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How many attempts are made where there is an answer.
    pub tries: u32,
    /// How long an answer may take.
    pub patience: Duration,
}

/// After how many attempts without answer nothing else is expected.
const ENOUGH: usize = 2;

/// Asks again and again, each time in a conversation of its own.
pub async fn ask(from: SocketAddr, protocol: Protocol, to: SocketAddr, effort: Effort) -> Outcome {
    let mut seen = BTreeSet::new();
    let mut failures = 0;
    for _ in 0..effort.tries {
        let attempt = async { Conversation::open_at(from, protocol, to).await?.ask().await };
        let result = timeout(effort.patience, attempt).await;
        let result = result.unwrap_or(Err(Failure::TimedOut));
        failures += usize::from(result.is_err());
        seen.insert(result.into());
        if failures == ENOUGH {
            break;
        }
    }
    Outcome(seen)
}
