//! A connection breaks after each single byte of what is said around a commit: between client and proxy, and between proxy and server; in
//! a pool, and with whole connections. Nothing is done twice, what was acknowledged is there, and whoever comes next finds a clean server.
//!
//! The suite closes after one byte and resets after the next, in turn, and stalls after some; `MAINSTAY_FAULTS=all`: each after all.

mod exchange;
mod relay;
mod rest;
mod whole;

use crate::requests::{Session, query};
use crate::support::{Bench, LOCAL, Postgres, SOON, until, value};
use exchange::{Belief, EXCHANGES, Exchange};
use mainstay_model::outcome::CommitAnswer;
use mainstay_model::route::RouteMember;
use mainstay_proxy::ProxyOptions;
use mainstay_proxy::pool::{PoolOptions, Pooled};
use relay::{Fault, Kind, Relay, Way};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_postgres::Client;
use whole::Whole;

/// So many proxies are tried at once, each with a pool of one connection.
const LANES: usize = 8;
/// Who is inside a proxy at once: the one who looks, the one who is tried, and those that are on their way out.
const INSIDE: usize = 4;
/// How long a stall lasts before something is done about it.
const STALL: Duration = Duration::from_millis(10);
/// Without being asked for all, a stall comes after each such byte.
const STALL_EACH: usize = 5;
/// Ids of six digits: every text is as long as every other.
const FIRST_ID: u32 = 100_000;
/// A setting of the one who is tried, that nobody else may see.
const SETTING: &str = "7777ms";

/// Where the relay stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Site {
    /// Between client and proxy.
    Client,
    /// Between proxy and server.
    Server,
}

/// One fault that is tried.
#[derive(Clone, Copy)]
struct Case {
    exchange: usize,
    site: Site,
    fault: Fault,
    /// Its rows carry this.
    id: u32,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", EXCHANGES[self.exchange].name, self.site, self.fault)
    }
}

/// What is left to be tried, and what clients believe of what was.
struct Plan {
    left: Mutex<Vec<Case>>,
    believed: Mutex<HashMap<u32, (Case, Belief)>>,
    /// Commits that were looked up.
    found: AtomicU64,
}

/// The proxy in between.
enum Front {
    Pool(Box<Bench>, Client),
    Whole(Whole),
}

/// How clients get to the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Whole,
    Pool,
    /// A pool that looks up what became of a commit.
    LookingUp,
}

/// A proxy with a relay on either side.
struct Lane {
    front: Front,
    epoch: u64,
    server: RouteMember,
    relays: [Relay; 2],
    session: Option<Session>,
}

impl Lane {
    async fn start(postgres: &Arc<Postgres>, how: How) -> Self {
        let far = Relay::to(postgres.address).await;
        let server = RouteMember { address: far.address, ..postgres.member() };
        let options =
            ProxyOptions { hold: SOON, max_connections: INSIDE, ..ProxyOptions::new(vec![LOCAL], vec![LOCAL]) };
        let front = if how != How::Whole {
            let commit_outcome = how == How::LookingUp;
            let pooling = PoolOptions { size: 1, reserve: 0, commit_outcome, ..PoolOptions::default() };
            let bench = Bench::with(postgres, pooling, options).await;
            tokio::spawn(answer_from_the_log(bench.pooled.clone(), Arc::clone(postgres)));
            bench.open_at(server.clone(), 1, vec![]).await;
            let looks = bench.app().await;
            Front::Pool(Box::new(bench), looks)
        } else {
            let whole = Whole::start(options);
            whole.open(&server, 1).await;
            Front::Whole(whole)
        };
        let near = Relay::to(front.address()).await;
        Self { front, epoch: 1, server, relays: [near, far], session: None }
    }

    fn relay(&self, site: Site) -> &Relay {
        &self.relays[site as usize]
    }

