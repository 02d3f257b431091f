//! What goes into the broker's core and what comes out of it.
//!
//! Pure. Inputs are facts about the outside, in the past; outputs are orders, in the order in
//! which they must be carried out. Law: nothing after a [`Output::Persist`] leaves before the
//! batch is durable.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::proto::fact::SealedFact;
use crate::proto::id::{AttemptId, Digest, ExecutorId, JobId, LogId, RequestId, SessionId, TaskId};
use crate::proto::job::{JobSpec, SpecError};
use crate::proto::limits;
use crate::proto::message::{BrokerMessage, ExecutorMessage, Hello};
use crate::proto::sync::{Mark, Received, SyncFault};
use crate::proto::view::{
    AuditView, Ended, ExecutorView, JobRow, JobState, JobSummary, JobView, StatusView, WhyView,
};

/// Something that happened outside.
#[derive(Debug, Clone)]
pub enum Input {
    /// A client asked for something; it gets [`Output::Reply`] until it is closed.
    Request {
        /// Whom to answer.
        request: RequestId,
        /// What is asked.
        body: Request,
    },
    /// Nobody waits for this request's replies any more.
    RequestClosed {
        /// Which.
        request: RequestId,
    },
    /// An executor connected and said who it is.
    SessionOpened {
        /// The connection.
        session: SessionId,
        /// What it said.
        hello: Hello,
        /// Whether it is on this host, so that no network lies between.
        local: bool,
    },
    /// Another broker holds logs up to these numbers: what was reported up to there need not be
    /// kept by executors any more.
    HeldElsewhere {
        /// The log that it writes; unknown where absent.
        by: Option<LogId>,
        /// Its version vector.
        vector: BTreeMap<LogId, u64>,
    },
    /// Whether any other broker can be reached: if none can, executors need not keep results for
    /// one.
    OthersReachable {
        /// Whether one can.
        others: bool,
    },
    /// An executor said something. Live output does not pass through the core.
    Message {
        /// The connection.
        session: SessionId,
        /// What it said.
        message: ExecutorMessage,
    },
    /// A connection to an executor ended.
    SessionClosed {
        /// The connection.
        session: SessionId,
        /// Whether the executor's process is known to be dead (same host, by its pidfd).
        process_gone: bool,
        /// Whether it is proven that no process of its jobs is left (by its cgroup).
        tree_gone: bool,
    },
}

/// A job as a client names it: its whole id, or a suffix of it that no other job has; with
/// `/ELEMENT` behind it one element of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRef(pub String);

/// What a client asks for.
#[derive(Debug, Clone)]
pub enum Request {
    /// Take jobs. Each is answered by `Submitted` or `Refused` with its index; with `watch` also
    /// by `Ended` as each ends.
    Submit {
        /// The jobs.
        submissions: Vec<Submission>,
        /// Whether to tell the ends.
        watch: bool,
    },
    /// So many ends of an array's elements were taken by the client: as many more may be told.
    Taken {
        /// How many.
        count: usize,
    },
    /// Tell the end of a job, of an array the end of each element; with `attempts` also each
    /// deployment, the current one at once.
    Watch {
        /// The job.
        job: JobRef,
        /// Whether to tell deployments.
        attempts: bool,
    },
    /// End a job.
    Cancel {
        /// The job.
        job: JobRef,
        /// Why, in words.
        reason: String,
    },
    /// Begin a job again that has ended or is parked.
    Rerun {
        /// The job.
        job: JobRef,
        /// Why, in words.
        reason: String,
    },
    /// Give an executor up, as its operator knows that it is gone.
    DeclareLost {
        /// The executor.
        executor: ExecutorId,
        /// Why, in words.
        reason: String,
    },
    /// Everything about a job.
    Show {
        /// The job.
        job: JobRef,
    },
    /// What a job waits for.
    Why {
        /// The job.
        job: JobRef,
    },
    /// Jobs, the newest first.
    List {
        /// Only those in this state.
        state: Option<JobState>,
        /// How many at the most.
        limit: usize,
    },
    /// The broker at a glance.
    Status,
    /// The executors.
    Executors,
    /// The books.
    Audit,
    /// How far each log is held.
    Heads,
    /// Take facts that other brokers wrote, as far as their chains lead to these marks.
    Import {
        /// The facts, in any order.
        facts: Vec<Received>,
        /// What the chains of their logs are at some seqs.
        marks: Vec<Mark>,
    },
}

