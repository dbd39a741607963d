//! The API: what people and programs ask an agent, over mutual TLS; and what agents ask each other to answer it.

use crate::api_cluster;
use crate::backups;
use crate::certificates::Certificates;
use crate::first_seen::FirstSeen;
use crate::generations::Generations;
use crate::history;
use crate::library::Library;
use crate::lifecycle::Ending;
use crate::lives::Lives;
use crate::mind_loop::{self, Question, Snapshot, Wish};
use crate::problems::Beside;
use crate::restorer::Restorer;
use crate::roles::{self, Gate, refusal};
use crate::runs::Outcomes;
use crate::shelves::{self, Shelf};
use crate::status::{self, DatedReason, Extras, Following, LocalStatus, NodeReasons};
use async_trait::async_trait;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use mainstay_model::api::{Accepted, CommandWish};
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::Spec;
use mainstay_model::status::{AddressStanding, Status};
use mainstay_model::vault::{
    ArchiveAnswer, ArchiveState, BACKUP_KEY, BackupBegun, BackupState, BackupWish, COMMAND_KEY, RestoreAsk,
    SegmentEnded,
};
use mainstay_model::{Command, Event, NodeId, Reason, ServerObservation};
use mainstay_ports::clock::{boot_now, wall_now_ms};
use mainstay_ports::engine::{Configured, Engine};
use mainstay_ports::peer::{Caller, Channel, Handler, PeerError, Peers};
use mainstay_ports::process::ServerProcess;
use mainstay_ports::route_board::RouteBoard;
use mainstay_ports::store::Store;
use mainstay_store::ClusterStore;
use mainstay_vault::postgres::backup;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// A node that does not answer within this counts as unreachable in a status.
const ASK_TIMEOUT: Duration = Duration::from_millis(700);

/// Reasons of one node in one answer, in bytes: less than a frame between agents may have.
const REASONS_BYTES_MAX: usize = 800 * 1024;
/// What a reason costs beside its texts, at most.
const REASON_BYTES: usize = 120;

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
    pub store: Arc<ClusterStore>,
    /// The guard.
    pub process: Arc<dyn ServerProcess>,
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// What became of commits.
    pub outcomes: Outcomes,
    /// The last probe.
    pub observed: watch::Receiver<ServerObservation>,
    /// The server's version, once known.
    pub version: OnceCell<String>,
    /// When each present problem was first seen here (wall time, ms), for those whose beginning nothing else tells.
    pub first_seen: Mutex<FirstSeen>,
    /// Why this node's proxy does not stay up, if so.
    pub proxy_down: watch::Receiver<Option<String>>,
    /// How it stands with the virtual address.
    pub virtual_address: watch::Receiver<Option<AddressStanding>>,
    /// What proxies ask, and say of themselves.
    pub board: Arc<RouteBoard>,
    /// Until when this node's certificates are valid.
    pub certificates: Certificates,
    /// This host's C library.
    pub library: Library,
    /// Who speaks under which name.
    pub lives: Arc<Lives>,
    /// Faults of drills.
    pub drills: Arc<crate::drills::Drills>,
    /// Orders to make a backup.
    pub backups: mpsc::Sender<backups::Order>,
    /// Restores of the whole cluster; `None`: no data are held here.
    pub restorer: Option<Arc<Restorer>>,
    /// Who may call what, and where changes are written down.
    pub gate: Gate,
}

/// What agents ask each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AgentQuestion {
    Status,
    Reasons,
    /// To the primary: end the segment of the log that is open.
    EndSegment,
    /// Make a backup.
    Backup(BackupWish),
}

/// An answer of another agent, with our wall clock around it.
struct Told<T> {
    told: T,
    sent_ms: u64,
    heard_ms: u64,
}

/// By how much a clock that said `theirs` somewhen between two moments of ours is off for certain; positive: ahead.
fn clock_off(theirs: u64, sent: u64, heard: u64) -> i64 {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    if theirs == 0 {
        return 0;
    }
    if theirs > heard.max(sent) {
        signed(theirs - heard.max(sent))
    } else if theirs < sent.min(heard) {
        -signed(sent.min(heard) - theirs)
    } else {
        0
    }
}

impl Api {
    /// What this node goes by, for its status.
    fn following(&self) -> Following {
        let now = self.generations.now();
        Following {
            generation: now.generation,
            file: Some(self.generations.file_state()),
            pending_restart: self.configured.borrow().pending_restart.clone(),
            paused: now.paused.clone(),
            store: Some(self.store_standing()),
        }
    }

