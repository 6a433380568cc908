//! Random worlds, always the same ones, on a node of ours and on one of kube-proxy's.

use std::time::Duration;

use lb_tests::{
    control_plane,
    differential::{self, Options},
};
use libtest_mimic::{Completion, Trial};

/// `cargo xtask differential` takes any seed, and as many worlds as one likes.
const OPTIONS: Options = Options {
    seed: 1,
    worlds: 8,
    shrinking: Duration::from_secs(60),
};

/// The test. It has a control plane of its own, which two sandboxes follow.
pub fn trial() -> Trial {
    Trial::ignorable_test("random worlds look as with kube-proxy", || {
        let binaries = match control_plane::find() {
            Ok(binaries) => binaries,
            Err(error) => return Ok(Completion::ignored_with(error)),
        };
        match differential::run(binaries, &OPTIONS) {
            Ok(reports) if reports.is_empty() => Ok(Completion::Completed),
            Ok(reports) => Err(reports.join("\n").into()),
            Err(error) => Err(format!("{error:?}").into()),
        }
    })
}
