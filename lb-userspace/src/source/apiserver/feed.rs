//! From a watch to changes, and to what to say while it fails.

use std::{error::Error, future::ready};

use futures::{Stream, StreamExt, stream};
use kube::{Resource, runtime::watcher};

use crate::world::{Change, SourceTrouble, Trouble};

/// What is watched, as roles name it.
pub struct Subject {
    /// `endpointslices`
    resource: String,
    /// `discovery.k8s.io`; empty for the core group.
    group: String,
}

impl Subject {
    pub fn of<K: Resource<DynamicType = ()>>() -> Self {
        Self {
            resource: K::plural(&()).into_owned(),
            group: K::group(&()).into_owned(),
        }
    }

    /// A sentence about the failure; `None` for what is part of a watch's life.
    fn explain(&self, error: &watcher::Error) -> Option<String> {
        let (verb, cause) = match error {
            watcher::Error::InitialListFailed(cause) => ("list", cause),
            watcher::Error::WatchStartFailed(cause) | watcher::Error::WatchFailed(cause) => {
                ("watch", cause)
            }
            // The place to go on from was compacted away; a new list follows.
            watcher::Error::WatchError(status) if status.code == 410 => return None,
            watcher::Error::WatchError(status) => {
                return Some(format!("watch: {}", status.message));
            }
            watcher::Error::NoResourceVersion => return Some(error.to_string()),
        };
        let Self { resource, group } = self;
        Some(match cause {
            kube::Error::Api(status) if status.code == 403 => format!(
                "forbidden: the agent's role must allow verb \"{verb}\" on resource \
                 \"{resource}\" of API group \"{group}\""
            ),
            other => format!("{verb}: {}", explain(other)),
        })
    }
}

/// What went wrong, in the words of whoever said so.
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        kube::Error::Service(error) => with_causes(error.as_ref()),
        other => with_causes(other),
    }
}

/// The error and all that led to it.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in anyhow::Chain::new(error).map(ToString::to_string) {
        // Many repeat the cause themselves.
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

enum Signal<K> {
    Event(watcher::Result<watcher::Event<K>>),
    /// The apiserver granted a list or a watch.
    Answered,
}

/// Turns the events of a watch into changes. A failure is a trouble until the apiserver has
/// answered again: a watch that starts is silent until something changes.
pub fn changes<K>(
    subject: Subject,
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    answers: impl Stream<Item = ()>,
    change: impl Fn(watcher::Event<K>) -> Change,
) -> impl Stream<Item = Change> {
    let signals = stream::select(
        answers.map(|()| Signal::Answered),
        events.map(Signal::Event),
    );
    let mut failure: Option<String> = None;
    signals.filter_map(move |signal| {
        let explanation = match signal {
            Signal::Event(Ok(event)) => return ready(Some(change(event))),
            Signal::Event(Err(error)) => subject.explain(&error),
            Signal::Answered => None,
        };
        ready((failure != explanation).then(|| {
            failure.clone_from(&explanation);
            Change::Trouble(SourceTrouble {
                subject: subject.resource.clone(),
                troubles: explanation.into_iter().map(Trouble::error).collect(),
            })
        }))
    })
}

#[cfg(test)]
mod tests {
    use std::iter;

    use futures::{FutureExt, channel::mpsc};
    use k8s_openapi::{
        api::discovery::v1::EndpointSlice, apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };
    use kube::core::Status;

    use super::*;
    use crate::world::{Event, ObjectKey, Row, Severity};

    type Signals = (
        mpsc::UnboundedSender<watcher::Result<watcher::Event<EndpointSlice>>>,
        mpsc::UnboundedSender<()>,
    );

    /// A feed, and what its watch and its apiserver say.
    fn feed() -> (Signals, impl Stream<Item = Change> + Unpin) {
        let (events, event_stream) = mpsc::unbounded();
        let (answers, answer_stream) = mpsc::unbounded();
        let changes = changes(
            Subject::of::<EndpointSlice>(),
            event_stream,
            answer_stream,
            |event| {
                Change::EndpointSlice(super::super::reduced(event, |_| Row {
                    value: None,
                    version: String::new(),
                    problems: Vec::new(),
                }))
            },
        );
        ((events, answers), changes)
    }

