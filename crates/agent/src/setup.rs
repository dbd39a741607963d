//! Puts an agent together from its files, runs it, and takes it down in order.

use crate::api::{self, Api, ApiServer, AskHandler};
use crate::audit::Audit;
use crate::certificates::Certificates;
use crate::deadline::Deadlines;
use crate::durable::{self, Gate};
use crate::evidence::{self, Ports};
use crate::executor::Hands;
use crate::handlers::{MindHandler, RouteHandler};
use crate::health::{self, Health};
use crate::keeper::Keeper;
use crate::leased::Leased;
use crate::lives::Lives;
use crate::mind_loop::{self, INPUTS_MAX, Parts, Question, Wish};
use crate::routes::Routes;
use crate::slots::Slots;
use crate::status::Following;
use crate::{history, leadership, probes, record, roles};
use anyhow::{Context, Result};
use mainstay_decide::Mind;
use mainstay_decide::io::{Config, Input};
use mainstay_engine_postgres::{Finding, Postgres, PostgresOptions};
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::Spec;
use mainstay_model::{Event, NodeId, ServerObservation, Span};
use mainstay_net::{Mesh, MeshOptions};
use mainstay_ports::engine::Engine;
use mainstay_ports::peer::{Caller, Channel, Handlers, Peers};
use mainstay_ports::process::ServerProcess;
use mainstay_ports::route_board::RouteBoard;
use mainstay_ports::store::Store;
use mainstay_store::{RaftOptions, RaftStore};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::sync::{Notify, OnceCell, mpsc, watch};
use tracing::{error, info, warn};

/// Which node to run, from which files.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The cluster.
    pub spec: Spec,
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

/// Addresses of every node, resolved once.
struct Addresses {
    agents: BTreeMap<NodeId, SocketAddr>,
    servers: BTreeMap<NodeId, SocketAddr>,
}

async fn resolve(host: &str, port: u16) -> Result<SocketAddr> {
    let mut found = lookup_host((host, port)).await.with_context(|| format!("look up host {host:?}"))?;
    found.next().with_context(|| format!("host {host:?} has no address"))
}

impl Addresses {
    async fn of(spec: &Spec) -> Result<Self> {
        let (mut agents, mut servers) = (BTreeMap::new(), BTreeMap::new());
        for node in &spec.nodes {
            agents.insert(node.name.clone(), resolve(&node.host, node.agent_port).await?);
            if !node.witness {
                servers.insert(node.name.clone(), resolve(&node.host, node.port).await?);
            }
        }
        Ok(Self { agents, servers })
    }
}

/// Random bits from the operating system.
fn entropy() -> Result<u64> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("read entropy")?;
    Ok(u64::from_le_bytes(bytes))
}

fn decision_config(options: &AgentOptions) -> Result<Config> {
    let spec = &options.spec;
    let lease = spec.failover.lease();
    let data_nodes = spec.data_nodes().map(|node| node.name.clone());
    Ok(Config {
        me: options.node.clone(),
        data_nodes: data_nodes.zip(0..).collect(),
        excluded: Default::default(),
        durability: spec.cluster.durability,
        sync_replicas: spec.sync_replicas(),
        lease,
        margin: lease.percent(spec.failover.margin_percent),
        suspicion: Span(spec.failover.suspicion_ms),
        ping: Span(spec.failover.ping_ms),
        hang: Span(spec.failover.suspicion_ms * 2),
        seed: entropy()?,
        paused: false,
        plants: Default::default(),
    })
}

fn engine(options: &AgentOptions, process: Arc<dyn ServerProcess>) -> Result<Postgres> {
    let spec = &options.spec;
    let node = spec.node(&options.node).context("this node is not in the file")?;
    let peers = spec.data_nodes().map(|peer| (peer.name.clone(), (peer.host.clone(), peer.port))).collect();
    let bin_dir = mainstay_engine_postgres::find_bin_dir(spec.postgres.bin_dir.as_deref())?;
    let app_verifier = std::fs::read_to_string(options.layout.app_verifier()).unwrap_or_default().trim().to_owned();
    let postgres = PostgresOptions {
        node: options.node.clone(),
        cluster: spec.cluster.name.clone(),
        layout: options.layout.clone(),
        bin_dir,
        listen: node.host.clone(),
        port: node.port,
        peers,
        user: options.server_user,
        os_user: options.os_user.clone(),
        parameters: spec.postgres.parameters.clone(),
        hba: spec.postgres.hba.clone(),
        app_verifier,
    };
    Ok(Postgres::new(postgres, process)?)
}

