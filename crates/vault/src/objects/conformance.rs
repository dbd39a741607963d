//! What every store must do. The tests of stores that need a server of their own read this file, too.

#![allow(clippy::unwrap_used)]

use super::{Committed, Key, ObjectError, Objects};

/// Writes an object.
pub(crate) fn put(store: &dyn Objects, name: &str, bytes: &[u8]) -> Committed {
    let mut upload = store.create(&Key::new(name).unwrap()).unwrap();
    upload.write(bytes).unwrap();
    upload.commit().unwrap()
}

/// What every store must do.
pub(crate) fn conformance(store: &dyn Objects) {
    let key = Key::new("a/b/one").unwrap();
    assert!(matches!(store.read(&key, None), Err(ObjectError::Missing(_))));
    assert!(matches!(store.size(&key), Err(ObjectError::Missing(_))));
    let mut given_up = store.create(&key).unwrap();
    given_up.write(b"half").unwrap();
    assert!(store.list("a/").unwrap().is_empty(), "what is not committed is not visible");
    drop(given_up);
    let (mut first, mut second) = (store.create(&key).unwrap(), store.create(&key).unwrap());
    first.write(b"fir").unwrap();
    second.write(b"second").unwrap();
    first.write(b"st").unwrap();
    assert_eq!(first.commit().unwrap(), Committed::Created);
    assert_eq!(second.commit().unwrap(), Committed::Exists, "never overwritten");
    assert_eq!(store.read(&key, None).unwrap(), b"first");
    assert_eq!(store.read(&key, Some(1..3)).unwrap(), b"ir");
    assert!(store.read(&key, Some(3..9)).is_err(), "a short object is not a shorter answer");
    assert_eq!(put(store, "a/two", b"2"), Committed::Created);
    assert_eq!(put(store, "b/three", b""), Committed::Created);
    let names: Vec<String> = store.list("a/").unwrap().iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(names, ["a/b/one", "a/two"]);
    assert_eq!(store.list("").unwrap().len(), 3);
    assert_eq!(store.list("nothing/").unwrap(), []);
    store.delete(&key).unwrap();
    store.delete(&key).unwrap();
    assert!(matches!(store.read(&key, None), Err(ObjectError::Missing(_))));
}
