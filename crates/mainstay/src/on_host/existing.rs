//! What this host shows of a server that exists and is to be adopted (docs/adr/0037). Changes nothing.

use super::around::{mounts, strangers, working_in};
use super::sockets::own_end;
use crate::host::system::running;
use crate::local::user;
use mainstay_model::SystemId;
use mainstay_model::adoption::Adoption;
use mainstay_model::layout::NodeLayout;
use mainstay_model::record::Durable;
use mainstay_model::spec::{Node, Spec};
use mainstay_plan::apply::adopt::{Adopt, Existing, Told};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// How long a program, or the server, may take to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// Where Debian's tools keep how servers are started.
const DEBIAN: &str = "/etc/postgresql";
/// Programs that start a server again when it ends, as they call themselves.
const MANAGERS: [&str; 4] = ["patroni", "repmgrd", "pg_autoctl", "stolon-keeper"];

/// Asked as one object. Of the settings with which a copy from a repository is looked at (`mainstay restore --to`, `follow --promote`) only those are
/// the database's own that must not be undercut.
const ASK: &str = "set statement_timeout = '10s'; with files as materialized (select * from pg_file_settings), \
 known as (select s.name, coalesce(f.setting, current_setting(s.name)) as value, \
   s.setting is not distinct from boot_val as built_in, f.name is not null as automatic, \
   pending_restart or f.name is not null and (source = 'command line' or f.error is not null) as pending \
   from pg_settings s left join lateral (select * from files where lower(files.name) = lower(s.name) \
     and files.sourcefile like '%/postgresql.auto.conf' order by seqno desc limit 1) as f on true \
   where (pending_restart or f.name is not null or source in ('configuration file', 'command line')) \
     and (s.sourcefile is null or s.sourcefile not like '%/mainstay_scratch.conf' or s.name in ('max_connections', 'max_locks_per_transaction', \
       'max_prepared_transactions', 'max_wal_senders', 'max_worker_processes'))), \
 made as (select distinct on (lower(f.name)) f.name, \
   case when automatic then f.setting else coalesce(current_setting(f.name, true), f.setting) end as value, \
   false as built_in, automatic, false as pending \
   from (select *, sourcefile like '%/postgresql.auto.conf' as automatic from files) as f \
   where f.name like '%.%' and f.error is null and not exists (select from pg_settings s where lower(s.name) = lower(f.name)) \
   order by lower(f.name), seqno desc) \
 select json_build_object(\
 'in_recovery', pg_is_in_recovery(), 'port', current_setting('port')::int, \
 'superuser', exists(select from pg_roles where rolname = 'postgres' and rolsuper and rolcanlogin), \
 'bytes', (select coalesce(sum(pg_database_size(oid)), 0)::bigint from pg_database), \
 'clients', (select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()), \
 'settings', (select coalesce(json_agg(json_build_object('name', name, 'value', value, 'built_in', built_in, 'automatic', automatic, \
   'pending', pending, 'ours', null, 'owned', false) order by name), '[]') from (table known union all table made) as found), \
 'unread', (select coalesce(json_agg(concat_ws(': ', format('%s line %s', sourcefile, sourceline), name, error) order by seqno), '[]') \
   from files where error is not null and (name is null or not exists (select from pg_settings s where lower(s.name) = lower(files.name)))), \
 'loaded_us', (extract(epoch from pg_conf_load_time()) * 1000000)::bigint, \
 'habits', (select coalesce(json_agg(json_build_object('role', r.rolname, 'database', d.datname, \
   'name', split_part(one, '=', 1), 'value', substr(one, strpos(one, '=') + 1)) order by r.rolname, d.datname, one), '[]') \
   from pg_db_role_setting s left join pg_roles r on r.oid = setrole left join pg_database d on d.oid = setdatabase, unnest(setconfig) as one), \
 'access', (select coalesce(json_agg(json_build_array(concat_ws(' ', type, array_to_string(database, ','), \
   array_to_string(user_name, ','), address, netmask, auth_method, array_to_string(options, ' ')), auth_method) order by line_number), '[]') \
   from pg_hba_file_rules where type like 'host%' and error is null and database <> '{replication}' \
   and not ((coalesce(address, '') like '127.%' or coalesce(address, '') = '::1') \
     and auth_method in ('scram-sha-256', 'md5', 'password', 'reject'))), \
 'slots', (select coalesce(json_agg(slot_name), '[]') from pg_replication_slots), \
 'receives', exists(select from pg_stat_wal_receiver where status = 'streaming'), \
 'slot', (select nullif(slot_name, '') from pg_stat_wal_receiver limit 1), \
 'source', (select concat(sender_host, ' port ', sender_port) from pg_stat_wal_receiver limit 1), \
 'receiver', (select json_build_array(pid, sender_port) from pg_stat_wal_receiver where sender_port is not null limit 1), \
 'standbys', (select coalesce(json_agg(json_build_object('name', application_name, 'at', case when client_port > 0 then \
   case family(client_addr) when 6 then '[' || host(client_addr) || ']:' else host(client_addr) || ':' end || client_port end)), '[]') \
   from pg_stat_replication), \
 'prepared', (select count(*) from pg_prepared_xacts), \
 'md5', (select coalesce(json_agg(rolname), '[]') from pg_authid where rolpassword like 'md5%' and rolcanlogin), \
 'app', exists(select from pg_roles where rolname = 'app'))";

