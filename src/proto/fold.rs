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
mod shown;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::proto::clock::Clock;
use crate::proto::contest::{self, Contender, Preference};
use crate::proto::fact::{Accepted, Body, Deployed, Fact, Reported, Submitted};
use crate::proto::id::{AttemptId, Digest, Dot, LogId};
use crate::proto::ranges::Ranges;
use crate::proto::view::JobState;

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
    /// Those of the facts that are known only as a report carried them.
    carried: BTreeSet<Dot>,
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
    /// Adds a fact about the job, and the facts that it carries; false if it was held already.
    pub fn insert(&mut self, fact: Arc<Fact>) -> bool {
        match self.facts.binary_search_by(|held| held.dot.cmp(&fact.dot)) {
            Ok(at) if self.carried.remove(&fact.dot) => {
                self.clock.raise_to(&fact.dot);
                self.replace(at, &fact);
            }
            Ok(_) => return false,
            Err(at) => {
                self.clock.raise_to(&fact.dot);
                self.facts.insert(at, Arc::clone(&fact));
                self.insert_by_element(&fact);
            }
        }
        for carried in fact.carried() {
            self.insert_carried(carried);
        }
        true
    }

    /// Adds a fact that a report carried. It counts like one that is held, but the clock does not
    /// speak of it: who holds the clock's facts need not hold this one.
    fn insert_carried(&mut self, fact: Arc<Fact>) {
        match self.facts.binary_search_by(|held| held.dot.cmp(&fact.dot)) {
            Err(at) => {
                self.carried.insert(fact.dot.clone());
                self.facts.insert(at, Arc::clone(&fact));
                self.insert_by_element(&fact);
            }
            // Of two that claim one dot the same one stands, whichever came first.
            Ok(at) if self.carried.contains(&fact.dot) && *self.facts[at] != *fact => {
                if fact.to_line() < self.facts[at].to_line() {
                    self.replace(at, &fact);
                }
            }
            Ok(_) => {}
        }
    }

    /// Another fact stands at a dot than was carried there: somebody lied.
    fn replace(&mut self, at: usize, fact: &Arc<Fact>) {
        if *self.facts[at] != **fact {
            self.facts[at] = Arc::clone(fact);
            self.array = None;
            self.insert_by_element(fact);
        }
    }

    /// Whether a fact is known only as a report carried it.
    #[must_use]
    pub fn is_carried(&self, dot: &Dot) -> bool {
        self.carried.contains(dot)
    }

    fn insert_by_element(&mut self, fact: &Arc<Fact>) {
        // The submission says what the job is; while none is held, whatever speaks of elements.
        let first = self.facts.iter().find_map(|fact| match &fact.body {
            Body::Submitted(body) => Some(body.spec.array.is_some()),
            _ => None,
        });
        let is_array = first.unwrap_or(fact.elements.is_some() || self.array.is_some());
        if !is_array {
            self.array = None;
        } else if let Some(array) = &mut self.array {
            array.insert(fact);
            array.refresh(fact.elements.as_ref());
        } else {
            let array = self.array.insert(Box::default());
            self.facts.iter().for_each(|fact| array.insert(fact));
            array.refresh(None);
        }
    }

    fn of_element(facts: Vec<Arc<Fact>>, element: u64) -> Self {
        let (clock, carried) = (Clock::new(), BTreeSet::new());
        Self { facts, clock, array: None, element: Some(element), carried }
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

    /// The log of the broker that deploys the job: that of the submission with the greatest dot.
    #[must_use]
    pub fn owner(&self) -> Option<&LogId> {
        let mut submitted = self.facts.iter().rev();
        let mut submitted =
            submitted.by_ref().filter(|fact| matches!(fact.body, Body::Submitted(_)));
        // What was only carried says nothing while a submission is held itself.
        let mut carried = None;
        let held = submitted.find(|fact| {
            let only_carried = self.is_carried(&fact.dot);
            if only_carried {
                carried.get_or_insert(&fact.dot.log);
            }
            !only_carried
        });
        held.map(|fact| &fact.dot.log).or(carried)
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
        let mut accepts = self.accepted().filter(|(fact, _)| fact.generation == generation);
        let first = accepts.next()?;
        let Some(second) = accepts.next() else { return Some(first) };
        let all: Vec<_> = [first, second].into_iter().chain(accepts).collect();
        let contenders: Vec<_> = all.iter().map(|(fact, body)| contender(fact, body)).collect();
        let winner = contest::winner(&contenders, self.preference())?;
        all.get(winner).copied()
    }

    /// Which of concurrent attempts goes first.
    #[must_use]
    pub fn preference(&self) -> Preference {
        self.submitted().map_or_else(Preference::default, |(_, body)| body.spec.on_conflict)
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
                Body::Lost(body) if body.attempt.dot == attempt.dot && !self.is_regained(fact) => {
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

    /// Whether the attempt of a `lost` fact was there again afterwards: a `regained` of somebody
    /// who knew of the loss.
    fn is_regained(&self, lost: &Fact) -> bool {
        self.facts.iter().any(|fact| {
            matches!(fact.body, Body::Regained(_))
                && fact.lease() == lost.lease()
                && fact.clock.covers(&lost.dot)
        })
    }

    /// Whether it is proven that no process of an attempt is left: its result came, it was stopped,
    /// or its loss says so.
    #[must_use]
    pub fn is_proven_over(&self, attempt: &Fact) -> bool {
        self.facts.iter().any(|fact| match &fact.body {
            Body::Reported(body) => body.attempt.dot == attempt.dot,
            Body::Revoked(body) | Body::Lost(body) => {
                body.attempt.dot == attempt.dot && body.unproven.is_none()
            }
            _ => false,
        })
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
        let state = self.state();
        let parked = state == Some(JobState::Parked);
        if !parked && !matches!(state, Some(JobState::Waiting | JobState::Running)) {
            return Step::Nothing;
        }
        // Work that was really done is not thrown away, also where nobody waited for it any more.
        if let Some(report) = self.best_report(generation, true) {
            return Step::Accept(report);
        }
        if parked {
            return Step::Nothing;
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
            let contender = Contender {
                generation,
                clock: &fact.clock,
                success,
                fence: attempt.fence,
                attempt: &body.attempt,
                digest: body.digest,
                accept: None,
            };
            fits.then_some((contender, fact))
        });
        let preference = self.preference();
        let best =
            candidates.max_by(|a, b| a.0.cmp_key(&b.0, preference).then(b.1.dot.cmp(&a.1.dot)));
        best.map(|(_, fact)| fact.dot.clone())
    }
}

/// An accept as one of several results.
pub(crate) fn contender<'a>(
    fact: &'a Fact,
    body: &'a Accepted,
) -> Contender<'a, &'a AttemptId, Digest> {
    Contender {
        generation: fact.generation,
        clock: &fact.clock,
        success: body.success,
        fence: body.fence,
        attempt: &body.attempt,
        digest: body.digest,
        accept: Some(&fact.dot),
    }
}
