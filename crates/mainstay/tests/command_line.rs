//! The binary from outside: exit status, messages, JSON, and that wrong input changes nothing. Starts no server.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Runs the program in a home of its own, without terminal and without the caller's settings.
fn run(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(arguments)
        .env_clear()
        .env("HOME", home)
        .env("PATH", "/usr/bin:/bin")
        .current_dir(home)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn home() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    // Servers' user must be able to pass, or `up` refuses for that reason instead of the one under test.
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    home
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last_object(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn help_and_version_are_no_failures() {
    let home = home();
    for arguments in [&["--help"][..], &["--version"], &["up", "--help"], &["switchover", "-h"]] {
        let output = run(home.path(), arguments);
        assert_eq!(status(&output), 0, "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
    assert!(String::from_utf8_lossy(&run(home.path(), &["up", "--help"]).stdout).contains("Examples:"));
}

#[test]
fn what_can_not_be_said_is_not_done() {
    let home = home();
    let full = |arguments: &[&str]| {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_mainstay"))
            .args(arguments)
            .current_dir(home.path())
            .stdin(std::process::Stdio::null())
            .stdout(full)
            .output();
        output.unwrap()
    };
    let file = home.path().join("mainstay.toml");
    let file = file.to_str().unwrap();
    assert_eq!(status(&run(home.path(), &["init", "--file", file, "--host", "127.0.0.1", "--yes"])), 0);
    for arguments in [
        &["--version"][..],
        &["up", "--help"],
        &["completions", "bash"],
        &["plan", "--offline", "--config", file],
        &["plan", "--offline", "--config", file, "--json"],
        // It fails in any case on a host that is not ready; that nothing of it was seen must be said.
        &["doctor", "--no-write", "--config", file],
    ] {
        let output = full(arguments);
        assert_eq!(status(&output), 1, "{arguments:?}");
        assert!(stderr(&output).contains("standard output can not be written"), "{arguments:?}: {}", stderr(&output));
    }
    // Whoever has read enough closes the pipe: that is no failure.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let plan = Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(["plan", "--offline", "--config", file])
        .stdin(std::process::Stdio::null())
        .stdout(writer)
        .output();
    assert_eq!(status(&plan.unwrap()), 0);
}

#[test]
fn up_refuses_wrong_options_and_changes_nothing() {
    let home = home();
    let dir = home.path().join("c");
    let cases: [(&[&str], &str); 6] = [
        (&["--nodes", "0"], "1..=9"),
        (&["--nodes", "10"], "1..=9"),
        (&["--engine", "oracle"], "possible values: postgres"),
        (&["--name", "Orders"], "is not a name"),
        (&["--durability", "none"], "strict, available, async"),
        (&["--frobnicate"], "unexpected argument"),
    ];
    for (options, expected) in cases {
        let mut arguments = vec!["up", "--yes", "--json", "--dir", dir.to_str().unwrap()];
        arguments.extend(options);
        let output = run(home.path(), &arguments);
        assert_eq!(status(&output), 2, "{options:?}");
        assert!(stderr(&output).contains(expected), "{options:?}: {}", stderr(&output));
        assert!(last_object(&output)["error"].as_str().is_some_and(|text| !text.is_empty()), "{options:?}");
        assert!(names(home.path()).is_empty(), "{options:?}");
    }
}

#[test]
fn up_refuses_a_directory_that_is_not_ours() {
    let home = home();
    let dir = home.path().join("c");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("thesis.txt"), "years of work").unwrap();
    for verb in [&["up"][..], &["down"], &["down", "--destroy", "--yes"]] {
        let mut arguments = verb.to_vec();
        arguments.extend(["--dir", dir.to_str().unwrap(), "--json"]);
        let output = run(home.path(), &arguments);
        assert_eq!(status(&output), 1, "{verb:?}");
        let error = last_object(&output)["error"].as_str().unwrap().to_owned();
        assert!(error.contains("not empty") && error.contains("thesis.txt"), "{error}");
        assert_eq!(names(&dir), ["thesis.txt"]);
    }
}

#[test]
fn up_says_which_package_is_missing() {
    let home = home();
    let dir = home.path().join("c");
    let empty = home.path().join("bin");
    std::fs::create_dir(&empty).unwrap();
    let arguments = ["up", "--dir", dir.to_str().unwrap(), "--bin-dir", empty.to_str().unwrap()];
    let output = run(home.path(), &arguments);
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("there is no postgres in"), "{}", stderr(&output));
    assert!(stderr(&output).contains("next:"), "{}", stderr(&output));
    assert!(!dir.exists());
}

#[test]
fn as_root_up_refuses_a_directory_that_the_servers_cannot_reach() {
    let home = home();
    let closed = home.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&closed).unwrap());
    if owner != 0 {
        // Servers run as the same user then: there is nothing to refuse.
        return;
    }
    let dir = closed.join("c");
    let output = run(home.path(), &["up", "--dir", dir.to_str().unwrap()]);
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("may not pass through"), "{}", stderr(&output));
    assert!(names(&closed).is_empty());
}

