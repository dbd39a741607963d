//! The API's part that concerns the cluster as a whole: its specification, pause, replaced hosts, and a store that is lost.

use crate::api::{Api, who};
use crate::door::StoreReply;
use crate::founding::Part;
use crate::generations;
use crate::intent::{self, Intent};
use crate::lifecycle::Ended;
use crate::record::RECORD_KEY;
use crate::roles::refusal;
use crate::setup::entropy;
use crate::transition;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use mainstay_model::api::{
    Accepted, PauseWish, RecoverWish, ReplaceWish, SpecAnswer, SpecWish, Standing, StoreStanding,
};
use mainstay_model::stored_spec::{Paused, SPEC_KEY, StoredSpec};
use mainstay_model::{ClaimState, CopyId, Event, Record, Term};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::peer::Caller;
use mainstay_ports::store::{CasOutcome, Store as _, Versioned};
use mainstay_store::ClusterStore;
use mainstay_store::etcd::EtcdStore;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// A write that another one was faster than, or whose answer was lost, is looked at again this often.
const TRIES: u32 = 5;
/// How long taking a vote back may take before the caller is told to ask again.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(8);
/// A store that answers within this works.
const WORKS: Duration = Duration::from_millis(1200);
/// How long making the store anew in etcd may take.
const MAKE_ANEW: Duration = Duration::from_secs(5);
/// The answer to the caller leaves before the process is replaced.
const BEFORE_RESTART: Duration = Duration::from_millis(300);

