//! The matrix of policies: for each of a few hundred cases, who of nine pods reaches whom, compared
//! with what the documentation says.

mod case;
mod changes;
mod combined;
mod flows;
mod in_force;
mod probes;
mod rules;
mod tiers;
mod truth;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow, bail, ensure};
use lb_tests::control_plane::{self, Binaries};
use libtest_mimic::{Completion, Trial};

use self::{case::Case, in_force::InForce, probes::Prober, world::World};

/// How many cases there are at least.
const LEAST: usize = 250;
/// How often everybody is asked for before the first case. An attempt that fails takes some seconds.
const ATTEMPTS: u32 = 20;
/// How many cases may differ before the others are not looked at any more.
const REPORTED: usize = 8;

/// The test. It has a control plane of its own, which the agents of two nodes follow.
pub fn trial() -> Trial {
    Trial::ignorable_test(
        "policies of every shape do as the documentation says",
        || {
            let binaries = match control_plane::find() {
                Ok(binaries) => binaries,
                Err(error) => return Ok(Completion::ignored_with(error)),
            };
            match run(binaries) {
                Ok(reports) if reports.is_empty() => Ok(Completion::Completed),
                Ok(reports) => Err(reports.join("\n").into()),
                Err(error) => Err(format!("{error:?}").into()),
            }
        },
    )
}

/// A report for each case that shows a difference.
fn run(binaries: Binaries) -> Result<Vec<String>> {
    let cases = cases()?;
    let world = World::start(binaries)?;
    let reports = compare(&world, &cases);
    if !reports.as_ref().is_ok_and(Vec::is_empty) {
        world.cluster.keep_logs()?;
    }
    reports
}

/// All cases, which differ in what they are called and in what they write.
fn cases() -> Result<Vec<Case>> {
    let cases: Vec<_> = [
        rules::cases(),
        combined::cases(),
        changes::cases(),
        tiers::cases(),
    ]
    .concat();
    ensure!(cases.len() >= LEAST, "{} cases", cases.len());
    let mut contents = BTreeMap::new();
    for Case { name, yaml } in &cases {
        if let Some(other) = contents.insert(yaml, name) {
            bail!("`{name}` and `{other}` are the same");
        }
    }
    let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    ensure!(names.len() == cases.len(), "two cases have one name");
    Ok(cases)
}

/// Returns once everybody reaches everybody, as no policy is there yet.
fn begin(world: &World, prober: &mut Prober) -> Result<()> {
    let open = probes::all();
    let mut attempts = 0;
    while let Some(difference) = truth::difference(&open, &prober.ask(&open)) {
        attempts += 1;
        let logs = world.logs();
        ensure!(
            attempts < ATTEMPTS,
            "without any policy:\n{difference}{logs}"
        );
    }
    Ok(())
}

fn compare(world: &World, cases: &[Case]) -> Result<Vec<String>> {
    let mut prober = Prober::new(world);
    begin(world, &mut prober)?;
    prober.asked = 0;
    let started = Instant::now();
    let own = world.objects();
    let mut in_force = InForce::new(&world.cluster, own.clone());
    let (mut tables, mut reports) = (BTreeSet::new(), Vec::new());
    for case in cases {
        let objects = case.objects(&own)?;
        // All of which is long enough to be done at once.
        let open = thread::scope(|scope| {
            let open = scope.spawn(|| truth::open(world, &objects));
            let forgotten = scope.spawn(|| flows::forget(world));
            in_force.bring(&objects)?;
            let panicked = |_| anyhow!("a thread panicked");
            forgotten.join().map_err(panicked)??;
            open.join().map_err(panicked)?
        })?;
        let seen = prober.ask(&open);
        if let Some(difference) = truth::difference(&open, &seen) {
            reports.push(format!("{}\n{}{difference}", case.name, case.yaml));
        }
        tables.insert(open);
        if reports.len() == REPORTED {
            break;
        }
    }
    eprintln!(
        "{} cases with {} different answers, {} probes, {} s",
        cases.len(),
        tables.len(),
        prober.asked,
        started.elapsed().as_secs()
    );
    Ok(reports)
}
