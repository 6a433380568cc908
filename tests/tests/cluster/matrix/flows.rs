//! The flows of earlier cases. The agent keeps them for two minutes after their last packet, in which
//! the matrix opens more than its table holds.

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use lb_common::flow::{Flow, FlowKey};
use lb_tests::sandbox::Node;
use lb_userspace::kernel::Pins;

use super::world::World;

/// Removes the flows of both nodes, on which nobody sends any more.
pub fn forget(world: &World) -> Result<()> {
    world.cluster.sandbox.nodes().iter().try_for_each(empty)
}

fn empty(node: &Node) -> Result<()> {
    let path = Pins::below(&node.bpffs()).table("FLOWS");
    let map = MapData::from_pin(path).context("open FLOWS")?;
    let mut flows: HashMap<MapData, FlowKey, Flow> = Map::HashMap(map).try_into()?;
    let keys: Vec<_> = flows
        .keys()
        .collect::<Result<_, _>>()
        .context("read FLOWS")?;
    for key in keys {
        match flows.remove(&key) {
            // The agent may have removed it.
            Ok(()) | Err(MapError::KeyNotFound) => (),
            Err(error) => return Err(error).context("remove a flow"),
        }
    }
    Ok(())
}
