//! `mainstay supervise`: stands in for the service manager on one machine. Starts an agent per node and the proxy, starts them
//! again when they die, and ends them in order on SIGTERM. On a host without a service manager it does so for that node's agent alone.
//!
//! Absent: any judgement about the cluster. Daemons of an earlier supervisor that still run are adopted, not started twice: the
//! end of a supervisor costs nobody a connection.

use crate::cli::Supervise;
use crate::failure::{Failure, Outcome};
use crate::local::node_dir;
use crate::local::processes::{self, Lock, Process};
use crate::target::Target;
use mainstay_model::layout::{ClusterLayout, NodeLayout};
use mainstay_model::{Moment, NodeId, Span};
use mainstay_ports::clock::boot_now;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Pause before a daemon is started again; doubled each time it dies soon, up to the second.
const PAUSE_FIRST: Span = Span(200);
const PAUSE_MOST: Span = Span(2000);
/// A daemon that ran for this long did not die soon.
const LONG: Span = Span(10_000);
/// How often adopted daemons, whose end nobody tells us, are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long the proxy, and then the agents, may take to end.
const PROXY_END: Duration = Duration::from_secs(3);
const AGENTS_END: Duration = Duration::from_secs(40);
/// How long an agent that hands over may take; it ends by itself before.
const HAND_OVER: Duration = Duration::from_secs(65);
/// A log longer than this is set aside when its daemon starts. Bytes.
const LOG_MOST: u64 = 32 * 1024 * 1024;

/// Runs the supervisor.
///
/// # Errors
/// When another one runs, or the cluster's file can not be read.
pub(crate) fn run(options: &Supervise) -> Outcome {
    super::start_log();
    if options.detach {
        // Fails only where this leads a group already; then it is as detached as it can be.
        let _ = rustix::process::setsid();
    } else {
        // In the foreground it ends with who started it.
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
            .map_err(|error| Failure::failed(format!("the parent's end can not be watched: {error}")))?;
    }
    if let (Some(config), Some(node)) = (&options.config, &options.node) {
        return keep_node(config, node);
    }
    let dir = crate::target::absolute(options.dir.as_deref().unwrap_or(Path::new(".")))?;
    let target = Target::read(&ClusterLayout::new(&dir).config())?;
    let layout = &target.layout;
    let Some(_lock) = Lock::pid_file(&layout.supervisor_pid())? else {
        return Err(Failure::not_now(format!("another supervisor runs in {}", dir.display())));
    };
    collect_orphans();
    let wards = wards(&target)?;
    let outcome = super::one_thread(watch(wards, Some(&dir)));
    // Removed by name while still locked: who looks in between sees no supervisor, as is true soon.
    let _ = std::fs::remove_file(layout.supervisor_pid());
    outcome
}

/// What loses its parent comes to us, so that no remains of processes pile up where nobody else collects them.
fn collect_orphans() {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::warn!(%error, "processes without parent are left to the system");
    }
}

/// Where the supervisor of a node of this cluster notes its number, on a host without a service manager.
pub(crate) fn node_run_dir(target: &Target) -> PathBuf {
    Path::new("/run/mainstay").join(target.spec.cluster.name.as_str())
}

/// Keeps the agent of one node.
fn keep_node(config: &Path, node: &NodeId) -> Outcome {
    let target = Target::read(&crate::target::absolute(config)?)?;
    super::check_node(&target, Some(node))?;
    let (files, run) = (super::agent::layout(&target, node)?, node_run_dir(&target));
    node_dir::make_parents(&run)?;
    let pid_file = run.join("supervisor.pid");
    let Some(_lock) = Lock::pid_file(&pid_file)? else {
        return Err(Failure::not_now(format!("another supervisor keeps the agent of {node}")));
    };
    collect_orphans();
    let mut ward = Ward::agent(&target, node, &files, run.join("agent.pid"), this_program()?);
    ward.ends_with = Some(crate::failure::NOT_NOW);
    ward.adopt(&target.config);
    let outcome = super::one_thread(watch(vec![ward], None));
    let _ = std::fs::remove_file(pid_file);
    outcome
}

/// One daemon to keep.
#[derive(Debug)]
struct Ward {
    name: String,
    verb: &'static str,
    arguments: Vec<String>,
    /// The argument by which its process is recognised.
    mark: PathBuf,
    directory: PathBuf,
    log: PathBuf,
    pid_file: PathBuf,
    /// This program's place, as it was when the supervisor began: once the file there is replaced, the kernel names the old one, which is gone.
    program: PathBuf,
    state: State,
    pause: Span,
    /// It is not started again after it ended with this status.
    ends_with: Option<u8>,
    over: bool,
}

