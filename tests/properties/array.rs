//! Laws of the fold of arrays, over histories of up to three brokers that are cut and joined.
//!
//! The oracle folds each element by itself: the facts that concern it, as those of a job that is no
//! array. Facts cover random elements that are together in what they need.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use ucp::proto::fact::{
    Accepted, Body, Checkpointed, Deployed, Ending, Fact, Reason, Regained, Reported, Submitted,
};
use ucp::proto::fold::{Attempt, JobFacts, Step};
use ucp::proto::id::{AttemptId, Digest, Dot, JobId, LogId};
use ucp::proto::job::JobSpec;
use ucp::proto::ranges::Ranges;
use ucp::proto::result::{JobResult, Run, Stream};
use ucp::proto::rng::Rng;
use ucp::proto::view::JobState;

const JOB: JobId = JobId(uuid::Uuid::from_u128(7));
const ELEMENTS: &str = "1-9,12,15-18";

struct Writer {
    log: LogId,
    seq: u64,
    facts: JobFacts,
}

fn reason(rng: &mut Rng) -> Reason {
    Reason { reason: format!("reason {}", rng.below(2)) }
}

impl Writer {
    fn new(index: usize) -> Self {
        let log = format!("broker{index}-0000000{index}").parse().expect("a name");
        Self { log, seq: 0, facts: JobFacts::default() }
    }

    fn write(&mut self, generation: u32, elements: Option<Ranges>, body: Body) {
        self.seq += 1;
        let dot = Dot { log: self.log.clone(), seq: self.seq };
        let mut clock = self.facts.clock().clone();
        clock.raise_to(&dot);
        let birth = self.facts.birth().or(Some(&dot)).cloned();
        let (job, at) = (Some(JOB), String::new());
        let fact = Fact { dot, clock, job, birth, generation, elements, at, body };
        assert!(self.facts.insert(Arc::new(fact)));
    }

    /// Some elements: mostly a run, now and then with a hole.
    fn some(&self, rng: &mut Rng) -> Ranges {
        let first = 1 + rng.below(18);
        let mut some = Ranges::run(first, first + rng.below(8));
        if rng.chance(30) {
            some.remove(first + 1 + rng.below(3));
        }
        let all = self.facts.elements().cloned().unwrap_or_default();
        some.intersection(&all)
    }

    /// Of some elements those that stand like the first of them.
    fn alike<K: PartialEq>(&self, some: &Ranges, key: impl Fn(&JobFacts) -> K) -> (K, Ranges) {
        let of = |element| key(&self.facts.task(Some(element)));
        let first = of(some.first().expect("not empty"));
        let alike = some.iter().filter(|element| of(*element) == first).collect();
        (first, alike)
    }

    fn act(&mut self, rng: &mut Rng) {
        let some = self.some(rng);
        if some.is_empty() {
            return;
        }
        match rng.below(10) {
            0..5 => self.step(&some),
            5..8 => self.report(rng, &some),
            8 => self.end(rng, &some),
            _ => {
                let ((generation, state), alike) =
                    self.alike(&some, |task| (task.generation(), task.state()));
                if state.is_some_and(|state| state.is_ended() || state == JobState::Parked) {
                    let elements = (!rng.chance(10)).then_some(alike);
                    self.write(generation + 1, elements, Body::Rerun(reason(rng)));
                }
            }
        }
    }

    fn step(&mut self, some: &Ranges) {
        let ((step, generation), alike) = self.alike(some, |task| (task.step(), task.generation()));
        let body = match step {
            Step::Nothing => return,
            Step::Deploy { fence, .. } => {
                let executor = "executor-1".parse().expect("a name");
                Body::Deployed(Deployed { executor, life: 1, fence, lease_ms: None })
            }
            Step::Park { .. } => Body::Parked(Reason { reason: "lost".into() }),
            Step::Accept(reported) => {
                let fact = self.facts.get(&reported).expect("the report is held");
                let Body::Reported(body) = &fact.body else { panic!("a report is accepted") };
                let (_, deployed) = self.facts.attempt(&body.attempt).expect("its attempt");
                Body::Accepted(Accepted {
                    attempt: body.attempt.clone(),
                    reported,
                    digest: body.digest,
                    success: body.result.is_success(),
                    fence: deployed.fence,
                })
            }
        };
        self.write(generation, Some(alike), body);
    }

