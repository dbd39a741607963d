//! Bad days, found before anything is touched: what keeps a server from being started on this node, or soon will. Each finding names the
//! thing and the way out. Absent: data of another cluster (who knows which cluster it should be compares: `decide`).

use crate::files;
use crate::server::{Postgres, failed};
use crate::tools::system_id;
use mainstay_model::Room;
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::engine::EngineError;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The oldest major version that is known to work.
const OLDEST: u32 = 15;
/// With less free than this a server would end again as soon as it writes.
const FULL: u64 = 24 * 1024 * 1024;

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// The programs are too old.
    #[error("PostgreSQL {found} in {} is too old; install version {OLDEST} or newer, or set bin_dir", programs.display())]
    TooOld {
        /// Their version.
        found: String,
        /// Where they are.
        programs: PathBuf,
    },
    /// The data is of another major version.
    #[error(
        "{} was made by PostgreSQL {data_version}, the programs in {} are {programs_version}; install PostgreSQL {data_version} or set \
         bin_dir to it (a new major version needs an upgrade of the data)", data.display(), programs.display()
    )]
    OtherVersion {
        /// The data directory.
        data: PathBuf,
        /// Its version.
        data_version: String,
        /// The programs' version.
        programs_version: u32,
        /// Where they are.
        programs: PathBuf,
    },
    /// A link in the place of the data directory.
    #[error("{} is a symbolic link; links are not followed: mount or move the data there", .0.display())]
    Link(PathBuf),
    /// A file in the place of the data directory.
    #[error("{} is not a directory; move it away", .0.display())]
    NotADirectory(PathBuf),
    /// It belongs to somebody else.
    #[error(
        "{} belongs to user {owner}, but the server runs as user {wanted}; correct it: chown -R {wanted} {}", path.display(), path.display()
    )]
    Owner {
        /// What.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it must be.
        wanted: u32,
    },
    /// Others may enter.
    #[error("{} has mode {mode:o}, with which PostgreSQL refuses to start; correct it: chmod {wanted:o} {}", path.display(), path.display())]
    Mode {
        /// What.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it should be.
        wanted: u32,
    },
    /// Files that are no data directory.
    #[error("{} is not empty and no data directory of PostgreSQL; move what is in it away, then this node makes its copy there", .0.display())]
    Foreign(PathBuf),
    /// Somebody listens on the server's port.
    #[error("port {port} of {address} is in use by {by}; end it, or give this node another port in mainstay.toml")]
    PortInUse {
        /// The address.
        address: String,
        /// The port.
        port: u16,
        /// Which process, if that can be known.
        by: String,
    },
    /// No room to run in.
    #[error(
        "the volume of {} is full ({} MiB free); free some space (data.old and diverged beside it hold what was kept of earlier copies)",
        dir.display(), free >> 20
    )]
    Full {
        /// The node's directory.
        dir: PathBuf,
        /// Free bytes.
        free: u64,
    },
    /// Little room left.
    #[error("the volume of {} is nearly full ({} of {} MiB free); free some space or enlarge it", dir.display(), free >> 20, size >> 20)]
    NearlyFull {
        /// The node's directory.
        dir: PathBuf,
        /// Free bytes.
        free: u64,
        /// All of them.
        size: u64,
    },
    /// A certificate or key is missing or can not be read.
    #[error("{} can not be read ({why}); issue this node's certificates again: mainstay pki issue", path.display())]
    TlsMissing {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A certificate is no longer, or not yet, valid.
    #[error("the certificate {} is valid {when} only (is the clock right?); issue a new one: mainstay pki issue", path.display())]
    TlsExpired {
        /// The file.
        path: PathBuf,
        /// From when until when.
        when: String,
    },
}

impl Finding {
    /// No server is started on top of it. The others are for people.
    #[must_use]
    pub const fn blocks(&self) -> bool {
        !matches!(self, Self::NearlyFull { .. } | Self::TlsExpired { .. })
    }
}

impl Postgres {
    /// Looks for what would keep the server from running here; touches nothing. A server of ours that runs already owns its port.
    /// What was found shows in the probes of a server that is down, until it is looked for again.
    pub async fn inspect(&self) -> Vec<Finding> {
        let mut found = self.inspect_programs().await;
        let (layout, owner) = (self.options.layout.clone(), self.owner());
        let half_made = layout.conf().join(crate::bootstrap::HALF_MADE).exists();
        let on_disk = tokio::task::spawn_blocking(move || {
            let mut found = inspect_data(&layout.data(), owner, half_made);
            found.extend(inspect_room(layout.dir()));
            let keys = [layout.server_key(), layout.replication_key()];
            let certificates = [layout.server_cert(), layout.replication_cert(), layout.server_ca()];
            found.extend(certificates.iter().filter_map(|path| inspect_certificate(path)));
            found.extend(keys.iter().filter_map(|path| inspect_key(path, owner)));
            found
        });
        found.extend(on_disk.await.unwrap_or_default());
        let runs = !matches!(self.process.status().await, Ok(status) if status.server_pid.is_none());
        if !runs && crate::proc::working_in(&self.data()).is_empty() {
            found.extend(self.inspect_port().await);
        }
        let bad: Vec<String> = found.iter().filter(|found| found.blocks()).map(ToString::to_string).collect();
        self.watch.refused((!bad.is_empty()).then(|| bad.join("; ")));
        found
    }

