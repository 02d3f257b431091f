//! Laws of the fold and of arbitration, over histories of up to four brokers that are cut and
//! joined at random.
//!
//! The histories are made by the rules that real owners follow (`JobFacts::step`), each broker
//! from what it holds itself; so concurrent accepts, cancels and reruns occur as after real cuts.

use std::cmp::Reverse;
use std::sync::Arc;

use proptest::prelude::*;
use ucp::proto::arbitrate::{judge, result_views};
use ucp::proto::clock::Causality;
use ucp::proto::contest::Preference;
use ucp::proto::fact::{
    Accepted, Body, Checkpointed, Deployed, Ending, Fact, Reason, Regained, Reported, Submitted,
};
use ucp::proto::fold::{Attempt, JobFacts, Step};
use ucp::proto::id::{AttemptId, Digest, Dot, JobId, LogId};
use ucp::proto::job::JobSpec;
use ucp::proto::result::{JobResult, Stream};
use ucp::proto::rng::Rng;
use ucp::proto::view::{JobState, Verdict};

const JOB: JobId = JobId(uuid::Uuid::from_u128(7));

/// A broker of the model: what it holds, and how far its own log goes.
struct Writer {
    log: LogId,
    seq: u64,
    facts: JobFacts,
}

impl Writer {
    fn new(index: usize) -> Self {
        let log = format!("broker{index}-0000000{index}").parse().expect("a name");
        Self { log, seq: 0, facts: JobFacts::default() }
    }

    fn write(&mut self, generation: u32, body: Body) -> Dot {
        self.seq += 1;
        let dot = Dot { log: self.log.clone(), seq: self.seq };
        let mut clock = self.facts.clock().clone();
        clock.raise_to(&dot);
        let birth = self.facts.birth().or(Some(&dot)).cloned();
        let at = String::new();
        let fact = Fact {
            dot: dot.clone(),
            clock,
            job: Some(JOB),
            birth,
            generation,
            elements: None,
            at,
            body,
        };
        assert!(self.facts.insert(Arc::new(fact)));
        dot
    }

    fn reason(rng: &mut Rng) -> Reason {
        Reason { reason: format!("reason {}", rng.below(3)) }
    }

    /// Does what an owner would do next, or what somebody outside does to it.
    fn act(&mut self, rng: &mut Rng) {
        let generation = self.facts.generation();
        match rng.below(12) {
            10 => self.regain(),
            11 => self.keep_state(rng),
            0..4 => self.step(),
            4..7 => self.report(rng),
            7 => self.lose(rng),
            8 => {
                let open = [JobState::Waiting, JobState::Running, JobState::Parked];
                if self.facts.state().is_some_and(|state| open.contains(&state)) {
                    let body = match rng.below(3) {
                        0 => Body::Expired(Self::reason(rng)),
                        1 => Body::Skipped(Self::reason(rng)),
                        _ => Body::Cancelled(Self::reason(rng)),
                    };
                    self.write(generation, body);
                }
            }
            _ => {
                let state = self.facts.state();
                if state.is_some_and(|state| state.is_ended() || state == JobState::Parked) {
                    self.write(generation + 1, Body::Rerun(Self::reason(rng)));
                }
            }
        }
    }

    fn step(&mut self) {
        let generation = self.facts.generation();
        match self.facts.step() {
            Step::Nothing => {}
            Step::Deploy { fence, .. } => {
                let executor = "executor-1".parse().expect("a name");
                self.write(
                    generation,
                    Body::Deployed(Deployed { executor, life: 1, fence, lease_ms: None }),
                );
            }
            Step::Park { .. } => {
                self.write(generation, Body::Parked(Reason { reason: "lost".into() }));
            }
            Step::Accept(reported) => self.accept(&reported),
        }
    }

    fn accept(&mut self, reported: &Dot) {
        let fact = self.facts.get(reported).expect("the report is held");
        let Body::Reported(body) = &fact.body else { panic!("a report is accepted") };
        let (_, deployed) = self.facts.attempt(&body.attempt).expect("its attempt is held");
        let accepted = Accepted {
            attempt: body.attempt.clone(),
            reported: reported.clone(),
            digest: body.digest,
            success: body.result.is_success(),
            fence: deployed.fence,
        };
        let generation = fact.generation;
        self.write(generation, Body::Accepted(accepted));
    }

