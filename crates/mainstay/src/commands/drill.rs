//! `mainstay drill`: rehearses a failure on a cluster in service: asks first, watches as a client would, and holds what it saw against what was
//! asked for.

use super::drill_course::{Course, course};
use super::history;
use crate::cli::{Drill, Global};
use crate::client::decode;
use crate::failure::{Failure, Outcome};
use crate::local::psql::{APP, Address, app_password};
use crate::output::file::{may_be_written, try_out};
use crate::output::progress::Progress;
use crate::output::{self, Colour, confirm, paint};
use crate::plan::drill::{self, Known, Plan, Wish};
use crate::session::Session;
use jiff::tz::TimeZone;
use mainstay_drill::access::{Access, Login};
use mainstay_drill::judge::{self, Seen};
use mainstay_drill::marker::{Marker, MarkerError, Records};
use mainstay_drill::page::{Shown, page};
use mainstay_model::Span;
use mainstay_model::drill::{DrillCommand, DrillKind, DrillResult, DrillWish, DrillWrites, DrillsAnswer};
use mainstay_model::status::Status;
use mainstay_model::vault::{ArchiveAnswer, BackupState};
use mainstay_net::Role;
use mainstay_ports::clock::wall_now_ms;
use serde_json::json;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the agents said beforehand.
struct Found {
    status: Status,
    backup: Option<BackupState>,
    results: Vec<DrillResult>,
    gaps: Vec<(u64, u64)>,
    /// A fault that an agent has in force now.
    under_way: Option<String>,
}

impl Found {
    async fn look(session: &Session) -> Outcome<Found> {
        let status = session.status().await?;
        let (archives, drills, events) = tokio::join!(
            session.agents.ask_all("/v1/archive"),
            session.agents.ask_all("/v1/drill"),
            history::read(session)
        );
        let archives = archives.0.values().filter_map(decode::<ArchiveAnswer>).filter_map(|answer| answer.backup);
        let backup = archives.max_by_key(|backup| backup.running.is_some());
        let answers: Vec<DrillsAnswer> = drills.0.values().filter_map(decode).collect();
        let under_way = answers.iter().find_map(|answer| answer.in_force.clone());
        if answers.is_empty() {
            return Err(
                Failure::not_now("no agent knows of drills").hint("agents of an earlier version do not: upgrade them")
            );
        }
        let results = answers.into_iter().map(|answer| answer.results);
        let results = results.max_by_key(|results| results.last().map_or(0, |last| last.at_ms)).unwrap_or_default();
        let gap = |told: crate::plan::changes::Told| {
            let change = told.event.change?;
            change.from.as_ref()?;
            Some((told.event.wall_ms, change.gap?.0))
        };
        let gaps = events?.into_iter().filter_map(gap).collect();
        Ok(Found { status, backup, results, gaps, under_way })
    }

    fn known<'a>(&'a self, session: &'a Session) -> Known<'a> {
        Known {
            spec: session.spec(),
            status: &self.status,
            backup: self.backup.as_ref(),
            results: &self.results,
            gaps: &self.gaps,
            now_ms: wall_now_ms(),
        }
    }
}

/// Rehearses, or shows what can be.
///
/// # Errors
/// When it may not be now (exit status 3), is asked wrongly, or did not come out as asked for.
pub(crate) async fn run(options: Drill, global: Global) -> Outcome {
    let session = Session::open_for(&options.which, options.node.as_ref()).await?;
    let Some(kind) = options.kind else {
        let found = Found::look(&session).await?;
        list(&session, &found, global);
        return Ok(());
    };
    // Before anything happens, and before it is said what would: what can be known to be wrong.
    may(&session)?;
    let page_file = page_file(&options, kind)?;
    let found = Found::look(&session).await?;
    let known = found.known(&session);
    if let Some(what) = &found.under_way {
        return Err(under_way(what));
    }
    let wish = Wish { kind, node: options.node.as_ref(), lasts_s: options.lasts };
    let plan = drill::plan(&known, wish, options.over_budget)?;
    let words = drill::words(&plan, &known);
    if options.dry_run {
        return dry(&plan, &words, global);
    }
    let (write, read) = addresses(&session, &options)?;
    let question = format!("Drill on cluster {}, in service: {words}\nGo on?", found.status.cluster.name);
    confirm(global.yes, &question)?;
    let mut progress = Progress::new();
    if global.yes {
        words.lines().for_each(|line| progress.say(line));
    }
    let (course, records) = watched(&session, &plan, &found.status, (write, read), &mut progress).await?;
    let seen = judge::seen(&records, course.fault_ms);
    let result = judge::judged(result(&plan, &found.status, &course), &seen, session.spec().cluster.durability);
    let kept = keep(&session, &result).await;
    let date = history::time(result.at_ms, &TimeZone::system());
    let html = page(&Shown {
        cluster: &found.status.cluster.name,
        date: &date,
        fault: &course.fault,
        fault_ms: course.fault_ms,
        result: &result,
        seen: &seen,
        records: &records,
        looks: &course.looks,
    });
    let written = output::file::write(&page_file, &html);
    drop(progress);
    report(&Report { course: &course, records: &records, seen: &seen, result: &result, kept, written }, global)
}

