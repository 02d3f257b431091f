//! One immutable fact: the only thing that brokers replicate.
//!
//! Pure. A fact is one line of JSON, kept and passed on byte for byte as it was written:
//!
//! ```json
//! {"v":1,"dot":["north-7f3a51c2",41],"clock":{"north-7f3a51c2":41},"job":"0197…",
//!  "birth":["north-7f3a51c2",38],"gen":1,"kind":"deployed","at":"2026-…Z","body":{…}}
//! ```
//!
//! Law: a fact's own clock entry is its seq ([`FactError::OwnEntry`]); X happened before Y exactly
//! if Y's clock covers X's dot. `at` is for people; no decision reads it.
//! Each log is a hash chain: chain 0 is the hash of the log's name, chain n that of chain n-1
//! followed by line n (BLAKE3).

use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::proto::clock::Clock;
use crate::proto::id::{AttemptId, Digest, Dot, ExecutorId, JobId, LogId};
use crate::proto::job::JobSpec;
use crate::proto::limits;
use crate::proto::ranges::Ranges;
use crate::proto::result::{JobResult, Run};

/// The version of the fact format.
pub const FACT_VERSION: u32 = 1;
/// The version of the rules that turn facts into state; announced in `joined`.
pub const FOLD_VERSION: u32 = 1;

/// A parsed fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Its name.
    pub dot: Dot,
    /// The clock of its job (or other subject) as the writer held it; the own entry is the dot.
    pub clock: Clock,
    /// The job it is about.
    pub job: Option<JobId>,
    /// The least `submitted` dot of the job that the writer held.
    pub birth: Option<Dot>,
    /// The generation it is about, from 1; 0 where it is about no job.
    pub generation: u32,
    /// The elements of the job's array that it is about; all of them, or no array, where absent.
    pub elements: Option<Ranges>,
    /// The writer's wall clock; for people.
    pub at: String,
    /// What happened.
    pub body: Body,
}

/// What a fact says. JSON: `kind` is the variant's word, `body` its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A log begins.
    Joined(Joined),
    /// A job was taken.
    Submitted(Submitted),
    /// An attempt begins; the fact's dot is the attempt.
    Deployed(Deployed),
    /// The executor of an attempt is gone.
    Lost(Ending),
    /// An attempt is stopped on purpose.
    Revoked(Ending),
    /// An attempt that was lost runs after all, and counts as if it had not been lost.
    Regained(Regained),
    /// State of an attempt was kept, from which a further one can go on.
    Checkpointed(Checkpointed),
    /// A result came in.
    Reported(Arc<Reported>),
    /// A reported result is the job's.
    Accepted(Accepted),
    /// Somebody ended the job.
    Cancelled(Reason),
    /// A job that had ended or was parked begins again, in the fact's generation.
    Rerun(Reason),
    /// The job is held back until somebody reruns it.
    Parked(Reason),
    /// The job's time is over.
    Expired(Reason),
    /// A job that it waited for did not succeed.
    Skipped(Reason),
}

/// A log begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The broker's name.
    pub name: String,
    /// The rules that its facts follow.
    pub fold_version: u32,
    /// The log whose jobs and attempts this one carries on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<Continues>,
}

/// The log that another one continues, and how much of it was at hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continues {
    /// The older log.
    pub log: LogId,
    /// Its last seq at hand.
    pub last_seq: u64,
    /// Its chain hash there.
    pub chain: Digest,
}

/// A job was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// What it is to do.
    pub spec: Arc<JobSpec>,
    /// How long it is kept after its end, in milliseconds of running time.
    pub retention_ms: u64,
    /// For a job with a deadline: the running time of the writer's machine since its boot, in
    /// microseconds. Read only by who writes the same log, and a log ends with the boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_us: Option<u64>,
}

/// An attempt begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// Where.
    pub executor: ExecutorId,
    /// Which life of that executor (`Incarnation::life`): another one never heard of it.
    pub life: u64,
    /// 1 + the greatest fence known for the job (a Lamport number).
    pub fence: u64,
    /// For a job that must not overlap: how long its executor's lease holds, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
}

/// An attempt that was lost is there again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regained {
    /// Which.
    pub attempt: AttemptId,
    /// Where it runs.
    pub executor: ExecutorId,
}

