//! When etcd is believed no more.

use super::judge::{Shown, judge};
use super::kept::Origin;
use super::*;

/// Of an etcd that nobody runs.
fn options() -> EtcdOptions {
    let nobody = Door::new(Endpoint::parse("http://127.0.0.1:9").unwrap(), None);
    EtcdOptions {
        client: Arc::new(Client::new(vec![nobody], None, 0)),
        prefix: "/m/c/".to_owned(),
        authority: "ours".to_owned(),
        kept: PathBuf::new(),
    }
}

fn floor(revision: u64, version: u64) -> Floor {
    Floor { revision, created: 5, version, value: None }
}

fn kept() -> Kept {
    let origin = Origin { group: 0, incarnation: 0, authority: "ours".to_owned() };
    let seen = BTreeMap::from([("record".to_owned(), floor(10, 4)), ("spec".to_owned(), floor(6, 1))]);
    Kept { origin, origin_revision: 4, origin_value: None, seen, refused: None }
}

fn pair(key: &str, revision: u64, version: u64) -> Pair {
    let key = format!("/m/c/{key}").into_bytes();
    Pair { key, mod_revision: revision, create_revision: 5, version, value: b"{}".to_vec() }
}

fn keys(pairs: &[(&str, u64, u64)]) -> Range {
    let kvs = pairs.iter().map(|(key, revision, version)| pair(key, *revision, *version)).collect();
    Range { kvs, ..Range::default() }
}

fn marked(revision: u64, incarnation: u64, authority: &str) -> Range {
    let origin = Origin { group: incarnation, incarnation, authority: authority.to_owned() };
    let value = serde_json::to_vec(&origin).unwrap();
    Range {
        kvs: vec![Pair { key: b"/m/c/origin".to_vec(), mod_revision: revision, value, ..Pair::default() }],
        ..Range::default()
    }
}

fn verdict(all: &[(&str, u64, u64)], marked: &Range) -> Option<Refused> {
    judge(&options(), &kept(), &Shown { all: keys(all), marked: marked.clone(), record: Range::default() })
}

#[test]
fn what_was_seen_may_only_grow() {
    let same = marked(4, 0, "ours");
    assert_eq!(verdict(&[("record", 10, 4), ("spec", 6, 1)], &same), None);
    assert_eq!(verdict(&[("record", 99, 5), ("spec", 6, 1), ("more", 3, 1)], &same), None);
    for older in [&[("record", 9, 3), ("spec", 6, 1)][..], &[("record", 12, 5)], &[]] {
        assert!(matches!(verdict(older, &same), Some(Refused::Distrusted(_))), "{older:?}");
    }
}

#[test]
fn revisions_that_were_raised_hide_nothing() {
    let same = marked(4, 0, "ours");
    // Restored with --bump-revision: fewer writes, or as many others, at higher revisions.
    for raised in [("record", 1_000_000, 3), ("record", 1_000_000, 4), ("record", 11, 9)] {
        let why = verdict(&[raised, ("spec", 6, 1)], &same);
        assert!(matches!(why, Some(Refused::Distrusted(_))), "{raised:?}: {why:?}");
    }
    let mut again = keys(&[("record", 20, 6), ("spec", 6, 1)]);
    again.kvs[0].create_revision = 15;
    assert!(
        judge(&options(), &kept(), &Shown { all: again, marked: same, record: Range::default() }).is_some(),
        "removed and made again"
    );
    let mut kept = kept();
    assert!(
        !kept.note("record", &pair("record", 1_000_000, 3)),
        "it does not become what later answers are held against"
    );
    assert!(kept.note("record", &pair("record", 9, 3)) && kept.seen["record"].revision == 10, "late is not wrong");
    assert!(kept.note("record", &pair("record", 12, 5)) && kept.seen["record"].revision == 12);
}

#[test]
fn one_write_that_was_lost_and_made_up_for_shows_in_its_value() {
    let mut kept = kept();
    kept.seen.insert("record".to_owned(), Floor { value: Some("{\"degraded\":1}".to_owned()), ..floor(10, 4) });
    let shown = |value: &[u8]| {
        let record = Range { kvs: vec![Pair { value: value.to_vec(), ..pair("record", 10, 4) }], ..Range::default() };
        Shown { all: keys(&[("record", 10, 4), ("spec", 6, 1)]), marked: marked(4, 0, "ours"), record }
    };
    assert_eq!(judge(&options(), &kept, &shown(b"{\"degraded\":1}")), None);
    assert!(matches!(judge(&options(), &kept, &shown(b"{\"raised\":1}")), Some(Refused::Distrusted(_))));
    let theirs = Floor { value: Some("{\"raised\":1}".to_owned()), ..floor(10, 4) };
    assert!(kept.hear("record", &theirs).is_err(), "nor does another node's");
}

#[test]
fn the_same_revision_with_another_value_is_not_late() {
    let mut kept = kept();
    let of = |value: &[u8]| Pair { value: value.to_vec(), ..pair("record", 12, 5) };
    assert!(kept.note("record", &of(b"mine")) && kept.note("record", &of(b"mine")));
    assert!(!kept.note("record", &of(b"theirs")) && kept.seen["record"].value.as_deref() == Some("mine"));
    assert!(!kept.note("record", &Pair { version: 6, ..of(b"mine") }), "nor with another number of writes");
    // The origin: also what this version does not read of it.
    let known = marked(4, 0, "ours").kvs.remove(0);
    kept.note_origin(&known);
    assert!(kept.is_origin(&known));
    let mut other = known.clone();
    other.value.insert(1, b' ');
    assert!(!kept.is_origin(&other));
    let all = [("record", 10, 4), ("spec", 6, 1)];
    let other = Range { kvs: marked(4, 7, "ours").kvs, ..Range::default() };
    let before = Kept { origin: Origin { incarnation: 7, ..kept.origin.clone() }, ..self::kept() };
    let shown = Shown { all: keys(&all), marked: other, record: Range::default() };
    assert!(judge(&options(), &before, &shown).is_some(), "another one of that incarnation, at that revision");
}