impl Request {
    /// Whether the answer may be a fact that is written.
    #[must_use]
    pub const fn makes_facts(&self) -> bool {
        matches!(
            self,
            Self::Submit { .. }
                | Self::Cancel { .. }
                | Self::Rerun { .. }
                | Self::DeclareLost { .. }
                | Self::Import { .. }
        )
    }
}

/// A job that a client hands in.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The client's number for it, returned with the answer.
    pub index: u64,
    /// The client's id for it, so that it may repeat the submission; the broker draws one where
    /// absent. A keyed job's id follows from key and spec, whatever stands here.
    pub id: Option<JobId>,
    /// What it is to do; validated.
    pub spec: Arc<JobSpec>,
}

/// An order to the outside.
#[derive(Debug, Clone)]
pub enum Output {
    /// Make these durable, as one unit, before anything that follows leaves.
    Persist(Batch),
    /// Answer a client.
    Reply {
        /// Whom.
        request: RequestId,
        /// What.
        reply: Reply,
    },
    /// Send to an executor.
    Send {
        /// Over which connection.
        session: SessionId,
        /// What.
        message: BrokerMessage,
    },
    /// End a connection to an executor.
    Close {
        /// Which.
        session: SessionId,
    },
    /// Tell the operator.
    Notice(String),
}

/// Facts that become durable together, with the rows of the job table that they change.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In the order in which they were written.
    pub facts: Vec<SealedFact>,
    /// One for each job that the facts touch.
    pub rows: Vec<JobRow>,
}

/// An answer to a client.
#[derive(Debug, Clone)]
pub enum Reply {
    /// The job is taken and durable.
    Submitted {
        /// The client's number.
        index: u64,
        /// The job.
        job: JobId,
        /// Whether it had been taken before.
        known: bool,
        /// How many elements it has, where it is an array: so many ends will be told.
        elements: Option<u64>,
    },
    /// It is not done, and nothing changed.
    Refused {
        /// The client's number, for a submission.
        index: Option<u64>,
        /// Why.
        refusal: Refusal,
    },
    /// An attempt of a watched job runs.
    Deployed {
        /// The job or element.
        task: TaskId,
        /// The attempt.
        attempt: AttemptId,
        /// Where.
        executor: ExecutorId,
        /// The connection to that executor, if there is one.
        session: Option<SessionId>,
    },
    /// A watched job ended or is parked.
    Ended(Box<Ended>),
    /// An array is watched, so many ends of elements will be told.
    Watched {
        /// How many.
        elements: u64,
    },
    /// A cancel or rerun is durable.
    Done {
        /// The job or element.
        task: TaskId,
        /// Where it stands now.
        state: JobState,
    },
    /// An executor is given up; that its attempts are lost is durable.
    DeclaredLost {
        /// The executor.
        executor: ExecutorId,
        /// What was under way there.
        attempts: Vec<AttemptId>,
    },
    /// The answer to `Show`.
    Job(Box<JobView>),
    /// The answer to `Why`.
    Why(Box<WhyView>),
    /// The answer to `List`.
    Jobs(Vec<JobSummary>),
    /// The answer to `Status`.
    Status(Box<StatusView>),
    /// The answer to `Executors`.
    Executors(Vec<ExecutorView>),
    /// The answer to `Audit`.
    Audit(Box<AuditView>),
    /// The answer to `Heads`; what it speaks of is durable.
    Heads {
        /// The log that is written here.
        log: LogId,
        /// The ends of all logs, in order of their names.
        marks: Vec<Mark>,
        /// One hash over them.
        digest: Digest,
    },
    /// Facts from elsewhere were taken, and are durable.
    Imported {
        /// How many.
        new: u64,
        /// How many were held before.
        known: u64,
        /// What cannot be taken yet, as something before it is missing.
        left: Vec<Received>,
        /// Logs of which nothing more is taken.
        faults: Vec<SyncFault>,
    },
}