    /// Refuses what must not be started on.
    pub(crate) async fn refuse_bad_start(&self, wanted: impl Fn(&Finding) -> bool) -> Result<(), EngineError> {
        let bad: Vec<String> = self.inspect().await.into_iter().filter(wanted).map(|found| found.to_string()).collect();
        if bad.is_empty() { Ok(()) } else { Err(failed(bad.join("; "))) }
    }

    async fn inspect_programs(&self) -> Vec<Finding> {
        let programs = self.options.bin_dir.clone();
        let Ok(ran) = self.run("postgres", &["--version".to_owned()], Duration::from_secs(5)).await else {
            return Vec::new();
        };
        let version = ran.out.split_whitespace().nth(2).unwrap_or_default().to_owned();
        // A version under way calls itself "19devel".
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        let Ok(major) = digits.parse::<u32>() else { return Vec::new() };
        if major < OLDEST {
            return vec![Finding::TooOld { found: version, programs }];
        }
        let data = self.data();
        let of_data = std::fs::read_to_string(data.join("PG_VERSION")).map(|text| text.trim().to_owned());
        let Some(data_version) = of_data.ok().filter(|text| *text != major.to_string()) else { return Vec::new() };
        vec![Finding::OtherVersion { data, data_version, programs_version: major, programs }]
    }

    async fn inspect_port(&self) -> Option<Finding> {
        let (address, port) = (self.options.listen.clone(), self.options.port);
        let looked_up = tokio::net::lookup_host((address.as_str(), port));
        let all = tokio::time::timeout(Duration::from_secs(2), looked_up).await.ok()?.ok()?.collect::<Vec<_>>();
        for at in all {
            if std::net::TcpListener::bind(at).is_err_and(|error| error.kind() == ErrorKind::AddrInUse) {
                let by = tokio::task::spawn_blocking(move || crate::proc::listener(at)).await.ok().flatten();
                let by = by.unwrap_or_else(|| "another process (which one can not be seen from here)".to_owned());
                return Some(Finding::PortInUse { address, port, by });
            }
        }
        None
    }
}

pub(crate) fn inspect_data(data: &Path, owner: files::Owner, half_made: bool) -> Vec<Finding> {
    let Ok(is) = std::fs::symlink_metadata(data) else { return Vec::new() };
    if is.is_symlink() {
        return vec![Finding::Link(data.to_owned())];
    }
    if !is.is_dir() {
        return vec![Finding::NotADirectory(data.to_owned())];
    }
    let empty = std::fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_none());
    if empty || half_made {
        return Vec::new();
    }
    if !data.join("PG_VERSION").exists() && system_id(data).is_none() && !data.join("global").exists() {
        return vec![Finding::Foreign(data.to_owned())];
    }
    let mut found = Vec::new();
    let wanted = owner.unwrap_or_else(files::me).0;
    if is.uid() != wanted {
        found.push(Finding::Owner { path: data.to_owned(), owner: is.uid(), wanted });
    }
    let mode = is.mode() & 0o7777;
    if ![0o700, 0o750].contains(&mode) {
        found.push(Finding::Mode { path: data.to_owned(), mode, wanted: 0o700 });
    }
    found
}

pub(crate) fn inspect_room(dir: &Path) -> Option<Finding> {
    let is = rustix::fs::statvfs(dir).ok()?;
    let (free, size) = (is.f_bavail.saturating_mul(is.f_frsize), is.f_blocks.saturating_mul(is.f_frsize));
    let dir = dir.to_owned();
    if free < FULL {
        return Some(Finding::Full { dir, free });
    }
    Room::of(free, size).map(|_| Finding::NearlyFull { dir, free, size })
}

fn inspect_certificate(path: &Path) -> Option<Finding> {
    let missing = |why: String| Some(Finding::TlsMissing { path: path.to_owned(), why });
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return missing(error.to_string()),
    };
    let parsed = x509_parser::pem::parse_x509_pem(&bytes).map_err(|error| error.to_string());
    let pem = match parsed {
        Ok((_, pem)) => pem,
        Err(error) => return missing(error),
    };
    let validity = match pem.parse_x509() {
        Ok(certificate) => certificate.validity().clone(),
        Err(error) => return missing(error.to_string()),
    };
    let now = i64::try_from(wall_now_ms() / 1000).unwrap_or(i64::MAX);
    let valid = validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp();
    let when = || format!("from {} to {}", validity.not_before, validity.not_after);
    (!valid).then(|| Finding::TlsExpired { path: path.to_owned(), when: when() })
}

fn inspect_key(path: &Path, owner: files::Owner) -> Option<Finding> {
    let is = match std::fs::metadata(path) {
        Ok(is) => is,
        Err(error) => return Some(Finding::TlsMissing { path: path.to_owned(), why: error.to_string() }),
    };
    let wanted = owner.unwrap_or_else(files::me).0;
    if is.uid() != wanted && is.uid() != 0 {
        return Some(Finding::Owner { path: path.to_owned(), owner: is.uid(), wanted });
    }
    let mode = is.mode() & 0o7777;
    let most = if is.uid() == wanted { 0o700 } else { 0o740 };
    (mode & !most != 0).then(|| Finding::Mode { path: path.to_owned(), mode, wanted: 0o600 })
}
