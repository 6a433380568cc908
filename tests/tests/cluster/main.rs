//! The agent against a real control plane, with packets. One control plane and one sandbox serve
//! all tests, one after the other.

mod clients;
mod cluster;
mod differential;
mod harness;
mod matrix;
mod objects;
mod outages;
mod policies;
mod services;
mod surface;
mod tables;
mod traffic;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use lb_tests::{control_plane, sandbox::remove_on_signal};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::cluster::Cluster;

/// A test, and what it is called.
type Test = (&'static str, fn(&mut Cluster) -> Result<()>);

/// Made by the first test that runs.
type Shared = Arc<Mutex<Option<Cluster>>>;

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    remove_on_signal(130)?;

    let shared = Shared::default();
    let tests = [
        harness::TESTS,
        outages::TESTS,
        policies::TESTS,
        services::TESTS,
        surface::TESTS,
        traffic::TESTS,
    ]
    .concat();
    let trials = tests
        .into_iter()
        .map(|test| trial(test, Arc::clone(&shared)))
        .chain([matrix::trial(), differential::trial()])
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        with(&shared, |cluster| cluster.as_ref().map(Cluster::keep_logs)).transpose()?;
    }
    Ok(conclusion.exit_code())
}

fn trial((name, test): Test, shared: Shared) -> Trial {
    Trial::ignorable_test(name, move || {
        let binaries = match control_plane::find() {
            Ok(binaries) => binaries,
            Err(error) => return Ok(Completion::ignored_with(error)),
        };
        let result = with(&shared, |shared| {
            let cluster = match shared {
                Some(cluster) => cluster,
                none => none.insert(Cluster::start(binaries)?),
            };
            cluster.reset()?;
            test(cluster)
        });
        result
            .map(|()| Completion::Completed)
            .map_err(|error| Failed::from(format!("{error:?}")))
    })
}

/// A panic of an earlier test is in that test's report; the cluster is of use all the same.
fn with<T>(shared: &Shared, work: impl FnOnce(&mut Option<Cluster>) -> T) -> T {
    work(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}
