//! Cancelling: a client's key leads to the server that works for it at this moment, and to no other. The server gets no other client
//! before the request is done, so that it can not hit the next one's query. What still waits here is answered here, and sent nowhere.

use super::client::{Client, Failed};
use super::link::Link;
use super::server::Stage;
use super::slab::{Id, Token};
use super::worker::Worker;
use mainstay_model::{Moment, Span};
use mainstay_wire::header;
use mainstay_wire::reply::{self, Reply};

/// A request on its way to a server.
pub(crate) struct Canceller {
    pub(crate) link: Link,
    server: Id,
    request: [u8; 16],
    sent: bool,
    born: Moment,
}

/// How long one may take.
const TIME: Span = Span::seconds(5);
/// On their way at once, at most.
const CANCELS_MAX: usize = 256;

impl Worker {
    /// Somebody shows a key.
    pub(crate) fn cancel(&mut self, process: u32, secret: u32) {
        let Some(id) = self.clients.at(process & 0x00ff_ffff) else { return };
        let known = self.clients.get(id).is_some_and(|client| client.secret == secret && client.is_ready());
        let Some(mut client) = known.then(|| self.clients.take(id)).flatten() else { return };
        let server = client.server.and_then(|id| self.servers.get(id));
        match server.filter(|server| !server.due.is_empty()).map(|server| server.id) {
            Some(server) => self.send_cancel(server),
            None => self.cancel_unsent(&mut client),
        }
        self.put_client(client, id);
    }

    /// Nothing of the client's is with a server: a request that waits is taken back.
    fn cancel_unsent(&mut self, client: &mut Client) {
        let server = client.server.and_then(|id| self.servers.get(id));
        let coming = server.as_ref().is_some_and(|server| matches!(server.stage, Stage::Applying));
        let rests = server.is_some_and(|server| server.rests());
        let waits = client.waiting_since.is_some() || coming;
        if !(waits || rests) || client.failed != Failed::No || client.skip > 0 || client.inbox.is_empty() {
            return;
        }
        let message = "canceling statement due to user request";
        let detail = "It waited for a database server: nothing of it was sent to one.";
        match first_request(&client.inbox) {
            Some(end) => {
                self.leave_queue(client);
                client.inbox.drain(..end);
                let mut out = Vec::new();
                self.note_error(client.pool, "57014");
                Reply::error("ERROR", "57014", message, detail, "").encode(&mut out);
                // Without a server, or with one that does nothing, there is no transaction.
                reply::ready(&mut out, b'I');
                client.link.ending |= client.write(&out).is_err();
                self.resume.push(client.id);
                self.let_go.extend(client.server.filter(|_| client.inbox.is_empty()));
            }
            // Where it ends is not known yet: what is still to come of it would be taken for a request of its own.
            None if waits => {
                self.leave_queue(client);
                let hint = "It was still being sent, so the session ends too. Connect again.";
                self.refuse(client, &Reply::error("FATAL", "57014", message, detail, hint));
            }
            None => {}
        }
    }

    /// On to the server that works for it.
    fn send_cancel(&mut self, server: Id) {
        if self.cancellers.len() >= CANCELS_MAX {
            return;
        }
        let Some(server) = self.servers.get(server) else { return };
        let target = server.place.target();
        let near = self.pooling.local.as_ref().filter(|(node, _)| *node == target.node);
        let link = match near {
            Some((_, path)) => Link::connect_unix(path),
            None => Link::connect_tcp(target.address, self.options.peer_timeout),
        };
        let mut request = [0; 16];
        request[..8].copy_from_slice(&[0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e]);
        request[8..12].copy_from_slice(&server.process.to_be_bytes());
        request[12..].copy_from_slice(&server.secret.to_be_bytes());
        let place = self.cancellers.reserve();
        let link = link.and_then(|mut link| link.watch(&self.poll, Token::Cancel(place).number(), true).map(|()| link));
        match link {
            Ok(link) => {
                server.cancels += 1;
                let canceller = Canceller { link, server: server.id, request, sent: false, born: self.now };
                self.cancellers.put(place, Box::new(canceller));
            }
            Err(_) => self.cancellers.free(place),
        }
    }

    /// News from the way.
    pub(crate) fn cancelling(&mut self, id: Id, writes: bool) {
        let Some(mut canceller) = self.cancellers.take(id) else { return };
        let mut over = canceller.link.ending && !writes;
        if writes && !canceller.sent {
            over = canceller.link.connected().is_err() || canceller.link.send(&canceller.request).is_err();
            canceller.sent = true;
        }
        if canceller.sent && !over {
            let mut byte = [0; 1];
            over = match canceller.link.recv(&mut byte) {
                Ok(_) => true,
                Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            };
        }
        if over {
            self.cancelled(id, canceller.server);
        } else {
            canceller.link.tell_writes(&self.poll, Token::Cancel(id).number(), !canceller.sent);
            self.cancellers.put(id, canceller);
        }
    }

    fn cancelled(&mut self, id: Id, server: Id) {
        self.cancellers.free(id);
        let Some(mut server) = self.servers.take(server) else { return };
        server.cancels = server.cancels.saturating_sub(1);
        if server.cancels == 0 && matches!(server.stage, Stage::Free) {
            self.offer(&mut server);
        }
        self.put_server(server);
    }

    /// Those that take too long; their server is not trusted with another client.
    pub(crate) fn tick_cancels(&mut self) {
        for id in self.cancellers.ids() {
            let late = self.cancellers.get(id).filter(|held| self.now.since(held.born) > TIME).map(|held| held.server);
            if let Some(server) = late {
                self.cancellers.free(id);
                if let Some(server) = self.servers.get(server) {
                    server.tainted = true;
                    if matches!(server.stage, Stage::Free) {
                        self.to_close.push(server.id);
                    }
                }
            }
        }
    }
}

/// Where the first request of these bytes ends, as a server would pass over it: a simple one with its message, one of the extended protocol
/// with its `Sync`. `None`: it is not whole.
fn first_request(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Ok(Some(head)) = header(&bytes[at..]) {
        let (begins, end) = (at == 0, at + head.length);
        if end > bytes.len() || head.tag == b'X' {
            return None;
        }
        if head.tag == b'S' || begins && matches!(head.tag, b'Q' | b'F') {
            return Some(end);
        }
        at = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_where_a_server_would_listen_again() {
        let message = |tag: u8, body: &[u8]| {
            let mut out = Vec::new();
            reply::message(&mut out, tag, |out| out.extend(body));
            out
        };
        let (query, sync) = (message(b'Q', b"select 1\0"), message(b'S', b""));
        let extended = [message(b'P', b"\0select 1\0\0\0"), message(b'E', b"\0\0\0\0\0")].concat();
        let end = |parts: &[&[u8]]| first_request(&parts.concat());
        assert_eq!(end(&[&query, &query]), Some(query.len()));
        assert_eq!(end(&[&extended, &sync, &query]), Some(extended.len() + sync.len()));
        // A server passes over a simple query, too, until the end of what went wrong.
        assert_eq!(end(&[&extended, &query, &sync]), Some(extended.len() + query.len() + sync.len()));
        assert_eq!(end(&[&sync]), Some(sync.len()));
        for whole in [&query, &[&extended[..], &sync].concat()] {
            assert!((0..whole.len()).all(|cut| end(&[&whole[..cut]]).is_none()));
        }
        assert_eq!(end(&[&message(b'X', b"")]), None);
        assert_eq!(end(&[b"\xff\xff\xff\xff\xff\xff"]), None);
    }
}
