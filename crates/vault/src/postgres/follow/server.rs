//! The server of a copy that follows: how it is started, what it tells, and how it becomes a database of its own.
//!
//! It reaches nobody: it archives nothing, has no primary and no subscriptions, and takes its log from a folder of the copy alone. It listens on a
//! Unix socket in the copy, and elsewhere only where that was asked for.

use super::{MARK, Mark, STATE, TAKEN};
use crate::postgres::backup::{AT_LEAST, Session};
use crate::postgres::place::Place;
use crate::postgres::restore::{LOG_DIR, takes};
use crate::postgres::scratch::{RESERVED_MOST, Scratch, quoted, reserve_after};
use crate::postgres::way;
use crate::repository::VaultError;
use mainstay_model::{Lsn, Position, Timeline};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::Config;

/// How long the server may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a promotion may take once everything is replayed.
const PROMOTION: Duration = Duration::from_secs(300);
/// A promoted copy goes so far beyond the newest timeline that is known: no node of the old cluster has taken that number, nor comes to it.
const BEYOND: u32 = 1000;
/// What was told to the server only for as long as it follows.
const OF_FOLLOWING: [&str; 3] = ["restore_command", "recovery_target_timeline", "wal_retrieve_retry_interval"];

/// Where the server listens besides its socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listen {
    /// Addresses or names as the server takes them; none: nowhere.
    pub addresses: Option<String>,
    /// On this port; it stands in the socket's name too.
    pub port: u16,
}

/// A running server; it ends with this.
pub struct Server(Scratch);

/// How to reach it, as the superuser.
#[derive(Clone, Debug)]
pub struct Contact(Config);

/// What the control file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// A server that starts now begins to read the log here.
    pub redo: Lsn,
    /// On this timeline.
    pub timeline: Timeline,
    /// Its last server ended, or broke off, while it followed.
    pub follows: bool,
    /// What its settings must not undercut.
    pub floors: BTreeMap<String, u32>,
}

/// What a running server tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// It follows still.
    pub follows: bool,
    /// Up to where it has replayed.
    pub replayed: Option<Lsn>,
    /// When the last commit that it replayed was made, microseconds since 1970; `None`: none since it started.
    pub commit: Option<i64>,
    /// It replays no more until it is started with higher settings.
    pub paused: bool,
    /// It has all the log that there is, and waits for more.
    pub waits: bool,
}

/// What a promotion came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The timeline of its own.
    pub timeline: Timeline,
    /// It left the old one here.
    pub fork: Position,
}

/// What the settings of a server are whose data belong to this mark.
fn config(mark: &Mark, data: &Path, socket: &Path, floors: &BTreeMap<String, u32>, listen: &Listen) -> String {
    let mut all: Vec<(String, String)> = [
        ("listen_addresses", listen.addresses.clone().unwrap_or_default()),
        ("port", listen.port.to_string()),
        ("unix_socket_directories", socket.display().to_string()),
        ("hba_file", data.join("mainstay_scratch_hba.conf").display().to_string()),
        ("ident_file", "/dev/null".to_owned()),
        // It must not reach out.
        ("archive_mode", "off".to_owned()),
        ("max_logical_replication_workers", "0".to_owned()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
        ("synchronous_standby_names", String::new()),
        // What the source loads may not be here, and may act on its own.
        ("shared_preload_libraries", String::new()),
        ("hot_standby", "on".to_owned()),
        ("cluster_name", "mainstay follow".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        // Also until it answers it is known what it has taken.
        (
            "restore_command",
            format!("{}; echo '%f' > '{}'; exit 0", takes(data), data.join(LOG_DIR).join(TAKEN).display()),
        ),
        ("recovery_target_timeline", "latest".to_owned()),
        ("wal_retrieve_retry_interval", "1s".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    for name in AT_LEAST {
        let of_backup = mark.settings.get(name).and_then(|value| value.parse::<u32>().ok());
        if let Some(value) = of_backup.max(floors.get(name).copied()) {
            all.push((name.to_owned(), value.to_string()));
        }
    }
    text(&all)
}

fn text(all: &[(String, String)]) -> String {
    all.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name} = '{}'", quoted(value));
        text
    })
}

/// Whom it lets in: whoever may reach its socket, and by password who comes over the network.
fn access(listen: &Listen) -> &'static str {
    if listen.addresses.is_some() {
        "local all all trust\nhost all all all scram-sha-256\n"
    } else {
        "local all all trust\n"
    }
}

/// What the control file of a copy says. No server need run.
///
/// # Errors
/// When it can not be read.
pub async fn control(bin: &Path, data: &Path, user: Option<(u32, u32)>) -> Result<Control, VaultError> {
    let mut command = tokio::process::Command::new(bin.join("pg_controldata"));
    command.arg("-D").arg(data).env_clear().env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    let failed = |says: String| VaultError::Server(format!("{}/pg_controldata: {says}", bin.display()));
    let ran = timeout(ANSWER, command.output()).await;
    let ran = ran.map_err(|_| failed("no answer within 10 s".to_owned()))?.map_err(|e| failed(e.to_string()))?;
    if !ran.status.success() {
        return Err(failed(String::from_utf8_lossy(&ran.stderr).trim().to_owned()));
    }
    let out = String::from_utf8_lossy(&ran.stdout);
    // It prints what it has read all the same.
    if let Some(warning) = out.lines().find(|line| line.starts_with("WARNING")) {
        return Err(failed(format!(
            "{warning}; the control file is damaged: make the copy anew (mainstay follow --again)"
        )));
    }
    parse(&out).ok_or_else(|| failed("its answer is not understood".to_owned()))
}

