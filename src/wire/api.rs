//! The lines that brokers answer with and that the command lines print.
//!
//! Pure. One struct a line; `kind` is its `type`. Field order is fixed, so that the answers of
//! brokers that hold the same facts are the same bytes.

mod books;
mod events;
mod ready;
mod sync;

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::proto::capability::Needs;
use crate::proto::clock::Clock;
use crate::proto::fact::Reported;
use crate::proto::id::{AttemptId, Digest, Dot, ExecutorId, JobId, LogId, TaskId};
use crate::proto::isolation::Isolation;
use crate::proto::job::JobSpec;
use crate::proto::limits;
use crate::proto::ranges::Ranges;
use crate::proto::result::{OutputFile, Stream};
use crate::proto::text::Text;
use crate::proto::view::{
    Ended, ExecutorView, JobState, JobSummary, JobView, RunningView, Verdict, WhyView,
};

pub use self::books::{AuditLine, AuditedLog, StableShown, StatusLine};
pub use self::events::{
    EVENT_WORDS, EXECUTOR_JOINED, EXECUTOR_LEFT, EndLine, EventLine, GapLine, LostLine,
};
pub use self::ready::{BrokerReadyLine, ExecutorReadyLine};
pub use self::sync::{
    DiffLine, ExportAsk, Frame, ImportLine, Introduction, PeerLine, RoundLine, SYNC_VERSION, Since,
    SyncItem, SyncLine, SyncLineError,
};

/// The media type of JSON Lines.
pub const NDJSON: &str = "application/x-ndjson";

/// The word under `type`.
pub type Kind = Cow<'static, str>;

/// One submission as a client sends it. Request: `POST /v1/jobs`, one line a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubmitLine {
    /// The client's number for it, returned with every answer to it.
    #[serde(default)]
    pub index: u64,
    /// The client's id, so that the line may be sent again; drawn by the broker where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// What the job is to do.
    pub spec: JobSpec,
}

/// The job is taken and durable. `type`: `submitted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmittedLine {
    /// `submitted`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The job.
    pub job: JobId,
    /// The client's number.
    pub index: u64,
    /// Whether it had been taken before.
    #[serde(default)]
    pub known: bool,
    /// How many elements it has, where it is an array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elements: Option<u64>,
}

/// How a job ended. `type`: `result`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultLine {
    /// `result`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The job or element.
    pub job: TaskId,
    /// The element's number, with `--each` and `--array`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The element's item, with `--each`: the text itself, or base64 where `item_encoding` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// `base64` where the item is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item_encoding: Option<Kind>,
    /// How it ended; `parked` for one that is held back.
    pub state: JobState,
    /// The generation.
    #[serde(rename = "gen")]
    pub generation: u32,
    /// The exit status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether its time was over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// Why it could not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why it ended, where no result says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The attempt whose result it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptId>,
    /// Where it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<ExecutorId>,
    /// What holds of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Whether the outcome can change no more within its generation.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The job's clock.
    pub clock: Clock,
    /// Standard output: the text itself, or base64 where `encoding` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// The digest of standard output, where it is a blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_blob: Option<Digest>,
    /// `base64` where standard output is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Kind>,
    /// Standard error: the text itself, or base64 where `stderr_encoding` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// The digest of standard error, where it is a blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_blob: Option<Digest>,
    /// `base64` where standard error is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_encoding: Option<Kind>,
    /// Whether more was written to either than is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The files that it left behind and its spec names, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, OutputFile>,
    /// What kept it apart from the machine.
    #[serde(default, skip_serializing_if = "Isolation::is_unknown")]
    pub isolation: Isolation,
    /// What could not be proven of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
    /// The executor's wall clock at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// The executor's wall clock at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// CPU time in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<u64>,
    /// Largest resident set in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<u64>,
}

type Shown = (Option<String>, Option<Digest>, Option<Kind>);

