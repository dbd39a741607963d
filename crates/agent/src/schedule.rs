//! Begins backups when the specification says so: once in the cluster, by its open primary, on a replica if one streams.
//!
//! What was missed while nobody could make one is made up for as soon as there is a primary again; the clock decides only when, never who.

use crate::api::AgentQuestion;
use crate::backups::{self, Order, parse};
use crate::generations::Generations;
use crate::mind_loop::{self, Question};
use crate::shelves::{self, Shelf};
use mainstay_model::cron::Cron;
use mainstay_model::spec::Vault;
use mainstay_model::vault::{BACKUP_KEY, BackupMade, BackupRunning, BackupState, BackupWish, BackupsOf};
use mainstay_model::{NodeId, RepositoryName, ServerObservation};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::peer::{Channel, Peers};
use mainstay_ports::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

const LOOK: Duration = Duration::from_secs(10);
/// After an attempt, whatever became of it.
const AGAIN: Duration = Duration::from_secs(600);
/// How long after a drill that nobody took up.
const REFUSED: Duration = Duration::from_secs(60);
/// How long after a drill that its agent did not survive: perhaps it was the reason. Milliseconds.
const CUT_MS: u64 = 3_600_000;
const BY: &str = "the schedule";
/// Longer than the asked agent takes to answer for sure: one that began must not be taken for one that did not.
const TIMEOUT: Duration = backups::BEGIN.saturating_add(Duration::from_secs(3));
const MINUTE_MS: u64 = 60_000;
/// What began later than now by more than this was dated by a clock that was wrong. Milliseconds.
const AHEAD_MS: u64 = 60 * MINUTE_MS;

/// Begins backups.
pub struct Schedule {
    /// This node.
    pub me: NodeId,
    /// What the operator wants.
    pub generations: Arc<Generations>,
    /// The last probe.
    pub observed: watch::Receiver<ServerObservation>,
    /// Questions to the loop.
    pub questions: mpsc::Sender<Question>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The other agents.
    pub peers: Arc<dyn Peers>,
    /// Orders to this node.
    pub orders: mpsc::Sender<Order>,
}

/// When the last backup of this kind should have begun, milliseconds since 1970.
fn wanted(text: Option<&str>, now_ms: u64) -> Option<u64> {
    let cron = Cron::parse(text?).ok()?;
    Some(cron.last_before(now_ms / MINUTE_MS)? * MINUTE_MS)
}

/// What should have begun and has not: whether it is an incremental one, and since when, milliseconds since 1970. A full one comes first.
#[must_use]
pub fn due(vault: &Vault, state: &BackupsOf, system_now_ms: u64) -> Option<(bool, u64)> {
    // One that is dated far ahead would hold up all others until then.
    let latest = system_now_ms.saturating_add(AHEAD_MS);
    let begun =
        |made: &Option<BackupMade>| made.as_ref().map(|made| made.begun_ms).filter(|at| *at <= latest).unwrap_or(0);
    let full = wanted(vault.full_at.as_deref(), system_now_ms).filter(|at| begun(&state.last_full) < *at);
    let any = wanted(vault.incremental_at.as_deref(), system_now_ms).filter(|at| begun(&state.last) < *at);
    full.map(|at| (false, at)).or_else(|| any.map(|at| (true, at)))
}

/// Since when a restore drill is due, milliseconds since 1970. Without a backup there is nothing to try.
#[must_use]
pub fn drill_due(vault: &Vault, state: &BackupState, system_now_ms: u64) -> Option<u64> {
    state.last.as_ref()?;
    let latest = system_now_ms.saturating_add(AHEAD_MS);
    let begun = state.drill.as_ref().map(|drill| drill.begun_ms).filter(|at| *at <= latest).unwrap_or(0);
    wanted(vault.drill_at.as_deref(), system_now_ms).filter(|at| begun < *at)
}

