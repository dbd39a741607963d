//! A virtual host whose first process is a real systemd, on a Debian of its own: units, their hardening, the journal, and what a start of the host
//! brings back.
//!
//! Its system is made once by `debootstrap` (it needs the network and some minutes) and kept; each host has a copy of all but `/usr`, which lies
//! over the kept one. A host that is started again from the same directory has the files that it had.

use super::command::{output, words};
use super::host::{Blueprint, Host};
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What is installed in it besides the smallest system.
const PACKAGES: &str =
    "systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,sudo,iproute2,procps,ca-certificates,postgresql";
/// The package of the database has made a server, and nobody asked for it; keys and numbers that make a host one of its own are made by each.
const STRIP: &str =
    "for cluster in /etc/postgresql/*/main; do pg_dropcluster \"$(basename \"$(dirname \"$cluster\")\")\" main; done
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/* /etc/machine-id
: > /etc/machine-id";
/// How long a start may take until every unit has been started, or has failed.
const STARTED: Duration = Duration::from_secs(120);
/// How long it may take to go down in order.
const DOWN: Duration = Duration::from_secs(180);

/// Copies the system, unless the host has one, and makes its view of the file system; waits until somebody has laid its cable; then becomes
/// systemd. `$1`: the host's directory, `$2`: its name, `$3`: the kept system, `$4`: its group of processes.
const SETUP: &str = r#"
set -e
root=$1/root
if [ ! -e "$1/whole" ]; then
    mkdir -p "$root/usr" "$1/upper" "$1/work"
    for part in "$3"/*; do [ "${part##*/}" = usr ] || cp -a "$part" "$root/"; done
    echo "$2" > "$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$2" > "$root/etc/hosts"
    rm -f "$root"/etc/ssh/ssh_host_*
    ssh-keygen -q -t ed25519 -N '' -C "$2" -f "$root/etc/ssh/ssh_host_ed25519_key"
    touch "$1/whole"
fi
exec 3>> "$1/console.log"
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t overlay overlay -o "lowerdir=$3/usr,upperdir=$1/upper,workdir=$1/work" "$root/usr"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
cd "$root/dev"
mknod -m 666 null c 1 3
mknod -m 666 zero c 1 5
mknod -m 666 full c 1 7
mknod -m 666 random c 1 8
mknod -m 666 urandom c 1 9
mknod -m 666 tty c 5 0
mkdir pts shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts pts
mount -t tmpfs -o mode=1777 tmpfs shm
ln -s pts/ptmx ptmx
ln -s /proc/self/fd fd
ln -s /proc/self/fd/0 stdin
ln -s /proc/self/fd/1 stdout
ln -s /proc/self/fd/2 stderr
hostname "$2"
ip link set lo up
cd "$root"
mkdir -p old
pivot_root . old
echo ready
read -r power
exec chroot . sh -c 'umount -l /old; rmdir /old; exec env -i container=mainstay-testkit PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system' \
    < /dev/null >&3 2>&3
"#;

/// The kept system of hosts with systemd, made if it is not there.
///
/// # Errors
/// When this is not root, `debootstrap` is missing, or the packages can not be had.
pub fn system(place: &Path) -> Result<PathBuf> {
    let release = std::fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("/etc/os-release does not say the VERSION_CODENAME")?.trim_matches('"').to_owned();
    let (whole, half) = (place.join(&codename), place.join(format!("{codename}.half")));
    if whole.exists() {
        return Ok(whole);
    }
    println!("making the system of hosts with systemd in {}: some minutes, once", whole.display());
    if half.exists() {
        std::fs::remove_dir_all(&half)?;
    }
    std::fs::create_dir_all(place)?;
    // The mirror that this machine's own packages come from.
    let made = output(
        words(&["debootstrap", "--variant=minbase", &format!("--include={PACKAGES}"), &codename])
            .arg(&half)
            .args(mirror()),
    );
    made.context("make a Debian (as root, with the package debootstrap installed, and a network)")?;
    output(words(&["chroot"]).arg(&half).args(["sh", "-ec", STRIP]))?;
    std::fs::rename(&half, &whole)?;
    Ok(whole)
}