/// Why a wish was not taken up: status, error, what to do next.
type Refused = (StatusCode, String, &'static str);

fn conflict(why: impl Into<String>, hint: &'static str) -> Refused {
    (StatusCode::CONFLICT, why.into(), hint)
}

/// The store does not answer this node. What is next differs: it may be the nodes', an etcd that is away, or one that is not believed.
fn no_store(store: &ClusterStore, why: impl std::fmt::Display) -> Refused {
    let unavailable = |text: String, hint| (StatusCode::SERVICE_UNAVAILABLE, text, hint);
    if store.distrusts() {
        let hint =
            "mainstay recover shows what each node knows, and makes the cluster's part of etcd anew; see docs/etcd.md";
        return unavailable(format!("the store is not believed: {why}"), hint);
    }
    match store.etcd() {
        Some(_) => unavailable(
            format!("the etcd that is the store does not answer: {why}"),
            "mainstay status shows why (store-no-quorum, store-cut-off); ask again once etcd answers: it is made at most once",
        ),
        None => unavailable(
            format!("the store does not answer: {why}"),
            "mainstay status shows which nodes are missing; if most are lost for ever, see mainstay recover",
        ),
    }
}

/// What this node itself can not do.
fn unable(why: impl std::fmt::Display) -> Refused {
    (StatusCode::SERVICE_UNAVAILABLE, format!("this node can not: {why}"), "see its agent's log; ask again")
}

fn answer<T: serde::Serialize>(code: StatusCode, result: Result<T, Refused>) -> Response {
    match result {
        Ok(body) => (code, Json(body)).into_response(),
        Err((code, error, hint)) => (code, Json(json!({ "error": error, "hint": hint }))).into_response(),
    }
}

/// The body, or the response that says why not. Who may call is settled by then (`roles`).
fn body<T: DeserializeOwned>(body: Result<Json<T>, JsonRejection>) -> Result<T, Box<Response>> {
    body.map(|Json(body)| body).map_err(|problem| {
        let large = problem.status() == StatusCode::PAYLOAD_TOO_LARGE;
        let code = if large { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
        Box::new(refusal(code, &problem.body_text()))
    })
}

/// The routes of this module.
pub(crate) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/spec", get(get_spec).post(post_spec))
        .route("/v1/standing", get(get_standing))
        .route("/v1/pause", post(post_pause))
        .route("/v1/replace", post(post_replace))
        .route("/v1/recover", post(post_recover))
}

type Body<T> = Result<Json<T>, JsonRejection>;

async fn get_spec(State(api): State<Arc<Api>>) -> Json<SpecAnswer> {
    Json(api.spec_answer((*api.generations.now()).clone()))
}

async fn get_standing(State(api): State<Arc<Api>>) -> Response {
    match api.standing().await {
        Some(standing) => Json(standing).into_response(),
        None => refusal(StatusCode::SERVICE_UNAVAILABLE, "the agent's loop does not answer"),
    }
}

async fn post_spec(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    wish: Body<SpecWish>,
) -> Response {
    match body(wish) {
        Ok(wish) => answer(StatusCode::OK, api.change_spec(wish, &caller).await),
        Err(response) => *response,
    }
}

async fn post_pause(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    wish: Body<PauseWish>,
) -> Response {
    match body(wish) {
        Ok(wish) => answer(StatusCode::OK, api.pause(wish, &caller).await),
        Err(response) => *response,
    }
}

async fn post_replace(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    wish: Body<ReplaceWish>,
) -> Response {
    match body(wish) {
        Ok(wish) => answer(StatusCode::ACCEPTED, api.replace(wish, &caller).await),
        Err(response) => *response,
    }
}

async fn post_recover(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    wish: Body<RecoverWish>,
) -> Response {
    match body(wish) {
        Ok(wish) => answer(StatusCode::ACCEPTED, api.recover(wish, &caller).await),
        Err(response) => *response,
    }
}

fn record_of(held: Option<&Versioned>) -> Option<Record> {
    serde_json::from_slice(&held?.value).ok()
}

impl Api {
    fn spec_answer(&self, stored: StoredSpec) -> SpecAnswer {
        let pending_restart = self.configured.borrow().pending_restart.clone();
        SpecAnswer { stored, file: self.generations.file_state(), pending_restart }
    }

    /// The record as this member of the store shows it, without asking anybody.
    pub(crate) fn known_record(&self) -> Option<Record> {
        record_of(self.store.watch(RECORD_KEY).borrow().as_ref())
    }

    /// This node's view of the store. An etcd's own members have no part in the cluster: there every node that is listed counts.
    pub(crate) fn store_standing(&self) -> StoreStanding {
        let mut standing = self.store.standing();
        if standing.etcd.is_some() {
            let now = self.generations.now();
            standing.voters = now.spec.nodes.iter().map(|node| node.name.clone()).collect();
        }
        standing
    }

    /// What this node says of its part of the store.
    #[must_use]
    pub fn store_reply(&self) -> StoreReply {
        let standing = self.store_standing();
        let part = match (standing.joining, self.store.is_new()) {
            (true, _) => Part::Joining,
            (false, true) => Part::Founding,
            (false, false) => Part::Member,
        };
        let now = self.generations.now();
        StoreReply {
            part,
            standing,
            term: self.known_record().map(|record| record.term).unwrap_or_default(),
            generation: now.generation,
            listed: now.spec.nodes.iter().map(|node| node.name.clone()).collect(),
            distrusts: self.store.etcd().and_then(|etcd| etcd.evidence()),
            record_floor: self.store.etcd().and_then(|etcd| etcd.floor(RECORD_KEY)),
            mark: None,
        }
    }

    /// What this node knows by itself.
    pub async fn standing(&self) -> Option<Standing> {
        let summary = self.snapshot().await?.summary;
        Some(Standing {
            node: self.me.clone(),
            promise: summary.promise,
            copy: summary.copy,
            position: summary.position,
            server: summary.server,
            shut: summary.shut,
            record: summary.record,
            store: self.store_standing(),
            generation: self.generations.now().generation,
            libc: self.library.version().await,
            wall_ms: wall_now_ms(),
        })
    }

    pub(crate) fn tell(&self, term: Term, kind: &str, text: String) {
        let (node, kind, wall_ms) = (self.me.clone(), kind.to_owned(), wall_now_ms());
        // Lost only when hundreds wait; the audit has it too.
        let _ = self.events.try_send(Event { node, wall_ms, term, kind, text, change: None, lost: None });
    }

    /// The generation in the store, and where it stands.
    async fn stored(&self) -> Result<(Versioned, StoredSpec), Refused> {
        let held = self.store.read(SPEC_KEY, STORE_TIMEOUT).await.map_err(|why| no_store(&self.store, why))?;
        let held = held.ok_or_else(|| {
            conflict("the cluster has not been founded yet", "try again once mainstay status shows a primary")
        })?;
        let stored = generations::parse(&held).ok_or_else(|| {
            conflict("the specification in the store is of a newer version", "upgrade this node first")
        })?;
        Ok((held, stored))
    }

    async fn record(&self) -> Result<Option<Record>, Refused> {
        let held = self.store.read(RECORD_KEY, STORE_TIMEOUT).await.map_err(|why| no_store(&self.store, why))?;
        Ok(record_of(held.as_ref()))
    }

    /// Makes the next generation. `change` gets the present one and returns the next; `None`: it is so already.
    async fn next_generation(
        &self,
        change: impl Fn(&StoredSpec) -> Result<Option<StoredSpec>, Refused>,
    ) -> Result<StoredSpec, Refused> {
        for _ in 0..TRIES {
            let (held, present) = self.stored().await?;
            let Some(next) = change(&present)? else { return Ok(present) };
            let value = serde_json::to_vec(&next).map_err(unable)?;
            match self.store.compare_and_set(SPEC_KEY, Some(held.revision), value, STORE_TIMEOUT).await {
                CasOutcome::Done(_) => {
                    // The watch tells this node's parts a moment later in any case.
                    let _ = self.generations.adopt(next.clone());
                    return Ok(next);
                }
                // It may be this very change whose answer was lost: the next look tells.
                CasOutcome::Conflict(_) | CasOutcome::Unknown => {}
                CasOutcome::Unavailable(why) => return Err(no_store(&self.store, why)),
            }
        }
        Err((
            StatusCode::SERVICE_UNAVAILABLE,
            "the change was not confirmed".to_owned(),
            "ask again: it is made at most once",
        ))
    }

    async fn change_spec(&self, wish: SpecWish, caller: &Caller) -> Result<SpecAnswer, Refused> {
        let owned = mainstay_engine_postgres::owned_parameters();
        let mistakes = mainstay_model::config_check::check(&wish.spec, owned);
        if !mistakes.is_empty() {
            let text = mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            return Err((StatusCode::BAD_REQUEST, text, "mend it and ask again"));
        }
        let record = self.record().await?;
        let primary = record.as_ref().and_then(|record| record.holder.as_ref());
        let (by, wall_ms) = (who(&wish.by, caller), wall_now_ms());
        let next = self.next_generation(|present| next_spec(present, &wish, primary, &by, wall_ms)).await?;
        if next.wall_ms == wall_ms {
            let term = record.as_ref().map(|record| record.term).unwrap_or_default();
            self.tell(term, "spec-changed", format!("{by}: {} (generation {})", next.change, next.generation));
        }
        Ok(self.spec_answer(next))
    }

    async fn pause(&self, wish: PauseWish, caller: &Caller) -> Result<SpecAnswer, Refused> {
        let (by, wall_ms) = (who(&wish.by, caller), wall_now_ms());
        let next = self
            .next_generation(|present| {
                if present.paused.is_some() == wish.paused {
                    return Ok(None);
                }
                let change = if wish.paused { "paused" } else { "resumed" };
                let mut next = present.next(present.spec.clone(), by.clone(), change, wall_ms);
                next.paused = wish.paused.then(|| Paused { by: by.clone(), wall_ms, note: wish.note.clone() });
                Ok(Some(next))
            })
            .await?;
        if next.wall_ms == wall_ms {
            let term = self.known_record().map(|record| record.term).unwrap_or_default();
            let kind = if wish.paused { "paused" } else { "resumed" };
            let note = if wish.note.is_empty() { String::new() } else { format!(": {}", wish.note) };
            self.tell(term, kind, format!("{by} has {kind} automatic take-over, restart and rejoin{note}"));
        }
        Ok(self.spec_answer(next))
    }

    /// Takes a node's vote back; the store's leader gives it anew to the directory that comes under its name.
    async fn replace(&self, wish: ReplaceWish, caller: &Caller) -> Result<Accepted, Refused> {
        let node = &wish.node;
        if self.stored().await?.1.spec.node(node).is_none() {
            return Err(conflict(
                format!("{node} is no node of this cluster"),
                "mainstay status lists the nodes; mainstay node add adds one",
            ));
        }
        if *node == self.me {
            return Err(conflict(
                format!("{node} itself was asked"),
                "ask another node: this one can not take its own vote back",
            ));
        }
        let record = self.record().await?;
        let holds = record
            .as_ref()
            .is_some_and(|record| record.state != ClaimState::Free && record.holder.as_ref() == Some(node));
        if holds {
            return Err(conflict(
                format!("{node} is the primary"),
                "wait until another node has taken over, or switch over first",
            ));
        }
        let Some(raft) = self.store.embedded() else {
            let text = format!(
                "{node} has no vote in an etcd; it is taken in once its agent has started with an empty directory"
            );
            return Ok(Accepted {
                node: self.me.clone(),
                term: record.map(|record| record.term).unwrap_or_default(),
                text,
            });
        };
        if raft.leader().as_ref() == Some(node) {
            let _ = raft.transfer_leader(&self.me).await;
        }
        let late = "ask again: what is done already is not done twice";
        let removed = tokio::time::timeout(REPLACE_TIMEOUT, raft.remove_member(node)).await;
        removed
            .map_err(|_| (StatusCode::SERVICE_UNAVAILABLE, "taking the vote back takes long".to_owned(), late))?
            .map_err(|problem| (StatusCode::SERVICE_UNAVAILABLE, problem.to_string(), late))?;
        let (by, term) = (who(&wish.by, caller), record.map(|record| record.term).unwrap_or_default());
        self.tell(
            term,
            "node-replaced",
            format!("{by} has had the vote of {node} taken back; its next directory gets a new one"),
        );
        let text =
            format!("{node} has no vote any more; it gets one once its agent has started with an empty directory");
        Ok(Accepted { node: self.me.clone(), term, text })
    }

    async fn recover(&self, wish: RecoverWish, caller: &Caller) -> Result<Accepted, Refused> {
        let by = who(&wish.by, caller);
        let summary =
            self.snapshot().await.map(|snapshot| snapshot.summary).ok_or_else(|| unable("the agent's loop is busy"))?;
        let known = summary.record.as_ref().map(|(_, record)| record.term).unwrap_or_default();
        let accepted = |text: &str| Ok(Accepted { node: self.me.clone(), term: wish.term, text: text.to_owned() });
        if known.incarnation() >= wish.term.incarnation() && known.incarnation() > 0 {
            return accepted("this node belongs to that store already");
        }
        if let Ok(Some(pending)) = Intent::load(&self.layout)
            && matches!(&pending, Intent::Rebuild { term, .. } | Intent::Join { term, .. } if *term == wish.term)
        {
            return accepted("it is under way");
        }
        let highest = known.max(summary.promise);
        if wish.term.incarnation() <= highest.incarnation() {
            return Err(conflict(
                format!("term {} is not above {highest}, which this node knows", wish.term),
                "ask with a higher term",
            ));
        }
        if tokio::time::timeout(WORKS, self.store.read(RECORD_KEY, WORKS)).await.is_ok_and(|read| read.is_ok()) {
            return Err(conflict(
                "the store works: nothing is lost that would have to be recovered",
                "see mainstay status",
            ));
        }
        if wish.from != self.me {
            return match self.store.etcd() {
                Some(_) => accepted("it follows by itself once the store is made anew in etcd"),
                None => self.join_other(wish.term, false, &by).await,
            };
        }
        let Some(copy) = summary.copy else {
            return Err(conflict("this node has no whole copy of the data", "recover from a node that has one"));
        };
        if let Some(etcd) = self.store.etcd() {
            self.make_anew(etcd, &wish, copy, &by).await?;
            self.restart_soon();
            return accepted("the store is made anew in etcd from what this node knows; its agent restarts");
        }
        let group = entropy().map_err(|problem| unable(format!("{problem:#}")))?.max(1);
        let intent = Intent::Rebuild { group, term: wish.term, by, lossy: wish.lossy };
        intent.save(&self.layout).map_err(|problem| unable(format!("{problem:#}")))?;
        self.restart_soon();
        accepted("rebuilding the store from this node; its agent restarts")
    }

    /// One transaction in etcd: the record of the new incarnation, and what else a rebuilt store begins with.
    async fn make_anew(&self, etcd: &EtcdStore, wish: &RecoverWish, copy: CopyId, by: &str) -> Result<(), Refused> {
        if !etcd.standing().works {
            let why = "etcd itself does not answer; bring it back, or restore it, first: the store is made anew in it";
            return Err((
                StatusCode::SERVICE_UNAVAILABLE,
                why.to_owned(),
                "mainstay status shows which endpoints are away",
            ));
        }
        let group = crate::etcd::group_of(&self.me, wish.term);
        let known = etcd.known(STORE_TIMEOUT).await.map_err(|why| {
            let hint = "mainstay status shows why; ask again once it answers";
            (StatusCode::SERVICE_UNAVAILABLE, format!("etcd does not answer: {why}"), hint)
        })?;
        let new = intent::Rebuilding {
            me: &self.me,
            copy: Some(copy),
            term: wish.term,
            by,
            lossy: wish.lossy,
            group,
            kept: &self.generations.now(),
        };
        let hint = "nothing was changed";
        let values = intent::rebuilt_values(&known, &new).map_err(|why| conflict(format!("{why:#}"), hint))?;
        let made = etcd.make_anew((group, wish.term.incarnation()), values, MAKE_ANEW).await;
        made.map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, why, "ask again: what is done already is not done twice"))
    }

    /// Moves this node's part of the store aside and joins the one of this term's incarnation.
    async fn join_other(&self, term: Term, reinit: bool, by: &str) -> Result<Accepted, Refused> {
        let left = self.store.standing().group;
        let intent = Intent::Join { left, term, reinit, by: by.to_owned() };
        intent.save(&self.layout).map_err(|problem| unable(format!("{problem:#}")))?;
        self.restart_soon();
        let text = "its part of the old store is moved aside, and it joins the new one; its agent restarts".to_owned();
        Ok(Accepted { node: self.me.clone(), term, text })
    }

    /// For a node whose peers belong to a rebuilt store: leave the old one, join theirs, and give the copy up. `None`: it does not
    /// stand so.
    pub(crate) async fn leave_old_store(&self, by: &str) -> Result<Option<Accepted>, (StatusCode, String)> {
        if self.store.etcd().is_some() {
            // One etcd holds one store of the cluster: there is no old one to be left.
            return Ok(None);
        }
        let Some(snapshot) = self.snapshot().await else { return Ok(None) };
        let mine = snapshot.summary.record.as_ref().map(|(_, record)| record.term).unwrap_or_default();
        let promises =
            snapshot.summary.peers.values().filter_map(|peer| peer.presence.as_ref().map(|said| said.promise));
        let later = promises.filter(|promise| promise.incarnation() > mine.incarnation()).max();
        let Some(later) = later else { return Ok(None) };
        let term = Term(later.incarnation() * mainstay_model::ids::TERMS_PER_INCARNATION);
        let joined = self.join_other(term, true, by).await;
        joined.map(Some).map_err(|(code, why, _)| (code, why))
    }

    fn restart_soon(&self) {
        let ending = self.ending.clone();
        tokio::spawn(async move {
            tokio::time::sleep(BEFORE_RESTART).await;
            ending.end(Ended::Restart);
        });
    }
}

