//! Who keeps the agent: systemd, or where there is none a supervisor of our own.

use super::{CONFIG, Task, UNIT, program, systemd, target};
use crate::commands::node_run_dir;
use crate::failure::{Failure, Outcome};
use crate::local::processes::{Process, read_pid, running_agent, wait_gone};
use crate::target::Target;
use mainstay_model::NodeId;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::time::Instant;

/// How long systemd may take for a unit: an agent that hands over ends within a minute.
const SYSTEMCTL: Duration = Duration::from_secs(90);
/// How long an agent may take to be there as a process.
const THERE: Duration = Duration::from_secs(30);
/// How long it may take to end in order.
const GONE: Duration = Duration::from_secs(75);
/// How long an agent may take to begin anew: it looks at file, certificates and program first.
const ANEW: Duration = Duration::from_secs(40);
const UNSEEN: Duration = Duration::from_secs(5);
const EACH: Duration = Duration::from_millis(50);

/// Runs systemctl.
///
/// # Errors
/// What it said.
pub(super) async fn systemctl(arguments: &[&str]) -> Outcome {
    let shown = format!("systemctl {}", arguments.join(" "));
    let mut command = tokio::process::Command::new("systemctl");
    let ended = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(SYSTEMCTL, ended).await {
        Ok(output) => output.map_err(|error| Failure::failed(format!("{shown}: {error}")))?,
        Err(_) => return Err(Failure::failed(format!("{shown} has not ended after {} s", SYSTEMCTL.as_secs()))),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::failed(format!("{shown}: {}", said.trim())).hint(format!("journalctl -u {UNIT} -n 50, on that host")))
}

/// Is somebody at work who starts the agent again?
pub(super) async fn kept(target: &Target) -> bool {
    if systemd() { systemctl(&["is-active", "--quiet", UNIT]).await.is_ok() } else { supervisor(target).is_some() }
}

fn supervisor(target: &Target) -> Option<Process> {
    let pid = read_pid(&node_run_dir(target).join("supervisor.pid"))?;
    Process::daemon(pid, "supervise", Path::new(CONFIG))
}

