//! The audit: one JSON line for each change that was asked for at this agent, accepted or not, in `log/audit.log`.
//!
//! Written by a thread of its own, since a stalled disk must not hold the agent up; not synced, since the history keeps what was
//! accepted. Bounded: ten megabytes a file, five old files.
//!
//! A disk without room refuses no change: a switchover away from such a host must stay possible. The line goes to the agent's log
//! instead (the problem `disk-nearly-full` stands beside it), and once there is room again the audit says how many lines it lacks.

use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use tracing::warn;

/// A file grows to this size, in bytes.
const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// How many old files are kept: `audit.log.1` is the newest of them.
const OLD_FILES: u32 = 5;
/// Lines on their way to the disk.
const WAITING_MAX: usize = 256;

/// One change that was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// When, RFC 3339.
    pub time: String,
    /// The role in the caller's certificate.
    pub role: String,
    /// The name in the caller's certificate.
    pub name: String,
    /// Who the caller says that it is.
    pub by: String,
    /// What: `switchover`, `pause`, `spec` …
    pub verb: String,
    /// With which arguments.
    pub arguments: serde_json::Value,
    /// `accepted` or `refused`.
    pub outcome: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What was answered.
    pub answer: String,
}

/// Takes lines.
#[derive(Clone, Debug)]
pub struct Audit(SyncSender<String>);

impl Audit {
    /// Starts the writer. It ends when the last handle is gone.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(path: PathBuf) -> std::io::Result<Audit> {
        Self::with_limit(path, FILE_BYTES_MAX)
    }

    fn with_limit(path: PathBuf, limit: u64) -> std::io::Result<Audit> {
        let (lines, queue) = sync_channel(WAITING_MAX);
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || keep(&path, limit, &queue))?;
        Ok(Audit(lines))
    }

    /// Writes a line soon. When the disk does not keep up, the agent's log gets it instead.
    pub fn write(&self, line: &Line) {
        let Ok(text) = serde_json::to_string(line) else { return };
        if let Err(error) = self.0.try_send(text) {
            warn!(%error, ?line, "the audit could not take a line");
        }
    }
}

fn keep(path: &Path, limit: u64, queue: &Receiver<String>) {
    let mut missing = 0_u64;
    for line in queue {
        let written = say_missing(path, limit, &mut missing).and_then(|()| append(path, limit, &line));
        if let Err(error) = written {
            if missing == 0 {
                warn!(%error, path = %path.display(), "the audit can not be written; its lines go to this log");
            }
            missing += 1;
            warn!(%line, "audit");
        }
    }
}

/// Lines that could not be written stand in the agent's log only: says so in their place.
fn say_missing(path: &Path, limit: u64, missing: &mut u64) -> std::io::Result<()> {
    if *missing > 0 {
        append(path, limit, &serde_json::json!({ "missing": *missing, "see": "the agent's log" }).to_string())?;
        *missing = 0;
    }
    Ok(())
}

fn append(path: &Path, limit: u64, line: &str) -> std::io::Result<()> {
    let mut file = open(path)?;
    if file.metadata()?.len().saturating_add(line.len() as u64) >= limit {
        for number in (1..OLD_FILES).rev() {
            // A missing one is the usual case at first.
            let _ = std::fs::rename(numbered(path, number), numbered(path, number + 1));
        }
        std::fs::rename(path, numbered(path, 1))?;
        file = open(path)?;
    }
    let begin = if ends_torn(&file)? { "\n" } else { "" };
    file.write_all(format!("{begin}{line}\n").as_bytes())
}

/// Did the last line get in only partly, before the disk was full or the agent was killed? The next one must not be glued to it.
fn ends_torn(file: &File) -> std::io::Result<bool> {
    let Some(last) = file.metadata()?.len().checked_sub(1) else { return Ok(false) };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte != *b"\n")
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_closed_to_others_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        for number in 0..100 {
            append(&path, 50, &format!("{{\"line\":{number:05}}}")).unwrap();
        }
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 1 + OLD_FILES as usize, "{names:?}");
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert!(text(&path).ends_with("{\"line\":00099}\n"), "the newest line is in the open file");
        assert!(text(&numbered(&path, 1)) > text(&numbered(&path, 5)), "older files have higher numbers");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_full_disk_holds_nobody_up_and_the_gap_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let (lines, queue) = sync_channel(8);
        let writer = std::thread::spawn({
            let path = path.clone();
            move || keep(&path, FILE_BYTES_MAX, &queue)
        });
        // What was there before ends in a torn line.
        std::fs::write(&path, "{\"line\":1}\n{\"li").unwrap();
        let aside = dir.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        for line in ["{\"line\":2}", "{\"line\":3}", "{\"line\":4}"] {
            lines.send(line.to_owned()).unwrap();
        }
        drop(lines);
        writer.join().unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        let mut missing = 3;
        say_missing(&path, FILE_BYTES_MAX, &mut missing).unwrap();
        append(&path, FILE_BYTES_MAX, "{\"line\":5}").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let said: Vec<&str> = text.lines().collect();
        assert_eq!(said, ["{\"line\":1}", "{\"li", "{\"missing\":3,\"see\":\"the agent's log\"}", "{\"line\":5}"]);
        assert_eq!(missing, 0);
    }

    #[test]
    fn a_disk_without_room_is_counted_line_by_line() {
        let full = Path::new("/dev/full");
        let mut missing = 2;
        assert!(append(full, FILE_BYTES_MAX, "a line").is_err());
        assert!(say_missing(full, FILE_BYTES_MAX, &mut missing).is_err());
        assert_eq!(missing, 2, "forgotten only once it is written");
    }
}