/// State of an attempt was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpointed {
    /// Whose state it is.
    pub attempt: AttemptId,
    /// Where it was kept.
    pub executor: ExecutorId,
    /// Its number among those of the attempt, from 1.
    pub number: u64,
    /// The blob that lists its files.
    pub manifest: Digest,
    /// How many files it has.
    pub files: u64,
    /// Their bytes together.
    pub bytes: u64,
    /// The executor's own history of the job; for drawing, never for decisions.
    #[serde(default, skip_serializing_if = "Clock::is_empty")]
    pub clock: Clock,
}

/// An attempt ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Which.
    pub attempt: AttemptId,
    /// Where it was.
    pub executor: ExecutorId,
    /// Why, in words.
    pub reason: String,
    /// What could not be proven of its processes, in words; absent where none is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
    /// Whether it had not begun: it was given to its executor ahead of a free slot, and called
    /// back. It counts as nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unbegun: bool,
}

/// A result came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// Whose result it is.
    pub attempt: AttemptId,
    /// Who ran it.
    pub executor: ExecutorId,
    /// The digest of its content.
    pub digest: Digest,
    /// The result. Where the fact covers elements, they have it in common but for `runs`.
    pub result: JobResult,
    /// When and how expensively each element ran, in the order of the elements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<Run>,
    /// The executor's own history of the job; for drawing, never for decisions.
    #[serde(default, skip_serializing_if = "Clock::is_empty")]
    pub clock: Clock,
    /// Facts of the job that the writer did not hold and the executor carried, verbatim. The fold
    /// reads each as held, once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<Arc<str>>,
}

/// A reported result is the job's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Whose result it is.
    pub attempt: AttemptId,
    /// The fact that reported it.
    pub reported: Dot,
    /// The digest of its content.
    pub digest: Digest,
    /// Whether the job did its work.
    pub success: bool,
    /// The attempt's fence.
    pub fence: u64,
}

/// Why something was done to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// In words.
    pub reason: String,
}

/// Why a line is no fact. Nothing changed; trying again cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FactError {
    /// The line is not the JSON of a fact; the text says where.
    #[error("not a fact: {0}")]
    Json(String),
    /// The fact's format is of another version than ours.
    #[error("fact format {0} is not known here (known: {FACT_VERSION})")]
    Version(u32),
    /// The kind is not known here.
    #[error("fact kind {0:?} is not known here")]
    Kind(String),
    /// The own entry of the clock is not the dot's seq.
    #[error("the clock of {dot} counts its own log at {entry}")]
    OwnEntry {
        /// The fact's dot.
        dot: Dot,
        /// What its clock says.
        entry: u64,
    },
    /// A job's fact without job, birth or generation, or the contrary.
    #[error("fact {0} of kind {1} lacks a member, or has one too many: {2}")]
    Member(Dot, &'static str, &'static str),
}

/// A fact as it is written.
#[derive(Serialize)]
struct Line<'a> {
    v: u32,
    dot: &'a Dot,
    clock: &'a Clock,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    birth: Option<&'a Dot>,
    #[serde(rename = "gen", skip_serializing_if = "is_zero")]
    generation: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    elements: Option<&'a Ranges>,
    kind: &'a str,
    at: &'a str,
    #[serde(serialize_with = "write_body")]
    body: &'a Body,
}

/// The bytes of most lines.
const LINE_BYTES_USUAL: usize = 768;

fn write_body<S: Serializer>(body: &&Body, serializer: S) -> Result<S::Ok, S::Error> {
    match body {
        Body::Joined(body) => body.serialize(serializer),
        Body::Submitted(body) => body.serialize(serializer),
        Body::Deployed(body) => body.serialize(serializer),
        Body::Lost(body) | Body::Revoked(body) => body.serialize(serializer),
        Body::Regained(body) => body.serialize(serializer),
        Body::Checkpointed(body) => body.serialize(serializer),
        Body::Reported(body) => body.serialize(serializer),
        Body::Accepted(body) => body.serialize(serializer),
        Body::Cancelled(body)
        | Body::Rerun(body)
        | Body::Parked(body)
        | Body::Expired(body)
        | Body::Skipped(body) => body.serialize(serializer),
    }
}