    fn pick(&self, rng: &mut Rng) -> Option<(AttemptId, u32)> {
        let attempts: Vec<_> = self.facts.deployed().collect();
        let index = usize::try_from(rng.below(attempts.len() as u64)).expect("small");
        let (fact, _) = attempts.get(index)?;
        Some((AttemptId::from(fact.dot.clone()), fact.generation))
    }

    fn report(&mut self, rng: &mut Rng) {
        let Some((attempt, generation)) = self.pick(rng) else { return };
        let exit = i32::from(rng.chance(40));
        let stdout = Stream::inline(format!("{}", rng.below(3)).into_bytes());
        let result = JobResult { exit: Some(exit), stdout, ..JobResult::default() };
        let digest = result.digest();
        let known =
            |(_, body): (&Fact, &Arc<Reported>)| body.attempt == attempt && body.digest == digest;
        if self.facts.reported().any(known) {
            return;
        }
        let executor = "executor-1".parse().expect("a name");
        let clock = ucp::proto::clock::Clock::new();
        let body =
            Reported { attempt, executor, digest, result, runs: vec![], clock, carried: vec![] };
        self.write(generation, Body::Reported(Arc::new(body)));
    }

    /// A lost attempt is there again.
    fn regain(&mut self) {
        let is_lost =
            |(fact, _): &(&Fact, &Deployed)| matches!(self.facts.standing(fact), Attempt::Lost(_));
        let lost = self.facts.deployed().filter(is_lost).last();
        let Some((fact, body)) = lost else { return };
        let (attempt, executor) = (AttemptId::from(fact.dot.clone()), body.executor.clone());
        let generation = fact.generation;
        self.write(generation, Body::Regained(Regained { attempt, executor }));
    }

    fn keep_state(&mut self, rng: &mut Rng) {
        let Some((attempt, generation)) = self.pick(rng) else { return };
        let executor = "executor-1".parse().expect("a name");
        let number = 1 + rng.below(4);
        let manifest = Digest::of(format!("{attempt} {number}").as_bytes());
        let clock = ucp::proto::clock::Clock::new();
        let (files, bytes) = (1, 1);
        let body = Checkpointed { attempt, executor, number, manifest, files, bytes, clock };
        self.write(generation, Body::Checkpointed(body));
    }

    /// An executor brings a result of an attempt that another broker made, with what explains it.
    fn courier(&mut self, from: &JobFacts, rng: &mut Rng) {
        let attempts: Vec<_> = from.deployed().collect();
        let index = usize::try_from(rng.below(attempts.len() as u64)).expect("small");
        let Some((fact, _)) = attempts.get(index) else { return };
        if self.facts.get(&fact.dot).is_some() {
            return;
        }
        let (attempt, generation) = (AttemptId::from(fact.dot.clone()), fact.generation);
        let carried = from.explanation(&attempt);
        let exit = i32::from(rng.chance(40));
        let result = JobResult { exit: Some(exit), ..JobResult::default() };
        let (executor, digest) = ("executor-1".parse().expect("a name"), result.digest());
        let clock = ucp::proto::clock::Clock::new();
        let runs = vec![];
        let body = Reported { attempt, executor, digest, result, runs, clock, carried };
        self.write(generation, Body::Reported(Arc::new(body)));
    }

    fn lose(&mut self, rng: &mut Rng) {
        let running: Vec<_> = self.facts.running().map(|(fact, _)| fact.dot.clone()).collect();
        let Some(dot) = running.first() else { return };
        let generation = self.facts.generation();
        let executor = "executor-1".parse().expect("a name");
        let body = Ending {
            attempt: AttemptId::from(dot.clone()),
            executor,
            reason: "lost".into(),
            unproven: None,
            unbegun: rng.chance(30),
        };
        let body = if rng.chance(50) { Body::Lost(body) } else { Body::Revoked(body) };
        self.write(generation, body);
    }
}

