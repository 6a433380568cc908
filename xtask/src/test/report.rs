//! What is said at the end of a run of tests.

use std::{process::ExitCode, time::Duration};

use super::{layer::Layer, suite::Counts};

/// What became of the tests of each layer.
#[derive(Default)]
pub struct Report {
    layers: Vec<(Layer, Counts, Duration)>,
    /// The suites with failures.
    failed: Vec<String>,
}

impl Report {
    pub fn failed(&mut self, layer: Layer, suite: &str) {
        self.failed.push(format!("{}: {suite}", layer.name()));
    }

    pub fn layer(&mut self, layer: Layer, counts: Counts, took: Duration) {
        self.layers.push((layer, counts, took));
    }

    /// Prints the table, and as the last line the sums.
    pub fn print(&self, skips_fail: bool) -> ExitCode {
        let Self { layers, failed } = self;
        println!("\nlayer     passed  failed  skipped     time");
        let mut sum = Counts::default();
        for (layer, counts, took) in layers {
            let Counts {
                passed,
                failed,
                skipped,
            } = counts;
            println!(
                "{:<8}{passed:>8}{failed:>8}{skipped:>9}{:>7.1} s",
                layer.name(),
                took.as_secs_f64()
            );
            sum += *counts;
        }
        for suite in failed {
            println!("failed: {suite}");
        }
        let nothing = sum == Counts::default();
        if nothing {
            println!("no test has such a name");
        }
        let skips_fail = skips_fail && sum.skipped > 0;
        if skips_fail {
            println!("with CI=true a skipped test is a failure");
        }
        let Counts {
            passed,
            failed,
            skipped,
        } = sum;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        if failed > 0 || skips_fail || nothing {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}
