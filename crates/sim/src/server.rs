//! The database server's model: a log whose records know who wrote them, crash and replay, promotion, and a process that can be
//! stopped or killed. What standbys and commits do with it stands in `stream`.

use crate::event::{Happening, Node};
use crate::shape::{MS, Micros};
use crate::world::World;
use mainstay_decide::{Input, Plant};
use mainstay_model::observation::{ServerState, Walsender};
use mainstay_model::{
    CopyId, Lineage, LogEnd, Lsn, Moment, Position, ServerObservation, SyncSetting, SystemId, Term, Timeline,
};
use std::collections::BTreeMap;

/// One record of a log. A log position is the number of records before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Unique in the schedule; rises along every log.
    pub id: u64,
    /// On which timeline it was written.
    pub timeline: Timeline,
    /// In which term.
    pub term: Term,
    /// A client's commit; else the server's or the agent's own record.
    pub client: bool,
}

/// What the server's process does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Process {
    /// There is none.
    #[default]
    Down,
    /// Started, answers nothing yet; true: as primary.
    Starting(bool),
    /// In recovery.
    Standby,
    /// Leaving recovery for this timeline and term.
    Promoting(Timeline, Term),
    /// Out of recovery.
    Primary,
}

impl Process {
    /// Does a process run?
    #[must_use]
    pub fn runs(self) -> bool {
        self != Process::Down
    }
}

/// A standby's connection to its upstream.
#[derive(Clone, Copy, Debug)]
pub struct Receiver {
    /// Its number.
    pub conn: u64,
    /// To whom.
    pub upstream: Node,
    /// The upstream process's life.
    pub upstream_life: u32,
}

/// A connection of a standby, as the upstream's walsender sees it.
#[derive(Clone, Debug)]
pub struct Sender {
    /// Who is connected.
    pub standby: Node,
    /// Which copy it says it is.
    pub copy: CopyId,
    /// Sent up to here.
    pub sent: usize,
    /// Reported as flushed up to here.
    pub flush: usize,
    /// It has caught up once.
    pub streaming: bool,
    /// Records are on their way.
    pub busy: bool,
    /// The setting that this walsender goes by.
    pub view: SyncSetting,
    /// The number of that setting.
    pub view_number: u32,
    /// When the standby was last heard.
    pub heard: Micros,
}

/// A server with its data directory.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// What runs.
    pub process: Process,
    /// Which process.
    pub life: u32,
    /// Killed while its volume stood still: its processes are not gone before that ends.
    pub stuck: bool,
    /// The data directory can not be started from (a broken control file, say); its log is what it was.
    pub unstartable: bool,
    /// This upstream has removed log that this copy needs.
    pub gone_at: Option<Node>,
    /// Stopped (not killed) until then.
    pub stopped_until: Micros,
    /// The data directory looks whole.
    pub data: Option<SystemId>,
    /// The log on disk.
    pub log: Vec<Entry>,
    /// Safe from a power failure up to here.
    pub flushed: usize,
    /// Read by recovery up to here.
    pub replayed: usize,
    /// The log's end is known to the server.
    pub end_known: bool,
    /// Clients may enter.
    pub open: bool,
    /// The term it writes in.
    pub term: Term,
    /// The timeline it writes on.
    pub timeline: Timeline,
    /// The data directory is a primary's (it was not started as a standby since).
    pub as_primary: bool,
    /// The upstream in its configuration file.
    pub upstream: Option<Node>,
    /// The copy it tells its upstream.
    pub copy: Option<CopyId>,
    /// Its own connection.
    pub receiver: Option<Receiver>,
    /// Those of others.
    pub senders: BTreeMap<u64, Sender>,
    /// The setting in the file.
    pub setting: SyncSetting,
    /// How often it was changed.
    pub setting_number: u32,
    /// The setting that backends go by.
    pub view: SyncSetting,
    /// Its number.
    pub view_number: u32,
    /// Commits before this were let go, or waited for nobody.
    pub released: usize,
}

impl Server {
    /// The end of the log with its path.
    #[must_use]
    pub fn log_end(&self, upto: usize) -> LogEnd {
        let mut lineage = Vec::new();
        let mut timeline = None;
        for (at, entry) in self.log[..upto].iter().enumerate() {
            if timeline.is_some_and(|before| before != entry.timeline) {
                lineage.push(Position { timeline: timeline.unwrap_or_default(), lsn: Lsn(at as u64) });
            }
            timeline = Some(entry.timeline);
        }
        let position = Position { timeline: timeline.unwrap_or_default(), lsn: Lsn(upto as u64) };
        LogEnd { position, lineage: Lineage(lineage) }
    }