/// All facts of a random history; each writer's are causally closed.
fn history(seed: u64) -> Vec<Arc<Fact>> {
    let mut rng = Rng::from_seed(seed);
    let count = 1 + usize::try_from(rng.below(4)).expect("small");
    let mut writers: Vec<Writer> = (0..count).map(Writer::new).collect();
    let spec = JobSpec {
        retries: u32::try_from(rng.below(3)).expect("small"),
        max_lost: 1 + u32::try_from(rng.below(3)).expect("small"),
        on_conflict: if rng.chance(30) { Preference::Oldest } else { Preference::Newest },
        ..JobSpec::command(vec!["true".into()])
    };
    let births = 1 + usize::from(rng.chance(20));
    for writer in writers.iter_mut().take(births) {
        let spec = Arc::new(spec.clone());
        let body = Submitted { spec, retention_ms: 0, began_us: None };
        writer.write(1, Body::Submitted(body));
    }
    // From one that is cut off for good only executors bring anything.
    let gone = (count > 1 && rng.chance(25)).then_some(0);
    for _ in 0..rng.below(60) {
        let index = |rng: &mut Rng| usize::try_from(rng.below(count as u64)).expect("small");
        let (from, to) = (index(&mut rng), index(&mut rng));
        if rng.chance(30) && Some(from) != gone {
            for fact in held(&writers[from].facts) {
                writers[to].facts.insert(fact);
            }
        } else if from != to && rng.chance(if Some(from) == gone { 40 } else { 6 }) {
            let facts = writers[from].facts.clone();
            writers[to].courier(&facts, &mut rng);
        } else {
            writers[to].act(&mut rng);
        }
    }
    let mut all = JobFacts::default();
    let left = writers.iter().enumerate().filter(|(index, _)| Some(*index) != gone);
    for fact in left.flat_map(|(_, writer)| held(&writer.facts)) {
        all.insert(fact);
    }
    held(&all)
}

/// The facts that are held themselves, not only carried by others.
fn held(facts: &JobFacts) -> Vec<Arc<Fact>> {
    facts.iter().filter(|fact| !facts.is_carried(&fact.dot)).cloned().collect()
}

fn fold(facts: &[Arc<Fact>]) -> JobFacts {
    let mut folded = JobFacts::default();
    for fact in facts {
        folded.insert(Arc::clone(fact));
    }
    folded
}

fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for at in (1..items.len()).rev() {
        let other = usize::try_from(rng.below(at as u64 + 1)).expect("small");
        items.swap(at, other);
    }
}

