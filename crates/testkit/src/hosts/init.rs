//! The first process of a virtual host: collects what loses its parent, and keeps services running as a service manager would.
//!
//! It reads one JSON line per command from its standard input, says on standard output when each is obeyed, and ends when its input closes,
//! whatever became of the other end. It is the first of a process namespace, so with it every process of the host ends, and the host's network and mounts go.

use anyhow::{Context as _, Result};
use rustix::process::{WaitOptions, wait};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often dead children are looked for.
const TICK: Duration = Duration::from_millis(20);
/// Pause before a service that died is started again; doubled each time it dies soon.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MOST: Duration = Duration::from_secs(2);
/// A service that ran for this long did not die soon.
const LONG: Duration = Duration::from_secs(10);

/// What the first process answers to each order.
pub(super) const OBEYED: &str = "obeyed";
const NOT_OBEYED: &str = "not obeyed";

fn say(line: &str) {
    // Nobody may listen any more; then the end of the input comes next.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// What the first process is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Start this service now, and again when it dies.
    Serve(Service),
    /// Forget a service; a running one is left alone.
    Forget(String),
    /// Start what dies again (`true`, as at first), or do not.
    Keep(bool),
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Program and arguments.
    pub words: Vec<String>,
    /// Added to its environment.
    pub environment: BTreeMap<String, String>,
    /// Where its output goes.
    pub log: PathBuf,
}

struct Ward {
    service: Service,
    running: Option<(i32, Instant)>,
    due: Instant,
    pause: Duration,
}

struct Init {
    wards: BTreeMap<String, Ward>,
    keep: bool,
}

/// Runs as the first process until standard input closes.
///
/// # Errors
/// When standard output, on which it says that it is there, is closed.
pub fn run() -> Result<()> {
    println!("ready");
    let (orders, queue) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str::<Order>(&line) {
                Ok(order) => drop(orders.send(order)),
                Err(error) => {
                    eprintln!("host-init: not an order: {line}: {error}");
                    say(NOT_OBEYED);
                }
            }
        }
    });
    Init { wards: BTreeMap::new(), keep: true }.serve(&queue);
    Ok(())
}

impl Init {
    fn serve(&mut self, queue: &Receiver<Order>) {
        loop {
            let obeyed = match queue.recv_timeout(TICK) {
                Ok(order) => {
                    self.obey(order);
                    true
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.collect();
            if self.keep {
                self.start_due();
            }
            if obeyed {
                say(OBEYED);
            }
        }
    }

    fn obey(&mut self, order: Order) {
        let now = Instant::now();
        match order {
            Order::Serve(service) => {
                let running = self.wards.remove(&service.name).and_then(|ward| ward.running);
                self.wards.insert(service.name.clone(), Ward { service, running, due: now, pause: PAUSE });
            }
            Order::Forget(name) => drop(self.wards.remove(&name)),
            Order::Keep(keep) => {
                self.keep = keep;
                for ward in self.wards.values_mut() {
                    (ward.due, ward.pause) = (now, PAUSE);
                }
            }
        }
    }

    fn collect(&mut self) {
        while let Ok(Some((pid, _))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let ward = self.wards.values_mut().find(|ward| ward.running.is_some_and(|(running, _)| running == pid));
            let Some(ward) = ward else { continue };
            let lasted = ward.running.take().map(|(_, since)| since.elapsed()).unwrap_or_default();
            ward.pause = if lasted > LONG { PAUSE } else { (ward.pause * 2).min(PAUSE_MOST) };
            ward.due = Instant::now() + ward.pause;
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for ward in self.wards.values_mut().filter(|ward| ward.running.is_none() && ward.due <= now) {
            match start(&ward.service) {
                Ok(pid) => ward.running = Some((pid, now)),
                Err(error) => {
                    eprintln!("host-init: {}: {error:#}", ward.service.name);
                    ward.due = now + PAUSE_MOST;
                }
            }
        }
    }
}

fn start(service: &Service) -> Result<i32> {
    let log = OpenOptions::new().create(true).append(true).open(&service.log).context("open its log")?;
    let (program, arguments) = service.words.split_first().context("no program is named")?;
    let mut command = Command::new(program);
    command.args(arguments).envs(&service.environment).current_dir("/").stdin(Stdio::null());
    let child = command.stdout(log.try_clone()?).stderr(log).spawn().with_context(|| format!("start {program}"))?;
    // Collected with all other children, so the handle is of no use.
    Ok(i32::try_from(child.id())?)
}