    /// Would a standby whose log ends at `end` be served from here, judged as the engine judges: by timelines and positions?
    #[must_use]
    pub fn serves(&self, end: &LogEnd) -> bool {
        let mine = self.log_end(self.flushed);
        let Position { timeline, lsn } = end.position;
        if timeline == mine.position.timeline {
            return lsn <= mine.position.lsn;
        }
        mine.lineage.contains(end.position, mine.position.timeline, mine.position.lsn)
    }

    /// How many records two logs share, judged by the records themselves.
    #[must_use]
    pub fn shared_with(&self, other: &Server) -> usize {
        self.log.iter().zip(&other.log).take_while(|(mine, theirs)| mine == theirs).count()
    }
}

impl World {
    /// Does the server's process run, not stopped, on a host that runs?
    #[must_use]
    pub(crate) fn server_runs(&self, node: Node) -> bool {
        let server = &self.nodes[node].server;
        server.process.runs() && self.now >= server.stopped_until && self.now >= self.nodes[node].frozen_until
    }

    /// The same, and what it writes becomes durable.
    #[must_use]
    pub(crate) fn server_writes(&self, node: Node) -> bool {
        self.server_runs(node) && !self.disk_frozen(node)
    }

    /// When a stopped server goes on.
    #[must_use]
    pub(crate) fn server_resumes(&self, node: Node) -> Micros {
        let host = &self.nodes[node];
        host.server.stopped_until.max(host.frozen_until).max(host.disk_frozen_until)
    }

    /// Starts the server's process.
    pub(crate) fn start_server(&mut self, node: Node, as_primary: bool) {
        let replay = self.rng.range(20, 300) * MS;
        let hot = self.rng.range(5 * MS, replay);
        let reads = self.nodes[node].reads_until.saturating_sub(self.now);
        let (replay, hot) = if reads > 0 { (replay.max(reads), replay.max(reads)) } else { (replay, hot) };
        let back = self.rng.index(25);
        let server = &mut self.nodes[node].server;
        server.life += 1;
        server.stuck = false;
        server.process = Process::Starting(as_primary);
        server.as_primary = as_primary;
        server.stopped_until = 0;
        server.end_known = false;
        server.replayed = server.log.len().saturating_sub(back);
        server.open = false;
        server.receiver = None;
        server.senders.clear();
        let life = server.life;
        if !as_primary {
            self.queue.push(self.now + hot, Happening::Hot(node, life));
        }
        self.queue.push(self.now + replay, Happening::Replayed(node, life));
        self.trace(Some(node), || format!("server starts as {}", if as_primary { "primary" } else { "standby" }));
    }

    /// A standby answers queries.
    pub(crate) fn server_hot(&mut self, node: Node, life: u32) {
        let server = &mut self.nodes[node].server;
        if server.life == life && server.process == Process::Starting(false) {
            server.process = Process::Standby;
        }
    }

    /// Recovery has read all of the log.
    pub(crate) fn server_replayed(&mut self, node: Node, life: u32) {
        if self.nodes[node].server.life != life || !self.nodes[node].server.process.runs() {
            return;
        }
        if !self.server_writes(node) {
            let resume = self.server_resumes(node);
            self.queue.push(resume, Happening::Replayed(node, life));
            return;
        }
        let server = &mut self.nodes[node].server;
        server.end_known = true;
        server.replayed = server.log.len();
        server.flushed = server.log.len(); // the engine syncs its data directory when it starts after a crash
        if server.process == Process::Starting(true) {
            self.become_primary(node);
        } else {
            let delay = self.rng.range(MS, 60 * MS);
            self.queue.push(self.now + delay, Happening::Connect(node, life));
        }
    }

    /// A promotion goes on.
    pub(crate) fn promoting(&mut self, node: Node, life: u32, finished: bool) {
        let Process::Promoting(timeline, term) = self.nodes[node].server.process else { return };
        if self.nodes[node].server.life != life {
            return;
        }
        if !self.server_writes(node) {
            let resume = self.server_resumes(node);
            self.queue.push(resume, Happening::Promoting(node, life, finished));
            return;
        }
        if finished {
            self.become_primary(node);
        } else {
            let server = &mut self.nodes[node].server;
            (server.timeline, server.term) = (timeline, term);
            self.append(node, false);
            let server = &mut self.nodes[node].server;
            server.flushed = server.log.len();
        }
    }

