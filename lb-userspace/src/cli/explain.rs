//! `lb explain`.

use anyhow::anyhow;

use super::{
    Explain,
    output::{Failure, print},
};
use crate::{
    api,
    explain::{Explanation, Question, everywhere, explain_everywhere},
    source::manifests::Manifests,
};

/// Asks the agent, or answers from manifests alone, with no kernel and no agent.
pub async fn answer(asked: &Explain) -> Result<(), Failure> {
    let question = Question {
        source: asked.source.clone(),
        destination: asked.destination.clone(),
        protocol: asked.protocol,
        port: asked.port,
    };
    let explanation = match &asked.manifests {
        Some(manifests) => {
            let world = everywhere(Manifests::open(manifests)?.read("")?);
            for (subject, trouble) in world.troubles() {
                eprintln!("lb: {subject}: {}", trouble.text);
            }
            let packet = question.packet(&world).map_err(|error| anyhow!(error))?;
            explain_everywhere(packet, &world)
        }
        None => match api::explain(&asked.view.places.socket, &question).await? {
            Some(explanation) => explanation.map_err(|error| anyhow!(error))?,
            None => {
                return Err(Failure::NotRunning(
                    "the agent is not running; with --manifests DIR files are asked".to_owned(),
                ));
            }
        },
    };
    Ok(print(
        asked.view.output,
        &explanation,
        Explanation::to_string,
    )?)
}
