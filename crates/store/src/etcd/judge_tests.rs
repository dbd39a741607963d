//! When etcd is believed no more.

use super::*;
use wire::Pair;

fn options() -> EtcdOptions {
    EtcdOptions {
        endpoints: Vec::new(),
        tls: None,
        user: None,
        prefix: "/m/c/".to_owned(),
        authority: "ours".to_owned(),
        first: 0,
        kept: PathBuf::new(),
    }
}

fn kept() -> Kept {
    let origin = Origin { group: 0, incarnation: 0, authority: "ours".to_owned() };
    Kept { origin, origin_revision: 4, seen: BTreeMap::from([("record".to_owned(), 10), ("spec".to_owned(), 6)]) }
}

fn keys(pairs: &[(&str, u64)]) -> Range {
    let pair = |(key, revision): &(&str, u64)| Pair {
        key: format!("/m/c/{key}").into_bytes(),
        mod_revision: *revision,
        value: Vec::new(),
    };
    Range { kvs: pairs.iter().map(pair).collect(), ..Range::default() }
}

fn marked(revision: u64, incarnation: u64, authority: &str) -> Range {
    let origin = Origin { group: incarnation, incarnation, authority: authority.to_owned() };
    let value = serde_json::to_vec(&origin).unwrap();
    Range { kvs: vec![Pair { key: b"/m/c/origin".to_vec(), mod_revision: revision, value }], ..Range::default() }
}

fn verdict(all: &[(&str, u64)], marked: &Range) -> Option<Refused> {
    judge(&options(), &kept(), &keys(all), marked)
}

#[test]
fn what_was_seen_may_only_grow() {
    let same = marked(4, 0, "ours");
    assert_eq!(verdict(&[("record", 10), ("spec", 6)], &same), None);
    assert_eq!(verdict(&[("record", 99), ("spec", 6), ("more", 3)], &same), None);
    for older in [&[("record", 9), ("spec", 6)][..], &[("record", 12)], &[]] {
        assert!(matches!(verdict(older, &same), Some(Refused::Distrusted(_))), "{older:?}");
    }
}

#[test]
fn another_origin_is_this_clusters_only_in_a_later_incarnation() {
    let all = [("record", 10), ("spec", 6)];
    assert_eq!(verdict(&all, &marked(40, 1, "ours")), Some(Refused::Anew));
    for other in [marked(40, 0, "ours"), marked(40, 1, "theirs"), Range::default()] {
        assert!(matches!(verdict(&all, &other), Some(Refused::Distrusted(_))), "{other:?}");
    }
}
