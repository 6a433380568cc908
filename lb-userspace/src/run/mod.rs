//! The agent: one task that owns all state, and does one thing after the other.

mod attachments;
mod devices;
mod interfaces;
mod pods;
mod policies;
mod recent;
mod report;
mod services;
mod slots;
mod sockets;
mod sources;
mod surface;

use std::{
    collections::BTreeMap,
    future,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use futures::{StreamExt as _, stream::BoxStream};
use ipnet::IpNet;
use lb_common::event::Event;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::block_in_place,
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use self::{
    attachments::{Answer, Attachments},
    interfaces::Interfaces,
    policies::Policies,
    recent::Recent,
    report::or_log,
    services::Services,
    sockets::Sockets,
    sources::Sources,
    surface::Surface,
};
pub use self::{interfaces::Choices, sockets::SocketLb, surface::Config as SurfaceConfig};
use crate::{
    api::{self, Query},
    cni::Attachment,
    compile::{PortName, policy::Sizes, sources::Unlisted},
    kernel::{self, Attach, Events, FlowCounts, Pins, Programs, StaleSockets, Swept, Tables},
    links::{self, LinkChange},
    names::Names,
    world::{Change, Dirty, World},
};

/// What the agent is told.
pub struct Config {
    /// Name of this node's Node object.
    pub node: String,
    /// Where objects come from, in words.
    pub source: String,
    /// What the source says.
    pub changes: BoxStream<'static, Change>,
    /// What is said of interfaces.
    pub interfaces: Choices,
    pub pins: Pins,
    /// Path of the unix socket; the file of names is beside it.
    pub socket: PathBuf,
    pub attach: Attach,
    /// Most verbose level that the programs log at, as `aya_log` counts; 0: nothing.
    pub log_level: u8,
    pub cgroup_root: Option<PathBuf>,
    pub surface: SurfaceConfig,
    pub socket_lb: SocketLb,
    /// What pods may ask to send from besides their own addresses.
    pub allow_pod_sources: Vec<IpNet>,
}

/// Changes that are taken in at once, if they are there.
const DRAIN: usize = 4096;
/// Between two readings of the ring of events, which has room for those of some seconds.
const LISTEN: Duration = Duration::from_millis(100);
/// Between signs of life, and looks for addresses that are missing.
const TICK: Duration = Duration::from_millis(500);
/// Ticks between two readings of all insides, and between attempts at what failed.
const REREAD: u32 = 20;
/// Ticks between two looks at what the metrics show.
const MEASURE: u32 = 4;
/// Between comparisons of the tables with what was written.
const AUDIT: Duration = Duration::from_secs(180);
/// Ticks for which kinds may be awaited without a word.
const PATIENCE: u32 = 60;
/// After a failure to write the tables: the first pause, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Runs the agent until it is told to stop. What it put in the kernel stays there and goes on.
pub async fn run(config: Config) -> Result<()> {
    let Config {
        node,
        source,
        changes,
        interfaces,
        pins,
        socket,
        attach,
        log_level,
        cgroup_root,
        surface,
        socket_lb,
        allow_pod_sources,
    } = config;
    let (ask, mut queries) = mpsc::channel(16);
    let listener = api::bind(&socket).await?;

    let mut programs = kernel::load(pins.clone(), attach, log_level)?;
    if log_level > 0 {
        programs.follow_log()?;
    }
    let mut tables = Tables::open(&pins)?;
    let mut interfaces = Interfaces::restore(interfaces, &pins, &tables)?;
    let policies = Policies::restore(&tables, Sizes::KERNEL)?;
    let stranger = policies.stranger(&interfaces.pods().places());
    interfaces.pods_mut().expect(stranger);
    let sources = Sources::restore(allow_pod_sources, &mut tables)?;
    let sockets = Sockets::start(socket_lb, cgroup_root.clone(), &mut programs, &mut tables)?;
    let stale_sockets = StaleSockets::watch(&pins)?;
    let mut events = Events::open(&pins)?;
    let names_path = Names::path(&socket);
    let (report, mut reports) = mpsc::channel(16);
    kernel::sweep(&pins, interfaces.slots(), report)?;
    tokio::spawn(api::serve(listener, ask));
    let (surface, mut attempts) = Surface::start(surface);
    let mut agent = Agent {
        services: Services::new(&node),
        node,
        source,
        pins,
        cgroup_root,
        earlier_names: read_names(&names_path),
        names_path,
        started: Instant::now(),
        world: World::default(),
        interfaces,
        attachments: Attachments::default(),
        policies,
        sources,
        recent: Recent::default(),
        surface,
        sockets,
        stale_sockets,
        tables,
        programs,
        flows: FlowCounts::default(),
        renamed: true,
        retry: Retry::default(),
        waiting: true,
        ticks: 0,
    };

    let mut changes = changes.ready_chunks(DRAIN);
    let mut links = links::watch()?.ready_chunks(DRAIN).boxed();
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let mut listen = interval(LISTEN);
    let mut tick = interval(TICK);
    let mut audit = interval(AUDIT);
    for timer in [&mut tick, &mut audit, &mut listen] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        timer.tick().await;
    }
    let ended = loop {
        tokio::select! {
            Some(changes) = links.next() => agent.apply_links(changes).await,
            changes = changes.next() => match changes {
                Some(changes) => agent.apply(changes).await,
                None => break Err(anyhow!("the source of objects has ended")),
            },
            Some(attempt) = attempts.recv() => if let Err(error) = agent.surface.attempted(attempt) {
                break Err(error);
            },
            Some(query) = queries.recv() => agent.answer(query).await,
            Some(report) = reports.recv() => agent.sweep(report),
            _ = listen.tick() => agent.note(&events.take()),
            () = future::ready(()), if agent.interfaces.pending() => agent.settle().await,
            _ = tick.tick() => agent.tick().await,
            _ = audit.tick() => agent.audit().await,
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
        }
        agent.program().await;
        agent.release();
    };
    info!("stopping; the programs go on with what the tables say");
    agent.keep_names();
    agent.surface.finish().await;
    ended
}

