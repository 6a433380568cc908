//! Kubernetes Events about this node and its Services, as kube-proxy makes them, and about pods that
//! are cut off. They are told as far
//! as the apiserver takes them; nothing waits for them.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tracing::{debug, warn};

use crate::{
    policies::closed_text,
    world::{ObjectKey, PolicyName},
};

/// Time for the apiserver to take an event.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events that may wait for their sending; more are left out.
const WAITING: usize = 64;
/// Bytes that the apiserver takes as a note.
const LONGEST: usize = 1024;

/// Something that an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The agent of this node starts.
    Starting,
    /// `/healthz` cannot be served, and the agent gives up.
    NoHealthServer(String),
    /// `/metrics` cannot be served, and the agent gives up.
    NoMetricsServer(String),
    /// The server on a service's `healthCheckNodePort` cannot be started.
    NoHealthCheck { service: ObjectKey, why: String },
    /// The tables have no room for these policies, and so nothing may reach or leave a pod.
    Closed {
        pod: ObjectKey,
        policies: Vec<PolicyName>,
    },
}

/// Where notices go.
pub struct Events(Option<(mpsc::Sender<Notice>, JoinHandle<()>)>);

impl Events {
    /// Nowhere: there is no apiserver.
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// To an apiserver, in the name of the agent of `node`.
    pub fn to(client: Client, node: String) -> Self {
        let reporter = Reporter {
            controller: "lb".to_owned(),
            instance: Some(node.clone()),
        };
        let recorder = Recorder::new(client, reporter);
        let (sender, mut notices) = mpsc::channel::<Notice>(WAITING);
        let task = tokio::spawn(async move {
            while let Some(notice) = notices.recv().await {
                let (regarding, event) = notice.event(&node);
                match timeout(PATIENCE, recorder.publish(&event, &regarding)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!("the event {} is not taken: {error}", event.reason),
                    Err(_) => warn!("the event {} is not taken in time", event.reason),
                }
            }
        });
        Self(Some((sender, task)))
    }

    /// Lets a notice be sent.
    pub fn send(&self, notice: Notice) {
        if let Some((sender, _)) = &self.0
            && let Err(error) = sender.try_send(notice)
        {
            debug!("an event is left out: {error}");
        }
    }

    /// Returns when all notices have been sent, or a while later.
    pub async fn finish(self) {
        if let Some((sender, task)) = self.0 {
            drop(sender);
            // Late or panicked: there is nobody to tell.
            let _ = timeout(PATIENCE, task).await;
        }
    }
}

impl Notice {
    /// The event, and the object that it is about.
    fn event(self, node: &str) -> (ObjectReference, Event) {
        let about_node = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            // What `kubectl describe node` looks for.
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        let warning = |reason: &str, action: &str, why: String| Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(cut(why)),
            action: action.to_owned(),
            secondary: None,
        };
        match self {
            Self::Starting => {
                let event = Event {
                    type_: EventType::Normal,
                    reason: "Starting".to_owned(),
                    note: None,
                    action: "StartLb".to_owned(),
                    secondary: None,
                };
                (about_node, event)
            }
            Self::NoHealthServer(why) => (
                about_node,
                warning("FailedToStartProxierHealthcheck", "StartLb", why),
            ),
            Self::NoMetricsServer(why) => (
                about_node,
                warning("FailedToStartMetricServer", "StartLb", why),
            ),
            Self::NoHealthCheck { service, why } => {
                let about_service = ObjectReference {
                    kind: Some("Service".to_owned()),
                    uid: Some(service.to_string()),
                    namespace: Some(service.namespace),
                    name: Some(service.name),
                    ..ObjectReference::default()
                };
                let event = warning("FailedToStartServiceHealthcheck", "Listen", why);
                (about_service, event)
            }
            Self::Closed { pod, policies } => {
                let about = |kind: &str, key: ObjectKey| ObjectReference {
                    kind: Some(kind.to_owned()),
                    namespace: Some(key.namespace).filter(|namespace| !namespace.is_empty()),
                    name: Some(key.name),
                    ..ObjectReference::default()
                };
                let event = warning(
                    "PolicyNotProgrammed",
                    "ProgramPolicy",
                    closed_text(&policies),
                );
                let policy = policies.into_iter().next();
                let secondary =
                    policy.map(|PolicyName { kind, key }| about(&kind.to_string(), key));
                (about("Pod", pod), Event { secondary, ..event })
            }
        }
    }
}

