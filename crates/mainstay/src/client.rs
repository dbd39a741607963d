//! Asks the cluster's agents over their API (HTTPS, certificates on both sides). Any agent may answer; all are asked side by side.

use crate::failure::{Failure, Outcome};
use crate::target::Target;
use mainstay_model::NodeId;
use mainstay_model::spec::Node;
use mainstay_model::status::Status;
use mainstay_net::{Credentials, Expect, Role, http};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::task::JoinSet;

/// How long one agent may take. It asks the others itself, and waits for those for most of a second.
const ANSWER: Duration = Duration::from_millis(1500);
/// How long a change may take to be accepted.
const CHANGE: Duration = Duration::from_secs(10);
/// How long the slower agents are waited for once one has answered.
const LATER: Duration = Duration::from_millis(150);

/// What an agent answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Value,
}

impl Answer {
    /// The reason that a refusal gives.
    pub(crate) fn error(&self) -> String {
        match self.body.get("error").and_then(Value::as_str) {
            Some(text) => text.to_owned(),
            None => format!("it answered with status {}", self.status),
        }
    }

    /// What the refusal says to do next, if it does.
    pub(crate) fn hint(&self) -> Option<String> {
        self.body.get("hint").and_then(Value::as_str).filter(|hint| !hint.is_empty()).map(ToOwned::to_owned)
    }

    /// The answer of one agent to a wish: its body, or the refusal as this command's end.
    ///
    /// # Errors
    /// When it was refused: wrongly asked (usage), not now, or not allowed.
    pub(crate) fn accepted(self, node: &NodeId) -> Outcome<Value> {
        let (error, hint) = (self.error(), self.hint());
        let failure = match self.status {
            200..300 => return Ok(self.body),
            400 | 413 | 422 => Failure::usage(error),
            403 => Failure::failed(format!("the agent of {node} does not allow it: {error}"))
                .hint("use a certificate with the role for it: --identity, or MAINSTAY_IDENTITY"),
            404 | 405 => Failure::failed(format!("the agent of {node} does not know this request: {error}"))
                .hint("it may be of an older version: upgrade it, then try again"),
            409 | 503 => Failure::not_now(error).hint("nothing was changed; see `mainstay status` and `mainstay why`"),
            _ => Failure::failed(format!("the agent of {node} refuses: {error}")),
        };
        Err(match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        })
    }
}

/// The agents of one cluster.
pub(crate) struct Agents {
    nodes: Vec<Node>,
    /// Where agents are reached instead of at their own addresses.
    through: BTreeMap<NodeId, SocketAddr>,
    credentials: Arc<Credentials>,
}

impl Agents {
    /// Reads the certificate with which people call.
    ///
    /// # Errors
    /// When it can not be read: the caller may not operate this cluster.
    pub(crate) fn of(target: &Target) -> Outcome<Agents> {
        let credentials = crate::identity::credentials(target)?;
        Ok(Agents { nodes: target.spec.nodes.clone(), through: BTreeMap::new(), credentials })
    }

    /// These agents are reached through other addresses. Who answers there must be the node all the same: its certificate says so.
    pub(crate) fn reach(&mut self, through: BTreeMap<NodeId, SocketAddr>) {
        self.through = through;
    }

    /// The cluster has these nodes now.
    pub(crate) fn know(&mut self, nodes: &[Node]) {
        nodes.clone_into(&mut self.nodes);
    }

    /// As whom they are asked.
    pub(crate) fn role(&self) -> &Role {
        &self.credentials.identity().role
    }

