//! What is told of one job's facts: to people, to executors, to the store.
//!
//! Pure, like all of the fold: nothing here looks at anything but the facts.

use std::sync::Arc;

use super::{Attempt, JobFacts};
use crate::proto::fact::{Body, Checkpointed, Deployed, Fact, Reported};
use crate::proto::id::{AttemptId, Digest, Dot, JobId};
use crate::proto::limits;
use crate::proto::result::JobResult;
use crate::proto::view::{AttemptView, JobRow};

impl JobFacts {
    /// The checkpoints that a further attempt of a generation may begin with, the newest first: by
    /// fence of the attempt, then by number.
    #[must_use]
    pub fn checkpoints(&self, generation: u32) -> Vec<Digest> {
        let kept = self.facts.iter().filter_map(|fact| match &fact.body {
            Body::Checkpointed(body) if fact.generation == generation => Some(body),
            _ => None,
        });
        let fence = |body: &Checkpointed| self.attempt(&body.attempt).map(|(_, of)| of.fence);
        let mut kept: Vec<_> =
            kept.map(|body| ((fence(body), body.number, body.manifest), body.manifest)).collect();
        kept.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
        kept.dedup_by_key(|(_, manifest)| *manifest);
        kept.truncate(limits::CHECKPOINTS_OFFERED);
        kept.into_iter().map(|(_, manifest)| manifest).collect()
    }

    /// The checkpoints of an attempt, in order of their dots.
    pub fn checkpointed(&self, attempt: &Dot) -> impl Iterator<Item = (&Fact, &Checkpointed)> {
        self.facts.iter().filter_map(move |fact| match &fact.body {
            Body::Checkpointed(body) if body.attempt.dot == *attempt => Some((&**fact, body)),
            _ => None,
        })
    }

    /// The facts that explain an attempt to who has never heard of its job, as lines: the
    /// submission, what opened its generation, its deployment.
    #[must_use]
    pub fn explanation(&self, attempt: &AttemptId) -> Vec<Arc<str>> {
        let Some((deployed, _)) = self.attempt(attempt) else { return vec![] };
        let explains = |fact: &&Arc<Fact>| match &fact.body {
            Body::Submitted(_) => Some(&fact.dot) == self.birth(),
            Body::Rerun(_) => fact.generation == deployed.generation,
            Body::Deployed(_) => fact.dot == deployed.dot,
            _ => false,
        };
        self.facts.iter().filter(explains).map(|fact| fact.to_line().into()).collect()
    }

    /// The attempts as they are shown.
    #[must_use]
    pub fn attempt_views(&self) -> Vec<AttemptView> {
        let view = |(fact, body): (&Fact, &Deployed)| {
            let (state, reason) = match self.standing(fact) {
                Attempt::Running => ("running", None),
                Attempt::Ended => ("ended", None),
                Attempt::Lost(reason) => ("lost", Some(reason.to_owned())),
                Attempt::Revoked(reason) => ("revoked", Some(reason.to_owned())),
            };
            AttemptView {
                attempt: self.attempt_id(fact),
                generation: fact.generation,
                executor: body.executor.clone(),
                fence: body.fence,
                state,
                reason,
                unproven: self.unproven(fact),
                clock: fact.clock.clone(),
                deployed_at: fact.at.clone(),
            }
        };
        self.deployed().map(view).collect()
    }

    /// What could not be proven of a lost attempt's processes.
    fn unproven(&self, deployed: &Fact) -> Option<String> {
        if self.is_proven_over(deployed) {
            return None;
        }
        self.facts.iter().find_map(|fact| match &fact.body {
            Body::Lost(body) if body.attempt.dot == deployed.dot => body.unproven.clone(),
            _ => None,
        })
    }

    /// The job's row in the store's job table.
    #[must_use]
    pub fn row(&self, job: JobId) -> JobRow {
        let generation = self.generation();
        JobRow {
            job,
            birth: self.birth().cloned(),
            generation,
            state: self.state(),
            digest: match &self.array {
                Some(_) => None,
                None => self.winner(generation).map(|(_, accepted)| accepted.digest),
            },
        }
    }

    /// Leaves the inline outputs of a reported result out of memory; the store has them.
    pub fn strip(&mut self, dot: &Dot) {
        let Ok(at) = self.facts.binary_search_by(|held| held.dot.cmp(dot)) else { return };
        let held = &self.facts[at];
        if let Body::Reported(body) = &held.body
            && body.result.inline_bytes() > 0
        {
            self.facts[at] = Arc::new(Fact {
                body: Body::Reported(Arc::new(Reported {
                    attempt: body.attempt.clone(),
                    executor: body.executor.clone(),
                    digest: body.digest,
                    result: stripped(&body.result),
                    runs: body.runs.clone(),
                    clock: body.clock.clone(),
                    carried: body.carried.clone(),
                })),
                ..(**held).clone()
            });
            if let Some(array) = &mut self.array {
                array.replace(&self.facts[at]);
            }
        }
    }
}

fn stripped(result: &JobResult) -> JobResult {
    let mut result = result.clone();
    for stream in [&mut result.stdout, &mut result.stderr] {
        (stream.text, stream.base64) = (None, None);
    }
    result
}
