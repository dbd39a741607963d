//! `mainstay apply` on bare virtual hosts (needs root): whatever may come between. The long suite; CONTRIBUTING.md says when.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod apply_bed;

use apply_bed::existing::{CLUSTER, NEW, OLD, SUM, adopting, comes_along, furnish, old, on_host, shop, until};
use apply_bed::{Bed, CONFIG, FILE, address, ended, file, kill_apply, names};
use mainstay_testkit::hosts::page;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn what_stands_in_the_way_leaves_every_host_as_it_was() {
    let bed = Bed::new(3);
    bed.write(&file(&[1, 2, 3], ""));
    let refused = |words: &[&str], name: &str| {
        let ended = bed.apply(&[]);
        assert_eq!(ended.code, Some(3), "{}", ended.said);
        let error = ended.answer["error"].as_str().unwrap();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
        assert!(error.contains("nothing was changed") && error.contains(&format!("{name}: ")), "{error}");
        assert!(!bed.admin.home("orders/pki").exists());
        (1..=3).for_each(|number| {
            assert!(bed.bare(number) || format!("db{number}") == name, "db{number} is not as it was")
        });
        ended.answer["hint"].as_str().unwrap().to_owned()
    };
    // Nobody confirms.
    let output = bed.command(&["apply", "--file", FILE]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(ended(&output, Duration::ZERO).code, Some(2));
    assert!((1..=3).all(|number| bed.bare(number)));
    // A look alone.
    let looked = bed.apply(&["--check"]);
    assert_eq!((looked.code, looked.answer["changed"].as_bool()), (Some(3), Some(false)));
    assert!(looked.answer["steps"].as_array().unwrap().len() > 9 && (1..=3).all(|number| bed.bare(number)));

    let (strange, own) = bed.admin.keys_of(bed.host(2)).unwrap();
    bed.admin.know(bed.host(2), &strange).unwrap();
    assert!(refused(&["HAS CHANGED", "10.78.0.2"], "db2").contains("in between"));
    bed.admin.know(bed.host(2), &own).unwrap();

    bed.switch.connect(bed.host(3), false).unwrap();
    refused(&["10.78.0.3 can not be reached"], "db3");
    bed.switch.connect(bed.host(3), true).unwrap();

    let data = bed.host(1).path("/var/lib/mainstay/orders/data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();
    refused(&["a PostgreSQL 15 database"], "db1");
    assert_eq!(std::fs::read_to_string(data.join("PG_VERSION")).unwrap(), "15\n");
    std::fs::remove_dir_all(bed.host(1).path("/var/lib/mainstay/orders")).unwrap();

    let other = "[cluster]\nname = \"bills\"\n[[node]]\nname = \"x\"\nhost = \"10.78.0.2\"\n";
    std::fs::write(bed.host(2).path(CONFIG), other).unwrap();
    refused(&["of bills, not of orders"], "db2");
    std::fs::remove_file(bed.host(2).path(CONFIG)).unwrap();

    let fill =
        "fallocate -l $(($(df --output=avail -B1 /var/lib/mainstay | tail -1) - 40000000)) /var/lib/mainstay/filler";
    assert!(bed.host(3).command(&["sh", "-c", fill]).status().unwrap().success());
    refused(&["free"], "db3");
    std::fs::remove_file(bed.host(3).path("/var/lib/mainstay/filler")).unwrap();

    // With nothing in the way any more it goes through.
    bed.applied(&[]);
}

/// A look on a terminal, where this is typed when the password is asked for; everything that the terminal showed.
fn typed(bed: &Bed, keys: &str) -> String {
    let line = format!("{} apply --check --file {FILE} --user ann", bed.program.display());
    let mut command = bed.admin.host.command(&["script", "-qefc", &line, "/dev/null"]);
    let mut run = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (run.stdin.take().unwrap(), run.stdout.take().unwrap());
    let (mut shown, mut bytes) = (String::new(), [0; 4096]);
    let mut asked = 0;
    loop {
        let count = from.read(&mut bytes).unwrap();
        shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
        if count == 0 {
            break;
        }
        if asked == 0 && shown.contains("Password for sudo on ") {
            asked += 1;
            // What was typed before echo was off is dropped, as it may have been seen.
            std::thread::sleep(Duration::from_millis(500));
            to.write_all(keys.as_bytes()).unwrap();
        }
    }
    run.wait().unwrap();
    assert_eq!((asked, shown.matches("Password for sudo on ").count()), (1, 1), "{shown}");
    shown
}

#[test]
fn sudo_with_a_password() {
    let bed = Bed::new(3);
    let password = "geheim'\"$x 7";
    for host in &bed.hosts {
        bed.admin.make_user(host, "ann", password).unwrap();
    }
    bed.write(&file(&[1, 2, 3], ""));
    let secret = bed.admin.home("password");
    std::fs::write(&secret, "wrong\n").unwrap();
    let arguments = ["--user", "ann", "--sudo-password", "/root/password"];
    let wrong = bed.apply(&arguments);
    assert_eq!(wrong.code, Some(3), "{}", wrong.said);
    assert!(wrong.answer["error"].as_str().unwrap().contains("does not take the password"), "{}", wrong.said);
    assert!((1..=3).all(|number| bed.bare(number)));
    let none = bed.apply(&["--user", "ann"]);
    assert!(none.code == Some(2) && none.said.contains("there is no terminal to ask on"), "{}", none.said);

    // Typed: asked for once, and not shown. A Ctrl-C gives up at once.
    let given_up = typed(&bed, "\u{3}");
    assert!(given_up.contains("given up: nothing was changed"), "{given_up}");
    let mistyped = typed(&bed, "mistyped\n");
    assert!(mistyped.contains("does not take the password") && !mistyped.contains("mistyped"), "{mistyped}");
    let looked = typed(&bed, &format!("{password}\n"));
    assert!(looked.contains("put the program in place") && !looked.contains("geheim"), "{looked}");
    assert!((1..=3).all(|number| bed.bare(number)), "it was only looked at");

    std::fs::write(&secret, format!("{password}\n")).unwrap();
    let run = bed.start(&arguments);
    // Whoever lists processes meanwhile, on any host, does not see it.
    let (mut looks, mut run) = (0, run);
    while run.try_wait().unwrap().is_none() {
        for host in bed.hosts.iter().chain([&bed.admin.host]) {
            for pid in host.processes() {
                let shown =
                    ["cmdline", "environ"].map(|name| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default());
                assert!(
                    shown.iter().all(|bytes| !String::from_utf8_lossy(bytes).contains("geheim")),
                    "process {pid} shows the password"
                );
            }
        }
        looks += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    let first = ended(&run.wait_with_output().unwrap(), Duration::ZERO);
    assert!(first.code == Some(0) && !first.said.contains("geheim") && looks > 20, "{looks}: {}", first.said);
    assert_eq!(names(&bed.status()), ["db1", "db2", "db3"]);
    let second = bed.applied(&arguments);
    assert_eq!(second.answer["changed"], false);
}

#[test]
fn a_run_that_is_killed_anywhere_is_gone_on_with() {
    let bed = Bed::new(4);
    let mut killed = 0;
    for nodes in [&[1u8, 2, 3][..], &[1, 2, 3, 4]] {
        bed.write(&file(nodes, ""));
        // Each later than the one before; the steps that earlier ones took are not taken again, so all parts of the way are met.
        for pause in [300, 700, 1100, 1500, 1900, 2300, 2800, 3300, 3900, 4500, 5200, 6000] {
            let mut run = bed.start(&[]);
            std::thread::sleep(Duration::from_millis(pause));
            killed += u32::from(kill_apply(&bed));
            run.wait().unwrap();
        }
        bed.applied(&[]);
        assert_eq!(names(&bed.status()).len(), nodes.len());
        let again = bed.applied(&[]);
        assert_eq!(again.answer["changed"], false);
    }
    assert!(killed > 6, "only {killed} runs were killed");
    let left = std::fs::read_dir(bed.admin.host.path("/tmp")).unwrap().flatten();
    println!(
        "{killed} killed; left in /tmp: {}",
        left.filter(|entry| entry.file_name().to_string_lossy().starts_with("mainstay-")).count()
    );
}

#[test]
fn settings_change_and_a_node_goes() {
    let bed = Bed::new(3);
    bed.write(&file(&[1, 2, 3], ""));
    bed.applied(&[]);
    let changed = file(&[1, 2, 3], "max_connections = 220\n[failover]\nlease_ms = 3500\n");
    bed.write(&changed);
    // A plan that was looked at is carried out once; then it is stale.
    let planned = bed.command(&["plan", "--config", FILE, "--json"]).output().unwrap();
    assert!(planned.status.success(), "{planned:?}");
    std::fs::write(bed.admin.home("plan.json"), &planned.stdout).unwrap();
    let first = bed.applied(&["--plan", "/root/plan.json"]);
    let stale = bed.apply(&["--plan", "/root/plan.json"]);
    assert!(
        stale.code == Some(3) && stale.said.contains("made against generation 1, and now there is generation 2"),
        "{}",
        stale.said
    );
    assert!(first.said.contains("max_connections"), "{}", first.said);
    let shown = bed.command(&["connect", "--config", FILE, "--", "-Atc", "show max_connections"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), "220");
    assert_eq!(bed.applied(&[]).answer["changed"], false);

    // An old file is not taken for a wish.
    bed.write(&file(&[1, 2, 3], ""));
    let old = bed.apply(&[]);
    assert!(old.code == Some(3) && old.said.contains("generation 1 said"), "{}", old.said);

    // The one that goes is no primary, whoever that is by now.
    let primary = bed.status()["cluster"]["primary"].as_str().unwrap().to_owned();
    let goes = if primary == "db3" { 2 } else { 3 };
    let stays: Vec<u8> = [1, 2, 3].into_iter().filter(|number| *number != goes).collect();
    bed.write(&changed.replace(&format!("[[node]]\nname = \"db{goes}\"\nhost = \"{}\"\n", address(goes)), ""));
    let refused = bed.apply(&[]);
    assert!(refused.code == Some(3) && refused.said.contains("--remove"), "{}", refused.said);
    assert_eq!(names(&bed.status()).len(), 3);
    bed.applied(&["--remove"]);
    assert_eq!(names(&bed.status()), stays.iter().map(|number| format!("db{number}")).collect::<Vec<_>>());
    assert!(bed.host(goes).path("/var/lib/mainstay/orders/data/PG_VERSION").exists(), "its data stay");
    let runs = bed.host(goes).processes().into_iter().any(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains("mainstay agent")
    });
    assert!(!runs, "its agent has ended");
    assert_eq!(bed.applied(&["--remove"]).answer["changed"], false);
}

#[test]
fn a_rolling_restart_under_writes_costs_no_error() {
    let bed = Bed::new(3);
    let pooled = "[proxy]\nmode = \"transaction\"\n";
    bed.write(&file(&[1, 2, 3], pooled));
    bed.applied(&[]);
    let sql = "create table writes (at timestamptz default clock_timestamp()); select pg_postmaster_start_time()";
    let made = bed.command(&["connect", "--config", FILE, "--", "-Atc", sql]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let uri = bed.command(&["connect", "--config", FILE, "--uri"]).output().unwrap();
    let uri = String::from_utf8(uri.stdout).unwrap().trim().to_owned();
    std::fs::write(bed.admin.home("write.sql"), "insert into writes default values;\n").unwrap();
    // The clients of an application. One that sees an error ends, and says so by its exit status.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut acknowledged = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let words = ["pgbench", "-n", "-c", "4", "-T", "15", "-f", "/root/write.sql", &uri];
                let ran = bed.admin.host.command(&words).stdin(Stdio::null()).output().unwrap();
                let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
                assert!(ran.status.success() && !err.contains("error"), "{out}{err}");
                let count =
                    out.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
                acknowledged += count.and_then(|count| count.split('/').next()?.trim().parse::<u64>().ok()).unwrap();
            }
            acknowledged
        });
        std::thread::sleep(Duration::from_secs(2));
        bed.write(&file(&[1, 2, 3], &format!("max_connections = 130\n{pooled}")));
        let applied = bed.apply(&[]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let acknowledged = clients.join().unwrap();
        assert_eq!(applied.code, Some(0), "{}", applied.said);
        acknowledged
    });
    let ask = |sql: &str| {
        let shown = bed.command(&["connect", "--config", FILE, "--", "-Atc", sql]).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).trim().to_owned()
    };
    assert_eq!(ask("show max_connections"), "130");
    assert_eq!(ask("select count(*) from writes"), acknowledged.to_string(), "each acknowledged write once");
    println!("{acknowledged} writes, no error");
}

