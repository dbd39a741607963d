//! Running PostgreSQL's own programs: as the server's user, in a process group of their own that ends with the call, with bounded
//! output. Absent: what their output means.

use crate::files::sync_volumes;
use crate::server::{Postgres, failed};
use mainstay_model::{Lsn, SystemId, Timeline};
use mainstay_ports::engine::EngineError;
use mainstay_ports::priority::ordinarily;
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// No more of a program's output than this is kept.
const KEEP: usize = 32 * 1024;

/// What a program left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) success: bool,
    /// The end of its standard output, or nothing if a reader took the lines.
    pub(crate) out: String,
    /// The end of its standard error.
    pub(crate) err: String,
}

/// Ends the whole group when the call is dropped: `pg_basebackup` has a child of its own.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Postgres {
    /// Runs a program of the distribution.
    pub(crate) async fn run(&self, name: &str, arguments: &[String], limit: Duration) -> Result<Ran, EngineError> {
        let mut out = String::new();
        let mut ran = self.run_lines(name, arguments, limit, &mut |line| push_bounded(&mut out, line)).await?;
        ran.out = out;
        Ok(ran)
    }

    /// Runs one that writes a data directory and makes that durable. By one flush of each of its volumes, where Linux tells errors of those: by itself the
    /// program asks for a flush per file, about a thousand of a new database's, before the copy can be started. A flush that fails is a failure of the program.
    pub(crate) async fn run_durably(
        &self,
        name: &str,
        arguments: &[String],
        limit: Duration,
        data: &Path,
    ) -> Result<Ran, EngineError> {
        if !crate::config::volume_tells_errors() {
            return self.run(name, arguments, limit).await;
        }
        let arguments = [arguments, &["--no-sync".to_owned()]].concat();
        let mut ran = self.run(name, &arguments, limit).await?;
        if ran.success {
            let data = data.to_owned();
            let flushed = tokio::task::spawn_blocking(move || sync_volumes(&data)).await.map_err(failed)?;
            ran.success = flushed.is_ok();
            if let Err(error) = flushed {
                push_bounded(&mut ran.err, &format!("what it wrote can not be brought to the disk: {error}"));
            }
        }
        Ok(ran)
    }

    /// Runs a program; hands over each line of its standard output.
    pub(crate) async fn run_lines(
        &self,
        name: &str,
        arguments: &[String],
        limit: Duration,
        each: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Ran, EngineError> {
        let program = self.options.bin_dir.join(name);
        let mut command = tokio::process::Command::new(&program);
        command.args(arguments).env_clear().envs(self.environment()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        if let Some((uid, gid)) = self.options.user.filter(|user| *user != crate::files::me()) {
            command.uid(uid).gid(gid);
        }
        let mut child = ordinarily(|| command.spawn())
            .map_err(|error| failed(format!("could not run {}: {error}", program.display())))?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed(format!("{} has no output", program.display())));
        };
        let mut kept = String::new();
        let work = async {
            let read_out = lines(out, each);
            let mut keep = |line: &str| push_bounded(&mut kept, line);
            let read_err = lines(err, &mut keep);
            let ((), (), status) = tokio::join!(read_out, read_err, child.wait());
            status
        };
        let status = tokio::time::timeout(limit, work).await;
        let status = status.map_err(|_| failed(format!("{name} has not ended within {limit:?}")))?;
        let status = status.map_err(|error| failed(format!("{name}: {error}")))?;
        group.0 = None;
        Ok(Ran { success: status.success(), out: String::new(), err: kept })
    }

    /// The control file of the data directory, as `pg_controldata` prints it.
    pub(crate) async fn control(&self) -> Result<Control, EngineError> {
        self.control_of(&self.data()).await
    }

    /// The control file of a data directory.
    pub(crate) async fn control_of(&self, data: &Path) -> Result<Control, EngineError> {
        let arguments = ["-D".to_owned(), data.display().to_string()];
        let ran = self.run("pg_controldata", &arguments, Duration::from_secs(10)).await?;
        if !ran.success || ran.out.contains("WARNING") {
            return Err(EngineError::Broken(format!(
                "{}: {} {}",
                data.display(),
                ran.err.trim(),
                first_line(&ran.out)
            )));
        }
        Control::parse(&ran.out)
            .ok_or_else(|| EngineError::Broken(format!("the control file of {} is not understood", data.display())))
    }
}

async fn lines(from: impl AsyncRead + Unpin, each: &mut (dyn FnMut(&str) + Send)) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while let Ok(1..) = reader.read_until(b'\n', &mut line).await {
        each(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

fn push_bounded(all: &mut String, line: &str) {
    if all.len() + line.len() > KEEP {
        let cut = all.ceil_char_boundary(all.len() / 2);
        all.drain(..cut);
    }
    let end = line.floor_char_boundary(KEEP / 4);
    all.push_str(&line[..end]);
    all.push('\n');
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What we read of a control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) system: SystemId,
    /// `shut down`, `shut down in recovery`, `in production`, …
    pub(crate) state: String,
    pub(crate) checkpoint: Lsn,
    pub(crate) redo: Lsn,
    pub(crate) timeline: Timeline,
    /// 0/0 when there is none.
    pub(crate) min_recovery: Lsn,
    pub(crate) min_recovery_timeline: Timeline,
    /// What a standby of this log must not have less of.
    pub(crate) floors: crate::held::Floors,
}

impl Control {
    /// Reads what `pg_controldata` prints.
    fn parse(text: &str) -> Option<Control> {
        let values: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let get = |name: &str| values.get(name).copied();
        Some(Control {
            system: SystemId(get("Database system identifier")?.parse().ok()?),
            state: get("Database cluster state")?.to_owned(),
            checkpoint: get("Latest checkpoint location")?.parse().ok()?,
            redo: get("Latest checkpoint's REDO location")?.parse().ok()?,
            timeline: Timeline(get("Latest checkpoint's TimeLineID")?.parse().ok()?),
            min_recovery: get("Minimum recovery ending location")?.parse().ok()?,
            min_recovery_timeline: Timeline(get("Min recovery ending loc's timeline")?.parse().ok()?),
            floors: crate::held::Floors::of_control(&values),
        })
    }

    /// Did the server end in order?
    pub(crate) fn is_clean(&self) -> bool {
        matches!(self.state.as_str(), "shut down" | "shut down in recovery")
    }

    /// The timeline that recovery would begin on.
    pub(crate) fn newest_timeline(&self) -> Timeline {
        self.timeline.max(self.min_recovery_timeline)
    }
}

/// The system identifier in a data directory, without running anything: the first eight bytes of the control file.
pub(crate) fn system_id(data: &Path) -> Option<SystemId> {
    let version = std::fs::read_to_string(data.join("PG_VERSION")).ok()?;
    version.trim().split('.').next()?.parse::<u32>().ok()?;
    let mut bytes = [0; 8];
    std::fs::File::open(data.join("global/pg_control")).ok()?.read_exact_at(&mut bytes, 0).ok()?;
    Some(u64::from_le_bytes(bytes)).filter(|id| *id != 0).map(SystemId)
}
