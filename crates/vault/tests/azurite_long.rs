//! The vault in Azure's own emulator, Azurite. The long suite: needs one that runs, and fails without; CONTRIBUTING.md says how and when.

// A helper that cannot go on fails its test; this file uses a part of them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

#[path = "../src/objects/conformance.rs"]
mod conformance;
#[path = "real/support.rs"]
mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use conformance::conformance;
use mainstay_vault::keys::SecretKey;
use mainstay_vault::objects::{Bucket, Committed, Key, ObjectError, Objects};
use mainstay_vault::postgres::restore::{Target, plan};
use mainstay_vault::repository::Repository;
use mainstay_vault::retention::{Policy, examine, remove};
use mainstay_vault::verify::verify;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::*;

const ENDPOINT: &str = "MAINSTAY_TEST_AZURITE";
const CONTAINER: &str = "mainstay";
/// The account that every Azurite has; its key is no secret and stands in its documentation.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Makes the container, which the program never does.
fn make_container(endpoint: &str) {
    let host = endpoint.strip_prefix("http://").expect("http://HOST:PORT");
    let at = jiff::Timestamp::from_millisecond(mainstay_ports::clock::wall_now_ms().try_into().unwrap()).unwrap();
    let date = at.strftime("%a, %d %b %Y %H:%M:%S GMT");
    let headers = format!("x-ms-date:{date}\nx-ms-version:2021-12-02\n");
    let text = format!("PUT{}{headers}/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container", "\n".repeat(12));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &STANDARD.decode(KEY).unwrap());
    let signature = STANDARD.encode(ring::hmac::sign(&key, text.as_bytes()));
    let mut stream = TcpStream::connect(host).unwrap_or_else(|e| panic!("no Azurite at {endpoint}: {e}"));
    let asked = format!(
        "PUT /{ACCOUNT}/{CONTAINER}?restype=container HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n\
         authorization: SharedKey {ACCOUNT}:{signature}\r\n{}\r\n",
        headers.replace('\n', "\r\n")
    );
    stream.write_all(asked.as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.contains(" 201 ") || said.contains("ContainerAlreadyExists"), "{said}");
}

/// A place in the emulator that nobody used before.
fn address(dir: &Path) -> PathBuf {
    let endpoint = std::env::var(ENDPOINT).unwrap_or_else(|_| {
        panic!("this test needs an Azurite: say in {ENDPOINT} where it is (http://127.0.0.1:PORT); CONTRIBUTING.md tells how one is started")
    });
    make_container(&endpoint);
    let keys = dir.join("azure.keys");
    std::fs::write(&keys, format!("azure_storage_account = {ACCOUNT}\nazure_storage_key = {KEY}\n")).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    let own = SecretKey::generate().unwrap().public().fingerprint();
    format!("azure://{CONTAINER}/{own}?account={ACCOUNT}&endpoint={endpoint}&credentials={}", keys.display()).into()
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

#[test]
fn azurite_keeps_the_contract_of_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::open(&address(dir.path())).unwrap();
    conformance(&bucket);
    // In blocks; of two that write at once one is told that it was second.
    let content: Vec<u8> = (0..5u32 << 20).flat_map(|n| (n / 3).to_le_bytes()).collect();
    let begin = |content: &[u8]| {
        let mut upload = bucket.create(&key("c/large")).unwrap();
        upload.write(content).unwrap();
        upload
    };
    let (first, second) = (begin(&content), begin(&vec![7; 9 << 20]));
    assert!(bucket.list("c/").unwrap().is_empty(), "blocks are no object");
    assert!(matches!(bucket.size(&key("c/large")), Err(ObjectError::Missing(_))));
    assert_eq!(first.commit().unwrap(), Committed::Created);
    assert_eq!(second.commit().unwrap(), Committed::Exists);
    assert_eq!(begin(&content).commit().unwrap(), Committed::Exists);
    assert_eq!(bucket.size(&key("c/large")).unwrap(), content.len() as u64);
    assert!(bucket.read(&key("c/large"), None).unwrap() == content);
    assert_eq!(bucket.read(&key("c/large"), Some(9_000_000..9_000_100)).unwrap(), content[9_000_000..9_000_100]);
    // More than a page.
    for number in 0..1100 {
        conformance::put(&bucket, &format!("d/{number}"), b"x");
    }
    assert_eq!(bucket.list("d/").unwrap().len(), 1100);
}

#[test]
fn azurite_says_what_is_wrong_and_never_that_something_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let right = address(dir.path()).display().to_string();
    let none = right.replace(&format!("azure://{CONTAINER}/"), "azure://no-such-container/");
    let bucket = Bucket::open(none.as_ref()).unwrap();
    for error in
        [bucket.read(&key("a"), None).unwrap_err(), bucket.size(&key("a")).unwrap_err(), bucket.list("").unwrap_err()]
    {
        assert!(matches!(&error, ObjectError::Unreachable(says) if says.contains("make the container")), "{error}");
    }
    std::fs::write(dir.path().join("azure.keys"), "azure_storage_key = b3RoZXI=\n").unwrap();
    let bucket = Bucket::open(right.as_ref()).unwrap();
    for error in
        [bucket.read(&key("a"), None).unwrap_err(), bucket.size(&key("a")).unwrap_err(), bucket.list("").unwrap_err()]
    {
        assert!(matches!(&error, ObjectError::Refused(says) if says.contains("key or token")), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azurite_holds_a_repository() {
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let secret = SecretKey::generate().unwrap();
    let objects: Arc<dyn Objects> = Arc::new(Bucket::open(&address(dir.path())).unwrap());
    Repository::create(objects.clone(), &[secret.public()]).unwrap();
    let repository = Repository::open(objects, Some(secret)).unwrap();
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    // Noise that no compression makes small: a pack of several blocks.
    oracle.run("CREATE TABLE noise AS SELECT gen_random_uuid() AS a, gen_random_uuid() AS b FROM generate_series(1, 700000)").await;
    oracle.write(50).await;
    let labels = two_backups(&repository, &server, &mut archive, &mut oracle).await;
    sweep(&mut archive, &server).await.unwrap();
    let system = server.system().await;
    let made = plan(&repository, system, Target::Latest, None).unwrap();
    let there = ticks_at(&repository, &made, &dir.path().join("copy"), false).await;
    assert_eq!(there.len(), 90);
    let report = verify(&repository, system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 2 && report.window.is_some(), "{report:?}");
    let verdict = examine(&repository, system, Policy { count: 1, span: None }, report.good[1].1).unwrap();
    assert_eq!(verdict.removed, [labels[0].clone()].into());
    remove(&repository, system, SIZE, &verdict).unwrap();
    assert_eq!(verify(&repository, system).unwrap().good.len(), 1);
}