    /// Something becomes of a deployment at some of its elements.
    fn report(&mut self, rng: &mut Rng, some: &Ranges) {
        if rng.chance(15) {
            return self.regain_or_keep(rng, some);
        }
        let running = |task: &JobFacts| {
            let last = task.running().last();
            last.map(|(fact, _)| (fact.dot.clone(), fact.generation))
        };
        let (Some((dot, generation)), alike) = self.alike(some, running) else { return };
        let executor = "executor-1".parse().expect("a name");
        let attempt = AttemptId::from(dot);
        if rng.chance(25) {
            let unproven = None;
            let body =
                Ending { attempt, executor, reason: "lost".into(), unproven, unbegun: false };
            let body = if rng.chance(50) { Body::Lost(body) } else { Body::Revoked(body) };
            return self.write(generation, Some(alike), body);
        }
        let stdout = Stream::inline(format!("{}", rng.below(2)).into_bytes());
        let exit = Some(i32::from(rng.chance(40)));
        let result = JobResult { exit, stdout, ..JobResult::default() };
        let runs = alike.iter().map(|element| Run { cpu_us: element, ..Run::default() });
        let (digest, runs) = (result.digest(), runs.collect());
        let clock = ucp::proto::clock::Clock::new();
        let body = Reported { attempt, executor, digest, result, runs, clock, carried: vec![] };
        self.write(generation, Some(alike), Body::Reported(Arc::new(body)));
    }

    /// A lost deployment is there again at some elements, or state of one element is kept.
    fn regain_or_keep(&mut self, rng: &mut Rng, some: &Ranges) {
        let executor = "executor-1".parse().expect("a name");
        let last = |task: &JobFacts| {
            let last = task.deployed().last();
            last.map(|(fact, _)| {
                let lost = matches!(task.standing(fact), Attempt::Lost(_));
                (fact.dot.clone(), fact.generation, lost)
            })
        };
        let (Some((dot, generation, lost)), alike) = self.alike(some, last) else { return };
        let attempt = AttemptId::from(dot);
        if lost {
            return self.write(
                generation,
                Some(alike),
                Body::Regained(Regained { attempt, executor }),
            );
        }
        let one = Ranges::one(alike.first().expect("not empty"));
        let (number, manifest) = (1 + rng.below(5), Digest::of(b"state"));
        let (files, bytes, clock) = (1, 1, ucp::proto::clock::Clock::new());
        let body = Checkpointed { attempt, executor, number, manifest, files, bytes, clock };
        self.write(generation, Some(one), Body::Checkpointed(body));
    }

    fn end(&mut self, rng: &mut Rng, some: &Ranges) {
        let (generation, alike) = self.alike(some, JobFacts::generation);
        let body = match rng.below(3) {
            0 => Body::Expired(reason(rng)),
            1 => Body::Skipped(reason(rng)),
            _ => Body::Cancelled(reason(rng)),
        };
        let elements = (!rng.chance(10)).then_some(alike);
        self.write(generation, elements, body);
    }
}

