//! Looks at the local server: by a query each probe interval, and by its process's end at once.

use mainstay_decide::io::Input;
use mainstay_model::{ServerObservation, Span};
use mainstay_ports::engine::Engine;
use mainstay_ports::process::{ProcessError, ServerProcess};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::warn;

/// Probes at the wanted interval, and at once when told.
pub async fn probe(
    engine: Arc<dyn Engine>,
    mut interval: watch::Receiver<Span>,
    now: Arc<Notify>,
    seen: watch::Sender<ServerObservation>,
    inputs: mpsc::Sender<Input>,
) {
    loop {
        let observation = engine.probe().await;
        seen.send_replace(observation.clone());
        if inputs.send(Input::Observed(observation)).await.is_err() {
            return;
        }
        let pause = interval.borrow_and_update().to_std();
        tokio::select! {
            () = sleep(pause) => {}
            () = now.notified() => {}
            // A shorter interval takes effect at once.
            changed = interval.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells at once when the server's process ends, and why the guard says it did.
pub async fn watch_exit(process: Arc<dyn ServerProcess>, started: Arc<Notify>, inputs: mpsc::Sender<Input>) {
    let mut fenced_before = 0;
    loop {
        let running = process.status().await.ok().and_then(|status| {
            fenced_before = status.fenced;
            status.server_pid
        });
        if running.is_none() {
            // Told when an order has started a server; looked at now and then in case that was missed.
            let _ = timeout(Duration::from_secs(1), started.notified()).await;
            continue;
        }
        match process.exited().await {
            Ok(()) => {
                let status = process.status().await.unwrap_or_default();
                if status.fenced > fenced_before {
                    let reason = status.last_exit.unwrap_or_else(|| "fenced by the guard".to_owned());
                    let _ = inputs.send(Input::Fenced(reason)).await;
                }
            }
            Err(ProcessError::GuardGone(why)) => warn!(%why, "the guard is gone, and its server with it"),
            Err(error) => {
                warn!(%error, "can not watch the server's process");
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        }
        if inputs.send(Input::ServerExited).await.is_err() {
            return;
        }
    }
}
