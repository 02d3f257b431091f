//! The deterministic simulation: a broker, up to eight executors and clients on a simulated
//! network, disk and clocks, in one thread and from one seed.
//!
//! What runs is the shipped core (`proto::broker`, `proto::executor`); everything around it is
//! simulated. A failing seed prints the broken rule and the command that replays it.
//! Environment: `UCP_SIM_SEEDS` (how many, 2,000), `UCP_SIM_SEED` (just this one, with its trace),
//! `UCP_SIM_FACTS` (a file that takes the durable facts of that one, instead of its trace).

#![allow(clippy::print_stdout)]

mod simulation {
    pub mod broker_host;
    pub mod checkers;
    pub mod clients;
    pub mod clocks;
    pub mod cluster;
    pub mod counters;
    pub mod deadlines;
    pub mod disk;
    pub mod executor_host;
    pub mod faults;
    pub mod finale;
    pub mod history;
    pub mod jobs;
    pub mod leaving;
    pub mod network;
    pub mod oracle;
    pub mod processes;
    pub mod queue;
    pub mod queueing;
    pub mod trace;
    pub mod workload;
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use ucp::proto::fact::{Accepted, Body, Fact};
use ucp::proto::id::TaskId;

use simulation::checkers::Failure;
use simulation::cluster::{Harm, Options, World};
use simulation::counters::Counters;
use simulation::finale::decisions;

const SEEDS_DEFAULT: u64 = 2_000;
/// With fewer seeds than this a counter may well stay at zero.
const SEEDS_FOR_COUNTERS: u64 = 500;
const THREADS: usize = 2;
/// Each of so many seeds is also run with right wall clocks, and the decisions compared.
const SKEW_COMPARED_EVERY: u64 = 8;

#[derive(Default)]
struct Sum {
    counters: Counters,
    messages: u64,
    failures: Vec<(u64, Failure)>,
}

fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn options(seed: u64) -> Options {
    Options { seed, skew: true, trace: false, harm: Harm::None }
}

/// Runs a seed; a panic of the core is a broken rule like any other.
fn run(options: Options) -> (World, Option<Failure>) {
    let mut world = World::new(options);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let failure = ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Some(Failure { rule: "panic", text: text.unwrap_or_default() })
    });
    (world, failure)
}

/// I9, A17: wall clocks that are wrong change no decision; with how many messages that was seen.
fn compare_without_skew(seed: u64, skewed: &World) -> (u64, Option<Failure>) {
    let (right, failure) = run(Options { skew: false, ..options(seed) });
    let failure = failure.or_else(|| other_decision(skewed, &right));
    (right.messages, failure)
}

fn other_decision(skewed: &World, right: &World) -> Option<Failure> {
    let (mine, theirs) = (decisions(&skewed.checks.all), decisions(&right.checks.all));
    let place = mine.iter().zip(&theirs).position(|(a, b)| a != b);
    let place = place.or((mine.len() != theirs.len()).then_some(mine.len().min(theirs.len())))?;
    let text = format!(
        "decision {place} is {:?} with wrong wall clocks, {:?} with right ones",
        mine.get(place),
        theirs.get(place)
    );
    Some(Failure { rule: "I9", text })
}

fn run_one(seed: u64, sum: &Mutex<Sum>) {
    let (world, mut failure) = run(options(seed));
    let mut messages = world.messages;
    if failure.is_none() && seed.is_multiple_of(SKEW_COMPARED_EVERY) {
        let (more, broken) = compare_without_skew(seed, &world);
        messages += more;
        failure = broken;
    }
    let mut sum = sum.lock().expect("no thread panics with it");
    sum.counters.add(&world.counters);
    sum.messages += messages;
    if let Some(failure) = failure {
        println!("seed {seed} breaks {}: {}", failure.rule, failure.text);
        println!("replay it with its trace: scripts/sim {seed}");
        sum.failures.push((seed, failure));
    }
}

