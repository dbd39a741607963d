//! Orders that hang: a kill does not wait for them, and nothing else begins before they end.

use super::*;
use async_trait::async_trait;
use mainstay_model::record::{Durable, RecoveryEnd};
use mainstay_model::{CopyId, LogEnd, Lsn, Moment, Position, ServerObservation, SyncSetting, SystemId, Timeline};
use mainstay_ports::engine::{Capabilities, Configured, Deadline, EngineSettings};
use mainstay_ports::process::{Fenced, GuardStatus, ProcessError, StartCommand, StopMode};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

/// Hangs in a call to the operating system, as on a disk that does not answer, until it is let go.
#[derive(Default)]
pub(crate) struct Stuck {
    go: AtomicBool,
    opened: AtomicBool,
    /// How often its slots were to be maintained.
    pub(crate) maintained: AtomicU32,
}

fn never<T>() -> Result<T, EngineError> {
    Err(EngineError::Failed("not in this test".to_owned()))
}

#[async_trait]
impl Engine for Stuck {
    fn capabilities(&self) -> Capabilities {
        Capabilities { elects_itself: false, quorum_commit: true, rewind: true }
    }
    async fn version(&self) -> Result<String, EngineError> {
        never()
    }
    async fn probe(&self) -> ServerObservation {
        ServerObservation::default()
    }
    async fn has_data(&self) -> Option<SystemId> {
        None
    }
    async fn bootstrap(&self, _: CopyId, _: &SyncSetting, _: Deadline) -> Result<(SystemId, RecoveryEnd), EngineError> {
        never()
    }
    async fn start_standby(&self, _: CopyId, _: Option<&NodeId>) -> Result<(), EngineError> {
        never()
    }
    async fn recruit(&self) -> Result<LogEnd, EngineError> {
        while !self.go.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        tokio::task::yield_now().await;
        never()
    }
    async fn log_end(&self) -> Result<LogEnd, EngineError> {
        never()
    }
    async fn follow(&self, _: CopyId, _: &NodeId) -> Result<(), EngineError> {
        never()
    }
    async fn promote(&self, _: &SyncSetting, _: Timeline, _: Position) -> Result<RecoveryEnd, EngineError> {
        never()
    }
    async fn open(&self) -> Result<(), EngineError> {
        self.opened.store(true, Ordering::SeqCst);
        Ok(())
    }
    async fn close(&self) -> Result<(), EngineError> {
        never()
    }
    async fn set_sync(&self, _: &SyncSetting) -> Result<Lsn, EngineError> {
        never()
    }
    async fn checkpoint(&self) -> Result<(), EngineError> {
        never()
    }
    async fn stop_clean(&self, _: &BTreeSet<NodeId>) -> Result<LogEnd, EngineError> {
        never()
    }
    async fn restart_in_place(&self, _: Deadline) -> Result<RecoveryEnd, EngineError> {
        never()
    }
    async fn rewind(&self, _: &NodeId) -> Result<Option<Lost>, EngineError> {
        never()
    }
    async fn clone_from(&self, _: &NodeId, _: CopyId) -> Result<Option<Lost>, EngineError> {
        never()
    }
    async fn stop_standby(&self) -> Result<(), EngineError> {
        never()
    }
    async fn configure(&self, _: &EngineSettings) -> Result<Configured, EngineError> {
        never()
    }
    async fn maintain_slots(&self, _: &[(NodeId, Option<Lsn>)], _: Option<Lsn>) -> Result<(), EngineError> {
        self.maintained.fetch_add(1, Ordering::SeqCst);
        never()
    }
}

struct NoServer(Fenced);

