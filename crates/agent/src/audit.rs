//! The audit: one JSON line for each change that was asked for at this agent, accepted or not, in `log/audit.log`.
//!
//! Written by a thread of its own, since a stalled disk must not hold the agent up; not synced, since the history keeps what was
//! accepted. Bounded: ten megabytes a file, five old files.

use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
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
    let mut failing = false;
    for line in queue {
        match append(path, limit, &line) {
            Ok(()) => failing = false,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, path = %path.display(), "the audit can not be written; its lines go to this log");
                }
                warn!(%line, "audit");
            }
        }
    }
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
    file.write_all(format!("{line}\n").as_bytes())
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
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
}
