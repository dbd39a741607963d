//! Logs that lose their tails, fork and hand numbers out again: whatever is said of a commit is what became of it.

use super::*;
use crate::Position;

/// A record: which transaction wrote it, and is it that one's commit?
#[derive(Clone, Copy, PartialEq, Eq)]
struct Record {
    transaction: u64,
    number: u64,
    commits: bool,
}

/// A cluster: the primary's log, how much of it is on its disk, and what of it two replicas have.
struct World {
    random: u64,
    log: Vec<Record>,
    flushed: usize,
    replicas: [usize; 2],
    next_number: u64,
    next_transaction: u64,
    now: RunId,
    from: Option<Lsn>,
    noted: bool,
    past: Lineage,
    runs: Runs,
    asked: Vec<(CommitQuestion, u64)>,
    /// Without the rule that a start is noted before it is done.
    careless: bool,
}

/// In the middle of a page: nothing is torn here.
fn lsn(count: usize) -> Lsn {
    Lsn(4096 + count as u64)
}

impl World {
    fn new(seed: u64, careless: bool) -> Self {
        let now = RunId { timeline: Timeline(1), started: Started(1) };
        Self {
            random: seed,
            log: Vec::new(),
            flushed: 0,
            replicas: [0; 2],
            next_number: 1,
            next_transaction: 1,
            now,
            from: None,
            noted: false,
            past: Lineage(Vec::new()),
            runs: Runs::default(),
            asked: Vec::new(),
            careless,
        }
    }

    /// Splitmix64.
    fn below(&mut self, limit: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }

    /// Clients work, or the server's own workers while nobody is let in.
    fn work(&mut self, clients: bool) {
        for _ in 0..self.below(4) {
            let (transaction, number) = (self.next_transaction, self.next_number);
            self.next_transaction += 1;
            // One that writes nothing leaves its number to the next life of the server.
            self.next_number += 1;
            if self.below(4) == 0 {
                continue;
            }
            self.log.push(Record { transaction, number, commits: false });
            if clients {
                self.asked.push((CommitQuestion { run: self.now, at: lsn(self.log.len()), number }, transaction));
            }
            if self.below(3) > 0 {
                self.log.push(Record { transaction, number, commits: true });
            }
        }
        self.flushed += self.below(self.log.len() - self.flushed + 1);
        for at in 0..2 {
            self.replicas[at] += self.below(self.flushed - self.replicas[at] + 1);
        }
    }

    fn recovered(&mut self, timeline: Timeline) {
        self.next_number = self.log.iter().map(|record| record.number).max().unwrap_or(0) + 1;
        self.now = RunId { timeline, started: Started(self.now.started.0 + 1) };
        (self.flushed, self.noted) = (self.log.len(), false);
    }

    fn start_in_place(&mut self) {
        if !self.careless {
            self.runs.begin();
        }
        let left = self.flushed + self.below(self.log.len() - self.flushed + 1);
        self.log.truncate(left);
        self.from = Some(lsn(left));
        self.recovered(self.now.timeline);
        self.work(false);
    }

    fn promote(&mut self) {
        let chosen = self.below(2);
        let left = self.replicas[chosen];
        // A replica that never came to a fork does not have it in its past.
        let before = self.past.0.iter().position(|fork| fork.lsn > lsn(left));
        let timeline = before.map_or(self.now.timeline, |at| self.past.0[at].timeline);
        self.past.0.truncate(before.unwrap_or(self.past.0.len()));
        self.past.0.push(Position { timeline, lsn: lsn(left) });
        self.log.truncate(left);
        self.replicas = self.replicas.map(|has| has.min(left));
        self.from = None;
        self.recovered(Timeline(self.now.timeline.0 + 1));
        self.work(false);
    }

    fn step(&mut self) {
        match self.below(10) {
            0 | 1 => self.start_in_place(),
            2 => self.promote(),
            3 | 4 if !self.noted => {
                self.runs.open(self.now, self.from);
                self.noted = true;
            }
            _ => self.work(true),
        }
    }

