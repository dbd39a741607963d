//! Golden scripts: a situation in, what is decided out, in text that people can read. `tests/scripts/*.txt`; lines that begin with
//! `->` are what the machine must answer. With the environment variable `BLESS=1` the files are written anew: read the difference.
#![allow(clippy::unwrap_used, reason = "a test ends where it can not go on")]

mod common;

use mainstay_decide::{CasResult, Evidence, Input, Mind, Output};
use mainstay_model::record::{Durability, Durable, RecoveryEnd, Upstream};
use mainstay_model::*;
use std::collections::BTreeMap;
use std::fmt::Write;

/// One script while it runs.
#[derive(Default)]
struct Script {
    mind: Option<Mind>,
    config: Option<mainstay_decide::Config>,
    durable: Option<Durable>,
    data: Option<SystemId>,
    now: u64,
    order: OrderId,
    kill: OrderId,
    cas: u64,
    read: u64,
}

/// `key=value` words of a line.
struct Words<'a>(BTreeMap<&'a str, &'a str>, Vec<&'a str>);

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Words<'a> {
        let mut words = Words(BTreeMap::new(), Vec::new());
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some((key, value)) => drop(words.0.insert(key, value)),
                None => words.1.push(word),
            }
        }
        words
    }
    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.get(key).copied().filter(|value| *value != "-")
    }
    fn number(&self, key: &str) -> u64 {
        self.get(key).map_or(0, |value| value.parse().unwrap_or_else(|_| panic!("{key}={value}")))
    }
    fn word(&self, index: usize) -> &'a str {
        self.1.get(index).copied().unwrap_or_else(|| panic!("word {index} is missing in {:?}", self.1))
    }
    fn has(&self, word: &str) -> bool {
        self.1.contains(&word)
    }
}

fn node(name: &str) -> NodeId {
    common::id(name)
}
fn copy(hex: &str) -> CopyId {
    CopyId::try_from(hex.to_owned()).unwrap()
}
fn position(text: &str) -> Position {
    let (timeline, lsn) = text.split_once('@').unwrap();
    Position { timeline: Timeline(timeline.parse().unwrap()), lsn: Lsn(lsn.parse().unwrap()) }
}
fn lineage(text: Option<&str>) -> Lineage {
    Lineage(text.map_or_else(Vec::new, |text| text.split(',').map(position).collect()))
}
fn names(text: Option<&str>) -> Vec<String> {
    text.map_or_else(Vec::new, |text| text.split(',').map(str::to_owned).collect())
}
fn members(text: Option<&str>) -> BTreeMap<NodeId, CopyId> {
    let one = |pair: &str| pair.split_once(':').map(|(name, id)| (node(name), copy(id))).unwrap();
    text.map_or_else(BTreeMap::new, |text| text.split(',').map(one).collect())
}

fn record(words: &Words) -> Record {
    Record {
        term: Term(words.number("term")),
        holder: words.get("holder").map(node),
        state: match words.get("state").unwrap() {
            "founding" => ClaimState::Founding,
            "free" => ClaimState::Free,
            "electing" => ClaimState::Electing,
            "held" => ClaimState::Held,
            other => panic!("state {other}"),
        },
        grant: words.number("grant"),
        leader: words.get("leader").map(node),
        members: members(words.get("m")),
        quorum: words.number("q") as u32,
        timeline: Timeline(words.number("tl") as u32),
        lineage: lineage(words.get("lin")),
        wanted: words.get("wanted").map(node),
        asynchronous: words.has("async"),
        system: Some(SystemId(words.get("system").map_or(77, |text| text.parse().unwrap()))).filter(|id| id.0 != 0),
        lease: words.get("lease").map(|text| Span(text.parse().unwrap())),
        lossy: words.get("lossy").map(|text| Timeline(text.parse().unwrap())),
        held: words.get("held").map(|text| Span(text.parse().unwrap())),
        restored: None,
        reason: String::new(),
    }
}

