//! Who may call what: one table, deny by default, enforced before any handler; and the audit of every change.
//!
//! Also makes every failure an object `{"error", "hint"}`, whoever found it.

use crate::audit::{Audit, Line};
use crate::status::rfc3339;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http_body_util::LengthLimitError;
use mainstay_model::api::CommandWish;
use mainstay_model::{Command, Event, NodeId, Term};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::peer::Caller;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::warn;

/// What a call asks of its caller's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Looking.
    Read,
    /// Switching over, failing over without loss, restarting, pausing.
    Operate,
    /// Everything.
    Admin,
}

/// A call that exists.
#[derive(Clone, Copy, Debug)]
struct Rule {
    method: &'static str,
    path: &'static str,
    need: Need,
    /// The longest body, in bytes.
    body_max: usize,
}

const SMALL: usize = 64 * 1024;
/// A whole specification. Twice what the store takes: whoever sends a little too much hears why, instead of a connection that ends
/// while he still writes.
const LARGE: usize = 2 * mainstay_ports::store::VALUE_BYTES_MAX;
/// Answers of changes that are looked at for the audit are not longer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Arguments in the audit are cut here.
const ARGUMENT_BYTES_MAX: usize = 4096;

const fn rule(method: &'static str, path: &'static str, need: Need, body_max: usize) -> Rule {
    Rule { method, path, need, body_max }
}

/// Everything that may be called, and by whom. What is not here does not exist. A command's body can ask for more: [`need`].
const RULES: [Rule; 18] = [
    rule("GET", "/v1/status", Need::Read, 0),
    rule("GET", "/v1/history", Need::Read, 0),
    rule("GET", "/v1/why", Need::Read, 0),
    rule("GET", "/v1/spec", Need::Read, 0),
    rule("GET", "/v1/archive", Need::Read, 0),
    rule("GET", "/v1/drill", Need::Read, 0),
    rule("GET", "/v1/standing", Need::Read, 0),
    rule("GET", "/v1/restore", Need::Read, 0),
    rule("POST", "/v1/restore", Need::Admin, SMALL),
    rule("POST", "/v1/command", Need::Operate, SMALL),
    rule("POST", "/v1/archive", Need::Operate, SMALL),
    rule("POST", "/v1/backup", Need::Operate, SMALL),
    rule("POST", "/v1/pause", Need::Operate, SMALL),
    rule("POST", "/v1/runbook", Need::Operate, SMALL),
    rule("POST", "/v1/spec", Need::Admin, LARGE),
    rule("POST", "/v1/drill", Need::Admin, SMALL),
    rule("POST", "/v1/replace", Need::Admin, SMALL),
    rule("POST", "/v1/recover", Need::Admin, SMALL),
];

/// What a call with this body needs. A body that can not be read is refused by its handler; here it asks for no more.
fn need(rule: &Rule, body: &[u8]) -> Need {
    if rule.path != "/v1/command" {
        return rule.need;
    }
    match serde_json::from_slice::<CommandWish>(body).map(|wish| wish.command) {
        Ok(
            Command::Reinit | Command::Failover { accept_data_loss: true } | Command::Hold { .. } | Command::Restore(_),
        ) => Need::Admin,
        Ok(Command::Switchover { .. } | Command::Failover { accept_data_loss: false } | Command::Restart { .. })
        | Err(_) => rule.need,
    }
}

/// How far a caller's role reaches; `None`: it may call nothing here.
fn reach(caller: &Caller) -> Option<Need> {
    match caller {
        Caller::Admin(_) => Some(Need::Admin),
        Caller::Operator(_) => Some(Need::Operate),
        Caller::Reader(_) | Caller::Node(_) => Some(Need::Read),
        Caller::Proxy(_) => None,
    }
}

/// What the gate needs.
#[derive(Clone)]
pub struct Gate {
    /// This node.
    pub me: NodeId,
    /// Where changes are written down.
    pub audit: Audit,
    /// The cluster's history.
    pub events: mpsc::Sender<Event>,
}

