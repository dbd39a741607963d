//! What other processes find before the agent's parts are there: handlers that are filled in late, and the one question that is
//! answered from the beginning, which part of the store this node has.

use crate::api::{Api, AskHandler};
use crate::founding::Part;
use async_trait::async_trait;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Json, Router};
use hyper_util::service::TowerToHyperService;
use mainstay_model::api::StoreStanding;
use mainstay_model::outcome::{CommitAnswer, CommitQuestion};
use mainstay_model::stored_spec::StoredSpec;
use mainstay_model::{NodeId, Term};
use mainstay_net::ServerStream;
use mainstay_net::http::{HttpServe, serve_service};
use mainstay_ports::peer::{Caller, Channel, Handler, Peers};
use mainstay_store::etcd::Floor;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// A node that does not answer within this is left out.
const ASK_TIMEOUT: Duration = Duration::from_millis(700);

/// Asking the server who may log in takes no longer than this.
const LOGINS_TIMEOUT: Duration = Duration::from_millis(600);

/// Finding out what became of a commit takes no longer than this: a read of the store, and two statements.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(1500);

/// What agents and proxies ask an agent about the cluster, besides status and reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum ClusterQuestion {
    /// Which part of the store it has: [`StoreReply`].
    Store,
    /// The generation that it goes by: [`StoredSpec`].
    Spec,
    /// Who may log in to the database: [`mainstay_model::logins::Logins`]. Told to proxies only.
    Logins,
    /// What became of a commit whose answer was lost with its server: [`mainstay_model::outcome::CommitAnswer`]. Told to proxies only.
    Commit(CommitQuestion),
}

/// Which part of the store a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreReply {
    /// What it has.
    pub part: Part,
    /// Its view of the store.
    pub standing: StoreStanding,
    /// The term of the newest record it knows.
    #[serde(default)]
    pub term: Term,
    /// The generation of the specification that it goes by.
    #[serde(default)]
    pub generation: u64,
    /// The nodes of that specification.
    #[serde(default)]
    pub listed: Vec<NodeId>,
    /// Why this node itself does not believe the etcd that is the store, if so. What it only heard from others is left out: two nodes
    /// would else hold each other to it for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distrusts: Option<String>,
    /// With an etcd: the newest state of the record that this node has seen, so that others notice an etcd that shows less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_floor: Option<Floor>,
    /// Before there is a store: what it has written in its etcd, for others to find in theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
}

/// Asks one node.
pub async fn ask<T: serde::de::DeserializeOwned>(
    peers: &Arc<dyn Peers>,
    node: &NodeId,
    question: ClusterQuestion,
) -> Option<T> {
    let body = serde_json::to_vec(&question).ok()?;
    let answer = peers.request(node, Channel::Ask, body, ASK_TIMEOUT).await.ok()?;
    serde_json::from_slice(&answer).ok()
}

/// Asks one node what became of a commit.
///
/// # Errors
/// Why there is no answer.
pub async fn ask_commit(
    peers: &Arc<dyn Peers>,
    node: &NodeId,
    question: CommitQuestion,
) -> Result<CommitAnswer, String> {
    let body = serde_json::to_vec(&ClusterQuestion::Commit(question)).map_err(|error| error.to_string())?;
    let answer = peers.request(node, Channel::Ask, body, COMMIT_TIMEOUT).await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&answer).map_err(|error| error.to_string())
}

