//! The API: what people and programs ask an agent, over mutual TLS; and what agents ask each other to answer it.

use crate::api_cluster;
use crate::generations::Generations;
use crate::history;
use crate::lifecycle::Ending;
use crate::mind_loop::{Question, Snapshot, Wish};
use crate::status::{self, DatedReason, Extras, LocalStatus, NodeReasons};
use async_trait::async_trait;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use mainstay_model::api::{Accepted, CommandWish};
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::Spec;
use mainstay_model::status::{Problem, Status};
use mainstay_model::{Command, Event, NodeId, ServerObservation};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::engine::{Configured, Engine};
use mainstay_ports::peer::{Caller, Channel, Handler, Peers};
use mainstay_ports::process::ServerProcess;
use mainstay_ports::store::Store;
use mainstay_store::RaftStore;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// A node that does not answer within this counts as unreachable in a status.
const ASK_TIMEOUT: Duration = Duration::from_millis(700);

/// What the API needs. Shared by all its handlers.
pub struct Api {
    /// Who answers.
    pub me: NodeId,
    /// What the operator wants.
    pub generations: Arc<Generations>,
    /// How the server goes by its settings.
    pub configured: watch::Receiver<Configured>,
    /// This node's files.
    pub layout: NodeLayout,
    /// How the agent is asked to end.
    pub ending: Ending,
    /// Facts for the history.
    pub events: mpsc::Sender<Event>,
    /// Base address, as clients see it.
    pub address: String,
    /// Questions to the loop.
    pub questions: mpsc::Sender<Question>,
    /// Commands of operators to the loop.
    pub wishes: mpsc::Sender<Wish>,
    /// The other agents.
    pub peers: Arc<dyn Peers>,
    /// The store.
    pub store: Arc<RaftStore>,
    /// The guard.
    pub process: Arc<dyn ServerProcess>,
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The last probe.
    pub observed: watch::Receiver<ServerObservation>,
    /// The server's version, once known.
    pub version: OnceCell<String>,
    /// When each present problem was first seen here (wall time, ms), for those whose beginning nothing else tells.
    pub first_seen: Mutex<BTreeMap<String, u64>>,
}

/// What agents ask each other.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AgentQuestion {
    Status,
    Reasons,
}

impl Api {
    /// The specification that this node goes by now.
    #[must_use]
    pub fn spec(&self) -> Spec {
        self.generations.now().spec.clone()
    }

