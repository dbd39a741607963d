//! Slots: there before anybody needs them, one connection at a time through each, and never in the way for good.

use crate::support::{Cluster, Node, is, recruit_alike, setting, until};
use mainstay_model::{NodeId, ServerState};
use mainstay_ports::engine::{Engine, EngineSettings};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// Carries connections to a server. When cut, those that come are ended towards who opened them and held towards the server, as by a
/// path that lost the goodbye; new ones pass.
struct Relay {
    port: u16,
    target: Arc<Mutex<Option<(String, u16)>>>,
    cuts: tokio::sync::watch::Sender<u32>,
}

impl Relay {
    fn new() -> Relay {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = TcpListener::from_std(listener).unwrap();
        let target: Arc<Mutex<Option<(String, u16)>>> = Arc::default();
        let (cuts, seen) = tokio::sync::watch::channel(0);
        let to = target.clone();
        tokio::spawn(async move {
            while let Ok((down, _)) = listener.accept().await {
                let (host, port) = to.lock().unwrap().clone().unwrap();
                let mut cut = seen.clone();
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let mut down = down;
                    let Ok(mut up) = TcpStream::connect((host.as_str(), port)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut down, &mut up) => return,
                        _ = cut.changed() => {}
                    }
                    drop(down);
                    tokio::time::sleep(Duration::from_secs(60)).await;
                });
            }
        });
        Relay { port, target, cuts }
    }

    /// Stands between a node and its peer.
    fn stand_before(&self, peer: &mut (String, u16)) {
        *self.target.lock().unwrap() = Some(peer.clone());
        *peer = ("127.0.0.1".into(), self.port);
    }

    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

/// The processes of the walsenders that serve a copy; one that has not been told yet what to send counts for nothing.
async fn senders_of(primary: &Node, node: &Node) -> Vec<String> {
    let sql = "select coalesce(string_agg(pid::text, ','), '') from pg_stat_replication \
               where state <> 'startup' and application_name = ";
    let pids = primary.sql(&format!("{sql} '{}_{}'", node.id, node.copy())).await;
    pids.split(',').filter(|pid| !pid.is_empty()).map(str::to_owned).collect()
}

