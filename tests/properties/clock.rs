//! Laws of vector clocks: `merge` is a join, `compare` is its order, JSON keeps everything.
//!
//! Clocks have up to six actors of a small alphabet, so that equal, ordered and concurrent pairs
//! all occur.

use proptest::prelude::*;

use ucp::proto::clock::{Causality, Clock};
use ucp::proto::id::{ActorId, Dot, LogId};

fn actor(number: u8) -> ActorId {
    format!("log-{number}").parse().expect("a name")
}

fn clocks() -> impl Strategy<Value = Clock> {
    proptest::collection::btree_map(0_u8..6, 0_u64..4, 0..6).prop_map(|entries| {
        entries.into_iter().map(|(number, counter)| (actor(number), counter)).collect()
    })
}

fn merged(a: &Clock, b: &Clock) -> Clock {
    let mut both = a.clone();
    both.merge(b);
    both
}

proptest! {
    #[test]
    fn merge_commutes_associates_and_repeats_without_effect(
        a in clocks(), b in clocks(), c in clocks()
    ) {
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a.clone());
        prop_assert_eq!(merged(&a, &Clock::new()), a);
    }

    #[test]
    fn merge_is_the_least_clock_that_covers_both(a in clocks(), b in clocks(), c in clocks()) {
        let both = merged(&a, &b);
        prop_assert!(a.at_most(&both) && b.at_most(&both));
        if a.at_most(&c) && b.at_most(&c) {
            prop_assert!(both.at_most(&c));
        }
    }

    #[test]
    fn compare_agrees_with_its_converse_and_with_merge(a in clocks(), b in clocks()) {
        let converse = match a.compare(&b) {
            Causality::Before => Causality::After,
            Causality::After => Causality::Before,
            same => same,
        };
        prop_assert_eq!(b.compare(&a), converse);
        let both = merged(&a, &b);
        match a.compare(&b) {
            Causality::Equal => prop_assert!(a == b),
            Causality::Before => prop_assert!(both == b && a != b),
            Causality::After => prop_assert!(both == a && a != b),
            Causality::Concurrent => prop_assert!(both != a && both != b),
        }
    }

    #[test]
    fn the_order_is_transitive(a in clocks(), b in clocks(), c in clocks()) {
        let (ab, abc) = (merged(&a, &b), merged(&merged(&a, &b), &c));
        prop_assert!(a.at_most(&ab) && ab.at_most(&abc) && a.at_most(&abc));
        if a.at_most(&b) && b.at_most(&c) {
            prop_assert!(a.at_most(&c));
        }
    }

    #[test]
    fn a_tick_is_after_and_counts_one(a in clocks(), number in 0_u8..6) {
        let mut ticked = a.clone();
        let counter = ticked.tick(&actor(number));
        prop_assert_eq!(counter, a.get(&actor(number)) + 1);
        prop_assert_eq!(ticked.get(&actor(number)), counter);
        prop_assert_eq!(a.compare(&ticked), Causality::Before);
    }

    #[test]
    fn a_clock_covers_just_the_dots_up_to_its_entries(a in clocks(), number in 0_u8..6) {
        let log: LogId = actor(number).as_str().parse().expect("a name");
        for seq in 1..5 {
            let dot = Dot { log: log.clone(), seq };
            prop_assert_eq!(a.covers(&dot), seq <= a.get(&actor(number)));
            let mut raised = a.clone();
            raised.raise_to(&dot);
            prop_assert!(raised.covers(&dot) && a.at_most(&raised));
        }
    }

    #[test]
    fn json_keeps_a_clock_and_no_zero_entry(a in clocks()) {
        prop_assert!(a.iter().all(|(_, counter)| counter > 0));
        let text = serde_json::to_string(&a).expect("a clock is JSON");
        let read: Clock = serde_json::from_str(&text).expect("its own JSON");
        prop_assert_eq!(read, a);
    }
}

#[test]
fn json_that_is_no_clock_is_refused() {
    for text in
        [r#"{"a":1,"a":2}"#, r#"{"a":9007199254740992}"#, r#"{"a b":1}"#, r#"{"a":-1}"#, "[]"]
    {
        serde_json::from_str::<Clock>(text).expect_err(text);
    }
    assert_eq!(serde_json::from_str::<Clock>(r#"{"a":0}"#).expect("a clock"), Clock::new());
}
