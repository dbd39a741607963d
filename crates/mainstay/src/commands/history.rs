//! `mainstay history`: what happened, as the cluster itself recorded it.

use crate::cli::{Global, Which};
use crate::client::{Agents, nobody, with_advice};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::target::Target;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use mainstay_model::Event;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Page {
    events: Vec<Event>,
}

/// Shows the events, oldest first.
///
/// # Errors
/// When no agent can read the history.
pub(crate) async fn run(which: Which, global: Global) -> Outcome {
    let target = Target::find(&which)?;
    let agents = Agents::of(&target)?;
    let (answers, silent) = agents.ask_all("/v1/history").await;
    let pages: Vec<Page> = answers.values().filter_map(crate::client::decode).collect();
    if pages.is_empty() {
        return Err(match answers.iter().next() {
            Some((node, answer)) => Failure::not_now(format!("{node} can not read the history: {}", answer.error()))
                .hint("a majority of the nodes must be up to read it; see `mainstay status`"),
            None => with_advice(nobody(&silent), &target),
        });
    }
    let events = merge(pages);
    if global.json {
        output::object(&json!({ "events": events }));
    } else if events.is_empty() {
        output::line("Nothing has happened yet.");
    } else {
        for event in &events {
            output::line(&row(event, &TimeZone::system()));
        }
    }
    Ok(())
}

/// All pages as one list: each event once, in the order of terms and times.
fn merge(pages: Vec<Page>) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for event in pages.into_iter().flat_map(|page| page.events) {
        if !events.contains(&event) {
            events.push(event);
        }
    }
    events.sort_by_key(|event| (event.wall_ms, event.term));
    events
}

fn row(event: &Event, zone: &TimeZone) -> String {
    let time = time(event.wall_ms, zone);
    format!("{time}  {:<6} term {:<4} {:<18} {}", event.node, event.term.0, event.kind, event.text)
}

/// A moment of some host's wall clock, for people.
pub(crate) fn time(wall_ms: u64, zone: &TimeZone) -> String {
    let stamp = i64::try_from(wall_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    match stamp {
        Some(stamp) => stamp.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Page, merge, row};
    use jiff::tz::TimeZone;
    use mainstay_model::{Event, NodeId, Term};

    fn event(wall_ms: u64, kind: &str) -> Event {
        let node = NodeId::new("db1").unwrap();
        Event {
            node,
            wall_ms,
            term: Term(2),
            kind: kind.into(),
            text: "db1 serves from 0/3000000".into(),
            change: None,
            lost: None,
        }
    }

    #[test]
    fn pages_become_one_ordered_list() {
        let (first, second) = (event(1_000, "primary-lost"), event(2_000, "primary-opened"));
        let pages = vec![Page { events: vec![second.clone()] }, Page { events: vec![first.clone(), second.clone()] }];
        assert_eq!(merge(pages), [first, second]);
    }

    #[test]
    fn a_row_reads_well() {
        assert_eq!(
            row(&event(1_700_000_000_123, "primary-opened"), &TimeZone::UTC),
            "2023-11-14 22:13:20.123  db1    term 2    primary-opened     db1 serves from 0/3000000"
        );
    }
}
