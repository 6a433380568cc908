//! `lb policy`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, anyhow, ensure};

use super::{
    PolicyCommand,
    output::{Failure, print},
};
use crate::{
    api,
    connectivity::{Difference, compare},
    explain,
    policies::{self, Policy},
    source::manifests,
    world::{Severity, World},
};

/// The exit code of `lb policy diff` where there is a difference, as that of `diff`.
const DIFFERENT: u8 = 1;

/// Asks the agent, or answers from manifests alone, with no kernel and no agent.
pub async fn answer(command: &PolicyCommand) -> Result<ExitCode, Failure> {
    match command {
        PolicyCommand::List { manifests, view } => {
            let policies = policies(manifests.as_deref(), &view.places.socket).await?;
            print(view.output, &policies, |policies| policies::list(policies))?;
        }
        PolicyCommand::Get {
            name,
            manifests,
            view,
        } => {
            let mut found = policies(manifests.as_deref(), &view.places.socket).await?;
            found.retain(|policy| policy.name.rsplit(' ').next() == Some(name));
            if found.is_empty() {
                return Err(anyhow!("there is no policy {name}").into());
            }
            let text = |policies: &Vec<Policy>| policies.iter().map(ToString::to_string).collect();
            print(view.output, &found, text)?;
        }
        PolicyCommand::Diff { old, new, output } => {
            // Nothing may be taken for equal that could not be read.
            let incomparable = |error: anyhow::Error| Failure::Usage(format!("{error:#}"));
            let difference = difference(old, new).map_err(incomparable)?;
            print(*output, &difference, Difference::to_string)?;
            if !difference.is_empty() {
                return Ok(ExitCode::from(DIFFERENT));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn policies(manifests: Option<&Path>, socket: &Path) -> Result<Vec<Policy>, Failure> {
    match manifests {
        Some(manifests) => Ok(policies::everywhere(&world(manifests)?)),
        None => api::policies(socket).await?.ok_or_else(no_agent),
    }
}

/// Nobody can be asked but files.
pub fn no_agent() -> Failure {
    let text = "the agent is not running; with --manifests DIR files are asked";
    Failure::NotRunning(text.to_owned())
}

/// The world that manifests describe. Tells what ails them.
pub fn world(path: &Path) -> Result<World> {
    let world = explain::everywhere(manifests::read(path)?);
    for (subject, trouble) in world.troubles() {
        eprintln!("lb: {subject}: {}", trouble.text);
    }
    Ok(world)
}

fn difference(old: &PathBuf, new: &PathBuf) -> Result<Difference> {
    let readable = |path: &PathBuf| {
        let world = world(path)?;
        let mut troubles = world.troubles();
        let broken = troubles.any(|(_, trouble)| trouble.severity == Severity::Error);
        ensure!(!broken, "{} cannot be read to its end", path.display());
        drop(troubles);
        for problem in world.problems() {
            eprintln!("lb: {} {}: {}", problem.kind, problem.key, problem.text);
        }
        Ok(world)
    };
    Ok(compare(&readable(old)?, &readable(new)?))
}
