//! The network between virtual hosts: one switch in a network of its own, and a cable to each host.
//!
//! A cable is cut by taking its port out of the bridge: neither end notices, as with a dead switch. One direction between two hosts is
//! cut by a wrong, permanent neighbour entry in the sender: what it sends is carried and received by nobody, silently.

use super::command::{output, words};
use super::host::Host;
use super::inside::enter;
use anyhow::{Context as _, Result, bail};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

/// A hardware address that nobody has.
const NOBODY: &str = "02:de:ad:00:00:01";
/// How long datagrams of a check may take.
const CHECK: Duration = Duration::from_millis(250);
/// Datagrams of one check: resolving an address may cost the first.
const DATAGRAMS: u8 = 5;

/// The switch. With it its network and every cable go.
pub struct Switch {
    child: Child,
    // Its end is the switch's end, even if this program is killed.
    _open: Option<ChildStdin>,
}

impl Switch {
    /// Starts one.
    ///
    /// # Errors
    /// When this is not root, or a program is missing.
    pub fn start() -> Result<Switch> {
        let mut command = words(&["unshare", "--net", "--", "cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut child = command.spawn().context("start the switch (as root, with util-linux installed)")?;
        let open = child.stdin.take();
        let switch = Switch { child, _open: open };
        let begun = std::time::Instant::now();
        let own = std::fs::read_link("/proc/self/ns/net")?;
        while std::fs::read_link(format!("/proc/{}/ns/net", switch.pid())).is_ok_and(|theirs| theirs == own) {
            if begun.elapsed() > Duration::from_secs(5) {
                bail!("the switch has no network of its own after 5 s");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        switch.ip("link add br0 type bridge\nlink set br0 up")?;
        Ok(switch)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn ip(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid().to_string(), "-n", "sh", "-c"]);
        batch(&mut command, lines)
    }

    /// Lays a cable to a host and gives the host its address.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn plug(&self, host: &Host) -> Result<()> {
        let (switch, there, port) = (self.pid().to_string(), host.init().to_string(), port(host));
        output(&mut words(&[
            "ip", "link", "add", &port, "netns", &switch, "type", "veth", "peer", "name", "eth0", "netns", &there,
        ]))?;
        self.ip(&format!("link set {port} master br0\nlink set {port} up"))?;
        host.ip(&format!("addr add {}/24 dev eth0\nlink set eth0 up", host.address()))
    }

    /// Takes a host's cable out, or puts it back.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn connect(&self, host: &Host, connected: bool) -> Result<()> {
        let port = port(host);
        self.ip(&if connected { format!("link set {port} master br0") } else { format!("link set {port} nomaster") })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        drop(self._open.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn port(host: &Host) -> String {
    format!("p{}", host.address().octets()[3])
}

/// Lines of `ip -batch`, given to a command that ends with `sh -c`.
pub(crate) fn batch(command: &mut Command, lines: &str) -> Result<()> {
    command.arg(format!("ip -batch - <<'END'\n{lines}\nEND"));
    output(command).map(drop)
}

/// What `from` sends to these arrives nowhere from now on (`cut`), or arrives again.
///
/// # Errors
/// When the system refuses.
pub fn cut_towards(from: &Host, to: &[Ipv4Addr], cut: bool) -> Result<()> {
    let line = |address: &Ipv4Addr| match cut {
        true => format!("neigh replace {address} lladdr {NOBODY} dev eth0 nud permanent"),
        false => format!("neigh del {address} dev eth0"),
    };
    from.ip(&to.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// Do datagrams of one host arrive at another? Says nothing about the way back.
///
/// # Errors
/// When sockets can not be had.
pub fn arrives(from: &Host, to: &Host) -> Result<bool> {
    let (here, there, address) = (from.network(), to.network(), to.address());
    let (say, hear) = std::sync::mpsc::channel();
    let receiver = std::thread::spawn(move || -> Result<bool> {
        enter(&there)?;
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(CHECK))?;
        say.send(socket.local_addr()?.port())?;
        Ok(socket.recv(&mut [0u8; 8]).is_ok())
    });
    let sender = std::thread::spawn(move || -> Result<()> {
        enter(&here)?;
        let port = hear.recv()?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        for _ in 0..DATAGRAMS {
            // An address that does not resolve is an error here, and an answer all the same.
            let _ = socket.send_to(b"here?", (address, port));
            std::thread::sleep(CHECK / u32::from(DATAGRAMS) / 2);
        }
        Ok(())
    });
    let panicked = |_| anyhow::anyhow!("a thread of the check panicked");
    sender.join().map_err(panicked)??;
    receiver.join().map_err(panicked)?
}
