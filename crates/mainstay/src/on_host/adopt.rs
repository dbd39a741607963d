//! Bringing an existing server's data to a node (docs/adr/0037), and those of its standbys (docs/adr/0045): looked at once more, the server stopped in
//! order and not started again there, one rename. Goes on from wherever an earlier run has ended; nothing is copied, and nothing is removed.

use super::around::{at_work, mounts, strangers};
use super::claim::until_claimed;
use super::existing::{
    control, is_enabled, links, managers, no_data, noted, occupied, postmaster, psql, start_conf, unit,
};
use super::{Task, systemd, target};
use crate::failure::{Failure, Outcome};
use mainstay_model::adoption::Adoption;
use mainstay_model::layout::NodeLayout;
use mainstay_model::shell::quote;
use mainstay_model::spec::Spec;
use mainstay_model::{NodeId, SystemId};
use mainstay_net::write_file;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::time::Instant;

/// How long a checkpoint may take while clients still work: what it writes need not be written while they are away.
const CHECKPOINT: Duration = Duration::from_secs(600);
/// How long the server may take to stop.
const STOP: Duration = Duration::from_secs(600);
const EACH: Duration = Duration::from_millis(100);
/// How long a unit whose server is gone may take to be stopped: clients may wait.
const SETTLE: Duration = Duration::from_secs(5);
/// The same where nobody waits for it: the unit is the first argument.
const LATER: &str = "timeout 90 systemctl stop \"$1\"; timeout 10 systemctl reset-failed \"$1\"";
/// How far behind a standby may be when its primary is told to stop, in bytes, and how long it may take to come that near.
const BEHIND: i64 = 16 << 20;
const FOLLOW: Duration = Duration::from_secs(120);

/// What is to be brought.
#[derive(Serialize, Deserialize)]
pub(crate) struct Bring {
    /// To which node.
    pub(crate) task: Task,
    /// The identity of the data, as they were looked at.
    pub(crate) system: SystemId,
    /// How much of it.
    pub(crate) part: Part,
    /// The slots through which its standbys follow it.
    pub(crate) slots: Vec<String>,
}

/// With standbys their primary is stopped, then they are stopped and moved, then the primary's data are: as soon as these are a node's, its agent
/// makes the first copy of them, and the others look for theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Part {
    /// All of it.
    #[default]
    Whole,
    /// A standby is looked at once more, and has little left to write: nobody waits yet.
    Ready,
    /// The primary is stopped.
    Stop,
    /// It was: its data are moved.
    Move,
    /// A standby is stopped, and its data are moved.
    Standby,
}

impl Part {
    fn of_standby(self) -> bool {
        matches!(self, Part::Ready | Part::Standby)
    }

    /// How long the server may take to stop. Clients wait while a standby does: it is left to itself rather than that they wait for long.
    fn stop(self) -> Duration {
        if self.of_standby() { STOP / 10 } else { STOP }
    }

    /// In the words of `pg_controldata`.
    fn ends(self) -> &'static str {
        if self.of_standby() { "shut down in recovery" } else { "shut down" }
    }
}

/// Lets systemd forget that the old server's unit has failed. Nothing is stopped: somebody may use the unit for something else by now.
async fn forgive(layout: &NodeLayout) {
    let Some(unit) = noted(layout).and_then(|noted| noted.unit).filter(|_| systemd()) else { return };
    let _ = tokio::time::timeout(SETTLE, super::service::systemctl(&["reset-failed", &unit])).await;
}

/// Where everything is.
struct Places {
    spec: Spec,
    node: NodeId,
    layout: NodeLayout,
    directory: PathBuf,
    major: u64,
    part: Part,
}

