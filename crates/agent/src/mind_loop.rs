//! The loop: one task that feeds inputs to the decision and carries its outputs out, in order. It chooses nothing.

use crate::drain;
use crate::durable::DurableError;
use crate::executor::{Executor, Hands};
use crate::handlers::is_part_of_a_take_over;
use crate::record;
use crate::routes::Routes;
use crate::status::Standing;
use mainstay_decide::Mind;
use mainstay_decide::io::{CasResult, Input, Output};
use mainstay_decide::summary::Summary;
use mainstay_model::{ClaimState, Command, Event, Message, Moment, Reason, Record, ServerObservation, Span, Term};
use mainstay_ports::clock::{boot_now, wall_now_ms};
use mainstay_ports::peer::{Channel, Peers};
use mainstay_ports::store::Store;
use mainstay_store::ClusterStore;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

/// How many inputs may wait. When it is full the senders wait, which slows probes and peers down, never decisions.
pub const INPUTS_MAX: usize = 1024;
/// How many reasons are kept for `why`: shared, so that a look at the loop does not copy them.
const REASONS_MAX: usize = 3000;

/// What the loop works with.
pub struct Parts {
    /// The decision.
    pub mind: Mind,
    /// What orders need.
    pub hands: Hands,
    /// The store.
    pub store: Arc<ClusterStore>,
    /// The other agents.
    pub peers: Arc<dyn Peers>,
    /// What proxies are told.
    pub routes: Routes,
    /// Facts for the history.
    pub events: mpsc::Sender<Event>,
    /// The wanted pause between probes.
    pub probe_interval: watch::Sender<Span>,
    /// Asks for a probe now.
    pub probe_now: Arc<Notify>,
    /// Tells that a server was started.
    pub server_started: Arc<Notify>,
}

/// A question to the loop.
pub type Question = oneshot::Sender<Snapshot>;

/// What the loop knows now; `None` if it has ended, or does not answer within that time.
pub async fn ask(questions: &mpsc::Sender<Question>, within: Duration) -> Option<Snapshot> {
    let (question, answer) = oneshot::channel();
    let asked = async {
        questions.send(question).await.ok()?;
        answer.await.ok()
    };
    timeout(within, asked).await.ok()?
}

/// How long tasks that have time wait for that answer.
pub const ANSWER: Duration = Duration::from_secs(5);

/// An operator's command to the loop; the answer comes at once.
#[derive(Debug)]
pub struct Wish {
    /// Who asks.
    pub by: String,
    /// What.
    pub command: Command,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<String, String>>,
}

/// What the loop knows at one moment, for status pages.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The decision's own summary.
    pub summary: Summary,
    /// Reasons with the wall time at which they came, oldest first.
    pub reasons: Vec<(u64, Arc<Reason>)>,
    /// Since when (wall time, ms) the role and state are as they are.
    pub since_ms: u64,
}

struct Loop {
    parts: Parts,
    executor: Executor,
    reasons: VecDeque<(u64, Arc<Reason>)>,
    last_observed: ServerObservation,
    /// What the node was doing when last looked at, and since when (wall time).
    standing: (Standing, u64),
    standing_looked: Moment,
    /// Commands whose answer is due, by number.
    replies: BTreeMap<u64, oneshot::Sender<Result<String, String>>>,
    last_command: u64,
    /// Comes before everything that waits.
    next: Option<Input>,
}

/// Runs until `stop` turns true or the promise can not be made durable.
///
/// # Errors
/// When the node's promise can not be written: it must not act any more, and its lease runs out.
pub async fn run(
    parts: Parts,
    mut inputs: mpsc::Receiver<Input>,
    mut questions: mpsc::Receiver<Question>,
    mut wishes: mpsc::Receiver<Wish>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), DurableError> {
    let executor = Executor::new(parts.hands.clone());
    let mut the_loop = Loop {
        parts,
        executor,
        reasons: VecDeque::new(),
        last_observed: ServerObservation::default(),
        standing: (Standing::default(), wall_now_ms()),
        standing_looked: Moment(0),
        replies: BTreeMap::new(),
        last_command: 0,
        next: None,
    };
    the_loop.step(Input::Tick).await?;
    loop {
        let pause = the_loop.pause();
        tokio::select! {
            biased;
            changed = stop.wait_for(|stop| *stop) => {
                drop(changed);
                return Ok(());
            }
            input = inputs.recv() => match input {
                Some(input) => the_loop.step(input).await?,
                None => return Ok(()),
            },
            question = questions.recv() => if let Some(question) = question {
                let _ = question.send(the_loop.snapshot());
            },
            wish = wishes.recv() => if let Some(wish) = wish {
                the_loop.command(wish).await?;
            },
            () = tokio::time::sleep(pause) => the_loop.step(Input::Tick).await?,
        }
    }
}

/// Does this write make a term begin?
fn begins_a_term(record: &Record) -> bool {
    matches!(record.state, ClaimState::Electing | ClaimState::Founding)
}

impl Loop {
    fn pause(&self) -> Duration {
        let now = boot_now();
        let longest = Moment(now.0 + 1000);
        self.parts.mind.wake().unwrap_or(longest).min(longest).since(now).to_std().max(Duration::from_millis(1))
    }