/// What there is of the server that the file names for a node.
pub(super) async fn look(spec: &Spec, node: &Node, layout: &NodeLayout) -> Option<Adopt> {
    let Some(directory) = node.taken_over().filter(|_| !node.witness) else { return unnamed(layout) };
    // Beside data that are still where the file says, what lies here is something else.
    if layout.adopted().exists() || (is_database(&layout.data()) && no_data(directory).is_some()) {
        return Some(Adopt::Taken);
    }
    let mut existing = Existing { directory: directory.display().to_string(), ..Existing::default() };
    if let Some(noted) = noted(layout) {
        existing.undo = noted.undo();
        existing.noted = Some(noted.system);
    }
    existing.no_data = no_data(directory);
    if existing.no_data.is_none() {
        on_disk(spec, directory, layout, &mut existing).await;
        existing.managers = managers();
        existing.keepers = keepers(directory, existing.pid).await;
        if existing.pid.is_some() && postmaster(directory).is_some() {
            existing.told = Some(ask(spec, directory, existing.major).await);
        }
    }
    Some(Adopt::Named(Box::new(existing)))
}

fn is_database(directory: &Path) -> bool {
    directory.join("PG_VERSION").exists()
}

/// Where the data of an adoption are whose line the file has lost. Over once the node has seen that the cluster has its data.
fn unnamed(layout: &NodeLayout) -> Option<Adopt> {
    let noted = noted(layout);
    let place = match &noted {
        // A standby's that were of no use as a copy stay there: the cluster has that server's data.
        Some(noted) if identity(layout).is_some_and(|known| known == noted.system) => return None,
        _ if layout.adopted().exists() => layout.adopted(),
        Some(_) if identity(layout).is_some() => return None,
        Some(_) if is_database(&layout.data()) => layout.data(),
        Some(noted) if no_data(&noted.directory).is_none() => noted.directory.clone(),
        _ => return None,
    };
    let directory = noted.map_or_else(|| place.clone(), |noted| noted.directory);
    Some(Adopt::Unnamed { directory: directory.display().to_string(), place: place.display().to_string() })
}

/// The identity of the cluster's data, as far as this node has heard of it.
pub(super) fn identity(layout: &NodeLayout) -> Option<SystemId> {
    let text = std::fs::read_to_string(layout.durable()).ok()?;
    serde_json::from_str::<Durable>(&text).ok()?.system
}

/// Where the data are to lie, if something lies there.
pub(super) fn occupied(layout: &NodeLayout) -> Option<String> {
    let data = layout.data();
    match std::fs::read_dir(&data) {
        Ok(mut entries) => entries.next().map(|_| data.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("{} ({error})", data.display())),
    }
}

/// What an adoption that was begun has noted.
pub(super) fn noted(layout: &NodeLayout) -> Option<Adoption> {
    serde_json::from_str(&std::fs::read_to_string(layout.adoption()).ok()?).ok()
}

/// Why there is no data directory at this place.
pub(super) fn no_data(directory: &Path) -> Option<String> {
    let is = match std::fs::symlink_metadata(directory) {
        Ok(is) => is,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some("does not exist".into()),
        Err(error) => return Some(format!("can not be looked at: {error}")),
    };
    if is.is_symlink() {
        let to = directory.canonicalize().map(|to| to.display().to_string()).unwrap_or_else(|_| "nowhere".into());
        return Some(format!("is a link to {to}: name that place"));
    }
    match directory.canonicalize() {
        Ok(real) if real != directory => return Some(format!("is really {}: name that place", real.display())),
        Ok(_) => {}
        Err(error) => return Some(format!("can not be looked at: {error}")),
    }
    if !directory.join("PG_VERSION").is_file() || !directory.join("global/pg_control").is_file() {
        return Some("holds no database of PostgreSQL".into());
    }
    None
}