/// Brings the data.
///
/// # Errors
/// When they are not what was looked at, the cluster is not ready for them, or the server does not stop: then its data are where they were.
pub(crate) async fn bring(bring: &Bring) -> Outcome<Value> {
    let target = target(&bring.task.file)?;
    let node = target.spec.node(&bring.task.node).ok_or_else(|| Failure::usage("the file does not list the node"))?;
    let layout = NodeLayout::new(target.spec.node_dir(node));
    let named = if bring.part.of_standby() { &node.adopt_standby } else { &node.adopt };
    let Some(directory) = named.clone() else {
        return Err(Failure::usage(format!("the file names no server to adopt for {}", node.name)));
    };
    if layout.adopted().exists() || (layout.data().join("PG_VERSION").exists() && no_data(&directory).is_some()) {
        // An earlier run may have ended between the rename and this.
        forgive(&layout).await;
        return Ok(json!({ "adopted": false, "why": "its data are there" }));
    }
    if let Some(why) = no_data(&directory) {
        return Err(Failure::failed(format!("{} {why}", directory.display())).hint("nothing was touched"));
    }
    let version = std::fs::read_to_string(directory.join("PG_VERSION")).unwrap_or_default();
    let major = version.trim().parse().unwrap_or(0);
    let (node, part) = (node.name.clone(), bring.part);
    let places = Places { node, spec: target.spec.clone(), layout, directory, major, part };
    places.check(bring.system).await?;
    places.movable()?;
    places.alone()?;
    if part == Part::Ready {
        places.checkpoint().await;
        return Ok(json!({ "adopted": false, "ready": true }));
    }
    let fresh = places.note(bring.system, &bring.slots).await?;
    let interrupted = !fresh && postmaster(&places.directory).is_none();
    let ready = places.ready(fresh).await;
    // An earlier run has stopped it: how it comes back is to be said.
    ready.map_err(|failure| if interrupted { places.back(failure) } else { failure })?;
    // A standby that can not be brought is left as it is, and nothing of it is to be undone.
    let back = |failure| if part.of_standby() { failure } else { places.back(failure) };
    let pid = places.stop().await.map_err(back)?;
    if part == Part::Stop {
        places.in_order(bring.system).await.map_err(back)?;
        return Ok(json!({ "adopted": false, "stopped": pid }));
    }
    places.rename(bring.system).await.map_err(back)?;
    places.settle().await;
    Ok(json!({ "adopted": true, "stopped": pid }))
}

impl Places {
    /// The data must be those that were looked at.
    async fn check(&self, system: SystemId) -> Outcome {
        let shown = self.directory.display();
        let control = control(&self.spec, &self.directory, self.major).await;
        let control = control.map_err(|why| Failure::failed(format!("{shown}: {why}")).hint("nothing was touched"))?;
        let before = noted(&self.layout).map(|noted| noted.system);
        if control.system != system || before.is_some_and(|before| before != system) {
            let what = format!(
                "{shown} holds other data than those that were looked at (system identifier {})",
                control.system
            );
            return Err(Failure::failed(what).hint("nothing was touched; look at them, then apply again"));
        }
        if self.part.of_standby() && !control.state.ends_with("recovery") {
            return Err(Failure::failed(format!(
                "the server of {shown} is no standby any more: it is {}",
                control.state
            ))
            .hint("nothing was touched; was it promoted?"));
        }
        Ok(())
    }

    /// Nothing is in the way of the rename, and nobody of the stop: that is found while clients are served.
    fn alone(&self) -> Outcome {
        let shown = self.directory.display();
        let untouched =
            |what: String| Failure::failed(what).hint("this run has touched nothing; mend it, then apply again");
        if let Some(mount) = mounts(&self.directory).first() {
            return Err(untouched(format!("a file system is mounted at {mount}: it does not go with {shown}")));
        }
        if let Some((name, target)) = links(&self.directory).first() {
            return Err(untouched(format!("{name} in {shown} leads to {target}: that does not go with it")));
        }
        if let Some(manager) = managers().first() {
            return Err(untouched(format!("{manager} runs here: it would start the server of {shown} again")));
        }
        if let Some(mount) = mounts(&self.layout.data()).first() {
            return Err(untouched(format!("a file system is mounted at {mount}, where the data of {shown} will lie")));
        }
        if let Some(place) = occupied(&self.layout) {
            return Err(untouched(format!("{place}, where the data of {shown} will lie, is not empty")));
        }
        let server = postmaster(&self.directory);
        match server.and_then(|server| strangers(&self.directory, server).into_iter().next()) {
            Some(stranger) => Err(untouched(format!("{stranger} works in {shown} and is not of its server"))),
            None => Ok(()),
        }
    }