async fn slot(node: &Node, of: &Node, what: &str) -> String {
    node.sql(&format!("select {what} from pg_replication_slots where slot_name = 'mainstay_{}'", of.id)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_comes_back_beside_its_stale_connection_counts_once() {
    let relay = Relay::new();
    let n1 = NodeId::new("n1").unwrap();
    let cluster = Cluster::run(Cluster::with(3, |options| {
        if options.node.as_str() == "n2" {
            relay.stand_before(options.peers.get_mut(&n1).unwrap());
        }
    }))
    .await;
    let [first, second, third] = &cluster.nodes[..] else { panic!() };
    first.pg.set_sync(&setting(2, &[second, third])).await.unwrap();
    first.write(10).await;
    third.process.kill_all();
    until("the third is gone", || async { senders_of(first, third).await.is_empty() }).await;
    let client = first.app().await.unwrap();
    let commit = tokio::spawn(async move { client.batch_execute("create table waits (id int)").await });
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    until("the commit waits", || async { first.sql(waiting).await == "1" }).await;
    let end = first.flushed().await;
    let confirmed = || async { first.pg.probe().await.walsenders.iter().any(|w| w.flush >= end) };
    until("the second has it", confirmed).await;
    let stale = senders_of(first, second).await;
    assert!(stale.len() == 1 && !commit.is_finished(), "acknowledged with one of two confirmations");
    relay.cut();
    let began = Instant::now();
    until("the stale connection has ended and the second is back", || async {
        let now = senders_of(first, second).await;
        assert!(now.len() < 2, "two connections of one copy: {now:?}");
        assert!(!commit.is_finished(), "a commit was acknowledged that one replica has, counted twice");
        assert!(first.pg.probe().await.walsenders.len() < 2);
        now.len() == 1 && now != stale && confirmed().await
    })
    .await;
    let took = began.elapsed();
    println!("refused for: {took:?}");
    assert!(took < Duration::from_secs(30), "the replica was refused for {took:?}");
    let log = std::fs::read_to_string(first.options.layout.server_log()).unwrap();
    assert!(log.contains("replication slot \"mainstay_n2\" is active"), "the second connection was never refused");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!commit.is_finished(), "a commit was acknowledged that one replica has");
    third.pg.start_standby(third.copy(), Some(&first.id)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), commit).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_server_has_the_slots_of_all_others_from_its_start_and_they_keep_nothing_yet() {
    let cluster = Cluster::running(3).await;
    let [first, second, third] = &cluster.nodes[..] else { panic!() };
    for node in &cluster.nodes {
        let names = node.sql("select string_agg(slot_name, ',' order by slot_name) from pg_replication_slots").await;
        let others = cluster.nodes.iter().filter(|other| other.id != node.id);
        assert_eq!(names, others.map(|other| format!("mainstay_{}", other.id)).collect::<Vec<_>>().join(","));
    }
    assert_eq!(slot(first, second, "active").await, "t");
    assert_eq!(slot(second, third, "active or restart_lsn is not null").await, "f");
    // Also after a promotion or a restart in place, when somebody has dropped them.
    let end = recruit_alike(first, &[second, third]).await;
    first.process.kill_all();
    second.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots").await;
    second.promote(&setting(0, &[]), &end, 2).await;
    assert_eq!(second.sql("select count(*) from pg_replication_slots").await, "2");
    third.pg.follow(third.copy(), &second.id).await.unwrap();
    third.until_receiving().await;
    third.process.kill_all();
    until("the third is gone", || async { slot(second, third, "active").await == "f" }).await;
    second.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots").await;
    second.process.kill_all();
    until("gone", || is(second, ServerState::Down)).await;
    second.pg.restart_in_place(None).await.unwrap();
    assert_eq!(second.sql("select count(*) from pg_replication_slots").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_stalls_its_replica_until_the_maintenance() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    second.recruit().await;
    until("the slot is free", || async { slot(first, second, "active").await == "f" }).await;
    first.sql("select pg_drop_replication_slot('mainstay_n2')").await;
    second.pg.follow(second.copy(), &first.id).await.unwrap();
    // The standby's own view says "streaming" for a moment at each attempt, before it is refused.
    let (began, mut claimed) = (Instant::now(), false);
    let view = second.admin().await;
    while began.elapsed() < Duration::from_secs(3) {
        assert!(!second.pg.probe().await.receiving, "it streams without its slot");
        let status = "select coalesce(max(status), '') from pg_stat_wal_receiver";
        claimed |= crate::support::value(&view, status).await == "streaming";
    }
    println!("the server's own view said streaming: {claimed}");
    let streams = "select count(*) from pg_stat_replication where state in ('catchup', 'streaming')";
    assert_eq!(first.sql(streams).await, "0", "it streams without its slot");
    first.pg.maintain_slots(&[(second.id.clone(), None)], None).await.unwrap();
    second.until_receiving().await;
    assert_eq!(slot(first, second, "active").await, "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_given_up_is_made_anew() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    until("it keeps the log", || async { slot(first, second, "wal_status").await == "reserved" }).await;
    second.process.kill_all();
    until("the slot is free", || async { slot(first, second, "active").await == "f" }).await;
    give_up(first, second).await;
    first.pg.maintain_slots(&[(second.id.clone(), None)], None).await.unwrap();
    assert_eq!(slot(first, second, "coalesce(wal_status, 'new')").await, "new");
    until("gone", || is(second, ServerState::Down)).await;
    // Under so small a bound the clone's own checkpoint may take the new slot too.
    first.sql("alter system reset max_slot_wal_keep_size").await;
    first.sql("select pg_reload_conf()").await;
    second.clone_from(first).await;
    assert_eq!(slot(first, second, "active").await, "t");
    until("it keeps the log", || async { slot(first, second, "wal_status").await == "reserved" }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_of_a_node_that_was_removed_goes_although_its_replica_comes_back_at_once() {
    let cluster = Cluster::running(3).await;
    let [first, second, third] = &cluster.nodes[..] else { panic!() };
    second.sql("alter system set wal_retrieve_retry_interval = 1").await;
    second.sql("select pg_reload_conf()").await;
    let everybody = first.settings();
    let mut fewer = everybody.clone();
    fewer.peers.remove(&second.id);
    let there = "select count(*) from pg_replication_slots where slot_name = 'mainstay_n2'";
    for round in 0..5 {
        until("it streams", || async { slot(first, second, "active").await == "t" }).await;
        let began = Instant::now();
        first.pg.configure(&fewer).await.unwrap();
        println!("round {round}: {:?}", began.elapsed());
        assert_eq!(first.sql(there).await, "0");
        first.pg.maintain_slots(&[(third.id.clone(), None)], None).await.unwrap();
        assert_eq!(first.sql(there).await, "0");
        until("nobody streams", || async { senders_of(first, second).await.is_empty() }).await;
        first.pg.configure(&everybody).await.unwrap();
        first.pg.maintain_slots(&[(second.id.clone(), None)], None).await.unwrap();
    }
    second.until_replayed(first).await;
    third.until_replayed(first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_has_nothing_to_bring_counts() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    second.until_replayed(first).await;
    let silent = "select last_msg_send_time = last_msg_receipt_time from pg_stat_wal_receiver";
    let mut tries = 0..10;
    let began = loop {
        // At the very beginning of a file nothing is sent again to one that comes back.
        first.sql("select pg_switch_wal()").await;
        let flushed = first.flushed().await;
        until("replayed", || async { second.pg.probe().await.replay >= Some(flushed) }).await;
        let before = senders_of(first, second).await;
        first.sql("select pg_terminate_backend(pid) from pg_stat_replication").await;
        until("another stream", || async {
            let now = senders_of(first, second).await;
            now.len() == 1 && now != before
        })
        .await;
        // The server itself may write something at any time.
        let began = Instant::now();
        if second.sql(silent).await == "t" {
            break began;
        }
        assert!(tries.next().is_some(), "something always came: nothing was tested");
    };
    second.until_receiving().await;
    println!("counts after {:?}", began.elapsed());
    // The server itself would say something only when it believes the standby gone, and asks.
    assert!(began.elapsed() < Duration::from_secs(20));
}

async fn lose_log(node: &Node) {
    for _ in 0..4 {
        node.write(10).await;
        node.sql("select pg_switch_wal()").await;
    }
    node.sql("checkpoint").await;
}

/// Lets the log go that a replica needs which is not there.
async fn give_up(node: &Node, of: &Node) {
    node.sql("alter system set max_slot_wal_keep_size = '1MB'").await;
    node.sql("alter system set wal_keep_size = 0").await;
    node.sql("select pg_reload_conf()").await;
    // The process that makes checkpoints reads the settings when it gets to it.
    until("the log is lost", || async {
        lose_log(node).await;
        slot(node, of, "wal_status").await == "lost"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_primary_keeps_the_log_for_those_that_have_not_come_yet() {
    let cluster = Cluster::running(3).await;
    let [first, second, third] = &cluster.nodes[..] else { panic!() };
    for node in [second, third] {
        node.sql("alter system set wal_keep_size = 0").await;
        node.sql("select pg_reload_conf()").await;
    }
    first.write(10).await;
    second.until_replayed(first).await;
    third.until_replayed(first).await;
    let end = recruit_alike(first, &[second, third]).await;
    first.process.kill_all();
    assert_eq!(slot(second, third, "restart_lsn is not null").await, "f", "it was kept before: nothing was tested");
    second.promote(&setting(0, &[]), &end, 2).await;
    assert_eq!(slot(second, third, "restart_lsn is not null and not active").await, "t");
    lose_log(second).await;
    third.pg.follow(third.copy(), &second.id).await.unwrap();
    let flushed = second.flushed().await;
    until("streamed", || async { third.pg.probe().await.replay >= Some(flushed) }).await;
    // A clone too finds what it needs, however long it takes until its server starts.
    until("gone", || is(first, ServerState::Down)).await;
    (*first.pg).clone_from(&second.id, first.copy()).await.unwrap();
    until("kept, and not in use", || async {
        slot(second, first, "restart_lsn is not null and not active").await == "t"
    })
    .await;
    lose_log(second).await;
    first.pg.start_standby(first.copy(), Some(&second.id)).await.unwrap();
    first.until_replayed(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_the_upstream_has_removed_is_told_until_the_copy_is_made_anew() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    until("it keeps the log", || async { slot(first, second, "wal_status").await == "reserved" }).await;
    second.kill().await;
    until("the slot is free", || async { slot(first, second, "active").await == "f" }).await;
    give_up(first, second).await;
    first.pg.maintain_slots(&[(second.id.clone(), None)], None).await.unwrap();
    second.pg.start_standby(second.copy(), Some(&first.id)).await.unwrap();
    assert!(!second.pg.probe().await.log_gone);
    let began = Instant::now();
    until("it is told", || async { second.pg.probe().await.log_gone }).await;
    println!("told after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(30));
    let mut told = 0;
    for _ in 0..40 {
        let seen = second.pg.probe().await;
        assert!(seen.log_gone && !seen.receiving, "{seen:?}");
        // Silence for another reason, as on a slow disk, is told first.
        told += usize::from(seen.silent == 0 && seen.symptom.is_some_and(|text| text.contains("cloned anew")));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(told > 0, "people are not told, or the copy counts as silent for it");
    second.kill().await;
    // Under so small a bound the clone's own checkpoint may take the new slot too.
    first.sql("alter system reset max_slot_wal_keep_size").await;
    first.sql("select pg_reload_conf()").await;
    second.clone_from(first).await;
    second.until_replayed(first).await;
    assert!(!second.pg.probe().await.log_gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_left_from_a_time_as_primary_moves_on() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    first.write(100).await;
    // Told only with the replica's first report.
    until("the slot keeps log", || async { !slot(first, second, "coalesce(restart_lsn::text, '')").await.is_empty() })
        .await;
    let end = first.pg.stop_clean(&[second.id.clone()].into()).await.unwrap();
    assert_eq!(second.recruit().await.0, end);
    second.promote(&setting(0, &[]), &end, 2).await;
    second.pg.open().await.unwrap();
    first.pg.start_standby(first.copy(), Some(&second.id)).await.unwrap();
    first.until_receiving().await;
    assert_ne!(slot(first, second, "coalesce(restart_lsn::text, '')").await, "", "nothing was left");
    second.write(1000).await;
    let flushed = second.flushed().await;
    until("replayed", || async { first.pg.probe().await.replay >= Some(flushed) }).await;
    first.pg.maintain_slots(&[(second.id.clone(), Some(flushed))], None).await.unwrap();
    assert_eq!(slot(first, second, "restart_lsn").await, flushed.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_asks_for_a_quick_end_of_its_connection_when_it_is_gone() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let conninfo = format!("{} dbname=postgres", second.sql("show primary_conninfo").await);
    let mut psql = tokio::process::Command::new(second.options.bin_dir.join("psql"));
    psql.args(["-X", "-A", "-t", "-w", "-c", "show tcp_user_timeout", "-c", "show tcp_keepalives_idle", &conninfo]);
    if let Some((uid, gid)) = second.options.user {
        psql.uid(uid).gid(gid).current_dir("/").env("HOME", "/");
    }
    let said = psql.output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "3000\n1\n", "{}", String::from_utf8_lossy(&said.stderr));
    // Clients' sessions keep what the operator set.
    assert_eq!(crate::support::value(&first.app().await.unwrap(), "show tcp_user_timeout").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_archived_yet_is_kept_on_every_node_but_never_beyond_the_bound() {
    let cluster = Cluster::running(2).await;
    let [first, second] = &cluster.nodes[..] else { panic!() };
    for node in &cluster.nodes {
        node.sql("alter system set wal_keep_size = 0").await;
        node.sql("select pg_reload_conf()").await;
        let settings = EngineSettings { archived: true, ..node.settings() };
        node.pg.configure(&settings).await.unwrap();
        node.pg.maintain_slots(&[], None).await.unwrap();
    }
    let segment = first.sql("select pg_walfile_name(pg_current_wal_lsn())").await;
    let there = |node: &Node| node.options.layout.data().join("pg_wal").join(&segment).exists();
    // Replicas do what checkpoints do on a primary when they have replayed one.
    let pass = || async {
        lose_log(first).await;
        second.until_replayed(first).await;
        second.sql("checkpoint").await;
    };
    for _ in 0..4 {
        pass().await;
        assert!(there(first) && there(second), "{segment} is not archived, and gone");
    }
    let archived = first.flushed().await;
    until("what is archived goes", || async {
        for node in &cluster.nodes {
            node.pg
                .maintain_slots(
                    &[(second.id.clone(), Some(archived)), (first.id.clone(), Some(archived))],
                    Some(archived),
                )
                .await
                .unwrap();
        }
        pass().await;
        !there(first) && !there(second)
    })
    .await;
    // The repository stays away, and the volume has no more room.
    let status = "select coalesce(wal_status, 'new') from pg_replication_slots where slot_name = 'mainstay__archive'";
    first.sql("alter system set max_slot_wal_keep_size = '1MB'").await;
    first.sql("select pg_reload_conf()").await;
    until("the log is let go", || async {
        lose_log(first).await;
        first.sql(status).await == "lost"
    })
    .await;
    first.pg.maintain_slots(&[], Some(archived)).await.unwrap();
    assert_ne!(first.sql(status).await, "lost", "it keeps what comes from now on");
    // Not archived any more: nothing is kept for it.
    first.pg.configure(&first.settings()).await.unwrap();
    first.pg.maintain_slots(&[], None).await.unwrap();
    assert_eq!(first.sql("select count(*) from pg_replication_slots where slot_name = 'mainstay__archive'").await, "0");
}
