//! Bad days of a node, as tables: what an agent meets when it starts, what is done to it while it starts, and what its neighbours are. Each
//! row runs the real agent and says what must be said (the thing that is wrong, and the way out), and that nothing was changed or left running.
//! `bad_input.rs` has the wrong command lines and files. A wall clock that is off by seconds is looked at beside `problems.rs` of the
//! agent, which reads the clock past every library; here one is off by years, as certificates see it.
//!
//! To add a row: what it is about, what is done to the node's files (what the function returns is kept until the row is over), where it must
//! show ([`Says`]), and the words.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

mod bed;
#[path = "../support/mod.rs"]
mod support;

mod api;
mod neighbours;
mod signals;

use bed::{Agent, Bed};
use mainstay_model::layout::NodeLayout;
use mainstay_model::{ClusterName, NodeId};
use mainstay_net::{Authority, Role};
use std::any::Any;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Where it must be said.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    /// The agent ends with this status and says it; its own files are unchanged as well.
    Ends(i32),
    /// The agent goes on without a server, and `mainstay status` shows this problem.
    Problem(&'static str),
    /// The agent and its server go on, and `mainstay status` shows this problem.
    Running(&'static str),
    /// The agent goes on, and `mainstay why` says it.
    Why,
    /// The agent goes on, and says it in its log.
    Log,
}

struct Row {
    what: &'static str,
    make: fn(&Bed) -> Box<dyn Any>,
    says: Says,
    words: &'static [&'static str],
}

const fn row(what: &'static str, make: fn(&Bed) -> Box<dyn Any>, says: Says, words: &'static [&'static str]) -> Row {
    Row { what, make, says, words }
}

fn nothing() -> Box<dyn Any> {
    Box::new(())
}

fn layout(bed: &Bed) -> NodeLayout {
    NodeLayout::new(bed.node("db1"))
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives a path and what is below it to the user of the servers.
fn give(path: &Path, like: &Path) {
    let owner = std::fs::metadata(like).unwrap();
    let owner = format!("{}:{}", owner.uid(), owner.gid());
    assert!(Command::new("chown").args(["-R", &owner]).arg(path).status().unwrap().success());
}

/// A data directory that another cluster's server made, in the place of ours.
fn foreign_data(bed: &Bed) {
    let data = layout(bed).data();
    let made = bed.at("foreign");
    let _ = std::fs::remove_dir_all(&made);
    std::fs::create_dir(&made).unwrap();
    give(&made, &layout(bed).conf());
    let programs = mainstay_engine_postgres::find_bin_dir(None).unwrap();
    let initdb = format!("{}/initdb -U postgres -N -D {} > /dev/null", programs.display(), made.display());
    let mut command = Command::new("sh");
    if as_root() {
        command = Command::new("setpriv");
        let owner = std::fs::metadata(&made).unwrap();
        command.args([
            &format!("--reuid={}", owner.uid()),
            &format!("--regid={}", owner.gid()),
            "--clear-groups",
            "sh",
        ]);
    }
    assert!(command.args(["-c", &initdb]).current_dir("/").status().unwrap().success());
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&made, &data).unwrap();
}

/// Another certificate for the agent.
fn papers(bed: &Bed, cluster: &str, role: &Role, valid: Duration) {
    let name = ClusterName::new(cluster).unwrap();
    let authority = if cluster == "orders" {
        Authority::load(&name, &bed.at("pki/ca.crt"), &bed.at("pki/ca.key")).unwrap()
    } else {
        Authority::create(&name).unwrap()
    };
    let issued = authority.issue_for(role, &[bed.host("db1")], valid).unwrap();
    let files = layout(bed);
    std::fs::write(files.node_cert(), issued.cert_pem).unwrap();
    std::fs::write(files.node_key(), issued.key_pem).unwrap();
}

fn db1() -> Role {
    Role::Node(NodeId::new("db1").unwrap())
}

const DAY: Duration = Duration::from_secs(86_400);

/// The node's directory on a small volume of its own, with what was in it.
struct Volume(std::path::PathBuf);

impl Volume {
    fn of(bed: &Bed, megabytes: u32) -> Self {
        let (dir, away) = (bed.node("db1"), bed.at("away"));
        std::fs::rename(&dir, &away).unwrap();
        std::fs::create_dir(&dir).unwrap();
        let options = format!("size={megabytes}m,mode=0711");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&dir).status().unwrap();
        assert!(mount.success());
        let volume = Self(dir.clone());
        assert!(Command::new("cp").arg("-a").arg(away.join(".")).arg(&dir).status().unwrap().success());
        std::fs::remove_dir_all(&away).unwrap();
        volume
    }

    /// Leaves so much free.
    fn fill(&self, leave: u64) {
        let is = rustix::fs::statvfs(&self.0).unwrap();
        let free = is.f_bavail * is.f_frsize;
        let filler = vec![0_u8; usize::try_from(free.saturating_sub(leave)).unwrap()];
        std::fs::write(self.0.join("filler"), filler).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let unmount = Command::new("umount").arg(&self.0).status().unwrap();
        assert!(unmount.success() || std::thread::panicking());
    }
}

