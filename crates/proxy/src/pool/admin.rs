//! The console: a client that connects to the database `mainstay` (or `pgbouncer`, by habit) talks to the proxy itself, in PgBouncer's
//! words. Absent: SQL; anything that changes what is in the cluster's specification.

use super::client::{Client, Stage};
use super::options::PoolOptions;
use super::slab::Id;
use super::stats::PoolNumbers;
use super::worker::{End, Worker};
use crate::changes::Change;
use mainstay_model::{Moment, Span};
use mainstay_wire::reply::{self, Reply};
use mainstay_wire::{WireError, header, message};
use std::sync::atomic::Ordering;

impl Worker {
    /// Takes what somebody asks the proxy; says how much of it was used.
    pub(crate) fn console(&mut self, client: &mut Client, bytes: &[u8]) -> Result<usize, End> {
        let mut at = 0;
        let mut out = Vec::new();
        while !matches!(client.stage, Stage::Admin { reloads: Some(_), .. })
            && let Some(head) = header(&bytes[at..])?
        {
            if head.length > super::upstream::CHUNK {
                return Err(WireError::Body("too long a question").into());
            }
            let Some(whole) = bytes.get(at..at + head.length) else { break };
            at += head.length;
            match head.tag {
                b'X' => return Err(End::Bye),
                b'Q' => {
                    let text = String::from_utf8_lossy(message::query(whole)?).into_owned();
                    if self.command_of(client, &text, &mut out) {
                        reply::ready(&mut out, b'I');
                    }
                }
                b'S' => reply::ready(&mut out, b'I'),
                b'P' => {
                    let text = "the console takes simple queries only";
                    Reply::error("ERROR", "0A000", text, "", "Use psql, or the simple protocol.").encode(&mut out);
                }
                _ => {}
            }
        }
        client.write(&out).map_err(|_| End::Bye)?;
        Ok(at)
    }

    /// True: that was the answer. Otherwise it comes later.
    fn command_of(&mut self, client: &mut Client, text: &str, out: &mut Vec<u8>) -> bool {
        let words: Vec<String> = text
            .trim_matches(|c: char| c.is_whitespace() || c == ';')
            .split_whitespace()
            .map(str::to_ascii_lowercase)
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let may_change = matches!(client.stage, Stage::Admin { may_change: true, .. });
        match words[..] {
            [] => reply::message(out, b'I', |_| {}),
            ["show", what] => self.show(what, out),
            ["pause" | "resume" | "reload"] if !may_change => {
                Reply::error("ERROR", "42501", "only a superuser may do this", "", "").encode(out);
            }
            ["pause"] => {
                self.hub.paused.store(true, Ordering::Relaxed);
                self.hub.wake_all();
                reply::complete(out, "PAUSE");
            }
            ["resume"] => {
                self.hub.paused.store(false, Ordering::Relaxed);
                self.hub.wake_all();
                reply::complete(out, "RESUME");
            }
            ["reload"] if self.hub.ask_reload(self.thread, client.id, self.now) => {
                client.stage = Stage::Admin { may_change, reloads: Some(self.now) };
                return false;
            }
            ["reload"] => Reply::error("ERROR", "53400", "too many ask for that at once", "", "").encode(out),
            ["set", ..] => reply::complete(out, "SET"),
            _ => unknown(text, out),
        }
        true
    }

    /// The settings are read anew, or can not be: who asked for that hears so, and is heard again. The answer is to what was asked then: one that
    /// was given up, and comes late, is none to what was asked since.
    pub(crate) fn reloaded(&mut self, id: Id, asked: Moment, outcome: Result<(), &str>) {
        let Some(client) = self.clients.get(id) else { return };
        let Stage::Admin { reloads, .. } = &mut client.stage else { return };
        if reloads.take_if(|since| *since == asked).is_none() {
            return;
        }
        let mut out = Vec::new();
        match outcome {
            Ok(()) => reply::complete(&mut out, "RELOAD"),
            Err(why) => {
                let text = "the settings could not be read anew: the ones in use stay";
                Reply::error("ERROR", "F0000", text, why, "Mend that, and RELOAD again.").encode(&mut out);
            }
        }
        reply::ready(&mut out, b'I');
        client.link.ending |= client.write(&out).is_err();
        self.resume.push(id);
    }

