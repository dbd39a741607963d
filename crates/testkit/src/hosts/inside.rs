//! A thread that lives in a host's network: whatever connects on its runtime connects from that host.
//!
//! A network namespace belongs to a thread, so the runtime has exactly one. The thread ends when the handle is dropped.

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A runtime inside a host's network.
pub struct Inside {
    handle: Handle,
    // Dropping it ends the thread.
    _stop: oneshot::Sender<()>,
}

/// Moves this thread into the network namespace that the file names.
///
/// # Errors
/// When the file is none, or this process may not.
pub fn enter(namespace: &Path) -> Result<()> {
    let file = File::open(namespace).with_context(|| format!("open {}", namespace.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter the network {}", namespace.display()))
}

impl Inside {
    /// Starts the thread in the network namespace that the file names.
    ///
    /// # Errors
    /// When the thread can not enter it.
    pub fn start(namespace: &Path) -> Result<Inside> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, entered) = std::sync::mpsc::channel();
        let namespace = namespace.to_owned();
        std::thread::Builder::new().name("inside".to_owned()).spawn(move || {
            let made = enter(&namespace)
                .and_then(|()| Builder::new_current_thread().enable_all().build().context("start a runtime"));
            match made {
                Ok(runtime) => {
                    let _ = ready.send(Ok(runtime.handle().clone()));
                    let _ = runtime.block_on(stopped);
                    runtime.shutdown_background();
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let handle = entered.recv().context("the thread inside the host ended at once")??;
        Ok(Inside { handle, _stop: stop })
    }

    /// The runtime: what is spawned on it runs inside.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs this inside and waits for it.
    ///
    /// # Errors
    /// When it panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        self.handle.spawn(work).await.context("the work inside the host failed")
    }
}