fn durability(text: &str) -> Durability {
    match text {
        "strict" => Durability::Strict,
        "available" => Durability::Available,
        "async" => Durability::Async,
        other => panic!("mode {other}"),
    }
}

fn operator(command: Command) -> Input {
    Input::Operator { id: 1, by: "test".to_owned(), command }
}

fn state(text: &str) -> ServerState {
    match text {
        "down" => ServerState::Down,
        "starting" => ServerState::Starting,
        "standby" => ServerState::Standby,
        "primary" => ServerState::Primary,
        other => panic!("server {other}"),
    }
}

fn observation(now: u64, words: &Words) -> ServerObservation {
    let sender = |text: &str| {
        let mut parts = text.split(':');
        let (name, id, flush) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let flush = Lsn(flush.parse().unwrap());
        Walsender { node: node(name), copy: copy(id), flush, replay: flush, streaming: true }
    };
    ServerObservation {
        at: Moment(now),
        state: state(words.word(1)),
        silent: words.number("silent"),
        symptom: words.get("symptom").map(str::to_owned),
        timeline: words.get("tl").map(|text| Timeline(text.parse().unwrap())),
        end: words.get("end").map(|text| Lsn(text.parse().unwrap())),
        receiving: words.has("receiving"),
        open: words.has("open"),
        walsenders: words.get("senders").map_or_else(Vec::new, |text| text.split(',').map(sender).collect()),
        ..ServerObservation::default()
    }
}

fn presence(now: u64, words: &Words) -> Presence {
    Presence {
        life: words.get("life").map_or(1, |text| text.parse().unwrap()),
        promise: Term(words.number("promise")),
        revision: Revision(words.number("rev")),
        copy: words.get("copy").map(copy),
        server: state(words.get("server").unwrap_or("standby")),
        primary_of: words.get("primary").map(|text| Term(text.parse().unwrap())),
        open: words.has("open"),
        position: words.get("pos").map(position),
        holder_heard: None,
        sent: Moment(words.get("sent").map_or(now, |text| text.parse().unwrap())),
        // As a rule it has read what this node said a moment ago.
        echo: words.get("echo").map_or(Some(Moment(now)), |text| text.parse().ok().map(Moment)),
    }
}

fn message(now: u64, words: &Words) -> Message {
    let term = || Term(words.word(3).parse().unwrap());
    match words.word(2) {
        "presence" => Message::Presence(presence(now, words)),
        "ask" => Message::Ask { term: term() },
        "told" => Message::Told { term: term(), hears: words.has("hears"), would_answer: words.has("would") },
        "recruit" => Message::Recruit { term: term() },
        "answer" => Message::Answer(Answer {
            term: term(),
            copy: copy(words.word(4)),
            end: LogEnd { position: position(words.word(5)), lineage: lineage(words.get("lin")) },
        }),
        "open" => Message::Open { term: term(), timeline: Timeline(words.number("tl") as u32) },
        other => panic!("message {other}"),
    }
}

impl Script {
    fn begin(&mut self, line: &str) {
        let words = Words::of(line);
        match words.word(0) {
            "node" => {
                let names: Vec<&str> = words.get("of").unwrap().split(',').collect();
                let durability = durability(words.get("mode").unwrap());
                self.config = Some(common::config(words.word(1), &names, durability, words.number("n") as u32));
            }
            "durable" => {
                let upstream = words.get("upstream").and_then(|text| text.split_once('/'));
                self.durable = Some(Durable {
                    promise: Term(words.number("promise")),
                    upstream: upstream
                        .map(|(name, term)| Upstream { node: node(name), term: Term(term.parse().unwrap()) }),
                    copy: words.get("copy").map(copy),
                    diverged: None,
                    system: Some(SystemId(77)).filter(|_| !words.has("new")),
                });
                let data = words.get("data").map_or(77, |text| text.parse().unwrap());
                self.data = Some(SystemId(data)).filter(|_| !words.has("empty"));
            }
            other => panic!("unknown line {other:?}"),
        }
    }

