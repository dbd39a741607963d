//! A restore drill: a copy of the cluster at a random moment of the past is made beside this node's data, recovered, looked at, and removed.
//! It proves that the repository can be restored, how long that takes, and that the copy is sound (docs/adr/0032).
//!
//! It runs in the place of a backup: under the same lock, one in the cluster, in a thread of low priority. The copy is removed whatever happens,
//! after a crash by the next life of the agent.

use crate::setup::AgentOptions;
use mainstay_model::spec::Vault;
use mainstay_model::vault::{BackupRunning, DrillDone};
use mainstay_model::{NodeId, Room, SystemId};
use mainstay_ports::clock::{boot_now, wall_now_ms};
use mainstay_ports::priority;
use mainstay_vault::postgres::backup::{self, Watch};
use mainstay_vault::postgres::restore::{Destination, Plan, Target, plan, restore, time_text};
use mainstay_vault::postgres::scratch::{self, Scratch};
use mainstay_vault::repository::{Repository, VaultError};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::sleep;
use tracing::warn;

/// What a program says is cut here.
const SAID_MAX: usize = 600;
/// What is wrong is cut here: it goes into the store, and each status.
const PROBLEM_MAX: usize = 1000;
/// No number is longer.
const NUMBER_MAX: usize = 40;

/// Where copies are made.
#[derive(Clone, Debug)]
pub struct Place {
    /// A directory of its own.
    pub dir: PathBuf,
    /// To whom the server's files belong.
    pub owner: Option<(u32, u32)>,
}

impl Place {
    /// Of this agent.
    #[must_use]
    pub fn of(options: &AgentOptions) -> Place {
        Place { dir: options.layout.restore_drill(), owner: options.server_user }
    }

    fn copy(&self) -> PathBuf {
        self.dir.join("copy")
    }

    /// Removes whatever lies there, and ends a server that runs on it.
    pub fn clear(&self) {
        let cleared = scratch::end_left_over(&self.copy()).map_err(|error| error.to_string());
        let cleared = cleared.and_then(|()| match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        });
        if let Err(why) = cleared {
            warn!(dir = %self.dir.display(), %why, "what is left of a restore drill can not be removed");
        }
    }

    /// A directory that the server's user may pass.
    fn make(&self) -> Result<(), VaultError> {
        use std::os::unix::fs::{DirBuilderExt, lchown};
        let wrong = |error| VaultError::File { path: self.dir.display().to_string(), error };
        std::fs::DirBuilder::new().mode(0o700).create(&self.dir).map_err(wrong)?;
        self.owner.map_or(Ok(()), |(user, group)| lchown(&self.dir, Some(user), Some(group))).map_err(wrong)
    }
}

/// What a drill works with.
#[derive(Clone, Debug)]
pub struct Job {
    /// This node.
    pub node: NodeId,
    /// Who asked.
    pub by: String,
    /// Where the copy is made.
    pub place: Place,
    /// The database.
    pub system: SystemId,
    /// The server's programs.
    pub bin: PathBuf,
    /// A random number: which moment.
    pub chance: u64,
    /// How long it may take.
    pub most: Duration,
}

