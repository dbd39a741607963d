//! The record as this node knows it: taking newer ones, reads, compare-and-sets, and what counts as my own.

use crate::io::{CasResult, Output};
use crate::mind::Mind;
use crate::plant::Plant;
use mainstay_model::{ClaimState, Moment, NodeId, Record, Revision, Span, SystemId, Term};
use std::collections::VecDeque;

/// So many attempts to renew are remembered.
const ATTEMPTS_MAX: usize = 32;

const READ_RETRY_MS: u64 = 100;
const READ_TIMEOUT_MS: u64 = 2000;
const WRITE_RETRY_MS: u64 = 50;
const BEHIND_MS: u64 = 300;

/// What an open write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Renew,
    Sync,
    Release,
    Raise,
    Early,
    Claim,
    Found,
    Founded,
    Restore,
}

/// The one open write.
#[derive(Clone, Debug)]
pub(crate) struct OpenCas {
    id: u64,
    pub(crate) sent: Moment,
    pub(crate) intent: Intent,
    record: Record,
}

/// An attempt of this life to write a grant while it leads.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    term: Term,
    grant: u64,
    sent: Moment,
}

/// The newest record, and this life's own writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) newest: Option<(Revision, Record)>,
    /// A linearizable read said that the key does not exist.
    pub(crate) absent: bool,
    /// A linearizable read was answered in this life.
    pub(crate) read_once: bool,
    /// The revision that my last successful write of this life made, if nothing was unknown or refused since.
    own: Option<Revision>,
    pub(crate) cas: Option<OpenCas>,
    /// No write before this.
    pub(crate) write_at: Moment,
    next_id: u64,
    last_grant: u64,
    /// The newest attempts, oldest first.
    attempts: VecDeque<Attempt>,
    read: Option<(u64, Moment)>,
    read_at: Moment,
    behind_since: Option<Moment>,
    /// When the newest record came.
    pub(crate) since: Moment,
    /// When its holder was first seen in its term.
    pub(crate) holder_since: Moment,
    /// When the newest grant was first seen: from then on its lease is counted.
    pub(crate) lease_from: Option<Moment>,
}

impl Mind {
    /// Takes a record if it is newer than the one held.
    pub(crate) fn take_record(&mut self, revision: Revision, record: Record) {
        // A rebuilt store counts revisions anew: the incarnation goes first.
        let known = self.record().map(|old| old.term.incarnation());
        let rebuilt = known.is_some_and(|known| record.term.incarnation() > known);
        let older = known.is_some_and(|known| record.term.incarnation() < known);
        let stale = revision <= self.revision() && !(self.planted(Plant::StaleWatch) && revision != self.revision());
        if older || (stale && !rebuilt) {
            return;
        }
        if rebuilt {
            self.view.own = None;
        }
        self.view.absent = false;
        let old = self.record();
        let same_holder = old.is_some_and(|old| old.holder == record.holder && old.term == record.term);
        // Every write that grants has a grant number of its own; raises and releases leave it as it was, whatever was missed between.
        let same_grant = !rebuilt && old.is_some_and(|old| old.grant == record.grant);
        if !same_holder {
            self.view.holder_since = self.now;
        }
        if !same_grant {
            self.view.lease_from = Some(self.now);
        }
        if self.planted(Plant::ReleaseEndsLease) && record.state == ClaimState::Free {
            self.view.lease_from = None;
        }
        self.view.since = self.now;
        self.view.newest = Some((revision, record));
        self.after_record();
    }

    /// What follows from a newer record at once.
    fn after_record(&mut self) {
        self.adopt_copy();
        self.note_own_grant();
        let Some(record) = self.record() else { return };
        let (term, state, holder, held) = (record.term, record.state, record.holder.clone(), record.held);
        if self.suspect.as_ref().is_some_and(|suspect| suspect.term != term || Some(&suspect.holder) != holder.as_ref())
        {
            self.suspect = None;
        }
        if state == ClaimState::Free && self.loss.is_none() {
            // At a switchover clients wait since before the stop: what the holder measured by its own clock counts as well.
            self.loss = Some(held.map_or(self.now, |held| Moment(self.now.0.saturating_sub(held.0))));
        }
        if state == ClaimState::Held && !self.is_me(holder.as_ref()) {
            self.loss = None;
            if let (Some((target, at)), Some(holder)) = (self.handed.take(), holder) {
                let gap = self.now.since(at);
                self.tell(
                    "switchover-done",
                    format!("{holder} took over from here ({target} was to), {gap} after the stop"),
                );
            }
        }
    }

