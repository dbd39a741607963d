//! Moving bytes of one connection: reading, handing on to whoever understands them, stopping a fast side for a slow one, closing.
//! Absent: what bytes mean, and who gets which server.

use super::client::{Client, Stage as ClientStage};
use super::server::{Server, Stage};
use super::slab::{Id, Token};
use super::upstream::CHUNK;
use super::worker::{CHUNKS_PER_TURN, CLOSING, End, Worker};
use crate::stats::add;
use mainstay_wire::WireError;
use std::io::ErrorKind;
use std::sync::atomic::Ordering;

impl Worker {
    /// Can this client's bytes go anywhere now?
    fn is_stopped(&mut self, client: &Client) -> bool {
        let reloads = matches!(client.stage, ClientStage::Admin { reloads: Some(_), .. });
        let looked_up = matches!(client.stage, ClientStage::LookedUp(_));
        if client.waiting_since.is_some() || client.is_slow() || reloads || looked_up {
            return true;
        }
        match client.server.and_then(|id| self.servers.get(id)) {
            Some(server) => !server.outbox.is_empty() || !matches!(server.stage, Stage::Busy),
            None => false,
        }
    }

    pub(crate) fn drive_client(&mut self, mut client: Box<Client>, writes: bool) {
        let id = client.id;
        if writes || !client.outbox.is_empty() {
            if client.flush().is_err() {
                // Nobody reads that any more; kept, it would look like a client that is slow, for ever.
                client.link.ending = true;
                client.outbox = Vec::new();
            }
            if !client.is_slow()
                && let Some(server) = client.server
            {
                self.stalled(server, client);
                return;
            }
        }
        let mut turns = 0;
        if matches!(client.stage, ClientStage::Entering)
            && client.server.is_none()
            && let Err(End::Refuse(error)) = self.attach(&mut client)
        {
            self.refuse(&mut client, &error);
        }
        let ended = loop {
            if matches!(client.stage, ClientStage::Closing) {
                break self.is_closed(&mut client);
            }
            if self.is_stopped(&client) {
                // Nobody waits for bytes of one that is gone.
                break client.link.ending && client.waiting_since.is_some() && self.is_gone(&mut client);
            }
            if turns >= CHUNKS_PER_TURN {
                self.resume.push(id);
                break false;
            }
            turns += 1;
            match self.read_client(&mut client) {
                Ok(true) => {}
                Ok(false) => break false,
                Err(End::Bye) => break true,
                Err(End::Refuse(error)) => self.refuse(&mut client, &error),
            }
        };
        if !ended
            && client.waiting_since.is_some()
            && let Err(End::Refuse(error)) = self.keep_held(&mut client)
        {
            self.refuse(&mut client, &error);
        }
        if ended { self.drop_client(client) } else { self.put_client(client, id) }
    }

    /// The client can take more: its server may go on, then the client itself.
    fn stalled(&mut self, server: Id, client: Box<Client>) {
        let id = client.id;
        self.put_client(client, id);
        if let Some(server) = self.servers.take(server) {
            self.drive_server(server, false);
        }
        if let Some(client) = self.clients.get(id)
            && (client.link.readable || !client.inbox.is_empty())
        {
            self.resume.push(id);
        }
    }

    /// Reads and uses some bytes. True: there may be more.
    fn read_client(&mut self, client: &mut Client) -> Result<bool, End> {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let kept = client.inbox.len().min(buffer.len());
        buffer[..kept].copy_from_slice(&client.inbox[..kept]);
        let mut filled = kept;
        let mut end = false;
        let mut more = false;
        if client.link.readable && filled < buffer.len() {
            match client.link.recv(&mut buffer[filled..]) {
                Ok(0) => end = true,
                Ok(count) => (filled, more) = (filled + count, client.link.readable),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => end = true,
            }
        }
        client.inbox = Vec::new();
        let used = if filled == 0 { Ok(0) } else { self.use_bytes(client, &buffer[..filled]) };
        let used = match used {
            Ok(used) => {
                client.inbox.extend_from_slice(&buffer[used..filled]);
                used
            }
            Err(end) => {
                self.read_buffer = buffer;
                return Err(end);
            }
        };
        self.read_buffer = buffer;
        if end {
            return Err(End::Bye);
        }
        Ok(more || (used > 0 && !client.inbox.is_empty()))
    }

    fn use_bytes(&mut self, client: &mut Client, bytes: &[u8]) -> Result<usize, End> {
        match client.stage {
            ClientStage::Ready => self.upstream(client, bytes),
            ClientStage::Admin { .. } => self.console(client, bytes),
            ClientStage::Entering | ClientStage::Closing | ClientStage::LookedUp(_) => Ok(0),
            ClientStage::Start | ClientStage::Proving(_) => self.entering(client, bytes),
        }
    }