fn parse(printed: &str) -> Option<Control> {
    let lines = printed.lines().filter_map(|line| line.split_once(':'));
    let values: BTreeMap<&str, &str> = lines.map(|(name, value)| (name.trim(), value.trim())).collect();
    let floor = |name: &&str| {
        let told = name.replace("transactions", "xacts").replace("transaction", "xact");
        Some(((*name).to_owned(), values.get(format!("{told} setting").as_str())?.parse().ok()?))
    };
    let floors = AT_LEAST.iter().filter_map(floor).collect();
    let redo = values.get("Latest checkpoint's REDO location")?.parse().ok()?;
    let follows = values.get("Database cluster state")?.contains("recovery");
    let timeline = Timeline(values.get("Latest checkpoint's TimeLineID")?.parse().ok()?);
    Some(Control { redo, timeline, follows, floors })
}

impl Server {
    /// Starts it. It is not waited for: it answers when it has replayed what the backup needs.
    ///
    /// # Errors
    /// When it can not be started.
    pub fn start(
        bin: &Path,
        (mark, control): (&Mark, &Control),
        data: &Path,
        user: Option<(u32, u32)>,
        listen: &Listen,
    ) -> Result<Server, VaultError> {
        let socket = socket(data);
        Place::open(data, user)?.directory("mainstay_run")?;
        let config = config(mark, data, &socket, &control.floors, listen);
        let mut scratch = Scratch::launch(bin, (data, &socket), user, (&config, access(listen)))?;
        scratch.port = listen.port;
        Ok(Server(scratch))
    }

    /// Why it ended by itself, if it did.
    pub fn ended(&mut self) -> Option<String> {
        self.0.ended()
    }

    /// How to reach it, as the superuser.
    #[must_use]
    pub fn contact(&self) -> Contact {
        Contact(self.0.connect())
    }

    /// What it tells now; what it writes of itself is kept within bounds.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn look(&self) -> Result<Look, VaultError> {
        self.0.trim_log();
        let ask = "select pg_is_in_recovery(), pg_last_wal_replay_lsn(), \
                   (extract(epoch from pg_last_xact_replay_timestamp()) * 1000000)::int8, \
                   case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() = 'paused' end, \
                   exists(select from pg_stat_activity where backend_type = 'startup' and wait_event = 'RecoveryRetrieveRetryInterval')";
        let row = asked(&self.0.connect(), ask).await?;
        let at = |at: usize| row.get(at).and_then(Option::as_deref);
        Ok(Look {
            follows: at(0) == Some("t"),
            replayed: at(1).and_then(|text| text.parse().ok()),
            commit: at(2).and_then(|text| text.parse().ok()),
            paused: at(3) == Some("t"),
            waits: at(4) == Some("t"),
        })
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not end within a minute.
    pub async fn stop(self) -> Result<(), VaultError> {
        self.0.stop().await
    }
}

/// Where its socket is.
fn socket(data: &Path) -> PathBuf {
    data.join("mainstay_run")
}

async fn asked(server: &Config, ask: &str) -> Result<Vec<Option<String>>, VaultError> {
    let answer = async { Session::open(server).await?.row(ask).await };
    let silent = |_| VaultError::Server("the server of the copy does not answer within 10 s".to_owned());
    timeout(ANSWER, answer).await.map_err(silent)?
}

/// The timeline that a promotion takes: beyond all that are known.
#[must_use]
pub fn beyond(mark: &Mark, newest: Timeline) -> Timeline {
    Timeline(newest.max(mark.timeline).0.saturating_add(BEYOND))
}

