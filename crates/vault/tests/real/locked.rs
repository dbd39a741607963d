//! Buckets that lock what is written: nobody removes it, and what somebody hides or overwrites is read as it was.

use crate::bucket_server::{Attack, Dialect, Fault, Server as Store};
use crate::network::conformance::{conformance, put};
use crate::support::*;
use mainstay_vault::keys::SecretKey;
use mainstay_vault::objects::{Bucket, Committed, Key, ObjectError, Objects, Removal};
use mainstay_vault::postgres::backup::list;
use mainstay_vault::postgres::restore::{Target, plan};
use mainstay_vault::repository::Repository;
use mainstay_vault::retention::{Policy, examine, remove};
use mainstay_vault::verify::verify;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// The store's address with more words.
fn bucket(store: &Store, dir: &Path, words: &str) -> Bucket {
    let address = store.address(dir, "main", 5);
    Bucket::open(format!("{}{words}", address.display()).as_ref()).unwrap()
}

/// The server here tells times of their own.
const APART: Duration = Duration::from_millis(20);

fn locked() -> (tempfile::TempDir, Store) {
    let store = Store::start(Dialect::S3);
    store.lock_bucket(None);
    (tempfile::tempdir().unwrap(), store)
}

fn large(byte: u8) -> Vec<u8> {
    (0..20u32 << 20).map(|n| byte ^ n.to_le_bytes()[1]).collect()
}

#[test]
fn p37_a_locked_bucket_keeps_the_contract_of_a_store_and_all_that_is_written_is_locked() {
    for words in ["&lock=1", "&lock=30&lock_mode=compliance"] {
        let (dir, store) = locked();
        let bucket = bucket(&store, dir.path(), words);
        conformance(&bucket);
        let mut upload = bucket.create(&key("c/large")).unwrap();
        upload.write(&large(7)).unwrap();
        assert_eq!(upload.commit().unwrap(), Committed::Created);
        let mut upload = bucket.create(&key("c/large")).unwrap();
        upload.write(&large(8)).unwrap();
        assert_eq!(upload.commit().unwrap(), Committed::Exists);
        assert!(bucket.read(&key("c/large"), None).unwrap() == large(7));
        assert_eq!(store.unlocked(), Vec::<String>::new());
        assert_eq!(store.unfinished(), 0);
        // A removal hides, and the name can be written again.
        assert_eq!(bucket.delete(&key("c/large")).unwrap(), Removal::Gone);
        assert!(matches!(bucket.size(&key("c/large")), Err(ObjectError::Missing(_))));
        assert_eq!(put(&bucket, "c/large", b"new"), Committed::Created);
        assert_eq!(store.unlocked(), Vec::<String>::new());
    }
}

#[test]
fn a_bucket_that_locks_by_itself_is_written_with_the_sums_that_it_asks_for() {
    let store = Store::start(Dialect::S3);
    store.lock_bucket(Some(1));
    let dir = tempfile::tempdir().unwrap();
    // Not every store bears the sums: they are left out where nothing is to be locked.
    assert!(bucket(&store, dir.path(), "").create(&key("a/one")).is_err());
    let bucket = bucket(&store, dir.path(), "&lock=bucket");
    conformance(&bucket);
    let mut upload = bucket.create(&key("c/large")).unwrap();
    upload.write(&large(7)).unwrap();
    assert_eq!(upload.commit().unwrap(), Committed::Created);
    assert_eq!(store.unlocked(), Vec::<String>::new());
}

