//! When a backup is given up, and when nothing is removed.

use super::*;

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
fn who_takes_no_orders_says_so_at_once() {
    let wish = BackupWish::default;
    let (orders, queue) = mpsc::channel(1);
    assert!(order(&orders, wish()).is_ok());
    assert!(order(&orders, wish()).unwrap_err().contains("ask again"));
    drop(queue);
    assert!(order(&orders, wish()).unwrap_err().contains("holds no data"));
}
