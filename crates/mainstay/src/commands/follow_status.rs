//! `mainstay follow --status`: how a copy that follows stands, as the program that feeds it has written it down.

use super::shelf::failure;
use crate::cli::{Follow, Global};
use crate::failure::{Failure, Outcome};
use crate::local::processes::Lock;
use crate::output::table::{ago, bytes};
use crate::output::{self, Colour, paint};
use crate::target::absolute;
use mainstay_ports::clock::wall_now_ms;
use mainstay_vault::postgres::follow::{Found, Mark, State, found};
use mainstay_vault::postgres::restore::time_text;
use serde_json::json;
use std::path::Path;

/// Says it.
///
/// # Errors
/// When there is no such copy, or it does not follow well.
pub(super) fn run(options: &Follow, global: Global) -> Outcome {
    let data = absolute(&options.to)?;
    let mark = match found(&data, None).map_err(|error| failure(&error))? {
        Found::Follows(mark) => *mark,
        Found::Promoted(_) => {
            return Err(Failure::failed(format!("{} was promoted: it follows no more", data.display())));
        }
        Found::Begun => {
            return Err(Failure::failed(format!("{} is being made, or its making broke off", data.display()))
                .hint("`mainstay follow` with the same options goes on with it"));
        }
        Found::Nothing | Found::Other => {
            return Err(Failure::usage(format!("{} is no copy that follows", data.display()))
                .hint("name the directory of one (--to), or make it: mainstay follow --repository PLACE --to DIR"));
        }
    };
    let state = State::read(&data).map_err(|error| failure(&error))?.unwrap_or_default();
    // Whoever feeds it holds it.
    let runs = Lock::directory(&data)?.is_none();
    let now = wall_now_ms();
    let problems = problems(&state, &mark, runs, (now, options.most_age));
    if global.json {
        tell(&data, &mark, &state, (runs, now), &problems);
    } else {
        say(&data, &mark, &state, now, &problems);
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::said()) }
}

fn problems(state: &State, mark: &Mark, runs: bool, (now, most_age): (u64, Option<u64>)) -> Vec<String> {
    let mut all = if runs {
        state.problems(now, mark.segment_size)
    } else {
        vec!["no `mainstay follow` runs for it: start it again".to_owned()]
    };
    let age = state.age_s(now);
    if let Some(most) = most_age.filter(|most| age > *most) {
        all.push(format!("its last commit is {age} s old, and may be {most} s old"));
    }
    all
}

fn tell(data: &Path, mark: &Mark, state: &State, (runs, now): (bool, u64), problems: &[String]) {
    output::object(&json!({
        "to": data, "repository": mark.repository, "system": mark.system, "runs": runs, "pid": state.pid, "serves": state.serves && runs,
        "timeline": state.timeline, "replayed": state.replayed, "last_commit": time_text(state.commit), "age_s": state.age_s(now),
        "archived": state.reaches, "behind_bytes": state.behind(), "repository_read_ms": state.read_ms, "unread": state.unread,
        "new_copy_needed": state.left, "problems": problems,
    }));
}

fn say(data: &Path, mark: &Mark, state: &State, now: u64, problems: &[String]) {
    output::line(&format!("{} follows {}", data.display(), mark.repository.display()));
    output::line(&format!(
        "replayed     {} on timeline {}; last commit {} ({} ago)",
        state.replayed,
        state.timeline,
        time_text(state.commit),
        ago(state.age_s(now))
    ));
    let read = if state.read_ms == 0 {
        "never".to_owned()
    } else {
        format!("{} ago", ago(now.saturating_sub(state.read_ms) / 1000))
    };
    output::line(&format!(
        "archived     {}: {} are not replayed yet; the repository was read {read}",
        state.reaches,
        bytes(state.behind())
    ));
    for problem in problems {
        output::line(&paint(Colour::Red, problem));
    }
    if state.left {
        output::line("Only a new copy mends that: end what runs, then mainstay follow --again --to DIR.");
    }
}