fn under_way(what: &str) -> Failure {
    Failure::not_now(format!("a drill is under way: {what}")).hint("it ends by itself; nothing was changed")
}

/// Agents let faults happen, and keep results, at an administrator's wish only.
fn may(session: &Session) -> Outcome {
    match session.agents.role() {
        Role::Admin(_) => Ok(()),
        other => Err(Failure::failed(format!(
            "a drill needs a certificate with the role admin, and that of {} has the role {}",
            other.name(),
            other.word()
        ))
        .hint("name another with --identity, or MAINSTAY_IDENTITY (`mainstay pki issue --admin NAME` makes one); nothing was changed")),
    }
}

/// Completes when a person, or the system, ends this program. Made before there is anything to clean up.
struct Ended([Signal; 3]);

impl Ended {
    fn new() -> Outcome<Ended> {
        let wait = |kind: SignalKind| {
            signal(kind).map_err(|error| Failure::failed(format!("signals can not be waited for: {error}")))
        };
        Ok(Ended([wait(SignalKind::interrupt())?, wait(SignalKind::terminate())?, wait(SignalKind::hangup())?]))
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The marker at work around the course; given up when that is, or a person says so.
async fn watched(
    session: &Session,
    plan: &Plan,
    before: &Status,
    (write, read): (Access, Access),
    progress: &mut Progress,
) -> Outcome<(Course, Records)> {
    let mut ended = Ended::new()?;
    let marker = Marker::start(write, read).await.map_err(no_marker)?;
    let went = tokio::select! {
        went = course(session, &marker, plan, before, progress) => went,
        () = ended.wait() => Err(Failure::failed("interrupted").hint(
            "what an agent began it ends by itself, soon; whether the cluster is well again: `mainstay status`",
        )),
    };
    match went {
        Ok(course) => {
            progress.step("Reading back what is there");
            let records = marker.finish().await.map_err(|error| {
                Failure::failed(format!("the marker can not be read back, so nothing is known of losses: {error}"))
                    .hint("its rows stay in mainstay_drill.marker; see `mainstay status`")
            })?;
            progress.finish(&format!("{} rows", records.there.len()));
            Ok((course, records))
        }
        Err(failure) => {
            progress.fail();
            if let Err(error) = marker.give_up().await {
                progress.say(&format!("the schema mainstay_drill is left; the next drill drops it ({error})"));
            }
            Err(failure)
        }
    }
}

fn no_marker(error: MarkerError) -> Failure {
    let failure = Failure::not_now(format!("the marker can not be written: {error}"));
    match error {
        MarkerError::Busy(_) => failure.hint("wait for it; nothing was changed"),
        MarkerError::Away(why) if why.contains("42501") => {
            failure.hint("the role must be allowed to make a schema: `grant create on database app to app`; nothing was changed")
        }
        MarkerError::Away(_) => failure.hint(
            "the clients connect as applications do, to the addresses of `mainstay status`, as the role app unless --role says another; \
             nothing was changed",
        ),
    }
}

/// Where applications connect, for writes and for reads.
fn addresses(session: &Session, options: &Drill) -> Outcome<(Access, Access)> {
    let target = &session.target;
    let given = std::env::var("PGPASSWORD").ok().filter(|password| !password.is_empty());
    let password = match given {
        Some(password) => password,
        None if options.role == APP => app_password(target)?,
        None => {
            return Err(Failure::usage(format!("--role {}: its password is not known", options.role))
                .hint("put it into PGPASSWORD"));
        }
    };
    let login = Login { role: options.role.clone(), database: options.database.clone(), password };
    let path = target.layout.ca_cert();
    let authority = std::fs::read(&path).map_err(|error| {
        Failure::failed(format!("the cluster's authority {} can not be read: {error}", path.display()))
            .hint("it lies beside the cluster's file, in pki/")
    })?;
    let access = |read: bool| {
        let address = Address::of(target, read);
        Access::new(address.hosts, address.port, &login, &authority).map_err(Failure::failed)
    };
    Ok((access(false)?, access(true)?))
}

fn page_file(options: &Drill, kind: DrillKind) -> Outcome<PathBuf> {
    let path = options.page.clone().unwrap_or_else(|| {
        let date = history::time(wall_now_ms(), &TimeZone::system());
        let date: String =
            date.chars().take(19).map(|c| if c == ' ' { '-' } else { c }).filter(|c| *c != ':').collect();
        PathBuf::from(format!("drill-{kind}-{date}.html"))
    });
    // Known before anything happens: a result without its page would be found out too late.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        return Err(Failure::usage(format!("--page {}: there is no directory {}", path.display(), dir.display())));
    }
    if path.is_dir() {
        return Err(Failure::usage(format!("--page {}: it is a directory", path.display()))
            .hint("name the page: a file in it; nothing was changed"));
    }
    // A dry run changes nothing, not even for a moment.
    let can = if options.dry_run { may_be_written(&path) } else { try_out(&path) };
    can.map_err(|error| {
        Failure::usage(format!("--page {}: it can not be written there: {error}", path.display()))
            .hint("name another place with --page FILE; nothing was changed")
    })?;
    Ok(path)
}

fn result(plan: &Plan, before: &Status, course: &Course) -> DrillResult {
    let after = course.after.as_ref().map(|status| &status.cluster);
    let whole = course.well_since_ms.map(|since| since.saturating_sub(course.fault_ms));
    DrillResult {
        kind: plan.kind,
        node: plan.node.clone(),
        at_ms: course.at_ms,
        by: crate::local::user::who(),
        durability: before.cluster.durability.clone(),
        from: before.cluster.primary.clone(),
        term: before.cluster.term,
        to: after.and_then(|cluster| cluster.primary.clone()),
        term_after: after.map_or(before.cluster.term, |cluster| cluster.term),
        write_gap_ms: 0,
        read_gap_ms: 0,
        whole_after_ms: whole,
        writes: DrillWrites::default(),
        outage_allowed_s: plan.outage_allowed_s,
        loss_allowed_s: plan.loss_allowed_s,
        met: false,
        why: Vec::new(),
    }
}

/// Keeps the result in the cluster.
async fn keep(session: &Session, result: &DrillResult) -> Outcome {
    let wish =
        DrillWish { command: DrillCommand::DrillResult(Box::new(result.clone())), by: crate::local::user::who() };
    session.post_any("/v1/drill", &wish).await.map(drop)
}

struct Report<'a> {
    course: &'a Course,
    records: &'a Records,
    seen: &'a Seen,
    result: &'a DrillResult,
    kept: Outcome,
    written: Outcome<String>,
}

