//! Keeps a copy following: its server on one side, the repository on the other, neither waiting for the other. What each does is the vault's.

use super::follow::Here;
use super::shelf::failure;
use crate::failure::{Failure, Outcome};
use mainstay_ports::clock::wall_now_ms;
use mainstay_vault::postgres::follow::{
    self, Contact, Control, Fed, Feed, Found, Listen, Look, Mark, Promotes, Seen, Server, State, found, needed,
};
use mainstay_vault::postgres::scratch::{end_left_over as kill_left_over, runs_on, tell_to_stop};
use mainstay_vault::repository::VaultError;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// How often the server is asked.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether more is archived; what a listing costs makes it rarer (the vault's `FRESH`).
const POLL: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const PAUSE_MOST: Duration = Duration::from_secs(30);
/// How long the server may take to stop.
const STOP: Duration = Duration::from_secs(60);
/// The state is written so often if nothing changes. Milliseconds.
const WRITE_MS: u64 = 5_000;

/// A copy that follows.
pub(super) struct Follower {
    bin: PathBuf,
    data: PathBuf,
    owner: Option<(u32, u32)>,
    listen: Listen,
    mark: RefCell<Mark>,
    state: RefCell<State>,
    seen: Cell<Seen>,
    look: RefCell<Option<(Look, Contact)>>,
    fed: RefCell<Option<Fed>>,
    /// The mark names another place than the one that is written down, and that was not read yet.
    moved: Cell<bool>,
    /// No more is fetched.
    full: Cell<bool>,
    feeding: Cell<bool>,
    ending: Cell<bool>,
    wake: Notify,
}

/// Ends a server that an earlier run left: in order, and by force if it does not.
///
/// # Errors
/// When it can not be ended.
pub(super) async fn end_left_over(data: &Path) -> Outcome {
    let data = data.to_owned();
    super::shelf::blocking(move || {
        let begun = std::time::Instant::now();
        while runs_on(&data)? && begun.elapsed() < STOP {
            tell_to_stop(&data);
            std::thread::sleep(Duration::from_millis(100));
        }
        kill_left_over(&data)
    })
    .await
}

impl Follower {
    /// Of this copy. Nothing is done yet.
    ///
    /// # Errors
    /// When what is known of it can not be read.
    pub(super) fn new(bin: PathBuf, mark: Mark, here: &Here, listen: Listen) -> Outcome<Follower> {
        let moved = matches!(here.found()?, Found::Follows(written) if *written != mark);
        let before = State::read(&here.data).unwrap_or_default().unwrap_or_default();
        let state = State {
            pid: std::process::id(),
            timeline: mark.timeline,
            commit: before.commit.max(mark.ended),
            replayed: before.replayed,
            reaches: before.reaches,
            newest: before.newest,
            read_ms: before.read_ms,
            replayed_ms: wall_now_ms(),
            ..State::default()
        };
        let follower = Follower {
            bin,
            data: here.data.clone(),
            owner: here.owner,
            listen,
            mark: RefCell::new(mark),
            state: RefCell::new(state),
            seen: Cell::default(),
            look: RefCell::default(),
            fed: RefCell::default(),
            moved: Cell::new(moved),
            full: Cell::new(false),
            feeding: Cell::new(false),
            ending: Cell::new(false),
            wake: Notify::new(),
        };
        follower.write(true);
        Ok(follower)
    }

    /// Until it is told to end.
    ///
    /// # Errors
    /// When it can not go on.
    pub(super) async fn run(self) -> Outcome {
        info!(data = %self.data.display(), repository = %self.mark.borrow().repository.display(), "following");
        let never = async { std::future::pending::<Outcome>().await };
        self.while_it_follows(never).await
    }

