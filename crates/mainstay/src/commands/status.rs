//! `mainstay status`: the cluster at a glance, and what is wrong with it.

use super::restart::pending;
use crate::cli::{Global, Status as Options};
use crate::failure::{Failure, Outcome};
use crate::output::table::{ago, bytes, render, wrap};
use crate::output::{self, Colour, paint};
use crate::session::Session;
use jiff::Timestamp;
use mainstay_model::NodeId;
use mainstay_model::status::{NodeStatus, Problem, Status};
use mainstay_model::stored_spec::{FileState, Paused};
use mainstay_ports::clock::wall_now_ms;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

/// How often it is shown with `--watch`.
const EACH: Duration = Duration::from_secs(1);

/// Shows the status once, or each second until interrupted.
///
/// # Errors
/// When no agent answers (with `--watch` that is shown, and asked again).
pub(crate) async fn run(options: Options, global: Global) -> Outcome {
    let mut session = Session::open(&options.which).await?;
    if !options.watch {
        let status = session.status().await?;
        show(&status, &Wanted::of(&session), global.json);
        return Ok(());
    }
    let interrupted = super::end_signal();
    tokio::pin!(interrupted);
    let mut each = tokio::time::interval(EACH);
    each.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = &mut interrupted => return ended,
            _ = each.tick() => again(&mut session, global.json).await,
        }
    }
}

async fn again(session: &mut Session, json: bool) {
    session.refresh().await;
    let answer = session.status().await;
    if std::io::stdout().is_terminal() && !json {
        // Home, and clear from there on: the screen does not flicker as with a full clear.
        output::line("\x1b[H\x1b[J");
    }
    match answer {
        Ok(status) => show(&status, &Wanted::of(session), json),
        Err(failure) if json => output::object(&failure.to_json()),
        Err(failure) => output::line(&format!("{}\n{}", failure.error, failure.hint.unwrap_or_default())),
    }
}

/// What the operator wants, as far as a status shows it.
#[derive(Clone, Debug, Default, Serialize)]
struct Wanted {
    /// The generation in force; `None`: no agent told it.
    generation: Option<u64>,
    /// Who made it.
    by: String,
    /// When, milliseconds since 1970.
    wall_ms: u64,
    /// Automatic take-over, restart and rejoin are switched off.
    paused: Option<Paused>,
    /// Parameters that wait for a restart, by node.
    pending_restart: BTreeMap<NodeId, Vec<String>>,
    /// Nodes whose file says something else.
    files: BTreeMap<NodeId, FileState>,
}

impl Wanted {
    fn of(session: &Session) -> Wanted {
        let Some(stored) = session.stored() else { return Wanted::default() };
        let differs = |(node, answer): (&NodeId, &mainstay_model::api::SpecAnswer)| {
            (answer.file != FileState::Same).then(|| (node.clone(), answer.file))
        };
        Wanted {
            generation: Some(stored.generation),
            by: stored.by.clone(),
            wall_ms: stored.wall_ms,
            paused: stored.paused.clone(),
            pending_restart: pending(session),
            files: session.specs.iter().filter_map(differs).collect(),
        }
    }

    /// Lines for the head, and for what is to be done; problems that the agents name already are not said twice.
    fn lines(&self, problems: &[Problem], now_ms: u64, width: u16) -> (String, String) {
        let (mut head, mut below) = (String::new(), String::new());
        let Some(generation) = self.generation else { return (head, below) };
        if generation > 0 {
            let age = ago(now_ms.saturating_sub(self.wall_ms) / 1000);
            let _ = writeln!(head, "config   generation {generation} · by {} · {age} ago", self.by);
        }
        if let Some(paused) = &self.paused {
            let note = if paused.note.is_empty() { String::new() } else { format!(": {}", paused.note) };
            let age = ago(now_ms.saturating_sub(paused.wall_ms) / 1000);
            let text = format!("by {}, {age} ago{note}: nothing takes over by itself", paused.by);
            // A note may be long: what follows the first line stands under its text.
            let columns = usize::from(width).saturating_sub(9).max(20);
            for (place, line) in wrap(&text, columns).into_iter().enumerate() {
                let label = if place == 0 { "paused   " } else { "         " };
                let _ = writeln!(head, "{}", paint(Colour::Yellow, &format!("{label}{line}")));
            }
        }
        let named = |name: &str| problems.iter().any(|problem| problem.name.starts_with(name));
        if !named("restart-pending") {
            for (node, names) in &self.pending_restart {
                let _ =
                    writeln!(below, "{node} waits for a restart: {} (mainstay restart --pending)", names.join(", "));
            }
        }
        if !named("file-") {
            for (node, state) in &self.files {
                let _ = match state {
                    FileState::Older(of) => writeln!(below, "{node}: its file is that of generation {of}"),
                    _ => writeln!(below, "{node}: its file was edited and never applied (mainstay set --file)"),
                };
            }
        }
        (head, below)
    }
}