/// The first archive that this machine's sources name.
fn mirror() -> Option<String> {
    let text = std::fs::read_to_string("/etc/apt/sources.list.d/debian.sources").ok()?;
    let uri = text.lines().find_map(|line| line.strip_prefix("URIs:"))?;
    Some(uri.split_whitespace().next()?.to_owned())
}

/// The host's group of processes, in the hierarchy that systemd needs.
fn group(name: &str) -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let place = mounts.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let place = words.next()?;
        (words.next()? == "cgroup2").then(|| place.to_owned())
    });
    let place = place.context("no cgroup2 is mounted on this machine: mount -t cgroup2 cgroup2 /sys/fs/cgroup")?;
    Ok(Path::new(&place).join(format!("mainstay-testkit-{}-{name}", std::process::id())))
}

/// Removes a group and those below it. What still runs there keeps it.
pub(super) fn remove_group(group: &Path) {
    for below in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&below.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}

impl Host {
    /// Makes a host of a kept system, switched off: its cable can be laid. It has no volume.
    ///
    /// # Errors
    /// When this is not root, or a program is missing.
    pub fn built(blueprint: &Blueprint, system: &Path) -> Result<Host> {
        std::fs::create_dir_all(&blueprint.dir)?;
        let group = group(&blueprint.name)?;
        remove_group(&group);
        std::fs::create_dir_all(&group).with_context(|| format!("make {}", group.display()))?;
        // In the group before the view on groups becomes its own.
        let enter = "echo 0 > \"$1/cgroup.procs\"; shift; exec \"$@\"";
        // The host ends with the thread that made it, however that ends.
        let mut command = words(&["setpriv", "--pdeathsig", "KILL", "sh", "-ec", enter, "enter"]);
        command.arg(&group);
        command.args(["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child"]);
        command.args(["--", "sh", "-c", SETUP, "host"]).arg(&blueprint.dir).arg(&blueprint.name).arg(system);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut outer = command.spawn().context("start a host (as root, with util-linux installed)")?;
        let power = outer.stdin.take().context("a host without input")?;
        let mut said = BufReader::new(outer.stdout.take().context("a host without output")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        if line.trim() != "ready" {
            let _ = outer.kill();
            bail!("host {} was not made: it said {line:?}; {}/console.log", blueprint.name, blueprint.dir.display());
        }
        Host::of(blueprint, outer, (power, said), Some(group))
    }

    /// Switches it on, and waits until its units are started. Returns those that failed.
    ///
    /// # Errors
    /// When it does not start in time.
    pub fn power_on(&self) -> Result<String> {
        {
            let mut orders =
                self.orders.lock().map_err(|_| anyhow::anyhow!("a thread panicked with the host's lock"))?;
            let (power, _) = orders.as_mut().context("the host is ending")?;
            power.write_all(b"on\n").with_context(|| format!("host {} has ended", self.name()))?;
        }
        let begun = Instant::now();
        loop {
            let state = self.command(&["systemctl", "is-system-running"]).stderr(Stdio::null()).output()?;
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            match state.as_str() {
                "running" => return Ok(String::new()),
                "degraded" => return self.run_now(&["systemctl", "--failed", "--no-legend", "--plain"]),
                _ if begun.elapsed() > STARTED => {
                    bail!("host {} does not start: {state}; {}/console.log", self.name(), self.dir().display())
                }
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Shuts it down in order, as its own `reboot` does.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn power_off(self) -> Result<()> {
        // It ends before it has answered.
        let _ = self.command(&["systemctl", "poweroff"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let outer = crate::processes::Pinned::new(self.outer.id())?;
        if !outer.ended_within(DOWN) {
            bail!("host {} does not go down; {}/console.log", self.name(), self.dir().display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_goes_with_those_below_it_and_stays_while_something_is_there() {
        let home = tempfile::tempdir().unwrap();
        let group = home.path().join("group");
        std::fs::create_dir_all(group.join("a/b")).unwrap();
        std::fs::write(group.join("cgroup.procs"), "").unwrap();
        remove_group(&group);
        // What is no directory is the kernel's, which lets go of a group that nothing runs in.
        assert!(!group.join("a").exists() && group.exists());
    }
}