fn cut(mut text: String) -> String {
    let ends = text.char_indices().map(|(at, char)| at + char.len_utf8());
    let longest = ends.take_while(|end| *end <= LONGEST).last();
    text.truncate(longest.unwrap_or(0));
    text
}

#[cfg(test)]
pub mod tests {
    use http::{Request, Response};
    use http_body_util::BodyExt as _;
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    /// An apiserver that tells what was sent to it, and answers with `status`.
    pub fn apiserver(status: u16) -> (Client, mpsc::UnboundedReceiver<(String, Value)>) {
        let (sender, sent) = mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: Request<Body>| {
            let sender = sender.clone();
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await?.to_bytes();
                let object: Value = serde_json::from_slice(&body).expect("JSON");
                sender.send((path, object)).expect("the test listens");
                let answer = Response::builder().status(status);
                Ok::<_, kube::Error>(answer.body(Body::from(body.to_vec())).expect("an answer"))
            }
        });
        (Client::new(service, "default"), sent)
    }

    #[tokio::test]
    async fn the_node_tells_that_it_starts_and_what_fails() {
        let (client, mut sent) = apiserver(201);
        let events = Events::to(client, "node-a".to_owned());
        events.send(Notice::Starting);
        events.send(Notice::NoHealthServer("port taken".to_owned()));
        events.send(Notice::NoMetricsServer("port taken".to_owned()));
        events.finish().await;
        for (reason, kind) in [
            ("Starting", "Normal"),
            ("FailedToStartProxierHealthcheck", "Warning"),
            ("FailedToStartMetricServer", "Warning"),
        ] {
            let (path, event) = sent.recv().await.expect("an event");
            assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/default/events");
            assert_eq!(event["reason"], reason);
            assert_eq!(event["type"], kind);
            assert_eq!(event["regarding"]["kind"], "Node");
            assert_eq!(event["regarding"]["name"], "node-a");
            assert_eq!(event["reportingInstance"], "node-a");
        }
    }

    #[tokio::test]
    async fn a_service_learns_that_its_health_check_cannot_be_served() {
        let (client, mut sent) = apiserver(201);
        let events = Events::to(client, "node-a".to_owned());
        events.send(Notice::NoHealthCheck {
            service: ObjectKey::new("shop", "web"),
            why: "x".repeat(2 * LONGEST),
        });
        events.finish().await;
        let (path, event) = sent.recv().await.expect("an event");
        assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
        assert_eq!(event["reason"], "FailedToStartServiceHealthcheck");
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["regarding"]["kind"], "Service");
        assert_eq!(event["regarding"]["name"], "web");
        assert_eq!(event["note"].as_str().map(str::len), Some(LONGEST));
    }

    #[tokio::test]
    async fn an_apiserver_that_refuses_or_hangs_holds_nothing_up() {
        let (client, mut sent) = apiserver(403);
        let events = Events::to(client, "node-a".to_owned());
        for _ in 0..2 * WAITING {
            events.send(Notice::Starting);
        }
        events.finish().await;
        assert!(sent.recv().await.is_some());

        let hangs = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, kube::Error>>()
        });
        let events = Events::to(Client::new(hangs, "default"), "node-a".to_owned());
        for _ in 0..2 * WAITING {
            events.send(Notice::Starting);
        }
        Events::nowhere().send(Notice::Starting);
        Events::nowhere().finish().await;
    }
}
