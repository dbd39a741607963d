//! The address that goes with the primary: taken up while the route is open on this node, given up when it closes, announced to the network.
//! (docs/adr/0048)
//!
//! The lease is the kernel's: the address is given with a lifetime of seconds, never much longer than the deadline of the term, and given anew
//! while that moves on. An agent that hangs or is killed gives nothing anew, and the kernel takes the address away.
//! Absent: who is primary; that is asked of the route.

mod host;
#[cfg(test)]
mod tests;
mod wire;

pub use host::{AddressError, Addresses, Beside, Interface, Kernel};

use crate::generations::Generations;
use crate::routes::{Routes, Serving};
use mainstay_model::status::AddressStanding;
use mainstay_model::virtual_address::VirtualAddress;
use mainstay_model::{ClusterName, Moment, NodeId, Span};
use mainstay_ports::clock::boot_now;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// How often the route is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often the lifetime is given anew.
const RENEW: Span = Span(300);
/// What could not be done is tried again after this.
const AGAIN: Span = Span(1000);
/// The longest lifetime, whatever the lease is. Seconds.
const LIFETIME_MAX: u64 = 60;
/// The kernel looks at lifetimes a little early.
const EARLY: Span = Span(250);
/// How often a host that has not the address is looked at for it: somebody may have given it by hand.
const LOOK_AROUND: Span = Span(5000);
/// The first announcements, counted from the taking up: one may be lost, and whoever had the address may still answer. Then one each `ANNOUNCE`, for
/// those whose cable was cut meanwhile.
const ANNOUNCEMENTS: [Span; 6] = [Span(0), Span(100), Span(300), Span(700), Span(1500), Span(3000)];
const ANNOUNCE: Span = Span(5000);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Rest,
    /// It is not here: take it, for so many seconds.
    Take(u32),
    /// It is here: for so many seconds more.
    Renew(u32),
    GiveUp,
}

/// Since when this host has the address, by this agent's hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Had {
    renewed: Moment,
    lapses: Moment,
}

/// The whole decision.
fn decide(now: Moment, serving: Option<Serving>, had: Option<Had>) -> Act {
    let Some(serving) = serving else {
        return if had.is_some() { Act::GiveUp } else { Act::Rest };
    };
    let seconds = (serving.until.since(now).0 / 1000).clamp(1, LIFETIME_MAX);
    let seconds = u32::try_from(seconds).unwrap_or(1);
    match had {
        // In a drain the end is near: nothing is begun.
        None if serving.open => Act::Take(seconds),
        None => Act::Rest,
        Some(had) if now >= had.lapses => {
            if serving.open {
                Act::Take(seconds)
            } else {
                Act::GiveUp
            }
        }
        // Seconds are whole: near a deadline that stands still fewer are left now than were given.
        Some(had) if now.since(had.renewed) >= RENEW && lease(now, seconds).lapses > had.lapses => Act::Renew(seconds),
        Some(_) => Act::Rest,
    }
}

/// When the next announcement is due, after so many, counted from the taking up.
fn announcement(count: usize) -> Span {
    let last = ANNOUNCEMENTS.len() - 1;
    let more = u64::try_from(count.saturating_sub(last)).unwrap_or(u64::MAX);
    ANNOUNCEMENTS.get(count).copied().unwrap_or(Span(ANNOUNCEMENTS[last].0 + more.saturating_mul(ANNOUNCE.0)))
}

/// A name for what this node's agent has given: the kernel keeps it with the address, and fifteen letters are the most.
#[must_use]
pub fn label(cluster: &ClusterName, node: &NodeId) -> String {
    let text = format!("{cluster}/{node}");
    // FNV-1a: the same in every version of this program.
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("ms-{hash:08x}")
}

/// What is wanted on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    address: VirtualAddress,
    interface: Option<String>,
    own: Option<Ipv4Addr>,
}

/// The address, while this host has it.
struct Holding {
    wanted: Wanted,
    interface: Interface,
    had: Had,
    taken: Moment,
    announced: usize,
}

/// See the module.
pub struct Keeper {
    /// Who.
    pub me: NodeId,
    /// What is wanted.
    pub generations: Arc<Generations>,
    /// Is this node's server the open primary?
    pub routes: Routes,
    /// How it stands, for the status.
    pub standing: watch::Sender<Option<AddressStanding>>,
}

impl Keeper {
    /// Starts a thread of its own for it: the kernel may make it wait.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(self) -> std::io::Result<()> {
        let label = label(&self.generations.now().spec.cluster.name, &self.me);
        let mut run = Run::new(self, label, Box::new(Kernel::open));
        let thread = std::thread::Builder::new().name("address".to_owned());
        thread.spawn(move || {
            while !run.keeper.standing.is_closed() {
                run.look(boot_now());
                std::thread::sleep(LOOK);
            }
        })?;
        Ok(())
    }

    fn wanted(&self) -> Option<Wanted> {
        let stored = self.generations.now();
        let address = stored.spec.proxy.address?;
        let node = stored.spec.node(&self.me).filter(|node| !node.witness)?;
        let own = match self.routes.own_server() {
            Some(SocketAddr::V4(own)) => Some(*own.ip()),
            _ => None,
        };
        Some(Wanted { address, interface: node.interface.clone(), own })
    }
}

type Open<K> = Box<dyn Fn() -> Result<K, AddressError> + Send>;

struct Run<K> {
    keeper: Keeper,
    label: String,
    open: Open<K>,
    kernel: Option<K>,
    holding: Option<Holding>,
    /// When this host, without the address, was last looked at for it.
    around: Option<Moment>,
    again: Moment,
    problem: Option<AddressError>,
    /// Why the last announcement was not made. The address is held all the same: no reason to let it lapse.
    unannounced: Option<String>,
}

