//! Which result wins, and the rule that decided.
//!
//! Pure. In one history the first accepted result stands; results of concurrent histories are
//! ordered by one key, the same on every broker, whatever the order of arrival:
//!
//! ```text
//! (generation, success, fence, attempt dot, content digest, accept dot)
//! ```
//!
//! The key and the comparison of clocks are in contest.rs, which `ucp-clock resolve` shares.
//!
//! A result's causal position is its attempt's dot: a decision that knew of the attempt makes the
//! result *late*, one that did not makes it *rejected*.
//! Law: in one generation a broker that knows an accept writes no other, so several accepts are
//! pairwise concurrent; the winner is the maximum of the key (tests/properties/fold.rs).
//! Source: design section 4; Lamport 1978 for the fence.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::proto::clock::Causality;
use crate::proto::fact::{Fact, Reported};
use crate::proto::fold::{EndKind, JobFacts, contender};
use crate::proto::view::{Judgement, ResultView, Verdict};

const fn judged(verdict: Verdict, rule: &'static str) -> Judgement {
    Judgement { verdict, rule }
}

/// Judges a reported result by all facts held.
#[must_use]
pub fn judge(facts: &JobFacts, fact: &Fact, body: &Reported) -> Judgement {
    let known = facts.submitted().is_some() && facts.attempt(&body.attempt).is_some();
    if !known {
        return judged(Verdict::Waiting, "attempt-unknown");
    }
    if let Some(judgement) = judge_same_attempt(facts, fact, body) {
        return judgement;
    }
    let generation = fact.generation;
    if let Some((accept, accepted)) = facts.winner(generation) {
        if accepted.attempt == body.attempt && accepted.digest == body.digest {
            return judge_winner(facts, generation, accept);
        }
        return if accept.clock.covers(&body.attempt.dot) {
            judged(Verdict::Late, "decided-knowing-the-attempt")
        } else {
            judged(Verdict::Rejected, "concurrent-lesser-key")
        };
    }
    if generation < facts.generation() {
        return judged(Verdict::Late, "older-generation");
    }
    match facts.end(generation) {
        Some((EndKind::Cancelled, _)) => judged(Verdict::Late, "cancelled"),
        Some((EndKind::Expired, _)) => judged(Verdict::Late, "expired"),
        Some((EndKind::Skipped, _)) => judged(Verdict::Late, "skipped"),
        None if body.result.is_success() => judged(Verdict::Reported, "not-yet-accepted"),
        None => judged(Verdict::Reported, "failure-retried"),
    }
}

/// Of several reports of one attempt: the same content is a duplicate of the one with the least
/// dot; of several contents the accepted one stands, else the one with the greatest digest.
fn judge_same_attempt(facts: &JobFacts, fact: &Fact, body: &Reported) -> Option<Judgement> {
    let others = || {
        let same = move |(_, other): &(&Fact, &Arc<Reported>)| other.attempt == body.attempt;
        facts.reported().filter(same)
    };
    let earlier = |(other, said): (&Fact, &Arc<Reported>)| {
        said.digest == body.digest && other.dot.cmp(&fact.dot) == Ordering::Less
    };
    if others().any(earlier) {
        return Some(judged(Verdict::Duplicate, "same-attempt-same-content"));
    }
    let accepts = facts.accepted().filter(|(_, accept)| accept.attempt == body.attempt);
    let stands = accepts
        .max_by(|a, b| contender(a.0, a.1).cmp_key(&contender(b.0, b.1), facts.preference()));
    let standing = match stands {
        Some((_, accept)) => Some(accept.digest),
        None => others().map(|(_, said)| said.digest).max(),
    };
    (standing != Some(body.digest)).then(|| judged(Verdict::Rejected, "equivocation"))
}

fn judge_winner(facts: &JobFacts, generation: u32, accept: &Fact) -> Judgement {
    let greater = facts.accepted().any(|(fact, _)| fact.generation > generation);
    let alone = facts.accepted().filter(|(fact, _)| fact.generation == generation).count() == 1;
    debug_assert!(
        facts.accepted().all(|(fact, _)| {
            fact.generation != generation
                || fact.dot == accept.dot
                || fact.clock.compare(&accept.clock) == Causality::Concurrent
        }),
        "accepts of one generation are pairwise concurrent"
    );
    match (greater, alone) {
        (true, _) => judged(Verdict::Superseded, "greater-generation"),
        (false, true) => judged(Verdict::Accepted, "first-accepted"),
        (false, false) => judged(Verdict::Accepted, "greatest-key"),
    }
}

/// All reported results with their verdicts, in order of their dots.
#[must_use]
pub fn result_views(facts: &JobFacts) -> Vec<ResultView> {
    let view = |(fact, body): (&Fact, &Arc<Reported>)| ResultView {
        dot: fact.dot.clone(),
        generation: fact.generation,
        clock: fact.clock.clone(),
        reported: Arc::clone(body),
        judgement: judge(facts, fact, body),
    };
    facts.reported().map(view).collect()
}
