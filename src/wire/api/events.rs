//! The lines of `GET /v1/events`: what happens at a broker, as it becomes durable; and the answer
//! to who declares an executor lost.
//!
//! Pure. An event tells of a fact, or of an executor that came or went; it is for people and
//! their tools. The facts themselves, whole and for good, are at `GET /v1/facts`.

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::proto::fact::{Body, Fact};
use crate::proto::id::{AttemptId, Dot, ExecutorId, JobId};
use crate::proto::ranges::Ranges;

/// The word of an executor that was given a session.
pub const EXECUTOR_JOINED: &str = "executor-joined";
/// The word of an executor whose session ended.
pub const EXECUTOR_LEFT: &str = "executor-left";

/// All words that may stand under `event`: the kinds of facts, and the two of executors.
pub const EVENT_WORDS: [&str; 16] = [
    "joined",
    "submitted",
    "deployed",
    "lost",
    "revoked",
    "regained",
    "checkpointed",
    "reported",
    "accepted",
    "cancelled",
    "rerun",
    "parked",
    "expired",
    "skipped",
    EXECUTOR_JOINED,
    EXECUTOR_LEFT,
];

/// Something happened. `type`: `event`. Part of the answer to `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLine {
    /// `event`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What happened, one of [`EVENT_WORDS`].
    pub event: Kind,
    /// The wall clock of whoever wrote the fact; for executors that of the broker.
    pub at: String,
    /// The fact's name; executors come and go without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dot: Option<Dot>,
    /// The job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The generation.
    #[serde(rename = "gen", default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The elements of the job's array; all of them, or no array, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elements: Option<Ranges>,
    /// The attempt; of an array's job the deployment of those elements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptId>,
    /// Where it runs or ran; who came or went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<ExecutorId>,
    /// Whether the accepted result is that of a job that did its work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// The reported exit status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The reported signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl EventLine {
    fn bare(event: &'static str, at: String) -> Self {
        Self {
            kind: "event".into(),
            event: event.into(),
            at,
            dot: None,
            job: None,
            generation: None,
            elements: None,
            attempt: None,
            executor: None,
            success: None,
            exit: None,
            signal: None,
            reason: None,
        }
    }

    /// The line of an executor that came or went.
    #[must_use]
    pub fn of_executor(event: &'static str, executor: ExecutorId, at: String) -> Self {
        Self { executor: Some(executor), ..Self::bare(event, at) }
    }

    /// The line of a fact.
    #[must_use]
    pub fn of_fact(fact: &Fact) -> Self {
        let mut line = Self::bare(fact.body.kind(), fact.at.clone());
        line.dot = Some(fact.dot.clone());
        line.job = fact.job;
        line.generation = fact.job.map(|_| fact.generation);
        line.elements.clone_from(&fact.elements);
        match &fact.body {
            Body::Joined(_) | Body::Submitted(_) => {}
            Body::Deployed(body) => {
                line.attempt = Some(AttemptId::from(fact.dot.clone()));
                line.executor = Some(body.executor.clone());
            }
            Body::Lost(body) | Body::Revoked(body) => {
                line.attempt = Some(body.attempt.clone());
                line.executor = Some(body.executor.clone());
                line.reason = Some(body.reason.clone());
            }
            Body::Regained(body) => {
                line.attempt = Some(body.attempt.clone());
                line.executor = Some(body.executor.clone());
            }
            Body::Checkpointed(body) => {
                line.attempt = Some(body.attempt.clone());
                line.executor = Some(body.executor.clone());
            }
            Body::Reported(body) => {
                line.attempt = Some(body.attempt.clone());
                line.executor = Some(body.executor.clone());
                (line.exit, line.signal) = (body.result.exit, body.result.signal);
            }
            Body::Accepted(body) => {
                line.attempt = Some(body.attempt.clone());
                line.success = Some(body.success);
            }
            Body::Cancelled(body)
            | Body::Rerun(body)
            | Body::Parked(body)
            | Body::Expired(body)
            | Body::Skipped(body) => line.reason = Some(body.reason.clone()),
        }
        line
    }
}

/// The reader was so slow that events were passed over. `type`: `gap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapLine {
    /// `gap`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// How many there were, of all jobs and kinds.
    pub missed: u64,
}

/// No more events will come here. `type`: `end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndLine {
    /// `end`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Why, in words.
    pub reason: String,
}

/// An executor was given up on its operator's word. `type`: `lost`. Answer to
/// `POST /v1/executors/{executor}/lost`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostLine {
    /// `lost`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The executor.
    pub executor: ExecutorId,
    /// The attempts that were under way there; their jobs go elsewhere.
    pub attempts: Vec<AttemptId>,
}