fn shown(stream: &Stream) -> Shown {
    match (&stream.base64, stream.blob) {
        (_, Some(digest)) => (None, Some(digest), None),
        (Some(base64), None) => (Some(base64.clone()), None, Some("base64".into())),
        (None, None) => (Some(stream.text.clone().unwrap_or_default()), None, None),
    }
}

impl ResultLine {
    /// The line of an outcome. `ended.result` must have its inline outputs in memory.
    #[must_use]
    pub fn new(ended: &Ended, index: Option<u64>) -> Self {
        let (item, item_encoding) = match ended.item.as_ref().map(|item| (item, item.as_utf8())) {
            Some((_, Some(text))) => (Some(text.to_owned()), None),
            Some((item, None)) => (Some(STANDARD.encode(item.bytes())), Some("base64".into())),
            None => (None, None),
        };
        let mut line = Self {
            kind: "result".into(),
            job: TaskId::new(ended.job, ended.element),
            index: index.or(ended.element),
            item,
            item_encoding,
            state: ended.state,
            generation: ended.generation,
            exit: None,
            signal: None,
            timed_out: false,
            error: None,
            reason: ended.reason.clone(),
            attempt: None,
            executor: None,
            verdict: None,
            is_final: ended.is_final,
            clock: ended.clock.clone(),
            stdout: None,
            stdout_blob: None,
            encoding: None,
            stderr: None,
            stderr_blob: None,
            stderr_encoding: None,
            truncated: false,
            outputs: BTreeMap::new(),
            isolation: Isolation::default(),
            unproven: None,
            started_at: None,
            ended_at: None,
            cpu_us: None,
            memory_max: None,
        };
        if let Some((_, reported)) = &ended.result {
            line.verdict = Some(Verdict::Accepted);
            line.fill(reported);
        }
        line
    }

    fn fill(&mut self, reported: &Reported) {
        let result = &reported.result;
        self.exit = result.exit;
        self.signal = result.signal;
        self.timed_out = result.timed_out;
        self.error.clone_from(&result.error);
        self.attempt = Some(reported.attempt.clone());
        self.executor = Some(reported.executor.clone());
        (self.stdout, self.stdout_blob, self.encoding) = shown(&result.stdout);
        (self.stderr, self.stderr_blob, self.stderr_encoding) = shown(&result.stderr);
        self.truncated = result.stdout.truncated || result.stderr.truncated;
        self.outputs.clone_from(&result.outputs);
        self.isolation.clone_from(&result.isolation);
        self.unproven.clone_from(&result.unproven);
        self.started_at = Some(result.started_at.clone());
        self.ended_at = Some(result.ended_at.clone());
        self.cpu_us = Some(result.cpu_us);
        self.memory_max = Some(result.memory_max);
    }
}

/// A job whose end is not known to who waited for it. `type`: `unknown`; only on `--status-fd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownLine {
    /// `unknown`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The job.
    pub job: TaskId,
    /// Why it is not known.
    pub reason: String,
}

/// A job runs, or runs anew. `type`: `attempt`. Part of a followed output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptLine {
    /// `attempt`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The job.
    pub job: TaskId,
    /// The attempt.
    pub attempt: AttemptId,
    /// Where it runs.
    pub executor: ExecutorId,
}

/// A piece of output. `type`: `output`. Answer to `GET /v1/jobs/{id}/output`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLine {
    /// `output`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The attempt that wrote it.
    pub attempt: AttemptId,
    /// `stdout` or `stderr`.
    pub stream: crate::proto::message::StreamName,
    /// Where the piece begins in that stream of that attempt, in bytes.
    pub offset: u64,
    /// The bytes in base64.
    pub base64: String,
}