    /// A record that shows a grant which an attempt of this life wrote says that this attempt succeeded, whatever became of its reply.
    fn note_own_grant(&mut self) {
        let Some(record) = self.record() else { return };
        let mine = self.is_me(record.holder.as_ref()) && self.is_me(record.leader.as_ref());
        let term = self.reign.as_ref().map(|reign| reign.term);
        if !mine || record.state != ClaimState::Held || term != Some(record.term) {
            return;
        }
        let (lease, grant) = (record.lease, record.grant);
        if self.view.cas.as_ref().is_some_and(|open| open.record.grant == grant) {
            return; // its own reply may still come
        }
        let known = self.view.attempts.iter().find(|attempt| Some(attempt.term) == term && attempt.grant == grant);
        let newest = self.planted(Plant::LeaseFromNewestAttempt).then(|| self.view.attempts.back()).flatten();
        if let Some(sent) = known.map(|attempt| newest.unwrap_or(attempt).sent) {
            let deadline = self.deadline_of(sent, lease);
            self.seen_renewed(sent, deadline);
        }
    }

    fn note_attempt(&mut self, record: &Record) {
        if record.state == ClaimState::Held && self.is_me(record.leader.as_ref()) {
            if self.view.attempts.len() >= ATTEMPTS_MAX {
                self.view.attempts.pop_front();
            }
            self.view.attempts.push_back(Attempt { term: record.term, grant: record.grant, sent: self.now });
        }
    }

    /// The record that my last successful write of this life made, if nothing is open, unknown or newer.
    pub(crate) fn own_record(&self) -> Option<&Record> {
        if self.planted(Plant::PlanFromReadRecord) {
            return self.record();
        }
        let (revision, record) = self.view.newest.as_ref()?;
        (self.view.cas.is_none() && self.view.own == Some(*revision)).then_some(record)
    }

    /// When the last grant's lease has surely run out; `None`: it has, or no lease runs. Asked only by a node that is not primary.
    pub(crate) fn lease_ends(&self) -> Option<Moment> {
        let record = self.record()?;
        if record.lease == Some(Span(0)) {
            return None;
        }
        if self.is_me(record.leader.as_ref()) {
            return self.earlier_lease.map(|(at, _)| at).filter(|at| *at > self.now);
        }
        let lease = if self.planted(Plant::LeaseChangeIgnored) { self.config.lease } else { self.granted_lease() };
        let at = self.view.lease_from? + lease + self.margin_of(lease);
        (at > self.now).then_some(at)
    }

    pub(crate) fn lease_over(&self) -> bool {
        self.lease_ends().is_none()
    }

    /// The lease for which the newest grant was given.
    pub(crate) fn granted_lease(&self) -> Span {
        self.record().and_then(|record| record.lease).filter(|lease| lease.0 > 0).unwrap_or(self.config.lease)
    }

    /// What is kept back from a lease of this length, or waited for beyond it: a longer lease than the configured one needs more.
    pub(crate) fn margin_of(&self, lease: Span) -> Span {
        let scaled = self.config.margin.0.saturating_mul(lease.0) / self.config.lease.0.max(1);
        Span(scaled.max(self.config.margin.0))
    }

    /// The deadline that a grant sent then, for this lease, allows.
    pub(crate) fn deadline_of(&self, sent: Moment, lease: Option<Span>) -> Moment {
        let lease = lease.unwrap_or(self.config.lease);
        sent + lease - self.margin_of(lease)
    }

    /// The lease that a grant written now must name: the configured one, or longer while the guard still holds a deadline from a longer
    /// one, so that nobody who goes by the newest grant comes too early.
    fn lease_to_grant(&self) -> Span {
        let own = self.config.lease;
        if self.planted(Plant::LeaseShortenedAtOnce) {
            return own;
        }
        let Some(reign) = &self.reign else { return own };
        let Some(deadline) = reign.deadline else {
            // An earlier life's grant may still run.
            return self.granted_lease().max(own);
        };
        let left = deadline.since(self.now).0;
        let kept = own.0.saturating_sub(self.config.margin.0);
        if left <= kept || kept == 0 { own } else { Span(left.saturating_mul(own.0).div_ceil(kept)) }
    }

    /// Makes this record one that grants: a value that no attempt wrote before, and the lease that it is for.
    pub(crate) fn grant(&mut self, record: &mut Record) {
        record.grant = self.next_grant();
        record.lease = Some(self.lease_to_grant());
    }

    /// May a write be begun now?
    pub(crate) fn can_write(&mut self) -> bool {
        if self.view.cas.is_some() {
            return false;
        }
        if self.now < self.view.write_at {
            let at = self.view.write_at;
            self.until(at);
            return false;
        }
        true
    }