    /// Follows while something else is done, and stops the server in order at its end.
    ///
    /// # Errors
    /// Those of what is done, and when it can not go on.
    pub(super) async fn while_it_follows<T: Default>(&self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        let (serve, feed) = (self.serve(), self.feed());
        tokio::pin!(serve, feed);
        let mut served = false;
        let done = tokio::select! {
            failed = &mut serve => {
                served = true;
                failed.map(|()| T::default())
            }
            failed = &mut feed => failed.map(|()| T::default()),
            done = work => done,
            told = super::end_signal() => told.map(|()| T::default()),
        };
        self.ending.set(true);
        self.wake.notify_one();
        if !served {
            let slow = |_| Failure::failed(format!("the server of {} does not stop", self.data.display()));
            timeout(STOP + STOP, serve).await.map_err(slow)??;
        }
        done
    }

    /// Waits; says whether it is to end.
    async fn ends_within(&self, pause: Duration) -> bool {
        if !self.ending.get() {
            tokio::select! {
                () = self.wake.notified() => {}
                () = sleep(pause) => {}
            }
        }
        self.ending.get()
    }

    /// Keeps the server running.
    async fn serve(&self) -> Outcome {
        let mut pause = LOOK;
        while !self.ending.get() {
            end_left_over(&self.data).await?;
            // By that server, perhaps, or by hand.
            if !matches!(found(&self.data, self.owner), Ok(Found::Follows(_))) {
                return Err(super::follow::promoted(&self.data));
            }
            let Err(error) = self.one_life(&mut pause).await else { break };
            warn!(%error, "the server of the copy is started again");
            self.silent(error.to_string());
            self.seen.set(Seen { runs: false, ..self.seen.get() });
            self.write(true);
            if self.ends_within(pause).await {
                break;
            }
            pause = (pause * 2).min(PAUSE_MOST);
        }
        self.write(true);
        Ok(())
    }

    /// From the server's start to its end; `Ok`: it was to end.
    async fn one_life(&self, pause: &mut Duration) -> Result<(), VaultError> {
        let control = follow::control(&self.bin, &self.data, self.owner).await?;
        let mark = self.mark.borrow().clone();
        Feed::new(mark.clone(), &self.data, self.owner).prepare()?;
        self.seen.set(Seen {
            needed: needed(&self.data, &mark, Some(&control)),
            replayed: None,
            runs: true,
            waited: None,
        });
        let mut server = Server::start(&self.bin, (&mark, &control), &self.data, self.owner, &self.listen)?;
        loop {
            if self.ends_within(LOOK).await {
                self.silent("it was told to end".to_owned());
                return server.stop().await;
            }
            if let Some(says) = server.ended() {
                return Err(VaultError::Server(says));
            }
            let asked = Instant::now();
            match server.look().await {
                Ok(look) if !look.follows && self.state.borrow().promotes.is_none() => {
                    server.stop().await?;
                    return Err(VaultError::Server("the copy was promoted by hand".to_owned()));
                }
                Ok(look) if look.paused => {
                    server.stop().await?;
                    return Err(VaultError::Server(raised(&control)));
                }
                Ok(look) => {
                    *pause = LOOK;
                    self.looked(look, &server, asked);
                }
                Err(error) => self.silent(error.to_string()),
            }
            self.write(false);
        }
    }

    fn looked(&self, look: Look, server: &Server, asked: Instant) {
        let replayed = look.replayed.unwrap_or_default();
        let waited = look.waits.then_some(asked);
        self.seen.set(Seen { needed: replayed, replayed: Some(replayed), runs: true, waited });
        let mut state = self.state.borrow_mut();
        if !state.serves {
            info!(%replayed, "the copy can be read");
            // Told at once.
            state.written_ms = 0;
        }
        if state.replayed != replayed || !state.serves {
            (state.replayed, state.replayed_ms) = (replayed, wall_now_ms());
        }
        (state.serves, state.server) = (true, None);
        state.commit = look.commit.unwrap_or(0).max(state.commit);
        drop(state);
        *self.look.borrow_mut() = Some((look, server.contact()));
    }

    /// It does not answer: where it is is not known.
    fn silent(&self, says: String) {
        self.seen.set(Seen { replayed: None, waited: None, ..self.seen.get() });
        *self.look.borrow_mut() = None;
        let mut state = self.state.borrow_mut();
        (state.serves, state.server) = (false, Some(says));
    }