    fn drain(changes: &mut (impl Stream<Item = Change> + Unpin)) -> Vec<Change> {
        iter::from_fn(|| changes.next().now_or_never().flatten()).collect()
    }

    fn trouble(text: Option<&str>) -> Change {
        Change::Trouble(SourceTrouble {
            subject: "endpointslices".into(),
            troubles: text
                .map(|text| Trouble {
                    severity: Severity::Error,
                    text: text.into(),
                })
                .into_iter()
                .collect(),
        })
    }

    fn status(code: u16, message: &str) -> Box<Status> {
        Status::failure(message, "").with_code(code).boxed()
    }

    fn refused() -> watcher::Error {
        let cause = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        watcher::Error::InitialListFailed(kube::Error::Service(cause.into()))
    }

    fn slice() -> EndpointSlice {
        EndpointSlice {
            metadata: ObjectMeta {
                name: Some("web-1".into()),
                namespace: Some("default".into()),
                ..ObjectMeta::default()
            },
            ..EndpointSlice::default()
        }
    }

    #[test]
    fn events_pass_in_order() {
        let ((events, _answers), mut changes) = feed();
        let all = [
            watcher::Event::Init,
            watcher::Event::InitApply(slice()),
            watcher::Event::InitDone,
            watcher::Event::Apply(slice()),
            watcher::Event::Delete(slice()),
        ];
        for event in all {
            events.unbounded_send(Ok(event)).expect("the feed listens");
        }
        let key = ObjectKey::new("default", "web-1");
        let row = Row {
            value: None,
            version: String::new(),
            problems: Vec::new(),
        };
        let expected = [
            Event::Init,
            Event::InitApply(key.clone(), row.clone()),
            Event::InitDone,
            Event::Apply(key.clone(), row),
            Event::Delete(key),
        ];
        assert_eq!(drain(&mut changes), expected.map(Change::EndpointSlice));
    }

    #[test]
    fn a_failure_is_told_once_and_taken_back_when_the_apiserver_answers() {
        let ((events, answers), mut changes) = feed();
        for _ in 0..3 {
            events
                .unbounded_send(Err(refused()))
                .expect("the feed listens");
        }
        let text = "list: connection refused";
        assert_eq!(drain(&mut changes), [trouble(Some(text))]);

        for _ in 0..3 {
            answers.unbounded_send(()).expect("the feed listens");
        }
        assert_eq!(drain(&mut changes), [trouble(None)]);
    }

    #[test]
    fn a_list_that_begins_is_no_answer_yet() {
        let ((events, _answers), mut changes) = feed();
        events
            .unbounded_send(Err(refused()))
            .expect("the feed listens");
        drain(&mut changes);
        events
            .unbounded_send(Ok(watcher::Event::Init))
            .expect("the feed listens");
        assert_eq!(drain(&mut changes), [Change::EndpointSlice(Event::Init)]);
    }

    #[test]
    fn a_place_that_was_compacted_away_is_no_trouble() {
        let ((events, _answers), mut changes) = feed();
        let gone = watcher::Error::WatchError(status(410, "too old resource version"));
        events.unbounded_send(Err(gone)).expect("the feed listens");
        assert_eq!(drain(&mut changes), []);
    }

    #[test]
    fn a_missing_right_is_named_with_verb_and_resource() {
        let api = |code| kube::Error::Api(status(code, "no"));
        for (error, expected) in [
            (
                watcher::Error::InitialListFailed(api(403)),
                "forbidden: the agent's role must allow verb \"list\" on resource \
                 \"endpointslices\" of API group \"discovery.k8s.io\"",
            ),
            (
                watcher::Error::WatchStartFailed(api(403)),
                "forbidden: the agent's role must allow verb \"watch\" on resource \
                 \"endpointslices\" of API group \"discovery.k8s.io\"",
            ),
            (
                watcher::Error::InitialListFailed(api(500)),
                "list: no (500)",
            ),
            (watcher::Error::WatchError(status(500, "no")), "watch: no"),
        ] {
            let explained = Subject::of::<EndpointSlice>().explain(&error);
            assert_eq!(explained.as_deref(), Some(expected));
        }
    }
}
