//! One thread: its listeners, clients and servers, and the loop that moves bytes between them. Nothing in it blocks but the wait for
//! events. Absent: what bytes mean.

use super::cancel::Canceller;
use super::client::{Client, Stage as ClientStage};
use super::enter::random;
use super::hub::{Hub, Mail, Rules};
use super::link::{Link, tune};
use super::options::PoolOptions;
use super::pools::{Key, Pool};
use super::server::Server;
use super::settings::{AllSettings, Settings};
use super::slab::{Id, Slab, Token};
use super::statements::Statements;
use super::stats::PoolNumbers;
use super::upstream::CHUNK;
use crate::accept::POLITE_MAX;
use crate::hold::Kind;
use crate::options::ProxyOptions;
use crate::registry::{Cut, Place};
use crate::stats::{Stats, add};
use crate::table::Held;
use mainstay_model::{Moment, Span};
use mainstay_ports::clock::boot_now;
use mainstay_wire::WireError;
use mainstay_wire::reply::Reply;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Why a client ends.
pub(crate) enum End {
    /// It went, or is not worth an answer.
    Bye,
    /// It hears why.
    Refuse(Reply),
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        let (text, hint) = (error.to_string(), "This is no client of PostgreSQL, or bytes were lost on the way.");
        End::Refuse(Reply::error("FATAL", "08P01", &text, "", hint))
    }
}

/// Events taken at once.
const EVENTS: usize = 256;
/// Clients accepted before others get a turn.
const ACCEPTS: usize = 64;
/// Chunks of one connection before others get a turn.
pub(crate) const CHUNKS_PER_TURN: usize = 8;
/// How often those who wait are looked at.
const TICK: Span = Span(20);
/// How often everything is.
const SLOW_TICK: Span = Span(500);
/// How long a client that was told to go may take to read that.
pub(crate) const CLOSING: Span = Span::seconds(2);
/// How long the console waits until settings are read anew.
const RELOAD: Span = Span::seconds(10);
/// After a failure to accept (no descriptors left, mostly).
const ACCEPT_PAUSE: Span = Span(50);

/// See the module.
pub(crate) struct Worker {
    pub(crate) thread: usize,
    pub(crate) poll: OwnedFd,
    pub(crate) hub: Arc<Hub>,
    pub(crate) rules: Arc<Rules>,
    version: u64,
    /// The version that the hub knows this thread to go by.
    told: u64,
    pub(crate) options: Arc<ProxyOptions>,
    pub(crate) pooling: Arc<PoolOptions>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) mock_secret: Arc<[u8]>,
    listeners: Vec<(Kind, TcpListener)>,
    pub(crate) clients: Slab<Client>,
    pub(crate) servers: Slab<Server>,
    pub(crate) cancellers: Slab<Canceller>,
    pub(crate) pools: Vec<Pool>,
    pub(crate) by_key: HashMap<Key, usize>,
    pub(crate) settings: AllSettings,
    pub(crate) no_settings: Rc<Settings>,
    pub(crate) statements: Statements,
    pub(crate) now: Moment,
    pub(crate) now_us: u64,
    /// Clients that may go on.
    pub(crate) resume: Vec<Id>,
    /// Servers that have more to say.
    pub(crate) go_on: Vec<Id>,
    /// Servers that broke.
    pub(crate) broken: Vec<Id>,
    /// Servers that are not needed any more.
    pub(crate) to_close: Vec<Id>,
    /// Servers that may have nothing to do for their client any more.
    pub(crate) let_go: Vec<Id>,
    /// Servers that have not replayed what their client has to see.
    pub(crate) behind: Vec<Id>,
    /// Commits that were to be looked up so far.
    pub(crate) looked_up: u64,
    /// To servers and to clients, since this was told last.
    pub(crate) bytes: (u64, u64),
    pub(crate) read_buffer: Vec<u8>,
    pub(crate) up_buffer: Vec<u8>,
    pub(crate) down_buffer: Vec<u8>,
    accept_at: Moment,
    ticked: Moment,
    ticked_slowly: Moment,
}

/// What all threads are made of.
pub(crate) struct Parts {
    pub(crate) hub: Arc<Hub>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) mock_secret: Arc<[u8]>,
}