async fn on_disk(spec: &Spec, directory: &Path, layout: &NodeLayout, existing: &mut Existing) {
    let version = std::fs::read_to_string(directory.join("PG_VERSION")).unwrap_or_default();
    existing.major = version.trim().parse().unwrap_or(0);
    if let Ok(is) = std::fs::metadata(directory) {
        let wanted = user::server_user().ok().flatten().unwrap_or_else(user::me);
        existing.owner = (is.uid() != wanted.uid).then(|| (user::numbered(is.uid()).name, wanted.name));
        let mode = is.mode() & 0o7777;
        existing.mode = (![0o700, 0o750].contains(&mode)).then_some(mode);
    }
    existing.elsewhere = elsewhere(directory, layout.dir());
    existing.links = links(directory);
    existing.mounts = mounts(directory);
    existing.occupied = occupied(layout);
    existing.standby = ["standby.signal", "recovery.signal"].iter().any(|name| directory.join(name).exists());
    if let Ok(control) = control(spec, directory, existing.major).await {
        existing.system = Some(control.system);
        existing.state = control.state;
        existing.checksums = control.checksums;
    }
    let server = postmaster(directory);
    existing.strangers = server.map(|pid| strangers(directory, pid)).unwrap_or_default();
    existing.pid = server.or_else(|| working_in(directory).first().copied());
}

/// Why a rename can not bring one to the other.
fn elsewhere(directory: &Path, node: &Path) -> Option<String> {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|is| is.dev());
    let above = directory.parent()?;
    if device(directory) != device(above) {
        return Some("it is the root of a file system of its own".into());
    }
    let there = node.ancestors().find(|path| path.exists())?;
    (device(directory) != device(there)).then(|| "that is on another file system".into())
}

/// Links to directories outside, which do not go with it.
pub(super) fn links(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (place, shown) in [(directory.to_owned(), ""), (directory.join("pg_tblspc"), "pg_tblspc/")] {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let Ok(target) = std::fs::read_link(&path) else { continue };
            // Links to files (certificates of long ago) hold nothing of the database.
            if path.is_dir() || !shown.is_empty() {
                found.push((format!("{shown}{}", name.to_string_lossy()), target.display().to_string()));
            }
        }
    }
    found.sort();
    found
}

/// What counts of a control file.
pub(super) struct Control {
    pub(super) system: SystemId,
    pub(super) state: String,
    checksums: bool,
}

impl Control {
    /// Reads what `pg_controldata` prints.
    fn parse(text: &str) -> Result<Control, String> {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).ok_or_else(|| format!("pg_controldata does not say its {name}"))
        };
        let system = value("Database system identifier")?;
        Ok(Control {
            system: SystemId(system.parse().map_err(|_| format!("{system:?} is no system identifier"))?),
            state: value("Database cluster state")?.to_owned(),
            checksums: value("Data page checksum version")? != "0",
        })
    }
}

/// Reads it with the program of its version.
pub(super) async fn control(spec: &Spec, directory: &Path, major: u64) -> Result<Control, String> {
    let program = program(spec, major, "pg_controldata")?;
    Control::parse(&said(tokio::process::Command::new(program).arg("-D").arg(directory)).await?)
}

/// A program of this version of the distribution's, or of the ones that the file names.
fn program(spec: &Spec, major: u64, name: &str) -> Result<PathBuf, String> {
    let standard = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")).join(name);
    if spec.postgres.bin_dir.is_none() && standard.is_file() {
        return Ok(standard);
    }
    let programs = crate::local::engine::find(spec.postgres.bin_dir.as_deref()).map_err(|failure| failure.error)?;
    Ok(programs.bin_dir.join(name))
}

async fn said(command: &mut tokio::process::Command) -> Result<String, String> {
    let shown = format!("{:?}", command.as_std().get_program());
    let asked = command.env("LC_ALL", "C").env_remove("PGOPTIONS").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(ANSWER, asked).await {
        Ok(output) => output.map_err(|error| format!("{shown} can not be run: {error}"))?,
        Err(_) => return Err(format!("{shown} gave no answer within {} s", ANSWER.as_secs())),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().next().unwrap_or("it failed and said nothing").to_owned())
}