/// One that came to nothing before it could say anything itself.
#[must_use]
pub fn failed(running: &BackupRunning, why: &str) -> DrillDone {
    DrillDone {
        token: running.token,
        node: Some(running.node.clone()),
        by: running.by.clone(),
        begun_ms: running.begun_ms,
        ended_ms: wall_now_ms(),
        problem: Some(problem(why)),
        repository: running.to.clone(),
        ..DrillDone::default()
    }
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// What is wrong, as it is kept.
#[must_use]
pub fn problem(why: &str) -> String {
    cut(why, PROBLEM_MAX)
}

/// Kind and text of the event.
#[must_use]
pub fn told(done: &DrillDone) -> (&'static str, String) {
    let moment = done.asked.map_or_else(|| "the end of the backup".to_owned(), time_text);
    let (write, recover) = (done.write_ms / 1000, done.recover_ms / 1000);
    match &done.problem {
        None => (
            "drill-passed",
            format!(
                "{moment} was restored from {}: {} bytes in {write} s, recovered in {recover} s; {}",
                done.backup,
                done.bytes,
                done.checked.join("; ")
            ),
        ),
        Some(why) => ("drill-failed", format!("{moment} could not be restored from {}: {why}", done.backup)),
    }
}

/// Holds it. The copy is gone afterwards.
#[must_use]
pub fn hold(repository: &Repository, vault: &Vault, job: &Job, watch: &Arc<Watch>) -> DrillDone {
    priority::lower();
    let begun = boot_now();
    job.place.clear();
    let mut done =
        DrillDone { node: Some(job.node.clone()), by: job.by.clone(), begun_ms: wall_now_ms(), ..DrillDone::default() };
    let result = steps(repository, vault, job, watch, &mut done);
    job.place.clear();
    let late = u128::from(boot_now().since(begun).0) >= job.most.as_millis();
    done.problem = result.err().map(|error| match late {
        true => {
            problem(&format!("it was ended after {} minutes (vault.drill_minutes): {error}", job.most.as_secs() / 60))
        }
        false => problem(&error.to_string()),
    });
    done.ended_ms = wall_now_ms();
    done
}

fn steps(
    repository: &Repository,
    vault: &Vault,
    job: &Job,
    watch: &Arc<Watch>,
    done: &mut DrillDone,
) -> Result<(), VaultError> {
    if !repository.readable() {
        let says = "this host can write to the repository and not read it: hold the drill where the secret key is (`mainstay restore --to DIR`)";
        return Err(VaultError::Impossible(says.to_owned()));
    }
    let made = choose(repository, job)?;
    done.backup.clone_from(&made.base.label);
    done.asked = match made.target {
        Target::Time(micros) => Some(micros),
        _ => None,
    };
    let data = job.place.copy();
    check_room(&made, data.parent().and_then(Path::parent).unwrap_or(Path::new("/")))?;
    job.place.make()?;
    let begun = boot_now();
    let to = Destination {
        data: data.clone(),
        owner: job.place.owner,
        threads: 1,
        watch: Arc::clone(watch),
        ..Destination::default()
    };
    done.bytes = restore(repository, &made, &to)?.written;
    done.write_ms = boot_now().since(begun).0;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| VaultError::Server(format!("no runtime: {error}")))?;
    let ended = async {
        while !watch.stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(300)).await;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            looked = look(vault, job, &made, &data, done) => looked,
            () = ended => Err(VaultError::Server("the time was over".to_owned())),
        }
    })
}

/// A random second between the first backup and what is archived, both on the newest path. By what this repository says itself: what is told of
/// an archive in the store is told some seconds late.
fn choose(repository: &Repository, job: &Job) -> Result<Plan, VaultError> {
    let newest = plan(repository, job.system, Target::Latest, None)?;
    let (backups, _) = backup::readable(repository, job.system)?;
    let on_path = backups
        .iter()
        .filter(|backup| newest.path.contains(backup.stop, newest.timeline, mainstay_model::Lsn(u64::MAX)));
    let first = on_path.map(|backup| backup.ended).min().unwrap_or(newest.base.ended);
    let target = moment(first, newest.brought, job.chance).map_or(Target::Immediate, Target::Time);
    plan(repository, job.system, target, None)
}

/// A whole second between two moments, microseconds since 1970; `None`: there is none.
fn moment(first: i64, last: i64, chance: u64) -> Option<i64> {
    const SECOND: i64 = 1_000_000;
    // A second of slack: what was archived then was committed before.
    let (from, to) = (first / SECOND + 1, last / SECOND - 1);
    let count = u64::try_from(to - from).ok()?.checked_add(1)?;
    Some((from + i64::try_from(chance % count).ok()?).saturating_mul(SECOND))
}

/// How much is free, if so much must not be written beside the data: their volume must not get into need.
#[must_use]
pub fn too_little(needs: u64, dir: &Path) -> Option<u64> {
    let is = rustix::fs::statvfs(dir).ok()?;
    let (free, size) = (is.f_bavail.saturating_mul(is.f_frsize), is.f_blocks.saturating_mul(is.f_frsize));
    (free < needs || Room::of(free - needs, size).is_some()).then_some(free)
}

fn check_room(made: &Plan, dir: &Path) -> Result<(), VaultError> {
    let needs = made.needs().saturating_add(scratch::log_again(made));
    let Some(free) = too_little(needs, dir) else { return Ok(()) };
    Err(VaultError::Impossible(format!(
        "the copy needs {} MiB in {}, where {} MiB are free, and the data's volume must keep room: make room, or hold the drill by hand on another volume \
         (`mainstay restore --to DIR`)",
        needs >> 20,
        dir.display(),
        free >> 20
    )))
}