    /// The specification that this node goes by now.
    #[must_use]
    pub fn spec(&self) -> Spec {
        self.generations.now().spec.clone()
    }

    /// How far the operator's own command has brought the log, as this member of the store knows.
    fn archive_command(&self) -> Option<ArchiveState> {
        crate::archiver::parse(self.store.watch(COMMAND_KEY).borrow().as_ref())
    }

    /// How the archives of the log stand, as this member of the store knows.
    fn shelves(&self) -> Vec<Shelf> {
        shelves::all(&self.spec().vault, &*self.store)
    }

    /// How backups and drills stand, as this member of the store knows.
    #[must_use]
    pub fn backups_state(&self) -> BackupState {
        backups::parse(self.store.watch(BACKUP_KEY).borrow().as_ref())
    }

    /// The open primary ends the segment of its log.
    async fn end_segment(&self) -> Result<SegmentEnded, String> {
        let summary = self.snapshot().await.ok_or("the agent's loop does not answer")?.summary;
        let (socket, port) = self
            .engine
            .local_address()
            .filter(|_| summary.reigns().is_some())
            .ok_or_else(|| format!("{} is not the open primary", self.me))?;
        let mut server = backup::server();
        server.host_path(socket).port(port);
        let timeline = self.observed.borrow().timeline;
        let ended = backup::end_segment(&server).await;
        ended.map(|end| SegmentEnded { end, timeline }).map_err(|error| error.to_string())
    }

    /// Begins a backup on this node.
    async fn backup(&self, mut wish: BackupWish, caller: &Caller) -> Result<BackupBegun, (StatusCode, String)> {
        wish.by = who(&wish.by, caller);
        let away = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
        if self.generations.now().spec.node(&self.me).is_some_and(|node| node.witness) {
            return Err(away("this node makes no backups: it holds no data"));
        }
        let answer = backups::order(&self.backups, wish).map_err(|why| away(&why))?;
        let begun = tokio::time::timeout(backups::BEGIN, answer).await.ok().and_then(Result::ok);
        let begun = begun.ok_or_else(|| {
            away("this node does not say whether the backup began; `mainstay archive status` shows it")
        })?;
        begun.map_err(|why| (StatusCode::CONFLICT, why))
    }

