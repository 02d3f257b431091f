//! What the core tells about jobs, executors and itself: plain data, ready to be shown.
//!
//! Pure. Everything here is derived from facts, except members called `observed`, which say what
//! this broker sees at the moment (invariant I2 speaks of the former only).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::proto::capability::{Capability, Load};
use crate::proto::clock::Clock;
use crate::proto::fact::Reported;
use crate::proto::id::{AttemptId, Digest, Dot, ExecutorId, Incarnation, JobId, LogId};
use crate::proto::job::JobSpec;
use crate::proto::precedence::Precedence;
use crate::proto::ranges::Ranges;
use crate::proto::text::Text;

#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde asks for
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// No attempt is under way.
    Waiting,
    /// An attempt is under way.
    Running,
    /// Held back until somebody reruns it.
    Parked,
    /// A success was accepted.
    Succeeded,
    /// A failure was accepted.
    Failed,
    /// Ended by somebody.
    Cancelled,
    /// Its time was over.
    Expired,
    /// A job that it waited for did not succeed.
    Skipped,
}

impl JobState {
    /// All states, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Waiting,
        Self::Running,
        Self::Parked,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
        Self::Skipped,
    ];

    /// Whether the job's current generation has an outcome.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running | Self::Parked)
    }

    /// The state's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Parked => "parked",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Skipped => "skipped",
        }
    }
}

/// What the fold says of one reported result (design section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is the job's result.
    Accepted,
    /// It was, until a later generation's result was accepted.
    Superseded,
    /// It came after the decision, which knew of its attempt, or after the generation's end.
    Late,
    /// It was concurrent with the result that won, or is another content of the same attempt.
    Rejected,
    /// The same content of the same attempt was reported before.
    Duplicate,
    /// A failure that decides nothing yet: the job is tried again or has just failed.
    Reported,
    /// Its job or attempt is not known here yet.
    Waiting,
}

/// A verdict with the rule that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Judgement {
    /// What holds of the result.
    pub verdict: Verdict,
    /// Why, as a stable word.
    #[serde(skip_deserializing)]
    pub rule: &'static str,
}

/// How a job's generation ended, for those who waited for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The job.
    pub job: JobId,
    /// The element, where the job is an array.
    pub element: Option<u64>,
    /// What the element stands for, where the array has items.
    pub item: Option<Text>,
    /// `Parked` or a state for which [`JobState::is_ended`] holds.
    pub state: JobState,
    /// The generation.
    pub generation: u32,
    /// The accepted result and the dot of the fact that reported it. Its inline outputs may have
    /// been left out of memory ([`Reported`] in the store has them).
    pub result: Option<(Dot, Arc<Reported>)>,
    /// Whether the outcome can change no more within its generation.
    pub is_final: bool,
    /// The job's clock.
    pub clock: Clock,
    /// Why it ended, where no result says so.
    pub reason: Option<String>,
}

/// One attempt, as facts tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptView {
    /// Its id: the dot of its `deployed` fact.
    pub attempt: AttemptId,
    /// Its generation.
    pub generation: u32,
    /// Where it was deployed.
    pub executor: ExecutorId,
    /// Its fence.
    pub fence: u64,
    /// `running`, `ended`, `lost` or `revoked`.
    pub state: &'static str,
    /// Why it was lost or revoked.
    pub reason: Option<String>,
    /// What could not be proven of its processes when it was lost.
    pub unproven: Option<String>,
    /// The clock of its `deployed` fact.
    pub clock: Clock,
    /// The wall clock of whoever deployed it.
    pub deployed_at: String,
}

/// One reported result, as facts tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultView {
    /// The dot of the fact that reported it.
    pub dot: Dot,
    /// Its generation.
    pub generation: u32,
    /// The clock of that fact.
    pub clock: Clock,
    /// What was reported; inline outputs may have been left out of memory.
    pub reported: Arc<Reported>,
    /// What holds of it.
    pub judgement: Judgement,
}

/// Everything about one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// Its id.
    pub job: JobId,
    /// The element that is shown, where it is one of an array.
    pub element: Option<u64>,
    /// The elements in each state, where it is an array as a whole: it has no attempts then.
    pub elements: BTreeMap<JobState, Ranges>,
    /// The least `submitted` dot.
    pub birth: Dot,
    /// The broker that deploys it.
    pub owner: LogId,
    /// Where it stands.
    pub state: JobState,
    /// The current generation.
    pub generation: u32,
    /// What it is to do.
    pub spec: Arc<JobSpec>,
    /// Its clock.
    pub clock: Clock,
    /// The wall clock of whoever took it.
    pub submitted_at: String,
    /// All attempts in order of their dots.
    pub attempts: Vec<AttemptView>,
    /// All reported results in order of their dots.
    pub results: Vec<ResultView>,
    /// How it ended or why it is parked.
    pub ended: Option<Ended>,
    /// What this broker sees at the moment: for each running attempt's executor the time since it
    /// was last heard of, in milliseconds; absent where it has no session.
    pub observed: BTreeMap<ExecutorId, Option<u64>>,
}