#[test]
fn hosts_behind_a_jump_host() {
    let bed = Bed::new(4);
    // The fourth one is the way: the administrator has an address that none of the others knows.
    let jump = bed.host(4);
    assert!(jump.command(&["ip", "addr", "add", "10.79.0.1/24", "dev", "eth0"]).status().unwrap().success());
    let lines = "ip addr flush dev eth0 && ip addr add 10.79.0.100/24 dev eth0";
    assert!(bed.admin.host.command(&["sh", "-c", lines]).status().unwrap().success());
    let config = "Host 10.78.0.1 10.78.0.2 10.78.0.3\n  ProxyJump 10.78.0.4\nHost 10.78.0.4\n  HostName 10.79.0.1\n  HostKeyAlias 10.78.0.4\n";
    std::fs::write(bed.admin.home(".ssh/config"), config).unwrap();
    bed.admin.listen(jump, "10.79.0.1".parse().unwrap()).unwrap();
    let far = bed.admin.host.command(&["ssh", "-o", "BatchMode=yes", "10.78.0.1", "hostname"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&far.stdout).trim(), "db1", "{far:?}");
    bed.write(&file(&[1, 2], ""));
    let first = bed.applied(&[]);
    assert!(first.said.contains("from the host of db"), "{}", first.said);
    // Generations go the same way.
    bed.write(&file(&[1, 2, 3], "work_mem = \"5MB\"\n"));
    let second = bed.applied(&[]);
    assert!(second.said.contains("work_mem") && second.said.contains("db3 votes"), "{}", second.said);
    assert_eq!(bed.applied(&[]).answer["changed"], false);
}

