//! One thread: its listeners, clients and servers, and the loop that moves bytes between them. Nothing in it blocks but the wait for
//! events. Absent: what bytes mean.

use super::cancel::Canceller;
use super::client::{Client, Stage as ClientStage};
use super::enter::random;
use super::hub::{Hub, Mail, Rules};
use super::link::{Link, tune};
use super::options::PoolOptions;
use super::pools::{Key, Pool};
use super::server::{Server, Stage};
use super::settings::{AllSettings, Settings};
use super::slab::{Id, Slab, Token};
use super::statements::Statements;
use super::stats::PoolNumbers;
use super::upstream::CHUNK;
use crate::hold::Kind;
use crate::options::ProxyOptions;
use crate::registry::Cut;
use crate::stats::{Stats, add};
use mainstay_model::{Moment, Span};
use mainstay_ports::clock::boot_now;
use mainstay_wire::WireError;
use mainstay_wire::reply::Reply;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::TcpListener;
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
const CHUNKS_PER_TURN: usize = 8;
/// How often those who wait are looked at.
const TICK: Span = Span(20);
/// How often everything is.
const SLOW_TICK: Span = Span(500);
/// How long a client that was told to go may take to read that.
const CLOSING: Span = Span::seconds(2);
/// After a failure to accept (no descriptors left, mostly).
const ACCEPT_PAUSE: Span = Span(50);

/// See the module.
pub(crate) struct Worker {
    pub(crate) thread: usize,
    pub(crate) poll: OwnedFd,
    pub(crate) hub: Arc<Hub>,
    pub(crate) rules: Arc<Rules>,
    version: u64,
    pub(crate) options: Arc<ProxyOptions>,
    pub(crate) pooling: Arc<PoolOptions>,
    pub(crate) stats: Arc<Stats>,
    /// Hash of our own certificate, to bind channels to.
    pub(crate) certificate: Option<Arc<[u8]>>,
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
    /// Servers that broke.
    pub(crate) broken: Vec<Id>,
    /// Servers that are not needed any more.
    pub(crate) to_close: Vec<Id>,
    /// Servers that may have nothing to do for their client any more.
    pub(crate) let_go: Vec<Id>,
    read_buffer: Vec<u8>,
    pub(crate) up_buffer: Vec<u8>,
    pub(crate) down_buffer: Vec<u8>,
    accept_at: Moment,
    ticked: Moment,
    ticked_slowly: Moment,
}