/// One job in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSummary {
    /// Its id.
    pub job: JobId,
    /// Where it stands.
    pub state: JobState,
    /// The current generation.
    pub generation: u32,
    /// What it is to do.
    pub spec: Arc<JobSpec>,
    /// The wall clock of whoever took it.
    pub submitted_at: String,
    /// Where it runs or ran last.
    pub executor: Option<ExecutorId>,
    /// Attempts so far.
    pub attempts: u32,
    /// The accepted result's exit status.
    pub exit: Option<i32>,
    /// The accepted result's signal.
    pub signal: Option<i32>,
    /// How many elements are in each state, where it is an array.
    pub elements: BTreeMap<JobState, u64>,
}

/// Why a job stands where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhyView {
    /// Its id.
    pub job: JobId,
    /// The element, where it is one of an array.
    pub element: Option<u64>,
    /// Its name for people.
    pub name: Option<String>,
    /// Where it stands.
    pub state: JobState,
    /// What it waits for, or why it stands there, in words.
    pub reasons: Vec<String>,
    /// The attempts that are under way.
    pub running: Vec<RunningView>,
}

/// One attempt that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningView {
    /// Its id.
    pub attempt: AttemptId,
    /// Where it runs.
    pub executor: ExecutorId,
    /// The wall clock of whoever deployed it.
    pub since: String,
    /// Milliseconds since its executor was last heard of; absent where that has no session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_ms: Option<u64>,
}

/// How a broker's executors were lost and found since it started. Counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Detection {
    /// Executors lost as their process had ended.
    pub lost_ended: u64,
    /// Executors lost by their silence.
    pub lost_silent: u64,
    /// Executors lost as they did not connect again.
    pub lost_away: u64,
    /// Executors lost on their operator's word.
    pub lost_declared: u64,
    /// Attempts that were given up.
    pub attempts_lost: u64,
    /// Attempts that were given up and there again, and went on.
    pub regained: u64,
    /// Executors that were given more time, as this broker may be cut off itself.
    pub doubts: u64,
    /// Times at which this broker's own loop had stood still.
    pub own_pauses: u64,
    /// Executors that were refused as another process has their identity.
    pub clones: u64,
    /// Times at which an executor was left alone as it failed everything.
    pub avoided: u64,
    /// Results that said something else than an earlier one of the same attempt.
    pub equivocations: u64,
}

/// One executor as this broker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorView {
    /// Its lasting identity.
    pub executor: ExecutorId,
    /// `alive`; `draining`; `avoided`: it failed or handed back too much; `suspect`: silent for a
    /// while; `away`: no session, its attempts not yet lost; `doubted`: it would be lost if the
    /// broker did not suspect its own link.
    pub state: String,
    /// Whether it is on the broker's host, as its connection tells.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// Milliseconds until it is lost if nothing is heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_in_ms: Option<u64>,
    /// Results of its attempts that said something else than an earlier one of the same attempt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub equivocations: u64,
    /// Milliseconds since it was last heard of.
    pub heard_ms: u64,
    /// Its process id.
    pub pid: u32,
    /// Which of its lives it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// What it has.
    pub capability: Capability,
    /// What it has at the moment.
    pub load: Load,
    /// Attempts deployed there that have not ended.
    pub attempts: Vec<AttemptId>,
}

/// The broker at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusView {
    /// The log it writes.
    pub log: LogId,
    /// Time since it opened its log, in milliseconds.
    pub uptime_ms: u64,
    /// The version vector.
    pub vector: BTreeMap<LogId, u64>,
    /// The hash of what it holds.
    pub digest: Digest,
    /// Jobs in each state.
    pub jobs: BTreeMap<JobState, u64>,
    /// Executors with a session.
    pub executors: u64,
    /// Jobs that wait in the queue of each level.
    pub queued: BTreeMap<Precedence, u64>,
    /// How executors were lost and found.
    pub detection: Detection,
    /// Logs that others write: outcomes are not final before their brokers know of them.
    pub waits_for: Vec<LogId>,
}

/// The books of the broker: what must add up (acceptance case A2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditView {
    /// Submitted jobs by the log of their birth; of an array each element counts.
    pub submitted: BTreeMap<LogId, u64>,
    /// Jobs in each state by the log of their birth; of an array each element counts.
    pub states: BTreeMap<LogId, BTreeMap<JobState, u64>>,
    /// The same with an array as one job, as in the store's job table.
    pub rows: BTreeMap<LogId, BTreeMap<JobState, u64>>,
    /// The version vector; the store must hold just this.
    pub vector: BTreeMap<LogId, u64>,
    /// Faults found within the core itself.
    pub faults: Vec<String>,
}

/// One row of the store's job table, which `check` recomputes from the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// The job.
    pub job: JobId,
    /// The least `submitted` dot, where one is held.
    pub birth: Option<Dot>,
    /// The current generation.
    pub generation: u32,
    /// Where it stands; absent while no submission is held.
    pub state: Option<JobState>,
    /// The digest of the accepted result.
    pub digest: Option<Digest>,
}
