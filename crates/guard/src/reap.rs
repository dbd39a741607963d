//! What the agent does when the guard is dead or does not answer: kill whoever works in the data directory.

use crate::processes::{Home, kill_at_home};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the dying may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills every process whose working directory is the data directory (people's shells on a terminal excepted), repeatedly,
/// until none is left. Returns how many signals were sent. Blocks up to ten seconds: call it where that is allowed.
///
/// # Errors
/// When processes are left after ten seconds: they are stuck in the kernel, and their SIGKILL is pending.
pub fn reap_data_dir(data_dir: &Path) -> std::io::Result<usize> {
    let home = Home::of(data_dir);
    let begun = Instant::now();
    let mut killed = 0;
    loop {
        let sent = kill_at_home(&home);
        killed += sent;
        if sent == 0 {
            return Ok(killed);
        }
        if begun.elapsed() > PATIENCE {
            let text = format!(
                "processes in {} do not die, SIGKILL is pending: {:?}",
                data_dir.display(),
                crate::processes::at_home(&home)
            );
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
