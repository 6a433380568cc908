//! Who reaches whom: every pod dials every other one, by every port, protocol, family and way, all at
//! once, each time from a port that it has not used before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use lb_tests::sandbox::{Conversation, Failure, Family, Protocol};
use tokio::time::timeout;

use super::world::{PORTS, Place, Way, World, name, places};

/// How long nobody has heard anything when a round ends in which all have answered that should.
const SILENCE: Duration = Duration::from_millis(200);
/// The same where some have not: in the first round, and in those in which they are asked again.
const PATIENCE: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(3),
];
/// The first port that pods dial from, after all that are served.
const FIRST_PORT: u16 = 2000;

/// One connection that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    pub from: Place,
    pub to: Place,
    pub protocol: Protocol,
    /// The port that the pod serves.
    pub port: u16,
    pub family: Family,
    pub way: Way,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (name(self.from), name(self.to));
        let (protocol, family) = (self.protocol.name(), self.family.name());
        let way = match self.way {
            Way::Pod => "its own address",
            Way::Service => "its Service",
        };
        write!(
            f,
            "{from} > {to} {protocol}/{} {family} by {way}",
            self.port
        )
    }
}

/// All that there are.
pub fn all() -> BTreeSet<Probe> {
    let mut probes = BTreeSet::new();
    for (from, to) in places().flat_map(|from| places().map(move |to| (from, to))) {
        for (protocol, port) in Protocol::BOTH
            .into_iter()
            .flat_map(|it| PORTS.map(|port| (it, port)))
        {
            for (family, way) in Family::BOTH
                .into_iter()
                .flat_map(|it| Way::BOTH.map(|way| (it, way)))
            {
                probes.insert(Probe {
                    from,
                    to,
                    protocol,
                    port,
                    family,
                    way,
                });
            }
        }
    }
    probes
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The right server answered.
    Open,
    /// Nobody said anything.
    Silent,
    /// Something else, in words.
    Odd(String),
}

/// Probes pods, and counts.
pub struct Prober<'a> {
    world: &'a World,
    /// By pod: the next port to dial from.
    ports: BTreeMap<Place, u16>,
    pub asked: usize,
}

impl<'a> Prober<'a> {
    pub fn new(world: &'a World) -> Self {
        Self {
            world,
            ports: places().map(|place| (place, FIRST_PORT)).collect(),
            asked: 0,
        }
    }

    /// Tries all probes. Those of `open` that were met with silence are tried again: packets get lost,
    /// and machines are slow. An answer that should not be is never explained away.
    pub fn ask(&mut self, open: &BTreeSet<Probe>) -> BTreeMap<Probe, Seen> {
        let mut seen = BTreeMap::new();
        let mut left = all();
        for patience in PATIENCE {
            let awaited = left.intersection(open).copied().collect();
            seen.extend(self.round(&left, Round::new(awaited, patience)));
            left.retain(|probe| open.contains(probe) && seen.get(probe) == Some(&Seen::Silent));
            if left.is_empty() {
                break;
            }
        }
        seen
    }

    /// Tries all of these at once.
    fn round(&mut self, probes: &BTreeSet<Probe>, round: Round) -> Vec<(Probe, Seen)> {
        self.asked += probes.len();
        let round = Arc::new(Mutex::new(round));
        let pods: Vec<_> = places()
            .map(|place| {
                let own = probes.iter().filter(|probe| probe.from == place);
                let own: Vec<_> = own.map(|probe| self.dial(*probe)).collect();
                let pod = self.world.pod(place);
                (pod, pod.spawn(dial_all(own, Arc::clone(&round))))
            })
            .collect();
        let answers = pods.into_iter().flat_map(|(pod, asking)| {
            // It panics only where a probe does, which says so.
            pod.namespace().wait(asking).unwrap_or_default()
        });
        answers.collect()
    }

    fn dial(&mut self, probe: Probe) -> Dial {
        let Probe {
            from,
            to,
            family,
            way,
            port,
            ..
        } = probe;
        let own_port = self.ports.entry(from).or_insert(FIRST_PORT);
        let dial = Dial {
            probe,
            from: *own_port,
            to: way.address(self.world.pod(to), to, family, port),
        };
        *own_port = own_port.checked_add(1).unwrap_or(FIRST_PORT);
        dial
    }
}

/// A probe, and what it is done with.
struct Dial {
    probe: Probe,
    from: u16,
    to: SocketAddr,
}

/// What all pods that are asked at once know of each other.
struct Round {
    /// Those that are still to answer.
    awaited: BTreeSet<Probe>,
    patience: Duration,
    /// When somebody heard something last.
    heard: Instant,
}

impl Round {
    fn new(awaited: BTreeSet<Probe>, patience: Duration) -> Self {
        Self {
            awaited,
            patience,
            heard: Instant::now(),
        }
    }

    fn hear(&mut self, probe: Probe) {
        self.awaited.remove(&probe);
        self.heard = Instant::now();
    }

    fn is_over(&self) -> bool {
        let silence = match self.awaited.is_empty() {
            true => SILENCE,
            false => self.patience,
        };
        self.heard.elapsed() >= silence
    }
}

/// Tries all at once, until the round is over.
async fn dial_all(dials: Vec<Dial>, round: Arc<Mutex<Round>>) -> Vec<(Probe, Seen)> {
    let round = || round.lock().unwrap_or_else(PoisonError::into_inner);
    let probes: Vec<_> = dials.iter().map(|dial| dial.probe).collect();
    let mut answers: FuturesUnordered<_> = dials.into_iter().map(try_one).collect();
    let mut seen = BTreeMap::new();
    while !answers.is_empty() {
        match timeout(SILENCE / 4, answers.next()).await {
            Ok(Some((probe, answer))) => {
                round().hear(probe);
                seen.insert(probe, answer);
            }
            Ok(None) => break,
            Err(_) if round().is_over() => break,
            Err(_) => (),
        }
    }
    let outcome = |probe| (probe, seen.get(&probe).cloned().unwrap_or(Seen::Silent));
    probes.into_iter().map(outcome).collect()
}

async fn try_one(Dial { probe, from, to }: Dial) -> (Probe, Seen) {
    let asked = async {
        let mut conversation = Conversation::open_from(from, probe.protocol, to).await?;
        match probe.protocol {
            Protocol::Tcp => conversation.abort().await,
            Protocol::Udp => conversation.ask().await,
        }
    };
    let expected = name(probe.to).replace('/', "-");
    let seen = match asked.await {
        Ok(reply) if reply.server == expected => Seen::Open,
        Ok(reply) => Seen::Odd(format!("answered by {}", reply.server)),
        Err(Failure::TimedOut) => Seen::Silent,
        Err(failure) => Seen::Odd(failure.to_string()),
    };
    (probe, seen)
}