#[test]
fn what_others_put_there_may_go_again() {
    let mut kept = kept();
    assert!(kept.note("notes", &pair("notes", 30, 1)));
    assert!(!kept.seen.contains_key("notes"));
}

#[test]
fn how_far_each_repository_is_may_not_go_back() {
    let mut kept = kept();
    for name in ["archive", "archive-far", "archived-by-command"] {
        assert!(kept.note(name, &pair(name, 30, 3)) && kept.seen.contains_key(name), "{name}");
        assert!(!kept.note(name, &pair(name, 40, 3)), "{name}: it was written again, and yet as often");
        let all = keys(&[("record", 10, 4), ("spec", 6, 1)]);
        let older = Shown { all, marked: marked(4, 0, "ours"), record: Range::default() };
        let seen = Kept { seen: BTreeMap::from([(name.to_owned(), kept.seen[name].clone())]), ..kept.clone() };
        assert!(matches!(judge(&options(), &seen, &older), Some(Refused::Distrusted(_))), "{name} is gone");
    }
    assert!(kept.note("archives", &pair("archives", 30, 1)) && !kept.seen.contains_key("archives"));
}

#[test]
fn another_origin_is_this_clusters_only_in_a_later_incarnation() {
    let all = [("record", 10, 4), ("spec", 6, 1)];
    assert_eq!(verdict(&all, &marked(40, 1, "ours")), Some(Refused::Anew));
    for other in [marked(40, 0, "ours"), marked(40, 1, "theirs"), Range::default()] {
        assert!(matches!(verdict(&all, &other), Some(Refused::Distrusted(_))), "{other:?}");
    }
}

fn nowhere(dir: &std::path::Path) -> EtcdOptions {
    EtcdOptions { kept: dir.join("etcd.json"), ..options() }
}

#[tokio::test]
async fn a_start_forgets_neither_the_evidence_nor_the_record() {
    let dir = tempfile::tempdir().unwrap();
    let origin = |incarnation| Origin { incarnation, authority: "ours".to_owned(), ..Origin::default() };
    let first = EtcdStore::start(nowhere(dir.path()), Some((origin(0), Revision(4)))).unwrap();
    assert!(first.inner.publish("record", &pair("record", 10, 4)));
    first.distrust("seen less");
    first.stop().await;
    let again = EtcdStore::start(nowhere(dir.path()), Some((origin(0), Revision(4)))).unwrap();
    assert_eq!((again.evidence(), again.is_believed()), (Some(with_advice("seen less")), false));
    let values: Vec<(String, Versioned)> = locked(&again.inner.kept).values().collect();
    assert_eq!(values, [("record".to_owned(), Versioned { revision: Revision(10), value: b"{}".to_vec() })]);
    again.stop().await;
    let anew = EtcdStore::start(nowhere(dir.path()), Some((origin(1), Revision(40)))).unwrap();
    assert!(anew.is_believed() && anew.is_new(), "a later incarnation begins anew");
}

#[tokio::test]
async fn another_nodes_evidence_counts_until_that_node_takes_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin { authority: "ours".to_owned(), ..Origin::default() };
    let store = EtcdStore::start(nowhere(dir.path()), Some((origin, Revision(4)))).unwrap();
    let (one, other) = (NodeId::new("db2").unwrap(), NodeId::new("db3").unwrap());
    store.heard_of(&one, Some("seen less".to_owned()));
    store.heard_of(&other, None);
    assert!(!store.is_believed() && store.failure().is_some(), "another one's trust changes nothing");
    assert_eq!(store.evidence(), None, "it is not passed on as this node's own");
    store.heard_of(&one, None);
    assert!(store.is_believed());
    store.heard_of(&one, Some("seen less".to_owned()));
    store.distrust("I, too");
    store.heard_of(&one, None);
    assert_eq!(store.evidence(), Some(with_advice("I, too")), "own evidence stays");
}

#[tokio::test]
async fn what_is_heard_while_etcd_answers_counts() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin { authority: "ours".to_owned(), ..Origin::default() };
    let store = EtcdStore::start(nowhere(dir.path()), Some((origin, Revision(4)))).unwrap();
    let answer = pair("record", 10, 4);
    assert!(store.is_good(&answer));
    store.hold_against(&NodeId::new("db2").unwrap(), "record", &floor(12, 5));
    assert!(store.is_believed() && !store.is_good(&answer), "no evidence yet, and no answer for a candidate");
    assert!(store.is_good(&pair("record", 12, 5)));
}

#[tokio::test]
async fn a_write_stands_on_values_too() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin { authority: "ours".to_owned(), ..Origin::default() };
    let store = EtcdStore::start(nowhere(dir.path()), Some((origin, Revision(4)))).unwrap();
    let inner = &store.inner;
    inner.note_origin(&Shown { all: Range::default(), marked: marked(4, 0, "ours"), record: Range::default() });
    assert!(inner.publish("record", &pair("record", 10, 4)) && inner.publish("spec", &pair("spec", 6, 1)));
    let before = locked(&inner.kept).clone();
    let targets = |key, expected| {
        let all = inner.compares(&before, key, expected);
        all.iter().map(|one| one["target"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(targets("record", Some(Revision(10))), ["MOD", "MOD", "VALUE", "VALUE"]);
    assert_eq!(targets("record", Some(Revision(11))), ["MOD", "MOD", "VALUE"]);
    assert_eq!(targets("spec", Some(Revision(6))), ["MOD", "MOD", "VALUE"]);
}