/// One job in a listing. `type`: `job`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLine {
    /// `job`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The job.
    pub job: JobId,
    /// Where it stands.
    pub state: JobState,
    /// The current generation.
    #[serde(rename = "gen")]
    pub generation: u32,
    /// Its name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its urgency.
    pub precedence: crate::proto::precedence::Precedence,
    /// Program and arguments; the name of the module and its arguments.
    pub command: Vec<Text>,
    /// Attempts so far.
    pub attempts: u32,
    /// Where it runs or ran last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<ExecutorId>,
    /// The accepted result's exit status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The accepted result's signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The wall clock of whoever took it.
    pub submitted_at: String,
    /// How many elements are in each state, where it is an array.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub elements: BTreeMap<JobState, u64>,
}

fn words(spec: &JobSpec) -> Vec<Text> {
    let module = spec.wasm.iter().map(|module| {
        let name = module.name.as_deref().unwrap_or(crate::proto::job::MODULE_NAME);
        Text::from(name)
    });
    module.chain(spec.command.iter().chain(&spec.args).cloned()).collect()
}

impl From<&JobSummary> for JobLine {
    fn from(job: &JobSummary) -> Self {
        Self {
            kind: "job".into(),
            job: job.job,
            state: job.state,
            generation: job.generation,
            name: job.spec.name.clone(),
            precedence: job.spec.precedence,
            command: words(&job.spec),
            attempts: job.attempts,
            executor: job.executor.clone(),
            exit: job.exit,
            signal: job.signal,
            submitted_at: job.submitted_at.clone(),
            elements: job.elements.clone(),
        }
    }
}

/// Everything about one job. `type`: `show`. Answer to `GET /v1/jobs/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShowLine {
    /// `show`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The job.
    pub job: TaskId,
    /// Where it stands.
    pub state: JobState,
    /// The current generation.
    #[serde(rename = "gen")]
    pub generation: u32,
    /// The least `submitted` dot.
    pub birth: Dot,
    /// The broker that deploys it.
    pub owner: LogId,
    /// What it is to do.
    pub spec: JobSpec,
    /// Its clock.
    pub clock: Clock,
    /// The wall clock of whoever took it.
    pub submitted_at: String,
    /// How many elements are in each state, and which, where it is an array as a whole: attempts
    /// and results are shown with each element.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub elements: BTreeMap<JobState, ElementsShown>,
    /// All attempts in order of their dots.
    pub attempts: Vec<AttemptShown>,
    /// All reported results in order of their dots.
    pub results: Vec<ResultShown>,
    /// How it ended or why it is parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ResultLine>,
    /// What this broker sees at the moment; left out with `facts_only`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<Observed>,
}

/// The elements of an array that are in one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementsShown {
    /// How many.
    pub count: u64,
    /// Which; left out where they lie in more than [`limits::RUNS_SHOWN_MAX`] runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elements: Option<Ranges>,
}

impl From<&Ranges> for ElementsShown {
    fn from(elements: &Ranges) -> Self {
        let few = elements.runs().nth(limits::RUNS_SHOWN_MAX).is_none();
        Self { count: elements.len(), elements: few.then(|| elements.clone()) }
    }
}

/// What one broker sees of a job at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// For each executor that runs it the time since it was last heard of, in milliseconds;
    /// null where it has no session.
    pub heard_ms: BTreeMap<ExecutorId, Option<u64>>,
}

/// One attempt of a shown job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptShown {
    /// Its id.
    pub attempt: AttemptId,
    /// Its generation.
    #[serde(rename = "gen")]
    pub generation: u32,
    /// Where it was deployed.
    pub executor: ExecutorId,
    /// Its fence.
    pub fence: u64,
    /// `running`, `ended`, `lost` or `revoked`.
    pub state: Kind,
    /// Why it was lost or revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What could not be proven of its processes when it was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
    /// The clock of its `deployed` fact.
    pub clock: Clock,
    /// The wall clock of whoever deployed it.
    pub deployed_at: String,
}

