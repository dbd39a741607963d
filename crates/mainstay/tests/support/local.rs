//! A cluster on this machine, made and operated by the built program as a person would. It is ended and removed whatever happens.

use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Cluster {
    pub(crate) dir: PathBuf,
    _home: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let home = tempfile::Builder::new().prefix("ms").tempdir().unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir: home.path().join("c"), _home: home }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let (verb, rest) = arguments.split_first().unwrap();
        // A verb within a verb comes before every option.
        let (within, rest) = rest.split_at(usize::from(["node", "archive"].contains(verb)));
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.arg(verb).args(within).args(["--dir", self.dir.to_str().unwrap()]).args(rest).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a verb; its exit status and last line.
    pub(crate) fn answer(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = self.run(&[arguments, &["--json", "--yes"]].concat());
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let last = out.lines().last().and_then(|line| serde_json::from_str(line).ok());
        (output.status.code(), last.unwrap_or_else(|| panic!("{arguments:?}: {out}\n{err}")))
    }

    /// The same without naming this cluster.
    #[allow(dead_code, reason = "of use to some tests only")]
    pub(crate) fn answer_bare(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = Command::new(env!("CARGO_BIN_EXE_mainstay")).args(arguments).arg("--json").output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        let last = out.lines().last().and_then(|line| serde_json::from_str(line).ok());
        (output.status.code(), last.unwrap_or_else(|| panic!("{arguments:?}: {out}")))
    }

    /// Runs a verb that must succeed; its last line.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let (status, answer) = self.answer(arguments);
        assert_eq!(status, Some(0), "{arguments:?}: {answer}");
        answer
    }

    /// The status, once all nodes are well.
    pub(crate) fn healthy(&self) -> Value {
        let begun = Instant::now();
        loop {
            let status = self.json(&["status"]);
            if status["nodes"].as_array().unwrap().iter().all(|node| node["healthy"] == true) {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "not all nodes are well: {status}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.run(&["down", "--destroy", "--yes"]);
    }
}