/// Makes a database of its own of a copy that has replayed what there is, on a timeline beyond all that are known. `newest`: the newest of them.
///
/// # Errors
/// When it is not promoted; then it may be tried again.
pub async fn promote(
    server: &Contact,
    (mark, newest): (&Mark, Timeline),
    data: &Path,
    user: Option<(u32, u32)>,
) -> Result<Promoted, VaultError> {
    let next = beyond(mark, newest);
    if next.0 - mark.timeline.0 > RESERVED_MOST {
        let says =
            format!("the repository holds a timeline {newest}, and this copy is on {}: make it anew", mark.timeline);
        return Err(VaultError::Impossible(says));
    }
    reserve_after(mark.timeline, data, next, user)?;
    let work = async {
        let session = Session::open(&server.0).await?;
        session.row(&format!("select pg_promote(true, {})", PROMOTION.as_secs() - 10)).await?;
        let state = "select pg_is_in_recovery()";
        if session.row(state).await?.first().and_then(Option::as_deref) != Some("f") {
            return Err(VaultError::Server(
                "the server of the copy does not end its recovery; its log says why".to_owned(),
            ));
        }
        // The control file tells the timeline from here on.
        session.client.batch_execute("checkpoint").await.map_err(|e| VaultError::Server(e.to_string()))?;
        let row = session.row("select timeline_id from pg_control_checkpoint()").await?;
        let is = row.first().and_then(Option::as_deref).and_then(|text| text.parse().ok()).map(Timeline);
        if is != Some(next) {
            let is = is.unwrap_or_default();
            return Err(VaultError::Server(format!("the copy is on timeline {is} now, and not on {next}")));
        }
        Ok(())
    };
    let slow = |_| VaultError::Server(format!("the copy was not promoted within {} s", PROMOTION.as_secs()));
    timeout(PROMOTION, work).await.map_err(slow)??;
    Ok(Promoted { timeline: next, fork: fork(data, user, (mark.timeline, next))? })
}

/// Where a promoted copy left the timeline before.
fn fork(data: &Path, user: Option<(u32, u32)>, (left, own): (Timeline, Timeline)) -> Result<Position, VaultError> {
    let log = data.join("pg_wal");
    let name = format!("{:08X}.history", own.0);
    let text = Place::open(&log, user)?.read(&name, 1 << 20)?.unwrap_or_default();
    let path = crate::postgres::log::parse_history(&String::from_utf8_lossy(&text)).ok().flatten();
    let fork = path.and_then(|path| path.0.last().copied()).filter(|last| last.timeline == left);
    fork.ok_or_else(|| {
        VaultError::Damaged(format!("{}: it does not come from timeline {left}", log.join(&name).display()))
    })
}

/// Takes out what made a promoted copy one that follows: nothing goes on with it as such, and nothing is restored over it. No server runs.
///
/// # Errors
/// When something of it can not be changed.
pub fn settle(mark: &Mark, data: &Path, user: Option<(u32, u32)>, floors: &Control) -> Result<(), VaultError> {
    let place = Place::open(data, user)?;
    let listen = Listen { addresses: None, port: 5432 };
    let config = config(mark, data, &socket(data), &floors.floors, &listen);
    let kept = |line: &&str| !OF_FOLLOWING.iter().any(|name| line.starts_with(&format!("{name} =")));
    let config: String = config.lines().filter(kept).map(|line| format!("{line}\n")).collect();
    place.whole("mainstay_scratch.conf", config.replace("mainstay follow", "mainstay").as_bytes(), true)?;
    place.whole("mainstay_scratch_hba.conf", access(&listen).as_bytes(), true)?;
    match std::fs::remove_dir_all(Path::new(&way::held(&place.dir)).join(LOG_DIR)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(place.wrong(LOG_DIR, error)),
        _ => {}
    }
    place.remove(STATE)?;
    // The last: until then a settling that broke off is done again.
    place.remove(MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        let settings = BTreeMap::from([("max_connections".to_owned(), "200".to_owned())]);
        Mark { settings, ..super::super::tests::mark(1, "") }
    }

    #[test]
    fn a_server_that_follows_reaches_nobody_and_has_what_its_log_asks_for() {
        let printed = "Database cluster state: shut down in recovery\nLatest checkpoint's REDO location:    0/5000028\n\
                       Latest checkpoint's TimeLineID:       3\nmax_connections setting:              300\n\
                       max_prepared_xacts setting:           7\nmax_locks_per_xact setting:           64\n";
        let control = parse(printed).unwrap();
        assert_eq!(control.timeline, Timeline(3));
        assert_eq!((control.redo, control.floors.get("max_prepared_transactions")), (Lsn(0x0500_0028), Some(&7)));
        let (data, listen) = (Path::new("/srv/copy"), Listen { addresses: None, port: 5432 });
        let text = config(&mark(), data, &socket(data), &control.floors, &listen);
        for line in [
            "listen_addresses = ''",
            "archive_mode = 'off'",
            "primary_conninfo = ''",
            "max_connections = '300'",
            "max_locks_per_transaction = '64'",
            "recovery_target_timeline = 'latest'",
        ] {
            assert!(text.lines().any(|is| is == line), "{line}: {text}");
        }
        assert!(parse("").is_none() && !access(&listen).contains("host"));
    }

    #[test]
    fn a_promoted_copy_is_no_follower_and_no_copy_to_write_over() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path();
        std::fs::create_dir_all(data.join(LOG_DIR)).unwrap();
        for name in [MARK, STATE] {
            std::fs::write(data.join(name), "{}").unwrap();
        }
        settle(&mark(), data, None, &Control::default()).unwrap();
        settle(&mark(), data, None, &Control::default()).unwrap();
        let left: Vec<String> = Place::open(data, None).unwrap().names().unwrap();
        assert_eq!(left.len(), 2, "{left:?}");
        let text = std::fs::read_to_string(data.join("mainstay_scratch.conf")).unwrap();
        assert!(!text.contains("restore_command") && text.contains("archive_mode = 'off'"), "{text}");
    }
}