#[derive(Debug)]
enum State {
    /// It is to be started then.
    Due(Moment),
    /// It runs: our child.
    Child(Pid, Moment),
    /// It runs: an earlier supervisor started it.
    Adopted(Process),
}

fn this_program() -> Outcome<PathBuf> {
    std::env::current_exe().map_err(|error| Failure::failed(format!("this program's own place is not known: {error}")))
}

fn wards(target: &Target) -> Outcome<Vec<Ward>> {
    let layout = &target.layout;
    let config = layout.config().display().to_string();
    let program = this_program()?;
    let mut wards = Vec::new();
    for node in &target.spec.nodes {
        let files: NodeLayout = layout.node(&node.name);
        wards.push(Ward::agent(
            target,
            &node.name,
            &files,
            processes::agent_pid_file(layout, &node.name),
            program.clone(),
        ));
    }
    if target.spec.proxy.host.is_some() {
        wards.push(Ward {
            name: "proxy".into(),
            verb: "proxy",
            arguments: vec!["--config".into(), config.clone()],
            mark: layout.config(),
            directory: layout.dir().to_owned(),
            log: layout.log().join("proxy.log"),
            pid_file: layout.proxy_pid(),
            program: program.clone(),
            state: State::Due(Moment(0)),
            pause: PAUSE_FIRST,
            ends_with: None,
            over: false,
        });
    }
    for ward in &mut wards {
        ward.adopt(&layout.config());
    }
    Ok(wards)
}

impl Ward {
    fn agent(target: &Target, node: &NodeId, files: &NodeLayout, pid_file: PathBuf, program: PathBuf) -> Ward {
        let config = target.config.display().to_string();
        Ward {
            name: format!("agent {node}"),
            verb: "agent",
            arguments: vec!["--config".into(), config, "--node".into(), node.to_string()],
            mark: PathBuf::from(node.as_str()),
            directory: files.dir().to_owned(),
            log: files.agent_log(),
            pid_file,
            program,
            state: State::Due(Moment(0)),
            pause: PAUSE_FIRST,
            ends_with: None,
            over: false,
        }
    }

    /// Takes over a daemon that an earlier supervisor left.
    fn adopt(&mut self, config: &Path) {
        let Some(pid) = processes::read_pid(&self.pid_file) else { return };
        let found =
            Process::daemon(pid, self.verb, config).filter(|_| Process::daemon(pid, self.verb, &self.mark).is_some());
        if let Some(process) = found {
            tracing::info!(daemon = %self.name, pid, "adopted: it runs already");
            self.state = State::Adopted(process);
        }
    }

    fn start(&mut self) {
        let now = boot_now();
        match self.spawn() {
            Ok(pid) => {
                tracing::info!(daemon = %self.name, %pid, "started");
                self.state = State::Child(pid, now);
            }
            Err(error) => {
                tracing::error!(daemon = %self.name, %error, "can not be started");
                self.again(now, now);
            }
        }
    }

    fn spawn(&self) -> std::io::Result<Pid> {
        let log = open_log(&self.log)?;
        let mut command = Command::new(&self.program);
        command.arg0("mainstay").arg(self.verb).args(&self.arguments).current_dir(&self.directory);
        command.env_clear();
        for name in ["PATH", "LANG", "TZ", "HOME", "MAINSTAY_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        // A group of its own: an interrupt typed at a terminal is for us alone.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        write_pid(&self.pid_file, pid)?;
        Ok(pid)
    }

    /// It ended, or could not be started: when to try again.
    fn again(&mut self, began: Moment, now: Moment) {
        if now.since(began) >= LONG {
            self.pause = PAUSE_FIRST;
        }
        self.state = State::Due(now + self.pause);
        self.pause = Span((self.pause.0 * 2).min(PAUSE_MOST.0));
    }

    fn ended(&mut self, status: Option<WaitStatus>) {
        let (now, began) = match &self.state {
            State::Child(_, began) => (boot_now(), *began),
            State::Adopted(_) | State::Due(_) => (boot_now(), Moment(0)),
        };
        let signal = status.and_then(WaitStatus::terminating_signal);
        let code = status.and_then(WaitStatus::exit_status);
        if code.is_some() && code == self.ends_with.map(i32::from) {
            tracing::warn!(daemon = %self.name, "ended, and is not to be started again");
            (self.state, self.over) = (State::Due(Moment(u64::MAX)), true);
            return;
        }
        tracing::warn!(daemon = %self.name, ?code, ?signal, "ended; starting it again");
        self.again(began, now);
    }

    fn signal(&self, signal: Signal) {
        match &self.state {
            // Not yet collected, so the number is still its own.
            State::Child(pid, _) => drop(rustix::process::kill_process(*pid, signal)),
            State::Adopted(process) => process.signal(signal),
            State::Due(_) => {}
        }
    }

    fn runs(&self) -> bool {
        match &self.state {
            State::Child(..) => true,
            State::Adopted(process) => process.alive(),
            State::Due(_) => false,
        }
    }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_MOST) {
        std::fs::rename(path, path.with_extension("log.1"))?;
    }
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// In one step, so that a reader never sees half a number.
fn write_pid(path: &Path, pid: Pid) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
    writeln!(file, "{pid}")?;
    std::fs::rename(&new, path)
}