    /// Writes `record` over the newest one. The caller checked `can_write`.
    pub(crate) fn write(&mut self, intent: Intent, record: Record) {
        let expected = self.view.newest.as_ref().map(|(revision, _)| *revision);
        self.view.next_id += 1;
        let id = self.view.next_id;
        self.note_attempt(&record);
        self.view.cas = Some(OpenCas { id, sent: self.now, intent, record: record.clone() });
        self.out.push(Output::Cas(id, expected, record));
    }

    /// A value that no attempt of mine has written yet.
    pub(crate) fn next_grant(&mut self) -> u64 {
        let known = self.record().map_or(0, |record| record.grant);
        self.view.last_grant = self.view.last_grant.max(known) + 1;
        self.view.last_grant
    }

    pub(crate) fn on_cas(&mut self, id: u64, result: CasResult) {
        let Some(open) = self.view.cas.take_if(|open| open.id == id) else { return };
        match result {
            CasResult::Done(revision) => {
                self.view.write_at = self.now;
                // What its reply says counts fully.
                self.view.attempts.retain(|attempt| attempt.grant != open.record.grant);
                self.take_record(revision, open.record.clone());
                let newest = self.view.newest.as_ref();
                if newest.is_some_and(|(at, record)| *at == revision && *record == open.record) {
                    self.view.own = Some(revision);
                    self.on_written(&open);
                } else {
                    self.view.own = None;
                    self.on_not_written(open.intent, true);
                }
            }
            CasResult::Conflict(current) => {
                self.view.own = None;
                self.view.write_at = self.now;
                if let Some((revision, record)) = current {
                    if revision <= self.revision() {
                        // The answer is older than what the watch showed since: try again on the newer revision.
                        self.view.write_at = self.now + Span(5);
                    }
                    self.take_record(revision, record);
                } else {
                    self.reason("store", "the store says that the record does not exist; nothing can be claimed");
                    self.view.write_at = self.now + Span(WRITE_RETRY_MS);
                }
                self.on_not_written(open.intent, true);
            }
            CasResult::Unknown if self.planted(Plant::UnknownTakenForFailed) => {
                self.view.write_at = self.now + Span(WRITE_RETRY_MS);
                self.on_not_written(open.intent, false);
            }
            CasResult::Unknown => {
                self.view.own = None;
                self.view.write_at = self.now + Span(WRITE_RETRY_MS);
                self.reason("store", "a write was not answered: unknown until a later one of mine succeeds");
                if open.intent == Intent::Restore {
                    self.restore_unanswered();
                }
                self.on_not_written(open.intent, false);
                self.note_own_grant();
            }
            CasResult::Unavailable => {
                self.view.write_at = self.now + Span(WRITE_RETRY_MS);
                self.reason("store", "the store did not take a write");
                self.on_not_written(open.intent, false);
            }
        }
    }

    fn on_written(&mut self, open: &OpenCas) {
        let sent = if self.planted(Plant::LeaseFromReply) { self.now } else { open.sent };
        let deadline = self.deadline_of(sent, open.record.lease);
        match open.intent {
            Intent::Renew | Intent::Sync => {
                self.renewed(sent, deadline);
                self.tell_members();
            }
            Intent::Founded => {
                self.founded_written(sent, deadline);
                self.tell_members();
            }
            Intent::Found => self.founding_begun(deadline),
            Intent::Raise => self.raised(),
            Intent::Early => self.early_done(),
            Intent::Claim => self.claimed(deadline),
            Intent::Release => self.released(),
            Intent::Restore => self.restored_written(),
        }
    }

    /// A write failed (`refused`: another one was first) or was not answered.
    fn on_not_written(&mut self, intent: Intent, refused: bool) {
        match intent {
            Intent::Renew | Intent::Sync | Intent::Founded => self.not_renewed(),
            Intent::Raise => self.not_raised(refused),
            Intent::Early | Intent::Claim | Intent::Release | Intent::Found | Intent::Restore => {}
        }
    }

    pub(crate) fn on_read(&mut self, id: u64, answer: Option<Option<(Revision, Record)>>) {
        if self.view.read.take_if(|(open, _)| *open == id).is_none() {
            return;
        }
        let Some(found) = answer else {
            self.view.read_at = self.now + Span(READ_RETRY_MS);
            self.reason("store", "the record could not be read");
            return;
        };
        self.view.read_once = true;
        self.view.behind_since = None;
        let term = found.as_ref().map_or(Term(0), |(_, record)| record.term);
        match found {
            Some((revision, record)) => self.take_record(revision, record),
            None => {
                self.view.absent = self.view.newest.is_none();
                self.view.read_at = self.now + Span(500);
            }
        }
        self.check_system();
        if self.lost && self.problem.is_none() {
            self.lost = false;
            self.persist(|durable| {
                durable.promise = term;
                if durable.upstream.as_ref().is_some_and(|upstream| upstream.term != term) {
                    durable.upstream = None;
                }
            });
            self.reason("start", format!("no promise was kept here; the record's term {term} replaces it"));
        }
        self.adopt_copy();
    }