    /// Of whom these are the agents.
    pub(crate) fn names(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// Asks one agent once.
    ///
    /// # Errors
    /// Why there was no answer.
    pub(crate) async fn ask(
        &self,
        node: &NodeId,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        let node = self.nodes.iter().find(|known| known.name == *node).ok_or("it is not in the file")?;
        // A change is written to the store first, which may elect a leader meanwhile.
        let limit = if method == "GET" { ANSWER } else { CHANGE };
        ask((node, self.through.get(&node.name).copied()), &self.credentials, (method, path), body, limit).await
    }

    /// Asks every agent; returns what came within a short time after the first answer, and why the others did not.
    pub(crate) async fn ask_all(&self, path: &str) -> (BTreeMap<NodeId, Answer>, BTreeMap<NodeId, String>) {
        let mut asked = JoinSet::new();
        for node in self.nodes.clone() {
            let (credentials, path) = (Arc::clone(&self.credentials), path.to_owned());
            let through = self.through.get(&node.name).copied();
            asked.spawn(async move {
                let answer = ask((&node, through), &credentials, ("GET", &path), None, ANSWER).await;
                (node.name, answer)
            });
        }
        let (mut answers, mut silent) = (BTreeMap::new(), BTreeMap::new());
        let mut until = tokio::time::Instant::now() + ANSWER + LATER;
        while let Ok(Some(Ok((node, answer)))) = tokio::time::timeout_at(until, asked.join_next()).await {
            match answer {
                Ok(answer) => {
                    if answers.is_empty() {
                        until = tokio::time::Instant::now() + LATER;
                    }
                    answers.insert(node, answer);
                }
                Err(why) => {
                    silent.insert(node, why);
                }
            }
        }
        (answers, silent)
    }

    /// The cluster's status: of several answers the one that knows the highest term, then the one that shows most nodes well, then
    /// the one that sees most amiss.
    ///
    /// # Errors
    /// When no agent answers.
    pub(crate) async fn status(&self) -> Outcome<Status> {
        let (answers, silent) = self.ask_all("/v1/status").await;
        let statuses = answers.into_values().filter_map(|answer| decode::<Status>(&answer));
        let best = statuses.max_by_key(|status| {
            let well = status.nodes.iter().filter(|node| node.healthy).count();
            // Of equal views the one that sees more amiss: a node does not hear, say, that another speaks under its name.
            (status.cluster.term, status.cluster.writable, well, status.problems.len())
        });
        best.ok_or_else(|| nobody(&silent))
    }
}

async fn ask(
    (node, through): (&Node, Option<SocketAddr>),
    credentials: &Credentials,
    (method, path): (&str, &str),
    body: Option<&Value>,
    limit: Duration,
) -> Result<Answer, String> {
    let exchange = async {
        let address = match through {
            Some(address) => address,
            None => {
                let host = (node.host.as_str(), node.agent_port);
                let mut addresses = lookup_host(host).await.map_err(|error| format!("{}: {error}", node.host))?;
                addresses.next().ok_or_else(|| format!("{} has no address", node.host))?
            }
        };
        let expect = Expect::Node(node.name.clone());
        http::request(credentials, address, expect, (method, path), body, limit)
            .await
            .map_err(|error| error.to_string())
    };
    let (status, bytes) = match tokio::time::timeout(limit, exchange).await {
        Ok(answered) => answered?,
        Err(_) => return Err(format!("no answer within {} ms", limit.as_millis())),
    };
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Ok(Answer { status, body })
}

/// The answer's body, if it is a good one.
pub(crate) fn decode<T: DeserializeOwned>(answer: &Answer) -> Option<T> {
    if answer.status != 200 {
        return None;
    }
    serde_json::from_value(answer.body.clone()).ok()
}

/// How the error begins when no agent answered.
pub(crate) const NOBODY: &str = "no agent of the cluster answers";

/// No agent answered, and why.
pub(crate) fn nobody(silent: &BTreeMap<NodeId, String>) -> Failure {
    let mut text = NOBODY.to_owned();
    for (node, why) in silent {
        let _ = write!(text, "\n{node}: {why}");
    }
    if silent.is_empty() {
        text.push_str("\nno usable answer");
    }
    Failure::failed(text)
}

/// Adds what to do when no agent of a cluster on this machine answers.
pub(crate) fn with_advice(failure: Failure, target: &Target) -> Failure {
    if failure.hint.is_some() {
        return failure;
    }
    // They run and were reached: what is asked with is wrong.
    if failure.error.contains("is not of this cluster's authority") {
        return failure.hint(
            "is the ca.crt beside your certificate this cluster's? name the right certificate with --identity, or join anew with a token of \
             this cluster (`mainstay pki issue`)",
        );
    }
    if failure.error.contains("our certificate has expired") {
        return failure.hint(
            "renew your own: `mainstay pki issue` for your role and name where the authority is, then `mainstay join --again` here; the agents \
             run",
        );
    }
    let dir = target.layout.dir().display();
    if !target.layout.run().is_dir() {
        return failure.hint("are the agents running, and reachable from here?");
    }
    match crate::local::processes::supervisor(target.layout.dir()) {
        Some(_) => {
            failure.hint(format!("its daemons run; their logs: {dir}/nodes/*/log/agent.log, {dir}/log/supervisor.log"))
        }
        None => failure.hint(format!("it is not running: start it with `mainstay up --dir {dir}`")),
    }
}
