//! Puts an agent together from its files, runs it, and takes it down in order.

use crate::address;
use crate::api::{self, Api};
use crate::archive_command::{self, ArchiveCommand};
use crate::archiver::Archivers;
use crate::audit::Audit;
use crate::backups::{self, Backups};
use crate::certificates::Certificates;
use crate::drills::Drills;
use crate::durable::Gate;
use crate::evidence::{self, Ports};
use crate::executor::Hands;
use crate::follow::{self, Configure, Follow, decision_config};
use crate::handlers::{MindHandler, RouteHandler};
use crate::health::{self, Health};
use crate::intent::Removed;
use crate::keeper::Keeper;
use crate::library::Library;
use crate::lifecycle::{Ended, Ending, Lifecycle, Signal};
use crate::lives::Lives;
use crate::membership::Members;
use crate::mind_loop::{self, INPUTS_MAX, Parts, Question, Wish};
use crate::proxy_child::ProxyChild;
use crate::restorer::Restorer;
use crate::routes::Routes;
use crate::runs::{self, Outcomes, RunNotes};
use crate::schedule::Schedule;
use crate::setup_ground::Ground;
use crate::slots::Slots;
use crate::{history, leadership, probes, record, roles};
use anyhow::{Context, Result};
use mainstay_decide::Mind;
use mainstay_decide::io::Input;
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::Spec;
use mainstay_model::status::AddressStanding;
use mainstay_model::{Event, NodeId, ServerObservation, Span};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::engine::Configured;
use mainstay_ports::peer::{Channel, Handler, Handlers, Peers};
use mainstay_ports::route_board::RouteBoard;
use mainstay_ports::store::Store;
use mainstay_store::ClusterStore;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, OnceCell, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

/// Which node to run, from which files.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The cluster, by the node's own file.
    pub spec: Spec,
    /// That file.
    pub config: PathBuf,
    /// This node.
    pub node: NodeId,
    /// Its files.
    pub layout: NodeLayout,
    /// This program, started again as the guard.
    pub program: PathBuf,
    /// Run database servers as this user and group; `None`: as the agent's.
    pub server_user: Option<(u32, u32)>,
    /// The name of the user that the agent runs as (the server's peer authentication checks it).
    pub os_user: String,
}

/// Random bits from the operating system.
pub(crate) fn entropy() -> Result<u64> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("read entropy")?;
    Ok(u64::from_le_bytes(bytes))
}

/// How long the server, and its guard, may take to end.
const END: Duration = Duration::from_secs(20);
/// How long the store may take to stop.
const STORE_END: Duration = Duration::from_secs(5);

/// Everything that the tasks share.
struct Agent {
    me: NodeId,
    ground: Ground,
    store: Arc<ClusterStore>,
    routes: Routes,
    inputs: mpsc::Sender<Input>,
    questions: mpsc::Sender<Question>,
    wishes: mpsc::Sender<Wish>,
    events: mpsc::Sender<Event>,
    order_begins: Arc<Notify>,
    observed: watch::Sender<ServerObservation>,
    configured: watch::Sender<Configured>,
    proxy_down: watch::Sender<Option<String>>,
    virtual_address: watch::Sender<Option<AddressStanding>>,
    ending: Ending,
    lives: Arc<Lives>,
    backups: mpsc::Sender<backups::Order>,
    restorer: Option<Arc<Restorer>>,
    drills: Arc<Drills>,
    runs: RunNotes,
}

/// Runs the agent until `signal` asks it to end, or it ends by itself.
///
/// # Errors
/// When the agent can not be set up ([`crate::NodeRemoved`] among others), or can not make its promise durable any more.
pub async fn run(options: AgentOptions, signal: watch::Receiver<Signal>) -> Result<Ended> {
    let mut keeper = None;
    let drills = Drills::new(options.layout.drill());
    let outcome = live(options, signal, &mut keeper, &drills).await;
    drills.close().await;
    if let (Err(_), Some(keeper)) = (&outcome, keeper) {
        keeper.end_if_of_no_use().await;
    }
    outcome
}

