//! The relay: copies both directions of one connection until an end, or until it is cut.
//!
//! One buffer per thread serves all connections; a connection owns memory only for what its receiver did not take at once
//! (at most [`CHUNK`] bytes per direction), so an idle one costs next to nothing and a slow one stops its sender.
//! Absent: any knowledge of what is copied.

use crate::registry::Cut;
use crate::stats::Stats;
use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::oneshot;

/// Bytes taken at once.
const CHUNK: usize = 64 * 1024;
/// Chunks before other tasks get a turn.
const CHUNKS_PER_TURN: usize = 8;
/// How long a client may take to close after its server did.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// One side closed or broke.
    Closed,
    /// It had to be cut.
    Cut(Cut),
}

/// Which side of a direction failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    Reading,
    Writing,
}

/// Copies until the end. A cut resets the server's side, so that nothing under way arrives there, and closes the client's.
pub(crate) async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    mut cut: &mut oneshot::Receiver<Cut>,
    stats: &Stats,
) -> Ended {
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = Pump::new(from_client, to_server, &stats.bytes_to_server);
        let down = Pump::new(from_server, to_client, &stats.bytes_to_client);
        let (mut up, mut down) = (std::pin::pin!(up.run()), std::pin::pin!(down.run()));
        let mut up_ended = false;
        loop {
            tokio::select! {
                biased;
                Ok(why) = &mut cut => break Ended::Cut(why),
                _ = &mut down => break Ended::Closed,
                result = &mut up, if !up_ended => match result {
                    Err(Failed::Reading) => break Ended::Closed,
                    // The client has said everything, or the server takes no more; it may still have said something.
                    Ok(()) | Err(Failed::Writing) => up_ended = true,
                },
            }
        }
    };
    match ended {
        Ended::Cut(_) => drop(server.set_zero_linger()),
        Ended::Closed => farewell(client).await,
    }
    ended
}

/// Closes a client without losing what it has not read yet: a socket closed with unread input sends a reset, which would
/// overtake the last message.
pub(crate) async fn farewell(client: &mut TcpStream) {
    let drain = async {
        let mut sink = [0; 2048];
        let mut left = LINGER_BYTES_MAX;
        client.shutdown().await.ok();
        while let Ok(1..) = client.read(&mut sink).await {
            left = left.saturating_sub(sink.len());
            if left == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(LINGER, drain).await.ok();
}

/// One direction.
struct Pump<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    bytes: &'a AtomicU64,
    /// What was read and not yet written, from `written` on.
    rest: Vec<u8>,
    written: usize,
}

impl<'a> Pump<'a> {
    fn new(from: ReadHalf<'a>, to: WriteHalf<'a>, bytes: &'a AtomicU64) -> Self {
        Self { from, to, bytes, rest: Vec::new(), written: 0 }
    }

    async fn run(mut self) -> Result<(), Failed> {
        std::future::poll_fn(|context| self.poll(context)).await?;
        self.to.shutdown().await.map_err(|_| Failed::Writing)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        for _ in 0..CHUNKS_PER_TURN {
            ready!(self.write_rest(context))?;
            let more = BUFFER.with(|buffer| match buffer.try_borrow_mut() {
                Ok(mut buffer) => self.step(&mut buffer, context),
                Err(_) => self.step(&mut vec![0; CHUNK], context),
            });
            if !ready!(more)? {
                return Poll::Ready(Ok(()));
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and writes what the receiver takes. `false` at the end of input.
    fn step(&mut self, buffer: &mut [u8], context: &mut Context<'_>) -> Poll<Result<bool, Failed>> {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.from).poll_read(context, &mut read)).map_err(|_| Failed::Reading)?;
        let got = read.filled();
        if got.is_empty() {
            return Poll::Ready(Ok(false));
        }
        self.bytes.fetch_add(got.len() as u64, Ordering::Relaxed);
        let taken = match Pin::new(&mut self.to).poll_write(context, got) {
            Poll::Ready(taken) => taken.map_err(|_| Failed::Writing)?,
            Poll::Pending => 0,
        };
        if taken < got.len() {
            self.rest.extend_from_slice(&got[taken..]);
        }
        Poll::Ready(Ok(true))
    }

    fn write_rest(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        while self.written < self.rest.len() {
            let taken = ready!(Pin::new(&mut self.to).poll_write(context, &self.rest[self.written..]));
            let taken = taken.ok().filter(|taken| *taken > 0).ok_or(Failed::Writing)?;
            self.written += taken;
        }
        if self.written > 0 {
            (self.rest, self.written) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}
