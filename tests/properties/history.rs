//! Laws of histories and of competing results: the order is causal and the same for every order
//! of arrival, a true history has no fault, and verdicts do not depend on arrival either.
//!
//! Histories are made by a few actors that act and hear of each other; the oracle is the order in
//! which they were made, with every event's true causes as clocks.

use proptest::prelude::*;

use ucp::proto::clock::{Causality, Clock};
use ucp::proto::contest::{Contender, Preference, judge};
use ucp::proto::history::{Checker, Event, Graph, short_hash};
use ucp::proto::id::ActorId;
use ucp::proto::view::Verdict;

fn actor(number: usize) -> ActorId {
    format!("log-{number}").parse().expect("a name")
}

/// Each step: who acts, and perhaps whom it heard of before.
fn histories() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec((0..4_usize, proptest::option::of(0..4_usize)), 1..40).prop_map(
        |steps| {
            let mut clocks = vec![Clock::new(); 4];
            let act = |(who, heard): (usize, Option<usize>)| {
                if let Some(heard) = heard {
                    let other = clocks[heard].clone();
                    clocks[who].merge(&other);
                }
                clocks[who].tick(&actor(who));
                let clock = serde_json::to_string(&clocks[who]).expect("a clock");
                format!(r#"{{"actor":"{}","clock":{clock}}}"#, actor(who))
            };
            steps.into_iter().map(act).collect()
        },
    )
}

fn sorted(lines: &[String]) -> Vec<String> {
    let mut graph = Graph::new();
    for line in lines {
        graph.add(&Event::parse(line).expect("an event"), short_hash(line)).expect("room");
    }
    graph.order().expect("an order").into_iter().map(|at| lines[at].clone()).collect()
}

fn faults(lines: &[String]) -> usize {
    let mut checker = Checker::new();
    let found: usize = lines
        .iter()
        .map(|line| checker.take(&Event::parse(line).expect("an event"), short_hash(line)).len())
        .sum();
    found + checker.finish(false).len()
}

/// Generation, clock, success, fence and content of one result.
type Made = (u32, Clock, bool, u64, u8);

fn contenders() -> impl Strategy<Value = Vec<Made>> {
    let clock = proptest::collection::btree_map(0..3_usize, 1..4_u64, 1..3);
    let clock = clock.prop_map(|clock| -> Clock {
        clock.into_iter().map(|(who, counter)| (actor(who), counter)).collect()
    });
    let one = (1..3_u32, clock, any::<bool>(), 0..3_u64, 0..3_u8);
    proptest::collection::vec(one, 1..8)
}

fn contender(made: &Made) -> Contender<'_, u64, u8> {
    let (generation, clock, success, fence, digest) = made;
    Contender {
        generation: *generation,
        clock,
        success: *success,
        fence: *fence,
        attempt: *fence,
        digest: *digest,
        accept: None,
    }
}

proptest! {
    #[test]
    fn the_order_is_causal_and_independent_of_arrival(
        (lines, arrived) in histories().prop_flat_map(|lines| {
            (Just(lines.clone()), Just(lines).prop_shuffle())
        })
    ) {
        let order = sorted(&lines);
        prop_assert_eq!(&order, &sorted(&arrived));
        let events: Vec<Event> =
            order.iter().map(|line| Event::parse(line).expect("an event")).collect();
        for (at, later) in events.iter().enumerate() {
            for earlier in &events[at + 1..] {
                prop_assert_ne!(earlier.clock.compare(&later.clock), Causality::Before);
            }
        }
        prop_assert_eq!(faults(&order), 0);
        prop_assert_eq!(faults(&lines), 0);
    }

    #[test]
    fn an_event_taken_out_or_moved_before_its_cause_is_found(
        lines in histories(), which in any::<prop::sample::Index>()
    ) {
        let at = which.index(lines.len());
        let event = Event::parse(&lines[at]).expect("an event");
        let mut without = lines.clone();
        without.remove(at);
        let known = |line: &String| {
            Event::parse(line).expect("an event").clock.get(&event.actor) >= event.seq
        };
        // The last event of an actor that nobody heard of leaves no trace.
        prop_assert_eq!(faults(&without) > 0, without.iter().any(known));
        let mut moved = lines.clone();
        moved.reverse();
        let ordered = |pair: &[String]| {
            let [a, b] = pair else { return false };
            let [a, b] = [a, b].map(|line| Event::parse(line).expect("an event"));
            a.clock.compare(&b.clock) == Causality::Before
        };
        prop_assert!(faults(&moved) > 0 || !lines.windows(2).any(ordered));
    }

    #[test]
    fn a5_verdicts_on_plain_clocks_do_not_depend_on_arrival(
        (all, arrived) in contenders().prop_flat_map(|all| {
            (Just(all.clone()), Just(all).prop_shuffle())
        })
    ) {
        for preference in [Preference::Newest, Preference::Oldest] {
            let judged = |all: &[Made]| {
                let all: Vec<_> = all.iter().map(contender).collect();
                judge(&all, preference)
            };
            let verdicts = |all: &[Made]| {
                let mut verdicts: Vec<_> = judged(all)
                    .into_iter()
                    .zip(all)
                    .map(|(judgement, one)| (format!("{one:?}"), judgement.verdict))
                    .collect();
                verdicts.sort_by_key(|(one, verdict)| (one.clone(), *verdict as u8));
                verdicts
            };
            let said = judged(&all);
            let accepted: Vec<usize> =
                (0..all.len()).filter(|at| said[*at].verdict == Verdict::Accepted).collect();
            prop_assert_eq!(accepted.len(), 1);
            let winner = &all[accepted[0]];
            prop_assert!(all.iter().all(|one| one.0 <= winner.0));
            let beaten = all.iter().any(|one| {
                one.0 == winner.0 && winner.1.compare(&one.1) == Causality::Before
            });
            prop_assert!(!beaten);
            prop_assert_eq!(verdicts(&all), verdicts(&arrived));
        }
    }
}
