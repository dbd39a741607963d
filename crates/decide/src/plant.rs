//! Faults that can be planted on purpose, so that the simulator proves that it would find them (take-over protocol, §6).
//!
//! `Plant::number` is the id in that table. Some are faults of decisions (heeded here), some of the shell (heeded by the
//! simulator's executor, store or guard), a few need both. Without the cargo feature `plant` nothing here has an effect.

/// Who heeds a plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The decisions in this crate.
    Mind,
    /// The simulator's executor, store or guard.
    Shell,
    /// Both drop their half of a double check.
    Both,
}

macro_rules! plants {
    ($($name:ident $number:literal $side:ident $text:literal;)*) => {
        /// A planted fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Plant {
            $(#[doc = $text] $name,)*
        }
        impl Plant {
            /// Every plant, in the order of the table (most dangerous for a naive build first).
            pub const ALL: &'static [Plant] = &[$(Plant::$name),*];
            /// Its id in the protocol's table.
            #[must_use]
            pub const fn number(self) -> u32 {
                match self { $(Plant::$name => $number,)* }
            }
            /// Who heeds it.
            #[must_use]
            pub const fn side(self) -> Side {
                match self { $(Plant::$name => Side::$side,)* }
            }
            /// What the fault is.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Plant::$name => $text,)* }
            }
        }
    };
}

plants! {
    EnoughVotersMinusQuorum 47 Mind "enough answers = voters - quorum";
    EnoughQuorum 1 Mind "enough answers = quorum (off by one)";
    LeaseReplacesRecruits 48 Mind "lease ran out, so recruits are skipped in a synchronous mode";
    GuardNeverKills 22 Shell "the guard never kills";
    NoMargin 23 Shell "no margin, with 10 % drift";
    PromoteWithoutDeadline 43 Both "promotion without deadline check";
    LsnOnly 12 Mind "positions compared by LSN only";
    NoFastForward 16 Mind "a candidate promotes itself without fast-forward";
    OpenWithoutConfirmation 20 Mind "clients admitted without confirmation after recovery";
    CutNotDurable 4 Shell "the cut is not durable: the server restarts with the old upstream";
    LeaderBeforeFastForward 17 Mind "the record names the new leader before fast-forward ended";
    PositionBeforeRead 14 Shell "position reported before the local log was read to its end";
    PositionBeforeCut 2 Shell "position reported before the cut";
    AnswersNotNodes 28 Mind "answers counted, not distinct nodes";
    SwitchoverWithoutRecruit 41 Mind "the switchover's target promotes without recruiting";
    LeaseFromReply 21 Mind "lease counted from the reply";
    RestartWithSettingEmptied 44 Shell "restart in place with the sync setting emptied";
    KeepOnlyAnswers 10 Mind "the claim keeps only those who answered";
    AllListedOrder 7 Mind "order of all-listed replication (add: server first; remove: store first)";
    LocalTimelines 13 Mind "timeline numbers chosen locally";
    DegradeServerFirst 27 Mind "degrade: server first";
    AsyncWithoutLeaseWait 24 Mind "asynchronous mode without lease wait";
    RemoveWithoutCaughtUp 8 Mind "remove: record written without caught-up";
    SyncReadBeforeRaise 42 Shell "two keys, sync record read before the raise";
    RestartWithoutCheck 26 Both "restart in place without promise and deadline check";
    FirstSettingAnyOne 11 Mind "first setting ANY 1 whatever q says";
    AnswerWhilePrimary 25 Mind "recruit answered while primary or promoting";
    StaleWatch 34 Mind "a stale watch overwrites a newer record";
    WipedCopyAnswers 15 Mind "a wiped (re-cloned) copy answers for the old one";
    HalfRewoundAnswers 37 Mind "a half-rewound copy answers";
    OldAnswers 29 Mind "answers of an older term counted";
    LateFollow 5 Shell "late follow without promise check";
    SettingAtOnce 19 Shell "a setting is taken for effective at once";
    PromiseReset 3 Mind "the promise is reset to 0 after its loss";
    TwoKeys 9 Shell "claim and sync record in two keys";
    LatePromote 6 Shell "late promote without promise and deadline check";
    OutsiderSmallNeed 38 Mind "a non-voter is promoted with n too small";
    PlanFromReadRecord 49 Mind "a restarted agent plans from a record that it only read";
    NeverRelease 30 Mind "a dropped promotion is never released";
    FollowWithoutPersist 33 Mind "follow does not persist the promise";
    BrokenKeepsPlace 46 Mind "a broken copy keeps its place in the record";
    PromiseInMemory 32 Shell "the promise is kept in memory only";
    UnknownTakenForFailed 18 Mind "a CAS without reply is taken for failed";
    LateRewind 31 Shell "late rewind without term check";
    LeaseChangeIgnored 50 Mind "who waits for a lease waits for its own setting, not for the granted one";
    LeaseShortenedAtOnce 51 Mind "a shorter lease is granted while a deadline from a longer one still runs";
    ForcedWithoutLeaseWait 52 Mind "a forced failover does not wait for the last lease";
    ReinitOfLastCopy 53 Mind "a copy is given up on request although no other primary runs";
    SupersededStandsOn 54 Mind "a node goes on although the store was rebuilt without it";
    RemovedNotCounted 55 Mind "members that the configuration lists no longer are left out of an election's count";
    PauseStopsFencing 56 Mind "while paused, the deadline moves on without a renewal";
    ReleaseBeforeDoom 58 Mind "the claim is released although the kill was not even doomed";
    LeaseFromNewestAttempt 59 Mind "a watched grant counts from the newest attempt, not from the one that wrote it";
    UnstartableGivenUp 60 Mind "a copy that can not be started is given up although it may be the last one";
    IdleHolderStays 61 Mind "a holder whose server does not come up keeps the term for ever";
    ReleaseEndsLease 57 Mind "a candidate's release counts as the end of the last leader's lease";
}

impl Plant {
    /// The plant of this id.
    #[must_use]
    pub fn by_number(number: u32) -> Option<Plant> {
        Plant::ALL.iter().copied().find(|plant| plant.number() == number)
    }
}