#[test]
fn what_a_lock_needs_is_said_where_it_is_missing() {
    // A bucket without object lock.
    let (store, dir) = (Store::start(Dialect::S3), tempfile::tempdir().unwrap());
    let error = bucket(&store, dir.path(), "&lock=30").create(&key("a/one")).err().unwrap();
    assert!(matches!(&error, ObjectError::Refused(says) if says.contains("switch it on")), "{error}");
    let plain = bucket(&store, dir.path(), "");
    put(&plain, "a/one", b"1");
    assert_eq!(plain.unlocked(&key("a/one")).unwrap(), None, "none is asked for");
    // Keys that may write, and may set no retention.
    store.lock_bucket(None);
    let locking = bucket(&store, dir.path(), "&lock=30");
    store.faults([Fault::Status(403, "AccessDenied")]);
    let error = locking.create(&key("a/two")).err().unwrap().to_string();
    assert!(error.contains("retention"), "{error}");
    // Kept from before lock= was there, and after it.
    let says = locking.unlocked(&key("a/one")).unwrap().unwrap();
    assert!(says.contains("a/one carries no lock"), "{says}");
    put(&locking, "a/two", b"2");
    assert_eq!(locking.unlocked(&key("a/two")).unwrap(), None);
    // A store that takes all and locks nothing.
    store.forget_locks();
    put(&locking, "a/three", b"3");
    assert!(locking.unlocked(&key("a/three")).unwrap().is_some());
}

#[test]
fn a_bucket_is_read_as_it_was_whatever_was_hidden_or_overwritten_since() {
    let (dir, store) = locked();
    let bucket = |words: &str| bucket(&store, dir.path(), words);
    let now = bucket("&lock=30");
    let before = moment(APART);
    for number in 0..10u8 {
        put(&now, &format!("a/{number}"), &[number; 100]);
    }
    put(&now, "a/1/below", b"below");
    let mut upload = now.create(&key("b/large")).unwrap();
    upload.write(&large(7)).unwrap();
    upload.commit().unwrap();
    // Removed and written anew, as often as there are pages of three.
    for round in 0..8 {
        put(&now, "c/one", &[round; 3]);
        now.delete(&key("c/one")).unwrap();
    }
    put(&now, "c/one", b"the last");
    now.delete(&key("a/3")).unwrap();
    let then = moment(APART);
    put(&now, "a/later", b"later");
    let names =
        |view: &Bucket| -> Vec<String> { view.list("a/").unwrap().iter().map(|entry| entry.key.to_string()).collect() };
    // `/` comes before every digit, and after the end of a name.
    let expected = ["a/0", "a/1", "a/1/below", "a/2", "a/4", "a/5", "a/6", "a/7", "a/8", "a/9"];
    assert_eq!(names(&bucket(&format!("&as_of={then}"))), expected);
    let attack = store.attack();
    assert!(attack.removed == 9 && attack.refused > 20 && attack.hidden > 5 && attack.overwritten > 5, "{attack:?}");
    assert!(
        matches!(now.size(&key("a/0")), Err(ObjectError::Missing(_)))
            || now.read(&key("a/0"), None).unwrap() == b"gone"
    );

    let view = bucket(&format!("&lock=30&as_of={then}"));
    // Markers can not be locked: who took one away brought an object back that was removed before, and no content is lost by that.
    let mut expected: Vec<&str> = expected.to_vec();
    expected.insert(4, "a/3");
    assert_eq!(names(&view), expected);
    for number in [0u8, 1, 2, 4, 9] {
        let key = key(&format!("a/{number}"));
        assert_eq!(view.read(&key, None).unwrap(), [number; 100]);
        assert_eq!((view.size(&key).unwrap(), view.read(&key, Some(5..7)).unwrap()), (100, vec![number; 2]));
        assert!(view.read(&key, Some(90..101)).is_err(), "longer than it is");
    }
    // One that was in no listing.
    let again = bucket(&format!("&as_of={then}"));
    assert_eq!(again.read(&key("c/one"), None).unwrap(), b"the last");
    assert!(again.read(&key("b/large"), None).unwrap() == large(7));
    for missing in ["a/later", "a/none", "c"] {
        assert!(matches!(again.read(&key(missing), None), Err(ObjectError::Missing(_))), "{missing}");
        assert!(matches!(again.size(&key(missing)), Err(ObjectError::Missing(_))), "{missing}");
    }
    assert_eq!(view.list("").unwrap().len(), expected.len() + 2);
    assert_eq!(bucket(&format!("&as_of={before}")).list("").unwrap(), []);
    let address = store.address(dir.path(), "main", 5);
    let future = Bucket::open(format!("{}&as_of=2999-01-01T00:00:00Z", address.display()).as_ref()).err().unwrap();
    assert!(future.to_string().contains("still to come"), "{future}");
    // Nothing is written through it.
    for error in [view.create(&key("a/new")).err().unwrap(), view.delete(&key("a/0")).unwrap_err()] {
        assert!(matches!(&error, ObjectError::Refused(says) if says.contains("take as_of out")), "{error}");
    }
    assert_eq!(view.unlocked(&key("a/0")).unwrap(), None);
    assert!(view.place().contains(&then), "{}", view.place());
}

