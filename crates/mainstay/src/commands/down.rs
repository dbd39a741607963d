//! `mainstay down`: ends a cluster on this machine in order, makes sure that nothing of it is left, and removes it if asked to.

use crate::cli::{Down, Global};
use crate::failure::{Failure, Outcome};
use crate::local::etcd::{self, Left};
use crate::local::place::{self, Place};
use crate::local::processes::{self, Lock, Process};
use crate::output::progress::Progress;
use crate::output::{self, confirm};
use crate::target::{self, Target};
use mainstay_model::layout::ClusterLayout;
use rustix::process::Signal;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// How long an orderly end may take; the supervisor itself gives agents less.
const ORDERLY: Duration = Duration::from_secs(60);

/// Ends the cluster.
///
/// # Errors
/// When there is none, it is not confirmed, or something of it can not be ended or removed.
pub(crate) fn run(options: &Down, global: Global) -> Outcome {
    let dir =
        target::directory(options.dir.as_deref(), options.name.as_ref().map(mainstay_model::ClusterName::as_str))?;
    let place = place::look(&dir)?;
    match place {
        Place::Ours => {}
        Place::Unfinished if options.destroy => {}
        Place::Unfinished => {
            return Err(Failure::failed(format!("{} holds a cluster that was never finished", dir.display()))
                .hint("remove it with --destroy, or finish it with `mainstay up`"));
        }
        Place::Absent | Place::Empty => {
            let said = format!("there is no cluster in {}", dir.display());
            let named = options.dir.is_some() || options.name.is_some();
            let failure = if named { Failure::usage(said) } else { Failure::failed(said) };
            return Err(failure.hint("say which with --dir or --name"));
        }
    }
    if options.destroy {
        confirm(
            global.yes,
            &format!("End the cluster in {} and remove that directory with all its data?", dir.display()),
        )?;
    }
    let mut progress = Progress::new();
    let mut report = end(&dir, &mut progress)?;
    if options.destroy {
        report.left = left(&dir)?;
        progress.step("Removing the files");
        destroy(&dir)?;
    }
    progress.finish("");
    say(&dir, &report, options.destroy, global.json);
    Ok(())
}

/// What came of ending it.
struct Report {
    ran: bool,
    killed: Vec<Process>,
    /// What stays elsewhere when it is removed.
    left: Option<Left>,
}

/// What a removed cluster leaves in an etcd. A file that can not be read is no reason to keep the directory.
fn left(dir: &Path) -> Outcome<Option<Left>> {
    let layout = ClusterLayout::new(dir);
    match Target::read(&layout.config()) {
        Ok(target) => super::one_thread(async { Ok(etcd::left(&target.spec, &layout).await) }),
        Err(_) => Ok(None),
    }
}

fn end(dir: &Path, progress: &mut Progress) -> Outcome<Report> {
    let found = processes::of_cluster(dir);
    let ran = !found.is_empty();
    if ran {
        progress.step(&format!("Ending {} processes in order", found.len()));
    }
    match processes::supervisor(dir) {
        Some(supervisor) => {
            supervisor.signal(Signal::TERM);
            processes::wait_gone(vec![supervisor], ORDERLY);
        }
        None => end_daemons(&found),
    }
    // What does not end by itself is killed below; here the last server processes get a moment to leave.
    processes::wait_gone(processes::of_cluster(dir), Duration::from_secs(1));
    let (killed, left) = processes::kill_leftovers(dir);
    if left.is_empty() {
        return Ok(Report { ran, killed, left: None });
    }
    progress.fail();
    let names: Vec<String> = left.iter().map(|process| format!("{} (pid {})", process.what, process.pid)).collect();
    Err(Failure::failed(format!("these processes can not be ended: {}", names.join(", ")))
        .hint("another user owns them, or they hang in the kernel: end them yourself, then run this again"))
}

/// Without a supervisor: the proxy first, then the agents, which end their servers and guards.
fn end_daemons(found: &[Process]) {
    let daemon =
        |word: &str| found.iter().filter(|process| process.what.starts_with(word)).cloned().collect::<Vec<_>>();
    for word in ["proxy", "agent"] {
        let daemons = daemon(word);
        for process in &daemons {
            process.signal(Signal::TERM);
        }
        processes::wait_gone(daemons, Duration::from_secs(40));
    }
}

/// Removes the directory; only what `look` has recognised as ours comes here.
fn destroy(dir: &Path) -> Outcome {
    let lock = Lock::directory(dir)?;
    if lock.is_none() {
        return Err(Failure::not_now(format!("`mainstay up` is at work in {}: nothing was removed", dir.display())));
    }
    crate::local::create::empty(dir)?;
    match std::fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        // A mount point, or a parent that we may not change: it is empty, which is what counts.
        Err(error) => {
            output::errline(&format!("{} is empty, but can not be removed itself: {error}", dir.display()));
            Ok(())
        }
    }
}

fn say(dir: &Path, report: &Report, destroyed: bool, json: bool) {
    let killed: Vec<String> = report.killed.iter().map(|process| process.what.clone()).collect();
    if json {
        output::object(&json!({
            "dir": dir, "was_running": report.ran, "killed": killed, "destroyed": destroyed,
            "etcd_keys_left": report.left.as_ref().map(|left| &left.prefix),
            "verified": ["no process of the cluster is left"],
        }));
        return;
    }
    let what = if report.ran { "is down" } else { "was not running" };
    output::line(&format!("The cluster in {} {what}.", dir.display()));
    if !killed.is_empty() {
        output::line(&format!("These did not end in order and were killed: {}.", killed.join(", ")));
    }
    output::line("Verified: no process of it is left.");
    if destroyed {
        output::line("Its directory was removed.");
        if let Some(left) = &report.left {
            output::line(&left.text);
        }
    } else {
        output::line(&format!("Start it again as it was: mainstay up --dir {}", dir.display()));
    }
}