    /// A directory of no meaning goes the way that the data will go: whether it can be gone is known before anybody is away.
    fn movable(&self) -> Outcome {
        let above = self.directory.parent().unwrap_or(Path::new("/"));
        let name = format!(".mainstay-probe-{}", std::process::id());
        let (there, here) = (above.join(&name), self.layout.dir().join(&name));
        let tried = std::fs::create_dir(&there).and_then(|()| std::fs::rename(&there, &here));
        let _ = (std::fs::remove_dir(&there), std::fs::remove_dir(&here));
        tried.map_err(|error| {
            let (from, to) = (above.display(), self.layout.dir().display());
            Failure::failed(format!("nothing can be moved from {from} to {to} in one step: {error}"))
                .hint("give the node a `dir` on the file system of the data; nothing was touched")
        })
    }

    /// The old server goes on until the cluster is there for its data. What is noted before makes this node's engine wait for them.
    async fn until_claimed(&self, fresh: bool) -> Outcome {
        let claimed = until_claimed(&self.node).await;
        if claimed.is_err() && fresh {
            // Nothing was touched, and there is nothing to be undone.
            drop(std::fs::remove_file(self.layout.adoption()));
        }
        claimed
    }

    /// What is done from here on can be undone by what stands there. Was it noted only now?
    async fn note(&self, system: SystemId, slots: &[String]) -> Outcome<bool> {
        let now = self.kept_now(system, slots).await;
        let Some(before) = noted(&self.layout) else {
            self.keep(&now)?;
            return Ok(true);
        };
        if before.directory != self.directory {
            let what = format!(
                "the adoption of {} was begun, not that of {}",
                before.directory.display(),
                self.directory.display()
            );
            return Err(Failure::failed(what)
                .hint("name that one, or take it back first (docs/adopt.md), and remove agent/adopted.json"));
        }
        let renewed = before.clone().renewed(now, mainstay_engine_postgres::without_owned);
        if renewed != before {
            self.keep(&renewed)?;
        }
        Ok(false)
    }

    /// How the server is kept.
    async fn kept_now(&self, system: SystemId, slots: &[String]) -> Adoption {
        let start_conf = start_conf(&self.directory).and_then(|path| {
            let said = std::fs::read_to_string(&path).ok()?;
            Some((path, said))
        });
        let unit = match postmaster(&self.directory) {
            Some(pid) => unit(pid).await,
            None => None,
        };
        Adoption {
            directory: self.directory.clone(),
            system,
            enabled: match &unit {
                Some(unit) => is_enabled(unit).await,
                None => false,
            },
            unit,
            start_conf,
            slots: slots.to_vec(),
            auto_conf: std::fs::read_to_string(self.directory.join("postgresql.auto.conf")).ok(),
        }
    }

    fn keep(&self, adoption: &Adoption) -> Outcome {
        let text = serde_json::to_vec_pretty(adoption).map_err(|error| Failure::failed(error.to_string()))?;
        write_file(&self.layout.adoption(), &text, 0o600, None, true).map_err(crate::local::keys::net).map(drop)
    }

    /// Waits for the cluster. What takes long comes while clients are served; after it everything is looked at once more, so that an old view stops no server.
    async fn ready(&self, fresh: bool) -> Outcome {
        match self.part {
            // Its primary has ended, for which all that follows was waited for.
            Part::Standby => return Ok(()),
            Part::Move => return self.until_claimed(false).await,
            Part::Whole | Part::Stop | Part::Ready => {}
        }
        self.until_claimed(fresh).await?;
        if postmaster(&self.directory).is_some() {
            self.checkpoint().await;
        }
        if self.part == Part::Stop {
            self.followed().await?;
        }
        self.alone()?;
        self.until_claimed(false).await
    }