/// The names that an earlier agent left.
fn read_names(path: &Path) -> BTreeMap<u32, PortName> {
    or_log(Names::read(path))
        .map(|(names, _)| names.services)
        .unwrap_or_default()
}

/// All that the agent knows and holds.
struct Agent {
    node: String,
    source: String,
    pins: Pins,
    cgroup_root: Option<PathBuf>,
    names_path: PathBuf,
    /// What an earlier agent left there, to go by until the tables are our own.
    earlier_names: BTreeMap<u32, PortName>,
    started: Instant,
    world: World,
    services: Services,
    interfaces: Interfaces,
    attachments: Attachments,
    policies: Policies,
    sources: Sources,
    recent: Recent,
    surface: Surface,
    sockets: Sockets,
    stale_sockets: StaleSockets,
    tables: Tables,
    programs: Programs,
    flows: FlowCounts,
    /// Whether the file of names is out of date.
    renamed: bool,
    retry: Retry,
    /// Whether some kind has not been listed yet.
    waiting: bool,
    ticks: u32,
}

impl Agent {
    async fn apply(&mut self, changes: Vec<Change>) {
        self.surface.count(&changes);
        let mut dirty = Dirty::default();
        let services = changes.iter().any(|it| matches!(it, Change::Service(_)));
        for change in changes {
            dirty.merge(self.world.apply(change));
        }
        let waited = self.waiting;
        self.waiting = !self.world.synced();
        if waited && !self.waiting {
            info!("everything has been listed");
        }
        self.surface.mark(&dirty.services);
        self.services.mark(&self.world, dirty.services);
        if dirty.cidrs {
            self.services.mark_cidrs();
        }
        self.sources.mark(services, &dirty.policy);
        self.policies.mark(dirty.policy);
        if dirty.pods || dirty.node || waited {
            self.confirm().await;
            self.settle_sockets();
        } else {
            self.settle_sources();
        }
    }

    /// Looks again at which interface leads to which pod.
    async fn confirm(&mut self) {
        let announced = self.attachments.addresses();
        self.interfaces.confirm(&self.world, &self.node, announced);
        self.interfaces.reread();
        self.settle().await;
    }

    async fn apply_links(&mut self, changes: Vec<LinkChange>) {
        for change in changes {
            self.interfaces.apply(change);
        }
        self.settle().await;
    }

