//! Who gets which server, and when: attaching, releasing, waiting, opening. A server that becomes free goes straight to whoever has
//! waited longest. Absent: what they say to each other.

use super::client::{Client, Stage as ClientStage};
use super::link::Link;
use super::read_after::{heard, read_after, with_question};
use super::server::{Server, Stage};
use super::slab::{Id, Token};
use super::worker::{End, Worker};
use crate::registry::Place;
use crate::stats::add;
use crate::table::Held;
use mainstay_model::{Lsn, Span};
use mainstay_wire::reply::{self, Reply};
use mainstay_wire::{header, message};
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// What became of a client that needs a server.
pub(crate) enum Attached {
    /// It has this one, with its settings.
    Has(Id),
    /// It is told when it has one.
    Waits,
}

/// How long logging in to a server may take.
const LOGIN: Span = Span::seconds(10);
/// Of a pool's connections this part may log in at once.
const LOGINS_PART: usize = 4;
/// The longest pause between two attempts to open a connection, in milliseconds.
const RETRY_MOST_MS: u64 = 250;

impl Worker {
    pub(crate) fn put_server(&mut self, server: Box<Server>) {
        let (id, token) = (server.id, Token::Server(server.id).number());
        let mut server = server;
        if server.link.ending {
            self.broken.push(id);
        }
        let writes = !server.outbox.is_empty() || matches!(server.stage, Stage::Connecting);
        server.link.tell_writes(&self.poll, token, writes);
        self.servers.put(id, server);
    }

    /// Finds a server for a client's next transaction.
    pub(crate) fn attach(&mut self, client: &mut Client) -> Result<Attached, End> {
        if let Some(id) = client.server {
            // It was handed over, or is still being made ready.
            let ready = self.servers.get(id).is_some_and(|server| matches!(server.stage, Stage::Busy));
            return Ok(if ready { Attached::Has(id) } else { Attached::Waits });
        }
        let Some(index) = client.pool else { return Ok(Attached::Waits) };
        client.read_after = read_after(client)?;
        if client.waiting_since.is_some() {
            return Ok(Attached::Waits);
        }
        if self.pools.get(index).is_some_and(|pool| pool.waiting.is_empty())
            && let Some(mut server) = self.free_server(index)
        {
            self.hand(&mut server, client);
            let (id, ready) = (server.id, matches!(server.stage, Stage::Busy));
            self.put_server(server);
            return Ok(if ready { Attached::Has(id) } else { Attached::Waits });
        }
        self.wait(client, index)
    }

    /// A free server of this pool that may take work now.
    fn free_server(&mut self, index: usize) -> Option<Box<Server>> {
        if self.hub.paused.load(Ordering::Relaxed) {
            return None;
        }
        let kind = self.pools.get(index)?.key.kind;
        let mut kept = Vec::new();
        let mut found = None;
        while let Some(id) = self.pools.get_mut(index)?.free.pop() {
            let Some(server) = self.servers.take(id) else { continue };
            if self.rules.takes(kind, &server.place, self.now) && !server.link.ending {
                found = Some(server);
                break;
            }
            kept.push(id);
            self.put_server(server);
        }
        self.pools.get_mut(index)?.free.extend(kept.into_iter().rev());
        found
    }

    /// Gives a server to a client, and that client's settings to the server.
    fn hand(&mut self, server: &mut Server, client: &mut Client) {
        server.client = Some(client.id);
        client.server = Some(server.id);
        client.unnamed_here = false;
        server.began_us = self.now_us;
        let behind = client.read_after.filter(|after| server.replayed < *after);
        if behind.is_none() && Rc::ptr_eq(&server.applied, &client.settings) {
            server.stage = Stage::Busy;
            if matches!(client.stage, ClientStage::Entering) {
                self.enter(server, client);
            }
            return;
        }
        self.apply(server, client, behind);
    }

    /// The server gets its client's settings, and is asked whether it has replayed so far.
    pub(crate) fn apply(&mut self, server: &mut Server, client: &Client, behind: Option<Lsn>) {
        server.stage = Stage::Applying;
        server.since = self.now;
        let mut out = Vec::new();
        let way = server.applied.way_to(&client.settings);
        reply::query(&mut out, &with_question(way, behind));
        server.asked = behind.map(|after| (after, false));
        server.last_words = None;
        server.link.ending |= server.write(&out).is_err();
    }

