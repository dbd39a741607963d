//! Chaos with fixed seeds (needs root): the same plans in every run. `cargo xtask chaos --seed N` repeats one, and tells more.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mainstay_testkit::chaos::Verdict;
use mainstay_testkit::chaos::plan::{Wish, plan};
use mainstay_testkit::chaos::run::{self, Options};

async fn passes(seed: u64) {
    let plan = plan(&Wish { seed, minutes: 4, ..Wish::default() });
    println!("{plan}");
    let report = run::run(&plan, &Options { loud: true, ..Options::default() }).await.unwrap();
    println!("{}", report.line());
    assert_eq!(report.verdict, Verdict::Passed, "{:#?} {:#?}", report.wrong, report.invalid);
    assert!(report.verified >= plan.rounds.len(), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_that_overlap_lose_nothing() {
    passes(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_that_follow_each_other_lose_nothing() {
    passes(3).await;
}