#[async_trait]
impl ServerProcess for NoServer {
    async fn start(&self, _: StartCommand, _: Option<(Term, Moment)>) -> Result<u32, ProcessError> {
        Err(ProcessError::Refused("not in this test".to_owned()))
    }
    async fn extend(&self, _: Term, _: Moment) -> Result<(), ProcessError> {
        Ok(())
    }
    async fn stop(&self, _: StopMode) -> Result<(), ProcessError> {
        Ok(())
    }
    async fn reload(&self) -> Result<(), ProcessError> {
        Ok(())
    }
    async fn fence(&self, _: String) -> Result<Fenced, ProcessError> {
        Ok(self.0.clone())
    }
    async fn status(&self) -> Result<GuardStatus, ProcessError> {
        Ok(GuardStatus::default())
    }
    async fn exited(&self) -> Result<(), ProcessError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_kill_does_not_wait_for_an_order_that_hangs_and_nothing_begins_beside_it() {
    let engine = Arc::new(Stuck::default());
    let process: Arc<dyn ServerProcess> = Arc::new(NoServer(Fenced::Gone));
    let (inputs, mut outcomes) = mpsc::channel(16);
    let hands = Hands {
        engine: Arc::clone(&engine) as Arc<dyn Engine>,
        process: Arc::clone(&process),
        gate: Gate::new("/nowhere".into(), Some(Durable::default())),
        deadlines: Deadlines::start(process),
        runs: RunNotes::new(Arc::new(mainstay_store::memory::MemoryStore::new())),
        inputs,
        order_begins: Arc::default(),
    };
    let mut executor = Executor::new(hands);
    executor.begin(OrderId(1), Term(1), Order::Recruit);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    executor.begin(OrderId(2), Term(1), Order::Kill);
    assert_eq!(outcomes.recv().await, Some(Input::Ordered(OrderId(1), Outcome::Failed(OrderFailure::Aborted))));
    assert_eq!(outcomes.recv().await, Some(Input::Ordered(OrderId(2), Outcome::Done)));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    executor.begin(OrderId(3), Term(1), Order::Open);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!engine.opened.load(Ordering::SeqCst), "an order began beside one that hangs");
    engine.go.store(true, Ordering::SeqCst);
    assert_eq!(outcomes.recv().await, Some(Input::Ordered(OrderId(3), Outcome::Done)));
    assert!(engine.opened.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_kill_says_whether_the_processes_are_gone_or_only_doomed() {
    for (fenced, expected) in [(Fenced::Gone, Outcome::Done), (Fenced::Doomed { processes: vec![7] }, Outcome::Doomed)]
    {
        let process: Arc<dyn ServerProcess> = Arc::new(NoServer(fenced));
        let (inputs, mut outcomes) = mpsc::channel(16);
        let mut executor = Executor::new(Hands {
            engine: Arc::new(Stuck::default()),
            process: Arc::clone(&process),
            gate: Gate::new("/nowhere".into(), Some(Durable::default())),
            deadlines: Deadlines::start(process),
            runs: RunNotes::new(Arc::new(mainstay_store::memory::MemoryStore::new())),
            inputs,
            order_begins: Arc::default(),
        });
        executor.begin(OrderId(1), Term(1), Order::Kill);
        assert_eq!(outcomes.recv().await, Some(Input::Ordered(OrderId(1), expected)));
    }
}

#[tokio::test]
async fn no_primary_is_started_in_place_that_the_store_does_not_know_of() {
    let process: Arc<dyn ServerProcess> = Arc::new(NoServer(Fenced::Gone));
    let (inputs, mut outcomes) = mpsc::channel(16);
    let mut executor = Executor::new(Hands {
        engine: Arc::new(Stuck::default()),
        process: Arc::clone(&process),
        gate: Gate::new("/nowhere".into(), Some(Durable::default())),
        deadlines: Deadlines::start(process),
        runs: crate::runs::tests::crowded(0, true),
        inputs,
        order_begins: Arc::default(),
    });
    executor.begin(OrderId(1), Term(0), Order::RestartInPlace);
    let outcome = outcomes.recv().await;
    let Some(Input::Ordered(OrderId(1), Outcome::Failed(OrderFailure::NotYet(why)))) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(why.contains("did not confirm"), "{why}");
}