/// Was one of the schedule's cut off a short while ago? The agent that asks may be the one that ended.
fn cut(state: &BackupState, system_now_ms: u64) -> bool {
    state.drill_cut.as_ref().is_some_and(|cut| cut.by == BY && cut.ended_ms.abs_diff(system_now_ms) < CUT_MS)
}

/// The last attempt.
struct Tried {
    /// When it was seen to go on last.
    at: Instant,
    /// For what.
    due: (bool, u64),
    /// The newest backup of its kind before.
    newest: Option<u64>,
    /// So many attempts came to nothing before it.
    before: usize,
}

impl Tried {
    /// One that succeeded and is dated by a host whose clock is wrong is not made again and again.
    fn again(&self, due: (bool, u64), state: &BackupsOf) -> bool {
        let served = self.due == due && newest(state, due.0) != self.newest;
        self.at.elapsed() >= AGAIN && !served
    }
}

fn newest(state: &BackupsOf, incremental: bool) -> Option<u64> {
    let made = if incremental { &state.last } else { &state.last_full };
    made.as_ref().map(|made| made.token)
}

/// Of the repositories in which one is due and was not tried a short while ago the one that was tried longest ago, first the first; what is due; and
/// how backups stand there. One that always fails, and slowly, must not come before the others each time.
fn next<'a>(
    shelves: &'a [Shelf],
    state: &BackupState,
    tried: &BTreeMap<RepositoryName, Tried>,
    system_now_ms: u64,
) -> Option<(&'a Shelf, (bool, u64), BackupsOf)> {
    let ready = shelves.iter().filter_map(|shelf| {
        let of = shelf.backups(state);
        let due = due(&shelf.vault, &of, system_now_ms)?;
        let waits = tried.get(&shelf.name).is_some_and(|tried| !tried.again(due, &of));
        (!waits).then_some((shelf, due, of))
    });
    ready.min_by_key(|(shelf, ..)| tried.get(&shelf.name).map(|tried| tried.at))
}

/// An attempt lasts as long as what came of it runs: the pause comes after it, or there would be none after a long one, and never time for a drill.
fn lasts(tried: &mut BTreeMap<RepositoryName, Tried>, shelves: &[Shelf], running: &BackupRunning) {
    let here = |shelf: &&Shelf| !running.drill && running.to == shelf.filed();
    let name = shelves.iter().find(here).map(|shelf| &shelf.name);
    if let Some(tried) = name.and_then(|name| tried.get_mut(name)) {
        tried.at = Instant::now();
    }
}

impl Schedule {
    /// Runs for ever. Each repository has attempts of its own: one that is away costs no other its backup.
    pub async fn keep(self) {
        let mut tried: BTreeMap<RepositoryName, Tried> = BTreeMap::new();
        // When the last one was asked for, and how long no other is.
        let mut drilled: Option<(Instant, Duration)> = None;
        loop {
            sleep(LOOK).await;
            let vault = self.generations.now().spec.vault.clone();
            let shelves = shelves::all(&vault, &*self.store);
            let state = parse(self.store.watch(BACKUP_KEY).borrow().as_ref());
            tried.retain(|name, _| shelves.iter().any(|shelf| shelf.name == *name));
            if let Some(running) = &state.running {
                lasts(&mut tried, &shelves, running);
            }
            if state.running.is_some() || shelves.is_empty() {
                continue;
            }
            let Some((shelf, due, of)) = next(&shelves, &state, &tried, wall_now_ms()) else {
                let waits = drilled.is_some_and(|(at, pause)| at.elapsed() < pause) || cut(&state, wall_now_ms());
                if drill_due(&vault, &state, wall_now_ms()).is_some() && !waits {
                    drilled = self.begin_drill().await.map(|pause| (Instant::now(), pause)).or(drilled);
                }
                continue;
            };
            let Some(confirming) = self.reigns().await else { continue };
            let newest = newest(&of, due.0);
            let last = tried.remove(&shelf.name).filter(|tried| tried.newest == newest);
            let before = last.map_or(0, |tried| tried.before.saturating_add(1));
            tried.insert(shelf.name.clone(), Tried { at: Instant::now(), due, newest, before });
            let repository = shelf.called();
            let wish = BackupWish { incremental: due.0, drill: false, repository, by: BY.to_owned() };
            self.begin(&wish, &confirming, before).await;
        }
    }

