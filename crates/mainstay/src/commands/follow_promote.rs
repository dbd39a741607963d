//! `mainstay follow --promote`: brings in what is archived, says up to where, and makes a database of its own of the copy.

use super::follow::{Here, hold, moved, programs};
use super::follow_run::{Follower, end_left_over};
use super::shelf::failure;
use crate::cli::{Follow, Global};
use crate::failure::{Failure, Outcome};
use crate::local::processes;
use crate::output::progress::Progress;
use crate::output::{self, Colour, confirm, paint};
use mainstay_model::{Lsn, Timeline};
use mainstay_ports::clock::boot_now;
use mainstay_vault::postgres::follow::{self, Fed, Found, Listen, Look, Mark, Promoted, Promotes, State};
use mainstay_vault::postgres::restore::time_text;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use tokio::time::sleep;

/// How long whoever feeds the copy may take to end.
const ENDS: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(500);
/// So many looks that show the same are believed.
const LOOKS: u32 = 4;
/// It is waited so long until all is replayed.
const MOST: Duration = Duration::from_secs(86_400);
/// How long a round that is under way is waited for.
const ROUND: Duration = Duration::from_secs(180);

/// What the copy holds once it has all that can be had.
#[derive(Clone, Debug, Default)]
struct End {
    /// All that the repository held when it was read last is replayed.
    whole: bool,
    /// It was read after this command began.
    read: bool,
    state: State,
    newest: Timeline,
}

/// Promotes.
///
/// # Errors
/// When there is no such copy, the answer is no, or the promotion fails; it may be tried again then.
pub(super) async fn run(options: Follow, global: Global) -> Outcome {
    let here = Here::of(&options)?;
    let mark = match here.found()? {
        Found::Follows(mark) => *mark,
        Found::Promoted(mark) => return settled_late(&here, &mark, &options, global).await,
        _ => {
            return Err(Failure::usage(format!("{} is no copy that follows", here.data.display()))
                .hint("name the directory of one (--to); nothing was changed"));
        }
    };
    // Whatever is wrong with what was asked is told while the copy is still followed.
    let mark = moved(&mark, &options)?;
    let bin = programs(&mark, &options)?;
    let mut progress = Progress::new();
    progress.say(
        "The old cluster is not stopped by this: see to it that nobody writes there any more, or the two go on as two databases of one name.",
    );
    confirm(
        global.yes,
        "Stop following, and bring in what is archived? It is asked again before the copy is promoted.",
    )?;
    progress.step("Taking the copy over");
    let lock = take_over(&here.data).await?;
    end_left_over(&here.data).await?;
    // Whoever had it may have promoted it meanwhile.
    if !matches!(here.found()?, Found::Follows(_)) {
        drop(lock);
        return settled_late(&here, &mark, &options, global).await;
    }
    let follower = Follower::new(bin.clone(), mark, &here, Listen { addresses: None, port: 5432 })?;
    let work = async {
        progress.step("Bringing in what is archived");
        let end = all_that_is_there(&follower, Duration::from_secs(options.wait), &mut progress).await?;
        progress.finish(&format!("up to {}", end.state.replayed));
        for line in reached(&end) {
            progress.say(&line);
        }
        asked(global.yes, &here.data).await?;
        progress.step("Promoting");
        follower.fill_no_more(ROUND).await;
        let (look, _, _, mark) = follower.now();
        let silent = || Failure::failed("the server of the copy does not answer any more").hint("start this again");
        let (_, server) = look.ok_or_else(silent)?;
        let timeline = follow::beyond(&mark, end.newest);
        follower.promotes(Promotes { timeline, whole: end.whole, read: end.read })?;
        let done = follow::promote(&server, (&mark, end.newest), &here.data, here.owner).await;
        let done = done.map_err(|error| {
            let follows = matches!(here.found(), Ok(Found::Follows(_)));
            let stands = if follows { "the copy is not promoted" } else { "the copy is promoted, and not settled" };
            failure(&error).hint(format!("{stands}: look into its mainstay_scratch.log, then start this again"))
        })?;
        progress.finish(&format!("on timeline {}", done.timeline));
        Ok(Some((end, done, mark)))
    };
    let Some((end, done, mark)) = follower.while_it_follows(work).await? else {
        return Err(Failure::failed("ended before the copy was promoted")
            .hint("start this again, or mainstay follow to go on following"));
    };
    let control = follow::control(&bin, &here.data, here.owner).await.map_err(|error| failure(&error))?;
    follow::settle(&mark, &here.data, here.owner, &control).map_err(|error| failure(&error))?;
    say(&here.data, (&mark, &end, &done), &bin, global);
    Ok(())
}

