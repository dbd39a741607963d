//! Every wrong command line and file that the program can meet without a running cluster, as a table. Each row runs the real program and says:
//! the exit status, the words that must appear (the thing that is wrong, and the way out), and that nothing was changed on disk.
//!
//! To add a row: what it is about, how its directory is made (a function of [`Home`]), the command line (`{}` stands for the directory), the exit
//! status, and the words. Every row runs with `--json`; the last line of standard output must then be one object with the same error.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

mod support;

use mainstay_model::ClusterName;
use mainstay_net::{Authority, Role};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use support::{Everything, everything};

/// A directory of its own for each row.
struct Home(tempfile::TempDir);

impl Home {
    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str, mode: u32) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn file(&self, more: &str) {
        self.write("mainstay.toml", &format!("{CLUSTER}{more}"), 0o644);
    }

    /// Certificates for the administrator of this cluster, as `pki/NAME`.
    fn papers(&self, cluster: &str, name: &str) {
        let authority = Authority::create(&ClusterName::new(cluster).unwrap()).unwrap();
        let issued = authority.issue(&Role::Admin("ann".to_owned()), &[]).unwrap();
        self.write("pki/ca.crt", authority.cert_pem(), 0o644);
        self.write(&format!("pki/{name}.crt"), &issued.cert_pem, 0o644);
        self.write(&format!("pki/{name}.key"), &issued.key_pem, 0o600);
    }

    /// Everything below it.
    fn everything(&self) -> Everything {
        everything(self.0.path())
    }
}

/// Two nodes whose agents nobody runs: port 1 refuses at once.
const CLUSTER: &str = "[cluster]\nname = \"orders\"\n[[node]]\nname = \"db1\"\nhost = \"127.0.0.1\"\nagent_port = 1\n\
                       [[node]]\nname = \"db2\"\nhost = \"127.0.0.2\"\nagent_port = 1\n";

struct Row {
    what: &'static str,
    make: fn(&Home),
    line: &'static str,
    status: i32,
    words: &'static [&'static str],
}

const fn row(
    what: &'static str,
    make: fn(&Home),
    line: &'static str,
    status: i32,
    words: &'static [&'static str],
) -> Row {
    Row { what, make, line, status, words }
}

fn nothing(_: &Home) {}
fn good(home: &Home) {
    home.file("");
}
fn operable(home: &Home) {
    home.file("");
    home.papers("orders", "admin");
}

/// Wrong command lines: no file is looked at.
const LINES: &[Row] = &[
    row("unknown verb", nothing, "switchovr", 2, &["unrecognized subcommand 'switchovr'", "'switchover'"]),
    row("unknown option", nothing, "status --wach", 2, &["'--wach'", "'--watch'"]),
    row("a directory and a file", nothing, "status --dir a --config b", 2, &["cannot be used with"]),
    row("a node's name that is none", nothing, "switchover --to DB2", 2, &["\"DB2\" is not a name", "a letter a-z"]),
    row("a cluster's name that is none", nothing, "status --name Orders", 2, &["\"Orders\" is not a name"]),
    row("a missing node", nothing, "reinit", 2, &["<NODE>"]),
    row("a node without host", nothing, "node add db3", 2, &["--host <HOST>"]),
    row("node without verb", nothing, "node", 2, &["mainstay node"]),
    row("a port that is none", nothing, "node add db3 --host h --port 99999", 2, &["99999", "0..=65535"]),
    row("a wait that is none", nothing, "restart --wait 0", 2, &["0 is not in 1..=86400"]),
    row("keys and a file at once", nothing, "set a=1 --file f", 2, &["cannot be used with"]),
    row("too many nodes for up", nothing, "up --nodes 10 --dir {}/c", 2, &["10 is not in 1..=9"]),
    row("a copy that follows nowhere", nothing, "follow --repository {}/vault", 2, &["--to <DIR>"]),
    row("a copy that is none", nothing, "follow --status --to {}/none", 2, &["none is no copy that follows"]),
    row("an address without a port", nothing, "follow --to {}/c --listen 10.0.0.1", 2, &["--port <NUMBER>"]),
    row("an age that is not asked for", nothing, "follow --to {}/c --most-age 5", 2, &["--status"]),
    row("to follow and to promote", nothing, "follow --to {}/c --promote --again", 2, &["cannot be used with"]),
    row("an unknown engine", nothing, "up --engine oracle --dir {}/c", 2, &["oracle", "postgres"]),
    row("an unknown durability", nothing, "up --durability none --dir {}/c", 2, &["strict, available, async"]),
];