    /// After how long the next may be asked for, if it was this node's to ask: it is the open primary. What nobody took up cost nothing.
    async fn begin_drill(&self) -> Option<Duration> {
        let confirming = self.reigns().await?;
        let wish = BackupWish { drill: true, by: BY.to_owned(), ..BackupWish::default() };
        Some(if self.begin(&wish, &confirming, 0).await { AGAIN } else { REFUSED })
    }

    /// Who confirms commits, if this node is the open primary.
    async fn reigns(&self) -> Option<BTreeSet<NodeId>> {
        let summary = mind_loop::ask(&self.questions, mind_loop::ANSWER).await?.summary;
        summary.reigns()?;
        let confirming = summary.setting.map(|setting| setting.copies.into_keys().collect()).unwrap_or_default();
        Some(confirming)
    }

    /// On a replica that streams, one that no commit waits for if there is one; on this node if none takes it up. One that took it up
    /// before, and failed, comes last. Tells whether somebody took it up.
    async fn begin(&self, wish: &BackupWish, confirming: &BTreeSet<NodeId>, before: usize) -> bool {
        let replicas: Vec<NodeId> = {
            let seen = self.observed.borrow();
            seen.walsenders.iter().filter(|sender| sender.streaming).map(|sender| sender.node.clone()).collect()
        };
        let Ok(body) = serde_json::to_vec(&AgentQuestion::Backup(wish.clone())) else { return false };
        for node in in_turn(replicas, &self.me, confirming, before) {
            if node == self.me {
                if self.begin_here(wish).await {
                    return true;
                }
                continue;
            }
            match self.peers.request(&node, Channel::Ask, body.clone(), TIMEOUT).await {
                Ok(_) => {
                    info!(%node, incremental = wish.incremental, drill = wish.drill, "what was due has begun");
                    return true;
                }
                Err(error) => {
                    warn!(%node, %error, drill = wish.drill, "a backup or drill is due, and this replica does not begin it");
                }
            }
        }
        false
    }

    async fn begin_here(&self, wish: &BackupWish) -> bool {
        let answer = match backups::order(&self.orders, wish.clone()) {
            Ok(answer) => answer.await.unwrap_or_else(|_| Err("this agent ends".to_owned())),
            Err(why) => Err(why),
        };
        match &answer {
            Ok(_) => info!(incremental = wish.incremental, "a backup was due and has begun here"),
            Err(why) => warn!(%why, "a backup is due and can not begin here"),
        }
        answer.is_ok()
    }
}