fn permutations(facts: &[Arc<Fact>]) -> Vec<Vec<Arc<Fact>>> {
    if facts.is_empty() {
        return vec![vec![]];
    }
    let mut all = vec![];
    for at in 0..facts.len() {
        let mut rest = facts.to_vec();
        let first = rest.remove(at);
        for mut tail in permutations(&rest) {
            tail.push(Arc::clone(&first));
            all.push(tail);
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a5_any_order_repetition_and_splitting_of_facts_folds_to_the_same_state(
        seed in any::<u64>(), order in any::<u64>(),
    ) {
        let facts = history(seed);
        let expected = fold(&facts);
        let mut rng = Rng::from_seed(order);
        let mut mixed = facts.clone();
        for fact in &facts {
            if rng.chance(40) {
                mixed.push(Arc::clone(fact));
            }
        }
        shuffle(&mut mixed, &mut rng);
        let folded = fold(&mixed);
        prop_assert_eq!(folded.row(JOB), expected.row(JOB));
        prop_assert_eq!(folded.step(), expected.step());
        prop_assert_eq!(folded.attempt_views(), expected.attempt_views());
        prop_assert_eq!(result_views(&folded), result_views(&expected));
        // In two parts that are folded apart and then joined, either into the other.
        let middle = usize::try_from(rng.below(mixed.len() as u64 + 1)).expect("small");
        let (mut left, right) = (fold(&mixed[..middle]), fold(&mixed[middle..]));
        for fact in held(&right) {
            left.insert(fact);
        }
        prop_assert_eq!(&left, &expected);
    }

    #[test]
    fn a5_accepts_of_one_generation_are_concurrent_and_the_greatest_key_wins(
        seed in any::<u64>(),
    ) {
        let facts = fold(&history(seed));
        let accepts: Vec<_> = facts.accepted().collect();
        for (a, _) in &accepts {
            for (b, _) in accepts.iter().filter(|(b, _)| b.dot != a.dot) {
                if a.generation == b.generation {
                    prop_assert_eq!(a.clock.compare(&b.clock), Causality::Concurrent);
                }
            }
            let (winner, accepted) = facts.winner(a.generation).expect("there is an accept");
            let of_generation = accepts.iter().filter(|(b, _)| b.generation == a.generation);
            let key = |fact: &Fact, body: &Accepted| {
                let attempt = (body.fence, body.attempt.clone());
                let (newest, oldest) = match facts.preference() {
                    Preference::Newest => (Some(attempt), None),
                    Preference::Oldest => (None, Some(Reverse(attempt))),
                };
                (body.success, newest, oldest, body.digest, fact.dot.clone())
            };
            let greatest = of_generation.map(|(fact, body)| key(fact, body)).max();
            prop_assert_eq!(Some(key(winner, accepted)), greatest);
        }
    }

    #[test]
    fn a8_every_result_has_a_verdict_and_at_most_one_is_accepted(seed in any::<u64>()) {
        let facts = fold(&history(seed));
        let mut accepted = 0;
        for (fact, body) in facts.reported() {
            let judgement = judge(&facts, fact, body);
            prop_assert!(!judgement.rule.is_empty());
            if judgement.verdict == Verdict::Accepted {
                accepted += 1;
                let (_, winner) = facts.winner(fact.generation).expect("it won");
                prop_assert_eq!(winner.digest, body.digest);
            }
            if judgement.verdict == Verdict::Waiting {
                prop_assert!(facts.attempt(&body.attempt).is_none());
            }
        }
        prop_assert!(accepted <= 1);
    }

    #[test]
    fn a34_an_accept_outlives_every_cancel_of_its_generation(seed in any::<u64>()) {
        let facts = fold(&history(seed));
        let generation = facts.generation();
        if let Some((_, accepted)) = facts.winner(generation) {
            let state = if accepted.success { JobState::Succeeded } else { JobState::Failed };
            prop_assert_eq!(facts.state(), Some(state));
        } else if facts.end(generation).is_some() {
            prop_assert!(facts.state().is_some_and(JobState::is_ended));
            prop_assert!(facts.running().next().is_none());
        }
    }
}

#[test]
fn a5_every_permutation_of_small_sets_folds_to_the_same_state() {
    let mut seen = 0;
    for seed in 0..4_000 {
        let facts = history(seed);
        if !(4..=6).contains(&facts.len()) {
            continue;
        }
        seen += 1;
        let expected = fold(&facts);
        for order in permutations(&facts) {
            let folded = fold(&order);
            assert_eq!(folded.row(JOB), expected.row(JOB), "seed {seed}");
            assert_eq!(result_views(&folded), result_views(&expected), "seed {seed}");
        }
    }
    assert!(seen >= 20, "too few small histories: {seen}");
}

#[test]
fn the_histories_hold_every_kind_of_conflict() {
    let (mut concurrent, mut superseded, mut late, mut rejected, mut undone) = (0, 0, 0, 0, 0);
    let mut equivocation = 0;
    let (mut regained, mut carried, mut checkpoints) = (0, 0, 0);
    for seed in 0..3_000 {
        let facts = fold(&history(seed));
        let accepts: Vec<_> = facts.accepted().map(|(fact, _)| fact.generation).collect();
        let twice = accepts.iter().any(|g| accepts.iter().filter(|other| *other == g).count() > 1);
        concurrent += u32::from(twice);
        let of = |kind: &str| facts.iter().any(|fact| fact.body.kind() == kind);
        regained += u32::from(of("regained"));
        carried += u32::from(facts.iter().any(|fact| facts.is_carried(&fact.dot)));
        checkpoints += u32::from(facts.checkpoints(facts.generation()).len() > 1);
        for view in result_views(&facts) {
            match view.judgement.verdict {
                Verdict::Superseded => superseded += 1,
                Verdict::Late => late += 1,
                Verdict::Rejected if view.judgement.rule == "equivocation" => equivocation += 1,
                Verdict::Rejected => rejected += 1,
                _ => {}
            }
        }
        let reruns = facts.iter().filter(|fact| matches!(fact.body, Body::Rerun(_))).count();
        undone += u32::from(reruns > 0 && facts.end(facts.generation()).is_none());
    }
    for (what, count) in [
        ("concurrent accepts", concurrent),
        ("superseded", superseded),
        ("late", late),
        ("rejected", rejected),
        ("equivocation", equivocation),
        ("undone end", undone),
        ("regained", regained),
        ("carried", carried),
        ("checkpoints", checkpoints),
    ] {
        assert!(count > 10, "{what} occurred {count} times");
    }
}