fn show(status: &Status, wanted: &Wanted, json: bool) {
    if !json {
        output::line(text(status, wanted, wall_now_ms(), output::width()).trim_end());
        return;
    }
    match (serde_json::to_value(status), serde_json::to_value(wanted)) {
        (Ok(serde_json::Value::Object(mut all)), Ok(wanted)) => {
            all.insert("configuration".to_owned(), wanted);
            output::object(&all);
        }
        _ => output::object(status),
    }
}

/// The status as text.
fn text(status: &Status, wanted: &Wanted, now_ms: u64, width: u16) -> String {
    let (head, below) = wanted.lines(&status.problems, now_ms, width);
    let cluster = &status.cluster;
    let version = if cluster.version.is_empty() { String::new() } else { format!(" {}", cluster.version) };
    let mut out = format!(
        "cluster  {} · {}{version} · {} · term {}\n",
        cluster.name, cluster.engine, cluster.durability, cluster.term
    );
    let primary = match (&cluster.primary, cluster.writable) {
        (Some(node), true) => format!("{node}, {}", paint(Colour::Green, "takes writes")),
        (Some(node), false) => format!("{node}, {}", paint(Colour::Red, "writes are blocked")),
        (None, _) => paint(Colour::Red, "none: nobody takes writes"),
    };
    let _ = writeln!(out, "primary  {primary}");
    let _ = writeln!(out, "writes   {}", status.routes.write);
    let _ = writeln!(out, "reads    {}", status.routes.read);
    if let Some(address) = &status.routes.address {
        let nodes: Vec<&str> = address.held_by.iter().map(NodeId::as_str).collect();
        let nodes = if nodes.is_empty() { paint(Colour::Red, "nobody") } else { nodes.join(" and ") };
        let _ = writeln!(out, "address  {}, held by {nodes}", address.address);
    }
    let _ = writeln!(out, "{head}");
    let head = ["NODE", "HOST", "ROLE", "STATE", "SYNC", "TL", "POSITION", "LAG", "SINCE"];
    let rows: Vec<Vec<String>> = status.nodes.iter().map(|node| row(node, now_ms)).collect();
    out.push_str(&render(&head, &rows, width));
    if !below.is_empty() {
        let _ = write!(out, "\n{below}");
    }
    if !status.problems.is_empty() {
        let count = status.problems.len();
        let _ = writeln!(out, "\n{count} problem{}", if count == 1 { "" } else { "s" });
        for problem in &status.problems {
            out.push_str(&problem_line(problem, now_ms, width));
        }
    }
    out
}

fn row(node: &NodeStatus, now_ms: u64) -> Vec<String> {
    let dash = || "-".to_owned();
    let lag = node.lag_bytes.filter(|_| node.role == "replica");
    vec![
        node.name.to_string(),
        node.host.clone(),
        node.role.clone(),
        if node.healthy { node.state.clone() } else { format!("{} !", node.state) },
        if node.sync { "yes".to_owned() } else { dash() },
        node.timeline.map_or_else(dash, |timeline| timeline.to_string()),
        node.position.map_or_else(dash, |position| position.to_string()),
        lag.map_or_else(dash, bytes),
        node.since.as_deref().and_then(|since| age(since, now_ms)).unwrap_or_else(dash),
    ]
}

/// How long ago an RFC 3339 moment was.
fn age(since: &str, now_ms: u64) -> Option<String> {
    let since = u64::try_from(since.parse::<Timestamp>().ok()?.as_millisecond()).ok()?;
    Some(ago(now_ms.saturating_sub(since) / 1000))
}

fn problem_line(problem: &Problem, now_ms: u64, width: u16) -> String {
    let colour = match problem.severity.as_str() {
        "critical" => Colour::Red,
        "warning" => Colour::Yellow,
        _ => Colour::Cyan,
    };
    let since = problem.since.as_deref().and_then(|since| age(since, now_ms));
    let since = since.map(|age| format!(" (for {age})")).unwrap_or_default();
    let severity = paint(colour, &format!("{:<8}", problem.severity));
    let mut out = format!("  {severity}  {}{since}\n", problem.name);
    let text = std::iter::once(problem.evidence.clone())
        .chain((!problem.hint.is_empty()).then(|| format!("→ {}", problem.hint)));
    for line in text.flat_map(|text| wrap(&text, usize::from(width).saturating_sub(12))) {
        let _ = writeln!(out, "            {line}");
    }
    out
}

