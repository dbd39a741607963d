//! `mainstay status`: the cluster at a glance, and what is wrong with it.

use crate::cli::{Global, Status as Options};
use crate::client::{Agents, with_advice};
use crate::failure::{Failure, Outcome};
use crate::output::table::{ago, bytes, render};
use crate::output::{self, Colour, paint};
use crate::target::Target;
use jiff::Timestamp;
use mainstay_model::status::{NodeStatus, Problem, Status};
use mainstay_ports::clock::wall_now_ms;
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
    let target = Target::find(&options.which)?;
    let agents = Agents::of(&target)?;
    if !options.watch {
        let status = agents.status().await.map_err(|failure| with_advice(failure, &target))?;
        show(&status, global.json);
        return Ok(());
    }
    let interrupted = super::end_signal();
    tokio::pin!(interrupted);
    let mut each = tokio::time::interval(EACH);
    each.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = &mut interrupted => return ended,
            _ = each.tick() => again(&agents, &target, global.json).await,
        }
    }
}

async fn again(agents: &Agents, target: &Target, json: bool) {
    let answer = agents.status().await.map_err(|failure| with_advice(failure, target));
    if std::io::stdout().is_terminal() && !json {
        // Home, and clear from there on: the screen does not flicker as with a full clear.
        output::line("\x1b[H\x1b[J");
    }
    match answer {
        Ok(status) => show(&status, json),
        Err(failure) if json => output::object(&failure.to_json()),
        Err(failure) => output::line(&format!("{}\n{}", failure.error, failure.hint.unwrap_or_default())),
    }
}

fn show(status: &Status, json: bool) {
    if json {
        output::object(status);
    } else {
        output::line(text(status, wall_now_ms(), output::width()).trim_end());
    }
}

/// The status as text.
fn text(status: &Status, now_ms: u64, width: u16) -> String {
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
    let _ = writeln!(out, "reads    {}\n", status.routes.read);
    let head = ["NODE", "HOST", "ROLE", "STATE", "SYNC", "TL", "POSITION", "LAG", "SINCE"];
    let rows: Vec<Vec<String>> = status.nodes.iter().map(|node| row(node, now_ms)).collect();
    out.push_str(&render(&head, &rows, width));
    if !status.problems.is_empty() {
        let count = status.problems.len();
        let _ = writeln!(out, "\n{count} problem{}", if count == 1 { "" } else { "s" });
        for problem in &status.problems {
            out.push_str(&problem_line(problem, now_ms));
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

fn problem_line(problem: &Problem, now_ms: u64) -> String {
    let colour = match problem.severity.as_str() {
        "critical" => Colour::Red,
        "warning" => Colour::Yellow,
        _ => Colour::Cyan,
    };
    let since = problem.since.as_deref().and_then(|since| age(since, now_ms));
    let since = since.map(|age| format!(" (for {age})")).unwrap_or_default();
    let severity = paint(colour, &format!("{:<8}", problem.severity));
    let hint = if problem.hint.is_empty() { String::new() } else { format!("            {}\n", problem.hint) };
    format!("  {severity}  {}{since}\n            {}\n{hint}", problem.name, problem.evidence)
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
    use super::text;
    use mainstay_model::status::{ClusterStatus, NodeStatus, Problem, RouteAddresses, Status};
    use mainstay_model::{Lsn, NodeId, Term, Timeline};

    fn node(name: &str, role: &str, state: &str, healthy: bool) -> NodeStatus {
        NodeStatus {
            name: NodeId::new(name).unwrap(),
            host: "127.0.0.1".into(),
            role: role.into(),
            state: state.into(),
            healthy,
            sync: role == "replica" && healthy,
            timeline: healthy.then_some(Timeline(12)),
            position: healthy.then_some(Lsn(0x2_1F00_0148)),
            lag_bytes: healthy.then_some(123_456),
            agent_pid: None,
            guard_pid: None,
            server_pid: None,
            data_dir: "/var/lib/mainstay/main/nodes/db1/data".into(),
            since: Some("2023-11-14T22:13:20Z".into()),
        }
    }

    fn status() -> Status {
        Status {
            cluster: ClusterStatus {
                name: "main".into(),
                engine: "postgres".into(),
                version: "15.14".into(),
                term: Term(3),
                primary: Some(NodeId::new("db1").unwrap()),
                durability: "strict".into(),
                writable: true,
            },
            routes: RouteAddresses { write: "127.0.0.1:6432".into(), read: "127.0.0.1:6433".into() },
            api: "https://127.0.0.1:7420".into(),
            nodes: vec![
                node("db1", "primary", "running", true),
                node("db2", "replica", "streaming", true),
                node("db3", "none", "unreachable", false),
            ],
            problems: vec![Problem {
                name: "node-unreachable".into(),
                severity: "warning".into(),
                evidence: "db3: its agent does not answer".into(),
                hint: "look whether its host is up".into(),
                since: Some("2023-11-14T22:14:00Z".into()),
            }],
        }
    }

    #[test]
    fn a_status_fits_eighty_columns() {
        let shown = text(&status(), 1_700_000_090_000, 80);
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
            look whether its host is up
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
        let shown = text(&status, 1_700_000_090_000, 80);
        assert!(shown.contains("primary  none: nobody takes writes\n"), "{shown}");
        assert!(!shown.contains("problem"), "{shown}");
    }
}
