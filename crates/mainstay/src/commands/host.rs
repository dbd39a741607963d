//! `mainstay host`: one part of `apply`, done on a host as root. Reads one JSON object from standard input, prints one, and asks nobody.
//!
//! Each is idempotent, and one at a time on a host: a run whose connection was cut may still be at work when the next one comes.

use crate::cli::HostVerb;
use crate::failure::{Failure, Outcome};
use crate::on_host::{adopt, look, place, proof, service};
use crate::output;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::Read as _;
use std::time::Duration;
use tokio::time::Instant;

/// A file of a cluster, and what else is told, is not longer.
const INPUT_BYTES_MAX: u64 = 4 << 20;
/// How long the work of another run is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does it.
///
/// # Errors
/// Why it could not be done.
pub(crate) async fn run(verb: HostVerb) -> Outcome {
    let _one = alone(verb).await?;
    match verb {
        HostVerb::Look => print(&look::look(&told()?).await?),
        HostVerb::Install => print(&place::install()?),
        HostVerb::Packages => print(&place::packages().await?),
        HostVerb::Configure => print(&place::configure(&told()?).await?),
        HostVerb::Adopt => print(&adopt::bring(&told()?).await?),
        HostVerb::Start => print(&service::start(&told()?).await?),
        HostVerb::Reload => print(&service::reload(&told()?).await?),
        HostVerb::Restart => print(&service::restart(&told()?).await?),
        HostVerb::Retire => print(&service::retire(&told()?).await?),
        HostVerb::Status => print(&proof::status().await?),
        HostVerb::Prove => print(&proof::prove(&told()?).await?),
    }
    Ok(())
}

/// Who changes something is alone. Whoever looks is not kept waiting.
async fn alone(verb: HostVerb) -> Outcome<Option<File>> {
    if matches!(verb, HostVerb::Look | HostVerb::Status | HostVerb::Prove) {
        return Ok(None);
    }
    let path = "/run/mainstay-apply.lock";
    let wrong = |error: std::io::Error| Failure::failed(format!("{path}: {error}"));
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(wrong)?;
    let until = Instant::now() + PATIENCE;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= until {
            return Err(Failure::not_now("another apply has been at work on this host for a minute")
                .hint("wait until it has ended, or look what it does there: ps ax | grep 'mainstay host'"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(Some(file))
}

fn told<T: DeserializeOwned>() -> Outcome<T> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(INPUT_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| Failure::failed(format!("what is asked can not be read: {error}")))?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::usage(format!("what is asked is not understood: {error}"))
            .hint("`mainstay apply` runs this; programs of different versions do not understand each other")
    })
}

fn print(value: &impl Serialize) {
    output::object(value);
}
