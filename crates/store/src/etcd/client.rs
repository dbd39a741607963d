//! Requests to an etcd: which member is asked, logging in, and what an outcome means.
//!
//! A request that changes something is sent once; another member gets it only while it is certain that no member has it.

use super::http::{Door, Failed, read_secret};
use super::wire::{Login, Refusal, span};
use hyper::body::{Bytes, Incoming};
use mainstay_model::etcd::Endpoint;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

/// Requests under way at once.
const REQUESTS_MAX: usize = 32;
/// What can be repeated waits no longer for one member, if there are others.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);
const ATTEMPT_MIN: Duration = Duration::from_millis(150);
/// After each member was tried.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// What etcd answers to a login while it has no users.
const NO_USERS: &str = "authentication is not enabled";

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It did not happen, and never will.
    Never(String),
    /// Nobody knows.
    Unknown(String),
}

impl Fault {
    pub(crate) fn text(self) -> String {
        match self {
            Self::Never(text) | Self::Unknown(text) => text,
        }
    }
}

/// As whom to log in.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) password_file: PathBuf,
}

/// See the module.
pub(crate) struct Client {
    doors: Vec<Door>,
    preferred: AtomicUsize,
    user: Option<User>,
    token: Mutex<Option<Arc<str>>>,
    slots: Semaphore,
}

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// The login has run out: log in again.
    Login,
    /// It was turned away before anything was done.
    Never,
    /// It may have happened. "Space exceeded" is among these: etcd says it of a write that it has just made, too.
    Open,
}

fn meaning(text: &str) -> Meaning {
    let is = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if is(&["invalid auth token", "revision of auth store is old", "auth: revision in header is old"]) {
        return Meaning::Login;
    }
    let never = [
        "permission denied",
        "user name is empty",
        "user name not found",
        "authentication failed",
        NO_USERS,
        "request is too large",
        "too many requests",
        "too many operations",
        // Said by the gateway before it asks etcd.
        "CommonName of client",
    ];
    if is(&never) { Meaning::Never } else { Meaning::Open }
}

fn refusal(status: u16, body: &[u8]) -> String {
    let said = serde_json::from_slice::<Refusal>(body).unwrap_or_default().message;
    let text = said.as_str().map_or_else(|| String::from_utf8_lossy(body).into_owned(), ToOwned::to_owned);
    let short: String = text.trim().chars().take(200).collect();
    if short.is_empty() { format!("status {status}") } else { short }
}

