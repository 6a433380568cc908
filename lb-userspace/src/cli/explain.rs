//! `lb explain`.

use anyhow::anyhow;

use super::{
    Explain,
    output::{Failure, print},
    policy::{no_agent, world},
};
use crate::{
    api,
    explain::{Explanation, Question, explain_everywhere},
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
            let world = world(manifests)?;
            let packet = question.packet(&world).map_err(|error| anyhow!(error))?;
            explain_everywhere(packet, &world)
        }
        None => {
            let answer = api::explain(&asked.view.places.socket, &question).await?;
            let explanation = answer.ok_or_else(no_agent)?;
            explanation.map_err(|error| anyhow!(error))?
        }
    };
    Ok(print(
        asked.view.output,
        &explanation,
        Explanation::to_string,
    )?)
}
