//! Golden messages: what a person sees for each mistake in `mainstay.toml`.

use super::{nearest, parse, render};
use crate::config_reference::{REPOSITORY, TABLES, keys_of};
use crate::requirements::{Classification, Disk, Requirements, Workload};
use crate::spec::{Cluster, EngineKind, Failover, Node, Postgres, Proxy, ProxyMode, Spec};
use crate::{ClusterName, Durability, NodeId};

const OWNED: &[&str] = &["primary_conninfo", "synchronous_standby_names", "port"];

const GOOD: &str = r#"[cluster]
name = "orders"

[[node]]
name = "db1"
host = "10.0.0.1"

[[node]]
name = "db2"
host = "10.0.0.2"
zone = "b"
"#;

fn errors(text: &str) -> Vec<String> {
    match parse(text, OWNED) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems.iter().map(ToString::to_string).collect(),
    }
}

fn requirements() -> Requirements {
    let some = Some(17);
    Requirements {
        purpose: Some("orders of the \"shop\"".into()),
        classification: Classification::Personal,
        owner: Some("shop team".into()),
        on_call: vec!["Ann, +49 1".into(), "Bob".into()],
        needs: Vec::new(),
        loss_server_s: some,
        loss_host_s: some,
        loss_zone_s: some,
        loss_site_s: some,
        loss_human_s: some,
        outage_server_s: some,
        outage_host_s: some,
        outage_zone_s: some,
        outage_site_s: some,
        outage_human_s: some,
        working_set_gb: some,
        hosts: some,
        postgres_version: some,
        disk: Disk::Nvme,
        workload: Workload::Analytics,
        ..Requirements::default()
    }
}

fn store() -> crate::spec::Store {
    crate::spec::Store {
        kind: crate::spec::StoreKind::Etcd,
        endpoints: vec!["https://10.0.0.7:2379".into(), "https://etcd.example.org".into()],
        prefix: "/teams/a".into(),
        ca_file: Some("/etc/ca.crt".into()),
        cert_file: Some("/etc/me.crt".into()),
        key_file: Some("/etc/me.key".into()),
        user: Some("main\"stay".into()),
        password_file: Some("/etc/pass word".into()),
    }
}

fn full() -> Spec {
    let node = |name: &str, host: &str, witness| Node {
        name: NodeId::new(name).unwrap(),
        host: host.into(),
        zone: Some("a \"quoted\" zone".into()),
        witness,
        port: 5433,
        agent_port: 7430,
        health_port: 7431,
        dir: Some("/var/lib/x y/db".into()),
        adopt: (name == "db1").then(|| "/var/lib/postgresql/15/main".into()),
        adopt_standby: (name == "db2").then(|| "/srv/main".into()),
        interface: Some("eth1".into()),
    };
    Spec {
        cluster: Cluster {
            name: ClusterName::new("orders").unwrap(),
            engine: EngineKind::Postgres,
            durability: Durability::Available,
        },
        nodes: vec![node("db1", "127.0.0.1", false), node("db2", "127.0.0.2", false), node("w", "127.0.0.3", true)],
        failover: Failover {
            ping_ms: 100,
            suspicion_ms: 500,
            lease_ms: 2000,
            margin_percent: 25,
            sync_replicas: Some(1),
        },
        store: store(),
        proxy: Proxy {
            on_nodes: true,
            host: Some("127.0.0.1".into()),
            address: Some("10.0.0.100/24".parse().unwrap()),
            write_port: 6500,
            read_port: 6501,
            max_lag_bytes: 5,
            hold_ms: 7,
            mode: ProxyMode::Transaction,
            pool_size: 3,
            pool_reserve: 1,
            queue_ms: 5,
            commit_outcome: true,
            threads: 2,
            max_connections: 9,
            metrics_port: Some(9127),
        },
        postgres: Postgres {
            bin_dir: Some("/usr/lib/postgresql/15/bin".into()),
            parameters: [("work_mem".into(), "4MB".into()), ("pg_stat_statements.max".into(), "\\ \"1\"\t".into())]
                .into(),
            hba: vec!["hostssl all all 10.0.0.0/8 scram-sha-256".into(), "local all all peer".into()],
            archive_command: Some("tool --push \"%p\"".into()),
        },
        vault: crate::spec::Vault {
            repository: "/srv/vault".into(),
            key_file: Some("/etc/key".into()),
            switch_s: 7,
            keep: 3,
            keep_days: 9,
            backup_mb_s: 50,
            full_at: Some("0 2 * * 0".into()),
            incremental_at: Some("30 2 * * *".into()),
            drill_at: Some("0 4 * * 3".into()),
            drill_minutes: 30,
            drill_query: Some("select \"n\" > 0 from t".into()),
            drill_database: "orders".into(),
            clone_nodes: true,
        },
        requirements: requirements(),
    }
}