/// One result of a shown job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultShown {
    /// The dot of the fact that reported it.
    pub dot: Dot,
    /// Its generation.
    #[serde(rename = "gen")]
    pub generation: u32,
    /// Whose result it is.
    pub attempt: AttemptId,
    /// Who ran it.
    pub executor: ExecutorId,
    /// What holds of it.
    pub verdict: Verdict,
    /// The rule that decided.
    pub rule: Kind,
    /// The digest of its content.
    pub digest: Digest,
    /// The clock of the fact that reported it.
    pub clock: Clock,
    /// The executor's own history of the job.
    pub executor_clock: Clock,
    /// The result.
    pub result: crate::proto::result::JobResult,
}

impl ShowLine {
    /// The line of a job. The results must have their inline outputs in memory.
    #[must_use]
    pub fn new(view: &JobView, facts_only: bool) -> Self {
        let attempts = view.attempts.iter().map(|attempt| AttemptShown {
            attempt: attempt.attempt.clone(),
            generation: attempt.generation,
            executor: attempt.executor.clone(),
            fence: attempt.fence,
            state: attempt.state.into(),
            reason: attempt.reason.clone(),
            unproven: attempt.unproven.clone(),
            clock: attempt.clock.clone(),
            deployed_at: attempt.deployed_at.clone(),
        });
        let results = view.results.iter().map(|result| ResultShown {
            dot: result.dot.clone(),
            generation: result.generation,
            attempt: result.reported.attempt.clone(),
            executor: result.reported.executor.clone(),
            verdict: result.judgement.verdict,
            rule: result.judgement.rule.into(),
            digest: result.reported.digest,
            clock: result.clock.clone(),
            executor_clock: result.reported.clock.clone(),
            result: result.reported.result.clone(),
        });
        Self {
            kind: "show".into(),
            job: TaskId::new(view.job, view.element),
            state: view.state,
            generation: view.generation,
            elements: view.elements.iter().map(|(state, all)| (*state, all.into())).collect(),
            birth: view.birth.clone(),
            owner: view.owner.clone(),
            spec: (*view.spec).clone(),
            clock: view.clock.clone(),
            submitted_at: view.submitted_at.clone(),
            attempts: attempts.collect(),
            results: results.collect(),
            outcome: view.ended.as_ref().map(|ended| ResultLine::new(ended, None)),
            observed: (!facts_only).then(|| Observed { heard_ms: view.observed.clone() }),
        }
    }
}

/// A cancel or rerun is done. `type`: `done`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneLine {
    /// `done`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The job.
    pub job: TaskId,
    /// Where it stands now.
    pub state: JobState,
}

/// What a job waits for. `type`: `why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyLine {
    /// `why`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The job.
    pub job: TaskId,
    /// Where it stands.
    pub state: JobState,
    /// Its name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it waits for, or why it stands where it stands, one sentence each.
    pub reasons: Vec<String>,
    /// The attempts that are under way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub running: Vec<RunningView>,
}

impl From<WhyView> for WhyLine {
    fn from(view: WhyView) -> Self {
        let WhyView { job, element, name, state, reasons, running } = view;
        let job = TaskId::new(job, element);
        Self { kind: "why".into(), job, state, name, reasons, running }
    }
}

/// One executor. `type`: `executor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorLine {
    /// `executor`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What the broker sees of it.
    #[serde(flatten)]
    pub view: ExecutorView,
}

/// What a job needs, in the words of `--needs`; for tables.
#[must_use]
pub fn needs_words(needs: &Needs) -> String {
    let mut words = vec![format!("cores={}", needs.cores)];
    words.extend(needs.memory.map(|size| format!("memory={size}")));
    words.extend(needs.disk.map(|size| format!("disk={size}")));
    words.extend(needs.battery.map(|percent| format!("battery={percent}")));
    words.extend(needs.cpu_free.map(|percent| format!("cpu_free={percent}")));
    words.extend(needs.labels.iter().map(|label| format!("label={label}")));
    words.join(",")
}
