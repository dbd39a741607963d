//! What a program costs, with all the processes that it starts: time, processor time, the most memory at once.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Of `/proc/PID/stat`: what Linux has told for decades.
const TICKS: f64 = 100.0;

/// What one run cost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cost {
    /// Seconds.
    pub(crate) wall: f64,
    /// Seconds of processor time, user and system.
    pub(crate) cpu: f64,
    /// The most that all its processes held at once, in bytes.
    pub(crate) peak: u64,
    /// What it wrote to its output.
    pub(crate) says: String,
}

/// Processor time of all our children that have ended, in seconds.
fn ended() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("/proc/self/stat");
    // After the name: the state is the first; user and system time of ended children are the fourteenth and fifteenth.
    Ok((ticks(13)? + ticks(14)?) / TICKS)
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// What a process and those that it started hold, in bytes. What several share counts for each.
fn held(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    pages * 4096 + children(pid).into_iter().map(held).sum::<u64>()
}

fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Processes of this name that were left to us.
fn left(called: &str) -> Vec<u32> {
    children(std::process::id()).into_iter().filter(|pid| name(*pid) == called).collect()
}

/// What a program leaves behind in the background is ours from now on, and counted.
pub(crate) fn adopt() -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("become the parent of what is left behind")
}

/// Runs it to its end, and to the end of all processes of the name `behind` that it left behind.
pub(crate) fn measure(command: &mut Command, behind: Option<&str>) -> Result<Cost> {
    let shown = format!("{command:?}");
    let (before, began) = (ended()?, Instant::now());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("{shown} can not be started"))?;
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        let ours: u64 = behind.map_or(0, |called| left(called).into_iter().map(held).sum());
        peak = peak.max(held(child.id()) + ours);
        std::thread::sleep(LOOK);
    }
    while behind.is_some_and(|called| !left(called).is_empty()) {
        // Reaps one that has ended.
        let _ = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
        std::thread::sleep(LOOK);
    }
    let wall = began.elapsed().as_secs_f64();
    let output = child.wait_with_output()?;
    let says = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        bail!("{shown} ended with {}: {says} {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(Cost { wall, cpu: ended()? - before, peak, says })
}

/// The least, the middle, the most.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
}

/// Bytes of all files below a directory.
pub(crate) fn size_below(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_below(&entry.path()),
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_and_what_it_starts_is_measured() {
        let mut busy = Command::new("sh");
        busy.args(["-c", "echo said; sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'"]);
        let cost = measure(&mut busy, None).unwrap();
        assert!(cost.wall > 0.0 && cost.cpu > 0.05 && cost.peak > 100_000 && cost.says == "said", "{cost:?}");
        assert!(measure(Command::new("false").arg("x"), None).is_err());
        assert_eq!(spread([3.0, 1.0, 2.0].into_iter()), [1.0, 2.0, 3.0]);
    }
}