/// A fact as it is read, whose body waits until its kind is known.
#[derive(Deserialize)]
struct RawFact<'a> {
    v: u32,
    dot: Dot,
    clock: Clock,
    #[serde(default)]
    job: Option<JobId>,
    #[serde(default)]
    birth: Option<Dot>,
    #[serde(rename = "gen", default)]
    generation: u32,
    #[serde(default)]
    elements: Option<Ranges>,
    #[serde(borrow)]
    kind: std::borrow::Cow<'a, str>,
    at: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde asks for
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl Body {
    /// The word under `kind`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Joined(_) => "joined",
            Self::Submitted(_) => "submitted",
            Self::Deployed(_) => "deployed",
            Self::Lost(_) => "lost",
            Self::Revoked(_) => "revoked",
            Self::Regained(_) => "regained",
            Self::Checkpointed(_) => "checkpointed",
            Self::Reported(_) => "reported",
            Self::Accepted(_) => "accepted",
            Self::Cancelled(_) => "cancelled",
            Self::Rerun(_) => "rerun",
            Self::Parked(_) => "parked",
            Self::Expired(_) => "expired",
            Self::Skipped(_) => "skipped",
        }
    }

    fn from_raw(kind: &str, raw: &RawValue) -> Result<Self, FactError> {
        fn read<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, FactError> {
            serde_json::from_str(raw.get()).map_err(|error| FactError::Json(error.to_string()))
        }
        Ok(match kind {
            "joined" => Self::Joined(read(raw)?),
            "submitted" => Self::Submitted(read(raw)?),
            "deployed" => Self::Deployed(read(raw)?),
            "lost" => Self::Lost(read(raw)?),
            "revoked" => Self::Revoked(read(raw)?),
            "regained" => Self::Regained(read(raw)?),
            "checkpointed" => Self::Checkpointed(read(raw)?),
            "reported" => Self::Reported(Arc::new(read(raw)?)),
            "accepted" => Self::Accepted(read(raw)?),
            "cancelled" => Self::Cancelled(read(raw)?),
            "rerun" => Self::Rerun(read(raw)?),
            "parked" => Self::Parked(read(raw)?),
            "expired" => Self::Expired(read(raw)?),
            "skipped" => Self::Skipped(read(raw)?),
            other => return Err(FactError::Kind(other.chars().take(40).collect())),
        })
    }
}

impl Fact {
    /// The fact's line, without a newline.
    #[must_use]
    pub fn to_line(&self) -> String {
        let line = Line {
            v: FACT_VERSION,
            dot: &self.dot,
            clock: &self.clock,
            job: self.job,
            birth: self.birth.as_ref(),
            generation: self.generation,
            elements: self.elements.as_ref(),
            kind: self.body.kind(),
            at: &self.at,
            body: &self.body,
        };
        let mut text = Vec::with_capacity(LINE_BYTES_USUAL);
        serde_json::to_writer(&mut text, &line).expect("a fact has only string keys");
        String::from_utf8(text).expect("JSON is UTF-8")
    }

    /// Reads a fact from its line.
    ///
    /// # Errors
    /// [`FactError`]; nothing of the line is taken over.
    pub fn parse(line: &str) -> Result<Self, FactError> {
        let raw: RawFact<'_> =
            serde_json::from_str(line).map_err(|error| FactError::Json(error.to_string()))?;
        if raw.v != FACT_VERSION {
            return Err(FactError::Version(raw.v));
        }
        let body = Body::from_raw(&raw.kind, raw.body)?;
        let entry = raw.clock.seq(&raw.dot.log);
        if entry != raw.dot.seq {
            return Err(FactError::OwnEntry { dot: raw.dot, entry });
        }
        let fact = Self {
            dot: raw.dot,
            clock: raw.clock,
            job: raw.job,
            birth: raw.birth,
            generation: raw.generation,
            elements: raw.elements,
            at: raw.at,
            body,
        };
        fact.check_members()?;
        Ok(fact)
    }

    fn check_members(&self) -> Result<(), FactError> {
        let wrong = |what| Err(FactError::Member(self.dot.clone(), self.body.kind(), what));
        if matches!(self.body, Body::Joined(_)) {
            let of_a_job = self.job.is_some() || self.elements.is_some();
            return if of_a_job { wrong("job") } else { Ok(()) };
        }
        if self.elements.as_ref().is_some_and(Ranges::is_empty) {
            return wrong("elements");
        }
        if self.job.is_none() {
            return wrong("job");
        }
        if self.generation == 0 {
            return wrong("gen");
        }
        // A result may come for a job whose submission never reached the writer.
        if self.birth.is_none() && !matches!(self.body, Body::Reported(_)) {
            return wrong("birth");
        }
        match &self.body {
            Body::Deployed(body) if body.fence > limits::COUNTER_MAX => wrong("fence"),
            Body::Checkpointed(body) if body.number > limits::COUNTER_MAX => wrong("number"),
            Body::Reported(body) if !body.result.stdout.is_consistent() => wrong("stdout"),
            Body::Reported(body) if !body.result.stderr.is_consistent() => wrong("stderr"),
            Body::Reported(body) if body.result.digest() != body.digest => wrong("digest"),
            Body::Reported(body)
                if body.runs.len() as u64 != self.elements.as_ref().map_or(0, Ranges::len) =>
            {
                wrong("runs")
            }
            Body::Submitted(_) if self.elements.is_some() => wrong("elements"),
            _ => Ok(()),
        }
    }
}

