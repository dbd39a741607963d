//! What `/proc` tells of the server's processes, and signals to exactly them. Absent: ending the server (the guard does that).

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A process of the server, held by a descriptor so that the number can not come to mean another.
pub(crate) struct Held {
    fd: OwnedFd,
}

/// Takes hold of a process, provided that it works in `data_dir`.
pub(crate) fn hold(pid: u32, data_dir: &Path) -> io::Result<Held> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
    let fd = pidfd_open(number, PidfdFlags::empty())?;
    // The descriptor came first: if the process works in our directory now, it is the one that the descriptor names.
    let works_in = std::fs::read_link(format!("/proc/{pid}/cwd"))?;
    if works_in != data_dir.canonicalize()? {
        return Err(io::Error::other(format!("process {pid} works in {}", works_in.display())));
    }
    Ok(Held { fd })
}

impl Held {
    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, signal)?)
    }
}

/// Processes that work in this directory.
pub(crate) fn working_in(data_dir: &Path) -> Vec<u32> {
    let Ok(wanted) = data_dir.canonicalize() else { return Vec::new() };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == wanted)).collect()
}

/// Is the process stopped (SIGSTOP, or traced)?
pub(crate) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some('T' | 't'))
}

/// The children of a process, with how they call themselves.
pub(crate) fn children(pid: u32) -> Vec<(u32, String)> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let pids: Vec<u32> = match listed {
        Ok(text) => text.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
        // A kernel without that file: ask every process for its parent.
        Err(_) => {
            let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
            entries
                .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
                .filter(|child| parent(*child) == Some(pid))
                .collect()
        }
    };
    pids.into_iter().map(|child| (child, title(child))).collect()
}

/// How a process calls itself.
pub(crate) fn title(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Who listens at this address, in words; `None` when it can not be seen (another user's process, or none).
pub(crate) fn listener(at: std::net::SocketAddr) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let inode = tables.iter().find_map(|table| listening(&std::fs::read_to_string(table).ok()?, at))?;
    let wanted = format!("socket:[{inode}]");
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let holds = |pid: &u32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|to| to.as_os_str() == wanted.as_str())
    };
    let pid = pids.into_iter().find(holds)?;
    let title: String = title(pid).chars().take(80).collect();
    Some(format!("process {pid} ({title})"))
}

/// The number of the socket that listens at this address, or at every address, by the kernel's table.
fn listening(table: &str, at: std::net::SocketAddr) -> Option<String> {
    // Addresses are printed as words in the host's byte order.
    let words: Vec<u8> = match at.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words: String = words
        .chunks(4)
        .map(|word| format!("{:08X}", word.iter().rev().fold(0_u32, |all, byte| all << 8 | u32::from(*byte))))
        .collect();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = fields.get(1)?.rsplit_once(':')?;
        let here = address == words || address.bytes().all(|digit| digit == b'0');
        // State 0A: it listens.
        let listens = here && u16::from_str_radix(port, 16) == Ok(at.port()) && *fields.get(3)? == "0A";
        listens.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })
}