/// Starts the agent and lets it be kept, now and after the next start of the host.
///
/// # Errors
/// When it is not there in time, with the end of what it said.
pub(crate) async fn start(task: &Task) -> Outcome<Value> {
    let target = target(&task.file)?;
    if systemd() {
        systemctl(&["enable", "--now", UNIT]).await?;
    } else if supervisor(&target).is_none() {
        let mut command = Command::new(program());
        command.arg0("mainstay").args(["supervise", "--config", CONFIG, "--node", task.node.as_str(), "--detach"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        command.spawn().map_err(|error| Failure::failed(format!("{} can not be started: {error}", program())))?;
    }
    let until = Instant::now() + THERE;
    loop {
        if let Some(pid) = running_agent(&task.node, Path::new(CONFIG)) {
            return Ok(json!({ "agent": pid }));
        }
        if Instant::now() >= until {
            let log = "journalctl -u mainstay-agent, or log/agent.log in the node's directory, says why";
            return Err(Failure::failed(format!("the agent of {} does not run", task.node)).hint(log));
        }
        tokio::time::sleep(EACH).await;
    }
}

/// Ends the agent and its server in order, and starts it from the program's place: one that begins anew stays in its old place.
///
/// # Errors
/// When it does not end, or is not there again in time.
pub(crate) async fn restart(task: &Task) -> Outcome<Value> {
    if systemd() {
        systemctl(&["restart", UNIT]).await?;
    } else {
        end(task).await?;
    }
    start(task).await
}

/// Lets the agent begin anew with the program and the file that are there now. Its server goes on.
///
/// # Errors
/// When no agent runs.
pub(crate) async fn reload(task: &Task) -> Outcome<Value> {
    let pid = agent(&task.node)?;
    let before = stack(pid);
    if systemd() {
        systemctl(&["reload", UNIT]).await?;
    } else if let Some(process) = process(pid, &task.node) {
        process.signal(Signal::HUP);
    }
    if std::fs::read_to_string("/proc/sys/kernel/randomize_va_space").is_ok_and(|mode| mode.trim() == "0") {
        // Here a process does not show that it became another program: it gets the time that others take.
        tokio::time::sleep(UNSEEN).await;
        return Ok(json!({ "reloaded": pid }));
    }
    let until = Instant::now() + ANEW;
    while before.is_none() || stack(pid) == before {
        if Instant::now() >= until {
            return Err(Failure::failed(format!("the agent of {} does not begin anew", task.node)).hint(
                "it goes on as it is, and its log says what it found amiss: journalctl -u mainstay-agent, or log/agent.log in the node's directory",
            ));
        }
        tokio::time::sleep(EACH).await;
    }
    Ok(json!({ "reloaded": pid }))
}

/// Where a process's stack begins: another place whenever it becomes another program, the number staying the same.
fn stack(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(25)?.parse().ok().filter(|place| *place > 0)
}

fn agent(node: &NodeId) -> Outcome<u32> {
    running_agent(node, Path::new(CONFIG)).ok_or_else(|| Failure::failed(format!("no agent of {node} runs here")))
}

fn process(pid: u32, node: &NodeId) -> Option<Process> {
    Process::daemon(i32::try_from(pid).ok()?, "agent", Path::new(node.as_str()))
}

/// Ends the agent of a node that was taken out, and lets it not be started again. Data and certificates stay.
///
/// # Errors
/// When it does not end. A host that is another node's by now is left as it is, and the answer says so.
pub(crate) async fn retire(task: &Task) -> Outcome<Value> {
    let cluster = target(&task.file)?.spec.cluster.name.to_string();
    if let Err(why) = whose(task.node.as_str(), &cluster, super::named().as_deref(), super::config_of().as_deref()) {
        return Ok(json!({ "retired": false, "why": why }));
    }
    end(task).await?;
    if systemd() {
        // An agent that was taken out has ended with a status of its own, which systemd calls a failure and would show for ever.
        let _ = systemctl(&["reset-failed", UNIT]).await;
    }
    Ok(json!({ "retired": true }))
}

/// Ends the agent, and whoever keeps it.
async fn end(task: &Task) -> Outcome {
    let agent = running_agent(&task.node, Path::new(CONFIG)).and_then(|pid| process(pid, &task.node));
    if systemd() {
        systemctl(&["disable", "--now", UNIT]).await?;
    } else if let Some(supervisor) = target(&task.file).ok().as_ref().and_then(supervisor) {
        supervisor.signal(Signal::TERM);
        if !gone(vec![supervisor]).await {
            return Err(Failure::failed("the supervisor does not end"));
        }
    }
    let ended = match agent {
        Some(agent) => gone(vec![agent]).await,
        None => true,
    };
    if ended { Ok(()) } else { Err(Failure::failed("the agent does not end")) }
}

/// The unit, and whoever keeps the agent, are the host's: they are this node's only as long as settings and file say so.
fn whose(node: &str, cluster: &str, named: Option<&str>, config_of: Option<&str>) -> Result<(), String> {
    if (named, config_of) == (Some(node), Some(cluster)) {
        return Ok(());
    }
    let what = match (named, config_of) {
        (Some(named), Some(of)) => format!("it is {named} of the cluster {of}"),
        _ => "its settings and its file do not say whose it is".to_owned(),
    };
    Err(format!("its host is not {node} of the cluster {cluster} any more ({what}): nothing was done there"))
}

async fn gone(processes: Vec<Process>) -> bool {
    tokio::task::spawn_blocking(|| wait_gone(processes, GONE).is_empty()).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::whose;

    #[test]
    fn only_the_nodes_own_host_is_its() {
        assert!(whose("db3", "orders", Some("db3"), Some("orders")).is_ok());
        for (named, of) in
            [(Some("db3"), Some("bills")), (Some("db4"), Some("orders")), (None, Some("orders")), (Some("db3"), None)]
        {
            let refused = whose("db3", "orders", named, of).unwrap_err();
            assert!(refused.contains("nothing was done there"), "{refused}");
        }
    }
}
