//! Faults of a data volume: full, or frozen.

use super::host::{Host, VOLUME};
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, Stdio};

/// The longest that a volume stays frozen, whatever happens to this program. Seconds.
const FROZEN_MOST: u32 = 45;

/// How often a slow volume is frozen, at most.
const STUTTERS_MOST: u32 = 60;

/// A frozen volume; it thaws when this is dropped, when this program dies, or after the longest time.
pub struct Freeze {
    child: Child,
    hold: Option<ChildStdin>,
}

impl Freeze {
    /// Freezes a host's data volume: everything that writes there waits.
    ///
    /// # Errors
    /// When it can not be frozen.
    pub(crate) fn new(host: &Host) -> Result<Freeze> {
        Freeze::at(host, VOLUME)
    }

    /// The same for what is mounted there.
    ///
    /// # Errors
    /// When it can not be frozen.
    pub(crate) fn at(host: &Host, place: &str) -> Result<Freeze> {
        let script = format!(
            "trap '' INT TERM; fsfreeze -f {place} || exit 1; echo frozen; timeout {FROZEN_MOST} cat >/dev/null; fsfreeze -u {place}"
        );
        // Outside of the host's processes: it must outlive them.
        let mut command =
            super::command::words(&["nsenter", "-t", &host.init().to_string(), "-m", "sh", "-c", &script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("freeze a volume")?;
        let hold = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        if line.trim() != "frozen" {
            bail!("the volume of {} was not frozen", host.name());
        }
        Ok(Freeze { child, hold })
    }

    /// Lets writes pass again.
    ///
    /// # Errors
    /// When it had thawed before, or does not.
    pub(crate) fn thaw(mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            bail!("the volume thawed by itself before it should");
        }
        drop(self.hold.take());
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the volume did not thaw: {status}");
        }
        Ok(())
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        drop(self.hold.take());
        let _ = self.child.wait();
    }
}

/// A volume that is frozen for a while again and again, as a disk that is far too slow.
pub(crate) struct Stutter {
    child: Child,
    hold: Option<ChildStdin>,
}

impl Stutter {
    /// Freezes for a quarter of a second, thaws for as long, and so on.
    ///
    /// # Errors
    /// When it can not be frozen.
    pub(crate) fn new(host: &Host) -> Result<Stutter> {
        let script = format!(
            "trap '' INT TERM; first=1; for n in $(seq {STUTTERS_MOST}); do fsfreeze -f {VOLUME} || exit 1; [ $first = 0 ] || echo frozen; first=0; \
             timeout 0.25 cat >/dev/null; ended=$?; fsfreeze -u {VOLUME} || exit 1; [ $ended = 124 ] || exit 0; timeout 0.25 cat >/dev/null; \
             [ $? = 124 ] || exit 0; done"
        );
        let mut command =
            super::command::words(&["nsenter", "-t", &host.init().to_string(), "-m", "sh", "-c", &script]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("slow a volume down")?;
        let hold = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        if line.trim() != "frozen" {
            bail!("the volume of {} was not frozen", host.name());
        }
        Ok(Stutter { child, hold })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When a freeze failed.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.hold.take());
        let status = self.child.wait()?;
        if !status.success() {
            bail!("a volume that was to be slow was not frozen each time, or did not thaw: {status}");
        }
        Ok(())
    }
}

impl Drop for Stutter {
    fn drop(&mut self) {
        drop(self.hold.take());
        let _ = self.child.wait();
    }
}

/// Fills a host's volume as the server's user: what the file system keeps back for root stays free, as on a usual host.
///
/// # Errors
/// When room is left.
pub(crate) fn fill(host: &Host) -> Result<String> {
    fill_at(host, VOLUME)
}

/// The same for what is mounted there.
///
/// # Errors
/// When room is left.
pub(crate) fn fill_at(host: &Host, place: &str) -> Result<String> {
    let script = format!(
        "mkdir -p {place}/filler && chown postgres {place}/filler || exit 1
         as=\"setpriv --reuid postgres --regid postgres --clear-groups\"
         room=$(df -B1 --output=avail {place} | tail -1)
         $as fallocate -l \"$room\" {place}/filler/a 2>/dev/null
         $as dd if=/dev/zero of={place}/filler/b bs=64k 2>/dev/null
         $as dd if=/dev/zero of={place}/filler/c bs=4k 2>/dev/null
         df -B1 --output=avail {place} | tail -1"
    );
    let left: u64 = host.run_now(&["sh", "-c", &script])?.trim().parse().context("df is not understood")?;
    if left > 64 * 1024 {
        bail!("{left} bytes of {place} of {} are still free", host.name());
    }
    Ok(format!("{left} bytes are free on {place} of {}", host.name()))
}

/// Removes the filler.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn empty(host: &Host) -> Result<()> {
    host.run_now(&["rm", "-rf", &format!("{VOLUME}/filler")]).map(drop)
}
