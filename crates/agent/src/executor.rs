//! Carries out orders on the local server, one at a time; a kill goes first and ends a running one. Makes no choice.

use crate::deadline::Deadlines;
use crate::durable::Gate;
use crate::runs::RunNotes;
use futures_util::FutureExt;
use mainstay_decide::io::Input;
use mainstay_model::{Lost, NodeId, Order, OrderFailure, OrderId, Outcome, Term};
use mainstay_ports::clock::boot_now;
use mainstay_ports::engine::{Engine, EngineError};
use mainstay_ports::process::{Fenced, ServerProcess};
use mainstay_ports::sabotage;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// How long a kill waits for the order that it ends. One that hangs in a call to a disk that does not answer can not end; the kill must
/// not wait for it. It ends as soon as that call returns, and no other order begins before.
const GIVE_UP: Duration = Duration::from_millis(500);
/// For how long a promotion waits until the guard has confirmed the deadline.
const DEADLINE_WAIT: Duration = Duration::from_millis(500);

/// What an order needs. Clones share everything.
#[derive(Clone)]
pub struct Hands {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The server's process.
    pub process: Arc<dyn ServerProcess>,
    /// The durable promise.
    pub gate: Gate,
    /// The guard's deadline.
    pub deadlines: Deadlines,
    /// The lives of primaries, as the store keeps them.
    pub runs: RunNotes,
    /// Where outcomes go.
    pub inputs: mpsc::Sender<Input>,
    /// Told whenever an order begins: what else works on the server gives way.
    pub order_begins: Arc<Notify>,
}

/// Runs one order at a time.
pub struct Executor {
    hands: Hands,
    running: Option<(OrderId, JoinHandle<()>)>,
    thread: Option<Runtime>,
}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.shutdown_background();
        }
    }
}

impl Executor {
    /// An idle executor.
    #[must_use]
    pub fn new(hands: Hands) -> Self {
        // Orders have a thread of their own: one that hangs in a call to a stalled disk holds up no probe, no peer and no kill.
        let thread = Builder::new_multi_thread().worker_threads(1).thread_name("orders").enable_all().build();
        let thread = thread.inspect_err(|error| warn!(%error, "no thread for orders: they share the agent's")).ok();
        Self { hands, running: None, thread }
    }

    /// Begins an order. The decision gives no second one before the first one's outcome came, except a kill.
    pub fn begin(&mut self, id: OrderId, term: Term, order: Order) {
        let before = self.running.take();
        self.hands.order_begins.notify_waiters();
        let hands = self.hands.clone();
        let kills = matches!(order, Order::Kill);
        let work = async move {
            if let Some((earlier, handle)) = before {
                let given_up = if kills {
                    handle.abort();
                    let ended = tokio::time::timeout(GIVE_UP, handle).await;
                    if ended.is_err() {
                        warn!(order = earlier.0, "an order hangs; killing without waiting for it");
                    }
                    ended.is_err() || ended.is_ok_and(|ended| ended.is_err_and(|ended| ended.is_cancelled()))
                } else {
                    handle.await.is_err_and(|ended| ended.is_cancelled())
                };
                if given_up {
                    let aborted = Outcome::Failed(OrderFailure::Aborted);
                    let _ = hands.inputs.send(Input::Ordered(earlier, aborted)).await;
                }
            }
            let started = boot_now();
            info!(order = id.0, term = term.0, what = ?order, "order begins");
            // A panic inside an order is a bug: it is caught here, at the task's border, and becomes that order's failure.
            let outcome = AssertUnwindSafe(hands.carry_out(term, order)).catch_unwind().await.unwrap_or_else(|_| {
                Outcome::Failed(OrderFailure::Error("the order panicked, which is a bug; see the log".to_owned()))
            });
            info!(order = id.0, term = term.0, took_ms = boot_now().since(started).0, ?outcome, "order ended");
            let _ = hands.inputs.send(Input::Ordered(id, outcome)).await;
        };
        let task = match &self.thread {
            Some(thread) if !kills => thread.spawn(work),
            _ => tokio::spawn(work),
        };
        self.running = Some((id, task));
    }
}

fn failed(error: EngineError) -> Outcome {
    Outcome::Failed(match error {
        EngineError::NotYet(why) => OrderFailure::NotYet(why),
        EngineError::Broken(why) => OrderFailure::Broken(why),
        EngineError::Failed(why) => OrderFailure::Error(why),
    })
}

fn done(result: Result<(), EngineError>) -> Outcome {
    result.map_or_else(failed, |()| Outcome::Done)
}

fn replaced(result: Result<Option<Lost>, EngineError>) -> Outcome {
    match result {
        Ok(None) => Outcome::Done,
        Ok(Some(_)) if sabotage::on("silent-loss") => Outcome::Done,
        Ok(Some(lost)) => {
            warn!(?lost, "what the old data held besides is kept");
            Outcome::Replaced(lost)
        }
        Err(error) => failed(error),
    }
}

