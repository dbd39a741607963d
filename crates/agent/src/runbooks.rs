//! The last runbook that was made: on paper nobody sees that a cluster has changed, so the agents remember what it was made from.
//!
//! One small record in the store, written when `mainstay runbook` has written a file, and never read by a decision. Absent: the runbook itself.

use crate::api::{Api, who};
use crate::roles::refusal;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use mainstay_model::api::{Accepted, RunbookWish};
use mainstay_model::stored_spec::{RUNBOOK_KEY, RunbookMade};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::peer::Caller;
use mainstay_ports::store::{CasOutcome, Store as _, VALUE_BYTES_MAX, Versioned};
use std::sync::Arc;
use std::time::Duration;

/// How long the store may take, and how often another write may be faster.
const STORE: Duration = Duration::from_secs(2);
const TRIES: u32 = 5;

type Refused = (StatusCode, String);

/// The routes of this module.
pub(crate) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/v1/runbook", post(post_runbook))
}

async fn post_runbook(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Json(wish): Json<RunbookWish>,
) -> Response {
    match api.note_runbook(&wish, &caller).await {
        Ok(accepted) => (StatusCode::OK, Json(accepted)).into_response(),
        Err((code, why)) => refusal(code, &why),
    }
}

/// The record as it stands in the store; `None`: there is none, or it is a newer version's.
pub(crate) fn parse(held: Option<&Versioned>) -> Option<RunbookMade> {
    serde_json::from_slice::<Option<RunbookMade>>(&held?.value).ok().flatten()
}

impl Api {
    /// What the last runbook was made from, as this member of the store knows.
    pub(crate) fn runbook(&self) -> Option<RunbookMade> {
        parse(self.store.watch(RUNBOOK_KEY).borrow().as_ref())
    }

    async fn note_runbook(&self, wish: &RunbookWish, caller: &Caller) -> Result<Accepted, Refused> {
        let (value, text) = self.runbook_value(wish, caller)?;
        let mut held = self.store.watch(RUNBOOK_KEY).borrow().clone();
        for _ in 0..TRIES {
            let revision = held.as_ref().map(|at| at.revision);
            match self.store.compare_and_set(RUNBOOK_KEY, revision, value.clone(), STORE).await {
                CasOutcome::Done(_) => {
                    let term = self.known_record().map(|record| record.term).unwrap_or_default();
                    return Ok(Accepted { node: self.me.clone(), term, text });
                }
                CasOutcome::Conflict(seen) => held = seen,
                // Whether it is there or not: written again it says the same.
                CasOutcome::Unknown => held = self.store.read(RUNBOOK_KEY, STORE).await.unwrap_or(held),
                CasOutcome::Unavailable(why) => {
                    return Err((StatusCode::SERVICE_UNAVAILABLE, format!("the store does not answer: {why}")));
                }
            }
        }
        Err((StatusCode::SERVICE_UNAVAILABLE, "the store is too busy to note the runbook".to_owned()))
    }

    /// What is to be written, and what that means.
    fn runbook_value(&self, wish: &RunbookWish, caller: &Caller) -> Result<(Vec<u8>, String), Refused> {
        let now = self.generations.now();
        let made = match wish.generation {
            None => None,
            Some(generation) if generation == now.generation => Some(RunbookMade {
                generation,
                wall_ms: wall_now_ms(),
                by: who(&wish.by, caller),
                spec: now.spec.clone(),
            }),
            Some(generation) => {
                let why = format!(
                    "the runbook was made from generation {generation}, and {} goes by {}: make it anew",
                    self.me, now.generation
                );
                return Err((StatusCode::CONFLICT, why));
            }
        };
        let text = match &made {
            Some(made) => {
                format!("generation {} is noted: what changes from now on makes the runbook outdated", made.generation)
            }
            None => "no runbook is expected any more".to_owned(),
        };
        let value = serde_json::to_vec(&made).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        if value.len() > VALUE_BYTES_MAX {
            let why = "the specification is too large to be kept beside the runbook's date".to_owned();
            return Err((StatusCode::CONFLICT, why));
        }
        Ok((value, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::Revision;

    #[test]
    fn what_is_no_record_is_none() {
        let held = |value: &str| Some(Versioned { value: value.as_bytes().to_vec(), revision: Revision(1) });
        assert_eq!(parse(None), None);
        assert_eq!(parse(held("null").as_ref()), None, "nobody keeps a copy any more");
        assert_eq!(parse(held("{\"of\": \"tomorrow\"}").as_ref()), None);
        let made = RunbookMade { generation: 3, wall_ms: 1, by: "ann".to_owned(), spec: crate::status::tests::spec() };
        let text = serde_json::to_string(&Some(&made)).unwrap();
        assert_eq!(parse(held(&text).as_ref()), Some(made));
    }
}