    fn input(&mut self, text: &str) -> Input {
        let words = Words::of(text);
        let now = self.now;
        let revision = || Revision(words.word(words.1.len() - 1).parse().unwrap());
        match words.word(0) {
            "tick" => Input::Tick,
            "watch" => Input::Watched(Revision(words.word(1).parse().unwrap()), record(&words)),
            "read" if words.has("none") => Input::Read(self.read, Some(None)),
            "read" if words.has("silent") => Input::Read(self.read, None),
            "read" => Input::Read(self.read, Some(Some((revision(), record(&words))))),
            "cas" => Input::Cas(
                self.cas,
                match words.word(1) {
                    "done" => CasResult::Done(revision()),
                    "conflict" => CasResult::Conflict(Some((revision(), record(&words)))),
                    "unknown" => CasResult::Unknown,
                    _ => CasResult::Unavailable,
                },
            ),
            "seen" => Input::Observed(observation(now, &words)),
            "exited" => Input::ServerExited,
            "fenced" => Input::Fenced("deadline".to_owned()),
            "killed" => Input::Ordered(self.kill, Outcome::Done),
            "from" => Input::Peer(node(words.word(1)), message(now, &words)),
            "link" => Input::PeerLink(node(words.word(1)), words.has("up")),
            "evidence" => Input::Evidence(
                node(words.word(1)),
                match words.word(2) {
                    "all" => Evidence::AllRefused,
                    "agent" => Evidence::AgentRefused,
                    _ => Evidence::ServerRefused,
                },
            ),
            "switchover" => operator(Command::Switchover { to: words.get("to").map(node) }),
            "failover" => operator(Command::Failover { accept_data_loss: words.has("accept-data-loss") }),
            "restart" => operator(Command::Restart { in_place: words.has("in-place") }),
            "reinit" => operator(Command::Reinit),
            "proxies" => Input::Proxies {
                term: Term(words.number("term")),
                waiting: names(words.get("waiting")),
                late: names(words.get("late")),
            },
            "configure" => Input::Configured(Box::new(self.configure(&words))),
            _ => Input::Ordered(self.order, outcome(&words)),
        }
    }

    /// The configuration with what the line changes: `of=`, `mode=`, `n=`, `lease=`, `margin=`, `paused`, `resumed`.
    fn configure(&mut self, words: &Words) -> mainstay_decide::Config {
        let config = self.config.as_mut().unwrap();
        if let Some(names) = words.get("of") {
            config.data_nodes = names.split(',').zip(0..).map(|(name, place)| (node(name), place)).collect();
        }
        if let Some(mode) = words.get("mode") {
            config.durability = durability(mode);
        }
        if words.get("n").is_some() {
            config.sync_replicas = words.number("n") as u32;
        }
        for (key, span) in [("lease", &mut config.lease), ("margin", &mut config.margin)] {
            if words.get(key).is_some() {
                *span = Span(words.number(key));
            }
        }
        config.paused = (config.paused || words.has("paused")) && !words.has("resumed");
        config.clone()
    }

    fn step(&mut self, line: &str) -> String {
        let (at, text) = line[1..].split_once(' ').unwrap();
        self.now = at.parse().unwrap();
        if self.mind.is_none() {
            self.mind = Some(Mind::new(self.config.clone().unwrap(), self.durable.clone(), self.data, 1));
        }
        let input = self.input(text);
        let outputs = self.mind.as_mut().unwrap().step(Moment(self.now), input);
        let mut shown = String::new();
        for output in &outputs {
            match output {
                Output::Order(id, _, Order::Kill) => self.kill = *id,
                Output::Order(id, _, _) => self.order = *id,
                Output::Cas(id, _, _) => self.cas = *id,
                Output::Read(id) => self.read = *id,
                _ => {}
            }
            if let Some(text) = show(output) {
                let _ = writeln!(shown, "-> {text}");
            }
        }
        shown
    }
}

