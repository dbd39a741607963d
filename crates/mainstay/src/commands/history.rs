//! `mainstay history`: every change of primary, and what else happened, as the cluster itself recorded it.

use crate::cli::{Global, History};
use crate::client::{nobody, with_advice};
use crate::failure::{Failure, Outcome};
use crate::moment;
use crate::output::{self, Colour, paint};
use crate::plan::changes::{Row, Told, changes, counted, loss, merge};
use crate::session::Session;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use mainstay_model::drill::FAULT_OF_DRILL;
use serde::Deserialize;
use serde_json::json;
use std::fmt::Write as _;

/// A drill's result comes so soon after its fault.
const RESULT_MS: u64 = 600_000;

#[derive(Deserialize)]
struct Page {
    events: Vec<Told>,
}

/// Shows the changes of primary, or all events, oldest first.
///
/// # Errors
/// When no agent can read the history, or the time is none.
pub(crate) async fn run(options: History, global: Global) -> Outcome {
    let zone = TimeZone::system();
    let from = options.since.as_deref().map(moment::here);
    let from = from.transpose().map_err(|error| Failure::usage(format!("--since {error}")))?.unwrap_or(0);
    let from = u64::try_from(from / 1000).unwrap_or(0);
    let session = Session::open(&options.which).await?;
    let events = read(&session).await?;
    let rows: Vec<Row> = changes(&events).into_iter().filter(|row| row.told.event.wall_ms >= from).collect();
    let events: Vec<Told> = events.into_iter().filter(|told| told.event.wall_ms >= from).collect();
    if global.json {
        output::object(&json!({ "changes": rows, "events": events }));
    } else if options.all {
        events.iter().for_each(|told| output::line(&event_line(told, &zone)));
        if events.is_empty() {
            output::line("Nothing has happened.");
        }
    } else {
        let shown = |(at, told)| if is_settled(&events, at) { None } else { shown(told, &rows, &zone) };
        events.iter().enumerate().filter_map(shown).for_each(|text| output::line(text.trim_end()));
        let others = events.iter().filter(|told| !told.is_change() && !is_drill(told)).count();
        if rows.is_empty() {
            output::line("No change of primary.");
        }
        if others > 0 {
            output::line(&paint(Colour::Faint, &format!("and {others} other events: mainstay history --all")));
        }
    }
    Ok(())
}

fn is_drill(told: &Told) -> bool {
    told.event.kind == "drill"
}

/// Is this the fault of a drill of which the result follows? Then that is shown. A drill that was interrupted has none.
fn is_settled(events: &[Told], at: usize) -> bool {
    let Some(told) = events.get(at).filter(|told| is_drill(told) && told.event.text.starts_with(FAULT_OF_DRILL)) else {
        return false;
    };
    let next = events.iter().skip(at + 1).find(|told| is_drill(told));
    next.is_some_and(|next| {
        !next.event.text.starts_with(FAULT_OF_DRILL)
            && next.event.text.contains(&format!(" on {}: ", told.event.node))
            && next.event.wall_ms.saturating_sub(told.event.wall_ms) < RESULT_MS
    })
}

/// A change of primary, or what came of a drill; `None`: neither.
fn shown(told: &Told, rows: &[Row], zone: &TimeZone) -> Option<String> {
    if is_drill(told) {
        let colour = if told.event.text.contains("NOT MET") { Colour::Red } else { Colour::Cyan };
        let text = told.event.text.split_once(": ").map_or(told.event.text.as_str(), |(_, rest)| rest);
        let head = told.event.text.split(": ").next().unwrap_or_default();
        let at = short(told.event.wall_ms, zone);
        return Some(format!("{:<5} {at}  {}\n      {text}", told.name(), paint(colour, head)));
    }
    rows.iter().find(|row| row.told == *told).map(|row| change_text(row, zone))
}

/// The whole history that is kept, from every agent that can read it.
///
/// # Errors
/// When none can.
pub(crate) async fn read(session: &Session) -> Outcome<Vec<Told>> {
    let (answers, silent) = session.agents.ask_all("/v1/history").await;
    let pages: Vec<Page> = answers.values().filter_map(crate::client::decode).collect();
    if pages.is_empty() {
        return Err(match answers.iter().next() {
            Some((node, answer)) => Failure::not_now(format!("{node} can not read the history: {}", answer.error()))
                .hint("a majority of the nodes must be up to read it; see `mainstay status`"),
            None => with_advice(nobody(&silent), &session.target),
        });
    }
    Ok(merge(pages.into_iter().map(|page| page.events).collect()))
}

/// One event on one line.
pub(crate) fn event_line(told: &Told, zone: &TimeZone) -> String {
    let event = &told.event;
    let time = time(event.wall_ms, zone);
    format!("{:<5} {time}  {:<6} term {:<4} {:<18} {}", told.name(), event.node, event.term.0, event.kind, event.text)
}