#[test]
fn hosts_with_systemd_and_the_package() {
    let bed = Bed::new(3);
    for host in &bed.hosts {
        page::give_systemctl(host).unwrap();
    }
    // One has the distribution's package.
    let packaged = bed.host(2);
    let top = packaged.dir().join("top/bin");
    let lines = format!(
        "mkdir -p {0}/upper {0}/work && mount -t overlay overlay -o lowerdir=/usr/bin,upperdir={0}/upper,workdir={0}/work /usr/bin",
        top.display()
    );
    assert!(packaged.command(&["sh", "-ec", &lines]).status().unwrap().success());
    std::fs::write(packaged.path("/usr/bin/mainstay"), "another version").unwrap();
    bed.write(&file(&[1, 2, 3], ""));
    let refused = bed.apply(&[]);
    assert!(
        refused.code == Some(3) && refused.said.contains("the package mainstay is installed there"),
        "{}",
        refused.said
    );
    std::fs::copy(&bed.program, packaged.path("/usr/bin/mainstay")).unwrap();

    bed.applied(&[]);
    assert!(!packaged.path("/usr/local/bin/mainstay").exists() && bed.host(1).path("/usr/local/bin/mainstay").exists());
    let unit = |number: u8| {
        std::fs::read_to_string(bed.host(number).path("/etc/systemd/system/mainstay-agent.service")).unwrap()
    };
    assert!(
        unit(1).contains("ExecStart=/usr/local/bin/mainstay agent")
            && unit(2).contains("ExecStart=/usr/bin/mainstay agent")
    );
    assert!(bed.host(3).path("/run/units/mainstay-agent/enabled").exists());
    assert_eq!(bed.applied(&[]).answer["changed"], false);

    // Another program: agents take it up one after the other, servers go on.
    let servers = |status: &Value| {
        status["nodes"].as_array().unwrap().iter().map(|node| node["server_pid"].clone()).collect::<Vec<_>>()
    };
    let before = bed.status();
    for number in [1, 3] {
        let path = bed.host(number).path("/usr/local/bin/mainstay");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"an older version");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let third = bed.applied(&[]);
    assert!(third.said.contains("db1, db3: put the program in place"), "{}", third.said);
    assert_eq!(servers(&bed.status()), servers(&before));
    let stays = file(&[1, 2, 3], "").replace("[[node]]\nname = \"db3\"\nhost = \"10.78.0.3\"\n", "");
    bed.write(&stays);
    if bed.status()["cluster"]["primary"] == "db3" {
        let moved = bed.command(&["switchover", "--to", "db1", "--yes", "--config", FILE]).output().unwrap();
        assert!(moved.status.success(), "{moved:?}");
    }
    bed.applied(&["--remove"]);
    assert!(!bed.host(3).path("/run/units/mainstay-agent/enabled").exists());
    assert_eq!(bed.applied(&["--remove"]).answer["changed"], false);
}