fn outcome(words: &Words) -> Outcome {
    let end = || RecoveryEnd { timeline: Timeline(words.number("tl") as u32), lsn: Lsn(words.number("end")) };
    match words.word(0) {
        "done" => Outcome::Done,
        "replaced" => {
            Outcome::Replaced(Lost { from: position(words.word(1)), to: position(words.word(2)), ..Lost::default() })
        }
        "ended" => Outcome::Ended(LogEnd { position: position(words.word(1)), lineage: lineage(words.get("lin")) }),
        "promoted" => Outcome::Promoted(end()),
        "restarted" => Outcome::Restarted(end()),
        "confirmed" => Outcome::Confirmed(Lsn(words.number("end"))),
        "founded" => Outcome::Founded { system: SystemId(77), end: end() },
        "failed" => Outcome::Failed(match words.word(1) {
            "stale" => OrderFailure::Stale,
            "aborted" => OrderFailure::Aborted,
            "not-yet" => OrderFailure::NotYet("test".to_owned()),
            "broken" => OrderFailure::Broken("test".to_owned()),
            _ => OrderFailure::Error("test".to_owned()),
        }),
        other => panic!("unknown input {other:?}"),
    }
}

// ---- showing ----

fn show_copy(id: CopyId) -> String {
    id.to_string().trim_start_matches('0').to_owned()
}
fn show_copies(copies: &BTreeMap<NodeId, CopyId>) -> String {
    let all: Vec<String> = copies.iter().map(|(name, id)| format!("{name}:{}", show_copy(*id))).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}
fn show_position(position: Position) -> String {
    format!("{}@{}", position.timeline, position.lsn.0)
}
fn show_lineage(lineage: &Lineage) -> String {
    let all: Vec<String> = lineage.0.iter().map(|position| show_position(*position)).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}
fn or_dash<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn show_record(record: &Record) -> String {
    let state = format!("{:?}", record.state).to_lowercase();
    format!(
        "term={} state={state} holder={} leader={} m={} q={} tl={} lin={} grant={} wanted={}{}",
        record.term,
        or_dash(record.holder.as_ref()),
        or_dash(record.leader.as_ref()),
        show_copies(&record.members),
        record.quorum,
        record.timeline,
        show_lineage(&record.lineage),
        record.grant,
        or_dash(record.wanted.as_ref()),
        if record.asynchronous { " async" } else { "" },
    ) + &record.lease.filter(|lease| *lease != Span(3000)).map_or(String::new(), |lease| format!(" lease={}", lease.0))
        + &record.lossy.map_or(String::new(), |lossy| format!(" lossy={lossy}"))
        + &record.held.map_or(String::new(), |held| format!(" held={}", held.0))
        + &if record.reason.is_empty() { String::new() } else { format!(" because {:?}", record.reason) }
}

fn show_setting(setting: &SyncSetting) -> String {
    format!("ANY {} OF {}", setting.need, show_copies(&setting.copies))
}

fn show_order(order: &Order) -> String {
    match order {
        Order::Follow { upstream } => format!("follow {upstream}"),
        Order::Promote { setting, timeline, fork } => {
            format!("promote {} to timeline {timeline} from {}", show_setting(setting), show_position(*fork))
        }
        Order::SetSync { setting } => format!("set-sync {}", show_setting(setting)),
        Order::StopClean { keep } => {
            format!("stop-clean keep {}", keep.iter().map(NodeId::as_str).collect::<Vec<_>>().join(","))
        }
        Order::Rewind { source } => format!("rewind from {source}"),
        Order::Clone { source, copy } => format!("clone from {source} as {}", show_copy(*copy)),
        Order::Bootstrap { copy, setting } => format!("bootstrap {} {}", show_copy(*copy), show_setting(setting)),
        plain => format!("{plain:?}").to_lowercase(),
    }
}