/// Asks every other node, side by side, which part of the store it has.
pub async fn ask_all_stores(me: &NodeId, nodes: &[NodeId], peers: &Arc<dyn Peers>) -> BTreeMap<NodeId, StoreReply> {
    let mut asked = JoinSet::new();
    for node in nodes.iter().filter(|node| *node != me).cloned() {
        let peers = Arc::clone(peers);
        asked.spawn(async move { ask(&peers, &node, ClusterQuestion::Store).await.map(|reply| (node, reply)) });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

/// Answers on [`Channel::Ask`] from the beginning; fully once the rest of the agent is there.
pub struct AskDoor {
    before: Mutex<StoreReply>,
    spec: Box<dyn Fn() -> Arc<StoredSpec> + Send + Sync>,
    api: OnceLock<Arc<Api>>,
}

impl AskDoor {
    /// Before the store: this is what it says of it.
    pub fn new(before: StoreReply, spec: impl Fn() -> Arc<StoredSpec> + Send + Sync + 'static) -> Self {
        Self { before: Mutex::new(before), spec: Box::new(spec), api: OnceLock::new() }
    }

    /// Changes what it says of the store.
    pub fn say(&self, part: Part) {
        self.before.lock().unwrap_or_else(PoisonError::into_inner).part = part;
    }

    /// What it has written in its etcd.
    pub fn say_mark(&self, mark: &str) {
        self.before.lock().unwrap_or_else(PoisonError::into_inner).mark = Some(mark.to_owned());
    }

    /// The rest of the agent is there.
    pub fn fill(&self, api: Arc<Api>) {
        // Filled once; a second one would change nothing.
        let _ = self.api.set(api);
    }

    /// Verifiers are worth what the server's own list of them is worth: nobody but a proxy has a use for them.
    async fn logins(&self, from: &Caller) -> Result<Vec<u8>, String> {
        if !matches!(from, Caller::Proxy(_)) {
            return Err(format!("{} {} is no proxy: who may log in is told to proxies only", from.role(), from.name()));
        }
        let api = self.api.get().ok_or("the agent is starting")?;
        let logins = tokio::time::timeout(LOGINS_TIMEOUT, api.engine.logins()).await;
        let logins = logins.map_err(|_| "the server does not answer in time")?.map_err(|error| error.to_string())?;
        serde_json::to_vec(&logins).map_err(|error| error.to_string())
    }

    async fn commit(&self, from: &Caller, question: CommitQuestion) -> Result<Vec<u8>, String> {
        if !matches!(from, Caller::Proxy(_)) {
            return Err(format!(
                "{} {} is no proxy: what became of a commit is told to proxies only",
                from.role(),
                from.name()
            ));
        }
        let api = self.api.get().ok_or("the agent is starting")?;
        let answer = tokio::time::timeout(COMMIT_TIMEOUT, api.outcomes.of(question)).await;
        let answer = answer.map_err(|_| "the server does not answer in time")??;
        serde_json::to_vec(&answer).map_err(|error| error.to_string())
    }

    fn reply(&self) -> StoreReply {
        match self.api.get() {
            Some(api) => api.store_reply(),
            None => self.before.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

#[async_trait]
impl Handler for AskDoor {
    async fn message(&self, _from: &Caller, _body: Vec<u8>) {}

    async fn request(&self, from: &Caller, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let question = serde_json::from_slice::<ClusterQuestion>(&body);
        let of_proxies =
            matches!(question, Ok(ClusterQuestion::Spec | ClusterQuestion::Logins | ClusterQuestion::Commit(_)));
        if !of_proxies && !matches!(from, Caller::Node(_)) {
            return Err(format!("this is no question for a {}", from.role()));
        }
        let answer = match question {
            Ok(ClusterQuestion::Store) => serde_json::to_vec(&self.reply()),
            Ok(ClusterQuestion::Spec) => serde_json::to_vec(&*(self.spec)()),
            Ok(ClusterQuestion::Logins) => return self.logins(from).await,
            Ok(ClusterQuestion::Commit(question)) => return self.commit(from, question).await,
            Err(_) => match self.api.get() {
                Some(api) => return AskHandler(Arc::clone(api)).request(from, body).await,
                None => return Err("the agent is starting".to_owned()),
            },
        };
        answer.map_err(|error| error.to_string())
    }
}

/// A handler that comes later. Messages before it are dropped, requests refused.
#[derive(Default)]
pub struct Late(OnceLock<Arc<dyn Handler>>);

impl Late {
    /// From now on this one.
    pub fn fill(&self, handler: Arc<dyn Handler>) {
        // Filled once; a second one would change nothing.
        let _ = self.0.set(handler);
    }
}

#[async_trait]
impl Handler for Late {
    async fn message(&self, from: &Caller, body: Vec<u8>) {
        if let Some(handler) = self.0.get() {
            handler.message(from, body).await;
        }
    }

    async fn request(&self, from: &Caller, body: Vec<u8>) -> Result<Vec<u8>, String> {
        match self.0.get() {
            Some(handler) => handler.request(from, body).await,
            None => Err("the agent is starting".to_owned()),
        }
    }
}

/// The API, once it is there.
#[derive(Default)]
pub struct LateApi(OnceLock<Router>);

impl LateApi {
    /// From now on these routes.
    pub fn fill(&self, router: Router) {
        // Filled once; a second one would change nothing.
        let _ = self.0.set(router);
    }
}

async fn starting() -> impl IntoResponse {
    let error =
        "the agent is starting: it asks the other nodes, or the etcd that its file names, for the cluster's store";
    let hint = "start the agents of more than half of the nodes; the agent's log says whom it waits for";
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error, "hint": hint })))
}

#[async_trait]
impl HttpServe for LateApi {
    async fn serve(&self, stream: ServerStream, caller: Caller) {
        let router = self.0.get().cloned().unwrap_or_else(|| Router::new().fallback(starting));
        serve_service(stream, caller, TowerToHyperService::new(router)).await;
    }
}
