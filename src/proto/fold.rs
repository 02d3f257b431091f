//! The fold: from the set of facts about one job to its state.
//!
//! Pure. A job's facts are held as a set ordered by dot; everything else is computed from that
//! set by functions that look at nothing else. So order and repeats of arrival change nothing
//! (invariant I2; tests/properties/fold.rs). Verdicts on results are in `arbitrate`.
//!
//! Generations count from 1. A `rerun` opens generation 1 + the greatest that its writer knew.
//! The outcome of a generation is its greatest accept if it has any, whatever ends are concurrent;
//! else cancelled, else expired, else skipped. An end ends its own generation and every greater
//! one g, unless a rerun of a generation up to g knew of it.
//! All of this holds of a job that is no array, and of each element of one (`array`): an element
//! is folded from the facts that concern it, as if it were a job of its own.
//! Source: design section 4; observed-remove sets, Shapiro et al. 2011, for "unless it knew".

mod array;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::proto::arbitrate;
use crate::proto::clock::Clock;
use crate::proto::fact::{Accepted, Body, Deployed, Fact, Reported, Submitted};
use crate::proto::id::{AttemptId, Dot, JobId};
use crate::proto::ranges::Ranges;
use crate::proto::result::JobResult;
use crate::proto::view::{AttemptView, JobRow, JobState};

use array::Array;

/// The facts held about one job, or about one element of an array's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFacts {
    /// Sorted by dot.
    facts: Vec<Arc<Fact>>,
    /// For each log the highest seq of its facts held here.
    clock: Clock,
    /// The facts by element, where the job is an array.
    array: Option<Box<Array>>,
    /// The element whose facts these are, where they are a part of an array's.
    element: Option<u64>,
}

/// How one attempt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt<'a> {
    /// Nothing is known of its end.
    Running,
    /// Its result was reported.
    Ended,
    /// Its executor was lost.
    Lost(&'a str),
    /// It was stopped on purpose, or its generation ended without it.
    Revoked(&'a str),
}

/// An end of a generation that is no result, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndKind {
    /// A job that it waited for did not succeed.
    Skipped,
    /// Its time was over.
    Expired,
    /// Somebody ended it.
    Cancelled,
}

/// How the attempts of one generation ended that decided nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tries {
    /// Attempts that failed.
    pub failed: u32,
    /// Attempts whose executor was lost.
    pub lost: u32,
    /// Attempts that were handed back or stopped after they had begun.
    pub revoked: u32,
}

/// What the owner of a job has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it runs, has ended or is parked.
    Nothing,
    /// Deploy an attempt with this fence.
    Deploy {
        /// 1 + the greatest fence known.
        fence: u64,
        /// How the attempts of this generation ended so far.
        tries: Tries,
    },
    /// Accept the result that this fact reported.
    Accept(Dot),
    /// Park it: it took down this many executors.
    Park {
        /// How many.
        lost: u32,
    },
}

impl JobFacts {
    /// Adds a fact about the job; false if it was held already.
    pub fn insert(&mut self, fact: Arc<Fact>) -> bool {
        match self.facts.binary_search_by(|held| held.dot.cmp(&fact.dot)) {
            Ok(_) => false,
            Err(at) => {
                self.clock.raise_to(&fact.dot);
                self.facts.insert(at, Arc::clone(&fact));
                self.insert_by_element(&fact);
                true
            }
        }
    }

    fn insert_by_element(&mut self, fact: &Arc<Fact>) {
        let is_array = match &fact.body {
            Body::Submitted(body) => body.spec.array.is_some(),
            _ => fact.elements.is_some(),
        };
        if let Some(array) = &mut self.array {
            array.insert(fact);
            array.refresh(fact.elements.as_ref());
        } else if is_array {
            let array = self.array.insert(Box::default());
            self.facts.iter().for_each(|fact| array.insert(fact));
            array.refresh(None);
        }
    }

    fn of_element(facts: Vec<Arc<Fact>>, element: u64) -> Self {
        Self { facts, clock: Clock::new(), array: None, element: Some(element) }
    }

    /// The elements, where the job is an array and its submission is held.
    #[must_use]
    pub fn elements(&self) -> Option<&Ranges> {
        self.array.as_ref()?;
        self.submitted().and_then(|(_, submitted)| submitted.spec.array.as_ref())
    }

    /// The elements in each state, where the job is an array.
    #[must_use]
    pub fn states(&self) -> Option<&BTreeMap<JobState, Ranges>> {
        self.array.as_ref().map(|array| array.states())
    }

    /// Parts elements of an array so that all of one part have the same facts; first and last
    /// number of each.
    #[must_use]
    pub fn parts(&self, elements: &Ranges) -> Vec<(u64, u64)> {
        self.array.as_ref().map_or_else(Vec::new, |array| array.parts(elements))
    }