/// What all threads are made of.
pub(crate) struct Parts {
    pub(crate) hub: Arc<Hub>,
    pub(crate) options: Arc<ProxyOptions>,
    pub(crate) pooling: Arc<PoolOptions>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) certificate: Option<Arc<[u8]>>,
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
            options: Arc::clone(&parts.options),
            pooling: Arc::clone(&parts.pooling),
            stats: Arc::clone(&parts.stats),
            certificate: parts.certificate.clone(),
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
            broken: Vec::new(),
            to_close: Vec::new(),
            let_go: Vec::new(),
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
            let pause = if self.resume.is_empty() { i64::try_from(TICK.0).unwrap_or(20) * 1_000_000 } else { 0 };
            let timeout = Timespec { tv_sec: 0, tv_nsec: pause };
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
        }
        // Who is still here is closed with its descriptors.
        let gone = u64::try_from(self.clients.len()).unwrap_or(0);
        self.hub.clients.fetch_sub(gone, Ordering::Relaxed);
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
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            tune(&stream, self.options.peer_timeout);
            let id = self.clients.reserve();
            let mut link = Link::new(stream.into());
            if link.watch(&self.poll, Token::Client(id).number(), false).is_err() {
                self.clients.free(id);
                continue;
            }
            let room = self.count_client();
            let near = from.ip().is_loopback();
            let mut client = Client::new(id, link, kind, near, Rc::clone(&self.no_settings), self.now);
            if !room {
                add(&self.stats.refused_full);
                let error = crate::hold::full(self.options.max_connections);
                self.refuse(
                    &mut client,
                    &Reply::error("FATAL", error.code, &error.message, &error.detail, &error.hint),
                );
            }
            self.clients.put(id, Box::new(client));
        }
    }

    /// Can this client's bytes go anywhere now?
    fn is_stopped(&mut self, client: &Client) -> bool {
        if client.waiting_since.is_some() || client.is_slow() {
            return true;
        }
        match client.server.and_then(|id| self.servers.get(id)) {
            Some(server) => !server.outbox.is_empty() || !matches!(server.stage, Stage::Busy),
            None => false,
        }
    }

    fn drive_client(&mut self, mut client: Box<Client>, writes: bool) {
        let id = client.id;
        if writes || !client.outbox.is_empty() {
            client.link.ending |= client.flush().is_err();
            if !client.is_slow()
                && let Some(server) = client.server
            {
                self.stalled(server, client);
                return;
            }
        }
        let mut turns = 0;
        let ended = loop {
            if matches!(client.stage, ClientStage::Closing) {
                break self.is_closed(&mut client);
            }
            if self.is_stopped(&client) {
                // Nobody waits for bytes of one that is gone.
                break client.link.ending && client.waiting_since.is_some() && self.is_gone(&mut client);
            }
            if turns >= CHUNKS_PER_TURN {
                self.resume.push(id);
                break false;
            }
            turns += 1;
            match self.read_client(&mut client) {
                Ok(true) => {}
                Ok(false) => break false,
                Err(End::Bye) => break true,
                Err(End::Refuse(error)) => self.refuse(&mut client, &error),
            }
        };
        if ended { self.drop_client(client) } else { self.put_client(client, id) }
    }

    /// The client can take more: its server may go on, then the client itself.
    fn stalled(&mut self, server: Id, client: Box<Client>) {
        let id = client.id;
        self.put_client(client, id);
        if let Some(server) = self.servers.take(server) {
            self.drive_server(server, false);
        }
        if let Some(client) = self.clients.get(id)
            && (client.link.readable || !client.inbox.is_empty())
        {
            self.resume.push(id);
        }
    }

    /// Reads and uses some bytes. True: there may be more.
    fn read_client(&mut self, client: &mut Client) -> Result<bool, End> {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let kept = client.inbox.len().min(buffer.len());
        buffer[..kept].copy_from_slice(&client.inbox[..kept]);
        let mut filled = kept;
        let mut end = false;
        let mut more = false;
        if client.link.readable && filled < buffer.len() {
            match client.link.recv(&mut buffer[filled..]) {
                Ok(0) => end = true,
                Ok(count) => (filled, more) = (filled + count, client.link.readable),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => end = true,
            }
        }
        client.inbox = Vec::new();
        let used = if filled == 0 { Ok(0) } else { self.use_bytes(client, &buffer[..filled]) };
        let used = match used {
            Ok(used) => {
                client.inbox.extend_from_slice(&buffer[used..filled]);
                used
            }
            Err(end) => {
                self.read_buffer = buffer;
                return Err(end);
            }
        };
        self.read_buffer = buffer;
        if end {
            return Err(End::Bye);
        }
        Ok(more || (used > 0 && !client.inbox.is_empty()))
    }

    fn use_bytes(&mut self, client: &mut Client, bytes: &[u8]) -> Result<usize, End> {
        match client.stage {
            ClientStage::Ready => self.upstream(client, bytes),
            ClientStage::Admin { .. } => self.console(client, bytes),
            ClientStage::Entering | ClientStage::Closing => Ok(0),
            ClientStage::Start | ClientStage::Proving(_) => self.entering(client, bytes),
        }
    }

    /// A client that was told to go: has it read that?
    fn is_closed(&mut self, client: &mut Client) -> bool {
        if client.outbox.is_empty() {
            client.link.say_end();
        }
        let mut sink = [0; 2048];
        for _ in 0..CHUNKS_PER_TURN {
            match client.link.recv(&mut sink) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
        self.resume.push(client.id);
        self.now.since(client.since) > CLOSING
    }

    /// A client that waits: is it still there? What it sends meanwhile is kept.
    fn is_gone(&mut self, client: &mut Client) -> bool {
        let mut buffer = [0; 2048];
        while client.inbox.len() < CHUNK {
            match client.link.recv(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => client.inbox.extend_from_slice(&buffer[..count]),
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
        true
    }

    pub(crate) fn put_client(&mut self, mut client: Box<Client>, id: Id) {
        let writes = !client.outbox.is_empty();
        client.link.tell_writes(&self.poll, Token::Client(id).number(), writes);
        if client.link.ending && !client.link.readable {
            // Broken while writing: the end is read next.
            client.link.readable = true;
            self.resume.push(id);
        }
        self.clients.put(id, client);
    }

    fn drop_client(&mut self, mut client: Box<Client>) {
        self.stop_waiting(&mut client);
        self.hub.clients.fetch_sub(1, Ordering::Relaxed);
        if let Some(pool) = client.pool.and_then(|index| self.pools.get_mut(index)) {
            pool.clients = pool.clients.saturating_sub(1);
        }
        if let Some(mut server) = client.server.and_then(|id| self.servers.take(id)) {
            server.client = None;
            let clean = server.is_at_rest() && client.pin.is_none() && matches!(server.stage, Stage::Busy);
            if clean && client.skip == 0 {
                self.release(&mut server);
                self.put_server(server);
            } else {
                self.close_server(server);
            }
        }
        self.clients.free(client.id);
    }

    fn drive_server(&mut self, mut server: Box<Server>, writes: bool) {
        if writes && matches!(server.stage, Stage::Connecting) {
            if let Err(why) = self.connected(&mut server) {
                return self.lose(server, &why);
            }
        } else if writes || !server.outbox.is_empty() {
            server.link.ending |= server.flush().is_err();
            if server.outbox.is_empty() {
                self.resume.extend(server.client);
            }
        }
        for _ in 0..CHUNKS_PER_TURN {
            let slow = server.client.and_then(|id| self.clients.get(id)).is_some_and(|client| client.is_slow());
            if !server.link.readable || slow {
                return self.put_server(server);
            }
            match self.read_server(&mut server) {
                Ok(()) => {}
                Err(why) => return self.lose(server, &why),
            }
        }
        self.resume.extend(server.client);
        self.put_server(server);
    }

    fn read_server(&mut self, server: &mut Server) -> Result<(), String> {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let kept = server.inbox.len().min(buffer.len());
        buffer[..kept].copy_from_slice(&server.inbox[..kept]);
        let read = server.link.recv(&mut buffer[kept..]);
        let outcome = match read {
            Ok(0) => Err("it closed the connection".to_owned()),
            Ok(count) => {
                server.inbox.clear();
                let filled = kept + count;
                self.use_answer(server, &buffer[..filled]).map(|used| {
                    server.inbox.extend_from_slice(&buffer[used..filled]);
                })
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        self.read_buffer = buffer;
        outcome
    }

    fn use_answer(&mut self, server: &mut Server, bytes: &[u8]) -> Result<usize, String> {
        match server.stage {
            Stage::Busy => {
                let client = server.client.and_then(|id| self.clients.take(id));
                let Some(mut client) = client else { return Err("its client is gone".to_owned()) };
                let used = self.downstream(server, &mut client, bytes);
                let id = client.id;
                self.put_client(client, id);
                used.map_err(|error| error.to_string())
            }
            Stage::Applying => self.applying(server, bytes).map_err(|error| error.to_string()),
            Stage::Free => Self::aside(server, bytes).map_err(|error| error.to_string()),
            Stage::Connecting => Ok(0),
            Stage::AskedTls | Stage::LoggingIn(_) | Stage::Checking(_) => self.logging_in(server, bytes),
        }
    }

    /// What a server says unasked.
    fn aside(server: &mut Server, bytes: &[u8]) -> Result<usize, WireError> {
        let mut at = 0;
        while let Some(head) = mainstay_wire::header(&bytes[at..])? {
            let Some(whole) = bytes.get(at..at + head.length) else { break };
            at += head.length;
            match head.tag {
                b'S' => server.note_parameter(whole),
                b'N' => {}
                _ => server.tainted = true,
            }
        }
        Ok(at)
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
            if resumed.is_empty() {
                return;
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
        for Mail::Cancel { process, secret } in self.hub.mail(self.thread) {
            self.cancel(process, secret);
        }
        self.cut();
        for index in 0..self.pools.len() {
            self.pools[index].retry_at = self.now;
            self.offer_again(index);
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
        let mail = self.hub.mail(self.thread);
        for Mail::Cancel { process, secret } in mail {
            self.cancel(process, secret);
        }
        if self.now.since(self.ticked) < TICK {
            return;
        }
        self.ticked = self.now;
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
        self.tick_servers();
        self.tick_cancels();
        self.tick_clients();
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
            told.push(numbers);
        }
        self.hub.tell(self.thread, told);
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
