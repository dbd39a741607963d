//! The rows of a benchmark: durations of trials, their table and their object.

use mainstay_testkit::statistics::{Summary, summarise};
use serde_json::{Value, json};
use std::time::Duration;

/// What must be reached: median and worst.
pub(crate) type Target = (Option<Duration>, Option<Duration>);

/// A target in milliseconds.
pub(crate) fn target(median: Option<u64>, worst: Option<u64>) -> Target {
    (median.map(Duration::from_millis), worst.map(Duration::from_millis))
}

/// The trials of one fault.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    pub(crate) gaps: Vec<Duration>,
    pub(crate) invalid: u32,
    pub(crate) lost: usize,
    pub(crate) duplicated: usize,
    /// What else is not as it must be.
    pub(crate) wrong: usize,
    pub(crate) acknowledged: u64,
}

impl Row {
    pub(crate) fn new(name: &'static str, target: Target) -> Row {
        Row { name, target, gaps: Vec::new(), invalid: 0, lost: 0, duplicated: 0, wrong: 0, acknowledged: 0 }
    }

    /// Every trial was valid, and nothing was wrong in any.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.wrong == 0 && !self.gaps.is_empty() && self.invalid == 0
    }

    fn summary(&self) -> Summary {
        summarise(self.gaps.clone())
    }

    /// `None`: nothing is asked of this fault.
    fn reached(&self) -> Option<bool> {
        let (median, worst) = self.target;
        let summary = self.summary();
        let within = |limit: Option<Duration>, value| limit.is_none_or(|limit| value <= limit);
        (median.is_some() || worst.is_some())
            .then(|| !self.gaps.is_empty() && within(median, summary.median) && within(worst, summary.worst))
    }
}

/// Prints the table.
pub(crate) fn table(rows: &[Row]) {
    println!();
    println!("longest gap between acknowledged writes, milliseconds");
    println!(
        "{:<13}{:>7}{:>9}{:>8}{:>8}{:>8}{:>14}{:>7}{:>12}  target (median / worst)",
        "fault", "trials", "invalid", "median", "p95", "worst", "acknowledged", "lost", "duplicated"
    );
    for row in rows {
        let summary = row.summary();
        let (median, worst) = row.target;
        let show =
            |limit: Option<Duration>| limit.map_or_else(|| "-".to_owned(), |limit| limit.as_millis().to_string());
        let verdict = match row.reached() {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "",
        };
        println!(
            "{:<13}{:>7}{:>9}{:>8}{:>8}{:>8}{:>14}{:>7}{:>12}  {} / {} {verdict}",
            row.name,
            row.gaps.len(),
            row.invalid,
            summary.median.as_millis(),
            summary.p95.as_millis(),
            summary.worst.as_millis(),
            row.acknowledged,
            row.lost,
            row.duplicated,
            show(median),
            show(worst),
        );
    }
}

/// One line for programs that read lines.
pub(crate) fn machine_line(rows: &[Row]) -> String {
    let words = rows.iter().map(|row| {
        let summary = row.summary();
        format!("{}={}/{}/{}", row.name, summary.median.as_millis(), summary.p95.as_millis(), summary.worst.as_millis())
    });
    let (lost, duplicated) =
        rows.iter().fold((0, 0), |(lost, duplicated), row| (lost + row.lost, duplicated + row.duplicated));
    format!(
        "bench-failover median/p95/worst ms: {} lost={lost} duplicated={duplicated}",
        words.collect::<Vec<_>>().join(" ")
    )
}

/// The object that `--json` ends with.
pub(crate) fn object(rows: &[Row], up_took: Duration) -> Value {
    let millis = |duration: Duration| (duration.as_secs_f64() * 10_000.0).round() / 10.0;
    let faults: Vec<Value> = rows
        .iter()
        .map(|row| {
            let (summary, (median, worst)) = (row.summary(), row.target);
            json!({
                "fault": row.name, "trials": row.gaps.len(), "invalid": row.invalid,
                "median_ms": millis(summary.median), "p95_ms": millis(summary.p95), "worst_ms": millis(summary.worst),
                "gaps_ms": row.gaps.iter().copied().map(millis).collect::<Vec<_>>(),
                "acknowledged": row.acknowledged, "lost": row.lost, "duplicated": row.duplicated, "wrong": row.wrong,
                "target_median_ms": median.map(millis), "target_worst_ms": worst.map(millis), "reached": row.reached(),
            })
        })
        .collect();
    json!({ "faults": faults, "up_ms": millis(up_took) })
}
