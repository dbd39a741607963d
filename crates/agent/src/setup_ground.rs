//! What an agent stands on before it decides anything: files, server, connections, and its part of the store.

use crate::deadline::Deadlines;
use crate::door::{AskDoor, Late, LateApi, StoreReply};
use crate::durable;
use crate::follow::{self, Addresses};
use crate::founding::{Begin, Part, ask_around};
use crate::generations::Generations;
use crate::intent;
use crate::keeper::Keeper;
use crate::leased::Leased;
use crate::no_server::NoServer;
use crate::setup::AgentOptions;
use crate::setup_engine;
use anyhow::{Context, Result};
use mainstay_model::record::Durable;
use mainstay_model::{NodeId, Span};
use mainstay_net::{Mesh, MeshOptions};
use mainstay_ports::engine::Engine;
use mainstay_ports::peer::{Caller, Channel, Handler, Handlers, Peers};
use mainstay_ports::process::ServerProcess;
use mainstay_store::{ClusterStore, Look, RaftOptions, RaftStore};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is there before the store: files, server, connections.
pub(crate) struct Ground {
    pub(crate) options: AgentOptions,
    pub(crate) generations: Arc<Generations>,
    pub(crate) durable: Option<Durable>,
    /// No store of an older incarnation is joined.
    pub(crate) above: Option<u64>,
    pub(crate) addresses: Addresses,
    pub(crate) keeper: Option<Arc<Keeper>>,
    pub(crate) process: Arc<dyn ServerProcess>,
    pub(crate) deadlines: Deadlines,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) doors: Doors,
}

/// Handlers that are filled in once what is behind them is there.
pub(crate) struct Doors {
    pub(crate) late: BTreeMap<Channel, Arc<Late>>,
    pub(crate) ask: Arc<AskDoor>,
    pub(crate) api: Arc<LateApi>,
}

impl Doors {
    fn new(generations: &Arc<Generations>) -> Self {
        let channels = [Channel::Raft, Channel::Store, Channel::Mind, Channel::Route];
        let spec = Arc::clone(generations);
        let listed = spec.now().spec.nodes.iter().map(|node| node.name.clone()).collect();
        let before =
            StoreReply { part: Part::Unknown, listed, generation: spec.now().generation, ..StoreReply::default() };
        Self {
            late: channels.into_iter().map(|channel| (channel, Arc::default())).collect(),
            ask: Arc::new(AskDoor::new(before, move || spec.now())),
            api: Arc::default(),
        }
    }

    pub(crate) fn handlers(&self) -> Handlers {
        let late = self.late.iter().map(|(channel, late)| (*channel, Arc::clone(late) as Arc<dyn Handler>));
        late.chain([(Channel::Ask, Arc::clone(&self.ask) as Arc<dyn Handler>)]).collect()
    }

    pub(crate) fn fill(&self, handlers: Handlers) {
        for (channel, handler) in handlers {
            if let Some(late) = self.late.get(&channel) {
                late.fill(handler);
            }
        }
    }
}

impl Ground {
    /// The keeper stands in `kept` as soon as there is one, also when the rest fails.
    pub(crate) async fn lay(options: AgentOptions, kept: &mut Option<Arc<Keeper>>) -> Result<Self> {
        let (me, layout) = (options.node.clone(), options.layout.clone());
        setup_engine::check_removed(&layout)?;
        let generations = Arc::new(Generations::load(layout.spec_cache(), options.spec.clone())?);
        crate::etcd::same_store(&options.spec, &generations.now().spec)?;
        let mut durable = durable::load(&layout.durable())?;
        let above = intent::carry_out(&layout, &me, &generations.now(), &mut durable)?;
        let now = generations.now();
        // What the node has kept may not list it: it was removed, or it has just been added and its file is newer.
        let spec = if now.spec.node(&me).is_some() { &now.spec } else { &options.spec };
        let node = spec.node(&me).context("this node is not in the file")?;
        let listen = follow::resolve(&node.host, node.agent_port).await?;
        let mut addresses = Addresses::of(&now.spec, &Addresses::default()).await;
        addresses.agents.insert(me.clone(), listen);
        let keeper = match node.witness {
            true => None,
            false => Some(Arc::new(Keeper::start(layout.clone(), options.program.clone()).await?)),
        };
        kept.clone_from(&keeper);
        let process = keeper.clone().map_or(Arc::new(NoServer) as Arc<dyn ServerProcess>, |keeper| keeper);
        let deadlines = Deadlines::start(Arc::clone(&process));
        let engine: Arc<dyn Engine> = if node.witness {
            Arc::new(NoServer)
        } else {
            let leased = Leased::new(Arc::clone(&process), deadlines.clone());
            let postgres = setup_engine::postgres(&options, spec, Arc::new(leased))?;
            setup_engine::report(&postgres).await?;
            Arc::new(postgres)
        };
        let mesh = Mesh::new(MeshOptions {
            cluster: spec.cluster.name.clone(),
            me: Caller::Node(me.clone()),
            listen: Some(listen),
            peers: addresses.agents.clone(),
            cert: layout.node_cert(),
            key: layout.node_key(),
            ca: layout.ca_cert(),
        })?;
        let doors = Doors::new(&generations);
        Ok(Self { options, generations, durable, above, addresses, keeper, process, deadlines, engine, mesh, doors })
    }

    /// Starts this node's part of the store; asks around first when its directory is empty.
    pub(crate) async fn store(&self) -> Result<Arc<ClusterStore>> {
        let listed: Vec<NodeId> = self.generations.now().spec.nodes.iter().map(|node| node.name.clone()).collect();
        let peers = Arc::clone(&self.mesh) as Arc<dyn Peers>;
        let store = match self.options.spec.store.is_etcd() {
            true => ClusterStore::Etcd(crate::etcd::start(&self.options, &listed, &self.doors.ask, &peers).await?),
            false => ClusterStore::Raft(self.embedded(listed, peers).await?),
        };
        Ok(Arc::new(store))
    }

    async fn embedded(&self, listed: Vec<NodeId>, peers: Arc<dyn Peers>) -> Result<Arc<RaftStore>> {
        let (me, dir) = (&self.options.node, self.options.layout.raft());
        let begin = match mainstay_store::look(&dir)? {
            Look::Member { .. } => Begin::Found,
            look => {
                let joining = matches!(look, Look::Joining { .. });
                self.doors.ask.say(if joining || self.above.is_some() { Part::Joining } else { Part::Empty });
                match (joining, ask_around(me, &listed, &peers, self.above).await) {
                    // Whoever once waited to be taken in founds nothing: the store it waited for may come back.
                    (true, Begin::Found) => Begin::Join { group: 0 },
                    (_, begin) => begin,
                }
            }
        };
        let (voters, group) = match begin {
            Begin::Join { group } => (Vec::new(), group),
            Begin::Found | Begin::Wait(_) => (listed, 0),
        };
        let raft = RaftOptions {
            // The longest that a member may be set to: heartbeats are a good part of what an idle node costs.
            heartbeat: Span(125),
            // Six heartbeats: a leader must not step down because one round came late, and two elections fit into a lease.
            election: Span(750),
            group,
            ..RaftOptions::new(me.clone(), voters, dir)
        };
        let (store, handlers) = RaftStore::start(raft, peers).await?;
        self.doors.fill(handlers);
        Ok(store)
    }
}
