//! Drills, the agent's part: lets one fault at a time happen to its own node when an admin asks, ends it by itself, and keeps results in the store.
//!
//! Checked when it is carried out, under one lock: the node, the term and the role must be those that the asker looked at. No decision is
//! touched: a fault takes a process or a connection away, as a bad day would. Absent: judging what came of it (`mainstay drill`).

use crate::api::{Api, who};
use crate::drill_faults::{self as faults, Away, InForce};
use crate::follow;
use crate::proxy_child;
use crate::roles::refusal;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use mainstay_decide::summary::Role;
use mainstay_model::api::Accepted;
use mainstay_model::drill::{
    DRILLS_KEY, DRILLS_MAX, DrillCommand, DrillFault, DrillResult, DrillWish, DrillsAnswer, FAULT_OF_DRILL, FaultWish,
    LASTS_MS_MAX,
};
use mainstay_model::spec::Node;
use mainstay_model::{Span, Term};
use mainstay_ports::clock::boot_now;
use mainstay_ports::peer::Caller;
use mainstay_ports::store::{CasOutcome, Store as _, VALUE_BYTES_MAX, Versioned};
use serde::Deserialize as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tracing::{error, info, warn};

/// A fault that lasts is not shorter: less proves nothing.
const LASTS_MS_MIN: u64 = 500;
/// The answer leaves before the host is cut off.
const BEFORE_ISOLATION: Duration = Duration::from_millis(500);
/// How long the store may take, and how often another write may be faster.
const STORE: Duration = Duration::from_secs(2);
const TRIES: u32 = 5;
/// Ends of faults that did not succeed are tried again after this, for as long as it takes.
const AGAIN: Duration = Duration::from_secs(1);

type Refused = (StatusCode, String);

fn not_now(why: impl Into<String>) -> Refused {
    (StatusCode::CONFLICT, why.into())
}

fn wrong(why: impl Into<String>) -> Refused {
    (StatusCode::BAD_REQUEST, why.into())
}

/// The drills of this node.
pub struct Drills {
    file: PathBuf,
    /// Held for as long as a fault is in force: one at a time.
    turn: Arc<Mutex<()>>,
    in_force: std::sync::Mutex<Option<String>>,
    /// Held while a fault is begun or undone. True: the agent ends, and none begins any more.
    closed: std::sync::Mutex<bool>,
}

impl Drills {
    /// None in force. `file` is where the one in force is noted.
    #[must_use]
    pub fn new(file: PathBuf) -> Arc<Self> {
        Arc::new(Self { file, turn: Arc::default(), in_force: std::sync::Mutex::default(), closed: Default::default() })
    }

    fn show(&self, what: Option<String>) {
        *self.in_force.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = what;
    }