/// Replicas first, those that confirm commits after the others, and this node last; whoever had its turn in an attempt that came to nothing
/// goes to the end.
fn in_turn(mut replicas: Vec<NodeId>, me: &NodeId, confirming: &BTreeSet<NodeId>, before: usize) -> Vec<NodeId> {
    replicas.sort_unstable_by_key(|node| (confirming.contains(node), node.clone()));
    replicas.push(me.clone());
    let turn = before % replicas.len();
    replicas.rotate_left(turn);
    replicas
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use mainstay_model::vault::ArchiveState;
    use mainstay_model::{Position, SystemId};

    pub(crate) fn made(begun_ms: u64) -> Option<BackupMade> {
        Some(BackupMade {
            token: 1,
            label: "a".to_owned(),
            system: SystemId(1),
            repository: "r".to_owned(),
            to: None,
            node: NodeId::new("db1").unwrap(),
            incremental: false,
            start: Position::default(),
            stop: Position::default(),
            begun_ms,
            ended_ms: begun_ms,
            bytes: 0,
            stored: 0,
            corrupt: 0,
            removed: Vec::new(),
            remark: None,
        })
    }

    #[test]
    fn what_was_missed_is_due_and_a_full_one_comes_first() {
        // 2026-11-27 09:30.
        let now = 29_929_530 * MINUTE_MS;
        let hours = |count: u64| now - count * 60 * MINUTE_MS;
        let mut vault = Vault::default();
        let none = BackupsOf::default();
        assert_eq!(due(&vault, &none, now), None, "no schedule");
        vault.incremental_at = Some("0 2 * * *".to_owned());
        assert_eq!(due(&vault, &none, now), Some((true, hours(7) - 30 * MINUTE_MS)));
        vault.full_at = Some("0 2 * * 0".to_owned());
        assert_eq!(due(&vault, &none, now).map(|due| due.0), Some(false));
        let since = |full, last| BackupsOf { last_full: made(full), last: made(last), ..BackupsOf::default() };
        assert_eq!(due(&vault, &since(hours(100), hours(7)), now), None);
        assert_eq!(due(&vault, &since(hours(100), hours(8)), now).map(|due| due.0), Some(true));
        assert_eq!(due(&vault, &since(hours(200), hours(7)), now).map(|due| due.0), Some(false));
        let ahead = |minutes| now + minutes * MINUTE_MS;
        assert_eq!(due(&vault, &since(hours(100), ahead(60)), now), None, "a clock may be a little off");
        assert_eq!(due(&vault, &since(hours(100), ahead(61)), now).map(|due| due.0), Some(true));
        assert_eq!(due(&vault, &since(ahead(61), hours(7)), now).map(|due| due.0), Some(false));
        let tried = Tried { at: Instant::now() - AGAIN, due: (false, 7), newest: None, before: 0 };
        assert!(tried.again((false, 7), &none), "it failed");
        assert!(!tried.again((false, 7), &since(ahead(61), ahead(61))), "it is there, however it is dated");
        assert!(tried.again((false, 8), &since(ahead(61), ahead(61))));
    }

    #[test]
    fn a_drill_is_due_once_there_is_a_backup_to_try() {
        // 2026-11-27 09:30.
        let now = 29_929_530 * MINUTE_MS;
        let mut vault = Vault { drill_at: Some("0 4 * * *".to_owned()), ..Vault::default() };
        let mut state = BackupState::default();
        assert_eq!(drill_due(&vault, &state, now), None, "nothing to try");
        state.last = made(now);
        let four = now - 330 * MINUTE_MS;
        assert_eq!(drill_due(&vault, &state, now), Some(four));
        let held = |begun_ms| Some(mainstay_model::vault::DrillDone { begun_ms, ..Default::default() });
        state.drill = held(four);
        assert_eq!(drill_due(&vault, &state, now), None);
        state.drill = held(four - 1);
        assert_eq!(drill_due(&vault, &state, now), Some(four));
        state.drill = held(now + 61 * MINUTE_MS);
        assert_eq!(drill_due(&vault, &state, now), Some(four), "dated by a clock that was wrong");
        let ended =
            |by: &str| mainstay_model::vault::DrillDone { by: by.to_owned(), ended_ms: now, ..Default::default() };
        state.drill_cut = Some(ended(BY));
        assert!(cut(&state, now + CUT_MS - 1) && !cut(&state, now + CUT_MS));
        state.drill_cut = Some(ended("ann"));
        assert!(!cut(&state, now));
        vault.drill_at = None;
        assert_eq!(drill_due(&vault, &state, now), None);
    }

    fn name(text: &str) -> RepositoryName {
        RepositoryName::new(text).unwrap()
    }

    fn shelf(called: &str) -> Shelf {
        let vault = Vault { full_at: Some("0 2 * * *".to_owned()), repository: called.into(), ..Vault::default() };
        let told = ArchiveState { repository: called.to_owned(), id: called.to_owned(), ..ArchiveState::default() };
        Shelf { name: name(called), vault, optional: false, alone: false, told: Some(told) }
    }

    fn named(found: Option<(&Shelf, (bool, u64), BackupsOf)>) -> Option<String> {
        found.map(|(shelf, ..)| shelf.name.to_string())
    }

    #[test]
    fn one_that_fails_slowly_starves_neither_the_others_nor_drills() {
        // 2026-11-27 09:30.
        let now = 29_929_530 * MINUTE_MS;
        let (all, state) = ([shelf("near"), shelf("far")], BackupState::default());
        let due = (false, now);
        let ago = |minutes: u64| {
            let at = Instant::now() - Duration::from_secs(60 * minutes);
            Tried { at, due, newest: None, before: 0 }
        };
        let mut tried = BTreeMap::from([(name("near"), ago(20))]);
        assert_eq!(named(next(&all, &state, &tried, now)).as_deref(), Some("far"), "never tried");
        tried.insert(name("far"), ago(15));
        assert_eq!(named(next(&all, &state, &tried, now)).as_deref(), Some("near"), "tried longer ago");
        tried.insert(name("near"), ago(11));
        assert_eq!(named(next(&all, &state, &tried, now)).as_deref(), Some("far"));
        // It still runs: its pause has not begun. A drill is no attempt.
        let running = |called: &str, drill| BackupRunning {
            token: 7,
            node: NodeId::new("db1").unwrap(),
            term: mainstay_model::Term(1),
            incremental: false,
            drill,
            to: Some(name(called)),
            by: BY.to_owned(),
            begun_ms: now,
            total: 0,
            done: 0,
            beat: 0,
        };
        lasts(&mut tried, &all, &running("far", true));
        assert_eq!(named(next(&all, &state, &tried, now)).as_deref(), Some("far"));
        lasts(&mut tried, &all, &running("far", false));
        assert_eq!(named(next(&all, &state, &tried, now)).as_deref(), Some("near"));
        lasts(&mut tried, &all, &running("near", false));
        assert_eq!(named(next(&all, &state, &tried, now)), None, "time for a drill");
    }

    #[test]
    fn a_repository_in_which_nothing_can_be_made_costs_no_other_its_backup() {
        // 2026-11-27 09:30.
        let now = 29_929_530 * MINUTE_MS;
        let (all, mut tried) = ([shelf("near"), shelf("far")], BTreeMap::new());
        let mut state = BackupState::default();
        assert_eq!(named(next(&all, &state, &tried, now)).as_deref(), Some("near"));
        let due = next(&all, &state, &tried, now).unwrap().1;
        tried.insert(name("near"), Tried { at: Instant::now(), due, newest: None, before: 0 });
        assert_eq!(named(next(&all, &state, &tried, now)).as_deref(), Some("far"));
        state.note(&name("far"), |of| {
            of.last_full = made(now).map(|made| BackupMade { repository: "far".to_owned(), ..made });
            of.last = of.last_full.clone();
        });
        assert_eq!(named(next(&all, &state, &tried, now)), None);
        tried.clear();
        assert_eq!(named(next(&all, &state, &tried, now)).as_deref(), Some("near"), "far's is none of near's");
    }

    #[test]
    fn a_replica_that_failed_gives_others_their_turn() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let none = BTreeSet::new();
        let all = |before| in_turn(vec![node("db3"), node("db1")], &node("db2"), &none, before);
        assert_eq!(all(0), [node("db1"), node("db3"), node("db2")]);
        assert_eq!(all(1), [node("db3"), node("db2"), node("db1")]);
        assert_eq!(all(3), all(0));
        assert_eq!(in_turn(Vec::new(), &node("db2"), &none, 5), [node("db2")]);
        let confirming = BTreeSet::from([node("db1")]);
        let first = in_turn(vec![node("db3"), node("db1")], &node("db2"), &confirming, 0);
        assert_eq!(first, [node("db3"), node("db1"), node("db2")], "no commit waits for db3");
    }
}
