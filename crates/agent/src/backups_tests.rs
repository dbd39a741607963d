//! When a backup is given up, and when nothing is removed.

use super::*;
use mainstay_model::Term;

#[test]
fn a_backup_that_gets_nowhere_is_given_up_and_a_slow_one_is_not() {
    let (watch, begun) = (Watch::default(), Instant::now());
    let at = |seconds| begun + Duration::from_secs(seconds);
    let mut pulse = Pulse::new(begun);
    assert_eq!(pulse.hangs(&watch, at(599)), None);
    watch.done.store(1, Ordering::Relaxed);
    assert_eq!(pulse.hangs(&watch, at(600)), None);
    assert_eq!(pulse.hangs(&watch, at(1199)), None);
    assert_eq!(pulse.hangs(&watch, at(1200)), Some(HANGS));
    assert!(hung(HANGS, &watch).starts_with("no progress for 10 minutes: "));
    watch.stopped.store(true, Ordering::Relaxed);
    assert_eq!(pulse.hangs(&watch, at(1200)), None);
    assert_eq!(pulse.hangs(&watch, at(1200) + PATIENCE + Duration::from_secs(1)), None, "it gives up by itself");
    assert_eq!(pulse.hangs(&watch, at(1200) + PATIENCE + HANGS), Some(PATIENCE + HANGS));
}

#[test]
fn a_clock_that_differs_from_the_primarys_tells_no_age() {
    let hour = CLOCK_MS;
    let mut told = Told::default();
    told.hear(Some(5 * hour), 1000);
    assert_eq!(told.off(900 * hour, 2000), None, "said nobody knows when");
    told.hear(Some(10 * hour), 2000);
    told.hear(Some(10 * hour), 9000);
    assert_eq!(told.off(13 * hour, 2000 + 3 * hour), None, "three hours have passed on both");
    assert_eq!(told.off(20 * hour, 2000 + 3 * hour), Some(7 * hour));
    assert_eq!(told.off(hour, 2000), Some(9 * hour));
    told.hear(None, 0);
    assert_eq!(told.off(900 * hour, 0), None, "this node archives by itself");
}

#[test]
fn what_hangs_keeps_others_out_of_its_repository_and_a_drill_other_drills() {
    let name = |text: &str| RepositoryName::new(text).unwrap();
    let (near, far) = (name("near"), name("far"));
    let mut own = Own::default();
    let watch = Arc::new(Watch::default());
    let thread = |name: &RepositoryName, drill| Thread { name: name.clone(), drill, alive: Arc::downgrade(&watch) };
    own.threads.push(thread(&near, false));
    assert!(!own.has_room(&near, false) && !own.has_room(&near, true));
    assert!(own.has_room(&far, false) && own.has_room(&far, true), "a drill in the other one is not in its way");
    own.threads.push(thread(&far, true));
    assert!(!own.has_room(&name("third"), true) && own.has_room(&name("third"), false) && !own.has_room(&far, false));
    drop(watch);
    assert!(own.has_room(&near, true) && own.threads.is_empty());
}

#[test]
fn who_takes_no_orders_says_so_at_once() {
    let wish = BackupWish::default;
    let (orders, queue) = mpsc::channel(1);
    assert!(order(&orders, wish()).is_ok());
    assert!(order(&orders, wish()).unwrap_err().contains("ask again"));
    drop(queue);
    assert!(order(&orders, wish()).unwrap_err().contains("holds no data"));
}

#[test]
fn a_drill_that_was_cut_off_proves_nothing_and_is_due_still() {
    let hour = CLOCK_MS;
    let running = |drill| BackupRunning {
        token: 7,
        node: NodeId::new("db1").unwrap(),
        term: Term(1),
        incremental: false,
        drill,
        to: None,
        by: "the schedule".to_owned(),
        begun_ms: 500_000 * hour,
        total: 0,
        done: 0,
        beat: 0,
    };
    let vault = Vault { drill_at: Some("0 * * * *".to_owned()), ..Vault::default() };
    let mut state = BackupState { last: crate::schedule::tests::made(1), ..BackupState::default() };
    let due = |state: &BackupState| crate::schedule::drill_due(&vault, state, 500_000 * hour + 1);
    assert!(due(&state).is_some());
    cut_off(&mut state, &running(true));
    assert!(state.drill.is_none() && state.failed.is_none() && due(&state).is_some());
    assert_eq!(state.drill_cut.as_ref().map(|cut| cut.token), Some(7));
    give_up(&mut state, &running(true), "no room");
    assert!(state.drill_cut.is_none() && due(&state).is_none());
    assert_eq!(state.drill.as_ref().and_then(|drill| drill.problem.as_deref()), Some("no room"));
    cut_off(&mut state, &running(false));
    assert!(state.failed.is_some() && state.drill_cut.is_none());
}