/// Why a request is not done. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No job has this id or suffix. Trying again cannot help.
    #[error("no job {0:?} is known here")]
    NotFound(String),
    /// No executor of this name has a session or is expected back. Trying again cannot help.
    #[error("no executor {0} is known here")]
    NoExecutor(ExecutorId),
    /// More than one job ends in this suffix. Trying again with more digits helps.
    #[error("more than one job ends in {0:?}")]
    Ambiguous(String),
    /// The spec is not valid. Trying again cannot help.
    #[error("{0}")]
    Spec(#[from] SpecError),
    /// The id is taken by a job with another spec. Trying again cannot help.
    #[error("job {0} exists with another spec")]
    IdTaken(JobId),
    /// The key is taken by a job with another spec. Trying again cannot help.
    #[error("key {key:?} belongs to job {job} with another spec")]
    KeyConflict {
        /// The key.
        key: String,
        /// The job that has it.
        job: JobId,
    },
    /// The job may be taken by its home alone, which is not here. Trying again may help.
    #[error("only broker {0} may take this job, and it is not reached from here")]
    HomeElsewhere(LogId),
    /// A job in `after` is not known here. Trying again may help.
    #[error("field `after`: job {0} is not known here")]
    AfterUnknown(JobId),
    /// So many jobs wait already. Trying again later helps.
    #[error("{0} jobs wait already, the broker takes no more")]
    QueueFull(u64),
    /// No space on the broker's disk. Nothing was taken; trying again later helps.
    #[error("the broker's disk is full; nothing was taken")]
    DiskFull,
    /// The job has ended. Trying again cannot help.
    #[error("job {job} has ended: {}", state.word())]
    HasEnded {
        /// The job or element.
        job: TaskId,
        /// How.
        state: JobState,
    },
    /// The job has not ended, so it cannot begin again.
    #[error("job {job} has not ended: {}", state.word())]
    NotEnded {
        /// The job or element.
        job: TaskId,
        /// Where it stands.
        state: JobState,
    },
    /// A request named more than it may.
    #[error("at most {limit} {what} at a time")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many may be.
        limit: usize,
    },
}

impl Refusal {
    /// The stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not-found",
            Self::NoExecutor(_) => "no-executor",
            Self::Ambiguous(_) => "ambiguous",
            Self::Spec(_) => "bad-spec",
            Self::IdTaken(_) => "id-taken",
            Self::KeyConflict { .. } => "key-conflict",
            Self::HomeElsewhere(_) => "home-elsewhere",
            Self::AfterUnknown(_) => "after-unknown",
            Self::QueueFull(_) => "queue-full",
            Self::DiskFull => "disk-full",
            Self::HasEnded { .. } => "has-ended",
            Self::NotEnded { .. } => "not-ended",
            Self::TooMany { .. } => "too-many",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound(_) => Some("'ucp-submit list' shows the jobs that are known"),
            Self::NoExecutor(_) => {
                Some("'ucp-broker executors' shows the executors that are known")
            }
            Self::Ambiguous(_) => Some("give more digits of the id"),
            Self::KeyConflict { .. } => Some("use another key, or the spec that was first"),
            Self::IdTaken(_) => Some("leave the id out, or use another"),
            Self::DiskFull => {
                Some("make room where the broker keeps its data; it goes on by itself")
            }
            Self::QueueFull(_) => Some("try again when jobs have ended, or raise --max-queued"),
            Self::NotEnded { .. } => Some("cancel it first, or wait for its end"),
            Self::HasEnded { .. } => Some("'ucp-submit rerun' begins it again"),
            Self::HomeElsewhere(_) => Some("try again when that broker can be reached"),
            Self::Spec(_) | Self::AfterUnknown(_) | Self::TooMany { .. } => None,
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::QueueFull(_) | Self::DiskFull | Self::AfterUnknown(_) | Self::HomeElsewhere(_)
        )
    }
}

const _: () = assert!(limits::INPUTS_PER_BATCH_MAX <= limits::INPUTS_QUEUED_MAX);
