//! Named events of which each must have occurred in some seed, or the suite proves nothing.
//!
//! The list is the enum; [`Counters::never`] says what did not occur.

macro_rules! sometimes {
    ($($name:ident = $words:literal,)*) => {
        /// Something that must occur sometimes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Sometimes { $(#[doc = $words] $name,)* }
        const WORDS: &[&str] = &[$($words,)*];
    };
}

sometimes! {
    BrokerKilled = "broker killed, its log goes on",
    BrokerKilledInFlight = "broker killed with batches in flight",
    UnseenBatchSurvived = "batch survived whose completion nobody saw",
    UnsyncedBatchLost = "unsynced batch lost",
    BrokerRebooted = "broker rebooted, fresh log",
    HeadLost = "head file lost, fresh log",
    DiskRestored = "disk restored to an older copy, fresh log",
    FactsForgotten = "facts gone with a restored disk",
    BrokerStopped = "broker stopped and continued",
    DiskStalled = "disk stalled",
    Pipelined = "several batches in flight",
    ExecutorKilled = "executor killed",
    ExecutorKilledBusy = "executor killed with running attempts",
    ExecutorRebooted = "executor's machine rebooted",
    ExecutorStopped = "executor stopped and continued",
    LocalDeathSeen = "death seen by the process id",
    SessionCut = "session cut, both ends notice",
    HalfOpen = "session half open",
    Stalled = "session stalled and healed",
    SpoolUsed = "result written to an executor's disk",
    SpoolRead = "executor began with results from its disk",
    UnsyncedSpoolLost = "unsynced result lost with its executor",
    DuplicateSubmission = "submission repeated",
    KnownAnswered = "repeated submission answered as known",
    KeyRepeated = "key repeated with the same spec",
    KeyConflict = "key refused with another spec",
    AfterUnknown = "unknown predecessor refused",
    RequestLost = "request lost",
    ReplyLost = "reply lost",
    SameResultTwice = "result sent again",
    OtherContent = "other content for the same attempt",
    LateResult = "late result",
    UnknownResult = "result for an attempt that is not known",
    ResultBeforeLost = "result accepted of an attempt thought lost",
    Retry = "failed job tried again",
    LostAttempt = "attempt lost",
    RedeployedAfterLost = "job deployed again after a loss",
    Revoked = "attempt handed back",
    Drained = "executor drained and ended",
    CancelWaiting = "waiting job cancelled",
    CancelRunning = "running job cancelled",
    RefusedEnded = "cancel refused: has ended",
    Rerun = "job run again on request",
    RerunRefused = "rerun refused: not ended",
    Skipped = "job skipped",
    ExpiredWaiting = "job expired that waited",
    ExpiredRunning = "running job stopped at its deadline",
    DeadlineCarriedOn = "deadline counted on after a restart",
    Parked = "job parked",
    ArraySubmitted = "array submitted",
    ArrayOfItems = "array with items submitted",
    ManyDeployed = "elements deployed by one fact",
    ManyReported = "results of elements in one fact",
    ManyAccepted = "results of elements accepted by one fact",
    ManyLost = "elements lost by one fact",
    ManyRevoked = "elements handed back by one fact",
    ElementParked = "part of an array parked",
    ElementsExpired = "part of an array expired",
    ArraySkipped = "array skipped",
    ElementCancelled = "one element cancelled",
    ArrayCancelled = "elements of an array cancelled",
    ElementRerun = "one element run again on request",
    ArrayRerun = "elements of an array run again on request",
    ElementTold = "end of an element told",
    CreditUsedUp = "no more ends told before some were taken",
    Ahead = "attempt stood ahead of its executor's slots",
    MemoryAwaited = "attempt waited at its executor for memory",
    Recalled = "attempts called back that had not begun",
    Unbegun = "attempt handed back that had not begun",
    Together = "results sent together",
    Cautious = "lost one deployed by itself",
    Unfit = "attempt handed back that could not begin",
    ParkedRerun = "parked job run again on request",
    TimedOut = "attempt ended by its time-out",
    KillNeeded = "job killed that ignored the polite signal",
    CouldNotStart = "job that could not start",
    WallJump = "wall clock jumped",
    Overtaken = "urgent job deployed before an older one",
    Regained = "lost attempt found again and kept",
    GhostStopped = "lost attempt found again and stopped for another",
    Doubted = "broker doubted its own link",
    OwnPause = "broker noticed that it had stood still",
    LostEnded = "executor lost as its process ended",
    LostSilent = "executor lost by its silence",
    LostAway = "executor lost as it stayed away",
    CloneRefused = "second process with one identity refused",
    Avoided = "executor left alone that failed everything",
    Equivocation = "equivocation noticed",
    Flapped = "link that broke again and again",
    OwnLinkCut = "broker's own link cut",
    Leased = "attempt begun under a lease",
    LeaseRefused = "attempt not begun as its lease was over",
    LeaseLapsed = "attempt killed by the spawner at the end of its lease",
    LeaseEnded = "attempt handed back as its lease ran out",
    RanTwice = "two processes of one job at a time",
    ProcessesLeft = "processes outlived their executor",
    Checkpointed = "checkpoint kept",
    Resumed = "attempt begun from a checkpoint",
    Carried = "result that carried its job's facts",
    CourierAccepted = "result accepted of a job that its broker had forgotten",
    Kept = "result kept though acknowledged",
    OwedReturned = "result that a restored disk had lost came back",
    JudgedFirst = "verdict: first accepted",
    JudgedKnowing = "verdict: late, decided knowing the attempt",
    JudgedLesser = "verdict: rejected, concurrent",
    JudgedEquivocation = "verdict: rejected, equivocation",
    JudgedOlder = "verdict: late, older generation",
    JudgedCancelled = "verdict: late, cancelled",
    JudgedExpired = "verdict: late, expired",
    JudgedSuperseded = "verdict: superseded",
    JudgedRetried = "verdict: failure that was tried again",
    JudgedUnknown = "verdict: waits, attempt unknown",
    Impossible = "job that no executor can run",
    AllEnded = "seed in which every job ended",
    Calm = "seed without faults",
}

/// How often each occurred.
#[derive(Debug, Clone)]
pub struct Counters(Vec<u64>);

impl Default for Counters {
    fn default() -> Self {
        Self(vec![0; WORDS.len()])
    }
}

impl Counters {
    /// Counts one.
    pub fn count(&mut self, event: Sometimes) {
        self.0[event as usize] += 1;
    }

    /// Adds those of another seed.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine += theirs;
        }
    }

    /// What never occurred.
    pub fn never(&self) -> Vec<&'static str> {
        WORDS.iter().zip(&self.0).filter(|(_, count)| **count == 0).map(|(word, _)| *word).collect()
    }

    /// One line for each.
    pub fn table(&self) -> String {
        let line = |(word, count): (&&str, &u64)| format!("{count:>10}  {word}\n");
        WORDS.iter().zip(&self.0).map(line).collect()
    }
}