    /// What the loop knows now.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        mind_loop::ask(&self.questions, ASK_TIMEOUT).await
    }

    /// This node's own status; `None` while the loop does not answer.
    pub async fn local(&self) -> Option<LocalStatus> {
        let snapshot = self.snapshot().await?;
        let guard = self.process.status().await.unwrap_or_default();
        let engine = &self.engine;
        let version = self.version.get_or_try_init(|| async { engine.version().await }).await;
        let following = self.following();
        let extras = Extras {
            guard_pid: (guard.guard_pid != 0).then_some(guard.guard_pid),
            server_pid: guard.server_pid,
            version: version.cloned().unwrap_or_default(),
            store_leader: self.store.leader(),
            following,
            certificates: self.certificates.ends().await,
            proxies: self.certificates.proxies(),
            not_taken: self.certificates.refused(),
            proxy_down: self.proxy_down.borrow().clone(),
            proxies_paused: self.board.paused(),
            address: self.virtual_address.borrow().clone(),
            kept: self.restorer.as_ref().map(|restorer| restorer.kept()).unwrap_or_default(),
        };
        Some(status::local(self.me.clone(), &snapshot, self.observed.borrow().clone(), extras))
    }

    /// The newest reasons that fit into one answer between agents.
    async fn reasons(&self) -> NodeReasons {
        let reasons = self.snapshot().await.map(|snapshot| snapshot.reasons).unwrap_or_default();
        let mut room = REASONS_BYTES_MAX;
        let mut dated: Vec<DatedReason> = reasons
            .into_iter()
            .rev()
            .map(|(wall_ms, reason)| DatedReason { wall_ms, reason: Reason::clone(&reason) })
            .take_while(|dated| {
                let size = dated.reason.text.len() + dated.reason.rule.len() + REASON_BYTES;
                let fits = size <= room;
                room = room.saturating_sub(size);
                fits
            })
            .collect();
        dated.reverse();
        NodeReasons { node: self.me.clone(), reasons: dated }
    }

    /// Asks every other node the same question, side by side; `Err` says why one did not answer.
    async fn ask_all<T: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        question: AgentQuestion,
    ) -> BTreeMap<NodeId, Result<Told<T>, String>> {
        let Ok(body) = serde_json::to_vec(&question) else { return BTreeMap::new() };
        let mut asked = JoinSet::new();
        for node in self.spec().nodes.iter().filter(|node| node.name != self.me) {
            let (peers, body, name) = (Arc::clone(&self.peers), body.clone(), node.name.clone());
            asked.spawn(async move {
                let sent_ms = wall_now_ms();
                let answer = peers.request(&name, Channel::Ask, body, ASK_TIMEOUT).await;
                let answer = answer.map_err(|error| match error {
                    PeerError::NotConnected(_) => peers.failure(&name).unwrap_or_else(|| error.to_string()),
                    other => other.to_string(),
                });
                let told = answer.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
                (name, told.map(|told| Told { told, sent_ms, heard_ms: wall_now_ms() }))
            });
        }
        asked.join_all().await.into_iter().collect()
    }

    /// The whole cluster's status.
    pub async fn status(&self) -> Status {
        let (mine, others) = tokio::join!(self.local(), self.ask_all::<LocalStatus>(AgentQuestion::Status));
        let places = |node: NodeId| (node.clone(), self.certificates.places(&node));
        let doubled = self.lives.doubled().into_iter().map(places).collect();
        let mut beside = Beside { doubled, ..Beside::default() };
        let mut answers = BTreeMap::new();
        for (node, told) in others {
            match told {
                Ok(Told { mut told, sent_ms, heard_ms }) => {
                    told.clock_off_ms = clock_off(told.wall_ms, sent_ms, heard_ms);
                    answers.insert(node, told);
                }
                Err(why) => drop(beside.unreachable.insert(node, why)),
            }
        }
        if let Some(mine) = mine {
            answers.insert(self.me.clone(), mine);
        }
        beside.now_ms = wall_now_ms();
        (beside.shelves, beside.command) = (self.shelves(), self.archive_command());
        beside.backup = self.backups_state();
        beside.runbook = self.runbook();
        let mut status = status::merge(&self.spec(), self.address.clone(), &answers, &beside);
        let mut seen = self.first_seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.date(&mut status.problems, boot_now(), wall_now_ms());
        drop(seen);
        status
    }

    /// Gives an operator's command to this node's decisions.
    pub(crate) async fn command(&self, wish: CommandWish, caller: &Caller) -> Result<Accepted, (StatusCode, String)> {
        let by = who(&wish.by, caller);
        if matches!(wish.command, Command::Restore(_)) {
            let why = "a restored copy is handed over by the agent beside which it lies: ask with POST /v1/restore";
            return Err((StatusCode::BAD_REQUEST, why.to_owned()));
        }
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

    async fn request(&self, from: &Caller, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let question = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let answer = match question {
            AgentQuestion::Status => match self.0.local().await {
                Some(local) => serde_json::to_vec(&local),
                None => return Err("the agent's loop does not answer".to_owned()),
            },
            AgentQuestion::Reasons => serde_json::to_vec(&self.0.reasons().await),
            AgentQuestion::EndSegment => serde_json::to_vec(&self.0.end_segment().await?),
            AgentQuestion::Backup(wish) => {
                let begun = self.0.backup(wish, from).await.map_err(|(_, why)| why)?;
                serde_json::to_vec(&begun)
            }
        };
        answer.map_err(|error| error.to_string())
    }
}

/// The API's routes. Each connection adds its [`Caller`] as an extension. A route that is not in the table of `roles` too is refused.
pub fn router(api: Arc<Api>) -> Router {
    let gate = api.gate.clone();
    Router::new()
        .route("/v1/status", get(get_status))
        .route("/v1/history", get(get_history))
        .route("/v1/why", get(get_why))
        .route("/v1/archive", get(get_archive).post(post_archive))
        .route("/v1/backup", post(post_backup))
        .route("/v1/restore", get(get_restore).post(post_restore))
        .route("/v1/command", post(post_command))
        .merge(api_cluster::routes())
        .merge(crate::drills::routes())
        .merge(crate::runbooks::routes())
        .with_state(api)
        .layer(axum::middleware::from_fn_with_state(gate, roles::gate))
}

async fn get_status(State(api): State<Arc<Api>>) -> Json<Status> {
    Json(api.status().await)
}