/// A node that has joined and never ran.
const NEW: &[Row] = &[
    row(
        "no directory",
        |bed| {
            std::fs::rename(bed.node("db1"), bed.at("elsewhere")).unwrap();
            nothing()
        },
        Says::Ends(1),
        &["the directory of node db1 does not exist", "mainstay join"],
    ),
    row(
        "PostgreSQL is missing",
        |bed| {
            std::fs::create_dir(bed.at("empty")).unwrap();
            bed.write_file(&format!("[postgres]\nbin_dir = \"{}\"\n", bed.at("empty").display()));
            nothing()
        },
        Says::Ends(1),
        &["no PostgreSQL server programs found in", "install the distribution's postgresql package, or set bin_dir"],
    ),
    row(
        "PostgreSQL is too old",
        |bed| {
            for name in ["postgres", "initdb"] {
                let path = bed.at(name);
                std::fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 14.9 (Old 14.9-1)'\n").unwrap();
                mode(&path, 0o755);
            }
            bed.write_file(&format!("[postgres]\nbin_dir = \"{}\"\n", bed.at("").display()));
            nothing()
        },
        Says::Ends(1),
        &["PostgreSQL 14.9 in", "too old", "install version 15 or newer"],
    ),
    row(
        "files that are no data directory",
        |bed| {
            std::fs::write(layout(bed).data().join("thesis.txt"), "years").unwrap();
            nothing()
        },
        Says::Problem("server-silent"),
        &["not empty and no data directory of PostgreSQL", "move what is in it away"],
    ),
    row(
        "data of which nobody knows",
        |bed| {
            foreign_data(bed);
            nothing()
        },
        Says::Why,
        &["data exist here and the store has no record"],
    ),
    row(
        "the agent's key is gone",
        |bed| {
            std::fs::remove_file(layout(bed).node_key()).unwrap();
            nothing()
        },
        Says::Ends(1),
        &["node.key", "No such file", "mainstay pki issue", "mainstay join --again"],
    ),
];