#[test]
fn without_a_cluster_every_verb_says_so() {
    let home = home();
    let dir = home.path().join("none");
    for verb in [&["status"][..], &["history"], &["why"], &["switchover", "--yes"], &["connect", "--uri"], &["down"]] {
        let mut arguments = verb.to_vec();
        arguments.extend(["--dir", dir.to_str().unwrap(), "--json"]);
        let output = run(home.path(), &arguments);
        assert_eq!(status(&output), 2, "{verb:?}");
        let object = last_object(&output);
        assert!(object["error"].as_str().unwrap().contains("there is no cluster"), "{verb:?}: {object}");
        assert!(object["hint"].as_str().is_some(), "{verb:?}: {object}");
    }
    assert!(!dir.exists());
    // Where nothing was named, nothing is wrong with the command line.
    assert_eq!(status(&run(home.path(), &["status"])), 1);
}

#[test]
fn a_name_commands_no_terminal() {
    let home = home();
    let said = stderr(&run(home.path(), &["status", "--config", "a\u{1b}[2Jb\u{9b}.toml"]));
    assert!(said.contains("a\\u{1b}[2Jb\\u{9b}.toml"), "{said:?}");
    assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
}

#[test]
fn mistakes_in_the_file_are_usage_errors_with_lines() {
    let home = home();
    let config = home.path().join("mainstay.toml");
    std::fs::write(&config, "[cluster]\nname = \"a\"\n[[node]]\nname = \"db1\"\nhots = \"10.0.0.1\"\n").unwrap();
    let output = run(home.path(), &["status", "--config", config.to_str().unwrap(), "--json"]);
    assert_eq!(status(&output), 2);
    let error = last_object(&output)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("line 5: unknown key \"hots\" in [node]; did you mean \"host\"?"), "{error}");
    assert!(error.contains(config.to_str().unwrap()), "{error}");
}

/// A cluster's directory as far as commands look before they ask an agent.
fn made(home: &Path) -> std::path::PathBuf {
    let dir = home.join("c");
    for sub in ["pki", "run", "secrets"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
    }
    let text = "[cluster]\nname = \"a\"\n[[node]]\nname = \"db1\"\nhost = \"127.0.0.1\"\nagent_port = 1\n\
                [proxy]\non_nodes = false\nhost = \"127.0.0.1\"\n";
    std::fs::write(dir.join("mainstay.toml"), text).unwrap();
    std::fs::write(dir.join("secrets/app.password"), "s3cret\n").unwrap();
    dir
}

#[test]
fn destroy_without_terminal_and_yes_is_a_usage_error() {
    let home = home();
    let dir = made(home.path());
    let output = run(home.path(), &["down", "--destroy", "--dir", dir.to_str().unwrap()]);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("--yes"), "{}", stderr(&output));
    assert!(dir.join("mainstay.toml").exists());
    let output = run(home.path(), &["down", "--destroy", "--yes", "--json", "--dir", dir.to_str().unwrap()]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    assert_eq!(last_object(&output)["destroyed"], true);
    assert!(!dir.exists());
}

#[test]
fn the_address_is_printed_without_any_agent() {
    let home = home();
    let dir = made(home.path());
    let uri = |options: &[&str]| {
        let mut arguments = vec!["connect", "--uri", "--dir", dir.to_str().unwrap()];
        arguments.extend(options);
        let output = run(home.path(), &arguments);
        assert_eq!(status(&output), 0, "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(uri(&[]), "postgresql://app:s3cret@127.0.0.1:6432/app?sslmode=require\n");
    assert_eq!(uri(&["--read"]), "postgresql://app:s3cret@127.0.0.1:6433/app?sslmode=require\n");
    assert_eq!(uri(&["reporting"]), "postgresql://reporting@127.0.0.1:6432/app?sslmode=require\n");
}

#[test]
fn arguments_of_psql_are_not_left_out_without_a_word() {
    let home = home();
    let dir = made(home.path());
    for option in ["--json", "--uri"] {
        let arguments = ["connect", option, "--dir", dir.to_str().unwrap(), "--", "-c", "select 1"];
        let output = run(home.path(), &arguments);
        assert_eq!(status(&output), 2, "{option}");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
        assert!(said.contains("psql is not run") && !said.contains("s3cret"), "{said}");
    }
}

#[test]
fn a_file_that_is_none_of_ours_is_not_quoted() {
    let home = home();
    let dir = made(home.path());
    let output = run(home.path(), &["proxy", "--config", dir.join("secrets/app.password").to_str().unwrap()]);
    assert_ne!(status(&output), 0);
    assert!(stderr(&output).contains("line 1") && !stderr(&output).contains("s3cret"), "{}", stderr(&output));
}

#[test]
fn a_cluster_without_running_agents_is_told_apart() {
    let home = home();
    let dir = made(home.path());
    let output = run(home.path(), &["status", "--dir", dir.to_str().unwrap()]);
    assert_eq!(status(&output), 1);
    assert!(stderr(&output).contains("API can not be called"), "no certificate: {}", stderr(&output));
    let output = run(home.path(), &["switchover", "--to", "db9", "--yes", "--dir", dir.to_str().unwrap()]);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("did you mean db1?"), "{}", stderr(&output));
}
