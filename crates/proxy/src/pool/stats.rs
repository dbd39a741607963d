//! Numbers of one pool: what was done, how long it took, who waits. Absent: where they are shown.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Four steps for each power of two of microseconds: an error of an eighth at most.
const STEPS: usize = 4;
const BUCKETS: usize = 30 * STEPS;
/// Codes that are told apart.
const CODES_MAX: usize = 64;
/// What each name means, for those who read the numbers.
pub(crate) const DESCRIBED: [(&str, &str, &str); 24] = [
    ("clients", "gauge", "Clients."),
    ("waiting", "gauge", "Clients that wait for a server."),
    ("held", "gauge", "Of those, the ones that wait since the route is not open, or the pool is paused."),
    ("servers_busy", "gauge", "Server connections with a client."),
    ("servers_idle", "gauge", "Server connections without."),
    ("servers_login", "gauge", "Server connections that are being opened."),
    ("pinned", "gauge", "Clients that are tied to their server."),
    ("transactions_total", "counter", "Transactions ended."),
    ("queries_total", "counter", "Requests ended."),
    ("received_bytes_total", "counter", "Bytes from clients."),
    ("sent_bytes_total", "counter", "Bytes to clients."),
    ("waits_total", "counter", "Requests that had to wait for a server."),
    ("wait_timeouts_total", "counter", "Requests given up since nothing came free."),
    ("lost_total", "counter", "Clients whose work was lost with its server."),
    ("unknown_commits_total", "counter", "Errors that said that the outcome of a commit is not known."),
    ("commits_found_total", "counter", "Commits whose answer was lost with their server, and that were looked up."),
    ("unreplicated_commits_total", "counter", "Commits whose wait for replicas was cancelled."),
    ("parses_saved_total", "counter", "Parse messages that a server did not have to see again."),
    ("longest_wait_us", "gauge", "The longest wait for a server so far, in microseconds."),
    ("errors_total", "counter", "Errors that clients got, by SQLSTATE: from servers, and from the proxy itself."),
    ("node_servers", "gauge", "Server connections by node and state."),
    ("node_transactions_total", "counter", "Transactions ended, by node."),
    ("wait_us", "gauge", "How long those waited that had to, in microseconds, by quantile since the start."),
    ("transaction_us", "gauge", "How long transactions took, in microseconds, by quantile since the start."),
];

/// How long things took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    counts: Box<[u64; BUCKETS]>,
    pub(crate) sum_us: u64,
    pub(crate) longest_us: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), sum_us: 0, longest_us: 0 }
    }
}

fn bucket(us: u64) -> usize {
    let us = us.max(4);
    let power = 63 - us.leading_zeros() as usize;
    ((power - 2) * STEPS + (us >> (power - 2) & 3) as usize).min(BUCKETS - 1)
}

/// The least value above a bucket.
fn upper(bucket: usize) -> u64 {
    (5 + (bucket % STEPS) as u64) << (bucket / STEPS)
}

impl Times {
    pub(crate) fn add(&mut self, us: u64) {
        self.counts[bucket(us)] += 1;
        self.sum_us += us;
        self.longest_us = self.longest_us.max(us);
    }

    fn merge(&mut self, other: &Times) {
        self.counts.iter_mut().zip(other.counts.iter()).for_each(|(sum, more)| *sum += more);
        self.sum_us += other.sum_us;
        self.longest_us = self.longest_us.max(other.longest_us);
    }

    /// The time within which this part of all was done.
    pub(crate) fn part(&self, thousandths: u64) -> u64 {
        let all: u64 = self.counts.iter().sum();
        let wanted = (all * thousandths).div_ceil(1000);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return upper(at).min(self.longest_us);
            }
        }
        0
    }
}

/// Server connections of one pool to one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeNumbers {
    /// With a client.
    pub busy: u64,
    /// Without.
    pub idle: u64,
    /// Being connected to.
    pub login: u64,
    /// Transactions ended there.
    pub transactions: u64,
}

/// The numbers of one pool at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PoolNumbers {
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
    /// Of the address for reads.
    pub reads: bool,
    /// Clients that have, or wait for nothing.
    pub clients: u64,
    /// Clients that wait for a server.
    pub waiting: u64,
    /// For how long the first of them has waited, in milliseconds.
    pub waited_ms: u64,
    /// Servers with a client.
    pub busy: u64,
    /// Servers without.
    pub idle: u64,
    /// Servers that are being connected to.
    pub login: u64,
    /// Clients that are tied to their server.
    pub pinned: u64,
    /// Transactions ended.
    pub transactions: u64,
    /// Requests ended.
    pub queries: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Requests that had to wait.
    pub waits: u64,
    /// Requests given up since nothing came free.
    pub timeouts: u64,
    /// Clients whose work was lost with its server.
    pub lost: u64,
    /// Errors that said that the outcome of a commit is not known.
    pub unknown_commits: u64,
    /// Commits whose answer was lost with their server, and of which it was found out what became of them.
    pub commits_found: u64,
    /// Commits whose wait for replicas was cancelled.
    pub unreplicated_commits: u64,
    /// `Parse` messages that a server did not have to see again.
    pub parses_saved: u64,
    /// Clients that wait since no server may be had now: the route is not open, or the pool is paused.
    pub held: u64,
    /// Errors that clients got, by SQLSTATE: from servers, and from the proxy itself.
    pub errors: BTreeMap<String, u64>,
    /// Server connections by node.
    pub nodes: BTreeMap<String, NodeNumbers>,
    /// How long transactions took.
    #[serde(skip)]
    pub(crate) times: Times,
    /// How long those waited that had to.
    #[serde(skip)]
    pub(crate) wait_times: Times,
}

