//! Other programs that take all they can get: every core busy, and every data volume written and synced without pause.

use super::cluster::HostCluster;
use super::host::VOLUME;
use anyhow::{Context as _, Result};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::Instant;

/// Programs that end when this is dropped.
pub struct Saturation {
    programs: Vec<Child>,
    begun: (Instant, u64, u64),
    volumes: Vec<std::path::PathBuf>,
}

/// How busy the machine was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Busy {
    /// Part of the processors' time that was not idle, in hundredths.
    pub processors_percent: f64,
    /// Synced writes per second, by the other programs, on all volumes together.
    pub syncs_per_second: f64,
}

/// Writes a block and waits for the disk, without end. The count is the file's size.
const WRITER: &str = "while :; do dd if=/dev/zero of=load/blocks bs=16k count=200 oflag=dsync conv=notrunc 2>/dev/null; printf x >> load/count; done";
/// Blocks that the writer writes between two marks.
const BLOCKS: f64 = 200.0;

impl Saturation {
    /// Starts one busy loop for each core, and a writer on each node's volume.
    ///
    /// # Errors
    /// When a program can not be started.
    pub fn start(cluster: &HostCluster) -> Result<Saturation> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut saturation = Saturation { programs: Vec::new(), begun: (Instant::now(), 0, 0), volumes: Vec::new() };
        for _ in 0..cores {
            let mut command = cluster.client.command(&["sh", "-c", "while :; do :; done"]);
            saturation.programs.push(command.stdin(Stdio::null()).process_group(0).spawn().context("a busy loop")?);
        }
        for host in cluster.hosts.values() {
            let script = format!("mkdir -p {VOLUME}/load && cd {VOLUME} && {WRITER}");
            let mut command = host.command(&["sh", "-c", &script]);
            saturation.programs.push(command.stdin(Stdio::null()).process_group(0).spawn().context("a writer")?);
            saturation.volumes.push(host.path(&format!("{VOLUME}/load")));
        }
        let (all, idle) = processor_time()?;
        saturation.begun = (Instant::now(), all, idle);
        Ok(saturation)
    }

    /// How busy the machine has been since the start.
    ///
    /// # Errors
    /// When the kernel does not say.
    #[expect(clippy::cast_precision_loss, reason = "ticks and blocks of an hour")]
    pub fn busy(&self) -> Result<Busy> {
        let (all, idle) = processor_time()?;
        let (since, all_then, idle_then) = self.begun;
        let part = 1.0 - idle.saturating_sub(idle_then) as f64 / all.saturating_sub(all_then).max(1) as f64;
        let marks: u64 = self
            .volumes
            .iter()
            .filter_map(|dir| std::fs::metadata(dir.join("count")).ok())
            .map(|count| count.len())
            .sum();
        let syncs_per_second = marks as f64 * BLOCKS / since.elapsed().as_secs_f64();
        Ok(Busy { processors_percent: part * 100.0, syncs_per_second })
    }
}

/// Ticks of all processors so far: all, and idle.
fn processor_time() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line =
        text.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat is not understood")?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Ok((ticks.iter().take(8).sum(), ticks.iter().skip(3).take(2).sum()))
}

impl Drop for Saturation {
    fn drop(&mut self) {
        for program in &mut self.programs {
            // `nsenter` has a child inside the host, in the same group.
            let group = i32::try_from(program.id()).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(group) = group {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _ = program.wait();
        }
        for dir in &self.volumes {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}
