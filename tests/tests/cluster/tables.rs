//! What the tables of services say, in names: ids, rows and indices resolved.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use lb_common::service::{Target, is_live};
use lb_tests::{control_plane::Client, sandbox::Node};
use lb_userspace::{
    api,
    compile::{self, Local},
    kernel::{Pins, Tables},
    node_view::NodeView,
    plan::{Allocations, ServiceTables, Sizes},
    render,
    source::apiserver::ApiServer,
    world::World,
};

/// What the tables in a node's kernel say, by the names that its agent gives.
pub fn live(node: &Node) -> Result<String> {
    let mut tables = Tables::open(&Pins::below(&node.bpffs()))?.services()?;
    // The interfaces say which addresses the node has, not the apiserver.
    let is_node = |target: &Target| matches!(target, Target::NodeAddress { .. });
    tables.frontends.retain(|_, target| !is_node(target));
    let socket = node.socket();
    let names = node
        .namespace()
        .run(async move { api::names(&socket).await })?;
    let names = names.context("the agent does not run")?;
    Ok(describe(
        &tables,
        render::resolved(&tables, &names.services),
    ))
}

/// What the tables would say if they were made anew, from what the apiserver says now.
pub fn fresh(client: &Client, kubeconfig: PathBuf, node: &str) -> Result<String> {
    let name = node.to_owned();
    let listed = async move {
        let server = ApiServer::from_kubeconfig(Some(&kubeconfig), &[]).await?;
        let mut changes = server.changes(&name).boxed();
        let mut world = World::default();
        while !world.synced() {
            world.apply(changes.next().await.context("the source ended")?);
        }
        anyhow::Ok(world)
    };
    let world = client.namespace().run(async {
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, listed)
            .await
            .context("list all objects")?
    })?;
    let local = Local::of(&world, node);
    let desired = world
        .services()
        .map(|(key, _)| (key.clone(), compile::service(&world, &local, key)))
        .collect();
    // The node's addresses are left out on both sides; the networks of services are not.
    let networks = compile::node(&world, &NodeView::default());
    let mut allocations = Allocations::restore(ServiceTables::default(), Sizes::KERNEL);
    allocations.plan(&desired, Some(&networks));
    let tables = allocations.tables();
    Ok(describe(
        tables,
        render::resolved(tables, &allocations.names()),
    ))
}

/// Counts what is in use too, so that what nothing leads to shows.
fn describe(tables: &ServiceTables, resolved: String) -> String {
    let live = tables
        .live
        .values()
        .filter(|generation| is_live(**generation));
    format!(
        "{resolved}{} services, {} live backends\n",
        tables.services.len(),
        live.count()
    )
}