    /// A node that leads the record, and whose note of its copy is gone (or was never made: founding), has the copy that the record
    /// names. Rewinding or cloning would have taken a newer term than the record's.
    fn adopt_copy(&mut self) {
        let Some(record) = self.record() else { return };
        let mine = record.members.get(&self.config.me).copied();
        // Of a restore it names the copy that waits beside these data.
        let leads =
            self.is_me(record.leader.as_ref()) && record.state != ClaimState::Founding && record.restoring().is_none();
        let intact =
            !self.lost && self.data.is_some() && record.system == self.data && record.term >= self.durable.promise;
        if leads && intact && self.durable.copy.is_none() && self.durable.diverged.is_none() {
            self.reason("start", "this node leads the record: its data are the copy that the record names");
            self.persist(|durable| durable.copy = mine);
        }
    }

    /// Reads at the start of a life, while no record is known, and when a peer knows a newer one for a while.
    pub(crate) fn plan_read(&mut self) {
        if let Some((_, sent)) = self.view.read {
            if self.now.since(sent).0 < READ_TIMEOUT_MS {
                self.until(sent + Span(READ_TIMEOUT_MS));
                return;
            }
            self.view.read = None;
        }
        let newest = self.revision();
        let incarnation = self.record().map_or(0, |record| record.term.incarnation());
        // Revisions of another incarnation's store say nothing about this one's.
        let knows_newer = |presence: &mainstay_model::Presence| {
            presence.revision > newest && presence.promise.incarnation() == incarnation
        };
        let behind = self.peers.values().any(|peer| peer.presence.as_ref().is_some_and(knows_newer));
        match (behind, self.view.behind_since) {
            (true, None) => self.view.behind_since = Some(self.now),
            (false, _) => self.view.behind_since = None,
            _ => {}
        }
        let late = self.view.behind_since.map(|since| since + Span(BEHIND_MS));
        let due = !self.view.read_once || self.view.newest.is_none() || late.is_some_and(|at| at <= self.now);
        if !due {
            if let Some(at) = late {
                self.until(at);
            }
            return;
        }
        if self.now < self.view.read_at {
            let at = self.view.read_at;
            self.until(at);
            return;
        }
        self.view.next_id += 1;
        let id = self.view.next_id;
        self.view.read = Some((id, self.now));
        self.view.read_at = self.now + Span(READ_RETRY_MS);
        self.until(self.now + Span(READ_TIMEOUT_MS));
        self.out.push(Output::Read(id));
    }

    /// The record's holder and its term, if it is held by another node that leads it.
    pub(crate) fn other_leader(&self) -> Option<(NodeId, Term)> {
        let record = self.record()?;
        let holder = record.holder.as_ref()?;
        let leads = record.state == ClaimState::Held && record.leader.as_ref() == Some(holder);
        (leads && *holder != self.config.me).then(|| (holder.clone(), record.term))
    }

    /// What the record names is kept, for the time when it can not be asked.
    fn remember_system(&mut self, named: Option<SystemId>) {
        // Without a promise the note would say nothing that a later life may rely on.
        if named.is_some() && !self.lost && self.durable.promise > Term(0) {
            self.persist(|durable| durable.system = named);
        }
    }

    /// Data of another cluster must not be touched.
    pub(crate) fn check_system(&mut self) {
        let named = self.record().and_then(|record| record.system);
        let expected = named.or(self.durable.system);
        let foreign = match (expected, self.data) {
            // With a note that no copy is whole: the remains of a first copy that another node was quicker to make.
            (Some(expected), Some(found)) if expected != found => self.durable.copy.is_some() || self.unknown_data,
            _ => false,
        };
        let (kind, text) = if foreign {
            let text = "the data directory belongs to another cluster (its system identifier differs from the cluster's): \
                        move it away by hand, then restart this node";
            ("foreign-data", text.to_owned())
        } else if self.is_superseded() {
            let text = format!(
                "superseded: the cluster's store was rebuilt without this node, and it stays out; to let it join again, order \
                 `mainstay reinit {}`",
                self.config.me
            );
            ("superseded", text)
        } else {
            self.problem = None;
            self.remember_system(named);
            return;
        };
        if self.problem.as_ref() != Some(&text) {
            self.problem = Some(text.clone());
            self.tell(kind, text);
        }
    }
}