/// The server's process, if one runs on this directory.
pub(super) fn postmaster(directory: &Path) -> Option<u32> {
    let pid = noted_by_server(directory)?.first()?.trim().parse().ok()?;
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory).then_some(pid)
}

fn noted_by_server(directory: &Path) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(directory.join("postmaster.pid")).ok()?;
    Some(text.lines().map(str::to_owned).collect())
}

/// Programs that run here and would start a server again.
pub(super) fn managers() -> Vec<String> {
    let running = running().into_iter().filter(|name| MANAGERS.contains(&name.as_str()));
    running.collect::<BTreeSet<String>>().into_iter().collect()
}

async fn keepers(directory: &Path, pid: Option<u32>) -> Vec<String> {
    let unit = match pid {
        Some(pid) => unit(pid).await.map(|unit| format!("the unit {unit} is disabled")),
        None => None,
    };
    let debian = start_conf(directory).map(|path| format!("{} says disabled", path.display()));
    let found: Vec<String> = unit.into_iter().chain(debian).collect();
    if found.is_empty() {
        return vec![
            "nobody who is known here starts it; what else might finds its data gone, and is to be taken out".into(),
        ];
    }
    found
}

/// The unit of systemd whose main process this is. One that merely holds it, as that of cron or sshd may, is not the server's.
pub(super) async fn unit(pid: u32) -> Option<String> {
    if !super::systemd() {
        return None;
    }
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let name = groups.lines().filter_map(|line| line.rsplit('/').next()).find(|name| name.ends_with(".service"))?;
    let mut show = tokio::process::Command::new("systemctl");
    let main = said(show.args(["show", "--property", "MainPID", "--value", name])).await.ok()?;
    (main.trim() == pid.to_string()).then(|| name.to_owned())
}

/// Is the unit started with the host? One that others start has nothing that could be disabled.
pub(super) async fn is_enabled(unit: &str) -> bool {
    said(tokio::process::Command::new("systemctl").args(["is-enabled", unit]))
        .await
        .is_ok_and(|said| said.trim() == "enabled")
}

/// Debian's file that says whether the server of this directory is started.
pub(super) fn start_conf(directory: &Path) -> Option<PathBuf> {
    start_conf_in(Path::new(DEBIAN), directory)
}

fn start_conf_in(all: &Path, directory: &Path) -> Option<PathBuf> {
    let below = |path: &Path| {
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).take(100).collect::<Vec<_>>()
    };
    let clusters = below(all).into_iter().flat_map(|version| below(&version));
    clusters.into_iter().find_map(|cluster| {
        let text = std::fs::read_to_string(cluster.join("postgresql.conf")).ok()?;
        let mut named = text.lines().filter_map(|line| {
            let value = line.trim_start().strip_prefix("data_directory")?.trim_start();
            Some(value.strip_prefix('=').unwrap_or(value).split('#').next()?.trim().trim_matches('\'').to_owned())
        });
        let named = named.next_back()?;
        let same = Path::new(&named).canonicalize().is_ok_and(|named| named == directory);
        (same && cluster.join("start.conf").is_file()).then(|| cluster.join("start.conf"))
    })
}

/// psql as the server's own user on its own socket.
pub(super) fn psql(spec: &Spec, directory: &Path, major: u64) -> Result<tokio::process::Command, String> {
    let noted = noted_by_server(directory).ok_or("it does not say where its socket is")?;
    let at = |line: usize| noted.get(line).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let (port, socket) = (at(3).ok_or("it does not say its port")?, at(4).ok_or("it has no Unix socket")?);
    let owner = std::fs::metadata(directory).map_err(|error| error.to_string())?;
    let mut command = tokio::process::Command::new(program(spec, major, "psql")?);
    command.args(["-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1"]);
    command.args(["-h", &socket, "-p", &port, "-U", "postgres", "-d", "postgres"]).current_dir("/");
    command.env("PGCONNECT_TIMEOUT", "5").env("PGAPPNAME", "mainstay apply");
    if owner.uid() != rustix::process::geteuid().as_raw() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    Ok(command)
}

/// What the server answers, and when it has read its files, in microseconds since 1970.
#[derive(Deserialize)]
struct Answer {
    #[serde(flatten)]
    told: Told,
    loaded_us: u64,
    /// Who receives its primary's log, and the port over there.
    receiver: Option<(u32, u16)>,
}

