//! `mainstay proxy`: the data plane. Asks every agent for its route over mutual TLS and lets client connections follow it. Which agents
//! there are it learns from them: the file only tells whom to ask first.

use super::proxy_settings::{Running, Sources, limits, sizes};
use crate::cli::Proxy as ProxyArguments;
use crate::failure::{Failure, Outcome};
use crate::target::Target;
use mainstay_agent::door::{ClusterQuestion, ask};
use mainstay_agent::proxy_child::ProxyLock;
use mainstay_model::NodeId;
use mainstay_model::layout::ClusterLayout;
use mainstay_model::logins::Logins;
use mainstay_model::spec::ProxyMode;
use mainstay_model::spec::Spec;
use mainstay_model::stored_spec::StoredSpec;
use mainstay_net::mesh::Mesh;
use mainstay_net::tls::ALPN_POSTGRES;
use mainstay_net::{Credentials, Expect, NetError};
use mainstay_ports::peer::{Channel, Handlers, Peers};
use mainstay_ports::route_board::Holds;
use mainstay_proxy::pool::{PoolOptions, Pooled, PooledProxy, Shown, TlsShown};
use mainstay_proxy::{Proxy, ProxyError, ProxyOptions, Standing, Stats, TimedReport, feed};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

/// The name in the proxy's certificate that `up` makes.
pub(crate) const NAME: &str = "local";
/// How long one question to an agent may take; the feed itself is stricter.
const ANSWER: Duration = Duration::from_secs(2);
/// How often the agents are asked whether the cluster's nodes have changed.
const ASK_SPEC_EVERY: Duration = Duration::from_secs(5);
/// How often, in mode `transaction`, they are asked who may log in: a changed password counts after that.
const ASK_LOGINS_EVERY: Duration = Duration::from_secs(1);
/// The same while nobody has said it.
const ASK_LOGINS_SOON: Duration = Duration::from_millis(100);
/// How long one look-up of a name may take.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Reports on their way to the proxy.
const REPORTS_MAX: usize = 256;
/// Threads; as many as cores up to this.
const WORKERS_MAX: usize = 8;

/// Runs the proxy until SIGTERM.
///
/// # Errors
/// When its addresses can not be listened on, or its certificate is missing.
pub(crate) fn run(options: &ProxyArguments) -> Outcome {
    super::start_log();
    let target = Target::read(&crate::target::absolute(&options.config)?)?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let outcome = place(&target, options).and_then(|place| super::daemon(workers, false, serve(target.spec, place)));
    if let Err(failure) = &outcome {
        tracing::error!(error = %failure, "the proxy ends");
    }
    outcome
}

/// Where this proxy listens, and what it shows.
struct Place {
    /// `None`: where the specification says that a proxy of its own does.
    host: Option<String>,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    /// Where nodes on this disk keep the newest specification that they have seen.
    caches: Vec<PathBuf>,
    /// The cluster's file.
    config: PathBuf,
    _lock: Option<ProxyLock>,
}

fn place(target: &Target, options: &ProxyArguments) -> Outcome<Place> {
    let config = crate::target::absolute(&options.config)?;
    let Some(node) = &options.node else {
        let layout = match &options.dir {
            Some(dir) => ClusterLayout::new(crate::target::absolute(dir)?),
            None => target.layout.clone(),
        };
        let (ca, cert, key) = (layout.ca_cert(), layout.proxy_cert(), layout.proxy_key());
        // In a cluster made by `up` the nodes lie here; elsewhere there are none, and the agents are asked.
        let caches = target.spec.nodes.iter().map(|node| layout.node(&node.name).spec_cache()).collect();
        return Ok(Place { host: None, ca, cert, key, caches, config, _lock: None });
    };
    super::why::check_node(target, Some(node))?;
    let known = target.spec.node(node);
    let layout = super::agent::layout(target, node)?;
    let lock = ProxyLock::take(&layout)
        .map_err(|error| Failure::failed(format!("{} can not be written: {error}", layout.proxy_lock().display())))?
        .ok_or_else(|| Failure::not_now(format!("the proxy of node {node} runs already")))?;
    let host = Some(known.map(|known| known.host.clone()).unwrap_or_default());
    let (ca, cert, key) = (layout.ca_cert(), layout.proxy_cert(), layout.proxy_key());
    Ok(Place { host, ca, cert, key, caches: vec![layout.spec_cache()], config, _lock: Some(lock) })
}

