//! `lb explain`.

use anyhow::{Result, anyhow};

use super::{
    Explain,
    output::{Failure, print},
};
use crate::{
    explain::{self, Explanation, Packet},
    source::manifests::Manifests,
    world::{Change, World},
};

/// Answers from manifests alone, with no kernel and no agent.
pub fn explain(question: &Explain) -> Result<(), Failure> {
    let Explain {
        source,
        destination,
        port,
        protocol,
        manifests,
        output,
    } = question;
    let manifests = Manifests::open(manifests)?;
    let world = world_of(&manifests, "")?;
    let addresses = explain::addresses(&world, source, destination);
    let (source, destination) = addresses.map_err(|error| anyhow!(error))?;
    let packet = Packet {
        source,
        destination,
        protocol: *protocol,
        port: *port,
    };
    let explanation = explain::explain(packet, &world, |node| world_of(&manifests, node))?;
    Ok(print(*output, &explanation, Explanation::to_string)?)
}

/// What the agent of a node would know.
fn world_of(manifests: &Manifests, node: &str) -> Result<World> {
    let mut world = World::default();
    for change in manifests.read(node)? {
        if let Change::Trouble(trouble) = &change {
            for it in &trouble.troubles {
                eprintln!("lb: {}: {}", trouble.subject, it.text);
            }
        }
        world.apply(change);
    }
    Ok(world)
}
