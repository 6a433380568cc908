//! Random worlds through a node that we run and through one that kube-proxy runs: what clients see
//! has to be the same, but for the differences that are meant.

mod forward;
mod generate;
mod meant;
mod outcome;
mod probe;
mod shrink;
mod side;
mod twins;
mod world;

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

pub use self::meant::{MEANT, Meant};
use self::{
    meant::Context,
    outcome::{Effort, Outcome, Seen},
    probe::{Probe, To},
    twins::Twins,
    world::World,
};
use crate::control_plane::Binaries;

/// What to compare.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The seed of the first world; each further one has the next.
    pub seed: u64,
    pub worlds: u64,
    /// How long to look for a smaller world that shows the same difference.
    pub shrinking: Duration,
}

/// A probe with different outcomes.
#[derive(Clone, Debug)]
struct Difference {
    probe: Probe,
    ours: Outcome,
    rival: Outcome,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { probe, ours, rival } = self;
        write!(
            f,
            "{probe}\n    lb:         {ours}\n    kube-proxy: {rival}"
        )
    }
}

/// The first round: a difference that it overlooks in one probe shows in others.
const FIRST: Effort = Effort {
    tries: 16,
    patience: Duration::from_millis(1200),
};
/// The rounds that a difference has to outlive, so that it is neither chance nor a slow machine.
const AGAIN: [Effort; 2] = [
    Effort {
        tries: 24,
        patience: Duration::from_secs(2),
    },
    Effort {
        tries: 60,
        patience: Duration::from_secs(3),
    },
];

/// How many differences are asked about again. More are no accident.
const CONFIRMED: usize = 30;

/// Compares, with progress on stderr, and returns a report for each world that shows a difference
/// that is not meant.
pub fn run(binaries: Binaries, options: &Options) -> Result<Vec<String>> {
    let mut twins = Twins::start(binaries)?;
    let mut reports = Vec::new();
    let compared = compare_all(&mut twins, options, &mut reports);
    if compared.is_err() || !reports.is_empty() {
        let logs = twins.keep_logs()?;
        eprintln!("the logs of both sides are in {}", logs.display());
    }
    compared.map(|()| reports)
}

fn compare_all(twins: &mut Twins, options: &Options, reports: &mut Vec<String>) -> Result<()> {
    let seeds = (options.seed..).take(usize::try_from(options.worlds)?);
    let mut any_answered = false;
    for (index, seed) in seeds.enumerate() {
        let started = Instant::now();
        let world = generate::world(seed);
        twins.enact(&world)?;
        let probes = probe::all(&world);
        let (differences, answered) = compare(twins, &world, &probes);
        any_answered |= answered > 0;
        eprintln!(
            "world {} of {} (seed {seed}): {} services, {} probes, {answered} of them answered, \
             {} differences, {:.1} s",
            index + 1,
            options.worlds,
            world.services.len(),
            probes.len(),
            differences.len(),
            started.elapsed().as_secs_f32(),
        );
        if let Some(first) = differences.first() {
            let small = shrink(twins, world, first.probe, options.shrinking)?;
            let listed: String = differences.iter().map(|d| format!("  {d}\n")).collect();
            let yaml = twins.yaml(&small)?;
            let report = format!(
                "seed {seed}: {} differences\n{listed}the first one shows in this world:\n{yaml}",
                differences.len()
            );
            eprintln!("{report}");
            reports.push(report);
        }
    }
    // Two sides on which nothing works are alike as well.
    ensure!(any_answered, "kube-proxy answered to no probe of any world");
    Ok(())
}

/// The probes that show differences however often they are repeated, and how many kube-proxy
/// answered to.
fn compare(twins: &Twins, world: &World, probes: &[Probe]) -> (Vec<Difference>, usize) {
    let mut answered = 0;
    let mut found: Vec<Difference> = Vec::new();
    let mut probes = probes.to_vec();
    for effort in [FIRST].into_iter().chain(AGAIN) {
        let (ours, rival) = twins.ask(world, &probes, |probe| scaled(probe, world, effort));
        let earlier = std::mem::take(&mut found);
        for ((&probe, ours), rival) in probes.iter().zip(ours).zip(rival) {
            let mut difference = Difference { probe, ours, rival };
            answered += usize::from(earlier.is_empty() && difference.rival.is_answer());
            // A server that answered once is one that answers, but for affinity, which what was
            // asked in between settles again. A datagram may get lost once.
            let before = earlier.iter().find(|before| before.probe == probe);
            if let Some(before) = before.filter(|_| !has_affinity(&probe, world)) {
                difference.ours.add_answers(&before.ours);
                difference.rival.add_answers(&before.rival);
            }
            if !difference.is_meant(twins, world) {
                found.push(difference);
            }
        }
        found.truncate(CONFIRMED);
        probes = found.iter().map(|difference| difference.probe).collect();
        if probes.is_empty() {
            break;
        }
    }
    (found, answered)
}

/// As many attempts as the number of backends asks for.
fn scaled(probe: &Probe, world: &World, effort: Effort) -> Effort {
    let backends = probe
        .service(world)
        .map_or(0, |service| service.backends(probe.family));
    let tries = match backends {
        0 | 1 => 2,
        2.. => effort.tries,
    };
    Effort { tries, ..effort }
}

impl Difference {
    /// Whether the outcomes are the same but for what is meant.
    fn is_meant(&self, twins: &Twins, world: &World) -> bool {
        let Self { probe, ours, rival } = self;
        let context = Context {
            probe,
            nodes: twins.ours.nodes(),
            client: twins.ours.address(probe.who, probe.family),
            gateway: twins.ours.gateway(probe.family),
        };
        if has_affinity(probe, world) {
            let (ours, rival) = (chosen_once(ours), chosen_once(rival));
            return meant::agree(&context, &ours, &rival);
        }
        meant::agree(&context, &ours.0, &rival.0)
    }
}

/// Whether one server is to answer every time.
fn has_affinity(probe: &Probe, world: &World) -> bool {
    matches!(probe.to, To::Port { .. })
        && probe.service(world).is_some_and(|service| service.affinity)
}

/// An outcome with session affinity: which server it is, is chosen at random, but only once.
fn chosen_once(outcome: &Outcome) -> BTreeSet<Seen> {
    let (answers, mut seen): (BTreeSet<_>, BTreeSet<_>) = outcome
        .0
        .iter()
        .cloned()
        .partition(|seen| matches!(seen, Seen::Answer { .. }));
    if !answers.is_empty() {
        seen.insert(Seen::Broken(format!("{} servers", answers.len())));
    }
    seen
}

/// Takes away from the world what the difference does not need.
fn shrink(twins: &mut Twins, world: World, probe: Probe, limit: Duration) -> Result<World> {
    let started = Instant::now();
    let mut smallest = world;
    let mut tried = 0;
    'smaller: loop {
        for candidate in shrink::smaller(&smallest) {
            if started.elapsed() > limit {
                break 'smaller;
            }
            if probe.service(&candidate).is_none() && !matches!(probe.to, To::Unallocated { .. }) {
                continue;
            }
            tried += 1;
            twins.enact(&candidate)?;
            if !compare(twins, &candidate, &[probe]).0.is_empty() {
                eprintln!("a smaller world shows it too ({tried} tried)");
                smallest = candidate;
                continue 'smaller;
            }
        }
        break;
    }
    twins.enact(&smallest)?;
    Ok(smallest)
}