impl Fact {
    /// Whether it says something of a task: of an element, or of the job where it is no array.
    #[must_use]
    pub fn concerns(&self, element: Option<u64>) -> bool {
        match (&self.elements, element) {
            (Some(elements), Some(element)) => elements.contains(element),
            (Some(_), None) => false,
            (None, _) => true,
        }
    }

    /// The attempt that it says something of, by the fact that deployed it: that one itself, and
    /// what became of it.
    #[must_use]
    pub fn lease(&self) -> Option<&Dot> {
        match &self.body {
            Body::Deployed(_) => Some(&self.dot),
            Body::Lost(body) | Body::Revoked(body) => Some(&body.attempt.dot),
            Body::Regained(body) => Some(&body.attempt.dot),
            Body::Checkpointed(body) => Some(&body.attempt.dot),
            Body::Reported(body) => Some(&body.attempt.dot),
            Body::Accepted(body) => Some(&body.attempt.dot),
            Body::Joined(_)
            | Body::Submitted(_)
            | Body::Cancelled(_)
            | Body::Rerun(_)
            | Body::Parked(_)
            | Body::Expired(_)
            | Body::Skipped(_) => None,
        }
    }

    /// The facts that it carries about its own job: those that explain an attempt. What is none of
    /// them is passed over.
    #[must_use]
    pub fn carried(&self) -> Vec<Arc<Self>> {
        let Body::Reported(body) = &self.body else { return vec![] };
        let lines = body.carried.iter().take(limits::CARRIED_FACTS_MAX);
        let facts = lines.filter_map(|line| Self::parse(line).ok());
        let explains = |fact: &Self| {
            let kind = match &fact.body {
                Body::Submitted(_) | Body::Rerun(_) => true,
                // Of attempts only the one that was reported, by whom it was made.
                Body::Deployed(deployed) => {
                    fact.dot == body.attempt.dot
                        && deployed.executor == body.executor
                        && deployed.fence <= limits::CARRIED_FENCE_MAX
                }
                _ => false,
            };
            kind && fact.job == self.job
                && fact.dot.log != self.dot.log
                && fact.generation <= limits::CARRIED_GENERATION_MAX
        };
        facts.filter(explains).map(Arc::new).collect()
    }

    /// What it reports of one task, where it reports anything.
    #[must_use]
    pub fn report(&self, element: Option<u64>) -> Option<Arc<Reported>> {
        let Body::Reported(body) = &self.body else { return None };
        let (Some(elements), Some(element)) = (&self.elements, element) else {
            return Some(Arc::clone(body));
        };
        let before = elements.within(0, element).len().checked_sub(1)?;
        let run = body.runs.get(usize::try_from(before).ok()?)?;
        let attempt = AttemptId::new(body.attempt.dot.clone(), Some(element));
        let result = body.result.of_run(run);
        Some(Arc::new(Reported { attempt, result, runs: vec![], ..(**body).clone() }))
    }
}

/// A fact together with its bytes as written and its place in the hash chain of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedFact {
    /// What it says.
    pub fact: Arc<Fact>,
    /// Its line, without a newline.
    pub line: Arc<str>,
    /// The log's chain hash with this fact as the last.
    pub chain: Digest,
}

/// The chain hash of a log that holds nothing.
#[must_use]
pub fn chain_start(log: &LogId) -> Digest {
    Digest::of(log.as_str().as_bytes())
}

/// The chain hash after one more line.
#[must_use]
pub fn chain_next(chain: &Digest, line: &str) -> Digest {
    // What is hashed lies together where it is short: hashing it in pieces is slower.
    let (start, mut together) = (chain.0.len(), [0; 1_024]);
    if let Some(both) = together.get_mut(..start + line.len()) {
        both[..start].copy_from_slice(&chain.0);
        both[start..].copy_from_slice(line.as_bytes());
        return Digest::of(both);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&chain.0);
    hasher.update(line.as_bytes());
    Digest(*hasher.finalize().as_bytes())
}