    /// Brings the log, for ever.
    async fn feed(&self) -> Outcome {
        let mut feed = Feed::new(self.mark.borrow().clone(), &self.data, self.owner);
        let mut pause = POLL;
        loop {
            if self.full.get() {
                sleep(POLL).await;
                continue;
            }
            self.feeding.set(true);
            let seen = self.seen.get();
            let round = tokio::task::spawn_blocking(move || {
                let fed = feed.round(seen);
                (feed, fed)
            });
            let (back, fed) = round.await.map_err(|error| Failure::failed(error.to_string()))?;
            feed = back;
            self.feeding.set(false);
            *self.mark.borrow_mut() = feed.mark.clone();
            pause = match fed {
                Ok(fed) => self.fed(fed),
                Err(error) => self.unread(&error, pause),
            };
            sleep(pause).await;
        }
    }

    /// How long the next round may wait.
    fn fed(&self, fed: Fed) -> Duration {
        if self.moved.get() {
            // It was read there: from now on that is its place.
            match self.mark.borrow().write(&self.data, self.owner) {
                Ok(()) => self.moved.set(false),
                Err(error) => warn!(%error, "the place of the repository can not be written down; it is tried again"),
            }
        }
        let mut state = self.state.borrow_mut();
        if state.unread.take().is_some() {
            info!("the repository can be read");
        }
        let timeline = self.mark.borrow().timeline;
        if timeline > state.timeline {
            info!(%timeline, "the cluster has a new primary");
        }
        if fed.trouble != state.trouble {
            match &fed.trouble {
                Some(trouble) => warn!(%trouble, "the copy does not go on"),
                None => info!("the copy goes on"),
            }
        }
        (state.reaches, state.newest, state.read_ms) = (fed.reaches, fed.newest, fed.listed_ms);
        state.timeline = timeline;
        (state.trouble, state.left) = (fed.trouble.clone(), fed.left);
        let pause = if fed.fetched > 0 { Duration::ZERO } else { POLL };
        drop(state);
        *self.fed.borrow_mut() = Some(fed);
        pause
    }

    fn unread(&self, error: &VaultError, pause: Duration) -> Duration {
        let says = error.to_string();
        let mut state = self.state.borrow_mut();
        if state.unread.as_ref() != Some(&says) {
            warn!(%error, "the repository can not be read; it is tried again");
        }
        state.unread = Some(says);
        (pause * 2).clamp(POLL, PAUSE_MOST)
    }

    /// Writes how it stands, if that changed or was not told for a while. It is a report: a volume that is full must not end a server that is read.
    fn write(&self, always: bool) {
        if let Err(error) = self.write_down(always) {
            warn!(%error, "how the copy stands can not be written down; it is tried again");
        }
    }

    fn write_down(&self, always: bool) -> Result<(), VaultError> {
        let mut state = self.state.borrow_mut();
        let now = wall_now_ms();
        if !always && now.saturating_sub(state.written_ms) < WRITE_MS {
            return Ok(());
        }
        state.written_ms = now;
        state.write(&self.data, self.owner)
    }

    /// It is being promoted: what that began with is on disk first.
    ///
    /// # Errors
    /// When it can not be written.
    pub(super) fn promotes(&self, with: Promotes) -> Outcome {
        self.state.borrow_mut().promotes = Some(with);
        self.write_down(true).map_err(|error| failure(&error))
    }

    /// What is known now, for whoever promotes it.
    pub(super) fn now(&self) -> (Option<(Look, Contact)>, Option<Fed>, State, Mark) {
        (self.look.borrow().clone(), self.fed.borrow().clone(), self.state.borrow().clone(), self.mark.borrow().clone())
    }

    /// No more is fetched from now on.
    pub(super) async fn fill_no_more(&self, patience: Duration) {
        self.full.set(true);
        let over = async {
            while self.feeding.get() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        // One that hangs in the repository writes nothing but a segment that comes late.
        drop(timeout(patience, over).await);
    }
}

fn raised(control: &Control) -> String {
    let all: Vec<String> = control.floors.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    format!("the primary was given more than {}: it replays no further without", all.join(", "))
}
