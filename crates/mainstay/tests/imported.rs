//! A Patroni configuration becomes a file that every other command takes, and nothing that it holds is forgotten or given away.
#![expect(clippy::unwrap_used, reason = "a test ends where it can not go on")]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn mainstay(dir: &Path, arguments: &[&str]) -> Output {
    let program = Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .stdin(Stdio::null())
        .output();
    program.unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const DYNAMIC: &str = "loop_wait: 10\nmaximum_lag_on_failover: 1048576\npostgresql:\n  parameters:\n    max_connections: 250\n    \
    archive_command: secretly %p\n    archive_mode: 'on'\n  pg_hba:\n  - host replication replicator 192.0.2.0/24 scram-sha-256\n  \
    - host all all 192.0.2.0/24 scram-sha-256\n  use_pg_rewind: true\nretry_timeout: 10\nsynchronous_mode: true\nsynchronous_mode_strict: true\nttl: 30\n";

/// The files of a cluster of three, as many have them.
fn files(dir: &Path) {
    for number in 1..=3 {
        let text = format!(
            "scope: orders\nname: pg{number}\nrestapi:\n  listen: 192.0.2.{number}:8008\n  connect_address: 192.0.2.{number}:8008\n  \
             authentication:\n    username: admin\n    password: secretly\netcd3:\n  hosts: 192.0.2.1:2379,192.0.2.2:2379,192.0.2.3:2379\n\
             postgresql:\n  listen: 192.0.2.{number}:5432\n  connect_address: 192.0.2.{number}:5432\n  data_dir: /var/lib/postgresql/15/orders\n  \
             authentication:\n    superuser:\n      username: postgres\n      password: secretly\n  callbacks:\n    on_role_change: /usr/local/bin/vip.sh secretly\n\
             tags:\n  nofailover: {}\n",
            number == 3
        );
        std::fs::write(dir.join(format!("pg{number}.yml")), text).unwrap();
    }
    std::fs::write(dir.join("dynamic.yml"), DYNAMIC).unwrap();
}

const ALL: [&str; 6] = ["import", "patroni", "pg1.yml", "pg2.yml", "pg3.yml", "dynamic.yml"];

#[test]
fn a_patroni_cluster_becomes_a_file_that_can_be_planned() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let made = mainstay(dir.path(), &[&ALL[..], &["--output", "mainstay.toml"]].concat());
    assert!(made.status.success(), "{}", err(&made));
    let report = out(&made);
    for words in [
        "scope → cluster.name = orders  (pg1.yml:1, pg2.yml:1, pg3.yml:1)",
        "postgresql.parameters.max_connections → postgres.parameters.max_connections = 250  (dynamic.yml:5)",
        "tags.nofailover  (pg3.yml:",
        "postgresql.callbacks.on_role_change  (",
        "Written: ",
    ] {
        assert!(report.contains(words), "{words}\n{report}");
    }
    let text = std::fs::read_to_string(dir.path().join("mainstay.toml")).unwrap();
    assert!(!report.contains("secretly") && !text.contains("secretly"), "{report}\n{text}");
    let planned = mainstay(dir.path(), &["plan", "--offline", "--config", "mainstay.toml", "--json"]);
    assert!(planned.status.success(), "{}", err(&planned));
    let planned: Value = serde_json::from_str(out(&planned).lines().last().unwrap()).unwrap();
    let spec = &planned["spec"];
    assert_eq!((&spec["cluster"]["durability"], &spec["node"][2]["name"]), (&"strict".into(), &"pg3".into()));
    assert_eq!((&spec["node"][0]["health_port"], &spec["node"][0]["port"]), (&8008.into(), &5432.into()));
    assert_eq!(spec["postgres"]["hba"], serde_json::json!(["host all all 192.0.2.0/24 scram-sha-256"]));
    // A file is never replaced.
    let again = mainstay(dir.path(), &[&ALL[..], &["--output", "mainstay.toml", "--json"]].concat());
    assert_eq!(again.status.code(), Some(3));
    assert_eq!(std::fs::read_to_string(dir.path().join("mainstay.toml")).unwrap(), text);
}

#[test]
fn without_a_place_the_file_goes_to_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let made = mainstay(dir.path(), &ALL);
    assert!(made.status.success() && err(&made).contains("Left behind ("), "{}", err(&made));
    std::fs::write(dir.path().join("piped.toml"), &made.stdout).unwrap();
    let planned = mainstay(dir.path(), &["plan", "--offline", "--config", "piped.toml"]);
    assert!(planned.status.success(), "{}", err(&planned));
    let answer = mainstay(dir.path(), &[&ALL[..], &["--json"]].concat());
    let answer: Value = serde_json::from_str(out(&answer).lines().last().unwrap()).unwrap();
    assert_eq!(answer["file"].as_str().unwrap(), out(&made));
    let entries = answer["entries"].as_array().unwrap();
    let of = |fate: &str| entries.iter().filter(|entry| entry["fate"] == fate).count();
    assert_eq!(of("carried") + of("changed") + of("left"), entries.len());
    assert!(entries.iter().all(|entry| entry["fate"] != "left" || entry["value"].is_null()));
    assert!(!answer.to_string().contains("secretly"));
}

#[test]
fn what_is_not_patronis_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    std::fs::write(dir.path().join("compose.yml"), "services:\n  db:\n    image: postgres\n").unwrap();
    std::fs::write(dir.path().join("broken.yml"), "scope: orders\n  name: x\n").unwrap();
    std::fs::write(dir.path().join("binary.yml"), [0xff, 0xfe, 0x00]).unwrap();
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    for (file, words) in [
        ("compose.yml", "no configuration of Patroni"),
        ("broken.yml", "broken.yml: line 2"),
        ("binary.yml", "binary.yml can not be read"),
        ("conf.d", "is a directory"),
        ("none.yml", "none.yml can not be read"),
    ] {
        let refused = mainstay(dir.path(), &["import", "patroni", "pg1.yml", file, "--output", "made.toml"]);
        assert!(refused.status.code() == Some(2) && err(&refused).contains(words), "{file}: {}", err(&refused));
    }
    assert!(!dir.path().join("made.toml").exists());
    let nowhere = mainstay(dir.path(), &[&ALL[..], &["--output", "none/made.toml"]].concat());
    assert!(nowhere.status.code() == Some(1) && err(&nowhere).contains("can not be written"), "{}", err(&nowhere));
}

/// Half a file would be read as one, or stand in the way of the next attempt.
#[test]
fn a_full_disk_leaves_no_half_file() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let (program, before) = (env!("CARGO_BIN_EXE_mainstay"), std::fs::read_dir(dir.path()).unwrap().count());
    let init = ["init", "--host", "192.0.2.1", "--yes", "--file", "mainstay.toml"];
    for arguments in [&[&ALL[..], &["--output", "mainstay.toml"]].concat()[..], &init] {
        // Not one byte fits into a file.
        let made = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\"", program])
            .args(arguments)
            .current_dir(dir.path())
            .env_clear()
            .stdin(Stdio::null())
            .output();
        let made = made.unwrap();
        assert_eq!(made.status.code(), Some(1), "{arguments:?}: {}", err(&made));
        assert!(err(&made).contains("mainstay.toml can not be written"), "{}", err(&made));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before, "{arguments:?}");
    }
}
