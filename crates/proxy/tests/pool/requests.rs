//! Extended requests by hand: what is between a `Flush` and its `Sync` is one client's alone.

use crate::support::{Bench, Postgres, SOON, until, value};
use mainstay_model::{RouteState, Term};
use mainstay_ports::route_board::Holds;
use mainstay_proxy::pool::PoolOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;

/// A session whose messages are written and read one by one.
pub struct Session {
    stream: TcpStream,
}

/// A message: its letter and its body.
pub type Message = (char, Vec<u8>);

impl Session {
    pub async fn open(address: std::net::SocketAddr) -> Self {
        let mut front = TcpStream::connect(address).await.unwrap();
        // The driver logs in over a stream of its own that is passed on by bytes; then it is put aside.
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let mut config = tokio_postgres::Config::new();
        config.user("app").password("secret").dbname("shop").ssl_mode(SslMode::Disable);
        let login = tokio::spawn(async move { config.connect_raw(near, NoTls).await.unwrap() });
        let mut aside = vec![0; 1 << 16];
        let mut back = vec![0; 1 << 16];
        while !login.is_finished() {
            tokio::select! {
                read = far.read(&mut aside) => {
                    let count = read.unwrap();
                    front.write_all(&aside[..count]).await.unwrap();
                }
                read = front.read(&mut back) => {
                    let count = read.unwrap();
                    assert!(count > 0, "the login was refused");
                    far.write_all(&back[..count]).await.unwrap();
                }
                () = tokio::time::sleep(std::time::Duration::from_millis(10)) => {}
            }
        }
        // Dropped, it says goodbye to the stream that is put aside.
        drop(login.await.unwrap());
        Self { stream: front }
    }

    pub async fn send(&mut self, messages: &[Message]) {
        self.try_send(messages).await.unwrap();
    }

    /// All of them in one write.
    pub async fn try_send(&mut self, messages: &[Message]) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for (tag, body) in messages {
            bytes.push(*tag as u8);
            bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
            bytes.extend(body);
        }
        self.send_bytes(&bytes).await
    }

    /// Whatever they are.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The other side sees a reset.
    pub fn break_off(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// One message; `None`: the session has ended.
    pub async fn message(&mut self) -> Option<Message> {
        let read = async {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes(head[1..].try_into().unwrap());
            let mut body = vec![0; length as usize - 4];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((char::from(head[0]), body))
        };
        tokio::time::timeout(SOON, read).await.expect("an answer")
    }

    /// The letters of what comes, up to this one; behind `Z` stands the state, behind `E` the code, behind `D` the row's one value.
    pub async fn up_to(&mut self, last: char) -> String {
        let mut heard = Vec::new();
        while let Some((tag, body)) = self.message().await {
            let text = String::from_utf8_lossy(&body);
            heard.push(match tag {
                'Z' => format!("Z{text}"),
                'E' => format!("E{}", text.split('\0').find_map(|field| field.strip_prefix('C')).unwrap()),
                'D' => format!("D{}", &text[6..]),
                _ => tag.to_string(),
            });
            if tag == last {
                break;
            }
        }
        heard.join(" ")
    }
}

pub fn query(text: &str) -> Message {
    ('Q', format!("{text}\0").into())
}

pub fn parse(name: &str, text: &str) -> Message {
    ('P', format!("{name}\0{text}\0\0\0").into())
}

pub fn describe(name: &str) -> Message {
    ('D', format!("S{name}\0").into())
}

pub fn bind(name: &str) -> Message {
    ('B', format!("\0{name}\0\0\0\0\0\0\0").into())
}

pub fn execute() -> Message {
    ('E', b"\0\0\0\0\0".to_vec())
}

fn flush() -> Message {
    ('H', Vec::new())
}

pub fn sync() -> Message {
    ('S', Vec::new())
}

