//! A cluster with several repositories: one that is away stops neither the others nor the cluster, what it missed it gets also from the next primary,
//! and each brings back everything when the other one is lost or damaged. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;
#[path = "support/lost_primary.rs"]
mod lost_primary;
#[path = "support/sql.rs"]
mod sql;
#[path = "support/until.rs"]
mod until;

use local::Cluster;
use serde_json::Value;
use std::path::{Path, PathBuf};
use until::until;

const SUM: &str = "select count(*), md5(coalesce(string_agg(id || note, ',' order by id), '')) from ledger";
/// Where the slot stands that keeps the log for the archive.
const SLOT: &str = "select restart_lsn from pg_replication_slots where slot_name = 'mainstay__archive'";

impl Cluster {
    /// Adds rows and some megabytes of log.
    fn write(&self, megabytes: u32) -> String {
        let rows = megabytes * 1000;
        let text =
            format!("insert into ledger(note) select repeat(md5(i::text), 31) from generate_series(1, {rows}) i");
        let output = self.run(&["connect", "--", "-X", "-v", "ON_ERROR_STOP=1", "-c", &text]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.sql(SUM)
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.dir.parent().unwrap().join(name)
    }

    /// How one repository stands, once it stands as wanted.
    fn repository(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = std::time::Instant::now();
        loop {
            let answer = self.json(&["archive", "status"]);
            let all = answer["repositories"].as_array().cloned().unwrap_or_default();
            if let Some(found) = all.into_iter().find(|one| one["name"] == name).filter(|one| wanted(one)) {
                return found;
            }
            assert!(begun.elapsed() < until::PATIENCE, "{name}: not {what}: {answer}");
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    }

    fn backup(&self, options: &[&str]) -> Value {
        until("a backup", || {
            let (status, answer) = self.answer(&[&["backup"], options].concat());
            assert!(matches!(status, Some(0 | 3)), "{answer}");
            (status == Some(0)).then(|| answer["backup"].clone())
        })
    }

    /// The ledger of a new copy, and what the command said.
    fn restored(&self, name: &str, options: &[&str]) -> (String, Value) {
        let to = self.beside(name);
        let answer = self.json(&[&["restore", "--to", to.to_str().unwrap(), "--sql", SUM], options].concat());
        let row = answer["rows"][0].as_array().unwrap_or_else(|| panic!("{answer}"));
        let row: Vec<&str> = row.iter().map(|field| field.as_str().unwrap()).collect();
        (row.join("|"), answer)
    }
}

fn bytes(lsn: &str) -> u64 {
    lsn.parse::<mainstay_model::Lsn>().unwrap().0
}

fn archived(one: &Value) -> (u64, u64) {
    let at = &one["archived"];
    (at["timeline"].as_u64().unwrap_or(0), bytes(at["lsn"].as_str().unwrap_or("0/0")))
}

/// The segment in which a backup's log begins.
fn first_segment(vault: &Path, backup: &Value) -> PathBuf {
    let (timeline, at) =
        (backup["start"]["timeline"].as_u64().unwrap(), bytes(backup["start"]["lsn"].as_str().unwrap()));
    let number = at >> 24;
    let name = format!("{timeline:08X}{:08X}{:08X}", number >> 8, number & 0xff);
    let system = backup["system"].to_string();
    vault.join(format!("log/{}/{timeline:08X}/{name}", system.trim_matches('"')))
}

/// What is damaged or gone in the first repository comes from the second.
fn damage(cluster: &Cluster, near: &Path, first: &Value) {
    let rows = cluster.write(20);
    let segment = first_segment(near, first);
    let whole = std::fs::read(&segment).unwrap_or_else(|error| panic!("{}: {error}", segment.display()));
    let mut rotten = whole.clone();
    let middle = rotten.len() / 2;
    rotten[middle] ^= 1;
    std::fs::write(&segment, &rotten).unwrap();
    let (copy, answer) = cluster.restored("healed", &[]);
    assert_eq!(copy, rows, "{answer}");
    assert!(answer["repository_name"] == "main" && answer["healed"] == 1, "{answer}");
    let (copy, answer) = cluster.restored("healed-by-name", &["--repository", "main"]);
    assert!(copy == rows && answer["repository_name"] == "main" && answer["healed"] == 1, "{answer}");
    let (status, answer) = cluster.answer(&["verify", "--repository", "main"]);
    assert!(status == Some(1) && answer["error"].as_str().unwrap().contains("in the repository main"), "{answer}");
    // Missing altogether: the second one's own backup serves, and why is said.
    std::fs::remove_file(&segment).unwrap();
    let (copy, answer) = cluster.restored("whole", &[]);
    assert!(copy == rows && answer["repository_name"] == "far", "{answer}");
    assert!(answer["passed_over"][0].as_str().unwrap().starts_with("main: "), "{answer}");
    std::fs::write(&segment, &whole).unwrap();
}

#[test]
fn a_repository_that_is_away_loses_nothing_over_a_take_over_and_each_stands_in_for_the_other() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "3", "--wait", "180"]);
    cluster.healthy();
    cluster.sql("create table ledger(id bigserial primary key, note text)");
    let (near, far, away) = (cluster.dir.join("vault"), cluster.beside("far"), cluster.beside("away"));
    cluster.json(&["set", &format!("vault.repository.far.place={}", far.display())]);
    cluster.write(40);
    let before = cluster.repository("far", "archived", |one| archived(one).1 >= 3 << 24);
    cluster.repository("main", "archived", |one| archived(one).1 >= 3 << 24);

    // Away: the first one goes on, trouble is told by its name, and the servers keep what it misses.
    std::fs::rename(&far, &away).unwrap();
    cluster.write(40);
    cluster.repository("far", "failing", |one| one["failing"].is_array());
    let main = cluster.repository("main", "archived on", |one| archived(one).1 >= archived(&before).1 + (2 << 24));
    assert!(main["failing"].is_null(), "{main}");
    until("told", || {
        let problems = cluster.json(&["status"])["problems"].as_array().unwrap().clone();
        problems.iter().find(|problem| {
            problem["name"] == "archive-lagging" && problem["evidence"].as_str().unwrap().starts_with("far: ")
        })?;
        Some(())
    });
    let stuck = cluster.repository("far", "there", |_| true);
    assert!(bytes(&cluster.sql(SLOT)) <= archived(&stuck).1, "the log waits for it: {stuck}");
    assert!(!far.exists(), "no new repository was made in its place");

    // The primary dies with what only the first one has; the next one brings it to both.
    cluster.kill_primary();
    std::fs::rename(&away, &far).unwrap();
    cluster.write(40);
    for name in ["main", "far"] {
        let one = cluster.repository(name, "archived on the new timeline", |one| {
            archived(one).0 > 1 && archived(one).1 > archived(&main).1 && one["failing"].is_null()
        });
        assert_eq!(one["gaps"], serde_json::json!([]), "{one}");
    }

    // Backups in each, told apart.
    let first = cluster.backup(&[]);
    let second = cluster.backup(&["--repository", "far"]);
    assert!(first["to"] == "main" && second["to"] == "far" && first["repository"] != second["repository"], "{second}");
    let listed = cluster.json(&["backups"]);
    let told: Vec<(&Value, &Value)> =
        listed["backups"].as_array().unwrap().iter().map(|one| (&one["repository"], &one["label"])).collect();
    assert_eq!(told, [(&Value::from("main"), &first["label"]), (&Value::from("far"), &second["label"])], "{listed}");
    let (status, answer) = cluster.answer(&["backup", "--repository", "fax"]);
    assert!(status == Some(2) && answer["error"].as_str().unwrap().contains("has no repository fax"), "{answer}");

    damage(&cluster, &near, &first);

    // The first one is lost.
    std::fs::rename(&near, &away).unwrap();
    let rows = cluster.write(5);
    let (copy, answer) = cluster.restored("from-far", &[]);
    assert!(copy == rows && answer["repository_name"] == "far", "{answer}");
    assert_eq!(answer["open_segment_archived"], true, "{answer}");
    let (status, verified) = cluster.answer(&["verify"]);
    let says = verified["error"].as_str().unwrap();
    assert!(status == Some(1) && says.starts_with("not everything was read: main: "), "{verified}");
    let verified = cluster.json(&["verify", "--repository", "far"]);
    assert!(verified["repository"] == far.to_str().unwrap(), "{verified}");
    std::fs::rename(&away, &near).unwrap();
    // One is chosen by its name.
    let (copy, answer) = cluster.restored("by-name", &["--repository", "far"]);
    assert!(copy == rows && answer["repository"] == far.to_str().unwrap(), "{answer}");
    cluster.repository("main", "archived again", |one| one["failing"].is_null() && archived(one).1 > archived(&main).1);
    let verified = cluster.json(&["verify"]);
    let read: Vec<&Value> =
        verified["repositories"].as_array().unwrap().iter().map(|one| &one["repository_name"]).collect();
    assert_eq!(read, ["main", "far"], "{verified}");
}