    /// A client that was told to go: has it read that?
    fn is_closed(&mut self, client: &mut Client) -> bool {
        if client.outbox.is_empty() {
            client.link.say_end();
        }
        let mut sink = [0; 2048];
        for _ in 0..CHUNKS_PER_TURN {
            match client.link.recv(&mut sink) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
        self.now.since(client.since) > CLOSING
    }

    /// A client that waits: is it still there? What it sends meanwhile is kept.
    fn is_gone(&mut self, client: &mut Client) -> bool {
        let mut buffer = [0; 2048];
        while client.inbox.len() < CHUNK {
            match client.link.recv(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => client.inbox.extend_from_slice(&buffer[..count]),
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
        true
    }

    pub(crate) fn put_client(&mut self, mut client: Box<Client>, id: Id) {
        let writes = !client.outbox.is_empty();
        client.link.tell_writes(&self.poll, Token::Client(id).number(), writes);
        if client.link.ending && !client.link.readable {
            // Broken while writing: the end is read next.
            client.link.readable = true;
            self.resume.push(id);
        }
        self.clients.put(id, client);
    }

    pub(crate) fn drop_client(&mut self, mut client: Box<Client>) {
        if client.waiting_since.is_some() {
            add(&self.stats.left_while_held);
        }
        self.leave_queue(&mut client);
        self.hub.clients.fetch_sub(1, Ordering::Relaxed);
        if let Some(pool) = client.pool.and_then(|index| self.pools.get_mut(index)) {
            pool.clients = pool.clients.saturating_sub(1);
            self.stats.open(client.kind).fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(mut server) = client.server.and_then(|id| self.servers.take(id)) {
            server.client = None;
            let clean = server.is_at_rest() && client.pin.is_none() && matches!(server.stage, Stage::Busy);
            if clean && client.skip == 0 {
                self.release(&mut server);
                self.put_server(server);
            } else {
                self.close_server(server);
            }
        }
        self.clients.free(client.id);
    }

    pub(crate) fn drive_server(&mut self, mut server: Box<Server>, writes: bool) {
        if writes && matches!(server.stage, Stage::Connecting) {
            if let Err(why) = self.connected(&mut server) {
                return self.lose(server, &why);
            }
        } else if writes || !server.outbox.is_empty() {
            server.link.ending |= server.flush().is_err();
            if server.outbox.is_empty() {
                self.resume.extend(server.client);
            }
        }
        for _ in 0..CHUNKS_PER_TURN {
            let slow = server.client.and_then(|id| self.clients.get(id)).is_some_and(|client| client.is_slow());
            if !server.link.readable || slow {
                return self.put_server(server);
            }
            match self.read_server(&mut server) {
                Ok(()) => {}
                Err(why) => return self.lose(server, &why),
            }
        }
        self.go_on.push(server.id);
        self.put_server(server);
    }

    pub(crate) fn read_server(&mut self, server: &mut Server) -> Result<(), String> {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let kept = server.inbox.len().min(buffer.len());
        buffer[..kept].copy_from_slice(&server.inbox[..kept]);
        let read = server.link.recv(&mut buffer[kept..]);
        let outcome = match read {
            Ok(0) => Err("it closed the connection".to_owned()),
            Ok(count) => {
                server.inbox.clear();
                let filled = kept + count;
                self.use_answer(server, &buffer[..filled]).map(|used| {
                    server.inbox.extend_from_slice(&buffer[used..filled]);
                })
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        self.read_buffer = buffer;
        outcome
    }

    fn use_answer(&mut self, server: &mut Server, bytes: &[u8]) -> Result<usize, String> {
        match server.stage {
            Stage::Busy => {
                let client = server.client.and_then(|id| self.clients.take(id));
                let Some(mut client) = client else { return Err("its client is gone".to_owned()) };
                let used = self.downstream(server, &mut client, bytes);
                let id = client.id;
                self.put_client(client, id);
                used.map_err(|error| error.to_string())
            }
            Stage::Applying => self.applying(server, bytes).map_err(|error| error.to_string()),
            Stage::Free => Self::aside(server, bytes).map_err(|error| error.to_string()),
            Stage::Connecting => Ok(0),
            Stage::AskedTls | Stage::LoggingIn(_) | Stage::Checking(_) => self.logging_in(server, bytes),
        }
    }

    /// What a server says unasked.
    fn aside(server: &mut Server, bytes: &[u8]) -> Result<usize, WireError> {
        let mut at = 0;
        while let Some(head) = mainstay_wire::header(&bytes[at..])? {
            let Some(whole) = bytes.get(at..at + head.length) else { break };
            at += head.length;
            match head.tag {
                b'S' => server.note_parameter(whole),
                b'N' => {}
                _ => server.tainted = true,
            }
        }
        Ok(at)
    }
}
