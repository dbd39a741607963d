//! The loop: one thread, `poll`, a Unix socket. Everything here is about being asked; what is done stands in `keeper`.
//!
//! Requests that have arrived are read before the deadline is judged: an extension that lies in the socket when a starved
//! guard wakes is the fact that counts, for the lease behind it was renewed.

use crate::frames::{Answer, Lines, Response, decode_request, encode};
use crate::keeper::Keeper;
use mainstay_model::Moment;
use mainstay_ports::clock::boot_now;
use mainstay_ports::process::ProcessError;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 16;
/// Bytes of answers that wait for a slow reader; beyond it the connection ends.
const MAX_BACKLOG: usize = 256 * 1024;

struct Connection {
    stream: UnixStream,
    lines: Lines,
    backlog: Vec<u8>,
}

/// Signals, as readable streams.
pub(crate) struct Signals {
    child: UnixStream,
    end: UnixStream,
}

impl Signals {
    /// Registers them. A hang-up of the terminal is ignored.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub(crate) fn new() -> std::io::Result<Signals> {
        let pair = |signals: &[i32]| -> std::io::Result<UnixStream> {
            let (read, write) = UnixStream::pair()?;
            read.set_nonblocking(true)?;
            for signal in signals {
                signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
            }
            Ok(read)
        };
        let child = pair(&[signal_hook::consts::SIGCHLD])?;
        let end = pair(&[signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])?;
        // Registered so that they do not end the process; nobody reads.
        let ignored = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGHUP, signal_hook::consts::SIGUSR1, signal_hook::consts::SIGUSR2] {
            signal_hook::flag::register(signal, ignored.clone())?;
        }
        Ok(Signals { child, end })
    }

    fn drain(stream: &UnixStream) -> bool {
        let mut buffer = [0u8; 64];
        let mut any = false;
        while (&*stream).read(&mut buffer).is_ok_and(|count| count > 0) {
            any = true;
        }
        any
    }
}

/// Serves until the guard was told to end and no server is left.
///
/// # Errors
/// When the operating system refuses a timer or to wait.
pub(crate) fn serve(listener: &UnixListener, signals: &Signals, keeper: &mut Keeper) -> std::io::Result<()> {
    // On the boot-time clock, so that a host that wakes from suspend fences at once.
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let mut connections: BTreeMap<u64, Connection> = BTreeMap::new();
    let mut next = 0u64;
    loop {
        keeper.tick();
        deliver(keeper, &mut connections);
        if keeper.finished() {
            keeper.say("ends: it was asked to, and no server is left");
            return Ok(());
        }
        arm(&timer, keeper.deadline())?;
        wait(listener, signals, &timer, keeper, &connections)?;
        Signals::drain(&signals.child);
        if Signals::drain(&signals.end) {
            keeper.terminate();
        }
        accept(listener, &mut connections, &mut next, keeper);
        let numbers: Vec<u64> = connections.keys().copied().collect();
        for number in numbers {
            let Some(connection) = connections.get_mut(&number) else { continue };
            if let Err(why) = hear(number, connection, keeper) {
                connections.remove(&number);
                keeper.forget(number);
                keeper.say(&format!("connection {number} ended: {why}"));
            }
        }
    }
}

fn arm(timer: &OwnedFd, deadline: Option<Moment>) -> std::io::Result<()> {
    let at = deadline.map_or(0, |moment| moment.0.max(1));
    let (seconds, rest) = (i64::try_from(at / 1000).unwrap_or(i64::MAX), at % 1000);
    let it_value = Timespec { tv_sec: seconds, tv_nsec: i64::try_from(rest * 1_000_000).unwrap_or(0) };
    let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval, it_value })?;
    Ok(())
}

/// Waits until something is readable, or due.
fn wait(
    listener: &UnixListener,
    signals: &Signals,
    timer: &OwnedFd,
    keeper: &Keeper,
    connections: &BTreeMap<u64, Connection>,
) -> std::io::Result<()> {
    let mut watched = vec![
        PollFd::new(listener, PollFlags::IN),
        PollFd::new(&signals.child, PollFlags::IN),
        PollFd::new(&signals.end, PollFlags::IN),
        PollFd::new(timer, PollFlags::IN),
    ];
    watched.extend(keeper.watched().into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    for connection in connections.values() {
        let out = if connection.backlog.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        watched.push(PollFd::from_borrowed_fd(connection.stream.as_fd(), PollFlags::IN | out));
    }
    // A second way to wake at the deadline, should the timer fail; and the only one for the steps of killing.
    let timeout = keeper.due().map(|due| due.since(boot_now()).0);
    let timeout = timeout.map(|millis| Timespec {
        tv_sec: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(millis % 1000 * 1_000_000).unwrap_or(0),
    });
    match poll(&mut watched, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn accept(listener: &UnixListener, connections: &mut BTreeMap<u64, Connection>, next: &mut u64, keeper: &mut Keeper) {
    while let Ok((stream, _)) = listener.accept() {
        let peer = rustix::net::sockopt::socket_peercred(&stream);
        let welcome = peer.as_ref().is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid());
        if !welcome {
            keeper.say(&format!("refused a connection of another user: {peer:?}"));
            continue;
        }
        if connections.len() >= MAX_CONNECTIONS || stream.set_nonblocking(true).is_err() {
            keeper.say(&format!("refused a connection: {MAX_CONNECTIONS} are open"));
            continue;
        }
        *next += 1;
        connections.insert(*next, Connection { stream, lines: Lines::default(), backlog: Vec::new() });
    }
}

/// Reads what has arrived, once, and asks the keeper.
fn hear(number: u64, connection: &mut Connection, keeper: &mut Keeper) -> Result<(), String> {
    let mut buffer = [0u8; 16 * 1024];
    match connection.stream.read(&mut buffer) {
        Ok(0) => return Err("closed by the other side".to_owned()),
        Ok(count) => connection.lines.push(buffer.get(..count).unwrap_or_default())?,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
        Err(error) => return Err(error.to_string()),
    }
    while let Some(line) = connection.lines.next_line() {
        match decode_request(&line) {
            Ok(request) => keeper.ask((number, request.id), request.ask),
            Err((id, text)) => append(connection, id, Answer::Failed(ProcessError::Refused(text)))?,
        }
    }
    flush(connection)
}

/// Sends the answers that are ready.
fn deliver(keeper: &mut Keeper, connections: &mut BTreeMap<u64, Connection>) {
    for ((number, id), answer) in keeper.take_answers() {
        let Some(connection) = connections.get_mut(&number) else { continue };
        if let Err(why) = append(connection, id, answer).and_then(|()| flush(connection)) {
            connections.remove(&number);
            keeper.forget(number);
            keeper.say(&format!("connection {number} ended: {why}"));
        }
    }
}

fn append(connection: &mut Connection, id: u64, answer: Answer) -> Result<(), String> {
    let frame = encode(&Response { id, answer })?;
    if connection.backlog.len() + frame.len() > MAX_BACKLOG {
        return Err("it does not read its answers".to_owned());
    }
    connection.backlog.extend(frame);
    Ok(())
}

fn flush(connection: &mut Connection) -> Result<(), String> {
    while !connection.backlog.is_empty() {
        match connection.stream.write(&connection.backlog) {
            Ok(count) => drop(connection.backlog.drain(..count)),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}