#[test]
fn optional_ones_keep_no_log_backups_and_drills_take_turns_and_one_is_taken_away_while_it_runs() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "1", "--wait", "180"]);
    cluster.healthy();
    cluster.sql("create table ledger(id bigserial primary key, note text)");
    cluster.write(20);
    // A bucket's server that takes connections and says nothing, ever; and a folder that comes and goes.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    let keys = cluster.beside("keys");
    std::fs::write(&keys, "aws_access_key_id = a\naws_secret_access_key = b\n").unwrap();
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let dead = format!("s3://orders/main?endpoint=http://127.0.0.1:{port}&timeout=1&credentials={}", keys.display());
    let (far, away) = (cluster.beside("far"), cluster.beside("away"));
    cluster.json(&[
        "set",
        &format!("vault.repository.far.place={}", far.display()),
        "vault.repository.far.optional=true",
        &format!("vault.repository.dead.place={dead}"),
        "vault.repository.dead.optional=true",
    ]);
    cluster.repository("dead", "failing", |one| one["failing"].is_array());
    let before = cluster.repository("far", "archived", |one| archived(one).1 > 1 << 24);
    std::fs::rename(&far, &away).unwrap();
    cluster.write(60);
    let main = cluster.repository("main", "archived on", |one| archived(one).1 >= archived(&before).1 + (3 << 24));
    assert!(main["failing"].is_null(), "{main}");
    until("the slot that goes on without them", || (bytes(&cluster.sql(SLOT)) > archived(&before).1).then_some(()));
    std::fs::rename(&away, &far).unwrap();
    cluster.json(&["set", "--unset", "vault.repository.dead"]);

    // By the schedule in each that is there.
    cluster.json(&["set", "vault.incremental_at=* * * * *", "vault.repository.far.keep=1"]);
    for name in ["main", "far"] {
        cluster.repository(name, "backed up by the schedule", |one| one["backup"]["last"].is_object());
    }
    cluster.json(&["set", "--unset", "vault.incremental_at"]);
    let mut held = Vec::new();
    for _ in 0..2 {
        let drill = until("a drill", || {
            let (status, answer) = cluster.answer(&["verify", "--drill"]);
            assert!(matches!(status, Some(0 | 3)), "{answer}");
            (status == Some(0)).then(|| answer["drill"].clone())
        });
        assert!(drill["problem"].is_null(), "{drill}");
        held.push(drill["repository"].as_str().unwrap().to_owned());
    }
    held.sort();
    assert_eq!(held, ["far", "main"], "each in turn");

    // Back to one: it is written as ever, and the other one can still be read.
    let rows = cluster.sql(SUM);
    cluster.json(&["set", "--unset", "vault.repository.far"]);
    let answer = cluster.json(&["archive", "status"]);
    assert!(answer["repositories"].is_null() && answer["repository"].is_string(), "{answer}");
    assert!(far.join("vault.json").exists());
    let place = far.display().to_string();
    let (copy, answer) = cluster.restored("old", &["--repository", &place]);
    assert_eq!(copy.split('|').next(), rows.split('|').next(), "{answer}");
}