    async fn settle(&mut self) {
        let Self {
            interfaces,
            services,
            policies,
            tables,
            programs,
            ..
        } = self;
        let settled = interfaces.settle(tables, programs).await;
        let places = interfaces.pods().places();
        interfaces.pods_mut().expect(policies.stranger(&places));
        let guarded = policies.guard(&places, tables);
        if let Err(error) = settled.and(guarded) {
            error!("cannot keep up with the interfaces, trying again: {error:#}");
        }
        if let Some(view) = interfaces.view() {
            services.set_node(view.clone());
        }
        self.renamed = true;
        self.settle_sources();
    }

    /// Nothing is given and nothing taken before everything has been listed.
    fn settle_sources(&mut self) {
        let Self {
            sources,
            world,
            interfaces,
            attachments,
            tables,
            ..
        } = self;
        let Some(view) = interfaces.view().filter(|_| !self.waiting) else {
            return;
        };
        let announced = attachments.addresses();
        let announced = announced.map(|(pod, addresses)| (pod.clone(), addresses.clone()));
        let unlisted = Unlisted {
            own: view.addresses.clone(),
            announced: announced.collect(),
        };
        if let Err(error) = sources.settle(world, unlisted, interfaces.pods(), tables) {
            error!("cannot write what pods may send from, trying again: {error:#}");
        }
    }

    fn settle_sockets(&mut self) {
        let Self {
            sockets,
            world,
            node,
            tables,
            programs,
            ..
        } = self;
        let settled = block_in_place(|| sockets.settle(world, node, programs, tables));
        if let Err(error) = settled {
            error!("cannot keep up with the control groups, trying again: {error:#}");
        }
    }

    /// Programs what is out of date. Nothing is written, and so nothing removed, before everything
    /// has been listed.
    async fn program(&mut self) {
        if self.waiting || !self.services.pending() && !self.policies.pending() {
            return;
        }
        self.surface.queue();
        if !self.retry.due() {
            return;
        }
        let started = Instant::now();
        let Self {
            services,
            policies,
            interfaces,
            world,
            tables,
            ..
        } = self;
        // What is forbidden comes before what is offered.
        let new_rules = policies.pending();
        let programmed = block_in_place(|| {
            if policies.pending() {
                let places = interfaces.pods().places();
                let programmed = policies.program(world, &places, tables);
                // Also what has failed may close the doors to strangers.
                interfaces.pods_mut().expect(policies.stranger(&places));
                programmed?;
            }
            match services.pending() {
                true => services.program(world, tables),
                false => Ok(false),
            }
        });
        match programmed {
            Ok(renamed) => {
                self.renamed |= renamed || new_rules;
                self.surface.tell_closed(self.policies.closed(&self.world));
                if services.take_deaths() {
                    self.stale_sockets.look();
                }
                self.retry = Retry::default();
                let Self {
                    surface,
                    services,
                    world,
                    node,
                    ..
                } = self;
                if let Some(view) = services.node() {
                    surface.set_node(view);
                }
                surface.synced(world, node, started.elapsed()).await;
            }
            Err(error) => {
                let pause = self.retry.fail();
                error!("cannot write the tables, trying again in {pause:?}: {error:#}");
            }
        }
    }

    async fn tick(&mut self) {
        self.ticks += 1;
        self.keep_names();
        let node = self.world.node(&self.node);
        self.surface.live(node.map(|node| node.eligible));
        if self.ticks.is_multiple_of(MEASURE) {
            self.surface.publish(self.snapshot());
        }
        let thorough = self.ticks.is_multiple_of(REREAD);
        if thorough {
            self.surface.sync_checks().await;
            self.interfaces.retry();
            self.sockets.retry(&mut self.programs, &mut self.tables);
        }
        if thorough || self.sockets.wanting() {
            self.settle_sockets();
        }
        if thorough || self.interfaces.wanting() {
            self.interfaces.reread();
            self.settle().await;
        }
        if self.waiting && self.ticks.is_multiple_of(PATIENCE) {
            let awaited = self.world.waiting_for();
            let awaited: Vec<_> = awaited.iter().map(ToString::to_string).collect();
            warn!("still waiting for a list of each: {}", awaited.join(", "));
        }
    }