/// The gate before every handler.
pub async fn gate(
    State(gate): State<Gate>,
    caller: Option<Extension<Caller>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(Extension(caller)) = caller else {
        return refusal(StatusCode::FORBIDDEN, "nobody is known to call");
    };
    let (path, method) = (request.uri().path().to_owned(), request.method().clone());
    let known: Vec<&Rule> = RULES.iter().filter(|rule| rule.path == path).collect();
    if known.is_empty() {
        return refusal(StatusCode::NOT_FOUND, &format!("there is nothing at {path}"));
    }
    let Some(rule) = known.into_iter().find(|rule| method == rule.method) else {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} does not take {method}"));
    };
    let (head, body) = request.into_parts();
    let body = match to_bytes(body, rule.body_max).await {
        Ok(body) => body,
        Err(error) => return gate.done(rule, &caller, b"", unreadable(rule, error)).await,
    };
    let wanted = need(rule, &body);
    let response = if reach(&caller).is_some_and(|reach| reach >= wanted) {
        let request = Request::from_parts(head, Body::from(body.clone()));
        plain_errors(next.run(request).await, &path).await
    } else {
        refusal(StatusCode::FORBIDDEN, &forbidden(&caller, wanted))
    };
    gate.done(rule, &caller, &body, response).await
}

fn forbidden(caller: &Caller, wanted: Need) -> String {
    let role = match wanted {
        Need::Read => "reader",
        Need::Operate => "operator",
        Need::Admin => "admin",
    };
    format!("the certificate of {} {} does not allow this: it takes the role {role}", caller.role(), caller.name())
}

fn unreadable(rule: &Rule, error: axum::Error) -> Response {
    if error.into_inner().is::<LengthLimitError>() {
        let error = format!("the body is longer than the {} bytes that {} takes", rule.body_max, rule.path);
        return refusal(StatusCode::PAYLOAD_TOO_LARGE, &error);
    }
    refusal(StatusCode::BAD_REQUEST, "the body ended before its end")
}

/// A failure as an object, with what to do next.
pub fn refusal(code: StatusCode, why: &str) -> Response {
    let hint = match code {
        StatusCode::FORBIDDEN => {
            "use a certificate of that role: `mainstay pki issue --operator NAME` (or `--admin NAME`) makes one, `--identity` names it"
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            "is the agent of another version? see the docs of the API"
        }
        StatusCode::CONFLICT => "see `mainstay status` and `mainstay why`; nothing was changed",
        StatusCode::PAYLOAD_TOO_LARGE => "send less; nothing was changed",
        StatusCode::BAD_REQUEST => "see the docs of the API for this call's body; nothing was changed",
        StatusCode::SERVICE_UNAVAILABLE => "ask another node, or again in a moment; see `mainstay status`",
        _ => "see the agent's log",
    };
    (code, Json(json!({ "error": why, "hint": hint }))).into_response()
}

/// Failures that the framework found come as text, with more statuses than programs need.
async fn plain_errors(response: Response, path: &str) -> Response {
    let code = response.status();
    let is_object =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes() == b"application/json");
    if code.as_u16() < 400 || is_object {
        return response;
    }
    let text = to_bytes(response.into_body(), ARGUMENT_BYTES_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let code = match code {
        StatusCode::UNSUPPORTED_MEDIA_TYPE | StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        other => other,
    };
    let text = if text.is_empty() { format!("{path}: {code}") } else { text };
    refusal(code, &text)
}

impl Gate {
    /// Writes a change down, whatever became of it.
    async fn done(&self, rule: &Rule, caller: &Caller, body: &[u8], response: Response) -> Response {
        if rule.method == "GET" {
            return response;
        }
        let (head, answer) = response.into_parts();
        let answer = to_bytes(answer, ANSWER_BYTES_MAX).await.unwrap_or_default();
        let asked = Asked::of(rule, body);
        let accepted = head.status.is_success();
        self.audit.write(&Line {
            time: rfc3339(wall_now_ms()),
            role: caller.role().to_owned(),
            name: caller.name().to_owned(),
            by: asked.by.clone(),
            verb: asked.verb.clone(),
            arguments: asked.arguments.clone(),
            outcome: if accepted { "accepted" } else { "refused" },
            status: head.status.as_u16(),
            answer: said(&answer),
        });
        // What came of a drill is told as an event of its own.
        if accepted && asked.verb != "drill-result" {
            self.tell(&asked, caller, &answer);
        }
        Response::from_parts(head, Body::from(answer))
    }

    /// An accepted change is a fact for the history.
    fn tell(&self, asked: &Asked, caller: &Caller, answer: &Bytes) {
        let term = serde_json::from_slice::<Value>(answer).ok().and_then(|value| value.get("term")?.as_u64());
        let arguments = if asked.arguments.is_null() { String::new() } else { format!(" {}", asked.arguments) };
        let by = crate::api::who(&asked.by, caller);
        let text = format!("{by} asked {} for {}{arguments}: {}", self.me, asked.verb, said(answer));
        let event = Event {
            node: self.me.clone(),
            wall_ms: wall_now_ms(),
            term: Term(term.unwrap_or_default()),
            kind: "operator".to_owned(),
            text,
            change: None,
            lost: None,
        };
        if self.events.try_send(event).is_err() {
            warn!("too many events at once; an operator's is in the audit only");
        }
    }
}

