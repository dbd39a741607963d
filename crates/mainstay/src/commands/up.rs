//! `mainstay up`: makes a cluster on this machine, or starts one that is there, and returns when it really works.

use super::status::{summary, writable};
use crate::cli::{Global, Up};
use crate::client::Agents;
use crate::failure::{Failure, Outcome};
use crate::local::place::{self, Place};
use crate::local::processes::{self, Lock};
use crate::local::{create, etcd, ports, ready, user};
use crate::output;
use crate::output::progress::Progress;
use crate::target::{self, Target};
use mainstay_model::Durability;
use mainstay_model::layout::ClusterLayout;
use mainstay_model::status::Status;
use mainstay_ports::clock::boot_now;
use rustix::process::Signal;
use serde_json::json;
use std::cell::RefCell;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Makes and starts, or starts.
///
/// # Errors
/// When something does not allow it (nothing is changed then), or the cluster does not come up.
pub(crate) fn run(options: &Up, global: Global) -> Outcome {
    let begun = boot_now();
    let dir = directory(options)?;
    let mut progress = Progress::new();
    let (created, lock, _plan) = match place::look(&dir)? {
        Place::Ours => (false, claim(&dir)?, None),
        Place::Absent | Place::Empty | Place::Unfinished => {
            let plan = create::plan(options, &dir)?;
            super::one_thread(etcd::check_new(&plan.spec, &plan.layout))?;
            say_plan(&plan, &progress);
            let lock = create::make(&plan, &mut progress)?;
            (true, lock, Some(plan))
        }
    };
    let target = Target::read(&ClusterLayout::new(&dir).config())?;
    if !created {
        check_same(options, &target)?;
        if processes::supervisor(&dir).is_some() {
            drop(lock);
            return already(&target, global);
        }
        check_startable(&target)?;
        super::one_thread(etcd::check_start(&target.spec, &target.layout, &progress))?;
        progress.say(&format!("Starting the cluster {} in {} as it was", target.spec.cluster.name, dir.display()));
    }
    let supervisor = RefCell::new(start_supervisor(&target, options.foreground)?);
    let wait = Duration::from_secs(options.wait);
    let came_up = super::one_thread(ready::wait(&target, wait, &mut progress, || {
        supervisor_lives(&mut supervisor.borrow_mut(), &target)
    }));
    drop(progress);
    let status = came_up.map_err(|failure| did_not_come_up(failure, &target))?;
    let seconds = boot_now().since(begun);
    say_up(&target, &status, created, seconds, global.json);
    // Nothing is being made any more; a `down` may come.
    drop(lock);
    if options.foreground { stay(supervisor.into_inner()) } else { Ok(()) }
}

fn directory(options: &Up) -> Outcome<PathBuf> {
    match (&options.dir, &options.name) {
        (Some(dir), _) => target::absolute(dir),
        (None, Some(name)) => Ok(target::standard_place()?.join(name.as_str())),
        (None, None) => Ok(target::standard_place()?.join(target::DEFAULT_NAME)),
    }
}

fn claim(dir: &Path) -> Outcome<Lock> {
    Lock::directory(dir)?
        .ok_or_else(|| Failure::not_now(format!("another `mainstay up` is at work in {}", dir.display())))
}

fn say_plan(plan: &create::Plan, progress: &Progress) {
    let (spec, dir) = (&plan.spec, plan.layout.dir().display());
    let count = spec.nodes.len();
    let nodes = if count == 1 { "one node" } else { &format!("{count} nodes") };
    progress.say(&format!(
        "Making the cluster {} in {dir}: {nodes} of {}, durability {}",
        spec.cluster.name, spec.cluster.engine, spec.cluster.durability
    ));
}