    async fn audit(&mut self) {
        let Self {
            services,
            policies,
            sources,
            interfaces,
            tables,
            ..
        } = self;
        let mut audit = || {
            services.audit(tables)?;
            interfaces.audit(tables)?;
            sources.audit(tables)?;
            policies.audit(tables)
        };
        if let Err(error) = block_in_place(&mut audit) {
            error!("cannot compare the tables with what was written: {error:#}");
        }
        self.settle().await;
    }

    fn sweep(&mut self, report: Swept) {
        match report {
            Swept::Expired(keys) => {
                if let Err(error) = self.programs.expire(&keys) {
                    error!("cannot expire flows: {error:#}");
                }
            }
            Swept::Pass(flows) => {
                self.flows = flows;
                self.interfaces.swept();
            }
        }
    }

    /// Keeps the file of names up to date, once the names are known, and gives a sign of life.
    fn keep_names(&mut self) {
        if self.services.tables().is_none() {
            return;
        }
        let kept = match self.renamed {
            true => self.names().write(&self.names_path),
            false => Names::touch(&self.names_path),
        };
        self.renamed = kept.is_err();
        if let Err(error) = kept {
            warn!("{error:#}");
        }
    }

    /// A question whose asker has gone needs no answer.
    async fn answer(&mut self, query: Query) {
        match query {
            Query::Status(answer) => drop(answer.send(self.status())),
            Query::Names(answer) => drop(answer.send(self.names())),
            Query::Drops(answer) => drop(answer.send(self.recent.all())),
            Query::Policies(answer) => drop(answer.send(self.described_policies())),
            Query::Explain(question, answer) => drop(answer.send(self.explain(&question))),
            Query::Attachment(request, answer) => {
                let mut attachments = std::mem::take(&mut self.attachments);
                let changed = attachments.take(request, answer, |asked| self.guarded(asked));
                self.attachments = attachments;
                if changed {
                    self.confirm().await;
                }
            }
        }
    }

    /// Remembers what the programs tell.
    fn note(&mut self, events: &[Event]) {
        let Self {
            recent,
            world,
            interfaces,
            policies,
            ..
        } = self;
        recent.note(events, world, interfaces.pods(), policies);
    }

    /// Lets the pods start that are guarded now.
    fn release(&mut self) {
        let mut attachments = std::mem::take(&mut self.attachments);
        attachments.release(|asked| self.guarded(asked));
        self.attachments = attachments;
    }

    /// Whether a pod's interface carries our programs and all that holds for the pod, or whether
    /// that could be brought about; else why not.
    fn guarded(&self, asked: Option<&Attachment>) -> Answer {
        let awaited = self.world.waiting_for();
        if !awaited.is_empty() {
            let awaited: Vec<_> = awaited.iter().map(ToString::to_string).collect();
            return Err(format!(
                "the agent waits for a list of each: {}",
                awaited.join(", ")
            ));
        }
        // Whoever is not a pod of Kubernetes' is not ours to guard.
        let Some((pod, asked)) = asked.and_then(|asked| Some((asked.pod.as_ref()?, asked))) else {
            return Ok(());
        };
        if !self.world.is_local(pod) {
            return Err(format!("no Pod {pod} of this node is known yet"));
        }
        self.interfaces.hold(&asked.addresses)?;
        match self.policies.hold(pod, &self.interfaces.pods().places()) {
            true => Ok(()),
            false => Err(format!("the policies of {pod} are not in force yet")),
        }
    }
}

/// When to try again after failures.
#[derive(Default)]
struct Retry {
    failures: u32,
    not_before: Option<Instant>,
}

impl Retry {
    fn due(&self) -> bool {
        self.not_before
            .is_none_or(|moment| moment <= Instant::now())
    }

    /// Notes a failure; says how long to wait.
    fn fail(&mut self) -> Duration {
        let (first, longest) = BACKOFF;
        let pause = first
            .saturating_mul(1 << self.failures.min(16))
            .min(longest);
        self.failures += 1;
        self.not_before = Some(Instant::now() + pause);
        pause
    }
}
