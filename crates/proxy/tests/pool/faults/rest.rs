//! What is left when one side breaks off in the middle: the rest of a message, a commit that nobody looked into, rows that nobody reads.

use super::relay::{Fault, Kind, Relay, Way};
use crate::requests::{Session, bind, execute, parse, query, sync};
use crate::support::{Bench, Postgres, until, value};
use mainstay_model::route::RouteMember;
use mainstay_proxy::pool::PoolOptions;

/// A pool of one connection, with a relay before the server.
struct Bed {
    server: Postgres,
    relay: Relay,
    bench: Bench,
}

async fn bed() -> Bed {
    let server = Postgres::start("db1").await;
    let relay = Relay::to(server.address).await;
    let bench = Bench::start(&server, PoolOptions { size: 1, reserve: 0, ..PoolOptions::default() }).await;
    bench.open_at(RouteMember { address: relay.address, ..server.member() }, 1, vec![]).await;
    bench.app().await.batch_execute("create table l (id int)").await.unwrap();
    Bed { server, relay, bench }
}

impl Bed {
    async fn count(&self) -> String {
        self.server.shop("select count(*) from l").await.remove(0).remove(0)
    }

    /// Breaks the server's connection when it has answered, or been sent, so many bytes from here on.
    fn break_after(&self, way: Way, after: usize) {
        self.relay.arm(Fault { way, after, kind: Kind::Reset });
    }
}

/// A whole request, as it may stand in the middle of a text.
const FORGED: &[u8] = b"Q\0\0\0\x1finsert into l values (666)\0";

/// A message's head, with what is said of its length.
fn head(tag: u8, length: usize) -> Vec<u8> {
    [&[tag], &u32::try_from(length).unwrap().to_be_bytes()[..]].concat()
}

#[tokio::test]
async fn the_rest_of_a_text_whose_server_is_lost_is_no_request() {
    let bed = bed().await;
    let mut session = Session::open(bed.bench.write).await;
    for (begin, told, ended) in [(None, "E08007 ZI", "T D1 C ZI"), (Some("begin"), "E08007 ZI", "T D1 C ZI")] {
        if let Some(text) = begin {
            session.send(&[query(text)]).await;
            assert_eq!(session.up_to('Z').await, "C ZT");
        }
        let first = [b"select '".to_vec(), vec![b'x'; 100_000]].concat();
        let rest = [FORGED, &vec![b'x'; 1000], b"'\0"].concat();
        bed.break_after(Way::Up, 90_000);
        session.send_bytes(&head(b'Q', 4 + first.len() + rest.len())).await.unwrap();
        session.send_bytes(&first).await.unwrap();
        assert_eq!(session.up_to('Z').await, told);
        session.send_bytes(&rest).await.unwrap();
        session.send(&[query("select 1")]).await;
        assert_eq!(session.up_to('Z').await, ended);
    }
    assert_eq!(bed.count().await, "0");
    bed.bench.end().await;
}

#[tokio::test]
async fn the_rest_of_a_row_that_nobody_takes_any_more_is_no_request() {
    let bed = bed().await;
    let mut session = Session::open(bed.bench.write).await;
    for (begin, state) in [(None, 'I'), (Some("begin"), 'E')] {
        if let Some(text) = begin {
            session.send(&[query(text)]).await;
            assert_eq!(session.up_to('Z').await, "C ZT");
        }
        session.send(&[query("copy l from stdin")]).await;
        assert_eq!(session.up_to('G').await, "G");
        // A row is refused while the next are under way.
        let wrong = b"no number\n1\n2\n";
        let first = vec![b'1'; 1000];
        let rest = [FORGED, b"1\n"].concat();
        let under_way = [head(b'd', 4 + first.len() + rest.len()), first].concat();
        session.send_bytes(&[head(b'd', 4 + wrong.len()), wrong.to_vec(), under_way].concat()).await.unwrap();
        assert_eq!(session.up_to('Z').await, format!("E22P02 Z{state}"));
        let lost = bed.bench.pool().lost;
        bed.server.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'").await;
        until("it is noticed", async || bed.bench.pool().lost == lost + 1).await;
        session.send_bytes(&rest).await.unwrap();
        if begin.is_some() {
            session.send(&[query("rollback")]).await;
            assert_eq!(session.up_to('Z').await, "C ZI");
        }
        session.send(&[query("select 1")]).await;
        assert_eq!(session.up_to('Z').await, "T D1 C ZI");
    }
    assert_eq!(bed.count().await, "0");
    bed.bench.end().await;
}