/// One line for people who have just changed something.
pub(crate) fn summary(status: &Status) -> String {
    let replicas = status.nodes.iter().filter(|node| node.role == "replica");
    let streaming = replicas.clone().filter(|node| node.state == "streaming").count();
    let primary = status.cluster.primary.as_ref().map_or("none", |node| node.as_str());
    if status.nodes.len() == 1 {
        return format!("primary {primary} (term {}), alone", status.cluster.term);
    }
    format!("primary {primary} (term {}), {streaming} of {} replicas streaming", status.cluster.term, replicas.count())
}

/// The status, or a failure if the cluster takes no writes.
pub(crate) fn writable(status: Status) -> Outcome<Status> {
    if status.cluster.writable {
        return Ok(status);
    }
    let evidence: Vec<&str> = status.problems.iter().map(|problem| problem.evidence.as_str()).collect();
    Err(Failure::failed(format!("the cluster takes no writes\n{}", evidence.join("\n"))))
}

#[cfg(test)]
mod tests {
    use super::{Wanted, text};
    use crate::plan::examples::{name, node, status as of};
    use mainstay_model::status::{Problem, Status};
    use mainstay_model::stored_spec::{FileState, Paused};

    fn status() -> Status {
        let mut status =
            of(vec![node("db1", "primary", true), node("db2", "replica", true), node("db3", "none", false)]);
        status.problems = vec![Problem {
            name: "node-unreachable".into(),
            severity: "warning".into(),
            evidence: "db3: its agent does not answer".into(),
            hint: "look at its host, and at the network between it and the others, then start its agent".into(),
            since: Some("2023-11-14T22:14:00Z".into()),
        }];
        status
    }

    #[test]
    fn a_status_fits_eighty_columns() {
        let shown = text(&status(), &Wanted::default(), 1_700_000_090_000, 80);
        assert_eq!(
            shown,
            "\
cluster  main · postgres 15.14 · strict · term 3
primary  db1, takes writes
writes   127.0.0.1:6432
reads    127.0.0.1:6433

NODE  HOST       ROLE     STATE          SYNC  TL  POSITION    LAG     SINCE
db1   127.0.0.1  primary  running        -     12  2/1F000148  -       90 s
db2   127.0.0.1  replica  streaming      yes   12  2/1F000148  120 kB  90 s
db3   127.0.0.1  none     unreachable !  -     -   -           -       90 s

1 problem
  warning   node-unreachable (for 50 s)
            db3: its agent does not answer
            → look at its host, and at the network between it and the others,
            then start its agent
"
        );
        assert!(shown.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn without_a_primary_it_says_so() {
        let mut status = status();
        status.cluster.primary = None;
        status.cluster.writable = false;
        status.problems.clear();
        let shown = text(&status, &Wanted::default(), 1_700_000_090_000, 80);
        assert!(shown.contains("primary  none: nobody takes writes\n"), "{shown}");
        assert!(!shown.contains("problem"), "{shown}");
    }

    #[test]
    fn what_is_wanted_stands_in_the_head_and_what_is_due_below() {
        let mut wanted = Wanted {
            generation: Some(4),
            by: "ann@ops".into(),
            wall_ms: 1_700_000_000_000,
            paused: Some(Paused { by: "ben".into(), wall_ms: 1_700_000_000_000, note: "storage moves".into() }),
            ..Wanted::default()
        };
        wanted.pending_restart.insert(name("db2"), vec!["max_connections".into()]);
        wanted.files.insert(name("db1"), FileState::Older(3));
        let mut status = status();
        let shown = text(&status, &wanted, 1_700_000_090_000, 80);
        for line in [
            "config   generation 4 · by ann@ops · 90 s ago",
            "paused   by ben, 90 s ago: storage moves: nothing takes over by itself",
            "db2 waits for a restart: max_connections (mainstay restart --pending)",
            "db1: its file is that of generation 3",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
        if let Some(paused) = &mut wanted.paused {
            paused.note = "the storage of the second room moves to another array tonight".into();
        }
        let shown = text(&status, &wanted, 1_700_000_090_000, 80);
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("moves to another array tonight: nothing takes over by itself"), "{shown}");
        status.problems[0].name = "restart-pending".into();
        assert!(!text(&status, &wanted, 1_700_000_090_000, 80).contains("waits for a restart"), "said once");
    }

    #[test]
    fn a_witness_is_shown_as_what_it_is() {
        let mut witness = node("w", "witness", true);
        (witness.timeline, witness.position, witness.lag_bytes) = (None, None, None);
        let shown = text(&of(vec![node("db1", "primary", true), witness]), &Wanted::default(), 1_700_000_090_000, 80);
        assert!(shown.contains("w     127.0.0.1  witness  running  -     -   -"), "{shown}");
    }
}