/// What a proxy needs besides its connections.
const OWN_DESCRIPTORS: u64 = 200;

/// Each connection costs two descriptors; where the system allows less, it is said instead of found out under load. Says for how many
/// connections they suffice, of those asked for.
pub(crate) fn raise_descriptors(connections: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(OWN_DESCRIPTORS);
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|current| current >= wanted) {
        return connections;
    }
    let most = now.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: now.maximum });
    let allowed = if raised.is_ok() { most } else { now.current.unwrap_or(most) };
    if allowed < wanted {
        tracing::warn!(wanted, allowed, "fewer connections than max_connections: the limit on open files is too low");
    }
    let suffice = usize::try_from(allowed.saturating_sub(OWN_DESCRIPTORS) / 2).unwrap_or(usize::MAX);
    suffice.clamp(1, connections.max(1))
}

async fn serve(file: Spec, place: Place) -> Outcome {
    let first = newest_known(file, &place.caches);
    let own_host = || first.spec.proxy.host.clone().unwrap_or_else(|| "0.0.0.0".to_owned());
    let host = place.host.clone().unwrap_or_else(own_host);
    let options = options(&first.spec, &host, place.host.is_some()).await?;
    raise_descriptors(options.max_connections);
    let wrong = |error: NetError| Failure::failed(error.to_string());
    let credentials = Credentials::load(&first.spec.cluster.name, &place.ca, &place.cert, &place.key).map_err(wrong)?;
    let mesh = Mesh::with_credentials(Arc::clone(&credentials), None, BTreeMap::new()).map_err(wrong)?;
    mesh.serve(Handlers::new(), None).await.map_err(wrong)?;
    let (reports, heard) = mpsc::channel(REPORTS_MAX);
    let stop = async {
        let _ = super::end_signal().await;
        tracing::info!("asked to end");
    };
    let stats = Arc::new(Stats::default());
    let failed = |error: ProxyError| Failure::failed(error.to_string());
    let wanted = first.spec.proxy.clone();
    let metrics: Option<(String, u16)> = wanted.metrics_port.map(|port| (host.clone(), port));
    let (told, agents) = watch::channel(first.clone());
    let cluster = first.spec.cluster.name.clone();
    let settings = Sources { config: place.config.clone(), caches: place.caches.clone(), cluster, agents };
    let (addresses, feeds, standing) = (BTreeMap::new(), BTreeMap::new(), Standing::default());
    let nodes = Nodes { mesh, reports, stored: first, told, addresses, feeds, pooled: None, standing };
    if wanted.mode == ProxyMode::Session {
        let own = Arc::clone(&stats);
        let standing = standing_of(move || own.holds())?;
        let proxy = Proxy::bind(options, Arc::clone(&stats)).map_err(failed)?.showing(shown_to_clients(&credentials));
        super::proxy_settings::follow(Running::Whole(proxy.handle()), wanted, settings);
        super::proxy_settings::tell(&metrics, &stats, None).await;
        tokio::spawn(Nodes { standing, ..nodes }.follow());
        proxy.run(heard, stop).await;
        return Ok(());
    }
    let pooling = pooling(&wanted, &credentials);
    let proxy = PooledProxy::bind(options, pooling, Arc::clone(&stats)).map_err(failed)?;
    let pooled = proxy.handle();
    super::proxy_settings::follow(Running::Pooled(pooled.clone()), wanted, settings);
    super::proxy_settings::tell(&metrics, &stats, Some(pooled.clone())).await;
    tokio::spawn(super::proxy_outcomes::keep(pooled.clone(), Arc::clone(&nodes.mesh) as Arc<dyn Peers>));
    let holds = pooled.clone();
    let standing = Standing { paused: Arc::new(move || pooled.paused()), ..standing_of(move || holds.holds())? };
    tokio::spawn(Nodes { pooled: Some(proxy.handle()), standing, ..nodes }.follow());
    proxy.run(heard, stop).await.map_err(failed)
}