impl Worker {
    pub(crate) fn new(thread: usize, parts: &Parts, listeners: Vec<(Kind, TcpListener)>) -> std::io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(wake) = parts.hub.wake_of(thread) {
            epoll::add(&poll, wake, EventData::new_u64(Token::Wake.number()), EventFlags::IN | EventFlags::ET)?;
        }
        for (index, (_, listener)) in listeners.iter().enumerate() {
            let token = Token::Listener(u32::try_from(index).unwrap_or(u32::MAX)).number();
            epoll::add(&poll, listener, EventData::new_u64(token), EventFlags::IN)?;
        }
        let mut settings = AllSettings::default();
        let no_settings = settings.intern(Settings::default());
        Ok(Self {
            thread,
            poll,
            hub: Arc::clone(&parts.hub),
            rules: parts.hub.rules(),
            version: 0,
            told: 0,
            options: parts.hub.options.now(),
            pooling: parts.hub.pooling.now(),
            stats: Arc::clone(&parts.stats),
            mock_secret: Arc::clone(&parts.mock_secret),
            listeners,
            clients: Slab::new(),
            servers: Slab::new(),
            cancellers: Slab::new(),
            pools: Vec::new(),
            by_key: HashMap::new(),
            settings,
            no_settings,
            statements: Statements::new(random().unwrap_or(0)),
            now: boot_now(),
            now_us: 0,
            resume: Vec::new(),
            go_on: Vec::new(),
            broken: Vec::new(),
            to_close: Vec::new(),
            let_go: Vec::new(),
            behind: Vec::new(),
            looked_up: 0,
            bytes: (0, 0),
            read_buffer: vec![0; CHUNK],
            up_buffer: Vec::new(),
            down_buffer: Vec::new(),
            accept_at: Moment(0),
            ticked: Moment(0),
            ticked_slowly: Moment(0),
        })
    }

    /// Serves until told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        while !self.hub.stopping.load(Ordering::Relaxed) {
            events.clear();
            let left =
                self.resume.len() + self.go_on.len() + self.broken.len() + self.to_close.len() + self.let_go.len();
            let pause = if left == 0 { self.pause() } else { Span(0) };
            let timeout = Timespec { tv_sec: 0, tv_nsec: i64::try_from(pause.0).unwrap_or(0) * 1_000_000 };
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for events failed; this thread of the proxy ends");
                    return;
                }
            }
            let clock = clock_gettime(ClockId::Monotonic);
            self.now_us = u64::try_from(clock.tv_sec * 1_000_000 + clock.tv_nsec / 1000).unwrap_or(0);
            self.now = boot_now();
            if self.hub.version.load(Ordering::Acquire) != self.version {
                self.follow();
            }
            for event in &events {
                let (flags, data) = (event.flags, event.data);
                self.event(Token::of(data.u64()), flags);
            }
            self.work_off();
            self.tick();
            self.say_what_is_held();
        }
        // Who is still here is closed with its descriptors.
        let gone = u64::try_from(self.clients.len()).unwrap_or(0);
        self.hub.clients.fetch_sub(gone, Ordering::Relaxed);
    }

    /// How long nothing but an event has to be looked at. Never a second.
    fn pause(&self) -> Span {
        let waits = self.pools.iter().any(|pool| !pool.waiting.is_empty())
            || self.rules.view.held == Held::Draining
            || !self.behind.is_empty();
        if waits { TICK } else { SLOW_TICK.min(self.rules.until.since(self.now).max(TICK)) }
    }

    /// In a drain somebody waits for this.
    fn say_what_is_held(&mut self) {
        let drains = self.rules.view.held == Held::Draining;
        if drains || self.version != self.told {
            let works = |server: &&Server| server.is_in() && server.client.is_some() && !server.rests();
            let primary = |server: &&Server| matches!(server.place, Place::Primary(_));
            let under_way = if drains { self.servers.items().filter(primary).filter(works).count() } else { 0 };
            self.hub.follows(self.thread, self.version, u64::try_from(under_way).unwrap_or(u64::MAX));
            self.told = self.version;
        }
    }

    /// In a drain nothing new goes to this server, not even from the client that it is tied to: that nothing is under way was said.
    pub(crate) fn holds_back(&self, server: &Server) -> bool {
        let drains = self.rules.view.held == Held::Draining;
        drains && matches!(server.place, Place::Primary(_)) && server.rests()
    }

    fn event(&mut self, token: Token, flags: EventFlags) {
        let ending = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let reads = ending || flags.contains(EventFlags::IN);
        let writes = flags.contains(EventFlags::OUT);
        match token {
            Token::Wake => {}
            Token::Listener(index) => self.accept(index),
            Token::Client(id) => {
                if let Some(mut client) = self.clients.take(id) {
                    client.link.readable |= reads;
                    client.link.ending |= ending;
                    self.drive_client(client, writes);
                }
            }
            Token::Server(id) => {
                if let Some(mut server) = self.servers.take(id) {
                    server.link.readable |= reads;
                    server.link.ending |= ending;
                    self.drive_server(server, writes);
                }
            }
            Token::Cancel(id) => {
                if let Some(canceller) = self.cancellers.get(id) {
                    canceller.link.readable |= reads;
                    canceller.link.ending |= ending;
                }
                self.cancelling(id, writes);
            }
        }
    }

    fn accept(&mut self, index: u32) {
        if self.now < self.accept_at {
            return;
        }
        for _ in 0..ACCEPTS {
            let Some((kind, listener)) = self.listeners.get(index as usize) else { return };
            let kind = *kind;
            let (stream, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; see the limit of open files");
                    add(&self.stats.accept_failed);
                    self.accept_at = self.now + ACCEPT_PAUSE;
                    return;
                }
            };
            add(&self.stats.accepted);
            if stream.set_nonblocking(true).is_ok() {
                self.admit(kind, stream, from.ip().is_loopback());
            }
        }
    }

    fn admit(&mut self, kind: Kind, stream: TcpStream, near: bool) {
        tune(&stream, self.options.peer_timeout);
        let others = self.hub.clients.fetch_add(1, Ordering::Relaxed);
        let most = u64::try_from(self.options.max_connections).unwrap_or(u64::MAX);
        let welcome = others < most;
        if !welcome {
            add(&self.stats.refused_full);
        }
        let id = self.clients.reserve();
        let mut link = Link::new(stream.into());
        let polite = u64::try_from(POLITE_MAX).unwrap_or(0);
        let room = others < most.saturating_add(polite);
        if !room || link.watch(&self.poll, Token::Client(id).number(), false).is_err() {
            self.hub.clients.fetch_sub(1, Ordering::Relaxed);
            self.clients.free(id);
            return;
        }
        let mut client = Client::new(id, link, kind, near, Rc::clone(&self.no_settings), self.now);
        client.welcome = welcome;
        self.clients.put(id, Box::new(client));
    }

    /// What came up meanwhile, until nothing is left.
    fn work_off(&mut self) {
        for _ in 0..CHUNKS_PER_TURN {
            for id in std::mem::take(&mut self.let_go) {
                let Some(mut server) = self.servers.take(id) else { continue };
                if let Some(mut client) = server.client.and_then(|id| self.clients.take(id)) {
                    self.rest(&mut server, &mut client);
                    let id = client.id;
                    self.put_client(client, id);
                }
                self.put_server(server);
            }
            for id in std::mem::take(&mut self.broken) {
                if let Some(server) = self.servers.take(id) {
                    // What it said last may still be read.
                    let mut server = server;
                    while server.link.readable && self.read_server(&mut server).is_ok() {}
                    self.lose(server, "the connection broke");
                }
            }
            for id in std::mem::take(&mut self.to_close) {
                if let Some(server) = self.servers.take(id) {
                    if server.client.is_some() { self.put_server(server) } else { self.close_server(server) }
                }
            }
            let resumed = std::mem::take(&mut self.resume);
            let go_on = std::mem::take(&mut self.go_on);
            if resumed.is_empty() && go_on.is_empty() {
                return;
            }
            for id in go_on {
                if let Some(server) = self.servers.take(id) {
                    self.drive_server(server, false);
                }
            }
            for id in resumed {
                if let Some(client) = self.clients.take(id) {
                    self.drive_client(client, false);
                }
            }
        }
    }

    /// The route, or who may log in, or a pause has changed.
    fn follow(&mut self) {
        self.version = self.hub.version.load(Ordering::Acquire);
        self.rules = self.hub.rules();
        (self.options, self.pooling) = (self.hub.options.now(), self.hub.pooling.now());
        self.read_mail();
        self.cut();
        if self.rules.view.held != Held::Draining {
            // Those tied to a server that was not to get anything new.
            let tied = self.clients.items().filter(|client| client.pin.is_some() && !client.inbox.is_empty());
            self.resume.extend(tied.map(|client| client.id));
        }
        for index in 0..self.pools.len() {
            self.pools[index].retry_at = self.now;
            self.offer_again(index);
        }
    }

    fn read_mail(&mut self) {
        for mail in self.hub.mail(self.thread) {
            match mail {
                Mail::Outcome { client, serial, answer } => self.outcome(client, serial, &answer),
                Mail::Cancel { process, secret } => self.cancel(process, secret),
                Mail::Reloaded { client, asked, outcome } => {
                    self.reloaded(client, asked, outcome.as_ref().copied().map_err(|why| &**why));
                }
            }
        }
    }

    /// Closes what may not stay.
    fn cut(&mut self) {
        for id in self.servers.ids() {
            let Some(server) = self.servers.get(id) else { continue };
            let Some(cut) = self.rules.verdict(&server.place, self.now) else { continue };
            let (number, why) = match cut {
                Cut::Epoch => (&self.stats.cut_by_epoch, "the cluster has another primary"),
                Cut::Fence => (&self.stats.cut_by_fence, "nothing is known of the primary any more"),
                Cut::Replica => (&self.stats.cut_replica, "this replica may not be read any more"),
            };
            add(number);
            if let Some(server) = self.servers.take(id) {
                self.lose(server, why);
            }
        }
    }

    fn tick(&mut self) {
        self.read_mail();
        if self.now.since(self.ticked) < TICK {
            return;
        }
        self.ticked = self.now;
        self.tick_behind();
        if self.now >= self.rules.until {
            self.cut();
        }
        for index in 0..self.pools.len() {
            if !self.pools[index].waiting.is_empty() {
                self.tick_pool(index);
            }
        }
        if self.now.since(self.ticked_slowly) < SLOW_TICK {
            return;
        }
        self.ticked_slowly = self.now;
        for index in 0..self.pools.len() {
            self.tick_pool(index);
        }
        self.tick_pools();
        self.tick_servers();
        self.tick_cancels();
        self.tick_clients();
        self.tick_outcomes();
        self.tell();
    }

    /// Clients that do not say who they are, or do not go.
    fn tick_clients(&mut self) {
        let first = Span(u64::try_from(self.options.first_byte.as_millis()).unwrap_or(u64::MAX));
        for id in self.clients.ids() {
            let Some(client) = self.clients.get(id) else { continue };
            let limit = match client.stage {
                ClientStage::Start | ClientStage::Proving(_) => first,
                ClientStage::Closing => CLOSING,
                ClientStage::Admin { reloads: Some(since), .. } => {
                    if self.now.since(since) > RELOAD {
                        self.reloaded(id, since, Err("nobody has read them in time"));
                    }
                    continue;
                }
                _ => continue,
            };
            if self.now.since(client.since) > limit
                && let Some(client) = self.clients.take(id)
            {
                add(&self.stats.silent);
                self.drop_client(client);
            }
        }
    }

    /// This thread's numbers, for whoever asks.
    pub(crate) fn tell(&mut self) {
        let mut pinned = vec![0; self.pools.len()];
        for client in self.clients.items() {
            if let Some(count) = client.pool.filter(|_| client.pin.is_some()).and_then(|pool| pinned.get_mut(pool)) {
                *count += 1;
            }
        }
        let mut told: Vec<PoolNumbers> = Vec::with_capacity(self.pools.len());
        for (index, pool) in self.pools.iter().enumerate() {
            let mut numbers = pool.numbers.clone();
            let first = pool.waiting.front().copied();
            numbers.clients = u64::try_from(pool.clients).unwrap_or(0);
            numbers.waiting = u64::try_from(pool.waiting.len()).unwrap_or(0);
            numbers.idle = u64::try_from(pool.free.len()).unwrap_or(0);
            numbers.login = u64::try_from(pool.opening).unwrap_or(0);
            numbers.busy = u64::try_from(pool.servers.saturating_sub(pool.opening + pool.free.len())).unwrap_or(0);
            numbers.pinned = pinned.get(index).copied().unwrap_or(0);
            let since = first.and_then(|id| self.clients.get(id)).and_then(|client| client.waiting_since);
            numbers.waited_ms = since.map_or(0, |since| self.now.since(since).0);
            let kind = pool.key.kind;
            let held = self.rules.places(kind, self.now).is_err() || self.hub.paused.load(Ordering::Relaxed);
            numbers.held = if held { numbers.waiting } else { 0 };
            told.push(numbers);
        }
        for server in self.servers.items() {
            if let Some(numbers) = told.get_mut(server.pool) {
                Pool::count(numbers, server);
            }
        }
        let there = told.into_iter().zip(&self.pools).filter(|(_, pool)| !pool.gone).map(|(numbers, _)| numbers);
        self.hub.tell(self.thread, there.collect());
        self.stats.bytes_to_server.fetch_add(std::mem::take(&mut self.bytes.0), Ordering::Relaxed);
        self.stats.bytes_to_client.fetch_add(std::mem::take(&mut self.bytes.1), Ordering::Relaxed);
    }

    /// Something that nobody outside can guess.
    pub(crate) fn secret() -> Option<Arc<[u8]>> {
        let mut secret = Vec::new();
        for _ in 0..8 {
            secret.extend(random()?.to_be_bytes());
        }
        Some(secret.into())
    }
}
