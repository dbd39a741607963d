//! Configurations as people write them, and what becomes of each of their lines.

use super::*;
use mainstay_model::Durability;
use mainstay_model::config::{parse, render};
use std::collections::BTreeSet;

/// As the engine has it, as far as these tests ask.
const OWNED: [&str; 8] = [
    "archive_command",
    "archive_mode",
    "hot_standby",
    "port",
    "ssl_key_file",
    "unix_socket_directories",
    "wal_level",
    "wal_log_hints",
];

fn node(number: u8, more: &str) -> String {
    format!(
        "scope: Orders_DB\nname: PG{number}.example\nrestapi:\n  listen: 0.0.0.0:8008\n  connect_address: 10.0.0.{number}:8008\n\
         etcd3:\n  hosts: [10.0.1.1:2379, 10.0.1.2:2379]\n  password: hidden-etcd\n\
         bootstrap:\n  dcs:\n    ttl: 30\n    postgresql:\n      parameters:\n        max_connections: 100\n  \
         initdb:\n  - encoding: UTF8\n  - data-checksums\n\
         postgresql:\n  listen: '*:5433'\n  connect_address: 10.0.0.{number}:5433\n  data_dir: /var/lib/postgresql/15/main\n  \
         bin_dir: /usr/lib/postgresql/15/bin\n  pgpass: /tmp/pgpass\n  \
         authentication:\n    superuser: {{username: postgres, password: hidden-super}}\n    \
         replication: {{username: rep, password: hidden-rep}}\n  \
         parameters:\n    unix_socket_directories: /run/postgresql\n    work_mem: 16MB\n\
         tags:\n  nofailover: false\n  clonefrom: true\n{more}"
    )
}

const DYNAMIC: &str = "ttl: 60\nloop_wait: 10\nretry_timeout: 10\nmaximum_lag_on_failover: 1048576\nsynchronous_mode: true\n\
    synchronous_mode_strict: 'on'\nsynchronous_node_count: 2\nslots:\n  PG1_example: {type: physical}\n  feed: {type: logical, database: app, plugin: pgoutput}\n\
    postgresql:\n  use_pg_rewind: true\n  use_slots: true\n  parameters:\n    max_connections: 300\n    max_wal_senders: 10\n    wal_level: logical\n    \
    hot_standby: on\n    archive_command: cp %p /archive/%f\n    archive_mode: 'on'\n    jit: off\n    pg_stat_statements.max: 5000\n    shared_preload_libraries: pg_stat_statements\n  \
    pg_hba:\n  - host replication rep 10.0.0.0/24 scram-sha-256\n  - hostssl all all 10.0.0.0/8 md5\n  - hostssl all all 10.9.0.0/16 ldap ldapserver=l ldapbindpasswd=hidden-ldap\n";

fn made(files: &[(&str, &str)]) -> Imported {
    let sources: Vec<Source<'_>> = files.iter().map(|(name, text)| Source { name, text }).collect();
    let made = import(&sources, &OWNED).unwrap();
    assert_eq!(parse(&render(&made.spec), &OWNED).unwrap(), made.spec, "what is written is what is read");
    made
}

fn error(files: &[(&str, &str)]) -> Refused {
    let sources: Vec<Source<'_>> = files.iter().map(|(name, text)| Source { name, text }).collect();
    import(&sources, &OWNED).unwrap_err()
}

fn entry<'a>(made: &'a Imported, file: &str, key: &str) -> &'a Entry {
    let found: Vec<&Entry> = made.entries.iter().filter(|entry| entry.file == file && entry.key == key).collect();
    assert_eq!(found.len(), 1, "{key} of {file}: {found:?}");
    found[0]
}

fn three() -> Imported {
    let nodes: Vec<String> = (1..=3).map(|number| node(number, "")).collect();
    made(&[("1.yml", &nodes[0]), ("2.yml", &nodes[1]), ("3.yml", &nodes[2]), ("dynamic.yml", DYNAMIC)])
}