/// When a file was written, in microseconds since 1970.
fn changed_us(path: &Path) -> Option<u64> {
    let changed = std::fs::metadata(path).ok()?.modified().ok()?;
    u64::try_from(changed.duration_since(std::time::UNIX_EPOCH).ok()?.as_micros()).ok()
}

async fn ask(spec: &Spec, directory: &Path, major: u64) -> Result<Told, String> {
    let text = said(psql(spec, directory, major)?.args(["-c", ASK])).await?;
    let answer: Answer =
        serde_json::from_str(text.trim()).map_err(|error| format!("its answer is not understood: {error}"))?;
    let mut told = answer.told;
    told.stale = changed_us(&directory.join("postgresql.auto.conf")).is_some_and(|changed| changed > answer.loaded_us);
    told.end = answer.receiver.and_then(|(pid, port)| own_end(pid, port));
    let owned = crate::local::engine::owned_parameters();
    for setting in &mut told.settings {
        let name = setting.name.to_ascii_lowercase();
        setting.owned = owned.contains(&name.as_str());
        let ours = mainstay_engine_postgres::default_parameters().iter().find(|(known, _)| *known == name);
        setting.ours = ours.map(|(_, value)| (*value).to_owned());
    }
    Ok(told)
}

/// Libraries that the file lets servers load, and that are not here.
pub(super) async fn missing_libraries(spec: &Spec) -> Vec<String> {
    let named = spec.postgres.parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case("shared_preload_libraries"));
    let Some((_, list)) = named else { return Vec::new() };
    let Ok(programs) = crate::local::engine::find(spec.postgres.bin_dir.as_deref()) else { return Vec::new() };
    let said = said(tokio::process::Command::new(programs.bin_dir.join("pg_config")).arg("--pkglibdir")).await;
    let dir = said.map(|text| PathBuf::from(text.trim())).unwrap_or_else(|_| programs.bin_dir.join("../lib"));
    let names = list.split(',').map(|name| name.trim().trim_matches(['"', '\''])).filter(|name| !name.is_empty());
    let missing = names.filter(|name| {
        let file = dir.join(name.trim_start_matches("$libdir/"));
        !file.exists() && !file.with_extension("so").exists()
    });
    missing.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_file_is_found_by_the_data_directory_that_it_belongs_to() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        let (data, all) = (root.join("data"), root.join("etc"));
        let cluster = all.join("15/main");
        std::fs::create_dir_all(&cluster).unwrap();
        std::fs::create_dir(&data).unwrap();
        std::fs::write(cluster.join("start.conf"), "auto\n").unwrap();
        let conf = format!("#data_directory = 'ConfigDir'\ndata_directory = '{}'\t\t# use data\n", data.display());
        std::fs::write(cluster.join("postgresql.conf"), conf).unwrap();
        assert_eq!(start_conf_in(&all, &data), Some(cluster.join("start.conf")));
        assert_eq!(start_conf_in(&all, &root), None);
    }

    #[test]
    fn what_a_control_file_says_is_read_whole_or_not() {
        let text = "Database system identifier:           7577001\nDatabase cluster state:               shut down in recovery\n\
                    Data page checksum version:           0\n";
        let control = Control::parse(text).unwrap();
        assert_eq!(
            (control.system, control.state.as_str(), control.checksums),
            (SystemId(7_577_001), "shut down in recovery", false)
        );
        let refused = |text: &str| Control::parse(text).map(|control| control.state).unwrap_err();
        assert!(refused(&text.replace("7577001", "many")).contains("no system identifier"));
        assert!(refused(&text.replace("cluster state", "state")).contains("does not say its Database cluster state"));
    }

    #[test]
    fn places_outside_and_links_are_seen() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap();
        let data = root.join("main");
        for dir in ["main/global", "main/pg_tblspc", "wal", "space"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        assert!(no_data(&data).unwrap().contains("no database"));
        std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        std::fs::write(data.join("global/pg_control"), "x").unwrap();
        assert_eq!((no_data(&data), links(&data)), (None, Vec::new()));
        std::os::unix::fs::symlink(root.join("wal"), data.join("pg_wal")).unwrap();
        std::os::unix::fs::symlink(root.join("space"), data.join("pg_tblspc/16384")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", data.join("server.crt")).unwrap();
        let names: Vec<String> = links(&data).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["pg_tblspc/16384", "pg_wal"]);
        std::os::unix::fs::symlink(&data, root.join("link")).unwrap();
        assert!(no_data(&root.join("link")).unwrap().contains("is a link to"));
        assert!(no_data(&root.join("none")).unwrap().contains("does not exist"));
    }
}
