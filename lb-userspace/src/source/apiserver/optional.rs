//! Kinds that an apiserver may not have.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use kube::runtime::watcher;
use tokio::{sync::Notify, time::sleep};

/// Time between two looks for a kind that is not there.
const INTERVAL: Duration = Duration::from_secs(60);

/// The events of a kind, from one watch after another. Where the apiserver says that it has no such
/// kind, which is noted as an answer, there are no objects of it, and a while later a new watch looks
/// for it again.
pub fn events<K, W>(
    mut watch: impl FnMut() -> W,
    answered: Arc<Notify>,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>>
where
    W: Stream<Item = watcher::Result<watcher::Event<K>>> + Unpin,
{
    let first = Some(watch());
    let rounds = stream::unfold(
        (watch, answered, first),
        |(mut watch, answered, running)| async move {
            let mut running = match running {
                Some(running) => running,
                None => {
                    sleep(INTERVAL).await;
                    watch()
                }
            };
            let event = running.next().await?;
            if !event.as_ref().is_err_and(is_absent) {
                return Some((vec![event], (watch, answered, Some(running))));
            }
            answered.notify_one();
            let none = vec![Ok(watcher::Event::Init), Ok(watcher::Event::InitDone)];
            Some((none, (watch, answered, None)))
        },
    );
    rounds.flat_map(stream::iter)
}

/// Whether the resource is not served: a list of what is served may be empty, but it is there.
fn is_absent(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(cause)
        | watcher::Error::WatchStartFailed(cause)
        | watcher::Error::WatchFailed(cause) => {
            matches!(cause, kube::Error::Api(status) if status.code == 404)
        }
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => false,
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, stream::BoxStream};
    use kube::core::Status;
    use tokio::time::Instant;
    use watcher::Event;

    use super::*;

    type Told = watcher::Result<Event<u8>>;

    fn refused(code: u16) -> Told {
        let status = Status::failure("no", "").with_code(code).boxed();
        Err(watcher::Error::InitialListFailed(kube::Error::Api(status)))
    }

    /// What becomes of watches that say this, one after the other.
    fn followed(watches: Vec<Vec<Told>>, answered: &Arc<Notify>) -> BoxStream<'static, Told> {
        let mut watches = watches.into_iter();
        let watch = move || {
            let says = watches.next().expect("no more watches than that");
            stream::iter(says).chain(stream::pending()).boxed()
        };
        events(watch, Arc::clone(answered)).boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_is_not_there_has_no_objects_and_is_looked_for_every_minute() {
        let answered = Arc::new(Notify::new());
        let start = Instant::now();
        let mut told = followed(
            vec![
                vec![Ok(Event::Init), refused(404)],
                vec![Ok(Event::Init), refused(404)],
                vec![
                    Ok(Event::Init),
                    Ok(Event::InitApply(1)),
                    Ok(Event::InitDone),
                ],
            ],
            &answered,
        );
        let mut says = async |seconds: u64, expected: Event<u8>| {
            let event = told.next().await.expect("endless").expect("no failure");
            assert_eq!(format!("{event:?}"), format!("{expected:?}"));
            assert_eq!(start.elapsed().as_secs(), seconds, "{event:?}");
        };
        for seconds in [0, 60] {
            for event in [Event::Init, Event::Init, Event::InitDone] {
                says(seconds, event).await;
            }
            assert!(answered.notified().now_or_never().is_some());
        }
        for event in [Event::Init, Event::InitApply(1), Event::InitDone] {
            says(120, event).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_failure_is_told_and_the_watch_goes_on() {
        let answered = Arc::new(Notify::new());
        let mut told = followed(vec![vec![refused(403), Ok(Event::Init)]], &answered);
        assert!(told.next().await.expect("endless").is_err());
        assert!(told.next().await.expect("endless").is_ok());
        assert!(answered.notified().now_or_never().is_none());
    }
}