    /// How many questions were answered, and the first answer that is wrong.
    fn judge(&self) -> (usize, Option<String>) {
        let mut proven = 0;
        for (question, transaction) in &self.asked {
            let is = self.log.iter().any(|record| record.transaction == *transaction && record.commits);
            let said = match self.runs.shared(question.run, question.at, self.now, &self.past) {
                Shared::Yes => self.log.iter().any(|record| record.number == question.number && record.commits),
                Shared::No => false,
                Shared::NotYet | Shared::Unknown(_) => continue,
            };
            proven += usize::from(question.run != self.now);
            if said != is {
                return (proven, Some(format!("{question:?} is {is}; {:?} {:?} {:?}", self.now, self.past, self.runs)));
            }
        }
        (proven, None)
    }
}

fn run(seed: u64, careless: bool) -> (usize, Option<String>) {
    let mut world = World::new(seed, careless);
    let mut proven = 0;
    for _ in 0..30 {
        world.step();
        let (more, wrong) = world.judge();
        proven += more;
        if wrong.is_some() {
            return (proven, wrong.map(|what| format!("seed {seed}: {what}")));
        }
    }
    (proven, None)
}

#[test]
fn what_is_said_of_a_commit_is_true_whatever_became_of_logs_and_numbers() {
    let mut proven = 0;
    for seed in 0..8_000 {
        let (more, wrong) = run(seed, false);
        assert_eq!(wrong, None);
        proven += more;
    }
    assert!(proven > 40_000, "only {proven} answers over the end of a run: the test says nothing");
}

#[test]
fn a_start_that_is_not_noted_before_it_is_done_makes_answers_wrong() {
    assert!((0..8_000).any(|seed| run(seed, true).1.is_some()), "the test above can not fail");
}

#[test]
fn a_number_that_was_handed_out_twice_is_not_taken_for_the_first_one() {
    let id = |timeline, started| RunId { timeline: Timeline(timeline), started: Started(started) };
    let mut runs = Runs::default();
    assert!(runs.open(id(1, 1), None) && !runs.open(id(1, 1), None));
    // Transaction 900 wrote up to 4200, the disk had 4150: the next life gives 900 to somebody else, who commits and is replicated.
    runs.begin();
    let past = Lineage(vec![Position { timeline: Timeline(1), lsn: Lsn(4400) }]);
    let after = |runs: &Runs| runs.shared(id(1, 1), Lsn(4200), id(2, 9), &past);
    assert_eq!(after(&runs), Shared::NotYet, "begun, and nobody knows from where");
    let mut unopened = runs.clone();
    runs.open(id(1, 2), Some(Lsn(4150)));
    assert_eq!(after(&runs), Shared::No);
    assert_eq!(runs.shared(id(1, 1), Lsn(4150), id(2, 9), &past), Shared::Yes);
    assert_eq!(runs.shared(id(1, 2), Lsn(4200), id(2, 9), &past), Shared::Yes);
    // Where a page begins the log may have been torn before what is there now.
    let mut torn = Runs::default();
    torn.open(id(1, 1), None);
    torn.begin();
    torn.open(id(1, 2), Some(Lsn(0x0300_2078)));
    let at = |at| torn.shared(id(1, 1), Lsn(at), id(1, 2), &Lineage::default());
    assert!(matches!(at(0x0300_2040), Shared::Unknown(_)) && matches!(at(0x0300_2078), Shared::Unknown(_)));
    assert_eq!((at(0x0300_1ff8), at(0x0300_2080)), (Shared::Yes, Shared::No));
    // A promotion elsewhere does not wash the start away that was begun before it.
    unopened.open(id(2, 9), None);
    assert!(matches!(after(&unopened), Shared::Unknown(_)));
    // Twice begun, only the last place is known.
    runs.begin();
    runs.begin();
    runs.open(id(1, 3), Some(Lsn(4350)));
    assert!(matches!(runs.shared(id(1, 2), Lsn(4300), id(1, 3), &Lineage::default()), Shared::Unknown(_)));
    assert_eq!(serde_json::from_str::<Runs>(&serde_json::to_string(&runs).unwrap()).unwrap(), runs);
}

#[test]
fn old_runs_are_forgotten() {
    let mut runs = Runs::default();
    for number in 1..100 {
        runs.open(RunId { timeline: Timeline(number), started: Started(i64::from(number)) }, None);
    }
    assert_eq!(runs.0.len(), RUNS_MAX);
    let first = RunId { timeline: Timeline(1), started: Started(1) };
    let last = RunId { timeline: Timeline(99), started: Started(99) };
    assert!(matches!(runs.shared(first, Lsn(1), last, &Lineage::default()), Shared::Unknown(_)));
}
