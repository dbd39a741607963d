//! The node's durable promise, and the gate that every order passes.
//!
//! One lock per node: a promise is made durable under it, and an order compares its term with the promise under it when it
//! begins to execute, not when it was decided (safety rule S3). The file lies outside the data directory, so a rewind or
//! clone never touches it.

use mainstay_model::{Durable, Term};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

/// A durable file that can not be read or written. The agent stops: without its promise a node may not act.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// The operating system refused.
    #[error(
        "{action} {path}: {source}; the node can not act without its promise, so free space or mend the disk and start the agent again"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it answered.
        source: io::Error,
    },
    /// The file is there and is not ours.
    #[error("{path} is not a promise file: {source}; move it away, and the promise is taken from the store")]
    Garbled {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Reads the durable state; `None` when there is no file (new node, or lost: then the store's term is the promise).
///
/// # Errors
/// When the file exists and can not be read or understood.
pub fn load(path: &Path) -> Result<Option<Durable>, DurableError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DurableError::Io { action: "read", path: path.to_owned(), source }),
    };
    match serde_json::from_slice(&text) {
        Ok(durable) => Ok(Some(durable)),
        Err(source) => Err(DurableError::Garbled { path: path.to_owned(), source }),
    }
}

/// Writes a file so that after a crash either the old or the new content is there: temporary file, fsync, rename, fsync of
/// the directory.
///
/// # Errors
/// What the operating system answered.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::other("no parent directory"))?;
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

/// The gate. Clones share one lock.
#[derive(Clone)]
pub struct Gate {
    path: PathBuf,
    promise: Arc<Mutex<Option<Durable>>>,
}

impl Gate {
    /// A gate over this file, with what was read from it.
    #[must_use]
    pub fn new(path: PathBuf, durable: Option<Durable>) -> Self {
        Self { path, promise: Arc::new(Mutex::new(durable)) }
    }

    /// Makes this state durable; from its return on no order of an older term begins.
    ///
    /// # Errors
    /// When the disk refuses: the caller must stop acting.
    pub async fn persist(&self, durable: Durable) -> Result<(), DurableError> {
        let mut held = self.promise.lock().await;
        let path = self.path.clone();
        let content = serde_json::to_vec_pretty(&durable).map_err(io::Error::other);
        let written = match content {
            Ok(content) => tokio::task::spawn_blocking(move || write_atomically(&path, &content))
                .await
                .unwrap_or_else(|_| Err(io::Error::other("the writing task broke"))),
            Err(error) => Err(error),
        };
        written.map_err(|source| DurableError::Io { action: "write", path: self.path.clone(), source })?;
        *held = Some(durable);
        Ok(())
    }

    /// May an order of this term begin now?
    pub async fn admits(&self, term: Term) -> bool {
        self.promise.lock().await.as_ref().is_none_or(|durable| term >= durable.promise)
    }

    /// The durable state now.
    pub async fn durable(&self) -> Durable {
        self.promise.lock().await.clone().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_promise_survives_and_stops_older_orders() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("durable.json");
        assert!(load(&path).unwrap().is_none());
        let gate = Gate::new(path.clone(), None);
        assert!(gate.admits(Term(0)).await);
        gate.persist(Durable { promise: Term(7), ..Durable::default() }).await.unwrap();
        assert!(!gate.admits(Term(6)).await);
        assert!(gate.admits(Term(7)).await);
        assert_eq!(load(&path).unwrap().unwrap().promise, Term(7));
    }

    #[tokio::test]
    async fn a_disk_that_refuses_leaves_the_old_promise() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/durable.json");
        let gate = Gate::new(path, Some(Durable { promise: Term(3), ..Durable::default() }));
        assert!(gate.persist(Durable { promise: Term(4), ..Durable::default() }).await.is_err());
        assert!(gate.admits(Term(3)).await);
    }

    #[test]
    fn a_garbled_file_is_an_error_not_a_new_node() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("durable.json");
        fs::write(&path, "{\"promise\":").unwrap();
        assert!(matches!(load(&path), Err(DurableError::Garbled { .. })));
    }

    /// A step of a write, and what the file and the temporary one hold if the agent is killed after it.
    type Step = (&'static str, Vec<u8>, Option<Vec<u8>>);

    fn steps(old: &[u8], new: &[u8]) -> Vec<Step> {
        vec![
            ("before anything", old.to_vec(), None),
            ("the temporary file is made", old.to_vec(), Some(Vec::new())),
            ("half is written", old.to_vec(), Some(new[..new.len() / 2].to_vec())),
            ("all is written", old.to_vec(), Some(new.to_vec())),
            ("it is renamed", new.to_vec(), None),
        ]
    }

    #[test]
    fn a_write_that_is_killed_at_any_step_leaves_the_old_or_the_new_file_and_the_next_one_works() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["spec.json", "removed.json", "durable.json", "intent.json"] {
            let path = directory.path().join(name);
            let (old, new) = (b"{\"generation\":1}".as_slice(), b"{\"generation\":2,\"by\":\"anna\"}".as_slice());
            for (step, there, temporary) in steps(old, new) {
                fs::write(&path, &there).unwrap();
                if let Some(temporary) = temporary {
                    fs::write(path.with_extension("tmp"), temporary).unwrap();
                }
                let read = fs::read(&path).unwrap();
                assert!(read == old || read == new, "{name}: {step}");
                write_atomically(&path, b"{\"generation\":3}").unwrap();
                assert_eq!(fs::read(&path).unwrap(), b"{\"generation\":3}", "{name}: {step}");
                assert!(!path.with_extension("tmp").exists(), "{name}: {step}");
            }
        }
    }

    #[test]
    fn a_write_that_fails_at_any_step_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spec.json");
        let temporary = path.with_extension("tmp");
        let fails: [(&str, &dyn Fn()); 2] = [
            ("it can not be opened", &|| fs::create_dir(&temporary).unwrap()),
            ("there is no room", &|| std::os::unix::fs::symlink("/dev/full", &temporary).unwrap()),
        ];
        for (step, arrange) in fails {
            fs::write(&path, "old").unwrap();
            arrange();
            assert!(write_atomically(&path, b"new").is_err(), "{step}");
            assert_eq!(fs::read(&path).unwrap(), b"old", "{step}");
            let _ = fs::remove_dir(&temporary);
            let _ = fs::remove_file(&temporary);
        }
    }

    /// Writes without end when it is called as the child of the test below.
    #[test]
    fn writes_without_end_as_a_child() {
        let Some(path) = std::env::var_os("MAINSTAY_TEST_WRITES").map(PathBuf::from) else { return };
        for number in 0_u64.. {
            let content = format!("{{\"number\":{number},\"rest\":\"{}\"}}", "x".repeat(20_000));
            write_atomically(&path, content.as_bytes()).unwrap();
        }
    }

    #[test]
    fn a_writer_that_is_killed_at_any_moment_leaves_a_whole_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spec.json");
        for round in 0..12_u64 {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "durable::tests::writes_without_end_as_a_child"])
                .env("MAINSTAY_TEST_WRITES", &path)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let before = fs::metadata(&path).and_then(|is| is.modified()).ok();
            let begun = std::time::Instant::now();
            // Killed once it is seen to write, a little later each time.
            while fs::metadata(&path).and_then(|is| is.modified()).ok() == before {
                assert!(begun.elapsed().as_secs() < 60, "nothing is written");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            std::thread::sleep(std::time::Duration::from_micros(round * 370));
            child.kill().unwrap();
            child.wait().unwrap();
            let read: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(read["rest"].as_str().map(str::len), Some(20_000));
        }
    }
}