/// Options of a cluster that is there already can not be given anew.
fn check_same(options: &Up, target: &Target) -> Outcome {
    let spec = &target.spec;
    let mut other = Vec::new();
    if let Some(name) = &options.name
        && *name != spec.cluster.name
    {
        other.push(format!("it is called {}, not {name}", spec.cluster.name));
    }
    if let Some(nodes) = options.nodes
        && usize::from(nodes) != spec.nodes.len()
    {
        other.push(format!("it has {} nodes, not {nodes}", spec.nodes.len()));
    }
    if let Some(durability) = options.durability
        && Durability::from(durability) != spec.cluster.durability
    {
        other.push(format!("its durability is {}, not {}", spec.cluster.durability, Durability::from(durability)));
    }
    if !options.etcd.is_empty() && spec.store.endpoints != options.etcd {
        other.push(match spec.store.is_etcd() {
            true => format!("its store is the etcd {}", spec.store.endpoints.join(", ")),
            false => "its nodes hold its store themselves".to_owned(),
        });
    }
    if let Some(bin_dir) = &options.bin_dir {
        let bin_dir = target::absolute(bin_dir)?;
        if spec.postgres.bin_dir.as_ref() != Some(&bin_dir) {
            other.push(format!("it does not use {}", bin_dir.display()));
        }
    }
    if other.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format!("{} holds a cluster already: {}", target.layout.dir().display(), other.join("; ")))
        .hint("leave the options out to start it as it was, or choose another --dir; nothing was changed"))
}

/// Can a stopped cluster be started: are its programs and its ports there?
fn check_startable(target: &Target) -> Outcome {
    crate::local::engine::find(target.spec.postgres.bin_dir.as_deref())?;
    place::check_reachable(target.layout.dir(), user::server_user()?.as_ref())?;
    if !processes::of_cluster(target.layout.dir()).is_empty() {
        // Daemons of a supervisor that was killed: the next one adopts them, with their ports.
        return Ok(());
    }
    let proxy = &target.spec.proxy;
    let mut wanted: Vec<(String, u16, String)> = Vec::new();
    for node in &target.spec.nodes {
        for (port, what) in [(node.port, "server"), (node.agent_port, "agent"), (node.health_port, "health endpoints")]
        {
            wanted.push((node.host.clone(), port, format!("the {what} of {}", node.name)));
        }
    }
    for host in proxy.host.iter() {
        wanted.push((host.clone(), proxy.write_port, "the proxy's writes".into()));
        wanted.push((host.clone(), proxy.read_port, "the proxy's reads".into()));
    }
    for (host, port, what) in wanted {
        if let Ok(address) = host.parse::<IpAddr>()
            && !ports::is_free(address, port)
        {
            return Err(Failure::failed(format!(
                "{host}:{port}, for {what}, can not be listened on: another program has it"
            ))
            .hint(format!("`ss -ltnp` shows which; end it, or change the port in {}", target.config.display())));
        }
    }
    Ok(())
}

fn already(target: &Target, global: Global) -> Outcome {
    let status = super::one_thread(async { Agents::of(target)?.status().await });
    let dir = target.layout.dir();
    match status {
        Ok(status) if global.json => output::object(&report(target, &status, false, true, None)),
        Ok(status) => {
            output::line(&format!(
                "The cluster {} in {} runs already: {}.",
                target.spec.cluster.name,
                dir.display(),
                summary(&status)
            ));
            addresses(target, &status);
            // It runs, which is what was asked; that it takes no writes is said all the same.
            if let Err(failure) = writable(status) {
                output::errline(&format!("warning: {}", failure.error));
            }
        }
        Err(failure) => {
            return Err(failure.hint(format!("its daemons run: `mainstay down --dir {}` ends them", dir.display())));
        }
    }
    Ok(())
}

fn start_supervisor(target: &Target, foreground: bool) -> Outcome<Child> {
    let log = target.layout.log().join("supervisor.log");
    let wrong = |what: &str, error: std::io::Error| Failure::failed(format!("{what}: {error}"));
    let file = File::options().create(true).append(true).mode(0o600).open(&log);
    let file = file.map_err(|error| wrong(&log.display().to_string(), error))?;
    let copy = file.try_clone().map_err(|error| wrong("the log", error))?;
    let program = std::env::current_exe().map_err(|error| wrong("this program is not found", error))?;
    let mut command = Command::new(&program);
    command.arg("supervise").arg("--dir").arg(target.layout.dir()).current_dir(target.layout.dir());
    if !foreground {
        command.arg("--detach");
    }
    command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(copy)
        .spawn()
        .map_err(|error| wrong("the supervisor does not start", error))
}

/// Says why waiting is pointless: the supervisor has ended.
fn supervisor_lives(supervisor: &mut Child, target: &Target) -> Outcome {
    match supervisor.try_wait() {
        Ok(None) => Ok(()),
        Ok(Some(status)) => {
            let log = target.layout.log().join("supervisor.log");
            Err(Failure::failed(format!("the supervisor ended ({status}); its log ends with\n{}", tail(&log))))
        }
        Err(error) => Err(Failure::failed(format!("the supervisor can not be watched: {error}"))),
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(2000)))?;
        let mut bytes = Vec::new();
        file.take(2000).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(5)).copied().collect::<Vec<_>>().join("\n")
}

