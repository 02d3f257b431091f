//! What an executor and its broker say to each other during a session.
//!
//! Pure. One JSON line a message, tagged by `type`, in order, both ways (wire/session.rs frames
//! them). Members are only ever added; unknown ones are ignored.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::proto::capability::{Capability, Load};
use crate::proto::clock::Clock;
use crate::proto::id::{AttemptId, Digest, ExecutorId, Incarnation, JobId, LogId};
use crate::proto::job::JobSpec;
use crate::proto::limits;
use crate::proto::ranges::Ranges;
use crate::proto::result::JobResult;
use crate::proto::text::Text;
use crate::proto::units::Span;

/// The version of the session's messages.
pub const SESSION_VERSION: u32 = 1;

#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde asks for
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// From an executor to its broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ExecutorMessage {
    /// The first message of a session.
    Hello(Hello),
    /// The executor is there, and this is what it has at the moment.
    Heartbeat {
        /// What it has.
        load: Load,
        /// Whether it takes nothing new because it is about to end.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        draining: bool,
        /// Its number in this life of the executor, from 1; `heard` names it again.
        #[serde(default, skip_serializing_if = "is_zero")]
        number: u64,
    },
    /// An attempt ended; sent again in each session until it is acknowledged.
    Result(Box<ResultMessage>),
    /// An attempt left no process and has no result: it was stopped as ordered, or is handed back.
    Stopped {
        /// Which.
        attempt: AttemptId,
        /// Whether it had not even begun.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unbegun: bool,
        /// Why, in words, where the executor stopped it by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// An attempt's state was kept, and its broker has the blobs; sent again in each session while
    /// the attempt runs.
    Checkpoint(Box<CheckpointMessage>),
    /// A piece of live output.
    Output(OutputChunk),
    /// No more output will come for this follower: the attempt ended or is not here.
    OutputEnd {
        /// The follower's number.
        follow: u64,
    },
}

/// Who the executor is and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the messages.
    pub v: u32,
    /// Its lasting identity.
    pub executor: ExecutorId,
    /// Which of its lives this is.
    pub incarnation: Incarnation,
    /// Its process id, for people.
    pub pid: u32,
    /// What it has as long as it runs.
    pub capability: Capability,
    /// What it has at the moment.
    pub load: Load,
    /// How often it sends heartbeats.
    pub heartbeat: Span,
    /// The directory of the cgroup that all its jobs are in, where they are in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The attempts that run or wait there, and those with a result not yet acknowledged.
    pub attempts: Vec<AttemptId>,
    /// The job of each of those, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<JobId>,
}

/// State of an attempt that a further attempt can go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMessage {
    /// Whose state it is.
    pub attempt: AttemptId,
    /// The attempt's job.
    pub job: JobId,
    /// Its number among those of the attempt, from 1.
    pub number: u64,
    /// The blob that lists its files (`checkpoint::Manifest`).
    pub manifest: Digest,
    /// How many files it has.
    pub files: u64,
    /// Their bytes together.
    pub bytes: u64,
    /// The executor's history of the job.
    pub clock: Clock,
}

/// A result on its way to a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultMessage {
    /// Whose result it is.
    pub attempt: AttemptId,
    /// The attempt's job.
    pub job: JobId,
    /// The attempt's generation.
    #[serde(rename = "gen")]
    pub generation: u32,
    /// What came of it.
    pub result: JobResult,
    /// The executor's history of the job.
    pub clock: Clock,
    /// How long it ran, in microseconds by the executor's monotonic clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
    /// The facts of the job that its executor was given, verbatim, for a broker that may not have
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<Arc<str>>,
}