    fn shown(&self) -> Option<String> {
        self.in_force.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Ends it when its time is over, whoever asked and whatever became of the asker.
    fn end_later(self: &Arc<Self>, force: InForce, turn: OwnedMutexGuard<()>) {
        let drills = Arc::clone(self);
        tokio::spawn(async move {
            let left = force.until.since(boot_now()).to_std();
            tokio::time::sleep(left).await;
            loop {
                let (force, own) = (force.clone(), Arc::clone(&drills));
                let undone = tokio::task::spawn_blocking(move || {
                    let _closed = own.lock();
                    force.undo(&own.file)
                })
                .await;
                match undone {
                    Ok(Ok(())) => break,
                    Ok(Err(problem)) => error!(%problem, "a drill's fault can not be ended; trying again"),
                    Err(problem) => error!(%problem, "a drill's fault can not be ended; trying again"),
                }
                tokio::time::sleep(AGAIN).await;
            }
            info!("the drill's fault has ended");
            drills.show(None);
            drop(turn);
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, bool> {
        self.closed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes a fault and lets it happen. One that fails half-way is ended at once, for as many attempts as that takes.
    async fn begin(
        self: &Arc<Self>,
        force: InForce,
        turn: OwnedMutexGuard<()>,
        act: impl FnOnce(&mut InForce, &Path) -> Result<(), String> + Send + 'static,
    ) -> Result<(InForce, OwnedMutexGuard<()>), String> {
        let (own, mut begun) = (Arc::clone(self), force.clone());
        let acting = tokio::task::spawn_blocking(move || {
            let closed = own.lock();
            let done = if *closed { Err("the agent ends".to_owned()) } else { begun.save(&own.file) };
            let done = done.and_then(|()| act(&mut begun, &own.file));
            (begun, done)
        });
        let (force, done) = acting.await.unwrap_or_else(|error| (force, Err(error.to_string())));
        match done {
            Ok(()) => Ok((force, turn)),
            Err(why) => {
                self.end_later(InForce { until: boot_now(), ..force }, turn);
                Err(why)
            }
        }
    }

    /// Ends what an earlier agent of this node left in force. Before anything else: a host that is cut off finds no store. What does not
    /// end at once is tried again beside the agent's start.
    pub(crate) fn end_left(self: &Arc<Self>) {
        let Some(left) = InForce::load(&self.file) else { return };
        warn!(?left, "an earlier agent left a drill's fault in force: ending it");
        let Err(problem) = left.undo(&self.file) else { return };
        error!(%problem, "a drill's fault can not be ended; trying again");
        if let Ok(turn) = Arc::clone(&self.turn).try_lock_owned() {
            self.show(Some(format!("what an earlier agent left in force can not be ended: {problem}")));
            self.end_later(InForce { until: boot_now(), ..left }, turn);
        }
    }

    /// The agent ends, and nobody would end a fault any more: none begins from here on, and the one in force ends now.
    pub(crate) async fn close(self: &Arc<Self>) {
        for attempt in 1..=TRIES {
            let own = Arc::clone(self);
            let undone = tokio::task::spawn_blocking(move || {
                let mut closed = own.lock();
                *closed = true;
                InForce::load(&own.file).map_or(Ok(()), |left| left.undo(&own.file))
            });
            match undone.await {
                Ok(Ok(())) => return,
                Ok(Err(problem)) => error!(%problem, attempt, "a drill's fault can not be ended"),
                Err(problem) => error!(%problem, attempt, "a drill's fault can not be ended"),
            }
            tokio::time::sleep(BEFORE_ISOLATION).await;
        }
    }
}

/// The routes of this module.
pub(crate) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/v1/drill", get(get_drill).post(post_drill))
}

async fn get_drill(State(api): State<Arc<Api>>) -> Json<DrillsAnswer> {
    let results = results(api.store.watch(DRILLS_KEY).borrow().as_ref());
    Json(DrillsAnswer { results, in_force: api.drills.shown() })
}

async fn post_drill(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Json(wish): Json<DrillWish>,
) -> Response {
    let by = who(&wish.by, &caller);
    let done = match wish.command {
        // An asker that hangs up takes this handler with it, and must not take the end of a fault that has begun, nor its line in the
        // history.
        DrillCommand::DrillFault(wish) => {
            let done = tokio::spawn(Arc::clone(&api).fault(wish, by)).await;
            done.unwrap_or_else(|error| Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())))
        }
        DrillCommand::DrillResult(result) => api.keep_result(*result, by).await,
    };
    match done {
        Ok(accepted) => (StatusCode::ACCEPTED, Json(accepted)).into_response(),
        Err((code, why)) => refusal(code, &why),
    }
}

/// Every port of the cluster on a node.
fn ports(node: &Node, spec: &mainstay_model::spec::Spec) -> Vec<u16> {
    let mut ports = vec![node.agent_port, node.port, node.health_port];
    if spec.proxy.on_nodes {
        ports.extend([spec.proxy.write_port, spec.proxy.read_port]);
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

impl Api {
    /// Is everything as the asker saw it?
    async fn still(&self, wish: &FaultWish) -> Result<Term, Refused> {
        let snapshot = self.snapshot().await;
        let away = || (StatusCode::SERVICE_UNAVAILABLE, "the agent's loop does not answer".to_owned());
        let summary = snapshot.ok_or_else(away)?.summary;
        let term = summary.record.as_ref().map(|(_, record)| record.term).unwrap_or_default();
        if wish.node != self.me {
            return Err(wrong(format!("this is {}, not {}", self.me, wish.node)));
        }
        if term != wish.term {
            return Err(not_now(format!("the term is {term} by now, not {}: look again", wish.term)));
        }
        if let Some(paused) = &self.generations.now().paused {
            return Err(not_now(format!("the cluster is paused (by {}): nothing would take over", paused.by)));
        }
        let primary = summary.reigns() == Some(term);
        if primary != wish.primary || !wish.primary && summary.role == Role::Primary {
            let is = if primary { "the open primary" } else { "not the open primary" };
            return Err(not_now(format!("{} is {is} by now: look again", self.me)));
        }
        if let Some((order, _)) = summary.order {
            return Err(not_now(format!("{} carries out an order now ({order}): try again in a moment", self.me)));
        }
        Ok(term)
    }

    async fn fault(self: Arc<Self>, wish: FaultWish, by: String) -> Result<Accepted, Refused> {
        if let Some(ms) = wish.fault.lasts_ms().filter(|ms| !(LASTS_MS_MIN..=LASTS_MS_MAX).contains(ms)) {
            return Err(wrong(format!("it may last {LASTS_MS_MIN} to {LASTS_MS_MAX} ms, not {ms}")));
        }
        let turn = Arc::clone(&self.drills.turn).try_lock_owned();
        let turn =
            turn.map_err(|_| not_now(self.drills.shown().unwrap_or_else(|| "another fault is in force".to_owned())))?;
        let term = self.still(&wish).await?;
        let text = match wish.fault {
            DrillFault::KillServer => self.kill_server().await?,
            DrillFault::StopServer { lasts_ms } => self.stop_server(lasts_ms, turn).await?,
            DrillFault::Isolate { lasts_ms } => Arc::clone(&self).isolate(wish, lasts_ms, turn).await?,
            DrillFault::KillProxy => self.kill_proxy()?,
        };
        // In the history now: an asker that is interrupted brings no result.
        self.tell(term, "drill", format!("{FAULT_OF_DRILL} on {}: {text}, asked for by {by}", self.me));
        Ok(Accepted { node: self.me.clone(), term, text })
    }

    /// The server's main process, and when it began.
    async fn server(&self) -> Result<(u32, u64), Refused> {
        let pid = self.process.status().await.map_err(|error| not_now(error.to_string()))?.server_pid;
        let pid = pid.ok_or_else(|| not_now("no server runs here"))?;
        let began = faults::began(pid).ok_or_else(|| not_now("the server has just ended"))?;
        // Its guard has collected nobody in between: the number is still the server's.
        let again = self.process.status().await.map_err(|error| not_now(error.to_string()))?.server_pid;
        if again == Some(pid) { Ok((pid, began)) } else { Err(not_now("the server has just ended")) }
    }

    async fn kill_server(&self) -> Result<String, Refused> {
        let (pid, began) = self.server().await?;
        faults::kill(pid, began).map_err(not_now)?;
        Ok(format!("the server of {}, process {pid}, was killed", self.me))
    }

    async fn stop_server(&self, lasts_ms: u64, turn: OwnedMutexGuard<()>) -> Result<String, Refused> {
        let (pid, began) = self.server().await?;
        let until = boot_now() + Span(lasts_ms);
        let force = InForce { stopped: vec![(pid, began)], isolated: false, until };
        let stop = move |force: &mut InForce, file: &Path| {
            faults::stop_main(pid, began)?;
            force.stopped.extend(faults::stop_children(pid));
            force.save(file)
        };
        let (force, turn) = self.drills.begin(force, turn, stop).await.map_err(not_now)?;
        let text = format!(
            "the server of {}, {} processes, was stopped; it goes on after {}",
            self.me,
            force.stopped.len(),
            Span(lasts_ms)
        );
        self.drills.show(Some(text.clone()));
        self.drills.end_later(force, turn);
        Ok(text)
    }

    async fn isolate(
        self: Arc<Self>,
        wish: FaultWish,
        lasts_ms: u64,
        turn: OwnedMutexGuard<()>,
    ) -> Result<String, Refused> {
        let spec = self.spec();
        let mut away = Vec::new();
        for node in spec.nodes.iter().filter(|node| node.name != self.me) {
            let address = follow::resolve(&node.host, node.agent_port).await;
            let address = address.map_err(|error| not_now(format!("{error:#}")))?.ip();
            away.push(Away { address, ports: ports(node, &spec) });
        }
        // Who is cut off reaches an etcd no more than the other nodes: else it would go on renewing its claim.
        for endpoint in self.store.etcd().map(|etcd| etcd.endpoints()).unwrap_or_default() {
            let address = follow::resolve(&endpoint.host, endpoint.port).await;
            let address = address.map_err(|error| not_now(format!("{error:#}")))?.ip();
            away.push(Away { address, ports: vec![endpoint.port] });
        }
        let mine = spec.node(&self.me).map(|node| ports(node, &spec)).unwrap_or_default();
        let looked = away.clone();
        let can = tokio::task::spawn_blocking(move || faults::can_isolate(&looked));
        can.await.map_err(|error| not_now(error.to_string()))?.map_err(not_now)?;
        // The right to is only known by trying: one rule that concerns nobody, noted as any other.
        let trial = InForce { stopped: Vec::new(), isolated: true, until: boot_now() };
        let nobody = [Away { address: [192, 0, 2, 1].into(), ports: vec![9] }];
        let try_it = move |trial: &mut InForce, file: &Path| {
            faults::isolate(&nobody, &[])?;
            trial.undo(file)
        };
        let (_, turn) = self.drills.begin(trial, turn, try_it).await.map_err(not_now)?;
        let text = format!(
            "{} is cut from the other nodes in {} ms, for {}",
            self.me,
            BEFORE_ISOLATION.as_millis(),
            Span(lasts_ms)
        );
        self.drills.show(Some(text.clone()));
        tokio::spawn(async move {
            tokio::time::sleep(BEFORE_ISOLATION).await;
            if let Err((_, why)) = self.still(&wish).await {
                warn!(%why, "the drill's isolation is not begun");
                return self.drills.show(None);
            }
            let force = InForce { stopped: Vec::new(), isolated: true, until: boot_now() + Span(lasts_ms) };
            let cut = move |_: &mut InForce, _: &Path| faults::isolate(&away, &mine);
            match self.drills.begin(force, turn, cut).await {
                Ok((force, turn)) => self.drills.end_later(force, turn),
                Err(why) => warn!(%why, "the drill's isolation did not come about"),
            }
        });
        Ok(text)
    }

    fn kill_proxy(&self) -> Result<String, Refused> {
        if !self.spec().proxy.on_nodes {
            return Err(not_now(format!("{} has no proxy of its own (on_nodes in [proxy])", self.me)));
        }
        let pid = proxy_child::holder(&self.layout.proxy_lock()).ok_or_else(|| not_now("no proxy runs here"))?;
        faults::kill_locked(pid).map_err(not_now)?;
        Ok(format!("the proxy of {}, process {}, was killed", self.me, pid.as_raw_nonzero()))
    }

    /// Adds a result to the list in the store, and to the history.
    async fn keep_result(&self, mut result: DrillResult, by: String) -> Result<Accepted, Refused> {
        result.by = by;
        result.why.truncate(8);
        result.why.iter_mut().for_each(|why| why.truncate(why.floor_char_boundary(500)));
        let text = result.words();
        let term = result.term_after;
        let mut held = self.store.watch(DRILLS_KEY).borrow().clone();
        for _ in 0..TRIES {
            let list = with_new(parse(held.as_ref()), &result);
            let value = serde_json::to_vec(&list).map_err(|error| wrong(error.to_string()))?;
            let revision = held.as_ref().map(|at| at.revision);
            match self.store.compare_and_set(DRILLS_KEY, revision, value, STORE).await {
                CasOutcome::Done(_) => {
                    self.tell(term, "drill", text.clone());
                    return Ok(Accepted { node: self.me.clone(), term, text });
                }
                CasOutcome::Conflict(seen) => held = seen,
                // It may be there or not: asked again, it is not added twice.
                CasOutcome::Unknown => held = self.store.read(DRILLS_KEY, STORE).await.unwrap_or(held),
                CasOutcome::Unavailable(why) => {
                    return Err((StatusCode::SERVICE_UNAVAILABLE, format!("the store does not answer: {why}")));
                }
            }
        }
        Err((StatusCode::SERVICE_UNAVAILABLE, "the store is too busy to keep the result".to_owned()))
    }
}

/// As they stand there: one of a kind that only newer agents know is kept as it is.
fn parse(held: Option<&Versioned>) -> Vec<serde_json::Value> {
    held.and_then(|held| serde_json::from_slice(&held.value).ok()).unwrap_or_default()
}

/// Those that this agent knows.
fn results(held: Option<&Versioned>) -> Vec<DrillResult> {
    parse(held).into_iter().filter_map(|one| serde_json::from_value(one).ok()).collect()
}

/// The list with one more, within the store's limits. One that is there already is not added again.
fn with_new(mut list: Vec<serde_json::Value>, new: &DrillResult) -> Vec<serde_json::Value> {
    let there = |one: &serde_json::Value| DrillResult::deserialize(one).is_ok_and(|one| one == *new);
    if !list.iter().any(there) {
        list.extend(serde_json::to_value(new));
    }
    let mut bytes = 0;
    let fits = |result: &&serde_json::Value| {
        bytes += serde_json::to_vec(result).map_or(0, |text| text.len() + 1);
        bytes <= VALUE_BYTES_MAX / 2
    };
    let kept = list.iter().rev().take(DRILLS_MAX).take_while(fits).count();
    list.drain(..list.len() - kept);
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::NodeId;
    use mainstay_model::drill::{DrillKind, DrillWrites};

    fn result(at_ms: u64) -> DrillResult {
        DrillResult {
            kind: DrillKind::KillServer,
            node: None,
            at_ms,
            by: "ann".to_owned(),
            durability: "strict".to_owned(),
            from: None,
            term: Term(1),
            to: None,
            term_after: Term(2),
            write_gap_ms: 700,
            read_gap_ms: 30,
            whole_after_ms: Some(5000),
            writes: DrillWrites { acknowledged: 900, unknown: 2, unknown_there: 1, ..DrillWrites::default() },
            outage_allowed_s: Some(10),
            loss_allowed_s: None,
            met: true,
            why: Vec::new(),
        }
    }

    #[test]
    fn the_newest_results_are_kept_each_once() {
        let mut list = Vec::new();
        for at in 0..200 {
            list = with_new(list, &result(at));
            list = with_new(list, &result(at));
        }
        assert_eq!(list.len(), DRILLS_MAX);
        assert_eq!((&list[0]["at_ms"], &list[DRILLS_MAX - 1]["at_ms"]), (&140.into(), &199.into()));
        let long = DrillResult { why: vec!["x".repeat(500); 8], ..result(0) };
        let mut list = Vec::new();
        for at in 0..200 {
            list = with_new(list, &DrillResult { at_ms: at, ..long.clone() });
        }
        assert!(serde_json::to_vec(&list).unwrap().len() <= VALUE_BYTES_MAX, "the store takes it");
        assert_eq!(list.last().unwrap()["at_ms"], 199);
    }

    #[test]
    fn a_result_of_an_unknown_kind_is_kept_and_hides_no_other() {
        let mut newer = serde_json::to_value(result(1)).unwrap();
        newer["kind"] = "of-tomorrow".into();
        let held = |list: &[serde_json::Value]| Versioned {
            value: serde_json::to_vec(list).unwrap(),
            revision: mainstay_model::Revision(1),
        };
        let list = with_new(vec![newer.clone()], &result(2));
        assert_eq!(results(Some(&held(&list))), [result(2)]);
        let list = with_new(parse(Some(&held(&list))), &result(3));
        assert_eq!((list.len(), &list[0]), (3, &newer));
    }

    #[test]
    fn a_wish_names_its_verb_for_the_audit() {
        let wish = DrillWish {
            command: DrillCommand::DrillFault(FaultWish {
                node: NodeId::new("db1").unwrap(),
                term: Term(3),
                primary: true,
                fault: DrillFault::StopServer { lasts_ms: 5000 },
            }),
            by: "ann".to_owned(),
        };
        let value = serde_json::to_value(&wish).unwrap();
        assert_eq!(value["command"]["drill-fault"]["fault"], serde_json::json!({"stop-server": {"lasts_ms": 5000}}));
        assert_eq!(serde_json::from_value::<DrillWish>(value).unwrap(), wish);
    }

    /// A process that stands still, and its fault.
    fn stopped(dir: &Path) -> (std::process::Child, InForce) {
        let child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let began = faults::began(child.id()).unwrap();
        faults::stop_main(child.id(), began).unwrap();
        let force = InForce { stopped: vec![(child.id(), began)], isolated: false, until: boot_now() + Span(60_000) };
        force.save(&dir.join("drill.json")).unwrap();
        (child, force)
    }

    fn stands_still(child: &std::process::Child) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        status.contains(") T ")
    }

    #[tokio::test]
    async fn a_fault_ends_with_the_agent_and_none_begins_after() {
        let dir = tempfile::tempdir().unwrap();
        let drills = Drills::new(dir.path().join("drill.json"));
        let (mut child, force) = stopped(dir.path());
        drills.close().await;
        assert!(!stands_still(&child));
        assert_eq!(InForce::load(&drills.file), None);
        let turn = Arc::clone(&drills.turn).lock_owned().await;
        let begun = drills.begin(force, turn, |_, _| panic!("it happens")).await;
        assert_eq!(begun.map(drop).unwrap_err(), "the agent ends");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_fault_that_fails_half_way_is_undone_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let drills = Drills::new(dir.path().join("drill.json"));
        drills.show(Some("it is in force".to_owned()));
        let turn = Arc::clone(&drills.turn).lock_owned().await;
        let force = InForce { stopped: Vec::new(), isolated: false, until: boot_now() + Span(60_000) };
        let spoil = |_: &mut InForce, file: &Path| {
            // Nothing can be removed there as a file: the first attempt to undo fails.
            std::fs::remove_file(file).and_then(|()| std::fs::create_dir(file)).map_err(|error| error.to_string())?;
            Err("half-way".to_owned())
        };
        assert_eq!(drills.begin(force, turn, spoil).await.map(drop).unwrap_err(), "half-way");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(drills.turn.try_lock().is_err(), "nobody else's turn before it is undone");
        std::fs::remove_dir(&drills.file).unwrap();
        let _turn = tokio::time::timeout(Duration::from_secs(20), drills.turn.lock()).await.unwrap();
        assert_eq!(drills.shown(), None);
    }
}
