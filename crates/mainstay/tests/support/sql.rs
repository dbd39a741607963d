//! One statement to a cluster's address for writes.

use crate::local::Cluster;
use crate::until::until;

impl Cluster {
    /// One statement through the address for writes, once it is taken; the last line.
    pub(crate) fn sql(&self, text: &str) -> String {
        until(text, || {
            let output = self.run(&["connect", "--", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
            let out = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success().then(|| out.lines().last().unwrap_or_default().to_owned())
        })
    }
}