#[test]
fn three_nodes_and_what_is_in_force_make_a_cluster() {
    let made = three();
    let spec = &made.spec;
    assert_eq!((spec.cluster.name.as_str(), spec.cluster.durability), ("orders-db", Durability::Strict));
    let nodes: Vec<_> =
        spec.nodes.iter().map(|node| (node.name.as_str(), node.host.as_str(), node.port, node.health_port)).collect();
    assert_eq!(
        nodes,
        [
            ("pg1-example", "10.0.0.1", 5433, 8008),
            ("pg2-example", "10.0.0.2", 5433, 8008),
            ("pg3-example", "10.0.0.3", 5433, 8008)
        ]
    );
    assert_eq!(
        (spec.failover.lease_ms, spec.failover.suspicion_ms, spec.failover.sync_replicas),
        (6000, 2000, Some(2))
    );
    let parameters: Vec<_> = spec.postgres.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        parameters,
        [
            "jit=off",
            "max_connections=300",
            "pg_stat_statements.max=5000",
            "shared_preload_libraries=pg_stat_statements",
            "work_mem=16MB"
        ]
    );
    assert_eq!(spec.postgres.hba, ["hostssl all all 10.0.0.0/8 md5"]);
    assert_eq!(spec.postgres.bin_dir.as_deref(), Some(std::path::Path::new("/usr/lib/postgresql/15/bin")));
    for (file, key, fate, why) in [
        ("1.yml", "bootstrap.dcs.ttl", Fate::Left, "dynamic.yml, the dynamic configuration of now, counts"),
        ("2.yml", "bootstrap.initdb[1]", Fate::Carried, "checksums"),
        ("1.yml", "postgresql.data_dir", Fate::Left, "/var/lib/mainstay/orders-db/data"),
        ("3.yml", "tags.clonefrom", Fate::Left, "chooses"),
        ("dynamic.yml", "slots.PG1_example.type", Fate::Carried, "slot"),
        ("dynamic.yml", "synchronous_node_count", Fate::Changed, "Patroni goes on with fewer"),
        ("dynamic.yml", "slots.feed.plugin", Fate::Left, "SQL"),
        ("dynamic.yml", "postgresql.parameters.wal_level", Fate::Left, "logical replication"),
        ("dynamic.yml", "postgresql.parameters.hot_standby", Fate::Carried, "on"),
        ("dynamic.yml", "postgresql.parameters.max_wal_senders", Fate::Changed, "higher"),
        ("dynamic.yml", "postgresql.pg_hba[2]", Fate::Left, "password"),
    ] {
        let entry = entry(&made, file, key);
        assert!(entry.fate == fate && entry.why.contains(why), "{entry:?}");
    }
    assert!(made.notes.iter().all(|note| !note.contains("bootstrap.dcs")), "{:?}", made.notes);
    assert!(
        made.notes.iter().any(|note| note.contains("as soon as one of the 2 other nodes is away")),
        "{:?}",
        made.notes
    );
}

#[test]
fn words_that_are_none_are_called_so() {
    let one = node(1, "");
    let dynamic = "ttl: soon\nretry_timeout: 1m\nsynchronous_mode: maybe\nsynchronous_mode_strict: perhaps\n";
    let made = made(&[("1.yml", &one), ("d", dynamic)]);
    for (key, why) in [
        ("ttl", "no number of seconds"),
        ("retry_timeout", "no number of seconds"),
        ("synchronous_mode", "none of on, off and quorum"),
        ("synchronous_mode_strict", "neither on nor off"),
    ] {
        let entry = entry(&made, "d", key);
        assert!(entry.fate == Fate::Left && entry.why.contains(why), "{entry:?}");
    }
    assert_eq!((made.spec.cluster.durability, made.spec.failover.lease_ms), (Durability::Async, 3000));
    assert!(made.notes.iter().any(|note| note.contains("is that meant?")), "{:?}", made.notes);
    for (old, new, bad) in
        [("10.0.0.1:5433", "10.0.0.1:99999", "\"99999\""), ("0.0.0.0:8008", "0.0.0.0:http", "\"http\"")]
    {
        let text = error(&[("1.yml", &one.replace(old, new))]).text;
        assert!(text.contains(bad) && text.contains("is no port"), "{text}");
    }
}

