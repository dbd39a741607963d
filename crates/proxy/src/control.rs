//! Control: turns reports and time into what may enter and stay, and tells whoever obeys.
//! Absent: where reports come from, and connections.

use crate::changes::{CUT, Change};
use crate::feed::TimedReport;
use crate::options::{Live, ProxyOptions};
use crate::stats::{Stats, add};
use crate::table::{Hearing, Held, RouteTable, View};
use mainstay_model::Moment;
use mainstay_ports::clock::boot_now;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

/// The view is worked out anew at least this often: the runtime's clock stands still while the host is suspended, the
/// validity of a route does not.
const TICK_MAX: Duration = Duration::from_millis(100);
/// Reports taken before the view is worked out.
const REPORTS_PER_TURN: usize = 64;

/// Whoever lets connections in.
pub(crate) trait Obey {
    /// This may enter and stay from now on. Cuts what may not stay; how many those were, if that is known at once.
    fn obey(&self, view: &View, until: Moment) -> usize;
    /// The view has changed, and everything is cut that had to be.
    fn news(&self, view: &View);
    /// Clients that are held.
    fn waiting(&self) -> u64;
    /// A cut is seen by a client.
    fn cuts_are_seen(&self) -> bool;
}

/// A change is over: the one line that says what clients noticed.
fn tell(change: &Change) {
    let errors = serde_json::to_string(&change.errors).unwrap_or_default();
    info!(
        from = change.from_epoch,
        epoch = change.epoch,
        planned = change.planned,
        closed_ms = change.closed_ms,
        held = change.held,
        longest_hold_ms = change.longest_hold_us / 1000,
        %errors,
        unknown_commits = change.unknown_commits,
        "a change of the primary is over for clients"
    );
}

/// See the module.
pub(crate) struct Control<O> {
    table: RouteTable,
    view: View,
    stats: Arc<Stats>,
    obeys: O,
    options: Arc<Live<ProxyOptions>>,
}

impl<O: Obey> Control<O> {
    pub(crate) fn new(options: Arc<Live<ProxyOptions>>, stats: Arc<Stats>, obeys: O) -> Self {
        let now = options.now();
        let table = RouteTable::new(now.max_lag_bytes, now.read_grace);
        let view = table.view(boot_now());
        Self { table, view, stats, obeys, options }
    }

    pub(crate) async fn follow(mut self, mut reports: mpsc::Receiver<TimedReport>) {
        let mut heard = Vec::with_capacity(REPORTS_PER_TURN);
        let mut fed = true;
        loop {
            self.apply();
            let now = boot_now();
            let change = self.table.next_change(now).map(|moment| moment.since(now).to_std());
            let pause = change.map_or(TICK_MAX, |change| change.min(TICK_MAX));
            tokio::select! {
                count = reports.recv_many(&mut heard, REPORTS_PER_TURN), if fed => {
                    if count == 0 {
                        error!("the feed of routes ended; the proxy will hold all new connections");
                        fed = false;
                    }
                    heard.drain(..).for_each(|report| self.hear(report));
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn hear(&mut self, report: TimedReport) {
        let stats = &self.stats;
        add(&stats.reports);
        let (from, epoch) = (report.report.from.clone(), report.report.route.epoch);
        match self.table.hear(report, boot_now()) {
            Hearing::Taken => {}
            Hearing::Older => add(&stats.reports_older),
            Hearing::Refused => {
                add(&stats.reports_refused);
                warn!(%from, %epoch, "refused a route: an agent may name only its own node as primary");
            }
            Hearing::Conflict => {
                add(&stats.reports_conflict);
                error!(%from, %epoch, "refused a second primary of one epoch; run \"mainstay why\" on both nodes");
            }
        }
    }

    /// First what may stay, then the news to those who wait.
    fn apply(&mut self) {
        self.table.set_max_lag(self.options.now().max_lag_bytes);
        let view = self.table.view(boot_now());
        let cuts = self.obeys.obey(&view, self.table.until());
        let draining = if view.held == Held::Draining { view.epoch.0 } else { 0 };
        self.stats.draining.store(draining, Ordering::Release);
        if cuts > 0 && self.obeys.cuts_are_seen() {
            (0..cuts).for_each(|_| self.stats.changes.error(CUT, boot_now()));
        }
        if let Some(change) = self.stats.changes.look(&view, self.obeys.waiting(), boot_now()) {
            tell(&change);
        }
        if view == self.view {
            return;
        }
        let write = view.write.as_ref().map(|target| target.node.as_str()).unwrap_or_default();
        let before = (self.view.epoch, self.view.held, &self.view.write);
        if before != (view.epoch, view.held, &view.write) {
            info!(epoch = %view.epoch, primary = write, held = ?view.held, cut = cuts, "the route changed");
        }
        let stats = &self.stats;
        stats.epoch.store(view.epoch.0, Ordering::Relaxed);
        stats.open.store(u64::from(view.write.is_some()), Ordering::Relaxed);
        self.obeys.news(&view);
        self.view = view;
    }
}
