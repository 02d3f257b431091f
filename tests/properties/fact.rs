//! Laws of fact lines: what is written reads back the same, what is no fact is refused, and no
//! bytes whatever make the reader panic.

use std::sync::Arc;

use proptest::prelude::*;

use ucp::proto::clock::Clock;
use ucp::proto::fact::{
    Accepted, Body, Checkpointed, Continues, Deployed, Ending, Fact, FactError, Joined, Reason,
    Regained, Reported, Submitted,
};
use ucp::proto::id::{AttemptId, Digest, Dot, ExecutorId, JobId, LogId};
use ucp::proto::job::JobSpec;
use ucp::proto::result::{JobResult, Stream};

fn dots() -> impl Strategy<Value = Dot> {
    ("[a-c]{1,3}", 1_u64..1_000_000).prop_map(|(name, seq)| {
        let log: LogId = format!("{name}-0011aabb").parse().expect("a name");
        Dot { log, seq }
    })
}

fn executors() -> impl Strategy<Value = ExecutorId> {
    "van[0-9]{1,3}".prop_map(|name| name.parse().expect("a name"))
}

fn jobs() -> impl Strategy<Value = JobId> {
    any::<u128>().prop_map(|bits| JobId(uuid::Uuid::from_u128(bits)))
}

fn results() -> impl Strategy<Value = JobResult> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    (proptest::option::of(any::<i32>()), any::<bool>(), bytes(), bytes(), any::<u32>()).prop_map(
        |(exit, timed_out, stdout, stderr, cpu)| JobResult {
            exit,
            timed_out,
            stdout: Stream::inline(stdout),
            stderr: Stream::inline(stderr),
            cpu_us: u64::from(cpu),
            ..JobResult::default()
        },
    )
}

fn attempts() -> impl Strategy<Value = (AttemptId, ExecutorId)> {
    (dots().prop_map(AttemptId::from), executors())
}

fn bodies() -> impl Strategy<Value = Body> {
    let words = || "\\PC{0,30}";
    let reason = || words().prop_map(|reason| Reason { reason });
    let ending =
        || {
            let unproven = proptest::option::of(words());
            (attempts(), words(), unproven).prop_map(|((attempt, executor), reason, unproven)| {
                Ending { attempt, executor, reason, unproven, unbegun: false }
            })
        };
    prop_oneof![
        (words(), 1_u32..9, proptest::option::of(dots())).prop_map(
            |(name, fold_version, older)| {
                let continues = older.map(|dot| {
                    let chain = Digest::of(name.as_bytes());
                    Continues { log: dot.log, last_seq: dot.seq, chain }
                });
                Body::Joined(Joined { name, fold_version, continues })
            }
        ),
        (proptest::collection::vec("\\PC{1,20}", 1..4), proptest::option::of(0_u64..1 << 50))
            .prop_map(|(command, began_us)| {
                let spec = Arc::new(JobSpec::command(command));
                Body::Submitted(Submitted { spec, retention_ms: 7, began_us })
            }),
        (executors(), any::<u64>(), 1_u64..1 << 50).prop_map(|(executor, life, fence)| {
            Body::Deployed(Deployed { executor, life, fence, lease_ms: None })
        }),
        ending().prop_map(Body::Lost),
        ending().prop_map(Body::Revoked),
        attempts().prop_map(|(attempt, executor)| Body::Regained(Regained { attempt, executor })),
        (attempts(), 1_u64..1 << 50, any::<u64>()).prop_map(|((attempt, executor), number, n)| {
            let manifest = Digest::of(b"state");
            let (files, bytes, clock) = (n >> 12, n >> 12, Clock::new());
            Body::Checkpointed(Checkpointed {
                attempt,
                executor,
                number,
                manifest,
                files,
                bytes,
                clock,
            })
        }),
        (attempts(), results()).prop_map(|((attempt, executor), result)| {
            let (digest, clock) = (result.digest(), Clock::new());
            Body::Reported(Arc::new(Reported {
                attempt,
                executor,
                digest,
                result,
                runs: vec![],
                clock,
                carried: vec![],
            }))
        }),
        (attempts(), dots(), any::<bool>(), 1_u64..99).prop_map(
            |((attempt, _), reported, success, fence)| {
                let digest = Digest::of(b"content");
                Body::Accepted(Accepted { attempt, reported, digest, success, fence })
            }
        ),
        reason().prop_map(Body::Cancelled),
        reason().prop_map(Body::Rerun),
        reason().prop_map(Body::Parked),
        reason().prop_map(Body::Expired),
        reason().prop_map(Body::Skipped),
    ]
}

fn facts() -> impl Strategy<Value = Fact> {
    (dots(), jobs(), dots(), 1_u32..9, bodies()).prop_map(|(dot, job, birth, generation, body)| {
        let mut clock = Clock::new();
        if birth.log != dot.log {
            clock.raise_to(&birth);
        }
        clock.raise_to(&dot);
        let about_job = !matches!(body, Body::Joined(_));
        Fact {
            dot,
            clock,
            job: about_job.then_some(job),
            birth: about_job.then_some(birth),
            generation: if about_job { generation } else { 0 },
            elements: None,
            at: "2026-01-01T00:00:00.000Z".to_owned(),
            body,
        }
    })
}

proptest! {
    #[test]
    fn a_fact_reads_back_as_it_was_written(fact in facts()) {
        let line = fact.to_line();
        prop_assert!(!line.contains('\n'));
        let read = Fact::parse(&line);
        prop_assert_eq!(read.as_ref(), Ok(&fact));
        prop_assert_eq!(read.map(|read| read.to_line()), Ok(line));
    }

    #[test]
    fn a_cut_line_is_no_fact(fact in facts(), share in 0.0_f64..1.0) {
        let line = fact.to_line();
        let mut cut = (line.len() as f64 * share) as usize;
        while !line.is_char_boundary(cut) {
            cut -= 1;
        }
        prop_assert!(Fact::parse(&line[..cut]).is_err());
    }

    #[test]
    fn a_clock_that_miscounts_its_own_log_is_refused(fact in facts(), more in 1_u64..9) {
        let mut wrong = fact;
        let dot = Dot { seq: wrong.dot.seq + more, ..wrong.dot.clone() };
        wrong.clock.raise_to(&dot);
        let refused = matches!(Fact::parse(&wrong.to_line()), Err(FactError::OwnEntry { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn a_fact_about_a_job_needs_its_job_and_generation(fact in facts()) {
        let about_job = fact.job.is_some();
        let bare = Fact { job: None, ..fact.clone() };
        let unnumbered = Fact { generation: 0, ..fact };
        prop_assert_eq!(Fact::parse(&bare.to_line()).is_err(), about_job);
        prop_assert_eq!(Fact::parse(&unnumbered.to_line()).is_err(), about_job);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        let _ = Fact::parse(&text);
    }

    #[test]
    fn a_changed_byte_is_read_as_another_fact_or_refused(
        fact in facts(), place in any::<prop::sample::Index>(), byte in 32_u8..127
    ) {
        let mut bytes = fact.to_line().into_bytes();
        let place = place.index(bytes.len());
        let same = bytes[place] == byte;
        bytes[place] = byte;
        if let Ok(text) = String::from_utf8(bytes)
            && let Ok(read) = Fact::parse(&text)
        {
            prop_assert_eq!(read.clock.seq(&read.dot.log), read.dot.seq);
            prop_assert!(!same || read == fact);
        }
    }
}