    fn become_primary(&mut self, node: Node) {
        let server = &mut self.nodes[node].server;
        if let Process::Promoting(timeline, term) = server.process {
            (server.timeline, server.term) = (timeline, term);
        } else {
            server.timeline = server.log.last().map_or(Timeline(1), |entry| entry.timeline);
        }
        server.process = Process::Primary;
        server.gone_at = None;
        server.as_primary = true;
        server.open = false;
        server.view = server.setting.clone();
        server.view_number = server.setting_number;
        self.append(node, false);
        let server = &mut self.nodes[node].server;
        server.flushed = server.log.len();
        server.replayed = server.flushed;
        server.released = server.flushed;
        let term = server.term;
        self.primary_of_term(node, term);
    }

    /// Writes one record, of a client or of the server itself.
    pub(crate) fn append(&mut self, node: Node, client: bool) {
        self.last_entry += 1;
        let id = self.last_entry;
        let server = &mut self.nodes[node].server;
        let entry = Entry { id, timeline: server.timeline, term: server.term, client };
        server.log.push(entry);
    }

    /// Ends the process (by whatever), and tells the agent.
    pub(crate) fn server_ends(&mut self, node: Node, why: &'static str) {
        if !self.nodes[node].server.process.runs() {
            return;
        }
        self.trace(Some(node), || format!("server ends: {why}"));
        let server = &mut self.nodes[node].server;
        server.process = Process::Down;
        server.open = false;
        server.stopped_until = 0;
        server.receiver = None;
        self.close_senders(node, |_| false);
        self.nodes[node].guard.deadline = None;
        if why == "deadline passed" {
            self.counters.fences += 1;
            self.input_in(node, MS, Input::Fenced(why.to_owned()));
        }
        let delay = self.rng.range(500, 3 * MS);
        if self.disk_frozen(node) {
            self.nodes[node].server.stuck = true;
            self.counters.doomed += 1;
            let thaw = self.nodes[node].disk_frozen_until - self.now;
            self.input_in(node, thaw + delay, Input::ServerExited);
            return;
        }
        self.input_in(node, delay, Input::ServerExited);
    }

    /// Power failure: what was not flushed is gone.
    pub(crate) fn power_fails(&mut self, node: Node) {
        let keep = self.nodes[node].server.flushed;
        self.truncate(node, keep);
    }

    /// What a probe sees.
    pub(crate) fn observe(&mut self, node: Node) -> ServerObservation {
        let at = Moment(self.local(node, self.now));
        let server = &self.nodes[node].server;
        let state = match server.process {
            Process::Down => ServerState::Down,
            Process::Starting(_) => ServerState::Starting,
            Process::Standby | Process::Promoting(..) => ServerState::Standby,
            Process::Primary => ServerState::Primary,
        };
        let mut seen = ServerObservation { at, state, ..ServerObservation::default() };
        if self.disk_frozen(node) && (server.process.runs() || server.stuck) {
            seen.silent = (self.now - self.nodes[node].stopped_since) / MS;
            seen.symptom = Some("its disk stands still".to_owned());
        }
        if self.stuck(node) {
            seen.state = ServerState::Starting;
            return seen;
        }
        if !server.process.runs() {
            return seen;
        }
        seen.pid = Some(server.life);
        if self.now < server.stopped_until {
            seen.silent = (self.now - self.nodes[node].stopped_since) / MS;
            seen.symptom = Some("stopped".to_owned());
        }
        if matches!(state, ServerState::Standby | ServerState::Primary) {
            let end = if state == ServerState::Primary { server.flushed } else { server.replayed };
            let timeline = match end.checked_sub(1).and_then(|last| server.log.get(last)) {
                _ if state == ServerState::Primary => Some(server.timeline),
                last => last.map(|entry| entry.timeline),
            };
            seen.timeline = timeline;
            seen.end = Some(Lsn(end as u64));
            seen.replay = (state == ServerState::Standby).then_some(Lsn(server.replayed as u64));
            seen.receiving = server.receiver.is_some();
            seen.log_gone = !seen.receiving && server.gone_at.is_some() && server.gone_at == server.upstream;
            seen.open = server.open;
            seen.walsenders = server.senders.values().map(|sender| self.walsender(sender)).collect();
        }
        seen
    }

    fn walsender(&self, sender: &Sender) -> Walsender {
        Walsender {
            node: self.names[sender.standby].clone(),
            copy: sender.copy,
            flush: Lsn(sender.flush as u64),
            replay: Lsn(sender.flush as u64),
            streaming: sender.streaming,
        }
    }

    /// The end of the log as an order reports it; the plant reports what has been read so far.
    pub(crate) fn reported_end(&mut self, node: Node) -> LogEnd {
        let early = self.plants.contains(&Plant::PositionBeforeRead);
        let server = &mut self.nodes[node].server;
        if early && server.process.runs() && !server.end_known {
            return server.log_end(server.replayed);
        }
        server.flushed = server.log.len();
        server.log_end(server.flushed)
    }
}