#[test]
fn a_small_file_has_defaults_for_everything_else() {
    let spec = parse(GOOD, OWNED).unwrap();
    assert_eq!(spec.nodes.len(), 2);
    assert_eq!(spec.sync_replicas(), 1);
    assert_eq!(spec.cluster.durability, Durability::Strict);
    assert_eq!((spec.nodes[0].port, spec.nodes[0].agent_port, spec.proxy.write_port), (5432, 7420, 6432));
}

#[test]
fn what_is_written_reads_back_as_the_same_spec() {
    let spec = full();
    assert_eq!(parse(&render(&spec), OWNED).unwrap(), spec);
    let plain = parse(GOOD, OWNED).unwrap();
    assert_eq!(parse(&render(&plain), OWNED).unwrap(), plain);
}

#[test]
fn a_server_to_adopt_is_one_and_lies_elsewhere() {
    let with = |more: &str, second: &str| {
        let text = format!(
            "[cluster]\nname = \"a\"\n[[node]]\nname = \"x\"\nhost = \"h\"\n{more}[[node]]\nname = \"y\"\nhost = \"i\"\n{second}"
        );
        parse(&text, OWNED).map_or_else(|error| error.to_string(), |spec| format!("{:?}", spec.founder()))
    };
    assert!(with("", "adopt = \"/srv/main\"\n").contains("\"y\""));
    assert!(with("adopt_standby = \"/srv/main\"\n", "adopt = \"/srv/main\"\n").contains("\"y\""));
    assert_eq!(with("", ""), "None");
    for (more, second, words) in [
        ("adopt = \"main\"\n", "", "must be an absolute path"),
        ("adopt = \"/srv/main\"\n", "adopt = \"/srv/main\"\n", "one server is adopted"),
        ("adopt = \"/srv/main\"\nadopt_standby = \"/srv/other\"\n", "", "data of one server"),
        ("adopt_standby = \"main\"\n", "adopt = \"/srv/main\"\n", "must be an absolute path"),
        ("adopt_standby = \"/var/lib/mainstay/a\"\n", "adopt = \"/srv/main\"\n", "name the other one"),
        ("adopt = \"/srv/main\"\nwitness = true\n", "", "a witness holds no data"),
        ("adopt = \"/var/lib/mainstay/a/data\"\n", "", "name the other one"),
        ("adopt = \"/var/lib/mainstay\"\n", "", "name the other one"),
    ] {
        let told = with(more, second);
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[test]
fn known_keys_are_those_of_the_types() {
    let value = toml::Table::try_from(full()).unwrap();
    let keys = |table: &toml::Table| table.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    for path in TABLES {
        let known = keys_of(path).unwrap();
        let table = match path {
            "" => value.clone(),
            "node" => {
                let mut all = value["node"][0].as_table().unwrap().clone();
                all.extend(value["node"][1].as_table().unwrap().clone());
                all.extend(value["node"][2].as_table().unwrap().clone());
                all
            }
            REPOSITORY => {
                let text = "{\"name\":\"far\",\"place\":\"/f\",\"key_file\":\"/k\",\"optional\":true,\"keep\":1,\"keep_days\":1}";
                let table: crate::repositories::RepositoryPlace = serde_json::from_str(text).unwrap();
                toml::Table::try_from(table).unwrap()
            }
            path => value[path].as_table().unwrap().clone(),
        };
        assert_eq!(keys(&table), known.iter().map(|key| (*key).to_owned()).collect(), "[{path}]");
    }
}

#[test]
fn unknown_keys_are_all_named_with_line_and_suggestion() {
    let text = "[cluster]\nname = \"a\"\ndurabilty = \"strict\"\n[[node]]\nname = \"db1\"\nhots = \"h\"\n[fail-over]\nx = 1\n[watch]\n";
    assert_eq!(
        errors(text),
        [
            "line 3: unknown key \"durabilty\" in [cluster]; did you mean \"durability\"?",
            "line 6: unknown key \"hots\" in [node]; did you mean \"host\"?",
            "line 7: unknown key \"fail-over\" at the top of the file; did you mean \"failover\"?",
            "line 9: unknown key \"watch\" at the top of the file; known here: cluster, node, failover, store, proxy, postgres, vault, requirements",
        ]
    );
}

#[test]
fn values_of_a_wrong_type_name_the_line() {
    assert_eq!(
        errors("[cluster]\nname = \"Orders\"\n[[node]]\nname = \"db1\"\nhost = \"h\"\n"),
        [
            "line 2: \"Orders\" is not a name: use a letter a-z, then letters, digits or '-', 40 characters at most (the line reads: name = \"Orders\")"
        ]
    );
    assert_eq!(
        errors("[cluster]\nname = \"a\"\nengine = \"oracle\"\n[[node]]\nname = \"db1\"\nhost = \"h\"\n"),
        ["line 3: unknown variant `oracle`, expected `postgres` (the line reads: engine = \"oracle\")"]
    );
    assert_eq!(
        errors("[cluster]\nname = \"a\"\n[[node]]\nname = \"db1\"\nhost = \"h\"\nport = 99999\n"),
        [
            "line 6: invalid value: integer `99999`, expected a whole number from 0 to 65535 (the line reads: port = 99999)"
        ]
    );
    let broken = errors("[cluster\nname = \"a\"\n");
    assert!(broken[0].ends_with("(the line reads: [cluster)"), "{broken:?}");
    assert!(broken.len() == 1 && broken[0].starts_with("line 1: "), "{broken:?}");
}

#[test]
fn what_is_no_line_of_the_file_is_not_quoted() {
    for secret in ["s3cret", "czNjcmV0==", "s3cret = ", "[s3cret", "\"s3cret\""] {
        let found = errors(&format!("{secret}\n")).join("\n");
        assert!(found.starts_with("line 1: ") && !found.contains("the line reads"), "{found}");
    }
}

#[test]
fn no_data_node_is_refused() {
    let text = "[cluster]\nname = \"a\"\n[[node]]\nname = \"w\"\nhost = \"h\"\nwitness = true\n";
    assert_eq!(
        errors(text),
        ["line 3: no node holds data: add a [[node]] with a name and a host (witnesses hold none)"]
    );
    assert_eq!(errors("[cluster]\nname = \"a\"\n"), ["the key `node` is missing"]);
    assert_eq!(errors("[cluster]\nname = \"a\"\n[[node]]\nname = \"db1\"\n"), ["line 3: the key `host` is missing"]);
}

#[test]
fn clashes_are_refused() {
    let text = GOOD.replace("db2", "db1").replace("10.0.0.2", "10.0.0.1");
    let found = errors(&text);
    assert_eq!(found[0], "line 8: agent_port of db1 is 7420 on host 10.0.0.1, which is taken by agent_port of db1");
    assert!(found.contains(&"line 9: a second node is called \"db1\"".to_owned()), "{found:?}");
    assert_eq!(
        errors(&format!("{GOOD}\n[proxy]\nread_port = 5432\n"))[0],
        "line 14: read_port of the proxy is 5432 on host 10.0.0.1, which is taken by port of db1"
    );
}

#[test]
fn hosts_are_checked() {
    let host = |host: &str| errors(&GOOD.replace("10.0.0.2", host));
    assert_eq!(host("db2:5432"), ["line 10: host = \"db2:5432\" holds a port: write host = \"db2\" and port = 5432"]);
    assert_eq!(host("0.0.0.0"), ["line 10: host = \"0.0.0.0\" is no address that others can reach"]);
    assert_eq!(host("10.0.0.999"), ["line 10: host = \"10.0.0.999\" is neither an IP address nor a host name"]);
    assert_eq!(host("db-2.example.org"), Vec::<String>::new());
    assert_eq!(host("::1"), Vec::<String>::new());
}

#[test]
fn a_commit_must_find_its_replicas() {
    let with = |text: &str| errors(&format!("{GOOD}[failover]\nsync_replicas = {text}\n"));
    assert_eq!(with("2"), ["line 13: sync_replicas = 2, but 2 data nodes can have 1 replica at most"]);
    assert_eq!(
        with("0"),
        [
            "line 13: sync_replicas = 0 protects no commit, and durability is \"strict\": say durability = \"async\", or at least 1"
        ]
    );
    assert_eq!(with("1"), Vec::<String>::new());
}

#[test]
fn numbers_out_of_bounds_are_refused() {
    assert_eq!(
        errors(&format!("{GOOD}[failover]\nlease_ms = 100\nping_ms = 30\n")),
        ["line 13: failover.lease_ms = 100 is out of bounds: 500 to 600000"]
    );
    assert_eq!(
        errors(&format!("{GOOD}[failover]\nsuspicion_ms = 300\n")),
        ["line 13: suspicion_ms = 300 would suspect a primary after one lost ping: at least twice ping_ms (250)"]
    );
}

#[test]
fn a_repository_that_could_not_hold_is_refused() {
    let with = |text: &str| errors(&format!("{GOOD}[vault]\n{text}\n"));
    assert_eq!(with("repository = \"vault\""), ["line 13: vault.repository = \"vault\" must be an absolute path"]);
    assert_eq!(
        with("key_file = \"/k\""),
        ["line 13: key_file opens a repository, and none is named: add vault.repository"]
    );
    assert_eq!(
        with("repository = \"/v\"\nkey_file = \"/v/k\""),
        ["line 14: key_file lies inside the repository: whoever has the one has the other; keep it elsewhere"]
    );
    assert_eq!(
        with("repository = \"s3://vault/orders?endpoint=https://s3.example&credentials=/k\""),
        Vec::<String>::new()
    );
    assert_eq!(with("repository = \"azure://vault/orders?account=acme&credentials=/k\""), Vec::<String>::new());
    assert_eq!(with("repository = \"s3://vault?lock=30&lock_mode=compliance\""), Vec::<String>::new());
    let found = with("repository = \"s3://vault?as_of=2026-11-28T10:00:00Z\"");
    assert!(found.len() == 1 && found[0].contains("nothing can be written through it"), "{found:?}");
    for bad in [
        "s3://",
        "azure://vault",
        "azure://acme:s3cret@vault?account=acme",
        "azure://vault?account=acme&azure_storage_key=s3cret",
        "azure://vault?account=acme&sig=s3cret",
        "s3://id:s3cret@vault",
        "s3://vault?secret=s3cret",
        "s3://vault?s3cret",
        "s3://Vault",
        "s3://vault?timeout=0",
        "s3://vault?lock=0",
        "s3://vault?endpoint=ftp://x",
        "s3://vault?credentials=keys",
    ] {
        let found = with(&format!("repository = \"{bad}\""));
        assert!(found[0].contains("the address of") && !found[0].contains("s3cret"), "{bad}: {found:?}");
    }
    for bad in
        ["repository = \"/srv/a\\nb\"", "repository = \"/v\"\nkey_file = \"/k\\u001b\"", "drill_database = \"a\\nb\""]
    {
        let found = with(bad);
        assert!(found.len() == 1 && found[0].contains("control characters"), "{bad}: {found:?}");
    }
    for empty in ["drill_database", "drill_query"] {
        let found = with(&format!("repository = \"/v\"\n{empty} = \"\""));
        assert!(found.len() == 1 && found[0].contains("is empty"), "{empty}: {found:?}");
    }
    assert_eq!(with("repository = \"/v\"\ndrill_query = \"select\\n 1\""), Vec::<String>::new());
    let found = with("repository = \"/var/lib/mainstay/orders/data/vault\"");
    assert_eq!(found[0], "line 13: the repository lies in the data directory of db1: it would be lost with it");
    assert_eq!(
        with("repository = \"/v\"\nfull_at = \"0 25 * * *\""),
        ["line 14: vault.full_at is no time: the hour: \"25\" is none of 0 to 23"]
    );
    assert_eq!(with("keep = 0"), ["line 13: vault.keep = 0 is out of bounds: 1 to 100000"]);
    assert_eq!(with("switch_s = 90000"), ["line 13: vault.switch_s = 90000 is out of bounds: 0 to 86400"]);
    assert_eq!(with("repository = \"/v\"\nkey_file = \"/k\"\nswitch_s = 0"), Vec::<String>::new());
}

#[test]
fn parameters_that_the_engine_owns_are_refused_by_name() {
    let text = format!(
        "{GOOD}[postgres.parameters]\nmax_connections = 200\njit = false\nPort = 1\n\"work mem\" = \"4MB\"\n\
         synchronous_standby_names = \"*\"\n"
    );
    assert_eq!(
        errors(&text),
        [
            "line 15: parameter \"port\" is Mainstay's own: it would break replication or take-over; remove it",
            "line 16: \"work mem\" is not the name of a server parameter",
            "line 17: parameter \"synchronous_standby_names\" is Mainstay's own: it would break replication or take-over; remove it",
        ]
    );
    let spec = parse(&format!("{GOOD}[postgres.parameters]\nmax_connections = 200\njit = false\n"), OWNED).unwrap();
    assert_eq!(spec.postgres.parameters["max_connections"], "200");
    assert_eq!(spec.postgres.parameters["jit"], "off");
}

#[test]
fn access_lines_are_single_lines_of_the_right_kind() {
    assert_eq!(
        errors(&format!("{GOOD}[postgres]\nhba = [\n  \"hostssl all all all md5\",\n  \"allow everyone\",\n]\n")),
        ["line 15: \"allow everyone\" is not one line of pg_hba.conf, as \"hostssl all all 10.0.0.0/8 scram-sha-256\""]
    );
}

#[test]
fn suggestions_are_near_or_absent() {
    assert_eq!(nearest("nmae", &["name", "host"]), Some("name"));
    assert_eq!(nearest("backup_retention", &["name", "host"]), None);
}

#[test]
fn requirements_are_checked() {
    let with = |text: &str| errors(&format!("{GOOD}[requirements]\n{text}\n"));
    assert_eq!(with("size_gb = 500\nneeds = [\"transactions\", \"no-loss\"]"), Vec::<String>::new());
    assert_eq!(with("size_gb = 0"), ["line 13: requirements.size_gb = 0 is out of bounds: 1 to 1000000"]);
    assert!(
        with("needs = [\"transaction\"]")[0]
            .starts_with("line 13: unknown need \"transaction\"; did you mean \"transactions\"?")
    );
    assert!(with("window = \"sunday\"")[0].contains("as \"sun 02:00-04:00\""));
    assert!(with("disk = \"floppy\"")[0].contains("unknown variant `floppy`"));
    assert_eq!(with("working_set_gb = 21"), ["line 13: working_set_gb = 21 is more than the data (size_gb = 20)"]);
}