/// A node that is alone in its cluster, has data and was stopped. One generation was made after its file.
const KEPT: &[Row] = &[
    row(
        "the server's port is in use",
        |bed| Box::new(std::net::TcpListener::bind((bed.host("db1"), 5432)).unwrap()),
        Says::Problem("server-silent"),
        &["port 5432 of 127.", "in use by process", "another port in mainstay.toml"],
    ),
    row(
        "the agent's port is in use",
        |bed| Box::new(std::net::TcpListener::bind((bed.host("db1"), 7420)).unwrap()),
        Says::Ends(1),
        &[":7420", "in use"],
    ),
    row(
        "the port for health checks is in use",
        |bed| Box::new(std::net::TcpListener::bind((bed.host("db1"), 7421)).unwrap()),
        Says::Ends(1),
        &[":7421 for health checks", "another agent"],
    ),
    row(
        "the data directory is open to others",
        |bed| {
            mode(&layout(bed).data(), 0o755);
            nothing()
        },
        Says::Problem("server-silent"),
        &["has mode 755", "chmod 700"],
    ),
    row(
        "the data directory is a link",
        |bed| {
            let (data, away) = (layout(bed).data(), bed.at("away"));
            std::fs::rename(&data, &away).unwrap();
            std::os::unix::fs::symlink(&away, &data).unwrap();
            nothing()
        },
        Says::Problem("server-silent"),
        &["is a symbolic link", "mount or move the data there"],
    ),
    row(
        "the data are of a newer PostgreSQL",
        |bed| {
            std::fs::write(layout(bed).data().join("PG_VERSION"), "99\n").unwrap();
            nothing()
        },
        Says::Problem("server-silent"),
        &["was made by PostgreSQL 99", "install PostgreSQL 99 or set bin_dir"],
    ),
    row(
        "the data are of another cluster",
        |bed| {
            foreign_data(bed);
            nothing()
        },
        Says::Problem("node-stays-out"),
        &["belongs to another cluster", "move it away"],
    ),
    row(
        "the server's certificate is gone",
        |bed| {
            std::fs::remove_file(layout(bed).server_cert()).unwrap();
            nothing()
        },
        Says::Problem("server-silent"),
        &["server.crt can not be read", "mainstay pki issue"],
    ),
    row("an older file", |_| nothing(), Says::Running("file-older"), &["mainstay set"]),
    row(
        "an edited file",
        |bed| {
            bed.write_file("[failover]\nlease_ms = 5000\n");
            nothing()
        },
        Says::Running("file-differs"),
        &["never applied", "mainstay set"],
    ),
    row(
        "a file of another cluster",
        |bed| {
            std::fs::write(bed.at("mainstay.toml"), bed.text("").replace("orders", "bills")).unwrap();
            nothing()
        },
        Says::Ends(1),
        &["of the cluster orders", "names the cluster bills", "the right file, or another directory"],
    ),
    row(
        "a file without this node",
        |bed| {
            std::fs::write(bed.at("mainstay.toml"), bed.text("").replace("db1\"\nhost", "dbx\"\nhost")).unwrap();
            nothing()
        },
        Says::Ends(2),
        &["has no node db1", "dbx"],
    ),
    row(
        "a certificate of another cluster",
        |bed| {
            papers(bed, "bills", &db1(), DAY);
            nothing()
        },
        Says::Ends(1),
        &["mainstay://bills/node/db1", "is not of the cluster orders"],
    ),
    row(
        "a certificate of another role",
        |bed| {
            papers(bed, "orders", &Role::Admin("ann".to_owned()), DAY);
            nothing()
        },
        Says::Ends(1),
        &["mainstay://orders/admin/ann", "node.crt"],
    ),
    row(
        "a key that is cut off",
        |bed| {
            std::fs::write(layout(bed).node_key(), "-----BEGIN PRIVATE KEY-----\nMIGH").unwrap();
            nothing()
        },
        Says::Ends(1),
        &["node.key: not a whole private key"],
    ),
    row(
        "a key of another certificate",
        |bed| {
            std::fs::copy(layout(bed).proxy_key(), layout(bed).node_key()).unwrap();
            nothing()
        },
        Says::Ends(1),
        &["node.key: it is not the key of the certificate beside it"],
    ),
    row(
        "a certificate that has ended",
        |bed| {
            papers(bed, "orders", &db1(), Duration::from_secs(1));
            std::thread::sleep(Duration::from_millis(2100));
            nothing()
        },
        Says::Log,
        &["our own certificate has expired", "mainstay pki issue", "mainstay join --again"],
    ),
    row(
        "a damaged store",
        |bed| {
            damage(&layout(bed).raft());
            nothing()
        },
        Says::Ends(1),
        &["the store's journal in", "nothing was changed", "mainstay node replace"],
    ),
    row(
        "a damaged promise",
        |bed| {
            std::fs::write(layout(bed).durable(), "{\"promise\":").unwrap();
            nothing()
        },
        Says::Ends(1),
        &["durable.json"],
    ),
];

/// Rows that need root: owners and volumes.
const KEPT_AS_ROOT: &[Row] = &[
    row(
        "the data directory belongs to somebody else",
        |bed| {
            std::os::unix::fs::chown(layout(bed).data(), Some(0), Some(0)).unwrap();
            nothing()
        },
        Says::Problem("server-silent"),
        &["belongs to user 0", "chown -R"],
    ),
    row(
        "the volume is nearly full",
        |bed| {
            let volume = Volume::of(bed, 250);
            volume.fill(120 << 20);
            Box::new(volume)
        },
        Says::Running("disk-nearly-full"),
        &["MiB are free on its data volume", "free space or enlarge the volume"],
    ),
    row(
        "the volume is full",
        |bed| {
            let volume = Volume::of(bed, 250);
            volume.fill(10 << 20);
            Box::new(volume)
        },
        Says::Problem("server-silent"),
        &["is full", "free some space"],
    ),
];

/// Turns bits over in the middle of each file of the store.
fn damage(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 3;
        for byte in bytes.iter_mut().skip(middle).take(8) {
            *byte ^= 0xff;
        }
        std::fs::write(&path, bytes).unwrap();
    }
}

fn lacking(text: &str, words: &[&str]) -> Vec<String> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.iter().filter(|words| !text.contains(**words)).map(|words| format!("does not say {words:?}")).collect()
}

