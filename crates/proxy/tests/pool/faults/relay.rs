//! A relay that breaks what it passes after a given byte. Absent: what the bytes mean.

use crate::support::LOCAL;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};

/// From the client on, or back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    Up,
    Down,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Both sides see an orderly end.
    Close,
    /// Both sides see a reset.
    Reset,
    /// Nothing passes any more, and nobody is told.
    Stall,
}

/// What happens, and after how many bytes of one way.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub way: Way,
    pub after: usize,
    pub kind: Kind,
}

#[derive(Default)]
struct Shared {
    /// What is to come.
    armed: Mutex<Option<Fault>>,
    passed: [AtomicUsize; 2],
    /// It has happened.
    happened: watch::Sender<bool>,
    release: Notify,
}

/// See the module.
pub struct Relay {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(LOCAL).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let passing = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                while connections.try_join_next().is_some() {}
                let shared = Arc::clone(&passing);
                connections.spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    near.set_nodelay(true).unwrap();
                    far.set_nodelay(true).unwrap();
                    pass(near, far, &shared).await;
                });
            }
        });
        Self { address, shared, task }
    }

    /// Counts from here on, and breaks the connection once.
    pub fn arm(&self, fault: Fault) {
        self.count();
        self.shared.happened.send_replace(false);
        *self.shared.armed.lock().unwrap() = Some(fault);
    }

    /// Done when it has happened.
    pub async fn happened(&self) {
        self.shared.happened.subscribe().wait_for(|happened| *happened).await.unwrap();
    }

    /// Counts from here on.
    pub fn count(&self) {
        self.shared.passed.iter().for_each(|count| count.store(0, Ordering::SeqCst));
    }

    /// Bytes that have passed since then.
    pub fn passed(&self, way: Way) -> usize {
        self.shared.passed[way as usize].load(Ordering::SeqCst)
    }

    /// Ends what stalls.
    pub fn release(&self) {
        self.shared.release.notify_waiters();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// How many of these bytes pass, and what happens then.
    fn account(&self, way: Way, count: usize) -> (usize, Option<Kind>) {
        let passed = &self.passed[way as usize];
        let mut armed = self.armed.lock().unwrap();
        let before = passed.load(Ordering::SeqCst);
        let due = armed.take_if(|fault| fault.way == way && before + count >= fault.after);
        let pass = due.map_or(count, |fault| fault.after - before);
        passed.fetch_add(pass, Ordering::SeqCst);
        (pass, due.map(|fault| fault.kind))
    }
}

async fn pass(mut near: TcpStream, mut far: TcpStream, shared: &Shared) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let (way, read) = tokio::select! {
            read = near.read(&mut up) => (Way::Up, read),
            read = far.read(&mut down) => (Way::Down, read),
        };
        let count = match read {
            Ok(0) => return end(near, far).await,
            Ok(count) => count,
            Err(_) => return reset(near, far),
        };
        let (pass, due) = shared.account(way, count);
        let written = match way {
            Way::Up => far.write_all(&up[..pass]).await,
            Way::Down => near.write_all(&down[..pass]).await,
        };
        let Some(kind) = due else {
            match written {
                Ok(()) => continue,
                Err(_) => return reset(near, far),
            }
        };
        let released = shared.release.notified();
        match kind {
            Kind::Reset => {
                reset(near, far);
                shared.happened.send_replace(true);
            }
            Kind::Close => {
                let _ = (near.shutdown().await, far.shutdown().await);
                shared.happened.send_replace(true);
                end(near, far).await;
            }
            Kind::Stall => {
                shared.happened.send_replace(true);
                released.await;
            }
        }
        return;
    }
}

/// An end that overtakes nothing: what still comes is read, since a socket that is closed with unread bytes sends a reset.
async fn end(mut near: TcpStream, mut far: TcpStream) {
    let _ = (near.shutdown().await, far.shutdown().await);
    let mut sink = [0; 2048];
    let mut rest = [0; 2048];
    let drained = async {
        while near.read(&mut sink).await.is_ok_and(|count| count > 0) {}
        while far.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), drained).await;
}

fn reset(near: TcpStream, far: TcpStream) {
    let _ = (near.set_zero_linger(), far.set_zero_linger());
}