    fn show(&mut self, what: &str, out: &mut Vec<u8>) {
        self.tell();
        let numbers = self.hub.numbers();
        match what {
            "version" => reply::table(out, &["version"], &[vec![format!("Mainstay {}", env!("CARGO_PKG_VERSION"))]]),
            "pools" => pools(&numbers, self.hub.paused.load(Ordering::Relaxed), out),
            "stats" => stats(&numbers, out),
            "databases" => self.databases(&numbers, out),
            "config" => self.config(out),
            "clients" => self.show_clients(out),
            "servers" => self.show_servers(out),
            "changes" => self.changes(out),
            "lists" => {
                let sum = |of: fn(&PoolNumbers) -> u64| numbers.iter().map(of).sum::<u64>().to_string();
                let row = |name: &str, value: String| vec![name.to_owned(), value];
                let rows = [
                    row("pools", numbers.len().to_string()),
                    row("used_clients", sum(|n| n.clients)),
                    row("used_servers", sum(|n| n.busy)),
                    row("free_servers", sum(|n| n.idle)),
                ];
                reply::table(out, &["list", "items"], &rows);
            }
            _ => unknown(&format!("SHOW {what}"), out),
        }
    }

    /// The last change of the primary, as clients noticed it.
    fn changes(&self, out: &mut Vec<u8>) {
        let row = |change: Change| {
            let errors: Vec<String> = change.errors.iter().map(|(code, count)| format!("{code}={count}")).collect();
            let numbers = [change.from_epoch, change.epoch, u64::from(change.planned), change.closed_ms, change.held];
            let mut row: Vec<String> = numbers.iter().map(u64::to_string).collect();
            row.extend([(change.longest_hold_us / 1000).to_string(), errors.join(" ")]);
            row.push(change.unknown_commits.to_string());
            row
        };
        let rows: Vec<_> = self.stats.changes().1.into_iter().map(row).collect();
        let columns = ["from", "epoch", "planned", "closed_ms", "held", "longest_hold_ms", "errors", "unknown_commits"];
        reply::table(out, &columns, &rows);
    }

    /// The settings, in PgBouncer's names where there is one.
    fn config(&self, out: &mut Vec<u8>) {
        let (options, pooling, shipped) = (&self.options, &self.pooling, PoolOptions::default());
        let ms = |span: Span| span.0.to_string();
        let seconds = |span: Span| (span.0 / 1000).to_string();
        let port = |addresses: &[std::net::SocketAddr]| {
            addresses.first().map(|address| address.port().to_string()).unwrap_or_default()
        };
        let row = |name: &str, value: String, default: String, changeable: bool| {
            vec![name.to_owned(), value, default, if changeable { "yes" } else { "no" }.to_owned()]
        };
        let rows = [
            row("listen_port", port(&options.write), String::new(), false),
            row("read_port", port(&options.read), String::new(), false),
            row("pool_mode", "transaction".into(), "session".into(), false),
            row("threads", pooling.threads.to_string(), shipped.threads.to_string(), false),
            row("default_pool_size", pooling.size.to_string(), shipped.size.to_string(), true),
            row("reserve_pool_size", pooling.reserve.to_string(), shipped.reserve.to_string(), true),
            row("reserve_pool_timeout", seconds(pooling.reserve_after), seconds(shipped.reserve_after), false),
            row("query_wait_timeout", seconds(pooling.queue), seconds(shipped.queue), true),
            row("hold_ms", options.hold.as_millis().to_string(), String::new(), true),
            row("max_client_conn", options.max_connections.to_string(), String::new(), true),
            row("max_lag_bytes", options.max_lag_bytes.to_string(), String::new(), true),
            row("server_idle_timeout", seconds(pooling.idle), seconds(shipped.idle), false),
            row("server_lifetime", seconds(pooling.life), seconds(shipped.life), false),
            row("queue_ms", ms(pooling.queue), ms(shipped.queue), true),
        ];
        reply::table(out, &["key", "value", "default", "changeable"], &rows);
    }