    /// What the loop knows now.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        let (question, answer) = oneshot::channel();
        self.questions.send(question).await.ok()?;
        tokio::time::timeout(ASK_TIMEOUT, answer).await.ok()?.ok()
    }

    /// This node's own status; `None` while the loop does not answer.
    pub async fn local(&self) -> Option<LocalStatus> {
        let snapshot = self.snapshot().await?;
        let guard = self.process.status().await.unwrap_or_default();
        let engine = &self.engine;
        let version = self.version.get_or_try_init(|| async { engine.version().await }).await;
        let extras = Extras {
            guard_pid: (guard.guard_pid != 0).then_some(guard.guard_pid),
            server_pid: guard.server_pid,
            version: version.cloned().unwrap_or_default(),
            store_leader: self.store.leader(),
        };
        Some(status::local(self.me.clone(), &snapshot, self.observed.borrow().clone(), extras))
    }

    async fn reasons(&self) -> NodeReasons {
        let reasons = self.snapshot().await.map(|snapshot| snapshot.reasons).unwrap_or_default();
        let dated = reasons.into_iter().map(|(wall_ms, reason)| DatedReason { wall_ms, reason }).collect();
        NodeReasons { node: self.me.clone(), reasons: dated }
    }

    /// Asks every other node the same question, side by side; leaves out those that do not answer.
    async fn ask_all<T: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        question: AgentQuestion,
    ) -> BTreeMap<NodeId, T> {
        let Ok(body) = serde_json::to_vec(&question) else { return BTreeMap::new() };
        let mut asked = JoinSet::new();
        for node in self.spec().nodes.iter().filter(|node| node.name != self.me) {
            let (peers, body, name) = (Arc::clone(&self.peers), body.clone(), node.name.clone());
            asked.spawn(async move {
                let answer = peers.request(&name, Channel::Ask, body, ASK_TIMEOUT).await.ok()?;
                Some((name, serde_json::from_slice::<T>(&answer).ok()?))
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }

    /// The whole cluster's status.
    pub async fn status(&self) -> Status {
        let (mine, mut answers) = tokio::join!(self.local(), self.ask_all::<LocalStatus>(AgentQuestion::Status));
        if let Some(mine) = mine {
            answers.insert(self.me.clone(), mine);
        }
        let mut status = status::merge(&self.spec(), self.address.clone(), &answers);
        self.date(&mut status.problems);
        status
    }

    /// Problems without a known beginning get the time at which this agent first saw them.
    fn date(&self, problems: &mut [Problem]) {
        let mut seen = self.first_seen.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |problem: &Problem| {
            let subject = problem.evidence.split_whitespace().next().unwrap_or_default();
            format!("{} {subject}", problem.name)
        };
        let now: BTreeMap<String, u64> = problems
            .iter()
            .map(key)
            .map(|key| {
                let at = seen.get(&key).copied().unwrap_or_else(wall_now_ms);
                (key, at)
            })
            .collect();
        for problem in problems.iter_mut().filter(|problem| problem.since.is_none()) {
            problem.since = now.get(&key(problem)).copied().map(status::rfc3339);
        }
        *seen = now;
    }

    /// Gives an operator's command to this node's decisions.
    pub(crate) async fn command(&self, wish: CommandWish, caller: &Caller) -> Result<Accepted, (StatusCode, String)> {
        let by = who(&wish.by, caller);
        if wish.command == Command::Reinit
            && let Some(accepted) = self.leave_old_store(&by).await?
        {
            return Ok(accepted);
        }
        let (reply, answer) = oneshot::channel();
        let wish = Wish { by, command: wish.command, reply };
        let gone = || (StatusCode::SERVICE_UNAVAILABLE, "the agent's loop does not answer".to_owned());
        self.wishes.send(wish).await.map_err(|_| gone())?;
        let answer = tokio::time::timeout(ASK_TIMEOUT, answer).await.ok().and_then(Result::ok).ok_or_else(gone)?;
        let text = answer.map_err(|why| (StatusCode::CONFLICT, why))?;
        let term = self.snapshot().await.and_then(|snapshot| snapshot.summary.record).map(|(_, record)| record.term);
        Ok(Accepted { node: self.me.clone(), term: term.unwrap_or_default(), text })
    }
}

/// Who asks, for the record: the name that was given, and the certificate's.
pub(crate) fn who(by: &str, caller: &Caller) -> String {
    let by: String = by.chars().filter(|c| !c.is_control()).take(80).collect();
    if by.is_empty() { caller.name().to_owned() } else { format!("{by} ({} {})", caller.role(), caller.name()) }
}

/// Answers other agents on [`Channel::Ask`].
pub struct AskHandler(pub Arc<Api>);

#[async_trait]
impl Handler for AskHandler {
    async fn message(&self, _from: &Caller, _body: Vec<u8>) {}

    async fn request(&self, _from: &Caller, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let question = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let answer = match question {
            AgentQuestion::Status => match self.0.local().await {
                Some(local) => serde_json::to_vec(&local),
                None => return Err("the agent's loop does not answer".to_owned()),
            },
            AgentQuestion::Reasons => serde_json::to_vec(&self.0.reasons().await),
        };
        answer.map_err(|error| error.to_string())
    }
}

/// The API's routes. Each connection adds its [`Caller`] as an extension.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/status", get(get_status))
        .route("/v1/history", get(get_history))
        .route("/v1/why", get(get_why))
        .route("/v1/command", post(post_command))
        .merge(api_cluster::routes())
        .layer(axum::extract::DefaultBodyLimit::max(64 * 1024))
        .with_state(api)
}

pub(crate) fn refusal(code: StatusCode, why: &str) -> Response {
    (code, Json(json!({ "error": why }))).into_response()
}

async fn get_status(State(api): State<Arc<Api>>) -> Json<Status> {
    Json(api.status().await)
}

async fn get_history(State(api): State<Arc<Api>>) -> Response {
    match history::read(&*api.store as &dyn Store).await {
        Ok(events) => Json(json!({ "events": events })).into_response(),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

async fn get_why(State(api): State<Arc<Api>>) -> Response {
    let (mine, others) = tokio::join!(api.reasons(), api.ask_all::<NodeReasons>(AgentQuestion::Reasons));
    let mut nodes: Vec<NodeReasons> = others.into_values().collect();
    nodes.push(mine);
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    Json(json!({ "nodes": nodes })).into_response()
}

async fn post_command(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Json(wish): Json<CommandWish>,
) -> Response {
    if !matches!(caller, Caller::Admin(_)) {
        return refusal(StatusCode::FORBIDDEN, "only an admin certificate may change the cluster");
    }
    match api.command(wish, &caller).await {
        Ok(accepted) => (StatusCode::ACCEPTED, Json(accepted)).into_response(),
        Err((code, why)) => refusal(code, &why),
    }
}