/// Files that are missing, can not be read, or hold mistakes. Each is met by a verb that only reads, and by one that changes.
const FILES: &[Row] = &[
    row(
        "no cluster",
        nothing,
        "status --dir {}/none",
        2,
        &["there is no cluster", "{}/none/mainstay.toml", "mainstay up"],
    ),
    row("no file", nothing, "failover --config {}/x.toml", 2, &["there is no cluster", "{}/x.toml", "--config"]),
    row(
        "no file to apply",
        nothing,
        "apply --file {}/x.toml --check",
        2,
        &["there is no cluster", "{}/x.toml", "--file"],
    ),
    row(
        "a plan that is none",
        |home| {
            home.file("");
            home.write("plan.json", "{}", 0o644);
        },
        "apply --file {}/mainstay.toml --plan {}/plan.json --check",
        2,
        &["it is no plan of ours", "mainstay plan --json"],
    ),
    row("a directory instead of a file", good, "status --config {}", 2, &["can not be read", "Is a directory"]),
    row("a file that never ends", nothing, "status --config /dev/zero", 2, &["/dev/zero", "larger than 16 MiB"]),
    row("a file to apply that never ends", good, "set --file /dev/zero --dir {}", 2, &["larger than 16 MiB"]),
    row(
        "a plan that never ends",
        good,
        "apply --file {}/mainstay.toml --plan /dev/zero --check",
        2,
        &["--plan /dev/zero: it is larger than 16 MiB"],
    ),
    row(
        "a program that never ends",
        good,
        "apply --file {}/mainstay.toml --program /dev/zero --check",
        2,
        &["the program /dev/zero: it is no file"],
    ),
    row(
        "no settings of ssh",
        good,
        "apply --file {}/mainstay.toml --ssh-config {}/x --check",
        2,
        &["--ssh-config {}/x"],
    ),
    row("no runbook", good, "doctor --no-write --runbook {}/x.md --dir {}", 2, &["--runbook {}/x.md"]),
    row("no key", good, "backups --repository {}/r --key-file {}/x", 2, &["--key-file {}/x"]),
    row(
        "no token",
        good,
        "join --config {}/mainstay.toml --operator ann --token {}/x --at 127.0.0.1:1",
        2,
        &["can not be read from {}/x"],
    ),
    row("no bundle", good, "join --config {}/mainstay.toml --operator ann --bundle {}/x", 2, &["read {}/x/"]),
    row(
        "no text",
        |home| std::fs::write(home.at("mainstay.toml"), [0xff, 0xfe]).unwrap(),
        "status --dir {}",
        2,
        &["can not be read", "UTF-8"],
    ),
    row("no TOML", |home| home.file("[proxy\n"), "status --dir {}", 2, &["holds mistakes", "line 11"]),
    row(
        "an unknown key",
        |home| home.file("hots = \"h\"\n"),
        "status --dir {}",
        2,
        &["line 11: unknown key \"hots\" in [node]; did you mean \"host\"?"],
    ),
    row(
        "an unknown table",
        |home| home.file("[fail-over]\n"),
        "restart --dir {}",
        2,
        &["\"fail-over\" at the top of the file", "did you mean \"failover\"?"],
    ),
    row("a wrong type", |home| home.file("port = \"x\"\n"), "status --dir {}", 2, &["line 11", "port = \"x\""]),
    row(
        "a number out of bounds",
        |home| home.file("[failover]\nlease_ms = 1\n"),
        "pause --dir {}",
        2,
        &["line 12: failover.lease_ms = 1 is out of bounds: 500 to 600000"],
    ),
    row(
        "a missing key",
        |home| home.file("[[node]]\nname = \"db3\"\n"),
        "status --dir {}",
        2,
        &["the key `host` is missing"],
    ),
    row(
        "two nodes of one name",
        |home| home.file("[[node]]\nname = \"db1\"\nhost = \"127.0.0.3\"\n"),
        "status --dir {}",
        2,
        &["line 12: a second node is called \"db1\""],
    ),
    row(
        "two servers on one port",
        |home| home.file("[[node]]\nname = \"db3\"\nhost = \"127.0.0.1\"\nagent_port = 2\nhealth_port = 3\n"),
        "status --dir {}",
        2,
        &["port of db3 is 5432 on host 127.0.0.1, which is taken by port of db1"],
    ),
    row(
        "a proxy on a server's port",
        |home| home.file("[proxy]\nwrite_port = 5432\n"),
        "status --dir {}",
        2,
        &["write_port of the proxy is 5432", "taken by port of db"],
    ),
    row(
        "a durability that is none",
        |home| {
            home.write(
                "mainstay.toml",
                &CLUSTER.replace("[[node]]\nname = \"db1\"", "durability = \"paranoid\"\n[[node]]\nname = \"db1\""),
                0o644,
            )
        },
        "status --dir {}",
        2,
        &["line 3", "`paranoid`", "`strict`, `available`, `async`"],
    ),
    row(
        "a commit that nobody can confirm",
        |home| home.file("[failover]\nsync_replicas = 2\n"),
        "status --dir {}",
        2,
        &["sync_replicas = 2, but 2 data nodes can have 1 replica at most"],
    ),
    row(
        "a commit that nothing protects",
        |home| home.file("[failover]\nsync_replicas = 0\n"),
        "status --dir {}",
        2,
        &["protects no commit", "durability = \"async\""],
    ),
    row(
        "a parameter of ours",
        |home| home.file("[postgres.parameters]\nprimary_conninfo = \"x\"\n"),
        "status --dir {}",
        2,
        &["line 12: parameter \"primary_conninfo\" is Mainstay's own", "remove it"],
    ),
    row(
        "an access line that is none",
        |home| home.file("[postgres]\nhba = [\"allow\"]\n"),
        "status --dir {}",
        2,
        &["\"allow\" is not one line of pg_hba.conf"],
    ),
    row(
        "only witnesses",
        |home| {
            home.write(
                "mainstay.toml",
                "[cluster]\nname = \"a\"\n[[node]]\nname = \"w\"\nhost = \"h\"\nwitness = true\n",
                0o644,
            )
        },
        "status --dir {}",
        2,
        &["no node holds data"],
    ),
    row(
        "a foreign directory for up",
        |home| home.write("c/thesis.txt", "years", 0o644),
        "up --dir {}/c",
        1,
        &["not empty", "thesis.txt", "another directory"],
    ),
    row(
        "a foreign directory for down",
        |home| home.write("c/thesis.txt", "years", 0o644),
        "down --destroy --dir {}/c",
        1,
        &["thesis.txt"],
    ),
];

