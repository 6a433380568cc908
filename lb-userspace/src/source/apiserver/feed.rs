//! From a watch to changes, and to what to say while it fails.

use std::future::ready;

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
            kube::Error::Api(status) => format!("{verb}: {} ({})", status.message, status.code),
            other => format!("{verb}: {}", with_causes(other)),
        })
    }
}

/// The error and all that led to it.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let error_text = error.to_string();
        if !text.ends_with(&error_text) {
            text = format!("{text}: {error_text}");
        }
        cause = error.source();
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
