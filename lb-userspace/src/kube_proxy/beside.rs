//! Looks for kube-proxy beside the agent for as long as that runs.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{Cleaned, clean, live, remains};
use crate::status::Problem;

/// Where kube-proxy serves its metrics, unless told otherwise.
pub const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(60);

/// What there is of kube-proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What tells that it runs.
    live: Option<String>,
    /// What it left, or writes.
    remains: Vec<String>,
    /// What could not be cleaned up, or looked at.
    failed: Vec<String>,
}

/// Looks once a minute, in a task of its own, and says what it finds. With `programmed`, it also
/// cleans up what a kube-proxy left that no longer runs, once that is true: before, services would be
/// served by nobody.
pub fn watch(programmed: Option<watch::Receiver<bool>>) -> watch::Receiver<Found> {
    let (sender, found) = watch::channel(Found::default());
    tokio::spawn(async move {
        let mut pause = interval(PAUSE);
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut programmed = programmed;
        loop {
            let due = async {
                match &mut programmed {
                    // Its end is that of the agent.
                    Some(programmed) if !*programmed.borrow() => drop(programmed.changed().await),
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = pause.tick() => {}
                () = due => {}
                () = sender.closed() => return,
            }
            let cleans = programmed
                .as_ref()
                .is_some_and(|programmed| *programmed.borrow());
            let found = look(cleans).await;
            if *sender.borrow() != found {
                found.log();
                sender.send_replace(found);
            }
        }
    });
    found
}

async fn look(cleans: bool) -> Found {
    let live = live(METRICS).await;
    let mut found = Found {
        live,
        ..Found::default()
    };
    match remains().await {
        Ok(remains) => found.remains = remains,
        Err(error) => found.failed.push(format!("{error:#}")),
    }
    if cleans && found.live.is_none() && !found.remains.is_empty() {
        let Cleaned {
            removed,
            kept,
            failed,
        } = clean().await;
        for what in removed {
            info!("removed what kube-proxy left: {what}");
        }
        for what in kept {
            warn!("kube-proxy left {what}, which others use");
        }
        found.failed.extend(failed);
        found.remains = remains().await.unwrap_or_default();
    }
    found
}

impl Found {
    fn log(&self) {
        for Problem {
            object, problem, ..
        } in self.problems()
        {
            warn!("kube-proxy {object}: {problem}");
        }
    }

    /// What `lb status` says of it.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let problem = |object: &str, problem: String| Problem {
            kind: "kube-proxy".to_owned(),
            object: object.to_owned(),
            problem,
        };
        let live = self.live.iter().map(move |how| {
            let text = format!("{how}: two proxies translate packets; stop it");
            problem("beside us", text)
        });
        let remains = self.remains.iter().map(move |what| {
            let text = format!(
                "{what} still there: `lb cleanup --kube-proxy` removes what it left once it is stopped"
            );
            problem("remains", text)
        });
        let failed = self.failed.iter().cloned();
        let failed = failed.map(move |text| problem("clean-up", text));
        live.chain(remains).chain(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_found_is_a_problem() {
        let found = Found {
            live: Some("it runs as pid 7".to_owned()),
            remains: vec!["the nftables table ip kube-proxy".to_owned()],
            failed: vec!["iptables-legacy-save is missing".to_owned()],
        };
        let problems: Vec<_> = found
            .problems()
            .map(|found| format!("{} {}: {}", found.kind, found.object, found.problem))
            .collect();
        assert_eq!(
            problems,
            [
                "kube-proxy beside us: it runs as pid 7: two proxies translate packets; stop it",
                "kube-proxy remains: the nftables table ip kube-proxy still there: \
                 `lb cleanup --kube-proxy` removes what it left once it is stopped",
                "kube-proxy clean-up: iptables-legacy-save is missing",
            ]
        );
        assert_eq!(Found::default().problems().count(), 0);
    }
}