async fn live(
    options: AgentOptions,
    mut signal: watch::Receiver<Signal>,
    keeper: &mut Option<Arc<Keeper>>,
    drills: &Arc<Drills>,
) -> Result<Ended> {
    drills.end_left();
    let ground = Ground::lay(options, keeper).await?;
    ground.mesh.serve(ground.doors.handlers(), Some(Arc::clone(&ground.doors.api) as _)).await?;
    let store = tokio::select! {
        store = ground.store() => store?,
        asked = signal.wait_for(|signal| *signal != Signal::Run) => {
            let restart = asked.is_ok_and(|asked| *asked == Signal::Restart);
            return end_early(&ground, restart).await;
        }
    };
    let (inputs, input_queue) = mpsc::channel(INPUTS_MAX);
    let (questions, question_queue) = mpsc::channel::<Question>(64);
    let (wishes, wish_queue) = mpsc::channel::<Wish>(16);
    let (events, event_queue) = mpsc::channel(256);
    let (backups, backup_queue) = mpsc::channel(4);
    let life = entropy()?;
    let board = Arc::new(RouteBoard::new(life));
    let me = ground.options.node.clone();
    let durable = ground.durable.clone();
    let to_loop = (questions.clone(), wishes.clone());
    let restorer = Restorer::of(&ground.options, &ground.generations, Arc::clone(&store) as Arc<dyn Store>, to_loop);
    let restorer = ground.keeper.is_some().then_some(restorer);
    let runs = RunNotes::new(Arc::clone(&store) as Arc<dyn Store>);
    let agent = Agent {
        restorer,
        runs,
        routes: Routes::new(me.clone(), ground.addresses.servers.clone(), Arc::clone(&board)),
        me,
        store,
        inputs: inputs.clone(),
        questions,
        wishes,
        events,
        order_begins: Arc::default(),
        observed: watch::Sender::new(ServerObservation::default()),
        configured: watch::Sender::new(Configured::default()),
        proxy_down: watch::Sender::new(None),
        virtual_address: watch::Sender::new(None),
        ending: Ending::default(),
        lives: Arc::default(),
        backups,
        drills: Arc::clone(drills),
        ground,
    };
    if agent.ground.keeper.is_some() {
        tokio::spawn(agent.backups().keep(backup_queue));
        tokio::spawn(agent.schedule().keep());
    }
    if let Some(restorer) = &agent.restorer {
        tokio::spawn(Arc::clone(restorer).keep());
    }
    tokio::spawn(history::keep(Arc::clone(&agent.store) as Arc<dyn Store>, event_queue));
    agent
        .open(BTreeMap::from([
            (Channel::Mind, MindHandler::new(inputs, &agent.lives, &agent.store) as Arc<dyn Handler>),
            (Channel::Route, Arc::new(RouteHandler(board)) as Arc<dyn Handler>),
        ]))
        .await?;
    let data = agent.ground.engine.has_data().await;
    let config = decision_config(&agent.me, &agent.ground.generations.now(), entropy()?);
    let mind = Mind::new(config, durable.clone(), data, life);
    let parts = agent.start_tasks(mind, Gate::new(agent.ground.options.layout.durable(), durable));
    let stop = agent.start_ends(signal);
    let outcome = mind_loop::run(parts, input_queue, question_queue, wish_queue, stop).await;
    drills.close().await; // A server that stands still can not be stopped in order.
    agent.end(outcome.is_ok()).await?;
    outcome?;
    Ok(agent.ending.how().unwrap_or(Ended::Stopped))
}

/// Asked to end before there was a store.
async fn end_early(ground: &Ground, restart: bool) -> Result<Ended> {
    if let (false, Some(keeper)) = (restart, &ground.keeper) {
        shut_down(keeper).await;
    }
    Ok(if restart { Ended::Restart } else { Ended::Stopped })
}

