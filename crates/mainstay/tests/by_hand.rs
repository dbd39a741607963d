//! What plan and runbook tell to type with PostgreSQL's own tools is typed: backups, a restore to the newest of a cluster whose hosts are all lost, and
//! the database without Mainstay. Paths and ports are other ones here; nothing else is changed. Needs root, as the commands do. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;
#[path = "support/until.rs"]
mod until;

use local::Cluster;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The blocks of commands below a heading of a page.
fn blocks(page: &str, heading: &str) -> String {
    let section = page.split("\n## ").find(|section| section.lines().next().unwrap().contains(heading));
    let section = section.unwrap_or_else(|| panic!("no section {heading}"));
    section.split("```sh\n").skip(1).map(|block| block.split("\n```").next().unwrap()).collect::<Vec<_>>().join("\n")
}

fn lines(commands: &str, begin: &str) -> String {
    let found: Vec<&str> = commands.lines().filter(|line| line.starts_with(begin)).collect();
    assert!(!found.is_empty(), "no line begins with {begin}:\n{commands}");
    found.join("\n")
}

struct Bed {
    cluster: Cluster,
    home: PathBuf,
    port: u16,
}

impl Bed {
    fn new() -> Bed {
        let cluster = Cluster::new();
        cluster.json(&["up", "--nodes", "3", "--name", "orders", "--wait", "180"]);
        cluster.healthy();
        // With a repository the pages name Mainstay's own commands instead.
        cluster.json(&["set", "--unset", "vault.repository"]);
        let file = cluster.dir.join("mainstay.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("repository = ")).collect();
        assert_ne!(without.len(), text.lines().count());
        std::fs::write(&file, without.join("\n") + "\n").unwrap();
        let home = cluster.dir.parent().unwrap().to_owned();
        for name in ["etc", "sock"] {
            std::fs::create_dir(home.join(name)).unwrap();
            std::fs::set_permissions(home.join(name), std::fs::Permissions::from_mode(0o777)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Bed { cluster, home, port }
    }

    /// The commands of a section, with this test's paths and ports, and with `mainstay` as it was built.
    fn commands(&self, verb: &str, heading: &str) -> String {
        let page = self.home.join(format!("{verb}.md"));
        self.cluster.json(&[verb, "--markdown", page.to_str().unwrap()]);
        let home = self.home.to_str().unwrap();
        let text = blocks(&std::fs::read_to_string(&page).unwrap(), heading);
        let mut text = text
            .replace("base/NEWEST", "base/*")
            .replace("unix_socket_directories = '/tmp'", "unix_socket_directories = 'SOCK'");
        // The cluster's own port may be the same number: only that of the server by hand is another one here.
        for (from, to) in [
            ("port = 5499", format!("port = {}", self.port)),
            ("-h /tmp -p 5499", format!("-h SOCK -p {}", self.port)),
            ("BACKUP_HOST", "127.0.0.1".into()),
        ] {
            text = text.replace(from, &to);
        }
        for (from, to) in [("/etc/postgresql", "etc"), ("~postgres/", "sock/"), ("SOCK", "sock")] {
            text = text.replace(from, &format!("{home}/{to}"));
        }
        // The directories at the root, at the beginning of a path only.
        for before in [" ", "'", "="] {
            for name in ["backup", "restore", "scratch"] {
                text = text.replace(&format!("{before}/{name}"), &format!("{before}{home}/{name}"));
            }
        }
        text.replace("PASSWORD", "secret").replace("tail -f", "tail -n 20")
    }

    fn sh(&self, commands: &str) -> Output {
        let output = Command::new("timeout")
            .args(["120", "bash", "-c", commands])
            .current_dir("/")
            .env("MAINSTAY_CONFIG", self.cluster.dir.join("mainstay.toml"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        println!(
            "$ {commands}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    fn done(&self, commands: &str) -> String {
        let output = self.sh(commands);
        assert!(output.status.success(), "{commands}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn until(&self, what: &str, commands: &str, answer: &str) {
        let begun = Instant::now();
        loop {
            let said = self.sh(commands).stdout;
            if String::from_utf8_lossy(&said).trim() == answer {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "{what}: {}", String::from_utf8_lossy(&said));
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn primary(&self) -> String {
        self.cluster.json(&["status"])["cluster"]["primary"].as_str().unwrap().to_owned()
    }

    fn insert(&self, number: u32) {
        let sql = format!("create table if not exists kept (id int); insert into kept values ({number})");
        let output = self.cluster.run(&["connect", "--", "-XAtqc", &sql]);
        assert!(output.status.success(), "{output:?}");
    }

    /// The process of a daemon of this cluster.
    fn processes(&self, words: &[&str]) -> Vec<i32> {
        let dir = self.cluster.dir.to_str().unwrap();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let named = |path: &Path| {
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(dir) && words.iter().any(|word| line.contains(&format!(" {word} --")))
        };
        let found = all.filter(|entry| named(&entry.path()));
        found.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }
}

/// A cluster of one node with a repository.
fn with_repository(name: &str) -> Cluster {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "1", "--name", name, "--wait", "180"]);
    cluster.healthy();
    cluster
}

/// What a shell says, without the environment of this test.
fn typed(commands: &str, cluster: &Cluster) -> Output {
    let built = Path::new(env!("CARGO_BIN_EXE_mainstay")).parent().unwrap().display();
    let path = format!("{built}:{}", std::env::var("PATH").unwrap());
    let output = Command::new("timeout")
        .args(["120", "bash", "-c", commands])
        .current_dir("/")
        .env("MAINSTAY_CONFIG", cluster.dir.join("mainstay.toml"))
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    println!("$ {commands}\n{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output
}

/// Ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // `runuser` is the parent of what it runs: both are of one group.
        let _ = Command::new("kill").args(["-9", "--", &format!("-{}", self.0.id())]).status();
        let _ = self.0.wait();
    }
}

const KEPT: &str = "select string_agg(id::text, ' ' order by id) from kept";

#[test]
fn what_is_told_to_be_typed_by_hand_works() {
    assert!(rustix::process::geteuid().is_root(), "this test becomes other users: run it as root");
    let bed = Bed::new();
    bed.insert(1);

    // Backups, as section 6 of the plan tells.
    let plan = bed.commands("plan", "Backup plan");
    let primary = bed.primary();
    let psql = lines(&plan, "psql")
        .split(" -c '\\password")
        .next()
        .unwrap()
        .replace("nodes/db1/run", &format!("nodes/{primary}/run"));
    bed.done(&format!("{psql} -c \"alter role backup password 'secret'\""));
    let line = lines(&plan, "mainstay set");
    let hba = line.split('\'').nth(1).unwrap();
    bed.cluster.json(&["set", hba]);
    bed.done(&lines(&plan, "install"));
    let receive = lines(&plan, "runuser -u postgres -- pg_receivewal");
    // A service that is started again: the line for it in pg_hba.conf may come into force a moment later.
    let always = format!("while true; do {receive}; sleep 1; done");
    let receiving = Command::new("bash")
        .args(["-c", &always])
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let receiving = Ended(receiving);
    bed.until(
        "a base backup",
        &format!("{} >/dev/null 2>&1 && echo yes", lines(&plan, "runuser -u postgres -- pg_basebackup")),
        "yes",
    );
    bed.done(&lines(&plan, "mkdir"));
    bed.insert(2);
    bed.cluster.json(&["switchover"]);
    bed.insert(3);
    let home = bed.home.display().to_string();
    bed.until("the log of after the switchover", &format!("ls {home}/backup/wal | grep -c '^00000002.*partial'"), "1");
    bed.insert(4);
    let superuser = psql.replace(&format!("nodes/{primary}/run"), &format!("nodes/{}/run", bed.primary()));
    let superuser = superuser.split(" -c ").next().unwrap();
    let written = bed.done(&format!("{superuser} -Atc 'select pg_current_wal_lsn()'"));
    // A commit waits for replicas, not for this program.
    let stored = format!(
        "select bool_or(flush_lsn >= '{written}') from pg_stat_replication where application_name = 'pg_receivewal'"
    );
    bed.until("the newest log is stored", &format!("{superuser} -Atc \"{stored}\""), "t");
    drop(receiving);

    // All hosts are lost: the newest of what is stored.
    let restore = bed.commands("runbook", "All hosts are lost");
    let until_open: Vec<&str> = restore
        .lines()
        .filter(|line| !line.contains("recovery_target") && !line.starts_with("tail") && !line.contains(" psql "))
        .collect();
    let begun = until_open.join("\n");
    bed.done(&begun);
    let ask = |sql: &str| format!("runuser -u postgres -- psql -h {home}/sock -p {} -d app -Atc \"{sql}\"", bed.port);
    bed.until("the restored server opens", &ask("select pg_is_in_recovery()"), "f");
    let restored = bed.done(&ask(KEPT));
    bed.done(&format!(
        "runuser -u postgres -- $(ls -d /usr/lib/postgresql/*/bin | tail -1)/pg_ctl -D {home}/restore -m fast stop"
    ));
    assert_eq!(restored, "1 2 3 4");

    // Mainstay is gone: nobody but guards and replicas' servers is left.
    let by_hand = bed.commands("runbook", "by hand");
    let daemons = ["supervise", "agent", "proxy"];
    let begun = Instant::now();
    while !bed.processes(&daemons).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "daemons live on");
        // All at once, since the supervisor starts the others again; one may have ended meanwhile.
        let pids: Vec<String> = bed.processes(&daemons).iter().map(ToString::to_string).collect();
        bed.sh(&format!("kill -9 {}", pids.join(" ")));
        std::thread::sleep(Duration::from_millis(300));
    }
    let mut typed = String::new();
    for line in by_hand.lines().filter(|line| !line.starts_with("systemctl")) {
        // Several hosts are one here, and a server that was ended already is no failure.
        let line = line.strip_prefix("ssh ").and_then(|rest| rest.split_once(' ')).map_or(line, |(_, rest)| rest);
        typed.push_str(&line.replace("listen_addresses = '*'", "listen_addresses = '127.0.0.1'"));
        typed.push('\n');
    }
    // Another cluster of this machine may have taken the ports that were free for a moment.
    let before = lines(&typed, "port = ");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let typed = typed.replace(&before, &format!("port = {port}"));
    let output = bed.sh(&typed);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("server started"), "{output:?}");
    assert_eq!(said.matches("Database cluster state").count(), 3, "{said}");
    assert_eq!(bed.processes(&["guard"]), [0; 0]);
    let data = typed
        .lines()
        .find_map(|line| line.strip_prefix("cp -a --reflink=auto "))
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    let ask = |sql: &str| format!("runuser -u postgres -- psql -h /var/run/postgresql -p {port} -d app -Atc \"{sql}\"");
    assert_eq!(bed.done(&ask(KEPT)), "1 2 3 4");
    let password = std::fs::read_to_string(bed.cluster.dir.join("secrets/app.password")).unwrap();
    let client = format!(
        "PGPASSWORD={} psql 'host=127.0.0.1 port={port} user=app dbname=app sslmode=require' -XAtqc 'insert into kept values (5)'",
        password.trim()
    );
    bed.done(&client);
    bed.done(&format!(
        "runuser -u postgres -- $(ls -d /usr/lib/postgresql/*/bin | tail -1)/pg_ctl -D {data} -m fast stop"
    ));
}

/// What the runbook tells for the case that all hosts are lost, and how it gets in as the superuser.
fn all_lost(cluster: &Cluster) -> (String, String) {
    let page = cluster.dir.parent().unwrap().join("runbook.md");
    cluster.json(&["runbook", "--markdown", page.to_str().unwrap()]);
    let text = blocks(&std::fs::read_to_string(&page).unwrap(), "All hosts are lost");
    let superuser = lines(&text, "psql").split(" -X ").next().unwrap().to_owned();
    (text, superuser)
}

/// Whatever is still there of it ends with the test.
struct Copy(String);

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = Command::new("bash").args(["-c", &self.0]).stdin(Stdio::null()).status();
    }
}

#[test]
fn a_new_cluster_is_filled_from_the_repository_of_a_lost_one_with_roles_databases_and_owners() {
    assert!(rustix::process::geteuid().is_root(), "this test becomes other users: run it as root");
    let lost = with_repository("lost");
    let (_, superuser) = all_lost(&lost);
    for sql in [
        "create role clerk login password 'theirs'",
        "create database books owner clerk",
        "\\connect books\ncreate extension pg_trgm; create table shelf (id int); insert into shelf values (7); alter table shelf owner to clerk",
        "\\connect app\ncreate table kept (id int); insert into kept values (1), (2); alter table kept owner to app",
    ] {
        let output = typed(&format!("{superuser} -v ON_ERROR_STOP=1 <<'END'\n{sql};\nEND"), &lost);
        assert!(output.status.success(), "{output:?}");
    }
    until::until("a backup", || (lost.answer(&["backup"]).0 == Some(0)).then_some(()));

    let new = with_repository("new");
    let (text, superuser) = all_lost(&new);
    let home = new.dir.parent().unwrap().display().to_string();
    let text = text
        .replace("/srv/restore", &format!("{home}/restore"))
        .replace("all.sql", &format!("{home}/all.sql"))
        .replace("load.errors", &format!("{home}/load.errors"))
        .replace(" --time 'YYYY-MM-DD HH:MM:SS'", " --yes")
        .replace(new.dir.join("vault").to_str().unwrap(), lost.dir.join("vault").to_str().unwrap());
    let stop = "runuser -u postgres -- $(ls -d /usr/lib/postgresql/*/bin | tail -1)/pg_ctl -D";
    let _copy = Copy(format!("{stop} {home}/restore -m immediate stop"));
    // All as one: nothing of it may need a pause in between.
    let output = typed(&text, &new);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("all.sql:"), "{output:?}");

    let ask = |words: &str| {
        let output = typed(words, &new);
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let owners = "select tableowner from pg_tables where schemaname = 'public'";
    assert_eq!(ask(&format!("{superuser} -d books -XAtc \"{owners}\" -c 'select id from shelf'")), "clerk\n7");
    assert_eq!(ask(&format!("{superuser} -d app -XAtc \"{owners}\"")), "app");
    let own = "select pg_get_userbyid(datdba) from pg_database where datname = 'books'";
    assert_eq!(ask(&format!("{superuser} -XAtc \"{own}\"")), "clerk");
    assert_eq!(ask("mainstay connect -- -XAtc 'select sum(id) from kept'"), "3");
    let clerk = "select rolpassword is not null from pg_authid where rolname = 'clerk'";
    assert_eq!(ask(&format!("{superuser} -XAtc \"{clerk}\"")), "t");
}