#[test]
fn p21_what_was_there_is_never_said_to_be_missing_because_it_could_not_be_asked() {
    let (dir, store) = locked();
    let now = bucket(&store, dir.path(), "&lock=30");
    for number in 0..7 {
        put(&now, &format!("a/{number}"), &[7; 5000]);
    }
    let then = moment(APART);
    store.attack();
    let view = || bucket(&store, dir.path(), &format!("&as_of={then}"));
    for fault in [Fault::Status(503, "SlowDown"), Fault::Between, Fault::Status(404, "NoSuchBucket")] {
        for name in ["a/1", "a/none"] {
            let (fresh, listed) = (view(), view());
            store.faults([]);
            listed.list("a/").unwrap();
            store.faults(std::iter::repeat_n(fault.clone(), 50));
            for error in [fresh.read(&key(name), None).unwrap_err(), fresh.list("a/").unwrap_err()] {
                assert!(matches!(error, ObjectError::Unreachable(_)), "{fault:?}: {error}");
            }
            let error = listed.read(&key(name), None).unwrap_err();
            assert!(matches!(error, ObjectError::Unreachable(_)), "{fault:?}: {error}");
        }
    }
    store.faults([]);
    store.storm(3, &[Fault::Status(503, "SlowDown"), Fault::Cut, Fault::Lost, Fault::Swapped]);
    let listed = view();
    assert_eq!(listed.list("a/").unwrap().len(), 7);
    for number in 0..7 {
        assert_eq!(listed.read(&key(&format!("a/{number}")), Some(1..4000)).unwrap(), [7; 3999]);
    }
    store.storm(1, &[]);
    // Removed for good since it was listed, once the locks had ended: that the store says, and only then.
    store.purge("main/a/2");
    assert!(matches!(listed.read(&key("a/2"), None), Err(ObjectError::Missing(_))));
    store.faults([Fault::Status(404, "NoSuchVersion")]);
    assert!(matches!(listed.read(&key("a/3"), None), Err(ObjectError::Unreachable(_))));
    assert_eq!(listed.read(&key("a/3"), None).unwrap(), [7; 5000]);
    // Keys that may not list versions, and a store that has none.
    store.faults([Fault::Status(403, "AccessDenied")]);
    let error = view().list("a/").unwrap_err().to_string();
    assert!(error.contains("s3:ListBucketVersions"), "{error}");
    let none = Store::start(Dialect::S3);
    let error = bucket(&none, dir.path(), &format!("&as_of={then}")).list("a/").unwrap_err();
    assert!(matches!(&error, ObjectError::Refused(says) if says.contains("lists versions")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_is_restored_as_it_was_before_somebody_with_its_keys_came() {
    let dir = place();
    let (server, store) = (Server::new(dir.path(), "primary").await, Store::start(Dialect::S3));
    store.lock_bucket(None);
    let secret = SecretKey::generate().unwrap();
    let open = |words: &str| {
        let objects: Arc<dyn Objects> = Arc::new(bucket(&store, dir.path(), words));
        Repository::open(objects, Some(secret.clone()))
    };
    Repository::create(Arc::new(bucket(&store, dir.path(), "&lock=30")), &[secret.public()]).unwrap();
    let repository = open("&lock=30").unwrap();
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    // Noise that no compression makes small.
    oracle.run("CREATE TABLE noise AS SELECT gen_random_uuid() AS a, gen_random_uuid() AS b FROM generate_series(1, 300000)").await;
    oracle.write(50).await;
    let labels = two_backups(&repository, &server, &mut archive, &mut oracle).await;
    sweep(&mut archive, &server).await.unwrap();
    let system = server.system().await;
    let whole = moment(APART);
    // As in a store that takes locks and forgets them.
    store.set_locks(None);
    let report = verify(&repository, system).unwrap();
    let unlocked = report.problems.iter().filter(|problem| problem.contains("carries no lock")).count();
    assert_eq!((report.problems.len(), unlocked), (4, 4), "a segment, a pack, the charter and a term: {report:?}");
    store.set_locks(Some(1_000));
    let report = verify(&repository, system).unwrap();
    let ended = |all: &[String]| all.iter().filter(|problem| problem.contains("ended at 1970-")).count();
    assert_eq!(ended(&report.problems), 4, "{report:?}");
    // What opens the repository outlasts the rest: its locks are renewed with each backup.
    repository.relock(system).unwrap();
    let report = verify(&repository, system).unwrap();
    assert_eq!((report.problems.len(), ended(&report.problems)), (2, 2), "{report:?}");
    // A store that goes away in between is told of, and not waited for once for each object.
    let asked = || store.requests.load(std::sync::atomic::Ordering::SeqCst);
    let before = asked();
    repository.relock(system).unwrap();
    let listings = asked() - before - 2;
    let away = std::iter::repeat_n(Fault::Status(503, "SlowDown"), 100);
    store.faults(std::iter::repeat_n(Fault::None, listings).chain(away));
    let before = asked();
    let error = repository.relock(system).unwrap_err().to_string();
    assert!(error.contains("503") && asked() - before == listings + 6, "{error} {}", asked() - before);
    store.faults([]);
    store.set_locks(Some(i64::MAX / 1_000_000));
    // The retention hides the first one.
    let report = verify(&repository, system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 2, "{report:?}");
    let verdict = examine(&repository, system, Policy { count: 1, span: None }, report.good[1].1).unwrap();
    assert_eq!(verdict.removed, [labels[0].clone()].into());
    remove(&repository, system, SIZE, &verdict).unwrap();
    let report = verify(&repository, system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 1, "{report:?}");
    assert_eq!(store.unlocked(), Vec::<String>::new());
    let then = moment(APART);
    assert_eq!(list(&open(&format!("&as_of={then}")).unwrap(), system).unwrap().len(), 1);

    let Attack { refused, hidden, overwritten, .. } = store.attack();
    assert!(refused > 10 && hidden > 5 && overwritten > 5, "{refused} {hidden} {overwritten}");
    let nothing = open("&lock=30").err().unwrap();
    assert!(nothing.is_missing(), "{nothing}");
    // With the markers of the retention, which nobody can lock, the first one came back.
    for (as_of, copy) in [(&whole, "whole"), (&then, "then")] {
        let repository = open(&format!("&lock=30&as_of={as_of}")).unwrap();
        assert_eq!(list(&repository, system).unwrap().len(), 2);
        let report = verify(&repository, system).unwrap();
        assert!(report.problems.is_empty() && report.good.len() == 2 && report.window.is_some(), "{report:?}");
        let made = plan(&repository, system, Target::Latest, None).unwrap();
        let there = ticks_at(&repository, &made, &dir.path().join(copy), false).await;
        assert_eq!(there.len(), 90);
    }
}

#[test]
fn what_a_rule_of_a_container_keeps_is_no_error_of_its_removal_and_is_there_for_a_write() {
    let (store, dir) = (Store::start(Dialect::Azure), tempfile::tempdir().unwrap());
    let bucket = bucket(&store, dir.path(), "");
    put(&bucket, "a/one", b"1");
    for code in ["BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold"] {
        store.faults([Fault::Status(409, code)]);
        assert_eq!(bucket.delete(&key("a/one")).unwrap(), Removal::Kept, "{code}");
        store.faults([Fault::Status(409, code)]);
        assert_eq!(put(&bucket, "a/one", b"2"), Committed::Exists, "{code}");
    }
    assert_eq!(bucket.read(&key("a/one"), None).unwrap(), b"1");
    assert_eq!(bucket.delete(&key("a/one")).unwrap(), Removal::Gone);
}