fn report(report: &Report<'_>, global: Global) -> Outcome {
    let Report { course, records, seen, result, kept, written } = report;
    let mut amiss: Vec<String> = Vec::new();
    amiss.extend(kept.as_ref().err().map(|failure| format!("the result is not kept in the history: {failure}")));
    amiss.extend(written.as_ref().err().map(|failure| format!("the page was not written: {failure}")));
    amiss.extend(records.left.as_ref().map(|why| format!("the schema mainstay_drill is left: {why}")));
    for text in &amiss {
        output::errline(text);
    }
    if global.json {
        let page = written.as_ref().ok();
        output::object(&json!({
            "result": result, "fault": course.fault, "usual_gap_ms": seen.usual_ms, "page": page, "amiss": amiss,
        }));
    } else {
        people(report);
    }
    if result.met && amiss.is_empty() { Ok(()) } else { Err(Failure::said()) }
}

fn people(report: &Report<'_>) {
    let (result, seen) = (report.result, report.seen);
    let asked =
        |value: Option<u64>| value.map_or_else(|| "not declared".to_owned(), |seconds| format!("{seconds} s allowed"));
    let writes = seen.writes;
    output::line(&format!("{}.", report.course.fault));
    let rows = [
        (
            "write gap",
            format!(
                "{} ({}; {} before the fault)",
                Span(seen.write.length_ms),
                asked(result.outage_allowed_s),
                Span(seen.usual_ms)
            ),
        ),
        ("read gap", Span(seen.read.length_ms).to_string()),
        (
            "writes",
            format!(
                "{} acknowledged, {} refused, {} unknown ({} of them are there)",
                writes.acknowledged, writes.failed, writes.unknown, writes.unknown_there
            ),
        ),
        ("lost", format!("{} ({})", writes.lost, asked(result.loss_allowed_s))),
        ("primary", result.passage()),
        ("whole after", result.whole_after_ms.map_or_else(|| "not in time".to_owned(), |ms| Span(ms).to_string())),
    ];
    for (what, value) in rows {
        output::line(&format!("  {what:<12} {value}"));
    }
    for why in &result.why {
        output::line(&paint(Colour::Red, &format!("  not as asked for: {why}")));
    }
    let kept = if report.kept.is_ok() { "kept in `mainstay history`" } else { "NOT kept in the history" };
    let (colour, asked) = if result.met { (Colour::Green, "As asked for") } else { (Colour::Red, "Not as asked for") };
    output::line(&paint(colour, &format!("{asked}; {kept}.")));
    if let Ok(page) = &report.written {
        output::line(&format!("Page: {page}"));
    }
}

