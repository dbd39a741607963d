//! Locked buckets in a store of somebody else's making, the server of the Python package `moto`. The long suite: needs one that runs, and fails without;
//! CONTRIBUTING.md says how and when.

// A helper that cannot go on fails its test; this file uses a part of them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

#[path = "../src/objects/conformance.rs"]
mod conformance;
#[path = "real/support.rs"]
mod support;

use conformance::{conformance, put};
use mainstay_vault::keys::SecretKey;
use mainstay_vault::objects::{Bucket, Committed, Key, ObjectError, Objects};
use mainstay_vault::postgres::restore::{Target, plan};
use mainstay_vault::repository::Repository;
use mainstay_vault::verify::verify;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::*;

const ENDPOINT: &str = "MAINSTAY_TEST_MOTO";

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// A bucket of its own for each test. It looks at no signature: the test itself asks without one, as an attacker with keys would.
struct Store {
    dir: tempfile::TempDir,
    endpoint: String,
    name: String,
}

impl Store {
    fn new(lock: bool) -> Store {
        let endpoint = std::env::var(ENDPOINT).unwrap_or_else(|_| {
            panic!("this test needs a server of moto: say in {ENDPOINT} where it is (http://127.0.0.1:PORT); CONTRIBUTING.md tells how one is started")
        });
        let name = format!("b{}", SecretKey::generate().unwrap().public().fingerprint());
        let store = Store { dir: place(), endpoint, name };
        let lock = if lock { "x-amz-bucket-object-lock-enabled: true\r\n" } else { "" };
        let (status, said) = store.raw("PUT", "", lock, b"");
        assert_eq!(status, 200, "{said}");
        std::fs::write(store.keys(), "aws_access_key_id = id\naws_secret_access_key = secret\n").unwrap();
        std::fs::set_permissions(store.keys(), std::fs::Permissions::from_mode(0o600)).unwrap();
        store
    }

    fn keys(&self) -> std::path::PathBuf {
        self.dir.path().join("keys")
    }

    fn bucket(&self, words: &str) -> Bucket {
        let (name, endpoint, keys) = (&self.name, &self.endpoint, self.keys());
        let place = format!("s3://{name}/main?endpoint={endpoint}&credentials={}{words}", keys.display());
        Bucket::open(Path::new(&place)).unwrap()
    }

    /// A request without a signature.
    fn raw(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let host = self.endpoint.strip_prefix("http://").expect("http://HOST:PORT");
        let mut stream =
            TcpStream::connect(host).unwrap_or_else(|e| panic!("no server of moto at {}: {e}", self.endpoint));
        let who = "authorization: AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let asked = format!(
            "{method} /{}{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{who}\r\ncontent-length: {}\r\n{headers}\r\n",
            self.name,
            body.len()
        );
        stream.write_all(asked.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        (said.split(' ').nth(1).unwrap().parse().unwrap(), said)
    }

    /// Tries to remove every version, then hides or overwrites each object in turn; says how many versions stayed.
    fn attack(&self) -> usize {
        let (status, said) = self.raw("GET", "?versions=", "", b"");
        assert_eq!(status, 200, "{said}");
        let mut stayed = 0;
        let mut names = std::collections::BTreeSet::new();
        for part in said.split("<Version>").skip(1) {
            let of = |name: &str| {
                let (_, rest) = part.split_once(&format!("<{name}>")).unwrap();
                rest.split_once('<').unwrap().0.to_owned()
            };
            let (name, id) = (of("Key"), of("VersionId"));
            let (status, said) = self.raw("DELETE", &format!("/{name}?versionId={id}"), "", b"");
            assert_eq!(status, 403, "{name} {id}: {said}");
            stayed += 1;
            names.insert(name);
        }
        for (at, name) in names.iter().enumerate() {
            let hides = at % 2 == 0 || name.ends_with("vault.json");
            let (method, body): (_, &[u8]) = if hides { ("DELETE", b"") } else { ("PUT", b"gone") };
            let (status, said) = self.raw(method, &format!("/{name}"), "", body);
            assert!((200..300).contains(&status), "{said}");
        }
        stayed
    }
}