/// Ends every process of Mainstay on a host at once, and with the guard its server.
fn end_mainstay(bed: &Bed, number: u8, which: &str) {
    let ours = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        words.first().is_some_and(|word| word.ends_with("mainstay"))
            && words.iter().any(|word| which.is_empty() || word == which)
    };
    // Whoever starts others again may be among them.
    for _ in 0..3 {
        for pid in bed.host(number).processes().into_iter().filter(ours) {
            Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn an_adopted_server_is_handed_back() {
    let bed = Bed::new(3);
    let major = furnish(&bed);
    old(&bed, "postgres", "drop tablespace fast");
    let sum = old(&bed, "shop", SUM);
    let lines =
        ["default_text_search_config = \"pg_catalog.english\"", "work_mem = \"9MB\"", "\"app.tenant\" = \"north\""];
    let lc = ["lc_monetary", "lc_numeric", "lc_time"].map(|name| format!("{name} = \"C.UTF-8\""));
    bed.write(&adopting(&format!("{}\n{}\n", lines.join("\n"), lc.join("\n"))));

    // Its stop waits for an archive that takes long: it was told to end, and its data are not moved meanwhile.
    let host = bed.host(2);
    let conf = host.path(&format!("/etc/postgresql/{major}/{CLUSTER}/postgresql.conf"));
    let before = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, format!("{before}archive_mode = on\narchive_command = 'sleep 600'\n")).unwrap();
    on_host(&bed, 2, &["pg_ctlcluster", &major, CLUSTER, "restart"]);
    old(&bed, "postgres", "select pg_switch_wal()");
    let mut run = bed.start(&[]);
    let noted = || std::fs::read_to_string(host.path(OLD).join("postmaster.pid")).unwrap_or_default();
    until("the old server is told to stop", || noted().contains("stopping"));
    kill_apply(&bed);
    run.wait().unwrap();
    end_mainstay(&bed, 2, "adopt");
    std::fs::write(&conf, before).unwrap();
    let sleeps = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
    until("the old server is stopped", || {
        for pid in host.processes().into_iter().filter(sleeps) {
            Command::new("kill").arg(pid.to_string()).status().unwrap();
        }
        noted().is_empty()
    });
    assert!(host.path(OLD).join("PG_VERSION").exists() && !host.path(NEW).join("PG_VERSION").exists());
    let start = host.command(&["pg_ctlcluster", &major, CLUSTER, "start"]).output().unwrap();
    assert!(String::from_utf8_lossy(&start.stderr).contains("disabled"), "{start:?}");
    bed.applied(&[]);
    assert_eq!(shop(&bed, "6432", SUM), Some(sum));
    assert_eq!(shop(&bed, "6432", "insert into sold values (0, 'after') returning id").as_deref(), Some("0"));
    let sum = shop(&bed, "6432", SUM).unwrap();

    // As docs/adopt.md says it.
    for number in [1, 3] {
        end_mainstay(&bed, number, "");
    }
    until("the old primary is fenced", || shop(&bed, "6432", "select 1").is_none());
    end_mainstay(&bed, 2, "");
    on_host(&bed, 2, &["mv", NEW, OLD]);
    on_host(&bed, 2, &["rm", "-f", &format!("{OLD}/postmaster.pid"), &format!("{OLD}/standby.signal")]);
    let noted = std::fs::read_to_string(host.path("/var/lib/mainstay/orders/agent/adopted.json")).unwrap();
    let noted: Value = serde_json::from_str(&noted).unwrap();
    let (place, said) = (noted["start_conf"][0].as_str().unwrap(), noted["start_conf"][1].as_str().unwrap());
    assert!(said.contains("auto"), "{noted}");
    std::fs::write(host.path(place), said).unwrap();
    on_host(&bed, 2, &["pg_ctlcluster", &major, CLUSTER, "start"]);
    old(
        &bed,
        "postgres",
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'mainstay_%'",
    );
    assert_eq!(old(&bed, "shop", SUM), sum);
    assert_eq!(old(&bed, "shop", "insert into sold values (-1, 'back') returning id"), "-1");
}

#[test]
fn an_interrupted_adoption_of_a_pair_is_gone_on_with() {
    comes_along(true);
}

/// The answer of a command on the second host.
fn answered(bed: &Bed, words: &[&str]) -> Value {
    let program = bed.program.display().to_string();
    let said = on_host(bed, 2, &[&[program.as_str()], words, &["--json"]].concat());
    serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{words:?}: {said}"))
}

/// A cluster is lost but for its repository: the copy that followed that is promoted, and becomes the first copy of a cluster of three.
#[test]
fn what_followed_a_repository_becomes_a_cluster() {
    const LOST: &str = "/var/lib/mainstay/lost";
    const COPY: &str = "/var/lib/mainstay/pg/copy";
    const ROWS: &str = "select count(*) || ' ' || md5(string_agg(note, ',' order by id)) from ledger";
    let bed = Bed::new(3);
    let program = bed.program.display().to_string();
    let lost = |verb: &str, words: &[&str]| answered(&bed, &[&[verb, "--dir", LOST, "--yes"], words].concat());
    lost("up", &["--nodes", "1", "--wait", "180"]);
    lost("set", &["vault.switch_s=2"]);
    let sql = |text: &str| on_host(&bed, 2, &[&program, "connect", "--dir", LOST, "--", "-XAtqc", text]);
    sql("create table ledger as select id, md5(id::text) as note from generate_series(1, 5000) id");
    until("a backup", || {
        bed.host(2).command(&[&program, "backup", "--dir", LOST, "--json", "--yes"]).output().unwrap().status.success()
    });
    sql("insert into ledger select id, md5(id::text) from generate_series(5001, 9000) id");
    let rows = sql(ROWS);
    on_host(&bed, 2, &["install", "-d", "-o", "postgres", "-g", "postgres", "-m", "700", "/var/lib/mainstay/pg"]);
    let (vault, socket) = (format!("{LOST}/vault"), format!("{COPY}/mainstay_run"));
    let mut following =
        bed.host(2).command(&[&program, "follow", "--to", COPY, "--repository", &vault]).spawn().unwrap();
    let ask = |text: &str| {
        let words = ["psql", "-h", &socket, "-U", "postgres", "-d", "app", "-XAtqc", text];
        let output = bed.host(2).command(&words).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    until("the copy has all rows", || ask(ROWS).as_deref() == Some(rows.as_str()));
    lost("down", &[]);
    let promoted = answered(&bed, &["follow", "--to", COPY, "--promote", "--yes"]);
    assert!(following.wait().unwrap().success() && promoted["timeline"].as_u64() > Some(1000), "{promoted}");

    // As the command says at its end.
    let config = format!("config_file={COPY}/mainstay_scratch.conf");
    let servers = std::fs::read_to_string(bed.host(2).path(COPY).join("postmaster.opts")).unwrap();
    let server = servers.split_whitespace().next().unwrap();
    let mut started = bed
        .host(2)
        .command(&["runuser", "-u", "postgres", "--", server, "-D", COPY, "-c", &config])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the promoted copy", || ask("select 1").is_some());
    assert_eq!(ask(ROWS).unwrap(), rows);
    ask("create role shop login password 'a pass''word'; grant all on ledger to shop").unwrap();
    let host = "host = \"10.78.0.2\"\n";
    bed.write(&file(&[1, 2, 3], "").replace(host, &format!("{host}adopt = \"{COPY}\"\n")));
    // What the copy was looked at with is not asked about; the password of the lost cluster's role is.
    let refused = bed.apply(&[]);
    assert!(refused.code == Some(3) && refused.said.contains("secrets/app.password"), "{}", refused.said);
    assert!(!refused.said.contains("parameters that the file does not mention"), "{}", refused.said);
    assert!(bed.command(&["pki", "init", "--config", FILE]).output().unwrap().status.success());
    let password = std::fs::read(bed.host(2).path(LOST).join("secrets/app.password")).unwrap();
    std::fs::write(bed.admin.home("orders/secrets/app.password"), password).unwrap();
    bed.applied(&[]);
    assert_eq!(started.wait().unwrap().code(), Some(0), "it was stopped in order");
    assert_eq!(names(&bed.status()), ["db1", "db2", "db3"]);
    let place = "host=10.78.0.1,10.78.0.2,10.78.0.3 port=6432 user=shop dbname=app sslmode=require connect_timeout=5";
    let words = ["env", "PGPASSWORD=a pass'word", "psql", "-XAtqw", "-d", place, "-c", ROWS];
    let output = bed.admin.host.command(&words).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), rows, "{output:?}");
    let status = bed.status();
    let timelines: Vec<u64> =
        status["nodes"].as_array().unwrap().iter().filter_map(|node| node["timeline"].as_u64()).collect();
    assert!(timelines.iter().all(|timeline| Some(*timeline) >= promoted["timeline"].as_u64()), "{status}");
}