/// Leaves of a text in block style, counted without the reader of this module.
#[test]
fn every_leaf_is_told_of_once_and_no_secret_at_all() {
    let made = three();
    let keys: BTreeSet<(&str, &str)> =
        made.entries.iter().map(|entry| (entry.file.as_str(), entry.key.as_str())).collect();
    assert_eq!(keys.len(), made.entries.len(), "none twice");
    // 24 in each node's file; a line of the dynamic one is a leaf unless it opens a branch, and two in braces hold 1 and 3.
    let of = |file: &str| made.entries.iter().filter(|entry| entry.file == file).count();
    let lines = DYNAMIC.lines().count();
    let branches = DYNAMIC.lines().filter(|line| line.ends_with(':')).count();
    assert_eq!((of("1.yml"), of("dynamic.yml")), (24, lines - branches + 2));
    let told = serde_json_free(&made) + &render(&made.spec);
    assert!(!told.contains("hidden"), "{told}");
}

/// Everything of the report, as text.
fn serde_json_free(made: &Imported) -> String {
    format!("{:?} {:?}", made.entries, made.notes)
}

#[test]
fn what_stands_in_the_nodes_files_alone_is_taken_with_a_word_of_warning() {
    let [one, two] = [1, 2].map(|number| node(number, ""));
    let two = two.replace("ttl: 30", "ttl: 20").replace("work_mem: 16MB", "work_mem: 32MB");
    let made = made(&[("1.yml", &one), ("2.yml", &two)]);
    assert_eq!(made.spec.cluster.durability, Durability::Async, "Patroni's default");
    assert!(made.notes.iter().any(|note| note.contains("bootstrap.dcs was taken")), "{:?}", made.notes);
    assert!(made.notes.iter().any(|note| note.contains("witness = true")), "{:?}", made.notes);
    assert!(made.notes.iter().any(|note| note.contains("\"async\"")), "{:?}", made.notes);
    assert_eq!(made.spec.failover.lease_ms, 3000);
    assert_eq!(entry(&made, "1.yml", "bootstrap.dcs.ttl").fate, Fate::Changed);
    let other = entry(&made, "2.yml", "bootstrap.dcs.ttl");
    assert!(other.fate == Fate::Left && other.why.contains("1.yml says otherwise"), "{other:?}");
    let same = entry(&made, "2.yml", "bootstrap.dcs.postgresql.parameters.max_connections");
    assert_eq!((same.fate, same.value.as_deref()), (Fate::Carried, Some("100")));
    assert_eq!(made.spec.postgres.parameters["work_mem"], "16MB");
    let other = entry(&made, "2.yml", "postgresql.parameters.work_mem");
    assert!(other.fate == Fate::Left && other.why.contains("1.yml"), "{other:?}");
}

#[test]
fn an_item_of_several_lines_is_as_many_lines() {
    let hba = "  - |\n    hostssl all all 10.0.0.0/8 md5\n\n    host app \"an  app\" \\\n    10.1.0.0/16 trust\n  \
        - |\n    # of old\n    host all all 10.2.0.0/16 md5\n    host all all all ldap ldapbindpasswd = hidden\n  \
        - |\n    host replication rep all md5\n    # nothing\n  - 'host all all\n    10.3.0.0/16 md5'\n  - host all all all \\\n";
    let [one, two] =
        [1, 2].map(|number| node(number, "").replace("\n  parameters:", &format!("\n  pg_hba:\n{hba}  parameters:")));
    let more =
        "\n  pg_hba:\n  - |\n    hostssl all all 10.0.0.0/8 md5\n    host all all 10.9.0.0/16 md5\n  parameters:";
    let three = node(3, "").replace("\n  parameters:", more);
    let made = made(&[("1.yml", &one), ("2.yml", &two), ("3.yml", &three)]);
    assert_eq!(
        made.spec.postgres.hba,
        [
            "hostssl all all 10.0.0.0/8 md5",
            "host app \"an  app\" 10.1.0.0/16 trust",
            "host all all 10.2.0.0/16 md5",
            "host all all 10.3.0.0/16 md5",
        ]
    );
    for (file, place, fate, why) in [
        ("1.yml", 0, Fate::Carried, "line 2 of it: it lets in"),
        ("2.yml", 0, Fate::Carried, "line 2 of it: it lets in"),
        ("1.yml", 1, Fate::Changed, "line 3 of it: left behind, it holds a password"),
        ("1.yml", 2, Fate::Left, "line 1 of it: left behind, servers replicate"),
        ("1.yml", 3, Fate::Carried, ""),
        ("1.yml", 4, Fate::Left, "no line of pg_hba.conf"),
        ("3.yml", 0, Fate::Changed, "line 2 of it: left behind, the lines of 1.yml"),
    ] {
        let entry = entry(&made, file, &format!("postgresql.pg_hba[{place}]"));
        assert!(entry.fate == fate && entry.why.contains(why), "{entry:?}");
        assert_eq!(entry.value.is_none(), fate == Fate::Left, "{entry:?}");
    }
    assert!(!serde_json_free(&made).contains("hidden"));
}