    /// The facts of one task, with which all that follows here can be asked; the clock stays the
    /// job's.
    #[must_use]
    pub fn task(&self, element: Option<u64>) -> Cow<'_, Self> {
        match (element, &self.array) {
            (Some(element), Some(array)) => Cow::Owned(array.view(element)),
            (Some(element), None) => Cow::Owned(Self::of_element(vec![], element)),
            (None, _) => Cow::Borrowed(self),
        }
    }

    /// The attempt of this task that a fact deployed.
    #[must_use]
    pub fn attempt_id(&self, deployed: &Fact) -> AttemptId {
        AttemptId::new(deployed.dot.clone(), self.element)
    }

    /// The facts in order of their dots.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Fact>> {
        self.facts.iter()
    }

    /// The fact with this dot.
    #[must_use]
    pub fn get(&self, dot: &Dot) -> Option<&Arc<Fact>> {
        let at = self.facts.binary_search_by(|held| held.dot.cmp(dot)).ok()?;
        self.facts.get(at)
    }

    /// The job's clock: for each log the highest seq of its facts held here.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The submission with the least dot, which names the job's birth and its spec.
    #[must_use]
    pub fn submitted(&self) -> Option<(&Fact, &Submitted)> {
        if let Some(array) = &self.array {
            return array.submitted();
        }
        self.facts.iter().find_map(|fact| match &fact.body {
            Body::Submitted(body) => Some((&**fact, body)),
            _ => None,
        })
    }

    /// The least `submitted` dot.
    #[must_use]
    pub fn birth(&self) -> Option<&Dot> {
        self.submitted().map(|(fact, _)| &fact.dot)
    }

    /// The current generation: the greatest that any submission or rerun opened.
    #[must_use]
    pub fn generation(&self) -> u32 {
        if let Some(array) = &self.array {
            return array.generation();
        }
        let opened = self.facts.iter().filter(|fact| matches!(fact.body, Body::Rerun(_)));
        opened.map(|fact| fact.generation).max().unwrap_or(1)
    }

    /// The attempts in order of their dots.
    pub fn deployed(&self) -> impl Iterator<Item = (&Fact, &Deployed)> {
        self.facts.iter().filter_map(|fact| match &fact.body {
            Body::Deployed(body) => Some((&**fact, body)),
            _ => None,
        })
    }

    /// The reported results in order of their dots.
    pub fn reported(&self) -> impl Iterator<Item = (&Fact, &Arc<Reported>)> {
        self.facts.iter().filter_map(|fact| match &fact.body {
            Body::Reported(body) => Some((&**fact, body)),
            _ => None,
        })
    }

    /// The accepts in order of their dots.
    pub fn accepted(&self) -> impl Iterator<Item = (&Fact, &Accepted)> {
        self.facts.iter().filter_map(|fact| match &fact.body {
            Body::Accepted(body) => Some((&**fact, body)),
            _ => None,
        })
    }

    /// The fact that deployed an attempt.
    #[must_use]
    pub fn attempt(&self, attempt: &AttemptId) -> Option<(&Fact, &Deployed)> {
        match self.get(&attempt.dot).map(|fact| (&**fact, &fact.body)) {
            Some((fact, Body::Deployed(body))) => Some((fact, body)),
            _ => None,
        }
    }

    /// The accept that stands for a generation: the greatest by the one key.
    #[must_use]
    pub fn winner(&self, generation: u32) -> Option<(&Fact, &Accepted)> {
        let of_generation = self.accepted().filter(|(fact, _)| fact.generation == generation);
        of_generation.max_by(|a, b| arbitrate::key(a.0, a.1).cmp(&arbitrate::key(b.0, b.1)))
    }

    /// What ended a generation, whether or not it has an accept: the strongest end in force.
    #[must_use]
    pub fn end(&self, generation: u32) -> Option<(EndKind, &Fact)> {
        let ends = self.facts.iter().filter_map(|fact| match fact.body {
            Body::Cancelled(_) => Some((EndKind::Cancelled, &**fact)),
            Body::Expired(_) => Some((EndKind::Expired, &**fact)),
            Body::Skipped(_) => Some((EndKind::Skipped, &**fact)),
            _ => None,
        });
        let in_force = |(_, end): &(EndKind, &Fact)| {
            let undone = self.facts.iter().any(|fact| {
                matches!(fact.body, Body::Rerun(_))
                    && fact.generation <= generation
                    && fact.clock.covers(&end.dot)
            });
            end.generation <= generation && !undone
        };
        // Of several of one kind the one with the least dot is shown.
        ends.filter(in_force).max_by(|a, b| a.0.cmp(&b.0).then(b.1.dot.cmp(&a.1.dot)))
    }

    /// The fact that parked a generation.
    #[must_use]
    pub fn parked(&self, generation: u32) -> Option<&Fact> {
        let of_generation = |fact: &&Arc<Fact>| {
            fact.generation == generation && matches!(fact.body, Body::Parked(_))
        };
        self.facts.iter().find(of_generation).map(|fact| &**fact)
    }

    /// How an attempt of `generation` stands.
    #[must_use]
    pub fn standing(&self, attempt: &Fact) -> Attempt<'_> {
        let (mut lost, mut revoked) = (None, None);
        for fact in &self.facts {
            match &fact.body {
                Body::Reported(body) if body.attempt.dot == attempt.dot => return Attempt::Ended,
                Body::Lost(body) if body.attempt.dot == attempt.dot => {
                    lost = lost.or(Some(body.reason.as_str()));
                }
                Body::Revoked(body) if body.attempt.dot == attempt.dot => {
                    revoked = revoked.or(Some(body.reason.as_str()));
                }
                _ => {}
            }
        }
        if let Some(reason) = lost {
            return Attempt::Lost(reason);
        }
        if let Some(reason) = revoked {
            return Attempt::Revoked(reason);
        }
        let generation = attempt.generation;
        let over = generation < self.generation()
            || self.winner(generation).is_some()
            || self.end(generation).is_some()
            || self.parked(generation).is_some();
        if over { Attempt::Revoked("its generation ended") } else { Attempt::Running }
    }

    /// The attempts under way.
    pub fn running(&self) -> impl Iterator<Item = (&Fact, &Deployed)> {
        self.deployed().filter(|(fact, _)| self.standing(fact) == Attempt::Running)
    }

    /// Where the job stands; nothing while no submission is held.
    #[must_use]
    pub fn state(&self) -> Option<JobState> {
        if let Some(array) = &self.array {
            return array.state();
        }
        self.submitted()?;
        let generation = self.generation();
        if let Some((_, accepted)) = self.winner(generation) {
            return Some(if accepted.success { JobState::Succeeded } else { JobState::Failed });
        }
        if let Some((kind, _)) = self.end(generation) {
            return Some(match kind {
                EndKind::Cancelled => JobState::Cancelled,
                EndKind::Expired => JobState::Expired,
                EndKind::Skipped => JobState::Skipped,
            });
        }
        if self.parked(generation).is_some() {
            return Some(JobState::Parked);
        }
        let runs = self.running().next().is_some();
        Some(if runs { JobState::Running } else { JobState::Waiting })
    }

    /// What the owner has to do next.
    #[must_use]
    pub fn step(&self) -> Step {
        let Some((_, submitted)) = self.submitted() else { return Step::Nothing };
        let generation = self.generation();
        let open = matches!(self.state(), Some(JobState::Waiting | JobState::Running));
        if !open {
            return Step::Nothing;
        }
        if let Some(report) = self.best_report(generation, true) {
            return Step::Accept(report);
        }
        if self.running().next().is_some() {
            return Step::Nothing;
        }
        let of_generation = || self.deployed().filter(|(fact, _)| fact.generation == generation);
        let count = |wanted: fn(Attempt<'_>) -> bool| {
            let found = of_generation().filter(|(fact, _)| wanted(self.standing(fact))).count();
            u32::try_from(found).unwrap_or(u32::MAX)
        };
        let failed = count(|standing| standing == Attempt::Ended);
        if failed > submitted.spec.retries
            && let Some(report) = self.best_report(generation, false)
        {
            return Step::Accept(report);
        }
        let lost = count(|standing| matches!(standing, Attempt::Lost(_)));
        if lost >= submitted.spec.max_lost {
            return Step::Park { lost };
        }
        let fence = self.deployed().map(|(_, body)| body.fence).max().unwrap_or(0) + 1;
        let revoked = count(|standing| matches!(standing, Attempt::Revoked(_)));
        let unbegun = of_generation().filter(|(fact, _)| self.is_unbegun(fact)).count();
        let revoked = revoked.saturating_sub(u32::try_from(unbegun).unwrap_or(u32::MAX));
        Step::Deploy { fence, tries: Tries { failed, lost, revoked } }
    }

    /// Whether an attempt was called back before it had begun.
    fn is_unbegun(&self, attempt: &Fact) -> bool {
        let said = |fact: &&Arc<Fact>| match &fact.body {
            Body::Revoked(body) => body.unbegun && body.attempt.dot == attempt.dot,
            _ => false,
        };
        matches!(self.standing(attempt), Attempt::Revoked(_)) && self.facts.iter().any(|f| said(&f))
    }

    /// The report that would win if all of this generation with this success were accepted.
    fn best_report(&self, generation: u32, success: bool) -> Option<Dot> {
        let candidates = self.reported().filter_map(|(fact, body)| {
            let (deployed, attempt) = self.attempt(&body.attempt)?;
            let fits = deployed.generation == generation
                && fact.generation == generation
                && body.result.is_success() == success;
            fits.then_some((attempt.fence, &body.attempt, body.digest, fact))
        });
        let best = candidates
            .max_by(|a, b| (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)).then(b.3.dot.cmp(&a.3.dot)));
        best.map(|(.., fact)| fact.dot.clone())
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
                    result: stripped(&body.result),
                    ..(**body).clone()
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
