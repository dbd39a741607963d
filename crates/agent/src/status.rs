//! What one node knows of itself, and how the answers of all nodes become one status.

use crate::certificates::CertificateEnd;
use crate::mind_loop::Snapshot;
use crate::problems::{self, Beside};
use mainstay_decide::summary::{Role, Summary};
use mainstay_model::api::StoreStanding;
use mainstay_model::record::Durability;
use mainstay_model::spec::{Node, Spec};
use mainstay_model::status::{ClusterStatus, NodeStatus, RouteAddresses, Status};
use mainstay_model::stored_spec::{FileState, Paused};
use mainstay_model::{ClaimState, NodeId, Reason, RouteState, ServerObservation, ServerState, Term};
use mainstay_ports::clock::wall_now_ms;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Role and state of a node, in the words of `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// `primary`, `replica`, `witness` or `none`.
    pub role: String,
    /// `running`, `streaming`, `starting`, `stopped` …
    pub state: String,
}

impl Standing {
    /// What a node does by its decision's summary and the last probe.
    #[must_use]
    pub fn of(summary: &Summary, observed: &ServerObservation) -> Self {
        let role = match summary.role {
            Role::Primary if summary.open => "primary",
            Role::Witness => "witness",
            Role::Replica => "replica",
            _ => "none",
        };
        let order = summary.order.map(|(kind, _)| kind.to_lowercase()).unwrap_or_default();
        let state = if summary.problem.is_some() {
            "stays-out"
        } else if role == "witness" {
            "running"
        } else if order.contains("rewind") {
            "rewinding"
        } else if order.contains("clone") {
            "cloning"
        } else if order.contains("bootstrap") {
            "founding"
        } else if observed.silent > 1000 {
            "silent"
        } else {
            Self::server_state(summary, observed)
        };
        Self { role: role.to_owned(), state: state.to_owned() }
    }

    fn server_state(summary: &Summary, observed: &ServerObservation) -> &'static str {
        match (observed.state, summary.role) {
            (ServerState::Down, _) => "stopped",
            (ServerState::Starting, _) => "starting",
            (ServerState::Standby, Role::Candidate | Role::Promoting) | (ServerState::Primary, Role::Promoting) => {
                "promoting"
            }
            (ServerState::Standby, _) if observed.receiving => "streaming",
            (ServerState::Standby, _) => "detached",
            (ServerState::Primary, Role::Primary) if summary.open => "running",
            (ServerState::Primary, _) => "waiting",
        }
    }

    pub(crate) fn healthy(&self) -> bool {
        matches!(self.state.as_str(), "running" | "streaming")
    }
}

/// What one agent says of its node. A contract between agents of different versions: fields are added, never renamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LocalStatus {
    /// Who.
    pub node: NodeId,
    /// Its agent's process.
    pub agent_pid: u32,
    /// Its guard's.
    pub guard_pid: Option<u32>,
    /// Its server's.
    pub server_pid: Option<u32>,
    /// The server's version.
    pub version: String,
    /// What it does.
    pub standing: Standing,
    /// Since when, milliseconds since 1970.
    pub since_ms: u64,
    /// The newest term it has seen.
    pub term: Term,
    /// It is primary of this term and its deadline lies ahead.
    pub primary_of: Option<Term>,
    /// Clients may write there now.
    pub open: bool,
    /// Commits block for want of replicas.
    pub blocked: bool,
    /// Commits are acknowledged with fewer replicas than wanted.
    pub degraded: bool,
    /// Replicas whose confirmation counts, by the setting in force.
    pub sync: BTreeSet<NodeId>,
    /// The record as it knows it, in words: state and holder.
    pub claim: Option<(ClaimState, Option<NodeId>)>,
    /// The last probe.
    pub observed: ServerObservation,
    /// Why it stays out altogether.
    pub problem: Option<String>,
    /// Who leads the embedded store, as it knows.
    pub store_leader: Option<NodeId>,
    /// Its wall clock when it answered, milliseconds since 1970; 0: it did not say.
    #[serde(default)]
    pub wall_ms: u64,
    /// How far its wall clock is off the asking agent's, beyond the round trip. Worked out by the one that asks.
    #[serde(skip)]
    pub clock_off_ms: i64,
    /// The generation of the specification that it goes by.
    #[serde(default)]
    pub generation: u64,
    /// How its file relates to that.
    #[serde(default)]
    pub file: Option<FileState>,
    /// Server parameters that wait for a restart.
    #[serde(default)]
    pub pending_restart: Vec<String>,
    /// The cluster is paused, as it knows.
    #[serde(default)]
    pub paused: Option<Paused>,
    /// Its part of the store.
    #[serde(default)]
    pub store: Option<StoreStanding>,
    /// Until when its certificates are valid.
    #[serde(default)]
    pub certificates: Vec<CertificateEnd>,
}

/// What the parts of the agent that follow the specification and the store tell; empty until they do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Following {
    /// The generation that this node goes by.
    pub generation: u64,
    /// How its file relates to that.
    pub file: Option<FileState>,
    /// Server parameters that wait for a restart.
    pub pending_restart: Vec<String>,
    /// The cluster is paused.
    pub paused: Option<Paused>,
    /// This node's part of the store.
    pub store: Option<StoreStanding>,
}

/// What else an agent adds to its own status.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// The guard's process.
    pub guard_pid: Option<u32>,
    /// The server's.
    pub server_pid: Option<u32>,
    /// The server's version.
    pub version: String,
    /// The store's leader.
    pub store_leader: Option<NodeId>,
    /// What follows the specification and the store.
    pub following: Following,
    /// Until when this node's certificates are valid.
    pub certificates: Vec<CertificateEnd>,
}

/// One node's own status.
#[must_use]
pub fn local(node: NodeId, snapshot: &Snapshot, observed: ServerObservation, extras: Extras) -> LocalStatus {
    let summary = &snapshot.summary;
    let record = summary.record.as_ref().map(|(_, record)| record);
    LocalStatus {
        node,
        agent_pid: std::process::id(),
        guard_pid: extras.guard_pid,
        server_pid: extras.server_pid,
        version: extras.version,
        standing: Standing::of(summary, &observed),
        since_ms: snapshot.since_ms,
        term: record.map_or(summary.promise, |record| record.term),
        primary_of: summary.primary_of,
        open: summary.open && summary.route == RouteState::Open,
        blocked: summary.blocked,
        degraded: summary.degraded,
        sync: summary.setting.as_ref().map(|setting| setting.copies.keys().cloned().collect()).unwrap_or_default(),
        claim: record.map(|record| (record.state, record.holder.clone())),
        observed,
        problem: summary.problem.clone(),
        store_leader: extras.store_leader,
        wall_ms: wall_now_ms(),
        clock_off_ms: 0,
        generation: extras.following.generation,
        file: extras.following.file,
        pending_restart: extras.following.pending_restart,
        paused: extras.following.paused,
        store: extras.following.store,
        certificates: extras.certificates,
    }
}

/// Reasons of one node, for `why`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReasons {
    /// Who decided.
    pub node: NodeId,
    /// Its reasons, oldest first.
    pub reasons: Vec<DatedReason>,
}

/// A reason with the wall time at which it came.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatedReason {
    /// Milliseconds since 1970, by that host's clock.
    pub wall_ms: u64,
    /// The reason.
    #[serde(flatten)]
    pub reason: Reason,
}

/// Milliseconds since 1970 as RFC 3339 in UTC.
#[must_use]
pub fn rfc3339(wall_ms: u64) -> String {
    let seconds = i64::try_from(wall_ms / 1000).unwrap_or(0);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days since 1970 (H. Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", wall_ms % 1000)
}

/// Merges the answers of all nodes (those missing did not answer) into one status.
#[must_use]
pub fn merge(spec: &Spec, api: String, answers: &BTreeMap<NodeId, LocalStatus>, beside: &Beside) -> Status {
    let term = answers.values().map(|answer| answer.term).max().unwrap_or_default();
    // One whose term was overtaken can not renew any more: it must not be shown, nor verified, as the primary of the newer term.
    let primary = answers.values().find(|answer| answer.open && answer.primary_of.is_some_and(|of| of >= term));
    let version =
        answers.values().map(|answer| answer.version.clone()).find(|text| !text.is_empty()).unwrap_or_default();
    let write_host =
        spec.proxy.host.clone().or_else(|| spec.nodes.first().map(|node| node.host.clone())).unwrap_or_default();
    Status {
        cluster: ClusterStatus {
            name: spec.cluster.name.to_string(),
            engine: "postgres".to_owned(),
            version,
            term,
            primary: primary.map(|answer| answer.node.clone()),
            durability: durability_name(spec.cluster.durability).to_owned(),
            writable: primary.is_some_and(|answer| !answer.blocked),
        },
        routes: RouteAddresses {
            write: format!("{write_host}:{}", spec.proxy.write_port),
            read: format!("{write_host}:{}", spec.proxy.read_port),
        },
        api,
        nodes: spec.nodes.iter().map(|node| node_status(spec, node, answers.get(&node.name), primary)).collect(),
        problems: problems::find(spec, answers, primary, beside),
    }
}

fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Strict => "strict",
        Durability::Available => "available",
        Durability::Async => "async",
    }
}

fn node_status(spec: &Spec, node: &Node, answer: Option<&LocalStatus>, primary: Option<&LocalStatus>) -> NodeStatus {
    let data_dir = spec.node_dir(node).join("data").display().to_string();
    let data_dir = if node.witness { String::new() } else { data_dir };
    let mut status = NodeStatus {
        name: node.name.clone(),
        host: node.host.clone(),
        role: "none".to_owned(),
        state: "unreachable".to_owned(),
        healthy: false,
        sync: false,
        timeline: None,
        position: None,
        lag_bytes: None,
        agent_pid: None,
        guard_pid: None,
        server_pid: None,
        data_dir,
        since: None,
    };
    let Some(answer) = answer else { return status };
    let sender = primary.and_then(|primary| primary.observed.walsenders.iter().find(|sender| sender.node == node.name));
    status.role.clone_from(&answer.standing.role);
    status.state.clone_from(&answer.standing.state);
    status.healthy = answer.standing.healthy();
    status.sync = primary.is_some_and(|primary| primary.sync.contains(&node.name))
        && sender.is_some_and(|sender| sender.streaming);
    status.timeline = answer.observed.timeline;
    status.position = answer.observed.end;
    status.lag_bytes = match (primary.and_then(|primary| primary.observed.end), sender) {
        _ if answer.primary_of.is_some() => Some(0),
        (Some(end), Some(sender)) => Some(end.0.saturating_sub(sender.flush.0)),
        _ => None,
    };
    status.agent_pid = Some(answer.agent_pid);
    status.guard_pid = answer.guard_pid;
    status.server_pid = answer.server_pid;
    status.since = Some(rfc3339(answer.since_ms));
    status
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use mainstay_model::{CopyId, Lsn, Walsender};

    pub(crate) fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    pub(crate) fn spec() -> Spec {
        let text = "[cluster]\nname = \"c\"\n[[node]]\nname = \"db1\"\nhost = \"127.0.0.1\"\n\
                    [[node]]\nname = \"db2\"\nhost = \"127.0.0.2\"\n";
        mainstay_model::config::parse(text, &[]).unwrap()
    }

    pub(crate) fn answer(name: &str, role: &str, state: &str) -> LocalStatus {
        LocalStatus {
            node: node(name),
            agent_pid: 1,
            guard_pid: None,
            server_pid: None,
            version: "15.18".to_owned(),
            standing: Standing { role: role.to_owned(), state: state.to_owned() },
            since_ms: 0,
            term: Term(4),
            primary_of: None,
            open: false,
            blocked: false,
            degraded: false,
            sync: BTreeSet::new(),
            claim: Some((ClaimState::Held, Some(node("db1")))),
            observed: ServerObservation::default(),
            problem: None,
            store_leader: Some(node("db1")),
            wall_ms: 0,
            clock_off_ms: 0,
            generation: 1,
            file: None,
            pending_restart: Vec::new(),
            paused: None,
            store: None,
            certificates: Vec::new(),
        }
    }

    pub(crate) fn primary() -> LocalStatus {
        let mut answer = answer("db1", "primary", "running");
        answer.primary_of = Some(Term(4));
        answer.open = true;
        answer.sync = [node("db2")].into();
        answer.observed.end = Some(Lsn(1000));
        let copy = CopyId::new(9).unwrap();
        answer.observed.walsenders =
            vec![Walsender { node: node("db2"), copy, flush: Lsn(900), replay: Lsn(800), streaming: true }];
        answer
    }

    fn merged(answers: Vec<LocalStatus>) -> Status {
        merged_beside(answers, &Beside::default())
    }

    fn merged_beside(answers: Vec<LocalStatus>, beside: &Beside) -> Status {
        let answers = answers.into_iter().map(|answer| (answer.node.clone(), answer)).collect();
        merge(&spec(), "https://127.0.0.1:7420".to_owned(), &answers, beside)
    }

    /// The names of all problems; each says something and gives a way out.
    pub(crate) fn names(status: &Status) -> Vec<&str> {
        for problem in &status.problems {
            assert!(!problem.evidence.is_empty() && !problem.hint.is_empty(), "{problem:?}");
        }
        status.problems.iter().map(|problem| problem.name.as_str()).collect()
    }

    type Change = Box<dyn Fn(&mut LocalStatus)>;

    #[test]
    fn every_condition_of_a_node_has_its_name() {
        let day = 86_400;
        let end = |until| vec![CertificateEnd { purpose: "agent".to_owned(), until }];
        let conditions: Vec<(&str, Change)> = vec![
            ("certificate-expired", Box::new(move |answer| answer.certificates = end(100 * day - 1))),
            ("certificate-expiring", Box::new(move |answer| answer.certificates = end(129 * day))),
            ("clock-off", Box::new(|answer| answer.clock_off_ms = -2001)),
            ("disk-nearly-full", Box::new(|answer| answer.observed.disk_free = Some(1 << 20))),
            (
                "disk-nearly-full",
                Box::new(|answer| {
                    answer.observed.disk_size = Some(1 << 43);
                    answer.observed.disk_free = Some(19 << 30);
                }),
            ),
            ("file-older", Box::new(|answer| answer.file = Some(FileState::Older(3)))),
            ("file-differs", Box::new(|answer| answer.file = Some(FileState::Differs))),
            ("restart-pending", Box::new(|answer| answer.pending_restart = vec!["max_connections".to_owned()])),
            ("node-stays-out", Box::new(|answer| answer.problem = Some("wrong data".to_owned()))),
            ("server-silent", Box::new(|answer| answer.observed.symptom = Some("stopped".to_owned()))),
            ("replica-not-streaming", Box::new(|answer| answer.standing.state = "detached".to_owned())),
            (
                "paused",
                Box::new(|answer| {
                    answer.generation = 9;
                    answer.paused = Some(Paused { by: "ann".to_owned(), wall_ms: 1, note: String::new() });
                }),
            ),
            (
                "store-member-lost",
                Box::new(|answer| {
                    answer.store = Some(StoreStanding { failure: Some("torn".to_owned()), ..Default::default() });
                }),
            ),
            (
                "store-member-lost",
                Box::new(|answer| {
                    answer.store = Some(StoreStanding { voters: vec![node("db9")], ..Default::default() });
                }),
            ),
        ];
        let beside = Beside { now_ms: 100 * 86_400 * 1000, ..Beside::default() };
        for (name, change) in conditions {
            let mut replica = answer("db2", "replica", "streaming");
            replica.certificates = vec![CertificateEnd { purpose: "agent".to_owned(), until: 200 * day }];
            replica.clock_off_ms = 1999;
            replica.observed.disk_free = Some(1 << 40);
            replica.file = Some(FileState::Same);
            assert_eq!(names(&merged_beside(vec![primary(), replica.clone()], &beside)), [""; 0], "before {name}");
            change(&mut replica);
            assert_eq!(names(&merged_beside(vec![primary(), replica], &beside)), [name]);
        }
    }

    #[test]
    fn every_condition_of_the_cluster_has_its_name() {
        let mut lagging = primary();
        lagging.observed.end = Some(Lsn(900 + (64 << 20)));
        assert_eq!(names(&merged(vec![lagging, answer("db2", "replica", "streaming")])), ["replica-lagging"]);
        let mut degraded = primary();
        degraded.degraded = true;
        assert_eq!(names(&merged(vec![degraded, answer("db2", "replica", "streaming")])), ["degraded"]);
        let mut leaderless = vec![primary(), answer("db2", "replica", "streaming")];
        leaderless.iter_mut().for_each(|answer| answer.store_leader = None);
        assert_eq!(names(&merged(leaderless)), ["store-no-quorum"]);
        for (voters, way_out, not) in [
            (vec!["db1", "db2", "db9"], "node replace db9", "recover"),
            (vec!["db1", "db8", "db9"], "recover --from", "node replace"),
        ] {
            let voters = voters.into_iter().map(node).collect();
            let mut alone = primary();
            alone.store = Some(StoreStanding { voters, ..Default::default() });
            let status = merged(vec![alone, answer("db2", "replica", "streaming")]);
            let lost = |problem: &&mainstay_model::status::Problem| problem.name == "store-member-lost";
            let hints: Vec<&str> = status.problems.iter().filter(lost).map(|problem| problem.hint.as_str()).collect();
            assert!(
                !hints.is_empty() && hints.iter().all(|hint| hint.contains(way_out) && !hint.contains(not)),
                "{hints:?}"
            );
        }
        let mut old = answer("db2", "none", "stopped");
        old.term = Term(3);
        let mut new = primary();
        (new.term, new.primary_of) = (Term(1_000_001), Some(Term(1_000_001)));
        assert_eq!(names(&merged(vec![new, old])), ["superseded"]);
        let doubled = Beside { doubled: [node("db2")].into(), ..Beside::default() };
        let fine = || vec![primary(), answer("db2", "replica", "streaming")];
        assert_eq!(names(&merged_beside(fine(), &doubled)), ["two-agents-one-name"]);
        for (why, hint) in [
            ("connect to 10.0.0.2:7420: connection refused: nothing listens there", "start its agent"),
            ("connect to 10.0.0.2:7420: no answer within 1 s", "is its host up"),
            ("its certificate is not of this cluster's authority; is it of another cluster?", "join --again"),
        ] {
            let beside = Beside { unreachable: [(node("db2"), why.to_owned())].into(), ..Beside::default() };
            let status = merged_beside(vec![primary()], &beside);
            assert_eq!(names(&status), ["node-unreachable"]);
            let problem = &status.problems[0];
            assert!(problem.evidence.contains(why) && problem.hint.contains(hint), "{problem:?}");
        }
        let ours = "connect to 10.0.0.2:7420: it says that our certificate has expired".to_owned();
        let beside = Beside { unreachable: [(node("db2"), ours)].into(), ..Beside::default() };
        assert_eq!(names(&merged_beside(vec![primary()], &beside)), ["node-unreachable"]);
        let expired = "connect to 10.0.0.2:7420: its certificate has expired".to_owned();
        let beside = Beside { unreachable: [(node("db2"), expired)].into(), ..Beside::default() };
        assert_eq!(names(&merged_beside(vec![primary()], &beside)), ["node-unreachable", "certificate-expired"]);
    }

    #[test]
    fn an_answer_of_an_older_agent_is_understood() {
        let mut older = serde_json::to_value(answer("db2", "replica", "streaming")).unwrap();
        let fields = older.as_object_mut().unwrap();
        for added in ["wall_ms", "generation", "file", "pending_restart", "paused", "store", "certificates"] {
            fields.remove(added).expect("it is told now");
        }
        let read: LocalStatus = serde_json::from_value(older).unwrap();
        assert_eq!(names(&merged(vec![primary(), read])), [""; 0]);
    }

    #[test]
    fn a_healthy_cluster_has_no_problems() {
        let status = merged(vec![primary(), answer("db2", "replica", "streaming")]);
        assert_eq!(status.cluster.primary, Some(node("db1")));
        assert!(status.cluster.writable);
        assert!(status.problems.is_empty(), "{:?}", status.problems);
        assert!(status.nodes[1].sync && status.nodes[1].healthy);
        assert_eq!(status.nodes[1].lag_bytes, Some(100));
    }

    #[test]
    fn each_trouble_is_named_by_its_evidence() {
        let mut blocked = primary();
        blocked.blocked = true;
        let status = merged(vec![blocked]);
        assert!(!status.cluster.writable);
        assert_eq!(names(&status), ["writes-blocked", "node-unreachable"]);
        assert_eq!(status.nodes[1].state, "unreachable");

        let status = merged(vec![answer("db1", "none", "stopped"), answer("db2", "replica", "detached")]);
        assert_eq!(status.cluster.primary, None);
        assert_eq!(status.problems[0].name, "no-primary");
        assert!(status.problems[0].evidence.contains("db1 holds the term"), "{}", status.problems[0].evidence);
        assert!(
            status.nodes[1].data_dir.ends_with("data"),
            "also where the file says no directory: {:?}",
            status.nodes[1]
        );

        let status = merged(vec![answer("db1", "none", "promoting")]);
        assert!(status.problems[0].evidence.contains("0 of 1 replicas"), "{}", status.problems[0].evidence);
        assert!(status.problems[0].hint.contains("durability=available"), "{}", status.problems[0].hint);
    }

    #[test]
    fn of_two_that_call_themselves_primary_the_higher_term_counts() {
        let mut old = primary();
        old.primary_of = Some(Term(3));
        let mut new = primary();
        new.node = node("db2");
        let status = merged(vec![old, new]);
        assert_eq!(status.cluster.primary, Some(node("db2")));
    }

    #[test]
    fn a_primary_whose_term_was_overtaken_is_none() {
        let mut candidate = answer("db2", "none", "promoting");
        candidate.term = Term(5);
        let status = merged(vec![primary(), candidate]);
        assert_eq!((status.cluster.primary, status.cluster.term), (None, Term(5)));
    }

    #[test]
    fn wall_time_prints_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_709_164_800_123), "2024-02-29T00:00:00.123Z");
        assert_eq!(rfc3339(1_795_391_999_000), "2026-11-22T23:59:59.000Z");
    }
}