/// How this proxy tells agents of itself.
fn standing_of(holds: impl Fn() -> Option<Holds> + Send + Sync + 'static) -> Outcome<Standing> {
    let mut life = [0; 8];
    let random = rustix::rand::getrandom(&mut life, rustix::rand::GetRandomFlags::empty());
    random.map_err(|error| Failure::failed(format!("the system gives no random numbers: {error}")))?;
    Ok(Standing { life: u64::from_ne_bytes(life), holds: Arc::new(holds), ..Standing::default() })
}

/// What clients that ask for TLS see.
fn shown_to_clients(credentials: &Arc<Credentials>) -> TlsShown {
    let shown = Arc::clone(credentials);
    Arc::new(move || {
        let (config, certificate) = shown.clients_config();
        Shown { config, certificate }
    })
}

/// How clients share server connections.
fn pooling(wanted: &mainstay_model::spec::Proxy, credentials: &Arc<Credentials>) -> PoolOptions {
    let own = Arc::clone(credentials);
    let tls_to = move |node: &NodeId| own.client_config(Expect::Server(node.clone()), ALPN_POSTGRES).ok();
    let mut options = PoolOptions {
        threads: usize::try_from(wanted.threads).unwrap_or(usize::MAX),
        tls: Some(shown_to_clients(credentials)),
        tls_to: Some(Arc::new(tls_to)),
        ..PoolOptions::default()
    };
    sizes(&mut options, wanted);
    options
}

/// The file, or what nodes have kept of a later one.
pub(crate) fn newest_known(file: Spec, caches: &[PathBuf]) -> StoredSpec {
    let texts = caches.iter().filter_map(|cache| std::fs::read(cache).ok());
    let kept = texts.filter_map(|text| serde_json::from_slice::<StoredSpec>(&text).ok());
    let ours = kept.filter(|kept| kept.spec.cluster.name == file.cluster.name);
    ours.max_by_key(|kept| kept.generation).unwrap_or_else(|| StoredSpec::of_file(file))
}

/// The agents that this proxy listens to.
struct Nodes {
    mesh: Arc<Mesh>,
    reports: mpsc::Sender<TimedReport>,
    stored: StoredSpec,
    /// Where each later one is told.
    told: watch::Sender<StoredSpec>,
    addresses: BTreeMap<NodeId, SocketAddr>,
    feeds: BTreeMap<NodeId, AbortHandle>,
    /// Who has to know who may log in.
    pooled: Option<Pooled>,
    /// What agents are told of this proxy.
    standing: Standing,
}

impl Nodes {
    /// Follows the specification as the agents have it, and the names of hosts, for ever.
    async fn follow(mut self) {
        loop {
            self.connect().await;
            let asked = tokio::time::Instant::now();
            while asked.elapsed() < ASK_SPEC_EVERY {
                let known = self.tell_logins().await;
                tokio::time::sleep(if known { ASK_LOGINS_EVERY } else { ASK_LOGINS_SOON }).await;
            }
            if let Some(newer) = self.newer().await {
                tracing::info!(generation = newer.generation, "the specification has changed");
                self.told.send_replace(newer.clone());
                self.stored = newer;
            }
        }
    }

    /// Tells the pools who may log in, as an agent with a running server says. False: nobody says it.
    async fn tell_logins(&self) -> bool {
        let Some(pooled) = &self.pooled else { return true };
        let peers = Arc::clone(&self.mesh) as Arc<dyn Peers>;
        // The primary knows a change first; the others know it a moment later.
        let mut nodes: Vec<NodeId> = self.addresses.keys().cloned().collect();
        let primary = pooled.primary();
        nodes.sort_by_key(|node| Some(node) != primary.as_ref());
        for node in nodes {
            match logins_of(&peers, &node).await {
                Ok(logins) => {
                    pooled.set_logins(logins);
                    return true;
                }
                Err(error) => tracing::debug!(%node, %error, "it does not tell who may log in"),
            }
        }
        false
    }