/// Seeds that failed once.
fn past_failures() -> Vec<u64> {
    let lines = include_str!("simulation/seeds.txt").lines();
    let numbers = lines.filter_map(|line| line.split('#').next()?.trim().parse().ok());
    numbers.collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how fast seeds run is measured, never decided by")]
fn every_seed_keeps_every_rule() {
    if number_from("UCP_SIM_SEED").is_some() {
        return;
    }
    let seeds = number_from("UCP_SIM_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let first = number_from("UCP_SIM_FIRST").unwrap_or(1);
    let (sum, next, begun) = (Mutex::new(Sum::default()), AtomicU64::new(first), Instant::now());
    let enough = AtomicBool::new(false);
    for seed in past_failures() {
        run_one(seed, &sum);
    }
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    run_one(seed, &sum);
                    let failed = sum.lock().expect("no thread panics with it").failures.len();
                    enough.store(failed >= 5, Ordering::Relaxed);
                }
            });
        }
    });
    let sum = sum.into_inner().expect("no thread panicked");
    let spent = begun.elapsed().as_secs_f64();
    println!("{}", sum.counters.table());
    let (messages, rate) = (sum.messages, sum.messages as f64 / spent / THREADS as f64);
    println!("{seeds} seeds, {messages} messages, {spent:.1} s, {rate:.0} messages/s per thread");
    assert!(sum.failures.is_empty(), "{} seeds failed", sum.failures.len());
    let never = sum.counters.never();
    assert!(seeds < SEEDS_FOR_COUNTERS || never.is_empty(), "never occurred: {never:?}");
}

#[test]
fn one_seed_is_replayed_with_its_trace() {
    let Some(seed) = number_from("UCP_SIM_SEED") else { return };
    let facts = std::env::var_os("UCP_SIM_FACTS");
    let (world, mut failure) = run(Options { trace: facts.is_none(), ..options(seed) });
    if let Some(file) = facts {
        let lines: String = world.disk.durable.iter().map(|f| format!("{}\n", f.line)).collect();
        std::fs::write(file, lines).expect("the file can be written");
    }
    if failure.is_none() {
        failure = compare_without_skew(seed, &world).1;
    }
    println!("{}", world.counters.table());
    println!("seed {seed}: {} messages", world.messages);
    if let Some(failure) = failure {
        panic!("seed {seed} breaks {}: {}", failure.rule, failure.text);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 4, 5] {
        let runs = [run(options(seed)), run(options(seed))];
        let [mine, theirs] = runs.map(|(world, _)| {
            let lines = world.checks.all.iter().map(|sealed| sealed.line.to_string());
            (world.now, world.messages, lines.collect::<Vec<_>>())
        });
        assert_eq!(mine, theirs);
    }
}

/// The rules that seeds break when the harness is broken like this, and how many do.
fn rules_broken_by(harm: Harm) -> Vec<&'static str> {
    let runs = (1..=60).map(|seed| run(Options { harm, ..options(seed) }).1);
    runs.flatten().map(|failure| failure.rule).collect()
}

#[test]
fn an_acknowledgement_before_the_commit_is_caught() {
    let rules = rules_broken_by(Harm::AckBeforePersist);
    assert!(rules.len() > 50 && rules.contains(&"durable-first"), "{rules:?}");
}

#[test]
fn a_seq_used_again_after_a_restore_is_caught() {
    let rules = rules_broken_by(Harm::TrustLostHead);
    assert!(rules.contains(&"I5"), "{rules:?}");
}

#[test]
fn a_second_accept_in_a_generation_is_caught() {
    let (mut world, failure) = run(options(1));
    assert!(failure.is_none(), "{failure:?}");
    let accepted = world.checks.all.iter().filter_map(|sealed| match &sealed.fact.body {
        Body::Accepted(body) => Some((Fact::clone(&sealed.fact), body.clone())),
        _ => None,
    });
    let plain = |fact: &Fact| Some(TaskId::from(fact.job.filter(|_| fact.elements.is_none())?));
    let current = |(fact, _): &(Fact, Accepted)| {
        let book = plain(fact).and_then(|task| world.checks.held.tasks.get(&task));
        book.is_some_and(|book| {
            book.outcomes.get(&fact.generation).is_some_and(|o| o.accepted.is_some())
        })
    };
    let (fact, body) = accepted.rev().find(current).expect("a seed accepts something");
    let task = plain(&fact).expect("it was looked for");
    world.checks.check_accepted(task, &fact, &body.attempt, &body.digest);
    assert_eq!(world.checks.failure.map(|failure| failure.rule), Some("one-accept"));
}