    /// Sees to it that its own means do not start it again.
    async fn disable(&self, noted: &Adoption, unit: Option<&str>) -> Outcome {
        if let Some((path, _)) = &noted.start_conf {
            write_file(path, b"disabled\n", 0o644, None, true).map_err(crate::local::keys::net)?;
        }
        let units: BTreeSet<&str> = noted.unit.as_deref().into_iter().chain(unit).filter(|_| systemd()).collect();
        for unit in &units {
            // An instance that Debian's generator enabled has nothing to be disabled: its file says it.
            let _ = super::service::systemctl(&["disable", unit]).await;
        }
        if noted.start_conf.is_some() && !units.is_empty() {
            let _ = super::service::systemctl(&["daemon-reload"]).await;
        }
        Ok(())
    }

    /// Stops the server in order.
    async fn stop(&self) -> Outcome<Option<u32>> {
        let Some(noted) = noted(&self.layout) else { return Err(Failure::failed("what is to be undone is not noted")) };
        let pid = postmaster(&self.directory);
        // Who keeps it now: somebody may have started it by other means since that was noted.
        let unit = match pid {
            Some(pid) => unit(pid).await,
            None => None,
        };
        self.disable(&noted, unit.as_deref()).await?;
        match (pid, unit) {
            // Its own supervisor stops it, or it would start it again.
            (Some(pid), Some(unit)) => {
                super::service::systemctl(&["stop", "--no-block", &unit]).await?;
                // A unit of one's own may ask for a stop that waits for clients, and is killed when that takes too long.
                let _ = self.interrupt(pid);
            }
            (Some(pid), None) => self.interrupt(pid)?,
            (None, _) => {}
        }
        let until = Instant::now() + self.part.stop();
        while postmaster(&self.directory).is_some() || !at_work(&self.directory).is_empty() {
            if Instant::now() >= until {
                let left = at_work(&self.directory);
                let what = format!(
                    "the server of {} has not ended after {} s (processes {left:?})",
                    self.directory.display(),
                    self.part.stop().as_secs()
                );
                return Err(Failure::failed(what)
                    .hint("it was told to stop, and nothing was moved; see its log for what it waits for"));
            }
            tokio::time::sleep(EACH).await;
        }
        Ok(pid)
    }

    /// While clients still work, so that the stop has little to write. A failure costs time, nothing else.
    async fn checkpoint(&self) {
        let Ok(mut psql) = psql(&self.spec, &self.directory, self.major) else { return };
        let asked = psql.args(["-c", "checkpoint"]).stdin(Stdio::null()).kill_on_drop(true).output();
        drop(tokio::time::timeout(CHECKPOINT, asked).await);
    }