    async fn step(&mut self, input: Input) -> Result<(), DurableError> {
        self.one_step(input).await?;
        while let Some(next) = self.next.take() {
            self.one_step(next).await?;
        }
        Ok(())
    }

    async fn one_step(&mut self, input: Input) -> Result<(), DurableError> {
        if let Input::Ordered(..) = &input {
            self.parts.probe_now.notify_one();
            self.parts.server_started.notify_one();
        }
        if let Input::Observed(observation) = &input {
            self.last_observed.clone_from(observation);
            self.parts.routes.observed(observation);
        }
        debug!(?input, "input");
        let outputs = self.parts.mind.step(boot_now(), input);
        for output in outputs {
            self.carry_out(output).await?;
        }
        self.note_standing();
        let interval = self.parts.mind.probe_interval();
        self.parts.probe_interval.send_if_modified(|held| {
            let changed = *held != interval;
            *held = interval;
            changed
        });
        Ok(())
    }

    async fn command(&mut self, wish: Wish) -> Result<(), DurableError> {
        self.last_command += 1;
        let id = self.last_command;
        self.replies.insert(id, wish.reply);
        self.step(Input::Operator { id, by: wish.by, command: wish.command }).await?;
        // The answer comes within the step; nothing is kept of one that did not.
        self.replies.remove(&id);
        Ok(())
    }

    async fn carry_out(&mut self, output: Output) -> Result<(), DurableError> {
        match output {
            Output::Persist(durable) => self.parts.hands.gate.persist(durable).await?,
            Output::Read(id) => {
                let (store, inputs) = (self.store(), self.parts.hands.inputs.clone());
                tokio::spawn(async move { inputs.send(Input::Read(id, record::read(store).await)).await });
            }
            Output::Cas(id, expected, wanted) => {
                let (store, inputs) = (self.store(), self.parts.hands.inputs.clone());
                let too_early =
                    begins_a_term(&wanted) && self.parts.store.etcd().is_some_and(|etcd| !etcd.is_compared());
                tokio::spawn(async move {
                    let result = match too_early {
                        // The other nodes may have seen more than etcd shows. They are being asked.
                        true => CasResult::Unavailable,
                        false => record::compare_and_set(store, expected, wanted).await,
                    };
                    inputs.send(Input::Cas(id, result)).await
                });
            }
            Output::Send(to, message) => self.send(&to, &message),
            Output::Deadline(term, until) => self.parts.hands.deadlines.extend(term, until),
            Output::Order(id, term, order) => self.executor.begin(id, term, order),
            Output::Route(term, state, until) => {
                if self.parts.routes.say(term, state, until) {
                    self.drain(term);
                }
            }
            Output::Event(mut event) => {
                // When it happened, not when the store took it.
                event.wall_ms = wall_now_ms();
                if self.parts.events.try_send(event).is_err() {
                    warn!("too many events at once; one is not in the history");
                }
            }
            Output::Reply(id, reply) => {
                if let Some(waiting) = self.replies.remove(&id) {
                    let _ = waiting.send(reply);
                }
            }
            Output::Reason(reason) => {
                info!(rule = %reason.rule, term = reason.term.0, text = %reason.text, "reason");
                self.reasons.push_back((wall_now_ms(), Arc::new(reason)));
                while self.reasons.len() > REASONS_MAX {
                    self.reasons.pop_front();
                }
            }
        }
        Ok(())
    }

    /// A drain begins: who is waited for is the next thing that the decision hears.
    fn drain(&mut self, term: Term) {
        let board = self.parts.routes.board();
        self.next = drain::begin(&board, term);
        if self.next.is_some() {
            tokio::spawn(drain::watch(board, term, self.parts.hands.inputs.clone()));
        }
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.parts.store) as Arc<dyn Store>
    }

    fn send(&self, to: &mainstay_model::NodeId, message: &Message) {
        // Asked before the store was not believed any more, and answered after.
        if is_part_of_a_take_over(message) && self.parts.store.distrusts() {
            return;
        }
        let body = match message {
            // It would not: no candidate needs to raise the term for that.
            Message::Told { term, hears, would_answer: true } if self.is_without_etcd() => {
                serde_json::to_vec(&Message::Told { term: *term, hears: *hears, would_answer: false })
            }
            message => serde_json::to_vec(message),
        };
        if let Ok(body) = body {
            self.parts.peers.send(to, Channel::Mind, body);
        }
    }

    /// The store is an etcd, and this node does not go by it: it does not answer, or is not believed.
    fn is_without_etcd(&self) -> bool {
        self.parts.store.etcd().is_some_and(|etcd| !etcd.works())
    }

    /// Remembers since when the node does what it does; looks a few times a second, since a summary is not free.
    fn note_standing(&mut self) {
        let now = boot_now();
        if now.since(self.standing_looked) < Span(200) {
            return;
        }
        self.standing_looked = now;
        let standing = Standing::of(&self.parts.mind.summary(), &self.last_observed);
        if standing != self.standing.0 {
            self.standing = (standing, wall_now_ms());
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            summary: self.parts.mind.summary(),
            reasons: self.reasons.iter().cloned().collect(),
            since_ms: self.standing.1,
        }
    }
}
