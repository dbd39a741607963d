//! The server, its deadline and its end: what the guard does, apart from how it is asked (`serve`).
//!
//! Nothing here waits: each step is taken by [`Keeper::tick`], which the loop calls whenever something happened or is due.

use crate::deadline::Deadline;
use crate::frames::{Answer, Ask};
use crate::journal::Journal;
use crate::launch::{Server, Stage, launch};
use crate::processes;
use crate::stage::Ordinary;
use mainstay_model::{Moment, Span, Term};
use mainstay_ports::clock::boot_now;
use mainstay_ports::process::{GuardStatus, ProcessError, StartCommand, StopMode};
use mainstay_ports::sabotage;
use rustix::process::{Signal, WaitOptions, WaitStatus, pidfd_send_signal};
use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};

/// Who asked: a connection and the number of its question.
pub(crate) type Ticket = (u64, u64);

/// `exited` waits this long for the left-overs of a server whose main process ended; a process stuck in the kernel must not hide that end.
const LEFTOVERS: Span = Span(50);
/// The same processes must be found stuck, and no others, for this long, before a `fence` is answered with them.
const DOOMED: Span = Span(300);
/// After this long a `fence` is answered with the processes that do not die; the killing goes on.
const UNKILLABLE: Span = Span(10_000);
/// How long a fast stop may take when the guard is told to end by a signal.
const TERMINATE_WITHIN: Span = Span(20_000);

/// Killing under way.
struct Fence {
    why: String,
    /// By a deadline or an order; otherwise it only clears what a dead server left.
    counts: bool,
    began: Moment,
    killed: usize,
    rounds: u64,
    due: Moment,
    /// All that are left, each stuck in the kernel with SIGKILL pending, and since when no other was found beside them.
    stuck: Option<(BTreeSet<u32>, Moment)>,
    /// That has been said.
    doomed: bool,
    waiting: Vec<(Ticket, Moment)>,
}

impl Fence {
    /// All that are left, if none of them will ever run again. Every one was killed before this look; one that was started by another in
    /// between shows in this look or the next, and begins the wait anew.
    fn look_for_doomed(&mut self, home: &processes::Home, now: Moment) -> Option<Vec<u32>> {
        let left: BTreeSet<u32> = processes::descendants().into_iter().chain(processes::at_home(home)).collect();
        if left.is_empty() || !left.iter().all(|pid| processes::is_doomed(*pid)) {
            self.stuck = None;
            return None;
        }
        let since = match &self.stuck {
            Some((before, since)) if left.is_subset(before) => *since,
            _ => now,
        };
        let processes = left.iter().copied().collect();
        self.stuck = Some((left, since));
        (now.since(since) >= DOOMED).then_some(processes)
    }
}

/// The guard is to end: until then the server may stop by itself.
struct Closing {
    until: Moment,
    waiting: Vec<Ticket>,
}

/// What the guard keeps.
pub(crate) struct Keeper {
    journal: Journal,
    ordinary: Ordinary,
    deadline: Deadline,
    server: Option<Server>,
    fence: Option<Fence>,
    closing: Option<Closing>,
    waiting_exit: Vec<Ticket>,
    answers: Vec<(Ticket, Answer)>,
    fenced: u64,
    last_exit: Option<String>,
}

fn refused(text: impl Into<String>) -> Answer {
    Answer::Failed(ProcessError::Refused(text.into()))
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => format!("status {status:?}"),
    }
}

impl Keeper {
    pub(crate) fn new(journal: Journal, ordinary: Ordinary) -> Keeper {
        Keeper {
            journal,
            ordinary,
            deadline: Deadline::default(),
            server: None,
            fence: None,
            closing: None,
            waiting_exit: Vec::new(),
            answers: Vec::new(),
            fenced: 0,
            last_exit: None,
        }
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.journal.say(text);
    }

    /// The end: the last lines of the log are written.
    pub(crate) fn finish(self) {
        self.journal.finish();
    }

    /// Answers that are ready to be sent.
    pub(crate) fn take_answers(&mut self) -> Vec<(Ticket, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// Descriptors whose readiness is a reason to tick: the server's end, and the word of a server that starts.
    pub(crate) fn watched(&self) -> Vec<BorrowedFd<'_>> {
        let Some(server) = &self.server else { return Vec::new() };
        let end = server.ended.is_none().then(|| server.pidfd.as_fd());
        end.into_iter().chain(server.stage.as_ref().map(|stage| stage.report.as_fd())).collect()
    }