impl PoolNumbers {
    /// Adds those of another thread.
    pub(crate) fn add(&mut self, more: &PoolNumbers) {
        self.clients += more.clients;
        self.waiting += more.waiting;
        self.waited_ms = self.waited_ms.max(more.waited_ms);
        self.busy += more.busy;
        self.idle += more.idle;
        self.login += more.login;
        self.pinned += more.pinned;
        self.transactions += more.transactions;
        self.queries += more.queries;
        self.bytes_in += more.bytes_in;
        self.bytes_out += more.bytes_out;
        self.waits += more.waits;
        self.timeouts += more.timeouts;
        self.lost += more.lost;
        self.unknown_commits += more.unknown_commits;
        self.commits_found += more.commits_found;
        self.unreplicated_commits += more.unreplicated_commits;
        self.parses_saved += more.parses_saved;
        self.held += more.held;
        for (code, count) in &more.errors {
            *self.errors.entry(code.clone()).or_default() += count;
        }
        for (node, numbers) in &more.nodes {
            let sum = self.nodes.entry(node.clone()).or_default();
            sum.busy += numbers.busy;
            sum.idle += numbers.idle;
            sum.login += numbers.login;
            sum.transactions += numbers.transactions;
        }
        self.times.merge(&more.times);
        self.wait_times.merge(&more.wait_times);
    }

    /// A client gets an error.
    pub(crate) fn error(&mut self, code: &[u8]) {
        let code = String::from_utf8_lossy(code);
        if let Some(count) = self.errors.get_mut(&*code) {
            *count += 1;
        } else {
            let name = if self.errors.len() < CODES_MAX { &*code } else { "other" };
            *self.errors.entry(name.to_owned()).or_default() += 1;
        }
    }

    /// In Prometheus' text format, without the lines that describe.
    pub(crate) fn prometheus(&self, text: &mut String) {
        let kind = if self.reads { "read" } else { "write" };
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ");
        let labels =
            format!("database=\"{}\",user=\"{}\",address=\"{kind}\"", escape(&self.database), escape(&self.user));
        let numbers = [
            ("clients", self.clients),
            ("waiting", self.waiting),
            ("held", self.held),
            ("servers_busy", self.busy),
            ("servers_idle", self.idle),
            ("servers_login", self.login),
            ("pinned", self.pinned),
            ("transactions_total", self.transactions),
            ("queries_total", self.queries),
            ("received_bytes_total", self.bytes_in),
            ("sent_bytes_total", self.bytes_out),
            ("waits_total", self.waits),
            ("wait_timeouts_total", self.timeouts),
            ("lost_total", self.lost),
            ("unknown_commits_total", self.unknown_commits),
            ("commits_found_total", self.commits_found),
            ("unreplicated_commits_total", self.unreplicated_commits),
            ("parses_saved_total", self.parses_saved),
            ("longest_wait_us", self.wait_times.longest_us),
        ];
        for (name, value) in numbers {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "mainstay_pool_{name}{{{labels}}} {value}");
        }
        for (code, count) in &self.errors {
            let _ = writeln!(text, "mainstay_pool_errors_total{{{labels},sqlstate=\"{}\"}} {count}", escape(code));
        }
        for (node, numbers) in &self.nodes {
            for (state, count) in [("busy", numbers.busy), ("idle", numbers.idle), ("login", numbers.login)] {
                let _ = writeln!(
                    text,
                    "mainstay_pool_node_servers{{{labels},node=\"{}\",state=\"{state}\"}} {count}",
                    escape(node)
                );
            }
            let count = numbers.transactions;
            let _ =
                writeln!(text, "mainstay_pool_node_transactions_total{{{labels},node=\"{}\"}} {count}", escape(node));
        }
        for (quantile, thousandths) in [("0.5", 500), ("0.95", 950), ("0.99", 990), ("0.999", 999)] {
            let (done, waited) = (self.times.part(thousandths), self.wait_times.part(thousandths));
            let _ = writeln!(text, "mainstay_pool_transaction_us{{{labels},quantile=\"{quantile}\"}} {done}");
            let _ = writeln!(text, "mainstay_pool_wait_us{{{labels},quantile=\"{quantile}\"}} {waited}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_what_is_in_it(us in 4_u64..(1 << 31)) {
            let at = bucket(us);
            prop_assert!(us < upper(at));
            prop_assert!(at == 0 || us >= upper(at - 1), "{us} {at}");
        }
    }

    #[test]
    fn parts_are_near_the_truth() {
        let mut times = Times::default();
        assert_eq!(times.part(990), 0);
        (1..=1000).for_each(|us| times.add(us * 10));
        assert!((5000..5700).contains(&times.part(500)), "{}", times.part(500));
        assert!((9900..=10_000).contains(&times.part(990)), "{}", times.part(990));
        let mut text = String::new();
        PoolNumbers { user: "a\"b".into(), ..PoolNumbers::default() }.prometheus(&mut text);
        assert!(text.contains("user=\"a\\\"b\""), "{text}");
    }
}