    fn databases(&self, numbers: &[PoolNumbers], out: &mut Vec<u8>) {
        let at = self.rules.view.write.as_ref().map(|target| target.address);
        let (host, port) = at.map(|at| (at.ip().to_string(), at.port().to_string())).unwrap_or_default();
        let mut names: Vec<&str> = numbers.iter().map(|numbers| numbers.database.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let paused = u8::from(self.hub.paused.load(Ordering::Relaxed)).to_string();
        let row = |name: &&str| {
            let used =
                numbers.iter().filter(|numbers| numbers.database == **name).map(|n| n.busy + n.idle).sum::<u64>();
            vec![
                (*name).to_owned(),
                host.clone(),
                port.clone(),
                (*name).to_owned(),
                self.pooling.size.to_string(),
                self.pooling.reserve.to_string(),
                "transaction".to_owned(),
                used.to_string(),
                paused.clone(),
            ]
        };
        let rows: Vec<_> = names.iter().map(row).collect();
        let columns = [
            "name",
            "host",
            "port",
            "database",
            "pool_size",
            "reserve_pool",
            "pool_mode",
            "current_connections",
            "paused",
        ];
        reply::table(out, &columns, &rows);
    }

    /// Of this thread.
    fn show_clients(&self, out: &mut Vec<u8>) {
        let row = |client: &Client| {
            let pool = client.pool.and_then(|index| self.pools.get(index))?;
            let state = match (client.waiting_since, client.server) {
                (Some(_), _) => "waiting",
                (None, Some(_)) => "active",
                (None, None) => "idle",
            };
            Some(vec![
                "C".to_owned(),
                pool.key.user.clone(),
                pool.key.database.clone(),
                state.to_owned(),
                client.waiting_since.map_or(0, |since| self.now.since(since).0).to_string(),
                client.pin.map(|pin| pin.why().to_owned()).unwrap_or_default(),
                client.statements.len().to_string(),
                if client.link.has_tls() { "TLS" } else { "" }.to_owned(),
            ])
        };
        let rows: Vec<_> = self.clients.items().filter_map(row).collect();
        reply::table(
            out,
            &["type", "user", "database", "state", "wait_ms", "pinned", "prepared_statements", "tls"],
            &rows,
        );
    }

    /// Of this thread.
    fn show_servers(&self, out: &mut Vec<u8>) {
        let rows: Vec<_> = self
            .servers
            .items()
            .filter_map(|server| {
                let (pool, target) = (self.pools.get(server.pool)?, server.place.target());
                let state = if server.client.is_some() {
                    "active"
                } else if server.is_in() {
                    "idle"
                } else {
                    "login"
                };
                Some(vec![
                    "S".to_owned(),
                    pool.key.user.clone(),
                    pool.key.database.clone(),
                    state.to_owned(),
                    target.address.ip().to_string(),
                    target.address.port().to_string(),
                    target.node.to_string(),
                    target.epoch.0.to_string(),
                    server.process.to_string(),
                    self.now.since(server.born).0.to_string(),
                ])
            })
            .collect();
        let columns = ["type", "user", "database", "state", "addr", "port", "node", "epoch", "remote_pid", "age_ms"];
        reply::table(out, &columns, &rows);
    }
}

fn unknown(text: &str, out: &mut Vec<u8>) {
    let text = format!("the console does not know {text:?}");
    let hint =
        "SHOW POOLS, CLIENTS, SERVERS, STATS, DATABASES, LISTS, CONFIG, CHANGES or VERSION; PAUSE, RESUME, RELOAD.";
    Reply::error("ERROR", "42601", &text, "", hint).encode(out);
}

fn pools(numbers: &[PoolNumbers], paused: bool, out: &mut Vec<u8>) {
    let row = |n: &PoolNumbers| {
        let mut row = vec![n.database.clone(), n.user.clone()];
        let active = n.busy;
        row.extend([active, n.waiting, 0, active, n.idle, 0, 0, n.login].map(|number| number.to_string()));
        row.extend([n.waited_ms / 1000, n.waited_ms % 1000 * 1000].map(|number| number.to_string()));
        row.push("transaction".to_owned());
        row.extend([n.clients, n.pinned].map(|number| number.to_string()));
        row.push(if n.reads { "read" } else { "write" }.to_owned());
        row.push(u8::from(paused).to_string());
        row
    };
    let columns = [
        "database",
        "user",
        "cl_active",
        "cl_waiting",
        "cl_cancel_req",
        "sv_active",
        "sv_idle",
        "sv_used",
        "sv_tested",
        "sv_login",
        "maxwait",
        "maxwait_us",
        "pool_mode",
        "clients",
        "pinned",
        "address",
        "paused",
    ];
    reply::table(out, &columns, &numbers.iter().map(row).collect::<Vec<_>>());
}

fn stats(numbers: &[PoolNumbers], out: &mut Vec<u8>) {
    let row = |n: &PoolNumbers| {
        let mut row = vec![n.database.clone(), n.user.clone()];
        let values = [
            n.transactions,
            n.queries,
            n.bytes_in,
            n.bytes_out,
            n.times.sum_us,
            n.wait_times.sum_us,
            n.times.part(500),
            n.times.part(990),
            n.wait_times.part(990),
            n.wait_times.longest_us,
            n.timeouts,
            n.lost,
            n.unknown_commits,
            n.unreplicated_commits,
            n.parses_saved,
        ];
        row.extend(values.map(|value| value.to_string()));
        row.push(if n.reads { "read" } else { "write" }.to_owned());
        row
    };
    let columns = [
        "database",
        "user",
        "total_xact_count",
        "total_query_count",
        "total_received",
        "total_sent",
        "total_xact_time",
        "total_wait_time",
        "xact_p50_us",
        "xact_p99_us",
        "wait_p99_us",
        "longest_wait_us",
        "wait_timeouts",
        "lost",
        "unknown_commits",
        "unreplicated_commits",
        "parses_saved",
        "address",
    ];
    reply::table(out, &columns, &numbers.iter().map(row).collect::<Vec<_>>());
}