/// The question that counts. It waits in a thread of its own: the server is looked after meanwhile, and a signal ends it.
async fn asked(yes: bool, data: &Path) -> Outcome {
    let ask = move || confirm(yes, "Make a database of its own of it, with these data?");
    let answer = tokio::task::spawn_blocking(ask).await.map_err(|error| Failure::failed(error.to_string()))?;
    answer.map_err(|failure| {
        let says = format!("{}; the copy is not promoted, and nobody feeds it now", failure.error);
        Failure { error: says, ..failure }.hint(format!("mainstay follow --to {} goes on following", data.display()))
    })
}

/// A promotion that broke off behind the point of no return.
async fn settled_late(here: &Here, mark: &Mark, options: &Follow, global: Global) -> Outcome {
    let _lock = take_over(&here.data).await?;
    end_left_over(&here.data).await?;
    let bin = programs(mark, options)?;
    let control = follow::control(&bin, &here.data, here.owner).await.map_err(|error| failure(&error))?;
    if control.follows {
        let says = format!("the promotion of {} broke off while its server opened", here.data.display());
        return Err(Failure::failed(says).hint(format!(
            "look whether it opens by itself: {}/postgres -D {1} -c config_file={1}/mainstay_scratch.conf, as its owner; then start this again",
            bin.display(),
            here.data.display()
        )));
    }
    let state = State::read(&here.data).ok().flatten().unwrap_or_default();
    let began = state.promotes;
    let due = began.map_or_else(|| follow::beyond(mark, mark.timeline), |began| began.timeline);
    if control.timeline < due || (began.is_some() && control.timeline != due) {
        let (data, is) = (here.data.display(), control.timeline);
        let says = format!("{data} was promoted onto timeline {is}, and not by this command, which takes {due}");
        return Err(Failure::failed(says).hint(
            "the old cluster may have that number, or take it: follow anew in another directory (--to), and promote that",
        ));
    }
    follow::settle(mark, &here.data, here.owner, &control).map_err(|error| failure(&error))?;
    if global.json {
        output::object(&json!({
            "to": here.data, "promoted": true, "before": true, "timeline": control.timeline, "last_commit": time_text(state.commit), "system": mark.system,
            "repository_read": began.map(|began| began.read), "all_archived": began.map(|began| began.whole), "archived": state.reaches,
            "trouble": state.trouble,
        }));
        return Ok(());
    }
    output::line(&format!("{} was promoted before; now it is a database of its own.", here.data.display()));
    match began {
        Some(began) => {
            let end = End { whole: began.whole, read: began.read, state, newest: began.timeline };
            reached(&end).iter().for_each(|line| output::line(line));
        }
        None => output::line("What it may lack is not known any more: how far its data reach, its last commits tell."),
    }
    next(&here.data, &bin);
    Ok(())
}