    /// A session that rests, on a server that has its settings.
    async fn session(&mut self) -> Session {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => {
                let mut session = Session::open(self.relay(Site::Client).address).await;
                session.send(&[query(&format!("set lock_timeout = '{SETTING}'"))]).await;
                assert_eq!(session.up_to('Z').await, "C ZI");
                session
            }
        };
        session.send(&[query("show lock_timeout")]).await;
        assert_eq!(session.up_to('Z').await, format!("T D{SETTING} C ZI"));
        session
    }

    /// How many bytes an exchange takes, by place and way, when nothing breaks.
    async fn measure(&mut self, exchange: &Exchange, id: u32) -> Vec<(Site, Way, usize)> {
        let mut session = self.session().await;
        self.relays.iter().for_each(Relay::count);
        let told = exchange.run(&mut session, id).await;
        assert_eq!(told.belief(exchange.name, true), Belief::Done, "{}: {told:?}", exchange.name);
        let places = [Site::Client, Site::Server].into_iter().flat_map(|site| [(site, Way::Up), (site, Way::Down)]);
        places.map(|(site, way)| (site, way, self.relay(site).passed(way))).collect()
    }

    async fn work(mut self, plan: Arc<Plan>) {
        loop {
            let Some(case) = plan.left.lock().unwrap().pop() else { break };
            let within = tokio::time::timeout(2 * SOON, self.try_one(case));
            let belief = within.await.unwrap_or_else(|_| panic!("{case:?}: it hangs"));
            plan.believed.lock().unwrap().insert(case.id, (case, belief));
        }
        plan.found.fetch_add(self.end().await, Ordering::Relaxed);
    }

    async fn try_one(&mut self, case: Case) -> Belief {
        let mut session = self.session().await;
        let (site, exchange) = (case.site, &EXCHANGES[case.exchange]);
        let stalls = case.fault.kind == Kind::Stall;
        self.relay(site).arm(case.fault);
        let mut run = Box::pin(exchange.run(&mut session, case.id));
        let stalled = async {
            self.relay(site).happened().await;
            tokio::time::sleep(STALL).await;
        };
        let told = tokio::select! {
            told = &mut run => Some(told),
            () = stalled, if stalls => None,
        };
        // A fault that did not happen proves nothing.
        tokio::time::timeout(SOON, self.relay(site).happened()).await.unwrap_or_else(|_| panic!("{case:?}: not seen"));
        if stalls {
            self.end_stall(site).await;
        }
        let told = match told {
            Some(told) => told,
            None => run.as_mut().await,
        };
        drop(run);
        let at_server = site == Site::Server;
        if let Front::Pool(_, looks) = &self.front {
            let belief = told.belief(&format!("{case:?}"), at_server);
            // Whoever comes next finds nothing of it.
            let clean = "select (now() = statement_timestamp())::text || current_setting('lock_timeout')";
            assert_eq!(value(looks, clean).await, "true0", "{case:?}: {told:?}");
            if at_server && !told.closed {
                session.send(&[query("rollback")]).await;
                let ended = session.up_to('Z').await;
                assert!(ended.ends_with("C ZI"), "{case:?}: {told:?}, then {ended}");
                self.session = Some(session);
            }
            return belief;
        }
        told.belief(&format!("{case:?}"), false)
    }

    /// What hangs does not end by itself: the client goes, or the cluster has another primary.
    async fn end_stall(&mut self, site: Site) {
        if site == Site::Server {
            self.epoch += 1;
            match &self.front {
                Front::Pool(bench, _) => bench.open_at(self.server.clone(), self.epoch, vec![]).await,
                Front::Whole(whole) => whole.open(&self.server, self.epoch).await,
            }
        }
        self.relay(site).release();
    }

    /// Nobody has left a place behind. How many commits were looked up.
    async fn end(mut self) -> u64 {
        self.session = None;
        match self.front {
            Front::Pool(bench, looks) => {
                until("one client is left, with nothing under way", async || {
                    let pool = bench.pool();
                    (pool.clients, pool.waiting, pool.busy, pool.login, pool.pinned) == (1, 0, 0, 0, 0)
                        && pool.idle <= 1
                })
                .await;
                drop(looks);
                until("nobody is left", async || bench.now().write_open == 0 && bench.now().held == 0).await;
                let found = bench.pool().commits_found;
                bench.end().await;
                found
            }
            Front::Whole(whole) => {
                until("nobody is left", async || whole.now().write_open == 0 && whole.now().held == 0).await;
                0
            }
        }
    }
}

impl Front {
    fn address(&self) -> SocketAddr {
        match self {
            Front::Pool(bench, _) => bench.write,
            Front::Whole(whole) => whole.write,
        }
    }
}

/// Everything that is tried. In each way of each exchange: before its first byte, after each, and after the last.
async fn cases(lane: &mut Lane) -> Vec<Case> {
    let all = std::env::var("MAINSTAY_FAULTS").is_ok_and(|which| which == "all");
    let kinds = [Kind::Close, Kind::Reset, Kind::Stall];
    let mut cases = Vec::new();
    let mut id = FIRST_ID;
    for (number, exchange) in EXCHANGES.iter().enumerate() {
        for (site, way, bytes) in lane.measure(exchange, FIRST_ID + 90_000 + u32::try_from(number).unwrap()).await {
            assert!(bytes > 15, "{} {site:?} {way:?}: {bytes} bytes", exchange.name);
            for after in 0..=bytes {
                let turn = after + number + site as usize;
                for kind in kinds.into_iter().filter(|kind| all || tried(turn, *kind)) {
                    let fault = Fault { way, after, kind };
                    cases.push(Case { exchange: number, site, fault, id });
                    id += 1;
                }
            }
        }
    }
    cases
}

/// Is this one of those that are tried without being asked for all?
fn tried(turn: usize, kind: Kind) -> bool {
    match kind {
        Kind::Stall => turn.is_multiple_of(STALL_EACH),
        Kind::Close => turn.is_multiple_of(2),
        Kind::Reset => !turn.is_multiple_of(2),
    }
}