/// Times are told in whole seconds.
const APART: Duration = Duration::from_millis(1500);

#[test]
fn a_locked_bucket_of_moto_keeps_the_contract_of_a_store() {
    let store = Store::new(true);
    let bucket = store.bucket("&lock=1");
    conformance(&bucket);
    let content: Vec<u8> = (0..5u32 << 20).flat_map(|n| (n / 3).to_le_bytes()).collect();
    for committed in [Committed::Created, Committed::Exists] {
        let mut upload = bucket.create(&key("c/large")).unwrap();
        upload.write(&content).unwrap();
        assert_eq!(upload.commit().unwrap(), committed);
    }
    assert!(bucket.read(&key("c/large"), None).unwrap() == content);
    // Of what is written in parts moto forgets the lock (5.2.5): that is tried with the tests' own server.
    assert_eq!(bucket.unlocked(&key("a/two")).unwrap(), None);
    let (status, said) = store.raw("HEAD", "/main/a/two", "", b"");
    assert!(status == 200 && said.to_ascii_lowercase().contains("x-amz-object-lock-mode: governance"), "{said}");
    assert_eq!(bucket.unlocked(&key("b/three")).unwrap(), None);
}

#[test]
fn a_bucket_of_moto_without_object_lock_says_what_is_missing() {
    let store = Store::new(false);
    let error = store.bucket("&lock=1").create(&key("a/one")).err().unwrap();
    assert!(matches!(&error, ObjectError::Refused(says) if says.contains("switch it on")), "{error}");
    put(&store.bucket(""), "a/one", b"1");
}

#[test]
fn a_bucket_of_moto_is_read_as_it_was() {
    let store = Store::new(true);
    let now = store.bucket("&lock=1");
    for number in 0..30u8 {
        put(&now, &format!("a/{number}"), &[number; 100]);
    }
    now.delete(&key("a/7")).unwrap();
    let then = moment(APART);
    put(&now, "a/later", b"later");
    assert!(store.attack() >= 30);
    let view = store.bucket(&format!("&as_of={then}"));
    let names = view.list("a/").unwrap();
    assert_eq!(names.len(), 29, "{names:?}");
    for number in (0..30u8).filter(|number| *number != 7) {
        assert_eq!(view.read(&key(&format!("a/{number}")), Some(1..5)).unwrap(), [number; 4]);
    }
    for missing in ["a/7", "a/later"] {
        assert!(matches!(view.read(&key(missing), None), Err(ObjectError::Missing(_))), "{missing}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_in_moto_is_restored_as_it_was() {
    let store = Store::new(true);
    let server = Server::new(store.dir.path(), "primary").await;
    let secret = SecretKey::generate().unwrap();
    let objects: Arc<dyn Objects> = Arc::new(store.bucket("&lock=30"));
    Repository::create(objects.clone(), &[secret.public()]).unwrap();
    let repository = Repository::open(objects, Some(secret.clone())).unwrap();
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    oracle.run("CREATE TABLE noise AS SELECT gen_random_uuid() AS a, gen_random_uuid() AS b FROM generate_series(1, 60000)").await;
    oracle.write(50).await;
    two_backups(&repository, &server, &mut archive, &mut oracle).await;
    sweep(&mut archive, &server).await.unwrap();
    let system = server.system().await;
    let report = verify(&repository, system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 2, "{report:?}");
    let then = moment(APART);
    assert!(store.attack() > 10);
    let nothing = Repository::open(Arc::new(store.bucket("&lock=30")), Some(secret.clone())).err().unwrap();
    assert!(nothing.is_missing(), "{nothing}");
    let view = Arc::new(store.bucket(&format!("&as_of={then}")));
    let repository = Repository::open(view, Some(secret)).unwrap();
    let report = verify(&repository, system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 2 && report.window.is_some(), "{report:?}");
    let made = plan(&repository, system, Target::Latest, None).unwrap();
    let there = ticks_at(&repository, &made, &store.dir.path().join("copy"), false).await;
    assert_eq!(there.len(), 90);
}