/// A change of primary: what a person wants to know first stands first.
fn change_text(row: &Row, zone: &TimeZone) -> String {
    let event = &row.told.event;
    let (name, at) = (row.told.name(), short(event.wall_ms, zone));
    let Some(change) = &event.change else {
        return format!("{name:<5} {at}  {} opened in term {}\n      {}\n", event.node, event.term, event.text);
    };
    let from = change.from.as_ref().map_or_else(|| "(none)".to_owned(), ToString::to_string);
    let who = if change.from.as_ref() == Some(&change.to) {
        format!("{from}, again")
    } else {
        format!("{from} → {}", change.to)
    };
    let gap = change.gap.map(|gap| format!("  gap {gap}")).unwrap_or_default();
    let lost = loss(Some(change), &row.losses);
    let colour = if lost.starts_with("lost") || lost.starts_with("up to") { Colour::Red } else { Colour::Green };
    let mut out = format!("{name:<5} {at}  {who}{gap}  {}\n", paint(colour, &lost));
    let fork = change.fork.map(|fork| format!(", left {fork}")).unwrap_or_default();
    let _ = writeln!(out, "      term {}, timeline {}{fork}, open from {}", event.term, change.timeline, change.end);
    let _ = writeln!(out, "      cause: {}", change.cause);
    for lost in &row.losses {
        let commits = lost.commits.map(|count| format!(", {}", counted(count))).unwrap_or_default();
        let standing = if lost.may_be_acknowledged { "may have been acknowledged" } else { "never acknowledged" };
        let _ = writeln!(
            out,
            "      left behind: {} to {}{commits}, {standing}; kept in {}",
            lost.from,
            lost.to,
            if lost.kept.is_empty() { "no place" } else { &lost.kept }
        );
    }
    out
}

/// A moment of some host's wall clock, for people.
pub(crate) fn time(wall_ms: u64, zone: &TimeZone) -> String {
    stamp(wall_ms, zone, "%Y-%m-%d %H:%M:%S%.3f")
}

fn short(wall_ms: u64, zone: &TimeZone) -> String {
    stamp(wall_ms, zone, "%Y-%m-%d %H:%M:%S")
}

fn stamp(wall_ms: u64, zone: &TimeZone, form: &str) -> String {
    let stamp = i64::try_from(wall_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    match stamp {
        Some(stamp) => stamp.to_zoned(zone.clone()).strftime(form).to_string(),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{change_text, event_line, is_settled, shown};
    use crate::plan::changes::{Row, Told};
    use crate::plan::examples::{at, name};
    use jiff::tz::TimeZone;
    use mainstay_model::{Change, Event, Lost, Lsn, Span, Term, Timeline};

    fn told() -> Told {
        let event = Event {
            node: name("db2"),
            wall_ms: 1_700_000_000_123,
            term: Term(4),
            kind: "primary-opened".into(),
            text: "db2 serves from 0/3000000".into(),
            change: None,
            lost: None,
        };
        Told { sequence: Some(12), event }
    }

    #[test]
    fn a_row_reads_well() {
        assert_eq!(
            event_line(&told(), &TimeZone::UTC),
            "#12   2023-11-14 22:13:20.123  db2    term 4    primary-opened     db2 serves from 0/3000000"
        );
    }

    #[test]
    fn a_change_says_who_when_why_and_what_was_lost() {
        let mut told = told();
        told.event.change = Some(Change {
            cause: "the server of db1 ended (signal 9)".into(),
            from: Some(name("db1")),
            to: name("db2"),
            timeline: Timeline(3),
            fork: Some(at(2, 0x500_0148)),
            end: Lsn(0x500_01F8),
            gap: Some(Span(412)),
            at_risk_bytes: Some(0),
        });
        let lost = Lost {
            from: at(2, 0x500_0148),
            to: at(2, 0x500_0948),
            commits: Some(3),
            may_be_acknowledged: true,
            kept: "/d/1".into(),
            ..Lost::default()
        };
        let row = Row { told, losses: vec![lost] };
        let text = change_text(&row, &TimeZone::UTC);
        assert_eq!(
            text,
            "#12   2023-11-14 22:13:20  db1 → db2  gap 412 ms  lost 3 commits, 2.0 kB\n      \
             term 4, timeline 3, left 2@0/5000148, open from 0/50001F8\n      \
             cause: the server of db1 ended (signal 9)\n      \
             left behind: 2@0/5000148 to 2@0/5000948, 3 commits, may have been acknowledged; kept in /d/1\n"
        );
    }

    #[test]
    fn a_drill_that_was_interrupted_is_told_by_its_fault() {
        let drill = |wall_ms: u64, text: &str| {
            let mut told = told();
            (told.event.wall_ms, told.event.kind, told.event.text) = (wall_ms, "drill".into(), text.into());
            told
        };
        let begun = drill(1000, "fault of a drill on db2: the server of db2, process 7, was killed, asked for by ann");
        let result = drill(9000, "drill kill-server on db2: db2 → db1, write gap 412 ms; as promised");
        let other = drill(9000, "drill lose-replica on db3: write gap 4 ms; as promised");
        assert!(is_settled(&[begun.clone(), told(), result.clone()], 0), "the result tells it");
        assert!(!is_settled(&[begun.clone(), told(), result.clone()], 2), "a result is always shown");
        assert!(
            !is_settled(&[begun.clone(), begun.clone(), result], 0) && !is_settled(std::slice::from_ref(&begun), 0)
        );
        assert!(!is_settled(&[begun.clone(), other], 0), "another drill's result");
        let line = shown(&begun, &[], &TimeZone::UTC).unwrap();
        assert!(line.contains("fault of a drill on db2\n      the server of db2, process 7, was killed"), "{line}");
    }

    #[test]
    fn without_details_the_words_of_the_event_are_shown() {
        let text = change_text(&Row { told: told(), losses: Vec::new() }, &TimeZone::UTC);
        assert!(text.contains("db2 opened in term 4") && text.contains("db2 serves from"), "{text}");
    }
}
