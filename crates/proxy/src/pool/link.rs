//! One socket that never blocks, with or without TLS. Absent: what the bytes mean.

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
    sockopt,
};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// See the module.
pub(crate) struct Link {
    fd: OwnedFd,
    tls: Option<Box<rustls::Connection>>,
    /// What the kernel was last asked to tell.
    writes_told: bool,
    /// There may be something to read.
    pub(crate) readable: bool,
    /// The other side has closed, or the connection is broken: read to the end.
    pub(crate) ending: bool,
}

struct Raw<'a>(BorrowedFd<'a>);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const READS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);

impl Link {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd, tls: None, writes_told: false, readable: false, ending: false }
    }

    /// Begins to connect. The socket becomes writable when that is decided.
    pub(crate) fn connect_tcp(address: SocketAddr, peer_timeout: Duration) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        tune(&fd, peer_timeout);
        Self::connecting(fd, |fd| connect(fd, &address))
    }

    /// The same with a Unix socket.
    pub(crate) fn connect_unix(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let address = SocketAddrUnix::new(path)?;
        Self::connecting(fd, |fd| connect(fd, &address))
    }

    fn connecting(fd: OwnedFd, connect: impl Fn(&OwnedFd) -> rustix::io::Result<()>) -> io::Result<Self> {
        match connect(&fd) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(Self::new(fd)),
            Err(error) => Err(error.into()),
        }
    }

    /// Did connecting succeed?
    pub(crate) fn connected(&self) -> io::Result<()> {
        Ok(sockopt::socket_error(&self.fd)??)
    }

    pub(crate) fn watch(&mut self, poll: &OwnedFd, token: u64, writes: bool) -> io::Result<()> {
        self.writes_told = writes;
        let flags = if writes { READS | EventFlags::OUT } else { READS };
        Ok(epoll::add(poll, &self.fd, EventData::new_u64(token), flags)?)
    }

    /// Asks to be told, or not to be told any more, when bytes can be written.
    pub(crate) fn tell_writes(&mut self, poll: &OwnedFd, token: u64, writes: bool) {
        let writes = writes || self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        if writes != self.writes_told {
            let flags = if writes { READS | EventFlags::OUT } else { READS };
            // Fails for a closed descriptor only, and this one is ours.
            let _ = epoll::modify(poll, &self.fd, EventData::new_u64(token), flags);
            self.writes_told = writes;
        }
    }

    /// From here on everything is TLS. `early` are bytes of it that were read already.
    pub(crate) fn start_tls(&mut self, mut tls: rustls::Connection, mut early: &[u8]) -> io::Result<()> {
        while !early.is_empty() {
            tls.read_tls(&mut early)?;
            tls.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
        self.tls = Some(Box::new(tls));
        self.readable = true;
        self.push()
    }

    pub(crate) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Reads; 0 = the end, `WouldBlock` = nothing now.
    pub(crate) fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            // Not `read`: the way through the layer for files costs a tenth more.
            let read = recv(&self.fd, &mut *buffer, RecvFlags::empty()).map(|(count, _)| count);
            match read {
                // A short read has emptied the socket; the next bytes come with an event of their own.
                Ok(count) if count < buffer.len() && !self.ending && count > 0 => self.readable = false,
                Err(rustix::io::Errno::AGAIN) => self.readable = false,
                _ => {}
            }
            return Ok(read?);
        };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
            match tls.read_tls(&mut Raw(self.fd.as_fd())) {
                Ok(0) => return Ok(0),
                Ok(_) => {}
                Err(error) => {
                    self.readable &= error.kind() != ErrorKind::WouldBlock;
                    return Err(error);
                }
            }
            let processed = tls.process_new_packets();
            while tls.wants_write() {
                match tls.write_tls(&mut Raw(self.fd.as_fd())) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }

    /// Writes what the other side takes now; `Ok` may be less than all.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return match Raw(self.fd.as_fd()).write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
                done => done,
            };
        };
        let taken = tls.writer().write(bytes)?;
        self.push()?;
        Ok(taken)
    }

    /// Writes what TLS has ready.
    pub(crate) fn push(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut Raw(self.fd.as_fd())) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A polite end of TLS, best effort.
    pub(crate) fn say_end(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = self.push();
        }
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write);
    }

    /// Nothing that is under way may arrive.
    pub(crate) fn break_off(&mut self) {
        let _ = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
    }
}

/// No delay, and an end for peers that vanished.
pub(crate) fn tune(fd: &impl AsFd, peer_timeout: Duration) {
    let timeout = u32::try_from(peer_timeout.as_millis()).unwrap_or(u32::MAX);
    let _ = sockopt::set_tcp_nodelay(fd, true);
    let _ = sockopt::set_socket_keepalive(fd, true);
    let _ = sockopt::set_tcp_keepidle(fd, Duration::from_secs(30));
    let _ = sockopt::set_tcp_keepintvl(fd, Duration::from_secs(10));
    let _ = sockopt::set_tcp_keepcnt(fd, 3);
    let _ = sockopt::set_tcp_user_timeout(fd, timeout);
}