impl Client {
    /// `first`: which member is asked first; nodes differ in it, so that they do not all ask one.
    pub(crate) fn new(doors: Vec<Door>, user: Option<User>, first: usize) -> Self {
        let preferred = AtomicUsize::new(first % doors.len().max(1));
        Self { doors, preferred, user, token: Mutex::default(), slots: Semaphore::new(REQUESTS_MAX) }
    }

    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.doors.iter().map(|door| door.endpoint.clone()).collect()
    }

    /// Asks, by whichever member answers. May be asked twice.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        deadline: Instant,
    ) -> Result<T, Fault> {
        self.call(path, body, deadline, true).await
    }

    /// Changes something, once at most.
    pub(crate) async fn write<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        deadline: Instant,
    ) -> Result<T, Fault> {
        self.call(path, body, deadline, false).await
    }

    /// Asks this member and no other.
    pub(crate) async fn ask_one<T: DeserializeOwned>(
        &self,
        place: usize,
        path: &str,
        deadline: Instant,
    ) -> Result<T, String> {
        let door = self.doors.get(place).ok_or("there is no such member")?;
        let token = self.token(door, deadline).await.map_err(Fault::text)?;
        let answer = door.post((path, token.as_deref()), Bytes::from_static(b"{}"), deadline, deadline).await;
        match answer {
            Ok((200, body)) => serde_json::from_slice(&body).map_err(|error| format!("its answer: {error}")),
            Ok((status, body)) => Err(refusal(status, &body)),
            Err(Failed::Unsent(text) | Failed::Lost(text)) => Err(text),
        }
    }

    /// Begins to watch.
    pub(crate) async fn watch(&self, body: &Value, deadline: Instant) -> Result<Incoming, String> {
        let place = self.preferred.load(Ordering::Relaxed);
        let door = self.doors.get(place).ok_or("no endpoint")?;
        let token = self.token(door, deadline).await.map_err(Fault::text)?;
        let failed = match door.open(("/v3/watch", token.as_deref()), Bytes::from(body.to_string()), deadline).await {
            Ok((200, stream)) => return Ok(stream),
            Ok((status, stream)) => {
                use http_body_util::{BodyExt as _, Limited};
                let said = timeout_at(deadline, Limited::new(stream, 4096).collect()).await;
                let said = said.ok().and_then(Result::ok).map(|said| said.to_bytes()).unwrap_or_default();
                let text = refusal(status, &said);
                if meaning(&text) == Meaning::Login {
                    self.forget_token(token.as_ref());
                    return Err(text);
                }
                text
            }
            Err(Failed::Unsent(text) | Failed::Lost(text)) => text,
        };
        self.leave(place);
        Err(failed)
    }

    /// The next requests go to another member.
    pub(crate) fn leave(&self, place: usize) {
        let next = (place + 1) % self.doors.len().max(1);
        if self.preferred.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && let Some(door) = self.doors.get(place)
        {
            door.forget();
            tracing::debug!(endpoint = %door.endpoint, "etcd is asked through another member");
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        deadline: Instant,
        repeatable: bool,
    ) -> Result<T, Fault> {
        let late = || Fault::Never("no time left to ask etcd".to_owned());
        let _slot = timeout_at(deadline, self.slots.acquire()).await.map_err(|_| late())?;
        let body = Bytes::from(body.to_string());
        let (mut last, mut tries) = (late(), 0);
        while Instant::now() < deadline {
            match self.attempt(path, &body, deadline, repeatable).await {
                Ok(answer) => {
                    // An answer that can not be read was an answer all the same: it may have happened.
                    return serde_json::from_slice(&answer)
                        .map_err(|error| Fault::Unknown(format!("etcd's answer can not be read: {error}")));
                }
                Err(Next::End(fault)) => return Err(fault),
                Err(Next::Again(text)) => last = Fault::Never(text),
            }
            tries += 1;
            if tries % self.doors.len() == 0 {
                sleep(ROUND_PAUSE.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
        }
        Err(last)
    }

    async fn attempt(&self, path: &str, body: &Bytes, deadline: Instant, repeatable: bool) -> Result<Bytes, Next> {
        let place = self.preferred.load(Ordering::Relaxed);
        let Some(door) = self.doors.get(place) else {
            return Err(Next::End(Fault::Never("no endpoint is named".to_owned())));
        };
        let now = Instant::now();
        let half = (deadline.saturating_duration_since(now) / 2).clamp(ATTEMPT_MIN, ATTEMPT_MAX);
        // One silent member must not use up what the others need.
        let soon = if self.doors.len() > 1 { deadline.min(now + half) } else { deadline };
        let token = match self.token(door, soon).await {
            Ok(token) => token,
            Err(Fault::Never(text)) if meaning(&text) == Meaning::Never => return Err(Next::End(Fault::Never(text))),
            Err(fault) => {
                self.leave(place);
                return Err(Next::Again(fault.text()));
            }
        };
        let until = if repeatable { soon } else { deadline };
        let (text, open) = match door.post((path, token.as_deref()), body.clone(), soon, until).await {
            Ok((200, answer)) => return Ok(answer),
            Ok((status, answer)) => {
                let text = refusal(status, &answer);
                match meaning(&text) {
                    Meaning::Login => {
                        self.forget_token(token.as_ref());
                        return Err(Next::Again(text));
                    }
                    Meaning::Never => return Err(Next::End(Fault::Never(text))),
                    Meaning::Open => (text, true),
                }
            }
            Err(Failed::Unsent(text)) => (text, false),
            Err(Failed::Lost(text)) => (text, true),
        };
        self.leave(place);
        Err(if open && !repeatable { Next::End(Fault::Unknown(text)) } else { Next::Again(text) })
    }

    /// The token of this login; logs in if there is none.
    async fn token(&self, door: &Door, deadline: Instant) -> Result<Option<Arc<str>>, Fault> {
        let Some(user) = &self.user else { return Ok(None) };
        if let Some(token) = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(Some(token));
        }
        let password = read_secret(&user.password_file).map_err(Fault::Unknown)?;
        let body = json!({ "name": user.name, "password": password.trim_end_matches(['\r', '\n']) }).to_string();
        match door.post(("/v3/auth/authenticate", None), Bytes::from(body), deadline, deadline).await {
            Ok((200, answer)) => {
                let login = serde_json::from_slice::<Login>(&answer);
                let token: Arc<str> = login.map_err(|error| Fault::Unknown(error.to_string()))?.token.into();
                *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&token));
                Ok(Some(token))
            }
            Ok((status, answer)) => match refusal(status, &answer) {
                // It asks nobody who they are. So the file can name the user before etcd has users, and nothing is away in between. Not kept:
                // from the moment on that it asks, the next request logs in.
                text if text.contains(NO_USERS) => Ok(None),
                text => Err(Fault::Never(format!("log in as {}: {text}", user.name))),
            },
            Err(Failed::Unsent(text) | Failed::Lost(text)) => Err(Fault::Unknown(text)),
        }
    }

    fn forget_token(&self, used: Option<&Arc<str>>) {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if token.as_ref() == used {
            *token = None;
        }
    }
}

enum Next {
    End(Fault),
    /// Certainly nothing was done, or it may be done twice.
    Again(String),
}

/// The body of a watch of all keys under a prefix.
pub(crate) fn watch_body(prefix: &str, from: u64) -> Value {
    let mut request = span(prefix, true);
    request["start_revision"] = from.to_string().into();
    json!({ "create_request": request })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_turned_away_for_certain_counts_as_not_done() {
        for text in
            ["etcdserver: permission denied", "etcdserver: too many requests", "etcdserver: request is too large"]
        {
            assert_eq!(meaning(text), Meaning::Never, "{text}");
        }
        for text in [
            "etcdserver: request timed out",
            "etcdserver: mvcc: database space exceeded",
            "etcdserver: leader changed",
            "raft proposal dropped",
            "etcdserver: server stopped",
            "context deadline exceeded",
            "anything else",
        ] {
            assert_eq!(meaning(text), Meaning::Open, "{text}");
        }
        assert_eq!(meaning("etcdserver: invalid auth token"), Meaning::Login);
    }
}