/// A statement without name, run, and not synced.
pub fn run(text: &str) -> [Message; 4] {
    [parse("", text), bind(""), execute(), flush()]
}

/// The same, synced.
pub fn synced(text: &str) -> [Message; 4] {
    [parse("", text), bind(""), execute(), sync()]
}

async fn bench(server: &Postgres) -> Bench {
    let bench = Bench::start(server, PoolOptions { size: 1, reserve: 0, ..PoolOptions::default() }).await;
    bench.open(server, 1, vec![]).await;
    bench.app().await.batch_execute("create table t (id int)").await.unwrap();
    bench
}

#[tokio::test]
async fn between_flush_and_sync_a_server_is_its_clients_alone() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    let (mut a, b) = (Session::open(bench.write).await, std::sync::Arc::new(bench.app().await));
    let count = || {
        let b = std::sync::Arc::clone(&b);
        tokio::spawn(async move { value(&b, "select count(*) from t").await })
    };
    a.send(&run("insert into t values (1)")).await;
    assert_eq!(a.up_to('C').await, "1 2 C");
    let waiting = count();
    until("somebody waits", async || bench.pool().waiting == 1).await;
    // More of the same request is the same transaction.
    a.send(&run("insert into t values (2)")).await;
    assert_eq!(a.up_to('C').await, "1 2 C");
    assert_eq!(
        server.sql("select count(*) from pg_stat_activity where xact_start is not null and usename = 'app'").await[0]
            [0],
        "1"
    );
    a.send(&[sync()]).await;
    assert_eq!(a.up_to('Z').await, "ZI");
    assert_eq!(waiting.await.unwrap(), "2", "committed, and seen");
    // Behind a request that was synced, in the same bytes.
    a.send(&[synced("insert into t values (3)"), run("insert into t values (4)")].concat()).await;
    assert_eq!(a.up_to('Z').await, "1 2 C ZI");
    assert_eq!(a.up_to('C').await, "1 2 C");
    let waiting = count();
    until("somebody waits", async || bench.pool().waiting == 1).await;
    // A failure of it undoes it.
    a.send(&run("select 1/0")).await;
    assert_eq!(a.up_to('E').await, "1 E22012");
    a.send(&[sync()]).await;
    assert_eq!(a.up_to('Z').await, "ZI");
    assert_eq!(waiting.await.unwrap(), "3");
    // A simple query ends it as well, also one that the proxy answers.
    for last in ["select 1", "deallocate known"] {
        a.send(&[parse("known", "select 1"), sync()]).await;
        assert_eq!(a.up_to('Z').await, "1 ZI");
        a.send(&run("insert into t values (5)")).await;
        assert_eq!(a.up_to('C').await, "1 2 C");
        a.send(&[query(last)]).await;
        let heard = a.up_to('Z').await;
        assert!(heard == "T D1 C ZI" || heard == "C ZI", "{last}: {heard}");
        assert_eq!(
            server.sql("select count(*) from pg_stat_activity where xact_start is not null and usename = 'app'").await
                [0][0],
            "0"
        );
    }
    assert_eq!(count().await.unwrap(), "5");
    bench.end().await;
}

#[tokio::test]
async fn a_client_that_goes_after_flush_takes_its_work_with_it() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    let b = bench.app().await;
    for bye in [false, true] {
        let mut a = Session::open(bench.write).await;
        a.send(&run("insert into t values (1)")).await;
        assert_eq!(a.up_to('C').await, "1 2 C");
        if bye {
            a.send(&[('X', Vec::new())]).await;
        }
        drop(a);
        assert_eq!(value(&b, "select count(*) from t").await, "0");
        assert_eq!(
            value(&b, "select count(*) from pg_locks where relation = 't'::regclass and mode ~ 'Row'").await,
            "0"
        );
    }
    bench.end().await;
}