    /// A later generation that an agent knows.
    async fn newer(&self) -> Option<StoredSpec> {
        let peers = Arc::clone(&self.mesh) as Arc<dyn Peers>;
        let mut asked = tokio::task::JoinSet::new();
        for node in self.addresses.keys() {
            let (peers, node) = (Arc::clone(&peers), node.clone());
            asked.spawn(async move { ask::<StoredSpec>(&peers, &node, ClusterQuestion::Spec).await });
        }
        let answers = asked.join_all().await.into_iter().flatten();
        answers.filter(|answer| answer.generation > self.stored.generation).max_by_key(|answer| answer.generation)
    }

    async fn connect(&mut self) {
        let mut addresses = BTreeMap::new();
        for node in &self.stored.spec.nodes {
            match resolve(&node.host, node.agent_port).await {
                Ok(address) => drop(addresses.insert(node.name.clone(), address)),
                // It keeps the address that it had: a name server may be away for a while.
                Err(error) => {
                    tracing::warn!(node = %node.name, %error, "the node is not found");
                    addresses.extend(self.addresses.get(&node.name).map(|held| (node.name.clone(), *held)));
                }
            }
        }
        if addresses == self.addresses {
            return;
        }
        self.mesh.set_peers(addresses.clone());
        self.addresses = addresses;
        self.feeds.retain(|node, feed| {
            let stays = self.addresses.contains_key(node);
            if !stays {
                feed.abort();
            }
            stays
        });
        for node in self.addresses.keys() {
            if !self.feeds.contains_key(node) {
                self.feeds.insert(node.clone(), self.feed(node.clone()));
            }
        }
    }

    fn feed(&self, node: NodeId) -> AbortHandle {
        let (mesh, asked) = (Arc::clone(&self.mesh), node.clone());
        let ask = move |body: Vec<u8>| {
            let (mesh, node) = (Arc::clone(&mesh), asked.clone());
            async move { mesh.request(&node, Channel::Route, body, ANSWER).await }
        };
        tokio::spawn(feed(node, ask, self.standing.clone(), self.reports.clone())).abort_handle()
    }
}

/// Who may log in, as one agent says.
async fn logins_of(peers: &Arc<dyn Peers>, node: &NodeId) -> Result<Logins, String> {
    let question = serde_json::to_vec(&ClusterQuestion::Logins).map_err(|error| error.to_string())?;
    let answer = peers.request(node, Channel::Ask, question, ANSWER).await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&answer).map_err(|error| error.to_string())
}

/// Where it listens and what it may hold.
async fn options(spec: &Spec, host: &str, on_node: bool) -> Outcome<ProxyOptions> {
    let proxy = &spec.proxy;
    let write = resolve(host, proxy.write_port).await?;
    let read = resolve(host, proxy.read_port).await?;
    let mut options = ProxyOptions::new(vec![write], vec![read]);
    if let (true, Some(address)) = (on_node, proxy.address) {
        let floating = IpAddr::V4(address.address);
        options.floating = Some(floating);
        // One that listens everywhere listens there as well.
        if !write.ip().is_unspecified() {
            options.write.push(SocketAddr::new(floating, proxy.write_port));
            options.read.push(SocketAddr::new(floating, proxy.read_port));
        }
    }
    limits(&mut options, proxy);
    Ok(options)
}

pub(crate) async fn resolve(host: &str, port: u16) -> Outcome<SocketAddr> {
    let failed = |why: String| Failure::failed(format!("host {host:?}: {why}"));
    let mut found = in_time(LOOK_UP, lookup_host((host, port))).await.map_err(failed)?;
    found.next().ok_or_else(|| failed("it has no address".to_owned()))
}

/// What a look-up gives: a name server that says nothing must not hold up the other nodes.
async fn in_time<T>(at_most: Duration, look_up: impl Future<Output = std::io::Result<T>>) -> Result<T, String> {
    let found = tokio::time::timeout(at_most, look_up).await;
    let found = found.map_err(|_| format!("its name server did not answer within {at_most:?}"))?;
    found.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_not_looked_up_for_ever() {
        let silent =
            in_time(Duration::from_millis(20), std::future::pending::<std::io::Result<()>>()).await.unwrap_err();
        assert!(silent.contains("did not answer within 20ms"), "{silent}");
        assert_eq!(in_time(LOOK_UP, async { Ok(7) }).await.unwrap(), 7);
    }
}