/// The generation that follows, if the wish may be granted; `None`: it was granted before.
fn next_spec(
    present: &StoredSpec,
    wish: &SpecWish,
    primary: Option<&mainstay_model::NodeId>,
    by: &str,
    wall_ms: u64,
) -> Result<Option<StoredSpec>, Refused> {
    if present.spec == wish.spec {
        return Ok(None);
    }
    if present.generation != wish.parent {
        let why = format!(
            "generation {} was changed, but {} is in force, made by {} ({})",
            wish.parent, present.generation, present.by, present.change
        );
        return Err(conflict(why, "look at it (mainstay set) and make your change again"));
    }
    let against = transition::refusals(&present.spec, &wish.spec, primary);
    if !against.is_empty() {
        return Err(conflict(against.join("; "), "nothing was changed"));
    }
    let change = if wish.change.is_empty() { "changed" } else { wish.change.as_str() };
    Ok(Some(present.next(wish.spec.clone(), by, change, wall_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::spec::Spec;

    fn spec(lease: u64) -> Spec {
        let text = format!(
            "[cluster]\nname = \"c\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n[failover]\nlease_ms = {lease}\n"
        );
        mainstay_model::config::parse(&text, &[]).unwrap()
    }

    #[test]
    fn a_change_names_the_generation_it_was_made_from_and_is_made_once() {
        let present = StoredSpec { generation: 4, ..StoredSpec::of_file(spec(3000)) };
        let wish = SpecWish { parent: 4, spec: spec(4000), by: String::new(), change: "lease".into() };
        let next = next_spec(&present, &wish, None, "anna", 9).unwrap().unwrap();
        assert_eq!((next.generation, next.by.as_str(), next.change.as_str()), (5, "anna", "lease"));
        assert_eq!(next_spec(&next, &wish, None, "anna", 9).unwrap(), None, "an answer that was lost is found again");
        let late = SpecWish { spec: spec(5000), ..wish };
        let (code, why, _) = next_spec(&next, &late, None, "bert", 9).unwrap_err();
        assert_eq!(code, StatusCode::CONFLICT);
        assert!(why.contains("5 is in force, made by anna"), "{why}");
    }
}
