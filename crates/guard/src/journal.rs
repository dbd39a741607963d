//! The guard's log: JSON lines, written by a thread of its own through a bounded queue, because a write to a stalled disk
//! may block for minutes and the loop that keeps the deadline must never wait for one. A full queue drops and counts.

use mainstay_ports::clock::{boot_now, wall_now_ms};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines that wait at most.
const QUEUE: usize = 256;
/// When the file grows beyond this, it is renamed to `….1` and begun anew.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Where the guard's words go.
pub(crate) struct Journal {
    queue: SyncSender<String>,
    dropped: u64,
    writer: JoinHandle<()>,
}

impl Journal {
    /// Opens the file and starts the writer.
    ///
    /// # Errors
    /// When the file can not be opened or the thread not be started.
    pub(crate) fn open(path: &Path) -> std::io::Result<Journal> {
        let file = open_log(path, None)?;
        let (queue, lines) = sync_channel(QUEUE);
        let path = path.to_path_buf();
        let writer = std::thread::Builder::new()
            .name("guard-log".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || write_lines(path, file, &lines))?;
        Ok(Journal { queue, dropped: 0, writer })
    }

    /// Adds a line. Never blocks.
    pub(crate) fn say(&mut self, text: &str) {
        let line = serde_json::json!({
            "wall_ms": wall_now_ms(), "boot_ms": boot_now().0, "pid": std::process::id(), "dropped": self.dropped, "text": text,
        });
        if self.queue.try_send(line.to_string()).is_err() {
            self.dropped += 1;
        } else {
            self.dropped = 0;
        }
    }

    /// Ends the writer, and waits a moment for the last lines to be written.
    pub(crate) fn finish(self) {
        drop(self.queue);
        let begun = Instant::now();
        while !self.writer.is_finished() && begun.elapsed() < Duration::from_millis(500) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn write_lines(path: PathBuf, mut file: File, lines: &Receiver<String>) {
    while let Ok(mut line) = lines.recv() {
        line.push('\n');
        // A log that can not be written must not stop the guard; the agent learns the same facts over the socket.
        let _ = file.write_all(line.as_bytes());
        if file.metadata().is_ok_and(|m| m.len() > MAX_BYTES) {
            let mut old = path.clone().into_os_string();
            old.push(".1");
            if std::fs::rename(&path, old).is_ok()
                && let Ok(new) = open_log(&path, None)
            {
                file = new;
            }
        }
    }
}

/// Opens a file for appending: a regular file with one name, not reached through a symbolic link, made with mode 0600.
///
/// # Errors
/// When it is something else, or can not be opened.
pub(crate) fn open_log(path: &Path, owner: Option<(u32, u32)>) -> std::io::Result<File> {
    use std::os::unix::fs::MetadataExt as _;
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // Making a file waits for a volume that is frozen; opening one that is there does not.
    let opened = match rustix::fs::open(path, flags.difference(OFlags::CREATE), Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)),
        opened => opened,
    };
    let file = File::from(opened?);
    let facts = file.metadata()?;
    if !facts.is_file() || facts.nlink() > 1 {
        let text = format!("{} is not a plain file with one name; remove it", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text));
    }
    // A file made just now belongs to the server's user, so that its own log collector may rotate it.
    if let (Some((user, group)), 0) = (owner, facts.len()) {
        std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_never_opened_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::write(&target, "").unwrap();
        let soft = dir.path().join("soft");
        std::os::unix::fs::symlink(&target, &soft).unwrap();
        assert!(open_log(&soft, None).is_err());
        let hard = dir.path().join("hard");
        std::fs::hard_link(&target, &hard).unwrap();
        assert!(open_log(&hard, None).unwrap_err().to_string().contains("one name"));
        assert!(open_log(dir.path(), None).is_err());
        assert!(open_log(&dir.path().join("new"), None).is_ok());
    }
}
