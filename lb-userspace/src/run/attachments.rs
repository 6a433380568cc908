//! Pods whose start waits for us.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    cni::{Attachment, AttachmentId, PATIENCE, Request},
    world::ObjectKey,
};

/// What the agent answers.
pub type Answer = Result<(), String>;

/// How much earlier than the plugin the agent gives up, so that its reason is heard.
const EARLIER: Duration = Duration::from_secs(1);

/// What runtimes said of the interfaces they made, and who waits for an answer.
#[derive(Debug, Default)]
pub struct Attachments {
    announced: BTreeMap<AttachmentId, Attachment>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    attachment: Attachment,
    answer: oneshot::Sender<Answer>,
    until: Instant,
}

impl Attachments {
    /// Takes a request in; one that asks about the present is answered with what `guarded` says.
    /// Says whether what runtimes said is other than before.
    pub fn take(
        &mut self,
        request: Request,
        answer: oneshot::Sender<Answer>,
        guarded: impl Fn(Option<&Attachment>) -> Answer,
    ) -> bool {
        // Who has gone needs no answer.
        let reply = |answer: oneshot::Sender<Answer>, text| drop(answer.send(text));
        match request {
            Request::Add(attachment) => {
                self.waiting.push(Waiting {
                    attachment: attachment.clone(),
                    answer,
                    until: Instant::now() + PATIENCE - EARLIER,
                });
                let id = attachment.id.clone();
                self.announced.insert(id, attachment);
                true
            }
            Request::Check(attachment) => {
                reply(answer, guarded(Some(&attachment)));
                false
            }
            Request::Status => {
                reply(answer, guarded(None));
                false
            }
            Request::Delete(id) => {
                reply(answer, Ok(()));
                self.announced.remove(&id).is_some()
            }
            Request::Keep(valid) => {
                reply(answer, Ok(()));
                let before = self.announced.len();
                self.announced.retain(|id, _| valid.contains(id));
                self.announced.len() < before
            }
        }
    }

    /// The addresses that runtimes gave to a pod's interfaces.
    pub fn addresses(&self) -> impl Iterator<Item = (&ObjectKey, &BTreeSet<IpAddr>)> {
        let attachments = self.announced.values();
        attachments.filter_map(|attachment| Some((attachment.pod.as_ref()?, &attachment.addresses)))
    }

    /// Answers those that are guarded now, and those that have waited for too long.
    pub fn release(&mut self, guarded: impl Fn(Option<&Attachment>) -> Answer) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            let found = guarded(Some(&waiting.attachment));
            if found.is_ok() || now >= waiting.until {
                drop(waiting.answer.send(found));
            } else {
                self.waiting.push(waiting);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str) -> Attachment {
        Attachment {
            id: AttachmentId {
                container: container.to_owned(),
                interface: "eth0".to_owned(),
            },
            pod: Some(ObjectKey::new("default", container)),
            addresses: BTreeSet::from([IpAddr::from([10, 0, 0, 1])]),
        }
    }

    fn pods(attachments: &Attachments) -> Vec<String> {
        let addresses = attachments.addresses();
        addresses.map(|(pod, _)| pod.to_string()).collect()
    }

    fn take(attachments: &mut Attachments, request: Request) -> (bool, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let changed = attachments.take(request, answer, |_| Err("not yet".to_owned()));
        (changed, answered)
    }

    #[test]
    fn a_pod_waits_until_it_is_guarded() {
        let mut attachments = Attachments::default();
        let (changed, mut answered) = take(&mut attachments, Request::Add(attachment("a")));
        assert!(changed);
        assert_eq!(pods(&attachments), ["default/a"]);
        attachments.release(|_| Err("not yet".to_owned()));
        assert!(answered.try_recv().is_err(), "no answer yet");
        attachments.release(|_| Ok(()));
        assert_eq!(answered.try_recv(), Ok(Ok(())));
        assert!(attachments.waiting.is_empty());
    }

    #[test]
    fn who_waits_for_too_long_is_told_why() {
        let mut attachments = Attachments::default();
        let (_, mut answered) = take(&mut attachments, Request::Add(attachment("a")));
        attachments.waiting[0].until = Instant::now();
        attachments.release(|_| Err("no interface".to_owned()));
        assert_eq!(answered.try_recv(), Ok(Err("no interface".to_owned())));
    }

    #[test]
    fn what_is_asked_of_the_present_is_answered_at_once() {
        let mut attachments = Attachments::default();
        for request in [Request::Check(attachment("a")), Request::Status] {
            let (changed, mut answered) = take(&mut attachments, request);
            assert!(!changed);
            assert_eq!(answered.try_recv(), Ok(Err("not yet".to_owned())));
        }
    }

    #[test]
    fn attachments_go_one_by_one_or_all_but_some() {
        let mut attachments = Attachments::default();
        for name in ["a", "b", "c"] {
            take(&mut attachments, Request::Add(attachment(name)));
        }
        let (changed, mut answered) = take(&mut attachments, Request::Delete(attachment("b").id));
        assert!(changed);
        assert_eq!(answered.try_recv(), Ok(Ok(())), "a pod can always go");
        let (changed, _) = take(&mut attachments, Request::Delete(attachment("b").id));
        assert!(!changed, "it is gone already");
        assert_eq!(pods(&attachments), ["default/a", "default/c"]);
        let valid = BTreeSet::from([attachment("c").id]);
        assert!(take(&mut attachments, Request::Keep(valid)).0);
        assert_eq!(pods(&attachments), ["default/c"]);
    }
}