#[test]
fn a_parameter_that_looks_like_a_secret_is_left_behind_unseen() {
    let dynamic = "ttl: 30\npostgresql:\n  parameters:\n    orioledb.s3_secretkey: hidden\n    timescaledb.license_key: hidden\n    \
        my.pwd: hidden\n    my.conninfo: host = a password = hidden\n    my.key_file: /etc/shown\n";
    let made = made(&[("1.yml", &node(1, "")), ("d", dynamic)]);
    let told = serde_json_free(&made) + &render(&made.spec);
    assert!(told.contains("/etc/shown") && !told.replace("hidden-", "").contains("hidden"), "{told}");
    let entry = entry(&made, "d", "postgresql.parameters.my.conninfo");
    assert!(entry.fate == Fate::Left && entry.why.contains("looks like a secret"), "{entry:?}");
}

#[test]
fn no_long_key_stands_above_many_leaves() {
    let long = "k".repeat(100_000);
    let file = node(1, &format!("? {long}\n: [{}]\n", vec!["x"; 1000].join(", ")));
    assert!(error(&[("1.yml", &file)]).text.contains("keys are longer"));
}

#[test]
fn nodes_that_share_a_host_get_ports_and_directories_of_their_own() {
    let file = |number: u16| {
        format!(
            "scope: batman\nname: postgresql{number}\nrestapi:\n  connect_address: 127.0.0.1:{}\npostgresql:\n  connect_address: 127.0.0.1:{}\n  listen: 127.0.0.1:{}\n",
            8008 + number,
            5432 + number,
            5432 + number
        )
    };
    let files = [0, 1, 2].map(file);
    let made = made(&[("0", &files[0]), ("1", &files[1]), ("2", &files[2])]);
    let ports: Vec<_> = made.spec.nodes.iter().map(|node| (node.port, node.agent_port, node.health_port)).collect();
    assert_eq!(ports, [(5432, 7420, 8008), (5433, 7430, 8009), (5434, 7440, 8010)]);
    assert_eq!(entry(&made, "2", "postgresql.connect_address").fate, Fate::Changed);
}

#[test]
fn a_replica_that_confirms_is_wished_for_as_patroni_does() {
    let one = node(1, "");
    let durability = |dynamic: &str| {
        let made = made(&[("1.yml", &one), ("d", dynamic)]);
        (made.spec.cluster.durability, made.spec.failover.sync_replicas)
    };
    assert_eq!(
        durability("ttl: 30\nsynchronous_mode: off\nsynchronous_mode_strict: true\n"),
        (Durability::Async, None)
    );
    assert_eq!(
        durability("ttl: 30\nsynchronous_mode: quorum\nsynchronous_node_count: 2\n"),
        (Durability::Available, None)
    );
    assert_eq!(
        durability("ttl: 30\nsynchronous_mode: true\nsynchronous_mode_strict: true\n"),
        (Durability::Strict, None)
    );
    assert_eq!(durability("{\"ttl\": 30, \"synchronous_mode\": true}"), (Durability::Available, None));
}