#[tokio::test]
async fn a_commit_that_nobody_could_see_is_in_doubt_as_well() {
    let bed = bed().await;
    // In a text that is too long to be looked into; and by a portal that was bound before.
    let long = format!("insert into l values (1); select length('{}'); commit", "x".repeat(100_000));
    for portal in [false, true] {
        let mut session = Session::open(bed.bench.write).await;
        session.send(&[query("begin")]).await;
        assert_eq!(session.up_to('Z').await, "C ZT");
        if portal {
            session.send(&[query("insert into l values (1)")]).await;
            assert_eq!(session.up_to('Z').await, "C ZT");
            session.send(&[parse("", "commit"), bind(""), sync()]).await;
            assert_eq!(session.up_to('Z').await, "1 2 ZT");
        }
        bed.break_after(Way::Down, 0);
        let commit = if portal { vec![execute(), sync()] } else { vec![query(&long)] };
        session.send(&commit).await;
        assert!(session.up_to('Z').await.starts_with("E08007"), "a portal: {portal}");
    }
    assert_eq!(bed.count().await, "2", "both were committed");
    bed.bench.end().await;
}

#[tokio::test]
async fn a_commit_of_what_was_lost_before_is_no_success() {
    let bed = bed().await;
    let mut session = Session::open(bed.bench.write).await;
    let lose = async |session: &mut Session| {
        session.send(&[query("begin")]).await;
        assert_eq!(session.up_to('Z').await, "C ZT");
        let lost = bed.bench.pool().lost;
        bed.server.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'").await;
        until("it is noticed", async || bed.bench.pool().lost == lost + 1).await;
    };
    lose(&mut session).await;
    session.send(&[query("commit")]).await;
    assert_eq!(session.up_to('Z').await, "E40001 ZI");
    // Who gives up anyway, or knows, is not told again.
    lose(&mut session).await;
    session.send(&[query("rollback")]).await;
    assert_eq!(session.up_to('Z').await, "C ZI");
    lose(&mut session).await;
    session.send(&[query("select 1")]).await;
    assert_eq!(session.up_to('Z').await, "E40001 ZE");
    session.send(&[query("commit")]).await;
    assert_eq!(session.up_to('Z').await, "C ZI");
    session.send(&[query("select 1")]).await;
    assert_eq!(session.up_to('Z').await, "T D1 C ZI");
    bed.bench.end().await;
}

#[tokio::test]
async fn a_client_that_breaks_off_while_rows_wait_for_it_leaves_its_places() {
    let bed = bed().await;
    let busy = "select count(*) from pg_stat_activity where usename = 'app' and wait_event = 'ClientWrite'";
    for broken in [true, false] {
        let mut session = Session::open(bed.bench.write).await;
        session.send(&[query("select repeat('x', 10000) from generate_series(1, 20000)")]).await;
        until("nobody reads", async || bed.server.sql(busy).await[0][0] == "1").await;
        if broken {
            session.break_off()
        } else {
            drop(session)
        }
        let next = bed.bench.app().await;
        assert_eq!(value(&next, "select 1").await, "1");
        drop(next);
        until("nobody is left", async || {
            let pool = bed.bench.pool();
            (pool.clients, pool.busy) == (0, 0) && bed.bench.now().write_open == 0
        })
        .await;
    }
    bed.bench.end().await;
}