/// Says what is wrong with this node before anything is touched. The engine starts no server on top of it and looks again at each attempt, so
/// the agent goes on: it votes and answers, and shows the problem. Only programs that can never work end it.
async fn report(postgres: &Postgres) -> Result<()> {
    for finding in postgres.inspect().await {
        if matches!(finding, Finding::TooOld { .. }) {
            anyhow::bail!("{finding}");
        }
        if finding.blocks() {
            error!(problem = %finding, "no server is started on this node before this is put right");
        } else {
            warn!(problem = %finding, "this node should be looked at");
        }
    }
    Ok(())
}

fn mesh(options: &AgentOptions, addresses: &Addresses) -> Result<Arc<Mesh>> {
    let mut peers = addresses.agents.clone();
    let listen = peers.remove(&options.node);
    Ok(Mesh::new(MeshOptions {
        cluster: options.spec.cluster.name.clone(),
        me: Caller::Node(options.node.clone()),
        listen,
        peers,
        cert: options.layout.node_cert(),
        key: options.layout.node_key(),
        ca: options.layout.ca_cert(),
    })?)
}

/// Everything that the tasks share.
struct Agent {
    me: NodeId,
    spec: Arc<Spec>,
    keeper: Arc<Keeper>,
    deadlines: Deadlines,
    engine: Arc<dyn Engine>,
    mesh: Arc<Mesh>,
    store: Arc<RaftStore>,
    routes: Routes,
    inputs: mpsc::Sender<Input>,
    questions: mpsc::Sender<Question>,
    wishes: mpsc::Sender<Wish>,
    order_begins: Arc<Notify>,
    observed: watch::Sender<ServerObservation>,
    addresses: Addresses,
    layout: NodeLayout,
    lives: Arc<Lives>,
    /// Told by the parts that follow the specification and the store; shown in the status.
    following: watch::Sender<Following>,
    events: mpsc::Sender<Event>,
}

/// Runs the agent until `stop` turns true; then ends the server in order, and the guard.
///
/// # Errors
/// When the agent can not be set up, or can not make its promise durable any more.
pub async fn run(options: AgentOptions, stop: watch::Receiver<bool>) -> Result<()> {
    let addresses = Addresses::of(&options.spec).await?;
    let durable = durable::load(&options.layout.durable())?;
    let keeper = Arc::new(Keeper::start(options.layout.clone(), options.program.clone()).await?);
    let deadlines = Deadlines::start(keeper.clone() as Arc<dyn ServerProcess>);
    let leased = Leased::new(keeper.clone() as Arc<dyn ServerProcess>, deadlines.clone());
    let postgres = engine(&options, Arc::new(leased))?;
    report(&postgres).await?;
    let engine: Arc<dyn Engine> = Arc::new(postgres);
    let mesh = mesh(&options, &addresses)?;
    let voters = options.spec.nodes.iter().map(|node| node.name.clone()).collect();
    let raft = RaftOptions {
        // The longest that a member may be set to: heartbeats are a good part of what an idle node costs.
        heartbeat: Span(125),
        ..RaftOptions::new(options.node.clone(), voters, options.layout.raft())
    };
    let (store, mut handlers) = RaftStore::start(raft, Arc::clone(&mesh) as Arc<dyn Peers>).await?;

    let (inputs, input_queue) = mpsc::channel(INPUTS_MAX);
    let (questions, question_queue) = mpsc::channel::<Question>(64);
    let (wishes, wish_queue) = mpsc::channel::<Wish>(16);
    let (events, event_queue) = mpsc::channel(256);
    let life = entropy()?;
    let board = Arc::new(RouteBoard::new(life));
    let agent = Agent {
        me: options.node.clone(),
        spec: Arc::new(options.spec.clone()),
        routes: Routes::new(options.node.clone(), addresses.servers.clone(), Arc::clone(&board)),
        keeper,
        deadlines,
        engine,
        mesh,
        store,
        inputs: inputs.clone(),
        questions,
        wishes,
        order_begins: Arc::default(),
        observed: watch::Sender::new(ServerObservation::default()),
        addresses,
        layout: options.layout.clone(),
        lives: Arc::default(),
        following: watch::Sender::new(Following::default()),
        events,
    };
    let api = agent.api()?;
    handlers.insert(Channel::Mind, Arc::new(MindHandler { inputs, lives: Arc::clone(&agent.lives) }));
    handlers.insert(Channel::Route, Arc::new(RouteHandler(board)));
    handlers.insert(Channel::Ask, Arc::new(AskHandler(Arc::clone(&api))));
    agent.listen(handlers, &api).await?;

    let data = agent.engine.has_data().await;
    let mind = Mind::new(decision_config(&options)?, durable.clone(), data, life);
    let parts = agent.start_tasks(mind, Gate::new(options.layout.durable(), durable), event_queue);
    let outcome = mind_loop::run(parts, input_queue, question_queue, wish_queue, stop).await;
    info!("the loop has ended; stopping the server and its guard");
    if outcome.is_ok() {
        agent.end().await;
    }
    Ok(outcome?)
}