impl<K: Addresses> Run<K> {
    fn new(keeper: Keeper, label: String, open: Open<K>) -> Self {
        let (kernel, holding, around, problem, unannounced) = (None, None, None, None, None);
        Self { keeper, label, open, kernel, holding, around, again: Moment(0), problem, unannounced }
    }

    fn look(&mut self, now: Moment) {
        let wanted = self.keeper.wanted();
        let moved = self.holding.as_ref().is_some_and(|holding| Some(&holding.wanted) != wanted.as_ref());
        if wanted.is_none() && self.holding.is_none() {
            self.problem = None;
            self.tell(None, now);
            return;
        }
        let serving = self.keeper.routes.serving(now).filter(|_| wanted.is_some() && !moved);
        let had = self.holding.as_ref().map(|holding| holding.had);
        let act = decide(now, serving, had);
        if act == Act::GiveUp || now >= self.again {
            match self.act(act, wanted.as_ref(), now) {
                Ok(true) => self.problem = None,
                Ok(false) => {}
                Err(error) => {
                    let text = error.to_string();
                    if self.problem.as_ref().map(ToString::to_string).as_ref() != Some(&text) {
                        warn!(problem = %text, "the virtual address");
                    }
                    (self.problem, self.again, self.kernel) = (Some(error), now + AGAIN, None);
                }
            }
            self.announce(now);
        }
        self.tell(wanted.as_ref(), now);
    }

    /// Does it. True: the kernel was asked, and all is well.
    fn act(&mut self, act: Act, wanted: Option<&Wanted>, now: Moment) -> Result<bool, AddressError> {
        let looks =
            act == Act::Rest && self.holding.is_none() && self.around.is_none_or(|at| now.since(at) >= LOOK_AROUND);
        if act == Act::Rest && !looks {
            return Ok(false);
        }
        let kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => (self.open)()?,
        };
        let kernel = self.kernel.insert(kernel);
        match (act, &mut self.holding, wanted) {
            (Act::Take(seconds), _, Some(wanted)) => {
                self.holding = Some(take(kernel, wanted, &self.label, seconds, now)?);
            }
            (Act::Renew(seconds), Some(holding), _) => {
                kernel.give(holding.wanted.address.address, &holding.interface, &self.label, seconds)?;
                holding.had = lease(now, seconds);
            }
            (Act::GiveUp, Some(holding), _) => {
                let address = holding.wanted.address;
                // While it is still ours: a reset from an address that a host has not is never sent.
                let ended = kernel.end_connections(address.address);
                kernel.clear(&self.label, None)?;
                info!(%address, ended, "this host has given up the virtual address");
                self.holding = None;
            }
            (Act::Rest, None, Some(wanted)) => {
                self.around = Some(now);
                not_by_others(kernel, wanted.address.address, &self.label)?;
            }
            _ => {}
        }
        Ok(true)
    }

    /// Tells the network, while this host has the address and whenever that is due.
    fn announce(&mut self, now: Moment) {
        let Some(holding) = self.holding.as_mut() else {
            self.unannounced = None;
            return;
        };
        if now >= holding.had.lapses || now.since(holding.taken) < announcement(holding.announced) {
            return;
        }
        let Some(kernel) = self.kernel.as_mut() else { return };
        holding.announced += 1;
        let failed = kernel.announce(holding.wanted.address.address, &holding.interface).err();
        let failed = failed.map(|error| error.to_string());
        if let Some(problem) = failed.as_ref().filter(|_| failed != self.unannounced) {
            warn!(%problem, "the virtual address is held, and not announced");
        }
        self.unannounced = failed;
    }

    fn tell(&self, wanted: Option<&Wanted>, now: Moment) {
        let standing = wanted.map(|wanted| AddressStanding {
            address: wanted.address.to_string(),
            held: self.holding.as_ref().is_some_and(|holding| now < holding.had.lapses),
            interface: self.holding.as_ref().map(|holding| holding.interface.name.clone()),
            problem: self.problem.as_ref().map(ToString::to_string),
            foreign: matches!(self.problem, Some(AddressError::Foreign { .. })),
            unannounced: self.unannounced.clone(),
        });
        self.keeper.standing.send_if_modified(|told| {
            let changed = *told != standing;
            *told = standing;
            changed
        });
    }
}

fn lease(now: Moment, seconds: u32) -> Had {
    let lapses = now + Span(u64::from(seconds) * 1000 - EARLY.0);
    Had { renewed: now, lapses }
}

/// Whoever else gave this host the address: it is theirs.
fn not_by_others(kernel: &mut impl Addresses, address: Ipv4Addr, label: &str) -> Result<(), AddressError> {
    match kernel.foreign(address, label)? {
        Some(interface) => Err(AddressError::Foreign { address, interface }),
        None => Ok(()),
    }
}

fn take(
    kernel: &mut impl Addresses,
    wanted: &Wanted,
    label: &str,
    seconds: u32,
    now: Moment,
) -> Result<Holding, AddressError> {
    let interface = kernel.interface(wanted.interface.as_deref(), wanted.own)?;
    let address = wanted.address.address;
    not_by_others(kernel, address, label)?;
    // What is left of an earlier life, or of another wish.
    kernel.clear(label, Some((address, interface.index)))?;
    kernel.give(address, &interface, label, seconds)?;
    info!(address = %wanted.address, interface = interface.name, "this host has the virtual address");
    Ok(Holding { wanted: wanted.clone(), interface, had: lease(now, seconds), taken: now, announced: 0 })
}