impl Agent {
    fn api(&self) -> Result<Arc<Api>> {
        let layout = &self.ground.options.layout;
        let audit = Audit::start(layout.audit_log()).context("start the audit's writer")?;
        let gate = roles::Gate { me: self.me.clone(), audit, events: self.events.clone() };
        let address = self.ground.addresses.agents.get(&self.me).map(|at| format!("https://{at}")).unwrap_or_default();
        Ok(Arc::new(Api {
            me: self.me.clone(),
            generations: Arc::clone(&self.ground.generations),
            configured: self.configured.subscribe(),
            layout: layout.clone(),
            ending: self.ending.clone(),
            events: self.events.clone(),
            address,
            questions: self.questions.clone(),
            wishes: self.wishes.clone(),
            peers: self.peers(),
            store: Arc::clone(&self.store),
            process: Arc::clone(&self.ground.process),
            engine: Arc::clone(&self.ground.engine),
            outcomes: Outcomes::new(&self.ground.engine, &self.routes, &self.runs),
            observed: self.observed.subscribe(),
            version: OnceCell::new(),
            first_seen: Mutex::default(),
            proxy_down: self.proxy_down.subscribe(),
            virtual_address: self.virtual_address.subscribe(),
            board: self.routes.board(),
            certificates: Certificates::of(layout, Arc::clone(&self.ground.mesh)),
            library: Library::default(),
            lives: Arc::clone(&self.lives),
            drills: Arc::clone(&self.drills),
            backups: self.backups.clone(),
            restorer: self.restorer.clone(),
            gate,
        }))
    }

    fn peers(&self) -> Arc<dyn Peers> {
        Arc::clone(&self.ground.mesh) as Arc<dyn Peers>
    }

    /// The node's own lines in the specification; in the file, if that does not list it.
    fn node(&self) -> Result<mainstay_model::spec::Node> {
        let now = self.ground.generations.now();
        let node = now.spec.node(&self.me).or_else(|| self.ground.options.spec.node(&self.me));
        node.cloned().context("this node is not in the file")
    }