impl Agent {
    fn api(&self) -> Result<Arc<Api>> {
        let address = self.addresses.agents.get(&self.me).map(|at| format!("https://{at}")).unwrap_or_default();
        let audit = Audit::start(self.layout.audit_log()).context("start the audit's writer")?;
        let gate = roles::Gate { me: self.me.clone(), audit, events: self.events.clone() };
        Ok(Arc::new(Api {
            me: self.me.clone(),
            spec: Arc::clone(&self.spec),
            address,
            questions: self.questions.clone(),
            wishes: self.wishes.clone(),
            peers: Arc::clone(&self.mesh) as Arc<dyn Peers>,
            store: Arc::clone(&self.store),
            process: Arc::clone(&self.keeper) as Arc<dyn ServerProcess>,
            engine: Arc::clone(&self.engine),
            observed: self.observed.subscribe(),
            version: OnceCell::new(),
            first_seen: Mutex::default(),
            following: self.following.subscribe(),
            certificates: Certificates::of(&self.layout),
            lives: Arc::clone(&self.lives),
            gate,
        }))
    }

    async fn listen(&self, handlers: Handlers, api: &Arc<Api>) -> Result<()> {
        self.mesh.serve(handlers, Some(Arc::new(ApiServer(api::router(Arc::clone(api)))))).await?;
        let node = self.spec.node(&self.me).context("this node is not in the file")?;
        let address = resolve(&node.host, node.health_port).await?;
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address} for health checks (is another agent running?)"))?;
        tokio::spawn(health::serve(listener, Health { api: Arc::clone(api), routes: self.routes.clone() }));
        Ok(())
    }

    /// Starts what feeds the loop, and gathers what the loop works with.
    fn start_tasks(&self, mind: Mind, gate: Gate, event_queue: mpsc::Receiver<Event>) -> Parts {
        let process = Arc::clone(&self.keeper) as Arc<dyn ServerProcess>;
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        let peers = Arc::clone(&self.mesh) as Arc<dyn Peers>;
        let events = self.events.clone();
        let (probe_interval, interval) = watch::channel(Span(250));
        let (probe_now, server_started) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let inputs = &self.inputs;

        tokio::spawn(record::watch(Arc::clone(&store), inputs.clone()));
        tokio::spawn(history::keep(Arc::clone(&store), event_queue));
        tokio::spawn(evidence::watch_links(Arc::clone(&peers), self.ports(), inputs.clone()));
        tokio::spawn(leadership::keep_apart(
            self.me.clone(),
            Arc::clone(&self.store),
            Arc::clone(&peers),
            self.routes.clone(),
        ));
        let has_server = self.spec.node(&self.me).is_some_and(|node| !node.witness);
        if has_server {
            let (engine, seen) = (Arc::clone(&self.engine), self.observed.clone());
            tokio::spawn(probes::probe(engine, interval, Arc::clone(&probe_now), seen, inputs.clone()));
            tokio::spawn(probes::watch_exit(Arc::clone(&process), Arc::clone(&server_started), inputs.clone()));
            tokio::spawn(self.slots().keep());
        }
        let (engine, deadlines) = (Arc::clone(&self.engine), self.deadlines.clone());
        let order_begins = Arc::clone(&self.order_begins);
        let hands = Hands { engine, process, gate, deadlines, inputs: inputs.clone(), order_begins };
        let routes = self.routes.clone();
        Parts { mind, hands, store, peers, routes, events, probe_interval, probe_now, server_started }
    }

    fn slots(&self) -> Slots {
        Slots {
            engine: Arc::clone(&self.engine),
            observed: self.observed.subscribe(),
            questions: self.questions.clone(),
            order_begins: Arc::clone(&self.order_begins),
        }
    }

    fn ports(&self) -> BTreeMap<NodeId, Ports> {
        let others = self.addresses.agents.iter().filter(|(node, _)| **node != self.me);
        others
            .map(|(node, agent)| {
                (node.clone(), Ports { agent: *agent, server: self.addresses.servers.get(node).copied() })
            })
            .collect()
    }

    /// Ends the server and the guard. Bounded.
    async fn end(&self) {
        match tokio::time::timeout(Duration::from_secs(20), self.keeper.shut_down()).await {
            Ok(Ok(())) => info!("the server and its guard have ended"),
            Ok(Err(error)) => warn!(%error, "the guard did not end the server in order"),
            Err(_) => warn!("the server did not end in time; its guard is left with it"),
        }
    }
}
