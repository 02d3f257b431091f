//! Laws of logs: only the next fact of a log is taken, only with the chain hash that follows, and
//! equal holdings have equal digests however they came together.

use std::sync::Arc;

use proptest::prelude::*;

use ucp::proto::clock::Clock;
use ucp::proto::fact::{Body, Fact, Joined, SealedFact, chain_next, chain_start};
use ucp::proto::id::{Digest, Dot, LogId};
use ucp::proto::log::{LogError, Logs};

/// The first facts of a log.
pub fn log_of(name: &str, length: u64) -> Vec<SealedFact> {
    let log: LogId = name.parse().expect("a name");
    let mut chain = chain_start(&log);
    let mut facts = Vec::new();
    for seq in 1..=length {
        let dot = Dot { log: log.clone(), seq };
        let mut clock = Clock::new();
        clock.raise_to(&dot);
        let body = Body::Joined(Joined {
            name: format!("{name} {seq}"),
            fold_version: 1,
            continues: None,
        });
        let at = "2026-01-01T00:00:00.000Z".to_owned();
        let fact =
            Fact { dot, clock, job: None, birth: None, generation: 0, elements: None, at, body };
        let line: Arc<str> = fact.to_line().into();
        chain = chain_next(&chain, &line);
        facts.push(SealedFact { fact: Arc::new(fact), line, chain });
    }
    facts
}

proptest! {
    #[test]
    fn logs_taken_in_any_interleaving_are_the_same(
        picks in proptest::collection::vec(0_usize..3, 0..60)
    ) {
        let all = [log_of("a-1", 20), log_of("b-2", 20), log_of("c-3", 20)];
        let (mut mixed, mut counts) = (Logs::default(), [0_usize; 3]);
        for pick in picks {
            if let Some(fact) = all[pick].get(counts[pick]) {
                prop_assert_eq!(mixed.extend(fact), Ok(()));
                counts[pick] += 1;
            }
        }
        let mut sorted = Logs::default();
        for (log, count) in all.iter().zip(counts) {
            for fact in &log[..count] {
                prop_assert_eq!(sorted.extend(fact), Ok(()));
            }
        }
        prop_assert_eq!(mixed.digest(), sorted.digest());
        prop_assert_eq!(mixed.vector(), sorted.vector());
        prop_assert_eq!(mixed, sorted);
    }

    #[test]
    fn a_repeat_or_a_gap_is_refused_and_changes_nothing(held in 0_usize..10, other in 0_usize..12) {
        let facts = log_of("a-1", 12);
        let mut logs = Logs::default();
        for fact in &facts[..held] {
            prop_assert_eq!(logs.extend(fact), Ok(()));
        }
        let before = logs.clone();
        let taken = logs.extend(&facts[other]);
        if other == held {
            prop_assert_eq!(taken, Ok(()));
            prop_assert_ne!(logs.digest(), before.digest());
        } else {
            let gap = LogError::Gap { dot: facts[other].fact.dot.clone(), held: held as u64 };
            prop_assert_eq!(taken, Err(gap));
            prop_assert_eq!(logs, before);
        }
    }

    #[test]
    fn a_changed_byte_or_hash_is_refused(at in 0_usize..8, byte in 0_usize..60, flip in 1_u8..127) {
        let facts = log_of("a-1", 8);
        let mut logs = Logs::default();
        for fact in &facts[..at] {
            prop_assert_eq!(logs.extend(fact), Ok(()));
        }
        let before = logs.clone();
        let mut bytes = facts[at].line.as_bytes().to_vec();
        bytes[byte] ^= flip;
        let line: Arc<str> = String::from_utf8_lossy(&bytes).into();
        let changed = SealedFact { line, ..facts[at].clone() };
        let chain = Digest::of(b"another");
        let forked = SealedFact { chain, ..facts[at].clone() };
        for bad in [changed, forked] {
            let refused = Err(LogError::Chain(bad.fact.dot.clone()));
            prop_assert_eq!(logs.extend(&bad), refused);
        }
        prop_assert_eq!(logs, before);
    }
}

#[test]
fn a_log_of_which_nothing_is_held_begins_with_the_hash_of_its_name() {
    let log: LogId = "a-1".parse().expect("a name");
    let head = Logs::default().head(&log);
    assert_eq!((head.seq, head.chain), (0, Digest::of(b"a-1")));
}