    /// Opens the doors, and the plain port for health checks.
    async fn open(&self, handlers: Handlers) -> Result<()> {
        let api = self.api()?;
        self.ground.doors.ask.fill(Arc::clone(&api));
        self.ground.doors.fill(handlers);
        self.ground.doors.api.fill(api::router(Arc::clone(&api)));
        let node = self.node()?;
        let address = follow::resolve(&node.host, node.health_port).await?;
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address} for health checks (is another agent running?)"))?;
        tokio::spawn(health::serve(listener, Health { api, routes: self.routes.clone() }));
        Ok(())
    }

    /// Starts what feeds the loop, and gathers what the loop works with.
    fn start_tasks(&self, mind: Mind, gate: Gate) -> Parts {
        let process = Arc::clone(&self.ground.process);
        let store = Arc::clone(&self.store);
        let (probe_interval, interval) = watch::channel(Span(250));
        let (probe_now, server_started) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let inputs = &self.inputs;

        tokio::spawn(record::watch(Arc::clone(&store) as Arc<dyn Store>, inputs.clone()));
        let (routes, questions) = (self.routes.clone(), self.questions.clone());
        leadership::start(self.me.clone(), &self.store, self.peers(), routes, questions, &self.ground.generations);
        if self.ground.keeper.is_some() {
            let (engine, seen) = (Arc::clone(&self.ground.engine), self.observed.clone());
            tokio::spawn(probes::probe(Arc::clone(&engine), interval, Arc::clone(&probe_now), seen, inputs.clone()));
            tokio::spawn(probes::watch_exit(Arc::clone(&process), Arc::clone(&server_started), inputs.clone()));
            tokio::spawn(runs::keep(Outcomes::new(&engine, &self.routes, &self.runs)));
            tokio::spawn(self.slots().keep());
            tokio::spawn(self.archivers().keep());
            tokio::spawn(self.archive_command().keep());
            let layout = &self.ground.options.layout;
            let configure = Configure {
                certificate: (layout.server_cert(), layout.server_ca()),
                credentials: Arc::clone(self.ground.mesh.credentials()),
                generations: Arc::clone(&self.ground.generations),
                engine,
                observed: self.observed.subscribe(),
                questions: self.questions.clone(),
                order_begins: Arc::clone(&self.order_begins),
                shown: self.configured.clone(),
            };
            tokio::spawn(configure.keep());
        }
        self.start_followers();
        let hands = Hands {
            engine: Arc::clone(&self.ground.engine),
            process,
            gate,
            deadlines: self.ground.deadlines.clone(),
            runs: self.runs.clone(),
            inputs: inputs.clone(),
            order_begins: Arc::clone(&self.order_begins),
        };
        let (routes, events, peers) = (self.routes.clone(), self.events.clone(), self.peers());
        Parts { mind, hands, store, peers, routes, events, probe_interval, probe_now, server_started }
    }

    /// What goes by the specification while the agent runs.
    fn start_followers(&self) {
        let generations = &self.ground.generations;
        let ports: watch::Sender<BTreeMap<NodeId, Ports>> = watch::Sender::new(self.ground.addresses.ports(&self.me));
        tokio::spawn(evidence::watch_links(self.peers(), ports.subscribe(), self.inputs.clone()));
        let follow = Follow {
            me: self.me.clone(),
            generations: Arc::clone(generations),
            mesh: Arc::clone(&self.ground.mesh),
            inputs: self.inputs.clone(),
            routes: self.routes.clone(),
            ports,
            addresses: self.ground.addresses.clone(),
        };
        tokio::spawn(follow.run());
        let (me, store) = (self.me.clone(), Arc::clone(&self.store));
        let followed = Arc::clone(generations);
        tokio::spawn(async move { followed.follow(&me, &*store).await });
        tokio::spawn(self.members().keep());
        tokio::spawn(self.proxy().keep(Arc::clone(generations)));
        if self.ground.keeper.is_some()
            && let Err(problem) = self.virtual_address().start()
        {
            warn!(%problem, "no thread for the virtual address: this node does not take it");
        }
        if let (true, Some(raft)) = (self.ground.above.is_some(), self.store.embedded()) {
            tokio::spawn(leadership::clear_once_taken_in(Arc::clone(raft), self.ground.options.layout.clone()));
        }
    }

    fn members(&self) -> Members {
        Members {
            me: self.me.clone(),
            store: Arc::clone(&self.store),
            peers: self.peers(),
            generations: Arc::clone(&self.ground.generations),
            events: self.events.clone(),
        }
    }

    fn proxy(&self) -> ProxyChild {
        let options = &self.ground.options;
        ProxyChild {
            program: options.program.clone(),
            config: options.config.clone(),
            node: self.me.clone(),
            layout: options.layout.clone(),
            down: self.proxy_down.clone(),
        }
    }

    fn virtual_address(&self) -> address::Keeper {
        address::Keeper {
            me: self.me.clone(),
            generations: Arc::clone(&self.ground.generations),
            routes: self.routes.clone(),
            standing: self.virtual_address.clone(),
        }
    }

    fn archivers(&self) -> Archivers {
        Archivers {
            me: self.me.clone(),
            generations: Arc::clone(&self.ground.generations),
            observed: self.observed.subscribe(),
            questions: self.questions.clone(),
            pg_wal: self.ground.options.layout.data().join("pg_wal"),
            store: Arc::clone(&self.store) as Arc<dyn Store>,
        }
    }

    fn archive_command(&self) -> ArchiveCommand {
        ArchiveCommand {
            me: self.me.clone(),
            generations: Arc::clone(&self.ground.generations),
            observed: self.observed.subscribe(),
            questions: self.questions.clone(),
            pg_wal: self.ground.options.layout.data().join("pg_wal"),
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            looks: Arc::new(Semaphore::new(1)),
        }
    }

    fn backups(&self) -> Backups {
        Backups {
            me: self.me.clone(),
            generations: Arc::clone(&self.ground.generations),
            observed: self.observed.subscribe(),
            engine: Arc::clone(&self.ground.engine),
            data: self.ground.options.layout.data(),
            drill: crate::restore_drill::Place::of(&self.ground.options),
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            peers: self.peers(),
            events: self.events.clone(),
        }
    }

    fn schedule(&self) -> Schedule {
        Schedule {
            me: self.me.clone(),
            generations: Arc::clone(&self.ground.generations),
            observed: self.observed.subscribe(),
            questions: self.questions.clone(),
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            peers: self.peers(),
            orders: self.backups.clone(),
        }
    }

    fn slots(&self) -> Slots {
        let (generations, store) = (Arc::clone(&self.ground.generations), Arc::clone(&self.store) as Arc<dyn Store>);
        Slots {
            archived: Box::new(move |timeline| archive_command::archived(&generations.now().spec, &*store, timeline)),
            engine: Arc::clone(&self.ground.engine),
            observed: self.observed.subscribe(),
            configured: self.configured.subscribe(),
            questions: self.questions.clone(),
            order_begins: Arc::clone(&self.order_begins),
        }
    }

    /// Starts what ends the agent; returns what tells the loop.
    fn start_ends(&self, signal: watch::Receiver<Signal>) -> watch::Receiver<bool> {
        let lifecycle = Lifecycle {
            me: self.me.clone(),
            questions: self.questions.clone(),
            wishes: self.wishes.clone(),
            store: Arc::clone(&self.store),
            store_dir: self.ground.options.layout.raft(),
            peers: self.peers(),
            ending: self.ending.clone(),
        };
        tokio::spawn(lifecycle.follow(signal));
        let (members, ending) = (self.members(), self.ending.clone());
        tokio::spawn(async move {
            let stored = members.until_removed().await;
            warn!(generation = stored.generation, by = %stored.by, "this node was removed from the cluster: ending its server");
            ending.end(Ended::Removed(stored.by.clone()));
        });
        let (stop, stopped) = watch::channel(false);
        let ending = self.ending.clone();
        tokio::spawn(async move {
            ending.asked().await;
            stop.send_replace(true);
            // The sender must live as long as the loop: a dropped one would say nothing.
            std::future::pending::<()>().await;
        });
        stopped
    }

    /// Takes down what must not outlive the agent. `in_order`: the loop ended as asked.
    async fn end(&self, in_order: bool) -> Result<()> {
        let how = self.ending.how();
        if in_order && how != Some(Ended::Restart) {
            info!("the loop has ended; stopping the server and its guard");
            if let Some(keeper) = &self.ground.keeper {
                shut_down(keeper).await;
            }
            self.proxy().end().await;
        }
        if timeout(STORE_END, self.store.stop()).await.is_err() {
            error!("this node's part of the store did not stop in time");
        }
        if let Some(Ended::Removed(by)) = how {
            let generation = self.ground.generations.now().generation;
            Removed { generation, by, wall_ms: wall_now_ms() }.save(&self.ground.options.layout)?;
        }
        Ok(())
    }
}

/// Ends the server and the guard. Bounded.
async fn shut_down(keeper: &Keeper) {
    match timeout(END, keeper.shut_down()).await {
        Ok(Ok(())) => info!("the server and its guard have ended"),
        Ok(Err(error)) => warn!(%error, "the guard did not end the server in order"),
        Err(_) => warn!("the server did not end in time; its guard is left with it"),
    }
}
