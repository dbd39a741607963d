//! Numbers: counted with atomics, told as text for Prometheus or as JSON. Absent: a listener that serves them.

use crate::changes::{Change, Changes};
use crate::hold::Kind;
use mainstay_model::Term;
use mainstay_ports::route_board::Holds;
use serde::Serialize;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! numbers {
    ($($name:ident $kind:literal $doc:literal;)*) => {
        /// What the proxy counts. Share it as `Arc<Stats>`.
        #[derive(Debug, Default)]
        pub struct Stats {
            $(#[doc = $doc] pub(crate) $name: AtomicU64,)*
            pub(crate) changes: Changes,
        }

        /// The numbers at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Snapshot {
            $(#[doc = $doc] pub $name: u64,)*
        }

        impl Stats {
            /// The numbers now.
            #[must_use]
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }

            /// The numbers in Prometheus' text format, each as `mainstay_proxy_…`.
            #[must_use]
            pub fn prometheus(&self) -> String {
                let mut text = String::with_capacity(4096);
                $(metric(&mut text, stringify!($name), $kind, $doc, self.$name.load(Ordering::Relaxed));)*
                text
            }
        }
    };
}

numbers! {
    write_open "gauge" "Connections through the write address, now: to the primary, or to a pool of its servers.";
    read_open "gauge" "Connections through the read address, now: to a server, or to a pool.";
    held "gauge" "Connections that wait for a server, now.";
    accepted "counter" "Connections accepted.";
    write_connected "counter" "Connections of the write address that reached a server, or were let into a pool.";
    read_connected "counter" "Connections of the read address that reached a server, or were let into a pool.";
    read_on_primary "counter" "Of those, on the primary, since no replica was fit.";
    held_total "counter" "Waits for a server: of connections, in a pool of requests.";
    longest_hold_ms "gauge" "The longest wait so far that ended well, in milliseconds.";
    cut_by_epoch "counter" "Connections to a primary that was replaced, cut.";
    cut_by_fence "counter" "Connections to a primary of which nothing was known any more, cut.";
    cut_replica "counter" "Read connections cut since their server was no replica any more.";
    refused_hold "counter" "Connections refused: no server within the hold time.";
    refused_held_full "counter" "Connections refused: too many waited.";
    refused_full "counter" "Connections refused: too many in total.";
    left_while_held "counter" "Clients that went away while they waited.";
    silent "counter" "Connections that closed or ran out of time without a byte.";
    connect_failed "counter" "Attempts to connect to a server that failed.";
    accept_failed "counter" "Failures to accept a connection.";
    panicked "counter" "Connection tasks that died by a fault in the proxy.";
    bytes_to_server "counter" "Bytes from clients to servers.";
    bytes_to_client "counter" "Bytes from servers to clients.";
    reports "counter" "Route reports heard.";
    reports_older "counter" "Of those, passed over since they were older than what is known.";
    reports_refused "counter" "Of those, refused: an agent spoke for another node.";
    reports_conflict "counter" "Of those, refused: a second leader for one epoch. Must stay 0.";
    epoch "gauge" "The highest epoch heard of.";
    open "gauge" "1 while new connections go to a primary.";
    draining "gauge" "The epoch whose primary is about to be changed, while new work is held for that; else 0.";
}

fn metric(text: &mut String, name: &str, kind: &str, doc: &str, value: u64) {
    let suffix = if kind == "counter" && !name.ends_with("_total") { "_total" } else { "" };
    let name = format!("mainstay_proxy_{name}{suffix}");
    // Writing to a String cannot fail.
    let _ = write!(text, "# HELP {name} {doc}\n# TYPE {name} {kind}\n{name} {value}\n");
}

impl Stats {
    pub(crate) fn open(&self, kind: Kind) -> &AtomicU64 {
        if kind == Kind::Write { &self.write_open } else { &self.read_open }
    }

    pub(crate) fn connected(&self, kind: Kind) -> &AtomicU64 {
        if kind == Kind::Write { &self.write_connected } else { &self.read_connected }
    }

    /// What a proxy of whole connections holds for a planned change: which of them work, it does not know.
    #[must_use]
    pub fn holds(&self) -> Option<Holds> {
        let epoch = self.draining.load(Ordering::Acquire);
        (epoch > 0).then_some(Holds { epoch: Term(epoch), under_way: 0 })
    }

    /// The last change of the primary that is over, as clients noticed it; and how many there were.
    #[must_use]
    pub fn changes(&self) -> (u64, Option<Change>) {
        self.changes.last()
    }

    /// The numbers as a JSON object, with the last change of the primary as clients noticed it.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self.snapshot()).unwrap_or_default();
        let (count, last) = self.changes();
        value["changes"] = count.into();
        value["last_change"] = serde_json::to_value(last).unwrap_or_default();
        value
    }
}

pub(crate) fn add(number: &AtomicU64) {
    number.fetch_add(1, Ordering::Relaxed);
}

/// One more in a gauge, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Gauge<'a>(&'a AtomicU64);

impl<'a> Gauge<'a> {
    pub(crate) fn new(number: &'a AtomicU64) -> Self {
        add(number);
        Self(number)
    }

    /// As `new`, unless there are `most` already.
    pub(crate) fn at_most(number: &'a AtomicU64, most: usize) -> Option<Self> {
        let most = most as u64;
        let more = |now: u64| (now < most).then_some(now + 1);
        number.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(number))
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_in_both_forms() {
        let stats = Stats::default();
        add(&stats.cut_by_epoch);
        let gauge = Gauge::at_most(&stats.held, 1);
        assert!(gauge.is_some() && Gauge::at_most(&stats.held, 1).is_none());
        let text = stats.prometheus();
        assert!(
            text.contains("# TYPE mainstay_proxy_cut_by_epoch_total counter\nmainstay_proxy_cut_by_epoch_total 1\n")
        );
        assert!(text.contains("\nmainstay_proxy_held 1\n") && !text.contains("held_total_total"));
        assert_eq!(stats.json()["cut_by_epoch"], 1);
        drop(gauge);
        assert_eq!(stats.snapshot().held, 0);
    }
}