    fn wait(&mut self, client: &mut Client, index: usize) -> Result<Attached, End> {
        let most = u64::try_from(self.options.max_held).unwrap_or(u64::MAX);
        if self.hub.waiting.load(Ordering::Relaxed) >= most {
            add(&self.stats.refused_held_full);
            return Err(End::Refuse(Reply::error(
                "FATAL",
                "53300",
                "too many clients wait for a database server",
                &format!("The proxy holds {most} at most. Nothing was sent to a server."),
                "Connect again in a moment; \"mainstay status\" tells the state of the cluster.",
            )));
        }
        self.hub.waiting.fetch_add(1, Ordering::Relaxed);
        add(&self.stats.held);
        add(&self.stats.held_total);
        client.waiting_since = Some(self.now);
        client.wait_began_us = self.now_us;
        if let Some(pool) = self.pools.get_mut(index) {
            pool.numbers.waits += 1;
            self.stats.changes.held(&mut client.counted);
            pool.waiting.push_back(client.id);
        }
        self.open_more(index);
        Ok(Attached::Waits)
    }

    /// The wait of a client ends, one way or the other.
    pub(crate) fn stop_waiting(&mut self, client: &mut Client) {
        if client.waiting_since.take().is_some() {
            self.hub.waiting.fetch_sub(1, Ordering::Relaxed);
            self.stats.held.fetch_sub(1, Ordering::Relaxed);
            self.hub.held_bytes.fetch_sub(std::mem::take(&mut client.held_bytes), Ordering::Relaxed);
            let waited = self.now_us.saturating_sub(client.wait_began_us);
            self.stats.changes.let_go(waited, self.now, &mut client.counted);
            if let Some(pool) = client.pool.and_then(|index| self.pools.get_mut(index)) {
                pool.numbers.wait_times.add(waited);
            }
        }
    }

    /// A waiting client goes before its turn.
    pub(crate) fn leave_queue(&mut self, client: &mut Client) {
        if client.waiting_since.is_some()
            && let Some(pool) = client.pool.and_then(|index| self.pools.get_mut(index))
        {
            pool.waiting.retain(|id| *id != client.id);
        }
        self.stop_waiting(client);
    }

    /// What a waiting client has sent so far is kept, within a bound for all.
    pub(crate) fn keep_held(&mut self, client: &mut Client) -> Result<(), End> {
        let bytes = u64::try_from(client.inbox.len()).unwrap_or(u64::MAX);
        let more = bytes.saturating_sub(client.held_bytes);
        let most = u64::try_from(self.options.max_held_bytes).unwrap_or(u64::MAX);
        if self.hub.held_bytes.fetch_add(more, Ordering::Relaxed).saturating_add(more) > most {
            self.hub.held_bytes.fetch_sub(more, Ordering::Relaxed);
            add(&self.stats.refused_held_full);
            self.leave_queue(client);
            return Err(End::Refuse(Reply::error(
                "FATAL",
                "53400",
                "too much work waits for a database server",
                &format!("The proxy keeps {most} bytes of it at most. Nothing was sent to a server."),
                "Send it again in a moment; \"mainstay status\" tells the state of the cluster.",
            )));
        }
        client.held_bytes += more;
        Ok(())
    }

    /// A server has no client any more. Whoever waits longest gets it.
    pub(crate) fn release(&mut self, server: &mut Server) {
        server.client = None;
        server.stage = Stage::Free;
        server.since = self.now;
        let old = self.now.since(server.born) > self.pooling.life;
        if server.tainted || old || self.rules.verdict(&server.place, self.now).is_some() {
            self.to_close.push(server.id);
            return;
        }
        if server.cancels > 0 {
            return;
        }
        self.offer(server);
    }

    /// A free server looks for somebody who waits.
    pub(crate) fn offer(&mut self, server: &mut Server) {
        let index = server.pool;
        let kind = self.pools.get(index).map(|pool| pool.key.kind);
        let takes = kind.is_some_and(|kind| self.rules.takes(kind, &server.place, self.now));
        let paused = self.hub.paused.load(Ordering::Relaxed);
        let serves = takes && !paused;
        while let Some(next) = self.pools.get_mut(index).filter(|_| serves).and_then(|pool| pool.waiting.pop_front()) {
            let Some(mut client) = self.clients.take(next) else { continue };
            let waits = client.waiting_since.is_some();
            if waits {
                self.stop_waiting(&mut client);
                let waited = self.now_us.saturating_sub(client.wait_began_us) / 1000;
                self.stats.longest_hold_ms.fetch_max(waited, Ordering::Relaxed);
                self.hand(server, &mut client);
                self.resume.push(next);
            }
            self.clients.put(next, client);
            if waits {
                return;
            }
        }
        if let Some(pool) = self.pools.get_mut(index) {
            pool.free.push(server.id);
        }
    }