async fn every_byte(how: How) {
    let postgres = Arc::new(Postgres::start("db1").await);
    quick_login(&postgres).await;
    let mut first = Lane::start(&postgres, how).await;
    let mut owner = Session::open(first.front.address()).await;
    owner.send(&[query("create table l (id int, row int)")]).await;
    assert_eq!(owner.up_to('Z').await, "C ZI");
    drop(owner);
    let cases = cases(&mut first).await;
    let count = cases.len();
    let plan = Arc::new(Plan { left: Mutex::new(cases), believed: Mutex::default(), found: AtomicU64::new(0) });
    let mut lanes = vec![first];
    for _ in 1..LANES {
        lanes.push(Lane::start(&postgres, how).await);
    }
    futures_util::future::join_all(lanes.into_iter().map(|lane| lane.work(Arc::clone(&plan)))).await;
    until("every server connection has ended", async || {
        let sql = "select count(*) from pg_stat_activity where usename = 'app'";
        postgres.sql(sql).await[0][0] == "0"
    })
    .await;
    let believed = plan.believed.lock().unwrap().clone();
    assert_eq!(believed.len(), count);
    // Lost behind the number's answer and before the commit's, which is some twenty bytes of two exchanges.
    let found = plan.found.load(Ordering::Relaxed);
    println!("{found} commits were looked up");
    assert_eq!(found > 20, how == How::LookingUp, "{found}");
    check(&postgres, &believed).await;
}

/// The server lives on: what its log says of a transaction is what became of it, once its session is gone.
async fn answer_from_the_log(pooled: Pooled, postgres: Arc<Postgres>) {
    loop {
        for asked in pooled.commits_in_doubt().await {
            let (pooled, postgres) = (pooled.clone(), Arc::clone(&postgres));
            tokio::spawn(async move {
                let sql = format!("select pg_xact_status('{}')", asked.question.number);
                let answer = loop {
                    match &*postgres.sql(&sql).await[0][0] {
                        "committed" => break CommitAnswer::Committed,
                        "aborted" => break CommitAnswer::Aborted,
                        _ => tokio::time::sleep(STALL).await,
                    }
                };
                pooled.found(&asked, answer);
            });
        }
    }
}

/// Holds what clients believe against what is there.
async fn check(postgres: &Postgres, believed: &HashMap<u32, (Case, Belief)>) {
    let mut rows: HashMap<u32, Vec<u32>> = HashMap::new();
    for row in postgres.shop("select id, row from l order by id, row").await {
        rows.entry(row[0].parse().unwrap()).or_default().push(row[1].parse().unwrap());
    }
    let mut outcomes: HashMap<(Site, bool, bool), usize> = HashMap::new();
    for (case, belief) in believed.values() {
        let exchange = &EXCHANGES[case.exchange];
        let there = rows.remove(&case.id).unwrap_or_default();
        let whole: Vec<u32> = (0..).take(exchange.rows).collect();
        assert!(there.is_empty() || there == whole, "{case:?}: done twice, or by half: {there:?}");
        match belief {
            Belief::Done => assert_eq!(there, whole, "{case:?}: acknowledged, and not there"),
            Belief::NotDone => assert!(there.is_empty(), "{case:?}: said not to be there, and it is"),
            Belief::Unknown => {}
        }
        *outcomes.entry((case.site, *belief == Belief::Unknown, !there.is_empty())).or_default() += 1;
    }
    println!("{} faults: (place, in doubt, committed): {outcomes:?}", believed.len());
    // A test in which nothing was ever in doubt, and nothing ever lost, has broken nothing.
    for site in [Site::Client, Site::Server] {
        for (doubt, there) in [(true, true), (true, false), (false, true), (false, false)] {
            assert!(outcomes.contains_key(&(site, doubt, there)), "{site:?}: never in doubt {doubt}, there {there}");
        }
    }
}

/// Sessions begin often here: `app`'s password costs one round instead of thousands.
async fn quick_login(postgres: &Postgres) {
    use ring::{digest, hmac, pbkdf2};
    let salt = b"0123456789abcdef";
    let mut salted = [0; 32];
    let once = std::num::NonZeroU32::MIN;
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, once, salt, b"secret", &mut salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let client = hmac::sign(&key, b"Client Key");
    let stored = digest::digest(&digest::SHA256, client.as_ref());
    let server = hmac::sign(&key, b"Server Key");
    // The database knows how to write them down.
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let base = |bytes: &[u8]| format!("encode('\\x{}'::bytea, 'base64')", hex(bytes));
    let (salt, stored, server) = (base(salt), base(stored.as_ref()), base(server.as_ref()));
    let text = format!("select 'SCRAM-SHA-256$1:' || {salt} || '$' || {stored} || ':' || {server}");
    let verifier = postgres.sql(&text).await.remove(0).remove(0);
    postgres.sql(&format!("alter role app password '{verifier}'")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_is_honest_whatever_byte_is_the_last() {
    every_byte(How::Pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_looks_commits_up_is_honest_whatever_byte_is_the_last() {
    every_byte(How::LookingUp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_connections_are_honest_whatever_byte_is_the_last() {
    every_byte(How::Whole).await;
}
