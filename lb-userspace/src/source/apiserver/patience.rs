//! How long to wait after a failure.

use std::time::Duration;

use backon::ExponentialBuilder;
use kube::runtime::{
    utils::{Backoff, ResetTimerBackoff},
    watcher::ExponentialBackoff,
};

/// The first wait and the longest, before up to as much again is added by chance: an apiserver that
/// restarts is followed again within seconds, and not by every node at once.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Time without a failure after which the next one is the first.
const CALM: Duration = Duration::from_secs(30);

/// Waits that grow while failures go on.
///
/// Only time resets them: a watch that fails to list says that it begins before each attempt, which
/// would pass for a success.
pub struct Patience(ResetTimerBackoff<ExponentialBackoff>);

impl Patience {
    pub fn new() -> Self {
        let (first, longest) = WAITS;
        let backoff = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times();
        Self(ResetTimerBackoff::new(backoff.into(), CALM))
    }
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use kube::runtime::{WatchStreamExt, watcher};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_seconds_while_lists_fail() {
        let attempt = || {
            [
                Ok(watcher::Event::<()>::Init),
                Err(watcher::Error::NoResourceVersion),
            ]
        };
        let attempts = stream::iter((0..10).flat_map(|_| attempt()));
        let start = Instant::now();
        let failures: Vec<_> = attempts
            .backoff(Patience::new())
            .filter_map(async |event| event.is_err().then(Instant::now))
            .collect()
            .await;
        assert!(failures[1] - start < Duration::from_millis(500));
        let last = failures[9] - failures[8];
        assert!(last >= Duration::from_secs(2), "{last:?}");
        assert!(last < Duration::from_secs(5), "{last:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_calm_the_first_wait_is_short_again() {
        let mut patience = Patience::new();
        assert!(
            patience
                .by_ref()
                .nth(9)
                .is_some_and(|wait| wait >= Duration::from_secs(2))
        );
        tokio::time::advance(CALM + Duration::from_secs(1)).await;
        assert!(
            patience
                .next()
                .is_some_and(|wait| wait < Duration::from_millis(500))
        );
    }
}