    /// Free servers are offered again: the route, or a pause, has changed.
    pub(crate) fn offer_again(&mut self, index: usize) {
        let waiting = self.pools.get(index).map_or(0, |pool| pool.waiting.len());
        for _ in 0..waiting {
            let Some(mut server) = self.free_server(index) else { break };
            self.offer(&mut server);
            self.put_server(server);
        }
        self.open_more(index);
    }

    /// Opens as many connections as those who wait call for.
    pub(crate) fn open_more(&mut self, index: usize) {
        let reserve = self.pooling.reserve_after;
        let Some(pool) = self.pools.get(index) else { return };
        if self.now < pool.retry_at || pool.keys.is_none() || self.hub.paused.load(Ordering::Relaxed) {
            return;
        }
        let first = pool.waiting.front().copied();
        let waited = first.and_then(|id| self.clients.get(id)).and_then(|client| client.waiting_since);
        let long = waited.is_some_and(|since| self.now.since(since) > reserve);
        let threads = self.pooling.threads.max(1);
        let size = (self.pooling.size + if long { self.pooling.reserve } else { 0 }).div_ceil(threads);
        let Some(pool) = self.pools.get(index) else { return };
        // After a change everybody waits at once: a few logins at a time reach the new primary, each that ends calls for the next, and
        // those that are in serve already.
        let at_once = size.div_ceil(LOGINS_PART).max(2);
        for _ in 0..pool.lacking(size).min(at_once.saturating_sub(pool.opening)) {
            if !self.open(index) {
                break;
            }
        }
    }

    fn open(&mut self, index: usize) -> bool {
        let Some(kind) = self.pools.get(index).map(|pool| pool.key.kind) else { return false };
        let Ok(places) = self.rules.places(kind, self.now) else { return false };
        let load = |place: &Place| {
            let node = &place.target().node;
            self.servers.items().filter(|server| server.place.target().node == *node).count()
        };
        let Some(place) = places.into_iter().min_by_key(load) else { return false };
        let target = place.target().clone();
        let near = self.pooling.local.as_ref().filter(|(node, _)| *node == target.node);
        let link = match near {
            Some((_, path)) => Link::connect_unix(path),
            None => Link::connect_tcp(target.address, self.options.peer_timeout),
        };
        let id = self.servers.reserve();
        let watched = link.and_then(|mut link| link.watch(&self.poll, Token::Server(id).number(), true).map(|()| link));
        match watched {
            Ok(link) => {
                let settings = Rc::clone(&self.no_settings);
                let server = Server::new(id, link, index, place, settings, self.now);
                self.servers.put(id, Box::new(server));
                if let Some(pool) = self.pools.get_mut(index) {
                    pool.servers += 1;
                    pool.opening += 1;
                }
                true
            }
            Err(_) => {
                self.servers.free(id);
                self.put_off(index);
                false
            }
        }
    }

    /// An attempt failed: the next one comes a little later.
    pub(crate) fn put_off(&mut self, index: usize) {
        add(&self.stats.connect_failed);
        let first = u64::try_from(self.options.retry.as_millis()).unwrap_or(RETRY_MOST_MS);
        if let Some(pool) = self.pools.get_mut(index) {
            let pause = (first << pool.failures.min(6)).min(RETRY_MOST_MS);
            pool.failures += 1;
            pool.retry_at = self.now + Span(pause);
        }
    }

    /// Ends a connection to a server and forgets it.
    pub(crate) fn close_server(&mut self, mut server: Box<Server>) {
        if let Some(pool) = self.pools.get_mut(server.pool) {
            pool.servers = pool.servers.saturating_sub(1);
            if !server.is_in() {
                pool.opening = pool.opening.saturating_sub(1);
            }
            pool.free.retain(|id| *id != server.id);
            pool.left(&server);
        }
        if server.is_in() && server.is_at_rest() && server.outbox.is_empty() {
            let _ = server.write(b"X\0\0\0\x04");
        }
        self.servers.free(server.id);
    }