/// Waits until it is said where it must be.
fn listen(bed: &Bed, agent: &mut Agent<'_>, row: &Row) -> Result<(), String> {
    let (said, server) = match row.says {
        Says::Ends(status) => {
            let ended = agent.ended()?;
            let lacks = lacking(&agent.said(), row.words);
            return match (ended == status, lacks.as_slice()) {
                (true, []) => Ok(()),
                _ => Err(format!("ended with {ended}; {}", lacks.join("; "))),
            };
        }
        Says::Problem(name) | Says::Running(name) => {
            let problems = |agent: &Agent<'_>| {
                let status = agent.bed().read(&["status"]);
                let all = status["problems"].as_array().cloned().unwrap_or_default();
                let texts = all.iter().filter(|problem| problem["name"] == name);
                texts.map(|problem| format!("{} {}", problem["evidence"], problem["hint"])).collect::<String>()
            };
            (
                agent.until(name, |agent| lacking(&problems(agent), row.words).is_empty()),
                row.says != Says::Problem(name),
            )
        }
        Says::Why => {
            let why = |agent: &Agent<'_>| agent.bed().read(&["why"]).to_string();
            (agent.until("explained", |agent| lacking(&why(agent), row.words).is_empty()), false)
        }
        Says::Log => (agent.until("said", |agent| lacking(&agent.said(), row.words).is_empty()), true),
    };
    said.map_err(|why| format!("{why}; status: {}", bed.read(&["status"])))?;
    let runs = || bed.processes().iter().any(|(_, line)| line.contains("bin/postgres -D"));
    if matches!(row.says, Says::Running(_)) { agent.until("running", |_| runs()) } else { Ok(()) }?;
    if !server && runs() { Err("a server was started".to_owned()) } else { Ok(()) }
}

fn check(bed: &Bed, row: &Row) -> Option<String> {
    let begun = std::time::Instant::now();
    let kept = (row.make)(bed);
    let ends = matches!(row.says, Says::Ends(_));
    let touched = matches!(row.says, Says::Running(_) | Says::Log);
    let before = bed.precious("db1", ends);
    let mut agent = bed.agent("db1");
    let mut wrong: Vec<String> = listen(bed, &mut agent, row).err().into_iter().collect();
    let last = agent.last();
    if !ends {
        wrong.extend(agent.end().err());
    }
    wrong.extend(bed.nothing_left().err());
    if !touched {
        let after = bed.precious("db1", ends);
        let changed = before.keys().chain(after.keys()).find(|path| before.get(*path) != after.get(*path));
        wrong.extend(changed.map(|path| format!("{} was changed", path.display())));
    }
    bed.kill_all();
    drop(kept);
    println!("{} ({} ms)", row.what, begun.elapsed().as_millis());
    (!wrong.is_empty()).then(|| format!("{}: {}\n{last}\n", row.what, wrong.join("; ")))
}

/// Every row begins with the same files.
fn check_all(bed: &Bed, rows: &[&[Row]]) {
    let (nodes, kept) = (bed.at("nodes"), bed.at("kept"));
    let copy = |from: &Path, to: &Path| {
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy(&nodes, &kept);
    let mut failed = Vec::new();
    for row in rows.iter().copied().flatten() {
        let _ = std::fs::remove_dir_all(bed.at("away"));
        std::fs::remove_dir_all(&nodes).unwrap();
        copy(&kept, &nodes);
        bed.write_file("");
        failed.extend(check(bed, row));
    }
    assert!(failed.is_empty(), "{} rows fail:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn a_new_node_meets_what_is_not_as_it_must_be() {
    check_all(&Bed::new(&["db1"]), &[NEW]);
}

#[test]
fn a_node_with_data_meets_what_is_not_as_it_must_be() {
    let bed = Bed::new(&["db1"]);
    let mut agent = bed.agent("db1");
    agent.until_writable().unwrap();
    bed.done(&["set", "failover.lease_ms=4000", "--yes"]);
    agent.end().unwrap();
    bed.nothing_left().unwrap();
    if as_root() {
        check_all(&bed, &[KEPT, KEPT_AS_ROOT]);
    } else {
        println!("not root: owners of directories and small volumes were not looked at");
        check_all(&bed, &[KEPT]);
    }
}

/// Rows can fail, in each of the ways in which one can be wrong.
#[test]
fn a_wrong_row_is_noticed() {
    let bed = Bed::new(&["db1"]);
    fn missing(bed: &Bed) -> Box<dyn Any> {
        std::fs::create_dir_all(bed.at("empty")).unwrap();
        bed.write_file(&format!("[postgres]\nbin_dir = \"{}\"\n", bed.at("empty").display()));
        nothing()
    }
    let wrong = check(&bed, &row("other words", missing, Says::Ends(1), &["what nobody says"])).unwrap();
    assert!(wrong.contains("does not say \"what nobody says\""), "{wrong}");
    let wrong = check(&bed, &row("another status", missing, Says::Ends(3), &["bin_dir"])).unwrap();
    assert!(wrong.contains("ended with 1"), "{wrong}");
    let wrong = check(&bed, &row("no problem", missing, Says::Problem("clock-off"), &["x"])).unwrap();
    assert!(wrong.contains("not clock-off: it has ended"), "{wrong}");
}