    /// The deadline, for the timer.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        let kills = self.fence.is_none() && !sabotage::on("guard-never-kills");
        self.deadline.held().filter(|_| kills).map(|(_, until)| until)
    }

    /// When the next step is due, if nothing happens before.
    pub(crate) fn due(&self) -> Option<Moment> {
        let killing = self.fence.as_ref().map(|fence| fence.due);
        let closing = self.closing.as_ref().filter(|_| self.fence.is_none()).map(|closing| closing.until);
        [killing, closing, self.deadline()].into_iter().flatten().min()
    }

    /// The guard may end: it was told to, and no server is left.
    pub(crate) fn finished(&self) -> bool {
        self.closing.is_some() && self.server.is_none()
    }

    /// Answers, at once or later through [`Keeper::take_answers`].
    pub(crate) fn ask(&mut self, ticket: Ticket, ask: Ask) {
        let answer = match ask {
            Ask::Start { command, primary } => self.start(ticket, &command, primary),
            Ask::Extend { term, deadline } => Some(self.extend(term, deadline)),
            Ask::Stop { mode } => {
                let signal = match mode {
                    StopMode::Fast => Signal::INT,
                    StopMode::Immediate => Signal::QUIT,
                };
                self.say(&format!("asked to stop the server: {mode:?}"));
                Some(self.signal(signal))
            }
            Ask::Reload => Some(self.signal(Signal::HUP)),
            Ask::Fence { reason } => self.order_fence(ticket, reason),
            Ask::Status => Some(Answer::Status(self.status())),
            Ask::Exited if self.server.is_none() => Some(Answer::Done),
            Ask::Exited => {
                self.waiting_exit.push(ticket);
                None
            }
            Ask::Shutdown { within } => {
                self.close(within, Some(ticket));
                None
            }
        };
        self.answers.extend(answer.map(|answer| (ticket, answer)));
    }

    /// A connection ended: its questions need no answer. The server is not touched.
    pub(crate) fn forget(&mut self, connection: u64) {
        self.waiting_exit.retain(|ticket| ticket.0 != connection);
        if let Some(fence) = &mut self.fence {
            fence.waiting.retain(|(ticket, _)| ticket.0 != connection);
        }
        if let Some(closing) = &mut self.closing {
            closing.waiting.retain(|ticket| ticket.0 != connection);
        }
    }

    /// The guard was told to end by a signal, as a host that shuts down does.
    pub(crate) fn terminate(&mut self) {
        self.close(TERMINATE_WITHIN, None);
    }

    fn status(&self) -> GuardStatus {
        GuardStatus {
            guard_pid: std::process::id(),
            server_pid: self.server.as_ref().map(|server| server.id()),
            server_started: self.server.as_ref().map(|server| server.started),
            deadline: self.deadline.held(),
            fenced: self.fenced,
            last_exit: self.last_exit.clone(),
        }
    }

    fn start(&mut self, ticket: Ticket, command: &StartCommand, primary: Option<(Term, Moment)>) -> Option<Answer> {
        match self.try_start(ticket, command, primary) {
            Ok(()) => None,
            Err(error) => {
                self.say(&format!("did not start the server: {error}"));
                Some(Answer::Failed(error))
            }
        }
    }

    fn try_start(
        &mut self,
        ticket: Ticket,
        command: &StartCommand,
        primary: Option<(Term, Moment)>,
    ) -> Result<(), ProcessError> {
        let refuse = |text: String| Err(ProcessError::Refused(text));
        if self.closing.is_some() {
            return refuse("the guard is about to end".to_owned());
        }
        if let Some(server) = &self.server {
            return refuse(format!("a server runs already, process {}", server.id()));
        }
        if !command.program.is_absolute() || !command.data_dir.is_absolute() {
            return refuse("the program and the data directory must be absolute paths".to_owned());
        }
        let home = processes::Home::of(&command.data_dir);
        let mut left = processes::at_home(&home);
        left.extend(processes::descendants());
        if !left.is_empty() {
            let (few, many) = (left.iter().take(8).map(u32::to_string).collect::<Vec<_>>().join(", "), left.len());
            return refuse(format!("{many} processes are left of an earlier server (process ids {few}); fence first"));
        }
        if let Some((term, until)) = primary {
            self.deadline.extend(term, until, boot_now()).map_err(ProcessError::Refused)?;
        }
        match launch(command, home, &self.ordinary, ticket) {
            Ok(server) => {
                let role = primary.map_or_else(
                    || "without a deadline".to_owned(),
                    |(term, until)| format!("as primary of term {term} until {until}"),
                );
                self.say(&format!("started {} as process {} {role}", command.program.display(), server.id()));
                self.server = Some(server);
                Ok(())
            }
            Err(error) => {
                self.deadline.forget();
                Err(ProcessError::Os(error))
            }
        }
    }

    fn extend(&mut self, term: Term, until: Moment) -> Answer {
        if self.server.as_ref().is_none_or(|server| server.ended.is_some()) {
            return refused("no server runs");
        }
        if let Some(fence) = &self.fence {
            return refused(format!("the server is being fenced: {}", fence.why));
        }
        let before = self.deadline.held().map(|(term, _)| term);
        match self.deadline.extend(term, until, boot_now()) {
            Ok(()) => {
                if before != Some(term) {
                    self.say(&format!("the server may serve as primary of term {term} until {until}"));
                }
                Answer::Done
            }
            Err(text) => refused(text),
        }
    }

    fn signal(&mut self, signal: Signal) -> Answer {
        match &self.server {
            Some(server) if server.ended.is_none() => match pidfd_send_signal(&server.pidfd, signal) {
                Ok(()) => Answer::Done,
                Err(error) => {
                    Answer::Failed(ProcessError::Os(format!("cannot signal process {}: {error}", server.id())))
                }
            },
            _ => refused("no server runs"),
        }
    }

    fn order_fence(&mut self, ticket: Ticket, reason: String) -> Option<Answer> {
        if self.server.is_none() {
            return Some(Answer::Done);
        }
        self.begin_fence(reason, true);
        if let Some(fence) = &mut self.fence {
            fence.waiting.push((ticket, boot_now()));
        }
        None
    }

    fn close(&mut self, within: Span, ticket: Option<Ticket>) {
        let until = boot_now() + within;
        let closing = self.closing.get_or_insert_with(|| Closing { until, waiting: Vec::new() });
        closing.until = closing.until.min(until);
        closing.waiting.extend(ticket);
        self.say(&format!("asked to end: the server is stopped fast, and fenced after {within}"));
        self.signal(Signal::INT);
    }

    fn begin_fence(&mut self, why: String, counts: bool) {
        let now = boot_now();
        match &mut self.fence {
            Some(fence) => {
                fence.counts |= counts;
            }
            none => {
                *none = Some(Fence {
                    why,
                    counts,
                    began: now,
                    killed: 0,
                    rounds: 0,
                    due: now,
                    stuck: None,
                    doomed: false,
                    waiting: Vec::new(),
                });
            }
        }
    }

    /// Takes every step that is due.
    pub(crate) fn tick(&mut self) {
        let children = self.reap();
        self.hear_stage();
        let now = boot_now();
        if let (Some(_), Some((term, until))) = (&self.server, self.deadline.passed(now))
            && self.fence.is_none()
            && !sabotage::on("guard-never-kills")
        {
            self.begin_fence(format!("the deadline {until} of term {term} passed {} ago", now.since(until)), true);
        }
        if self.closing.as_ref().is_some_and(|closing| now >= closing.until)
            && self.server.is_some()
            && self.fence.is_none()
        {
            self.begin_fence("the guard was asked to end and the server did not stop in time".to_owned(), true);
        }
        if self.server.as_ref().is_some_and(|server| server.ended.is_some()) && self.fence.is_none() {
            self.begin_fence("the server ended by itself".to_owned(), false);
        }
        if self.fence.as_ref().is_some_and(|fence| now >= fence.due || !children) {
            self.kill_round();
        }
        if self.server.is_none() {
            let finished =
                self.closing.as_mut().map(|closing| std::mem::take(&mut closing.waiting)).unwrap_or_default();
            self.answers.extend(finished.into_iter().map(|ticket| (ticket, Answer::Done)));
        }
        self.answer_exit(now);
    }

    /// Collects the dead. Returns whether any child is left.
    fn reap(&mut self) -> bool {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(server) = self.server.as_mut().filter(|server| server.pid == pid) {
                        server.ended = Some((describe(status), boot_now()));
                    }
                }
                Ok(None) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Hears whether the stage became the server.
    fn hear_stage(&mut self) {
        let Some(server) = &mut self.server else { return };
        let pid = server.id();
        let Some(Stage { report, ticket }) = &mut server.stage else { return };
        let ticket = *ticket;
        let answer = match report.hear() {
            None => return,
            Some(Ok(())) => Answer::Started(pid),
            Some(Err(text)) => {
                server.failure = Some(text.clone());
                Answer::Failed(ProcessError::Os(text))
            }
        };
        server.stage = None;
        self.answers.push((ticket, answer));
    }

    /// SIGKILL to the server's main process, then to whatever descends from us, then to whoever works in the data directory.
    fn kill_round(&mut self) {
        if let Some(server) = self.server.as_ref().filter(|server| server.ended.is_none()) {
            let _ = pidfd_send_signal(&server.pidfd, Signal::KILL);
        }
        let mut sent = processes::kill_descendants();
        let children = self.reap();
        let (Some(server), Some(fence)) = (&mut self.server, &mut self.fence) else { return };
        // The others that work there come last, but do not wait for children that can not end.
        if !children || boot_now().since(fence.began) >= LEFTOVERS {
            sent += processes::kill_at_home(&server.home);
        }
        fence.killed += sent;
        if !children && sent == 0 {
            return self.gone();
        }
        let now = boot_now();
        fence.rounds += 1;
        fence.due = now + Span(if fence.doomed { 100 } else { fence.rounds.min(20) });
        if let Some(processes) = fence.look_for_doomed(&server.home, now) {
            let text = format!(
                "processes {processes:?} are stuck in the kernel with SIGKILL pending: they will never run again, and end when the disk \
                 that they wait for answers"
            );
            let news = !std::mem::replace(&mut fence.doomed, true);
            let waiting = std::mem::take(&mut fence.waiting).into_iter();
            self.answers.extend(waiting.map(|(ticket, _)| (ticket, Answer::Doomed(processes.clone()))));
            if news {
                self.say(&text);
            }
            return;
        }
        let (stuck, waiting): (Vec<_>, Vec<_>) =
            fence.waiting.drain(..).partition(|(_, asked)| now.since(*asked) >= UNKILLABLE);
        fence.waiting = waiting;
        for (ticket, _) in stuck {
            let text = format!("processes do not die, SIGKILL is pending: {:?}", processes::descendants());
            self.answers.push((ticket, Answer::Failed(ProcessError::Os(text))));
        }
    }

    /// No process of the server is left.
    fn gone(&mut self) {
        let (Some(server), Some(fence)) = (self.server.take(), self.fence.take()) else { return };
        self.deadline.forget();
        let took = boot_now().since(fence.began);
        // A start that failed says why, better than an exit status can.
        let how = server.failure.or(server.ended.map(|(how, _)| how)).unwrap_or_else(|| "unknown end".to_owned());
        let text = if fence.counts {
            self.fenced += 1;
            format!("fenced: {}; {how}, nothing left after {took}", fence.why)
        } else if fence.killed > 0 {
            format!("{how}; {} processes that it left were killed in {took}", fence.killed)
        } else {
            how
        };
        self.say(&format!("the server is gone: {text}"));
        self.last_exit = Some(text);
        if let Some(stage) = server.stage {
            self.answers.push((
                stage.ticket,
                Answer::Failed(ProcessError::Os("the server ended while it was started".to_owned())),
            ));
        }
        self.answers.extend(fence.waiting.into_iter().map(|(ticket, _)| (ticket, Answer::Done)));
    }

    fn answer_exit(&mut self, now: Moment) {
        let ended = match &self.server {
            None => true,
            Some(server) => server.ended.as_ref().is_some_and(|(_, when)| now.since(*when) >= LEFTOVERS),
        };
        if ended {
            let waiting = std::mem::take(&mut self.waiting_exit);
            self.answers.extend(waiting.into_iter().map(|ticket| (ticket, Answer::Done)));
        }
    }
}