/// Has a server recover the copy, and looks at it.
async fn look(vault: &Vault, job: &Job, made: &Plan, data: &Path, done: &mut DrillDone) -> Result<(), VaultError> {
    let begun = boot_now();
    let within = (job.most, Some(job.place.dir.as_path()));
    // The archived log, if it has no hole and holds no commit since, is tried to its end in place of that moment.
    let started = Scratch::start_or_latest(&job.bin, made, data, job.place.owner, within, true).await;
    let (server, instead) = started.map_err(|error| match (error, &made.hole) {
        (VaultError::NothingLater(says), Some(hole)) => {
            VaultError::Server(format!("{says}; the segment {} is missing, and the log goes on after it", hole.segment))
        }
        (VaultError::NothingLater(says), None) => VaultError::Server(says),
        (error, _) => error,
    })?;
    done.recover_ms = boot_now().since(begun).0;
    let reached = server.reached().await?;
    done.reached = Some(reached);
    if reached < made.base.stop.lsn || reached > made.reaches {
        let says = format!("it ended at {reached}, outside of {} to {}", made.base.stop.lsn, made.reaches);
        return Err(VaultError::Server(says));
    }
    done.checked.push(format!("a server recovered it up to {reached} and opened it"));
    let last = server.last_commit().await?;
    let asked = done.asked;
    if instead {
        done.asked = last;
        let says =
            "the log holds no commit after the moment that was chosen: all of it was recovered, up to its last commit";
        done.checked.push(says.to_owned());
    }
    if let Some((last, asked)) = last.zip(asked) {
        if last > asked {
            let says = format!("its last commit is of {}, after the moment {}", time_text(last), time_text(asked));
            return Err(VaultError::Server(says));
        }
        done.checked.push(format!("its last commit is of {}", time_text(last)));
    }
    let names = server.ask("postgres", "select datname from pg_database where datallowconn order by 1").await?;
    let names: Vec<String> = names.into_iter().filter_map(|row| row.into_iter().next()?).collect();
    for name in &names {
        one(&server, name, "select count(*)::text from pg_class").await?;
    }
    done.checked.push(format!("{} databases answer", names.len()));
    amcheck(job, done).await?;
    if let Some(query) = &vault.drill_query {
        let said = one(&server, &vault.drill_database, query).await?;
        if !affirms(&said) {
            // Not repeated: it may be anything that the database holds.
            let says = "vault.drill_query was not answered true or a number above 0";
            return Err(VaultError::Server(says.to_owned()));
        }
        done.checked.push(format!("vault.drill_query was answered {:?}", cut(&said, NUMBER_MAX)));
    }
    server.stop().await
}

/// The first column of the first row.
async fn one(server: &Scratch, database: &str, query: &str) -> Result<String, VaultError> {
    let rows = server.ask(database, query).await?;
    Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten().unwrap_or_default())
}

/// True, or a number above 0.
fn affirms(said: &str) -> bool {
    matches!(said, "t" | "true") || said.parse::<f64>().is_ok_and(|number| number > 0.0)
}

/// Reads every table and index of the copy, if the package has the program for it.
async fn amcheck(job: &Job, done: &mut DrillDone) -> Result<(), VaultError> {
    let program = job.bin.join("pg_amcheck");
    if !program.is_file() {
        done.checked.push("pg_amcheck is not installed: tables and indexes were not read".to_owned());
        return Ok(());
    }
    let mut command = tokio::process::Command::new(&program);
    command.args(["--all", "--install-missing", "--no-password", "--username=postgres", "--host"]).arg(&job.place.dir);
    command.env_clear().env("LC_ALL", "C").env("PGPORT", "5432").stdin(Stdio::null()).kill_on_drop(true);
    let ran = command.output().await.map_err(|error| VaultError::Server(format!("{}: {error}", program.display())))?;
    let said: String = [&ran.stdout[..], &ran.stderr[..]].map(String::from_utf8_lossy).concat();
    let said = cut(&said.trim().replace('\n', " | "), SAID_MAX);
    if !ran.status.success() {
        return Err(VaultError::Server(format!("pg_amcheck ({}): {said}", ran.status)));
    }
    done.checked.push("pg_amcheck found nothing in all tables and indexes".to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_between_can_be_the_moment_and_no_other() {
        let at = |second: i64| second * 1_000_000;
        let all: std::collections::BTreeSet<i64> =
            (0..50).filter_map(|chance| moment(at(10) + 5, at(15) + 7, chance)).collect();
        assert_eq!(all, [11, 12, 13, 14].map(at).into());
        assert_eq!(moment(at(10) + 5, at(12), 7), Some(at(11)));
        assert_eq!(moment(at(10) + 5, at(11), 7), None, "nothing lies between");
        assert_eq!(moment(at(10), at(2), 7), None, "a clock was set back");
    }

    #[test]
    fn an_answer_affirms_or_does_not() {
        assert!(["t", "true", "1", "0.5", "12"].into_iter().all(affirms));
        assert!(["f", "", "0", "-1", "orders"].into_iter().all(|said| !affirms(said)));
    }

    #[test]
    fn what_is_kept_of_a_problem_is_bounded() {
        assert_eq!(problem("no room"), "no room");
        assert_eq!(problem(&"ö".repeat(100_000)).chars().count(), PROBLEM_MAX);
    }

    #[test]
    fn what_a_drill_left_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let place = Place { dir: home.path().join("drill"), owner: None };
        place.clear();
        place.make().unwrap();
        std::fs::create_dir(place.copy()).unwrap();
        // The number may be another program's by now.
        std::fs::write(place.copy().join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        place.clear();
        assert!(!place.dir.exists());
    }
}
