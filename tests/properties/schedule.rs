//! Laws of the queue (I8) and of precedence.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use ucp::proto::capability::{Kind, Needs};
use ucp::proto::id::JobId;
use ucp::proto::precedence::{Precedence, Rank};
use ucp::proto::schedule::Queue;
use ucp::proto::time::Monotonic;

#[derive(Debug, Clone)]
enum Change {
    Insert { wasm: bool, cores: u32, level: usize, since: u64 },
    Remove { index: usize },
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (any::<bool>(), 1..4_u32, 0..4_usize, 0..10_000_000_000_u64)
            .prop_map(|(wasm, cores, level, since)| Change::Insert { wasm, cores, level, since }),
        1 => any::<usize>().prop_map(|index| Change::Remove { index }),
    ]
}

proptest! {
    #[test]
    fn i8_the_head_of_each_class_is_its_least_rank(
        changes in proptest::collection::vec(change(), 0..60),
    ) {
        let mut queue = Queue::default();
        let mut model: Vec<((Kind, Needs), Rank, JobId, Precedence)> = vec![];
        for (arrival, change) in changes.into_iter().enumerate() {
            match change {
                Change::Insert { wasm, cores, level, since } => {
                    let kind = if wasm { Kind::Wasm } else { Kind::Native };
                    let precedence = Precedence::ALL[level];
                    let needs = Needs { cores, ..Needs::default() };
                    let rank = Rank::new(precedence, Monotonic(since), arrival as u64);
                    let job = JobId(uuid::Uuid::from_u128(arrival as u128));
                    queue.insert(kind, &needs, rank, job, precedence);
                    model.push(((kind, needs), rank, job, precedence));
                }
                Change::Remove { index } if !model.is_empty() => {
                    let ((kind, needs), rank, ..) = model.remove(index % model.len());
                    queue.remove(kind, &needs, rank);
                }
                Change::Remove { .. } => {}
            }
            let mut expected: BTreeMap<(Kind, Needs), (Rank, JobId)> = BTreeMap::new();
            for (class, rank, job, _) in &model {
                let head = expected.entry(class.clone()).or_insert((*rank, *job));
                *head = (*head).min((*rank, *job));
            }
            let heads: BTreeMap<(Kind, Needs), (Rank, JobId)> =
                queue
                    .heads()
                    .map(|(kind, needs, rank, job)| ((kind, needs.clone()), (rank, job)))
                    .collect();
            prop_assert_eq!(heads, expected);
            for level in Precedence::ALL {
                let count = model.iter().filter(|entry| entry.3 == level).count() as u64;
                prop_assert_eq!(queue.levels().get(&level).copied().unwrap_or(0), count);
            }
            prop_assert_eq!(queue.is_empty(), model.is_empty());
        }
    }

    #[test]
    fn a_level_is_a_head_start_and_waiting_overtakes_it(
        since in 0..1_000_000_000_u64, earlier in 0..200_000_000_000_u64, level in 1..4_usize,
    ) {
        let urgent = Precedence::ALL[level];
        let start = urgent.head_start();
        let later = Monotonic(since).after(Duration::from_micros(earlier));
        let routine = Rank::new(Precedence::Routine, Monotonic(since), 0);
        let urgent = Rank::new(urgent, later, 1);
        prop_assert_eq!(urgent < routine, Duration::from_micros(earlier) < start);
    }
}
