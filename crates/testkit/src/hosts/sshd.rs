//! Hosts that are reached with ssh: a real `sshd` on each, with a host key of its own, and an administrator's host whose ssh knows them all.
//!
//! Nothing of the machine's own ssh is touched: keys, configuration and known hosts lie in the hosts' own trees.

use super::command::{output, words};
use super::host::Host;
use anyhow::{Context as _, Result};
use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SSHD: &str = "/usr/sbin/sshd";
/// How long a server may take until it listens.
const UP: Duration = Duration::from_secs(20);

/// The administrator: a host with ssh's files in root's home.
pub struct Admin {
    /// The host.
    pub host: Host,
    home: PathBuf,
    dir: PathBuf,
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(std::fs::set_permissions(path, Permissions::from_mode(mode))?)
}

fn make_key(path: &Path) -> Result<String> {
    output(words(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path))?;
    Ok(std::fs::read_to_string(path.with_extension("pub"))?.trim().to_owned())
}

impl Admin {
    /// Gives the host a home with a key. Its files lie below `dir`.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn new(host: Host, dir: &Path) -> Result<Admin> {
        let home = dir.join("admin-home");
        std::fs::create_dir_all(home.join(".ssh"))?;
        std::fs::set_permissions(&home, Permissions::from_mode(0o700))?;
        std::fs::set_permissions(home.join(".ssh"), Permissions::from_mode(0o700))?;
        make_key(&home.join(".ssh/id_ed25519"))?;
        write(&home.join(".ssh/known_hosts"), "", 0o600)?;
        output(host.command(&["mount", "--bind"]).arg(&home).arg("/root"))?;
        Ok(Admin { host, home, dir: dir.to_owned() })
    }

    /// A path in its home, as this program reaches it.
    #[must_use]
    pub fn home(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// Starts a host's sshd, lets root in with the administrator's key, and notes the host's key as known.
    ///
    /// # Errors
    /// When a program is missing, or it does not listen in time.
    pub fn let_in(&self, host: &Host) -> Result<()> {
        if host.has_systemd() {
            return self.let_in_booted(host);
        }
        let keys = host.path("/etc/ssh/keys");
        std::fs::create_dir_all(&keys)?;
        let (own, address) = (self.dir.join(format!("host-key-{}", host.name())), host.address());
        let public = make_key(&own)?;
        write(&keys.join("root"), &format!("{}\n", self.key()?), 0o644)?;
        let config = format!(
            "Port 22\nListenAddress {address}\nHostKey {}\nAuthorizedKeysFile /etc/ssh/keys/%u\nPermitRootLogin prohibit-password\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPidFile none\n",
            own.display()
        );
        write(&host.path("/etc/ssh/sshd_test"), &config, 0o644)?;
        std::fs::create_dir_all(host.path("/run/sshd"))?;
        // sshd lets nobody in whose account is locked, with whatever key; some systems lock root's.
        if std::fs::read_to_string(host.path("/etc/shadow"))?.lines().any(|line| line.starts_with("root:!")) {
            output(&mut host.command(&["usermod", "-p", "*", "root"]))?;
        }
        self.know(host, &public)?;
        host.serve("sshd", &[SSHD, "-D", "-e", "-f", "/etc/ssh/sshd_test"], &[])?;
        self.until_let_in(host)
    }

    /// A host with systemd has a sshd of its own, with its own key.
    fn let_in_booted(&self, host: &Host) -> Result<()> {
        std::fs::create_dir_all(host.path("/root/.ssh"))?;
        std::fs::set_permissions(host.path("/root/.ssh"), Permissions::from_mode(0o700))?;
        write(&host.path("/root/.ssh/authorized_keys"), &format!("{}\n", self.key()?), 0o600)?;
        let public = std::fs::read_to_string(host.path("/etc/ssh/ssh_host_ed25519_key.pub"))?;
        self.know(host, public.trim())?;
        self.until_let_in(host)
    }

    fn until_let_in(&self, host: &Host) -> Result<()> {
        let (begun, address) = (Instant::now(), host.address());
        loop {
            let asked = output(&mut self.host.command(&["ssh", "-o", "BatchMode=yes", &address.to_string(), "true"]));
            match asked {
                Ok(_) => return Ok(()),
                Err(error) if begun.elapsed() > UP => return Err(error.context(format!("sshd on {}", host.name()))),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Lets a host's sshd listen on another of its addresses, too.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn listen(&self, host: &Host, address: Ipv4Addr) -> Result<()> {
        let text = std::fs::read_to_string(host.path("/etc/ssh/sshd_test"))?;
        let text = text.replacen(&format!("ListenAddress {}", host.address()), &format!("ListenAddress {address}"), 1);
        write(&host.path("/etc/ssh/sshd_more"), &text, 0o644)?;
        host.serve("sshd-more", &[SSHD, "-D", "-e", "-f", "/etc/ssh/sshd_more"], &[])?;
        let begun = Instant::now();
        while output(&mut host.command(&["sh", "-c", &format!("ss -ltn | grep -q '{address}:22'")])).is_err() {
            anyhow::ensure!(begun.elapsed() < UP, "sshd on {} does not listen on {address}", host.name());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The administrator's public key.
    ///
    /// # Errors
    /// When it can not be read.
    pub fn key(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.home.join(".ssh/id_ed25519.pub"))?.trim().to_owned())
    }

    /// Notes that this is the host's key, in place of whatever was known.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn know(&self, host: &Host, public: &str) -> Result<()> {
        let path = self.home.join(".ssh/known_hosts");
        let address = host.address().to_string();
        let mut lines: Vec<String> = std::fs::read_to_string(&path)?.lines().map(ToOwned::to_owned).collect();
        lines.retain(|line| !line.starts_with(&format!("{address} ")));
        lines.push(format!("{address} {public}"));
        write(&path, &format!("{}\n", lines.join("\n")), 0o600)
    }

    /// A new key that no host has, and the host's own.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn keys_of(&self, host: &Host) -> Result<(String, String)> {
        let path = self.dir.join("strange-key");
        let strange = if path.exists() {
            std::fs::read_to_string(path.with_extension("pub"))?.trim().to_owned()
        } else {
            make_key(&path)?
        };
        let own = self.dir.join(format!("host-key-{}.pub", host.name()));
        Ok((strange, std::fs::read_to_string(own)?.trim().to_owned()))
    }

    /// Makes a user on a host who may become root with a password, and logs in with the administrator's key.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn make_user(&self, host: &Host, name: &str, password: &str) -> Result<()> {
        output(&mut host.command(&["useradd", "-M", "-d", "/tmp", "-s", "/bin/sh", name]))?;
        let file = "/etc/ssh/new-password";
        write(&host.path(file), &format!("{name}:{password}\n"), 0o600)?;
        output(&mut host.command(&["sh", "-c", &format!("chpasswd < {file} && rm {file}")]))?;
        write(&host.path(&format!("/etc/sudoers.d/{name}")), &format!("{name} ALL=(ALL) ALL\n"), 0o440)?;
        write(&host.path(&format!("/etc/ssh/keys/{name}")), &format!("{}\n", self.key()?), 0o644)
    }
}
