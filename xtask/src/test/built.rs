//! The executables of the tests: built as the caller, run layer by layer.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use super::{
    layer::Layer,
    report::Report,
    suite::{self, Counts, Suite},
};
use crate::{
    artifacts::{cargo, executables},
    children, root,
};

const EXAMPLES: &str = "examples in the documentation";

/// The executables of the tests and of what they start.
pub struct Built {
    suites: Vec<Suite>,
    /// Finds or builds what the cluster layer runs, and prints where it is.
    control_plane: PathBuf,
}

impl Built {
    /// Builds what `layer` needs, or everything; `None` when something does not compile.
    pub fn build(layer: Option<Layer>) -> Result<Option<Self>> {
        // In one go, so that all have the same dependencies with the same features.
        let mut build = cargo("build");
        build
            .args(["--bin=lb", "--bin=control-plane"])
            .arg(layer.map_or("--tests", Layer::targets));
        let Some(artifacts) = executables(build)? else {
            return Ok(None);
        };
        let (tests, programs): (Vec<_>, Vec<_>) = artifacts
            .into_iter()
            .partition(|artifact| artifact.profile.test);
        let control_plane = programs
            .into_iter()
            .find(|program| program.target.name == "control-plane")
            .and_then(|program| program.executable)
            .context("lb-tests has no program control-plane")?;
        let mut suites: Vec<Suite> = tests.into_iter().filter_map(Suite::of).collect();
        suites.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(Self {
            suites,
            control_plane: control_plane.into(),
        }))
    }

    /// Runs the tests of `layer` whose names contain `filter`.
    pub fn run(&self, layer: Layer, filter: Option<&str>, report: &mut Report) -> Result<Counts> {
        let path = match layer {
            Layer::Pure | Layer::Golden | Layer::Packet | Layer::Net => Some(root::search_path()),
            Layer::Cluster => self.control_plane()?,
        };
        let mut sum = Counts::default();
        let mut add = |name: &str, counts: Counts| {
            if counts.failed > 0 {
                report.failed(layer, name);
            }
            sum += counts;
        };

        for suite in self.of(layer) {
            println!("\n{}: {}", layer.name(), suite.name);
            let mut counts = match &path {
                Some(path) => suite.run(filter, path)?,
                None => Counts::skipped(suite.count(filter, false)?),
            };
            if layer == Layer::Pure {
                // They need root, so the net layer runs them.
                counts.skipped = 0;
            }
            add(&suite.name, counts);
        }
        if layer == Layer::Pure {
            println!("\n{}: {EXAMPLES}", layer.name());
            let mut examples = cargo("test");
            examples.args(["--doc", "--"]).args(filter);
            add(EXAMPLES, suite::run(examples)?);
        }
        if layer == Layer::Net {
            for suite in self.of(Layer::Pure) {
                if suite.count(filter, true)? > 0 {
                    println!("\n{}: {} as root", layer.name(), suite.name);
                    add(
                        &suite.name,
                        suite.run_as_root(filter, &root::search_path())?,
                    );
                }
            }
        }
        Ok(sum)
    }

    fn of(&self, layer: Layer) -> impl Iterator<Item = &Suite> {
        self.suites.iter().filter(move |suite| suite.layer == layer)
    }

    /// The search path of the cluster layer, which begins with the control plane; `None` when there
    /// is no getting that, which has been explained by then.
    fn control_plane(&self) -> Result<Option<OsString>> {
        let (status, folders) = children::output(Command::new(&self.control_plane))?;
        let mut path = OsString::from_vec(folders.trim_ascii_end().to_vec());
        path.push(":");
        path.push(root::search_path());
        Ok(status.success().then_some(path))
    }
}