    /// A server gets its client's settings: what it says to that.
    pub(crate) fn applying(&mut self, server: &mut Server, bytes: &[u8]) -> Result<usize, mainstay_wire::WireError> {
        let mut at = 0;
        while let Some(head) = header(&bytes[at..])? {
            let Some(whole) = bytes.get(at..at + head.length) else { break };
            at += head.length;
            match head.tag {
                b'S' => server.note_parameter(whole),
                b'D' => heard(server, whole),
                b'E' => {
                    let words = message::field(whole, b'M').unwrap_or_default();
                    server.last_words = Some(String::from_utf8_lossy(words).into_owned());
                }
                b'Z' => {
                    self.applied(server);
                    break;
                }
                _ => {}
            }
        }
        Ok(at)
    }

    fn applied(&mut self, server: &mut Server) {
        let Some(mut client) = server.client.and_then(|id| self.clients.take(id)) else {
            self.to_close.push(server.id);
            return;
        };
        if let Some(words) = server.last_words.take() {
            self.to_close.push(server.id);
            (client.server, server.client) = (None, None);
            let error = Reply::error(
                "FATAL",
                "22023",
                "a server does not take this session's settings",
                &words,
                "Nothing was sent besides; connect again with other settings.",
            );
            self.refuse(&mut client, &error);
        } else {
            server.applied = Rc::clone(&client.settings);
            if self.is_behind(server) {
                let id = client.id;
                return self.put_client(client, id);
            }
            client.behind_since = None;
            server.stage = Stage::Busy;
            self.resume.push(client.id);
            if client.inbox.is_empty() {
                // What it was for was cancelled meanwhile.
                self.let_go.push(server.id);
            }
            if matches!(client.stage, ClientStage::Entering) {
                self.enter(server, &mut client);
            }
        }
        let id = client.id;
        self.put_client(client, id);
    }

    /// Requests that waited too long, and connections that are too old.
    pub(crate) fn tick_pool(&mut self, index: usize) {
        let kind = self.pools.get(index).map(|pool| pool.key.kind);
        let held = kind.and_then(|kind| self.rules.places(kind, self.now).err());
        let limit = match held {
            Some(_) => Span(u64::try_from(self.options.hold.as_millis()).unwrap_or(u64::MAX)),
            None => self.pooling.queue,
        };
        while let Some(first) = self.pools.get(index).and_then(|pool| pool.waiting.front().copied()) {
            let Some(mut client) = self.clients.take(first) else {
                self.pools[index].waiting.pop_front();
                continue;
            };
            let late = client.waiting_since.is_none_or(|since| self.now.since(since) > limit);
            if late {
                self.pools[index].waiting.pop_front();
                if client.waiting_since.is_some() {
                    self.stop_waiting(&mut client);
                    self.pools[index].numbers.timeouts += 1;
                    self.in_vain(&mut client, held);
                }
            }
            self.put_client(client, first);
            if !late {
                break;
            }
        }
        self.offer_again(index);
        let old: Vec<Id> = self.pools.get(index).map(|pool| pool.free.clone()).unwrap_or_default();
        for id in old {
            let (idle, life) = (self.pooling.idle, self.pooling.life);
            let now = self.now;
            let is_old = |server: &mut Server| now.since(server.since) > idle || now.since(server.born) > life;
            if self.servers.get(id).is_some_and(is_old) {
                self.to_close.push(id);
            }
        }
    }

    /// Logins that do not come to an end.
    pub(crate) fn tick_servers(&mut self) {
        for id in self.servers.ids() {
            let Some(server) = self.servers.get(id) else { continue };
            let late = !server.is_in() && self.now.since(server.born) > LOGIN;
            let stuck = matches!(server.stage, Stage::Applying) && self.now.since(server.since) > LOGIN;
            if late || stuck {
                server.last_words = Some("it did not answer in time".to_owned());
                self.broken.push(id);
            }
        }
    }

    fn in_vain(&mut self, client: &mut Client, held: Option<Held>) {
        add(&self.stats.refused_hold);
        let (code, message, hint) = match held {
            Some(held) => (
                "57P03",
                format!("no database server can take this request now: {held}"),
                "Try again; \"mainstay status\" and \"mainstay why\" tell what the cluster waits for.",
            ),
            None if self.hub.paused.load(Ordering::Relaxed) => (
                "57P03",
                "the proxy is paused".to_owned(),
                "Somebody said PAUSE at its console; RESUME there lets work go on.",
            ),
            None => (
                "53300",
                "no connection to the database server came free in time".to_owned(),
                "SHOW POOLS at the proxy's console tells who waits: end transactions sooner, or raise proxy.pool_size.",
            ),
        };
        let detail = "The statement was not executed: nothing of it was sent to a server.";
        let error = Reply::error("FATAL", code, &message, detail, hint);
        self.refuse(client, &error);
    }
}
