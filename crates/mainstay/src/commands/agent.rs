//! `mainstay agent`: one node's control, until SIGTERM; then the primary's role is handed over, and server and guard are ended in
//! order. SIGHUP replaces it by the program on disk: new program, new certificates, the file read again, the server untouched.

use crate::cli::Agent;
use crate::failure::{Failure, Outcome};
use crate::local::user;
use crate::target::Target;
use mainstay_agent::{AgentOptions, Ended, NodeRemoved, Signal};
use mainstay_model::NodeId;
use mainstay_model::layout::NodeLayout;
use mainstay_net::{Credentials, NetError};
use mainstay_ports::priority;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// None: the loop and all that feeds it share the main thread, since handing work to and fro is most of what an idle agent costs.
/// What may wait on a disk has threads of its own.
const WORKERS: usize = 0;
/// An agent that was asked to end has ended after this, whatever hangs.
const FORCE_END: Duration = Duration::from_secs(60);

/// Runs the agent.
///
/// # Errors
/// When the file, the node or the node's files do not allow it, or the agent can not go on.
pub(crate) fn run(options: &Agent) -> Outcome {
    super::start_log();
    let target = Target::read(&crate::target::absolute(&options.config)?)?;
    super::why::check_node(&target, Some(&options.node))?;
    let layout = layout(&target, &options.node)?;
    let program =
        std::env::current_exe().map_err(|error| Failure::failed(format!("this program is not found: {error}")))?;
    let agent = AgentOptions {
        spec: target.spec,
        config: target.config,
        node: options.node.clone(),
        layout,
        program: program.clone(),
        server_user: user::server_user()?.map(|user| (user.uid, user.gid)),
        os_user: user::me().name,
    };
    let check = Check {
        config: agent.config.clone(),
        layout: agent.layout.clone(),
        node: agent.node.clone(),
        program: program.clone(),
    };
    let mut ended = None;
    let outcome = super::daemon(WORKERS, true, async {
        let signals = follow_signals(check)?;
        ended = Some(mainstay_agent::run(agent, signals).await.map_err(failure)?);
        Ok(())
    });
    let outcome = outcome.and_then(|()| match ended {
        Some(Ended::Restart) => Err(replace(&program)),
        Some(Ended::Removed(by)) => Err(Failure::not_now(format!("this node was removed from the cluster by {by}"))
            .hint("its data are kept; the agent does not start here again until the node is added again")),
        Some(Ended::Stopped) | None => Ok(()),
    });
    if let Err(failure) = &outcome {
        tracing::error!(error = %failure, hint = failure.hint.as_deref().unwrap_or_default(), "the agent ends");
    }
    outcome
}

/// A node that was removed is no failure of its agent; papers that can not be read have a way out.
fn failure(error: anyhow::Error) -> Failure {
    let papers = error.chain().any(|cause| {
        matches!(cause.downcast_ref::<NetError>(), Some(NetError::File { source, .. }) if source.kind() == ErrorKind::NotFound)
    });
    match error.downcast::<NodeRemoved>() {
        Ok(removed) => Failure::not_now(removed.to_string()),
        Err(error) if papers => Failure::from(error).hint(
            "this node's keys are made anew: `mainstay pki issue NODE` where the authority is, then `mainstay join --again` here; its data \
             are kept",
        ),
        Err(error) => Failure::from(error),
    }
}

/// Becomes the program that now lies where this one lay, with the same arguments and process number. Returns only if that fails.
fn replace(program: &Path) -> Failure {
    tracing::info!(program = %program.display(), "the program on disk takes over");
    // What follows takes what it finds for the ordinary priority.
    let replaced = || Command::new(program).arg0("mainstay").args(std::env::args_os().skip(1)).exec();
    let error = priority::ordinarily(replaced);
    Failure::failed(format!("{} can not be started: {error}", program.display()))
        .hint("put a working program there and start the agent again; its server runs on until its lease has run out")
}

/// SIGTERM: hand over and end. SIGINT: end at once. SIGHUP: be replaced. A later signal of a higher rank counts.
fn follow_signals(check: Check) -> Outcome<watch::Receiver<Signal>> {
    let wrong = |error: std::io::Error| Failure::failed(format!("signals can not be waited for: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(wrong)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(wrong)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(wrong)?;
    let (asked, heard) = watch::channel(Signal::Run);
    tokio::spawn(async move {
        loop {
            let new = tokio::select! {
                _ = terminate.recv() => Signal::HandOver,
                _ = interrupt.recv() => Signal::Stop,
                _ = hang_up.recv() => Signal::Restart,
            };
            tracing::info!(asked = ?new, "a signal");
            if new == Signal::Restart && !check.passes().await {
                continue;
            }
            if new != Signal::Restart {
                end_by_force_later();
            }
            asked.send_if_modified(|held| {
                let more = new > *held;
                *held = new.max(*held);
                more
            });
        }
    });
    Ok(heard)
}

/// What must be in order before a running agent gives its place up.
#[derive(Clone)]
struct Check {
    config: PathBuf,
    layout: NodeLayout,
    node: NodeId,
    program: PathBuf,
}

impl Check {
    async fn passes(&self) -> bool {
        let check = self.clone();
        let checked = tokio::task::spawn_blocking(move || check.look()).await;
        let Ok(Err(failure)) = checked else { return checked.is_ok() };
        tracing::error!(error = %failure, "not restarted: mend this and send SIGHUP again; nothing has changed");
        false
    }

    fn look(&self) -> Outcome {
        let target = Target::read(&self.config)?;
        super::why::check_node(&target, Some(&self.node))?;
        let layout = &self.layout;
        Credentials::load(&target.spec.cluster.name, &layout.ca_cert(), &layout.node_cert(), &layout.node_key())
            .map_err(|error| Failure::failed(error.to_string()))?;
        let version = Command::new(&self.program).arg("--version").stdin(Stdio::null()).output();
        match version {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(Failure::failed(format!("{} does not run: {}", self.program.display(), output.status))),
            Err(error) => Err(Failure::failed(format!("{} does not run: {error}", self.program.display()))),
        }
    }
}

/// Whatever hangs, the process ends. Its guard keeps the server's deadline all the same.
fn end_by_force_later() {
    let waits = std::thread::Builder::new().name("end".to_owned()).spawn(|| {
        std::thread::sleep(FORCE_END);
        tracing::error!("the end took too long; ending by force");
        std::process::exit(i32::from(crate::failure::FAILED));
    });
    drop(waits);
}

/// Where a node of this host keeps its files.
pub(super) fn layout(target: &Target, name: &NodeId) -> Outcome<NodeLayout> {
    let node = target.spec.node(name);
    let dir = node.and_then(|node| node.dir.clone());
    let dir = dir.unwrap_or_else(|| PathBuf::from("/var/lib/mainstay").join(target.spec.cluster.name.as_str()));
    if dir.is_dir() {
        return Ok(NodeLayout::new(dir));
    }
    Err(Failure::failed(format!("the directory of node {} does not exist: {}", name, dir.display()))
        .hint("`mainstay join` makes it on this host (`mainstay up` for a cluster on one machine); or correct `dir` in the file"))
}
