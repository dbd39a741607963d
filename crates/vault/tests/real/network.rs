//! A bucket as a store, over real connections to a server that fails on demand.

#[path = "../../src/objects/conformance.rs"]
pub(crate) mod conformance;

use crate::bucket_server::{Dialect, Fault, Server, TOKEN};
use conformance::{conformance, put};
use mainstay_vault::objects::{Bucket, Committed, Key, ObjectError, Objects};
use mainstay_vault::repository::Repository;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Place {
    dir: tempfile::TempDir,
    server: Server,
}

fn place(dialect: Dialect) -> Place {
    Place { dir: tempfile::tempdir().unwrap(), server: Server::start(dialect) }
}

impl Place {
    fn bucket(&self) -> Bucket {
        Bucket::open(&self.server.address(self.dir.path(), "orders", 5)).unwrap()
    }
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// Names with something left of what was not committed: Azure removes that by itself, after a week.
fn left(dialect: Dialect) -> usize {
    if dialect == Dialect::S3 { 0 } else { 1 }
}

/// Times that a request is made before it is given up.
const TRIES: usize = 6;

/// Each of these for each dialect.
macro_rules! each {
    ($($name:ident),* $(,)?) => {
        mod s3 {
            $(#[test] fn $name() { super::$name(super::Dialect::S3); })*
        }
        mod azure {
            $(#[test] fn $name() { super::$name(super::Dialect::Azure); })*
        }
    };
}

each! {
    p37_a_bucket_never_overwrites_and_shows_whole_objects_only,
    p37_a_store_that_keeps_no_condition_is_noticed_and_looked_at_before_each_write,
    p37_a_store_that_joins_parts_whatever_the_condition_says_replaces_nothing,
    what_an_object_says_is_no_answer_of_the_store,
    p37_a_large_object_is_written_in_parts_and_appears_when_they_are_joined,
    p16_a_write_whose_answer_was_lost_is_ours_and_another_s_is_not,
    p21_what_could_not_be_reached_is_never_said_to_be_missing,
    p12_answers_that_are_cut_off_swapped_or_slow_are_asked_again,
    every_try_is_bounded_and_a_refusal_is_not_tried_again,
    p12_a_repository_in_a_bucket_is_whole_behind_a_bad_network_and_damage_in_it_is_found,
}

fn p37_a_bucket_never_overwrites_and_shows_whole_objects_only(dialect: Dialect) {
    let place = place(dialect);
    conformance(&place.bucket());
    assert_eq!(place.server.unfinished(), 0);
}

fn p37_a_store_that_keeps_no_condition_is_noticed_and_looked_at_before_each_write(dialect: Dialect) {
    let place = place(dialect);
    place.server.ignore_conditions();
    conformance(&place.bucket());
}

fn p37_a_store_that_joins_parts_whatever_the_condition_says_replaces_nothing(dialect: Dialect) {
    let place = place(dialect);
    place.server.join_blindly();
    let bucket = place.bucket();
    let begin = |byte: u8| {
        let mut upload = bucket.create(&key("a/large")).unwrap();
        upload.write(&vec![byte; 9 << 20]).unwrap();
        upload
    };
    let (first, second) = (begin(1), begin(2));
    // Azure knows them by the name for which they are meant.
    assert_eq!(place.server.unfinished(), if dialect == Dialect::S3 { 2 } else { 1 });
    assert_eq!(first.commit().unwrap(), Committed::Created);
    for later in [second, begin(3)] {
        assert_eq!(later.commit().unwrap(), Committed::Exists);
    }
    assert!(bucket.read(&key("a/large"), None).unwrap().iter().all(|byte| *byte == 1));
    assert_eq!(place.server.unfinished(), left(dialect));
}

fn what_an_object_says_is_no_answer_of_the_store(dialect: Dialect) {
    let place = place(dialect);
    let bucket = place.bucket();
    let content = b"<Error><Code>SlowDown</Code></Error>";
    put(&bucket, "a/one", content);
    let before = place.server.requests.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(bucket.read(&key("a/one"), None).unwrap(), content);
    assert_eq!(place.server.requests.load(std::sync::atomic::Ordering::SeqCst) - before, 1);
}

fn p37_a_large_object_is_written_in_parts_and_appears_when_they_are_joined(dialect: Dialect) {
    let place = place(dialect);
    let bucket = place.bucket();
    let content: Vec<u8> = (0..20u32 << 18).flat_map(|n| (n / 3).to_le_bytes()).collect();
    let mut upload = bucket.create(&key("a/large")).unwrap();
    for part in content.chunks(3_000_000) {
        upload.write(part).unwrap();
    }
    assert!(bucket.list("a/").unwrap().is_empty() && place.server.unfinished() == 1);
    // The last part, looks whether it is there (S3 tells no reason to the first), then joined, and the answer is lost: what is there is ours.
    place.server.faults_after(if dialect == Dialect::S3 { 3 } else { 2 }, Fault::AnswerLost);
    assert_eq!(upload.commit().unwrap(), Committed::Created);
    assert_eq!(bucket.read(&key("a/large"), None).unwrap(), content);
    assert_eq!(bucket.size(&key("a/large")).unwrap(), content.len() as u64);
    assert_eq!(bucket.read(&key("a/large"), Some(9_000_000..9_000_100)).unwrap(), content[9_000_000..9_000_100]);
    let mut second = bucket.create(&key("a/large")).unwrap();
    second.write(&content).unwrap();
    assert_eq!(second.commit().unwrap(), Committed::Exists);
    let before = place.server.unfinished();
    let mut given_up = bucket.create(&key("a/other")).unwrap();
    given_up.write(&content).unwrap();
    drop(given_up);
    assert_eq!((before, place.server.unfinished() - before), (left(dialect), left(dialect)));
    assert_eq!(bucket.list("a/").unwrap().len(), 1);
}

fn p16_a_write_whose_answer_was_lost_is_ours_and_another_s_is_not(dialect: Dialect) {
    let place = place(dialect);
    let bucket = place.bucket();
    let mut upload = bucket.create(&key("a/one")).unwrap();
    upload.write(b"ours").unwrap();
    place.server.faults([Fault::AnswerLost]);
    assert_eq!(upload.commit().unwrap(), Committed::Created);
    let mut upload = bucket.create(&key("a/one")).unwrap();
    upload.write(b"other").unwrap();
    place.server.faults([Fault::Lost]);
    assert_eq!(upload.commit().unwrap(), Committed::Exists, "made again, and it was there before");
    assert_eq!(bucket.read(&key("a/one"), None).unwrap(), b"ours");
}

fn p21_what_could_not_be_reached_is_never_said_to_be_missing(dialect: Dialect) {
    let place = place(dialect);
    let bucket = place.bucket();
    put(&bucket, "a/one", b"content");
    let all = |fault: Fault| std::iter::repeat_n(fault, 3 * TRIES);
    for fault in [
        Fault::Status(503, "SlowDown"),
        Fault::Status(429, "TooManyRequests"),
        Fault::Lost,
        Fault::Between,
        Fault::Status(404, "NoSuchBucket"),
    ] {
        place.server.faults(all(fault.clone()));
        for (of, error) in [
            ("read", bucket.read(&key("a/one"), None).unwrap_err()),
            ("missing", bucket.read(&key("a/none"), None).unwrap_err()),
        ] {
            assert!(matches!(error, ObjectError::Unreachable(_)), "{fault:?} {of}: {error}");
            place.server.faults(all(fault.clone()));
        }
        let error = bucket.size(&key("a/none")).unwrap_err();
        assert!(matches!(error, ObjectError::Unreachable(_)), "{fault:?} size: {error}");
        place.server.faults(all(fault.clone()));
        let error = bucket.list("a/").unwrap_err();
        assert!(matches!(error, ObjectError::Unreachable(_)), "{fault:?} list: {error}");
    }
    place.server.faults([]);
    for error in [bucket.read(&key("a/none"), None).unwrap_err(), bucket.size(&key("a/none")).unwrap_err()] {
        assert!(matches!(error, ObjectError::Missing(_)), "{error}");
    }
    // One of something in between is no answer of the store, and the store itself is asked.
    place.server.faults([Fault::Between]);
    assert!(matches!(bucket.read(&key("a/one"), None).unwrap_err(), ObjectError::Unreachable(_)));
    // A port where nobody speaks: held, so that nobody else gets it meanwhile, and each connection is closed at once.
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = held.local_addr().unwrap().port();
    std::thread::spawn(move || held.incoming().for_each(drop));
    let address = place.server.address(place.dir.path(), "orders", 2).display().to_string();
    let address = address.replace(&format!(":{}&", place.server.port), &format!(":{silent}&"));
    assert!(address.contains(&silent.to_string()), "{address}");
    let error = Bucket::open(address.as_ref()).unwrap().read(&key("a/one"), None).unwrap_err();
    assert!(matches!(error, ObjectError::Unreachable(_)), "{error}");
}

fn p12_answers_that_are_cut_off_swapped_or_slow_are_asked_again(dialect: Dialect) {
    let place = place(dialect);
    let bucket = place.bucket();
    let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    put(&bucket, "a/one", &content);
    for number in 0..7 {
        put(&bucket, &format!("b/{number}"), b"x");
    }
    for faults in
        [vec![Fault::Cut, Fault::Cut], vec![Fault::Swapped], vec![Fault::Lost, Fault::Status(500, "InternalError")]]
    {
        place.server.faults(faults.clone());
        assert_eq!(bucket.read(&key("a/one"), Some(1000..300_000)).unwrap(), content[1000..300_000], "{faults:?}");
        place.server.faults(faults.clone());
        assert_eq!(bucket.list("b/").unwrap().len(), 7, "{faults:?}");
        if !faults.contains(&Fault::Swapped) {
            place.server.faults(faults);
            assert_eq!(bucket.read(&key("a/one"), None).unwrap(), content);
        }
    }
    // Slower than the time that a request has: asked again.
    let began = Instant::now();
    let hasty = Bucket::open(&place.server.address(place.dir.path(), "orders", 1)).unwrap();
    place.server.faults([Fault::Slow(Duration::from_secs(4))]);
    assert_eq!(hasty.read(&key("b/1"), None).unwrap(), b"x");
    assert!(began.elapsed() >= Duration::from_secs(1));
}

fn every_try_is_bounded_and_a_refusal_is_not_tried_again(dialect: Dialect) {
    let place = place(dialect);
    let bucket = place.bucket();
    put(&bucket, "a/one", b"1");
    let asked = |faults: Vec<Fault>| {
        let before = place.server.requests.load(std::sync::atomic::Ordering::SeqCst);
        place.server.faults(faults);
        let error = bucket.read(&key("a/one"), None).unwrap_err();
        place.server.faults([]);
        (place.server.requests.load(std::sync::atomic::Ordering::SeqCst) - before, error)
    };
    let (count, error) = asked(vec![Fault::Status(503, "SlowDown"); 50]);
    assert_eq!(count, TRIES, "{error}");
    let (count, error) = asked(vec![Fault::Status(403, "AccessDenied"); 50]);
    assert!(count == 1 && matches!(error, ObjectError::Refused(_)), "{count} {error}");
    let (_, error) = asked(vec![Fault::Status(403, "RequestTimeTooSkewed")]);
    assert!(error.to_string().contains("clock"), "{error}");
    if dialect == Dialect::S3 {
        let (_, error) = asked(vec![Fault::Status(301, "PermanentRedirect")]);
        assert!(error.to_string().contains("region"), "{error}");
    }
    place.server.room(Some(100));
    let mut upload = bucket.create(&key("a/big")).unwrap();
    upload.write(&[0; 1000]).unwrap();
    let error = upload.commit().unwrap_err();
    assert!(matches!(error, ObjectError::Full(_)), "{error}");
    assert!(!error.to_string().contains("secret"));
}

fn p12_a_repository_in_a_bucket_is_whole_behind_a_bad_network_and_damage_in_it_is_found(dialect: Dialect) {
    let place = place(dialect);
    let secret = mainstay_vault::keys::SecretKey::generate().unwrap();
    let store: Arc<dyn Objects> = Arc::new(place.bucket());
    place.server.storm(
        4,
        &[
            Fault::Status(503, "SlowDown"),
            Fault::Cut,
            Fault::AnswerLost,
            Fault::Lost,
            Fault::Status(500, "InternalError"),
        ],
    );
    let repository = Repository::create(store.clone(), &[secret.public()]).unwrap();
    assert!(repository.encrypted());
    for number in 0..20 {
        assert_eq!(put(&*store, &format!("log/{number}"), &[number; 5000]), Committed::Created, "{number}");
    }
    for number in 0..20 {
        assert_eq!(store.read(&key(&format!("log/{number}")), None).unwrap(), [number; 5000]);
    }
    assert_eq!(store.list("log/").unwrap().len(), 20);
    place.server.storm(1, &[]);
    place.server.tamper("orders/vault.json", |bytes| bytes.truncate(20));
    let error = Repository::open(store, Some(secret)).err().unwrap().to_string();
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn a_container_is_used_with_a_token_or_a_key_and_wrong_ones_are_told() {
    let place = place(Dialect::Azure);
    let address = place.server.address(place.dir.path(), "orders", 5);
    let keys = place.dir.path().join("keys");
    let with = |text: &str| {
        std::fs::write(&keys, text).unwrap();
        Bucket::open(&address)
    };
    let bucket = with(&format!("azure_storage_account = acme\nazure_storage_sas_token = ?{TOKEN}\n")).unwrap();
    put(&bucket, "a/one", b"content");
    assert_eq!(bucket.read(&key("a/one"), Some(1..3)).unwrap(), b"on");
    assert_eq!(bucket.list("").unwrap().len(), 1);
    place.server.faults([Fault::Status(403, "AccessDenied")]);
    let error = bucket.read(&key("a/one"), None).unwrap_err().to_string();
    assert!(error.contains("token") && !error.contains("s3cret"), "{error}");
    for (text, says) in [
        ("azure_storage_account = other\nazure_storage_key = c2VjcmV0\n", "names the account \"acme\""),
        ("azure_storage_account = acme\n", "azure_storage_key = …"),
        ("azure_storage_key = s3cret!\n", "base64"),
        ("azure_storage_sas_token = s3cret\n", "sv=…&sig=…"),
    ] {
        let error = with(text).err().unwrap().to_string();
        assert!(error.contains(says) && !error.contains("s3cret"), "{error}");
    }
    let error = with("azure_storage_key = b3RoZXI=\n").unwrap().read(&key("a/one"), None).unwrap_err();
    assert!(matches!(&error, ObjectError::Refused(says) if says.contains("clock") && says.contains("acme")), "{error}");
}
