//! Bootstrap, probe, doors, slots, restarts.

use crate::support::{Cluster, is, kill, setting, until, value};
use mainstay_engine_postgres::{OptionsError, Postgres, owned_parameters};
use mainstay_model::{Lsn, ServerState, SyncSetting};
use mainstay_ports::engine::{Engine, EngineError};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_is_primary_with_clients_out_until_opened() {
    let cluster = Cluster::new(1);
    let node = &cluster.nodes[0];
    assert_eq!(node.pg.has_data().await, None);
    assert_eq!(node.pg.probe().await.state, ServerState::Down);
    let (system, end) = node.pg.bootstrap(node.copy(), &SyncSetting::default(), None).await.unwrap();
    assert_eq!(node.pg.has_data().await, Some(system));
    assert_eq!(end.timeline.0, 1);
    assert!(node.app().await.is_err(), "clients were let in before the opening");
    node.pg.open().await.unwrap();
    let client = node.app().await.unwrap();
    assert_eq!(value(&client, "show data_checksums").await, "on");
    let running = value(&client, "show server_version").await;
    assert_eq!(value(&client, "select current_user || '@' || current_database()").await, "app@app");
    // The disk is looked at by a thread of its own: not yet at the first probe.
    until("a probe shows it, and how much room there is", || async {
        let seen = node.pg.probe().await;
        let primary = seen.open && seen.state == ServerState::Primary && seen.pid == node.process.pid();
        primary
            && seen.silent == 0
            && seen.end >= Some(end.lsn)
            && seen.disk_free > Some(0)
            && seen.disk_size > seen.disk_free
    })
    .await;
    let log = std::fs::read_to_string(node.options.layout.server_log()).unwrap();
    assert!(!log.contains("SCRAM"), "the verifier is in the log");
    let again = node.pg.bootstrap(node.copy(), &SyncSetting::default(), None).await;
    assert!(matches!(again, Err(EngineError::Failed(_))), "a first copy was made over a running server: {again:?}");
    node.process.kill_all();
    until("the server is gone", || is(node, ServerState::Down)).await;
    let again = node.pg.bootstrap(node.copy(), &SyncSetting::default(), None).await.unwrap_err();
    assert!(again.to_string().contains("never made over data"), "{again}");
    let version = node.pg.version().await.unwrap();
    assert!(running.starts_with(&version), "the program says {version}, its server {running}");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_every_client_also_those_still_authenticating() {
    use std::io::Write;
    let cluster = Cluster::running(1).await;
    let node = &cluster.nodes[0];
    let client = node.app().await.unwrap();
    // One that has connected and said nothing yet was forked under the old rules.
    let mut quiet = std::net::TcpStream::connect((node.host.as_str(), node.options.port)).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.pg.close().await.unwrap();
    assert!(client.simple_query("select 1").await.is_err(), "a session lived on");
    assert!(node.app().await.is_err(), "a new one came in");
    quiet.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let _ = quiet.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]);
    let answer = std::io::Read::read(&mut quiet, &mut [0; 1]);
    assert!(matches!(answer, Ok(0) | Err(_)), "a connection of before was served: {answer:?}");
    assert!(!node.pg.probe().await.open);
    node.pg.open().await.unwrap();
    node.app().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_or_hung_server_is_seen_as_silent() {
    let cluster = Cluster::running(1).await;
    let node = &cluster.nodes[0];
    until("it is well", || async { node.pg.probe().await.silent == 0 }).await;
    let postmaster = node.process.pid().unwrap();
    node.stop_process(postmaster).await;
    let client = node.pg.probe().await;
    assert!(client.silent > 0 && client.symptom.unwrap().contains("stopped"), "a stopped postmaster went unseen");
    kill(postmaster, Signal::CONT);
    until("it is well again", || async { node.pg.probe().await.silent == 0 }).await;
    // The postmaster runs, the session of the probe does not.
    let agent = node.processes("postgres postgres [local]");
    assert!(!agent.is_empty());
    for pid in &agent {
        node.stop_process(*pid).await;
    }
    let began = Instant::now();
    let seen = node.pg.probe().await;
    assert!(began.elapsed() < Duration::from_secs(10), "the probe took {:?}", began.elapsed());
    assert!(seen.silent > 0 && seen.symptom.unwrap().contains("no answer"));
    agent.iter().for_each(|pid| kill(*pid, Signal::CONT));
    until("it is well again", || async { node.pg.probe().await.silent == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_primary_starts_again_in_place_with_clients_out_and_its_setting_untouched() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    first.pg.set_sync(&setting(1, &[second])).await.unwrap();
    first.write(100).await;
    let before = first.flushed().await;
    first.process.kill_all();
    until("the server is gone", || is(first, ServerState::Down)).await;
    let end = first.pg.restart_in_place(None).await.unwrap();
    assert!(end.lsn >= before && end.timeline.0 == 1);
    assert!(first.app().await.is_err());
    let names = first.sql("show synchronous_standby_names").await;
    assert_eq!(names, format!("ANY 1 (\"n2_{}\")", second.copy()));
    first.pg.open().await.unwrap();
    until("the replica is back", || async { first.pg.probe().await.walsenders.iter().any(|w| w.streaming) }).await;
    first.write(1).await;
    // Without the file nobody knows what was in force: commits wait for ever rather than for nobody.
    first.process.kill_all();
    until("the server is gone", || is(first, ServerState::Down)).await;
    std::fs::remove_file(first.options.layout.conf().join("postgresql.conf")).unwrap();
    let forgetful = Postgres::new(first.options.clone(), first.process.clone()).unwrap();
    forgetful.restart_in_place(None).await.unwrap();
    assert_eq!(first.sql("show synchronous_standby_names").await, "ANY 1 (\"mainstay_nobody_0\")");
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_kept_for_members_on_every_node_and_dropped_for_others() {
    let cluster = Cluster::running(2).await;
    let n2 = cluster.nodes[1].id.clone();
    let other = mainstay_model::NodeId::new("n-9").unwrap();
    for node in &cluster.nodes {
        let mut settings = node.settings();
        settings.peers.insert(other.clone(), ("127.0.0.1".to_owned(), 9));
        node.pg.configure(&settings).await.unwrap();
        node.pg.maintain_slots(&[], None).await.unwrap();
        let names = "select string_agg(slot_name, ',' order by slot_name) from pg_replication_slots";
        let mine = if node.id == n2 { "mainstay_n1,mainstay_n_9" } else { "mainstay_n2,mainstay_n_9" };
        assert_eq!(node.sql(names).await, mine);
        // A node that is a member no more loses its slot at once, on a standby as well.
        node.pg.configure(&node.settings()).await.unwrap();
        assert!(!node.sql(names).await.contains("n_9"));
    }
    cluster.nodes[0].write(1000).await;
    let flushed = cluster.nodes[0].flushed().await;
    until("replayed", || async { cluster.nodes[1].pg.probe().await.replay >= Some(flushed) }).await;
    // The primary's slot is in use: it follows what its replica reports, and the maintenance leaves it alone.
    let primary = &cluster.nodes[0];
    primary.pg.maintain_slots(&[(n2.clone(), Some(flushed))], None).await.unwrap();
    let kept = || async {
        let at = primary.sql("select restart_lsn from pg_replication_slots where slot_name = 'mainstay_n2'").await;
        at.parse::<Lsn>().is_ok_and(|at| at >= flushed)
    };
    until("the replica's report counts", kept).await;
    for node in &cluster.nodes[1..] {
        let members = [(n2.clone(), Some(flushed)), (cluster.nodes[0].id.clone(), Some(flushed))];
        node.pg.maintain_slots(&members, None).await.unwrap();
        let at = node.sql("select string_agg(restart_lsn::text, ',') from pg_replication_slots").await;
        assert_eq!(at, flushed.to_string(), "{}", node.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_overrides_what_the_engine_owns() {
    let cluster = Cluster::running(1).await;
    let node = &cluster.nodes[0];
    node.sql("alter system set synchronous_standby_names = 'somebody'").await;
    node.sql("alter system set work_mem = '5MB'").await;
    node.pg.open().await.unwrap();
    assert_eq!(node.sql("show synchronous_standby_names").await, "");
    assert_eq!(node.sql("show work_mem").await, "5MB");
    let mut options = node.options.clone();
    options.parameters.insert("Primary_Conninfo".into(), "x".into());
    assert!(matches!(Postgres::new(options.clone(), node.process.clone()), Err(OptionsError::Owned(_))));
    assert!(owned_parameters().contains(&"synchronous_standby_names"));
    options.parameters.clear();
    options.hba = vec!["allow everybody".into()];
    assert!(matches!(Postgres::new(options, node.process.clone()), Err(OptionsError::BadHba(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_the_server_refuses_keeps_clients_out_and_is_named_also_where_paths_are_long() {
    let cluster = Cluster::below(&"deep/".repeat(30), 1, |options| {
        options.hba = vec!["host all all not/an/address scram-sha-256".into()]
    });
    let node = &cluster.nodes[0];
    node.pg.bootstrap(node.copy(), &SyncSetting::default(), None).await.unwrap();
    assert!(
        node.pg.socket_dir().as_os_str().len() < 80 && !node.pg.socket_dir().starts_with(node.options.layout.dir())
    );
    let error = node.pg.open().await.unwrap_err().to_string();
    assert!(error.contains("postgres.hba"), "{error}");
    assert!(node.app().await.is_err() && !node.pg.probe().await.open);
    std::fs::remove_dir_all(node.pg.socket_dir()).unwrap();
}
