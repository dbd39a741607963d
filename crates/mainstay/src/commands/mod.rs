//! One file per command, and the runtime that each needs: none for the guard, one thread for commands, few for daemons.

mod agent;
mod apply;
mod archive;
mod backup;
mod backups;
mod completions;
mod connect;
mod copy_files;
mod doctor;
mod down;
mod drill;
mod drill_course;
mod drill_restore;
mod failover;
mod follow;
mod follow_promote;
mod follow_run;
mod follow_status;
mod guard;
mod history;
mod host;
mod import;
mod init;
mod join;
mod node;
mod pause;
mod pki;
mod plan;
mod proxy;
mod proxy_outcomes;
mod proxy_settings;
mod recover;
mod reinit;
mod restart;
mod restore;
mod restore_in_place;
mod restore_room;
mod runbook;
mod set;
mod shelf;
mod status;
mod supervise;
mod switchover;
mod up;
mod wait;
mod why;

pub(crate) use proxy::NAME as PROXY_NAME;
pub(crate) use supervise::node_run_dir;
pub(crate) use why::check_node;

use crate::cli::{Cli, Command};
use crate::failure::{Failure, Outcome};
use mainstay_ports::priority;
use std::future::Future;

/// Runs the command.
///
/// # Errors
/// Why it did not do what was asked.
pub(crate) fn run(cli: Cli) -> Outcome {
    let global = cli.global;
    match cli.command {
        Command::Up(options) => up::run(&options, global),
        Command::Down(options) => down::run(&options, global),
        Command::Status(options) => one_thread(status::run(options, global)),
        Command::History(options) => one_thread(history::run(options, global)),
        Command::Why(options) => one_thread(why::run(options, global)),
        Command::Switchover(options) => one_thread(switchover::run(options, global)),
        Command::Failover(options) => one_thread(failover::run(options, global)),
        Command::Restart(options) => one_thread(restart::run(options, global)),
        Command::Reinit(options) => one_thread(reinit::run(options, global)),
        Command::Pause(options) => one_thread(pause::pause(options, global)),
        Command::Resume(options) => one_thread(pause::resume(options, global)),
        Command::Set(options) => one_thread(set::run(options, global)),
        Command::Node(options) => one_thread(node::run(options, global)),
        Command::Recover(options) => one_thread(recover::run(options, global)),
        Command::Init(options) => init::run(&options, global),
        Command::Import(options) => import::run(&options, global),
        Command::Plan(options) => one_thread(plan::run(options, global)),
        Command::Apply(options) => one_thread(apply::run(options, global)),
        Command::Host(options) => one_thread(host::run(options.verb)),
        Command::Drill(options) => two_threads(drill::run(options, global)),
        Command::Runbook(options) => one_thread(runbook::run(options, global)),
        Command::Doctor(options) => one_thread(doctor::run(options, global)),
        Command::Archive(options) => archive::run(options, global),
        Command::Backup(options) => one_thread(backup::run(options, global)),
        Command::Backups(options) => one_thread(backups::list(options, global)),
        Command::Verify(options) => one_thread(backups::verify(options, global)),
        Command::Restore(options) => one_thread(restore::run(options, global)),
        Command::Follow(options) => follow::run(options, global),
        Command::Connect(options) => connect::run(&options, global),
        Command::Pki(options) => pki::run(options, global),
        Command::Join(options) => join::run(options, global),
        Command::Completions(options) => completions::print(&options),
        Command::Manual(options) => completions::manual(&options),
        Command::Agent(options) => agent::run(&options),
        Command::Guard(options) => guard::run(&options),
        Command::Proxy(options) => proxy::run(&options),
        Command::Supervise(options) => supervise::run(&options),
    }
}

/// Runs a command to its end on this thread.
pub(crate) fn one_thread<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    mainstay_net::install_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::failed(format!("no runtime: {error}")))?.block_on(work)
}

/// Runs a command whose own clients measure time: what it asks meanwhile must not hold them up.
fn two_threads<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    mainstay_net::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

/// Runs a daemon. With no workers: everything in this thread, which costs least while idle. `raised`: above other programs, where allowed.
pub(crate) fn daemon(workers: usize, raised: bool, work: impl Future<Output = Outcome>) -> Outcome {
    mainstay_net::install_provider();
    let mut builder = match workers {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if workers > 0 {
        builder.worker_threads(workers);
    }
    if raised {
        if !priority::raise() {
            tracing::info!("the priority can not be raised here: a busy host may cost the lease");
        }
        builder.on_thread_start(|| _ = priority::raise());
    }
    let runtime = builder.enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("no runtime: {error}")))?;
    let outcome = runtime.block_on(work);
    // A task that hangs in a system call must not keep a daemon from ending.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

/// Logs of a daemon: JSON lines on standard error, which the supervisor or systemd keeps. MAINSTAY_LOG filters them.
pub(crate) fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("MAINSTAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Fails only if a log was started before, which no command does.
    let _ = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}

/// Completes when the daemon is asked to end.
///
/// # Errors
/// When the signals can not be waited for.
pub(crate) async fn end_signal() -> Outcome {
    use tokio::signal::unix::{SignalKind, signal};
    let wrong = |error: std::io::Error| Failure::failed(format!("signals can not be waited for: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(wrong)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(wrong)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