/// The copy in our hands: whoever feeds it is told to end.
async fn take_over(data: &Path) -> Outcome<crate::local::processes::Lock> {
    let since = boot_now();
    while u128::from(boot_now().since(since).0) < ENDS.as_millis() {
        if let Some(lock) = hold(data, Duration::from_secs(1)).await? {
            return Ok(lock);
        }
        // Who holds it wrote its number.
        let pid = State::read(data).ok().flatten().and_then(|state| Pid::from_raw(i32::try_from(state.pid).ok()?));
        if let Some(pid) = pid.filter(|pid| processes::works_on(*pid, "follow", data)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        sleep(Duration::from_secs(1)).await;
    }
    Err(Failure::not_now(format!("whoever feeds {} does not end", data.display()))
        .hint("end it (systemctl stop, or kill -TERM), then start this again; nothing was changed"))
}

/// Waits until the copy has replayed what the repository holds, or, if that can not be read, what lies here.
async fn all_that_is_there(follower: &Follower, patience: Duration, progress: &mut Progress) -> Outcome<End> {
    let (begun, mut away, mut told) = (boot_now(), None, None);
    let (mut same, mut last) = (0, Lsn::default());
    loop {
        sleep(LOOK).await;
        let (look, fed, state, _) = follower.now();
        let why = state.server.clone().or_else(|| state.unread.clone()).or_else(|| state.trouble.clone());
        if why != told {
            if let Some(why) = &why {
                progress.say(why);
            }
            told = why;
        }
        progress.detail(&format!("at {}, archived up to {}", state.replayed, state.reaches));
        // A listing or a file that hangs fails by itself after a bound; until then it is being read.
        away = state.unread.as_ref().and(away.or_else(|| Some(boot_now())));
        if u128::from(boot_now().since(begun).0) > MOST.as_millis() {
            let why = state.server.or(state.trouble).or(state.unread).unwrap_or_else(|| "it replays still".to_owned());
            return Err(Failure::failed(format!(
                "the copy has not replayed all within {} h: {why}",
                MOST.as_secs() / 3600
            ))
            .hint("mend what it says, and start this again; the copy stays as it is"));
        }
        let Some((look, _)) = look else {
            same = 0;
            continue;
        };
        let replayed = look.replayed.unwrap_or_default();
        same = if look.waits && replayed == last { same + 1 } else { 0 };
        last = replayed;
        if same < LOOKS {
            continue;
        }
        let fed = fed.filter(|_| state.unread.is_none());
        let whole = fed.as_ref().is_some_and(|fed| fed.trouble.is_none() && is_in(&look, fed));
        // Room can be made: that is waited for.
        let stopped = fed.as_ref().is_some_and(|fed| fed.trouble.is_some() && fed.idle && !fed.full);
        let given_up = away.is_some_and(|since| u128::from(boot_now().since(since).0) > patience.as_millis());
        if whole || stopped || given_up {
            let newest = state.newest.max(state.timeline);
            return Ok(End { whole, read: fed.is_some(), state, newest });
        }
    }
}

/// Is all of what was listed replayed? The last segment ends with what does not fill it.
fn is_in(look: &Look, fed: &Fed) -> bool {
    let at = look.replayed.unwrap_or_default();
    fed.fetched == 0 && fed.whole && fed.reaches.0.saturating_sub(at.0) < fed.segment_size
}

/// What the data hold, and what is not known.
fn reached(end: &End) -> Vec<String> {
    let state = &end.state;
    let (commit, at) = (time_text(state.commit), state.replayed);
    let reach = if end.whole { "reach the last commit that is in the archived log" } else { "reach a commit" };
    let mut lines = vec![format!("The data {reach}: {commit}, position {at} on timeline {}.", state.timeline)];
    if !end.read {
        let says = state.unread.clone().unwrap_or_else(|| "it has not answered".to_owned());
        lines.push(format!("THE REPOSITORY CAN NOT BE READ: what is archived behind {at} is missing ({says})."));
    }
    if let Some(trouble) = &state.trouble {
        lines.push(format!("NOT ALL OF IT IS HERE: {trouble}."));
    }
    lines.push(
        "Not known: what the old cluster committed and had not archived yet (vault.switch_s seconds, 60, and whatever it could not bring). It lies on its nodes only."
            .to_owned(),
    );
    lines
}

fn say(data: &Path, (mark, end, done): (&Mark, &End, &Promoted), bin: &Path, global: Global) {
    let state = &end.state;
    if global.json {
        output::object(&json!({
            "to": data, "promoted": true, "before": false, "timeline": done.timeline, "left": done.fork, "last_commit": time_text(state.commit),
            "system": mark.system, "repository_read": end.read, "all_archived": end.whole, "archived": state.reaches, "trouble": state.trouble,
        }));
        return;
    }
    output::line(&format!(
        "{} is a database of its own now, on timeline {}, from {} on; its last commit is of {}. Its server is stopped.",
        data.display(),
        done.timeline,
        done.fork,
        time_text(state.commit)
    ));
    if !end.whole {
        output::line(&paint(Colour::Yellow, "It does not hold all that was archived: see above."));
    }
    next(data, bin);
}

/// What comes next.
fn next(data: &Path, bin: &Path) {
    output::line(&format!(
        "Look at it: start `{}/postgres -D {1} -c config_file={1}/mainstay_scratch.conf` as its owner, then `psql -h {1}/mainstay_run -U postgres app`.",
        bin.display(),
        data.display()
    ));
    output::line(&format!(
        "Make a cluster of it: let it run so, write adopt = \"{}\" and a vault.repository of its own into a mainstay.toml, then `mainstay apply` (docs/adopt.md). \
         Never name the old repository there: two clusters would write into it.",
        data.display()
    ));
}