#[test]
fn every_key_that_patroni_documents_has_a_reason_of_its_own() {
    let more = "namespace: /x/\nthread_pool_size: 5\nlog: {level: INFO, loggers: {a: DEBUG}}\nctl: {insecure: false}\nconsul: {host: a}\n\
        raft: {self_addr: a}\nwatchdog: {mode: required, device: /dev/watchdog}\ncitus: {group: 0}\nkubernetes: {labels: {a: b}}\n";
    let server = "  callbacks: {on_start: /x}\n  proxy_address: a:1\n  create_replica_methods: [wal_g, basebackup]\n  wal_g: {command: /x --token hidden}\n  \
        config_dir: /etc/x\n  custom_conf: /etc/y\n  bin_name: {postgres: p}\n  use_unix_socket: true\n  recovery_conf: {restore_command: cp}\n  \
        parameters_primary: {work_mem: 1MB}\n  pg_ident: [a b c]\n  pg_ctl_timeout: 60\n  use_pg_rewind: false\n  rewind: [debug]\n  \
        remove_data_directory_on_rewind_failure: true\n  pre_promote: /x\n  before_stop: /x\n";
    let text = node(1, more).replace("  pgpass: /tmp/pgpass\n", &format!("  pgpass: /tmp/pgpass\n{server}"));
    let dynamic = "primary_start_timeout: 300\nprimary_stop_timeout: 0\nprimary_race_backoff: 5\nmaximum_lag_on_syncnode: -1\nmax_timelines_history: 0\n\
        check_timeline: true\nfailsafe_mode: true\nmember_slots_ttl: 30min\nignore_slots: [{name: x}]\nstandby_cluster: {host: a, port: 1}\n";
    let made = made(&[("1.yml", &text), ("d.yml", dynamic)]);
    let unknown: Vec<&str> =
        made.entries.iter().filter(|entry| entry.why.contains("not known")).map(|entry| entry.key.as_str()).collect();
    assert_eq!(unknown, [""; 0]);
    assert!(made.entries.iter().all(|entry| entry.fate != Fate::Left || entry.value.is_none()));
    assert!(!serde_json_free(&made).contains("hidden"));
    assert!(made.notes.iter().any(|note| note.contains("standby cluster")), "{:?}", made.notes);
    assert_eq!(entry(&made, "1.yml", "postgresql.use_pg_rewind").fate, Fate::Changed);
    assert!(entry(&made, "1.yml", "postgresql.wal_g.command").why.contains("by Mainstay itself"));
    let strange = node(1, "frobnicate: {deeply: [1]}\n");
    let made = self::made(&[("1.yml", &strange)]);
    assert!(entry(&made, "1.yml", "frobnicate.deeply[0]").why.contains("not known"));
}

#[test]
fn what_is_not_patronis_or_makes_no_cluster_is_refused() {
    let one = node(1, "");
    let text = |files: &[(&str, &str)]| error(files).text;
    assert!(text(&[("x", "services: {db: {image: postgres}}\n")]).contains("x is no configuration of Patroni"));
    assert!(text(&[("x", "name: x\nversion: 1\n")]).contains("no configuration of Patroni"));
    assert!(text(&[("x", "just words")]).contains("no configuration of Patroni"));
    assert!(text(&[("x", "a: [")]).contains("x: line"));
    assert!(text(&[("d", DYNAMIC)]).contains("none of the files describes a node"));
    assert!(text(&[("1", &one), ("d", DYNAMIC), ("e", DYNAMIC)]).contains("both dynamic"));
    assert!(text(&[("1", &one), ("2", &one)]).contains("would both be the node pg1-example"));
    let other = node(2, "").replace("Orders_DB", "stock");
    assert!(text(&[("1", &one), ("2", &other)]).contains("of the cluster \"Orders_DB\" and 2 of \"stock\""));
    let unnamed = one.replace("name: PG1.example\n", "");
    assert!(
        text(&[("1", &unnamed)]).contains("has no key name") && error(&[("1", &unnamed)]).hint.contains("PATRONI_NAME")
    );
    let nowhere =
        one.replace("  connect_address: 10.0.0.1:5433\n", "").replace("  connect_address: 10.0.0.1:8008\n", "");
    assert!(text(&[("1", &nowhere)]).contains("no address"), "{:?}", text(&[("1", &nowhere)]));
    let clash = one.replace("8008", "5433");
    assert!(text(&[("1", &clash)]).contains("which is taken by"), "{}", text(&[("1", &clash)]));
}