/// A piece of live output for one follower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputChunk {
    /// The follower's number, as in `follow`.
    pub follow: u64,
    /// Which stream.
    pub stream: StreamName,
    /// Where the piece begins in that stream, in bytes.
    pub offset: u64,
    /// The bytes in base64 (RFC 4648 section 4).
    pub base64: String,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamName {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// From a broker to an executor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum BrokerMessage {
    /// The executor is registered.
    Welcome {
        /// The broker's log.
        log: LogId,
        /// The longest pause between heartbeats that the broker bears with; a longer one would
        /// look like silence.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        heartbeat_max: Option<Span>,
        /// The logs that this one carries on: attempts that they deployed are its own.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        continues: Vec<LogId>,
    },
    /// The executor is not registered, and why; the session ends.
    Refused {
        /// A stable word.
        code: String,
        /// In words.
        detail: String,
    },
    /// Run this.
    Start(Box<StartOrder>),
    /// An attempt that was announced is wanted still, and its lease is renewed in this session.
    Keep {
        /// Which.
        attempt: AttemptId,
    },
    /// Stop this attempt and all its processes.
    Stop {
        /// Which.
        attempt: AttemptId,
        /// Why, in words.
        reason: String,
    },
    /// The attempt's result is durable here; the executor may forget it.
    Acknowledged {
        /// Which; of an array's job the deployment.
        attempt: AttemptId,
        /// At which elements of an array.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        elements: Option<Ranges>,
        /// Whether it is to be kept all the same until `released`: no other broker has it yet.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep: bool,
    },
    /// Two brokers have the attempt's result, or no other can be reached: the executor may forget
    /// it.
    Released {
        /// Which; of an array's job the deployment.
        attempt: AttemptId,
        /// At which elements of an array.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        elements: Option<Ranges>,
    },
    /// Hand back what has not begun.
    Recall,
    /// The broker ends; what runs goes on, and is announced to the next broker.
    Leaving,
    /// The answer to a heartbeat.
    Heard {
        /// The heartbeat's number.
        #[serde(default, skip_serializing_if = "is_zero")]
        number: u64,
    },
    /// Send this attempt's output as it comes.
    Follow {
        /// The follower's number.
        follow: u64,
        /// Which attempt.
        attempt: AttemptId,
        /// Where to begin in standard output; nothing of it is sent where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdout_from: Option<u64>,
        /// Where to begin in standard error; nothing of it is sent where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stderr_from: Option<u64>,
        /// How many bytes may be sent before more are granted.
        window: u64,
    },
    /// The follower took bytes: as many more may be sent.
    Window {
        /// The follower's number.
        follow: u64,
        /// How many.
        bytes: u64,
    },
    /// The follower is gone.
    Unfollow {
        /// The follower's number.
        follow: u64,
    },
}

/// An attempt to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartOrder {
    /// The attempt.
    pub attempt: AttemptId,
    /// Its job.
    pub job: JobId,
    /// Its generation.
    #[serde(rename = "gen")]
    pub generation: u32,
    /// Its fence.
    pub fence: u64,
    /// The clock of its `deployed` fact; the executor carries it on.
    pub clock: Clock,
    /// What to run.
    pub spec: Arc<JobSpec>,
    /// The elements to run it for, where the job is an array: an attempt for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elements: Option<Ranges>,
    /// What those elements stand for, in their order, where the array has items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Text>,
    /// Where the job must not overlap: how long the attempt may run after the executor sent the
    /// latest heartbeat that was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Span>,
    /// Checkpoints to begin with, by the digests of their manifests, the newest first: the first
    /// that can be had whole is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<Digest>,
    /// The job's facts that explain the attempt, verbatim: `submitted`, `rerun`, `deployed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<Arc<str>>,
}

impl StartOrder {
    /// The orders for each element by itself; the order as it is where the job is no array.
    #[must_use]
    pub fn each(self) -> Vec<Self> {
        let Some(elements) = &self.elements else { return vec![self] };
        let order = |(at, element): (usize, u64)| Self {
            attempt: AttemptId::new(self.attempt.dot.clone(), Some(element)),
            spec: Arc::new(self.spec.element(element, self.items.get(at))),
            elements: None,
            items: vec![],
            clock: self.clock.clone(),
            checkpoints: self.checkpoints.clone(),
            carried: self.carried.clone(),
            ..self
        };
        let most = usize::try_from(limits::LEASE_ELEMENTS_MAX).unwrap_or(usize::MAX);
        elements.iter().take(most).enumerate().map(order).collect()
    }

    /// The fencing token that the job sees: fixed-width `FENCE.LOG.SEQ`, compared as a string.
    #[must_use]
    pub fn fencing_token(&self) -> String {
        format!("{:016}.{}.{:016}", self.fence, self.attempt.dot.log, self.attempt.dot.seq)
    }
}