fn dry(plan: &Plan, words: &str, global: Global) -> Outcome {
    if global.json {
        output::object(&json!({
            "kind": plan.kind, "node": plan.node, "lasts_ms": plan.lasts_ms, "expected_ms": plan.expected_ms,
            "expected_why": plan.expected_why, "outage_allowed_s": plan.outage_allowed_s, "loss_allowed_s": plan.loss_allowed_s,
            "budget": plan.budget.map(|budget| json!({ "allowed_ms": budget.allowed_ms, "used_ms": budget.used_ms })),
        }));
    } else {
        words.lines().for_each(output::line);
        output::line("It could happen now. Nothing was changed.");
    }
    Ok(())
}

fn list(session: &Session, found: &Found, global: Global) {
    let known = &found.known(session);
    let spec = session.spec();
    let of = |kind: DrillKind| judge::expected(kind, &spec.failover, spec.cluster.durability, known.results);
    let last = |kind: DrillKind| known.results.iter().rev().find(|result| result.kind == kind);
    let running = found.under_way.iter().map(|what| format!("a drill is under way: {what}"));
    let amiss: Vec<String> = running.chain(drill::amiss(known, DrillKind::KillServer)).collect();
    if global.json {
        let kinds = DrillKind::ALL.map(|kind| {
            let (expected_ms, why) = of(kind);
            json!({ "kind": kind, "what": kind.words(), "expected_ms": expected_ms, "expected_why": why, "last": last(kind) })
        });
        return output::object(
            &json!({ "kinds": kinds, "results": known.results, "amiss": amiss, "under_way": found.under_way }),
        );
    }
    for kind in DrillKind::ALL {
        let (expected, why) = of(kind);
        output::line(&format!("{kind:<16} {}", kind.words()));
        output::line(&format!("{:<16} expected: no write for about {} ({why})", "", Span(expected)));
        if let Some(last) = last(kind) {
            let word = if last.met { "as asked for" } else { "NOT as asked for" };
            let date = history::time(last.at_ms, &TimeZone::system());
            output::line(&format!(
                "{:<16} last: {date}, write gap {}, {} lost, {word}",
                "",
                Span(last.write_gap_ms),
                last.writes.lost
            ));
        }
    }
    for why in amiss {
        output::line(&paint(Colour::Yellow, &format!("not now: {why}")));
    }
}
