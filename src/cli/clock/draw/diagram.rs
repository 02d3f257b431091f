//! What a space-time diagram shows, whatever form it is drawn in.
//!
//! Pure. Life lines: each actor, and each executor that facts speak of. Marks: one for each event,
//! and for facts one more where a run begins or ends on its executor. Arrows: from a cause to the
//! first event of another line that knew of it. Results carry the verdict that the fold gives
//! them from the facts drawn.
//! Law: marks stand in a causal order, the same for every order of arrival (tests/cli/clock.rs).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::proto::arbitrate;
use crate::proto::clock::Clock;
use crate::proto::fact::{Body, Fact, Reported};
use crate::proto::fold::JobFacts;
use crate::proto::history::{Circle, Event, Graph, short_hash};
use crate::proto::id::{AttemptId, Dot, ExecutorId, JobId};
use crate::proto::result::JobResult;
use crate::proto::view::{Judgement, Verdict};

/// The longest label; the whole text is in the mark's detail.
const LABEL_CHARS: usize = 44;

/// Whose life line it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Whoever writes events.
    Actor,
    /// An executor that facts speak of.
    Executor,
}

/// A life line.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: String,
    pub(super) role: Role,
}

/// What kind of news a mark is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tone {
    /// An event of any kind.
    Plain,
    /// A job, or a generation of it, begins.
    Begin,
    /// A job is under way.
    Work,
    /// A result stands.
    Accepted,
    /// A result does not stand, or decides nothing yet.
    Unused,
    /// Something was lost, failed or was stopped.
    Loss,
}

impl Tone {
    pub(super) const ALL: [(Self, &'static str); 6] = [
        (Self::Begin, "submitted, rerun"),
        (Self::Work, "deployed, runs"),
        (Self::Accepted, "accepted"),
        (Self::Unused, "late, rejected, superseded"),
        (Self::Loss, "lost, revoked, ended without a result"),
        (Self::Plain, "other"),
    ];
}

/// One event on its life line; marks stand in rows from above to below.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) lane: usize,
    pub(super) label: String,
    pub(super) detail: String,
    pub(super) tone: Tone,
    /// A number that jobs are told apart by.
    pub(super) hue: Option<u64>,
    /// The marks of other lines that this one knew of first.
    pub(super) causes: Vec<usize>,
}

/// Everything that is drawn.
#[derive(Debug)]
pub(super) struct Diagram {
    pub(super) lanes: Vec<Lane>,
    pub(super) marks: Vec<Mark>,
}

struct Builder<'a> {
    read: &'a [(Event, String)],
    facts: Vec<Option<Arc<Fact>>>,
    verdicts: BTreeMap<Dot, Judgement>,
    lanes: BTreeMap<(Role, String), usize>,
    marks: Vec<Mark>,
    /// The mark of each event that has one.
    mark_of: BTreeMap<usize, usize>,
    /// The mark where an attempt began to run on its executor.
    runs: BTreeMap<AttemptId, usize>,
}

impl Diagram {
    /// The diagram of these events and the lines that they were read from.
    ///
    /// # Errors
    /// Their clocks contradict each other.
    pub(super) fn new(read: &[(Event, String)]) -> Result<Self, Circle> {
        let mut graph = Graph::new();
        for (event, line) in read {
            // The number of events is bounded far below the graph's limit.
            let _ = graph.add(event, short_hash(line));
        }
        let order = graph.order()?;
        let causes = graph.all_causes();
        let facts: Vec<_> =
            read.iter().map(|(_, line)| Fact::parse(line).ok().map(Arc::new)).collect();
        let mut builder = Builder {
            read,
            verdicts: verdicts(facts.iter().flatten()),
            facts,
            lanes: BTreeMap::new(),
            marks: vec![],
            mark_of: BTreeMap::new(),
            runs: BTreeMap::new(),
        };
        builder.place_lanes();
        let mut last: BTreeMap<(usize, Option<&str>), &Clock> = BTreeMap::new();
        for index in order {
            let event = &read[index].0;
            let lane = builder.lane(Role::Actor, event.actor.as_str());
            let before = last.insert((lane, event.subject.as_deref()), &event.clock);
            let fresh = |cause: &usize| {
                let cause = &read[*cause].0;
                cause.actor != event.actor
                    && before.is_none_or(|before| before.get(&cause.actor) < cause.seq)
            };
            let causes: Vec<usize> = causes[index].iter().copied().filter(fresh).collect();
            builder.add(index, lane, &causes);
        }
        let mut lanes: Vec<((Role, String), usize)> = builder.lanes.into_iter().collect();
        lanes.sort_by_key(|(_, number)| *number);
        let lanes = lanes.into_iter().map(|((role, name), _)| Lane { name, role }).collect();
        Ok(Self { lanes, marks: builder.marks })
    }
}

/// The verdict of each reported result, by its dot.
fn verdicts<'a>(facts: impl Iterator<Item = &'a Arc<Fact>>) -> BTreeMap<Dot, Judgement> {
    let mut jobs: BTreeMap<JobId, JobFacts> = BTreeMap::new();
    for fact in facts {
        if let Some(job) = fact.job {
            jobs.entry(job).or_default().insert(Arc::clone(fact));
        }
    }
    let views = jobs.values().flat_map(arbitrate::result_views);
    views.map(|view| (view.dot, view.judgement)).collect()
}

