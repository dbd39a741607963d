//! `mainstay agent`: one node's control, until SIGTERM; then its server and guard are ended in order.

use crate::cli::Agent;
use crate::failure::{Failure, Outcome};
use crate::local::user;
use crate::target::Target;
use mainstay_agent::AgentOptions;
use mainstay_model::layout::NodeLayout;
use std::path::PathBuf;
use tokio::sync::watch;

/// None: the loop and all that feeds it share the main thread, since handing work to and fro is most of what an idle agent costs.
/// What may wait on a disk has threads of its own.
const WORKERS: usize = 0;

/// Runs the agent.
///
/// # Errors
/// When the file, the node or the node's files do not allow it, or the agent can not go on.
pub(crate) fn run(options: &Agent) -> Outcome {
    super::start_log();
    let target = Target::read(&crate::target::absolute(&options.config)?)?;
    super::why::check_node(&target, Some(&options.node))?;
    let layout = layout(&target, options)?;
    let program =
        std::env::current_exe().map_err(|error| Failure::failed(format!("this program is not found: {error}")))?;
    let agent = AgentOptions {
        spec: target.spec,
        node: options.node.clone(),
        layout,
        program,
        server_user: user::server_user()?.map(|user| (user.uid, user.gid)),
        os_user: user::me().name,
    };
    let outcome = super::daemon(WORKERS, async {
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            let _ = super::end_signal().await;
            tracing::info!("asked to end");
            stop.send_replace(true);
            // The sender must live as long as the agent: a dropped one would say nothing.
            std::future::pending::<()>().await;
        });
        mainstay_agent::run(agent, stopped).await.map_err(Failure::from)
    });
    if let Err(failure) = &outcome {
        tracing::error!(error = %failure, "the agent ends");
    }
    outcome
}

fn layout(target: &Target, options: &Agent) -> Outcome<NodeLayout> {
    let node = target.spec.node(&options.node);
    let dir = node.and_then(|node| node.dir.clone());
    let dir = dir.unwrap_or_else(|| PathBuf::from("/var/lib/mainstay").join(target.spec.cluster.name.as_str()));
    if dir.is_dir() {
        return Ok(NodeLayout::new(dir));
    }
    Err(Failure::failed(format!("the directory of node {} does not exist: {}", options.node, dir.display()))
        .hint("`mainstay up` makes it on this machine; check `dir` in the file"))
}