fn show_message(message: &Message) -> Option<String> {
    Some(match message {
        Message::Presence(_) => return None,
        Message::Ask { term } => format!("ask {term}"),
        Message::Told { term, hears, would_answer } => {
            format!("told {term}{}{}", if *hears { " hears" } else { "" }, if *would_answer { " would" } else { "" })
        }
        Message::Recruit { term } => format!("recruit {term}"),
        Message::Answer(answer) => {
            let lineage = show_lineage(&answer.end.lineage);
            let (copy, end) = (show_copy(answer.copy), show_position(answer.end.position));
            format!("answer {} {copy} {end} lin={lineage}", answer.term)
        }
        Message::Open { term, timeline } => format!("open {term} tl={timeline}"),
    })
}

fn show(output: &Output) -> Option<String> {
    Some(match output {
        Output::Persist(durable) => format!(
            "persist promise={} upstream={} copy={}{}{}",
            durable.promise,
            durable.upstream.as_ref().map_or("-".to_owned(), |up| format!("{}/{}", up.node, up.term)),
            or_dash(durable.copy.map(show_copy)),
            durable.diverged.map_or(String::new(), |(term, at)| format!(" diverged={term}:{}", show_position(at))),
            durable.system.filter(|is| is.0 != 77).map_or(String::new(), |is| format!(" system={}", is.0)),
        ),
        Output::Read(_) => "read".to_owned(),
        Output::Cas(_, expected, record) => {
            format!("cas on {}: {}", or_dash(expected.map(|revision| revision.0)), show_record(record))
        }
        Output::Send(to, message) => format!("send {to}: {}", show_message(message)?),
        Output::Deadline(term, at) => format!("deadline term {term} until {}", at.0),
        Output::Order(_, term, order) => format!("order term {term}: {}", show_order(order)),
        Output::Route(term, state, at) => {
            format!("route term {term} {} until {}", format!("{state:?}").to_lowercase(), at.0)
        }
        Output::Event(event) => {
            let change = event.change.as_ref().map_or(String::new(), |change| {
                format!(
                    " | from {} to {} timeline {} fork {} end {} risk {}, because {:?}",
                    or_dash(change.from.as_ref()),
                    change.to,
                    change.timeline,
                    or_dash(change.fork.map(show_position)),
                    change.end.0,
                    or_dash(change.at_risk_bytes),
                    change.cause
                )
            });
            let lost = event
                .lost
                .as_ref()
                .map_or(String::new(), |lost| format!(" | may be acknowledged: {}", lost.may_be_acknowledged));
            format!("event {}: {}{change}{lost}", event.kind, event.text)
        }
        Output::Reply(id, reply) => format!("reply {id}: {reply:?}"),
        Output::Reason(reason) => format!("reason {}: {}", reason.rule, reason.text),
    })
}

// ---- running ----

/// Runs a script; gives its text with the answers as they are now.
fn run(text: &str) -> String {
    let mut script = Script::default();
    let mut result = String::new();
    for line in text.lines().filter(|line| !line.starts_with("->")) {
        let _ = writeln!(result, "{line}");
        if line.starts_with('@') {
            result += &script.step(line);
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            script.begin(line);
        }
    }
    result
}

#[test]
fn scripts_give_what_they_say() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let bless = std::env::var_os("BLESS").is_some();
    let mut count = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let now = run(&text);
        count += 1;
        if bless {
            std::fs::write(&path, now).unwrap();
        } else if now != text {
            let differs = now.lines().zip(text.lines()).position(|(left, right)| left != right).unwrap_or_default();
            let (is, was) = (now.lines().nth(differs), text.lines().nth(differs));
            wrong.push(format!("{} line {}:\n  is   {is:?}\n  said {was:?}", path.display(), differs + 1));
        }
    }
    assert!(count >= 12, "only {count} scripts were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