/// What the agents' logs end with.
fn last_words(target: &Target) -> Vec<String> {
    let mut words = Vec::new();
    for node in &target.spec.nodes {
        let text = tail(&target.layout.node(&node.name).log().join("agent.log"));
        let Some(line) = text.lines().rfind(|line| !line.trim().is_empty()) else { continue };
        let entry = serde_json::from_str::<serde_json::Value>(line).ok();
        let message = entry.as_ref().and_then(|entry| entry["message"].as_str()).unwrap_or(line.trim());
        words.push(format!("the log of the agent of {} ends with: {message}", node.name));
    }
    words
}

fn did_not_come_up(mut failure: Failure, target: &Target) -> Failure {
    let dir = target.layout.dir().display();
    // Nobody could be asked: what they wait for, or why they ended, stands in their logs only.
    if failure.error.contains(crate::client::NOBODY) {
        for line in last_words(target) {
            failure.error.push('\n');
            failure.error.push_str(&crate::failure::visible(&line));
        }
    }
    failure.hint(format!(
        "it is left as it is, to be looked at: `mainstay status --dir {dir}`, {dir}/nodes/*/log/, {dir}/log/\n\
         `mainstay down --dir {dir} --destroy` removes it"
    ))
}

fn report(target: &Target, status: &Status, created: bool, running: bool, took_ms: Option<u64>) -> serde_json::Value {
    json!({
        "cluster": target.spec.cluster.name, "dir": target.layout.dir(), "config": target.config,
        "routes": status.routes, "api": status.api, "primary": status.cluster.primary, "term": status.cluster.term,
        "nodes": status.nodes.len(), "writable": status.cluster.writable,
        "created": created, "already_running": running, "milliseconds": took_ms,
    })
}

fn say_up(target: &Target, status: &Status, created: bool, took: mainstay_model::Span, json: bool) {
    let replicas = status.nodes.len().saturating_sub(1);
    let streaming = if replicas == 0 { String::new() } else { format!("; {replicas} of {replicas} replicas stream") };
    let verified = format!("a write through {} was acknowledged{streaming}", status.routes.write);
    if json {
        let mut object = report(target, status, created, false, Some(took.0));
        if let Some(fields) = object.as_object_mut() {
            fields.insert("verified".into(), json!([verified]));
        }
        output::object(&object);
        return;
    }
    output::line(&format!("The cluster {} is up after {took}: {}.", target.spec.cluster.name, summary(status)));
    addresses(target, status);
    output::line(&format!("Verified: {verified}."));
    let which = target.config.parent().map(which).unwrap_or_default();
    output::line(&format!("Next: mainstay connect{which}   mainstay status{which}   mainstay down{which}"));
}

fn addresses(target: &Target, status: &Status) {
    output::line(&format!("  writes  {}", status.routes.write));
    output::line(&format!("  reads   {}", status.routes.read));
    output::line(&format!("  role    app, database app (password in {})", target.layout.app_password().display()));
    output::line(&format!("  files   {}", target.layout.dir().display()));
}

/// What must be typed to mean this cluster: nothing, if it is the one that is meant anyway.
fn which(dir: &Path) -> String {
    match target::directory(None, None) {
        Ok(default) if default == dir => String::new(),
        _ => format!(" --dir {}", dir.display()),
    }
}

/// Foreground: stays until the supervisor ends, and passes an interrupt on to it.
fn stay(mut supervisor: Child) -> Outcome {
    output::errline("In the foreground: Ctrl-C ends the cluster in order.");
    super::one_thread(async move {
        let pid = rustix::process::Pid::from_child(&supervisor);
        let end = super::end_signal();
        tokio::pin!(end);
        let mut asked = false;
        loop {
            tokio::select! {
                ended = &mut end, if !asked => {
                    ended?;
                    asked = true;
                    // Our child, not yet collected: the number is its own.
                    let _ = rustix::process::kill_process(pid, Signal::TERM);
                }
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
            match supervisor.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) if asked && status.success() => return Ok(()),
                Ok(Some(status)) => return Err(Failure::failed(format!("the supervisor ended: {status}"))),
                Err(error) => return Err(Failure::failed(format!("the supervisor can not be watched: {error}"))),
            }
        }
    })
}