async fn get_archive(State(api): State<Arc<Api>>) -> Json<ArchiveAnswer> {
    let (all, backup) = (api.shelves(), Some(api.backups_state()));
    let first = all.first();
    let repository = first.map(|shelf| shelves::place(&shelf.vault));
    let state = first.and_then(|shelf| shelf.told.clone());
    let archive_command = api.spec().postgres.archive_command;
    let command = api.archive_command().filter(|_| archive_command.is_some());
    Json(ArchiveAnswer { repository, state, backup, archive_command, command, repositories: shelves::answers(&all) })
}

async fn post_archive(State(api): State<Arc<Api>>) -> Response {
    match api.end_segment().await {
        Ok(ended) => Json(ended).into_response(),
        Err(why) => refusal(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

async fn post_backup(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Json(wish): Json<BackupWish>,
) -> Response {
    match api.backup(wish, &caller).await {
        Ok(begun) => (StatusCode::ACCEPTED, Json(begun)).into_response(),
        Err((code, why)) => refusal(code, &why),
    }
}

/// Where no data are held nothing is restored.
fn no_data() -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "this node restores nothing: it holds no data")
}

async fn get_restore(State(api): State<Arc<Api>>) -> Response {
    match &api.restorer {
        Some(restorer) => Json(restorer.state()).into_response(),
        None => no_data(),
    }
}

async fn post_restore(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Json(ask): Json<RestoreAsk>,
) -> Response {
    let Some(restorer) = &api.restorer else { return no_data() };
    let ask = match ask {
        RestoreAsk::Commit { token, by } => RestoreAsk::Commit { token, by: who(&by, &caller) },
        ask => ask,
    };
    match restorer.ask(ask).await {
        Ok(state) => (StatusCode::ACCEPTED, Json(state)).into_response(),
        Err(refused) => {
            (StatusCode::CONFLICT, Json(json!({ "error": refused.why, "hint": refused.hint }))).into_response()
        }
    }
}

async fn get_history(State(api): State<Arc<Api>>) -> Response {
    match history::read(&*api.store as &dyn Store).await {
        Ok(events) => Json(json!({ "events": events })).into_response(),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

/// Which reasons are wanted, by wall time (milliseconds since 1970), both ends included.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Between {
    since_ms: Option<u64>,
    until_ms: Option<u64>,
}

impl Between {
    fn holds(self, wall_ms: u64) -> bool {
        self.since_ms.is_none_or(|since| wall_ms >= since) && self.until_ms.is_none_or(|until| wall_ms <= until)
    }
}

async fn get_why(State(api): State<Arc<Api>>, Query(between): Query<Between>) -> Response {
    let (mine, others) = tokio::join!(api.reasons(), api.ask_all::<NodeReasons>(AgentQuestion::Reasons));
    let mut nodes: Vec<NodeReasons> = others.into_values().filter_map(|told| told.ok().map(|told| told.told)).collect();
    nodes.push(mine);
    for node in &mut nodes {
        node.reasons.retain(|reason| between.holds(reason.wall_ms));
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    Json(json!({ "nodes": nodes })).into_response()
}

async fn post_command(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Json(wish): Json<CommandWish>,
) -> Response {
    match api.command(wish, &caller).await {
        Ok(accepted) => (StatusCode::ACCEPTED, Json(accepted)).into_response(),
        Err((code, why)) => refusal(code, &why),
    }
}

#[cfg(test)]
mod tests {
    use super::{Between, clock_off};

    #[test]
    fn a_clock_is_off_only_beyond_the_round_trip() {
        assert_eq!(clock_off(0, 1000, 1100), 0, "an older agent does not say");
        assert_eq!([clock_off(1000, 1000, 1100), clock_off(1100, 1000, 1100)], [0, 0]);
        assert_eq!([clock_off(900, 1000, 1100), clock_off(4100, 1000, 1100)], [-100, 3000]);
        assert_eq!(clock_off(1000, 1100, 1000), 0, "our own clock was set back meanwhile");
    }

    #[test]
    fn both_ends_of_a_time_are_included() {
        let between = Between { since_ms: Some(10), until_ms: Some(20) };
        let held: Vec<u64> = (8..23).filter(|at| between.holds(*at)).collect();
        assert_eq!((held.first(), held.last()), (Some(&10), Some(&20)));
        assert!(Between::default().holds(0));
    }
}