/// All facts of a random history, in the order in which they were written by one broker each.
fn history(seed: u64) -> Vec<Arc<Fact>> {
    let mut rng = Rng::from_seed(seed);
    let count = 1 + usize::try_from(rng.below(3)).expect("small");
    let mut writers: Vec<Writer> = (0..count).map(Writer::new).collect();
    let spec = JobSpec {
        retries: u32::try_from(rng.below(2)).expect("small"),
        max_lost: 1 + u32::try_from(rng.below(2)).expect("small"),
        array: Some(ELEMENTS.parse().expect("ranges")),
        ..JobSpec::command(vec!["true".into()])
    };
    let submitted = Submitted { spec: Arc::new(spec), retention_ms: 0, began_us: None };
    writers[0].write(1, None, Body::Submitted(submitted));
    for _ in 0..rng.below(120) {
        let index = |rng: &mut Rng| usize::try_from(rng.below(count as u64)).expect("small");
        let (from, to) = (index(&mut rng), index(&mut rng));
        if rng.chance(25) {
            let facts: Vec<_> = writers[from].facts.iter().cloned().collect();
            for fact in facts {
                writers[to].facts.insert(fact);
            }
        } else {
            writers[to].act(&mut rng);
        }
    }
    let mut all: BTreeMap<Dot, Arc<Fact>> = BTreeMap::new();
    for fact in writers.iter().flat_map(|writer| writer.facts.iter()) {
        all.insert(fact.dot.clone(), Arc::clone(fact));
    }
    all.into_values().collect()
}

fn held<'a>(facts: impl IntoIterator<Item = &'a Arc<Fact>>) -> JobFacts {
    let mut held = JobFacts::default();
    for fact in facts {
        held.insert(Arc::clone(fact));
    }
    held
}

/// The facts of one element as those of a job that is no array.
fn alone(facts: &[Arc<Fact>], element: u64) -> JobFacts {
    let mut alone = JobFacts::default();
    for fact in facts.iter().filter(|fact| fact.concerns(Some(element))) {
        let mut fact = Fact { elements: None, ..(**fact).clone() };
        if let Body::Submitted(body) = &mut fact.body {
            body.spec = Arc::new(body.spec.without_array());
        }
        alone.insert(Arc::new(fact));
    }
    alone
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a5_each_element_is_folded_as_if_it_were_a_job_of_its_own(seed: u64) {
        let facts = history(seed);
        let array = held(&facts);
        let all: Ranges = ELEMENTS.parse().expect("ranges");
        let mut counted = 0;
        for element in all.iter() {
            let (task, alone) = (array.task(Some(element)), alone(&facts, element));
            prop_assert_eq!(task.state(), alone.state());
            prop_assert_eq!(task.step(), alone.step());
            prop_assert_eq!(task.generation(), alone.generation());
            let winner = |facts: &JobFacts| {
                facts.winner(facts.generation()).map(|(fact, _)| fact.dot.clone())
            };
            prop_assert_eq!(winner(&task), winner(&alone));
            let of_state = array.states().expect("an array").get(&task.state().expect("known"));
            prop_assert!(of_state.is_some_and(|elements| elements.contains(element)));
        }
        for elements in array.states().expect("an array").values() {
            counted += elements.len();
            prop_assert!(!elements.is_empty());
        }
        prop_assert_eq!(counted, all.len());
        // Parts are what they promise: all elements of one have the same facts.
        for (first, last) in array.parts(&all) {
            let dots = |element| -> Vec<Dot> {
                array.task(Some(element)).iter().map(|fact| fact.dot.clone()).collect()
            };
            prop_assert!((first..=last).all(|element| dots(element) == dots(first)));
        }
    }

    #[test]
    fn a5_the_order_of_arrival_changes_nothing(seed: u64) {
        let facts = history(seed);
        let mut shuffled = facts.clone();
        let mut rng = Rng::from_seed(seed ^ 1);
        for at in (1..shuffled.len()).rev() {
            let other = usize::try_from(rng.below(at as u64 + 1)).expect("small");
            shuffled.swap(at, other);
        }
        let (array, other) = (held(&facts), held(shuffled.iter().chain(&facts)));
        prop_assert_eq!(&array, &other);
        prop_assert_eq!(array.row(JOB), other.row(JOB));
    }

    #[test]
    fn facts_about_elements_read_back_as_they_were_written(seed: u64) {
        for fact in history(seed) {
            let line = fact.to_line();
            prop_assert_eq!(Fact::parse(&line), Ok((*fact).clone()), "{}", line);
        }
    }
}