    /// The stop waits until every standby has all of the log: that is to be little.
    async fn followed(&self) -> Outcome {
        if postmaster(&self.directory).is_none() {
            return Ok(());
        }
        let until = Instant::now() + FOLLOW;
        loop {
            let sql = "select coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn)), 0)::bigint from pg_stat_replication";
            let asked = match psql(&self.spec, &self.directory, self.major) {
                Ok(mut psql) => {
                    let asked = psql.args(["-c", sql]).stdin(Stdio::null()).kill_on_drop(true).output();
                    tokio::time::timeout(EACH * 100, asked).await.ok().and_then(Result::ok)
                }
                Err(_) => None,
            };
            let behind = asked.and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse::<i64>().ok());
            if behind.is_some_and(|behind| behind < BEHIND) {
                return Ok(());
            }
            if Instant::now() >= until {
                let by = behind.map_or("an unknown amount".into(), |behind| format!("{} MB", behind >> 20));
                let what =
                    format!("a standby of {} is {by} behind: its stop would wait for that", self.directory.display());
                return Err(Failure::failed(what).hint(
                    "nothing was stopped; let it catch up, or take its adopt_standby out and stop it, then apply again",
                ));
            }
            tokio::time::sleep(EACH * 10).await;
        }
    }

    /// "Fast": clients are ended, and a shutdown checkpoint is written.
    fn interrupt(&self, pid: u32) -> Outcome {
        let wrong = |error: std::io::Error| Failure::failed(format!("process {pid} can not be told to stop: {error}"));
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Failure::failed("no process id"))?;
        let process = pidfd_open(number, PidfdFlags::empty()).map_err(|error| wrong(error.into()))?;
        // The descriptor came first: what works there now is what it names.
        if postmaster(&self.directory) == Some(pid) {
            pidfd_send_signal(&process, Signal::INT).map_err(|error| wrong(error.into()))?;
        }
        Ok(())
    }

    /// The server has ended as it should: all that it acknowledged is on the disk, and its standbys were waited for.
    async fn in_order(&self, system: SystemId) -> Outcome {
        let shown = self.directory.display();
        let control = control(&self.spec, &self.directory, self.major)
            .await
            .map_err(|why| Failure::failed(format!("{shown}: {why}")))?;
        if control.system != system || control.state != self.part.ends() {
            return Err(Failure::failed(format!(
                "the data in {shown} were not shut down in order: they are {}",
                control.state
            )));
        }
        Ok(())
    }

    /// The one step: before it everything is as it was, after it the data are the node's.
    async fn rename(&self, system: SystemId) -> Outcome {
        self.in_order(system).await?;
        let shown = self.directory.display();
        if self.part.of_standby() && !self.directory.join("standby.signal").exists() {
            return Err(Failure::failed(format!("{shown} has no standby.signal: these data are no standby's")));
        }
        for name in ["standby.signal", "recovery.signal", "postmaster.pid"] {
            if self.directory.join(name).exists() && !(self.part.of_standby() && name == "standby.signal") {
                return Err(Failure::failed(format!(
                    "{shown}/{name} is there: somebody uses these data in another way"
                )));
            }
        }
        let to = self.layout.adopted();
        let wrong =
            |error: std::io::Error| Failure::failed(format!("{shown} can not be moved to {}: {error}", to.display()));
        std::fs::rename(&self.directory, &to).map_err(wrong)?;
        for dir in [self.directory.parent(), to.parent()].into_iter().flatten() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(wrong)?;
        }
        Ok(())
    }

    /// Its unit was told to stop, and its server has ended before the unit's own means could end it: systemd calls that a failure, and would show it
    /// for ever.
    async fn settle(&self) {
        let Some(unit) = noted(&self.layout).and_then(|noted| noted.unit).filter(|_| systemd()) else { return };
        if self.part == Part::Standby {
            // Clients are away until the primary's data are moved: nobody waits here, and it goes on when this has ended.
            let mut command = std::process::Command::new("setsid");
            command.args(["sh", "-c", LATER, "settle", &unit]).current_dir("/");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let _ = command.spawn();
            return;
        }
        // The stop that was ordered comes to its end first.
        let _ = tokio::time::timeout(SETTLE, super::service::systemctl(&["stop", &unit])).await;
        forgive(&self.layout).await;
    }

    /// Says how it is undone.
    fn back(&self, failure: Failure) -> Failure {
        let noted = noted(&self.layout);
        let mut ways = vec!["apply again goes on with it; to go back instead, on that host:".to_owned()];
        if self.layout.adopted().exists() {
            let [from, to] = [&self.layout.adopted(), &self.directory].map(|path| quote(&path.display().to_string()));
            ways.push(format!("systemctl stop mainstay-agent; mv {from} {to}"));
        }
        if let Some(noted) = noted {
            ways.extend(noted.undo());
            ways.push(noted.unit.map_or_else(
                || "start it by its own means".into(),
                |unit| format!("systemctl start {}", quote(&unit)),
            ));
        }
        ways.push("docs/adopt.md tells it step by step".to_owned());
        let hint = failure.hint.clone().into_iter().chain(ways).collect::<Vec<_>>().join("\n");
        failure.hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_after_the_first_look_is_seen_before_the_stop() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        let directory = root.join("main");
        for dir in ["main/pg_tblspc", "space", "node"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        let text = "[cluster]\nname = \"orders\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n";
        let spec = mainstay_model::config::parse(text, &[]).unwrap();
        let node = spec.nodes[0].name.clone();
        let places =
            Places { spec, node, layout: NodeLayout::new(root.join("node")), directory, major: 15, part: Part::Whole };
        assert_eq!(places.alone().map_err(|failure| failure.error), Ok(()));
        std::os::unix::fs::symlink(root.join("space"), root.join("main/pg_tblspc/16384")).unwrap();
        let refused = places.alone().unwrap_err();
        assert!(refused.error.contains("pg_tblspc/16384") && refused.hint.unwrap().contains("touched nothing"));
    }
}