impl Builder<'_> {
    /// Life lines stand in the order of their names, executors to the right.
    fn place_lanes(&mut self) {
        let actors = self.read.iter().map(|(event, _)| (Role::Actor, event.actor.to_string()));
        let executor = |fact: &Arc<Fact>| {
            executor_of(&fact.body).map(|executor| (Role::Executor, executor.to_string()))
        };
        let executors = self.facts.iter().flatten().filter_map(executor);
        self.lanes = actors.chain(executors).map(|lane| (lane, 0)).collect();
        for (number, place) in self.lanes.values_mut().enumerate() {
            *place = number;
        }
    }

    fn lane(&self, role: Role, name: &str) -> usize {
        self.lanes.get(&(role, name.to_owned())).copied().unwrap_or(0)
    }

    fn push(&mut self, mark: Mark) -> usize {
        self.marks.push(mark);
        self.marks.len() - 1
    }

    fn add(&mut self, index: usize, lane: usize, causes: &[usize]) {
        let (event, line) = &self.read[index];
        let hue = event.subject.as_deref().map(short_hash);
        let mut causes: Vec<usize> =
            causes.iter().filter_map(|cause| self.mark_of.get(cause).copied()).collect();
        let place = format!("{}.{}", event.actor, event.seq);
        let Some(fact) = self.facts[index].clone() else {
            let label = cut(&format!("{} {}", event.seq, label_of(line)));
            let mark = Mark { lane, label, detail: place, tone: Tone::Plain, hue, causes };
            let mark = self.push(mark);
            self.mark_of.insert(index, mark);
            return;
        };
        if let Body::Reported(body) = &fact.body {
            let run = self.runs.get(&body.attempt).copied();
            let executor = self.lane(Role::Executor, body.executor.as_str());
            causes.push(self.push(Mark {
                lane: executor,
                label: format!("ends: {}", how(&body.result)),
                detail: format!("attempt {} ends on {}", body.attempt, body.executor),
                tone: Tone::Work,
                hue,
                causes: run.filter(|run| self.marks[*run].lane != executor).into_iter().collect(),
            }));
        }
        let (words, tone) = self.words(&fact);
        let label = cut(&format!("{} {words}", fact.dot.seq));
        let job = fact.job.map_or(String::new(), |job| format!(" job {job}"));
        let detail = format!("{place}{job} {words} at {}", fact.at);
        let mark = self.push(Mark { lane, label, detail, tone, hue, causes });
        self.mark_of.insert(index, mark);
        if let Body::Deployed(body) = &fact.body {
            let run = self.push(Mark {
                lane: self.lane(Role::Executor, body.executor.as_str()),
                label: "runs".to_owned(),
                detail: format!("attempt {} runs on {}", fact.dot, body.executor),
                tone: Tone::Work,
                hue,
                causes: vec![mark],
            });
            self.runs.insert(AttemptId::from(fact.dot.clone()), run);
        }
    }

    fn words(&self, fact: &Fact) -> (String, Tone) {
        let because = |what: &str, reason: &str| (format!("{what}: {reason}"), Tone::Loss);
        match &fact.body {
            Body::Joined(body) => (format!("joined as {}", body.name), Tone::Plain),
            Body::Submitted(body) => {
                let what = body.spec.name.clone().unwrap_or_else(|| body.spec.command_line());
                (format!("submitted {what}"), Tone::Begin)
            }
            Body::Deployed(body) => (format!("deployed on {}", body.executor), Tone::Work),
            Body::Lost(body) => because("lost", &body.reason),
            Body::Revoked(body) => because("revoked", &body.reason),
            Body::Regained(body) => (format!("regained on {}", body.executor), Tone::Work),
            Body::Checkpointed(body) => (format!("checkpoint {}", body.number), Tone::Work),
            Body::Reported(body) => self.reported(fact, body),
            Body::Accepted(body) => {
                let what = if body.success { "accepted" } else { "accepted the failure" };
                (what.to_owned(), Tone::Accepted)
            }
            Body::Rerun(body) => (format!("rerun: {}", body.reason), Tone::Begin),
            Body::Cancelled(body)
            | Body::Parked(body)
            | Body::Expired(body)
            | Body::Skipped(body) => because(fact.body.kind(), &body.reason),
        }
    }

    fn reported(&self, fact: &Fact, body: &Reported) -> (String, Tone) {
        let how = how(&body.result);
        let Some(judgement) = self.verdicts.get(&fact.dot) else {
            return (format!("reported {how}"), Tone::Unused);
        };
        let tone = match judgement.verdict {
            Verdict::Accepted => Tone::Accepted,
            _ => Tone::Unused,
        };
        let verdict = format!("{:?}", judgement.verdict).to_lowercase();
        (format!("reported {how}: {verdict}, {}", judgement.rule), tone)
    }
}

const fn executor_of(body: &Body) -> Option<&ExecutorId> {
    match body {
        Body::Deployed(body) => Some(&body.executor),
        Body::Lost(body) | Body::Revoked(body) => Some(&body.executor),
        _ => None,
    }
}

fn how(result: &JobResult) -> String {
    match (result.exit, result.signal) {
        _ if result.timed_out => "timed out".to_owned(),
        (Some(exit), _) => format!("exit {exit}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "without a status".to_owned(),
    }
}

/// What an event that is no fact calls itself.
fn label_of(line: &str) -> String {
    let members: Map<String, Value> = serde_json::from_str(line).unwrap_or_default();
    let names = ["event", "label", "name", "kind", "type", "message", "state"];
    let text = names.iter().find_map(|name| members.get(*name)?.as_str());
    text.unwrap_or_default().to_owned()
}

fn cut(text: &str) -> String {
    let text = text.replace(char::is_control, " ");
    if text.chars().count() <= LABEL_CHARS {
        return text;
    }
    text.chars().take(LABEL_CHARS - 1).chain(['…']).collect()
}