impl Hands {
    async fn carry_out(&self, term: Term, order: Order) -> Outcome {
        // A kill is always safe: it takes a server away and never gives one.
        if !matches!(order, Order::Kill) && !self.gate.admits(term).await {
            return Outcome::Failed(OrderFailure::Stale);
        }
        let copy = self.gate.durable().await.copy;
        match order {
            Order::Kill => self.kill().await,
            Order::StartStandby if sabotage::on("no-restart") => {
                Outcome::Failed(OrderFailure::NotYet("sabotaged".to_owned()))
            }
            Order::StartStandby => match copy {
                Some(copy) => done(self.engine.start_standby(copy, self.upstream().await.as_ref()).await),
                None => Outcome::Failed(OrderFailure::Broken("no whole copy to start".to_owned())),
            },
            Order::Recruit => self.engine.recruit().await.map_or_else(failed, Outcome::Ended),
            Order::ReadEnd => self.engine.log_end().await.map_or_else(failed, Outcome::Ended),
            Order::Follow { upstream } => match copy {
                Some(copy) => done(self.engine.follow(copy, &upstream).await),
                None => Outcome::Failed(OrderFailure::Broken("no whole copy to follow with".to_owned())),
            },
            Order::Open => done(self.engine.open().await),
            Order::Close => done(self.engine.close().await),
            Order::SetSync { setting } => self.engine.set_sync(&setting).await.map_or_else(failed, Outcome::Confirmed),
            Order::Checkpoint => done(self.engine.checkpoint().await),
            Order::StopClean { keep } => self.engine.stop_clean(&keep).await.map_or_else(failed, Outcome::Ended),
            Order::Stop => done(self.engine.stop_standby().await),
            Order::Rewind { .. } | Order::Clone { .. } if sabotage::on("no-rejoin") => {
                Outcome::Failed(OrderFailure::NotYet("sabotaged".to_owned()))
            }
            Order::Rewind { .. } if sabotage::on("false-rewind") => Outcome::Done,
            Order::Rewind { source } => replaced(self.engine.rewind(&source).await),
            Order::Adopt { copy, timeline } => done(self.engine.adopt_restored(copy, timeline).await),
            Order::Clone { source, copy } => replaced(self.engine.as_ref().clone_from(&source, copy).await),
            order => self.as_primary(term, order).await,
        }
    }

    /// Orders after which a server is primary: the guard must hold a deadline that lies ahead.
    async fn as_primary(&self, term: Term, order: Order) -> Outcome {
        // Before the deadline is taken: what is left of it is the start's.
        if let Err(why) = self.note_start(&order).await {
            return Outcome::Failed(OrderFailure::NotYet(why));
        }
        // A promotion changes a running server, whose guard must have the deadline already; the others start one with it.
        let wait = matches!(order, Order::Promote { .. }).then_some(DEADLINE_WAIT);
        let Some(deadline) = self.deadlines.ahead(term, wait).await else {
            let why = format!("the guard holds no deadline ahead for term {term}");
            return Outcome::Failed(OrderFailure::NotYet(why));
        };
        let deadline = Some((term, deadline));
        match order {
            Order::Promote { setting, timeline, fork } => {
                self.engine.promote(&setting, timeline, fork).await.map_or_else(failed, Outcome::Promoted)
            }
            Order::RestartInPlace => {
                self.engine.restart_in_place(deadline).await.map_or_else(failed, Outcome::Restarted)
            }
            Order::Bootstrap { copy, setting } => match self.engine.bootstrap(copy, &setting, deadline).await {
                Ok((system, end)) => Outcome::Founded { system, end },
                Err(error) => failed(error),
            },
            other => Outcome::Failed(OrderFailure::Error(format!("{other:?} is no order for a primary"))),
        }
    }

    async fn note_start(&self, order: &Order) -> Result<(), String> {
        if matches!(order, Order::RestartInPlace) { self.runs.begin().await } else { Ok(()) }
    }

    async fn kill(&self) -> Outcome {
        match self.process.fence("ordered by the agent".to_owned()).await {
            Ok(Fenced::Gone) => Outcome::Done,
            Ok(Fenced::Doomed { .. }) => Outcome::Doomed,
            Err(error) => Outcome::Failed(OrderFailure::Error(error.to_string())),
        }
    }

    /// The durable upstream, if it is of the promised term.
    async fn upstream(&self) -> Option<NodeId> {
        let durable = self.gate.durable().await;
        durable.upstream.filter(|upstream| upstream.term == durable.promise).map(|upstream| upstream.node)
    }
}

#[cfg(test)]
#[path = "executor_tests.rs"]
pub(crate) mod tests;
