//! Where connections went.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::SocketAddr,
};

use crate::sandbox::{Failure, Pod, Protocol, Reply};

/// What came of one connection: the server that answered, or why none did.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Answered(String),
    Failed(String),
}

impl From<Result<Reply, Failure>> for Outcome {
    fn from(result: Result<Reply, Failure>) -> Self {
        match result {
            Ok(reply) => Self::Answered(reply.server),
            Err(failure) => Self::Failed(failure.to_string()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(text) | Self::Failed(text) => f.write_str(text),
        }
    }
}

/// What came of many connections to one address.
#[derive(Default)]
pub struct Tally {
    pub outcomes: BTreeMap<Outcome, u32>,
    /// Answers that did not come from the address that was dialled.
    pub elsewhere: u32,
    /// Answers of servers that saw an address other than the client's.
    pub disguised: u32,
}

impl Tally {
    /// Opens `count` connections, one after the other.
    pub fn take(client: &Pod, protocol: Protocol, to: SocketAddr, count: u32) -> Self {
        let mut tally = Self::default();
        for _ in 0..count {
            let result = client.ask(protocol, to);
            if let Ok(reply) = &result {
                tally.elsewhere += u32::from(reply.from != to);
                tally.disguised += u32::from(!reply.true_source());
            }
            *tally.outcomes.entry(result.into()).or_default() += 1;
        }
        tally
    }
}

/// The latest outcomes of connections to one address, and whether they tell something new.
pub struct Recent {
    window: usize,
    outcomes: VecDeque<Outcome>,
    /// The outcomes that the user knows of.
    shown: BTreeSet<Outcome>,
    /// Outcomes to wait for before a change is reported.
    pending: Option<usize>,
}

impl Recent {
    /// `window` must be so large that each outcome is among as many.
    pub fn new(window: usize, shown: impl IntoIterator<Item = Outcome>) -> Self {
        let shown = shown.into_iter().collect();
        Self {
            window,
            outcomes: VecDeque::new(),
            shown,
            pending: None,
        }
    }

    /// Notes an outcome. When there are others than have been shown, or one of those has ceased, it
    /// waits for a window full of what is new, and gives the counts.
    pub fn note(&mut self, outcome: Outcome) -> Option<BTreeMap<Outcome, u32>> {
        let unknown = !self.shown.contains(&outcome);
        self.outcomes.push_back(outcome);
        if self.outcomes.len() > self.window {
            self.outcomes.pop_front();
        }
        let full = self.outcomes.len() == self.window;
        let ceased = full
            && self
                .shown
                .iter()
                .any(|shown| !self.outcomes.contains(shown));
        match &mut self.pending {
            Some(1) => {
                self.pending = None;
                Some(self.report())
            }
            Some(left) => {
                *left -= 1;
                None
            }
            None if unknown => {
                self.pending = Some(self.window - 1);
                None
            }
            None => ceased.then(|| self.report()),
        }
    }

    fn report(&mut self) -> BTreeMap<Outcome, u32> {
        self.shown = self.outcomes.iter().cloned().collect();
        let mut counts = BTreeMap::new();
        for outcome in &self.outcomes {
            *counts.entry(outcome.clone()).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str) -> Outcome {
        Outcome::Answered(name.to_owned())
    }

    fn reports(recent: &mut Recent, outcomes: &[&str]) -> Vec<BTreeMap<Outcome, u32>> {
        outcomes
            .iter()
            .filter_map(|name| recent.note(server(name)))
            .collect()
    }

    #[test]
    fn nothing_new_is_nothing_to_report() {
        let mut recent = Recent::new(4, [server("a"), server("b")]);
        assert!(reports(&mut recent, &["a", "b", "b", "a", "b", "a", "a", "b"]).is_empty());
    }

    #[test]
    fn one_that_ceased_is_missed_once() {
        let mut recent = Recent::new(4, [server("a"), server("b")]);
        let reports = reports(&mut recent, &["a", "b", "a", "a", "a", "a", "a", "a", "a"]);
        assert_eq!(reports, [[(server("a"), 4)].into()]);
    }

    #[test]
    fn one_that_is_new_is_reported_with_its_share() {
        let mut recent = Recent::new(4, [server("a")]);
        let reports = reports(
            &mut recent,
            &["a", "a", "a", "a", "b", "a", "b", "a", "a", "b"],
        );
        assert_eq!(reports, [[(server("a"), 2), (server("b"), 2)].into()]);
    }
}