/// What was asked for, as far as it can be understood.
struct Asked {
    verb: String,
    by: String,
    arguments: Value,
}

impl Asked {
    fn of(rule: &Rule, body: &[u8]) -> Asked {
        let path_verb = rule.path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut body = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let by = body.get("by").and_then(Value::as_str).unwrap_or_default();
        let by = by.chars().filter(|c| !c.is_control()).take(80).collect();
        if let Some(fields) = body.as_object_mut() {
            fields.remove("by");
            // A specification is long, and its change is told in words beside it.
            fields.remove("spec");
        }
        let (verb, arguments) = match body.get_mut("command").map(Value::take) {
            Some(Value::String(verb)) => (verb, Value::Null),
            Some(Value::Object(fields)) => fields.into_iter().next().unwrap_or((path_verb, Value::Null)),
            Some(_) | None => (path_verb, body),
        };
        let text = arguments.to_string();
        let arguments = if text.len() > ARGUMENT_BYTES_MAX {
            Value::String(text.chars().take(ARGUMENT_BYTES_MAX / 4).collect())
        } else {
            arguments
        };
        Asked { verb: verb.chars().take(40).collect(), by, arguments }
    }
}

/// What an answer says in words.
fn said(answer: &[u8]) -> String {
    let value = serde_json::from_slice::<Value>(answer).unwrap_or_default();
    let text = value.get("text").or_else(|| value.get("error")).and_then(Value::as_str).unwrap_or("done");
    text.chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::LateApi;
    use axum::Router;
    use axum::routing::{get, post};
    use mainstay_model::ClusterName;
    use mainstay_net::{Authority, Credentials, Expect, Mesh, Role, http};
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    struct Agent {
        authority: Authority,
        address: SocketAddr,
        events: mpsc::Receiver<Event>,
        audit: std::path::PathBuf,
        _dir: tempfile::TempDir,
        _mesh: Arc<Mesh>,
    }

    async fn take(Json(wish): Json<CommandWish>) -> Response {
        let text = format!("{:?} taken up", wish.command);
        (StatusCode::ACCEPTED, Json(json!({ "node": "db1", "term": 7, "text": text }))).into_response()
    }

    impl Agent {
        async fn start() -> Agent {
            let dir = tempfile::tempdir().unwrap();
            let audit = dir.path().join("audit.log");
            let authority = Authority::create(&ClusterName::new("orders").unwrap()).unwrap();
            let (events, heard) = mpsc::channel(64);
            let me = NodeId::new("db1").unwrap();
            let gate = Gate { me: me.clone(), audit: Audit::start(audit.clone()).unwrap(), events };
            let router = Router::new()
                .route("/v1/status", get(|| async { "fine" }))
                .route("/v1/command", post(take))
                .route("/v1/secret", get(|| async { "a handler that nobody put into the table" }))
                .layer(axum::middleware::from_fn_with_state(gate, super::gate));
            let mesh = Mesh::with_credentials(
                credentials(&authority, &Role::Node(me)),
                Some(([127, 0, 0, 1], 0).into()),
                BTreeMap::new(),
            )
            .unwrap();
            let api = Arc::new(LateApi::default());
            api.fill(router);
            let address = mesh.serve(BTreeMap::new(), Some(api)).await.unwrap().unwrap();
            Agent { authority, address, events: heard, audit, _dir: dir, _mesh: mesh }
        }

        async fn ask(&self, role: &Role, call: (&str, &str), body: Option<Value>) -> (u16, Value) {
            let credentials = credentials(&self.authority, role);
            let limit = Duration::from_secs(30);
            let answer = http::request(&credentials, self.address, Expect::AnyNode, call, body.as_ref(), limit).await;
            let (status, bytes) = answer.unwrap();
            (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))))
        }

        async fn audited(&self, count: usize) -> Vec<Value> {
            for _ in 0..500 {
                let text = std::fs::read_to_string(&self.audit).unwrap_or_default();
                if text.lines().count() >= count {
                    return text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("no {count} lines in the audit");
        }
    }

    fn credentials(authority: &Authority, role: &Role) -> Arc<Credentials> {
        let issued = authority.issue(role, &[]).unwrap();
        let cluster = ClusterName::new("orders").unwrap();
        Credentials::from_pem(&cluster, authority.cert_pem(), &issued.cert_pem, &issued.key_pem).unwrap()
    }

    fn roles() -> [Role; 5] {
        let name = || "x".to_owned();
        [
            Role::Proxy(name()),
            Role::Node(NodeId::new("db2").unwrap()),
            Role::Reader(name()),
            Role::Operator(name()),
            Role::Admin(name()),
        ]
    }

    const SWITCHOVER: &str = r#"{"command":{"switchover":{"to":null}},"by":"ann@desk"}"#;
    const LOSS: &str = r#"{"command":{"failover":{"accept_data_loss":true}}}"#;

    #[tokio::test]
    async fn each_role_reaches_what_it_may_and_changes_are_written_down() {
        let mut agent = Agent::start().await;
        let body = |text: &str| Some(serde_json::from_str(text).unwrap());
        let expected: [(&str, Option<Value>, [u16; 5]); 5] = [
            ("GET /v1/status", None, [403, 200, 200, 200, 200]),
            ("POST /v1/command", body(SWITCHOVER), [403, 403, 403, 202, 202]),
            ("POST /v1/command", body(LOSS), [403, 403, 403, 403, 202]),
            ("POST /v1/command", body(r#"{"command":"reinit"}"#), [403, 403, 403, 403, 202]),
            // In the table, not in this router: the framework's 404 becomes an object.
            ("POST /v1/spec", body("{}"), [403, 403, 403, 403, 404]),
        ];
        for (call, body, statuses) in expected {
            let (method, path) = call.split_once(' ').unwrap();
            for (role, status) in roles().iter().zip(statuses) {
                let answer = agent.ask(role, (method, path), body.clone()).await;
                assert_eq!(answer.0, status, "{call} {body:?} by {role:?}: {}", answer.1);
                if status >= 400 {
                    assert!(answer.1["error"].is_string() && answer.1["hint"].is_string(), "{}", answer.1);
                }
            }
        }
        let lines = agent.audited(20).await;
        assert_eq!(lines.len(), 20, "looking is not written down");
        let line = lines.iter().find(|line| line["outcome"] == "accepted").unwrap();
        assert_eq!(
            (&line["role"], &line["by"], &line["verb"]),
            (&json!("operator"), &json!("ann@desk"), &json!("switchover"))
        );
        assert_eq!(line["arguments"], json!({"to": null}));
        let refused = lines.iter().filter(|line| line["outcome"] == "refused").count();
        assert_eq!(refused, 16);
        let event = agent.events.recv().await.unwrap();
        assert_eq!((event.kind.as_str(), event.term), ("operator", Term(7)));
        assert!(event.text.starts_with("ann@desk (operator x) asked db1 for switchover"), "{}", event.text);
        let more = std::iter::from_fn(|| agent.events.try_recv().ok()).count();
        assert_eq!(more, 3, "what was refused is no event");
    }

    #[tokio::test]
    async fn every_failure_is_an_object() {
        let agent = Agent::start().await;
        let admin = Role::Admin("x".to_owned());
        let long = json!({ "command": "reinit", "by": "x".repeat(SMALL) });
        let failures: [(&str, Option<Value>, u16, &str); 8] = [
            ("GET /v1/nothing", None, 404, "nothing at /v1/nothing"),
            ("GET /v1/secret", None, 404, "nothing at /v1/secret"),
            ("POST /v1/status", None, 405, "does not take POST"),
            ("POST /v1/command", Some(long), 413, "longer than the 65536 bytes"),
            ("POST /v1/spec", Some(json!("x".repeat(LARGE))), 413, "longer than the 524288 bytes"),
            ("POST /v1/command", None, 400, "Content-Type"),
            ("POST /v1/command", Some(json!({ "command": "dance" })), 400, "dance"),
            ("POST /v1/command", Some(json!({ "command": "reinit", "extra": 1 })), 400, "extra"),
        ];
        for (call, body, status, says) in failures {
            let (method, path) = call.split_once(' ').unwrap();
            let answer = agent.ask(&admin, (method, path), body).await;
            let error = answer.1["error"].as_str().unwrap_or_default().to_owned();
            assert!(answer.0 == status && error.contains(says), "{call}: {} {}", answer.0, answer.1);
            assert!(answer.1["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{call}: {}", answer.1);
        }
    }
}
