//! Golden tests: objects as YAML in, tables as text out. `UPDATE=1` writes what comes out.
//!
//! A fixture is a sequence of states of a directory of manifests, separated by `# ---- then`. Each
//! state is reached from the one before, and must mean what a fresh start from it means.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::{FutureExt as _, Stream, StreamExt as _};
use lb_userspace::{
    compile::{self, Local},
    names::Names,
    node_view::{NodePortAddresses, NodeView},
    plan::{Allocations, ServiceTables, Sizes},
    render::{self, NodeTables},
    source::manifests::Manifests,
    status,
    world::{Change, World},
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::time::timeout;

/// The node whose tables they are; where the state has its Node, the addresses listed there are all.
const NODE: &str = "node-a";
const SEPARATOR: &str = "# ---- then\n";

fn main() -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    let mut fixtures = Vec::new();
    for entry in fs::read_dir(directory())? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            fixtures.push(path);
        }
    }
    fixtures.sort();
    let trial = |path: PathBuf| {
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Trial::test(name, move || {
            check(&path).map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    Ok(libtest_mimic::run(&arguments, fixtures.into_iter().map(trial).collect()).exit_code())
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn check(fixture: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let states = fs::read_to_string(fixture)?;
    let found = runtime.block_on(play(&states.split(SEPARATOR).collect::<Vec<_>>()))?;
    let golden = fixture.with_extension("tables");
    if std::env::var_os("UPDATE").is_some() {
        return Ok(fs::write(golden, found)?);
    }
    let expected = fs::read_to_string(&golden)
        .with_context(|| format!("read {}; UPDATE=1 writes it", golden.display()))?;
    ensure!(found == expected, "expected:\n{expected}\nfound:\n{found}");
    Ok(())
}

/// The tables after each state.
async fn play(states: &[&str]) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("objects.yaml");
    let mut text = String::new();
    let mut node = Node::default();
    let mut changes = None;
    for (number, state) in (1..).zip(states) {
        fs::write(&file, state)?;
        let manifests = Manifests::open(directory.path())?;
        let changes = changes.get_or_insert_with(|| manifests.changes(NODE).boxed());
        node.follow(changes).await?;

        let mut fresh = Node::default();
        fresh.follow(&mut manifests.changes(NODE).boxed()).await?;
        ensure!(
            node.resolved() == fresh.resolved(),
            "a fresh start differs in state {number}"
        );

        if states.len() > 1 {
            writeln!(text, "==== state {number}")?;
        }
        text += &node.render();
    }
    Ok(text)
}

/// An agent without a kernel.
struct Node {
    world: World,
    local: Local,
    allocations: Allocations,
    tables: ServiceTables,
}

impl Default for Node {
    fn default() -> Self {
        let tables = ServiceTables::default();
        let allocations = Allocations::restore(tables.clone(), Sizes::KERNEL);
        Self {
            world: World::default(),
            local: Local::default(),
            allocations,
            tables,
        }
    }
}

impl Node {
    /// Takes in what the source has to say, and programs it.
    async fn follow(&mut self, changes: &mut (impl Stream<Item = Change> + Unpin)) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let first = timeout(PATIENCE, changes.next())
            .await
            .context("the source says nothing")?;
        let mut next = first;
        let mut dirty = self.world.apply(next.take().context("the source ended")?);
        while !self.world.synced() {
            let change = timeout(PATIENCE, changes.next())
                .await
                .context("waiting for a list")?;
            dirty.merge(self.world.apply(change.context("the source ended")?));
        }
        while let Some(Some(change)) = changes.next().now_or_never() {
            dirty.merge(self.world.apply(change));
        }
        let local = Local::of(&self.world, NODE);
        if local != self.local {
            let all = self.world.services().map(|(key, _)| key.clone());
            dirty.services.extend(all);
            self.local = local;
        }
        let desired = dirty.services.into_iter().map(|key| {
            let desired = compile::service(&self.world, &self.local, &key);
            (key, desired)
        });
        let node = self.world.node(NODE);
        let listed = node.map(|node| &node.addresses[..]).unwrap_or_default();
        let all = listed.iter().copied().collect();
        let view = NodeView::new(&all, listed, &[NodePortAddresses::Primary]);
        let node = compile::node(&self.world, &view);
        let plan = self.allocations.plan(&desired.collect(), Some(&node));
        ensure!(plan.no_room.is_empty(), "no room: {:?}", plan.no_room);
        plan.ops.iter().for_each(|op| self.tables.apply(op));
        ensure!(
            &self.tables == self.allocations.tables(),
            "the plan is not what was planned"
        );
        Ok(())
    }

    fn resolved(&self) -> String {
        render::resolved(&self.tables, &self.allocations.names())
    }

    fn render(&self) -> String {
        let names = Names {
            services: self.allocations.names(),
            ..Names::default()
        };
        let mut text = render::dump(&self.tables, &names, &NodeTables::default()).to_string();
        text += "-- resolved\n";
        text += &self.resolved();
        let problems = status::problems(&self.world);
        if !problems.is_empty() {
            text += "-- problems\n";
        }
        for status::Problem {
            kind,
            object,
            problem,
        } in problems
        {
            text += &format!("{kind} {object}: {problem}\n");
        }
        text
    }
}
