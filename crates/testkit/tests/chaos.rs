//! Chaos with fixed seeds (needs root): the same plans in every run. `cargo xtask chaos --seed N` repeats one, and tells more.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mainstay_model::spec::StoreKind;
use mainstay_testkit::chaos::plan::{Wish, plan};
use mainstay_testkit::chaos::run::{self, Options};
use mainstay_testkit::chaos::{Kind, Verdict};
use mainstay_testkit::hosts::Shape;

async fn passes(wish: Wish) {
    let plan = plan(&wish);
    println!("{plan}");
    let report = run::run(&plan, &Options { loud: true, ..Options::default() }).await.unwrap();
    println!("{}", report.line());
    assert_eq!(report.verdict, Verdict::Passed, "{:#?} {:#?}", report.wrong, report.invalid);
    assert!(report.verified >= plan.rounds.len(), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_that_overlap_lose_nothing() {
    passes(Wish { seed: 2, minutes: 4, ..Wish::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_that_follow_each_other_lose_nothing() {
    passes(Wish { seed: 3, minutes: 4, ..Wish::default() }).await;
}

/// Each fault of an etcd begins one round.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_fails_or_went_back_loses_nothing() {
    let kinds: Vec<Kind> = Kind::ALL.iter().copied().filter(|kind| kind.of_etcd()).collect();
    let shape = Some(Shape::THREE);
    passes(Wish { seed: 4, minutes: 4, kinds, shape, store: StoreKind::Etcd, ..Wish::default() }).await;
}