/// Certificates that are missing, not ours, or open to others.
const PAPERS: &[Row] = &[
    row("no certificate", good, "status --dir {}", 1, &["API can not be called", "{}/pki/", "--identity"]),
    row(
        "no certificate where one was named",
        good,
        "status --dir {} --identity {}/ann",
        2,
        &["there is no {}/ann.crt", "NAME.key"],
    ),
    // What could go on without asking does so only if nothing was named.
    row(
        "a doctor with a certificate that is none",
        good,
        "doctor --no-write --dir {} --identity {}/ann",
        2,
        &["no {}/ann.crt"],
    ),
    row("a runbook with a certificate that is none", good, "runbook --dir {} --identity {}/ann", 2, &["no {}/ann.crt"]),
    row(
        "a runbook with another cluster's certificate",
        |home| {
            home.file("");
            home.papers("bills", "ann");
        },
        "runbook --dir {} --identity {}/pki/ann",
        1,
        &["mainstay://bills/admin/ann is not of the cluster orders"],
    ),
    row("backups with a certificate that is none", good, "backups --dir {} --identity {}/ann", 2, &["no {}/ann.crt"]),
    row(
        "a directory without certificates",
        good,
        "status --dir {} --identity {}",
        2,
        &["holds no certificate with its key"],
    ),
    row(
        "several certificates",
        |home| {
            operable(home);
            home.papers("orders", "ben");
            home.papers("orders", "ann");
            std::fs::remove_file(home.at("pki/admin.crt")).unwrap();
        },
        "status --dir {} --identity {}/pki",
        2,
        &["holds several", "{}/pki/ann"],
    ),
    row(
        "another cluster's certificate",
        |home| {
            home.file("");
            home.papers("bills", "admin");
        },
        "switchover --dir {}",
        1,
        &["mainstay://bills/admin/ann is not of the cluster orders", "--identity"],
    ),
    row(
        "a key that others can read",
        |home| {
            operable(home);
            std::fs::set_permissions(home.at("pki/admin.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
        },
        "set --dir {}",
        1,
        &["admin.key", "mode 644", "chmod 600"],
    ),
    row(
        "a broken certificate",
        |home| {
            operable(home);
            home.write("pki/admin.crt", "nonsense", 0o644);
        },
        "recover --dir {}",
        1,
        &["pki/admin.crt", "no certificate in the file"],
    ),
    row(
        "a broken key",
        |home| {
            operable(home);
            home.write("pki/admin.key", "nonsense", 0o600);
        },
        "status --dir {}",
        1,
        &["API can not be called", "admin.crt"],
    ),
    row(
        "no authority",
        |home| {
            operable(home);
            std::fs::remove_file(home.at("pki/ca.crt")).unwrap();
        },
        "status --dir {}",
        1,
        &["{}/pki/ca.crt", "--identity"],
    ),
];

/// Wrong wishes that are known without any agent.
const WISHES: &[Row] = &[
    row("a doctor without a cluster", nothing, "doctor --dir {}", 2, &["there is no cluster", "--config"]),
    row(
        "a doctor for a node that is none",
        good,
        "doctor --no-write --node db9 --dir {}",
        2,
        &["the cluster orders has no node db9", "did you mean db1?"],
    ),
    row(
        "a doctor on a host that is no node's",
        |home| home.write("mainstay.toml", &CLUSTER.replace("127.0.0.", "198.51.100."), 0o644),
        "doctor --no-write --dir {}",
        2,
        &["no node of the cluster orders has an address of this host", "--node NODE"],
    ),
    row(
        "an unknown node",
        good,
        "switchover --to db9 --dir {}",
        2,
        &["the cluster orders has no node db9", "did you mean db1?"],
    ),
    row("an unknown node to fail over to", good, "failover --to db7 --dir {}", 2, &["has no node db7"]),
    row("an unknown node to restart", good, "restart db1 dbb2 --dir {}", 2, &["no node dbb2", "did you mean db2?"]),
    row("an unknown node to clone", good, "reinit zeta --dir {}", 2, &["its nodes are db1, db2"]),
    row("an unknown node to remove", good, "node remove db3 --dir {}", 2, &["has no node db3"]),
    row("an unknown node to replace", good, "node replace db3 --dir {}", 2, &["has no node db3"]),
    row("an unknown node to recover from", good, "recover --from db3 --dir {}", 2, &["has no node db3"]),
    row("an unknown node to ask why", good, "why --node db3 --dir {}", 2, &["has no node db3"]),
    row("an event that is none", good, "why yesterday --dir {}", 2, &["\"yesterday\" is no event", "last"]),
    row("a time that is none", good, "history --since soon --dir {}", 2, &["\"soon\" is no time", "2h (before now)"]),
    row("no assignment", good, "set failover.lease_ms --dir {}", 2, &["is not KEY=VALUE", "nothing was changed"]),
    row(
        "an unknown key",
        good,
        "set failover.leese_ms=1 --dir {}",
        2,
        &["unknown key \"failover.leese_ms\"; did you mean failover.lease_ms?"],
    ),
    row("a key without its table", good, "set durability=async --dir {}", 2, &["did you mean cluster.durability?"]),
    row("a bare server parameter", good, "set work_mem=1GB --dir {}", 2, &["postgres.parameters.work_mem=VALUE"]),
    row("a key of no node", good, "set node.db1.zoen=a --dir {}", 2, &["did you mean node.db1.zone?"]),
    row("a host that moves", good, "set node.db1.host=10.0.0.9 --dir {}", 2, &["mainstay node replace"]),
    row("a cluster that is renamed", good, "set cluster.name=b --dir {}", 2, &["keeps its name"]),
    row("an unknown key to unset", good, "set --unset failover.leas --dir {}", 2, &["unknown key \"failover.leas\""]),
    row(
        "a key given twice",
        good,
        "set failover.lease_ms=4000 failover.lease_ms=5000 --dir {}",
        2,
        &["failover.lease_ms is given twice"],
    ),
    row("no file to apply", good, "set --file {}/none.toml --dir {}", 2, &["{}/none.toml", "No such file"]),
    row(
        "a file with mistakes to apply",
        |home| {
            home.file("");
            home.write("new.toml", "[cluster]\nnmae = \"a\"\n", 0o644);
        },
        "set --file {}/new.toml --dir {}",
        2,
        &["{}/new.toml holds mistakes", "line 2", "did you mean \"name\"?"],
    ),
];

fn run(home: &Home, row: &Row, more: &[&str]) -> Output {
    let dir = home.0.path().to_str().unwrap();
    let mut arguments: Vec<String> = row.line.split(' ').map(|word| word.replace("{}", dir)).collect();
    arguments.extend(more.iter().map(|word| (*word).to_owned()));
    Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(arguments)
        .env_clear()
        .env("HOME", home.at("nobody"))
        .env("PATH", "/usr/bin:/bin")
        .current_dir(home.0.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn check(row: &Row) -> Vec<String> {
    let home = Home(tempfile::tempdir().unwrap());
    std::fs::set_permissions(home.0.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    (row.make)(&home);
    let before = home.everything();
    let output = run(&home, row, &["--yes", "--json"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut wrong = Vec::new();
    if output.status.code() != Some(row.status) {
        wrong.push(format!("exit status {:?}, not {}", output.status.code(), row.status));
    }
    // Long messages are continued on indented lines.
    let flat = err.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in row.words {
        let words = words.replace("{}", home.0.path().to_str().unwrap());
        if !flat.contains(&words) {
            wrong.push(format!("does not say {words:?}"));
        }
    }
    let object: Value = out.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    if object["error"].as_str().is_none_or(str::is_empty) {
        wrong.push(format!("the last line is no object with an error: {out}"));
    }
    if home.everything() != before {
        wrong.push("something was changed on disk".to_owned());
    }
    if wrong.is_empty() {
        Vec::new()
    } else {
        vec![format!("{} (mainstay {}): {}\n{err}", row.what, row.line, wrong.join("; "))]
    }
}

fn check_all(rows: &[Row]) {
    let failed: Vec<String> = rows.iter().flat_map(check).collect();
    assert!(failed.is_empty(), "{} of {} rows fail:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

#[test]
fn wrong_command_lines() {
    check_all(LINES);
}

#[test]
fn wrong_files() {
    check_all(FILES);
}

#[test]
fn wrong_certificates() {
    check_all(PAPERS);
}

#[test]
fn wrong_wishes() {
    check_all(WISHES);
}

/// Every verb says which agents do not answer and why, and changes nothing.
#[test]
fn without_agents_every_verb_says_so() {
    let lines = [
        "status --dir {}",
        "history --dir {}",
        "why --dir {}",
        "switchover --dir {}",
        "failover --dir {}",
        "restart --dir {}",
        "reinit db2 --dir {}",
        "pause --dir {}",
        "resume --dir {}",
        "node replace db2 --dir {}",
        "recover --from db1 --dir {}",
    ];
    let rows = lines.map(|line| {
        row("no agent", operable, line, 1, &["no agent of the cluster answers", "db1:", "db2:", "refused", "next:"])
    });
    check_all(&rows);
    let lines = ["set --dir {}", "set failover.lease_ms=4000 --dir {}", "node add db3 --host 127.0.0.3 --dir {}"];
    let rows = lines
        .map(|line| row("no agent", operable, line, 3, &["no agent tells the specification in force", "a majority"]));
    check_all(&rows);
}

/// The environment names what options would.
#[test]
fn the_environment_counts_as_options_do() {
    let home = Home(tempfile::tempdir().unwrap());
    home.file("");
    let run = |variable: &str, value: PathBuf| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.arg("status").env_clear().env("HOME", home.at("nobody")).env(variable, value);
        if variable != "MAINSTAY_CONFIG" {
            command.env("MAINSTAY_CONFIG", home.at("mainstay.toml"));
        }
        String::from_utf8_lossy(&command.stdin(Stdio::null()).output().unwrap().stderr).into_owned()
    };
    assert!(run("MAINSTAY_CONFIG", home.at("none.toml")).contains("none.toml does not exist"));
    assert!(
        run("MAINSTAY_IDENTITY", home.at("eve")).contains("there is no"),
        "{}",
        run("MAINSTAY_IDENTITY", home.at("eve"))
    );
}

/// The table itself can fail: a row that expects the wrong things is noticed, in each of the ways in which a row can be wrong.
#[test]
fn a_wrong_row_is_noticed() {
    let found = check(&row("a row that is wrong", good, "connect --uri role --dir {}", 2, &["words that nobody says"]));
    let text = found.join("\n");
    for words in ["exit status Some(", "does not say \"words that nobody says\""] {
        assert!(text.contains(words), "{words}: {text}");
    }
    fn with_password(home: &Home) {
        good(home);
        home.write("secrets/app.password", "s3cret\n", 0o600);
    }
    let found = check(&row("a command that succeeds", with_password, "connect --uri --dir {}", 0, &[]));
    assert!(found.join("\n").contains("no object with an error"), "{found:?}");
}
