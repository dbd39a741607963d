//! Cancelling: a client's key leads to the server that works for it at this moment, and to no other. The server gets no other client
//! before the request is done, so that it can not hit the next one's query.

use super::link::Link;
use super::server::Stage;
use super::slab::{Id, Token};
use super::worker::Worker;
use mainstay_model::{Moment, Span};

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
        let server = self.clients.get(id).filter(|client| client.secret == secret && client.is_ready());
        let Some(server) = server.and_then(|client| client.server).and_then(|id| self.servers.get(id)) else { return };
        if server.due.is_empty() || self.cancellers.len() >= CANCELS_MAX {
            return;
        }
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
