//! `lb explain`.

use anyhow::anyhow;

use super::{
    Explain,
    output::{Failure, print},
};
use crate::{
    explain::{Explanation, Packet, addresses, everywhere, explain},
    source::manifests::Manifests,
};

/// Answers from manifests alone, with no kernel and no agent.
pub fn answer(question: &Explain) -> Result<(), Failure> {
    let Explain {
        source,
        destination,
        port,
        protocol,
        manifests,
        output,
    } = question;
    let world = everywhere(Manifests::open(manifests)?.read("")?);
    for (subject, trouble) in world.troubles() {
        eprintln!("lb: {subject}: {}", trouble.text);
    }
    let (source, destination) =
        addresses(&world, source, destination).map_err(|error| anyhow!(error))?;
    let packet = Packet {
        source,
        destination,
        protocol: *protocol,
        port: *port,
    };
    let explanation = explain(packet, &world);
    Ok(print(*output, &explanation, Explanation::to_string)?)
}