#[tokio::test]
async fn a_text_that_is_prepared_with_flush_is_run_later() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    let (mut a, b) = (Session::open(bench.write).await, bench.app().await);
    // The second time the server knows the text.
    for name in ["one", "two"] {
        a.send(&[parse(name, "insert into t values (7) returning id"), describe(name), flush()]).await;
        assert_eq!(a.up_to('T').await, "1 t T");
        let waiting = async { value(&b, "select 1").await };
        let then = async {
            until("somebody waits", async || bench.pool().waiting == 1).await;
            a.send(&[sync()]).await;
            a.up_to('Z').await
        };
        assert_eq!(tokio::join!(waiting, then), ("1".to_owned(), "ZI".to_owned()));
        a.send(&[parse("other", "select 8"), describe("other"), flush()]).await;
        assert_eq!(a.up_to('T').await, "1 t T");
        a.send(&[bind(name), execute(), sync()]).await;
        assert_eq!(a.up_to('Z').await, "2 D7 C ZI");
        a.send(&[('C', b"Sother\0".to_vec()), sync()]).await;
        assert_eq!(a.up_to('Z').await, "3 ZI");
    }
    assert_eq!(value(&b, "select count(*) from t").await, "2");
    bench.end().await;
}

#[tokio::test]
async fn a_server_that_is_lost_between_flush_and_sync_is_told_of() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    let end = async || {
        server.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'").await;
    };
    // Nothing but a text: the next server gets it, and the client notices nothing.
    let mut a = Session::open(bench.write).await;
    a.send(&[parse("", "select 9"), describe(""), flush()]).await;
    assert_eq!(a.up_to('T').await, "1 t T");
    let lost = bench.pool().lost;
    end().await;
    until("it is noticed", async || bench.pool().lost == lost + 1).await;
    a.send(&[bind(""), execute(), sync()]).await;
    assert_eq!(a.up_to('Z').await, "2 D9 C ZI");
    // In a transaction: told with what comes next, be it the `Sync` alone.
    for (next, heard) in [(vec![sync()], "E40001 ZE"), (vec![bind(""), execute(), sync()], "E40001 ZE")] {
        a.send(&[query("begin")]).await;
        assert_eq!(a.up_to('Z').await, "C ZT");
        a.send(&run("insert into t values (1)")).await;
        assert_eq!(a.up_to('C').await, "1 2 C");
        let lost = bench.pool().lost;
        end().await;
        until("it is noticed", async || bench.pool().lost == lost + 1).await;
        a.send(&next).await;
        assert_eq!(a.up_to('Z').await, heard);
        a.send(&[query("rollback")]).await;
        assert_eq!(a.up_to('Z').await, "C ZI");
    }
    // Work of its own, or a commit: nobody knows.
    for before in [None, Some("begin")] {
        let mut a = Session::open(bench.write).await;
        if let Some(text) = before {
            a.send(&[query(text)]).await;
            assert_eq!(a.up_to('Z').await, "C ZT");
        }
        a.send(&run(if before.is_none() { "insert into t values (1)" } else { "commit" })).await;
        assert_eq!(a.up_to('C').await, "1 2 C");
        end().await;
        assert_eq!(a.up_to('Z').await, "E08007");
    }
    assert_eq!(value(&bench.app().await, "select count(*) from t").await, "0");
    bench.end().await;
}

#[tokio::test]
async fn in_a_drain_a_request_without_its_sync_is_under_way() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    let mut a = Session::open(bench.write).await;
    a.send(&run("insert into t values (1)")).await;
    assert_eq!(a.up_to('C').await, "1 2 C");
    bench.say(&server, 1, RouteState::Draining, vec![]).await;
    let holds = |under_way| Some(Holds { epoch: Term(1), under_way });
    until("one is under way", async || bench.pooled.holds() == holds(1)).await;
    a.send(&[sync()]).await;
    assert_eq!(a.up_to('Z').await, "ZI");
    until("none is", async || bench.pooled.holds() == holds(0)).await;
    bench.end().await;
}