/// Without `dir`, one node's agent is kept: at the end it hands the primary's role over, and what lives on is its guard's business.
async fn watch(mut wards: Vec<Ward>, dir: Option<&Path>) -> Outcome {
    let wrong = |error: std::io::Error| Failure::failed(format!("signals can not be waited for: {error}"));
    let mut children = signal(SignalKind::child()).map_err(wrong)?;
    let end = super::end_signal();
    tokio::pin!(end);
    loop {
        collect(&mut wards);
        if wards.iter().all(|ward| ward.over) {
            break;
        }
        let now = boot_now();
        for ward in &mut wards {
            match &ward.state {
                State::Due(at) if *at <= now => ward.start(),
                State::Adopted(process) if !process.alive() => ward.ended(None),
                _ => {}
            }
        }
        tokio::select! {
            ended = &mut end => {
                ended?;
                break;
            }
            _ = children.recv() => {}
            () = tokio::time::sleep(next_look(&wards)) => {}
        }
    }
    finish(&mut wards, dir).await;
    Ok(())
}

/// When something is due.
fn next_look(wards: &[Ward]) -> Duration {
    let now = boot_now();
    let each = wards.iter().map(|ward| match &ward.state {
        State::Due(at) => at.since(now).to_std(),
        State::Adopted(_) => LOOK,
        State::Child(..) => Duration::from_secs(3600),
    });
    each.min().unwrap_or(LOOK)
}

/// Collects every child that has ended: wards, and what lost its own parent.
fn collect(wards: &mut [Ward]) {
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        let ward = wards.iter_mut().find(|ward| matches!(&ward.state, State::Child(child, _) if *child == pid));
        match ward {
            Some(ward) => ward.ended(Some(status)),
            None => tracing::info!(%pid, "collected a process that had lost its parent"),
        }
    }
}

/// Ends the proxy, then the agents (which end their servers and guards), then whatever is left.
async fn finish(wards: &mut [Ward], dir: Option<&Path>) {
    tracing::info!("asked to end");
    // Agents are asked to end at once: where every node goes there is nobody to hand the primary's role to.
    let agents = if dir.is_some() { ("agent", Signal::INT, AGENTS_END) } else { ("agent", Signal::TERM, HAND_OVER) };
    for (verb, how, at_most) in [("proxy", Signal::TERM, PROXY_END), agents] {
        let of_group = |ward: &&Ward| ward.verb == verb;
        wards.iter().filter(of_group).for_each(|ward| ward.signal(how));
        let begun = boot_now();
        collect_ended(wards);
        while wards.iter().filter(of_group).any(Ward::runs) && boot_now().since(begun).to_std() < at_most {
            tokio::time::sleep(Duration::from_millis(20)).await;
            collect_ended(wards);
        }
        for ward in wards.iter().filter(of_group).filter(|ward| ward.runs()) {
            tracing::error!(daemon = %ward.name, "did not end in time; killing it");
            ward.signal(Signal::KILL);
        }
    }
    let (killed, left) = dir.map(processes::kill_leftovers).unwrap_or_default();
    for process in killed {
        tracing::warn!(pid = %process.pid, what = %process.what, "was left over; killed");
    }
    for process in left {
        tracing::error!(pid = %process.pid, what = %process.what, "can not be ended");
    }
    for ward in wards {
        // Absent if it was never started.
        let _ = std::fs::remove_file(&ward.pid_file);
    }
    tracing::info!("everything has ended");
}

/// As `collect`, but nothing is started again.
fn collect_ended(wards: &mut [Ward]) {
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        let ward = wards.iter_mut().find(|ward| matches!(&ward.state, State::Child(child, _) if *child == pid));
        if let Some(ward) = ward {
            let (code, signal) = (status.exit_status(), status.terminating_signal());
            tracing::info!(daemon = %ward.name, ?code, ?signal, "ended");
            ward.state = State::Due(Moment(u64::MAX));
        }
    }
}
